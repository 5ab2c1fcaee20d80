//! A partition against a model: a plain vector of values, through any sequence of operations and
//! crashes, on the simulated machine.
//!
//! The model keeps what was submitted at each offset. After a crash the log may end anywhere
//! between what was promised and what was submitted; whatever it shows is what was submitted
//! there. Where records were lost that somebody may have seen, their offsets stay empty.

#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

mod model;

use std::time::Duration;

use alluvium::backends::sim::{Sim, SimConfig, SimFactory};
use alluvium::{Ack, Partition, ReadLimits, Store, Visibility};
use alluvium_testkit::logs::small;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

use model::Model;

/// One step. Places in the log are given as a share of it, so that shrinking keeps them valid.
#[derive(Debug, Clone)]
enum Op {
    /// Batches of these sizes at this level; with `waits`, acknowledged before the next step.
    Append {
        sizes: Vec<u8>,
        level: Ack,
        waits: bool,
    },
    Read {
        at: u8,
        records: u8,
        visible: bool,
    },
    Trim(u8),
    Truncate(u8),
    Sync,
    Idle,
    Reopen,
    Kill,
    PowerLoss,
}

fn op() -> impl Strategy<Value = Op> {
    let level = prop_oneof![
        3 => Just(Ack::Durable),
        2 => Just(Ack::Written),
        2 => Just(Ack::Accepted),
    ];
    let sizes = prop::collection::vec(1..12_u8, 1..6);
    prop_oneof![
        12 => (sizes, level, any::<bool>())
            .prop_map(|(sizes, level, waits)| Op::Append { sizes, level, waits }),
        4 => (any::<u8>(), 1..40_u8, any::<bool>())
            .prop_map(|(at, records, visible)| Op::Read { at, records, visible }),
        2 => any::<u8>().prop_map(Op::Trim),
        2 => any::<u8>().prop_map(Op::Truncate),
        2 => Just(Op::Sync),
        1 => Just(Op::Idle),
        1 => Just(Op::Reopen),
        1 => Just(Op::Kill),
        1 => Just(Op::PowerLoss),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        // More by PROPTEST_CASES.
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(500),
        max_shrink_iters: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct(
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/regressions.txt"),
        ))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_log_is_what_the_model_says(
        seed in any::<u64>(),
        ops in prop::collection::vec(op(), 1..60),
    ) {
        run(seed, &ops);
    }
}

/// A life of the store: one process from its start to its end.
struct Life {
    factory: SimFactory,
    store: Store,
    partition: Partition,
}

fn run(seed: u64, ops: &[Op]) {
    let mut config = SimConfig::new(seed);
    config.short_per_mille = seed % 20;
    config.interrupted_per_mille = seed % 7;
    let sim = Sim::new(config);
    let mut model = Model::default();
    let mut life = begin(&sim, &mut model, true);
    for op in ops {
        let ends = sim.block_on(step(&sim, &mut model, &life, op));
        if ends {
            let process = life.factory.process();
            match op {
                Op::Kill => sim.kill(process),
                Op::PowerLoss => sim.power_loss(),
                _ => {}
            }
            drop(life);
            life = begin(&sim, &mut model, matches!(op, Op::Reopen));
        }
    }
    sim.block_on(async {
        life.store.close(Duration::from_secs(60)).await.unwrap();
    });
    model.acknowledge(u64::MAX);
    drop(life);
    begin(&sim, &mut model, true);
}

/// Starts a process, opens the store, and compares the whole log.
fn begin(sim: &Sim, model: &mut Model, clean: bool) -> Life {
    let factory = sim.new_process();
    sim.block_on(async {
        let builder = Store::builder("/store").configure(small).configure(|c| {
            c.segment_bytes = 16 << 10;
            c.group_bytes_max = 8 << 10;
            c.tail_cache_bytes_max = 4 << 10;
        });
        let (store, report) = builder.backend(factory.clone()).open().await.unwrap();
        let partition = store.partition_or_create(1).await.unwrap();
        let offsets = partition.offsets();
        let found = read_all(&partition, Visibility::Durable).await;
        model.recovered(offsets.log_start(), offsets.log_end(), &found);
        if clean {
            assert!(report.is_clean(), "{report}");
        }
        Life {
            factory,
            store,
            partition,
        }
    })
}

/// Carries out one step; whether the life of the process ends with it.
async fn step(sim: &Sim, model: &mut Model, life: &Life, op: &Op) -> bool {
    let p = &life.partition;
    match op {
        Op::Append {
            sizes,
            level,
            waits,
        } => {
            let mut acks = Vec::new();
            for size in sizes {
                let (base, batch) = model.submit(u64::from(*size), *level);
                acks.push((base, p.try_append(batch, (*level).into()).unwrap()));
            }
            if !waits {
                // Some of the way, then the answers are lost.
                sim.sleep(Duration::from_micros(sim.random_u64() % 400))
                    .await;
                model.abandoned(p.offsets().durable());
                return false;
            }
            for (base, ack) in acks {
                let appended = ack.await.unwrap();
                assert_eq!((appended.base_offset, appended.level), (base, *level));
                model.shown(appended.end_offset());
                if *level == Ack::Written {
                    model.written(appended.end_offset());
                }
                if *level == Ack::Durable {
                    assert!(p.offsets().durable() >= appended.end_offset());
                }
            }
        }
        Op::Read {
            at,
            records,
            visible,
        } => {
            let visibility = if *visible {
                Visibility::Visible
            } else {
                Visibility::Durable
            };
            let from = model.place(*at, p.offsets().durable());
            let limits = ReadLimits {
                records_max: u64::from(*records),
                bytes_max: 6000,
            };
            let fetched = p.read(from, limits, visibility).await.unwrap();
            let found = values(&fetched);
            model.compare(from, fetched.next_offset, &found);
            if !visible {
                model.acknowledge(fetched.next_offset);
            }
        }
        Op::Trim(at) => {
            let to = model.place(*at, model.end());
            p.trim_before(to).await.unwrap();
            model.trim(to);
        }
        Op::Truncate(at) => {
            let to = model.place(*at, model.end());
            p.truncate_to(to).await.unwrap();
            model.truncate(to);
            assert_eq!(p.offsets().log_end(), to);
        }
        Op::Sync => {
            let end = p.sync().await.unwrap();
            assert_eq!(end, model.end());
        }
        Op::Idle => sim.sleep(Duration::from_millis(100)).await,
        Op::Reopen => {
            life.store.close(Duration::from_secs(60)).await.unwrap();
            model.acknowledge(u64::MAX);
            return true;
        }
        Op::Kill | Op::PowerLoss => {
            let offsets = p.offsets();
            model.acknowledge(offsets.durable());
            if matches!(op, Op::PowerLoss) {
                model.power_lost();
            }
            return true;
        }
    }
    let offsets = p.offsets();
    model.acknowledge(offsets.durable());
    let found = read_all(p, Visibility::Durable).await;
    model.compare(offsets.log_start(), offsets.durable(), &found);
    false
}

/// Offset and value of each record.
fn values(fetched: &alluvium::Fetched) -> Vec<(u64, Vec<u8>)> {
    let records = fetched.records().map(|record| record.unwrap());
    records
        .map(|record| (record.offset, record.value.to_vec()))
        .collect()
}

async fn read_all(p: &Partition, visibility: Visibility) -> Vec<(u64, Vec<u8>)> {
    let offsets = p.offsets();
    let (mut at, end) = (offsets.log_start(), offsets.durable());
    let mut found = Vec::new();
    while at < end {
        let fetched = p.read(at, ReadLimits::default(), visibility).await.unwrap();
        found.extend(values(&fetched).into_iter().filter(|(o, _)| *o < end));
        assert!(fetched.next_offset > at, "a read goes on");
        at = fetched.next_offset;
    }
    found
}
