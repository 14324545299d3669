//! A partition, of whichever kind of table.

use super::problem::Problem;
use super::type_names;
use crate::io::ReadAt;

/// What a partition is for, as far as the table says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PartitionType {
    /// The type byte of an MBR entry.
    Mbr(u8),
    /// The type GUID of a GPT entry, in its usual text form, lower case.
    Gpt(String),
}

/// One partition: a byte range of its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// The number Linux would give it (`sda5` is 5).
    pub number: u32,
    /// First byte.
    pub start_bytes: u64,
    /// Length in bytes, cut to the end of the disk.
    pub len_bytes: u64,
    /// The type.
    pub kind: PartitionType,
    /// The name in a GPT entry.
    pub name: Option<String>,
    /// The unique GUID of a GPT entry.
    pub guid: Option<String>,
    /// What is wrong with its entry, though it is shown.
    pub problems: Vec<String>,
}

impl Partition {
    /// A word for well-known types; the number or GUID otherwise.
    pub fn type_name(&self) -> String {
        match &self.kind {
            PartitionType::Mbr(byte) => match type_names::of_mbr(*byte) {
                Some(name) => name.to_string(),
                None => format!("mbr-{byte:02x}"),
            },
            PartitionType::Gpt(guid) => match type_names::of_gpt(guid) {
                Some(name) => name.to_string(),
                None => guid.clone(),
            },
        }
    }
}

/// The length of a partition, cut to the disk, and what is to say of that; `None` when nothing of it lies on the disk.
pub(super) fn clip(
    disk: &dyn ReadAt,
    number: u32,
    start_bytes: u64,
    len_bytes: u64,
    problems: &mut Vec<Problem>,
) -> Option<(u64, Option<String>)> {
    let room = disk.len_bytes().saturating_sub(start_bytes);
    if room == 0 || len_bytes == 0 || start_bytes == 0 {
        problems.push(Problem::new(
            format!("partition {number}"),
            "it lies past the end of the disk or over the table itself; it is left out",
        ));
        return None;
    }
    let problem = len_bytes
        .checked_sub(room)
        .filter(|&more| more > 0)
        .map(|more| {
            let message = format!("it is {more} bytes longer than the disk; it is cut there");
            problems.push(Problem::new(format!("partition {number}"), message.clone()));
            message
        });
    Some((len_bytes.min(room), problem))
}
