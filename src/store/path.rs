//! Paths within a repository: relative, normalised, unable to climb out.

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

/// A `/`-separated path relative to the repository's root: no leading or trailing slash, no empty,
/// `.` or `..` component, no NUL. The empty path is the root.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct StorePath(String);

impl StorePath {
    /// The repository's root.
    pub fn root() -> Self {
        StorePath(String::new())
    }

    /// Parses a path that must already stay within the root.
    pub fn new(path: &str) -> Result<Self> {
        Self::root().join(path)
    }

    /// Resolves `relative` from this directory, as XO resolves aliases and parent names. A leading
    /// `/` means the repository's root (XO's own absolute paths are rooted there).
    ///
    /// # Errors
    /// `Denied` when the path climbs above the root; `Corrupt` when it holds a NUL.
    pub fn join(&self, relative: &str) -> Result<Self> {
        if relative.contains('\0') {
            return Err(Error::corrupt("path holds a NUL byte"));
        }
        let mut parts: Vec<&str> = if relative.starts_with('/') {
            Vec::new()
        } else {
            self.components().collect()
        };
        for part in relative.split('/') {
            match part {
                "" | "." => {}
                ".." => {
                    if parts.pop().is_none() {
                        return Err(Error::new(
                            ErrorKind::Denied,
                            format!("path {relative:?} leads out of the repository"),
                        )
                        .with_object(self));
                    }
                }
                _ => parts.push(part),
            }
        }
        Ok(StorePath(parts.join("/")))
    }

    /// Appends one name. The name comes from a listing or is a constant.
    pub fn child(&self, name: &str) -> Self {
        debug_assert!(!name.contains('/') && !name.is_empty() && name != "..");
        if self.0.is_empty() {
            StorePath(name.to_owned())
        } else {
            StorePath(format!("{}/{name}", self.0))
        }
    }

    /// The directory that holds this path; the root's parent is the root.
    pub fn parent(&self) -> Self {
        match self.0.rfind('/') {
            Some(at) => StorePath(self.0[..at].to_owned()),
            None => Self::root(),
        }
    }

    /// The last component, empty for the root.
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }

    /// The components, none for the root.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/').filter(|p| !p.is_empty())
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "/" } else { &self.0 })
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn join_normalises_and_confines() {
        let dir = StorePath::new("/a//b/./c/").unwrap();
        assert_eq!(dir.as_str(), "a/b/c");
        assert_eq!(dir.join("../x.vhd").unwrap().as_str(), "a/b/x.vhd");
        assert_eq!(dir.join("/x").unwrap().as_str(), "x");
        assert_eq!(
            dir.join("../../../../etc/shadow").unwrap_err().kind(),
            ErrorKind::Denied
        );
        assert!(dir.join("a\0b").is_err());
        assert_eq!(dir.parent().as_str(), "a/b");
        assert_eq!(StorePath::root().parent(), StorePath::root());
        assert_eq!(dir.file_name(), "c");
    }
}
