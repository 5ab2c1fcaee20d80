//! Plain system calls that all real backends share: everything off the hot path, and the
//! positional transfers of the blocking pool.
//!
//! Every error keeps the kernel's code (`raw_os_error`), with one exception that says so:
//! [`pin_to_core`] wraps it to name the core.

#![cfg_attr(
    not(all(
        feature = "compio",
        feature = "glommio",
        feature = "tokio",
        feature = "uring"
    )),
    allow(dead_code, reason = "each backend uses its part")
)]

use std::fmt;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alluvium_core::io::{
    AlignedBuf, DirEntry, EntryKind, FsSpace, LockKind, OpenMode, OpenOptions,
};
use rustix::fs::{AtFlags, FallocateFlags, FileType, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::rand::GetRandomFlags;
use rustix::thread::CpuSet;
use rustix::time::ClockId;

/// Alignment assumed for direct I/O where the file system does not report it (FUSE, btrfs,
/// kernels before 6.1), and the largest that the contract of the seam allows.
const ALIGNMENT_MAX: u32 = 4096;

/// Most bytes that one read or write moves, whatever is asked (`MAX_RW_COUNT` of the kernel).
pub(crate) const TRANSFER_BYTES_MAX: usize = 0x7fff_f000;

/// An open regular file and the alignment that its transfers need.
///
/// A lock ends when this is dropped: a request of io_uring may hold its reference to the open file
/// for some time after it has completed, so that closing alone would end it later.
#[derive(Debug)]
pub(crate) struct PosixFile {
    fd: OwnedFd,
    alignment: u32,
    locked: AtomicBool,
}

impl Drop for PosixFile {
    fn drop(&mut self) {
        self.unlock();
    }
}

impl AsFd for PosixFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PosixFile {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl PosixFile {
    /// Opens a regular file as [`alluvium_core::io::IoBackend::open`] demands.
    pub(crate) fn open(path: &Path, options: OpenOptions) -> io::Result<Self> {
        // O_NONBLOCK: opening a FIFO must fail below, not wait for its other end.
        let mut flags = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
        flags |= match options.mode {
            OpenMode::Read => OFlags::RDONLY,
            OpenMode::ReadWrite => OFlags::RDWR,
            OpenMode::CreateNew => OFlags::RDWR | OFlags::CREATE | OFlags::EXCL,
        };
        if options.direct {
            flags |= OFlags::DIRECT;
        }
        let creates = options.mode == OpenMode::CreateNew;
        let opened = match rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR) {
            Ok(fd) => Self::check(fd, options.direct),
            // The kernel creates the entry before it looks whether O_DIRECT is possible. O_EXCL
            // would have said EEXIST for an entry that was there before.
            Err(e @ (Errno::INVAL | Errno::OPNOTSUPP)) if creates && options.direct => {
                Err(e.into())
            }
            Err(e) => return Err(e.into()),
        };
        if opened.is_err() && creates {
            // The first error is the one that matters; the entry may not exist at all.
            rustix::fs::unlink(path).ok();
        }
        opened
    }

    fn check(fd: OwnedFd, direct: bool) -> io::Result<Self> {
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR.into()),
            _ => return Err(Errno::INVAL.into()),
        }
        // A regular file ignores O_NONBLOCK, io_uring does not on every file system.
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags.difference(OFlags::NONBLOCK))?;
        let alignment = if direct { direct_alignment(&fd)? } else { 1 };
        let locked = AtomicBool::new(false);
        Ok(Self {
            fd,
            alignment,
            locked,
        })
    }

    /// The same file, not locked, behind another descriptor, which must be of the same kind of
    /// access.
    pub(crate) fn with_descriptor(self, fd: OwnedFd) -> Self {
        Self {
            fd,
            alignment: self.alignment,
            locked: AtomicBool::new(false),
        }
    }

    /// Whether transfers go through the page cache.
    pub(crate) fn is_buffered(&self) -> bool {
        self.alignment == 1
    }

    /// See [`alluvium_core::io::IoFile::alignment`].
    pub(crate) fn alignment(&self) -> u32 {
        self.alignment
    }

    /// One positional read of up to `len` bytes to the start of `buf`, whose length it sets.
    pub(crate) fn read_at(
        &self,
        buf: &mut AlignedBuf,
        offset: u64,
        len: usize,
    ) -> io::Result<usize> {
        buf.clear();
        check_range(offset)?;
        let Some(target) = buf.spare_capacity_mut().get_mut(..len) else {
            return Err(Errno::INVAL.into());
        };
        let flags = ReadWriteFlags::empty();
        let n = rustix::io::preadv2(self, &mut [IoSliceMut::new(target)], offset, flags)?;
        buf.set_len(n);
        Ok(n)
    }

    /// One positional write.
    pub(crate) fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        check_range(offset)?;
        let flags = ReadWriteFlags::empty();
        Ok(rustix::io::pwritev2(
            self,
            &[IoSlice::new(buf)],
            offset,
            flags,
        )?)
    }

    /// One positional write that is on stable media when it returns.
    pub(crate) fn write_durable(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        check_range(offset)?;
        match rustix::io::pwritev2(self, &[IoSlice::new(buf)], offset, ReadWriteFlags::DSYNC) {
            Ok(n) => Ok(n),
            // Refused before anything was written: the flag, or the whole call, is unknown here.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => self.write_then_sync(buf, offset),
            Err(e) => Err(e.into()),
        }
    }

    /// The same in two calls, for kernels and file systems without `RWF_DSYNC`.
    fn write_then_sync(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let n = rustix::io::pwrite(self, buf, offset)?;
        rustix::fs::fdatasync(self)?;
        Ok(n)
    }

    /// See [`alluvium_core::io::IoFile::sync_data`].
    pub(crate) fn sync_data(&self) -> io::Result<()> {
        Ok(rustix::fs::fdatasync(self)?)
    }

    /// See [`alluvium_core::io::IoFile::allocate`].
    pub(crate) fn allocate(&self, len: u64) -> io::Result<()> {
        let before = self.len()?;
        let result = rustix::fs::fallocate(self, FallocateFlags::empty(), 0, len);
        result.map_err(|e| self.undo_allocate(before, e.into()))
    }

    /// Shortens the file to `before` again: ext4 moves the end of file along while it allocates,
    /// and leaves it there when space runs out half-way. Hands `error` back.
    pub(crate) fn undo_allocate(&self, before: u64, error: io::Error) -> io::Error {
        if self.len().is_ok_and(|now| now > before) {
            self.set_len(before).ok();
        }
        error
    }

    /// See [`alluvium_core::io::IoFile::set_len`].
    pub(crate) fn set_len(&self, len: u64) -> io::Result<()> {
        set_len(self, len)
    }

    /// See [`alluvium_core::io::IoFile::len`].
    pub(crate) fn len(&self) -> io::Result<u64> {
        let size = rustix::fs::fstat(self)?.st_size;
        u64::try_from(size).map_err(|_| Errno::OVERFLOW.into())
    }

    /// See [`alluvium_core::io::IoFile::try_lock`].
    pub(crate) fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        let operation = match kind {
            LockKind::Shared => FlockOperation::NonBlockingLockShared,
            LockKind::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match rustix::fs::flock(self, operation) {
            Ok(()) => {
                self.locked.store(true, Ordering::Relaxed);
                Ok(true)
            }
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Gives a lock back. No operation may be under way.
    pub(crate) fn unlock(&self) {
        if self.locked.swap(false, Ordering::Relaxed) {
            // Closing does the same, later.
            rustix::fs::flock(self, FlockOperation::Unlock).ok();
        }
    }
}

/// Refuses offsets that the kernel would take for "the current position" or for negative.
pub(crate) fn check_range(offset: u64) -> io::Result<()> {
    if i64::try_from(offset).is_ok() {
        Ok(())
    } else {
        Err(Errno::INVAL.into())
    }
}

fn direct_alignment(fd: &OwnedFd) -> io::Result<u32> {
    let mask = StatxFlags::DIOALIGN;
    let stat = match rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, mask) {
        Ok(stat) if stat.stx_mask & mask.bits() != 0 => stat,
        Ok(_) | Err(Errno::NOSYS) => return Ok(ALIGNMENT_MAX),
        Err(e) => return Err(e.into()),
    };
    let alignment = stat.stx_dio_mem_align.max(stat.stx_dio_offset_align);
    // Zero: the file takes O_DIRECT but does not do it (say, ext4 with journalled data).
    if stat.stx_dio_offset_align == 0 || alignment > ALIGNMENT_MAX || !alignment.is_power_of_two() {
        return Err(Errno::INVAL.into());
    }
    Ok(alignment)
}

/// See [`alluvium_core::io::IoFile::set_len`].
pub(crate) fn set_len(file: impl AsFd, len: u64) -> io::Result<()> {
    Ok(rustix::fs::ftruncate(file, len)?)
}

/// See [`alluvium_core::io::IoBackend::list`].
pub(crate) fn list(dir: &Path) -> io::Result<Vec<DirEntry>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        match entry.file_type() {
            Ok(kind) => entries.push(DirEntry {
                name: entry.file_name(),
                kind: kind_of(kind),
            }),
            // Removed between the two calls, on a file system that needs two.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(entries)
}

/// See [`alluvium_core::io::IoBackend::kind`].
pub(crate) fn kind(path: &Path) -> io::Result<EntryKind> {
    Ok(kind_of(fs::symlink_metadata(path)?.file_type()))
}

fn kind_of(kind: fs::FileType) -> EntryKind {
    if kind.is_file() {
        EntryKind::File
    } else if kind.is_dir() {
        EntryKind::Dir
    } else {
        EntryKind::Other
    }
}

/// See [`alluvium_core::io::IoBackend::create_dir`].
pub(crate) fn create_dir(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::mkdir(path, Mode::RWXU)?)
}

/// See [`alluvium_core::io::IoBackend::rename`].
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    Ok(rustix::fs::rename(from, to)?)
}

/// See [`alluvium_core::io::IoBackend::remove_file`].
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::unlink(path)?)
}

/// See [`alluvium_core::io::IoBackend::remove_dir`].
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::rmdir(path)?)
}

/// Opens a directory so that it can be synced.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// See [`alluvium_core::io::IoBackend::sync_dir`].
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::fsync(open_dir(path)?)?)
}

/// See [`alluvium_core::io::IoBackend::space`].
pub(crate) fn space(path: &Path) -> io::Result<FsSpace> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(FsSpace {
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
    })
}

/// See [`alluvium_core::io::IoBackend::now`]: `CLOCK_MONOTONIC`, the same on every shard.
pub(crate) fn now() -> Duration {
    let time = rustix::time::clock_gettime(ClockId::Monotonic);
    // The kernel never reports a negative monotonic time nor a billion nanoseconds.
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
    Duration::new(seconds, nanoseconds)
}

/// See [`alluvium_core::io::IoBackend::wall_clock_ms`].
pub(crate) fn wall_clock_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_millis()).map_or(i64::MIN, |ms| -ms),
    }
}

/// See [`alluvium_core::io::IoBackend::random_u64`].
pub(crate) fn random_u64() -> u64 {
    let mut bytes = [0_u8; 8];
    loop {
        match rustix::rand::getrandom(&mut bytes, GetRandomFlags::empty()) {
            Ok(8) => return u64::from_ne_bytes(bytes),
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => break,
        }
    }
    // A sandbox without getrandom(2): the standard library seeds its hasher from what is left.
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u128(now().as_nanos());
    hasher.finish()
}

/// Cores in the calling thread's mask, ascending; empty when the kernel does not say.
pub(crate) fn allowed_cores() -> Vec<usize> {
    match rustix::thread::sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU)
            .filter(|&core| set.is_set(core))
            .collect(),
        Err(_) => Vec::new(),
    }
}

/// Pins the calling thread. The error names the core and has the kernel's error as its source.
pub(crate) fn pin_to_core(core: usize) -> io::Result<()> {
    let result = if core < CpuSet::MAX_CPU {
        let mut set = CpuSet::new();
        set.set(core);
        rustix::thread::sched_setaffinity(None, &set)
    } else {
        Err(Errno::INVAL)
    };
    result.map_err(|e| {
        let source = io::Error::from(e);
        io::Error::new(source.kind(), CannotPin { core, source })
    })
}

/// A thread could not be pinned.
#[derive(Debug)]
struct CannotPin {
    core: usize,
    source: io::Error,
}

impl fmt::Display for CannotPin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed = allowed_cores();
        write!(
            f,
            "cannot pin a thread to core {} (allowed: {allowed:?})",
            self.core
        )
    }
}

impl std::error::Error for CannotPin {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        let unique = format!("alluvium-posix-{name}-{}", std::process::id());
        std::env::temp_dir().join(unique)
    }

    #[test]
    fn durable_writes_without_the_flag_still_write() {
        let path = scratch("fallback");
        let file = PosixFile::open(&path, OpenOptions::CREATE_NEW).expect("create");
        assert_eq!(file.write_then_sync(b"hello", 3).expect("write"), 5);
        let mut buf = AlignedBuf::with_capacity(16);
        assert_eq!(file.read_at(&mut buf, 0, 16).expect("read"), 8);
        assert_eq!(&buf[..], b"\0\0\0hello");
        remove_file(&path).expect("remove");
    }

    #[test]
    fn a_failed_allocation_does_not_lengthen_the_file() {
        let path = scratch("undo");
        let file = PosixFile::open(&path, OpenOptions::CREATE_NEW).expect("create");
        file.set_len(9000).expect("lengthen");
        let error = file.undo_allocate(100, Errno::NOSPC.into());
        assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
        assert_eq!(file.len().expect("len"), 100);
        remove_file(&path).expect("remove");
    }

    #[test]
    fn the_current_position_is_never_meant() {
        assert!(check_range(u64::MAX).is_err());
        assert!(check_range(1 << 63).is_err());
        assert!(check_range((1 << 63) - 1).is_ok());
    }
}
