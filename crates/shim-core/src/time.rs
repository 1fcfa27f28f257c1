//! Time as the wire and the log want it. Reads no clock.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// In a second.
const NANOSECONDS: u64 = 1_000_000_000;

/// Nanoseconds since 1970; 0 before it.
pub(crate) fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// The opposite of [`nanoseconds`].
pub(crate) fn from_nanoseconds(nanoseconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanoseconds)
}

/// `2026-01-02T03:04:05.678901234Z`, always with nine digits, as containerd logs it.
pub(crate) fn rfc3339_fixed(time: SystemTime) -> String {
    let nanoseconds = nanoseconds(time);
    let fraction = nanoseconds % NANOSECONDS;
    format!("{}.{fraction:09}Z", to_the_second(nanoseconds))
}

/// Nanoseconds since 1970 as `2026-01-02T03:04:05.5Z` (RFC 3339, UTC): trailing zeros of the
/// fraction are left out, as Go does.
#[must_use]
pub fn rfc3339(nanoseconds_since_1970: u64) -> String {
    let seconds = to_the_second(nanoseconds_since_1970);
    let fraction = match nanoseconds_since_1970 % NANOSECONDS {
        0 => String::new(),
        fraction => format!(".{fraction:09}"),
    };
    format!("{seconds}{}Z", fraction.trim_end_matches('0'))
}

/// `2026-01-02T03:04:05`
fn to_the_second(nanoseconds: u64) -> String {
    let seconds = nanoseconds / NANOSECONDS;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Days since 1970-01-01 as year, month, day (Howard Hinnant, "chrono-compatible low-level date
/// algorithms").
fn civil(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |nanoseconds, expected: &str| {
            assert_eq!(rfc3339_fixed(from_nanoseconds(nanoseconds)), expected);
        };
        check(0, "1970-01-01T00:00:00.000000000Z");
        check(951_782_399_000_000_001, "2000-02-28T23:59:59.000000001Z");
        check(951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z");
        check(1_798_761_599_999_999_999, "2026-12-31T23:59:59.999999999Z");
        check(4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn zeros_at_the_end_are_left_out_where_go_does() {
        for (nanoseconds, expected) in [
            (0, "1970-01-01T00:00:00Z"),
            (1_500_000_000, "1970-01-01T00:00:01.5Z"),
            (1_000_000_010, "1970-01-01T00:00:01.00000001Z"),
            (1_795_533_120_000_000_000, "2026-11-24T15:12:00Z"),
        ] {
            assert_eq!(rfc3339(nanoseconds), expected);
        }
    }
}
