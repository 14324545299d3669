//! Words for the types of partitions that are common in guests.

/// Names of the type GUIDs that are common in guests (UEFI specification, Microsoft's and
/// systemd's lists).
pub fn of_gpt(guid: &str) -> Option<&'static str> {
    Some(match guid {
        "c12a7328-f81f-11d2-ba4b-00a0c93ec93b" => "efi-system",
        "21686148-6449-6e6f-744e-656564454649" => "bios-boot",
        "e3c9e316-0b5c-4db8-817d-f92df00215ae" => "microsoft-reserved",
        "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7" => "microsoft-basic-data",
        "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3" => "windows-ldm-metadata",
        "af9b60a0-1431-4f62-bc68-3311714a69ad" => "windows-ldm-data",
        "de94bba4-06d1-4d40-a16a-bfd50179d6ac" => "windows-recovery",
        "e75caf8f-f680-4cee-afa3-b001e56efc2d" => "storage-spaces",
        "0fc63daf-8483-4772-8e79-3d69d8477de4" => "linux",
        "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f" => "linux-swap",
        "e6d6d379-f507-44c2-a23c-238f2a3df928" => "linux-lvm",
        "a19d880f-05fc-4d3b-a006-743f0f84911e" => "linux-raid",
        "4f68bce3-e8cd-4db1-96e7-fbcaf984b709" => "linux-root-x86-64",
        "933ac7e1-2eb4-4f13-b844-0e14e2aef915" => "linux-home",
        "bc13c2ff-59e6-4262-a352-b275fd6f7172" => "linux-boot",
        "516e7cba-6ecf-11d6-8ff8-00022d09712b" => "freebsd-zfs",
        "516e7cb6-6ecf-11d6-8ff8-00022d09712b" => "freebsd-ufs",
        "516e7cb5-6ecf-11d6-8ff8-00022d09712b" => "freebsd-swap",
        "83bd6b9d-7f41-11dc-be0b-001560b84f0f" => "freebsd-boot",
        "6a898cc3-1dd2-11b2-99a6-080020736631" => "zfs",
        "7c3457ef-0000-11aa-aa11-00306543ecac" => "apple-apfs",
        "48465300-0000-11aa-aa11-00306543ecac" => "apple-hfs",
        _ => return None,
    })
}

/// Names of the type bytes that are common in guests.
pub fn of_mbr(kind: u8) -> Option<&'static str> {
    Some(match kind {
        0x01 | 0x04 | 0x06 | 0x0E => "fat16",
        0x07 => "ntfs-or-exfat",
        0x0B | 0x0C => "fat32",
        0x27 => "windows-recovery",
        0x42 => "windows-ldm",
        0x82 => "linux-swap",
        0x83 => "linux",
        0x8E => "linux-lvm",
        0xA5 => "freebsd",
        0xA6 => "openbsd",
        0xA9 => "netbsd",
        0xAF => "apple-hfs",
        0xBF => "solaris",
        0xEE => "gpt-protective",
        0xEF => "efi-system",
        0xFD => "linux-raid",
        _ => return None,
    })
}
