//! Amounts as people write them: sizes (`512m`) and lengths of time (`1m30s`), by the rules of
//! runc's own options.

use std::time::Duration;

/// Bytes: a number, perhaps with a fraction, and a unit of a power of 1024 (`b`, `k`, `m`, `g`,
/// `t`, `p`, with `i` and `b` after it as one likes). -1 is no limit.
pub(crate) fn bytes(text: &str) -> Result<i64, String> {
    if text == "-1" {
        return Ok(-1);
    }
    let wrong = || format!("{text:?} is no size");
    let lower = text.to_ascii_lowercase();
    let end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let unit = unit.strip_suffix('b').unwrap_or(unit);
    let shift = match unit.strip_suffix('i').unwrap_or(unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(wrong()),
    };
    scaled(number, 1 << shift)
        .and_then(|bytes| i64::try_from(bytes).ok())
        .ok_or_else(wrong)
}

/// A length of time: numbers, perhaps with fractions, each with its unit (`ns`, `us`, `ms`, `s`,
/// `m`, `h`). More than nothing.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no length of time");
    let (mut rest, mut total_ns) = (text, 0_u64);
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(end);
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let unit_ns = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(wrong()),
        };
        let part_ns = scaled(number, unit_ns).ok_or_else(wrong)?;
        total_ns = total_ns.checked_add(part_ns).ok_or_else(wrong)?;
        rest = tail;
    }
    if total_ns == 0 {
        return Err("duration interval must be greater than 0".to_owned());
    }
    Ok(Duration::from_nanos(total_ns))
}

/// A decimal number times a unit, rounded down. Integers alone: no size is too large to be exact.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole = match whole {
        "" => 0,
        digits => digits.parse::<u64>().ok()?.checked_mul(unit)?,
    };
    // Digits beyond these are worth less than the smallest unit.
    let digits = &fraction[..fraction.len().min(18)];
    let part = match digits {
        "" => 0,
        _ => {
            let value = digits.parse::<u128>().ok()? * u128::from(unit);
            u64::try_from(value / 10_u128.pow(u32::try_from(digits.len()).ok()?)).ok()?
        }
    };
    whole.checked_add(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("64b", 64),
            ("1k", 1024),
            ("1KB", 1024),
            ("1KiB", 1024),
            ("512M", 512 << 20),
            ("1.5g", 3 << 29),
            ("2 t", 2 << 40),
            ("1P", 1 << 50),
            ("-1", -1),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in [
            "",
            "m",
            ".",
            "-2",
            "1x",
            "1mm",
            "1 2",
            "0x10",
            "1.2.3",
            "9223372036854775808",
            "8192p",
        ] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lengths_of_time_add_up() {
        for (text, ms) in [
            ("5s", 5000),
            ("100ms", 100),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("0.5s", 500),
            ("2000us", 2),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "0s", "5", "s", "-5s", "5d", "1s5", "99999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}
