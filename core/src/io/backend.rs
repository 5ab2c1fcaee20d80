//! The traits that a runtime implements, with the contract of every method.
//!
//! # Contract shared by all operations
//!
//! * **Ownership.** Buffers go in by value and come back on every path, also on error.
//! * **Dropping a future** does not undo the operation: it may still happen, completely or in part.
//!   The backend keeps buffer and descriptor alive until the kernel is done with them.
//! * **Overlap.** Any number of operations on one file may be in flight; they may complete in any
//!   order. The engine never has two writes in flight on overlapping byte ranges.
//! * **Errors** are `std::io::Error` with the operating system's error code (`raw_os_error`)
//!   wherever there is one, so that the engine can tell `ENOSPC` from `EIO`.
//! * **Panics.** A backend never panics because of what the disk or the kernel says, but for the end
//!   of a shard whose event loop cannot go on: what it had is dropped, then its thread may report
//!   why by a panic.

use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use super::arena::Arena;
use super::buf::AlignedBuf;
use super::map::FileMap;

/// A boxed future that stays on its thread.
pub type LocalFuture<T> = Pin<Box<dyn Future<Output = T>>>;

/// The body of a shard: built on the calling thread, run on the shard's own.
pub type ShardMain<B> = Box<dyn FnOnce(Rc<B>) -> LocalFuture<()> + Send>;

/// What a shard asks of the thread that it is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardSpec {
    /// Thread name; at most 15 bytes are shown by Linux.
    pub name: String,
    /// Core to pin the thread to; `None` leaves placement to the kernel.
    pub core: Option<usize>,
}

/// The part of a backend that crosses threads: it starts shards.
///
/// A factory is a value that a user configures (ring size, pool size, ...) and hands to the store.
pub trait BackendFactory: Send + Sync + 'static {
    /// The backend that lives on a shard's thread.
    type Backend: IoBackend;

    /// Short name as users write it in a configuration: `tokio`, `compio`, ...
    fn name(&self) -> &'static str;

    /// Cores that this process may use, ascending (the scheduler's mask, not the machine's count).
    ///
    /// Empty when the backend has no notion of cores; then nothing is pinned.
    fn allowed_cores(&self) -> Vec<usize>;

    /// Starts a thread, builds the backend on it, and runs `main` there to completion, together
    /// with everything that `main` spawned through [`IoBackend::spawn`].
    ///
    /// Returns once the backend stands on its thread. Failure to start the thread or to build the
    /// backend (for example `EPERM` when io_uring is forbidden) is returned here, never by a panic.
    /// Tasks that are still alive when `main` ends are dropped. When `main` panics, the thread
    /// ends and everything that `main` captured is dropped. A core that cannot be pinned to is an
    /// error that names it.
    fn spawn_shard(&self, spec: ShardSpec, main: ShardMain<Self::Backend>) -> io::Result<()>;
}

/// What a backend can do on this machine; reported to users, never needed for correctness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capabilities {
    /// The same as [`BackendFactory::name`].
    pub backend: &'static str,
    /// How [`IoFile::write_durable`] is done, in one phrase: `RWF_DSYNC`, `write + fdatasync`.
    pub durable_write: &'static str,
    /// Whether files may be opened with [`OpenOptions::direct`].
    pub direct_io: bool,
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Read an existing file.
    Read,
    /// Read and write an existing file.
    ReadWrite,
    /// Create a file that must not exist (mode 0600), then read and write it.
    CreateNew,
}

/// Flags of [`IoBackend::open`].
///
/// A backend always adds: close on exec, no following of a symbolic link in the last component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenOptions {
    /// Access and creation.
    pub mode: OpenMode,
    /// Bypass the page cache (`O_DIRECT`). Where the file system refuses, `open` fails with
    /// `EINVAL` (or `EOPNOTSUPP`) and leaves no file behind that it created.
    pub direct: bool,
}

impl OpenOptions {
    /// Buffered access to an existing file, read only.
    pub const READ: Self = Self {
        mode: OpenMode::Read,
        direct: false,
    };
    /// Buffered access to an existing file, read and write.
    pub const READ_WRITE: Self = Self {
        mode: OpenMode::ReadWrite,
        direct: false,
    };
    /// Buffered access to a new file.
    pub const CREATE_NEW: Self = Self {
        mode: OpenMode::CreateNew,
        direct: false,
    };

    /// The same with `direct` set as given.
    #[must_use]
    pub const fn direct(self, direct: bool) -> Self {
        Self { direct, ..self }
    }
}

/// What a directory entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else: links, sockets, devices. The engine touches none of them.
    Other,
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// Name within the directory.
    pub name: OsString,
    /// What it is, without following links.
    pub kind: EntryKind,
}

/// Space on the file system that holds a path, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsSpace {
    /// Size of the file system.
    pub total_bytes: u64,
    /// What an unprivileged process may still use.
    pub available_bytes: u64,
}

/// Kind of advisory lock, as `flock(2)` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockKind {
    /// `LOCK_SH`
    Shared,
    /// `LOCK_EX`
    Exclusive,
}

/// The runtime of one shard: a single thread with files, directories, clocks and local tasks.
///
/// Directory operations are rare (create, roll, delete, recovery) and need not be fast, but must
/// not block the shard's event loop for longer than a system call on a local disk takes.
/// Paths are absolute or relative to the process; the engine passes them through unchanged.
#[async_trait(?Send)]
pub trait IoBackend: 'static {
    /// An open file.
    type File: IoFile;

    /// What works here.
    fn capabilities(&self) -> Capabilities;

    /// Memory that transfers are cheaper from: the engine carves its buffers from it while there is
    /// room. `None`, the default, where all memory is alike.
    fn arena(&self) -> Option<Arc<Arena>> {
        None
    }

    /// How many writes that nobody waits for may be under way at a time. The default, no bound, is for
    /// those that hand any number to the kernel: the disk shares its time then. Where a write holds a
    /// thread, too many of them keep the threads from those that somebody waits for.
    fn background_writes_max(&self) -> usize {
        usize::MAX
    }

    /// Opens a regular file. `ENOENT`, `EEXIST`, `EACCES`, `EISDIR`, `ELOOP` and the like are
    /// returned as the kernel gives them. Something that is not a regular file is `EINVAL` or the
    /// kernel's own error.
    async fn open(&self, path: &Path, options: OpenOptions) -> io::Result<Self::File>;

    /// Entries of a directory in no particular order, without `.` and `..`.
    async fn list(&self, dir: &Path) -> io::Result<Vec<DirEntry>>;

    /// What `path` is, without following a link in the last component.
    async fn kind(&self, path: &Path) -> io::Result<EntryKind>;

    /// Creates one directory, mode 0700. `EEXIST` when something of that name is there.
    async fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Renames within a file system, replacing a file of the new name atomically.
    /// Durable only after [`sync_dir`](Self::sync_dir) of both parents.
    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after [`sync_dir`](Self::sync_dir) of its parent.
    async fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory. Durable after [`sync_dir`](Self::sync_dir) of its parent.
    async fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes all completed creations, renames and removals in `dir` durable.
    async fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Maps a file of at least `len` bytes into memory for reading, without taking a lock on it and
    /// without reading it; see [`FileMap`] for what must not be done to the file. A file that is
    /// shorter is `InvalidInput`. `Unsupported`, the default, where there is no such thing: files
    /// are read by [`IoFile::read_at`] then.
    fn map(&self, path: &Path, len: usize) -> io::Result<FileMap> {
        let _ = (path, len);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Waits, off this thread, until a range of a mapping is in memory. What the disk cannot read is
    /// an error here (a plain access would kill the process). The kernel may drop the pages again
    /// when memory is short. Dropping the future does not stop what was begun.
    async fn populate(&self, map: &FileMap, range: Range<usize>) -> io::Result<()> {
        let _ = (map, range);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Whether a mapping of this file, made by any backend of this process, is still held.
    fn is_mapped(&self, path: &Path) -> bool {
        let _ = path;
        false
    }

    /// Space on the file system of `path`.
    async fn space(&self, path: &Path) -> io::Result<FsSpace>;

    /// Waits on this thread until the calls on names have ended that are under way, whether or not
    /// somebody waits for them, and lets none begin any more: they fail from now on. Whether they
    /// have ended, as it does not wait for ever. For a shard that ends: a removal that is still to
    /// come must not meet what others have made of the store. `true`, the default, where no call
    /// outlives its future.
    fn finish_calls(&self) -> bool {
        true
    }

    /// Monotonic clock: time since some fixed point, never going back.
    fn now(&self) -> Duration;

    /// Wall clock in milliseconds since the Unix epoch. May jump; nothing durable relies on it.
    fn wall_clock_ms(&self) -> i64;

    /// Completes no earlier than `duration` from now.
    async fn sleep(&self, duration: Duration);

    /// Returns to the event loop once, letting other tasks and completions run.
    async fn yield_now(&self);

    /// Starts a task on this thread. It runs until it ends or the shard's `main` ends. A panic in
    /// it must drop what it captured and must not take the event loop down silently: either the
    /// shard thread ends, or the other tasks go on.
    fn spawn(&self, task: LocalFuture<()>);

    /// Unpredictable bits for identities, from the operating system (or from the simulation's
    /// seed).
    fn random_u64(&self) -> u64;
}

/// One open regular file.
///
/// Offsets and lengths are in bytes. When the file was opened with [`OpenOptions::direct`], the
/// engine keeps offset, length and buffer address of every transfer at multiples of
/// [`alignment`](Self::alignment).
#[expect(
    clippy::len_without_is_empty,
    reason = "a file is no container; nobody asks"
)]
#[async_trait(?Send)]
pub trait IoFile: fmt::Debug + 'static {
    /// Alignment that transfers need, in bytes: a power of two from 1 (buffered) to 4096.
    fn alignment(&self) -> u32;

    /// Reads up to `len` bytes at `offset` into `buf`, which must have that capacity, and sets the
    /// buffer's length to what was read. A short count happens at the end of the file, or at any
    /// place a signal struck; zero only at or past the end.
    async fn read_at(
        &self,
        buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> (io::Result<usize>, AlignedBuf);

    /// Writes `buf` at `offset`; the count may be short. After completion the bytes are seen by
    /// every reader and survive the death of the process, not the loss of power.
    async fn write_at(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes);

    /// Writes `buf` at `offset`; the count may be short. After completion the counted bytes, and
    /// the metadata needed to read them, are on stable media. Says nothing about any other write:
    /// earlier [`write_at`](Self::write_at) calls still need [`sync_data`](Self::sync_data).
    async fn write_durable(&self, buf: Bytes, offset: u64) -> (io::Result<usize>, Bytes);

    /// Makes every write on this file that completed before the call durable (`fdatasync`).
    /// After an error nothing may be concluded from a later success (the kernel drops the dirty
    /// pages of a failed sync); [`FailStop`](super::FailStop) enforces that.
    async fn sync_data(&self) -> io::Result<()>;

    /// Reserves blocks for `[0, len)` and extends the file to `len`. `EOPNOTSUPP` when the file
    /// system cannot; `ENOSPC` leaves the file no longer than it was.
    async fn allocate(&self, len: u64) -> io::Result<()>;

    /// Sets the length of the file; new bytes read as zero. No other operation on the file may be in
    /// flight.
    async fn set_len(&self, len: u64) -> io::Result<()>;

    /// Length of the file.
    async fn len(&self) -> io::Result<u64>;

    /// Tries to take an advisory lock on this very descriptor, without waiting; `false` when
    /// another descriptor holds it. The lock ends when the last reference to the open file
    /// description ends, which includes operations still in flight in the kernel: that is what
    /// makes it a fence against writes of a dead process.
    fn try_lock(&self, kind: LockKind) -> io::Result<bool>;
}
