//! What the ends of a VHD file tell: its footers, its header, and where its table is.

use bytes::Bytes;

use super::{BAT_PAGE_ENTRIES, FAR_BAT_PAGE_ENTRIES, Table};
use crate::error::{Error, Result};
use crate::image::vhd::{DiskType, FOOTER_BYTES, Footer, HEADER_BYTES, Header, blocks_of};
use crate::io::check_range;
use crate::parallel::parallel_map;
use crate::store::StoredFile;

/// What is read of a pinned file's start when it is opened: footer, header, parent locators and, of
/// disks up to some 60 GiB, the block table.
const START_BYTES: u64 = 128 << 10;

/// The start of a file of `len` bytes, at least a footer, and its last 512 bytes. Of pinned files more,
/// and both at once: what is missing would cost a round trip.
///
/// # Errors
/// As the storage says.
pub(super) fn read_ends(file: &dyn StoredFile, len: u64) -> Result<(Bytes, Bytes)> {
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
pub(super) fn trailing_footer(tail: &[u8]) -> (Result<Footer>, u64) {
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
pub(super) fn choose_footer(
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
pub(super) fn read_header(file: &dyn StoredFile, offset: u64, len: u64) -> Result<Vec<u8>> {
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
pub(super) fn table_of(
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
