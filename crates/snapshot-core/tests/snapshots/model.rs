//! Random operations with failing drivers and restarts, held against a model that knows only
//! containerd's rules.

use std::collections::BTreeMap;

use proptest::prelude::*;
use snapshot_core::{CommitRequest, Error, Field, Kind, Labels};

use crate::{
    driver::{STEPS, Step},
    root::{Root, key},
};

/// Few names, so that they meet.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

#[derive(Clone, Debug)]
enum Act {
    Prepare(Kind, usize, Option<usize>, u8),
    Commit(usize, usize, Option<usize>, u8),
    Remove(usize),
    /// One label by a mask, or all without one.
    Update(usize, bool, u8),
    Mounts(usize),
    Usage(usize),
    Cleanup,
    Reopen,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    kind: Kind,
    parent: Option<usize>,
    labels: Labels,
}

type Model = BTreeMap<usize, Known>;

/// What a client is told: containerd's codes by the names of our variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    NotFound,
    AlreadyExists,
    Invalid,
    Precondition,
    Failed,
}

fn outcome<T>(result: Result<T, Error>) -> Outcome {
    match result {
        Ok(_) => Outcome::Done,
        Err(Error::NotFound(_)) => Outcome::NotFound,
        Err(Error::AlreadyExists(_)) => Outcome::AlreadyExists,
        Err(Error::Invalid(_)) => Outcome::Invalid,
        Err(Error::Precondition(_)) => Outcome::Precondition,
        Err(Error::Exhausted(_)) => Outcome::Failed,
        Err(other) => panic!("{other:?}"),
    }
}

fn labels(number: u8) -> Labels {
    let named = [("l", number), ("m", number / 2)];
    let labels = named.into_iter().filter(|(_, value)| *value > 0);
    labels
        .map(|(name, value)| (name.to_owned(), value.to_string()))
        .collect()
}

/// What must come of an act, the model changed accordingly. `fails` is the step in which the driver
/// fails, if it comes to that.
fn expected(model: &mut Model, act: &Act, fails: Option<Step>) -> Outcome {
    let failing = |steps: &[Step]| fails.is_some_and(|step| steps.contains(&step));
    match act {
        Act::Prepare(kind, name, parent, number) => {
            let fails = failing(&[Step::Create, Step::CreateEnd, Step::Mounts]);
            let known = Known {
                kind: *kind,
                parent: *parent,
                labels: labels(*number),
            };
            return prepare(model, *name, known, fails);
        }
        Act::Commit(name, active, parent, number) => {
            let known = Known {
                kind: Kind::Committed,
                parent: *parent,
                labels: labels(*number),
            };
            return commit(model, (*name, known), *active, failing(&[Step::Commit]));
        }
        Act::Remove(name) => {
            if !model.contains_key(name) {
                return Outcome::NotFound;
            }
            if model.values().any(|other| other.parent == Some(*name)) {
                return Outcome::Precondition;
            }
            model.remove(name);
        }
        Act::Update(name, masked, number) => {
            let Some(known) = model.get_mut(name) else {
                return Outcome::NotFound;
            };
            if failing(&[Step::Update, Step::Updated]) {
                return Outcome::Failed;
            }
            let to = labels(*number);
            if *masked {
                known.labels.remove("l");
                let one = to.into_iter().filter(|(name, _)| name == "l");
                known.labels.extend(one);
            } else {
                known.labels = to;
            }
        }
        Act::Mounts(name) => match model.get(name).map(|known| known.kind) {
            None => return Outcome::NotFound,
            Some(Kind::Committed) => return Outcome::Precondition,
            Some(_) if failing(&[Step::Mounts]) => return Outcome::Failed,
            Some(_) => {}
        },
        Act::Usage(name) => match model.get(name).map(|known| known.kind) {
            None => return Outcome::NotFound,
            Some(Kind::Committed) => {}
            Some(_) if failing(&[Step::Usage]) => return Outcome::Failed,
            Some(_) => {}
        },
        Act::Cleanup | Act::Reopen => {}
    }
    Outcome::Done
}

fn prepare(model: &mut Model, name: usize, known: Known, fails: bool) -> Outcome {
    if let Some(parent) = known.parent {
        match model.get(&parent).map(|parent| parent.kind) {
            None => return Outcome::NotFound,
            Some(Kind::Committed) => {}
            Some(_) => return Outcome::Invalid,
        }
    }
    if model.contains_key(&name) {
        return Outcome::AlreadyExists;
    }
    if fails {
        return Outcome::Failed;
    }
    model.insert(name, known);
    Outcome::Done
}

/// What takes the place of an active one has the parent that was asked for.
fn commit(
    model: &mut Model,
    (name, mut asked): (usize, Known),
    active: usize,
    fails: bool,
) -> Outcome {
    let Some(known) = model.get(&active) else {
        return Outcome::NotFound;
    };
    if model.contains_key(&name) {
        return Outcome::AlreadyExists;
    }
    if known.kind != Kind::Active {
        return Outcome::Precondition;
    }
    if known.parent.is_some() && asked.parent.is_some() && known.parent != asked.parent {
        return Outcome::Invalid;
    }
    asked.parent = known.parent.or(asked.parent);
    match asked
        .parent
        .map(|parent| model.get(&parent).map(|parent| parent.kind))
    {
        Some(None) => return Outcome::NotFound,
        None | Some(Some(Kind::Committed)) => {}
        Some(Some(_)) => return Outcome::Precondition,
    }
    if fails {
        return Outcome::Failed;
    }
    model.remove(&active);
    model.insert(name, asked);
    Outcome::Done
}

fn act_on(root: &mut Root, act: &Act) -> Outcome {
    let named = |number: &usize| key(NAMES[*number]);
    let snapshots = root.snapshots();
    match act {
        Act::Prepare(kind, name, parent, number) => {
            let (name, parent) = (named(name), parent.as_ref().map(named));
            let (parent, labels) = (parent.as_ref(), labels(*number));
            outcome(match kind {
                Kind::View => snapshots.view(&name, parent, labels),
                Kind::Active | Kind::Committed => snapshots.prepare(&name, parent, labels),
            })
        }
        Act::Commit(name, active, parent, number) => outcome(snapshots.commit(CommitRequest {
            name: named(name),
            key: named(active),
            parent: parent.as_ref().map(named),
            labels: labels(*number),
        })),
        Act::Remove(name) => outcome(snapshots.remove(&named(name))),
        Act::Update(name, masked, number) => {
            let fields = [Field::Label("l".to_owned())];
            let fields: &[Field] = if *masked { &fields } else { &[] };
            outcome(snapshots.update(&named(name), fields, &labels(*number)))
        }
        Act::Mounts(name) => outcome(snapshots.mounts(&named(name))),
        Act::Usage(name) => outcome(snapshots.usage(&named(name))),
        Act::Cleanup => outcome(snapshots.cleanup()),
        Act::Reopen => outcome(root.try_open()),
    }
}

fn seen(root: &Root) -> Model {
    let number = |name: &str| NAMES.iter().position(|known| *known == name).unwrap();
    let infos = root.list(&[]).into_iter();
    infos
        .map(|info| {
            let known = Known {
                kind: info.kind,
                parent: info.parent.map(|parent| number(parent.as_str())),
                labels: info.labels,
            };
            (number(info.name.as_str()), known)
        })
        .collect()
}

fn acts() -> impl Strategy<Value = (Act, Option<Step>)> {
    let name = 0..NAMES.len();
    let parent = proptest::option::weighted(0.7, name.clone());
    let kind = prop_oneof![4 => Just(Kind::Active), 1 => Just(Kind::View)];
    let rebase = proptest::option::weighted(0.2, name.clone());
    let act = prop_oneof![
        6 => (kind, name.clone(), parent, 0..9_u8)
            .prop_map(|(kind, name, parent, number)| Act::Prepare(kind, name, parent, number)),
        4 => (name.clone(), name.clone(), rebase, 0..9_u8)
            .prop_map(|(name, active, parent, number)| Act::Commit(name, active, parent, number)),
        3 => name.clone().prop_map(Act::Remove),
        2 => (name.clone(), any::<bool>(), 0..9_u8)
            .prop_map(|(name, masked, number)| Act::Update(name, masked, number)),
        1 => name.clone().prop_map(Act::Mounts),
        1 => name.prop_map(Act::Usage),
        1 => Just(Act::Cleanup),
        1 => Just(Act::Reopen),
    ];
    let fails = proptest::option::weighted(0.15, proptest::sample::select(&STEPS[..]));
    (act, fails)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn snapshots_follow_containerds_rules(acts in proptest::collection::vec(acts(), 1..80)) {
        let mut root = Root::new();
        let mut model = Model::new();
        for (act, fails) in &acts {
            if let Some(step) = fails {
                root.driver.fail(*step);
            }
            let expected = expected(&mut model, act, *fails);
            prop_assert_eq!(act_on(&mut root, act), expected, "{:?} {:?}", act, fails);
            root.driver.work_again();
            prop_assert_eq!(&seen(&root), &model, "{:?}", act);
        }
        root.snapshots().cleanup().unwrap();
        prop_assert_eq!(root.directories().len(), model.len());
        for (number, known) in &model {
            if known.kind == Kind::Active {
                let sidecar = Root::sidecar(&root.directory_of(NAMES[*number]));
                prop_assert_eq!(&sidecar["name"], NAMES[*number]);
            }
        }
    }
}
