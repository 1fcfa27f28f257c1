//! How a snapshot and what is below it become one mount by overlayfs. Touches no disk but to let a
//! volatile overlay be mounted again.
//!
//! A snapshot's directory has its contents in `fs` and, when it is active, `work` beside it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{Chain, Error, IdMap, Kind, Mount, Result};

/// The contents of a snapshot, in its directory.
pub const CONTENTS: &str = "fs";

/// What overlayfs needs beside them.
pub const WORK: &str = "work";

/// As many lower directories as overlayfs takes (OVL_MAX_STACK).
const LOWERS_MAX: usize = 500;

/// What is mounted besides the directories, as [`crate::overlay_probe`] and the configuration say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OverlayOptions {
    /// `index=off`: hard links break at copy-up, as stock containerd has it; a directory can be in
    /// two overlays.
    pub index_off: bool,
    /// `userxattr`, in a user namespace.
    pub user_xattr: bool,
    /// `volatile`: nothing is synced, and a crash of the host loses what was written.
    pub volatile: bool,
    /// Who maps owners.
    pub owners: Owners,
    /// An empty directory below the root: an active snapshot without a parent becomes an overlay
    /// over it. Without one it becomes a bind mount, which escapes what only overlayfs enforces.
    pub empty_lower: Option<PathBuf>,
}

/// Who sees to it that files of lower layers belong to the users of a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owners {
    /// containerd, by mapped mounts (capability `remap-ids`, kernel 5.19).
    MappedByMount,
    /// Nobody: only what is new belongs to them. containerd copies layers for them then.
    Kept,
}

/// The mounts of an active snapshot or a view.
///
/// # Errors
/// [`Error::Precondition`] for more layers than overlayfs takes; [`Error::Invalid`] for labels that
/// map owners in a way that cannot be.
pub fn mounts(chain: &Chain, options: &OverlayOptions) -> Result<Vec<Mount>> {
    if chain.parents.len() > LOWERS_MAX {
        return Err(Error::Precondition(format!(
            "snapshot {:?} has {} layers below it, overlayfs takes {LOWERS_MAX}",
            chain.snapshot.info.name.as_str(),
            chain.parents.len()
        )));
    }
    let map = IdMap::from_labels(&chain.snapshot.info.labels)?;
    let mut words: Vec<String> = match (&map, options.owners) {
        (Some(map), Owners::MappedByMount) => map.mount_options().into(),
        (None, _) | (_, Owners::Kept) => Vec::new(),
    };
    let contents = |directory: &Path| text(&directory.join(CONTENTS));
    let own = contents(&chain.directory);
    let mut lowers: Vec<String> = chain
        .parents
        .iter()
        .map(|(_, path)| contents(path))
        .collect();
    let bind = |source: String, mut words: Vec<String>, access: &str| {
        words.extend([access.to_owned(), "rbind".to_owned()]);
        vec![mount("bind", source, words)]
    };
    match (chain.snapshot.info.kind, lowers.len(), &options.empty_lower) {
        (Kind::Active, 0, None) => return Ok(bind(own, words, "rw")),
        (Kind::Active, 0, Some(empty)) => lowers.push(text(empty)),
        (Kind::Active, ..) => {}
        (_, 0, _) => return Ok(bind(own, words, "ro")),
        (_, 1, _) => return Ok(bind(lowers.remove(0), words, "ro")),
        (..) => {}
    }
    let is_active = chain.snapshot.info.kind == Kind::Active;
    if is_active {
        words.push(format!("workdir={}", text(&chain.directory.join(WORK))));
        words.push(format!("upperdir={own}"));
    }
    words.push(format!("lowerdir={}", lowers.join(":")));
    let switches = [
        (options.index_off, "index=off"),
        (options.user_xattr, "userxattr"),
        (options.volatile && is_active, "volatile"),
    ];
    let switched_on = switches.into_iter().filter(|(on, _)| *on);
    words.extend(switched_on.map(|(_, word)| word.to_owned()));
    Ok(vec![mount("overlay", "overlay".to_owned(), words)])
}

/// Takes away the mark by which overlayfs refuses to mount a volatile overlay a second time. Whoever
/// asks for `volatile` has said that a crash in between may lose what was written.
///
/// # Errors
/// What keeps the mark from being removed.
pub fn allow_remount(directory: &Path) -> Result<()> {
    let mark = directory.join(WORK).join("work/incompat/volatile");
    match fs::remove_dir(&mark) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("remove", mark)(error))
        }
        _ => Ok(()),
    }
}

fn mount(kind: &str, source: String, options: Vec<String>) -> Mount {
    Mount {
        kind: kind.to_owned(),
        source,
        options,
    }
}

/// A path below a root, which is checked to be fit for mount options when it is opened.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Info, Key, Labels, Note, Snapshot, SnapshotId, Timestamp};

    const PLAIN: OverlayOptions = OverlayOptions {
        index_off: true,
        user_xattr: false,
        volatile: false,
        owners: Owners::Kept,
        empty_lower: None,
    };

    fn snapshot(id: u64, kind: Kind) -> Snapshot {
        Snapshot {
            id: SnapshotId(id),
            info: Info {
                name: Key::new(format!("name {id}")).unwrap(),
                parent: None,
                kind,
                created: Timestamp(0),
                updated: Timestamp(0),
                labels: Labels::new(),
            },
            note: Note::default(),
            usage: None,
        }
    }

    fn chain(kind: Kind, parents: usize) -> Chain {
        let directory = |id: u64| PathBuf::from(format!("/r/snapshots/{id}"));
        let ids = (1..=parents as u64).rev();
        Chain {
            snapshot: snapshot(parents as u64 + 1, kind),
            directory: directory(parents as u64 + 1),
            parents: ids
                .map(|id| (snapshot(id, Kind::Committed), directory(id)))
                .collect(),
        }
    }

    /// As `mount -t KIND -o OPTIONS SOURCE`.
    fn line(chain: &Chain, options: &OverlayOptions) -> String {
        let mut mounts = mounts(chain, options).unwrap();
        let mount = mounts.remove(0);
        assert!(mounts.is_empty());
        format!(
            "{} {} {}",
            mount.kind,
            mount.options.join(","),
            mount.source
        )
    }

    #[test]
    fn mounts_are_those_of_stock_overlayfs() {
        let check = |kind, parents, expected: &str| {
            assert_eq!(line(&chain(kind, parents), &PLAIN), expected);
        };
        check(Kind::Active, 0, "bind rw,rbind /r/snapshots/1/fs");
        check(Kind::View, 0, "bind ro,rbind /r/snapshots/1/fs");
        check(
            Kind::Active,
            1,
            "overlay workdir=/r/snapshots/2/work,upperdir=/r/snapshots/2/fs,\
             lowerdir=/r/snapshots/1/fs,index=off overlay",
        );
        check(Kind::View, 1, "bind ro,rbind /r/snapshots/1/fs");
        check(
            Kind::Active,
            3,
            "overlay workdir=/r/snapshots/4/work,upperdir=/r/snapshots/4/fs,\
             lowerdir=/r/snapshots/3/fs:/r/snapshots/2/fs:/r/snapshots/1/fs,index=off overlay",
        );
        check(
            Kind::View,
            2,
            "overlay lowerdir=/r/snapshots/2/fs:/r/snapshots/1/fs,index=off overlay",
        );
    }

    #[test]
    fn options_go_where_they_mean_something() {
        let all = OverlayOptions {
            index_off: false,
            user_xattr: true,
            volatile: true,
            owners: Owners::MappedByMount,
            empty_lower: Some(PathBuf::from("/r/empty")),
        };
        let check = |kind, parents, expected: &str| {
            let mut chain = chain(kind, parents);
            let label = |name: &str| (format!("containerd.io/snapshot/{name}"), "0:9:1".to_owned());
            chain.snapshot.info.labels = [label("uidmapping"), label("gidmapping")].into();
            assert_eq!(line(&chain, &all), expected);
        };
        check(
            Kind::Active,
            0,
            "overlay uidmap=0:9:1,gidmap=0:9:1,workdir=/r/snapshots/1/work,\
             upperdir=/r/snapshots/1/fs,lowerdir=/r/empty,userxattr,volatile overlay",
        );
        check(
            Kind::View,
            0,
            "bind uidmap=0:9:1,gidmap=0:9:1,ro,rbind /r/snapshots/1/fs",
        );
        check(
            Kind::View,
            1,
            "bind uidmap=0:9:1,gidmap=0:9:1,ro,rbind /r/snapshots/1/fs",
        );
        check(
            Kind::View,
            2,
            "overlay uidmap=0:9:1,gidmap=0:9:1,lowerdir=/r/snapshots/2/fs:/r/snapshots/1/fs,\
             userxattr overlay",
        );
    }

    #[test]
    fn as_many_layers_as_overlayfs_takes_are_given() {
        let most = line(&chain(Kind::Active, LOWERS_MAX), &PLAIN);
        assert_eq!(most.matches("/fs").count(), LOWERS_MAX + 1);
        let refusal = mounts(&chain(Kind::View, LOWERS_MAX + 1), &PLAIN).unwrap_err();
        assert!(matches!(refusal, Error::Precondition(_)), "{refusal}");
    }

    #[test]
    fn the_mark_of_a_volatile_overlay_goes_away() {
        let folder = tempfile::tempdir().unwrap();
        allow_remount(folder.path()).unwrap();
        let mark = folder.path().join("work/work/incompat/volatile");
        fs::create_dir_all(&mark).unwrap();
        allow_remount(folder.path()).unwrap();
        assert!(!mark.exists());
    }
}
