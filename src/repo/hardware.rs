//! What it takes to build a VM again by hand: memory, processors, firmware, network cards.
//!
//! Source of the fields: XAPI's `VM` and `VIF` records, which XO keeps in the metadata; XO adds the
//! network's name to each `VIF` (`$network$name_label`).

use serde::Serialize;
use serde_json::Value;

use super::json::{self, Keep};
use super::layout::MAX_METADATA_BYTES;
use super::metadata::{number, text};
use crate::error::{Error, Result};
use crate::store::{Store, StorePath, Validity};

/// The virtual hardware of a VM at a restore point. What the metadata does not tell is `None`.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct Hardware {
    /// Bytes of memory (XAPI's `memory_dynamic_max`).
    pub memory: Option<u64>,
    /// The most it may be given while it runs (`memory_static_max`).
    pub memory_static_max: Option<u64>,
    /// Virtual processors when it starts.
    pub vcpus: Option<u64>,
    /// The most it may have.
    pub vcpus_max: Option<u64>,
    /// How many of them make a socket, when it is set.
    pub cores_per_socket: Option<u64>,
    /// `hvm`, `pv`, `pvh`, …
    pub domain_type: Option<String>,
    /// `bios` or `uefi`; `None` of VMs that have none (PV).
    pub firmware: Option<String>,
    /// Whether UEFI checks signatures.
    pub secure_boot: bool,
    /// `c` disk, `d` CD drive, `n` network.
    pub boot_order: Option<String>,
    /// In the order of their positions; `None` where the metadata holds no records of them (full
    /// backups).
    pub network_cards: Option<Vec<NetworkCard>>,
}

/// A virtual network card.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct NetworkCard {
    /// Its position: `0`, `1`, …
    pub device: Option<String>,
    /// Its address.
    pub mac: Option<String>,
    /// Largest packet in bytes.
    pub mtu: Option<u64>,
    /// The network it is in, as people named it.
    pub network_name: Option<String>,
    /// The network's uuid in its pool.
    pub network_uuid: Option<String>,
    /// The VLAN of the network, `None` for none.
    pub vlan: Option<u64>,
}

static RECORD: Keep = Keep::Fields(&[
    (
        "vm",
        Keep::Fields(&[
            ("memory_dynamic_max", Keep::Scalar),
            ("memory_static_max", Keep::Scalar),
            ("VCPUs_at_startup", Keep::Scalar),
            ("VCPUs_max", Keep::Scalar),
            ("domain_type", Keep::Scalar),
            ("HVM_boot_policy", Keep::Scalar),
            (
                "HVM_boot_params",
                Keep::Fields(&[("firmware", Keep::Scalar), ("order", Keep::Scalar)]),
            ),
            (
                "platform",
                Keep::Fields(&[
                    ("cores-per-socket", Keep::Scalar),
                    ("secureboot", Keep::Scalar),
                ]),
            ),
        ]),
    ),
    (
        "vifs",
        Keep::Each(&Keep::Fields(&[
            ("device", Keep::Scalar),
            ("MAC", Keep::Scalar),
            ("MTU", Keep::Scalar),
            ("$network$name_label", Keep::Scalar),
            ("$network$uuid", Keep::Scalar),
            ("$network$VLAN", Keep::Scalar),
        ])),
    ),
]);

impl Hardware {
    /// Reads it from a `<date>.json`.
    ///
    /// # Errors
    /// As the storage says; `Corrupt` when the file is no JSON.
    pub fn read(store: &dyn Store, json: &StorePath) -> Result<Self> {
        let (data, _) = store.read(json, MAX_METADATA_BYTES, Validity::Listed(None))?;
        Self::parse(&data).map_err(|e| e.with_object(json))
    }

    fn parse(data: &[u8]) -> Result<Self> {
        let value = json::parse(data, &RECORD)
            .map_err(|e| Error::corrupt(format!("metadata is not valid JSON: {e}")))?;
        let vm = value.get("vm").unwrap_or(&Value::Null);
        let boot = vm.get("HVM_boot_params").unwrap_or(&Value::Null);
        let platform = vm.get("platform").unwrap_or(&Value::Null);
        let filled = |of: &Value, key| text(of, key).filter(|t| !t.is_empty());
        let has_firmware = filled(vm, "HVM_boot_policy").is_some();
        // Without a word about it, XAPI starts a BIOS.
        let firmware = filled(boot, "firmware").or_else(|| has_firmware.then(|| "bios".to_owned()));
        let secure_boot = match platform.get("secureboot") {
            Some(Value::Bool(on)) => *on,
            Some(Value::String(word)) => word == "true" || word == "auto",
            _ => false,
        };
        let vifs = value.get("vifs").and_then(Value::as_object);
        let network_cards = vifs.map(|vifs| {
            let mut cards: Vec<NetworkCard> = vifs.values().map(NetworkCard::of).collect();
            cards.sort_by_key(|card| {
                let device = card.device.clone().unwrap_or_default();
                (device.parse::<u32>().unwrap_or(u32::MAX), device)
            });
            cards
        });
        Ok(Hardware {
            memory: number(vm, "memory_dynamic_max").or_else(|| number(vm, "memory_static_max")),
            memory_static_max: number(vm, "memory_static_max"),
            vcpus: number(vm, "VCPUs_at_startup").or_else(|| number(vm, "VCPUs_max")),
            vcpus_max: number(vm, "VCPUs_max"),
            cores_per_socket: number(platform, "cores-per-socket"),
            domain_type: filled(vm, "domain_type"),
            firmware,
            secure_boot,
            boot_order: filled(boot, "order"),
            network_cards,
        })
    }
}

impl NetworkCard {
    fn of(vif: &Value) -> Self {
        NetworkCard {
            device: text(vif, "device").or_else(|| number(vif, "device").map(|n| n.to_string())),
            mac: text(vif, "MAC"),
            mtu: number(vif, "MTU"),
            network_name: text(vif, "$network$name_label"),
            network_uuid: text(vif, "$network$uuid"),
            vlan: number(vif, "$network$VLAN"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_is_read_from_the_records_of_xapi() {
        let data = serde_json::json!({
            "vm": {"memory_dynamic_max": 2147483648u64, "memory_static_max": "4294967296",
                   "VCPUs_at_startup": 2, "VCPUs_max": 4, "domain_type": "hvm",
                   "HVM_boot_policy": "BIOS order",
                   "HVM_boot_params": {"firmware": "uefi", "order": "cdn"},
                   "platform": {"secureboot": "true", "cores-per-socket": "2"}},
            "vifs": {
                "b": {"device": "10", "MAC": "02:00:00:aa:bb:cd"},
                "a": {"device": "2", "MAC": "02:00:00:aa:bb:cc", "MTU": 1500,
                      "$network$name_label": "DMZ", "$network$uuid": "n", "$network$VLAN": 12}},
        });
        let read = Hardware::parse(data.to_string().as_bytes()).unwrap();
        assert_eq!(
            (read.memory, read.memory_static_max),
            (Some(2 << 30), Some(4 << 30))
        );
        assert_eq!(
            (read.vcpus, read.vcpus_max, read.cores_per_socket),
            (Some(2), Some(4), Some(2))
        );
        assert_eq!(read.firmware.as_deref(), Some("uefi"));
        assert!(read.secure_boot);
        let cards = read.network_cards.unwrap();
        assert_eq!(cards[0].network_name.as_deref(), Some("DMZ"));
        assert_eq!((cards[0].vlan, cards[1].vlan), (Some(12), None));
        assert_eq!(cards[1].device.as_deref(), Some("10"));
    }

    #[test]
    fn what_the_metadata_does_not_tell_is_unknown() {
        let read = Hardware::parse(br#"{"vm": {"HVM_boot_policy": "BIOS order"}}"#).unwrap();
        assert_eq!(read.firmware.as_deref(), Some("bios"));
        assert_eq!(read.network_cards, None);
        let of_pv = Hardware::parse(br#"{"vm": {"HVM_boot_policy": ""}, "vifs": {}}"#).unwrap();
        assert_eq!(
            (of_pv.firmware, of_pv.network_cards),
            (None, Some(Vec::new()))
        );
        assert!(Hardware::parse(b"{").is_err());
    }
}
