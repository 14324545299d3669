//! One restore point as its `<date>.json` describes it.
//!
//! Parsing never fails: whatever is missing or odd becomes a problem of the point, which stays
//! visible. Source of the fields: format document, section 3 (XO's `@xen-orchestra/backups`
//! `_runners`/`RemoteAdapter`; the records are XAPI's).

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use serde_json::Value;

use super::disk_ref::DiskRef;
use super::json::{self, Keep, MAX_TEXT_BYTES};
use super::layout::MAX_METADATA_BYTES;
use super::naming::{self, NameRequest};
use super::{date, layout};
use crate::error::Error;
use crate::store::{Meta, StorePath};

/// What said of a full backup until XVA files can be read.
pub const XVA_NOTE: &str = "full backup (XVA): not read yet";

/// What kind of backup made the point.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// One VHD per disk.
    Delta,
    /// One XVA file.
    Full,
    /// Missing, or a word that brfs does not know.
    Unknown(Option<String>),
}

impl Mode {
    /// The word XO uses, `unknown` when it gave none.
    pub fn as_str(&self) -> &str {
        match self {
            Mode::Delta => "delta",
            Mode::Full => "full",
            Mode::Unknown(Some(word)) => word,
            Mode::Unknown(None) => "unknown",
        }
    }
}

/// One disk of a restore point.
#[derive(Debug, Clone)]
pub struct DiskRecord {
    /// The file name without `.raw`: safe, unique within the point.
    pub name: String,
    /// The key of the disk in the metadata (`OpaqueRef:…`).
    pub vdi_ref: String,
    /// Uuid of the snapshot's VDI, which is also the footer uuid of its VHD.
    pub vdi_uuid: Option<String>,
    /// The VDI's name as people gave it.
    pub vdi_name: Option<String>,
    /// XAPI's VDI type: `user`, `system`, `suspend`.
    pub vdi_type: Option<String>,
    /// Virtual size in bytes as the VDI record tells it; the image's own is the truth.
    pub virtual_size: Option<u64>,
    /// Whether this is a RAM image.
    pub suspend: bool,
    /// Where its data is, or why that is not known.
    pub place: Result<DiskRef, String>,
}

impl DiskRecord {
    /// The name in the mount.
    pub fn file_name(&self) -> String {
        format!("{}.raw", self.name)
    }
}

/// One restore point.
#[derive(Debug, Clone)]
pub struct RestorePoint {
    /// The date name.
    pub name: String,
    /// Path of the `<date>.json`.
    pub json_path: StorePath,
    /// State of the `<date>.json` when it was read.
    pub json_meta: Option<Meta>,
    /// Delta or full.
    pub mode: Mode,
    /// Time of the backup in milliseconds since 1970.
    pub timestamp_ms: Option<u64>,
    /// The job that made it.
    pub job_id: Option<String>,
    /// The schedule that ran the job.
    pub schedule_id: Option<String>,
    /// Bytes that XO says it transferred.
    pub size_bytes: Option<u64>,
    /// The VM's name.
    pub vm_name: Option<String>,
    /// Path of the XVA file of a full backup.
    pub xva: Option<StorePath>,
    /// The disks, in the order of their names.
    pub disks: Vec<DiskRecord>,
    /// What is wrong with the metadata, one sentence each.
    pub problems: Vec<String>,
    /// Whether the metadata could not be read at all.
    pub unreadable: bool,
}

static RECORD: Keep = Keep::Fields(&[
    ("mode", Keep::Scalar),
    ("timestamp", Keep::Scalar),
    ("jobId", Keep::Scalar),
    ("scheduleId", Keep::Scalar),
    ("size", Keep::Scalar),
    ("xva", Keep::Scalar),
    ("vhds", Keep::Each(&Keep::Scalar)),
    (
        "vm",
        Keep::Fields(&[
            ("uuid", Keep::Scalar),
            ("name_label", Keep::Scalar),
            ("suspend_VDI", Keep::Scalar),
        ]),
    ),
    ("vmSnapshot", Keep::Fields(&[("suspend_VDI", Keep::Scalar)])),
    (
        "vbds",
        Keep::Each(&Keep::Fields(&[
            ("VDI", Keep::Scalar),
            ("device", Keep::Scalar),
            ("userdevice", Keep::Scalar),
            ("type", Keep::Scalar),
        ])),
    ),
    (
        "vdis",
        Keep::Each(&Keep::Fields(&[
            ("uuid", Keep::Scalar),
            ("name_label", Keep::Scalar),
            ("virtual_size", Keep::Scalar),
            ("type", Keep::Scalar),
            ("$snapshot_of$uuid", Keep::Scalar),
        ])),
    ),
]);

/// The schema of a restore point's metadata, for parsers that stream many of them.
pub(super) fn schema() -> &'static Keep {
    &RECORD
}

impl RestorePoint {
    /// Reads a `<date>.json` as stored. Never fails: see [`RestorePoint::problems`].
    pub fn parse(vm_dir: &StorePath, name: &str, meta: Option<Meta>, data: &[u8]) -> Self {
        if data.len() as u64 > MAX_METADATA_BYTES {
            return Self::unreadable(vm_dir, name, meta, "metadata is absurdly long".into());
        }
        match json::parse(data, &RECORD) {
            Ok(value) => Self::from_value(vm_dir, name, meta, &value),
            Err(e) if data.is_empty() => {
                Self::unreadable(vm_dir, name, meta, format!("metadata is empty: {e}"))
            }
            Err(e) => Self::unreadable(
                vm_dir,
                name,
                meta,
                format!("metadata is not valid JSON: {e}"),
            ),
        }
    }

    /// A point of which nothing is known but its name.
    pub fn unreadable(vm_dir: &StorePath, name: &str, meta: Option<Meta>, problem: String) -> Self {
        RestorePoint {
            name: name.to_owned(),
            json_path: vm_dir.child(&format!("{name}.json")),
            json_meta: meta,
            mode: Mode::Unknown(None),
            timestamp_ms: None,
            job_id: None,
            schedule_id: None,
            size_bytes: None,
            vm_name: None,
            xva: None,
            disks: Vec::new(),
            problems: vec![problem],
            unreadable: true,
        }
    }

    /// From pruned JSON (see [`schema`]).
    pub(super) fn from_value(
        vm_dir: &StorePath,
        name: &str,
        meta: Option<Meta>,
        value: &Value,
    ) -> Self {
        if !value.is_object() {
            let problem = "metadata is not a JSON object".into();
            return Self::unreadable(vm_dir, name, meta, problem);
        }
        let mut problems = Vec::new();
        let mode = match text(value, "mode") {
            Some(word) if word == "delta" => Mode::Delta,
            Some(word) if word == "full" => Mode::Full,
            other => Mode::Unknown(other),
        };
        let vm = value.get("vm").unwrap_or(&Value::Null);
        let disks = disks(vm_dir, value, &mut problems);
        let xva = text(value, "xva").and_then(|path| {
            resolve(vm_dir, &path)
                .map_err(|e| problems.push(format!("XVA file: {e}")))
                .ok()
        });
        match &mode {
            Mode::Delta if disks.is_empty() && !value["vhds"].is_object() => {
                problems.push("metadata does not list the disks (no vhds)".into());
            }
            Mode::Full if xva.is_none() => {
                problems.push("metadata of a full backup does not name its XVA file".into());
            }
            Mode::Unknown(None) => problems.push("metadata does not tell the mode".into()),
            Mode::Unknown(Some(word)) => {
                problems.push(format!("unknown backup mode {word:?}"));
            }
            _ => {}
        }
        RestorePoint {
            name: name.to_owned(),
            json_path: vm_dir.child(&format!("{name}.json")),
            json_meta: meta,
            mode,
            timestamp_ms: number(value, "timestamp"),
            job_id: text(value, "jobId"),
            schedule_id: text(value, "scheduleId"),
            size_bytes: number(value, "size"),
            vm_name: label(vm),
            xva,
            disks,
            problems,
            unreadable: false,
        }
    }

    /// What keeps the point from being read although nothing is wrong with it.
    pub fn note(&self) -> Option<&'static str> {
        (self.mode == Mode::Full || self.xva.is_some()).then_some(XVA_NOTE)
    }

    /// The time of the backup: the name's, which XO makes from the timestamp, so that a listing
    /// need not read the metadata; else the timestamp's.
    pub fn time(&self) -> Option<SystemTime> {
        date::system_time(&self.name).or_else(|| self.timestamp_ms.and_then(date::from_unix_millis))
    }

    /// About how many bytes of memory this takes.
    pub(super) fn weight(&self) -> u64 {
        let opt = |s: &Option<String>| s.as_ref().map_or(0, String::len);
        let disks: usize = self
            .disks
            .iter()
            .map(|d| {
                let place = d.place.as_ref();
                let path = place.map_or_else(String::len, |p| p.path().as_str().len());
                300 + d.name.len()
                    + d.vdi_ref.len()
                    + opt(&d.vdi_uuid)
                    + opt(&d.vdi_name)
                    + opt(&d.vdi_type)
                    + path
            })
            .sum();
        let problems: usize = self.problems.iter().map(|p| 24 + p.len()).sum();
        let own = 600 + self.json_path.as_str().len() + opt(&self.vm_name) + opt(&self.job_id);
        (own + disks + problems) as u64
    }
}

fn disks(vm_dir: &StorePath, value: &Value, problems: &mut Vec<String>) -> Vec<DiskRecord> {
    let empty = serde_json::Map::new();
    let members = |key: &str| value.get(key).and_then(Value::as_object).unwrap_or(&empty);
    let (vhds, vdis) = (members("vhds"), members("vdis"));
    for key in ["vhds", "vdis", "vbds"] {
        if value.get(key).is_some_and(|v| !v.is_object()) {
            problems.push(format!("metadata field {key} is not an object"));
        }
    }
    for (vdi_ref, vdi) in vdis {
        if !vhds.contains_key(vdi_ref) {
            let label = label(vdi).or_else(|| text(vdi, "uuid"));
            let label = label.unwrap_or_else(|| vdi_ref.clone());
            problems.push(format!("disk {label:?} has no VHD in this backup"));
        }
    }
    let devices = devices(members("vbds"));
    let suspend_refs: HashSet<&str> = ["vm", "vmSnapshot"]
        .iter()
        .filter_map(|vm| value.get(vm)?.get("suspend_VDI")?.as_str())
        .collect();

    let mut disks = Vec::with_capacity(vhds.len());
    let mut wishes = Vec::with_capacity(vhds.len());
    for (vdi_ref, path) in vhds {
        let vdi = vdis.get(vdi_ref).unwrap_or(&Value::Null);
        let (uuid, label, vdi_type) = (text(vdi, "uuid"), label(vdi), text(vdi, "type"));
        let path = match path.as_str() {
            Some(path) => resolve(vm_dir, path),
            None => Err("its VHD's path is not a text".to_owned()),
        };
        let suspend =
            vdi_type.as_deref() == Some("suspend") || suspend_refs.contains(vdi_ref.as_str());
        // XO names the folder of a disk's images after the live VDI.
        let folder = path
            .as_ref()
            .ok()
            .map(|p| p.parent().file_name().to_owned());
        let usable = |name: &Option<String>| name.as_deref().and_then(naming::sanitize);
        let (rank, name) = match devices.get(vdi_ref) {
            Some(device) if !suspend => (0, Some(device.clone())),
            _ if suspend => (0, Some("suspend".to_owned())),
            _ => (
                1,
                usable(&label)
                    .or_else(|| usable(&uuid))
                    .or_else(|| usable(&folder))
                    .or_else(|| Some(vdi_ref.clone())),
            ),
        };
        let id = uuid.as_deref().or(folder.as_deref()).unwrap_or(vdi_ref);
        wishes.push(NameRequest {
            rank,
            name,
            short_id: naming::short_id(id),
            unique_id: vdi_ref.clone(),
        });
        disks.push(DiskRecord {
            name: String::new(),
            vdi_ref: vdi_ref.clone(),
            vdi_uuid: uuid,
            vdi_name: label,
            vdi_type,
            virtual_size: number(vdi, "virtual_size"),
            suspend,
            place: path.map(DiskRef::VhdChain),
        });
    }
    let names = naming::unique_names(&wishes, ".raw".len());
    for (disk, name) in disks.iter_mut().zip(names) {
        if let Err(e) = &disk.place {
            problems.push(format!("disk {name:?}: {e}"));
        }
        disk.name = name;
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    disks
}

/// The device name that the VBDs give each VDI. A CD drive gives none.
fn devices(vbds: &serde_json::Map<String, Value>) -> BTreeMap<String, String> {
    let mut devices: BTreeMap<String, String> = BTreeMap::new();
    for vbd in vbds.values() {
        if matches!(text(vbd, "type").as_deref(), Some("CD" | "Floppy")) {
            continue;
        }
        let Some(vdi_ref) = text(vbd, "VDI") else {
            continue;
        };
        let device = text(vbd, "device").filter(|d| !d.trim().is_empty());
        let device = device.or_else(|| {
            let position = text(vbd, "userdevice").filter(|d| !d.trim().is_empty());
            let position = position.or_else(|| number(vbd, "userdevice").map(|n| n.to_string()))?;
            Some(match position.parse::<u32>() {
                Ok(number) => naming::device_of_position(number),
                Err(_) => position,
            })
        });
        let Some(device) = device else { continue };
        // Two VBDs of one VDI are an oddity: the same one is taken whatever the order.
        match devices.get_mut(&vdi_ref) {
            Some(known) if *known <= device => {}
            Some(known) => *known = device,
            None => {
                devices.insert(vdi_ref, device);
            }
        }
    }
    devices
}

/// Resolves a path relative to the VM's directory as XO does: a leading slash has no meaning.
fn resolve(vm_dir: &StorePath, path: &str) -> Result<StorePath, String> {
    if path.is_empty() || path.len() >= MAX_TEXT_BYTES {
        return Err("its path is empty or absurdly long".to_owned());
    }
    let resolved = vm_dir
        .join(path.trim_start_matches('/'))
        .map_err(|e: Error| e.message().to_owned())?;
    if resolved.components().next() == Some(layout::VM_BACKUPS) && resolved != *vm_dir {
        Ok(resolved)
    } else {
        Err(format!("its path {path:?} leads out of the VM backups"))
    }
}

pub(super) fn text(value: &Value, key: &str) -> Option<String> {
    value.get(key)?.as_str().map(str::to_owned)
}

/// A record's name; a number is taken for one, too.
fn label(record: &Value) -> Option<String> {
    match record.get("name_label")? {
        Value::String(name) => Some(name.clone()),
        Value::Number(name) => Some(name.to_string()),
        _ => None,
    }
}

/// A non-negative number, also when it is written as a float or as a text.
pub(super) fn number(value: &Value, key: &str) -> Option<u64> {
    match value.get(key)? {
        Value::Number(n) => n.as_u64().or_else(|| {
            let float = n.as_f64()?;
            // Past 2^53 a float no longer names one number.
            (0.0..9_007_199_254_740_992.0)
                .contains(&float)
                .then_some(float as u64)
        }),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm_dir() -> StorePath {
        StorePath::new("xo-vm-backups/vm1").unwrap()
    }

    fn point(value: Value) -> RestorePoint {
        let data = serde_json::to_vec(&value).unwrap();
        RestorePoint::parse(&vm_dir(), "20260301T013000Z", None, &data)
    }

    fn names(point: &RestorePoint) -> Vec<&str> {
        point.disks.iter().map(|d| d.name.as_str()).collect()
    }

    #[test]
    fn disks_are_named_by_their_vbd() {
        let point = point(serde_json::json!({
            "mode": "delta", "timestamp": 1772328600000u64, "jobId": "j", "scheduleId": "s",
            "vm": {"uuid": "u", "name_label": "web"},
            "vhds": {"r0": "vdis/j/a/x.vhd", "r1": "vdis/j/b/x.vhd", "r2": "vdis/j/c/x.vhd",
                     "r3": "vdis/j/d/x.vhd", "r4": "vdis/j/e/x.vhd"},
            "vdis": {"r0": {"uuid": "u0", "name_label": "root", "virtual_size": 1024},
                     "r1": {"uuid": "u1"}, "r2": {"uuid": "u2", "name_label": "no vbd"},
                     "r3": {"uuid": "u3", "type": "suspend"}},
            "vbds": {"b0": {"VDI": "r0", "device": "xvda", "userdevice": "7", "type": "Disk"},
                     "b1": {"VDI": "r1", "device": "", "userdevice": "26"},
                     "b2": {"VDI": "r2", "device": "xvdd", "type": "CD"},
                     "b3": {"VDI": "r3", "userdevice": 3}},
        }));
        assert_eq!(names(&point), ["e", "no vbd", "suspend", "xvda", "xvdaa"]);
        assert!(point.problems.is_empty(), "{:?}", point.problems);
        let root = &point.disks[3];
        assert_eq!(root.virtual_size, Some(1024));
        assert_eq!(
            root.place.as_ref().unwrap().path().as_str(),
            "xo-vm-backups/vm1/vdis/j/a/x.vhd"
        );
        assert!(point.disks[2].suspend);
    }

    #[test]
    fn odd_types_and_missing_fields_leave_the_point_readable() {
        let point = point(serde_json::json!({
            "mode": "delta", "timestamp": "1772328600000", "jobId": 7, "vm": "gone",
            "size": -1, "vhds": {"r0": "vdis/j/a/x.vhd", "r1": 5}, "vdis": {"r0": 3, "r9": []},
            "vbds": {"b": {"VDI": "r0", "userdevice": "0", "bootable": 1, "type": 0}, "c": null},
            "isVhdDifferencing": {"r0": 1, "r1": 0},
        }));
        assert_eq!(names(&point), ["r1", "xvda"]);
        assert_eq!(point.timestamp_ms, Some(1_772_328_600_000));
        assert!(point.disks[0].place.is_err());
        assert_eq!(point.problems.len(), 2, "{:?}", point.problems);
        assert!(!point.unreadable);
    }

    #[test]
    fn paths_stay_within_the_vm_backups() {
        let point = point(serde_json::json!({"mode": "delta", "vhds": {
            "a": "../../../../etc/shadow", "b": "../../secret", "c": "", "d": "/vdis/x.vhd",
            "e": "a\u{0}b", "f": "../other/vdis/x.vhd", "g": "."}}));
        let good: Vec<_> = point
            .disks
            .iter()
            .filter_map(|d| d.place.as_ref().ok())
            .collect();
        let good: Vec<_> = good.iter().map(|d| d.path().as_str()).collect();
        assert_eq!(
            good,
            [
                "xo-vm-backups/vm1/vdis/x.vhd",
                "xo-vm-backups/other/vdis/x.vhd"
            ]
            .iter()
            .rev()
            .copied()
            .collect::<Vec<_>>()
        );
        assert_eq!(point.disks.len(), 7);
        assert_eq!(point.problems.len(), 5);
    }

    #[test]
    fn truncated_and_foreign_json_is_a_point_with_a_problem() {
        for data in [
            &b""[..],
            b"{\"mode\":\"del",
            b"[]",
            b"null",
            b"{} {}",
            b"\xff\xfe",
            b"{\"vm\":",
        ] {
            let point = RestorePoint::parse(&vm_dir(), "20260301T013000Z", None, data);
            assert!(point.unreadable && point.problems.len() == 1, "{data:?}");
            assert_eq!(point.json_path.file_name(), "20260301T013000Z.json");
            assert!(point.time().is_some());
        }
    }

    #[test]
    fn full_backups_say_that_they_are_not_read_yet() {
        let point = point(serde_json::json!({"mode": "full", "xva": "./20260301T013000Z.xva"}));
        assert_eq!(point.note(), Some(XVA_NOTE));
        assert_eq!(
            point.xva.as_ref().unwrap().as_str(),
            "xo-vm-backups/vm1/20260301T013000Z.xva"
        );
        assert!(point.problems.is_empty() && point.disks.is_empty());
    }

    #[test]
    fn a_vdi_without_vhd_and_a_vhd_without_vdi_are_both_told() {
        let point = point(serde_json::json!({"mode": "delta",
            "vhds": {"r0": "vdis/j/b69e38d5-d758-47ec-a3a7-b3f5518cf956/x.vhd"},
            "vdis": {"r1": {"name_label": "lost"}}}));
        assert_eq!(names(&point), ["b69e38d5-d758-47ec-a3a7-b3f5518cf956"]);
        assert_eq!(point.problems, ["disk \"lost\" has no VHD in this backup"]);
    }
}
