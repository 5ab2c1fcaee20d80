//! `read`: prints records from an offset or a time on.

use alluvium::format::{StoredBatch, StoredRecord};
use alluvium::{Error, Partition, ReadLimits, Visibility};
use serde::Serialize;

use crate::args::{ReadArgs, RecordFormat};
use crate::failure::{Failure, Outcome};
use crate::output::{Output, complain};
use crate::target::{NamedStore, close, partition, tell_damage};

/// Prints the records that were asked for.
pub(crate) async fn run(target: &NamedStore, args: ReadArgs) -> Result<Outcome, Failure> {
    let (store, report) = target.open_read_only().await?;
    let partition = partition(&store, args.partition).await?;
    let damaged = tell_damage(&report, args.partition);
    let offsets = partition.offsets();
    let from = match (args.from, args.from_timestamp) {
        (Some(offset), _) => offset,
        (None, Some(timestamp)) => {
            // All records are older: there is nothing to print.
            partition
                .offset_for_timestamp(timestamp)
                .await?
                .unwrap_or(offsets.durable())
        }
        (None, None) => offsets.log_start(),
    };
    let mut printer = Printer {
        out: Output::new(),
        format: args.format,
        left: args.count.unwrap_or(u64::MAX),
        skip_damaged: args.skip_damaged,
        damaged,
    };
    let printed = printer.print(&partition, from).await;
    // What was read before an error is good.
    printer.out.flush()?;
    printed?;
    close(&store).await?;
    Ok(printer.outcome())
}

/// Prints records in a format, up to a number of them.
#[derive(Debug)]
pub(crate) struct Printer {
    pub(crate) out: Output,
    pub(crate) format: RecordFormat,
    /// Records that may still be printed.
    pub(crate) left: u64,
    /// Whether to go on behind damage.
    pub(crate) skip_damaged: bool,
    /// Whether damage was found.
    pub(crate) damaged: bool,
}

impl Printer {
    pub(crate) fn outcome(&self) -> Outcome {
        if self.damaged {
            Outcome::Damaged
        } else {
            Outcome::Done
        }
    }

    /// Prints from `from` to the durable end; returns the offset to go on at.
    pub(crate) async fn print(&mut self, partition: &Partition, from: u64) -> Result<u64, Failure> {
        let mut at = from;
        while self.left > 0 {
            let limits = ReadLimits {
                records_max: self.left,
                ..ReadLimits::default()
            };
            let fetched = match partition.read(at, limits, Visibility::Durable).await {
                Ok(fetched) => fetched,
                Err(Error::Corrupt(damage)) if self.skip_damaged => {
                    let Some(behind) = damage.offset_end.filter(|end| *end > at) else {
                        return Err(Error::Corrupt(damage).into());
                    };
                    complain(&format!("alluvium: passed over damage: {damage}"));
                    self.damaged = true;
                    at = behind.min(partition.offsets().durable());
                    continue;
                }
                Err(e) => return Err(e.into()),
            };
            for batch in &fetched.batches {
                self.print_batch(batch)?;
            }
            if fetched.next_offset == at {
                break;
            }
            at = fetched.next_offset;
        }
        Ok(at)
    }

    fn print_batch(&mut self, batch: &StoredBatch) -> Result<(), Failure> {
        if batch.is_opaque() {
            self.left = self
                .left
                .saturating_sub(batch.end_offset() - batch.first_offset());
            return match self.format {
                RecordFormat::Json => self.out.json(&JsonOpaque {
                    offset: batch.base_offset(),
                    end_offset: batch.end_offset(),
                    timestamp: batch.header().base_timestamp,
                    opaque: Text::from(&batch.body()[..]),
                }),
                _ => self.print_value(batch.body()),
            };
        }
        for record in batch.records() {
            let record = record.map_err(|e| {
                Failure::Other(format!("the batch at offset {}: {e}", batch.base_offset()))
            })?;
            match self.format {
                RecordFormat::Json => self.out.json(&JsonRecord::from(&record))?,
                _ => self.print_value(&record.value)?,
            }
            self.left = self.left.saturating_sub(1);
        }
        Ok(())
    }

    fn print_value(&mut self, value: &[u8]) -> Result<(), Failure> {
        if self.format == RecordFormat::LengthPrefixed {
            let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
            self.out.bytes(&len.to_le_bytes())?;
            return self.out.bytes(value);
        }
        self.out.bytes(value)?;
        self.out.bytes(b"\n")
    }
}

/// Bytes in JSON: a string where they are UTF-8, otherwise an object with their hexadecimal form.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Text {
    Utf8(String),
    Hex { hex: String },
}

impl From<&[u8]> for Text {
    fn from(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::Utf8(text.to_owned()),
            Err(_) => Self::Hex {
                hex: hexadecimal(bytes),
            },
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: [char; 16] = [
        '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', 'a', 'b', 'c', 'd', 'e', 'f',
    ];
    let mut out = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
    out
}

#[derive(Debug, Serialize)]
struct JsonRecord {
    offset: u64,
    timestamp: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<Text>,
    value: Text,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    headers: Vec<JsonHeader>,
}

#[derive(Debug, Serialize)]
struct JsonHeader {
    name: Text,
    value: Text,
}

#[derive(Debug, Serialize)]
struct JsonOpaque {
    offset: u64,
    end_offset: u64,
    timestamp: i64,
    opaque: Text,
}

impl From<&StoredRecord> for JsonRecord {
    fn from(record: &StoredRecord) -> Self {
        let header = |h: &alluvium::format::Header| JsonHeader {
            name: Text::from(h.name.as_ref()),
            value: Text::from(h.value.as_ref()),
        };
        Self {
            offset: record.offset,
            timestamp: record.timestamp,
            key: record.key.as_ref().map(|key| Text::from(key.as_ref())),
            value: Text::from(record.value.as_ref()),
            headers: record.headers.iter().map(header).collect(),
        }
    }
}
