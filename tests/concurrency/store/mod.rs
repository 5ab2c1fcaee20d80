//! Whole stores under shuttle: callers and shards as threads of a scheduler that draws who goes on.
//!
//! Everything between a caller and its shard is the engine's own: mailbox, permits, replies, the
//! shard's turn, drivers, group commit, the published tail. Only the backend is a model. Switches
//! come at each of our own atomics and locks, and whenever something wakes somebody. tokio's
//! channels, one-shots, watches and semaphores are the real ones, each call of which is one step
//! here; their insides are checked in their own project.
//!
//! A hang is found as a deadlock. `SECONDS=600` runs each model for so long (as a rule for a few
//! seconds) under each of two schedulers. A failure prints its schedule, which
//! `shuttle::replay` takes.

mod disk;
mod machine;
mod pool;

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use futures_util::StreamExt;
use shuttle::rand::{Rng, thread_rng};
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::thread::{self, JoinHandle};

use crate::config::{Shards, StoreConfig};
use crate::error::Error;
use crate::format::Batch;
use crate::{Ack, Partition, ReadLimits, Store, Visibility};
use disk::Disk;
use machine::{Machine, block_on};

const DIR: &str = "/store";

/// Longer than any model lives.
const LONG: Duration = Duration::from_secs(3600);

/// Seconds for each model and scheduler.
const SECONDS_DEFAULT: u64 = 3;

/// Runs a model under as many schedules as there is time for.
fn check(model: fn()) {
    let seconds = std::env::var("SECONDS").map_or(SECONDS_DEFAULT, |s| s.parse().unwrap());
    let mut config = shuttle::Config::new();
    // Opening a store takes more than the default has.
    config.stack_size = 1 << 20;
    config.max_time = Some(Duration::from_secs(seconds));
    config.silence_warnings = true;
    let random = RandomScheduler::new(usize::MAX);
    let random = shuttle::Runner::new(random, config.clone()).run(model);
    // Few switches at places drawn by lot: deep bugs of few steps.
    let few = PctScheduler::new(3, usize::MAX);
    let few = shuttle::Runner::new(few, config).run(model);
    eprintln!("{random} schedules drawn step by step, {few} of few switches");
    assert!(random > 10 && few > 10, "too slow to find anything");
}

/// Few places everywhere, so that callers wait for each other.
fn tiny(config: &mut StoreConfig) {
    config.shards = Shards::Count(1);
    config.segment_bytes = 16 << 10;
    config.group_bytes_max = 4096;
    config.group_bytes_min = 0;
    config.writes_in_flight_max = 2;
    config.mailbox_requests_max = 1;
    config.mailbox_bytes_max = 4096;
    config.tail_cache_bytes_max = 8 << 10;
    config.read_chunk_bytes = 4096;
    config.spare_segments_max = 0;
    config.preinitialise = false;
    config.direct_io = false;
    config.seal_after = LONG;
    config.fence_timeout = Duration::from_millis(1);
}

fn machine() -> Machine {
    Machine::new(Disk::new(Path::new("/")))
}

fn try_open(machine: &Machine, shards: usize) -> Result<(Store, Partition), Error> {
    block_on(async {
        let (store, _) = Store::builder(DIR)
            .configure(tiny)
            .configure(|c| c.shards = Shards::Count(shards))
            .backend(machine.clone())
            .open()
            .await?;
        let partition = store.partition_or_create(1).await?;
        Ok((store, partition))
    })
}

fn open(machine: &Machine) -> (Store, Partition) {
    try_open(machine, 1).unwrap()
}

fn value(caller: usize, round: usize) -> String {
    format!("<{caller}:{round}>")
}

fn batch(value: &str) -> Batch {
    Batch::from_values([value.as_bytes()]).unwrap()
}

/// What came of appends, one after the other.
#[derive(Debug, Default)]
struct Outcome {
    /// Base offsets and values.
    acknowledged: Vec<(u64, String)>,
    errors: Vec<Error>,
}

/// A caller that appends at changing levels, and looks at what each answer is worth.
fn appender(partition: &Partition, disk: &Arc<Disk>, caller: usize) -> JoinHandle<Outcome> {
    let (partition, disk) = (partition.clone(), Arc::clone(disk));
    thread::spawn(move || {
        let mut outcome = Outcome::default();
        for round in 0..2 + caller {
            let level = [Ack::Durable, Ack::Written, Ack::Accepted][(caller + round) % 3];
            let value = value(caller, round);
            match block_on(partition.append_with(batch(&value), level)) {
                Ok(appended) => {
                    let offsets = partition.offsets();
                    let reached = match level {
                        Ack::Accepted => offsets.log_end(),
                        Ack::Written => offsets.written(),
                        Ack::Durable => offsets.durable(),
                    };
                    assert!(reached >= appended.end_offset(), "{appended:?} {offsets:?}");
                    outcome.acknowledged.push((appended.base_offset, value));
                    if level == Ack::Durable {
                        // With everything before it, whatever the level of that was.
                        for (_, value) in &outcome.acknowledged {
                            let durable = disk.is_durable(value.as_bytes());
                            assert!(durable, "{value} is not on the disk");
                        }
                    }
                }
                Err(e) => outcome.errors.push(e),
            }
        }
        outcome
    })
}

/// Everything that can be read, by offset.
fn read_all(partition: &Partition) -> Result<Vec<(u64, String)>, Error> {
    block_on(async {
        let mut found = vec![];
        let mut at = partition.offsets().log_start();
        loop {
            let read = partition.read(at, ReadLimits::default(), Visibility::Durable);
            let fetched = read.await?;
            if fetched.is_empty() {
                return Ok(found);
            }
            for record in fetched.records() {
                let record = record.unwrap();
                let value = String::from_utf8(record.value.to_vec()).unwrap();
                found.push((record.offset, value));
            }
            at = fetched.next_offset;
        }
    })
}

#[test]
fn appends_beside_a_close_are_answered_and_are_worth_what_was_said() {
    check(|| {
        let machine = machine();
        let shards = thread_rng().gen_range(1..3);
        let (store, partition) = try_open(&machine, shards).unwrap();
        let callers = [0, 1].map(|n| appender(&partition, &machine.disk, n));
        let other = store.clone();
        let closes_too = thread::spawn(move || block_on(other.close(LONG)));
        assert_eq!(block_on(store.close(LONG)), Ok(()));
        assert_eq!(closes_too.join().unwrap(), Ok(()));
        for caller in callers {
            for error in caller.join().unwrap().errors {
                let expected = matches!(error, Error::Closed | Error::ClosedInFlight);
                assert!(expected, "{error:?} of an orderly close");
            }
        }
        machine.join();
    });
}

#[test]
fn a_shard_that_gives_up_leaves_nobody_waiting() {
    check(|| {
        let mut machine = machine();
        machine.gives_up_within = Some(120);
        let (store, partition) = match try_open(&machine, 1) {
            Ok(opened) => opened,
            Err(error) => {
                assert_eq!(error, Error::ShardDead { shard: 0 });
                return machine.join();
            }
        };
        let callers = [0, 1].map(|n| appender(&partition, &machine.disk, n));
        let waits = partition.clone();
        let waits = thread::spawn(move || block_on(waits.wait_for(u64::MAX)));
        for caller in callers {
            for error in caller.join().unwrap().errors {
                assert_eq!(error, Error::ShardDead { shard: 0 });
            }
        }
        // One that has not given up yet ends here.
        let closed = block_on(store.close(LONG));
        assert_eq!(closed, Ok(()));
        assert!(waits.join().unwrap().is_err());
        machine.join();
    });
}

#[test]
fn a_write_that_fails_is_told_to_all_and_the_partition_reopens_with_what_was_durable() {
    check(|| {
        let machine = machine();
        let (store, partition) = open(&machine);
        let left = &machine.disk.writes_left;
        left.store(thread_rng().gen_range(0..4), Ordering::Relaxed);
        let callers = [0, 1].map(|n| appender(&partition, &machine.disk, n));
        let outcomes = callers.map(|caller| caller.join().unwrap());
        left.store(usize::MAX, Ordering::Relaxed);
        for error in outcomes.iter().flat_map(|o| &o.errors) {
            let expected = matches!(
                error,
                Error::OutcomeUnknown { .. } | Error::PartitionFailed { .. }
            );
            assert!(expected, "{error:?}");
        }
        block_on(partition.reopen()).unwrap();
        let found = read_all(&partition).unwrap();
        let durable = outcomes.iter().flat_map(|o| &o.acknowledged);
        for (offset, value) in durable.filter(|(_, v)| machine.disk.is_durable(v.as_bytes())) {
            assert!(
                found.contains(&(*offset, value.clone())),
                "{value}: {found:?}"
            );
        }
        block_on(partition.append(batch("again"))).unwrap();
        assert_eq!(block_on(store.close(LONG)), Ok(()));
        machine.join();
    });
}

#[test]
fn a_subscriber_is_woken_for_every_record_and_for_the_end() {
    check(|| {
        let machine = machine();
        let (store, partition) = open(&machine);
        let subscription = partition.subscribe(0);
        let seen = Arc::new(AtomicUsize::new(0));
        let told = Arc::clone(&seen);
        let subscriber = thread::spawn(move || {
            block_on(async {
                let mut subscription = pin!(subscription);
                let mut seen = vec![];
                while let Some(fetched) = subscription.next().await {
                    let fetched = fetched.unwrap();
                    seen.extend(fetched.records().map(|r| r.unwrap().offset));
                    told.store(seen.len(), Ordering::Relaxed);
                }
                seen
            })
        });
        let callers = [0, 1].map(|n| appender(&partition, &machine.disk, n));
        for caller in callers {
            assert_eq!(caller.join().unwrap().errors, []);
        }
        block_on(partition.sync()).unwrap();
        // Nothing else happens until the subscriber has seen it all: only its wake is left.
        while seen.load(Ordering::Relaxed) < 5 {
            thread::yield_now();
        }
        assert_eq!(block_on(store.close(LONG)), Ok(()));
        assert_eq!(subscriber.join().unwrap(), [0, 1, 2, 3, 4]);
        machine.join();
    });
}

#[test]
fn readers_beside_a_truncation_see_the_log_before_it_or_after_it() {
    check(|| {
        let machine = machine();
        let (store, partition) = open(&machine);
        for n in 0..3 {
            block_on(partition.append(batch(&format!("old {n}")))).unwrap();
        }
        let reads = partition.clone();
        let reader = thread::spawn(move || {
            let mut found = vec![];
            for _ in 0..2 {
                // Truncated under the reader.
                match read_all(&reads) {
                    Ok(records) => found = records,
                    Err(Error::OutOfRange { .. }) => continue,
                    Err(e) => panic!("{e}"),
                }
                for (offset, value) in &found {
                    let old = *value == format!("old {offset}");
                    assert!(old || *offset > 0 && value == "new", "{found:?}");
                }
            }
        });
        block_on(partition.truncate_to(1)).unwrap();
        let found = read_all(&partition).unwrap();
        assert_eq!(
            found,
            [(0, "old 0".to_owned())],
            "the truncation was answered"
        );
        block_on(partition.append(batch("new"))).unwrap();
        let found = read_all(&partition).unwrap();
        assert_eq!(found[1..], [(1, "new".to_owned())]);
        reader.join().unwrap();
        assert_eq!(block_on(store.close(LONG)), Ok(()));
        machine.join();
    });
}

#[test]
fn dropped_futures_and_handles_end_the_shard_and_give_their_room_back() {
    check(|| {
        let machine = machine();
        let (store, partition) = open(&machine);
        let callers = [0, 1].map(|n| {
            let partition = partition.clone();
            thread::spawn(move || {
                block_on(async {
                    let polls = thread_rng().gen_range(1..4);
                    let append = partition.begin_append(batch(&value(n, 0)), Ack::Durable);
                    if let Some(pending) = polled(append, polls).await {
                        let polls = thread_rng().gen_range(0..3);
                        polled(pending.unwrap().acknowledged(), polls).await;
                    }
                    // As many as there is room for, and more: what the dropped took came back.
                    for round in 1..4 {
                        partition.append(batch(&value(n, round))).await.unwrap();
                    }
                });
            })
        });
        for caller in callers {
            caller.join().unwrap();
        }
        drop((store, partition));
        machine.join();
    });
}

/// Polls a future at most so many times, and drops it.
async fn polled<T>(future: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut future = pin!(future);
    let mut left = polls;
    std::future::poll_fn(|cx| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        let polled = future.as_mut().poll(cx);
        if polled.is_pending() && left == 0 {
            return Poll::Ready(None);
        }
        polled.map(Some)
    })
    .await
}
