//! Opening a VHD file: its footers, its header, and where its table is.

use std::sync::{Arc, RwLock};

use bytes::Bytes;

use super::{
    BAT_PAGE_ENTRIES, FAR_BAT_PAGE_ENTRIES, FIXED_BLOCK_BYTES, Layout, State, Table, VhdFile,
    is_settled,
};
use crate::cache::TablePageCache;
use crate::error::{Error, ErrorKind, Result};
use crate::image::format::vhd::facts::facts;
use crate::image::format::vhd::{DiskType, FOOTER_BYTES, Footer, HEADER_BYTES, Header, blocks_of};
use crate::image::format::{Facts, MAX_WHOLE_BLOCK_BYTES, Opened, recognise};
use crate::io::check_range;
use crate::parallel::parallel_map;
use crate::store::{Meta, Store, StorePath, StoredFile};

/// What is read of a pinned file's start when it is opened: footer, header, parent locators and, of
/// disks up to some 60 GiB, the block table.
const START_BYTES: u64 = 128 << 10;

/// Opens the file and reads its footers and header; of pinned files, the table with them where it
/// is beside. `listed` is the file's state if a listing has just told it.
///
/// # Errors
/// `NotFound` when it is not there, `Corrupt` when neither footer is sound, the header is not,
/// or the table cannot be in the file.
pub(in crate::image) fn open(
    store: &Arc<dyn Store>,
    path: &StorePath,
    listed: Option<&Meta>,
    id: u64,
    pages: &Arc<TablePageCache>,
) -> Result<Opened> {
    let open = |listed| {
        let file = store.open(path, listed)?;
        from_file(store, file, path, id, pages).map_err(|e| e.with_object(path))
    };
    match open(listed) {
        // It is not, or no longer, what was listed.
        Err(e) if e.kind() == ErrorKind::Changed && listed.is_some() => open(None),
        other => other,
    }
}

fn from_file(
    store: &Arc<dyn Store>,
    file: Arc<dyn StoredFile>,
    path: &StorePath,
    id: u64,
    pages: &Arc<TablePageCache>,
) -> Result<Opened> {
    let opened = file.opened_meta();
    let len = opened.len_bytes;
    if len < FOOTER_BYTES as u64 {
        let start = file.read_bytes_at(0, len as usize)?;
        let too_few = || Error::corrupt(format!("{len} bytes are too few for a VHD"));
        return Err(recognise::refuse_foreign(&start).unwrap_or_else(too_few));
    }
    let (start, tail) = read_ends(&*file, len)?;

    let mut problems = Vec::new();
    let (trailing, footer_bytes) = trailing_footer(&tail);
    let trailing_bytes = trailing.as_ref().map_or(0, |_| footer_bytes);
    let mut odd_trailing = None;
    let footer = choose_footer(
        Footer::parse(&start[..FOOTER_BYTES]),
        trailing,
        len - footer_bytes,
        &mut problems,
        &mut odd_trailing,
    )
    .map_err(|e| recognise::refuse_foreign(&start).unwrap_or(e))?;

    let mut header = None;
    let mut head = Vec::new();
    let mut table = None;
    let mut block_size = FIXED_BLOCK_BYTES;
    if footer.disk_type == DiskType::Fixed {
        if footer.current_size > len - footer_bytes {
            return Err(Error::corrupt(format!(
                "file of {len} bytes is too short for a fixed disk of {}",
                footer.current_size
            )));
        }
    } else {
        head = match part_of(&start, footer.data_offset, HEADER_BYTES) {
            Some(bytes) => bytes.to_vec(),
            None => read_header(&*file, footer.data_offset, len)?,
        };
        let parsed = Header::parse(&head).map_err(|e| e.at(footer.data_offset))?;
        block_size = parsed.block_size;
        let is_far = file.is_pinned();
        table = Some(table_of(&parsed, &footer, len, is_far, &mut problems)?);
        header = Some(parsed);
    }
    let pinned = file.is_pinned();
    let facts = Facts {
        reads_whole_blocks: pinned && block_size <= MAX_WHOLE_BLOCK_BYTES,
        problems,
        trailing: odd_trailing,
        ..facts("VHD file", &footer, header.as_ref(), block_size)
    };
    let format = VhdFile {
        store: Arc::clone(store),
        file,
        path: path.clone(),
        id,
        pages: Arc::clone(pages),
        layout: Layout {
            table,
            block_size,
            virtual_size: footer.current_size,
            blocks: blocks_of(footer.current_size, block_size)?,
            head,
            head_at: footer.data_offset,
            trailing_bytes,
            reads_whole_blocks: facts.reads_whole_blocks,
        },
        parent_locators: header.map_or_else(Vec::new, |h| h.parent_locators),
        state: RwLock::new(State {
            version: opened.version,
            len_bytes: len,
            generation: 0,
            settled: pinned || is_settled(&opened),
        }),
    };
    format.keep_pages_of(&start);
    Ok(Opened {
        format: Box::new(format),
        facts,
        versions: vec![opened.version],
    })
}

/// The start of a file of `len` bytes, at least a footer, and its last 512 bytes. Of pinned files more,
/// and both at once: what is missing would cost a round trip.
///
/// # Errors
/// As the storage says.
fn read_ends(file: &dyn StoredFile, len: u64) -> Result<(Bytes, Bytes)> {
    let footer = FOOTER_BYTES as u64;
    let (start, threads) = match file.is_pinned() {
        true => (START_BYTES.min(len), 2),
        false => (footer, 1),
    };
    let ends = [(0, start), (len - footer, footer)];
    let read = |(at, len): &(u64, u64)| file.read_bytes_at(*at, *len as usize);
    let mut read = parallel_map(&ends, threads, read).into_iter();
    let mut next = || read.next().unwrap_or_else(|| Ok(Bytes::new()));
    Ok((next()?, next()?))
}

/// The bytes of `len` at `offset` of the file if its start has them.
pub(super) fn part_of(start: &Bytes, offset: u64, len: usize) -> Option<&[u8]> {
    let from = usize::try_from(offset).ok()?;
    start.get(from..from.checked_add(len)?)
}

/// The footer at the end of a file, of which `tail` is the last 512 bytes, and how many bytes it has:
/// those written before 2004 lack the last, reserved one.
fn trailing_footer(tail: &[u8]) -> (Result<Footer>, u64) {
    let error = match Footer::parse(tail) {
        Ok(footer) => return (Ok(footer), FOOTER_BYTES as u64),
        Err(e) => e,
    };
    let short = tail.get(1..).unwrap_or_default();
    match Footer::parse(&[short, &[0]].concat()) {
        Ok(footer) => (Ok(footer), short.len() as u64),
        Err(_) => (Err(error), FOOTER_BYTES as u64),
    }
}

/// Which of the two footers is believed. In dynamic and differencing disks the leading copy is:
/// while XO merges into a file it overwrites the trailing one. A fixed disk has only a trailing
/// footer; what stands at its start is the guest's and proves nothing. `end` is where the trailing
/// footer begins.
fn choose_footer(
    leading: Result<Footer>,
    trailing: Result<Footer>,
    end: u64,
    problems: &mut Vec<String>,
    odd_trailing: &mut Option<String>,
) -> Result<Footer> {
    let has_table = |f: &Footer| f.disk_type != DiskType::Fixed;
    match (leading.ok().filter(has_table), trailing) {
        (Some(lead), Ok(trail)) if has_table(&trail) => {
            if lead != trail {
                *odd_trailing = Some("its two footers differ; the leading one is used".into());
            }
            Ok(lead)
        }
        (Some(lead), Ok(trail)) => {
            // A nested disk image, either at the start of a fixed disk or at the end of a dynamic
            // one that is being merged into. The length tells which.
            if trail.current_size == end {
                return Err(Error::corrupt(
                    "both a fixed disk's footer at its end and a dynamic disk's at its start: \
                     which of them is guest data cannot be told",
                ));
            }
            *odd_trailing =
                Some("its trailing footer is that of another disk; the leading one is used".into());
            Ok(lead)
        }
        (Some(lead), Err(e)) => {
            *odd_trailing = Some(format!(
                "its trailing footer is damaged or overwritten ({e}); the leading one is used"
            ));
            Ok(lead)
        }
        (None, Ok(trail)) => {
            if has_table(&trail) {
                problems.push("its leading footer is damaged; the trailing one is used".into());
            }
            Ok(trail)
        }
        (None, Err(e)) => Err(e.at(end)),
    }
}

/// The header at `offset` of a file of `len` bytes.
///
/// # Errors
/// `Corrupt` when the file has no room for a header there.
fn read_header(file: &dyn StoredFile, offset: u64, len: u64) -> Result<Vec<u8>> {
    check_range(offset, HEADER_BYTES as u64, len)
        .map_err(|_| Error::corrupt("header is not within the file"))?;
    let mut bytes = vec![0; HEADER_BYTES];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

/// Where the block table of a file of `len` bytes is; `is_far` where each page of it is a round trip.
///
/// # Errors
/// `Corrupt` when it cannot be within the file.
fn table_of(
    header: &Header,
    footer: &Footer,
    len: u64,
    is_far: bool,
    problems: &mut Vec<String>,
) -> Result<Table> {
    let blocks = blocks_of(footer.current_size, header.block_size)?;
    let mut entries = u64::from(header.max_table_entries);
    if entries < blocks {
        problems.push(format!(
            "its table has {entries} entries where the disk has {blocks} blocks: the end of the \
             disk cannot be read"
        ));
    } else {
        // Entries past the disk's end mean nothing, whatever their number is said to be.
        entries = blocks;
    }
    let fits = entries
        .checked_mul(4)
        .and_then(|bytes| bytes.checked_add(header.table_offset))
        .is_some_and(|end| end <= len);
    if !fits || header.table_offset < FOOTER_BYTES as u64 {
        return Err(Error::corrupt(format!(
            "its table of {entries} entries at {} is not within the file of {len} bytes",
            header.table_offset
        )));
    }
    Ok(Table {
        offset: header.table_offset,
        entries,
        page_entries: match is_far {
            true => FAR_BAT_PAGE_ENTRIES,
            false => BAT_PAGE_ENTRIES,
        },
        bitmap_bytes: header.bitmap_bytes(),
    })
}
