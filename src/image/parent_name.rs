//! The names by which a differencing disk knows its parent, besides XO's.
//!
//! XO keeps a path with slashes, relative to the child's directory, in the header's "Parent Unicode
//! Name". Others follow the specification: that field holds a Windows path or just a file name, and up
//! to eight parent locators hold more: `W2ru` a relative Windows path, `W2ku` an absolute one (both
//! UTF-16, little-endian), `MacX` a `file:` URL. Files that were copied somewhere else since are
//! still beside each other, as a rule, so of an absolute path the file's name counts.

use crate::codec::percent::percent_decode;

/// Longest locator that is read: longer than any path.
pub(super) const MAX_LOCATOR_BYTES: u32 = 64 << 10;

/// The path that a locator holds, as it is written there.
pub(super) fn locator_path(platform_code: [u8; 4], data: &[u8]) -> Option<String> {
    let path = match &platform_code {
        b"W2ru" | b"W2ku" => {
            let units = data.as_chunks::<2>().0.iter();
            let units: Vec<u16> = units
                .map(|pair| u16::from_le_bytes(*pair))
                .take_while(|&unit| unit != 0)
                .collect();
            String::from_utf16(&units).ok()?
        }
        b"MacX" => {
            let end = data.iter().position(|&b| b == 0).unwrap_or(data.len());
            let url = std::str::from_utf8(&data[..end]).ok()?;
            // What is after the host's name, which is empty or `localhost`.
            let path = url.strip_prefix("file://").unwrap_or(url);
            let path = &path[path.find('/').unwrap_or(0)..];
            format!("\\{}", percent_decode(path, false)?.trim_start_matches('/'))
        }
        _ => return None,
    };
    (!path.is_empty()).then_some(path)
}

/// The path to look at, with slashes and relative to the child's directory; `None` when the name
/// tells no file. XO's own absolute paths, which begin with a slash, are not for here.
pub(super) fn relative_path(name: &str) -> Option<String> {
    let path = name.replace('\\', "/");
    let drive = path.as_bytes().get(1) == Some(&b':');
    let path = match drive || path.starts_with('/') {
        // Of another machine, or another place: its directories mean nothing here.
        true => path.rsplit(['/', ':']).next()?,
        false => &path,
    };
    let file = path.rsplit('/').next()?;
    let is_file = !file.is_empty() && file != "." && file != ".." && !path.contains('\0');
    is_file.then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locators_are_read_as_the_specification_has_them() {
        let utf16 =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        let path = locator_path(*b"W2ru", &utf16(".\\ü\\base.vhd\0\0"));
        assert_eq!(path.as_deref(), Some(".\\ü\\base.vhd"));
        let path = locator_path(*b"W2ku", &utf16("C:\\VMs\\base.vhd"));
        assert_eq!(path.as_deref(), Some("C:\\VMs\\base.vhd"));
        for url in [
            "file:///Users/a/My%20Disk.vhd",
            "file://localhost/Users/a/My%20Disk.vhd\0",
        ] {
            let path = locator_path(*b"MacX", url.as_bytes()).unwrap();
            assert_eq!(relative_path(&path).as_deref(), Some("My Disk.vhd"));
        }
        assert_eq!(locator_path(*b"W2ru", &[]), None);
        assert_eq!(locator_path(*b"Mac ", b"alias"), None);
        assert_eq!(locator_path(*b"W2ku", &[0x00, 0xD8]), None);
    }

    #[test]
    fn windows_paths_become_relative_ones() {
        for (name, path) in [
            ("base.vhd", Some("base.vhd")),
            (".\\base.vhd", Some("./base.vhd")),
            ("..\\..\\a b\\base.vhd", Some("../../a b/base.vhd")),
            ("C:\\VMs\\web 01\\web 01.vhd", Some("web 01.vhd")),
            ("c:base.vhd", Some("base.vhd")),
            ("\\\\server\\share\\base.vhd", Some("base.vhd")),
            ("\\\\?\\C:\\base.vhd", Some("base.vhd")),
            ("\\\\?\\Volume{1}\\x\\base.vhd", Some("base.vhd")),
            ("..", None),
            ("C:\\", None),
            ("", None),
            ("a\\", None),
        ] {
            assert_eq!(relative_path(name).as_deref(), path, "{name}");
        }
    }
}
