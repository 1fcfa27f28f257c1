//! Which snapshots share an account; a value in memory that is made anew from the records.

use std::collections::{BTreeMap, BTreeSet};

use snapshot_core::SnapshotId;

use crate::limit::Group;

/// Groups with members, each with its account: a project, a quota group.
#[derive(Debug)]
pub(super) struct Groups<A>(BTreeMap<Group, Members<A>>);

#[derive(Debug)]
struct Members<A> {
    account: A,
    members: BTreeSet<SnapshotId>,
}

/// Who is in a group once a member has gone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Others; the account stays theirs.
    Members,
    /// Nobody.
    Nobody,
}

impl<A> Default for Groups<A> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<A: Copy> Groups<A> {
    /// The account of a group that has members.
    pub(super) fn account(&self, group: &Group) -> Option<A> {
        self.0.get(group).map(|members| members.account)
    }

    /// Puts a snapshot into a group. The first member's account is the group's.
    pub(super) fn join(&mut self, group: &Group, account: A, member: SnapshotId) {
        let members = self.0.entry(group.clone()).or_insert_with(|| Members {
            account,
            members: BTreeSet::new(),
        });
        members.members.insert(member);
    }

    /// The group that a snapshot is in, and its account.
    pub(super) fn of(&self, member: SnapshotId) -> Option<(Group, A)> {
        let mut groups = self.0.iter();
        let found = groups.find(|(_, members)| members.members.contains(&member));
        found.map(|(group, members)| (group.clone(), members.account))
    }

    /// Takes a snapshot out of its group; does nothing when it was not in it.
    pub(super) fn leave(&mut self, group: &Group, member: SnapshotId) -> Rest {
        let Some(members) = self.0.get_mut(group) else {
            return Rest::Nobody;
        };
        members.members.remove(&member);
        if members.members.is_empty() {
            self.0.remove(group);
            return Rest::Nobody;
        }
        Rest::Members
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_has_its_first_members_account_until_the_last_has_gone() {
        let group = Group {
            namespace: "a".to_owned(),
            name: "b".parse().unwrap(),
        };
        let mut groups = Groups::default();
        assert_eq!(groups.account(&group), None);
        assert_eq!(groups.leave(&group, SnapshotId(1)), Rest::Nobody);
        groups.join(&group, 11, SnapshotId(1));
        groups.join(&group, 11, SnapshotId(2));
        groups.join(&group, 11, SnapshotId(2));
        assert_eq!(groups.of(SnapshotId(2)), Some((group.clone(), 11)));
        assert_eq!(groups.of(SnapshotId(3)), None);
        assert_eq!(groups.leave(&group, SnapshotId(1)), Rest::Members);
        assert_eq!(groups.account(&group), Some(11));
        assert_eq!(groups.leave(&group, SnapshotId(2)), Rest::Nobody);
        assert_eq!(groups.account(&group), None);
    }
}
