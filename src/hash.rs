//! One hash for whatever must be the same at the next run, with another compiler, on another machine:
//! inode numbers, identities of nodes, names of things without a name, states of stored objects.
//!
//! It is XXH3 by its specification, which is fixed. It is no defence against an attacker who looks for
//! collisions; nothing that uses it relies on that.

use twox_hash::XxHash3_128;

/// Hashes a list of parts. Each part goes in with its length, so that no two lists give the same bytes.
///
/// The parts are few and short, so they are collected and hashed at once.
#[derive(Debug, Default)]
pub struct StableHash(Vec<u8>);

impl StableHash {
    /// Of no parts yet.
    pub fn new() -> Self {
        StableHash(Vec::with_capacity(64))
    }

    /// With one more part.
    #[must_use]
    pub fn part(mut self, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.0.extend((bytes.len() as u64).to_le_bytes());
        self.0.extend(bytes);
        self
    }

    /// With a number as one more part.
    #[must_use]
    pub fn number(self, number: impl Into<u128>) -> Self {
        self.part(number.into().to_le_bytes())
    }

    /// The hash.
    pub fn finish(&self) -> u128 {
        XxHash3_128::oneshot(&self.0)
    }

    /// Half of the hash.
    pub fn finish_u64(&self) -> u64 {
        self.finish() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Literal values, made with another implementation (xxhash of Python): whoever changes them changes every inode number of every mount.
    #[test]
    fn values_never_change() {
        let of_parts = StableHash::new().part("xo-vm-backups").number(7_u64);
        assert_eq!(of_parts.finish(), 0x37912a7e18204dd7d9da330c3d0903af);
        assert_eq!(of_parts.finish_u64(), 0xd9da330c3d0903af);
    }

    #[test]
    fn the_empty_list_is_xxh3_of_nothing() {
        // From the specification's own test vectors, seed 0.
        assert_eq!(
            StableHash::new().finish(),
            0x99aa_06d3_0147_98d8_6001_c324_468d_497f
        );
    }

    #[test]
    fn parts_are_told_apart() {
        let of = |parts: &[&str]| {
            let add = |hash: StableHash, part: &&str| hash.part(part);
            parts.iter().fold(StableHash::new(), add).finish()
        };
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["a"]), of(&["a", ""]));
    }
}
