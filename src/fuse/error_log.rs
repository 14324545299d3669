//! Errors on their way to the kernel: the number a program gets, and the line a person gets.
//!
//! This is the only place that turns an [`ErrorKind`] into an errno. A program sees one of a
//! handful of numbers; the reason stands in the log, once per fault rather than once per request,
//! because a program that meets a bad block tends to ask for it again and again.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use fuser::Errno;

use crate::error::{Error, ErrorKind};
use crate::sync::lock;

/// What was being done: the same error means different things to different system calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// Looking a name up in, or listing, a directory.
    Finding,
    /// Anything about a node that was found: its attributes, its target, opening it.
    Using,
    /// Reading an open file.
    Reading,
}

/// The errno for an error. A name that is not there is `ENOENT`; but a node that *is* shown and
/// whose data is missing is damaged, which is `EIO`: `ENOENT` would make a backup program think
/// that all is well and the file merely gone.
pub(super) fn errno(error: &Error, doing: Operation) -> Errno {
    match (error.kind(), doing) {
        (_, Operation::Reading) => Errno::EIO,
        (ErrorKind::NotFound, Operation::Finding) => Errno::ENOENT,
        (ErrorKind::Denied | ErrorKind::Link, _) => Errno::EACCES,
        (ErrorKind::Unsupported, _) => Errno::EOPNOTSUPP,
        _ => Errno::EIO,
    }
}

/// A fault that was logged is not logged again for this long.
const QUIET: Duration = Duration::from_secs(30);

/// How many different faults are remembered to be quiet about.
const REMEMBERED: usize = 256;

struct Seen {
    since: Instant,
    again: u64,
}

/// Writes each fault to the log once per [`QUIET`], with the number of times it was met meanwhile.
#[derive(Default)]
pub(super) struct FaultLog {
    seen: Mutex<HashMap<String, Seen>>,
}

impl FaultLog {
    /// Logs `what: error`, for example "cannot read 4096 bytes at 0 of "vms/web/…/xvda.raw": …".
    /// The fault is recognised by its object and reason: offsets differ for every read that meets
    /// it.
    pub(super) fn report(&self, what: impl FnOnce() -> String, error: &Error) {
        let fault = format!("{}\0{}", error.object().unwrap_or(""), error.message());
        if let Some(again) = self.admit(&fault, Instant::now()) {
            let what = what();
            let kind = error.kind().as_str();
            if again == 0 {
                tracing::error!("{what}: {error} [{kind}]");
            } else {
                tracing::error!("{what}: {error} [{kind}] ({again} more of these meanwhile)");
            }
        }
    }

    /// Whether to log now, and how many were left out since the last time.
    fn admit(&self, fault: &str, now: Instant) -> Option<u64> {
        let mut seen = lock(&self.seen);
        if let Some(entry) = seen.get_mut(fault) {
            if now.duration_since(entry.since) < QUIET {
                entry.again += 1;
                return None;
            }
            let again = std::mem::take(&mut entry.again);
            entry.since = now;
            return Some(again);
        }
        if seen.len() >= REMEMBERED {
            seen.retain(|_, entry| now.duration_since(entry.since) < QUIET);
            if seen.len() >= REMEMBERED {
                // A storm of different faults: start over rather than grow.
                seen.clear();
            }
        }
        seen.insert(
            fault.to_owned(),
            Seen {
                since: now,
                again: 0,
            },
        );
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_open_files_only_ever_fail_with_eio() {
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::Denied,
            ErrorKind::Unsupported,
            ErrorKind::Changed,
            ErrorKind::Corrupt,
        ] {
            let error = Error::new(kind, "x");
            assert_eq!(errno(&error, Operation::Reading), Errno::EIO);
        }
    }

    #[test]
    fn missing_name_is_enoent_but_missing_data_is_eio() {
        let error = Error::new(ErrorKind::NotFound, "x");
        assert_eq!(errno(&error, Operation::Finding), Errno::ENOENT);
        assert_eq!(errno(&error, Operation::Using), Errno::EIO);
    }

    #[test]
    fn repeated_fault_is_counted_and_logged_again_later() {
        let log = FaultLog::default();
        let start = Instant::now();
        assert_eq!(log.admit("a", start), Some(0));
        assert_eq!(log.admit("a", start), None);
        assert_eq!(log.admit("a", start + QUIET / 2), None);
        assert_eq!(log.admit("b", start), Some(0));
        assert_eq!(log.admit("a", start + QUIET), Some(2));
    }

    #[test]
    fn different_faults_do_not_pile_up() {
        let log = FaultLog::default();
        let start = Instant::now();
        for i in 0..10 * REMEMBERED {
            assert_eq!(log.admit(&i.to_string(), start), Some(0));
        }
        assert!(log.seen.lock().unwrap().len() <= REMEMBERED);
    }
}
