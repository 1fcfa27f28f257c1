//! Configuration files: TOML into closed structs. A file, the files of `conf.d` beside it over
//! it, key by key; what the caller takes from flags comes last. Says of every refusal in which
//! file and at which key. It knows no key by itself: the structs do.

use std::{
    collections::BTreeMap,
    fmt,
    fs::{self, File},
    io::{self, Read},
    ops::RangeInclusive,
    path::{Path, PathBuf},
};

use serde::{
    de::{self, DeserializeOwned, IntoDeserializer, Visitor, value},
    forward_to_deserialize_any,
};
use toml::{Table, Value};

use super::suggestion;
use crate::{Error, Result};

/// Nobody's configuration is longer.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Whether the main file has to be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// It was named by somebody.
    Required,
    /// It is looked for at its usual place.
    Optional,
}

/// Reads the file that somebody named, or the usual one if there is one, and `conf.d/*.toml` beside it
/// in the order of their names. Tables are merged, any other value replaces the earlier one.
///
/// # Errors
/// [`Error::Io`] for a file that cannot be read; [`Error::Invalid`] names file, key and reason.
/// Structs that say `#[serde(deny_unknown_fields)]` have their unknown keys refused with the
/// nearest known one.
pub fn read<T: DeserializeOwned>(named: Option<&Path>, usual: &Path) -> Result<T> {
    match named {
        Some(file) => read_merged(file, Presence::Required),
        None => read_merged(usual, Presence::Optional),
    }
}

/// Refuses a number that is out of its bounds.
///
/// # Errors
/// [`Error::Invalid`] names the key.
pub fn bounded(key: &str, value: u64, bounds: RangeInclusive<u64>) -> Result<()> {
    if bounds.contains(&value) {
        return Ok(());
    }
    let (min, max) = bounds.into_inner();
    Err(Error::Invalid(format!(
        "{key} is {value}; from {min} to {max} is taken"
    )))
}

fn read_merged<T: DeserializeOwned>(file: &Path, presence: Presence) -> Result<T> {
    let mut merged = Merged::default();
    match text_of(file) {
        Ok(text) => merged.add(file, &text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && presence == Presence::Optional => {
        }
        Err(error) => return Err(Error::io("read", file)(error)),
    }
    for part in parts(&file.with_file_name("conf.d"))? {
        let text = text_of(&part).map_err(Error::io("read", &part))?;
        merged.add(&part, &text)?;
    }
    merged.into_struct(file)
}

fn text_of(file: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(file)?
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("longer than {FILE_BYTES_MAX} bytes"),
        ));
    }
    Ok(text)
}

fn parts(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("list", directory)(error)),
    };
    let mut parts = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("list", directory))?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            parts.push(path);
        }
    }
    parts.sort();
    Ok(parts)
}

/// Several files as one, and which file each value came from.
#[derive(Debug, Default)]
struct Merged {
    table: Table,
    origins: BTreeMap<String, PathBuf>,
}

impl Merged {
    fn add(&mut self, file: &Path, text: &str) -> Result<()> {
        let table: Table = toml::from_str(text).map_err(|error| {
            Error::Invalid(format!(
                "{}: {}",
                file.display(),
                error.to_string().trim_end()
            ))
        })?;
        merge(&mut self.table, table, "", &mut |key| {
            self.origins.insert(key, file.to_owned());
        });
        Ok(())
    }

    fn into_struct<T: DeserializeOwned>(self, file: &Path) -> Result<T> {
        let Self { table, origins } = self;
        serde_path_to_error::deserialize(Node(Value::Table(table))).map_err(|error| {
            let mut key = error.path().to_string();
            let refusal = error.into_inner();
            if let Some(unknown) = &refusal.unknown_field {
                key = match key.strip_suffix(unknown.as_str()) {
                    // The path ends with the unknown key already.
                    Some(before) if before.is_empty() || before.ends_with('.') => key,
                    _ if key == "." => unknown.clone(),
                    _ => format!("{key}.{unknown}"),
                };
            }
            let origin = origin(&origins, &key).unwrap_or(file);
            let key = if key == "." {
                String::new()
            } else {
                format!("{key}: ")
            };
            Error::Invalid(format!("{}: {key}{refusal}", origin.display()))
        })
    }
}

fn merge(into: &mut Table, from: Table, prefix: &str, note: &mut impl FnMut(String)) {
    for (key, value) in from {
        let path = format!("{prefix}{key}");
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => {
                merge(old, new, &format!("{path}."), note);
            }
            (_, Value::Table(new)) => {
                let mut fresh = Table::new();
                note(path.clone());
                merge(&mut fresh, new, &format!("{path}."), note);
                into.insert(key, Value::Table(fresh));
            }
            (_, value) => {
                note(path);
                into.insert(key, value);
            }
        }
    }
}

/// The file of the longest known beginning of `key`: `rules[2].size` came with `rules`.
fn origin<'a>(origins: &'a BTreeMap<String, PathBuf>, key: &str) -> Option<&'a Path> {
    let mut key = key;
    loop {
        if let Some(file) = origins.get(key) {
            return Some(file);
        }
        key = &key[..key.rfind(['.', '['])?];
    }
}

/// Why a value was not taken.
#[derive(Debug)]
struct Refusal {
    message: String,
    unknown_field: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}

impl de::Error for Refusal {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self {
            message: message.to_string(),
            unknown_field: None,
        }
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self {
            message: format!("unknown key; {}", suggestion(field, expected)),
            unknown_field: Some(field.to_owned()),
        }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::custom(format_args!(
            "unknown value {variant:?}; known are {}",
            expected.join(", ")
        ))
    }
}

/// A TOML value as serde's source whose errors are [`Refusal`]s.
struct Node(Value);

impl<'de> IntoDeserializer<'de, Refusal> for Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> de::Deserializer<'de> for Node {
    type Error = Refusal;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::String(text) => visitor.visit_string(text),
            Value::Integer(number) => visitor.visit_i64(number),
            Value::Float(number) => visitor.visit_f64(number),
            Value::Boolean(truth) => visitor.visit_bool(truth),
            Value::Datetime(time) => visitor.visit_string(time.to_string()),
            Value::Array(values) => {
                visitor.visit_seq(value::SeqDeserializer::new(values.into_iter().map(Node)))
            }
            Value::Table(table) => visitor.visit_map(value::MapDeserializer::new(
                table.into_iter().map(|(key, value)| (key, Node(value))),
            )),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Refusal> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Refusal> {
        match self.0 {
            Value::String(text) => {
                let word: value::StringDeserializer<Refusal> = text.into_deserializer();
                word.deserialize_enum(name, variants, visitor)
            }
            other => Err(de::Error::custom(format_args!(
                "a {} was given; known are {}",
                other.type_str(),
                variants.join(", ")
            ))),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Example {
        root: PathBuf,
        #[serde(default)]
        log: Log,
        #[serde(default)]
        rules: Vec<Rule>,
        limit: Option<u8>,
    }

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Log {
        level: Level,
        format: String,
    }

    #[derive(Debug, Default, PartialEq, Eq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Level {
        #[default]
        Info,
        Debug,
    }

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rule {
        size: u64,
    }

    /// Writes each file and reads them as one.
    fn read_all(files: &[(&str, &str)]) -> Result<Example> {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("conf.d")).unwrap();
        for (name, text) in files {
            fs::write(directory.path().join(name), text).unwrap();
        }
        read(None, &directory.path().join("config.toml"))
    }

    #[test]
    fn later_files_replace_keys_and_keep_the_others() {
        let example = read_all(&[
            (
                "config.toml",
                "root = '/a'\n[log]\nlevel = 'info'\nformat = 'text'\n[[rules]]\nsize = 1",
            ),
            ("conf.d/20.toml", "[log]\nlevel = 'debug'"),
            ("conf.d/10.toml", "root = '/b'\n[log]\nlevel = 'info'"),
            ("conf.d/ignored.txt", "no = 'toml"),
        ])
        .unwrap();
        assert_eq!(example.root, Path::new("/b"));
        assert_eq!(example.log.level, Level::Debug);
        assert_eq!(example.log.format, "text");
        assert_eq!(example.rules, [Rule { size: 1 }]);
        assert_eq!(example.limit, None);
    }

    #[test]
    fn refusals_name_the_file_the_key_and_the_reason() {
        let main = ("config.toml", "root = '/a'");
        let check = |part: &str, expected: &[&str]| {
            let error = read_all(&[main, ("conf.d/10.toml", part)]).unwrap_err();
            let message = error.to_string();
            for word in expected {
                assert!(message.contains(word), "{word:?} is not in {message:?}");
            }
        };
        check("rot = 1", &["conf.d/10.toml: rot: unknown key", "\"root\""]);
        check(
            "[log]\nlevle = 'info'",
            &["conf.d/10.toml: log.levle: ", "\"level\""],
        );
        check(
            "[[rules]]\nsize = 1\n[[rules]]\nsiez = 2",
            &["conf.d/10.toml: rules[1].siez: ", "\"size\""],
        );
        check(
            "zebra = 1",
            &[
                "conf.d/10.toml: zebra: ",
                "known are root, log, rules, limit",
            ],
        );
        check("root = 7", &["conf.d/10.toml: root: ", "integer `7`"]);
        check("limit = 256", &["conf.d/10.toml: limit: ", "256"]);
        check("limit = -1", &["conf.d/10.toml: limit: ", "-1"]);
        check(
            "[log]\nlevel = 'loud'",
            &["conf.d/10.toml: log.level: ", "\"loud\"", "info, debug"],
        );
        check(
            "[log]\nlevel = 3",
            &["conf.d/10.toml: log.level: ", "info, debug"],
        );
        check("root = ", &["conf.d/10.toml: ", "line 1"]);
        check("[[rules]]\nsize = '1'", &["rules[0].size", "string"]);
    }

    #[test]
    fn key_that_is_missing_or_set_in_the_main_file_is_told_with_that_file() {
        let check = |text: &str, expected: &str| {
            let message = read_all(&[("config.toml", text)]).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("", "config.toml: missing field `root`");
        check("root = '/a'\nlimit = 'x'", "config.toml: limit: ");
    }

    #[test]
    fn main_file_may_be_missing_only_when_nobody_named_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        let error = read::<Example>(Some(&file), &file).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        let error = read::<Example>(None, &file).unwrap_err();
        assert!(error.to_string().contains("missing field"), "{error}");
    }

    #[test]
    fn endless_file_is_not_read_to_its_end() {
        let error = read_merged::<Example>(Path::new("/dev/zero"), Presence::Required).unwrap_err();
        let Error::Io { source, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!(source.kind(), io::ErrorKind::FileTooLarge);
    }
}
