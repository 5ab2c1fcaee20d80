//! Making a spare: a file with all its blocks that becomes a segment by one write of its header.

use std::ops::Range;
use std::path::{Path, PathBuf};

use super::FileName;
use crate::error::{Error, Result};
use crate::format::{SEGMENT_HEADER_LEN, SegmentHeader, SegmentKind};
use crate::io::{AlignedBuf, Durability, FailStop, IoBackend, LockKind, OpenOptions};

/// An open, locked file of full length that no live segment uses.
#[derive(Debug)]
pub(crate) struct SpareFile<F> {
    pub(crate) file: FailStop<F>,
    pub(crate) path: PathBuf,
    /// Bytes from the start that have been written before; writes beyond change metadata.
    pub(crate) initialised_to: u64,
}

/// What kind of spare is wanted.
#[derive(Debug, Clone)]
pub(crate) struct SpareRequest {
    pub(crate) dir: PathBuf,
    pub(crate) number: u64,
    pub(crate) capacity_bytes: u64,
    pub(crate) direct: bool,
    /// Bytes from the start to write zeros over; of the rest only the blocks are reserved.
    pub(crate) initialise_bytes: u64,
    pub(crate) partition: u64,
    pub(crate) incarnation: u32,
}

/// Unit of initialisation: large enough for bandwidth, small enough to let appends in between.
pub(crate) const ZERO_CHUNK_BYTES: usize = 512 << 10;

/// Creates a spare under a temporary name, makes it durable, then gives it its name.
///
/// On failure nothing stays behind, except after a crash: recovery removes temporary names.
/// No space is [`Error::NoSpace`].
pub(crate) async fn prepare_spare<B: IoBackend>(
    backend: &B,
    request: &SpareRequest,
) -> Result<SpareFile<B::File>> {
    let temporary = request
        .dir
        .join(FileName::Temporary(request.number).to_string());
    let path = request
        .dir
        .join(FileName::Segment(request.number).to_string());
    let made = async {
        // An error says under which name the file is left.
        let file = build(backend, request, &temporary).await;
        let file = file.map_err(|e| (e, &temporary))?;
        let renamed = backend.rename(&temporary, &path).await;
        renamed.map_err(|e| (e, &temporary))?;
        let synced = backend.sync_dir(&request.dir).await;
        synced.map(|()| file).map_err(|e| (e, &path))
    };
    match made.await {
        Ok(file) => Ok(SpareFile {
            file,
            path,
            initialised_to: request.initialise_bytes,
        }),
        Err((e, left)) => {
            if backend.remove_file(left).await.is_err() {
                // Best effort: recovery finds what is left.
            }
            if Error::is_no_space(&e) {
                return Err(Error::NoSpace {
                    path: request.dir.clone(),
                });
            }
            Err(Error::io("prepare a segment", &temporary, e))
        }
    }
}

async fn build<B: IoBackend>(
    backend: &B,
    request: &SpareRequest,
    temporary: &Path,
) -> std::io::Result<FailStop<B::File>> {
    let options = OpenOptions::CREATE_NEW.direct(request.direct);
    let file = FailStop::new(backend.open(temporary, options).await?);
    if !file.try_lock(LockKind::Exclusive)? {
        return Err(std::io::ErrorKind::WouldBlock.into());
    }
    match file.allocate(request.capacity_bytes).await {
        Ok(()) => {}
        Err(e) if Error::is_no_space(&e) => return Err(e),
        // No reservation of blocks on this file system: the length at least is right.
        Err(e) if cannot_allocate(&e) => file.set_len(request.capacity_bytes).await?,
        Err(e) => return Err(e),
    }
    zero(backend, &file, 0..request.initialise_bytes).await?;
    let header = spare_header(request, file.alignment());
    let mut block = AlignedBuf::with_capacity(SEGMENT_HEADER_LEN);
    block.extend_from_slice(&header.encode());
    file.write_all_at(block.freeze(), 0, Durability::Written)
        .await?;
    file.sync_data().await?;
    Ok(file)
}

/// Whether the file system has no such thing as reserving blocks.
fn cannot_allocate(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidInput, Unsupported};
    matches!(error.kind(), InvalidInput | Unsupported)
}

/// Writes zeros over a range of the file, in chunks that let other tasks in between.
pub(crate) async fn zero<B: IoBackend>(
    backend: &B,
    file: &FailStop<B::File>,
    range: Range<u64>,
) -> std::io::Result<()> {
    let len = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
    let mut zeros = AlignedBuf::with_capacity(ZERO_CHUNK_BYTES.min(len));
    zeros.resize(ZERO_CHUNK_BYTES.min(len));
    let zeros = zeros.freeze();
    let mut at = range.start;
    while at < range.end {
        let left = usize::try_from(range.end - at).unwrap_or(usize::MAX);
        let chunk = zeros.slice(..zeros.len().min(left));
        let n = chunk.len() as u64;
        file.write_filler_at(chunk, at).await?;
        at += n;
        backend.yield_now().await;
    }
    Ok(())
}

fn spare_header(request: &SpareRequest, alignment: u32) -> SegmentHeader {
    SegmentHeader {
        kind: SegmentKind::Spare,
        identity: 0,
        partition: request.partition,
        incarnation: request.incarnation,
        generation: 0,
        sequence: 0,
        base_offset: 0,
        prev_identity: 0,
        prev_end_offset: 0,
        prev_end_position: 0,
        prev_header_crc: 0,
        log_start: 0,
        reserved_end: 0,
        capacity_bytes: request.capacity_bytes,
        alignment: alignment.max(512),
        writes_in_flight_max: 0,
        group_bytes_max: 0,
        created_ms: 0,
    }
}

impl<F: crate::io::IoFile> SpareFile<F> {
    /// Puts the file to use: writes `header` and returns once it is durable.
    ///
    /// After an error the header may or may not be on the disk; only a recovery can tell.
    pub(crate) async fn activate(
        self,
        header: SegmentHeader,
        index_interval_bytes: u32,
    ) -> std::io::Result<super::Segment<F>> {
        if self.file.len().await? < header.capacity_bytes {
            // A file that somebody shortened while it was in use, and that was trimmed since.
            self.file.set_len(header.capacity_bytes).await?;
            self.file.sync_data().await?;
        }
        let mut block = AlignedBuf::with_capacity(SEGMENT_HEADER_LEN);
        block.extend_from_slice(&header.encode());
        self.file
            .write_all_at(block.freeze(), 0, Durability::Durable)
            .await?;
        let index = super::SparseIndex::new(index_interval_bytes);
        let (base, start) = (header.base_offset, SEGMENT_HEADER_LEN as u64);
        Ok(super::Segment::new(
            self.file,
            self.path,
            header,
            base,
            start,
            Some(index),
        ))
    }
}
