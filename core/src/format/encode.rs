//! From records to a finished batch.
//!
//! The body is encoded and checksummed once, by the caller. A large batch lies in memory that direct
//! I/O accepts and is written from there; a small one is copied into its write group anyway. The
//! log later only fills in the header in front of it ([`Batch::place`]).

use bytes::Bytes;

use super::batch::{BatchHeader, BatchKind, NO_PRODUCER, durable_lag, flags};
use super::buffer::BatchBuf;
use super::codec::{Put, VARINT_LEN_MAX, checksum, varint_len, zigzag};
use super::control::Control;
use super::error::EncodeError;
use super::record::{HAS_HEADERS, HAS_KEY, Header, Record};
use super::{BATCH_BODY_LEN_MAX, BATCH_HEADER_LEN, RECORD_HEADERS_MAX, RECORD_LEN_MAX};
use crate::io::AlignedBuf;

/// Collects records into a batch.
///
/// ```
/// use alluvium_core::format::{BatchBuilder, Record};
/// let mut builder = BatchBuilder::new();
/// builder.push(&Record::new("on").key("lamp"))?;
/// builder.push_value(b"off")?;
/// let batch = builder.finish()?;
/// assert_eq!(batch.record_count(), 2);
/// # Ok::<(), alluvium_core::format::EncodeError>(())
/// ```
#[derive(Debug)]
pub struct BatchBuilder {
    /// Empty, or room for the header and then the records so far.
    buf: BatchBuf,
    record_count: u32,
    stamps: Stamps,
    origin: Origin,
}

/// Who gives the timestamps, decided by the first record.
#[derive(Debug, Clone, Copy)]
enum Stamps {
    Undecided,
    /// The log, when it places the batch.
    Log,
    /// The producer: base is the first record's, `max_delta` the largest excess over it.
    Producer {
        base: i64,
        max_delta: u32,
    },
}

/// Header fields that the log passes through for the queue.
#[derive(Debug, Clone, Copy)]
struct Origin {
    producer_id: u64,
    producer_epoch: u16,
    producer_sequence: u32,
    leader_epoch: u32,
}

impl Default for BatchBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl BatchBuilder {
    /// An empty builder.
    pub fn new() -> Self {
        Self::new_in(BatchBuf::default())
    }

    /// An empty builder with room for `bytes` of encoded records.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut builder = Self::new();
        builder.reserve(bytes);
        builder
    }

    /// An empty builder that encodes into `buf`, for example one from a pool. What the buffer
    /// held is forgotten.
    pub fn in_buf(mut buf: AlignedBuf) -> Self {
        buf.clear();
        Self::new_in(BatchBuf::Aligned(buf))
    }

    /// Starts in an empty buffer. Room for the header is made together with that for records: memory
    /// that grows is asked for twice.
    fn new_in(buf: BatchBuf) -> Self {
        Self {
            buf,
            record_count: 0,
            stamps: Stamps::Undecided,
            origin: Origin::default(),
        }
    }

    /// Adds a record. On an error the builder is unchanged.
    pub fn push(&mut self, record: &Record) -> Result<(), EncodeError> {
        self.push_parts(
            record.timestamp,
            record.key.as_ref(),
            &record.value,
            &record.headers,
        )
    }

    /// Adds a record that has a value only; the log stamps it. On an error the builder is
    /// unchanged.
    pub fn push_value(&mut self, value: &[u8]) -> Result<(), EncodeError> {
        self.push_parts(None, None, value, &[])
    }

    /// Makes room for `bytes` more of encoded records.
    pub fn reserve(&mut self, bytes: usize) {
        if self.buf.len() == 0 {
            self.buf.reserve(bytes.saturating_add(BATCH_HEADER_LEN));
            self.buf.extend_from_slice(&[0; BATCH_HEADER_LEN]);
        } else {
            self.buf.reserve(bytes);
        }
    }

    /// Bytes that header and records take so far.
    pub fn len_bytes(&self) -> usize {
        self.buf.len().max(BATCH_HEADER_LEN)
    }

    /// Number of records so far.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Whether no record was added.
    pub fn is_empty(&self) -> bool {
        self.record_count == 0
    }

    /// Names the idempotent producer of the batch; `sequence` is its number of the first record.
    pub fn producer(&mut self, id: u64, epoch: u16, sequence: u32) -> &mut Self {
        self.origin.set_producer(id, epoch, sequence);
        self
    }

    /// Sets the epoch (or term) of the leader that accepts the batch.
    pub fn leader_epoch(&mut self, leader_epoch: u32) -> &mut Self {
        self.origin.leader_epoch = leader_epoch;
        self
    }

    /// Computes the body's checksum, on the caller's thread, and closes the batch.
    pub fn finish(self) -> Result<Batch, EncodeError> {
        if self.is_empty() {
            return Err(EncodeError::Empty);
        }
        let timestamps = match self.stamps {
            Stamps::Producer { base, max_delta } => Some((base, max_delta)),
            Stamps::Undecided | Stamps::Log => None,
        };
        let mut batch = Batch::close(self.buf, BatchKind::Records, self.record_count, timestamps);
        batch.origin = self.origin;
        Ok(batch)
    }

    fn push_parts(
        &mut self,
        timestamp: Option<i64>,
        key: Option<&Bytes>,
        value: &[u8],
        headers: &[Header],
    ) -> Result<(), EncodeError> {
        if headers.len() > RECORD_HEADERS_MAX {
            return Err(EncodeError::TooManyHeaders {
                count: headers.len(),
                max: RECORD_HEADERS_MAX,
            });
        }
        let (stamps, delta) = self.stamps.with(timestamp)?;
        let mut len = 1_usize
            .saturating_add(varint_len(delta))
            .saturating_add(value.len());
        if let Some(key) = key {
            len = len.saturating_add(field_len(key));
        }
        if !headers.is_empty() {
            len = len.saturating_add(varint_len(headers.len() as u64));
        }
        for header in headers {
            len = len
                .saturating_add(field_len(&header.name))
                .saturating_add(field_len(&header.value));
        }
        if len > RECORD_LEN_MAX {
            return Err(EncodeError::RecordTooLarge {
                len,
                max: RECORD_LEN_MAX,
            });
        }
        let total = varint_len(len as u64) + len;
        let body_len = self.len_bytes() - BATCH_HEADER_LEN + total;
        if body_len > BATCH_BODY_LEN_MAX {
            return Err(EncodeError::BatchTooLarge {
                len: body_len,
                max: BATCH_BODY_LEN_MAX,
            });
        }

        self.reserve(total);
        let before = self.buf.len();
        let mut head = [0; 2 * VARINT_LEN_MAX + 1];
        let mut put = Put::new(&mut head);
        let head_len = put
            .varint(len as u64)
            .u8(if key.is_some() { HAS_KEY } else { 0 }
                | if headers.is_empty() { 0 } else { HAS_HEADERS })
            .varint(delta)
            .position();
        self.buf.extend_from_slice(&head[..head_len]);
        if let Some(key) = key {
            self.put_field(key);
        }
        if !headers.is_empty() {
            self.put_varint(headers.len() as u64);
        }
        for header in headers {
            self.put_field(&header.name);
            self.put_field(&header.value);
        }
        self.buf.extend_from_slice(value);
        debug_assert_eq!(
            self.buf.len(),
            before + total,
            "length announced and length written"
        );
        self.record_count += 1;
        self.stamps = stamps;
        Ok(())
    }

    fn put_field(&mut self, bytes: &[u8]) {
        self.put_varint(bytes.len() as u64);
        self.buf.extend_from_slice(bytes);
    }

    fn put_varint(&mut self, value: u64) {
        let mut out = [0; VARINT_LEN_MAX];
        let len = Put::new(&mut out).varint(value).position();
        self.buf.extend_from_slice(&out[..len]);
    }
}

fn field_len(bytes: &[u8]) -> usize {
    bytes.len().saturating_add(varint_len(bytes.len() as u64))
}

impl Stamps {
    /// The state after one more record, and the record's delta in its encoded form.
    fn with(self, timestamp: Option<i64>) -> Result<(Self, u64), EncodeError> {
        match (self, timestamp) {
            (Self::Undecided | Self::Log, None) => Ok((Self::Log, 0)),
            (Self::Undecided, Some(base)) => Ok((Self::Producer { base, max_delta: 0 }, 0)),
            (Self::Producer { base, max_delta }, Some(timestamp)) => {
                let delta = timestamp
                    .checked_sub(base)
                    .filter(|delta| u32::try_from(delta.unsigned_abs()).is_ok())
                    .ok_or(EncodeError::TimestampSpan { base, timestamp })?;
                let max_delta = max_delta.max(u32::try_from(delta).unwrap_or(0));
                Ok((Self::Producer { base, max_delta }, zigzag(delta)))
            }
            (Self::Log, Some(_)) | (Self::Producer { .. }, None) => {
                Err(EncodeError::MixedTimestamps)
            }
        }
    }
}

impl Default for Origin {
    fn default() -> Self {
        Self {
            producer_id: NO_PRODUCER,
            producer_epoch: 0,
            producer_sequence: 0,
            leader_epoch: 0,
        }
    }
}

impl Origin {
    fn set_producer(&mut self, id: u64, epoch: u16, sequence: u32) {
        self.producer_id = id;
        self.producer_epoch = epoch;
        self.producer_sequence = sequence;
    }
}

/// Where the log puts a batch: everything in the header that is not the producer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Placement {
    /// Identity of the segment.
    pub identity: u64,
    /// Partition.
    pub partition: u64,
    /// Incarnation of the partition.
    pub incarnation: u32,
    /// Generation of the partition's writer.
    pub generation: u32,
    /// Number of the batch within the segment, from 0.
    pub sequence: u32,
    /// Header checksum of the batch before.
    pub prev_header_crc: u32,
    /// Offset of the batch's first record.
    pub base_offset: u64,
    /// Everything below this offset is durable now. Recovery takes it as proof that holes below
    /// it are damage, so it must be the truth or lower.
    pub durable_offset: u64,
    /// Timestamp for a batch without its own, in milliseconds since 1970.
    pub append_time_ms: i64,
    /// Whether this is the last batch of its write group; the caller pads the group.
    pub last_in_group: bool,
}

/// A finished batch: encoded and checksummed, but without a place in a log yet.
///
/// ```
/// use alluvium_core::format::{Batch, BatchHeader, Placement};
/// let mut batch = Batch::from_values(["a", "b", "c"])?;
/// let crc = batch.place(&Placement { base_offset: 10, ..Placement::default() });
/// let header = BatchHeader::decode(batch.bytes())?;
/// assert_eq!(header.end_offset(), Some(13));
/// assert_eq!(BatchHeader::crc(batch.bytes()), crc);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Batch {
    buf: BatchBuf,
    kind: BatchKind,
    record_count: u32,
    body_len: u32,
    body_crc: u32,
    /// First timestamp and largest delta; `None` when the log stamps the batch.
    timestamps: Option<(i64, u32)>,
    origin: Origin,
}

impl Batch {
    /// A batch whose body only the queue understands. It takes `record_count` offsets (at least
    /// one). `timestamp` is in milliseconds since 1970; without it the log stamps the batch.
    pub fn opaque(
        bytes: &[u8],
        record_count: u32,
        timestamp: Option<i64>,
    ) -> Result<Self, EncodeError> {
        if record_count == 0 {
            return Err(EncodeError::Empty);
        }
        if bytes.len() > BATCH_BODY_LEN_MAX {
            return Err(EncodeError::BatchTooLarge {
                len: bytes.len(),
                max: BATCH_BODY_LEN_MAX,
            });
        }
        let timestamps = timestamp.map(|timestamp| (timestamp, 0));
        Ok(Self::close(
            Self::with_body(bytes),
            BatchKind::Opaque,
            record_count,
            timestamps,
        ))
    }

    /// A control batch. It takes no offset and is stamped by the log.
    pub fn control(control: &Control) -> Self {
        Self::close(
            Self::with_body(&control.encode()),
            BatchKind::Control,
            0,
            None,
        )
    }

    /// A batch of records that have values only.
    pub fn from_values<I>(values: I) -> Result<Self, EncodeError>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let mut values = values.into_iter();
        let mut builder = BatchBuilder::new();
        if let Some(first) = values.next() {
            // Most batches are of records alike: then this is the only allocation.
            let first = first.as_ref();
            let each = field_len(first).saturating_add(2);
            let all = each.saturating_mul(values.size_hint().0.saturating_add(1));
            builder.reserve(all.min(BATCH_BODY_LEN_MAX));
            builder.push_value(first)?;
        }
        for value in values {
            builder.push_value(value.as_ref())?;
        }
        builder.finish()
    }

    /// Names the idempotent producer of the batch; `sequence` is its number of the first record.
    #[must_use]
    pub fn with_producer(mut self, id: u64, epoch: u16, sequence: u32) -> Self {
        self.origin.set_producer(id, epoch, sequence);
        self
    }

    /// Sets the epoch (or term) of the leader that accepts the batch.
    #[must_use]
    pub fn with_leader_epoch(mut self, leader_epoch: u32) -> Self {
        self.origin.leader_epoch = leader_epoch;
        self
    }

    /// What the body is.
    pub fn kind(&self) -> BatchKind {
        self.kind
    }

    /// Whether only the queue understands the body.
    pub fn is_opaque(&self) -> bool {
        self.kind == BatchKind::Opaque
    }

    /// Number of offsets that the batch takes.
    pub fn record_count(&self) -> u32 {
        self.record_count
    }

    /// Length of header and body in bytes.
    pub fn encoded_len(&self) -> usize {
        self.buf.len()
    }

    /// The body.
    pub fn body(&self) -> &[u8] {
        &self.buf.as_slice()[BATCH_HEADER_LEN..]
    }

    /// The header that the batch has at `placement`.
    pub fn header_at(&self, placement: &Placement) -> BatchHeader {
        let (base_timestamp, max_timestamp_delta) =
            self.timestamps.unwrap_or((placement.append_time_ms, 0));
        let mut bits = 0;
        if self.timestamps.is_none() {
            bits |= flags::APPEND_TIME;
        }
        if placement.last_in_group {
            bits |= flags::LAST_IN_GROUP;
        }
        BatchHeader {
            identity: placement.identity,
            partition: placement.partition,
            incarnation: placement.incarnation,
            generation: placement.generation,
            sequence: placement.sequence,
            prev_header_crc: placement.prev_header_crc,
            base_offset: placement.base_offset,
            record_count: self.record_count,
            body_len: self.body_len,
            body_crc: self.body_crc,
            durable_lag: durable_lag(placement.base_offset, placement.durable_offset),
            base_timestamp,
            max_timestamp_delta,
            leader_epoch: self.origin.leader_epoch,
            producer_id: self.origin.producer_id,
            producer_sequence: self.origin.producer_sequence,
            producer_epoch: self.origin.producer_epoch,
            kind: self.kind,
            flags: bits,
        }
    }

    /// Writes the header for this place in front of the body and returns its checksum, for the
    /// next batch to carry. A batch may be placed again; the last placement counts.
    pub fn place(&mut self, placement: &Placement) -> u32 {
        let header = self.header_at(placement);
        header.encode_into(self.buf.as_mut_slice())
    }

    /// The newest timestamp of the batch when the log stamps it with `append_time_ms`.
    pub fn max_timestamp(&self, append_time_ms: i64) -> i64 {
        let (base, delta) = self.timestamps.unwrap_or((append_time_ms, 0));
        base.saturating_add(i64::from(delta))
    }

    /// Header and body. Before [`place`](Self::place) the header is zero.
    pub fn bytes(&self) -> &[u8] {
        self.buf.as_slice()
    }

    /// Whether header and body lie in memory that direct I/O accepts: then
    /// [`into_buf`](Self::into_buf) copies nothing.
    pub fn is_aligned(&self) -> bool {
        matches!(self.buf, BatchBuf::Aligned(_))
    }

    /// Header and body in memory that direct I/O accepts. Large batches lie there already; small
    /// ones are copied.
    pub fn into_buf(self) -> AlignedBuf {
        self.buf.into_aligned()
    }

    /// Its memory, if that is the allocator's.
    pub(crate) fn into_heap(self) -> Vec<u8> {
        match self.buf {
            BatchBuf::Heap(bytes) => bytes,
            BatchBuf::Aligned(_) => Vec::new(),
        }
    }

    fn with_body(bytes: &[u8]) -> BatchBuf {
        let mut buf = BatchBuf::with_capacity(BATCH_HEADER_LEN + bytes.len());
        buf.extend_from_slice(&[0; BATCH_HEADER_LEN]);
        buf.extend_from_slice(bytes);
        buf
    }

    fn close(
        buf: BatchBuf,
        kind: BatchKind,
        record_count: u32,
        timestamps: Option<(i64, u32)>,
    ) -> Self {
        let body = &buf.as_slice()[BATCH_HEADER_LEN..];
        let body_crc = checksum(body);
        // Every way here checked the length against BATCH_BODY_LEN_MAX, which fits.
        let body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
        debug_assert!(body_len as usize == body.len());
        Self {
            buf,
            kind,
            record_count,
            body_len,
            body_crc,
            timestamps,
            origin: Origin::default(),
        }
    }
}

const _: () =
    assert!(BATCH_BODY_LEN_MAX < u32::MAX as usize && RECORD_LEN_MAX < BATCH_BODY_LEN_MAX);
