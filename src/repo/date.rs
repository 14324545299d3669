//! XO's date names (`20261120T013000Z`, UTC) and their conversion to and from Unix time.
//!
//! Forty lines of calendar arithmetic (the well-known days-from-civil algorithm for the proleptic
//! Gregorian calendar) instead of a dependency: one fixed format, UTC only.

use std::time::{Duration, SystemTime};

/// Whether a name has the shape of XO's dates: eight digits, `T`, six digits, `Z`.
pub fn is_date_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    bytes.len() == 16
        && bytes[8] == b'T'
        && bytes[15] == b'Z'
        && bytes[..8]
            .iter()
            .chain(&bytes[9..15])
            .all(u8::is_ascii_digit)
}

/// Seconds since 1970 of a date name, `None` when it does not name a real moment.
pub fn unix_seconds(name: &str) -> Option<i64> {
    if !is_date_name(name) {
        return None;
    }
    let number = |range: std::ops::Range<usize>| name.get(range)?.parse::<i64>().ok();
    let (year, month, day) = (number(0..4)?, number(4..6)?, number(6..8)?);
    let (hour, minute, second) = (number(9..11)?, number(11..13)?, number(13..15)?);
    let days = days_from_civil(year, month, day);
    // Comparing back refuses the 31st of February.
    let real = civil_from_days(days) == (year, month, day);
    if !real || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

/// A point in time as `2026-11-20 01:30:00` (UTC).
pub fn format_utc(time: SystemTime) -> String {
    let seconds = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(d) => i64::try_from(d.as_secs()).unwrap_or(i64::MAX / 2),
        Err(e) => -i64::try_from(e.duration().as_secs()).unwrap_or(i64::MAX / 2),
    };
    let (year, month, day) = civil_from_days(seconds.div_euclid(86_400));
    let rest = seconds.rem_euclid(86_400);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// The moment so many milliseconds after 1970, `None` when it is negative or past the year 9999.
pub fn from_unix_millis(millis: u64) -> Option<SystemTime> {
    const YEAR_10000: u64 = 253_402_300_800_000;
    (millis < YEAR_10000).then(|| SystemTime::UNIX_EPOCH + Duration::from_millis(millis))
}

/// The moment of a date name, `None` when it is not a real one or before 1970.
pub fn system_time(name: &str) -> Option<SystemTime> {
    let seconds = u64::try_from(unix_seconds(name)?).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
}

/// The day of a date name as `2026-11-20`; the digits as they stand, even of an impossible date.
pub fn day_of(name: &str) -> Option<String> {
    is_date_name(name).then(|| format!("{}-{}-{}", &name[..4], &name[4..6], &name[6..8]))
}

/// The first eight characters of the date names of a day given as `2026-11-20`.
pub fn prefix_of_day(day: &str) -> Option<String> {
    let bytes = day.as_bytes();
    let shaped = bytes.len() == 10
        && bytes.iter().enumerate().all(|(i, b)| match i {
            4 | 7 => *b == b'-',
            _ => b.is_ascii_digit(),
        });
    shaped.then(|| day.replace('-', ""))
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn date_names_convert_to_unix_time_and_back() {
        // 1772328600 is the timestamp XO's own writer recorded for this name.
        assert_eq!(unix_seconds("20260301T013000Z"), Some(1_772_328_600));
        let time = system_time("20260301T013000Z").unwrap();
        assert_eq!(format_utc(time), "2026-03-01 01:30:00");
        for days in (-800_000..800_000).step_by(97) {
            let (y, m, d) = civil_from_days(days);
            assert_eq!(days_from_civil(y, m, d), days);
        }
    }

    #[test]
    fn impossible_dates_have_the_shape_but_no_time() {
        for name in ["20260231T000000Z", "00000000T000000Z", "99999999T999999Z"] {
            assert!(is_date_name(name));
            assert_eq!(system_time(name), None, "{name}");
        }
        for name in ["", "20260301T013000", "2026030éT13000Z", "20260301-013000Z"] {
            assert!(!is_date_name(name), "{name}");
        }
    }

    #[test]
    fn days_and_prefixes_match() {
        assert_eq!(day_of("20261119T020005Z").as_deref(), Some("2026-11-19"));
        assert_eq!(prefix_of_day("2026-11-19").as_deref(), Some("20261119"));
        for odd in ["2026-1-19", "20261119", "2026-11-1é", ""] {
            assert_eq!(prefix_of_day(odd), None);
        }
    }

    #[test]
    fn absurd_timestamps_are_no_time() {
        assert!(from_unix_millis(u64::MAX).is_none());
        assert!(from_unix_millis(0).is_some());
    }
}
