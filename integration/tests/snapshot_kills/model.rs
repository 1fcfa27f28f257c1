//! What must be there: every acknowledged snapshot, and what each request may come to. Pure.
//!
//! Several clients act at once. An operation that was alone with its names has one outcome; of one
//! that was not, or that nobody answered, both are taken, and what is there afterwards is learned.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use integration::conformance::Labels;
use proto::snapshots::{Info, Kind};
use tonic::Code;

use crate::{
    expected::{Expected, changed, matches},
    operation::{Access, Answer, Files, Leave, Names, Operation, Outcome},
    rules::{BackEnd, Made, Mode, wanted},
};

/// A snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    pub(crate) kind: Kind,
    pub(crate) parent: Option<String>,
    pub(crate) labels: Labels,
    pub(crate) made: Made,
    pub(crate) files: Files,
    /// Somebody has written up to its limit: nothing more need fit.
    pub(crate) is_full: bool,
    /// Its Commit may have been interrupted: it can be committed again or removed, and perhaps
    /// nothing else.
    pub(crate) is_torn: bool,
    /// Its number, once that was seen.
    pub(crate) id: Option<u64>,
    /// What a committed one holds, once that was asked.
    pub(crate) usage: Option<(i64, i64)>,
    /// The last operation that was to change it.
    pub(crate) touched: u64,
}

/// An operation that has begun.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    number: u64,
    pub(crate) operation: Operation,
    expected: Expected,
    /// Who must be in the answer to List unless they are changed meanwhile.
    listed: Vec<(String, u64)>,
}

#[derive(Debug)]
struct Flight {
    names: Names,
    is_contested: bool,
}

#[derive(Debug)]
pub(crate) struct Model {
    pub(crate) back_end: BackEnd,
    pub(crate) known: BTreeMap<String, Known>,
    /// Names that are free again.
    pub(crate) free: Vec<String>,
    flights: BTreeMap<u64, Flight>,
    next: u64,
    doubts: Vec<Step>,
    /// Numbers are never given twice.
    id_highest: Option<u64>,
}

impl Model {
    pub(crate) fn new(back_end: BackEnd) -> Self {
        Self {
            back_end,
            known: BTreeMap::new(),
            free: Vec::new(),
            flights: BTreeMap::new(),
            next: 1,
            doubts: Vec::new(),
            id_highest: None,
        }
    }

    /// Whether somebody is about to change what has this name.
    pub(crate) fn is_taken(&self, name: &str) -> bool {
        let mut names = self.flights.values().flat_map(|flight| &flight.names);
        names.any(|(other, access)| other == name && *access == Access::Exclusive)
    }

    pub(crate) fn children(&self, name: &str) -> impl Iterator<Item = &String> {
        let stands_on = move |known: &Known| known.parent.as_deref() == Some(name);
        let children = self.known.iter().filter(move |(_, known)| stands_on(known));
        children.map(|(name, _)| name)
    }

    /// The snapshots below one, nearest first.
    pub(crate) fn below(&self, name: &str) -> Vec<&Known> {
        let parent = |known: &Known| self.known.get(known.parent.as_deref()?);
        let first = self.known.get(name).and_then(parent);
        std::iter::successors(first, |known| parent(known)).collect()
    }

    /// Files that must be in the mounts of a snapshot, layer by layer.
    pub(crate) fn layers(&self, name: &str) -> Vec<Files> {
        let own = self.known.get(name).into_iter();
        let all = own.chain(self.below(name));
        all.map(|known| known.files.clone()).collect()
    }

    /// A number that no name has.
    pub(crate) fn number(&self) -> u64 {
        self.next
    }

    pub(crate) fn begin(&mut self, operation: Operation) -> Step {
        let number = self.next;
        self.next += 1;
        let expected = self.expected(&operation);
        let listed = match &operation {
            Operation::List { filter } => self.listed(filter),
            _ => Vec::new(),
        };
        let names = operation.names(|key| self.known.get(key)?.parent.clone());
        let mut is_contested = false;
        for flight in self.flights.values_mut() {
            if clash(&flight.names, &names) {
                flight.is_contested = true;
                is_contested = true;
            }
        }
        for (name, access) in &names {
            if let (Access::Exclusive, Some(known)) = (access, self.known.get_mut(name)) {
                known.touched = number;
            }
        }
        let flight = Flight {
            names,
            is_contested,
        };
        self.flights.insert(number, flight);
        Step {
            number,
            operation,
            expected,
            listed,
        }
    }

    /// Takes note of what came of an operation.
    ///
    /// # Errors
    /// It should not have come to that.
    pub(crate) fn learn(&mut self, step: Step, outcome: Outcome) -> Result<()> {
        let flight = self.flights.remove(&step.number);
        let is_contested = flight.context("it has begun")?.is_contested;
        let shown = format!("{:?}", step.operation);
        match outcome {
            Outcome::Lost => {
                self.doubts.push(step);
                Ok(())
            }
            Outcome::Refused(status) => {
                let mut codes = step.expected.refused.clone();
                if is_contested {
                    codes.extend([
                        Code::NotFound,
                        Code::AlreadyExists,
                        Code::FailedPrecondition,
                        Code::InvalidArgument,
                    ]);
                }
                ensure!(
                    codes.contains(&status.code()),
                    "{shown} was refused: {status}; expected: {:?}",
                    step.expected
                );
                self.refused(step.operation);
                Ok(())
            }
            Outcome::Done(answer) => {
                ensure!(
                    step.expected.done || is_contested,
                    "{shown} was done; expected: {:?}",
                    step.expected
                );
                self.done(step, answer, is_contested).context(shown)
            }
        }
    }

    fn refused(&mut self, operation: Operation) {
        match operation {
            Operation::Create { key, .. } => self.set_free(key),
            Operation::Commit { name, .. } => self.set_free(name),
            Operation::Update { key, labels, .. } => self.may_have_grown(&key, &labels),
            _ => {}
        }
    }

    fn set_free(&mut self, name: String) {
        if !self.known.contains_key(&name) {
            self.free.push(name);
        }
    }

    /// An image that was to grow may have grown, whatever was answered.
    fn may_have_grown(&mut self, key: &str, labels: &Labels) {
        let bytes = wanted(key, labels).and_then(|wanted| wanted.bytes);
        if let Some(known) = self.known.get_mut(key) {
            let most = &mut known.made.bytes.1;
            *most = bytes.unwrap_or(0).max(*most);
        }
    }

    fn done(&mut self, step: Step, answer: Answer, is_contested: bool) -> Result<()> {
        match (step.operation, answer) {
            (_, Answer::Wrong(_)) if is_contested => {}
            (_, Answer::Wrong(why)) => bail!(why),
            (
                Operation::Create {
                    kind,
                    key,
                    parent,
                    labels,
                },
                _,
            ) => self.create(step.number, kind, (key, parent), labels)?,
            (Operation::Commit { key, name, labels }, _) => self.commit(&key, name, labels)?,
            (Operation::Remove { key }, _) => self.remove(&key)?,
            (Operation::Update { key, labels, mask }, Answer::Info(info)) => {
                let before = self.known.get(&key).context("it is known")?;
                let labels = changed(&before.labels, &labels, &mask);
                ensure!(info.labels == labels, "the labels are {:?}", info.labels);
                self.relabel(&key, labels)?;
            }
            (Operation::Stat { key }, Answer::Info(info)) if !is_contested => {
                self.compare(&key, &info)?;
            }
            (Operation::List { filter }, Answer::Infos(infos)) => {
                self.compare_list(&filter, &step.listed, &infos)?;
            }
            (Operation::Usage { key }, Answer::Usage(usage)) if !is_contested => {
                self.compare_usage(&key, usage)?;
            }
            (Operation::Write { key, file, bytes }, Answer::Written(is_whole)) => {
                let known = self.known.get_mut(&key).context("it is known")?;
                if is_whole {
                    known.files.insert(file, bytes);
                } else {
                    let may_be_full = known.is_full || known.made.group.is_some();
                    ensure!(may_be_full, "it did not fit");
                }
            }
            (Operation::Fill { key, leave, .. }, Answer::Written(is_whole)) => {
                ensure!(!is_whole, "its limit did not hold: {:?}", self.known[&key]);
                let known = self.known.get_mut(&key).context("it is known")?;
                // Where the kernel counts behind the deletion, there is no room at once.
                known.is_full = leave == Leave::File || self.back_end == BackEnd::Btrfs;
            }
            _ => {}
        }
        Ok(())
    }

    fn create(
        &mut self,
        touched: u64,
        kind: Kind,
        (key, parent): (String, Option<String>),
        labels: Labels,
    ) -> Result<()> {
        if let Some(parent) = &parent {
            let stands = self.known.get(parent).map(|known| known.kind);
            ensure!(
                stands == Some(Kind::Committed),
                "its parent is {stands:?} now"
            );
        }
        let made = match kind {
            Kind::Active => self.back_end.made(&key, &labels),
            _ => Made {
                is_plain: true,
                ..Made::default()
            },
        };
        let known = Known {
            kind,
            parent,
            made,
            labels,
            files: Files::new(),
            is_full: false,
            is_torn: false,
            id: None,
            usage: None,
            touched,
        };
        let before = self.known.insert(key, known);
        ensure!(before.is_none(), "it was there already");
        Ok(())
    }

    fn commit(&mut self, key: &str, name: String, labels: Labels) -> Result<()> {
        let known = self.known.remove(key).context("it is known")?;
        let committed = Known {
            kind: Kind::Committed,
            labels,
            is_torn: false,
            ..known
        };
        let before = self.known.insert(name, committed);
        ensure!(before.is_none(), "the name was there already");
        self.free.push(key.to_owned());
        Ok(())
    }

    fn remove(&mut self, key: &str) -> Result<()> {
        let left: Vec<_> = self.children(key).collect();
        let left: Vec<_> = left.iter().filter(|name| !self.is_taken(name)).collect();
        ensure!(left.is_empty(), "{left:?} stand on it");
        self.known.remove(key).context("it is known")?;
        self.free.push(key.to_owned());
        Ok(())
    }

    fn relabel(&mut self, key: &str, labels: Labels) -> Result<()> {
        let known = self.known.get_mut(key).context("it is known")?;
        known.labels = labels;
        if known.kind == Kind::Active
            && let Some(bytes) = wanted(key, &known.labels).and_then(|wanted| wanted.bytes)
        {
            known.made.bytes = (bytes, bytes.max(known.made.bytes.1));
        }
        Ok(())
    }

    fn compare(&self, key: &str, info: &Info) -> Result<()> {
        let known = self.known.get(key).context("it is not known")?;
        let parent = known.parent.clone().unwrap_or_default();
        ensure!(
            info.name == key
                && info.kind() == known.kind
                && info.parent == parent
                && info.labels == known.labels,
            "{info:?} is known as {known:?}"
        );
        Ok(())
    }

    fn compare_list(&self, filter: &str, listed: &[(String, u64)], infos: &[Info]) -> Result<()> {
        let names: BTreeSet<_> = infos.iter().map(|info| info.name.as_str()).collect();
        ensure!(names.len() == infos.len(), "a name is listed twice");
        for info in infos {
            let is_one = matches(filter, &info.name, info.kind(), &info.labels);
            ensure!(is_one, "{info:?} is listed");
        }
        for (name, touched) in listed {
            let is_same = |known: &Known| known.touched == *touched;
            let must_be = self.known.get(name).is_some_and(is_same);
            ensure!(
                !must_be || names.contains(name.as_str()),
                "{name} is not listed"
            );
        }
        Ok(())
    }

    /// What a committed snapshot holds is counted at its commit, but on btrfs, where the kernel
    /// goes on to count what was written for up to 30 s.
    fn compare_usage(&mut self, key: &str, usage: (i64, i64)) -> Result<()> {
        let known = self.known.get_mut(key).context("it is not known")?;
        if known.kind == Kind::Committed && self.back_end != BackEnd::Btrfs {
            let first = *known.usage.get_or_insert(usage);
            ensure!(first == usage, "{key} held {first:?}, and now {usage:?}");
        }
        Ok(())
    }

    /// The number of a snapshot: always the same, and never that of an earlier one.
    pub(crate) fn compare_ids(&mut self, ids: &BTreeMap<String, u64>) -> Result<()> {
        let before = self.id_highest;
        for (name, known) in &mut self.known {
            let id = *ids
                .get(name)
                .with_context(|| format!("{name} is missing"))?;
            match known.id {
                Some(known) => ensure!(known == id, "{name} was {known} and is {id}"),
                None => ensure!(
                    Some(id) > before,
                    "{name} has number {id}, after {before:?}"
                ),
            }
            known.id = Some(id);
        }
        let distinct: BTreeSet<_> = ids.values().collect();
        ensure!(
            distinct.len() == ids.len(),
            "a number is had twice: {ids:?}"
        );
        self.id_highest = before.max(ids.values().max().copied());
        Ok(())
    }

    /// Learns from what is there what came of the operations that nobody answered. All that begun
    /// have ended.
    pub(crate) fn settle(&mut self, there: &BTreeMap<String, Info>) -> Result<()> {
        let steps = std::mem::take(&mut self.doubts);
        // What was made stands on what was there: that is removed last.
        let (removals, others): (Vec<_>, Vec<_>) = steps
            .into_iter()
            .partition(|step| matches!(step.operation, Operation::Remove { .. }));
        for step in others.into_iter().chain(removals) {
            let shown = format!("{:?}, which nobody answered", step.operation);
            self.settle_one(step, there).context(shown)?;
        }
        Ok(())
    }

    fn settle_one(&mut self, step: Step, there: &BTreeMap<String, Info>) -> Result<()> {
        let may_be_done = step.expected.done;
        let is_done = match &step.operation {
            Operation::Create { key, .. } => there.contains_key(key) && may_be_done,
            Operation::Commit { name, .. } => there.contains_key(name) && may_be_done,
            Operation::Remove { key } => !there.contains_key(key) && self.known.contains_key(key),
            Operation::Update { key, labels, mask } => {
                let (now, known) = (there.get(key), self.known.get(key));
                let new = known.map(|known| changed(&known.labels, labels, mask));
                may_be_done && new == now.map(|info| info.labels.clone())
            }
            // Somebody wrote who was not killed; or nothing was to change.
            _ => return Ok(()),
        };
        if !is_done {
            if let Operation::Commit { key, .. } = &step.operation
                && let Some(known) = self.known.get_mut(key)
            {
                known.is_torn = self.back_end.moves_out();
            }
            self.refused(step.operation);
            return Ok(());
        }
        match step.operation {
            Operation::Create {
                kind,
                key,
                parent,
                labels,
            } => self.create(step.number, kind, (key, parent), labels),
            Operation::Commit { key, name, labels } => self.commit(&key, name, labels),
            Operation::Remove { key } => {
                // Whether others stand on it is asked when all is settled.
                self.known.remove(&key);
                self.free.push(key);
                Ok(())
            }
            Operation::Update { key, labels, mask } => {
                let before = self.known.get(&key).context("it is known")?;
                let labels = changed(&before.labels, &labels, &mask);
                self.relabel(&key, labels)
            }
            _ => Ok(()),
        }
    }

    /// Demands that just what is known is there.
    pub(crate) fn compare_all(&self, there: &BTreeMap<String, Info>) -> Result<()> {
        for (name, known) in &self.known {
            let info = there.get(name);
            let info = info.with_context(|| format!("{name} is lost: {known:?}"))?;
            self.compare(name, info)?;
            if let Some(parent) = &known.parent {
                let below = self.known.get(parent).map(|below| below.kind);
                ensure!(below == Some(Kind::Committed), "{name} stands on {below:?}");
            }
        }
        let strange = there.keys().find(|name| !self.known.contains_key(*name));
        ensure!(strange.is_none(), "nobody made {strange:?}");
        Ok(())
    }

    /// The limit of a snapshot that is written to and counted by itself, or that it has none.
    pub(crate) fn limit(&self, name: &str) -> Option<Option<u64>> {
        let known = self.known.get(name)?;
        let is_counted = !known.made.is_plain && known.made.group.is_none();
        if known.kind != Kind::Active || !is_counted || known.is_torn {
            return None;
        }
        let wanted = wanted(name, &known.labels)?;
        Some(wanted.bytes.filter(|_| wanted.mode == Mode::Hard))
    }
}

fn clash(some: &Names, others: &Names) -> bool {
    let meets = |(name, access): &(String, Access)| {
        let exclusive = Access::Exclusive;
        let mut others = others.iter().filter(|(other, _)| other == name);
        others.any(|(_, other)| *access == exclusive || *other == exclusive)
    };
    some.iter().any(meets)
}
