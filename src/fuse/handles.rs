//! What programs have open: files with the length they had, and listings in progress.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use crate::error::{Error, ErrorKind, Result};
use crate::io::{Chunk, ExtentKind, ReadAt};
use crate::sync::{lock, read, write};
use crate::tree::{DirEntry, DirStream, Directory, File, Node};

/// Handles by number. Numbers are never used twice.
pub(super) struct Handles<T> {
    next: AtomicU64,
    open: RwLock<HashMap<u64, Arc<T>>>,
}

impl<T> Handles<T> {
    pub(super) fn new() -> Self {
        Handles {
            next: AtomicU64::new(1),
            open: RwLock::new(HashMap::new()),
        }
    }

    pub(super) fn insert(&self, handle: T) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        write(&self.open).insert(number, Arc::new(handle));
        number
    }

    pub(super) fn get(&self, number: u64) -> Option<Arc<T>> {
        read(&self.open).get(&number).cloned()
    }

    pub(super) fn remove(&self, number: u64) -> Option<Arc<T>> {
        write(&self.open).remove(&number)
    }
}

/// An open file.
pub(super) struct FileHandle {
    file: Arc<dyn ReadAt>,
    /// The length when it was opened, which cannot change: see [`crate::tree::File::open`].
    size: u64,
}

/// Which kind of extent a seek looks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seek {
    Data,
    Hole,
}

impl FileHandle {
    pub(super) fn open(file: &dyn File) -> Result<Self> {
        Ok(FileHandle {
            file: file.open()?,
            size: file.quick_attr()?.size_bytes,
        })
    }

    /// How much of a request lies within the file.
    pub(super) fn within(&self, offset: u64, len: usize) -> usize {
        let rest = self.size.saturating_sub(offset);
        usize::try_from(rest).map_or(len, |rest| rest.min(len))
    }

    pub(super) fn is_non_blocking(&self, offset: u64, len: usize) -> bool {
        self.file.is_non_blocking(offset, len)
    }

    /// Reads exactly `len` bytes, which must lie within the file.
    ///
    /// The kernel takes a short answer for the end of the file and fills up with zeros, so a node
    /// that gave too little would put wrong bytes into programs: that is an error here instead.
    pub(super) fn read(&self, offset: u64, len: usize, buf: &mut [u8]) -> Result<Chunk> {
        let chunk = self.file.read_chunk_at(&mut buf[..len], offset)?;
        let got = chunk.bytes(&buf[..len]).len();
        if got != len {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "a read of {len} bytes gave {got}; the file has {} bytes",
                    self.size
                ),
            )
            .at(offset));
        }
        Ok(chunk)
    }

    /// The next offset of that kind, `None` when there is none (`ENXIO`). The end of the file
    /// counts as a hole.
    pub(super) fn seek(&self, from: u64, seek: Seek) -> Result<Option<u64>> {
        if from >= self.size {
            return Ok(None);
        }
        let mut at = from;
        while at < self.size {
            let extent = self.file.extent_at(at)?;
            let found = matches!(
                (extent.kind, seek),
                (ExtentKind::Data, Seek::Data) | (ExtentKind::Hole, Seek::Hole)
            );
            if found {
                return Ok(Some(at));
            }
            if extent.end <= at {
                return Err(Error::corrupt("an extent without an end").at(at));
            }
            at = extent.end;
        }
        Ok((seek == Seek::Hole).then_some(self.size))
    }
}

/// An open directory.
///
/// Cookies (`d_off`) are positions: 1 after `.`, 2 after `..`, 3 after the first entry and so on.
/// The kernel usually asks on from where the last answer ended, but a program with a small buffer
/// makes it ask again for the second half of that answer, so the last answer's entries are kept.
/// Seeking back further starts the listing anew.
pub(super) struct DirHandle {
    dir: Arc<dyn Directory>,
    paging: Mutex<Paging>,
}

/// Positions `.` and `..` take before the entries.
pub(super) const DOTS: u64 = 2;

/// Nodes are asked for so many entries at once: neighbours that one block often holds.
const NODES_AT_ONCE: usize = 8;

/// An entry, and its node when that was asked for and could be had.
struct Listed {
    entry: DirEntry,
    node: Option<Node>,
    has_asked: bool,
}

struct Paging {
    stream: Box<dyn DirStream>,
    /// Entries `window_start..` of the listing that were taken from the stream.
    window: VecDeque<Listed>,
    window_start: u64,
    ended: bool,
    failed: Option<Error>,
    used: bool,
}

impl Paging {
    fn new(dir: &dyn Directory) -> Result<Self> {
        Ok(Paging {
            stream: dir.list()?,
            window: VecDeque::new(),
            window_start: 0,
            ended: false,
            failed: None,
            used: false,
        })
    }

    /// Takes one more entry from the stream into the window. A stream that failed stays failed: a
    /// listing must never end early without an error.
    fn pull(&mut self) -> Result<bool> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if self.ended {
            return Ok(false);
        }
        match self.stream.next_entry() {
            Ok(Some(entry)) => {
                self.window.push_back(Listed {
                    entry,
                    node: None,
                    has_asked: false,
                });
                Ok(true)
            }
            Ok(None) => {
                self.ended = true;
                Ok(false)
            }
            Err(error) => {
                self.failed = Some(error.clone());
                Err(error)
            }
        }
    }

    /// Sees to it that the nodes of the entries in the window from `first` on have been asked for, at
    /// least that of the first one. Errors of the stream are met again by whoever goes on.
    fn ask(&mut self, dir: &dyn Directory, first: usize) {
        if self.window.get(first).is_none_or(|listed| listed.has_asked) {
            return;
        }
        while self.window.len() < first + NODES_AT_ONCE && matches!(self.pull(), Ok(true)) {}
        let asked = self.window.range_mut(first..).take(NODES_AT_ONCE);
        let mut asked: Vec<&mut Listed> = asked.filter(|listed| !listed.has_asked).collect();
        let entries: Vec<DirEntry> = asked.iter().map(|listed| listed.entry.clone()).collect();
        let nodes = dir.nodes(&entries).unwrap_or_default();
        let mut nodes = nodes.into_iter();
        for listed in &mut asked {
            listed.has_asked = true;
            listed.node = nodes.next().flatten();
        }
    }

    /// Makes the window start at entry `index`, or at the end when there are fewer.
    fn move_to(&mut self, index: u64) -> Result<()> {
        while self.window_start < index {
            if self.window.is_empty() && !self.pull()? {
                return Ok(());
            }
            self.window.pop_front();
            self.window_start += 1;
        }
        Ok(())
    }
}

impl DirHandle {
    /// Starts the listing, so that a directory that cannot be listed fails to open.
    pub(super) fn open(dir: Arc<dyn Directory>) -> Result<Self> {
        let paging = Mutex::new(Paging::new(&*dir)?);
        Ok(DirHandle { dir, paging })
    }

    pub(super) fn is_quick(&self) -> bool {
        self.dir.is_quick()
    }

    /// Calls `add` with each entry after position `offset` and the position after it, until it
    /// answers that there is no more room. One listing is served at a time; others do not wait.
    pub(super) fn entries(
        &self,
        offset: u64,
        mut add: impl FnMut(&DirEntry, u64) -> bool,
    ) -> Result<()> {
        self.serve(offset, None, |entry, _, after| add(entry, after))
    }

    /// The same with the nodes of those entries that have one at hand (see [`Directory::nodes`]), for at
    /// most so many entries.
    pub(super) fn entries_with_nodes(
        &self,
        offset: u64,
        most: usize,
        add: impl FnMut(&DirEntry, Option<&Node>, u64) -> bool,
    ) -> Result<()> {
        self.serve(offset, Some(most), add)
    }

    fn serve(
        &self,
        offset: u64,
        with_nodes: Option<usize>,
        mut add: impl FnMut(&DirEntry, Option<&Node>, u64) -> bool,
    ) -> Result<()> {
        let index = offset.saturating_sub(DOTS);
        let mut paging = lock(&self.paging);
        if index < paging.window_start || (offset == 0 && paging.used) {
            *paging = Paging::new(&*self.dir)?;
        }
        paging.used = true;
        paging.move_to(index)?;
        if paging.window_start < index {
            return Ok(());
        }
        let mut served: usize = 0;
        loop {
            if served == paging.window.len() {
                match paging.pull() {
                    Ok(true) => {}
                    Ok(false) => return Ok(()),
                    // What was served goes out; the next request meets the error again.
                    Err(_) if served > 0 => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            match with_nodes {
                Some(most) if served >= most => return Ok(()),
                Some(_) => paging.ask(&*self.dir, served),
                None => {}
            }
            let position = index + served as u64 + 1 + DOTS;
            let Listed { entry, node, .. } = &paging.window[served];
            if add(entry, node.as_ref(), position) {
                return Ok(());
            }
            served += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::Extent;
    use crate::tree::{Attr, Base, EntryList, Identity, Node, NodeKind};
    use std::ffi::OsStr;
    use std::time::SystemTime;

    struct Numbers {
        count: usize,
        fails_at: Option<usize>,
    }

    struct Failing(EntryList, usize);

    impl DirStream for Failing {
        fn next_entry(&mut self) -> Result<Option<DirEntry>> {
            if self.1 == 0 {
                return Err(Error::corrupt("broken here"));
            }
            self.1 -= 1;
            self.0.next_entry()
        }
    }

    impl Base for Numbers {
        fn identity(&self) -> Identity {
            Identity::Named(0)
        }
        fn attr(&self) -> Result<Attr> {
            Ok(Attr::dir(SystemTime::UNIX_EPOCH))
        }
    }

    impl Directory for Numbers {
        fn lookup(&self, _: &OsStr) -> Result<Option<Node>> {
            Ok(None)
        }
        fn list(&self) -> Result<Box<dyn DirStream>> {
            let entries = EntryList::new(
                (0..self.count)
                    .map(|i| DirEntry {
                        name: i.to_string().into(),
                        kind: NodeKind::File,
                        identity: Identity::Named(0),
                    })
                    .collect(),
            );
            Ok(match self.fails_at {
                Some(at) => Box::new(Failing(entries, at)),
                None => Box::new(entries),
            })
        }
    }

    /// Reads `room` entries after `offset`: their names and the position after the last.
    fn page(handle: &DirHandle, offset: u64, room: usize) -> Result<(Vec<String>, u64)> {
        let mut names = Vec::new();
        let mut after = offset.max(DOTS);
        handle.entries(offset, |entry, position| {
            if names.len() == room {
                return true;
            }
            names.push(entry.name.to_string_lossy().into_owned());
            after = position;
            false
        })?;
        Ok((names, after))
    }

    fn numbers(count: usize, fails_at: Option<usize>) -> DirHandle {
        DirHandle::open(Arc::new(Numbers { count, fails_at })).unwrap()
    }

    #[test]
    fn listing_gives_every_entry_once_whatever_the_buffer() {
        for room in 1..12 {
            let handle = numbers(10, None);
            let mut all = Vec::new();
            let mut offset = 0;
            loop {
                let (names, after) = page(&handle, offset, room).unwrap();
                if names.is_empty() {
                    break;
                }
                all.extend(names);
                offset = after;
            }
            let expected: Vec<_> = (0..10).map(|i| i.to_string()).collect();
            assert_eq!(all, expected, "room {room}");
        }
    }

    #[test]
    fn listing_can_go_back_within_and_before_the_last_answer() {
        let handle = numbers(10, None);
        let (_, after) = page(&handle, 0, 4).unwrap();
        assert_eq!(after, 6);
        assert_eq!(page(&handle, 4, 3).unwrap().0, ["2", "3", "4"]);
        assert_eq!(page(&handle, 10, 3).unwrap().0, ["8", "9"]);
        assert_eq!(page(&handle, 3, 2).unwrap().0, ["1", "2"]);
        assert_eq!(page(&handle, 0, 1).unwrap().0, ["0"]);
        assert!(page(&handle, 99, 1).unwrap().0.is_empty());
        assert_eq!(page(&handle, 11, 5).unwrap().0, ["9"]);
    }

    #[test]
    fn listing_that_fails_never_looks_complete() {
        let handle = numbers(10, Some(3));
        let (names, after) = page(&handle, 0, 100).unwrap();
        assert_eq!(names.len(), 3);
        assert!(page(&handle, after, 100).is_err());
        assert!(page(&handle, after, 100).is_err());
    }

    /// Extents as (kind, end); reads give one byte less than asked when `short`.
    struct Striped {
        extents: Vec<(ExtentKind, u64)>,
        short: bool,
    }

    impl ReadAt for Striped {
        fn len_bytes(&self) -> u64 {
            self.extents.last().map_or(0, |e| e.1)
        }
        fn read_exact_at(&self, _: &mut [u8], _: u64) -> Result<()> {
            Ok(())
        }
        fn read_chunk_at(&self, buf: &mut [u8], _: u64) -> Result<Chunk> {
            let len = buf.len() - usize::from(self.short);
            Ok(Chunk::Shared(vec![0; len].into()))
        }
        fn extent_at(&self, offset: u64) -> Result<Extent> {
            let (kind, end) = *self.extents.iter().find(|(_, end)| *end > offset).unwrap();
            Ok(Extent { kind, end })
        }
    }

    fn striped(extents: &[(ExtentKind, u64)], short: bool) -> FileHandle {
        FileHandle {
            size: extents.last().map_or(0, |e| e.1),
            file: Arc::new(Striped {
                extents: extents.to_vec(),
                short,
            }),
        }
    }

    #[test]
    fn seek_joins_neighbouring_extents_and_ends_in_a_hole() {
        use ExtentKind::{Data, Hole};
        let file = striped(
            &[(Data, 10), (Data, 20), (Hole, 30), (Hole, 40), (Data, 50)],
            false,
        );
        assert_eq!(file.seek(0, Seek::Data).unwrap(), Some(0));
        assert_eq!(file.seek(3, Seek::Hole).unwrap(), Some(20));
        assert_eq!(file.seek(25, Seek::Hole).unwrap(), Some(25));
        assert_eq!(file.seek(25, Seek::Data).unwrap(), Some(40));
        assert_eq!(file.seek(45, Seek::Hole).unwrap(), Some(50));
        assert_eq!(file.seek(50, Seek::Hole).unwrap(), None);
        assert_eq!(file.seek(u64::MAX, Seek::Data).unwrap(), None);
        let tail = striped(&[(Data, 10), (Hole, 20)], false);
        assert_eq!(tail.seek(12, Seek::Data).unwrap(), None);
    }

    #[test]
    fn short_read_inside_the_file_is_an_error() {
        let file = striped(&[(ExtentKind::Data, 100)], true);
        assert!(file.read(0, 50, &mut [0; 50]).is_err());
        assert_eq!(file.within(90, 50), 10);
        assert_eq!(file.within(100, 50), 0);
        assert_eq!(file.within(u64::MAX, 50), 0);
    }
}
