//! A volume group's metadata as types: physical volumes, logical volumes, segments.

use super::config::{self, Section, Value};
use crate::error::{Error, Result};

/// Logical volumes in one group.
const MAX_VOLUMES: usize = 100_000;
const SECTOR_BYTES: u64 = 512;

/// A volume group as one metadata text describes it.
#[derive(Debug, Clone)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Its id, without dashes.
    pub id: String,
    /// The number of the change that wrote this text.
    pub seqno: u64,
    /// Bytes of one extent.
    pub extent_bytes: u64,
    /// Physical volumes.
    pub physical: Vec<Physical>,
    /// All logical volumes, hidden ones included.
    pub logical: Vec<Logical>,
}

/// A physical volume of a group.
#[derive(Debug, Clone)]
pub struct Physical {
    /// The name that segments use (`pv0`).
    pub name: String,
    /// The id, without dashes.
    pub id: String,
    /// The device it was on, for people.
    pub device: Option<String>,
    /// First byte of extent 0.
    pub start_bytes: u64,
    /// Number of extents.
    pub extents: u64,
}

/// A logical volume.
#[derive(Debug, Clone)]
pub struct Logical {
    /// The name.
    pub name: String,
    /// The id, without dashes.
    pub id: String,
    /// Whether it is for people rather than a part of another one.
    pub visible: bool,
    /// Its segments in order.
    pub segments: Vec<Segment>,
}

/// A run of extents.
#[derive(Debug, Clone)]
pub struct Segment {
    /// First extent within the logical volume.
    pub start_extent: u64,
    /// Number of extents.
    pub extents: u64,
    /// What it is made of.
    pub kind: SegmentKind,
}

/// What a segment is made of.
#[derive(Debug, Clone)]
pub enum SegmentKind {
    /// One area, or several taken in turn.
    Striped {
        /// Bytes taken from an area in turn; meaningless with one area.
        stripe_bytes: u64,
        /// The areas.
        areas: Vec<Area>,
    },
    /// Copies of the same bytes (old mirrors, and extents that are being moved). The first one is that
    /// which others are filled from.
    Mirror {
        /// The copies.
        areas: Vec<Area>,
        /// The volume that tells which regions are the same on all of them.
        log: Option<String>,
        /// Bytes of a region.
        region_bytes: u64,
    },
    /// Copies of the same bytes: pairs of (record, copy) volumes.
    Raid1(Vec<(String, String)>),
    /// RAID 4, 5, 6 and 10: pairs of (record, image) volumes.
    Raid {
        /// The level and the layout as md numbers them.
        level: i32,
        /// See `level`.
        layout: u32,
        /// Bytes taken from an image in turn.
        stripe_bytes: u64,
        /// The volumes.
        pairs: Vec<(String, String)>,
    },
    /// Volumes striped without redundancy.
    Raid0 {
        /// Bytes taken from a volume in turn.
        stripe_bytes: u64,
        /// The volumes.
        images: Vec<String>,
    },
    /// A copy-on-write snapshot, which is presented under the name of its store.
    Snapshot {
        /// The volume it was taken of.
        origin: String,
        /// The volume with what changed since.
        store: String,
        /// It is being merged into its origin, or will be as soon as that is not in use.
        is_merging: bool,
    },
    /// A thin pool: not a volume itself.
    ThinPool {
        /// The volume with its metadata.
        metadata: String,
        /// The volume with its data.
        data: String,
        /// Bytes of a chunk.
        chunk_bytes: u64,
    },
    /// A volume behind a cache.
    Cache {
        /// The volume that is cached.
        origin: String,
        /// The cache: a pool, or an ordinary volume that has both parts.
        cache: String,
        /// Where the parts of an ordinary volume are.
        parts: Option<CacheParts>,
    },
    /// A pool for a cache: not a volume itself.
    CachePool {
        /// The volume with its metadata.
        metadata: String,
        /// The volume with its data.
        data: String,
    },
    /// A thin volume, or a snapshot of one.
    Thin {
        /// Its pool.
        pool: String,
        /// Its number in the pool.
        device: u64,
        /// The volume outside of the pool that has what was never written.
        outside: Option<String>,
        /// The thin volume that it is being merged into, or will be as soon as that is not in use.
        merged_into: Option<String>,
    },
    /// Zeros.
    Zero,
    /// Anything else, by its name.
    Unsupported(String),
}

/// Where metadata and data of a cache are on a volume that has both: first byte and length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheParts {
    /// The metadata.
    pub metadata: (u64, u64),
    /// The data.
    pub data: (u64, u64),
}

/// A place on a physical volume or on another logical volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// The physical or logical volume.
    pub name: String,
    /// First extent there.
    pub start_extent: u64,
}

/// Parses a metadata text.
///
/// # Errors
/// `Corrupt` when the text does not describe a volume group.
pub fn parse(text: &[u8]) -> Result<Group> {
    let root = config::parse(text)?;
    let (name, group) = root
        .sections
        .iter()
        .find(|(_, section)| section.number("extent_size").is_some())
        .ok_or_else(|| bad("there is no volume group in the text"))?;
    let extent_bytes = group
        .number("extent_size")
        .and_then(|sectors| sectors.checked_mul(SECTOR_BYTES))
        .filter(|&bytes| bytes > 0)
        .ok_or_else(|| bad("the extent size makes no sense"))?;
    let mut physical = Vec::new();
    for (name, section) in sections(group, "physical_volumes") {
        physical.push(Physical {
            name: name.clone(),
            id: plain_id(section),
            device: section.text("device").map(str::to_string),
            start_bytes: required(section, "pe_start")?
                .checked_mul(SECTOR_BYTES)
                .ok_or_else(|| bad("a physical volume starts too far out"))?,
            extents: required(section, "pe_count")?,
        });
    }
    let mut logical = Vec::new();
    for (name, section) in sections(group, "logical_volumes") {
        if logical.len() >= MAX_VOLUMES {
            return Err(bad("there are too many logical volumes"));
        }
        logical.push(parse_logical(name, section)?);
    }
    Ok(Group {
        name: name.clone(),
        id: plain_id(group),
        seqno: required(group, "seqno")?,
        extent_bytes,
        physical,
        logical,
    })
}

fn parse_logical(name: &str, section: &Section) -> Result<Logical> {
    let mut segments = Vec::new();
    for (key, segment) in &section.sections {
        if key.starts_with("segment") {
            segments.push(Segment {
                start_extent: required(segment, "start_extent")?,
                extents: required(segment, "extent_count")?,
                kind: parse_kind(segment),
            });
        }
    }
    segments.sort_by_key(|segment: &Segment| segment.start_extent);
    Ok(Logical {
        name: name.to_string(),
        id: plain_id(section),
        visible: section.has_flag("status", "VISIBLE"),
        segments,
    })
}

fn parse_kind(segment: &Section) -> SegmentKind {
    let kind = segment.text("type").unwrap_or("(no type)");
    // "striped+FLAG" marks segments that older versions of LVM must leave alone.
    let (base, flags) = kind.split_once('+').unwrap_or((kind, ""));
    let is_known = match base {
        "cache" => matches!(flags, "" | "CACHE_USES_CACHEVOL"),
        "cache-pool" => matches!(flags, "" | "METADATA_FORMAT"),
        _ => flags.is_empty(),
    };
    if !is_known {
        return SegmentKind::Unsupported(kind.to_string());
    }
    let supported = match base {
        "striped" => striped(segment),
        "mirror" => mirror(segment),
        "raid1" => raid_pairs(segment).map(SegmentKind::Raid1),
        "raid0" | "raid0_meta" => raid0(segment),
        "snapshot" => snapshot(segment),
        "thin-pool" => thin_pool(segment),
        "thin" => thin(segment),
        "cache" => cache(segment),
        "cache-pool" => cache_pool(segment),
        "zero" => Some(SegmentKind::Zero),
        _ => raid(segment, kind),
    };
    supported.unwrap_or_else(|| SegmentKind::Unsupported(kind.to_string()))
}

fn mirror(segment: &Section) -> Option<SegmentKind> {
    let sectors = segment.number("region_size").unwrap_or(0);
    Some(SegmentKind::Mirror {
        areas: areas(segment, "mirrors")?,
        log: segment.text("mirror_log").map(str::to_string),
        region_bytes: sectors.checked_mul(SECTOR_BYTES)?,
    })
}

fn snapshot(segment: &Section) -> Option<SegmentKind> {
    let merging = segment.text("merging_store");
    let store = segment.text("cow_store").or(merging)?;
    Some(SegmentKind::Snapshot {
        origin: segment.text("origin")?.to_string(),
        store: store.to_string(),
        is_merging: merging.is_some(),
    })
}

fn cache(segment: &Section) -> Option<SegmentKind> {
    let part = |start: &str, len: &str| {
        let bytes = |name: &str| segment.number(name)?.checked_mul(SECTOR_BYTES);
        Some((bytes(start)?, bytes(len)?))
    };
    let parts = match segment.value("metadata_start") {
        Some(_) => Some(CacheParts {
            metadata: part("metadata_start", "metadata_len")?,
            data: part("data_start", "data_len")?,
        }),
        None => None,
    };
    Some(SegmentKind::Cache {
        origin: segment.text("origin")?.to_string(),
        cache: segment.text("cache_pool")?.to_string(),
        parts,
    })
}

fn cache_pool(segment: &Section) -> Option<SegmentKind> {
    Some(SegmentKind::CachePool {
        metadata: segment.text("metadata")?.to_string(),
        data: segment.text("data")?.to_string(),
    })
}

fn thin_pool(segment: &Section) -> Option<SegmentKind> {
    Some(SegmentKind::ThinPool {
        metadata: segment.text("metadata")?.to_string(),
        data: segment.text("pool")?.to_string(),
        chunk_bytes: segment.number("chunk_size")?.checked_mul(SECTOR_BYTES)?,
    })
}

fn thin(segment: &Section) -> Option<SegmentKind> {
    let volume = |key: &str| match segment.value(key) {
        Some(_) => Some(Some(segment.text(key)?.to_string())),
        None => Some(None),
    };
    Some(SegmentKind::Thin {
        pool: segment.text("thin_pool")?.to_string(),
        device: segment.number("device_id")?,
        outside: volume("external_origin")?,
        merged_into: volume("merge")?,
    })
}

fn striped(segment: &Section) -> Option<SegmentKind> {
    let areas = areas(segment, "stripes")?;
    if segment.number("stripe_count") != Some(areas.len() as u64) {
        return None;
    }
    let stripe_bytes = match areas.len() {
        1 => 0,
        _ => stripe_bytes(segment)?,
    };
    Some(SegmentKind::Striped {
        stripe_bytes,
        areas,
    })
}

fn raid0(segment: &Section) -> Option<SegmentKind> {
    let images = match segment.value("raid0_lvs") {
        Some(_) => names(segment.list("raid0_lvs"))?,
        None => raid_pairs(segment)?.into_iter().map(|p| p.1).collect(),
    };
    // LVM writes the first; levels with parity have the other.
    let count = segment.number("stripe_count");
    if count.or(segment.number("device_count")) != Some(images.len() as u64) {
        return None;
    }
    Some(SegmentKind::Raid0 {
        stripe_bytes: stripe_bytes(segment)?,
        images,
    })
}

/// Names as in `lib/metadata/segtype.h`; what they are to md is in the table `raid_types` of `dm-raid.c`.
fn raid(segment: &Section, kind: &str) -> Option<SegmentKind> {
    let (level, layout) = match kind {
        // The kernel's is RAID 5 with all parity on the first image.
        "raid4" => (5, 4),
        "raid5_la" => (5, 0),
        "raid5_ra" => (5, 1),
        "raid5" | "raid5_ls" => (5, 2),
        "raid5_rs" => (5, 3),
        "raid5_n" | "raid6_n_6" => (if kind == "raid5_n" { 5 } else { 6 }, 5),
        "raid6" | "raid6_zr" => (6, 8),
        "raid6_nr" => (6, 9),
        "raid6_nc" => (6, 10),
        "raid6_la_6" => (6, 16),
        "raid6_ra_6" => (6, 17),
        "raid6_ls_6" => (6, 18),
        "raid6_rs_6" => (6, 19),
        "raid10" | "raid10_near" => {
            let copies = segment.number("data_copies").unwrap_or(2);
            (
                10,
                1 << 8 | u32::try_from(copies).ok().filter(|&c| c < 256)?,
            )
        }
        _ => return None,
    };
    let pairs = raid_pairs(segment)?;
    if segment.number("device_count") != Some(pairs.len() as u64) {
        return None;
    }
    Some(SegmentKind::Raid {
        level,
        layout,
        stripe_bytes: stripe_bytes(segment)?,
        pairs,
    })
}

fn stripe_bytes(segment: &Section) -> Option<u64> {
    segment
        .number("stripe_size")?
        .checked_mul(SECTOR_BYTES)
        .filter(|&bytes| bytes > 0)
}

/// `["pv0", 0, "pv1", 100]` as areas.
fn areas(segment: &Section, name: &str) -> Option<Vec<Area>> {
    let list = segment.list(name);
    if list.is_empty() || !list.len().is_multiple_of(2) {
        return None;
    }
    list.chunks_exact(2)
        .map(|pair| match pair {
            [Value::Text(name), Value::Number(extent)] => Some(Area {
                name: name.clone(),
                start_extent: u64::try_from(*extent).ok()?,
            }),
            _ => None,
        })
        .collect()
}

/// `["lv_rmeta_0", "lv_rimage_0", …]` as pairs.
fn raid_pairs(segment: &Section) -> Option<Vec<(String, String)>> {
    let names = names(segment.list("raids"))?;
    if names.is_empty() || !names.len().is_multiple_of(2) {
        return None;
    }
    Some(
        names
            .chunks_exact(2)
            .map(|pair| (pair[0].clone(), pair[1].clone()))
            .collect(),
    )
}

fn names(list: &[Value]) -> Option<Vec<String>> {
    list.iter()
        .map(|value| match value {
            Value::Text(name) => Some(name.clone()),
            _ => None,
        })
        .collect()
}

fn sections<'a>(group: &'a Section, name: &str) -> &'a [(String, Section)] {
    group
        .section(name)
        .map_or(&[], |section| section.sections.as_slice())
}

fn required(section: &Section, name: &str) -> Result<u64> {
    section
        .number(name)
        .ok_or_else(|| bad(&format!("{name} is missing")))
}

/// Ids are written with dashes in texts and without in labels.
fn plain_id(section: &Section) -> String {
    section
        .text("id")
        .unwrap_or_default()
        .chars()
        .filter(|&c| c != '-')
        .collect()
}

fn bad(message: &str) -> Error {
    Error::corrupt(format!("volume group metadata: {message}"))
}
