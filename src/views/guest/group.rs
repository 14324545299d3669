//! `lvm/<group>/`: the logical volumes of a group.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::attributes::{Attributes, add_problem, describe, in_words, names_of, value_of};
use super::context::GuestContext;
use super::lazy::Lazy;
use super::volume::{content_of, push_volume};
use crate::error::Result;
use crate::tree::{Attr, Base, DirStream, Directory, Identity, Node};
use crate::views::children::Children;
use crate::volume::lvm::VolumeGroup;

pub(super) struct GroupDir {
    context: GuestContext,
    group: VolumeGroup,
    volumes: Lazy<Children<'static>>,
}

impl GroupDir {
    pub(super) fn new(context: GuestContext, group: VolumeGroup) -> Self {
        GroupDir {
            context,
            group,
            volumes: Lazy::new(),
        }
    }

    fn attributes(&self) -> Attributes {
        let mut attributes = Vec::new();
        add_problem(&mut attributes, self.group.problems.iter().map(in_words));
        attributes
    }

    fn children(&self) -> Result<Arc<Children<'static>>> {
        self.volumes.get(|| {
            let mut children = Children::default();
            for logical in &self.group.volumes {
                let content = content_of(&logical.volume)?;
                let place = format!("lvm/{}/{}", self.group.name, logical.name);
                push_volume(
                    &self.context,
                    &mut children,
                    &logical.name,
                    &place,
                    (content, logical.volume.clone()),
                    describe(content, &[]),
                );
            }
            Ok(children)
        })
    }
}

impl Base for GroupDir {
    fn identity(&self) -> Identity {
        let place = format!("lvm/{}/{}", self.group.name, self.group.id);
        self.context.identity_of(&place)
    }

    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(self.context.time))
    }

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        Ok(names_of(&self.attributes()))
    }

    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        Ok(value_of(&self.attributes(), name))
    }
}

impl Directory for GroupDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        self.children()?.lookup(name)
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        Ok(self.children()?.list())
    }
}
