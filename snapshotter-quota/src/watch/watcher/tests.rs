//! The watcher over a back end that says what a test wants to hear.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::{encoding::prometheus_text, registry::Registry};
use snapshot_core::{Error, Key, OverlayOptions, Owners, Result, SnapshotId, Usage};
use sys::{
    project_quota::ProjectId,
    quota_events::{QuotaEvent, QuotaOwner, QuotaWarning},
};
use tokio::sync::broadcast;

use super::{
    super::publish::{Publisher, tests::serve_taker},
    AT_ONCE_MAX, Figures, Heard, Parts, Running, Watcher,
};
use crate::{
    backend::{
        Abilities, Audit, Backend, Charge, Closed, Counting, Device, Full, Held, Kept, Kind, Left,
        Options, Record, Report, Resize, Support,
    },
    backends::Backends,
    config::OnUnsupported,
    containerd::Containerd,
    driver::{self, QuotaDriver},
    events::{Event, Events, What},
    limit::{Group, Limit, Mode, Policy, Size},
    metrics::{self, Sources},
    writables::Writable,
};

const MIB: u64 = 1 << 20;
const POLL: Duration = Duration::from_secs(3600);
/// Whose usage cannot be read.
const BROKEN: SnapshotId = SnapshotId(99);
/// Who always has left its account.
const ESCAPED: SnapshotId = SnapshotId(13);
const DEVICE: Device = Device { major: 7, minor: 3 };

/// Counts in projects, and says what was put into it.
#[derive(Debug)]
struct Told {
    device: Option<Device>,
    used: Mutex<BTreeMap<SnapshotId, u64>>,
    most: u64,
    looks: AtomicU32,
    sweeps: AtomicU32,
}

impl Backend for Told {
    fn kind(&self) -> Kind {
        Kind::Prjquota
    }

    fn abilities(&self) -> Abilities {
        Abilities {
            resize: Resize::Both,
            inodes: Support::Yes,
            soft: Support::Yes,
            groups: Support::Yes,
            full: Full::QuotaExceeded,
            df: Support::Yes,
            counting: Counting::Exact,
        }
    }

    fn create(&self, _: &Path, _: SnapshotId, _: &Limit) -> Result<Record> {
        Ok(Record::Plain)
    }

    fn set_limit(&self, _: &Held<'_>, _: &Limit) -> Result<()> {
        Ok(())
    }

    fn usage(&self, _: &Held<'_>) -> Result<Usage> {
        Ok(Usage::default())
    }

    fn charge(&self, held: &Held<'_>) -> Result<Option<Charge>> {
        self.looks.fetch_add(1, Ordering::Relaxed);
        if held.id == BROKEN {
            return Err(Error::Unavailable("it is broken".to_owned()));
        }
        let used = self.used.lock().unwrap();
        Ok(Some(Charge {
            usage: Usage {
                bytes: used.get(&held.id).copied().unwrap_or(0),
                inodes: 1,
            },
            bytes_max: Some(self.most),
            inodes_max: Some(1000),
            ..Charge::default()
        }))
    }

    fn told_device(&self) -> Result<Option<Device>> {
        Ok(self.device)
    }

    fn commit(&self, held: &Held<'_>) -> Result<Closed> {
        Ok(Closed {
            usage: Some(Usage::default()),
            record: held.record.clone(),
        })
    }

    fn release(&self, _: &Left<'_>) -> Result<()> {
        Ok(())
    }

    fn forget(&self, _: &Left<'_>) -> Result<()> {
        Ok(())
    }

    fn recover(&self, _: &[Kept<'_>]) -> Result<Report> {
        Ok(Report::default())
    }

    fn sweep(&self) -> Result<Report> {
        self.sweeps.fetch_add(1, Ordering::Relaxed);
        Ok(Report::default())
    }

    fn quarantined(&self) -> usize {
        1
    }

    fn audit(&self, held: &Held<'_>) -> Result<Audit> {
        Ok(match held.id {
            ESCAPED => Audit::Escaped("it was somewhere else".to_owned()),
            _ => Audit::Sound,
        })
    }
}

struct Scene {
    backend: Arc<Told>,
    driver: Arc<QuotaDriver>,
    figures: Arc<Figures>,
    watcher: Watcher,
    running: Running,
    told: broadcast::Receiver<Event>,
}

impl Scene {
    fn new(device: Option<Device>) -> Self {
        let backend = Arc::new(Told {
            device,
            used: Mutex::default(),
            most: 100 * MIB,
            looks: AtomicU32::new(0),
            sweeps: AtomicU32::new(0),
        });
        let chosen = Arc::clone(&backend) as Arc<dyn Backend>;
        let driver = Arc::new(QuotaDriver::new(driver::Parts {
            backends: Backends::new(PathBuf::from("/nowhere"), chosen, Options::default()),
            policy: Policy::default(),
            on_unsupported: OnUnsupported::Fail,
            overlay: OverlayOptions {
                index_off: true,
                user_xattr: false,
                volatile: false,
                owners: Owners::MappedByMount,
                empty_lower: None,
            },
        }));
        let events = Arc::new(Events::default());
        let figures = Arc::new(Figures::default());
        figures.set_hearing(device.is_some());
        let (_, told) = events.listen();
        let watcher = Watcher::new(Parts {
            driver: Arc::clone(&driver),
            events,
            figures: Arc::clone(&figures),
            poll: POLL,
            audit: POLL,
        });
        Self {
            backend,
            driver,
            figures,
            watcher,
            running: Running::default(),
            told,
        }
    }

    fn put(&self, id: u64, warn: &str, group: Option<&str>) {
        let group = group.map(|name| Group {
            namespace: "ns".to_owned(),
            name: name.parse().unwrap(),
        });
        let limit = Limit {
            mode: Mode::Hard,
            bytes: Size::from_bytes(100 * MIB),
            warn: match warn {
                "" => Default::default(),
                warn => warn.parse().unwrap(),
            },
            group: group.clone(),
            ..Limit::counted()
        };
        let project = match group {
            Some(_) => 1000,
            None => u32::try_from(id).unwrap(),
        };
        self.put_as(id, Record::Prjquota { project, group }, limit);
    }

    fn put_as(&self, id: u64, record: Record, limit: Limit) {
        let key = Key::new(format!("ns/{id}/c{id}")).unwrap();
        let directory = PathBuf::from(format!("/nowhere/snapshots/{id}"));
        let writable = Writable::new(key, directory, record, limit);
        self.driver.writables().put(SnapshotId(id), writable);
    }

    fn uses(&self, id: u64, mib: u64) {
        let mut used = self.backend.used.lock().unwrap();
        used.insert(SnapshotId(id), mib * MIB);
    }

    /// Everything that is due now, and what it leads to.
    async fn work(&mut self) {
        loop {
            self.watcher.breath = None;
            self.watcher.begin_turn(Instant::now(), &mut self.running);
            if let Some(looked) = self.running.turn.join_next().await {
                self.watcher.looked(looked);
            } else if let Some(told) = self.running.urgent.join_next().await {
                self.watcher.urgent(told);
            } else {
                return;
            }
        }
    }

    fn hear(&mut self, device: Device, project: u32, warning: QuotaWarning) {
        let mut heard = Heard::default();
        heard.add(QuotaEvent {
            device_major: device.major,
            device_minor: device.minor,
            owner: QuotaOwner::Project(ProjectId(project)),
            warning,
        });
        self.watcher.heard(heard, &mut self.running);
    }

    /// What was told since this was asked last: of whom, what, and the usage in MiB.
    fn told(&mut self) -> Vec<(String, What, Option<u64>)> {
        let mut told = Vec::new();
        while let Ok(event) = self.told.try_recv() {
            let key = event.key.map(|key| key.to_string()).unwrap_or_default();
            told.push((key, event.what, event.usage.map(|usage| usage.bytes / MIB)));
        }
        told
    }

    fn looks(&self) -> u32 {
        self.backend.looks.load(Ordering::Relaxed)
    }

    fn wakes(&self) -> bool {
        self.watcher.wake(&self.running).is_some()
    }
}

fn of(id: u64, what: What, mib: u64) -> (String, What, Option<u64>) {
    (format!("ns/{id}/c{id}"), what, Some(mib))
}

#[tokio::test]
async fn nothing_wakes_up_while_nobody_has_a_limit() {
    let mut scene = Scene::new(Some(DEVICE));
    scene.watcher.note();
    assert!(!scene.wakes());
    scene.put_as(1, Record::Plain, Limit::off());
    let project = Record::Prjquota {
        project: 2,
        group: None,
    };
    scene.put_as(2, project, Limit::counted());
    scene.watcher.note();
    assert!(!scene.wakes());
}

#[tokio::test]
async fn who_is_told_of_by_the_kernel_is_looked_at_once_and_again_with_thresholds() {
    let check = async |device, warn: &str, used, goes_on: bool| {
        let mut scene = Scene::new(device);
        scene.put(1, warn, None);
        scene.uses(1, used);
        scene.watcher.note();
        assert!(scene.wakes());
        scene.work().await;
        assert_eq!(scene.looks(), 1);
        // But for the next audit.
        scene.watcher.round_at = None;
        assert_eq!(scene.wakes(), goes_on, "{device:?} {warn:?} {used}");
    };
    check(Some(DEVICE), "", 10, false).await;
    check(Some(DEVICE), "80%", 10, true).await;
    check(None, "", 10, true).await;
    // Until it is below again.
    check(Some(DEVICE), "", 100, true).await;
}

#[tokio::test]
async fn thresholds_and_the_limit_are_told_with_the_usage() {
    let mut scene = Scene::new(None);
    scene.put(1, "80%,95%", None);
    scene.watcher.note();
    for (mib, expected) in [
        (50, None),
        (80, Some(What::Near)),
        (81, None),
        (96, Some(What::Near)),
        (100, Some(What::Full)),
        (10, Some(What::Below)),
    ] {
        scene.uses(1, mib);
        scene.watcher.look_at_all();
        scene.work().await;
        let expected: Vec<_> = expected.map(|what| of(1, what, mib)).into_iter().collect();
        assert_eq!(scene.told(), expected, "{mib}");
    }
}

#[tokio::test]
async fn a_refusal_is_told_once_to_every_member_of_its_project_on_its_device() {
    let mut scene = Scene::new(Some(DEVICE));
    scene.put(1, "", Some("pod"));
    scene.put(2, "", Some("pod"));
    scene.put(3, "", None);
    scene.watcher.note();
    scene.work().await;
    scene.uses(1, 99);
    scene.uses(2, 99);
    let elsewhere = Device { major: 7, minor: 4 };
    for _ in 0..3 {
        scene.hear(elsewhere, 1000, QuotaWarning::BytesHardHit);
        scene.hear(DEVICE, 77, QuotaWarning::BytesHardHit);
        scene.hear(DEVICE, 1000, QuotaWarning::BytesHardHit);
        scene.work().await;
    }
    let expected = [of(1, What::Full, 99), of(2, What::Full, 99)];
    assert_eq!(scene.told(), expected);
    assert_eq!(scene.figures.refused(), 3);
    // They are looked at when it has been quiet, and told to be below.
    assert!(scene.wakes());
}

#[tokio::test]
async fn a_refusal_is_told_of_a_snapshot_that_was_not_taken_note_of_yet() {
    let mut scene = Scene::new(Some(DEVICE));
    scene.watcher.note();
    scene.put(1, "", None);
    scene.uses(1, 100);
    scene.watcher.changed();
    scene.hear(DEVICE, 1, QuotaWarning::InodesHardHit);
    scene.work().await;
    let told = scene.told();
    assert_eq!(told[0], of(1, What::Full, 100));
}

#[tokio::test]
async fn when_messages_were_lost_everybody_is_looked_at_once() {
    let mut scene = Scene::new(Some(DEVICE));
    for id in 1..=3 {
        scene.put(id, "", None);
    }
    scene.watcher.note();
    scene.work().await;
    assert_eq!(scene.looks(), 3);
    scene.uses(2, 100);
    for _ in 0..5 {
        let heard = Heard {
            lost: true,
            ..Heard::default()
        };
        scene.watcher.heard(heard, &mut scene.running);
    }
    scene.work().await;
    assert_eq!(scene.looks(), 6);
    let lost = (String::new(), What::Lost, None);
    assert_eq!(scene.told(), [lost.clone(), of(2, What::Full, 100)]);

    // And once more when it has been calm, since more were lost meanwhile.
    scene.watcher.parts.poll = Duration::ZERO;
    scene.watcher.work(&mut scene.running);
    scene.watcher.parts.poll = POLL;
    scene.work().await;
    assert_eq!(scene.looks(), 9);
    assert_eq!(scene.told(), [lost]);
    scene.watcher.work(&mut scene.running);
    scene.work().await;
    assert_eq!(scene.looks(), 9);
}

#[tokio::test]
async fn who_is_gone_is_forgotten_and_who_changed_is_looked_at() {
    let mut scene = Scene::new(Some(DEVICE));
    scene.put(1, "", None);
    scene.put(2, "", None);
    scene.watcher.note();
    scene.work().await;
    scene.driver.writables().remove(SnapshotId(1));
    scene.uses(1, 100);
    scene.uses(2, 90);
    scene.put(2, "80%", None);
    scene.watcher.note();
    scene.hear(DEVICE, 1, QuotaWarning::BytesHardHit);
    scene.work().await;
    assert_eq!(scene.told(), [of(2, What::Near, 90)]);
    assert_eq!(scene.looks(), 3);
}

#[tokio::test]
async fn ten_thousand_are_looked_at_in_turns() {
    let mut scene = Scene::new(None);
    for id in 1..=10_000 {
        scene.put(id, "80%", None);
    }
    scene.watcher.note();
    scene.watcher.begin_turn(Instant::now(), &mut scene.running);
    let first = scene.running.turn.join_next().await.unwrap();
    let looked = u32::try_from(first.as_ref().unwrap().seen.len()).unwrap();
    assert!(looked as usize <= AT_ONCE_MAX);
    assert_eq!(scene.looks(), looked);
    scene.watcher.looked(first);
    // Then others have the processor.
    assert!(scene.watcher.wake(&scene.running).unwrap() > Instant::now());
    scene.work().await;
    assert_eq!(scene.looks(), 10_000);
}

#[tokio::test]
async fn a_round_finds_who_escaped_and_sweeps() {
    let mut scene = Scene::new(Some(DEVICE));
    scene.put(1, "", None);
    scene.put(13, "", None);
    scene.watcher.note();
    scene.work().await;
    assert_eq!(scene.figures.suspects(), 0);
    scene.watcher.begin_round(&mut scene.running);
    scene.running.round.join_next().await.unwrap().unwrap();
    scene.watcher.round_ended();
    let expected = [("ns/13/c13".to_owned(), What::Escaped, None)];
    assert_eq!(scene.told(), expected);
    assert_eq!(scene.figures.suspects(), 1);
    assert_eq!(scene.backend.sweeps.load(Ordering::Relaxed), 1);
    // The next round comes while something is left, with or without snapshots.
    assert!(scene.wakes());
    for id in [1, 13] {
        scene.driver.writables().remove(SnapshotId(id));
    }
    scene.watcher.note();
    assert_eq!(scene.figures.suspects(), 0);
    assert!(scene.wakes());
}

/// Numbers that nothing ever changes are no metrics: after all that can happen, each family has a
/// value that is not 0.
#[tokio::test]
async fn every_metric_is_touched() {
    let mut scene = Scene::new(Some(DEVICE));
    scene.put(1, "80%", Some("pod"));
    scene.put(2, "", None);
    scene.put(13, "", None);
    scene.put(99, "", None);
    let lifted = |one: &mut Writable| one.lifted_until = Some(std::time::SystemTime::UNIX_EPOCH);
    scene.driver.writables().change_one(SnapshotId(2), lifted);
    scene.uses(1, 90);
    scene.watcher.note();
    scene.hear(DEVICE, 1000, QuotaWarning::BytesHardHit);
    scene.work().await;
    scene.watcher.begin_round(&mut scene.running);
    scene.running.round.join_next().await.unwrap().unwrap();

    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("c.sock");
    let containerd = Containerd::new(&socket, "quota").unwrap();
    let mut publisher = Publisher::new(containerd, Arc::clone(&scene.figures));
    let event = scene.told.try_recv().unwrap();
    publisher.publish(&event).await;
    let mut taken = serve_taker(&socket);
    publisher.publish(&event).await;
    taken.recv().await.unwrap();

    let mut registry = Registry::default();
    metrics::register(
        &mut registry,
        Sources {
            driver: Arc::clone(&scene.driver),
            events: Arc::clone(&scene.watcher.parts.events),
            figures: Arc::clone(&scene.figures),
            snapshots_max: 3,
        },
    );
    let mut page = String::new();
    prometheus_text::encode(&mut page, &registry).unwrap();
    let families = page.lines().filter_map(|line| {
        let (name, _) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        Some(name)
    });
    let mut count = 0;
    for family in families {
        let is_touched = page.lines().any(|line| {
            let name = line.split([' ', '{']).next().unwrap_or_default();
            let is_of = ["", "_total", "_info"].map(|end| format!("{family}{end}") == name);
            let value = line.rsplit(' ').next().and_then(|value| value.parse().ok());
            is_of.contains(&true) && value.is_some_and(|value: f64| value > 0.0)
        });
        assert!(is_touched, "{family} is 0 in\n{page}");
        count += 1;
    }
    assert_eq!(count, 17, "{page}");
    // A group has its own limit and usage, whoever is asked.
    let of_group = r#"used_bytes{key="ns/1/c1",id="1"} 94371840"#;
    assert!(page.contains(of_group), "{page}");
}
