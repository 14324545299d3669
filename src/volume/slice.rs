//! A byte range of a volume as a volume of its own.

use std::sync::Arc;

use crate::error::Result;
use crate::io::{Extent, ReadAt, check_range};

/// `len_bytes` bytes of another volume, from `start_bytes` on.
#[derive(Clone)]
pub struct Slice {
    inner: Arc<dyn ReadAt>,
    start_bytes: u64,
    len_bytes: u64,
}

impl Slice {
    /// A slice that lies within `inner`.
    ///
    /// # Errors
    /// `Invalid` when the range leaves `inner`.
    pub fn new(inner: Arc<dyn ReadAt>, start_bytes: u64, len_bytes: u64) -> Result<Self> {
        check_range(start_bytes, len_bytes, inner.len_bytes())?;
        Ok(Slice {
            inner,
            start_bytes,
            len_bytes,
        })
    }
}

impl ReadAt for Slice {
    fn len_bytes(&self) -> u64 {
        self.len_bytes
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        check_range(offset, buf.len() as u64, self.len_bytes)?;
        // Cannot overflow: `new` checked that the whole slice lies within `inner`.
        self.inner.read_exact_at(buf, self.start_bytes + offset)
    }

    fn extent_at(&self, offset: u64) -> Result<Extent> {
        check_range(offset, 1, self.len_bytes)?;
        let inner = self.inner.extent_at(self.start_bytes + offset)?;
        Ok(Extent {
            kind: inner.kind,
            end: inner
                .end
                .saturating_sub(self.start_bytes)
                .min(self.len_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::ExtentKind;

    struct Holey;
    impl ReadAt for Holey {
        fn len_bytes(&self) -> u64 {
            100
        }
        fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
            for (at, byte) in buf.iter_mut().enumerate() {
                *byte = offset as u8 + at as u8;
            }
            Ok(())
        }
        fn extent_at(&self, offset: u64) -> Result<Extent> {
            let (kind, end) = if offset < 40 {
                (ExtentKind::Data, 40)
            } else {
                (ExtentKind::Hole, 100)
            };
            Ok(Extent { kind, end })
        }
    }

    #[test]
    fn slice_shifts_reads_and_extents_and_refuses_to_leave() {
        let slice = Slice::new(Arc::new(Holey), 30, 50).unwrap();
        let mut buf = [0; 3];
        slice.read_exact_at(&mut buf, 5).unwrap();
        assert_eq!(buf, [35, 36, 37]);
        assert!(slice.read_exact_at(&mut buf, 48).is_err());
        assert_eq!(slice.extent_at(0).unwrap().end, 10);
        assert_eq!(slice.extent_at(10).unwrap().end, 50);
        assert!(slice.extent_at(50).is_err());
        assert!(Slice::new(Arc::new(Holey), 60, 41).is_err());
        assert!(Slice::new(Arc::new(Holey), u64::MAX, 2).is_err());
    }
}
