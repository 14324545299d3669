//! `by-date/<day>/<name (uuid8)>/<date> -> ../../../vms/<name (uuid8)>/<date>`: the restore points
//! of all VMs by the (UTC) day they were made.
//!
//! Days come from the points' names, so that no metadata is read. Of a VM that cannot be listed it is not
//! known which days it has: listings end with its error, after what the other VMs have.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::sync::Arc;
use std::time::SystemTime;

use super::context::{ViewContext, point_time};
use super::nodes::{Link, entry, identity, stream, stream_until};
use crate::error::{ErrorKind, Result};
use crate::parallel::parallel_map;
use crate::repo::catalogue::NamedVm;
use crate::repo::{Listing, Vm, date};
use crate::tree::{Attr, Base, DirStream, Directory, Identity, Node, NodeKind};

fn day_time(prefix: &str, otherwise: SystemTime) -> SystemTime {
    point_time(&format!("{prefix}T000000Z"), otherwise)
}

fn has_day(vm: &Vm, prefix: &str) -> Result<bool> {
    Ok(listing_of(vm)?.is_some_and(|listing| listing.with_prefix(prefix).next().is_some()))
}

/// The listing of a VM, `None` when it was removed meanwhile.
fn listing_of(vm: &Vm) -> Result<Option<Arc<Listing>>> {
    match vm.listing() {
        Ok(listing) => Ok(Some(listing)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// `by-date/`: one directory per day.
pub(super) struct DaysDir {
    context: Arc<ViewContext>,
}

impl DaysDir {
    pub(super) fn new(context: Arc<ViewContext>) -> Self {
        DaysDir { context }
    }
}

fn day_identity(prefix: &str) -> Identity {
    identity(&["day", prefix], None)
}

impl Base for DaysDir {
    fn identity(&self) -> Identity {
        identity(&["by-date"], None)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(self.context.since))
    }
}

impl Directory for DaysDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        let Some(prefix) = name.to_str().and_then(date::prefix_of_day) else {
            return Ok(None);
        };
        let folders = self.context.catalogue.folders()?;
        let mut failed = None;
        for vm in folders.vms.values() {
            match has_day(vm, &prefix) {
                Ok(true) => {
                    let context = self.context.clone();
                    return Ok(Some(Node::Dir(Arc::new(DayDir { context, prefix }))));
                }
                Ok(false) => {}
                Err(e) => failed = Some(e),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        let folders = self.context.catalogue.folders()?;
        let vms: Vec<&Arc<Vm>> = folders.vms.values().collect();
        let threads = self.context.catalogue.store().traits().parallelism;
        let of_vms = parallel_map(&vms, threads, |vm| {
            let listing = listing_of(vm)?;
            let points = listing.iter().flat_map(|listing| &listing.points);
            let days = points.filter_map(|point| date::day_of(&point.name));
            Ok(days.collect::<BTreeSet<String>>())
        });
        let mut days = BTreeSet::new();
        let mut failed = None;
        for of_vm in of_vms {
            match of_vm {
                Ok(of_vm) => days.extend(of_vm),
                Err(e) => failed = Some(e),
            }
        }
        let entries = days.iter().map(|day| {
            let identity = day_identity(&day.replace('-', ""));
            entry(day, NodeKind::Dir, identity)
        });
        stream_until(entries.collect(), failed)
    }
}

/// `by-date/<day>/`: one directory per VM with a restore point of that day.
struct DayDir {
    context: Arc<ViewContext>,
    prefix: String,
}

fn day_vm_identity(prefix: &str, vm: &Vm) -> Identity {
    identity(&["day-vm", prefix, vm.folder()], None)
}

impl Base for DayDir {
    fn identity(&self) -> Identity {
        day_identity(&self.prefix)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(day_time(&self.prefix, self.context.since)))
    }
}

impl Directory for DayDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        let Some(name) = name.to_str() else {
            return Ok(None);
        };
        let vm = self.context.catalogue.vm_by_name(name)?;
        let Some(vm) = vm else { return Ok(None) };
        if !has_day(&vm.vm, &self.prefix)? {
            return Ok(None);
        }
        let dir = DayVmDir {
            context: self.context.clone(),
            prefix: self.prefix.clone(),
            vm,
        };
        Ok(Some(Node::Dir(Arc::new(dir))))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        let catalogue = &self.context.catalogue;
        let folders = catalogue.folders()?;
        let vms: Vec<&Arc<Vm>> = folders.vms.values().collect();
        let named = parallel_map(&vms, catalogue.store().traits().parallelism, |vm| {
            if !has_day(vm, &self.prefix)? {
                return Ok(None);
            }
            let named = catalogue.name_vm(&folders, vm);
            named.map(|vm| vm.check_name().map(|()| vm)).transpose()
        });
        let mut failed = None;
        let keep_error = |vm: Result<Option<NamedVm>>| {
            vm.unwrap_or_else(|e| {
                failed = Some(e);
                None
            })
        };
        let mut named: Vec<NamedVm> = named.into_iter().filter_map(keep_error).collect();
        named.sort_by(|a, b| a.name.cmp(&b.name));
        let entries = named.iter().map(|vm| {
            let identity = day_vm_identity(&self.prefix, &vm.vm);
            entry(&vm.name, NodeKind::Dir, identity)
        });
        stream_until(entries.collect(), failed)
    }
}

/// `by-date/<day>/<name>/`: links to the restore points of that day.
struct DayVmDir {
    context: Arc<ViewContext>,
    prefix: String,
    vm: NamedVm,
}

impl DayVmDir {
    fn target(&self, point: &str) -> String {
        format!("../../../vms/{}/{point}", self.vm.name)
    }
}

impl Base for DayVmDir {
    fn identity(&self) -> Identity {
        day_vm_identity(&self.prefix, &self.vm.vm)
    }
    fn attr(&self) -> Result<Attr> {
        Ok(Attr::dir(day_time(&self.prefix, self.context.since)))
    }
}

impl Directory for DayVmDir {
    fn lookup(&self, name: &OsStr) -> Result<Option<Node>> {
        let Some(name) = name.to_str().filter(|n| n.starts_with(&self.prefix)) else {
            return Ok(None);
        };
        let listing = self.vm.vm.listing()?;
        Ok(listing.find(name).map(|point| {
            let time = point_time(&point.name, self.context.since);
            let link = Link::new(self.target(&point.name), time);
            Node::Leaf(Arc::new(link))
        }))
    }

    fn list(&self) -> Result<Box<dyn DirStream>> {
        let listing = self.vm.vm.listing()?;
        let entries = listing.with_prefix(&self.prefix).map(|point| {
            let identity = Link::identity_of(&self.target(&point.name));
            entry(&point.name, NodeKind::Symlink, identity)
        });
        stream(entries.collect())
    }
}
