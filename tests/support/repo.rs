//! Whole repositories: VMs with several jobs and disks, their metadata, caches in every state.
//!
//! A [`Vm`] holds disks, a disk holds a [`Chain`]; every date at which some disk of a job has a
//! layer becomes a restore point of that job. What each restore point must show can be asked of
//! the chains afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::chain::{Chain, WrittenChain};
use super::dates::{date_name, epoch_s};
use super::files::{write_file, write_hole};
use super::records::{Point, PointDisk, Vbd, delta_metadata, full_metadata, opaque_ref};
use super::rng::{Rng, uuid_text};

/// State of a VM's `cache.json.gz`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cache {
    Absent,
    Fresh,
    /// Knows this many restore points that are gone.
    Ghosts(usize),
    /// Misses this many of the newest restore points.
    Behind(usize),
    /// Right entries, but a restore point's metadata differs from its file (other VM name).
    Different,
    /// Cut in the middle of the gzip stream.
    Truncated,
    NotGzip,
    /// Sound gzip of something that is no JSON.
    NotJson,
    /// Sound JSON of the wrong shape.
    WrongShape,
    Empty,
}

impl Cache {
    pub const ALL: [Self; 10] = [
        Self::Absent,
        Self::Fresh,
        Self::Ghosts(2),
        Self::Behind(1),
        Self::Different,
        Self::Truncated,
        Self::NotGzip,
        Self::NotJson,
        Self::WrongShape,
        Self::Empty,
    ];
}

/// One virtual disk of a VM, backed up by one job.
#[derive(Clone, Debug)]
pub struct Disk {
    pub job: String,
    pub live_uuid: String,
    pub name_label: Value,
    pub vbd: Option<Vbd>,
    /// `user`, `system`, `suspend`.
    pub kind: String,
    pub chain: Chain,
}

type Tweak = Arc<dyn Fn(&str, &mut Value) + Send + Sync>;

/// One VM of a repository.
#[derive(Clone)]
pub struct Vm {
    pub uuid: String,
    pub name_label: Value,
    pub tags: Vec<String>,
    pub jobs: Vec<String>,
    pub disks: Vec<Disk>,
    /// Dates (seconds since 1970) of full backups; their XVA is a hole of 1 MiB.
    pub full_backups: Vec<u64>,
    pub cache: Cache,
    /// Gets date and metadata of every restore point before it is written.
    pub tweak: Option<Tweak>,
    seed: u64,
}

/// A disk of a written restore point.
#[derive(Clone, Debug)]
pub struct WrittenDisk {
    /// Index into [`Vm::disks`] and [`WrittenVm::chains`].
    pub disk: usize,
    /// Layer of the disk's chain.
    pub layer: usize,
    pub vdi_ref: String,
    /// As in the metadata: relative to the VM's directory.
    pub vhd: String,
}

#[derive(Clone, Debug)]
pub struct WrittenPoint {
    pub date: String,
    pub json_path: PathBuf,
    pub metadata: Value,
    pub disks: Vec<WrittenDisk>,
}

#[derive(Clone, Debug)]
pub struct WrittenVm {
    pub directory: PathBuf,
    pub chains: Vec<WrittenChain>,
    pub points: Vec<WrittenPoint>,
}

impl Vm {
    pub fn new(rng: &mut Rng, name: &str) -> Self {
        Self {
            uuid: rng.uuid_text(),
            name_label: json!(name),
            tags: vec!["generated".to_owned()],
            jobs: vec![rng.uuid_text()],
            disks: Vec::new(),
            full_backups: Vec::new(),
            cache: Cache::Fresh,
            tweak: None,
            seed: rng.next_u64(),
        }
    }

    /// Adds a disk of the first job, hung up as the next `xvd…`.
    pub fn disk(&mut self, rng: &mut Rng, name: &str, chain: Chain) -> &mut Disk {
        let vbd = Some(Vbd::nth(self.disks.len()));
        self.disks.push(Disk {
            job: self.jobs[0].clone(),
            live_uuid: rng.uuid_text(),
            name_label: json!(name),
            vbd,
            kind: "user".to_owned(),
            chain,
        });
        self.disks.last_mut().unwrap()
    }

    /// Adds a memory image: a VDI of type "suspend" without a VBD.
    pub fn suspend_image(&mut self, rng: &mut Rng, chain: Chain) -> &mut Disk {
        let disk = self.disk(rng, "Suspend image", chain);
        disk.vbd = None;
        disk.kind = "suspend".to_owned();
        disk
    }

    pub fn tweak(&mut self, tweak: impl Fn(&str, &mut Value) + Send + Sync + 'static) -> &mut Self {
        self.tweak = Some(Arc::new(tweak));
        self
    }

    /// Path of a disk's folder, relative to the VM's directory.
    pub fn vdi_dir(&self, disk: usize) -> String {
        let disk = &self.disks[disk];
        format!("vdis/{}/{}", disk.job, disk.live_uuid)
    }

    /// Writes the VM's directory below `<repository>/xo-vm-backups/`.
    pub fn write(&self, repository: &Path) -> WrittenVm {
        let directory = repository.join("xo-vm-backups").join(&self.uuid);
        fs::create_dir_all(&directory).unwrap();
        let chains = (0..self.disks.len())
            .map(|index| {
                let vdi_dir = directory.join(self.vdi_dir(index));
                self.disks[index].chain.write(&vdi_dir)
            })
            .collect();
        let points = self.write_points(&directory);
        self.write_cache(&directory, &points);
        WrittenVm {
            directory,
            chains,
            points,
        }
    }

    fn write_points(&self, directory: &Path) -> Vec<WrittenPoint> {
        let mut rng = Rng::new(self.seed);
        // (date, job) -> disks with a layer of that date
        let mut wanted: BTreeMap<(String, String), Vec<(usize, usize)>> = BTreeMap::new();
        for (disk_index, disk) in self.disks.iter().enumerate() {
            for (layer_index, layer) in disk.chain.layers.iter().enumerate() {
                wanted
                    .entry((layer.name.clone(), disk.job.clone()))
                    .or_default()
                    .push((disk_index, layer_index));
            }
        }
        let mut points = Vec::new();
        let mut taken = BTreeMap::new();
        for ((date, job), members) in wanted {
            // XO would overwrite the one with the other; a test that wants that can do it itself.
            let other = taken.insert(date.clone(), job.clone());
            assert!(other.is_none(), "two jobs have a restore point at {date}");
            let point = self.point(&mut rng, epoch_s(&date).unwrap_or(0), &job);
            let disks: Vec<PointDisk> = members
                .iter()
                .map(|(disk, layer)| self.point_disk(&mut rng, *disk, *layer))
                .collect();
            let metadata = delta_metadata(&mut rng, &point, &disks);
            let written = members
                .iter()
                .zip(&disks)
                .map(|((disk, layer), record)| WrittenDisk {
                    disk: *disk,
                    layer: *layer,
                    vdi_ref: record.vdi_ref.clone(),
                    vhd: record.vhd.clone(),
                })
                .collect();
            points.push(self.write_point(directory, &date, metadata, written));
        }
        for second in &self.full_backups {
            let job = self.jobs.last().expect("a VM has a job").clone();
            let point = self.point(&mut rng, *second, &job);
            let date = date_name(*second);
            write_hole(&directory.join(format!("{date}.xva")), 1 << 20);
            let metadata = full_metadata(&mut rng, &point, 1 << 20);
            points.push(self.write_point(directory, &date, metadata, Vec::new()));
        }
        points.sort_by(|a, b| a.date.cmp(&b.date));
        points
    }

    fn point(&self, rng: &mut Rng, epoch_s: u64, job: &str) -> Point {
        Point {
            epoch_s,
            job: job.to_owned(),
            schedule: rng.uuid_text(),
            vm_uuid: self.uuid.clone(),
            vm_name: self.name_label.clone(),
            vm_description: "generated".to_owned(),
            vm_tags: self.tags.clone(),
            tags: Vec::new(),
        }
    }

    fn point_disk(&self, rng: &mut Rng, disk_index: usize, layer_index: usize) -> PointDisk {
        let disk = &self.disks[disk_index];
        let layer = &disk.chain.layers[layer_index];
        let base = layer_index.checked_sub(1);
        PointDisk {
            vdi_ref: opaque_ref(rng),
            vbd: disk.vbd.clone(),
            snapshot_uuid: uuid_text(&layer.unique_id),
            live_uuid: disk.live_uuid.clone(),
            name_label: disk.name_label.clone(),
            virtual_size: layer.size_bytes,
            kind: disk.kind.clone(),
            base_uuid: base.map(|base| uuid_text(&disk.chain.layers[base].unique_id)),
            vhd: format!("{}/{}", self.vdi_dir(disk_index), layer.head_name()),
        }
    }

    fn write_point(
        &self,
        directory: &Path,
        date: &str,
        mut metadata: Value,
        disks: Vec<WrittenDisk>,
    ) -> WrittenPoint {
        if let Some(tweak) = &self.tweak {
            tweak(date, &mut metadata);
        }
        let json_path = directory.join(format!("{date}.json"));
        write_file(&json_path, metadata.to_string().as_bytes());
        WrittenPoint {
            date: date.to_owned(),
            json_path,
            metadata,
            disks,
        }
    }

    fn write_cache(&self, directory: &Path, points: &[WrittenPoint]) {
        let dates: Vec<&str> = points.iter().map(|point| &point.date[..]).collect();
        let values: Vec<&Value> = points.iter().map(|point| &point.metadata).collect();
        let mut entries = cache_entries(&self.uuid, &dates, &values);
        let path = directory.join("cache.json.gz");
        match self.cache {
            Cache::Absent => return,
            Cache::Fresh | Cache::Truncated => {}
            Cache::Ghosts(count) => {
                for ghost in 0..count {
                    let date = date_name(1_000_000_000 + 86_400 * ghost as u64);
                    let entry = values.first().map_or(json!({}), |value| (*value).clone());
                    entries.extend(cache_entries(&self.uuid, &[&date], &[&entry]));
                }
            }
            Cache::Behind(count) => {
                for date in dates.iter().rev().take(count) {
                    entries.remove(&cache_key(&self.uuid, date));
                }
            }
            Cache::Different => {
                for entry in entries.values_mut() {
                    entry["vm"]["name_label"] = json!("name in the cache");
                }
            }
            Cache::NotGzip => return write_file(&path, b"{}"),
            Cache::NotJson => return write_file(&path, &gzip(b"not {json")),
            Cache::WrongShape => return write_file(&path, &gzip(br#"[{"x": 1}, null, "y"]"#)),
            Cache::Empty => return write_file(&path, b""),
        }
        let mut bytes = gzip(Value::Object(entries).to_string().as_bytes());
        if self.cache == Cache::Truncated {
            bytes.truncate(bytes.len() * 2 / 3);
        }
        write_file(&path, &bytes);
    }
}

/// The key under which a restore point stands in the cache; also its `id` and `_filename` there.
pub fn cache_key(vm_uuid: &str, date: &str) -> String {
    format!("/xo-vm-backups/{vm_uuid}/{date}.json")
}

/// The content of a `cache.json.gz` that knows these restore points.
pub fn cache_entries(vm_uuid: &str, dates: &[&str], metadata: &[&Value]) -> Map<String, Value> {
    let mut entries = Map::new();
    for (date, value) in dates.iter().zip(metadata) {
        let key = cache_key(vm_uuid, date);
        let mut entry = (*value).clone();
        if let Value::Object(fields) = &mut entry {
            fields.insert("_filename".to_owned(), json!(key));
            fields.insert("id".to_owned(), json!(key));
        }
        entries.insert(key, entry);
    }
    entries
}

/// One gzip member, fast level.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let level = flate2::Compression::fast();
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
