//! Keeping secrets out of `/proc/*/cmdline`: a URL with keys that was typed as an argument is
//! replaced by one without, and travels on in the environment, which only its owner can read.
//!
//! The arguments of a running process cannot be changed in safe code, so that the program starts
//! itself again, once, before it does anything else.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::config::Location;
use crate::error::{Error, Result};

/// Holds the URL whose place on the command line its secret-free form has taken.
pub(super) const HIDDEN_URL: &str = "BRFS_HIDDEN_URL";

/// Starts the program again without secrets among its arguments; returns when there are none.
/// To be called first thing in `main`.
///
/// # Errors
/// Whatever keeps the program from being started again.
pub(super) fn redact() -> Result<()> {
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let Some((args, url)) = hidden(args) else {
        return Ok(());
    };
    let error = Command::new("/proc/self/exe")
        .arg0(name)
        .args(args)
        .env(HIDDEN_URL, url)
        .exec();
    Err(Error::from_io(
        error,
        "cannot start again without secrets on the command line (use --repository-file)",
    ))
}

/// The URL that an argument stands for: itself, unless it took the place of another.
pub(super) fn revealed(argument: &str, hidden: Option<String>) -> String {
    match hidden {
        Some(url) if shown(&url).as_deref() == Some(argument) => url,
        _ => argument.to_owned(),
    }
}

/// The arguments without secrets, and the first URL that had some.
fn hidden(args: impl Iterator<Item = OsString>) -> Option<(Vec<OsString>, String)> {
    let mut found = None;
    let args = args
        .map(
            |arg| match arg.to_str().and_then(|a| Some((a, shown(a)?))) {
                Some((url, shown)) => {
                    found.get_or_insert_with(|| url.to_owned());
                    shown.into()
                }
                None => arg,
            },
        )
        .collect();
    found.map(|url| (args, url))
}

/// What to show in place of a URL that holds secrets.
fn shown(argument: &str) -> Option<String> {
    if !argument.contains("://") {
        return None;
    }
    let (location, key) = Location::parse_with_key(argument).ok()?;
    let has_secrets = match &location {
        Location::Local(_) => key.is_some(),
        Location::S3(s3) => s3.credentials.is_some() || key.is_some(),
        Location::Azure(azure) => azure.credentials.is_some() || key.is_some(),
    };
    let same = location.to_string() == argument;
    (has_secrets && !same).then(|| location.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(list: &[&str]) -> impl Iterator<Item = OsString> {
        list.iter()
            .map(OsString::from)
            .collect::<Vec<_>>()
            .into_iter()
    }

    #[test]
    fn urls_with_secrets_are_replaced_and_found_again() {
        let url = "s3://AKIA:sesame@h.example/bucket/dir?x=1#region";
        let (args, found) = hidden(args(&["mount", url, "/mnt"])).unwrap();
        assert_eq!(args, ["mount", "s3://h.example/bucket/dir", "/mnt"]);
        assert_eq!(found, url);
        assert_eq!(revealed("s3://h.example/bucket/dir", Some(found)), url);
    }

    #[test]
    fn everything_else_stays() {
        assert!(hidden(args(&["mount", "/srv/br", "s3://bucket/dir", "x"])).is_none());
        assert_eq!(revealed("/srv", Some("s3://a:b@h/c".into())), "/srv");
        assert_eq!(revealed("/srv", None), "/srv");
    }
}
