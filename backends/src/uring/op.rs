//! The operations: what each owns, and its entry in the submission queue.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use alluvium_core::io::{AlignedBuf, Arena, FileMap};
use bytes::Bytes;
use io_uring::opcode;
use io_uring::squeue::{Entry, Flags};
use io_uring::types::{Fd, FsyncFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::executor::Local;
use super::file::OpenFile;
use super::slab::Key;
use crate::posix::TRANSFER_BYTES_MAX;

/// What an operation works on.
#[derive(Debug)]
pub(super) enum Target {
    File(Rc<OpenFile>),
    Dir(OwnedFd),
    /// No file: the buffer alone.
    Memory,
}

/// Memory that an operation reads or writes. The bytes are on the heap, behind a pointer that does
/// not change when this value moves.
#[derive(Debug)]
pub(super) enum Buffer {
    None,
    In(AlignedBuf),
    Out(Bytes),
    Map(FileMap),
}

/// What an operation owns until the kernel is done with it.
#[derive(Debug)]
pub(super) struct Owned {
    pub(super) target: Target,
    pub(super) buffer: Buffer,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    /// Read up to `len` bytes into the buffer, which must be `In`.
    Read { offset: u64, len: usize },
    /// Write the buffer, which must be `Out`.
    Write { offset: u64, durable: bool },
    /// `fdatasync`
    SyncData,
    /// `fsync`
    SyncAll,
    /// `fallocate` of `[0, len)`
    Allocate { len: u64 },
    /// `madvise` of a range of the buffer, which must be `Map`.
    Advise {
        start: usize,
        end: usize,
        advice: i32,
    },
}

/// `RWF_DSYNC` as a submission entry takes it.
const DSYNC: i32 = ReadWriteFlags::DSYNC.bits().cast_signed();

impl Owned {
    /// The entry for a request. It names memory and the descriptor of `self` and nothing else.
    fn entry(&mut self, request: Request, registered: Option<&Arena>) -> Entry {
        let (fd, mut flags) = match &self.target {
            Target::File(file) => match file.slot() {
                // What `types::Fixed` stands for, without a type of its own for each operation.
                Some(slot) => (Fd(slot.cast_signed()), Flags::FIXED_FILE),
                None => (Fd(file.as_fd().as_raw_fd()), Flags::empty()),
            },
            Target::Dir(fd) => (Fd(fd.as_raw_fd()), Flags::empty()),
            Target::Memory => (Fd(-1), Flags::empty()),
        };
        if let (Request::Write { durable: true, .. }, Target::File(file)) = (request, &self.target)
            && file.is_buffered()
        {
            // Not tried on this thread first: some file systems (XFS) would do the flush there, and
            // what is left of a short try goes on in a worker, whose failure to sync would show as
            // a short count.
            flags |= Flags::ASYNC;
        }
        let entry = match (request, &mut self.buffer) {
            (Request::Read { offset, len }, Buffer::In(buf)) => {
                let len = transfer_length(len.min(buf.capacity()));
                if is_registered(buf.as_ptr(), len, registered) {
                    let read = opcode::ReadFixed::new(fd, buf.as_mut_ptr(), len, ARENA_INDEX);
                    return read.offset(offset).build().flags(flags);
                }
                let read = opcode::Read::new(fd, buf.as_mut_ptr(), len);
                read.offset(offset).build()
            }
            (Request::Write { offset, durable }, Buffer::Out(buf)) => {
                let len = transfer_length(buf.len());
                let rw_flags = if durable { DSYNC } else { 0 };
                if is_registered(buf.as_ptr(), len, registered) {
                    let write = opcode::WriteFixed::new(fd, buf.as_ptr(), len, ARENA_INDEX);
                    let write = write.offset(offset).rw_flags(rw_flags);
                    return write.build().flags(flags);
                }
                let write = opcode::Write::new(fd, buf.as_ptr(), len);
                write.offset(offset).rw_flags(rw_flags).build()
            }
            (Request::SyncData, _) => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            (Request::SyncAll, _) => opcode::Fsync::new(fd).build(),
            (Request::Allocate { len }, _) => opcode::Fallocate::new(fd, len).build(),
            (Request::Advise { start, end, advice }, Buffer::Map(map)) => {
                let bytes = map.as_ref().get(start..end).unwrap_or_default();
                let len = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
                opcode::Madvise::new(bytes.as_ptr().cast(), len, advice).build()
            }
            (Request::Read { .. } | Request::Write { .. } | Request::Advise { .. }, _) => {
                unreachable!("a transfer without its buffer")
            }
        };
        entry.flags(flags)
    }
}

/// Number under which the arena is registered.
const ARENA_INDEX: u16 = 0;

fn is_registered(ptr: *const u8, len: u32, arena: Option<&Arena>) -> bool {
    arena.is_some_and(|arena| len > 0 && arena.contains(ptr, len as usize))
}

fn transfer_length(len: usize) -> u32 {
    u32::try_from(len.min(TRANSFER_BYTES_MAX)).unwrap_or(u32::MAX)
}

/// Starts an operation, and resolves to its result and what it owned.
///
/// Dropping the future does not stop the operation; `local` keeps what it owns until it has ended.
pub(super) fn submit(local: &Rc<Local>, mut owned: Owned, request: Request) -> Submitted {
    let entry = owned.entry(request, local.ring.borrow().arena().map(|arena| &**arena));
    let key = local.ops.borrow_mut().start(owned);
    // SAFETY: the entry names memory and the descriptor of `owned` only, which stays in `ops`
    // until the completion was taken out: see `in_flight`. Moving it there moved no bytes.
    unsafe { local.ring.borrow_mut().push(entry.user_data(key.to_bits())) };
    Submitted {
        local: Rc::clone(local),
        key,
    }
}

/// An operation under way.
pub(super) struct Submitted {
    local: Rc<Local>,
    key: Key,
}

impl Future for Submitted {
    type Output = (io::Result<usize>, Option<Owned>);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.local.ops.borrow_mut().poll(self.key, cx).map(|done| {
            let Some((result, owned)) = done else {
                return (Err(io::Error::other("an operation was polled twice")), None);
            };
            let count = usize::try_from(result);
            let result = count.map_err(|_| Errno::from_raw_os_error(-result).into());
            (result, Some(owned))
        })
    }
}

impl Drop for Submitted {
    fn drop(&mut self) {
        // Dropped after the borrow: a file's destructor uses the ring.
        let owned = self.local.ops.borrow_mut().abandon(self.key);
        drop(owned);
    }
}
