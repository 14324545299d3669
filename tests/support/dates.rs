//! XO's file names are dates, `%Y%m%dT%H%M%SZ` in UTC; this turns seconds into them and back.

/// 2026-03-01 01:30:00 UTC, where generated series of restore points start unless told otherwise.
pub const SERIES_START_S: u64 = 1_772_328_600;

/// Seconds since 1970 of the VHD epoch, 2000-01-01 00:00:00 UTC.
pub const VHD_EPOCH_S: u64 = 946_684_800;

/// Gregorian date of a day number counted from 1970-01-01 (Howard Hinnant's `civil_from_days`).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// `20260301T013000Z` for a number of seconds since 1970.
pub fn date_name(epoch_s: u64) -> String {
    let (year, month, day) = civil_from_days(epoch_s / 86_400);
    let second = epoch_s % 86_400;
    format!(
        "{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z",
        second / 3_600,
        second / 60 % 60,
        second % 60
    )
}

/// The same instant as XAPI writes it: `20260301T01:30:00Z`.
pub fn xapi_date(epoch_s: u64) -> String {
    let name = date_name(epoch_s);
    format!("{}:{}:{}Z", &name[..11], &name[11..13], &name[13..15])
}

/// Seconds since 1970 of a name made by [`date_name`]; `None` for anything else.
pub fn epoch_s(name: &str) -> Option<u64> {
    let digits = |from: usize, to: usize| name.get(from..to)?.parse::<u64>().ok();
    let (year, month, day) = (digits(0, 4)?, digits(4, 6)?, digits(6, 8)?);
    let time = digits(9, 11)? * 3_600 + digits(11, 13)? * 60 + digits(13, 15)?;
    // The inverse by search: exact, short, and used a few times only.
    let guess = (year.checked_sub(1970)? * 365 + (month.max(1) - 1) * 28).saturating_sub(1);
    (guess..guess + 120)
        .find(|&days| civil_from_days(days) == (year, month, day))
        .map(|days| days * 86_400 + time)
}
