//! Facts first: the files of a partition's directory, fenced, opened, and their headers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};

use crate::error::{Corruption, CorruptionKind, Error, IoError, Result};
use crate::format::{BatchHeader, FORMAT_VERSION, FormatError, SEGMENT_HEADER_LEN, SegmentHeader};
use crate::io::{
    AlignedBuf, EntryKind, FailStop, IoBackend, IoFile, LockKind, OpenMode, OpenOptions,
};
use crate::segment::FileName;

/// One segment file as found.
#[derive(Debug)]
pub(super) struct Found<F> {
    pub(super) path: PathBuf,
    pub(super) file: FailStop<F>,
    pub(super) len: u64,
    pub(super) header: Result<SegmentHeader, CorruptionKind>,
}

/// The directory of a partition as found.
#[derive(Debug)]
pub(super) struct Inventory<F> {
    pub(super) found: Vec<Found<F>>,
    pub(super) temporaries: Vec<PathBuf>,
    pub(super) indexes: Vec<PathBuf>,
    pub(super) foreign: Vec<PathBuf>,
    pub(super) next_number: u64,
}

/// How the files are opened.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) read_only: bool,
    pub(super) direct: bool,
    pub(super) fence_timeout: Duration,
    /// Whether a header that the disk does not give is damage of that file.
    pub(super) reads_around: bool,
}

/// Lists `dir`, opens and fences every segment file, and only then reads the headers.
pub(super) async fn take_inventory<B: IoBackend>(
    backend: &B,
    dir: &Path,
    partition: u64,
    incarnation: u32,
    access: Access,
) -> Result<Inventory<B::File>> {
    let entries = backend
        .list(dir)
        .await
        .map_err(|e| Error::io("list", dir, e))?;
    let mut inventory = Inventory {
        found: Vec::new(),
        temporaries: Vec::new(),
        indexes: Vec::new(),
        foreign: Vec::new(),
        next_number: 0,
    };
    let mut segments = Vec::new();
    for entry in entries {
        let path = dir.join(&entry.name);
        let name = FileName::parse(&entry.name).filter(|_| entry.kind == EntryKind::File);
        let number = match name {
            Some(FileName::Segment(n)) => {
                segments.push((n, path));
                n
            }
            Some(FileName::Temporary(n)) => {
                inventory.temporaries.push(path);
                n
            }
            Some(FileName::Index(n)) => {
                inventory.indexes.push(path);
                n
            }
            None => {
                inventory.foreign.push(path);
                continue;
            }
        };
        inventory.next_number = inventory.next_number.max(number.saturating_add(1));
    }
    segments.sort_unstable();
    // Several at a time: what one costs, a log of many files pays only once in so many.
    let opening = segments
        .into_iter()
        .map(|(_, path)| open_fenced(backend, path, access));
    let opened: Vec<_> = stream::iter(opening)
        .buffered(FILES_AT_ONCE)
        .try_collect()
        .await?;
    let reading = opened
        .into_iter()
        .map(|(path, file)| read_header(path, file, partition, incarnation, access));
    inventory.found = stream::iter(reading)
        .buffered(FILES_AT_ONCE)
        .try_collect()
        .await?;
    Ok(inventory)
}

/// Files that are opened, or read from, at a time.
const FILES_AT_ONCE: usize = 32;

/// Opens a file and waits until nobody else uses it.
async fn open_fenced<B: IoBackend>(
    backend: &B,
    path: PathBuf,
    access: Access,
) -> Result<(PathBuf, B::File)> {
    let (mode, kind) = if access.read_only {
        (OpenMode::Read, LockKind::Shared)
    } else {
        (OpenMode::ReadWrite, LockKind::Exclusive)
    };
    let options = OpenOptions {
        mode,
        direct: access.direct,
    };
    let opened = backend.open(&path, options).await;
    let file = opened.map_err(|e| Error::io("open", &path, e))?;
    if !fence(backend, &file, kind, &path, access.fence_timeout).await? {
        let waited_ms = millis(access.fence_timeout);
        return Err(Error::Fenced { path, waited_ms });
    }
    Ok((path, file))
}

/// Reads the header of a fenced file.
async fn read_header<F: IoFile>(
    path: PathBuf,
    file: F,
    partition: u64,
    incarnation: u32,
    access: Access,
) -> Result<Found<F>> {
    let file = FailStop::new(file);
    let len = file.len().await.map_err(|e| Error::io("stat", &path, e))?;
    // The header block, and the start of the first batch.
    let read = async |len| file.read_at(AlignedBuf::with_capacity(len), 0, len).await;
    let mut block = read(2 * SEGMENT_HEADER_LEN).await.map_err(IoError::from);
    let is_bad = |e: &IoError| access.reads_around && e.is_of_the_medium();
    if block.as_ref().is_err_and(is_bad) {
        // The batch may be bad, and the header sound.
        block = read(SEGMENT_HEADER_LEN).await.map_err(IoError::from);
    }
    let block = match block {
        Ok(block) => block,
        Err(e) if is_bad(&e) => {
            return Ok(Found {
                path,
                file,
                len,
                header: Err(CorruptionKind::Unreadable(e)),
            });
        }
        Err(source) => {
            return Err(Error::Io {
                action: "read",
                path,
                source,
            });
        }
    };
    let (block, first) = block.split_at(SEGMENT_HEADER_LEN.min(block.len()));
    let header = SegmentHeader::decode(block);
    if let Err(FormatError::UnsupportedVersion { found }) = header {
        return Err(Error::UnsupportedVersion {
            path,
            found,
            supported: FORMAT_VERSION,
        });
    }
    let header = header.map_err(CorruptionKind::from).and_then(|h| {
        if h.partition != partition || h.incarnation != incarnation {
            Err(CorruptionKind::Misplaced(
                "the segment belongs to another partition",
            ))
        } else if outruns_header(first, &h) {
            Err(CorruptionKind::Misplaced(
                "its first batch is newer than its header: the header was never written",
            ))
        } else {
            Ok(h)
        }
    });
    Ok(Found {
        path,
        file,
        len,
        header,
    })
}

/// Whether the first batch of a file is of a later use than its header. A header is durable before
/// the first batch is written, and a later use has a higher generation or higher offsets: so the
/// device lost the header, and with it all knowledge of the batches.
fn outruns_header(first: &[u8], header: &SegmentHeader) -> bool {
    BatchHeader::decode(first).is_ok_and(|batch| {
        batch.identity != header.identity
            && (batch.partition, batch.incarnation) == (header.partition, header.incarnation)
            && (batch.generation, batch.base_offset) > (header.generation, header.base_offset)
    })
}

/// Waits until a lock on this very descriptor can be had: until then, operations of a dead process
/// on the file may still land. `false` after `timeout`.
pub(crate) async fn fence<B: IoBackend>(
    backend: &B,
    file: &B::File,
    kind: LockKind,
    path: &Path,
    timeout: Duration,
) -> Result<bool> {
    let began = backend.now();
    loop {
        if file
            .try_lock(kind)
            .map_err(|e| Error::io("lock", path, e))?
        {
            return Ok(true);
        }
        let waited = backend.now().saturating_sub(began);
        let left = timeout.saturating_sub(waited);
        if left.is_zero() {
            return Ok(false);
        }
        // Never a quarter longer than need be: the ring of a dead process takes some 10 to 60 ms.
        let pause = (waited / 4).clamp(Duration::from_millis(1), Duration::from_millis(50));
        backend.sleep(pause.min(left)).await;
    }
}

pub(super) fn corruption_of<F>(
    found: &Found<F>,
    partition: u64,
    kind: CorruptionKind,
) -> Corruption {
    Corruption {
        path: found.path.clone(),
        partition,
        position: 0,
        offset_start: found.header.as_ref().map_or(0, |h| h.base_offset),
        offset_end: None,
        found: kind,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
