//! Rock Ridge: what Unix needs of a file, in the system use areas of directory records.
//!
//! Sources: SUSP 1.12 and RRIP 1.12 (IEEE P1281 and P1282 drafts); where they leave room, what Linux does.

use std::time::SystemTime;

use super::record::{le32, long_time, short_time};
use crate::error::{Error, Result};
use crate::guestfs::host::device::Device;
use crate::io::{ReadAt, check_range};

/// Continuation areas of one record; Linux follows 32.
const MAX_AREAS: usize = 32;
/// Bytes in one continuation area; makers keep to a block of 2 KiB.
const MAX_AREA_BYTES: u32 = 32 << 10;
/// Longer names are cut when they are shown.
const MAX_NAME_BYTES: usize = 4096;

/// Mode, links and owners of a file.
#[derive(Debug, Clone, Copy)]
pub struct Posix {
    /// Type and permissions.
    pub mode: u32,
    /// Link count.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// What Rock Ridge says of one record.
#[derive(Debug, Default)]
pub struct Fields {
    /// The name, `None` when it has none.
    pub name: Option<Vec<u8>>,
    /// Mode, links, owners.
    pub posix: Option<Posix>,
    /// Major and minor number of a device node.
    pub device: Option<(u32, u32)>,
    /// The target of a symbolic link.
    pub target: Option<Vec<u8>>,
    /// Modification, access, and attribute change.
    pub times: [Option<SystemTime>; 3],
    /// The block of the directory that belongs here and was moved elsewhere.
    pub child_block: Option<u32>,
    /// A directory that was moved here and belongs elsewhere.
    pub is_relocated: bool,
    /// The length of the content once zisofs has unpacked it.
    pub zisofs_bytes: Option<u64>,
    /// The content is stored sparsely.
    pub is_sparse: bool,
    /// An extension announced itself.
    pub has_extension: bool,
}

/// Where the fields begin in the system use areas of a volume, if it has Rock Ridge: from the area of the
/// root directory's own record.
pub fn skipped_bytes(system_use: &[u8]) -> Option<usize> {
    // Behind the 14 bytes of CD-ROM XA on some.
    [0, 14].into_iter().find_map(|at| {
        let field = system_use.get(at..at + 7)?;
        (&field[..2] == b"SP" && field[4..6] == [0xBE, 0xEF]).then(|| usize::from(field[6]))
    })
}

/// Reads the fields in a system use area and in what continues it.
///
/// # Errors
/// `Corrupt` when a continuation leads astray; what kept it from being read.
pub fn read(device: &Device, block_bytes: u64, system_use: &[u8]) -> Result<Fields> {
    let mut fields = Fields::default();
    let mut parser = Parser::default();
    let mut area = system_use.to_vec();
    for _ in 0..=MAX_AREAS {
        let Some((block, offset, len)) = parser.area(&area, &mut fields) else {
            return Ok(fields);
        };
        if len > MAX_AREA_BYTES {
            return Err(Error::corrupt(
                "iso9660: a continuation area is longer than any",
            ));
        }
        let at = u64::from(block) * block_bytes + u64::from(offset);
        // A bad record must not fail its neighbours' listing, as a failed read does.
        check_range(at, u64::from(len), device.volume().len_bytes())
            .map_err(|_| Error::corrupt("iso9660: a continuation area is not on the volume"))?;
        area = vec![0; len as usize];
        device.read(&mut area, at)?;
    }
    Err(Error::corrupt(
        "iso9660: continuation areas go on without an end",
    ))
}

/// What is carried from one field to the next.
#[derive(Default)]
struct Parser {
    /// A further part of a link's target is set off by a slash.
    slash: bool,
}

impl Parser {
    /// Reads one area; gives block, offset and length of the one that continues it.
    fn area(&mut self, area: &[u8], fields: &mut Fields) -> Option<(u32, u32, u32)> {
        let mut rest = area;
        let mut next = None;
        while rest.len() >= 4 {
            let len = usize::from(rest[2]);
            // Padding, and what others put here: no fields follow.
            if len < 4 || len > rest.len() {
                break;
            }
            let (field, behind) = rest.split_at(len);
            rest = behind;
            let data = &field[4..];
            match &field[..2] {
                b"CE" if data.len() >= 24 => {
                    next = Some((le32(data, 0), le32(data, 8), le32(data, 16)));
                }
                b"ST" => return next,
                b"ER" => fields.has_extension = true,
                b"PX" if data.len() >= 32 => {
                    fields.posix = Some(Posix {
                        mode: le32(data, 0),
                        links: le32(data, 8),
                        uid: le32(data, 16),
                        gid: le32(data, 24),
                    });
                }
                b"PN" if data.len() >= 16 => {
                    fields.device = Some(device(le32(data, 0), le32(data, 8)));
                }
                b"NM" => name(data, fields),
                b"SL" => self.link(data, fields),
                b"TF" => times(data, fields),
                b"CL" if data.len() >= 8 => fields.child_block = Some(le32(data, 0)),
                b"RE" => fields.is_relocated = true,
                b"ZF" if data.len() >= 12 => {
                    fields.zisofs_bytes = Some(match &data[..2] {
                        // Version 2 keeps 64 bits.
                        b"PZ" => u64::from(le32(data, 4)) | u64::from(le32(data, 8)) << 32,
                        _ => u64::from(le32(data, 4)),
                    });
                }
                b"SF" => fields.is_sparse = true,
                _ => {}
            }
        }
        next
    }

    /// A part of a link's target: components, each with flags and a length.
    fn link(&mut self, data: &[u8], fields: &mut Fields) {
        let target = fields.target.get_or_insert_default();
        let mut rest = data.get(1..).unwrap_or_default();
        while let [flags, len, behind @ ..] = rest {
            let Some((text, behind)) = behind.split_at_checked(usize::from(*len)) else {
                return;
            };
            rest = behind;
            if self.slash {
                target.push(b'/');
            }
            let is_root = flags & 8 != 0;
            match flags & 0x0E {
                2 => target.push(b'.'),
                4 => target.extend_from_slice(b".."),
                8 => target.push(b'/'),
                _ => target.extend_from_slice(text),
            }
            let goes_on = flags & 1 != 0;
            self.slash = !goes_on && !is_root;
        }
    }
}

fn name(data: &[u8], fields: &mut Fields) {
    const FLAG_CONTINUE: u8 = 1;
    let Some((flags, text)) = data.split_first() else {
        return;
    };
    // Flags for `.`, `..` and the host's name: those are not names to be shown.
    if flags & !FLAG_CONTINUE != 0 {
        return;
    }
    let name = fields.name.get_or_insert_default();
    if name.len() < MAX_NAME_BYTES {
        name.extend_from_slice(text);
    }
}

fn times(data: &[u8], fields: &mut Fields) {
    let Some((flags, mut rest)) = data.split_first() else {
        return;
    };
    let is_long = flags & 0x80 != 0;
    let len = if is_long { 17 } else { 7 };
    // Creation, modification, access, attribute change; backup and others follow.
    for (bit, slot) in [(0, None), (1, Some(0)), (2, Some(1)), (3, Some(2))] {
        if flags & (1 << bit) == 0 {
            continue;
        }
        let Some((bytes, behind)) = rest.split_at_checked(len) else {
            return;
        };
        rest = behind;
        if let Some(slot) = slot {
            fields.times[slot] = Some(match is_long {
                true => long_time(bytes),
                false => short_time(bytes),
            });
        }
    }
}

/// Some makers put major and minor in the two halves, some all of an old device number in the second.
fn device(high: u32, low: u32) -> (u32, u32) {
    match high {
        0 if low > 0xFF => (low >> 8, low & 0xFF),
        _ => (high, low),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn field(name: &[u8; 2], data: &[u8]) -> Vec<u8> {
        let mut field = name.to_vec();
        field.extend([data.len() as u8 + 4, 1]);
        field.extend_from_slice(data);
        field
    }

    fn continued(block: u32, offset: u32, len: u32) -> Vec<u8> {
        let mut data = Vec::new();
        for value in [block, offset, len] {
            data.extend(value.to_le_bytes());
            data.extend(value.to_be_bytes());
        }
        field(b"CE", &data)
    }

    #[test]
    fn names_and_links_are_put_together_over_areas() {
        let mut volume = vec![0; 8192];
        let mut second = field(b"NM", b"\0-name");
        second.extend(field(b"SL", b"\0\x01\x02fi\0\x02le\x04\0\0\x03end"));
        volume[4196..4196 + second.len()].copy_from_slice(&second);
        let device = Device::new(Arc::new(volume));
        let mut first = field(b"NM", b"\x01long");
        first.extend(field(b"SL", b"\x01\x08\0\0\x03etc"));
        first.extend(continued(2, 100, second.len() as u32));
        let fields = read(&device, 2048, &first).unwrap();
        assert_eq!(fields.name.unwrap(), b"long-name");
        assert_eq!(fields.target.unwrap(), b"/etc/file/../end");
    }

    #[test]
    fn areas_that_continue_each_other_are_refused() {
        let mut volume = vec![0; 4096];
        let next = continued(1, 0, 28);
        volume[2048..2048 + 28].copy_from_slice(&next);
        let device = Device::new(Arc::new(volume));
        assert!(read(&device, 2048, &next).is_err());
        assert!(read(&device, 2048, &continued(0, 0, u32::MAX)).is_err());
        assert!(read(&device, 2048, &continued(u32::MAX, 0, 100)).is_err());
    }

    #[test]
    fn cut_fields_are_left_out() {
        let device = Device::new(Arc::new(vec![0; 4096]));
        for cut in [
            &b"PX\x24\x01\0"[..],
            b"NM\x04\x01",
            b"TF\x05\x01\x0F",
            b"SL\x07\x01\0\0\x09",
            b"NM\0\x01",
        ] {
            let fields = read(&device, 2048, cut).unwrap();
            assert!(fields.posix.is_none() && fields.name.is_none());
        }
    }
}
