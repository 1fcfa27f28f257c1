//! Signals by the words people use: `KILL`, `SIGKILL`, `9`, `RTMIN+3`.

use std::str::FromStr;

use sys::Signal;

/// What asks programs to end, a container's stop signal by rule.
pub const STOPS: [i32; 4] = [
    Signal::SIGTERM as i32,
    Signal::SIGINT as i32,
    Signal::SIGQUIT as i32,
    Signal::SIGPWR as i32,
];

/// First and last real-time signal a program can use (signal(7); libc keeps two for itself).
const RTMIN: i32 = 34;
const RTMAX: i32 = 64;

/// The number of a signal; 0 stands for none.
#[must_use]
pub fn parse(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return Some(number).filter(|number| (0..=RTMAX).contains(number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = real_time(name) {
        return Some(number);
    }
    let same = match name {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        other => other,
    };
    let signal = Signal::from_str(&format!("SIG{same}")).ok()?;
    Some(signal as i32)
}

fn real_time(name: &str) -> Option<i32> {
    let (base, offset) = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(offset), _) => (RTMIN, offset),
        (_, Some(offset)) => (RTMAX, offset),
        _ => return None,
    };
    let offset: i32 = if offset.is_empty() {
        0
    } else {
        offset.parse().ok()?
    };
    base.checked_add(offset)
        .filter(|number| (RTMIN..=RTMAX).contains(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_numbers_name_signals() {
        for (text, number) in [
            ("TERM", 15),
            ("sigkill", 9),
            ("SIGHUP", 1),
            ("9", 9),
            ("0", 0),
            ("37", 37),
            ("SIGRTMIN+3", 37),
            ("RTMAX-1", 63),
            ("RTMIN", 34),
            ("SIGCLD", 17),
        ] {
            assert_eq!(parse(text), Some(number), "{text}");
        }
        for text in [
            "",
            "SIG",
            "NOPE",
            "65",
            "-1",
            "RTMAX+1",
            "RTMIN-1",
            "RTMIN+2147483647",
            "SIGSIGKILL",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
