//! The ring itself: setting it up, handing entries over, entering the kernel, taking results out.
//!
//! # Flags
//!
//! Tried in steps, best first, because older kernels refuse flags that they do not know:
//!
//! 1. `DEFER_TASKRUN` with `SINGLE_ISSUER` (Linux 6.1): completions are finished by this thread,
//!    when it asks for them, never by interrupting it.
//! 2. `COOP_TASKRUN` (5.19): finished at the next system call of this thread.
//! 3. `SUBMIT_ALL` (5.18), and none.
//!
//! With 1 and 2 a completion may wait in the kernel until this thread enters it. `TASKRUN_FLAG`
//! makes that visible in shared memory: [`Ring::needs_enter`] looks at it, so a busy loop neither
//! misses completions nor enters in vain.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use alluvium_core::io::Arena;
use io_uring::squeue::Entry;
use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{CompletionStatus, EnterFlags, IoUring, Probe, opcode};
use rustix::io::Errno;

use super::slab::Key;

/// What a completion says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Completion {
    pub(super) user_data: u64,
    pub(super) result: i32,
    /// Whether more completions of the same entry will come.
    pub(super) more: bool,
}

/// An io_uring of one thread.
pub(super) struct Ring {
    /// Reads the same memory as `uring`.
    status: CompletionStatus,
    uring: IoUring,
    /// Entries that found no room in the submission queue, oldest first.
    backlog: VecDeque<Entry>,
    files: FileTable,
    /// Registered memory. Behind the ring, so that the ring goes first.
    arena: Option<Arc<Arena>>,
    flags: &'static str,
}

/// How long [`Ring::enter`] may sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wait {
    /// Not at all.
    No,
    /// Until something completes, or this time is over.
    Until(Option<Duration>),
}

/// Longest single wait; the loop waits again.
const WAIT_MAX: Duration = Duration::from_secs(3600);

/// Operations without which this backend does not run.
const REQUIRED: [(u8, &str); 5] = [
    (opcode::Read::CODE, "READ"),
    (opcode::Write::CODE, "WRITE"),
    (opcode::Fsync::CODE, "FSYNC"),
    (opcode::Fallocate::CODE, "FALLOCATE"),
    (opcode::PollAdd::CODE, "POLL_ADD"),
];

impl Ring {
    /// Sets a ring up for the calling thread, which must be the only one to use it.
    pub(super) fn new(
        entries: u32,
        sqpoll_idle: Option<Duration>,
        registered_bytes: usize,
    ) -> io::Result<Self> {
        let (mut ring, flags) = build(entries, sqpoll_idle)?;
        let parameters = ring.params();
        if !parameters.is_feature_ext_arg() || !parameters.is_feature_nodrop() {
            return Err(unsupported("waiting with a time limit (EXT_ARG)"));
        }
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if let Some((_, name)) = REQUIRED.iter().find(|(code, _)| !probe.is_supported(*code)) {
            return Err(unsupported(name));
        }
        let files = FileTable::register(&ring);
        let arena = register_arena(&ring, registered_bytes);
        // SAFETY: it is kept beside the ring in a private field and used while that lives only.
        let status = unsafe { ring.completion().status() };
        Ok(Self {
            status,
            uring: ring,
            backlog: VecDeque::new(),
            files,
            arena,
            flags,
        })
    }

    /// The flags that the kernel took, for users.
    pub(super) fn flags(&self) -> &'static str {
        self.flags
    }

    /// Whether files are registered.
    pub(super) fn has_file_table(&self) -> bool {
        self.files.size > 0
    }

    /// The registered memory, if there is any.
    pub(super) fn arena(&self) -> Option<&Arc<Arena>> {
        self.arena.as_ref()
    }

    /// Queues an entry for the next [`enter`](Self::enter).
    ///
    /// # Safety
    /// Memory and descriptor that the entry names stay valid until its completion was taken out.
    pub(super) unsafe fn push(&mut self, entry: Entry) {
        if self.backlog.is_empty() {
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(&entry) }.is_ok() {
                return;
            }
        }
        self.backlog.push_back(entry);
    }

    /// Queues a poll of the descriptor that wakes the loop; it names no memory.
    pub(super) fn push_poll(&mut self, fd: BorrowedFd<'_>, multishot: bool) {
        /// `POLLIN` of `poll(2)`.
        const READABLE: u32 = 1;
        let entry = opcode::PollAdd::new(Fd(fd.as_raw_fd()), READABLE)
            .multi(multishot)
            .build()
            .user_data(Key::RESERVED);
        // SAFETY: no memory is named, and a poll holds its file by itself once it is submitted. A
        // descriptor closed before is reported as EBADF.
        unsafe { self.push(entry) };
    }

    /// Whether the kernel has something for us, or we for it, that only entering it moves on.
    pub(super) fn needs_enter(&mut self) -> bool {
        let queue = self.uring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow() || !self.backlog.is_empty()
    }

    /// Whether a completion can be taken out. No system call.
    pub(super) fn has_entries(&self) -> bool {
        !self.status.is_empty()
    }

    /// Whether a completion is there, or the kernel has marked that one waits for this thread (the mark
    /// may be stale). No system call.
    pub(super) fn has_completions(&mut self) -> bool {
        self.has_entries() || {
            let queue = self.uring.submission();
            queue.taskrun() || queue.cq_overflow()
        }
    }

    /// Hands over what is queued, lets the kernel finish what waits for this thread, and sleeps if
    /// asked: one system call for all of it. `idle` says that no operation is under way.
    pub(super) fn enter(&mut self, wait: Wait, idle: bool) -> io::Result<()> {
        self.unload_backlog();
        let result = match wait {
            Wait::No => self.uring.submitter().submit(),
            // What still waits for room must not wait for a completion.
            Wait::Until(_) if !self.backlog.is_empty() => self.uring.submitter().submit(),
            Wait::Until(limit) => self.wait(limit, idle),
        };
        self.unload_backlog();
        let Err(e) = result else {
            return Ok(());
        };
        match e.raw_os_error().map(Errno::from_raw_os_error) {
            // The wait was over, or a signal came, or completions must be taken out first.
            Some(Errno::TIME | Errno::INTR | Errno::BUSY) => Ok(()),
            Some(Errno::AGAIN) => {
                // The kernel is short of memory for requests: let others run, and try again.
                std::thread::yield_now();
                Ok(())
            }
            _ => Err(e),
        }
    }

    fn wait(&mut self, limit: Option<Duration>, idle: bool) -> io::Result<usize> {
        let limit = Timespec::from(limit.unwrap_or(WAIT_MAX).min(WAIT_MAX));
        let arguments = SubmitArgs::new().timespec(&limit);
        let parameters = self.uring.params();
        let unaccounted = idle
            && parameters.is_feature_no_iowait()
            && !parameters.is_setup_sqpoll()
            && self.uring.submission().is_empty();
        if !unaccounted {
            return self.uring.submitter().submit_with_args(1, &arguments);
        }
        // A store that waits for work is no I/O pressure.
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG | EnterFlags::NO_IOWAIT;
        // SAFETY: EXT_ARG goes with an argument of this type, which lives until the call returns.
        unsafe {
            let submitter = self.uring.submitter();
            submitter.enter(0, 1, flags.bits(), Some(&arguments))
        }
    }

    fn unload_backlog(&mut self) {
        if self.backlog.is_empty() {
            return;
        }
        let mut queue = self.uring.submission();
        queue.sync();
        while let Some(entry) = self.backlog.front() {
            // SAFETY: promised when the entry was given to `push`.
            if unsafe { queue.push(entry) }.is_err() {
                break;
            }
            self.backlog.pop_front();
        }
    }

    /// Takes out all completions that are there.
    pub(super) fn take_completions(&mut self, into: &mut Vec<Completion>) {
        if !self.has_entries() {
            return;
        }
        into.extend(self.uring.completion().map(|entry| Completion {
            user_data: entry.user_data(),
            result: entry.result(),
            more: io_uring::cqueue::more(entry.flags()),
        }));
    }

    /// Puts a descriptor into the ring's table; `None` when there is no room or no table.
    pub(super) fn register_file(&mut self, fd: BorrowedFd<'_>) -> Option<u32> {
        let slot = self.files.take()?;
        if self.update_slot(slot, fd.as_raw_fd()) {
            return Some(slot);
        }
        self.files.free.push(slot);
        None
    }

    /// Takes a descriptor out of the table: the ring lets go of the open file at once, if no
    /// operation uses the slot any more.
    pub(super) fn unregister_file(&mut self, slot: u32) {
        /// What an empty place of the table holds.
        const EMPTY: RawFd = -1;
        // A place that cannot be emptied must not be used again.
        if self.update_slot(slot, EMPTY) {
            self.files.free.push(slot);
        }
    }

    fn update_slot(&self, slot: u32, fd: RawFd) -> bool {
        let updated = self.uring.submitter().register_files_update(slot, &[fd]);
        updated.is_ok_and(|count| count == 1)
    }
}

/// Makes an arena and registers it as buffer 0. `None` when that is not wanted, or the kernel
/// refuses, most likely for the limit of locked memory.
fn register_arena(ring: &IoUring, bytes: usize) -> Option<Arc<Arena>> {
    if bytes == 0 {
        return None;
    }
    let arena = Arena::new(bytes)?;
    let range = libc::iovec {
        iov_base: arena.as_ptr().cast_mut().cast(),
        iov_len: arena.size(),
    };
    // SAFETY: the memory stays allocated and in place as long as the arena, and the ring keeps
    // that until after its own end. The kernel accesses it only for entries that name it.
    let registered = unsafe { ring.submitter().register_buffers(&[range]) };
    registered.ok().map(|()| arena)
}

fn unsupported(what: &str) -> io::Error {
    let message = format!("the kernel's io_uring lacks {what}");
    io::Error::new(io::ErrorKind::Unsupported, message)
}

/// The ring with the best flags that the kernel takes, and their names.
fn build(entries: u32, sqpoll_idle: Option<Duration>) -> io::Result<(IoUring, &'static str)> {
    if let Some(idle) = sqpoll_idle {
        let idle = u32::try_from(idle.as_millis()).unwrap_or(u32::MAX);
        let mut builder = IoUring::builder();
        builder.setup_clamp().setup_sqpoll(idle);
        return Ok((builder.build(entries)?, "SQPOLL"));
    }
    let refused = |e: &io::Error| e.raw_os_error() == Some(Errno::INVAL.raw_os_error());
    for (step, name) in STEPS.into_iter().enumerate() {
        let mut builder = IoUring::builder();
        builder.setup_clamp();
        if step <= 2 {
            builder.setup_submit_all();
        }
        if step <= 1 {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if step == 0 {
            builder.setup_single_issuer().setup_defer_taskrun();
        }
        match builder.build(entries) {
            Ok(ring) => return Ok((ring, name)),
            Err(e) if refused(&e) && step + 1 < STEPS.len() => {}
            Err(e) => return Err(e),
        }
    }
    Err(Errno::INVAL.into())
}

/// Sets of flags, best first.
const STEPS: [&str; 4] = ["DEFER_TASKRUN", "COOP_TASKRUN", "SUBMIT_ALL", "no flags"];

/// Places for registered files.
#[derive(Debug, Default)]
struct FileTable {
    size: u32,
    free: Vec<u32>,
}

impl FileTable {
    /// Most files in the table; what is open beyond that is used by descriptor.
    const SIZE: u32 = 1024;

    /// Registers an empty table. Kernels before 5.19 have none, and the limit on open files is a
    /// limit of the table as well.
    fn register(ring: &IoUring) -> Self {
        let sizes = [Self::SIZE, Self::SIZE / 8];
        let works = |size: &u32| ring.submitter().register_files_sparse(*size).is_ok();
        let size = sizes.into_iter().find(works).unwrap_or(0);
        Self {
            size,
            free: (0..size).rev().collect(),
        }
    }

    fn take(&mut self) -> Option<u32> {
        self.free.pop()
    }
}

#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]
pub(super) mod tests {
    use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
    use std::sync::atomic::{AtomicU32, Ordering};

    use rustix::mm::{MapFlags, ProtFlags, mmap};

    use super::Ring;

    /// The mark in a ring's shared memory that says that work waits for its thread; kept mapped for as
    /// long as the process lives.
    pub(in super::super) struct Mark(&'static AtomicU32);

    /// `IORING_SQ_TASKRUN`.
    const TASKRUN: u32 = 1 << 2;

    impl Mark {
        pub(in super::super) fn of(ring: &Ring) -> Self {
            // The kernel says where it lies (`io_uring_params.sq_off.flags`) when a ring is made.
            let mut parameters = [0_u32; 30];
            // SAFETY: the array is as large as `struct io_uring_params`, and the call fills it.
            let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, parameters.as_mut_ptr()) };
            assert!(fd >= 0, "a second ring");
            // SAFETY: the call above made it, for us.
            drop(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) });
            let index = parameters[14] as usize / size_of::<AtomicU32>();
            let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            // SAFETY: the ring outlives this function.
            let fd = unsafe { BorrowedFd::borrow_raw(ring.uring.as_raw_fd()) };
            // SAFETY: a new mapping, of the ring's memory, at a place that the kernel chooses.
            let memory = unsafe { mmap(std::ptr::null_mut(), 4096, access, flags, fd, 0) };
            // SAFETY: the mark lies within the first page, is aligned, and is changed atomically
            // by the kernel. The page stays mapped.
            Self(unsafe { &*memory.unwrap().cast::<AtomicU32>().add(index) })
        }

        pub(in super::super) fn leave(&self) {
            self.0.fetch_or(TASKRUN, Ordering::SeqCst);
        }
    }
}
