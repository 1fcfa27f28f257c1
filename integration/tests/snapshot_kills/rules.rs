//! What labels ask for, and whether a back end can make it hold: docs/quota.md as pure functions.

use integration::conformance::Labels;

const SIZE: &str = "containerd.io/snapshot/max-size";
const INODES: &str = "containerd.io/snapshot/quota.inodes";
const GROUP: &str = "containerd.io/snapshot/quota.group";
const MODE: &str = "containerd.io/snapshot/quota.mode";
const OURS: &str = "containerd.io/snapshot/quota.";

const MIB: u64 = 1 << 20;

/// Where limits are made to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BackEnd {
    Btrfs,
    Image,
    Tmpfs,
    None,
    Prjquota,
    Pool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Off,
    Account,
    Hard,
}

/// What the labels of a writable snapshot ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) mode: Mode,
    pub(crate) bytes: Option<u64>,
    pub(crate) inodes: Option<u64>,
    pub(crate) group: Option<String>,
}

/// What a snapshot was made as, which later labels cannot change.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Made {
    /// Nothing counts it.
    pub(crate) is_plain: bool,
    pub(crate) group: Option<String>,
    pub(crate) inodes: Option<u64>,
    /// The size of its own file system: what it is at least, and what an interrupted change may
    /// have made of it.
    pub(crate) bytes: (u64, u64),
}

/// What has to come of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Done,
    Refused,
    /// It depends on what nobody outside knows.
    Either,
}

impl BackEnd {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Btrfs => "btrfs",
            Self::Image => "image",
            Self::Tmpfs => "tmpfs",
            Self::None => "none",
            Self::Prjquota => "prjquota",
            Self::Pool => "pool",
        }
    }

    /// Sizes that are asked for. xfs, which can grow without CAP_SYS_RESOURCE, takes 300 MiB.
    pub(crate) fn sizes(self) -> [u64; 3] {
        match self {
            Self::Image => [300 * MIB, 320 * MIB, 340 * MIB],
            _ => [4 * MIB, 8 * MIB, 12 * MIB],
        }
    }

    /// Whether a layer is moved out of a file system of its own at Commit.
    pub(crate) fn moves_out(self) -> bool {
        matches!(self, Self::Image | Self::Tmpfs)
    }

    fn takes(self, wanted: &Wanted) -> bool {
        let Wanted {
            mode,
            bytes,
            inodes,
            ref group,
        } = *wanted;
        let is_hard = mode == Mode::Hard;
        match self {
            Self::Prjquota | Self::Pool => true,
            Self::Btrfs => !(is_hard && inodes.is_some()),
            Self::Tmpfs => group.is_none(),
            Self::Image => group.is_none() && !(is_hard && bytes.is_none()),
            Self::None => !is_hard,
        }
    }

    /// Whether a writable snapshot can be made with these labels.
    pub(crate) fn at_creation(self, key: &str, labels: &Labels) -> Verdict {
        match wanted(key, labels) {
            Some(wanted) if self.takes(&wanted) => Verdict::Done,
            _ => Verdict::Refused,
        }
    }

    /// What it is made as.
    pub(crate) fn made(self, key: &str, labels: &Labels) -> Made {
        let Some(wanted) = wanted(key, labels) else {
            return Made::default();
        };
        let is_plain = match self {
            Self::None => true,
            Self::Btrfs | Self::Prjquota | Self::Pool => wanted.mode == Mode::Off,
            Self::Image | Self::Tmpfs => wanted.mode != Mode::Hard,
        };
        let bytes = wanted.bytes.unwrap_or(0);
        Made {
            is_plain,
            group: wanted.group.filter(|_| !is_plain),
            inodes: wanted.inodes,
            bytes: (bytes, bytes),
        }
    }

    /// Whether its labels can become those; `is_full`: somebody has written up to the limit.
    pub(crate) fn at_change(
        self,
        key: &str,
        (made, is_full): (&Made, bool),
        old: &Labels,
        new: &Labels,
    ) -> Verdict {
        let Some(new) = wanted(key, new) else {
            return Verdict::Refused;
        };
        let old = wanted(key, old);
        if old.as_ref() == Some(&new) {
            return Verdict::Done;
        }
        let is_hard = new.mode == Mode::Hard;
        if made.is_plain {
            return match (is_hard, &new.group) {
                (true, _) => Verdict::Refused,
                // Without a limit of its own it has that of the group, if another has one.
                (false, Some(_)) => Verdict::Either,
                (false, None) => Verdict::Done,
            };
        }
        let is_other_group = new.mode != Mode::Off && new.group != made.group;
        if is_other_group || !self.takes(&new) {
            return Verdict::Refused;
        }
        match self {
            Self::Image => at_image(made, &new),
            // It depends on how much of it is used.
            Self::Tmpfs if is_full && is_hard => Verdict::Either,
            _ => Verdict::Done,
        }
    }
}

/// An image only grows.
fn at_image(made: &Made, new: &Wanted) -> Verdict {
    let (least, most) = made.bytes;
    match (new.mode, new.bytes) {
        (Mode::Hard, _) if new.inodes.is_some() && new.inodes != made.inodes => Verdict::Refused,
        (Mode::Hard, Some(bytes)) if bytes < least => Verdict::Refused,
        (Mode::Hard, Some(bytes)) if bytes < most => Verdict::Either,
        // The ext4 in it cannot grow where CAP_SYS_RESOURCE is missing.
        (Mode::Hard, Some(bytes)) if made.inodes.is_some() && bytes > least => Verdict::Either,
        (Mode::Hard, Some(_)) => Verdict::Done,
        _ => Verdict::Refused,
    }
}

/// Whether a key is one that containerd unpacks a layer with: that is never limited.
fn is_unpack(key: &str) -> bool {
    key.contains("/extract-")
}

/// What the labels ask for; `None` when they make no sense.
pub(crate) fn wanted(key: &str, labels: &Labels) -> Option<Wanted> {
    let counted = Wanted {
        mode: Mode::Account,
        bytes: None,
        inodes: None,
        group: None,
    };
    if is_unpack(key) {
        return Some(counted);
    }
    let known = [INODES, GROUP, MODE];
    let is_unknown = |label: &&String| label.starts_with(OURS) && !known.contains(&label.as_str());
    if labels.keys().any(|label| is_unknown(&label)) {
        return None;
    }
    let number = |label: &str| match labels.get(label) {
        Some(text) => text.parse::<u64>().ok().filter(|&n| n > 0).map(Some),
        None => Some(None),
    };
    let (bytes, inodes) = (number(SIZE)?, number(INODES)?);
    let namespace = key.split('/').next().unwrap_or_default();
    let group = labels.get(GROUP).map(|name| format!("{namespace}/{name}"));
    let is_limited = bytes.is_some() || inodes.is_some();
    let mode = match labels.get(MODE).map(String::as_str) {
        Some("off") => {
            return Some(Wanted {
                mode: Mode::Off,
                ..counted
            });
        }
        Some("account") => Mode::Account,
        Some(_) => return None,
        None if is_limited => Mode::Hard,
        None => Mode::Account,
    };
    Some(Wanted {
        mode,
        bytes,
        inodes,
        group,
    })
}

/// Labels that somebody might set, some of which make no sense or cannot hold.
pub(crate) fn some_labels(back_end: BackEnd, random: &mut integration::random::Random) -> Labels {
    let mut happens = |percent| random.below(100) < percent;
    let (is_sized, is_bad) = (happens(60), happens(3));
    let (has_inodes, has_group) = (happens(10), happens(15));
    let (has_mode, is_unknown) = (happens(8), happens(2));
    // What a back end always refuses is asked for seldom.
    let is_refused = match back_end {
        BackEnd::None => !happens(10),
        BackEnd::Image | BackEnd::Tmpfs => has_group && !happens(10),
        _ => false,
    };
    let mut labels = Labels::new();
    let mut put = |label: &str, value: &str| labels.insert(label.to_owned(), value.to_owned());
    put("storm", &random.below(4).to_string());
    if is_sized && !is_refused {
        put(SIZE, &random.choose(&back_end.sizes()).to_string());
    }
    if is_bad {
        let size = random.choose(&["ten", "-1", "0", "1.5g", "99999999999g"]);
        put(SIZE, size);
    }
    if has_inodes && !is_refused {
        put(INODES, "1000");
    }
    if has_group && !is_refused {
        let group = random.choose(&["pod-a", "pod-b", "pod-c"]);
        put(GROUP, group);
    }
    if has_mode {
        let mode = random.choose(&["off", "account", "account", "soft"]);
        put(MODE, mode);
    }
    if is_unknown {
        put("containerd.io/snapshot/quota.nonsense", "1");
    }
    labels
}

#[test]
fn labels_are_read_as_documented() {
    let labels = |pairs: &[(&str, &str)]| -> Labels {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    };
    let check = |back_end: BackEnd, pairs: &[(&str, &str)], expected| {
        let found = back_end.at_creation("a/1/b", &labels(pairs));
        assert_eq!(found, expected, "{back_end:?} {pairs:?}");
    };
    check(BackEnd::None, &[(SIZE, "4096")], Verdict::Refused);
    let off = [(SIZE, "4096"), (MODE, "off")];
    check(BackEnd::None, &off, Verdict::Done);
    check(BackEnd::Btrfs, &[(SIZE, "4096")], Verdict::Done);
    check(BackEnd::Btrfs, &[(INODES, "9")], Verdict::Refused);
    check(BackEnd::Tmpfs, &[(GROUP, "pod")], Verdict::Refused);
    check(BackEnd::Pool, &[(SIZE, "ten")], Verdict::Refused);
    let grown = labels(&[(SIZE, "8192")]);
    let made = BackEnd::Image.made("a/1/b", &grown);
    let less = labels(&[(SIZE, "4096")]);
    let verdict = BackEnd::Image.at_change("a/1/b", (&made, false), &grown, &less);
    assert_eq!(verdict, Verdict::Refused);
}
