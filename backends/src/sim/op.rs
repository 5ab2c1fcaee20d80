//! Operations of the kernel: how they begin, what they do when they complete.

use std::path::PathBuf;
use std::task::Waker;

use alluvium_core::io::{AlignedBuf, DirEntry, EntryKind, FsSpace, OpenMode, OpenOptions};
use bytes::Bytes;
use rustix::io::Errno;

use super::fault::{CrashKind, Fate, Moment};
use super::file::Tear;
use super::slab::Key;
use super::world::World;

/// What is asked for.
#[derive(Debug)]
pub(super) enum OpKind {
    Read {
        buf: Option<AlignedBuf>,
        offset: u64,
        len: usize,
    },
    Write {
        buf: Bytes,
        offset: u64,
        durable: bool,
    },
    /// Covers what completed up to `stamp`.
    Sync {
        stamp: u64,
    },
    Allocate {
        len: u64,
    },
    SetLen {
        len: u64,
    },
    Len,
    Open {
        path: PathBuf,
        options: OpenOptions,
    },
    List {
        path: PathBuf,
    },
    Kind {
        path: PathBuf,
    },
    CreateDir {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Remove {
        path: PathBuf,
        dir: bool,
    },
    SyncDir {
        path: PathBuf,
        stamp: u64,
    },
    Space,
    /// Being carried out.
    Taken,
}

impl OpKind {
    /// Whether a stalled disk holds it up.
    pub(super) fn is_data(&self) -> bool {
        matches!(
            self,
            Self::Read { .. } | Self::Write { .. } | Self::Sync { .. }
        )
    }

    /// Whether it can change the disk: then it has a number.
    fn is_counted(&self) -> bool {
        match self {
            Self::Read { .. }
            | Self::Len
            | Self::List { .. }
            | Self::Kind { .. }
            | Self::Space
            | Self::Taken => false,
            Self::Open { options, .. } => options.mode == OpenMode::CreateNew,
            _ => true,
        }
    }

    /// The method of the seam that asks for it.
    fn name(&self) -> &'static str {
        match self {
            Self::Read { .. } => "read_at",
            Self::Write { durable: false, .. } => "write_at",
            Self::Write { durable: true, .. } => "write_durable",
            Self::Sync { .. } => "sync_data",
            Self::Allocate { .. } => "allocate",
            Self::SetLen { .. } => "set_len",
            Self::Len => "len",
            Self::Open { options, .. } if options.mode == OpenMode::CreateNew => "create",
            Self::Open { .. } => "open",
            Self::List { .. } => "list",
            Self::Kind { .. } => "kind",
            Self::CreateDir { .. } => "create_dir",
            Self::Rename { .. } => "rename",
            Self::Remove { dir: false, .. } => "remove_file",
            Self::Remove { dir: true, .. } => "remove_dir",
            Self::SyncDir { .. } => "sync_dir",
            Self::Space => "space",
            Self::Taken => "none",
        }
    }

    /// What the trace keeps of it.
    fn trace_words(&self) -> [u64; 3] {
        match self {
            Self::Read { offset, len, .. } => [0x1, *offset, *len as u64],
            Self::Write {
                buf,
                offset,
                durable: false,
            } => [0x2, *offset, buf.len() as u64],
            Self::Write {
                buf,
                offset,
                durable: true,
            } => [0x3, *offset, buf.len() as u64],
            Self::Sync { stamp } => [0x4, *stamp, 0],
            Self::Allocate { len } => [0x5, *len, 0],
            Self::SetLen { len } => [0x6, *len, 0],
            Self::Len => [0x7, 0, 0],
            Self::Open { .. } => [0x8, 0, 0],
            Self::List { .. } => [0x9, 0, 0],
            Self::Kind { .. } => [0xA, 0, 0],
            Self::CreateDir { .. } => [0xB, 0, 0],
            Self::Rename { .. } => [0xC, 0, 0],
            Self::Remove { .. } => [0xD, 0, 0],
            Self::SyncDir { stamp, .. } => [0xE, *stamp, 0],
            Self::Space => [0xF, 0, 0],
            Self::Taken => [0x10, 0, 0],
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub(super) enum Output {
    Done,
    Count(usize),
    Len(u64),
    Fd(Key),
    Entries(Vec<DirEntry>),
    Kind(EntryKind),
    Space(FsSpace),
}

/// Where an operation stands.
#[derive(Debug)]
pub(super) enum Phase {
    InFlight,
    Finished(Result<Output, Errno>),
}

/// One operation.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) process: u32,
    /// Of operations on names: none.
    pub(super) fd: Key,
    pub(super) kind: OpKind,
    pub(super) phase: Phase,
    pub(super) waker: Option<Waker>,
    /// Nobody waits for the result.
    pub(super) abandoned: bool,
    /// The process died: this much of a write lands.
    pub(super) zombie: Option<Tear>,
    /// The event that completes it; older ones are void.
    pub(super) event: u64,
    pub(super) fate: Fate,
    /// The scripted crash happens after the effect and before the report.
    pub(super) crash: Option<CrashKind>,
}

impl World {
    /// Hands an operation to the kernel. A dead process hands over nothing, and waits for ever.
    pub(super) fn start(&mut self, process: u32, fd: Key, mut kind: OpKind) -> Key {
        if !self.alive(process) {
            return Key::NONE;
        }
        match &mut kind {
            OpKind::Sync { stamp } | OpKind::SyncDir { stamp, .. } => *stamp = self.stamp,
            _ => {}
        }
        for word in kind.trace_words() {
            self.note(word);
        }
        self.note(fd.number());
        self.note_names(&kind);
        if let OpKind::Write { buf, .. } = &kind {
            self.note_bytes(buf);
        }
        let fate = self.choose_fate(fd, &kind);
        let latency = match &kind {
            OpKind::Read { .. } => self.config.read,
            OpKind::Write { durable: false, .. } => self.config.write,
            OpKind::Write { durable: true, .. } => self.config.write_durable,
            OpKind::Sync { .. } => self.config.sync,
            _ => self.config.metadata,
        };
        let mut crash_now = None;
        let mut crash_later = None;
        if let Some((at, crash, moment)) = self.faults.crash
            && kind.is_counted()
            && at == self.op_count
        {
            self.faults.crash = None;
            let begin = match moment {
                None => self.fault_rng.coin(),
                Some(moment) => moment == Moment::Begin,
            };
            let at = if begin {
                &mut crash_now
            } else {
                &mut crash_later
            };
            *at = Some(crash);
        }
        let key = self.ops.insert(Op {
            process,
            fd,
            kind,
            phase: Phase::InFlight,
            waker: None,
            abandoned: false,
            zombie: None,
            event: 0,
            fate,
            crash: crash_later,
        });
        self.disk.begin(fd);
        self.enter_write(key, fd);
        let delay = self.latency(latency);
        self.plan(key, delay);
        if let Some(crash) = crash_now {
            self.crash(crash, process);
        }
        key
    }

    /// Counts the operation and says what becomes of it.
    fn choose_fate(&mut self, fd: Key, kind: &OpKind) -> Fate {
        let alignment = self.disk.fds.get(fd).map_or(1, |fd| fd.alignment);
        let mut fate = Fate::Fine;
        let len = match kind {
            OpKind::Read { len, .. } => *len,
            OpKind::Write { buf, .. } => buf.len(),
            _ => 0,
        };
        if len > 0 {
            let unit = alignment as usize;
            if self
                .fault_rng
                .chance(self.config.interrupted_per_mille, 1000)
            {
                fate = Fate::Interrupted;
            } else if len > unit && self.fault_rng.chance(self.config.short_per_mille, 1000) {
                let units = 1 + self.fault_rng.index(len.div_ceil(unit) - 1);
                fate = Fate::Short(units * unit);
            }
        }
        if let Some(scripted) = self.count_call(kind.name(), len, alignment as usize) {
            fate = scripted;
        }
        let c = &mut self.counters;
        match kind {
            OpKind::Read { .. } => {
                c.reads += 1;
                if let Some(errno) = self.faults.fail_reads.remove(&c.reads) {
                    fate = Fate::Fails(errno);
                }
            }
            OpKind::Write { buf, durable, .. } => {
                *if *durable {
                    &mut c.durable_writes
                } else {
                    &mut c.writes
                } += 1;
                c.bytes_written += buf.len() as u64;
                self.write_count += 1;
                if self.faults.lost.remove(&self.write_count) {
                    fate = Fate::Lost;
                } else if self.faults.misdirected.remove(&self.write_count) {
                    fate = Fate::Misdirected;
                }
            }
            OpKind::Sync { .. } => c.syncs += 1,
            OpKind::SyncDir { .. } => c.dir_syncs += 1,
            OpKind::Allocate { .. } | OpKind::SetLen { .. } => c.length_changes += 1,
            _ if kind.is_counted() => c.dir_changes += 1,
            _ => {}
        }
        if kind.is_counted() {
            self.op_count += 1;
            if let Some(errno) = self.faults.fail.remove(&self.op_count) {
                fate = Fate::Fails(errno);
            }
        }
        fate
    }

    /// Numbers a call and says what the script has for it.
    pub(super) fn count_call(
        &mut self,
        name: &'static str,
        len: usize,
        unit: usize,
    ) -> Option<Fate> {
        let number = self.calls.len() as u64 + 1;
        self.calls.push(name);
        if let Some(errno) = self.faults.fail_calls.remove(&number) {
            return Some(Fate::Fails(errno));
        }
        // Of one unit nothing is left to be short.
        let short = self.faults.short_calls.remove(&number) && len > unit;
        short.then(|| Fate::Short((len / 2 / unit * unit).max(unit)))
    }

    fn note_names(&mut self, kind: &OpKind) {
        if !self.config.trace_bytes {
            return;
        }
        let (one, other) = match kind {
            OpKind::Open { path, .. }
            | OpKind::List { path }
            | OpKind::Kind { path }
            | OpKind::CreateDir { path }
            | OpKind::Remove { path, .. }
            | OpKind::SyncDir { path, .. } => (Some(path), None),
            OpKind::Rename { from, to } => (Some(from), Some(to)),
            _ => (None, None),
        };
        for path in one.into_iter().chain(other) {
            self.note_bytes(path.as_os_str().as_encoded_bytes());
        }
    }

    /// Notes the range of a write, and holds the engine to its promise about overlaps.
    fn enter_write(&mut self, key: Key, fd: Key) {
        let Some(Op {
            kind: OpKind::Write { buf, offset, .. },
            process,
            ..
        }) = self.ops.get(key)
        else {
            return;
        };
        let (offset, end, process) = (*offset, *offset + buf.len() as u64, *process);
        let Some(inode) = self.disk.fds.get(fd).map(|fd| fd.inode) else {
            return;
        };
        let writes = &mut self.disk.inode_mut(inode).writes;
        let clash = writes
            .iter()
            .copied()
            .find(|&(other, other_offset, other_end)| {
                let same = self.ops.get(other).is_some_and(|op| op.process == process);
                same && other_offset < end && offset < other_end
            });
        writes.push((key, offset, end));
        if let Some((_, other_offset, other_end)) = clash {
            self.violated(&format!(
                "a write of [{offset}, {end}) began while a write of [{other_offset}, {other_end}) \
                 of the same file is in flight"
            ));
        }
    }
}
