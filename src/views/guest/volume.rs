//! A volume in the directory that holds it: `name.raw`, and `name/` with its files.

use std::sync::{Arc, OnceLock};

use super::attributes::Attributes;
use super::context::GuestContext;
use super::files::GuestTree;
use super::raw_file::RawFile;
use super::root::RootDir;
use super::search::other_volumes;
use crate::error::{Error, ErrorKind, Result};
use crate::guestfs::host::pool::Pooled;
use crate::guestfs::{is_readable, open_among};
use crate::io::ReadAt;
use crate::tree::Node;
use crate::views::children::{Child, Children};
use crate::volume::{self, Content};

/// Adds `name.raw`, and `name` when its file system can be read.
pub(super) fn push_volume(
    context: &GuestContext,
    children: &mut Children<'static>,
    name: &str,
    place: &str,
    (content, volume): (Content, Arc<dyn ReadAt>),
    attributes: Attributes,
) {
    push_raw(context, children, name, place, volume.clone(), attributes);
    if is_readable(content) {
        let identity = context.identity_of(place);
        let tree = guest_tree(context, place, content, volume);
        let dir = Node::Dir(Arc::new(RootDir::new(identity, context.time, tree)));
        children.push(Child::of(name, dir));
    }
}

/// Adds `name.raw`.
pub(super) fn push_raw(
    context: &GuestContext,
    children: &mut Children<'static>,
    name: &str,
    place: &str,
    volume: Arc<dyn ReadAt>,
    attributes: Attributes,
) {
    let raw = Node::File(Arc::new(RawFile {
        identity: context.identity_of(&format!("{place}.raw")),
        time: context.time,
        volume,
        attributes,
    }));
    children.push(Child::of(format!("{name}.raw"), raw));
}

/// The files of a volume at `place`; opened when they are first needed.
pub(super) fn guest_tree(
    context: &GuestContext,
    place: &str,
    content: Content,
    volume: Arc<dyn ReadAt>,
) -> Arc<GuestTree> {
    let disks = context.disks.clone();
    let own = place.to_string();
    let first = OnceLock::new();
    let make = Box::new(move || {
        let others = |content| other_volumes(&disks, content, &own);
        let fs = open_among(content, volume.clone(), &others)?;
        // What the kernel knows by inode numbers is of the state that was opened first.
        if *first.get_or_init(|| fs.state()) != fs.state() {
            return Err(Error::new(
                ErrorKind::Changed,
                "a volume that the file system needs can no longer be read, and without it it is another one",
            ));
        }
        Ok(fs)
    });
    GuestTree::new(
        Pooled::new(context.pool.clone(), make),
        context.options,
        context.number_of(&format!("{place}:files")),
    )
}

/// What a volume holds. One that is damaged at its start still has its raw file.
///
/// # Errors
/// What kept it from being fetched.
pub(super) fn content_of(volume: &Arc<dyn ReadAt>) -> Result<Content> {
    match volume::identify(&**volume) {
        Err(error) if error.may_pass() => Err(error),
        content => Ok(content.unwrap_or(Content::Unknown)),
    }
}
