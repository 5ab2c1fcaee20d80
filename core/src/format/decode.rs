//! From bytes to a verified batch and its records.

use std::iter::FusedIterator;

use bytes::Bytes;

use super::BATCH_HEADER_LEN;
use super::batch::{BatchHeader, BatchKind, verify_body};
use super::control::Control;
use super::error::FormatError;
use super::record::{self, RecordView, StoredRecord};

/// Decodes and verifies the batch at `position` of `bytes`: the header with its checksum, then
/// the length against what is there, then the body's checksum. The body is not copied.
///
/// [`FormatError::Truncated`] tells how many bytes the batch would need.
///
/// ```
/// use alluvium_core::format::{Batch, Placement, decode_batch};
/// let mut batch = Batch::from_values(["a", "b"])?;
/// batch.place(&Placement { base_offset: 5, append_time_ms: 1_000, ..Placement::default() });
/// let stored = decode_batch(&batch.into_buf().freeze(), 0)?;
/// let records = stored.records().collect::<Result<Vec<_>, _>>()?;
/// assert_eq!((records[1].offset, &records[1].value[..]), (6, &b"b"[..]));
/// assert_eq!(records[1].timestamp, 1_000);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn decode_batch(bytes: &Bytes, position: usize) -> Result<StoredBatch, FormatError> {
    let rest = bytes.get(position..).unwrap_or_default();
    let header = BatchHeader::decode(rest)?;
    let need = header.total_len();
    if need > rest.len() {
        return Err(FormatError::Truncated {
            need,
            have: rest.len(),
        });
    }
    StoredBatch::new(
        header,
        bytes.slice(position + BATCH_HEADER_LEN..position + need),
    )
}

/// A verified batch, and the part of it that may be seen.
///
/// A batch that a trim, a truncation or a read's own range cuts through is [clipped](Self::clip):
/// its bytes are whole, its [`records`](Self::records) are only those inside of the range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredBatch {
    header: BatchHeader,
    body: Bytes,
    first_visible: u64,
    end_visible: u64,
}

impl StoredBatch {
    /// Puts a decoded header and its body together, after checking the body against it.
    pub fn new(header: BatchHeader, body: Bytes) -> Result<Self, FormatError> {
        verify_body(&header, &body)?;
        let Some(end_visible) = header.end_offset() else {
            return Err(FormatError::OffsetOverflow {
                base_offset: header.base_offset,
                record_count: header.record_count,
            });
        };
        Ok(Self {
            header,
            body,
            first_visible: header.base_offset,
            end_visible,
        })
    }

    /// Limits what may be seen to offsets in `start..end` as well. Never widens the range.
    #[must_use]
    pub fn clip(mut self, start: u64, end: u64) -> Self {
        self.end_visible = self.end_visible.min(end).max(self.header.base_offset);
        self.first_visible = self.first_visible.max(start).min(self.end_visible);
        self
    }

    /// The header as it is on disk, whatever the batch is clipped to.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Offset of the batch's first record on disk, even if that one is clipped away: the number
    /// that an opaque body was encoded against.
    pub fn base_offset(&self) -> u64 {
        self.header.base_offset
    }

    /// Offset of the first record that may be seen.
    pub fn first_offset(&self) -> u64 {
        self.first_visible
    }

    /// The offset after the last record that may be seen.
    pub fn end_offset(&self) -> u64 {
        self.end_visible
    }

    /// What the body is.
    pub fn kind(&self) -> BatchKind {
        self.header.kind
    }

    /// Whether only the queue understands the body.
    pub fn is_opaque(&self) -> bool {
        self.header.kind == BatchKind::Opaque
    }

    /// The whole body, also of a clipped batch.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The records that may be seen, in order.
    ///
    /// A malformed record gives one error and ends the iteration; so do trailing bytes and a
    /// wrong record count, when the range reaches the end of the batch. A batch of another kind
    /// gives one [`FormatError::WrongKind`]: an opaque batch is read with [`body`](Self::body).
    pub fn records(&self) -> Records<'_> {
        Records {
            views: self.views(),
        }
    }

    /// As [`records`](Self::records), but borrowed: without a reference count per field, for
    /// those who look at many records and keep few.
    ///
    /// ```
    /// use alluvium_core::format::{Batch, Placement, decode_batch};
    /// let mut batch = Batch::from_values(["to", "be"])?;
    /// batch.place(&Placement::default());
    /// let stored = decode_batch(&batch.into_buf().freeze(), 0)?;
    /// let mut text = Vec::new();
    /// for view in stored.views() {
    ///     text.extend_from_slice(view?.value);
    /// }
    /// assert_eq!(text, b"tobe");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn views(&self) -> Views<'_> {
        Views {
            batch: self,
            at: 0,
            index: 0,
            state: State::Start,
        }
    }

    /// The message of a control batch.
    pub fn control(&self) -> Result<Control, FormatError> {
        match self.header.kind {
            BatchKind::Control => Control::decode(&self.body),
            kind => Err(FormatError::WrongKind { kind }),
        }
    }
}

/// Iterator over the records of a batch; see [`StoredBatch::records`].
#[derive(Debug, Clone)]
pub struct Records<'a> {
    views: Views<'a>,
}

impl Iterator for Records<'_> {
    type Item = Result<StoredRecord, FormatError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self.views.next()? {
            Ok(view) => Some(Ok(view.to_stored())),
            Err(error) => Some(Err(error)),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.views.size_hint()
    }
}

impl FusedIterator for Records<'_> {}

/// Iterator over borrowed records of a batch; see [`StoredBatch::views`].
#[derive(Debug, Clone)]
pub struct Views<'a> {
    batch: &'a StoredBatch,
    /// Position in the body.
    at: usize,
    /// Index of the next record in the batch.
    index: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    Running,
    Done,
}

impl<'a> Iterator for Views<'a> {
    type Item = Result<RecordView<'a>, FormatError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.state != State::Running {
            if self.state == State::Done {
                return None;
            }
            if let Err(error) = self.start() {
                return Some(self.fail(error));
            }
        }
        if self.index == self.batch.header.record_count {
            self.state = State::Done;
            return match self.batch.body.len() - self.at {
                0 => None,
                count => Some(Err(FormatError::TrailingBytes { count })),
            };
        }
        // Cannot overflow: the end offset was checked when the batch was verified.
        let offset = self.batch.header.base_offset + u64::from(self.index);
        if offset >= self.batch.end_visible {
            self.state = State::Done;
            return None;
        }
        match self.decode_next(offset) {
            Ok(view) => Some(Ok(view)),
            Err(error) => Some(self.fail(error)),
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.batch.body.len() - self.at) / record::RECORD_LEN_MIN as usize;
        (0, Some(left.saturating_add(1)))
    }
}

impl FusedIterator for Views<'_> {}

impl<'a> Views<'a> {
    /// Goes to the first visible record by hopping over lengths.
    fn start(&mut self) -> Result<(), FormatError> {
        self.state = State::Running;
        let header = &self.batch.header;
        if header.kind != BatchKind::Records {
            return Err(FormatError::WrongKind { kind: header.kind });
        }
        for _ in header.base_offset..self.batch.first_visible {
            let (_, end) = self.extent()?;
            self.at = end;
            self.index += 1;
        }
        Ok(())
    }

    #[inline]
    fn decode_next(&mut self, offset: u64) -> Result<RecordView<'a>, FormatError> {
        let (batch, index) = (self.batch, self.index);
        let (start, end) = self.extent()?;
        let stamp = |delta| timestamp(&batch.header, delta);
        let view = record::decode(&batch.body, start, end, offset, stamp)
            .map_err(|fault| FormatError::BadRecord { index, fault })?;
        self.at = end;
        self.index += 1;
        Ok(view)
    }

    #[inline]
    fn extent(&self) -> Result<(usize, usize), FormatError> {
        let (body, index) = (&self.batch.body, self.index);
        if self.at == body.len() {
            let stored = self.batch.header.record_count;
            return Err(FormatError::RecordCount {
                stored,
                found: index,
            });
        }
        record::extent(body, self.at).map_err(|fault| FormatError::BadRecord { index, fault })
    }

    #[cold]
    fn fail(&mut self, error: FormatError) -> Result<RecordView<'a>, FormatError> {
        self.state = State::Done;
        Err(error)
    }
}

/// The timestamp of a record, or `None` when its delta contradicts the batch header.
#[inline]
fn timestamp(header: &BatchHeader, delta: i64) -> Option<i64> {
    if header.is_append_time() {
        return (delta == 0).then_some(header.base_timestamp);
    }
    if delta > i64::from(header.max_timestamp_delta) || delta < -i64::from(u32::MAX) {
        return None;
    }
    header.base_timestamp.checked_add(delta)
}
