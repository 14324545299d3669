//! What all readers of an NTFS need: its geometry and its file records.
//!
//! The crate finds the master file table anew for every record; here its runs are kept.

use std::sync::Arc;

use fs_ntfs::attr_io::AttrType;
use fs_ntfs::block_io::BlockIo;
use fs_ntfs::mft_io::{self, BootParams};

use super::data;
use super::from_ntfs;
use crate::error::{Error, Result};
use crate::guestfs::device::{Cached, Device};
use crate::io::{ReadAt, check_range};

const IN_USE: u16 = 1;
/// The record number in a file reference; the sequence number is above it, 0 for "any".
pub const NUMBER_MASK: u64 = (1 << 48) - 1;

/// An NTFS volume.
pub struct Volume {
    /// The device, for metadata.
    pub device: Arc<Device>,
    /// From the boot sector.
    pub boot: BootParams,
    /// The content of `$MFT`; not known while it is looked for.
    table: Option<Arc<dyn ReadAt>>,
}

/// The device in the shape of the crate.
pub struct Io<'a>(pub &'a Device);

impl BlockIo for Io<'_> {
    fn read_exact_at(&mut self, offset: u64, buf: &mut [u8]) -> std::result::Result<(), String> {
        self.0.read(buf, offset).map_err(|error| error.to_string())
    }

    fn write_all_at(&mut self, _offset: u64, _buf: &[u8]) -> std::result::Result<(), String> {
        Err("read-only".to_string())
    }

    fn size(&self) -> u64 {
        self.0.volume().len_bytes()
    }
}

impl Volume {
    /// Reads the boot sector and finds the master file table.
    ///
    /// # Errors
    /// `Corrupt` when they make no sense.
    pub fn open(device: Arc<Device>) -> Result<Self> {
        let boot = mft_io::read_boot_params_io(&mut Io(&device)).map_err(from_ntfs)?;
        let mut volume = Volume {
            device,
            boot,
            table: None,
        };
        let first = volume.record(0)?;
        let table = data::locate_kind(&volume, 0, &first, AttrType::Data, "")?
            .ok_or_else(|| bad("the master file table has no content"))?;
        let cached = Arc::new(Cached(volume.device.clone()));
        volume.table = Some(table.into_content_on(cached, &volume)?);
        Ok(volume)
    }

    /// A file record, whether it is in use or not.
    fn record(&self, number: u64) -> Result<Vec<u8>> {
        let Some(table) = &self.table else {
            let (_, record) =
                mft_io::read_mft_record_io(&mut Io(&self.device), number).map_err(from_ntfs)?;
            return Ok(record);
        };
        let len = self.boot.file_record_size;
        let at = number
            .checked_mul(len)
            .filter(|&at| check_range(at, len, table.len_bytes()).is_ok())
            .ok_or_else(|| bad("a record number is out of range"))?;
        let mut record = vec![0; len as usize];
        table.read_exact_at(&mut record, at)?;
        mft_io::apply_fixup_on_read(&mut record, self.boot.bytes_per_sector).map_err(from_ntfs)?;
        let field = |at: usize, len: usize| -> usize {
            let bytes = record.get(at..at + len).unwrap_or_default();
            bytes
                .iter()
                .rev()
                .fold(0, |all, &byte| all << 8 | usize::from(byte))
        };
        let (attributes, used) = (field(0x14, 2), field(0x18, 4));
        if used > record.len() || attributes > used {
            return Err(bad("a record is longer than it can be"));
        }
        Ok(record)
    }

    /// The record number and the record of a file reference.
    ///
    /// # Errors
    /// `Corrupt` when it is damaged, not in use, or in use for another file.
    pub fn record_in_use(&self, reference: u64) -> Result<(u64, Vec<u8>)> {
        let number = reference & NUMBER_MASK;
        let sequence = reference >> 48;
        let record = self.record(number)?;
        let flags = mft_io::record_flags(&record);
        let is_other = sequence != 0 && u64::from(mft_io::record_sequence(&record)) != sequence;
        if flags & IN_USE == 0 || is_other {
            return Err(Error::corrupt(
                "a name leads to a record that is not in use",
            ));
        }
        Ok((number, record))
    }
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("ntfs: {message}"))
}
