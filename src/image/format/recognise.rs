//! What a thing is, by its name and by its first bytes: the one place that knows.

use crate::error::{Error, ErrorKind};

/// Endings of VHDs: Hyper-V calls those of its checkpoints `.avhd`.
const VHD_ENDINGS: [&str; 2] = [".vhd", ".avhd"];

/// Endings of disk images that are recognised in order to be refused by name.
const FOREIGN_ENDINGS: [&str; 5] = [".vhdx", ".avhdx", ".qcow2", ".vmdk", ".vdi"];

fn ends_with_any(name: &str, endings: &[&str]) -> bool {
    let name = name.to_ascii_lowercase();
    endings.iter().any(|ending| name.ends_with(ending))
}

/// Whether a name in a directory of images is that of a VHD or of an alias. Names that start with a
/// dot are XO's temporary files. Windows does not care about case.
pub(in crate::image) fn is_vhd_name(name: &str) -> bool {
    !name.starts_with('.') && ends_with_any(name, &VHD_ENDINGS)
}

/// Whether a path is named as a disk image is, of whatever format: where nothing else tells a
/// repository from an image in it.
pub fn is_image_name(name: &str) -> bool {
    ends_with_any(name, &VHD_ENDINGS) || ends_with_any(name, &FOREIGN_ENDINGS)
}

/// What a file is that starts like this and is no VHD, whatever it is called.
fn foreign_format(start: &[u8]) -> Option<&'static str> {
    let le32_at = |at: usize| {
        let bytes = start.get(at..at + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    if start.starts_with(b"vhdxfile") {
        Some("VHDX")
    } else if start.starts_with(b"QFI\xFB\0\0\0\x01") {
        Some("qcow")
    } else if start.starts_with(b"QFI\xFB") {
        Some("qcow2")
    } else if start.starts_with(b"KDMV") || start.starts_with(b"# Disk DescriptorFile") {
        Some("VMDK")
    } else if le32_at(64) == Some(0xBEDA_107F) {
        Some("VDI")
    } else {
        None
    }
}

/// Why a file that starts like this is not read, when it is an image of another format.
pub(in crate::image) fn refuse_foreign(start: &[u8]) -> Option<Error> {
    let format = foreign_format(start)?;
    Some(Error::new(
        ErrorKind::Unsupported,
        format!(
            "is a {format} image, not a VHD: brfs does not read {format} (`qemu-img convert -O raw` \
             makes a raw disk of it)"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_known_by_their_first_bytes() {
        let start = |at: usize, mark: &[u8]| {
            let mut start = vec![0; 512];
            start[at..at + mark.len()].copy_from_slice(mark);
            start
        };
        for (at, mark, format) in [
            (0, &b"vhdxfile"[..], Some("VHDX")),
            (0, b"QFI\xFB\0\0\0\x02", Some("qcow2")),
            (0, b"QFI\xFB\0\0\0\x03", Some("qcow2")),
            (0, b"QFI\xFB\0\0\0\x01", Some("qcow")),
            (0, b"KDMV", Some("VMDK")),
            (64, b"\x7F\x10\xDA\xBE", Some("VDI")),
            (0, b"conectix", None),
            (1, b"vhdxfile", None),
        ] {
            assert_eq!(foreign_format(&start(at, mark)), format);
        }
        assert_eq!(foreign_format(b"vhd"), None);
    }

    #[test]
    fn names_of_images_are_known_in_any_case() {
        for name in [
            "a.vhd",
            "B.VHD",
            "c_1.avhd",
            "D.AVhd",
            "20260301T013000Z.alias.vhd",
        ] {
            assert!(is_vhd_name(name) && is_image_name(name), "{name}");
        }
        for name in ["a.vhdx", "b.QCOW2", "c.vmdk"] {
            assert!(!is_vhd_name(name) && is_image_name(name), "{name}");
        }
        assert!(!is_vhd_name(".1700000000000.a.vhd"));
        assert!(!is_image_name("vhd") && !is_image_name("a.vhd.json"));
    }
}
