//! `by-uuid/<vm uuid> -> ../vms/<name (uuid8)>`.

use std::ffi::OsStr;
use std::sync::Arc;

use super::context::ViewContext;
use super::nodes::{Link, entry, identity, stream_until};
use crate::error::Result;
use crate::repo::catalogue::NamedVm;
use crate::tree::{Attr, Base, DirStream, Directory, Identity, Node, NodeKind};

/// One link per VM.
pub(super) struct ByUuidDir {
    context: Arc<ViewContext>,
}

impl ByUuidDir {
    pub(super) fn new(context: Arc<ViewContext>) -> Self {
        ByUuidDir { context }
    }
}

fn target(vm: &NamedVm) -> String {
    format!("../vms/{}", vm.name)
}

impl Base for ByUuidDir {
    fn identity(&self) -> Identity {
        identity(&["by-uuid"], None)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(self.context.since))
    }
}

impl Directory for ByUuidDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        let Some(name) = name.to_str() else {
            return Ok(None);
        };
        let Some(vm) = self.context.catalogue.vm_by_folder(name)? else {
            return Ok(None);
        };
        vm.check_name()?;
        let link = Link::new(target(&vm), self.context.since);
        Ok(Some(Node::Leaf(Arc::new(link))))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        let mut vms = self.context.catalogue.vms()?;
        vms.sort_by(|a, b| a.vm.folder().cmp(b.vm.folder()));
        let failed = vms.iter().find_map(|vm| vm.check_name().err());
        let named = vms.iter().filter(|vm| !vm.is_name_unknown);
        let entries = named.map(|vm| {
            let identity = Link::identity_of(&target(vm));
            entry(vm.vm.folder(), NodeKind::Symlink, identity)
        });
        stream_until(entries.collect(), failed)
    }
}
