//! What all stores that stand before another one have in common: they hand on what they do not change.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use super::{Entry, Meta, Store, StorePath, StoreTraits, StoredFile, Validity};
use crate::error::Result;

/// A store before another one. By default it answers as [`Self::inner`] does; it overrides what it is there
/// for. The calls are those of [`Store`], which every layer thereby is.
#[allow(missing_docs)] // Each is documented there.
pub trait StoreLayer: Send + Sync + fmt::Debug {
    /// The store behind this one.
    fn inner(&self) -> &dyn Store;

    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        self.inner().list(dir)
    }

    fn head(&self, path: &StorePath) -> Result<Meta> {
        self.inner().head(path)
    }

    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        self.inner().read(path, max_len, validity)
    }

    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        self.inner().open(path, listed)
    }

    fn read_range(
        &self,
        path: &StorePath,
        file: &dyn StoredFile,
        offset: u64,
        len: usize,
    ) -> Result<Bytes> {
        self.inner().read_range(path, file, offset, len)
    }

    fn has_copy(&self, path: &StorePath, generation: Option<u128>) -> bool {
        self.inner().has_copy(path, generation)
    }

    fn open_copy(
        &self,
        path: &StorePath,
        max_len: u64,
        generation: u128,
    ) -> Option<Arc<dyn StoredFile>> {
        self.inner().open_copy(path, max_len, generation)
    }

    fn traits(&self) -> StoreTraits {
        self.inner().traits()
    }

    fn describe(&self) -> String {
        self.inner().describe()
    }
}

impl<L: StoreLayer> Store for L {
    fn list(&self, dir: &StorePath) -> Result<Vec<Entry>> {
        StoreLayer::list(self, dir)
    }

    fn head(&self, path: &StorePath) -> Result<Meta> {
        StoreLayer::head(self, path)
    }

    fn read(
        &self,
        path: &StorePath,
        max_len: u64,
        validity: Validity<'_>,
    ) -> Result<(Bytes, Meta)> {
        StoreLayer::read(self, path, max_len, validity)
    }

    fn open(&self, path: &StorePath, listed: Option<&Meta>) -> Result<Arc<dyn StoredFile>> {
        StoreLayer::open(self, path, listed)
    }

    fn read_range(
        &self,
        path: &StorePath,
        file: &dyn StoredFile,
        offset: u64,
        len: usize,
    ) -> Result<Bytes> {
        StoreLayer::read_range(self, path, file, offset, len)
    }

    fn has_copy(&self, path: &StorePath, generation: Option<u128>) -> bool {
        StoreLayer::has_copy(self, path, generation)
    }

    fn open_copy(
        &self,
        path: &StorePath,
        max_len: u64,
        generation: u128,
    ) -> Option<Arc<dyn StoredFile>> {
        StoreLayer::open_copy(self, path, max_len, generation)
    }

    fn traits(&self) -> StoreTraits {
        StoreLayer::traits(self)
    }

    fn describe(&self) -> String {
        StoreLayer::describe(self)
    }
}
