//! What quota adds to the core: decides what a snapshot may hold, and has a back end hold it.
//! It reads labels and mounts nothing.

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::SystemTime,
};

use snapshot_core::{
    Chain, Committed, Driver, Error, IdMap, Key, Kind, Labels, Mount, NewSnapshot, Note,
    OverlayOptions, Remains, Result, Snapshot, SnapshotId, Usage, one_line, overlay,
};

use crate::{
    backend::{Backend, Held, Kept, Left, Plain, Record, Report},
    backends::Backends,
    config::OnUnsupported,
    limit::{self, Group, Limit, Mode, Policy, Request, Size},
    writables::{Writable, Writables},
};

/// What a driver is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where limits are made to hold.
    pub backends: Backends,
    /// Defaults and rules.
    pub policy: Policy,
    /// What becomes of limits that cannot hold.
    pub on_unsupported: OnUnsupported,
    /// How overlays are mounted; the empty lower directory is there.
    pub overlay: OverlayOptions,
}

/// The driver.
#[derive(Debug)]
pub struct QuotaDriver {
    backends: Backends,
    policy: RwLock<Arc<Policy>>,
    on_unsupported: OnUnsupported,
    overlay: OverlayOptions,
    writables: Writables,
    reports: Mutex<Vec<Report>>,
}

/// What [`QuotaDriver::relimit`] does about the lift of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lift {
    /// No limit until then.
    Until(SystemTime),
    /// It is over.
    Over,
    /// As it was.
    Unchanged,
}

impl QuotaDriver {
    /// A driver.
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        Self {
            backends: parts.backends,
            policy: RwLock::new(Arc::new(parts.policy)),
            on_unsupported: parts.on_unsupported,
            overlay: parts.overlay,
            writables: Writables::default(),
            reports: Mutex::default(),
        }
    }

    /// The back ends.
    #[must_use]
    pub fn backends(&self) -> &Backends {
        &self.backends
    }

    /// Defaults and rules that count now.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&policy)
    }

    /// Other defaults and rules from now on; [`Self::relimit`] makes them hold for what is there.
    pub fn set_policy(&self, policy: Policy) {
        let mut kept = self.policy.write().unwrap_or_else(PoisonError::into_inner);
        *kept = Arc::new(policy);
    }

    /// What was put right at the start, back end by back end.
    pub fn take_reports(&self) -> Vec<Report> {
        std::mem::take(&mut self.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What a writable snapshot may hold by its labels, rules and defaults.
    ///
    /// # Errors
    /// [`Error::Invalid`] for labels that make no sense.
    pub fn limit_of(&self, snapshot: &Snapshot) -> Result<Limit> {
        self.decide(
            &snapshot.info.name,
            snapshot.info.parent.as_ref(),
            &snapshot.info.labels,
        )
    }

    /// The snapshots that can be written to.
    #[must_use]
    pub fn writables(&self) -> &Writables {
        &self.writables
    }

    /// Makes hold what is decided now: after the policy changed, or when a lift begins or ends.
    ///
    /// # Errors
    /// What the back end says; nothing has changed then.
    pub fn relimit(&self, snapshot: &Snapshot, directory: &Path, lift: Lift) -> Result<()> {
        let known = self.writables.get(snapshot.id);
        let Some(known) = known.filter(|_| snapshot.info.kind == Kind::Active) else {
            return Err(Error::Precondition(format!(
                "{} is no writable snapshot, so nothing limits it",
                snapshot.info.name
            )));
        };
        let limit = self.limit_of(snapshot)?;
        let lifted_until = match lift {
            Lift::Until(until) => Some(until),
            Lift::Over => None,
            Lift::Unchanged => known.lifted_until,
        };
        if let (Lift::Until(_), Some(group)) = (lift, &limit.group) {
            return Err(Error::Precondition(format!(
                "{} shares the limit of the group {group}, which is not lifted for one of them: \
                 raise it with `set`",
                snapshot.info.name
            )));
        }
        if limit == known.decided && lifted_until.is_some() == known.lifted_until.is_some() {
            self.writables
                .change_one(snapshot.id, |one| one.lifted_until = lifted_until);
            return Ok(());
        }
        let held = Held {
            id: snapshot.id,
            key: &snapshot.info.name,
            directory,
            record: &known.record,
        };
        if lifted_until.is_some() {
            self.set_limit(&snapshot.info.name, &held, Limit::counted())?;
            self.writables.change_one(snapshot.id, |one| {
                one.limit = limit.clone();
                one.decided = limit;
                one.lifted_until = lifted_until;
            });
            return Ok(());
        }
        self.hold(&snapshot.info.name, &held, limit)?;
        let settled = self.settle(&held);
        if settled.is_err() {
            self.hold(&snapshot.info.name, &held, known.decided.clone())?;
        }
        settled
    }

    /// What is in force can count from now on.
    fn settle(&self, held: &Held<'_>) -> Result<()> {
        match self.writables.get(held.id) {
            Some(known) if known.unsettled && known.lifted_until.is_none() => {
                self.backends.of(held.record)?.settle(held, &known.limit)?;
            }
            Some(_) | None => return Ok(()),
        }
        self.writables
            .change_one(held.id, |one| one.unsettled = false);
        Ok(())
    }

    /// Makes hold what was decided for a writable snapshot, and notes it. In a group, what was
    /// decided last for a member with a limit of its own counts for all.
    fn hold(&self, key: &Key, held: &Held<'_>, decided: Limit) -> Result<()> {
        let own = decided
            .group
            .as_ref()
            .filter(|_| decided.mode != Mode::Hard);
        let other = own.and_then(|group| self.limited_member(group, held.id));
        let limit = other.map_or_else(|| decided.clone(), |other| other.decided.clone());
        let limit = self.set_limit(key, held, limit)?;
        let (directory, record) = (held.directory.to_owned(), held.record.clone());
        let writable = Writable {
            decided,
            unsettled: true,
            ..Writable::new(key.clone(), directory, record, limit.clone())
        };
        let group = writable.decided.group.clone();
        self.writables.put(held.id, writable);
        if let Some(group) = group {
            self.writables.share(&group, &limit);
        }
        Ok(())
    }

    /// Another member of a group, with a limit of its own.
    fn limited_member(&self, group: &Group, but: SnapshotId) -> Option<Arc<Writable>> {
        let members = self.writables.filter(|one| {
            one.decided.mode == Mode::Hard && one.decided.group.as_ref() == Some(group)
        });
        let mut others = members.into_iter().filter(|(id, _)| *id != but);
        others.next().map(|(_, one)| one)
    }

    fn decide(&self, key: &Key, parent: Option<&Key>, labels: &Labels) -> Result<Limit> {
        let request = Request {
            key: key.as_str(),
            parent: parent.map(Key::as_str),
            labels,
        };
        let limit = limit::decide(&self.policy(), &request);
        limit.map_err(|refusal| Error::Invalid(one_line(&refusal)))
    }

    /// Gives what is in force then.
    fn set_limit(&self, key: &Key, held: &Held<'_>, limit: Limit) -> Result<Limit> {
        let done = self.backends.of(held.record)?.set_limit(held, &limit);
        match (done, self.on_unsupported) {
            (Err(Error::Invalid(why)), OnUnsupported::Warn) => {
                Ok(goes_on_without(key, &why, limit))
            }
            (done, _) => done.map(|()| limit),
        }
    }

    /// Makes a writable snapshot; without its limit when the configuration says so.
    fn create_writable(&self, new: &NewSnapshot<'_>, directory: &Path) -> Result<Record> {
        let parent = new.parents.first().map(|parent| &parent.info.name);
        let limit = self.decide(new.key, parent, new.labels)?;
        limit::refuse_too_small(&limit).map_err(|refusal| Error::Invalid(one_line(&refusal)))?;
        let map = IdMap::from_labels(new.labels)?;
        let backend = self.backends.chosen();
        let made = backend.create(directory, new.id, &limit);
        let (record, limit) = match (made, self.on_unsupported) {
            (Err(Error::Invalid(why)), OnUnsupported::Warn) if limit.mode == Mode::Hard => {
                let limit = goes_on_without(new.key, &why, limit);
                (backend.create(directory, new.id, &limit)?, limit)
            }
            (made, _) => (made?, limit),
        };
        let upper = record.upper(directory);
        if let Some((user, group)) = owner(map.as_ref(), new, directory)? {
            std::os::unix::fs::lchown(&upper, Some(user), Some(group))
                .map_err(Error::io("change the owner of", &upper))?;
        }
        let directory = directory.with_file_name(new.id.to_string());
        let writable = Writable::new(new.key.clone(), directory, record.clone(), limit);
        self.put(new.id, writable);
        Ok(record)
    }

    /// Notes a new snapshot. In a group it brings its limit, or takes that of the others.
    fn put(&self, id: SnapshotId, writable: Writable) {
        let decided = writable.decided.clone();
        self.writables.put(id, writable);
        let Some(group) = &decided.group else { return };
        match decided.mode {
            Mode::Hard => self.writables.share(group, &decided),
            Mode::Account | Mode::Off => {
                if let Some(other) = self.limited_member(group, id) {
                    self.writables.share(group, &other.limit);
                }
            }
        }
    }

    /// Sees to it that a snapshot's files are there, and says in which folder.
    fn attach(&self, snapshot: &Snapshot, directory: &Path) -> Result<PathBuf> {
        let record = Record::from_note(&snapshot.note)?;
        self.backends.of(&record)?.attach(&Held {
            id: snapshot.id,
            key: &snapshot.info.name,
            directory,
            record: &record,
        })?;
        Ok(record.folder(directory))
    }
}

/// Who owns the root directory: the container's root when ids are mapped, else who owns it in the
/// image. Overlay shows the owner of the upper directory, and a fresh one is the daemon's.
fn owner(
    map: Option<&IdMap>,
    new: &NewSnapshot<'_>,
    directory: &Path,
) -> Result<Option<(u32, u32)>> {
    if let Some(map) = map {
        return map.root().map(Some);
    }
    let Some(parent) = new.parents.first() else {
        return Ok(None);
    };
    let below = directory.with_file_name(parent.id.to_string());
    let upper = Record::from_note(&parent.note)?.upper(&below);
    let metadata = std::fs::symlink_metadata(&upper).map_err(Error::io("look at", &upper))?;
    Ok(Some((metadata.uid(), metadata.gid())))
}

impl Driver for QuotaDriver {
    fn create(&self, new: &NewSnapshot<'_>, directory: &Path) -> Result<Note> {
        let record = match new.kind {
            Kind::Active => self.create_writable(new, directory)?,
            Kind::View | Kind::Committed => {
                Plain::default().create(directory, new.id, &Limit::off())?
            }
        };
        Ok(record.to_note())
    }

    fn mounts(&self, chain: &Chain) -> Result<Vec<Mount>> {
        let parents = chain.parents.iter().map(|(parent, directory)| {
            let folder = self.attach(parent, directory)?;
            Ok((parent.clone(), folder))
        });
        let chain = Chain {
            snapshot: chain.snapshot.clone(),
            directory: self.attach(&chain.snapshot, &chain.directory)?,
            parents: parents.collect::<Result<_>>()?,
        };
        let mut options = self.overlay.clone();
        if self.is_layer(&chain.snapshot) {
            // Nothing limits it, and stock's unpacking into a bind is what others test.
            options.empty_lower = None;
        }
        overlay::mounts(&chain, &options)
    }

    fn update(&self, snapshot: &Snapshot, directory: &Path, labels: &Labels) -> Result<()> {
        // Labels of committed snapshots and views limit nothing; authors of images may write
        // what they like there.
        if snapshot.info.kind != Kind::Active {
            return Ok(());
        }
        let info = &snapshot.info;
        let wanted = self.decide(&info.name, info.parent.as_ref(), labels)?;
        IdMap::from_labels(labels)?;
        match self.writables.get(snapshot.id) {
            // In a group, another member may have set another limit since.
            Some(known) if known.decided == wanted && wanted.group.is_none() => return Ok(()),
            Some(known) if known.lifted_until.is_some() => {
                self.writables.change_one(snapshot.id, |one| {
                    one.limit = wanted.clone();
                    one.decided = wanted;
                });
                return Ok(());
            }
            // Without the latter, a commit that could not be stored had taken it away.
            Some(_) | None => {}
        }
        let record = Record::from_note(&snapshot.note)?;
        let held = Held {
            id: snapshot.id,
            key: &snapshot.info.name,
            directory,
            record: &record,
        };
        self.hold(&info.name, &held, wanted)
    }

    fn updated(&self, snapshot: &Snapshot, directory: &Path) -> Result<()> {
        if snapshot.info.kind != Kind::Active {
            return Ok(());
        }
        let record = Record::from_note(&snapshot.note)?;
        self.settle(&Held {
            id: snapshot.id,
            key: &snapshot.info.name,
            directory,
            record: &record,
        })
    }

    fn usage(&self, snapshot: &Snapshot, directory: &Path) -> Result<Usage> {
        let record = Record::from_note(&snapshot.note)?;
        self.backends.of(&record)?.usage(&Held {
            id: snapshot.id,
            key: &snapshot.info.name,
            directory,
            record: &record,
        })
    }

    fn commit(&self, snapshot: &Snapshot, directory: &Path) -> Result<Committed> {
        let record = Record::from_note(&snapshot.note)?;
        let closed = self.backends.of(&record)?.commit(&Held {
            id: snapshot.id,
            key: &snapshot.info.name,
            directory,
            record: &record,
        })?;
        self.writables.remove(snapshot.id);
        Ok(Committed {
            usage: closed.usage,
            note: closed.record.to_note(),
        })
    }

    fn committed(&self, snapshot: &Snapshot, directory: &Path) -> Result<()> {
        let record = Record::from_note(&snapshot.note)?;
        self.backends.of(&record)?.committed(&Held {
            id: snapshot.id,
            key: &snapshot.info.name,
            directory,
            record: &record,
        })
    }

    fn uncommitted(&self, snapshot: &Snapshot, directory: &Path) -> Result<()> {
        let record = Record::from_note(&snapshot.note)?;
        self.backends.of(&record)?.uncommitted(&Held {
            id: snapshot.id,
            key: &snapshot.info.name,
            directory,
            record: &record,
        })
    }

    fn release(&self, remains: &Remains) -> Result<()> {
        self.writables.remove(remains.id);
        self.for_remains(remains, |backend, left| backend.release(left))
    }

    fn forget(&self, remains: &Remains) -> Result<()> {
        self.for_remains(remains, |backend, left| backend.forget(left))
    }

    fn recover(&self, snapshots: &[(Snapshot, PathBuf)]) -> Result<()> {
        let mut found = Vec::with_capacity(snapshots.len());
        for (snapshot, directory) in snapshots {
            let record = Record::from_note(&snapshot.note)?;
            let limit = match snapshot.info.kind {
                Kind::Active => Some(self.limit_at_start(snapshot)),
                Kind::View | Kind::Committed => None,
            };
            if let Some(limit) = &limit {
                let key = snapshot.info.name.clone();
                let (record, limit) = (record.clone(), limit.clone());
                let writable = Writable::new(key, directory.clone(), record, limit);
                self.writables.put(snapshot.id, writable);
            }
            found.push((snapshot, directory, record, limit));
        }
        let backends = &self.backends;
        backends.open_for(found.iter().map(|(_, _, record, _)| record));
        // In a group, the labels that were set last count.
        found.sort_by_key(|(snapshot, ..)| snapshot.info.updated);
        for (_, _, _, limit) in &found {
            if let Some(limit) = limit
                && limit.mode == Mode::Hard
                && let Some(group) = &limit.group
            {
                self.writables.share(group, limit);
            }
        }
        for backend in backends.all() {
            let kept: Vec<_> = found
                .iter()
                .filter(|(_, _, record, _)| {
                    let of = backends.of(record);
                    of.is_ok_and(|of| of.kind() == backend.kind())
                })
                .map(|(snapshot, directory, record, limit)| Kept {
                    held: Held {
                        id: snapshot.id,
                        key: &snapshot.info.name,
                        directory,
                        record,
                    },
                    limit: limit.as_ref(),
                })
                .collect();
            let report = match backend.recover(&kept) {
                Ok(report) => report,
                // What fills the disk can only be removed while somebody serves.
                Err(error) if error.is_full() || error.is_read_only() => {
                    let (kind, why) = (backend.kind(), error.in_one_line());
                    tracing::error!(%kind, why, "what is in force was not put right");
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (id, bytes) in &report.larger {
                self.holds_more(*id, *bytes);
            }
            let mut reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
            reports.push(report);
        }
        Ok(())
    }
}

impl QuotaDriver {
    /// A growth ended with the daemon before its limit was stored: what is in force is told.
    fn holds_more(&self, id: SnapshotId, bytes: u64) {
        self.writables.change_one(id, |one| {
            let decided = one.decided.bytes.map(|size| size.bytes().get());
            tracing::warn!(key = %one.key, ?decided, bytes, "a snapshot may hold more than its limit");
            one.limit.bytes = Size::from_bytes(bytes);
        });
    }

    /// Whether a snapshot is for the layer of an image: containerd unpacks into it.
    fn is_layer(&self, snapshot: &Snapshot) -> bool {
        let info = &snapshot.info;
        Request {
            key: info.name.as_str(),
            parent: info.parent.as_ref().map(Key::as_str),
            labels: &info.labels,
        }
        .is_unpack()
    }

    /// What is left of a snapshot without a note may be of any back end.
    fn for_remains(
        &self,
        remains: &Remains,
        act: impl Fn(&dyn Backend, &Left<'_>) -> Result<()>,
    ) -> Result<()> {
        let record = remains.note.as_ref().map(Record::from_note).transpose()?;
        let left = Left {
            id: remains.id,
            directory: &remains.directory,
            record: record.as_ref(),
        };
        match &record {
            Some(record) => act(self.backends.of(record)?.as_ref(), &left),
            None => self
                .backends
                .all()
                .iter()
                .try_for_each(|backend| act(backend.as_ref(), &left)),
        }
    }

    /// The configuration may have changed so that labels contradict it; that must not keep the
    /// daemon from starting. Then labels count alone, and at last nothing is limited.
    fn limit_at_start(&self, snapshot: &Snapshot) -> Limit {
        let why = match self.limit_of(snapshot) {
            Ok(limit) => return limit,
            Err(error) => error,
        };
        let info = &snapshot.info;
        let alone = limit::decide(
            &Policy::default(),
            &Request {
                key: info.name.as_str(),
                parent: None,
                labels: &info.labels,
            },
        );
        tracing::error!(
            snapshot = info.name.as_str(),
            error = %why,
            "the labels of a snapshot and the configuration do not fit together"
        );
        alone.unwrap_or_else(|_| Limit::counted())
    }
}

/// What is left of a limit that cannot hold: its numbers, for warnings.
fn goes_on_without(key: &Key, why: &str, limit: Limit) -> Limit {
    tracing::warn!(
        snapshot = key.as_str(),
        why,
        "a limit does not hold, and the configuration says to go on"
    );
    Limit {
        mode: Mode::Account,
        ..limit
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use snapshot_core::{Info, Owners, SnapshotId, Timestamp};

    use super::*;
    use crate::{
        config::OnUnsupported,
        limit::{MAX_SIZE, PolicyText, RuleText},
    };

    /// A root with the plain back end, and what the core does around a driver.
    struct Scene {
        root: tempfile::TempDir,
        driver: QuotaDriver,
        next: u64,
    }

    impl Scene {
        fn new(on_unsupported: OnUnsupported, policy: &PolicyText) -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir(root.path().join("snapshots")).unwrap();
            let driver = QuotaDriver::new(Parts {
                backends: Backends::plain(root.path()),
                policy: Policy::new(policy).unwrap(),
                on_unsupported,
                overlay: OverlayOptions {
                    index_off: true,
                    user_xattr: false,
                    volatile: false,
                    owners: Owners::MappedByMount,
                    empty_lower: Some(root.path().join("empty")),
                },
            });
            Self {
                root,
                driver,
                next: 1,
            }
        }

        fn create(
            &mut self,
            key: &str,
            kind: Kind,
            labels: &[(&str, &str)],
            parents: &[&Snapshot],
        ) -> Result<Snapshot> {
            let id = SnapshotId(self.next);
            self.next += 1;
            let key = Key::new(key).unwrap();
            let labels: Labels = labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
                .collect();
            let parents: Vec<_> = parents.iter().map(|parent| (*parent).clone()).collect();
            let directory = self.directory(id);
            fs::create_dir(&directory).unwrap();
            let note = self.driver.create(
                &NewSnapshot {
                    id,
                    key: &key,
                    kind,
                    parents: &parents,
                    labels: &labels,
                },
                &directory,
            )?;
            Ok(Snapshot {
                id,
                info: Info {
                    name: key,
                    parent: parents.first().map(|parent| parent.info.name.clone()),
                    kind,
                    created: Timestamp(0),
                    updated: Timestamp(0),
                    labels,
                },
                note,
                usage: None,
            })
        }

        fn directory(&self, id: SnapshotId) -> PathBuf {
            self.root.path().join("snapshots").join(id.to_string())
        }

        fn committed(&mut self, key: &str) -> Snapshot {
            let mut snapshot = self.create(key, Kind::Active, &[], &[]).unwrap();
            let closed = self
                .driver
                .commit(&snapshot, &self.directory(snapshot.id))
                .unwrap();
            snapshot.info.kind = Kind::Committed;
            snapshot.note = closed.note;
            snapshot.usage = closed.usage;
            snapshot
        }

        fn mount(&self, snapshot: &Snapshot, parents: &[&Snapshot]) -> Mount {
            let parents = parents
                .iter()
                .map(|parent| ((*parent).clone(), self.directory(parent.id)));
            let mounts = self.driver.mounts(&Chain {
                snapshot: snapshot.clone(),
                directory: self.directory(snapshot.id),
                parents: parents.collect(),
            });
            mounts.unwrap().remove(0)
        }
    }

    fn fail() -> Scene {
        Scene::new(OnUnsupported::Fail, &PolicyText::default())
    }

    const LIMIT: (&str, &str) = (MAX_SIZE, "10g");

    #[test]
    fn limit_that_cannot_hold_is_refused_with_what_to_do() {
        let mut scene = fail();
        let error = scene
            .create("ns/1/web", Kind::Active, &[LIMIT], &[])
            .unwrap_err();
        assert!(matches!(error, Error::Invalid(_)), "{error:?}");
        assert!(error.to_string().contains("probe"), "{error}");
    }

    #[test]
    fn limit_that_cannot_hold_is_left_out_when_the_configuration_says_so() {
        let mut scene = Scene::new(OnUnsupported::Warn, &PolicyText::default());
        let snapshot = scene
            .create("ns/1/web", Kind::Active, &[LIMIT], &[])
            .unwrap();
        assert_eq!(Record::from_note(&snapshot.note).unwrap(), Record::Plain);
        let labels = [(MAX_SIZE.to_owned(), "20g".to_owned())].into();
        let directory = scene.directory(snapshot.id);
        scene.driver.update(&snapshot, &directory, &labels).unwrap();
    }

    #[test]
    fn layers_and_views_take_any_label() {
        let mut scene = fail();
        let layer = [LIMIT, ("containerd.io/snapshot.ref", "sha256:1")];
        scene
            .create("ns/1/layer", Kind::Active, &layer, &[])
            .unwrap();
        scene
            .create("ns/2/view", Kind::View, &[LIMIT], &[])
            .unwrap();
    }

    #[test]
    fn labels_that_make_no_sense_are_refused_before_anything_is_made() {
        let mut scene = fail();
        for labels in [
            [(MAX_SIZE, "-1")],
            [("containerd.io/snapshot/quota.inode", "1")],
            [("containerd.io/snapshot/uidmapping", "0:0:1")],
        ] {
            let error = scene
                .create("ns/1/web", Kind::Active, &labels, &[])
                .unwrap_err();
            assert!(matches!(error, Error::Invalid(_)), "{error:?}");
            let made = fs::read_dir(scene.directory(SnapshotId(scene.next - 1)));
            assert_eq!(made.unwrap().count(), 0, "{labels:?}");
        }
    }

    #[test]
    fn snapshots_are_mounted_over_their_parents() {
        let mut scene = fail();
        let (base, top) = (scene.committed("ns/1/base"), scene.committed("ns/2/top"));
        let web = scene
            .create("ns/3/web", Kind::Active, &[], &[&top, &base])
            .unwrap();
        let mount = scene.mount(&web, &[&top, &base]);
        let snapshots = scene.root.path().join("snapshots");
        let snapshots = snapshots.display();
        assert_eq!(mount.kind, "overlay");
        assert_eq!(
            mount.options,
            [
                format!("workdir={snapshots}/3/work"),
                format!("upperdir={snapshots}/3/fs"),
                format!("lowerdir={snapshots}/2/fs:{snapshots}/1/fs"),
                "index=off".to_owned(),
            ]
        );
        let view = scene
            .create("ns/4/view", Kind::View, &[], &[&top, &base])
            .unwrap();
        assert_eq!(scene.mount(&view, &[&top, &base]).kind, "overlay");
        assert_eq!(scene.mount(&view, &[&base]).kind, "bind");
    }

    #[test]
    fn snapshot_without_parents_lies_over_nothing_and_a_layer_is_bound() {
        let mut scene = fail();
        let alone = scene.create("ns/1/alone", Kind::Active, &[], &[]).unwrap();
        let mount = scene.mount(&alone, &[]);
        let empty = format!("lowerdir={}/empty", scene.root.path().display());
        assert!(mount.options.contains(&empty), "{:?}", mount.options);
        let key = "ns/2/extract-123-abc sha256:0123";
        let layer = scene.create(key, Kind::Active, &[], &[]).unwrap();
        let mount = scene.mount(&layer, &[]);
        assert_eq!((mount.kind.as_str(), &*mount.options[0]), ("bind", "rw"));
        let view = scene.create("ns/3/view", Kind::View, &[], &[]).unwrap();
        let mount = scene.mount(&view, &[]);
        assert_eq!((mount.kind.as_str(), &*mount.options[0]), ("bind", "ro"));
    }

    #[test]
    fn root_directory_belongs_to_whom_it_belongs_in_the_image_or_to_the_mapped_root() {
        let mut scene = fail();
        let base = scene.committed("ns/1/base");
        let upper = |scene: &Scene, id| scene.directory(id).join("fs");
        std::os::unix::fs::chown(upper(&scene, base.id), Some(7), Some(8)).unwrap();
        let web = scene
            .create("ns/2/web", Kind::Active, &[], &[&base])
            .unwrap();
        let metadata = fs::metadata(upper(&scene, web.id)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (7, 8));
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o755);
        let maps = [
            ("containerd.io/snapshot/uidmapping", "0:1000:10"),
            ("containerd.io/snapshot/gidmapping", "0:2000:10"),
        ];
        let mapped = scene
            .create("ns/3/mapped", Kind::Active, &maps, &[&base])
            .unwrap();
        let metadata = fs::metadata(upper(&scene, mapped.id)).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (1000, 2000));
        let options = scene.mount(&mapped, &[&base]).options;
        assert!(
            options.contains(&"uidmap=0:1000:10".to_owned()),
            "{options:?}"
        );
    }

    #[test]
    fn rules_that_contradict_labels_do_not_keep_the_daemon_from_starting() {
        let mut scene = Scene::new(OnUnsupported::Warn, &PolicyText::default());
        let web = scene
            .create("ns/1/web", Kind::Active, &[LIMIT], &[])
            .unwrap();
        let policy = PolicyText {
            rules: vec![RuleText {
                soft_size: Some("20g".to_owned()),
                ..RuleText::default()
            }],
            ..PolicyText::default()
        };
        scene.driver.set_policy(Policy::new(&policy).unwrap());
        assert!(scene.driver.limit_of(&web).is_err());
        let limit = scene.driver.limit_at_start(&web);
        assert_eq!(limit.bytes.map(|size| size.bytes().get()), Some(10 << 30));
        let directory = scene.directory(web.id);
        scene.driver.recover(&[(web, directory)]).unwrap();
    }

    #[test]
    fn only_writable_snapshots_are_limited_anew() {
        let mut scene = fail();
        let base = scene.committed("ns/1/base");
        let directory = scene.directory(base.id);
        let error = scene
            .driver
            .relimit(&base, &directory, Lift::Over)
            .unwrap_err();
        assert!(matches!(error, Error::Precondition(_)), "{error:?}");
    }

    #[test]
    fn note_of_a_back_end_that_is_not_open_is_told() {
        let mut scene = fail();
        let mut web = scene.create("ns/1/web", Kind::Active, &[], &[]).unwrap();
        web.note = Record::Tmpfs {
            bytes: None,
            inodes: None,
        }
        .to_note();
        let directory = scene.directory(web.id);
        let error = scene.driver.usage(&web, &directory).unwrap_err();
        assert!(error.to_string().contains("probe"), "{error}");
    }
}
