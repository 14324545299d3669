//! Whether a repository is encrypted, as its `encryption.json` tells.

use super::json::{self, Keep};
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Store, StorePath, Validity};

/// The clear-text file that names the algorithm; absent on clear and on old repositories.
pub const ENCRYPTION_FILE: &str = "encryption.json";
const MAX_BYTES: u64 = 64 << 10;

/// The algorithm a repository is encrypted with, `None` when it is not.
///
/// # Errors
/// `Corrupt` when the file is there but does not name an algorithm; otherwise as the storage says.
pub fn encryption_algorithm(store: &dyn Store) -> Result<Option<String>> {
    static SCHEMA: Keep = Keep::Fields(&[("algorithm", Keep::Scalar)]);
    let path = StorePath::root().child(ENCRYPTION_FILE);
    let data = match store.read(&path, MAX_BYTES, Validity::Ask) {
        Ok((data, _)) => data,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let value = json::parse(&data, &SCHEMA)
        .map_err(|e| Error::corrupt(format!("is not valid JSON: {e}")).with_object(&path))?;
    match value.get("algorithm").and_then(|a| a.as_str()) {
        Some("none") => Ok(None),
        Some(algorithm) => Ok(Some(algorithm.to_owned())),
        None => Err(Error::corrupt("does not name an algorithm").with_object(&path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::LocalStore;

    #[test]
    fn the_algorithm_is_told_and_none_means_clear() {
        let dir = tempfile::tempdir().unwrap();
        let store = LocalStore::open(dir.path()).unwrap();
        assert!(encryption_algorithm(&store).unwrap().is_none());
        let file = dir.path().join(ENCRYPTION_FILE);
        std::fs::write(&file, r#"{"algorithm":"none"}"#).unwrap();
        assert!(encryption_algorithm(&store).unwrap().is_none());
        std::fs::write(&file, r#"{"algorithm":"aes-256-gcm"}"#).unwrap();
        let algorithm = encryption_algorithm(&store).unwrap();
        assert_eq!(algorithm.as_deref(), Some("aes-256-gcm"));
        for broken in ["", "{}", "[]", r#"{"algorithm":3}"#] {
            std::fs::write(&file, broken).unwrap();
            let e = encryption_algorithm(&store).unwrap_err();
            assert_eq!(e.kind(), ErrorKind::Corrupt, "{broken}");
        }
    }
}
