//! The one task that knows what was told of whom. It sleeps until the kernel tells, a look is due,
//! or snapshots come, change or go.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use snapshot_core::{SnapshotId, Usage, daemon::Shutdown};
use sys::project_quota::ProjectId;
use tokio::task::{JoinError, JoinSet};

use super::{
    Figures,
    audit::{Auditor, can_escape},
    kernel::{Heard, Kernel, Place},
    look::{Looked, Seen, Target, look},
    pace::Agenda,
    watched::{Finding, Watched, is_worth_watching},
};
use crate::{
    backend::{Backend, Counting, Device, Kind, Record},
    driver::QuotaDriver,
    events::{Event, Events, What},
    writables::Writable,
};

/// Looks of one turn, and how long they may take together; then others have the processor.
const AT_ONCE_MAX: usize = 512;
const TURN: Duration = Duration::from_millis(5);
const BREATH: Duration = Duration::from_millis(45);

/// Snapshots that come and go are taken note of together. What the kernel tells of one that is not
/// known yet does not wait for that.
const GATHERING: Duration = Duration::from_millis(100);

/// What it works with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) driver: Arc<QuotaDriver>,
    pub(super) events: Arc<Events>,
    pub(super) figures: Arc<Figures>,
    pub(super) poll: Duration,
    pub(super) audit: Duration,
}

/// The task's state.
#[derive(Debug)]
pub(super) struct Watcher {
    parts: Parts,
    watched: BTreeMap<SnapshotId, Entry>,
    places: BTreeMap<Place, BTreeSet<SnapshotId>>,
    agenda: Agenda,
    /// No looks before.
    breath: Option<Instant>,
    /// Snapshots have changed, and are taken note of then.
    note_at: Option<Instant>,
    noted: Instant,
    /// When messages of the kernel were lost last, and everybody was looked at.
    lost: Option<Instant>,
    /// More were lost since.
    lost_again: bool,
    round_at: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    of: Arc<Writable>,
    /// Where the kernel would tell of it.
    place: Option<Place>,
    state: Watched,
}

/// What runs beside the task; at most one turn and one round.
#[derive(Debug, Default)]
struct Running {
    turn: JoinSet<Looked>,
    /// Snapshots of which something is told as soon as their usage was read.
    urgent: JoinSet<Vec<(Seen, Vec<Finding>)>>,
    round: JoinSet<()>,
}

impl Watcher {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            parts,
            watched: BTreeMap::new(),
            places: BTreeMap::new(),
            agenda: Agenda::default(),
            breath: None,
            note_at: None,
            noted: Instant::now(),
            lost: None,
            lost_again: false,
            round_at: None,
        }
    }

    /// Runs until the daemon ends.
    pub(super) async fn run(mut self, mut kernel: Option<Kernel>, shutdown: Shutdown) {
        let mut changes = self.parts.driver.writables().changes();
        let mut running = Running::default();
        let mut ending = pin!(shutdown.wait());
        self.note();
        loop {
            let wake = self.wake(&running);
            tokio::select! {
                () = &mut ending => return,
                heard = hear(&mut kernel) => match heard {
                    Ok(heard) => self.heard(heard, &mut running),
                    Err(error) => {
                        tracing::error!(%error, "the kernel is not listened to any more");
                        kernel = None;
                        self.deaf();
                    }
                },
                changed = changes.changed(), if self.note_at.is_none() => match changed {
                    Ok(()) => self.changed(),
                    // Nobody can make snapshots any more.
                    Err(_) => return,
                },
                Some(looked) = running.turn.join_next() => self.looked(looked),
                Some(told) = running.urgent.join_next() => self.urgent(told),
                Some(_) = running.round.join_next() => self.round_ended(),
                () = sleep_until(wake) => self.work(&mut running),
            }
        }
    }

    /// When there is something to do next, if nothing happens.
    fn wake(&self, running: &Running) -> Option<Instant> {
        let turn = self.agenda.next().filter(|_| running.turn.is_empty());
        let turn = turn.map(|at| self.breath.map_or(at, |breath| at.max(breath)));
        let round = self.round_at.filter(|_| running.round.is_empty());
        let lost = self.calm_from().filter(|_| self.lost_again);
        let all = [self.note_at, turn, round, lost];
        all.into_iter().flatten().min()
    }

    fn work(&mut self, running: &mut Running) {
        let now = Instant::now();
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if is_due(self.note_at) {
            self.note();
        }
        if self.lost_again && is_due(self.calm_from()) {
            self.lost(now);
        }
        if running.turn.is_empty() && self.breath.is_none_or(|breath| breath <= now) {
            self.begin_turn(now, running);
        }
        if running.round.is_empty() && is_due(self.round_at) {
            self.begin_round(running);
        }
    }

    /// Looks at those that are due now, or nearly: one wake-up for several.
    fn begin_turn(&mut self, now: Instant, running: &mut Running) {
        let slack = self.parts.poll / 20;
        let due = self.agenda.take(now + slack, AT_ONCE_MAX);
        let target = |id: SnapshotId| Some((id, Arc::clone(&self.watched.get(&id)?.of)));
        let targets: Vec<Target> = due.into_iter().filter_map(target).collect();
        if targets.is_empty() {
            return;
        }
        let driver = Arc::clone(&self.parts.driver);
        let turn = move || look(&driver, targets, Some(Instant::now() + TURN));
        running.turn.spawn_blocking(turn);
    }

    fn looked(&mut self, looked: Result<Looked, JoinError>) {
        let now = Instant::now();
        self.breath = Some(now + BREATH);
        let looked = match looked {
            Ok(looked) => looked,
            Err(error) => {
                tracing::error!(%error, "a turn of looks was broken off");
                return self.look_at_all();
            }
        };
        for id in looked.left {
            self.agenda.plan_by(id, now);
        }
        for seen in looked.seen {
            self.seen(seen);
        }
    }

    /// Tells what follows from a look, and plans the next.
    fn seen(&mut self, seen: Seen) {
        let Seen { id, of, at, charge } = seen;
        let Some(entry) = self.watched.get_mut(&id) else {
            return;
        };
        let figures = &self.parts.figures;
        figures.add_look();
        let mut next = at + self.parts.poll;
        let mut found = (Vec::new(), None);
        match charge {
            Ok(Some(charge)) => {
                let before = entry.state.last();
                found = (entry.state.seen(at, &charge, &of), Some(charge.usage));
                let pause = entry.state.pause(self.parts.poll, before, &of);
                next = at + pause;
            }
            Ok(None) => {}
            // It may have been removed a moment ago.
            Err(error) => {
                figures.add_failed_look();
                let (snapshot, error) = (of.key.as_str(), error.in_one_line());
                tracing::debug!(snapshot, error, "usage could not be looked at");
            }
        }
        if let Some(settled) = entry.state.settles().filter(|settled| *settled > at) {
            next = settled;
        }
        if entry.needs_looks(figures.hears()) {
            self.agenda.plan_by(id, next);
        }
        self.tell(&of, found.1, found.0);
    }

    /// The kernel has told: what is new is told with the usage.
    fn heard(&mut self, heard: Heard, running: &mut Running) {
        let now = Instant::now();
        if heard.lost {
            self.lost(now);
        }
        let mut urgent = Vec::new();
        for (place, told) in heard.of {
            if !self.places.contains_key(&place) && self.note_at.is_some() {
                self.note();
            }
            let Some(members) = self.places.get(&place) else {
                continue;
            };
            self.parts.figures.add_refused(told.refused);
            for id in members {
                let Some(entry) = self.watched.get_mut(id) else {
                    continue;
                };
                let met = told.met.iter();
                let found: Vec<_> = met
                    .filter_map(|line| entry.state.refused(now, *line, &entry.of))
                    .collect();
                // Not before it has been quiet: a look that finds it below then says so.
                let settled = entry.state.settles().unwrap_or(now);
                self.agenda.plan(*id, settled);
                if !found.is_empty() {
                    urgent.push(((*id, Arc::clone(&entry.of)), found));
                }
            }
        }
        if urgent.is_empty() {
            return;
        }
        let driver = Arc::clone(&self.parts.driver);
        running.urgent.spawn_blocking(move || {
            let (targets, found): (Vec<_>, Vec<_>) = urgent.into_iter().unzip();
            let looked = look(&driver, targets, None);
            looked.seen.into_iter().zip(found).collect()
        });
    }

    fn urgent(&mut self, told: Result<Vec<(Seen, Vec<Finding>)>, JoinError>) {
        let told = match told {
            Ok(told) => told,
            Err(error) => return tracing::error!(%error, "events of the kernel were dropped"),
        };
        for (seen, found) in told {
            let charge = seen.charge.as_ref().ok().and_then(Option::as_ref);
            self.tell(&seen.of, charge.map(|charge| charge.usage), found);
            self.seen(seen);
        }
    }

    /// Something was told that did not fit: everybody is looked at once, and then not again for a
    /// while, since whoever floods us goes on.
    fn lost(&mut self, now: Instant) {
        self.lost_again = self.calm_from().is_some_and(|at| now < at);
        if self.lost_again {
            return;
        }
        self.lost = Some(now);
        self.look_at_all();
        self.parts.events.tell(Event {
            time: SystemTime::now(),
            what: What::Lost,
            key: None,
            usage: None,
            limit: None,
            text: "the kernel told more than could be heard; usage of all is looked at".to_owned(),
        });
    }

    fn calm_from(&self) -> Option<Instant> {
        self.lost.map(|at| at + self.parts.poll)
    }

    /// The kernel does not tell any more: all are looked at from now on.
    fn deaf(&mut self) {
        self.parts.figures.set_hearing(false);
        self.look_at_all();
    }

    fn look_at_all(&mut self) {
        let now = Instant::now();
        for id in self.watched.keys() {
            self.agenda.plan_by(*id, now);
        }
    }

    fn tell(&self, of: &Writable, usage: Option<Usage>, found: Vec<Finding>) {
        for Finding { what, text } in found {
            self.parts.events.tell(Event {
                time: SystemTime::now(),
                what,
                key: Some(of.key.clone()),
                usage,
                limit: Some(of.limit.clone()),
                text,
            });
        }
    }

    /// Snapshots came, changed or went; more of them may do so at once.
    fn changed(&mut self) {
        self.note_at = Some(self.noted + GATHERING);
    }

    /// Takes note of them.
    fn note(&mut self) {
        let now = Instant::now();
        (self.noted, self.note_at) = (now, None);
        let worth = self.parts.driver.writables().filter(is_worth_watching);
        let mut gone: BTreeSet<_> = self.watched.keys().copied().collect();
        let mut devices = Devices::default();
        for (id, of) in worth {
            gone.remove(&id);
            match self.watched.get_mut(&id) {
                Some(entry) if Arc::ptr_eq(&entry.of, &of) => continue,
                Some(entry) => entry.of = of,
                None => {
                    let Some(backend) = self.counted_by(&of) else {
                        continue;
                    };
                    let device = devices.of(backend.kind(), || backend.told_device());
                    self.enter(id, of, device);
                }
            }
            self.agenda.plan_by(id, now);
        }
        for id in &gone {
            self.leave(*id);
        }
        self.plan_round(now, !gone.is_empty());
    }

    /// `None` where only a walk counts: nobody walks for a warning.
    fn counted_by(&self, of: &Writable) -> Option<Arc<dyn Backend>> {
        let backend = self.parts.driver.backends().of(&of.record).ok()?;
        let counting = backend.abilities().counting;
        (counting != Counting::Walk).then_some(backend)
    }

    fn enter(&mut self, id: SnapshotId, of: Arc<Writable>, device: Option<Device>) {
        let place = match (&of.record, device) {
            (Record::Prjquota { project, .. }, Some(device)) => Some((device, ProjectId(*project))),
            _ => None,
        };
        if let Some(place) = place {
            self.places.entry(place).or_default().insert(id);
        }
        let state = Watched::default();
        self.watched.insert(id, Entry { of, place, state });
    }

    fn leave(&mut self, id: SnapshotId) {
        self.agenda.cancel(id);
        let entry = self.watched.remove(&id);
        let Some(place) = entry.and_then(|entry| entry.place) else {
            return;
        };
        if let Some(members) = self.places.get_mut(&place) {
            members.remove(&id);
            if members.is_empty() {
                self.places.remove(&place);
            }
        }
    }

    /// A round is needed while somebody can escape, and after somebody went, who may have left
    /// something behind.
    fn plan_round(&mut self, now: Instant, is_somebody_gone: bool) {
        let writables = self.parts.driver.writables();
        let figures = &self.parts.figures;
        figures.suspects_are_among(|id| writables.get(id).is_some());
        if self.round_at.is_none() && (is_somebody_gone || self.can_anybody_escape()) {
            self.round_at = Some(now + self.parts.audit);
        }
    }

    fn can_anybody_escape(&self) -> bool {
        self.watched.values().any(|entry| can_escape(&entry.of))
    }

    fn begin_round(&mut self, running: &mut Running) {
        self.round_at = None;
        let targets = self
            .watched
            .iter()
            .filter(|(_, entry)| can_escape(&entry.of));
        let targets = targets.map(|(id, entry)| (*id, Arc::clone(&entry.of)));
        let auditor = Auditor {
            driver: Arc::clone(&self.parts.driver),
            events: Arc::clone(&self.parts.events),
            figures: Arc::clone(&self.parts.figures),
        };
        running.round.spawn(auditor.round(targets.collect()));
    }

    fn round_ended(&mut self) {
        let backends = self.parts.driver.backends().all();
        let is_left = backends.iter().any(|backend| backend.quarantined() > 0);
        self.plan_round(Instant::now(), is_left);
    }
}

impl Entry {
    /// Whether looking tells what the kernel does not: thresholds, everything where it tells
    /// nothing, and getting below again, of which xfs does not tell.
    fn needs_looks(&self, hears: bool) -> bool {
        let is_told = hears && self.place.is_some();
        !is_told || self.of.limit.warn.percentages().next().is_some() || self.state.is_above()
    }
}

/// Asked for once for all snapshots of a back end.
#[derive(Debug, Default)]
struct Devices(Vec<(Kind, Option<Device>)>);

impl Devices {
    fn of(
        &mut self,
        kind: Kind,
        ask: impl FnOnce() -> snapshot_core::Result<Option<Device>>,
    ) -> Option<Device> {
        if let Some((_, known)) = self.0.iter().find(|(of, _)| *of == kind) {
            return *known;
        }
        let device = ask().unwrap_or_else(|error| {
            let error = error.in_one_line();
            tracing::warn!(%kind, error, "what the kernel tells of a back end is not understood");
            None
        });
        self.0.push((kind, device));
        device
    }
}

/// Never, where the kernel does not tell.
async fn hear(kernel: &mut Option<Kernel>) -> std::io::Result<Heard> {
    match kernel {
        Some(kernel) => kernel.hear().await,
        None => std::future::pending().await,
    }
}

/// Never, without a time.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
