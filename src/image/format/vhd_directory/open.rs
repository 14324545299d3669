//! Opening a VHD directory: its small parts.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

use bytes::Bytes;

use super::parts::{Parts, read_copied_parts, read_parts};
use super::{VhdDirectory, missing_is_damage};
use crate::cache::TablePageCache;
use crate::codec::Filter;
use crate::error::{Error, ErrorKind, Result};
use crate::image::format::vhd::facts::facts;
use crate::image::format::vhd::{
    DiskType, FOOTER_BYTES, Footer, HEADER_BYTES, Header, MAX_BLOCKS, blocks_of,
};
use crate::image::format::{Facts, MAX_WHOLE_BLOCK_BYTES, Opened};
use crate::store::{Meta, Store, StorePath, Version};

/// Reads `chunk-filters.json`, `footer` and `header`; the table waits until it is needed.
///
/// # Errors
/// `NotFound` when there is no `footer` (so it is no VHD directory), `Corrupt` or `Unsupported`
/// for parts that are not what they should be.
pub(in crate::image) fn open(
    store: &Arc<dyn Store>,
    base: &StorePath,
    id: u64,
    pages: &Arc<TablePageCache>,
) -> Result<Opened> {
    let copies = read_copied_parts(store.as_ref(), base);
    if let Some(parts) = copies {
        match open_parts(store, base, id, pages, parts) {
            // Perhaps a part was damaged before it was copied.
            Err(e) if e.kind() == ErrorKind::Corrupt => {}
            other => return other,
        }
    }
    let parts = read_parts(store.as_ref(), base, None);
    open_parts(store, base, id, pages, parts)
}

fn open_parts(
    store: &Arc<dyn Store>,
    base: &StorePath,
    id: u64,
    pages: &Arc<TablePageCache>,
    parts: Parts,
) -> Result<Opened> {
    let newest_part = parts.newest().map(|newest| (newest, Instant::now()));
    let (filter, filter_version) = filter_of(parts.filter, base)?;
    let mut versions: Vec<Version> = filter_version.into_iter().collect();
    let mut decode = |name: &str, part: Result<(Bytes, Meta)>, len: usize| {
        let path = base.child(name);
        let (stored, meta) = part?;
        versions.push(meta.version);
        filter
            .decode_exact(&stored, len)
            .map_err(|e| e.with_object(&path))
    };
    let footer = Footer::parse(&decode("footer", parts.footer, FOOTER_BYTES)?)
        .map_err(|e| e.with_object(base.child("footer")))?;
    let header = decode("header", parts.header, HEADER_BYTES).map_err(missing_is_damage)?;
    let header = Header::parse(&header).map_err(|e| e.with_object(base.child("header")))?;
    if footer.disk_type == DiskType::Fixed {
        return Err(Error::corrupt("a VHD directory cannot be a fixed disk").with_object(base));
    }
    let blocks = blocks_of(footer.current_size, header.block_size)
        .map_err(|e| e.with_object(base.child("header")))?;
    // XO leaves maxTableEntries at the old value when it merges a grown child into a smaller
    // parent; the blocks are all there, so the larger of the two counts.
    let table_bits = blocks.max(u64::from(header.max_table_entries));
    let reads_whole_blocks = filter != Filter::None || !store.traits().cheap_ranges;
    if reads_whole_blocks && header.block_size > MAX_WHOLE_BLOCK_BYTES {
        return Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "blocks of {} bytes are too large to be decoded",
                header.block_size
            ),
        )
        .with_object(base.child("header")));
    }
    let mut problems = Vec::new();
    if u64::from(header.max_table_entries) < blocks {
        problems.push(format!(
            "its header counts {} blocks where the disk has {blocks}; all are read",
            header.max_table_entries
        ));
    }
    let facts = Facts {
        compression: filter.as_str(),
        reads_whole_blocks,
        newest_part,
        problems,
        ..facts("VHD directory", &footer, Some(&header), header.block_size)
    };
    let format = VhdDirectory {
        store: Arc::clone(store),
        base: base.clone(),
        id,
        pages: Arc::clone(pages),
        filter,
        parent_locators: header.parent_locators,
        block_size: facts.block_size,
        bitmap_bytes: facts.bitmap_bytes,
        virtual_size: footer.current_size,
        blocks,
        header_entries: u64::from(header.max_table_entries),
        // One byte where one bit would do, rounded up generously.
        max_bat_bytes: table_bits.min(MAX_BLOCKS) + 4096,
        table: OnceLock::new(),
        versions: versions.clone(),
        last: Mutex::new(None),
        examined: OnceLock::new(),
    };
    if let Some(Ok((stored, meta))) = parts.bat {
        // What is wrong with it will be told by the read that needs it.
        let _ = format.keep_table(&stored, meta.version, None);
    }
    Ok(Opened {
        format: Box::new(format),
        facts,
        versions,
    })
}

fn filter_of(part: Result<(Bytes, Meta)>, base: &StorePath) -> Result<(Filter, Option<Version>)> {
    match part {
        Ok((json, meta)) => {
            let filter = Filter::parse_list(&json)
                .map_err(|e| e.with_object(base.child("chunk-filters.json")))?;
            Ok((filter, Some(meta.version)))
        }
        Err(e) if e.kind() == ErrorKind::NotFound => Ok((Filter::None, None)),
        Err(e) => Err(e),
    }
}
