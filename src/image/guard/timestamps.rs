//! For which blocks of a disk's youngest image it is enough that the restore point's `<date>.json` was
//! checked to exist earlier: a comparison of timestamps.
//!
//! XO removes the `<date>.json` before it merges anything into the point's images, so a block counts
//! if that file was there after the block was fetched (see [`super::RestorePointGuard`]). On an object
//! store that would be one more request per block. But there, XO moves a block by copying it, and
//! the copy has a new time of modification. So, all times being the server's:
//!
//! 1. A block that a merge has put there was modified after the `<date>.json` was removed.
//! 2. The file was seen at a moment when the server had already told a modification at `m`, so it was
//!    removed after `m`.
//! 3. A block modified before `m` was therefore not put there by a merge.
//!
//! Servers tell whole seconds. A block modified in the very second of `m` can be trusted only if the
//! file was seen after that second was over: when two seconds have passed here since `m` was first
//! noted, or when `m` is days ago. (Neither is a comparison of two clocks that a skew of minutes
//! could spoil.)
//!
//! Servers whose clock was set right since, and mirrors that copy times, also tell times that are yet
//! to come. Those say nothing about when they were told, and would cover merges of the future:
//! they are not noted. Where it is this clock that is behind, that costs checks only.
//!
//! On file systems a merge renames blocks, which keeps their times: no timestamp there covers a block.

use std::time::{Duration, Instant, SystemTime};

/// After this, the second in which something was noted is over.
const SECOND_OVER: Duration = Duration::from_secs(2);
/// Clocks differ by less than this.
const LONG_AGO: Duration = Duration::from_secs(2 * 86_400);

/// What checks of the file cover so far. One for each chain.
#[derive(Debug, Default)]
pub(super) struct Timestamps {
    /// Blocks modified at this time or before need no further check.
    until: Option<SystemTime>,
    /// The latest time of modification that the server has told, and when it was first told.
    latest: Option<(SystemTime, Instant)>,
}

/// What a check would cover: taken before the check, given back after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim(Option<SystemTime>);

impl Timestamps {
    /// Notes a time of modification that the server has told by now, if it is not yet to come.
    pub(super) fn note(&mut self, modified: SystemTime, now: Instant, today: SystemTime) {
        let is_later = self.latest.is_none_or(|(latest, _)| latest < modified);
        if is_later && modified <= today {
            self.latest = Some((modified, now));
        }
    }

    /// Whether an object modified at this time needs no check.
    pub(super) fn covers(&self, modified: Option<SystemTime>) -> bool {
        modified.is_some_and(|m| self.until.is_some_and(|until| m <= until))
    }

    /// What a check that begins now will cover, if the file is there.
    pub(super) fn claim(&self, now: Instant, today: SystemTime) -> Claim {
        let Some((latest, since)) = self.latest else {
            return Claim(None);
        };
        let is_over = now.saturating_duration_since(since) >= SECOND_OVER
            || today.duration_since(latest).is_ok_and(|d| d >= LONG_AGO);
        Claim(match is_over {
            true => Some(latest),
            false => latest.checked_sub(Duration::from_secs(1)),
        })
    }

    /// The file was there.
    pub(super) fn seen(&mut self, claim: Claim) {
        self.until = self.until.max(claim.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_check_covers_what_was_modified_before_it() {
        let mut timestamps = Timestamps::default();
        let (now, today) = (Instant::now(), at(1000));
        assert!(!timestamps.covers(Some(at(1))));
        timestamps.note(at(900), now, today);
        timestamps.seen(timestamps.claim(now, today));
        assert!(timestamps.covers(Some(at(899))));
        // In the same second, a merge might have begun after the check.
        assert!(!timestamps.covers(Some(at(900))));
        assert!(!timestamps.covers(Some(at(950))) && !timestamps.covers(None));
        let later = now + SECOND_OVER;
        timestamps.note(at(900), later, today);
        timestamps.seen(timestamps.claim(later, today));
        assert!(timestamps.covers(Some(at(900))) && !timestamps.covers(Some(at(901))));
        // An older claim takes nothing back.
        timestamps.seen(Claim(Some(at(5))));
        assert!(timestamps.covers(Some(at(900))));
    }

    #[test]
    fn what_is_days_old_is_covered_by_one_check() {
        let mut timestamps = Timestamps::default();
        let now = Instant::now();
        timestamps.note(at(900), now, at(900) + LONG_AGO);
        timestamps.seen(timestamps.claim(now, at(900) + LONG_AGO));
        assert!(timestamps.covers(Some(at(900))));
        timestamps.seen(Timestamps::default().claim(now, at(900)));
        assert!(!timestamps.covers(Some(at(901))));
    }

    #[test]
    fn times_that_are_yet_to_come_cover_nothing() {
        let mut timestamps = Timestamps::default();
        let (now, today) = (Instant::now(), at(1000));
        timestamps.note(at(5000), now, today);
        let later = now + SECOND_OVER;
        timestamps.seen(timestamps.claim(later, today));
        // A merge of the time between would be believed.
        assert!(!timestamps.covers(Some(at(2000))) && !timestamps.covers(Some(at(1000))));
        // What others tell is noted all the same.
        timestamps.note(at(900), later, today);
        timestamps.seen(timestamps.claim(later + SECOND_OVER, today));
        assert!(timestamps.covers(Some(at(900))) && !timestamps.covers(Some(at(901))));
    }
}
