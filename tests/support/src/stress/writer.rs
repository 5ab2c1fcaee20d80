//! The process that is taken away: producers and a keeper per partition, until it ends.

use std::cell::{Cell, RefCell};
use std::env;
use std::io::Write as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use alluvium_backends::BackendKind;
use alluvium_backends::layer::Layered;
use alluvium_core::{
    Ack, AppendOptions, Appended, Error, Partition, ReadLimits, Result, Visibility,
};
use futures_util::future::{Either, LocalBoxFuture, join_all, select};

use super::{Event, Late, Omit, Rng, partition_id};
use crate::promises::{BatchId, BatchShape};

/// What the writer does with the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behaviour {
    /// Everything as it should be.
    Sound,
    /// Opens the store, which recovers it, and closes it again.
    OpenOnly,
    /// Negative control: acknowledgements are reported before the write, at every level, and the
    /// write is [`Late`].
    EarlyAck,
    /// Negative control: durable writes are plain ones.
    PlainWrites,
    /// Negative control: no syncs of files and directories.
    NoSyncs,
}

const BEHAVIOURS: [(&str, Behaviour); 5] = [
    ("sound", Behaviour::Sound),
    ("open-only", Behaviour::OpenOnly),
    ("early-ack", Behaviour::EarlyAck),
    ("plain-writes", Behaviour::PlainWrites),
    ("no-syncs", Behaviour::NoSyncs),
];

/// Where the numbering of a partition's batches goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotPlan {
    /// Number of the partition's [`Life`](crate::promises::Life).
    pub life: u32,
    /// Batches that were submitted to it before.
    pub submitted: u32,
}

/// What a writing process is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writer {
    /// The store's directory.
    pub dir: PathBuf,
    /// What it runs on.
    pub backend: BackendKind,
    /// Decides the settings: see [`configure`](super::configure).
    pub store_seed: u64,
    /// Decides the workload.
    pub seed: u64,
    /// What it does with it.
    pub behaviour: Behaviour,
    /// Rounds of every producer, after which it closes the store; 0 for no end.
    pub rounds: u64,
    /// The partitions.
    pub slots: Vec<SlotPlan>,
}

/// By how much the writes of [`Behaviour::EarlyAck`] come after what was said of them.
const LATE: Duration = Duration::from_millis(3);
/// The variable that makes a process a writer.
const VARIABLE: &str = "ALLUVIUM_TEST_WRITER";

impl Writer {
    /// The variable of the environment that hands this to a process.
    pub fn to_environment(&self) -> (&'static str, String) {
        let behaviour = BEHAVIOURS.iter().find(|(_, b)| *b == self.behaviour);
        let mut fields = vec![
            behaviour.map_or("", |(name, _)| name).to_owned(),
            self.backend.name().to_owned(),
            self.store_seed.to_string(),
            self.seed.to_string(),
            self.rounds.to_string(),
        ];
        for slot in &self.slots {
            fields.push(format!("{}.{}", slot.life, slot.submitted));
        }
        fields.push(self.dir.display().to_string());
        (VARIABLE, fields.join("|"))
    }

    /// What this process was told; `None` when it is no writer.
    ///
    /// # Panics
    /// When the variable is there and says nothing sensible.
    pub fn from_environment() -> Option<Self> {
        env::var(VARIABLE).ok().map(|text| Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let fields: Vec<&str> = text.split('|').collect();
        let (dir, fields) = fields.split_last().unwrap();
        let (behaviour, fields) = fields.split_first().unwrap();
        let number = |field: &str| field.parse::<u64>().unwrap();
        let slots = fields[4..].iter().map(|field| {
            let (life, submitted) = field.split_once('.').unwrap();
            SlotPlan {
                life: life.parse().unwrap(),
                submitted: submitted.parse().unwrap(),
            }
        });
        Self {
            dir: PathBuf::from(dir),
            backend: fields[0].parse().unwrap(),
            store_seed: number(fields[1]),
            seed: number(fields[2]),
            behaviour: BEHAVIOURS.iter().find(|(n, _)| n == behaviour).unwrap().1,
            rounds: number(fields[3]),
            slots: slots.collect(),
        }
    }

    /// Does it, and says every step to standard output.
    ///
    /// # Panics
    /// When there is no runtime.
    pub fn run(self) {
        // The test harness has begun a line of its own, which would swallow the first step.
        say_line("");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        if let Err(e) = runtime.block_on(self.write()) {
            say(&Event::Failed {
                text: e.to_string(),
            });
        }
    }

    async fn write(self) -> Result<()> {
        let omit = Omit {
            durable_writes: self.behaviour == Behaviour::PlainWrites,
            syncs: self.behaviour == Behaviour::NoSyncs,
            ..Omit::default()
        };
        let (store, _) = match self.behaviour {
            Behaviour::PlainWrites | Behaviour::NoSyncs => {
                let careless = Layered::new(self.backend, omit);
                super::open(&self.dir, self.store_seed, careless, |_| {}).await?
            }
            Behaviour::EarlyAck => {
                let late = Layered::new(self.backend, Late(LATE));
                super::open(&self.dir, self.store_seed, late, |_| {}).await?
            }
            Behaviour::Sound | Behaviour::OpenOnly => {
                super::open(&self.dir, self.store_seed, self.backend, |_| {}).await?
            }
        };
        say(&Event::Opened);
        if self.behaviour != Behaviour::OpenOnly {
            let mut rng = Rng(self.seed);
            let mut tasks: Vec<LocalBoxFuture<'_, ()>> = Vec::new();
            for (slot, plan) in self.slots.iter().enumerate() {
                let partition = store.partition_or_create(partition_id(slot)).await?;
                say(&Event::Created { slot });
                let log = Rc::new(Log {
                    slot,
                    partition,
                    early: self.behaviour == Behaviour::EarlyAck,
                    next: Cell::new(u64::from(plan.life) << 32 | u64::from(plan.submitted)),
                    cuts: Cell::new(0),
                    over: Cell::new(false),
                    failure: RefCell::new(None),
                });
                let producers: Vec<_> = (0..PRODUCERS)
                    .map(|client| produce(Rc::clone(&log), client, rng.fork(), self.rounds))
                    .collect();
                let (keeper_log, rng) = (Rc::clone(&log), rng.fork());
                tasks.push(Box::pin(async move {
                    let keeper = keep(keeper_log, rng);
                    let all = join_all(producers);
                    if let Either::Left((_, keeper)) = select(Box::pin(all), Box::pin(keeper)).await
                    {
                        // A truncation under way has to be answered.
                        log.over.set(true);
                        keeper.await;
                    }
                }));
            }
            join_all(tasks).await;
        }
        store.close(Duration::from_secs(60)).await?;
        // Whoever only opened it has promised nothing about what others had accepted.
        if self.behaviour != Behaviour::OpenOnly {
            say(&Event::Closed);
        }
        Ok(())
    }
}

const PRODUCERS: u32 = 3;
/// Records that a keeper leaves in a log, roughly.
const RECORDS_KEPT: u64 = 700;

/// Writes one line with one call: the killer sees it whole or not at all.
fn say(event: &Event) {
    say_line(&event.to_string());
}

fn say_line(text: &str) {
    let line = format!("{text}\n");
    if std::io::stdout().lock().write_all(line.as_bytes()).is_err() {
        // Nobody listens any more.
        std::process::exit(3);
    }
}

/// One partition in the writer's hands.
struct Log {
    slot: usize,
    partition: Partition,
    early: bool,
    next: Cell<u64>,
    /// Truncations begun and ended.
    cuts: Cell<u64>,
    over: Cell<bool>,
    failure: RefCell<Option<Error>>,
}

impl Log {
    fn submit(&self, client: u32, shape: BatchShape) -> u64 {
        let id = self.next.get();
        self.next.set(id + 1);
        let (slot, opaque) = (self.slot, shape.opaque);
        let (count, record_bytes) = (shape.count, shape.record_bytes);
        say(&Event::Submit {
            slot,
            client,
            count,
            record_bytes,
            opaque,
        });
        id
    }

    /// Says what became of a batch that was asked for at `level`.
    fn answered(&self, id: u64, level: Ack, cuts: u64, result: Result<Appended>) {
        let slot = self.slot;
        match result {
            Ok(appended) => {
                let Appended {
                    base_offset: base,
                    count,
                    ..
                } = appended;
                say(&Event::Acknowledged {
                    slot,
                    id,
                    level,
                    base,
                    count,
                });
                let offsets = self.partition.offsets();
                let reached = match level {
                    Ack::Accepted => offsets.log_end(),
                    Ack::Written => offsets.written(),
                    Ack::Durable => offsets.durable(),
                };
                let undisturbed = cuts.is_multiple_of(2) && cuts == self.cuts.get() && !self.early;
                if undisturbed && level > Ack::Accepted && reached < appended.end_offset() {
                    let text = format!("P2: {appended:?} is acknowledged, published {offsets:?}");
                    say(&Event::Violation { text });
                }
            }
            Err(e) => {
                if e.is_not_applied() {
                    say(&Event::Refused { slot, id });
                }
                self.failed(e);
            }
        }
    }

    fn failed(&self, error: Error) {
        if matches!(error, Error::Full { .. } | Error::WrongOffset { .. }) {
            return;
        }
        if matches!(error, Error::NoSpace { .. }) {
            // Heals by itself.
            say(&Event::Failed {
                text: error.to_string(),
            });
            return;
        }
        let mut failure = self.failure.borrow_mut();
        if failure.is_none() {
            say(&Event::Failed {
                text: error.to_string(),
            });
            *failure = Some(error);
        }
    }

    fn is_over(&self) -> bool {
        self.over.get() || self.failure.borrow().is_some()
    }
}

fn level(rng: &mut Rng) -> Ack {
    match rng.range(0, 5) {
        0 => Ack::Accepted,
        1 => Ack::Written,
        _ => Ack::Durable,
    }
}

fn shape(rng: &mut Rng) -> BatchShape {
    let bytes_max = [60, 200, 900, 3500][rng.size(0, 3)];
    BatchShape {
        count: u32::try_from(rng.range(1, 4)).unwrap_or(1),
        record_bytes: rng.size(16, bytes_max),
        opaque: rng.percent(20),
    }
}

async fn produce(log: Rc<Log>, client: u32, mut rng: Rng, rounds: u64) {
    let mut round = 0;
    while !log.is_over() && (rounds == 0 || round < rounds) {
        round += 1;
        let mut waiting = Vec::new();
        for _ in 0..rng.range(1, 6) {
            let (shape, wanted) = (shape(&mut rng), level(&mut rng));
            let cuts = log.cuts.get();
            let id = log.submit(client, shape);
            let asked = if log.early { Ack::Accepted } else { wanted };
            let batch = shape.encode(BatchId(id));
            match log.partition.try_append(batch, AppendOptions::from(asked)) {
                Err(refused) => log.answered(id, wanted, cuts, Err(refused.error)),
                // The caller gives up; the append takes place all the same.
                Ok(answer) if rng.percent(4) => drop(answer),
                Ok(answer) => waiting.push((id, wanted, cuts, answer)),
            }
        }
        for (id, wanted, cuts, answer) in waiting {
            log.answered(id, wanted, cuts, answer.await);
        }
        match rng.range(0, 29) {
            // Long enough for a seal.
            0 => pause(12_000).await,
            1..=4 => pause(rng.range(1, 1500)).await,
            _ => tokio::task::yield_now().await,
        }
    }
}

async fn pause(micros: u64) {
    tokio::time::sleep(Duration::from_micros(micros)).await;
}

/// Trims, truncates, syncs and reads, one after the other.
async fn keep(log: Rc<Log>, mut rng: Rng) {
    let (slot, p) = (log.slot, &log.partition);
    while !log.is_over() {
        let offsets = p.offsets();
        let len = offsets.log_end() - offsets.log_start();
        let result = match rng.range(0, 9) {
            _ if len > RECORDS_KEPT => {
                trim(&log, offsets.log_end() - rng.range(0, RECORDS_KEPT / 2)).await
            }
            0 => trim(&log, rng.range(offsets.log_start(), offsets.log_end())).await,
            1 => {
                let low = offsets.log_end().saturating_sub(20);
                let to = rng.range(low.max(offsets.log_start()), offsets.log_end());
                truncate(&log, to).await
            }
            2..=4 => p.sync().await.map(|end| {
                say(&Event::Durable { slot, end });
            }),
            _ => read(&log, rng.range(offsets.log_start(), offsets.durable())).await,
        };
        match result {
            Ok(()) | Err(Error::OutOfRange { .. } | Error::InsideOpaqueBatch { .. }) => {}
            Err(e) => log.failed(e),
        }
        pause(rng.range(300, 6000)).await;
    }
    if log.failure.borrow().is_some() {
        let from = p.offsets().log_start();
        if let Err(e @ Error::PartitionFailed { .. }) = read(&log, from).await {
            let text = format!("P8: durable data of a failed partition: {e}");
            say(&Event::Violation { text });
        }
    }
}

async fn trim(log: &Log, to: u64) -> Result<()> {
    let slot = log.slot;
    say(&Event::TrimAsked { slot, to });
    log.partition.trim_before(to).await?;
    say(&Event::Trimmed { slot, to });
    Ok(())
}

async fn truncate(log: &Log, to: u64) -> Result<()> {
    let slot = log.slot;
    say(&Event::CutAsked { slot, to });
    log.cuts.set(log.cuts.get() + 1);
    let result = log.partition.truncate_to(to).await;
    log.cuts.set(log.cuts.get() + 1);
    match &result {
        Ok(()) => say(&Event::Cut { slot }),
        Err(e) if e.is_not_applied() => say(&Event::CutRefused { slot }),
        Err(_) => {}
    }
    result
}

/// What a durable reader has seen is durable from then on.
async fn read(log: &Log, from: u64) -> Result<()> {
    let limits = ReadLimits::default();
    let fetched = log
        .partition
        .read(from, limits, Visibility::Durable)
        .await?;
    let slot = log.slot;
    if fetched.next_offset > fetched.durable {
        let text = format!(
            "P2: a durable read went to {} of {}",
            fetched.next_offset, fetched.durable
        );
        say(&Event::Violation { text });
    }
    let end = fetched.durable;
    say(&Event::Durable { slot, end });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_told_what_was_meant() {
        for (_, behaviour) in BEHAVIOURS {
            let writer = Writer {
                dir: PathBuf::from("/some/where"),
                backend: BackendKind::Tokio,
                store_seed: 3,
                seed: u64::MAX,
                behaviour,
                rounds: 9,
                slots: vec![
                    SlotPlan {
                        life: 1,
                        submitted: 77,
                    },
                    SlotPlan {
                        life: 2,
                        submitted: 0,
                    },
                ],
            };
            assert_eq!(Writer::parse(&writer.to_environment().1), writer);
        }
    }
}
