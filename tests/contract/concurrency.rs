//! Readers beside writers that change the log's shape: right records, or an error that says so.

use alluvium::{Error, Partition, ReadLimits, Visibility};
use alluvium_testkit::logs::{batch, close, fill, value};

use crate::machine::{machine, try_open};

const LIMITS: ReadLimits = ReadLimits {
    bytes_max: 6000,
    records_max: 9,
};

/// Reads everything again and again; starts anew where the log was cut under it.
async fn reader(p: Partition, rounds: u64, visibility: Visibility) -> u64 {
    let mut at = 0;
    let mut seen = 0;
    for _ in 0..rounds {
        match p.read(at, LIMITS, visibility).await {
            Ok(fetched) => {
                for record in fetched.records() {
                    let record = record.unwrap();
                    assert!(record.offset >= at);
                    assert_eq!(record.value[..], value(record.offset)[..]);
                    seen += 1;
                }
                assert!(fetched.next_offset >= at);
                at = fetched.next_offset;
                if fetched.is_empty() {
                    at = p.offsets().log_start();
                }
            }
            Err(Error::OutOfRange { requested, .. }) => {
                assert!(requested >= at);
                at = p.offsets().log_start();
            }
            Err(e) => panic!("{e}"),
        }
    }
    seen
}

async fn writer(p: Partition, seed: u64) {
    for round in 0..40 {
        fill(&p, 12, 1 + (seed + round) % 4).await;
        let offsets = p.offsets();
        let span = offsets.log_end() - offsets.log_start();
        match (seed + round * 7) % 5 {
            0 => p.trim_before(offsets.log_start() + span / 4).await.unwrap(),
            1 | 2 => p.truncate_to(offsets.log_end() - span / 3).await.unwrap(),
            3 => {
                let at = offsets.log_end();
                let next = batch(at, 3);
                drop(p.begin_append(next, alluvium::Ack::Written).await.unwrap());
                p.sync().await.unwrap();
            }
            _ => {}
        }
    }
}

#[test]
fn readers_beside_trims_truncations_and_rolls() {
    for seed in 0..40 {
        for cache_bytes in [0, 64 << 10] {
            let sim = machine(seed);
            sim.block_on(async {
                let opened = try_open(&sim, |c| {
                    c.segment_bytes = 16 << 10;
                    c.group_bytes_max = 8 << 10;
                    c.tail_cache_bytes_max = cache_bytes;
                });
                let (store, _) = opened.await.unwrap();
                let p = store.create_partition(1).await.unwrap();
                fill(&p, 60, 3).await;
                let (a, b, c, ()) = futures_util::join!(
                    reader(p.clone(), 400, Visibility::Durable),
                    reader(p.clone(), 400, Visibility::Visible),
                    reader(p.clone(), 400, Visibility::Durable),
                    writer(p.clone(), seed),
                );
                assert!(a + b + c > 100);
                close(&store).await;
            });
        }
    }
}
