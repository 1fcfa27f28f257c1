//! Option words to [`MountOptions`]; must not know which file system they are for.

use crate::error::OptionError;
use crate::mount::{Extension, IdMap, MountOptions, Scope};
use crate::table::{self, Effect};

/// Bound on all words of a mount together: many times what any kernel takes.
const OPTION_BYTES_MAX: usize = 1 << 20;

/// The bits of an access-time mode in MOUNT_ATTR_*; they are changed together or not at all.
const ATIME_MASK: u64 = sys::mount_api::MOUNT_ATTR_ATIME_MASK;

impl MountOptions {
    /// Reads option words as mount(8) does: each has its effect in turn, so the later of two that
    /// contradict each other wins, and what is not known is left to the file system.
    ///
    /// # Errors
    /// [`OptionError`] for a NUL byte or a list that is too long.
    pub fn parse(words: &[String]) -> Result<Self, OptionError> {
        let bytes = words.iter().map(|word| word.len() + 1).sum();
        if bytes > OPTION_BYTES_MAX {
            return Err(OptionError::TooLong {
                bytes,
                max: OPTION_BYTES_MAX,
            });
        }
        let mut options = Self::none();
        for word in words {
            if word.contains('\0') {
                let word = word.clone();
                return Err(OptionError::Nul { word });
            }
            match table::effect(word) {
                Some(effect) => options.apply(word, effect),
                None => options.add_data(word),
            }
        }
        Ok(options)
    }

    fn apply(&mut self, word: &str, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Set(flags) => {
                self.flags_set |= flags;
                self.flags_clear &= !flags;
            }
            Effect::Clear(flags) => {
                self.flags_set &= !flags;
                self.flags_clear |= flags;
            }
            Effect::Propagation(flags) => self.propagation.push(flags),
            Effect::AttrSet(attributes) => {
                self.attrs_set |= attributes;
                self.attrs_clear &= !attributes;
            }
            Effect::AttrClear(attributes) => {
                self.attrs_set &= !attributes;
                self.attrs_clear |= attributes;
            }
            // mount_setattr(2): a mode is set by clearing the whole mask.
            Effect::AttrAtime(mode) => {
                self.attrs_set = self.attrs_set & !ATIME_MASK | mode;
                self.attrs_clear |= ATIME_MASK;
            }
            Effect::Data => self.add_data(word),
            Effect::TmpCopyUp => self.add_extension(Extension::TmpCopyUp),
            Effect::IdMap => self.add_id_map(Scope::Mount),
            Effect::IdMapTree => self.add_id_map(Scope::Tree),
        }
    }

    fn add_data(&mut self, word: &str) {
        if word.is_empty() {
            return;
        }
        if !self.data.is_empty() {
            self.data.push(',');
        }
        self.data.push_str(word);
    }

    fn add_extension(&mut self, extension: Extension) {
        if !self.extensions.contains(&extension) {
            self.extensions.push(extension);
        }
    }

    fn add_id_map(&mut self, scope: Scope) {
        self.extensions
            .retain(|known| !matches!(known, Extension::IdMap(_)));
        self.extensions.push(Extension::IdMap(IdMap {
            scope,
            uids: Vec::new(),
            gids: Vec::new(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sys::mount_api as api;

    use super::*;
    use crate::flags as ms;

    fn parse(words: &[&str]) -> MountOptions {
        let words: Vec<_> = words.iter().map(|word| (*word).to_owned()).collect();
        MountOptions::parse(&words).unwrap()
    }

    #[test]
    fn words_have_the_effects_of_the_specification() {
        let check = |words: &[&str], expected: MountOptions| {
            assert_eq!(parse(words), expected, "{words:?}");
        };
        let none = MountOptions::none;
        check(&[], none());
        check(&["defaults", ""], none());
        check(
            &["nosuid", "noexec", "nodev"],
            MountOptions {
                flags_set: ms::NOSUID | ms::NOEXEC | ms::NODEV,
                ..none()
            },
        );
        check(
            &["rbind", "rprivate", "rw"],
            MountOptions {
                flags_set: ms::BIND | ms::REC,
                flags_clear: ms::RDONLY,
                propagation: vec![ms::PRIVATE | ms::REC],
                ..none()
            },
        );
        check(
            &["rro", "rnoatime", "rdev"],
            MountOptions {
                attrs_set: api::MOUNT_ATTR_RDONLY | api::MOUNT_ATTR_NOATIME,
                attrs_clear: api::MOUNT_ATTR_NODEV | api::MOUNT_ATTR_ATIME_MASK,
                ..none()
            },
        );
        check(
            &["rnoatime", "ratime"],
            MountOptions {
                attrs_clear: api::MOUNT_ATTR_ATIME_MASK,
                ..none()
            },
        );
        check(
            &[
                "mode=755",
                "ro",
                "acl",
                "size=65536k",
                "tmpcopyup",
                "tmpcopyup",
            ],
            MountOptions {
                flags_set: ms::RDONLY,
                data: "mode=755,acl,size=65536k".to_owned(),
                extensions: vec![Extension::TmpCopyUp],
                ..none()
            },
        );
        let map = |scope| {
            let (uids, gids) = (Vec::new(), Vec::new());
            vec![Extension::IdMap(IdMap { scope, uids, gids })]
        };
        assert_eq!(parse(&["idmap"]).extensions, map(Scope::Mount));
        assert_eq!(parse(&["idmap", "ridmap"]).extensions, map(Scope::Tree));
    }

    #[test]
    fn later_word_wins() {
        for (yes, no, flag) in [
            ("ro", "rw", ms::RDONLY),
            ("nodev", "dev", ms::NODEV),
            ("sync", "async", ms::SYNCHRONOUS),
            ("nosymfollow", "symfollow", ms::NOSYMFOLLOW),
        ] {
            assert_eq!(parse(&[no, yes]).flags_set, flag);
            assert_eq!(parse(&[no, yes]).flags_clear, 0);
            assert_eq!(parse(&[yes, no]).flags_set, 0);
            assert_eq!(parse(&[yes, no]).flags_clear, flag);
        }
    }

    #[test]
    fn words_that_no_mount_can_have_are_refused() {
        let parse = |word: String| MountOptions::parse(&[word]).unwrap_err();
        let nul = parse("a\0b".to_owned());
        assert_eq!(nul.to_string(), r#"option "a\0b" holds a NUL byte"#);
        let long = parse("x".repeat(OPTION_BYTES_MAX));
        assert!(matches!(long, OptionError::TooLong { .. }));
    }

    #[test]
    fn table_is_sorted_and_knows_each_word_once() {
        let words = crate::known_options();
        assert!(words.is_sorted());
        assert!(words.iter().all(|word| table::effect(word).is_some()));
        let mut once = words.clone();
        once.dedup();
        assert_eq!(once, words);
    }

    proptest! {
        #[test]
        fn words_set_and_clear_different_flags_and_lose_nothing(
            words in prop::collection::vec("[a-z]{1,8}=[0-9]{1,4}", 0..4),
            known in prop::collection::vec(prop::sample::select(crate::known_options()), 0..12),
        ) {
            let mut all: Vec<String> = known.iter().map(|&word| word.to_owned()).collect();
            all.extend(words.iter().cloned());
            let options = MountOptions::parse(&all).unwrap();
            prop_assert_eq!(options.flags_set & options.flags_clear, 0);
            let both = options.attrs_set & options.attrs_clear;
            prop_assert_eq!(both & !ATIME_MASK, 0);
            prop_assert!(options.data.ends_with(&words.join(",")));
        }
    }
}
