//! How long a look at a restore point's `<date>.json` vouches for blocks of its youngest image.
//!
//! XO removes the `<date>.json` before it merges anything into the point's images, so a block counts
//! if that file was there after the block was fetched (see [`super::disk::DiskGuard`]). On an object
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
//! heard of, or when `m` is days ago. (Neither is a comparison of two clocks that a skew of minutes
//! could spoil.)
//!
//! Servers whose clock was set right since, and mirrors that copy times, also tell times that are yet
//! to come. Those say nothing about when they were told, and would vouch for merges of the future:
//! they are not heard. Where it is this clock that is behind, that costs looks only.
//!
//! On file systems a merge renames blocks, which keeps their times: nothing there vouches.

use std::time::{Duration, Instant, SystemTime};

/// After this, the second in which something was heard of is over.
const SECOND_OVER: Duration = Duration::from_secs(2);
/// Clocks differ by less than this.
const LONG_AGO: Duration = Duration::from_secs(2 * 86_400);

/// What has been vouched for so far. One for each chain.
#[derive(Debug, Default)]
pub(super) struct Vouched {
    /// Blocks modified at this time or before need no further look.
    until: Option<SystemTime>,
    /// The latest time of modification heard of, and when it was first heard of.
    heard: Option<(SystemTime, Instant)>,
}

/// What a look would vouch for: taken before the look, given back after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim(Option<SystemTime>);

impl Vouched {
    /// Notes a time of modification that the server has told by now, if it is not yet to come.
    pub(super) fn hear(&mut self, modified: SystemTime, now: Instant, today: SystemTime) {
        let is_later = self.heard.is_none_or(|(latest, _)| latest < modified);
        if is_later && modified <= today {
            self.heard = Some((modified, now));
        }
    }

    /// Whether an object modified at this time needs no look.
    pub(super) fn covers(&self, modified: Option<SystemTime>) -> bool {
        modified.is_some_and(|m| self.until.is_some_and(|until| m <= until))
    }

    /// What a look that begins now will vouch for, if the file is there.
    pub(super) fn claim(&self, now: Instant, today: SystemTime) -> Claim {
        let Some((latest, since)) = self.heard else {
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
    fn a_look_vouches_for_what_was_modified_before_it() {
        let mut vouched = Vouched::default();
        let (now, today) = (Instant::now(), at(1000));
        assert!(!vouched.covers(Some(at(1))));
        vouched.hear(at(900), now, today);
        vouched.seen(vouched.claim(now, today));
        assert!(vouched.covers(Some(at(899))));
        // In the same second, a merge might have begun after the look.
        assert!(!vouched.covers(Some(at(900))));
        assert!(!vouched.covers(Some(at(950))) && !vouched.covers(None));
        let later = now + SECOND_OVER;
        vouched.hear(at(900), later, today);
        vouched.seen(vouched.claim(later, today));
        assert!(vouched.covers(Some(at(900))) && !vouched.covers(Some(at(901))));
        // An older claim takes nothing back.
        vouched.seen(Claim(Some(at(5))));
        assert!(vouched.covers(Some(at(900))));
    }

    #[test]
    fn what_is_days_old_is_covered_by_one_look() {
        let mut vouched = Vouched::default();
        let now = Instant::now();
        vouched.hear(at(900), now, at(900) + LONG_AGO);
        vouched.seen(vouched.claim(now, at(900) + LONG_AGO));
        assert!(vouched.covers(Some(at(900))));
        vouched.seen(Vouched::default().claim(now, at(900)));
        assert!(!vouched.covers(Some(at(901))));
    }

    #[test]
    fn times_that_are_yet_to_come_vouch_for_nothing() {
        let mut vouched = Vouched::default();
        let (now, today) = (Instant::now(), at(1000));
        vouched.hear(at(5000), now, today);
        let later = now + SECOND_OVER;
        vouched.seen(vouched.claim(later, today));
        // A merge of the time between would be believed.
        assert!(!vouched.covers(Some(at(2000))) && !vouched.covers(Some(at(1000))));
        // What others tell is heard all the same.
        vouched.hear(at(900), later, today);
        vouched.seen(vouched.claim(later + SECOND_OVER, today));
        assert!(vouched.covers(Some(at(900))) && !vouched.covers(Some(at(901))));
    }
}
