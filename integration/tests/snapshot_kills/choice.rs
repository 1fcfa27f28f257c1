//! What a client does next, by chance; mostly what can be done, at times what must be refused.

use integration::{conformance::Labels, random::Random};
use proto::snapshots::Kind;

use crate::{
    model::{Known, Model},
    operation::{Leave, Operation},
    rules::some_labels,
};

/// So many are enough: each is looked at after each kill.
const SNAPSHOTS_MAX: usize = 48;

const DEPTH_MAX: usize = 6;

const FILES_MAX: usize = 4;

/// Larger snapshots are not filled: that takes long.
const FILL_BYTES_MAX: u64 = 16 << 20;

/// No snapshot has this name.
const NOWHERE: &str = "a/1/nowhere";

impl Model {
    /// What to do next.
    pub(crate) fn choose(&mut self, random: &mut Random) -> Operation {
        loop {
            let roll = random.below(100);
            let chosen = match roll {
                0..=23 if self.known.len() < SNAPSHOTS_MAX => {
                    Some(self.creation(Kind::Active, random))
                }
                24..=29 if self.known.len() < SNAPSHOTS_MAX => {
                    Some(self.creation(Kind::View, random))
                }
                0..=29 => self.removal(random),
                30..=38 => self.commitment(random),
                39..=55 => self.removal(random),
                56..=67 => self.update(random),
                68..=76 => Some(self.question(roll, random)),
                77..=81 => self
                    .some(random, |known| known.kind != Kind::Committed)
                    .map(|key| {
                        let layers = self.layers(&key);
                        Operation::Mounts { key, layers }
                    }),
                82 => Some(Operation::Cleanup),
                83..=95 => self.write(random),
                _ => self.fill(random),
            };
            if let Some(operation) = chosen {
                return operation;
            }
        }
    }

    /// One that nobody is about to change.
    fn some(&self, random: &mut Random, is_wanted: impl Fn(&Known) -> bool) -> Option<String> {
        let found = self.known.iter();
        let found = found.filter(|(name, known)| is_wanted(known) && !self.is_taken(name));
        let found: Vec<&String> = found.map(|(name, _)| name).collect();
        (!found.is_empty()).then(|| (*random.choose(&found)).clone())
    }

    /// A name that nobody has: a new one, or one that was had before.
    fn name(&mut self, random: &mut Random) -> String {
        if random.below(3) == 0
            && let Some(name) = self.free.pop()
        {
            return name;
        }
        let number = self.number();
        let namespace = random.choose(&["a", "k8s.io"]);
        match random.below(8) {
            0 => format!("{namespace}/{number}/extract-{number} sha256:{number}"),
            _ => format!("{namespace}/{number}/web-{number}"),
        }
    }

    fn labels(&self, random: &mut Random) -> Labels {
        some_labels(self.back_end, random)
    }

    fn creation(&mut self, kind: Kind, random: &mut Random) -> Operation {
        let roll = random.below(100);
        let parent = match roll {
            0..=1 => Some(NOWHERE.to_owned()),
            2..=3 => self.some(random, |known| known.kind != Kind::Committed),
            4..=69 => self.some(random, |known| known.kind == Kind::Committed),
            // Somebody may be about to remove it.
            70..=76 => self.anyone(random),
            _ => None,
        };
        let parent = parent.filter(|parent| self.below(parent).len() < DEPTH_MAX);
        let labels = self.labels(random);
        let in_use = (random.below(40) == 0).then(|| self.some(random, |_| true));
        let key = match in_use.flatten() {
            Some(key) => key,
            None => self.name(random),
        };
        Operation::Create {
            kind,
            key,
            parent,
            labels,
        }
    }

    fn anyone(&self, random: &mut Random) -> Option<String> {
        let committed = self.known.iter();
        let committed = committed.filter(|(_, known)| known.kind == Kind::Committed);
        let names: Vec<&String> = committed.map(|(name, _)| name).collect();
        (!names.is_empty()).then(|| (*random.choose(&names)).clone())
    }

    fn commitment(&mut self, random: &mut Random) -> Option<Operation> {
        let key = match random.below(20) {
            0 => self.some(random, |known| known.kind != Kind::Active)?,
            _ => self.some(random, |known| known.kind == Kind::Active)?,
        };
        let in_use = (random.below(30) == 0).then(|| self.some(random, |_| true));
        let in_use = in_use.flatten().filter(|name| *name != key);
        let name = match in_use {
            Some(name) => name,
            None => self.name(random),
        };
        let labels = self.labels(random);
        Some(Operation::Commit { key, name, labels })
    }

    fn removal(&self, random: &mut Random) -> Option<Operation> {
        let key = match random.below(20) {
            0 => NOWHERE.to_owned(),
            1..=2 => self.some(random, |_| true)?,
            _ => {
                let leaves = self.known.keys();
                let leaves = leaves
                    .filter(|name| !self.is_taken(name) && self.children(name).next().is_none());
                let leaves: Vec<&String> = leaves.collect();
                if leaves.is_empty() {
                    return None;
                }
                (*random.choose(&leaves)).clone()
            }
        };
        Some(Operation::Remove { key })
    }

    fn update(&self, random: &mut Random) -> Option<Operation> {
        let key = match random.below(20) {
            0 => self.some(random, |_| true)?,
            _ => self.some(random, |known| known.kind == Kind::Active)?,
        };
        let labels = self.labels(random);
        let mask = match random.below(10) {
            0 => vec!["parent".to_owned()],
            // Set what is there now, take away what is not.
            1..=5 => {
                let names: Vec<&String> = labels
                    .keys()
                    .chain(self.known[&key].labels.keys())
                    .collect();
                match names.is_empty() {
                    true => Vec::new(),
                    false => vec![format!("labels.{}", random.choose(&names))],
                }
            }
            _ => Vec::new(),
        };
        Some(Operation::Update { key, labels, mask })
    }

    fn question(&self, roll: u64, random: &mut Random) -> Operation {
        let key = match random.below(20) {
            0 => None,
            // Whatever others do to it.
            1..=5 => self.anyone(random),
            _ => self.some(random, |_| true),
        };
        let key = key.unwrap_or_else(|| NOWHERE.to_owned());
        match roll {
            68..=70 => Operation::Stat { key },
            71..=73 => Operation::Usage { key },
            _ => Operation::List {
                filter: match random.below(4) {
                    0 => String::new(),
                    1 => "kind==committed".to_owned(),
                    2 => format!("labels.storm=={}", random.below(4)),
                    _ => format!("name=={key:?}"),
                },
            },
        }
    }

    fn write(&self, random: &mut Random) -> Option<Operation> {
        let has_room = |known: &Known| known.kind == Kind::Active && known.files.len() < FILES_MAX;
        let key = self.some(random, has_room)?;
        let file = format!("file-{}", self.known[&key].files.len());
        let bytes = 1 + random.below(16 << 10);
        Some(Operation::Write { key, file, bytes })
    }

    fn fill(&self, random: &mut Random) -> Option<Operation> {
        let key = self.some(random, |known| known.kind == Kind::Active)?;
        let limit = self.limit(&key)?.filter(|&limit| limit <= FILL_BYTES_MAX)?;
        Some(Operation::Fill {
            key,
            bytes: limit + (4 << 20),
            leave: *random.choose(&[Leave::File, Leave::Nothing]),
        })
    }
}
