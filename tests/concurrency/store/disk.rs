//! A disk in memory whose operations take as many steps as the scheduler likes.
//!
//! What is volatile and what is durable are told apart, so that a check can ask what an
//! acknowledgement was worth at the moment it came. There are no crashes here: those are the
//! simulated disk's.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::future::poll_fn;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;

use async_trait::async_trait;
use bytes::Bytes;
use shuttle::rand::Rng;

use crate::io::{AlignedBuf, DirEntry, EntryKind, IoFile, LockKind, OpenMode};

const ENOENT: i32 = 2;
const EIO: i32 = 5;
const EEXIST: i32 = 17;

/// Most steps that an operation takes. Two in flight end in either order.
const STEPS_MAX: usize = 3;

/// Lets the others run for a while.
pub(super) async fn steps(max: usize) {
    let mut left = shuttle::rand::thread_rng().gen_range(0..max);
    poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(());
        }
        left -= 1;
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

pub(super) fn error<T>(code: i32) -> io::Result<T> {
    Err(io::Error::from_raw_os_error(code))
}

/// The names of the disk; shared by all threads of a model.
#[derive(Debug, Default)]
pub(super) struct Disk {
    names: Mutex<BTreeMap<PathBuf, Node>>,
    opened: AtomicUsize,
    draws: AtomicU64,
    /// Writes of data that still succeed; more than there are, as a rule.
    pub(super) writes_left: AtomicUsize,
}

#[derive(Debug, Clone)]
enum Node {
    Dir,
    File(Arc<Data>),
}

#[derive(Debug, Default)]
struct Data {
    bytes: Mutex<Content>,
}

#[derive(Debug, Default)]
struct Content {
    volatile: Vec<u8>,
    durable: Vec<u8>,
    /// What the syncs under way will have made durable.
    syncs: BTreeMap<u64, Vec<u8>>,
    locks: Vec<(usize, LockKind)>,
}

impl Data {
    fn lock(&self) -> MutexGuard<'_, Content> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// A disk with one directory, on which nothing fails.
    pub(super) fn new(dir: &Path) -> Arc<Self> {
        let disk = Self::default();
        disk.names().insert(dir.into(), Node::Dir);
        disk.writes_left.store(usize::MAX, Ordering::Relaxed);
        Arc::new(disk)
    }

    fn names(&self) -> MutexGuard<'_, BTreeMap<PathBuf, Node>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Numbers that differ from each other, the same ones in every replay of a schedule.
    pub(super) fn draw(&self) -> u64 {
        let n = self.draws.fetch_add(1, Ordering::Relaxed) + 1;
        n.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }

    /// Whether stable media hold these bytes in some file.
    pub(super) fn is_durable(&self, needle: &[u8]) -> bool {
        self.names().values().any(|node| match node {
            Node::Dir => false,
            Node::File(data) => {
                let content = data.lock();
                content.durable.windows(needle.len()).any(|w| w == needle)
            }
        })
    }

    pub(super) fn open(self: &Arc<Self>, path: &Path, mode: OpenMode) -> io::Result<File> {
        let mut names = self.names();
        let data = match (names.get(path), mode) {
            (Some(Node::File(data)), OpenMode::Read | OpenMode::ReadWrite) => Arc::clone(data),
            (Some(_), OpenMode::CreateNew) => return error(EEXIST),
            (None, OpenMode::CreateNew) => {
                let data = Arc::<Data>::default();
                names.insert(path.into(), Node::File(Arc::clone(&data)));
                data
            }
            _ => return error(ENOENT),
        };
        Ok(File {
            disk: Arc::clone(self),
            data,
            id: self.opened.fetch_add(1, Ordering::Relaxed),
        })
    }

    pub(super) fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>> {
        self.kind(dir)?;
        let names = self.names();
        let inside = names.iter().filter(|(path, _)| path.parent() == Some(dir));
        Ok(inside
            .map(|(path, node)| DirEntry {
                name: path.file_name().map(OsString::from).unwrap_or_default(),
                kind: kind_of(node),
            })
            .collect())
    }

    pub(super) fn kind(&self, path: &Path) -> io::Result<EntryKind> {
        self.names()
            .get(path)
            .map_or(error(ENOENT), |n| Ok(kind_of(n)))
    }

    pub(super) fn create_dir(&self, path: &Path) -> io::Result<()> {
        let mut names = self.names();
        if names.contains_key(path) {
            return error(EEXIST);
        }
        names.insert(path.into(), Node::Dir);
        Ok(())
    }

    pub(super) fn remove(&self, path: &Path) -> io::Result<()> {
        self.names().remove(path).map_or(error(ENOENT), |_| Ok(()))
    }

    pub(super) fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut names = self.names();
        let moved: Vec<_> = names
            .keys()
            .filter(|path| path.starts_with(from))
            .cloned()
            .collect();
        if moved.is_empty() {
            return error(ENOENT);
        }
        for path in moved {
            let rest = path.strip_prefix(from).unwrap();
            // Joining nothing would add a slash.
            let new = if rest.as_os_str().is_empty() {
                to.to_path_buf()
            } else {
                to.join(rest)
            };
            let node = names.remove(&path).unwrap();
            names.insert(new, node);
        }
        Ok(())
    }
}

fn kind_of(node: &Node) -> EntryKind {
    match node {
        Node::Dir => EntryKind::Dir,
        Node::File(_) => EntryKind::File,
    }
}

/// An open file.
#[derive(Debug)]
pub(super) struct File {
    disk: Arc<Disk>,
    data: Arc<Data>,
    id: usize,
}

impl Drop for File {
    fn drop(&mut self) {
        self.data.lock().locks.retain(|(id, _)| *id != self.id);
    }
}

/// Copies `buf` to a place of a file that may have to grow.
fn put(bytes: &mut Vec<u8>, buf: &[u8], at: usize) {
    if bytes.len() < at + buf.len() {
        bytes.resize(at + buf.len(), 0);
    }
    bytes[at..at + buf.len()].copy_from_slice(buf);
}

impl File {
    async fn write(&self, buf: Bytes, offset: u64, durable: bool) -> (io::Result<usize>, Bytes) {
        steps(STEPS_MAX).await;
        let left = &self.disk.writes_left;
        let left = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
        if left.is_err() {
            return (error(EIO), buf);
        }
        let at = usize::try_from(offset).unwrap();
        let mut content = self.data.lock();
        put(&mut content.volatile, &buf, at);
        if durable {
            put(&mut content.durable, &buf, at);
            for covered in content.syncs.values_mut() {
                put(covered, &buf, at);
            }
        }
        (Ok(buf.len()), buf)
    }
}

#[async_trait(?Send)]
impl IoFile for File {
    fn alignment(&self) -> u32 {
        1
    }

    async fn read_at(
        &self,
        mut buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> (io::Result<usize>, AlignedBuf) {
        steps(STEPS_MAX).await;
        let content = self.data.lock();
        let at = usize::try_from(offset).unwrap().min(content.volatile.len());
        let end = (at + len).min(content.volatile.len());
        buf.resize(end - at);
        buf.copy_from_slice(&content.volatile[at..end]);
        (Ok(end - at), buf)
    }

    async fn write_at(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.write(buf, offset, false).await
    }

    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes) {
        self.write(buf, offset, true).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        let sync = self.disk.draw();
        {
            let mut content = self.data.lock();
            let covered = content.volatile.clone();
            content.syncs.insert(sync, covered);
        }
        steps(STEPS_MAX).await;
        let mut content = self.data.lock();
        content.durable = content.syncs.remove(&sync).unwrap();
        Ok(())
    }

    async fn allocate(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        let mut content = self.data.lock();
        let len = content.volatile.len().max(len);
        content.volatile.resize(len, 0);
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).unwrap();
        self.data.lock().volatile.resize(len, 0);
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        Ok(self.data.lock().volatile.len() as u64)
    }

    fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        let mut content = self.data.lock();
        let mut others = content.locks.iter().filter(|(id, _)| *id != self.id);
        let free = others.all(|(_, held)| (kind, *held) == (LockKind::Shared, LockKind::Shared));
        if free {
            content.locks.push((self.id, kind));
        }
        Ok(free)
    }
}
