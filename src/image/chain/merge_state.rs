//! The state file of a merge: which images XO is (or was) merging, and how far it has come.
//!
//! XO writes `.<parent file>.merge.json` beside the parent while it merges a removed restore point
//! into its child, and leaves it there when it is interrupted (format document, section 7). This
//! module only parses; what a state means for a chain is decided by the image module.
//!
//! Lenient where old versions of XO differ, strict where a guess could excuse a missing block: a
//! state whose chain cannot be read names no chain at all.

use serde_json::Value;

use crate::error::{Error, Result};

/// Longest state file that is read, in bytes. A chain entry takes some 40 bytes, so this leaves
/// room for chains far longer than any that exist.
pub const MAX_MERGE_STATE_BYTES: u64 = 1 << 20;

const PREFIX: &str = ".";
const SUFFIX: &str = ".merge.json";

/// How far a merge has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeStep {
    /// Blocks are moved or copied into the parent.
    MergeBlocks,
    /// The blocks are all in the parent; it takes the child's uuid and name (`cleanup`, formerly
    /// `cleanupVhds`).
    Cleanup,
    /// A step that this version of brfs does not know.
    Unknown,
}

/// A parsed state file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MergeState {
    /// The images concerned as the file names them: relative to the directory of the state file,
    /// oldest (the parent) first. Empty in state files of old versions of XO.
    pub chain: Vec<String>,
    /// Footer uuid of the parent, lower case, when the file tells it (older ones give a header
    /// checksum instead).
    pub parent_uuid: Option<String>,
    /// Footer uuid of the child, lower case, when the file tells it.
    pub child_uuid: Option<String>,
    /// How far the merge has come.
    pub step: MergeStep,
    /// Blocks before this index have been merged. `null`, negative and missing are 0.
    pub current_block: u64,
}

impl MergeState {
    /// Parses a state file.
    ///
    /// # Errors
    /// `Corrupt` when the text is not a JSON object (XO may be writing it right now) or its chain
    /// is not a list of strings.
    pub fn parse(data: &[u8]) -> Result<Self> {
        let value: Value = serde_json::from_slice(data)
            .map_err(|e| Error::corrupt(format!("merge state is not valid JSON: {e}")))?;
        let Value::Object(fields) = value else {
            return Err(Error::corrupt("merge state is not a JSON object"));
        };
        let chain = match fields.get("chain") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| {
                    Error::corrupt("merge state's chain holds something else than paths")
                })?,
            Some(_) => return Err(Error::corrupt("merge state's chain is not a list")),
        };
        let uuid_of = |side: &str| {
            let uuid = fields.get(side)?.get("uuid")?.as_str()?;
            Some(uuid.to_ascii_lowercase())
        };
        let step = match fields.get("step") {
            // The first versions had one step only and did not name it.
            None | Some(Value::Null) => MergeStep::MergeBlocks,
            Some(Value::String(s)) => match s.as_str() {
                "mergeBlocks" => MergeStep::MergeBlocks,
                "cleanup" | "cleanupVhds" => MergeStep::Cleanup,
                _ => MergeStep::Unknown,
            },
            Some(_) => MergeStep::Unknown,
        };
        Ok(MergeState {
            parent_uuid: uuid_of("parent"),
            child_uuid: uuid_of("child"),
            chain,
            step,
            current_block: fields
                .get("currentBlock")
                .and_then(Value::as_u64)
                .unwrap_or(0),
        })
    }
}

/// The name of the state file of a merge into `parent_file` (a file name, not a path).
pub fn merge_state_file_name(parent_file: &str) -> String {
    format!("{PREFIX}{parent_file}{SUFFIX}")
}

/// The parent's file name when `name` is that of a state file.
pub fn parent_of_merge_state(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)?
        .strip_suffix(SUFFIX)
        .filter(|parent| !parent.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_xo_writes() {
        let state = MergeState::parse(
            br#"{"child":{"uuid":"8BEF6111-580c-40c8-a5ad-6cbed12ed472"},
                "parent":{"uuid":"65ece044-1bff-4205-ae35-aa04c9bf80ca"},
                "chain":["a.alias.vhd","b.alias.vhd"],"currentBlock":17,"mergedDataSize":2097152,
                "step":"mergeBlocks","diskSize":0}"#,
        )
        .unwrap();
        assert_eq!(state.chain, ["a.alias.vhd", "b.alias.vhd"]);
        assert_eq!(state.step, MergeStep::MergeBlocks);
        assert_eq!(state.current_block, 17);
        assert_eq!(
            state.child_uuid.as_deref(),
            Some("8bef6111-580c-40c8-a5ad-6cbed12ed472")
        );
    }

    #[test]
    fn null_and_negative_current_block_are_zero() {
        for text in ["null", "-1", "\"x\"", "{}", "1e99"] {
            let json = format!("{{\"chain\":[],\"currentBlock\":{text}}}");
            let state = MergeState::parse(json.as_bytes()).unwrap();
            assert_eq!(state.current_block, 0, "{text}");
        }
    }

    #[test]
    fn old_state_files_without_step_chain_and_uuids_are_read() {
        let state = MergeState::parse(
            br#"{"child":{"header":4264119},"parent":{"header":4264120},"currentBlock":3}"#,
        )
        .unwrap();
        assert_eq!(state.step, MergeStep::MergeBlocks);
        assert!(state.chain.is_empty() && state.child_uuid.is_none());
    }

    #[test]
    fn both_names_of_the_last_step_are_known() {
        for step in ["cleanup", "cleanupVhds"] {
            let json = format!("{{\"step\":\"{step}\"}}");
            let state = MergeState::parse(json.as_bytes()).unwrap();
            assert_eq!(state.step, MergeStep::Cleanup);
        }
        let state = MergeState::parse(br#"{"step":"sing"}"#).unwrap();
        assert_eq!(state.step, MergeStep::Unknown);
    }

    #[test]
    fn unreadable_states_are_refused() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "{",
            "[]",
            "null",
            "{\"chain\":[1]}",
            "{\"chain\":{}}",
            &deep,
        ] {
            assert!(MergeState::parse(text.as_bytes()).is_err(), "{text:.20}");
        }
    }

    #[test]
    fn state_file_names_lead_to_the_parent_and_back() {
        let name = merge_state_file_name("20260301T013000Z.alias.vhd");
        assert_eq!(name, ".20260301T013000Z.alias.vhd.merge.json");
        assert_eq!(
            parent_of_merge_state(&name),
            Some("20260301T013000Z.alias.vhd")
        );
        assert_eq!(parent_of_merge_state("..merge.json"), None);
        assert_eq!(parent_of_merge_state("x.merge.json"), None);
    }
}
