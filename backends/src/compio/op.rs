//! The operations on the ring.
//!
//! Each operation owns its descriptor and its buffer. compio keeps it in a heap cell that the
//! kernel's completion owns, whether or not anybody still waits for it: dropping the future only
//! asks the kernel to cancel. The memory that an entry points to is heap memory behind
//! [`AlignedBuf`] or [`Bytes`], so it stays in place even while the operation itself moves.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;
use std::sync::Arc;

use alluvium_core::io::AlignedBuf;
use bytes::Bytes;
use compio::buf::BufResult;
use compio::driver::{IourOpCode, OpCode, OpEntry};
use compio::runtime::Runtime;
use io_uring::opcode;
use io_uring::squeue::Flags;
use io_uring::types::{Fd, FsyncFlags};
use rustix::io::ReadWriteFlags;

use crate::posix::{PosixFile, TRANSFER_BYTES_MAX};

/// Counts operations that the kernel may still work on.
#[derive(Debug)]
pub(super) struct InFlight {
    count: Rc<Cell<usize>>,
}

impl InFlight {
    pub(super) fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self {
            count: Rc::clone(count),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.count.set(self.count.get() - 1);
    }
}

/// Submits to the ring of this thread and waits for the completion.
pub(super) async fn submit<T: OpCode + 'static>(op: T) -> (io::Result<usize>, T) {
    let BufResult(result, op) = Runtime::with_current(|runtime| runtime.submit(op)).await;
    (result, op)
}

fn length(len: usize) -> u32 {
    u32::try_from(len.min(TRANSFER_BYTES_MAX)).unwrap_or(u32::MAX)
}

/// A positional read.
pub(super) struct Read {
    pub(super) file: Arc<PosixFile>,
    pub(super) buf: AlignedBuf,
    pub(super) offset: u64,
    /// At most the capacity of `buf`.
    pub(super) len: usize,
    /// Held for its destructor.
    #[expect(dead_code, reason = "counts while it lives")]
    pub(super) in_flight: InFlight,
}

// SAFETY: the entry names memory of `buf`, of at least `len` bytes, and the descriptor of `file`.
// Both are owned by the operation, which compio keeps until the completion has come.
unsafe impl IourOpCode for Read {
    type Control = ();

    fn create_entry(&mut self, (): &mut ()) -> OpEntry {
        let fd = Fd(self.file.as_fd().as_raw_fd());
        let len = length(self.len.min(self.buf.capacity()));
        opcode::Read::new(fd, self.buf.as_mut_ptr(), len)
            .offset(self.offset)
            .build()
            .into()
    }

    fn call_blocking(&mut self, (): &mut ()) -> io::Result<usize> {
        self.file.read_at(&mut self.buf, self.offset, self.len)
    }
}

/// A positional write; durable when it completes, if asked.
pub(super) struct Write {
    pub(super) file: Arc<PosixFile>,
    pub(super) buf: Bytes,
    pub(super) offset: u64,
    pub(super) durable: bool,
    /// Held for its destructor.
    #[expect(dead_code, reason = "counts while it lives")]
    pub(super) in_flight: InFlight,
}

/// `RWF_DSYNC` as a submission entry takes it.
const DSYNC: i32 = ReadWriteFlags::DSYNC.bits().cast_signed();

// SAFETY: the entry names the immutable memory of `buf` and the descriptor of `file`. Both are
// owned by the operation, which compio keeps until the completion has come.
unsafe impl IourOpCode for Write {
    type Control = ();

    fn create_entry(&mut self, (): &mut ()) -> OpEntry {
        let fd = Fd(self.file.as_fd().as_raw_fd());
        let rw_flags = if self.durable { DSYNC } else { 0 };
        // Not tried on this thread first: some file systems (XFS) would do the flush there, and
        // what is left of a short try goes on in a worker, whose failure to sync would show as a
        // short count.
        let flags = if self.durable && self.file.is_buffered() {
            Flags::ASYNC
        } else {
            Flags::empty()
        };
        opcode::Write::new(fd, self.buf.as_ptr(), length(self.buf.len()))
            .offset(self.offset)
            .rw_flags(rw_flags)
            .build()
            .flags(flags)
            .into()
    }

    fn call_blocking(&mut self, (): &mut ()) -> io::Result<usize> {
        if self.durable {
            self.file.write_durable(&self.buf, self.offset)
        } else {
            self.file.write_at(&self.buf, self.offset)
        }
    }
}

/// What [`Control`] asks of a descriptor.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    /// `fdatasync`
    SyncData,
    /// `fsync`
    SyncAll,
    /// `fallocate` of `[0, len)`
    Allocate { len: u64 },
}

/// An operation without a buffer.
pub(super) struct Control<F> {
    pub(super) fd: F,
    pub(super) request: Request,
    /// Held for its destructor.
    #[expect(dead_code, reason = "counts while it lives")]
    pub(super) in_flight: InFlight,
}

// SAFETY: the entry names no memory, only the descriptor that the operation owns.
unsafe impl<F: AsFd> IourOpCode for Control<F> {
    type Control = ();

    fn create_entry(&mut self, (): &mut ()) -> OpEntry {
        let fd = Fd(self.fd.as_fd().as_raw_fd());
        match self.request {
            Request::SyncData => opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build(),
            Request::SyncAll => opcode::Fsync::new(fd).build(),
            Request::Allocate { len } => opcode::Fallocate::new(fd, len).build(),
        }
        .into()
    }

    fn call_blocking(&mut self, (): &mut ()) -> io::Result<usize> {
        let done = match self.request {
            Request::SyncData => rustix::fs::fdatasync(&self.fd),
            Request::SyncAll => rustix::fs::fsync(&self.fd),
            Request::Allocate { len } => {
                rustix::fs::fallocate(&self.fd, rustix::fs::FallocateFlags::empty(), 0, len)
            }
        };
        done.map_err(io::Error::from).map(|()| 0)
    }
}
