//! `vms/` and the directories of the VMs in it.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use super::context::{ViewContext, point_time};
use super::link_dir::LinkDir;
use super::nodes::{Link, Xattrs, entry, identity, is_ours, point_identity, stream_until};
use super::point::PointDir;
use crate::error::Result;
use crate::parallel::parallel_map;
use crate::repo::catalogue::NamedVm;
use crate::repo::{PointRef, Vm};
use crate::store::LinkFault;
use crate::tree::{Attr, Base, DirStream, Directory, Identity, Node, NodeKind};

/// The link to the newest restore point.
const LATEST: &str = "latest";

/// `vms/`: one directory per VM that has restore points.
pub(super) struct VmsDir {
    context: Arc<ViewContext>,
}

impl VmsDir {
    pub(super) fn new(context: Arc<ViewContext>) -> Self {
        VmsDir { context }
    }
}

impl Base for VmsDir {
    fn identity(&self) -> Identity {
        identity(&["vms"], None)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(self.context.since))
    }
}

impl Directory for VmsDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        let Some(name) = name.to_str() else {
            return Ok(None);
        };
        let Some(vm) = self.context.catalogue.vm_by_name(name)? else {
            return Ok(None);
        };
        if let Some(link) = vm.vm.link() {
            let reason = link.error(vm.vm.dir());
            let dir = LinkDir::new(vm_identity(&vm.vm), self.context.since, reason);
            return Ok(Some(Node::Dir(Arc::new(dir))));
        }
        let dir = VmDir::new(self.context.clone(), vm);
        Ok(Some(Node::Dir(Arc::new(dir))))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        let vms = self.context.catalogue.vms()?;
        let failed = vms.iter().find_map(|vm| vm.check_name().err());
        let entries = vms
            .iter()
            .filter(|vm| !vm.is_name_unknown)
            .map(|vm| entry(&vm.name, NodeKind::Dir, vm_identity(&vm.vm)));
        stream_until(entries.collect(), failed)
    }
}

fn vm_identity(vm: &Vm) -> Identity {
    identity(&["vm", vm.folder()], None)
}

/// What keeps a VM's directory from being shown in full.
fn problem_of(vm: &Vm) -> String {
    match vm.listing() {
        Ok(listing) => {
            let link = |(name, fault): &(String, LinkFault)| fault.error(&vm.dir().child(name));
            let links = listing.links.iter().map(|l| link(l).to_string());
            links.collect::<Vec<_>>().join("; ")
        }
        Err(e) => e.to_string(),
    }
}

/// `vms/<name>/`: one directory per restore point, and `latest`.
struct VmDir {
    context: Arc<ViewContext>,
    vm: NamedVm,
}

impl VmDir {
    fn new(context: Arc<ViewContext>, vm: NamedVm) -> Self {
        VmDir { context, vm }
    }

    fn xattrs(&self) -> Xattrs {
        let mut xattrs = Xattrs::default();
        xattrs.add("uuid", self.vm.vm.folder().to_owned());
        xattrs.add("name", self.vm.label.as_deref().map(str::to_owned));
        // Asked anew: the node may be older than the fault, or outlive it.
        xattrs.add("problem", problem_of(&self.vm.vm));
        xattrs
    }

    fn link(&self, newest: &PointRef) -> Link {
        let time = point_time(&newest.name, self.context.since);
        Link::new(newest.name.clone(), time)
    }
}

impl Base for VmDir {
    fn identity(&self) -> Identity {
        vm_identity(&self.vm.vm)
    }

    /// The time is that of the newest restore point.
    fn attr(&self) -> Result<Attr> {
        let since = self.context.since;
        let newest = self.vm.vm.newest_date()?;
        let time = newest.map_or(since, |name| point_time(&name, since));
        Ok(Attr::dir(time))
    }

    fn xattr_names(&self) -> Result<Vec<OsString>> {
        Ok(self.xattrs().names())
    }
    fn xattr(&self, name: &OsStr) -> Result<Option<Vec<u8>>> {
        if !is_ours(name) {
            return Ok(None);
        }
        Ok(self.xattrs().get(name))
    }
}

impl Directory for VmDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        let Some(name) = name.to_str() else {
            return Ok(None);
        };
        let point = (name != LATEST).then_some(name);
        let listing = self.vm.vm.listing_towards(point)?;
        if name == LATEST {
            return Ok(listing
                .newest()
                .map(|newest| Node::Leaf(Arc::new(self.link(newest)))));
        }
        let Some(point) = listing.find(name) else {
            return Ok(None);
        };
        let json = self.vm.vm.json_path(&point.name);
        if let Some(link) = point.link {
            let identity = point_identity(&json, None, "dir");
            let time = point_time(&point.name, self.context.since);
            let dir = LinkDir::new(identity, time, link.error(&json));
            return Ok(Some(Node::Dir(Arc::new(dir))));
        }
        let Some(meta) = self.vm.vm.point_meta(point)? else {
            return Ok(None);
        };
        let dir = PointDir::new(
            self.context.clone(),
            self.vm.vm.clone(),
            point.name.clone(),
            meta.version,
        );
        Ok(Some(Node::Dir(Arc::new(dir))))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        let vm = &self.vm.vm;
        let listing = vm.listing()?;
        let threads = match vm.store().traits() {
            traits if traits.remote => traits.parallelism,
            _ => 1,
        };
        let versions = parallel_map(&listing.points, threads, |point| match point.link {
            Some(_) => Ok(None),
            None => Ok(Some(vm.point_meta(point)?.map(|meta| meta.version))),
        });
        let mut failed = None;
        let mut entries = Vec::with_capacity(listing.points.len() + 1);
        let mut newest = None;
        for (point, version) in listing.points.iter().zip(versions) {
            let version = match version {
                // Removed meanwhile.
                Ok(Some(None)) => continue,
                Ok(version) => version.flatten(),
                // Listed as the directory told of it, and then the error: it may be gone as well.
                Err(e) => {
                    failed.get_or_insert(e);
                    None
                }
            };
            let identity = point_identity(&vm.json_path(&point.name), version, "dir");
            entries.push(entry(&point.name, NodeKind::Dir, identity));
            newest = Some(point);
        }
        if let Some(newest) = newest {
            let identity = Link::identity_of(&newest.name);
            entries.push(entry(LATEST, NodeKind::Symlink, identity));
        }
        stream_until(entries, failed)
    }
}
