//! What bounds the workloads: the disk without any log, and a scan that only checksums.
//!
//! The disk is driven by as many threads as operations are to be in flight, each waiting for its
//! own: that needs no io_uring, and keeps the queue as deep as it says.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use alluvium::io::AlignedBuf;
use hdrhistogram::Histogram;
use rustix::io::{ReadWriteFlags, preadv2, pwritev2};

use crate::case::{Case, Workload};
use crate::contender::{Contender, Role};
use crate::engine::{AtAck, RECORD_LEN};
use crate::error::{Error, Result};
use crate::measure::{Deadline, Outcome, Run, histogram, merge, record};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;
/// How the file is written before anything is measured.
const INITIALISE_BYTES: usize = 4 * MIB;
/// What a record takes on the disk in W1: header, value, padding to sectors.
const SMALL_WRITE_BYTES: usize = 1536;

/// One pattern of operations on the disk.
#[derive(Debug, Clone, Copy)]
struct Pattern {
    depth: usize,
    bytes: usize,
    /// Operations of the workload in each.
    operations: u64,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    WriteDurable,
    Write,
    Read,
}

impl Pattern {
    fn of(workload: Workload) -> Option<Self> {
        let pattern = |depth, bytes, operations, kind| {
            Some(Self {
                depth,
                bytes,
                operations,
                kind,
            })
        };
        match workload {
            Workload::W1 => pattern(1, SMALL_WRITE_BYTES, 1, Kind::WriteDurable),
            // One group of all 64 producers at a time.
            Workload::W2 => pattern(1, 64 * KIB, 64, Kind::WriteDurable),
            Workload::W4 => pattern(4, 256 * KIB, 4, Kind::WriteDurable),
            Workload::W5 => pattern(4, MIB, 16, Kind::Write),
            Workload::W6c => pattern(8, MIB, 1_024, Kind::Read),
            _ => None,
        }
    }
}

/// The disk: direct I/O on a file all of which was written before.
#[derive(Debug)]
pub struct RawDisk {
    path: PathBuf,
    direct: bool,
    alignment: usize,
}

impl RawDisk {
    /// On a file in `dir`, which is made at first use and kept for the following rounds.
    ///
    /// # Errors
    /// [`Error::Io`] when no file can be created there.
    pub fn new(dir: &Path) -> Result<Self> {
        let probed = alluvium::backends::probe::probe_dir(dir)
            .map_err(Error::io("probe the directory", dir))?;
        Ok(Self {
            path: dir.join("raw"),
            direct: probed.direct_io,
            alignment: usize::try_from(probed.alignment).unwrap_or(1).max(1),
        })
    }

    fn open(path: &Path, direct: bool) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true);
        if direct {
            options.custom_flags(libc::O_DIRECT);
        }
        options.open(path).map_err(Error::io("open", path))
    }
}

impl Contender for RawDisk {
    fn name(&self) -> String {
        if self.direct {
            "raw disk".to_owned()
        } else {
            "raw disk (buffered)".to_owned()
        }
    }

    fn role(&self) -> Role {
        Role::Reference
    }

    fn at_ack(&self) -> AtAck {
        AtAck::Durable
    }

    fn runs(&self, case: Case) -> bool {
        Pattern::of(case.workload).is_some()
    }

    fn run<'a>(
        &'a self,
        case: Case,
        run: &'a Run,
    ) -> Pin<Box<dyn Future<Output = Result<Outcome>> + Send + 'a>> {
        Box::pin(async move {
            let Some(mut pattern) = Pattern::of(case.workload) else {
                return Err(Error::Peer(format!("the disk has no part in {case}")));
            };
            pattern.bytes = pattern.bytes.next_multiple_of(self.alignment);
            let len = if pattern.kind == Kind::Read {
                run.sizes.read_bytes
            } else {
                run.sizes.raw_file_bytes
            };
            let len = len.next_multiple_of(INITIALISE_BYTES as u64);
            let file = Arc::new(Self::open(&self.path, self.direct)?);
            let (path, to_initialise, stop) =
                (self.path.clone(), Arc::clone(&file), run.stop.clone());
            tokio::task::spawn_blocking(move || {
                initialise(&to_initialise, len, || stop.is_stopped())
                    .map_err(Error::io("initialise", &path))
            })
            .await??;
            let next = Arc::new(AtomicU64::new(0));
            let deadline = run.deadline();
            let meter = run.meter();
            let mut threads = Vec::new();
            for _ in 0..pattern.depth {
                let (file, next) = (Arc::clone(&file), Arc::clone(&next));
                let (path, deadline) = (self.path.clone(), deadline.clone());
                threads.push(tokio::task::spawn_blocking(move || {
                    repeat(&file, len, &next, pattern, &deadline)
                        .map_err(Error::io("use the raw", &path))
                }));
            }
            let mut latency = histogram();
            for thread in threads {
                merge(&mut latency, &thread.await??);
            }
            if pattern.kind == Kind::Write {
                file.sync_data().map_err(Error::io("sync", &self.path))?;
            }
            let count = latency.len();
            let bytes = count * pattern.bytes as u64;
            let outcome = meter.finish(latency, count * pattern.operations, bytes);
            run.stop.check()?;
            Ok(outcome)
        })
    }
}

/// Writes what the file lacks of its length, so that no write changes metadata afterwards.
fn initialise(file: &File, len: u64, stopped: impl Fn() -> bool) -> io::Result<()> {
    let from = file.metadata()?.len() / INITIALISE_BYTES as u64 * INITIALISE_BYTES as u64;
    let buf = filled(INITIALISE_BYTES);
    for at in (from..len).step_by(INITIALISE_BYTES) {
        if stopped() {
            return Ok(());
        }
        if pwritev2(file, &[IoSlice::new(&buf)], at, ReadWriteFlags::empty())? != buf.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    file.sync_all()
}

fn filled(len: usize) -> AlignedBuf {
    let mut buf = AlignedBuf::with_capacity(len);
    buf.resize(len);
    buf.fill(0x5A);
    buf
}

/// One operation after the other, at the next place that no other thread has taken.
fn repeat(
    file: &File,
    file_len: u64,
    next: &AtomicU64,
    pattern: Pattern,
    deadline: &Deadline,
) -> io::Result<Histogram<u64>> {
    let mut buf = filled(pattern.bytes);
    let step = pattern.bytes as u64;
    let places = (file_len / step).max(1);
    let mut latency = histogram();
    loop {
        let started = Instant::now();
        if deadline.is_over(started) {
            return Ok(latency);
        }
        let at = next.fetch_add(1, Ordering::Relaxed) % places * step;
        let done = match pattern.kind {
            Kind::WriteDurable => pwritev2(file, &[IoSlice::new(&buf)], at, ReadWriteFlags::DSYNC)?,
            Kind::Write => pwritev2(file, &[IoSlice::new(&buf)], at, ReadWriteFlags::empty())?,
            Kind::Read => preadv2(
                file,
                &mut [IoSliceMut::new(&mut buf)],
                at,
                ReadWriteFlags::empty(),
            )?,
        };
        if done != pattern.bytes {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        record(&mut latency, started);
    }
}

/// CRC-32 over bytes in memory, without a copy: what verifying cannot undercut.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChecksumScan;

/// Larger than any cache of a processor; what is beyond would only take memory.
const SCAN_BYTES_MAX: u64 = 256 << 20;
/// Length of a batch in the data that is read.
const SCAN_BATCH_BYTES: usize = 256 * RECORD_LEN;
/// What is timed as one read.
const SCAN_READ_BYTES: usize = 4 * MIB;

impl Contender for ChecksumScan {
    fn name(&self) -> String {
        "crc32 scan".to_owned()
    }

    fn role(&self) -> Role {
        Role::Reference
    }

    fn at_ack(&self) -> AtAck {
        AtAck::NoWrites
    }

    fn runs(&self, case: Case) -> bool {
        case.workload == Workload::W6
    }

    fn run<'a>(
        &'a self,
        _: Case,
        run: &'a Run,
    ) -> Pin<Box<dyn Future<Output = Result<Outcome>> + Send + 'a>> {
        Box::pin(async move {
            let len = run.sizes.read_bytes.clamp(MIB as u64, SCAN_BYTES_MAX);
            let data = filled(usize::try_from(len).unwrap_or(MIB));
            let deadline = run.deadline();
            let meter = run.meter();
            let scanning = tokio::task::spawn_blocking(move || {
                let (mut latency, mut bytes) = (histogram(), 0);
                for read in data.chunks(SCAN_READ_BYTES).cycle() {
                    let started = Instant::now();
                    if deadline.is_over(started) {
                        break;
                    }
                    for batch in read.chunks(SCAN_BATCH_BYTES) {
                        std::hint::black_box(crc32fast::hash(batch));
                    }
                    record(&mut latency, started);
                    bytes += read.len() as u64;
                }
                (latency, bytes)
            });
            let (latency, bytes) = scanning.await?;
            run.stop.check()?;
            Ok(meter.finish(latency, bytes / RECORD_LEN as u64, bytes))
        })
    }
}
