//! Whether the blocks that a chain's tables announce are there, without reading them.
//!
//! A listing tells of a thousand blocks at once. A merge moves blocks from a child to its target,
//! so what a child misses is looked for there before it counts as missing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use super::chain::{Chain, ChainIo};
use super::damage::name_blocks;
use super::format::Flaws;
use super::format::image::Image;
use super::uuid::Uuid;
use crate::error::Result;
use crate::store::StorePath;
use crate::sync;

/// What has been found out about images while one command runs: restore points share most of them.
#[derive(Default)]
pub struct BlockChecks {
    known: Mutex<HashMap<(StorePath, Uuid), Arc<Flaws>>>,
}

impl BlockChecks {
    fn flaws(&self, image: &Image) -> Result<Arc<Flaws>> {
        let key = (image.data_path.clone(), image.uuid());
        let known = || sync::lock(&self.known);
        if let Some(flaws) = known().get(&key) {
            return Ok(Arc::clone(flaws));
        }
        let flaws = Arc::new(image.format.list_flaws()?);
        known().insert(key, Arc::clone(&flaws));
        Ok(flaws)
    }

    /// Forgets what was found to be missing: the storage is to be asked again.
    pub(in crate::image) fn forget_missing(&self) {
        let mut known = sync::lock(&self.known);
        known.retain(|_, flaws| flaws.missing.is_empty());
    }

    /// For each image of the chain what is wrong with its blocks, and whether any is missing.
    pub(in crate::image) fn of_chain(
        &self,
        io: &ChainIo<'_>,
        chain: &Chain,
    ) -> (Vec<Vec<String>>, bool) {
        let mut any_missing = false;
        let images = chain.links.iter().enumerate().map(|(index, link)| {
            let flaws = match self.flaws(link.image()) {
                Ok(flaws) => flaws,
                Err(e) => return vec![format!("its blocks cannot be listed: {e}")],
            };
            let wrong = flaws.wrong.iter();
            let mut told: Vec<String> = wrong
                .map(|(what, blocks)| format!("{}: {what}", name_blocks(blocks)))
                .collect();
            match still_missing(io, chain, index, &flaws.missing) {
                Ok(missing) if missing.is_empty() => {}
                Ok(missing) => {
                    any_missing = true;
                    let is = if missing.len() == 1 { "is" } else { "are" };
                    told.push(format!(
                        "{} {is} missing, but allocated in the table",
                        name_blocks(&missing)
                    ));
                }
                Err(e) => told.push(format!("the target of a merge cannot be listed: {e}")),
            }
            told
        });
        let images = images.collect();
        (images, any_missing)
    }
}

/// Those of the missing blocks that no merge has moved.
fn still_missing(
    io: &ChainIo<'_>,
    chain: &Chain,
    link: usize,
    missing: &[u64],
) -> Result<Vec<u64>> {
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    match chain.merge_target(io.store, link)? {
        Some(target) => target.image().format.absent_blocks(missing),
        None => Ok(missing.to_vec()),
    }
}
