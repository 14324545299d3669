//! Names with a meaning at the top of a repository and in a VM's directory.
//!
//! Source: format document, sections 2 and 3 (XO's `@xen-orchestra/backups`).

use super::date;

/// The directory with one directory per VM.
pub const VM_BACKUPS: &str = "xo-vm-backups";
/// The clear-text file that names the encryption algorithm; absent on clear and on old repositories.
pub const ENCRYPTION_FILE: &str = "encryption.json";
/// The file, sealed like all others, that is there to prove the key.
pub const METADATA_FILE: &str = "metadata.json";
/// The directory of a VM's disk images.
pub const VDIS: &str = "vdis";
/// The per-VM hint with the metadata of all restore points.
pub const CACHE_FILE: &str = "cache.json.gz";
/// What else tells a directory from an arbitrary one, besides [`VM_BACKUPS`].
pub const REPOSITORY_MARKERS: [&str; 4] = [
    "xo-config-backups",
    "xo-pool-metadata-backups",
    ENCRYPTION_FILE,
    METADATA_FILE,
];

/// Largest `<date>.json` that is read, in bytes. They have 10 to 100 KiB as a rule; the contents of
/// virtual TPMs and UEFI variables are what makes them grow.
pub const MAX_METADATA_BYTES: u64 = 16 << 20;

/// Whether a directory of [`VM_BACKUPS`] can be a VM's. XO ignores dot names and locks, and makes
/// symbolic-link indexes in `index…`. A real VM's name is its uuid, but copies and tests exist.
pub fn is_vm_folder(name: &str) -> bool {
    !name.starts_with('.') && !name.ends_with(".lock") && !name.starts_with("index")
}

/// The VM folder of a lock directory's name.
pub fn locked_folder(name: &str) -> Option<&str> {
    name.strip_suffix(".lock")
}

/// The date name of a restore point's metadata file; `None` for every other file.
pub fn point_of_file(name: &str) -> Option<&str> {
    name.strip_suffix(".json")
        .filter(|stem| date::is_date_name(stem))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dated_json_files_are_restore_points() {
        assert_eq!(
            point_of_file("20261120T013000Z.json"),
            Some("20261120T013000Z")
        );
        for foreign in [
            "cache.json.gz",
            ".20261120T013000Z.json",
            "20261120T013000Z.json.tmp",
            "package.json",
            "20261120T013000Z.xva",
        ] {
            assert_eq!(point_of_file(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn locks_indexes_and_dot_names_are_no_vms() {
        for name in [".x", "indexes", "index", "3f2a9c1e-0000.lock"] {
            assert!(!is_vm_folder(name), "{name}");
        }
        assert!(is_vm_folder("3f2a9c1e-0000-4000-8000-000000000000"));
    }
}
