//! What a VHD's footer and header tell that an image of any format has.

use super::{DiskType, Footer, Header};
use crate::image::format::{Facts, ParentReference};

/// The facts of a VHD that holds its blocks plainly and is read in place; `block_size` is that of the
/// header, where there is one.
pub(in crate::image) fn facts(
    format: &'static str,
    footer: &Footer,
    header: Option<&Header>,
    block_size: u32,
) -> Facts {
    let differencing = header.filter(|_| footer.disk_type == DiskType::Differencing);
    Facts {
        format,
        compression: "none",
        disk_type: footer.disk_type.as_str(),
        creator: footer.creator(),
        uuid: footer.uuid,
        parent: differencing.map(|header| ParentReference {
            uuid: header.parent_uuid,
            name: header.parent_unicode_name.clone(),
        }),
        size: footer.current_size,
        block_size,
        bitmap_bytes: header.map_or(0, Header::bitmap_bytes),
        reads_whole_blocks: false,
        newest_part: None,
        problems: Vec::new(),
        trailing: None,
    }
}
