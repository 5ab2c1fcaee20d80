//! `append`: records from a stream into a partition, several batches in flight.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::future::poll_fn;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::{Duration, Instant};

use alluvium::format::{Batch, BatchBuilder};
use alluvium::{Ack, AppendOptions, Appended, Error, InspectDetail, InspectRequest, Partition};
use indicatif::ProgressBar;

use crate::args::AppendArgs;
use crate::failure::{Failure, Outcome};
use crate::input::{Chunk, Input};
use crate::output::{Output, counted, grouped, progress, size};
use crate::target::{NamedStore, close};

/// Without more input for so long, a batch that is not full is sent.
const LINGER: Duration = Duration::from_millis(20);
/// What a record takes beside its value, at most.
const RECORD_OVERHEAD_BYTES: usize = 32;

/// Appends everything, closes the store, and says what came of it.
pub(crate) async fn run(target: &NamedStore, args: AppendArgs) -> Result<Outcome, Failure> {
    let input = Input::start(args.file.as_deref(), args.framing())?;
    let segment_bytes = args.segment_bytes.as_u64();
    let settings = |builder: alluvium::StoreBuilder| {
        builder.configure(|config| {
            config.segment_bytes = segment_bytes;
        })
    };
    let (store, _) = target.open(settings).await?;
    let partition = store.partition_or_create(args.partition).await?;
    let skip = if args.resume {
        records_held(&partition).await?
    } else {
        0
    };
    let mut appender = Appender {
        acked_to: args
            .acked_to
            .as_deref()
            .map(AckedFile::create)
            .transpose()?,
        bar: progress(input.len),
        builder: BatchBuilder::new(),
        pending: VecDeque::new(),
        start: partition.offsets().log_end(),
        acked_end: partition.offsets().log_end(),
        partition,
        options: AppendOptions::from(Ack::from(args.ack)),
        batch_records: args.batch,
        inflight: args.inflight as usize,
        skip,
        skipped: 0,
        records: 0,
        bytes: 0,
    };
    let began = Instant::now();
    appender.append_all(input).await?;
    let elapsed = began.elapsed();
    appender.bar.finish_and_clear();
    close(&store).await?;
    appender.tell(args.partition, elapsed)?;
    Ok(Outcome::Done)
}

/// How many records of the input the partition holds already.
async fn records_held(partition: &Partition) -> Result<u64, Failure> {
    let request = InspectRequest {
        detail: InspectDetail::Segments,
        ..InspectRequest::default()
    };
    let segments = partition.inspect(request).await?.segments;
    for pair in segments.windows(2) {
        let [before, after] = pair else { continue };
        if before.end_offset != after.header.base_offset {
            return Err(Failure::Other(format!(
                "partition {}: cannot resume: offsets {} to {} were skipped after a crash, so the \
                 log end does not count records; append the rest of the input without --resume",
                partition.id(),
                before.end_offset,
                after.header.base_offset,
            )));
        }
    }
    Ok(partition.offsets().log_end())
}

type Acknowledgement = Pin<Box<dyn Future<Output = Result<Appended, Error>>>>;

struct Appender {
    partition: Partition,
    options: AppendOptions,
    batch_records: u32,
    inflight: usize,
    /// Records of the input still to be skipped.
    skip: u64,
    skipped: u64,
    builder: BatchBuilder,
    /// In order of submission, which is the order of acknowledgement.
    pending: VecDeque<Acknowledgement>,
    acked_to: Option<AckedFile>,
    bar: ProgressBar,
    start: u64,
    acked_end: u64,
    records: u64,
    bytes: u64,
}

impl Appender {
    async fn append_all(&mut self, mut input: Input) -> Result<(), Failure> {
        loop {
            let idle = !self.builder.is_empty();
            tokio::select! {
                biased;
                acked = next_acknowledged(&mut self.pending), if !self.pending.is_empty() => {
                    self.acknowledged(acked?)?;
                }
                chunk = input.next() => match chunk {
                    Some(chunk) => self.take(chunk?).await?,
                    None => break,
                },
                () = tokio::time::sleep(LINGER), if idle => self.flush().await?,
            }
        }
        self.flush().await?;
        while !self.pending.is_empty() {
            self.wait_for_oldest().await?;
        }
        Ok(())
    }

    async fn take(&mut self, chunk: Chunk) -> Result<(), Failure> {
        for record in chunk.records {
            if self.skip > 0 {
                self.skip -= 1;
                self.skipped += 1;
                continue;
            }
            let needed = self.builder.len_bytes() + record.len() + RECORD_OVERHEAD_BYTES;
            if needed > self.partition.batch_bytes_max() && !self.builder.is_empty() {
                self.flush().await?;
            }
            self.builder
                .push_value(&record)
                .map_err(|e| self.refused(&e))?;
            self.bytes += record.len() as u64;
            if self.builder.record_count() >= self.batch_records {
                self.flush().await?;
            }
        }
        self.bar.inc(chunk.bytes);
        Ok(())
    }

    /// Sends what was collected as one batch.
    async fn flush(&mut self) -> Result<(), Failure> {
        if self.builder.is_empty() {
            return Ok(());
        }
        let batch = std::mem::take(&mut self.builder)
            .finish()
            .map_err(|e| self.refused(&e))?;
        self.records += u64::from(batch.record_count());
        while self.pending.len() >= self.inflight {
            self.wait_for_oldest().await?;
        }
        self.submit(batch).await
    }

    async fn submit(&mut self, mut batch: Batch) -> Result<(), Failure> {
        loop {
            match self.partition.try_append(batch, self.options) {
                Ok(acknowledgement) => {
                    self.pending.push_back(Box::pin(acknowledgement));
                    return Ok(());
                }
                Err(refused) if matches!(refused.error, Error::Full { .. }) => {
                    batch = refused.batch;
                    if self.pending.is_empty() {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    } else {
                        self.wait_for_oldest().await?;
                    }
                }
                Err(refused) => return Err(self.refused(&refused.error)),
            }
        }
    }

    async fn wait_for_oldest(&mut self) -> Result<(), Failure> {
        let acked = next_acknowledged(&mut self.pending).await?;
        self.acknowledged(acked)
    }

    fn acknowledged(&mut self, appended: Appended) -> Result<(), Failure> {
        self.acked_end = appended.end_offset();
        match &self.acked_to {
            Some(file) => file.write(self.acked_end),
            None => Ok(()),
        }
    }

    fn refused(&self, error: &dyn std::error::Error) -> Failure {
        Failure::Other(format!(
            "partition {}: a record at or before number {} of the input cannot be appended: \
             {error}; everything below offset {} is acknowledged",
            self.partition.id(),
            self.skipped + self.records + u64::from(self.builder.record_count()),
            self.acked_end,
        ))
    }

    fn tell(&self, id: u64, elapsed: Duration) -> Result<(), Failure> {
        let mut out = Output::new();
        if self.skipped > 0 {
            let skipped = counted(self.skipped, "record");
            out.line(format_args!(
                "skipped {skipped} that the partition holds already"
            ))?;
        }
        let millis = u64::try_from(elapsed.as_millis())
            .unwrap_or(u64::MAX)
            .max(1);
        out.line(format_args!(
            "appended {} ({}) in {:.3} s: {} records/s, {}/s",
            counted(self.records, "record"),
            size(self.bytes),
            elapsed.as_secs_f64(),
            grouped(self.records.saturating_mul(1000) / millis),
            size(self.bytes.saturating_mul(1000) / millis),
        ))?;
        out.line(format_args!(
            "partition {id}: offsets [{}, {}) acknowledged as {}, log end {}",
            self.start,
            self.acked_end,
            level_name(self.options.ack),
            self.partition.offsets().log_end(),
        ))?;
        out.flush()
    }
}

fn level_name(level: Ack) -> &'static str {
    match level {
        Ack::Accepted => "accepted",
        Ack::Written => "written",
        Ack::Durable => "durable",
    }
}

async fn next_acknowledged(pending: &mut VecDeque<Acknowledgement>) -> Result<Appended, Failure> {
    let result = poll_fn(|cx| match pending.front_mut() {
        Some(oldest) => oldest.as_mut().poll(cx),
        None => std::task::Poll::Pending,
    })
    .await;
    pending.pop_front();
    Ok(result?)
}

/// The file that holds the acknowledged end offset: 20 digits and a newline, written in place.
struct AckedFile {
    file: File,
    path: PathBuf,
}

impl AckedFile {
    fn create(path: &Path) -> Result<Self, Failure> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).open(path);
        let file = file.map_err(Failure::io("create", path))?;
        Ok(Self {
            file,
            path: path.to_path_buf(),
        })
    }

    fn write(&self, end: u64) -> Result<(), Failure> {
        let line = format!("{end:020}\n");
        self.file
            .write_all_at(line.as_bytes(), 0)
            .map_err(Failure::io("write", &self.path))
    }
}
