//! Decryption as a decorator: above it, an encrypted repository looks like a clear one.
//!
//! Every part is one sealed unit, so that it is always fetched whole and authenticated before one
//! byte of it is released. The lengths told ([`Meta::len_bytes`]) are those of the content; with
//! the tagless `aes-256-cbc` of 2022 they are upper bounds until the part has been read.
//!
//! XO seals parts without their names: a part that somebody moved under another name still opens.
//! The layers above notice what they can (uuids, lengths), as XO does.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::{
    Entry, EntryKind, Meta, Store, StoreLayer, StorePath, StoreTraits, StoredFile, Validity,
};
use crate::codec::aead::{Algorithm, Cipher};
use crate::error::{Error, ErrorKind, Result};
use crate::io::{ReadAt, check_range};

/// The longest encrypted file that is opened for reads at offsets: it is held in memory, because
/// no byte may be used before the tag at its end has been checked.
pub const MAX_OPEN_LEN: u64 = 1 << 30;

/// A store whose files are sealed with one key.
pub struct DecryptStore {
    inner: Arc<dyn Store>,
    cipher: Arc<Cipher>,
}

impl DecryptStore {
    /// Wraps a store. That the key is the right one is for whoever opens a repository to prove.
    pub fn new(inner: Arc<dyn Store>, cipher: Cipher) -> Self {
        DecryptStore {
            inner,
            cipher: Arc::new(cipher),
        }
    }

    /// The store below: files as they are stored.
    pub fn sealed(&self) -> &dyn Store {
        &*self.inner
    }

    /// The content of the sealed file at `path`.
    ///
    /// # Errors
    /// `Corrupt` when it does not open.
    pub fn unseal(&self, path: &StorePath, sealed: Bytes) -> Result<Bytes> {
        self.cipher.open(sealed).map_err(|e| e.with_object(path))
    }

    /// Reads with `read`, which is told how long the sealed file may be.
    fn read_by(
        &self,
        path: &StorePath,
        max_len: u64,
        read: impl FnOnce(u64) -> Result<(Bytes, Meta)>,
    ) -> Result<(Bytes, Meta)> {
        if is_clear(path) {
            return read(max_len);
        }
        let overhead = self.cipher.algorithm().max_overhead();
        let (sealed, meta) = read(max_len.saturating_add(overhead))?;
        let content = self.unseal(path, sealed)?;
        let len_bytes = content.len() as u64;
        if len_bytes > max_len {
            // Only CBC gets here: its padding left some slack in the limit above.
            return Err(Error::corrupt(format!(
                "is {len_bytes} bytes long where at most {max_len} are possible"
            ))
            .with_object(path));
        }
        Ok((content, Meta { len_bytes, ..meta }))
    }

    fn clear_meta(&self, meta: Meta) -> Meta {
        Meta {
            len_bytes: self.cipher.algorithm().content_len(meta.len_bytes),
            ..meta
        }
    }
}

/// The files that XO writes in clear on encrypted repositories: the two at the root that are read
/// before any key is at hand, and checksums of stored bytes, which are checked without the key.
fn is_clear(path: &StorePath) -> bool {
    matches!(path.as_str(), "encryption.json" | "immutability.json")
        || path.file_name().ends_with(".checksum")
}

impl fmt::Debug for DecryptStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DecryptStore({:?}, {:?})", self.cipher, self.inner)
    }
}

impl StoreLayer for DecryptStore {
    fn inner(&self) -> &dyn Store {
        &*self.inner
    }

    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        let mut entries = self.inner.list(dir)?;
        for entry in &mut entries {
            if entry.kind == EntryKind::File && !is_clear(&dir.child(&entry.name)) {
                entry.meta = entry.meta.map(|meta| self.clear_meta(meta));
            }
        }
        Ok(entries)
    }

    fn head(&self, path: &StorePath) -> Result<Meta> {
        let meta = self.inner.head(path)?;
        Ok(if is_clear(path) {
            meta
        } else {
            self.clear_meta(meta)
        })
    }

    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        // Copies are kept below, sealed.
        let sealed;
        let validity = match validity {
            Validity::Listed(Some(listed)) if !is_clear(path) => {
                sealed = Meta {
                    len_bytes: self.cipher.algorithm().stored_len(listed.len_bytes),
                    ..*listed
                };
                Validity::Listed(Some(&sealed))
            }
            other => other,
        };
        self.read_by(path, max_len, |max_len| {
            self.inner.read(path, max_len, validity)
        })
    }

    /// A copy of a part is sealed, and is not read in place.
    fn has_copy(&self, path: &StorePath, generation: Option<u128>) -> bool {
        generation.is_none() && self.inner.has_copy(path, None)
    }

    fn open_copy(&self, _: &StorePath, _: u64, _: u128) -> Option<Arc<dyn StoredFile>> {
        None
    }

    /// What was opened is in memory, in clear: it goes into no copy.
    fn read_range(
        &self,
        path: &StorePath,
        file: &dyn StoredFile,
        offset: u64,
        len: usize,
    ) -> Result<Bytes> {
        match is_clear(path) {
            true => self.inner.read_range(path, file, offset, len),
            false => file.read_bytes_at(offset, len),
        }
    }

    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        if is_clear(path) {
            return self.inner.open(path, listed);
        }
        let stored = self.inner.open(path, None)?;
        let meta = stored.opened_meta();
        if meta.len_bytes > MAX_OPEN_LEN {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "is an encrypted file of {} bytes; those over {MAX_OPEN_LEN} cannot be read \
                     at offsets",
                    meta.len_bytes
                ),
            )
            .with_object(path));
        }
        let mut sealed = vec![0; meta.len_bytes as usize];
        stored.read_exact_at(&mut sealed, 0)?;
        let content = self
            .cipher
            .open(Bytes::from(sealed))
            .map_err(|e| e.with_object(path))?;
        let meta = Meta {
            len_bytes: content.len() as u64,
            ..meta
        };
        Ok(Arc::new(OpenedFile {
            path: path.clone(),
            stored,
            algorithm: self.cipher.algorithm(),
            content,
            meta,
        }))
    }

    fn traits(&self) -> StoreTraits {
        StoreTraits {
            // A part is fetched and opened whole, however little of it is wanted.
            cheap_ranges: false,
            exact_lengths: self.cipher.algorithm() != Algorithm::Aes256Cbc,
            ..self.inner.traits()
        }
    }

    fn describe(&self) -> String {
        format!(
            "{} ({})",
            self.inner.describe(),
            self.cipher.algorithm().as_str()
        )
    }
}

/// An authenticated file in memory. The stored file stays open to tell whether it has changed.
struct OpenedFile {
    path: StorePath,
    stored: Arc<dyn StoredFile>,
    algorithm: Algorithm,
    content: Bytes,
    meta: Meta,
}

impl ReadAt for OpenedFile {
    fn len_bytes(&self) -> u64 {
        self.opened_meta().len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.content.len() as u64).map_err(|_| {
            Error::corrupt(format!(
                "file ends within the {} bytes expected here",
                buf.len()
            ))
            .with_object(&self.path)
            .at(offset)
        })?;
        let start = offset as usize;
        buf.copy_from_slice(&self.content[start..start + buf.len()]);
        Ok(())
    }
}

impl StoredFile for OpenedFile {
    fn opened_meta(&self) -> Meta {
        self.meta
    }

    fn head(&self) -> Result<Meta> {
        let now = self.stored.head()?;
        let len_bytes = if now.version == self.meta.version {
            self.meta.len_bytes
        } else {
            self.algorithm.content_len(now.len_bytes)
        };
        Ok(Meta { len_bytes, ..now })
    }

    /// It is in memory. (Bytes given out are copies: a slice that a cache keeps would keep all of it.)
    fn is_pinned(&self) -> bool {
        true
    }
}
