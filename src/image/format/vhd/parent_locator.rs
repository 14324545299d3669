//! The names of its parent that a VHD's parent locators hold.
//!
//! By the specification, up to eight parent locators tell where the parent is: `W2ru` a relative Windows
//! path, `W2ku` an absolute one (both UTF-16, little-endian), `MacX` a `file:` URL.

use super::ParentLocator;
use crate::codec::percent::percent_decode;
use crate::error::{ErrorKind, Result};

/// Longest locator that is read: longer than any path.
pub(in crate::image) const MAX_LOCATOR_BYTES: u32 = 64 << 10;

/// The names that these locators hold; `read` reads what one leads to.
///
/// # Errors
/// As the storage says.
pub(in crate::image) fn parent_names(
    locators: &[ParentLocator],
    read: impl Fn(&ParentLocator) -> Result<Vec<u8>>,
) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for locator in locators {
        match read(locator) {
            Ok(data) => names.extend(locator_path(locator.platform_code, &data)),
            // Not there, or not what it should be: there are other ways.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(names)
}

/// The path that a locator holds, as it is written there.
fn locator_path(platform_code: [u8; 4], data: &[u8]) -> Option<String> {
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
            assert_eq!(path, "\\Users/a/My Disk.vhd");
        }
        assert_eq!(locator_path(*b"W2ru", &[]), None);
        assert_eq!(locator_path(*b"Mac ", b"alias"), None);
        assert_eq!(locator_path(*b"W2ku", &[0x00, 0xD8]), None);
    }
}
