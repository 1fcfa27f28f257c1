//! What the commands write: tables for people, JSON for programs.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    time::SystemTime,
};

use serde::Serialize;

use crate::{Error, Result};

/// Writes to standard output.
pub(super) fn out(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(Error::Output)
}

/// Several lines of JSON.
pub(super) fn json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::Output(io::Error::other(error)))?;
    out(&(text + "\n"))
}

/// One line of JSON, for streams.
pub(super) fn json_line(value: &impl Serialize) -> Result<()> {
    let text =
        serde_json::to_string(value).map_err(|error| Error::Output(io::Error::other(error)))?;
    out(&(text + "\n"))
}

/// How a column is aligned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// Columns as wide as they must be.
pub(super) fn table<const N: usize>(heads: [(&str, Align); N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([heads[column].0.len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    let mut line = |cells: [&str; N]| {
        let mut line = String::new();
        for ((cell, width), (_, align)) in cells.iter().zip(widths).zip(heads) {
            let written = match align {
                Align::Left => write!(line, "{cell:<width$}  "),
                Align::Right => write!(line, "{cell:>width$}  "),
            };
            written.expect("a string takes everything");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(heads.map(|(head, _)| head));
    for row in rows {
        line(std::array::from_fn(|column| row[column].as_str()));
    }
    text
}

/// A number of bytes in units of 1024, with three digits at most: `9.8G`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["K", "M", "G", "T", "P", "E"];
    if bytes < 1024 {
        return format!("{bytes}B");
    }
    let mut unit = 0;
    let mut divisor = 1024_u64;
    while unit + 1 < UNITS.len() && bytes / divisor >= 1024 {
        divisor *= 1024;
        unit += 1;
    }
    let whole = bytes / divisor;
    let tenths = bytes % divisor * 10 / divisor;
    match whole {
        0..10 if tenths > 0 => format!("{whole}.{tenths}{}", UNITS[unit]),
        _ => format!("{whole}{}", UNITS[unit]),
    }
}

/// `used` of `limit` in percent.
pub(super) fn percent(used: u64, limit: u64) -> u64 {
    u64::try_from(u128::from(used) * 100 / u128::from(limit.max(1))).unwrap_or(u64::MAX)
}

/// `2026-01-02T03:04:05Z`
pub(super) fn time(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let check = |number: u64, expected: &str| assert_eq!(bytes(number), expected);
        check(0, "0B");
        check(1023, "1023B");
        check(1024, "1K");
        check(1536, "1.5K");
        check(10 << 20, "10M");
        check((10 << 30) - 1, "9.9G");
        check(10 << 30, "10G");
        check(u64::MAX, "15E");
    }

    #[test]
    fn shares_do_not_overflow() {
        assert_eq!(percent(1, 3), 33);
        assert_eq!(percent(u64::MAX, u64::MAX), 100);
        assert_eq!(percent(3, 2), 150);
        assert_eq!(percent(0, 0), 0);
    }

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [
            ["a".to_owned(), "1".to_owned()],
            ["long name".to_owned(), "1000".to_owned()],
        ];
        assert_eq!(
            table([("NAME", Align::Left), ("N", Align::Right)], &rows),
            "NAME          N\na             1\nlong name  1000\n"
        );
    }
}
