//! Records: what a producer hands in, what a consumer gets, and the bytes between.

use bytes::Bytes;

use super::codec::{get_varint, unzigzag};
use super::error::RecordFault;

/// A name and a value that a producer attaches to a record.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Header {
    /// Name; any bytes, need not be unique in its record.
    pub name: Bytes,
    /// Value; any bytes.
    pub value: Bytes,
}

/// A record to append.
///
/// ```
/// use alluvium_core::format::Record;
/// let record = Record::new("21.5").key("sensor-7").timestamp(1_700_000_000_000).header("unit", "C");
/// assert_eq!(record.key.as_deref(), Some(&b"sensor-7"[..]));
/// assert_eq!(record.headers.len(), 1);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Record {
    /// Time of the event in milliseconds since 1970; `None` lets the log stamp the batch. Within
    /// a batch, either all records carry one or none does.
    pub timestamp: Option<i64>,
    /// Key. An empty key is different from no key.
    pub key: Option<Bytes>,
    /// Value.
    pub value: Bytes,
    /// Headers, kept in order.
    pub headers: Vec<Header>,
}

impl Record {
    /// A record with this value and nothing else.
    #[must_use]
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self {
            value: value.into(),
            ..Self::default()
        }
    }

    /// Sets the key.
    #[must_use]
    pub fn key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Sets the time of the event, in milliseconds since 1970.
    #[must_use]
    pub fn timestamp(mut self, timestamp: i64) -> Self {
        self.timestamp = Some(timestamp);
        self
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.headers.push(Header {
            name: name.into(),
            value: value.into(),
        });
        self
    }
}

/// A record as read from the log. Its bytes are slices of the batch that it came in, which they
/// keep alive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoredRecord {
    /// Offset of the record in its partition.
    pub offset: u64,
    /// Timestamp in milliseconds since 1970: the producer's, or the log's for the whole batch.
    pub timestamp: i64,
    /// Key, if it has one.
    pub key: Option<Bytes>,
    /// Value.
    pub value: Bytes,
    /// Headers in the order in which they were given.
    pub headers: Vec<Header>,
}

/// Bits of a record's flags byte.
pub(super) const HAS_KEY: u8 = 1;
pub(super) const HAS_HEADERS: u8 = 2;

/// Fewest bytes that a record takes: length, flags, timestamp delta.
pub(super) const RECORD_LEN_MIN: u32 = 3;

/// Fewest bytes that a record header takes: two lengths.
const HEADER_LEN_MIN: usize = 2;

/// A record in place: borrowed from its batch, without a reference count per field.
///
/// For consumers that look at many records and keep few; [`to_stored`](Self::to_stored) keeps one.
#[derive(Debug, Clone, Copy)]
pub struct RecordView<'a> {
    /// Offset of the record in its partition.
    pub offset: u64,
    /// Timestamp in milliseconds since 1970: the producer's, or the log's for the whole batch.
    pub timestamp: i64,
    /// Key, if it has one.
    pub key: Option<&'a [u8]>,
    /// Value.
    pub value: &'a [u8],
    body: &'a Bytes,
    /// Where key and value start in the body; the key's is meaningless without a key.
    key_at: usize,
    value_at: usize,
    headers: Option<HeadersAt>,
}

impl RecordView<'_> {
    /// The record as an owned value that shares the batch's memory.
    #[inline]
    pub fn to_stored(&self) -> StoredRecord {
        StoredRecord {
            offset: self.offset,
            timestamp: self.timestamp,
            key: self
                .key
                .map(|key| self.body.slice(self.key_at..self.key_at + key.len())),
            value: self
                .body
                .slice(self.value_at..self.value_at + self.value.len()),
            headers: self.headers(),
        }
    }

    /// The headers, in order. Allocates only when there are some.
    pub fn headers(&self) -> Vec<Header> {
        let Some(HeadersAt { mut at, count }) = self.headers else {
            return Vec::new();
        };
        let mut next = || field(self.body, &mut at).map(|bytes| self.body.slice_ref(bytes));
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            // Both were found within the record when the view was made.
            let (Ok(name), Ok(value)) = (next(), next()) else {
                break;
            };
            headers.push(Header { name, value });
        }
        headers
    }
}

/// Where a record's headers are in the body, and how many.
#[derive(Debug, Clone, Copy)]
struct HeadersAt {
    at: usize,
    count: usize,
}

/// Finds the extent of the record at `at`: where its content starts and where it ends.
#[inline]
pub(super) fn extent(body: &[u8], mut at: usize) -> Result<(usize, usize), RecordFault> {
    let len = get_varint(body, &mut at)?;
    match usize::try_from(len) {
        Ok(len) if len <= body.len() - at => Ok((at, at + len)),
        _ => Err(RecordFault::Truncated),
    }
}

/// Decodes the record whose content is `body[start..end]`, as [`extent`] found it. `stamp` turns
/// the timestamp delta into a timestamp, or refuses it.
#[inline]
pub(super) fn decode(
    body: &Bytes,
    start: usize,
    end: usize,
    offset: u64,
    stamp: impl FnOnce(i64) -> Option<i64>,
) -> Result<RecordView<'_>, RecordFault> {
    let bytes = &body[..end];
    let mut at = start;
    let flags = *bytes.get(at).ok_or(RecordFault::Truncated)?;
    at += 1;
    if flags & !(HAS_KEY | HAS_HEADERS) != 0 {
        return Err(RecordFault::Flags(flags));
    }
    let delta = unzigzag(get_varint(bytes, &mut at)?);
    let timestamp = stamp(delta).ok_or(RecordFault::Timestamp)?;
    let (mut key, mut key_at) = (None, 0);
    if flags & HAS_KEY != 0 {
        let bytes = field(bytes, &mut at)?;
        (key, key_at) = (Some(bytes), at - bytes.len());
    }
    let headers = if flags & HAS_HEADERS == 0 {
        None
    } else {
        Some(find_headers(bytes, &mut at)?)
    };
    let value = &bytes[at..];
    Ok(RecordView {
        offset,
        timestamp,
        key,
        value,
        body,
        key_at,
        value_at: at,
        headers,
    })
}

/// Checks the headers at `at` and moves `at` behind them.
fn find_headers(bytes: &[u8], at: &mut usize) -> Result<HeadersAt, RecordFault> {
    let count = get_varint(bytes, at)?;
    // The claim is bounded by what is there before it becomes an allocation.
    let most = ((bytes.len() - *at) / HEADER_LEN_MIN).min(super::RECORD_HEADERS_MAX);
    let count = match usize::try_from(count) {
        Ok(count) if count > 0 && count <= most => count,
        _ => return Err(RecordFault::HeaderCount),
    };
    let found = HeadersAt { at: *at, count };
    for _ in 0..2 * count {
        field(bytes, at)?;
    }
    Ok(found)
}

/// Reads a length and that many bytes.
#[inline]
fn field<'a>(bytes: &'a [u8], at: &mut usize) -> Result<&'a [u8], RecordFault> {
    let (start, stop) = extent(bytes, *at)?;
    *at = stop;
    Ok(&bytes[start..stop])
}
