//! The disk itself: aligned `O_DIRECT` writes with `RWF_DSYNC` over a zeroed file, from plain
//! threads, as the limit that the workloads are held against.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use alluvium::io::AlignedBuf;
use rustix::io::{ReadWriteFlags, pwritev2};

use crate::AnyError;
use crate::measure::{Meter, Outcome, Run, histogram};
use crate::store::record;

const FILE_BYTES: u64 = 256 << 20;

pub(crate) fn run(workload: &str, run: &Run) -> Result<Option<Outcome>, AnyError> {
    // Writes in flight, bytes per write, records per write, durable per write.
    let (depth, len, records, durable) = match workload {
        "W1" => (1, 1536, 1, true),
        // One group of all 64 producers at a time.
        "W2" => (1, 72 << 10, 64, true),
        "W4" => (4, 256 << 10, 4, true),
        "W5" => (4, 1 << 20, 16, false),
        _ => return Ok(None),
    };
    let path = run.dir.join("raw");
    zeroed(&path)?;
    let file = Arc::new(direct(&path)?);
    let next = Arc::new(AtomicU64::new(0));
    let until = run.until();
    let meter = Meter::start();
    let threads: Vec<_> = (0..depth)
        .map(|_| {
            let (file, next) = (Arc::clone(&file), Arc::clone(&next));
            std::thread::spawn(move || write(&file, &next, len, durable, until))
        })
        .collect();
    let mut latency = histogram();
    for thread in threads {
        let one = thread.join().map_err(|_| "a writer panicked")??;
        latency.add(one)?;
    }
    if !durable {
        file.sync_data()?;
    }
    let operations = latency.len() * records;
    let bytes = latency.len() * len as u64;
    Ok(Some(meter.finish(latency, operations, bytes)))
}

fn write(
    file: &File,
    next: &AtomicU64,
    len: usize,
    durable: bool,
    until: Instant,
) -> Result<hdrhistogram::Histogram<u64>, std::io::Error> {
    let mut buf = AlignedBuf::with_capacity(len);
    buf.resize(len);
    buf.fill(0x5A);
    let flags = if durable {
        ReadWriteFlags::DSYNC
    } else {
        ReadWriteFlags::empty()
    };
    let mut latency = histogram();
    while Instant::now() < until {
        let step = len as u64;
        let at = next.fetch_add(step, Ordering::Relaxed) % (FILE_BYTES / step * step);
        let started = Instant::now();
        let n = pwritev2(file, &[IoSlice::new(&buf)], at, flags)?;
        if n != len {
            return Err(std::io::ErrorKind::WriteZero.into());
        }
        record(&mut latency, started);
    }
    Ok(latency)
}

fn direct(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
}

fn zeroed(path: &std::path::Path) -> std::io::Result<()> {
    let file = File::create(path)?;
    let mut buf = AlignedBuf::with_capacity(1 << 20);
    buf.resize(1 << 20);
    drop(file);
    let file = direct(path)?;
    for at in (0..FILE_BYTES).step_by(1 << 20) {
        pwritev2(&file, &[IoSlice::new(&buf)], at, ReadWriteFlags::empty())?;
    }
    file.sync_all()
}
