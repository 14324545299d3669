//! Repositories of many VMs with many restore points, for listings: metadata of realistic size, no
//! disks worth mentioning. A thousand VMs of thirty points take seconds.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::chain::Chain;
use super::dates::{SERIES_START_S, date_name};
use super::files::write_file;
use super::records::{Point, PointDisk, Vbd, delta_metadata, opaque_ref};
use super::repo::gzip;
use super::rng::{Rng, uuid_text};
use super::sparse::Fill;

/// What a catalogue holds besides metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    pub vms: usize,
    pub points_per_vm: usize,
    pub disks_per_vm: usize,
    /// Write each VM's `cache.json.gz`.
    pub caches: bool,
    /// Let every VHD path lead to a small VHD (hard links to one); else they lead nowhere.
    pub vhds: bool,
}

impl Options {
    /// VMs with two disks, with caches, without VHDs.
    pub fn new(vms: usize, points_per_vm: usize) -> Self {
        Self {
            vms,
            points_per_vm,
            disks_per_vm: 2,
            caches: true,
            vhds: false,
        }
    }
}

/// Name of the n-th VM of a catalogue.
pub fn vm_name(index: usize) -> String {
    format!("vm-{index:04} / rack {}", index % 40)
}

/// Writes the catalogue; returns the uuids of its VMs.
pub fn write(repository: &Path, options: Options) -> Vec<String> {
    let mut rng = Rng::new(0x636174);
    let shared_vhd = options.vhds.then(|| {
        let mut chain = Chain::new();
        let layer = chain.push(&mut rng, 1 << 20);
        layer.block_size(4096).write(0, 1, Fill::Random(1));
        let written = chain.write(&repository.join(".shared"));
        written.youngest().to_owned()
    });
    let mut uuids = Vec::new();
    for index in 0..options.vms {
        let uuid = rng.uuid_text();
        let directory = repository.join("xo-vm-backups").join(&uuid);
        write_vm(
            &directory,
            &uuid,
            index,
            options,
            &mut rng,
            shared_vhd.as_deref(),
        );
        uuids.push(uuid);
    }
    uuids
}

/// Stands for a date in the template of a VM's metadata.
const DATE_MARK: &str = "00000000T000000Z";

fn write_vm(
    directory: &Path,
    uuid: &str,
    index: usize,
    options: Options,
    rng: &mut Rng,
    shared_vhd: Option<&Path>,
) {
    let job = rng.uuid_text();
    let disks: Vec<PointDisk> = (0..options.disks_per_vm)
        .map(|disk| {
            let live_uuid = rng.uuid_text();
            PointDisk {
                vdi_ref: opaque_ref(rng),
                vbd: Some(Vbd::nth(disk)),
                snapshot_uuid: uuid_text(&rng.uuid()),
                vhd: format!("vdis/{job}/{live_uuid}/{DATE_MARK}.vhd"),
                live_uuid,
                name_label: json!(format!("disk {disk}")),
                virtual_size: 1 << 20,
                kind: "user".to_owned(),
                base_uuid: None,
            }
        })
        .collect();
    let point = Point {
        epoch_s: 0,
        job,
        schedule: rng.uuid_text(),
        vm_uuid: uuid.to_owned(),
        vm_name: json!(vm_name(index)),
        vm_description: "generated".to_owned(),
        vm_tags: vec!["catalogue".to_owned()],
        tags: Vec::new(),
    };
    // One template per VM, then text replacement: building 30,000 JSON trees would take minutes in
    // unoptimised test builds.
    let template = delta_metadata(rng, &point, &disks);
    let template = template.to_string();
    let mut cache = String::from("{");
    for number in 0..options.points_per_vm {
        // Points of different VMs are some seconds apart, days of one VM a day.
        let epoch_s = SERIES_START_S + 86_400 * number as u64 + index as u64 % 3_600;
        let date = date_name(epoch_s);
        let text = template.replace(DATE_MARK, &date).replace(
            "\"timestamp\":0",
            &format!("\"timestamp\":{}", epoch_s * 1000),
        );
        write_file(&directory.join(format!("{date}.json")), text.as_bytes());
        if options.caches {
            let key = Value::String(super::repo::cache_key(uuid, &date));
            let separator = if number == 0 { "" } else { "," };
            let fields = text.trim_end_matches('}');
            let closing = &text[fields.len()..text.len() - 1];
            cache.push_str(&format!(
                "{separator}{key}:{fields}{closing},\"_filename\":{key},\"id\":{key}}}"
            ));
        }
        for disk in &disks {
            if let Some(shared) = shared_vhd {
                let path = directory.join(disk.vhd.replace(DATE_MARK, &date));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                if fs::hard_link(shared, &path).is_err() {
                    fs::copy(shared, &path).unwrap();
                }
            }
        }
    }
    if options.caches {
        cache.push('}');
        write_file(&directory.join("cache.json.gz"), &gzip(cache.as_bytes()));
    }
}
