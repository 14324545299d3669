//! Block tables of many images at once, where each page of each takes a round trip.
//!
//! What reads tables goes down a chain image by image. On object stores the pages it will need are
//! fetched together before; what then cannot be had is told by the read that needs it.

use super::ChainLink;
use crate::parallel::parallel_map;
use crate::store::Store;

/// Most pages fetched at once: 8 MiB, a third of the memory for tables.
const MAX_PAGES: usize = 128;

/// Has the table pages for `count` units from `first` on in memory, as far as `MAX_PAGES` go.
pub(in crate::image) fn prepare(
    store: &dyn Store,
    links: &[ChainLink],
    unit_log2: u32,
    first: u64,
    count: u64,
) {
    let mut missing = Vec::new();
    for link in links {
        let shift = link.image().block_size().trailing_zeros() - unit_log2;
        let end = first.saturating_add(count);
        let blocks = first >> shift..end.div_ceil(1 << shift);
        let pages = link
            .image()
            .format
            .missing_table_pages(blocks, MAX_PAGES - missing.len());
        missing.extend(pages.into_iter().map(|page| (link.image(), page)));
    }
    if missing.len() > 1 {
        let threads = store.traits().parallelism;
        // Errors are found again, and told, by whoever needs the page.
        parallel_map(&missing, threads, |(image, page)| {
            image.format.load_table_page(*page).ok()
        });
    }
}
