//! Properties of a container's scope that its annotations name: `org.systemd.property.NAME`, with a value in
//! GVariant's text format, as with runc. Pure.

use std::collections::BTreeMap;

use cgroups::Property;
use cgroups::properties::Value;

use crate::{Error, Result};

/// Before the name of a property.
pub(crate) const PREFIX: &str = "org.systemd.property.";

/// What a scope has of its container alone: where it lies, who is in it, and how it is known again.
const OWN: [&str; 4] = ["Slice", "Delegate", "PIDs", "Description"];

/// The properties that these annotations name. `NAMESec` is a number of seconds for `NAMEUSec`.
///
/// # Errors
/// [`Error::Usage`] for a name that is none or that of a property of [`OWN`], and a value that is no such text.
pub(crate) fn properties(annotations: &BTreeMap<String, String>) -> Result<Vec<Property>> {
    let named = annotations
        .iter()
        .filter_map(|(key, text)| Some((key, key.strip_prefix(PREFIX)?, text)));
    named
        .map(|(key, name, text)| {
            let wrong = |why: &str| Error::Usage(format!("annotations.{key}={text:?}: {why}"));
            if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
                return Err(wrong("a property's name has letters only, at least 3"));
            }
            if OWN.contains(&name) {
                return Err(wrong("the driver sets this property itself"));
            }
            let value = value(text).ok_or_else(|| wrong(EXPECTED))?;
            match name.strip_suffix("Sec") {
                Some(unit) if unit.ends_with(|c: char| c.is_ascii_lowercase()) => {
                    let value = microseconds(&value).ok_or_else(|| wrong(NO_SECONDS))?;
                    Ok((format!("{unit}USec"), value))
                }
                _ => Ok((name.to_owned(), value)),
            }
        })
        .collect()
}

const EXPECTED: &str = "the value is none of true, false, a number with or without its type before it (int32, \
                        uint32, int64, uint64, double, byte, int16, uint16), 'text', ['text', ..]";

const NO_SECONDS: &str = "the value is no number of seconds";

/// GVariant's text format, but for what no property of a scope has: tuples, dictionaries, variants.
fn value(text: &str) -> Option<Value> {
    let text = text.trim();
    match text {
        "true" => return Some(Value::Boolean(true)),
        "false" => return Some(Value::Boolean(false)),
        _ => {}
    }
    if let Some(inside) = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')) {
        return texts(inside).map(Value::Texts);
    }
    if text.starts_with(['\'', '"']) {
        let (found, rest) = quoted(text)?;
        return Some(Value::Text(found)).filter(|_| rest.trim().is_empty());
    }
    let Some((kind, number)) = text.split_once(char::is_whitespace) else {
        // A number without a type is an int32, or a double when it has a point.
        let int = text.parse().ok().map(Value::Int32);
        return int.or_else(|| double(text));
    };
    let number = number.trim();
    match kind {
        "byte" => number.parse().ok().map(Value::Byte),
        "int16" => number.parse().ok().map(Value::Int16),
        "uint16" => number.parse().ok().map(Value::Uint16),
        "int32" => number.parse().ok().map(Value::Int32),
        "uint32" => number.parse().ok().map(Value::Uint32),
        "int64" => number.parse().ok().map(Value::Int64),
        "uint64" => number.parse().ok().map(Value::Uint64),
        "double" => number.parse().ok().map(Value::Double),
        "boolean" => number.parse().ok().map(Value::Boolean),
        "string" => value(number).filter(|found| matches!(found, Value::Text(_))),
        _ => None,
    }
}

fn double(text: &str) -> Option<Value> {
    let number = text.parse().ok().filter(|_| text.contains('.'));
    number.map(Value::Double)
}

/// `'a', "b"`
fn texts(inside: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut rest = inside.trim();
    while !rest.is_empty() {
        let (text, after) = quoted(rest)?;
        found.push(text);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(next) => next.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(found)
}

/// A text in quotes of either kind, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut characters = text.char_indices();
    let (_, quote) = characters.next().filter(|(_, c)| matches!(c, '\'' | '"'))?;
    let mut found = String::new();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => found.push(match characters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other => other,
            }),
            _ if character == quote => return Some((found, &text[at + 1..])),
            _ => found.push(character),
        }
    }
    None
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a double too large for 64 bits becomes the largest number, which systemd takes for ever"
)]
fn microseconds(value: &Value) -> Option<Value> {
    let whole = match value {
        Value::Byte(seconds) => Some(u64::from(*seconds)),
        Value::Uint16(seconds) => Some(u64::from(*seconds)),
        Value::Uint32(seconds) => Some(u64::from(*seconds)),
        Value::Uint64(seconds) => Some(*seconds),
        Value::Int16(seconds) => u64::try_from(*seconds).ok(),
        Value::Int32(seconds) => u64::try_from(*seconds).ok(),
        Value::Int64(seconds) => u64::try_from(*seconds).ok(),
        Value::Double(seconds) if *seconds >= 0.0 => {
            return Some(Value::Uint64((seconds * 1_000_000.0) as u64));
        }
        _ => None,
    };
    Some(Value::Uint64(whole?.saturating_mul(1_000_000)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, text: &str) -> Result<Vec<Property>> {
        properties(&[(key.to_owned(), text.to_owned())].into())
    }

    #[test]
    fn values_are_those_of_gvariants_text() {
        let texts = |texts: &[&str]| Value::Texts(texts.iter().map(|&it| it.into()).collect());
        for (text, expected) in [
            ("true", Value::Boolean(true)),
            ("7", Value::Int32(7)),
            ("-7", Value::Int32(-7)),
            ("uint64 123456789", Value::Uint64(123_456_789)),
            ("uint32  4", Value::Uint32(4)),
            ("1.5", Value::Double(1.5)),
            (
                "'inactive-or-failed'",
                Value::Text("inactive-or-failed".into()),
            ),
            ("\"it's\"", Value::Text("it's".into())),
            (r"'a\'b'", Value::Text("a'b".into())),
            ("string 'x'", Value::Text("x".into())),
            ("['a.service', \"b\"]", texts(&["a.service", "b"])),
            ("[]", texts(&[])),
        ] {
            let found = one("org.systemd.property.Example", text).unwrap();
            assert_eq!(found, [("Example".to_owned(), expected)], "{text}");
        }
    }

    #[test]
    fn seconds_become_microseconds() {
        for (text, microseconds) in [
            ("3", 3_000_000),
            ("1.5", 1_500_000),
            ("uint64 2", 2_000_000),
        ] {
            let found = one("org.systemd.property.TimeoutStopSec", text).unwrap();
            let expected = ("TimeoutStopUSec".to_owned(), Value::Uint64(microseconds));
            assert_eq!(found, [expected], "{text}");
        }
        assert!(one("org.systemd.property.TimeoutStopSec", "'x'").is_err());
        assert!(one("org.systemd.property.TimeoutStopSec", "-1").is_err());
        let kept = one("org.systemd.property.TimeoutStopUSec", "uint64 5").unwrap();
        assert_eq!(kept, [("TimeoutStopUSec".to_owned(), Value::Uint64(5))]);
    }

    #[test]
    fn what_is_no_property_is_refused_with_its_annotation() {
        for (key, text) in [
            ("org.systemd.property.A", "1"),
            ("org.systemd.property.Exec-Start", "1"),
            ("org.systemd.property.", "1"),
            ("org.systemd.property.Slice", "'other.slice'"),
            ("org.systemd.property.Delegate", "false"),
            ("org.systemd.property.PIDs", "1"),
            ("org.systemd.property.Description", "'mine'"),
            ("org.systemd.property.Example", "word"),
            ("org.systemd.property.Example", "'open"),
            ("org.systemd.property.Example", "'a' b"),
            ("org.systemd.property.Example", "['a' 'b']"),
            ("org.systemd.property.Example", "uint64 -1"),
            ("org.systemd.property.Example", "(1, 2)"),
        ] {
            let error = one(key, text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("annotations.{key}=")), "{error}");
        }
        assert!(one("org.example", "word").unwrap().is_empty());
    }
}
