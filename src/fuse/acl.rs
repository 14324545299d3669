//! Access control lists as attributes (`posix_acl_xattr_header`): the kernel goes by them, not by the mode, for everybody
//! but a file's owner, so the mount's umask must take its bits from them as well.

/// The attribute that holds who may do what.
pub(super) const ACCESS: &str = "system.posix_acl_access";
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;
const USER_OBJ: u16 = 1;
const OTHER: u16 = 0x20;

/// A list without the permissions in `umask`. What is no list stays what it is: the kernel refuses it.
pub(super) fn without(mut list: Vec<u8>, umask: u16) -> Vec<u8> {
    let Some(entries) = list.get_mut(HEADER_BYTES..) else {
        return list;
    };
    for entry in entries.chunks_exact_mut(ENTRY_BYTES) {
        let taken = match u16::from_le_bytes([entry[0], entry[1]]) {
            USER_OBJ => umask >> 6,
            OTHER => umask,
            // Named users, groups and the mask make up the group's bits.
            _ => umask >> 3,
        };
        let given = u16::from_le_bytes([entry[2], entry[3]]) & !(taken & 7);
        entry[2..4].copy_from_slice(&given.to_le_bytes());
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_umask_takes_its_bits_from_each_entry() {
        let list = |permissions: [u8; 5]| {
            let mut list = vec![2, 0, 0, 0];
            for (tag, given) in [1, 2, 4, 0x10, 0x20].into_iter().zip(permissions) {
                list.extend([tag, 0, given, 0, 0xD2, 4, 0, 0]);
            }
            list
        };
        assert_eq!(without(list([7; 5]), 0o027), list([7, 5, 5, 5, 0]));
        assert_eq!(without(list([6, 6, 0, 6, 4]), 0), list([6, 6, 0, 6, 4]));
        assert_eq!(without(vec![2, 0], 0o777), [2, 0]);
    }
}
