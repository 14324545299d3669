//! Special files: FIFOs, sockets, devices, and the links of POSIX subsystems.
//!
//! WSL (and ntfs-3g with `special_files=wsl`) gives them a reparse point whose tag is the type ([MS-FSCC] 2.1.2);
//! a device has its two numbers, 32 bits each, in the extended attribute `$LXDEV`. Interix (Services for Unix)
//! and ntfs-3g by default make "system" files: those that are not hidden and empty are FIFOs, those with one byte
//! sockets, and devices and links begin with a mark of 8 bytes. Numbers of devices follow it in 64 bits each, the
//! target of a link in UTF-16.

use super::error::bad;
use super::fields::{byte, le16, le32, le64, part};
use crate::error::Result;
use crate::guestfs::common::utf16;
use crate::kind::NodeKind;

/// Windows' attributes of files.
const ATTRIBUTE_HIDDEN: u32 = 0x2;
/// What files of Interix have.
pub const ATTRIBUTE_SYSTEM: u32 = 0x4;

const TAG_AF_UNIX: u32 = 0x8000_0023;
const TAG_LX_FIFO: u32 = 0x8000_0024;
/// Character devices of WSL.
pub const TAG_LX_CHR: u32 = 0x8000_0025;
/// Block devices of WSL.
pub const TAG_LX_BLK: u32 = 0x8000_0026;
/// The extended attribute with the number of a device of WSL.
pub const LXDEV: &[u8] = b"$LXDEV";

const INTERIX_LINK: &[u8; 8] = b"IntxLNK\x01";
const INTERIX_CHR: &[u8; 8] = b"IntxCHR\0";
const INTERIX_BLK: &[u8; 8] = b"IntxBLK\0";
const INTERIX_DEVICE_BYTES: usize = 24;
/// The longest file that can be a link: 4096 units.
pub const MAX_INTERIX_BYTES: u64 = 8 + 2 * 4096;

/// The numbers of a device: major, minor.
pub type Device = (u64, u64);

/// A file that is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Special {
    /// A FIFO or a socket.
    Plain(NodeKind),
    /// A device.
    Device(NodeKind, Device),
    /// A link with this target.
    Link(Vec<u8>),
}

/// What WSL says by a reparse point's tag. `device` finds the number of a device; without one it stays a file,
/// which cannot be read.
///
/// # Errors
/// Those of `device`.
pub fn of_wsl(
    tag: u32,
    device: impl FnOnce() -> Result<Option<Device>>,
) -> Result<Option<Special>> {
    Ok(match tag {
        TAG_AF_UNIX => Some(Special::Plain(NodeKind::Socket)),
        TAG_LX_FIFO => Some(Special::Plain(NodeKind::Fifo)),
        TAG_LX_CHR => device()?.map(|device| Special::Device(NodeKind::CharDevice, device)),
        TAG_LX_BLK => device()?.map(|device| Special::Device(NodeKind::BlockDevice, device)),
        _ => None,
    })
}

/// The device number in the value of `$LXDEV`.
///
/// # Errors
/// `Corrupt` when it is cut short.
pub fn lxdev(value: &[u8]) -> Result<Device> {
    Ok((u64::from(le32(value, 0)?), u64::from(le32(value, 4)?)))
}

/// What a file without a reparse point is to Interix, by its attributes, its length and, if that is at most
/// [`MAX_INTERIX_BYTES`], what `content` gives.
///
/// # Errors
/// Those of `content`.
pub fn of_interix(
    attributes: u32,
    len_bytes: u64,
    content: impl FnOnce() -> Result<Vec<u8>>,
) -> Result<Option<Special>> {
    if attributes & ATTRIBUTE_SYSTEM == 0 {
        return Ok(None);
    }
    let is_shown = attributes & ATTRIBUTE_HIDDEN == 0;
    Ok(match len_bytes {
        0 if is_shown => Some(Special::Plain(NodeKind::Fifo)),
        1 if is_shown => Some(Special::Plain(NodeKind::Socket)),
        9..=MAX_INTERIX_BYTES => of_content(&content()?),
        _ => None,
    })
}

/// What the content of a system file says that it is.
fn of_content(content: &[u8]) -> Option<Special> {
    let (mark, rest) = content.split_first_chunk()?;
    let device = |kind| {
        if content.len() != INTERIX_DEVICE_BYTES {
            return None;
        }
        Some(Special::Device(
            kind,
            (le64(rest, 0).ok()?, le64(rest, 8).ok()?),
        ))
    };
    match mark {
        INTERIX_CHR => device(NodeKind::CharDevice),
        INTERIX_BLK => device(NodeKind::BlockDevice),
        INTERIX_LINK => {
            let (pairs, _) = rest.as_chunks();
            let units: Vec<u16> = pairs
                .iter()
                .map(|pair| u16::from_le_bytes(*pair))
                .take_while(|&unit| unit != 0)
                .collect();
            Some(Special::Link(utf16::to_bytes(&units))).filter(|_| !units.is_empty())
        }
        _ => None,
    }
}

/// The value of an extended attribute among all of them: each has the distance to the next one (0 or the end of
/// all behind the last) at 0, the length of its name at 5 and of its value at 6, and the name, a zero byte
/// and the value at 8. Names are in upper case.
///
/// # Errors
/// `Corrupt` when one of them leaves them.
pub fn extended_attribute(all: &[u8], name: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut rest = all;
    while !rest.is_empty() {
        let next = le32(rest, 0)? as usize;
        let name_len = usize::from(byte(rest, 5)?);
        let value_len = usize::from(le16(rest, 6)?);
        if part(rest, 8, name_len)?.eq_ignore_ascii_case(name) {
            return part(rest, 8 + name_len + 1, value_len).map(|value| Some(value.to_vec()));
        }
        if next == 0 {
            break;
        }
        if next < 8 {
            return Err(bad("an extended attribute makes no sense"));
        }
        rest = rest
            .get(next..)
            .ok_or_else(|| bad("an extended attribute leaves its file"))?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    fn attributes(list: &[(&[u8], &[u8])], ends_with_zero: bool) -> Vec<u8> {
        let mut all = Vec::new();
        for (index, (name, value)) in list.iter().enumerate() {
            let len = (9 + name.len() + value.len()).next_multiple_of(4);
            let is_last = index + 1 == list.len();
            let next = if is_last && ends_with_zero { 0 } else { len };
            let start = all.len();
            all.extend((next as u32).to_le_bytes());
            all.extend([0, name.len() as u8, value.len() as u8, 0]);
            all.extend_from_slice(name);
            all.push(0);
            all.extend_from_slice(value);
            all.resize(start + len, 0);
        }
        all
    }

    #[test]
    fn extended_attributes_are_found_by_their_name() {
        let list: [(&[u8], &[u8]); 3] = [
            (b"$LXUID", &[1, 2, 3, 4]),
            (b"$LXDEV", &[8, 0, 0, 0, 17, 0, 0, 0]),
            (b"$LXMOD", &[9]),
        ];
        for ends_with_zero in [true, false] {
            let all = attributes(&list, ends_with_zero);
            let found = extended_attribute(&all, LXDEV).unwrap().unwrap();
            assert_eq!(lxdev(&found).unwrap(), (8, 17));
            assert_eq!(extended_attribute(&all, b"$LXMOD").unwrap(), Some(vec![9]));
            assert_eq!(extended_attribute(&all, b"$LXGID").unwrap(), None);
        }
        let all = attributes(&list, true);
        assert!(extended_attribute(&all[..30], LXDEV).is_err());
        for (at, value) in [(0, 4), (1, 1), (6, 0)] {
            let mut damaged = all.clone();
            damaged[at] = value;
            let found = extended_attribute(&damaged, LXDEV);
            assert_eq!(found.is_ok(), at == 6, "{at}");
        }
        assert!(lxdev(&[1, 2, 3]).is_err());
    }

    #[test]
    fn tags_of_wsl_are_types() {
        let of = |tag, device: Option<Device>| of_wsl(tag, || Ok(device)).unwrap();
        assert_eq!(of(TAG_LX_FIFO, None), Some(Special::Plain(NodeKind::Fifo)));
        assert_eq!(
            of(TAG_AF_UNIX, None),
            Some(Special::Plain(NodeKind::Socket))
        );
        let block = Special::Device(NodeKind::BlockDevice, (8, 17));
        assert_eq!(of(TAG_LX_BLK, Some((8, 17))), Some(block));
        assert_eq!(of(TAG_LX_CHR, None), None);
        assert_eq!(of(0x8000_0017, Some((8, 17))), None);
        assert!(of_wsl(TAG_LX_CHR, || Err(Error::corrupt("x"))).is_err());
    }

    #[test]
    fn system_files_are_what_interix_means_by_them() {
        let of = |attributes, content: &[u8]| {
            of_interix(attributes, content.len() as u64, || Ok(content.to_vec())).unwrap()
        };
        let system = ATTRIBUTE_SYSTEM | 0x20;
        assert_eq!(of(system, b""), Some(Special::Plain(NodeKind::Fifo)));
        assert_eq!(of(system, b"\0"), Some(Special::Plain(NodeKind::Socket)));
        for hidden in [b"".as_slice(), b"\0"] {
            assert_eq!(of(system | ATTRIBUTE_HIDDEN, hidden), None);
            assert_eq!(of(0x20, hidden), None);
        }
        let device = [
            INTERIX_CHR.as_slice(),
            &1u64.to_le_bytes(),
            &5u64.to_le_bytes(),
        ]
        .concat();
        let char_device = Special::Device(NodeKind::CharDevice, (1, 5));
        assert_eq!(of(system, &device), Some(char_device));
        assert_eq!(of(system, &device[..23]), None);
        assert_eq!(of(0x20, &device), None);
        let link = [INTERIX_LINK.as_slice(), b"a\0/\0b\0"].concat();
        assert_eq!(of(system, &link), Some(Special::Link(b"a/b".to_vec())));
        assert_eq!(of(system, b"IntxLNK\x01\0\0"), None);
        assert_eq!(of(system, b"IntxSomething"), None);
        // Too long to be one: not looked at.
        let none = of_interix(system, MAX_INTERIX_BYTES + 1, || panic!("read"));
        assert_eq!(none.unwrap(), None);
    }
}
