//! What an acknowledgement means at each level.

use std::time::Duration;

use alluvium::{Ack, Error, ReadLimits, Visibility};
use alluvium_testkit::logs::{batch, close, fill, verify};

use futures_util::StreamExt;

use crate::machine::{EIO, machine, machine_with, open, polled, store_and_partition};

#[test]
fn the_default_level_returns_after_a_durable_write_and_not_before() {
    let sim = machine(1);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        for at in 0..20 {
            let before = sim.counters();
            p.append(batch(at, 1)).await.unwrap();
            let after = sim.counters();
            assert!(after.durable_writes + after.syncs > before.durable_writes + before.syncs);
            assert!(p.offsets().durable() > at);
        }
        // With a disk that does not answer there is no acknowledgement, however long it takes.
        sim.set_stalled(true);
        let mut pending = Box::pin(p.append(batch(20, 1)));
        for _ in 0..1000 {
            assert!(polled(pending.as_mut(), 1).await.is_none());
            sim.sleep(Duration::from_millis(10)).await;
            assert_eq!(p.offsets().durable(), 20);
        }
        sim.set_stalled(false);
        assert_eq!(pending.await.unwrap().base_offset, 20);
        close(&store).await;
    });
}

#[test]
fn a_durable_acknowledgement_survives_the_loss_of_power() {
    for seed in 0..60 {
        let sim = machine(seed);
        let mut end = 0;
        for round in 0..4 {
            sim.block_on(async {
                let (_store, p) = store_and_partition(&sim).await;
                let found = p.offsets().log_end();
                assert!(found >= end, "seed {seed} round {round}: {found} of {end}");
                verify(&p, 0, end).await;
                p.truncate_to(end).await.unwrap();
                fill(&p, 1 + seed % 9, 1 + seed % 4).await;
                end += 1 + seed % 9;
                // Right after the acknowledgement, inside of the same step.
                sim.power_loss();
            });
        }
    }
}

/// Without flushes that are honoured the check above must fail, or it shows nothing.
#[test]
fn a_lying_disk_is_noticed() {
    let lost = (0..30).filter(|seed| {
        let sim = machine_with(*seed, |c| c.lying_flush = true);
        sim.block_on(async {
            let (_store, p) = store_and_partition(&sim).await;
            fill(&p, 8, 1).await;
            sim.power_loss();
        });
        sim.block_on(async {
            let opened = crate::machine::try_open(&sim, |_| {}).await;
            let Ok((store, _)) = opened else { return true };
            match store.partition(1).await {
                Ok(p) => p.offsets().log_end() < 8,
                Err(_) => true,
            }
        })
    });
    assert!(lost.count() > 5);
}

#[test]
fn a_written_acknowledgement_survives_the_death_of_the_process() {
    for seed in 0..40 {
        let sim = machine(seed);
        let factory = sim.new_process();
        let process = factory.process();
        sim.block_on(async {
            let (_store, p) = crate::machine::open_in(factory).await;
            for at in 0..10 {
                p.append_with(batch(at, 1), Ack::Written).await.unwrap();
            }
            sim.kill(process);
        });
        sim.block_on(async {
            let store = open(&sim).await;
            let p = store.partition(1).await.unwrap();
            let end = p.offsets().log_end();
            assert!(end >= 10, "seed {seed}: {end}");
            // Offsets that were reserved may be skipped, no record is missing.
            let fetched = p.read(0, ReadLimits::default(), Visibility::Durable).await;
            assert_eq!(fetched.unwrap().records().count(), 10);
            close(&store).await;
        });
    }
}

/// What a weak acknowledgement showed may be lost, but its offset never gets other data.
#[test]
fn offsets_that_were_shown_are_not_given_again() {
    for seed in 0..60 {
        let sim = machine(seed);
        let mut shown = 0;
        for _ in 0..4 {
            sim.block_on(async {
                let (_store, p) = store_and_partition(&sim).await;
                let start = p.offsets().log_end();
                assert!(start >= shown, "seed {seed}: {start} after {shown}");
                for i in 0..5 {
                    let level = if i % 2 == 0 {
                        Ack::Accepted
                    } else {
                        Ack::Written
                    };
                    let appended = p.append_with(batch(start + i, 1), level).await.unwrap();
                    assert_eq!(appended.base_offset, start + i);
                    shown = appended.end_offset();
                }
                sim.power_loss();
            });
            // The gap is passed over by whoever reads on where the records end.
            sim.block_on(async {
                let (store, p) = store_and_partition(&sim).await;
                let end = p.offsets().log_end();
                let mut at = 0;
                while at < end {
                    let read = p.read(at, ReadLimits::default(), Visibility::Durable).await;
                    let read = read.unwrap();
                    assert!(read.next_offset > at, "seed {seed}: stuck at {at}");
                    let mut inside = at;
                    for record in read.records() {
                        inside = record.unwrap().offset;
                        assert!(inside >= at);
                    }
                    if inside + 1 < end {
                        let from = p.read(inside + 1, ReadLimits::default(), Visibility::Durable);
                        from.await.unwrap();
                    }
                    at = read.next_offset;
                }
                let mut stream = p.subscribe(0);
                p.append(batch(end, 1)).await.unwrap();
                while stream.next_offset() <= end {
                    stream.next().await.unwrap().unwrap();
                }
                shown = end + 1;
                close(&store).await;
            });
            sim.block_on(async {
                let store = open(&sim).await;
                let end = store.partition(1).await.unwrap().offsets().log_end();
                assert_eq!(end, shown, "a clean close skips nothing");
                sim.power_loss();
            });
        }
    }
}

/// Neither does one after a trim, whose control batch seals the log at rest.
#[test]
fn a_clean_close_skips_no_offsets() {
    for (level, start) in [
        (Ack::Accepted, 0),
        (Ack::Accepted, 2),
        (Ack::Written, 0),
        (Ack::Written, 2),
    ] {
        let sim = machine(1);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            p.append_with(batch(0, 5), level).await.unwrap();
            p.sync().await.unwrap();
            p.trim_before(start).await.unwrap();
            close(&store).await;
            drop((store, p));
            let store = open(&sim).await;
            let p = store.partition(1).await.unwrap();
            assert_eq!((p.offsets().log_start(), p.offsets().log_end()), (start, 5));
            close(&store).await;
        });
    }
}

/// Acknowledgements of a partition come in the order of its offsets, whatever the disk does.
#[test]
fn acknowledgements_come_in_order() {
    for seed in 0..20 {
        let sim = machine_with(seed, |c| c.short_per_mille = 50);
        sim.block_on(async {
            let (store, p) = store_and_partition(&sim).await;
            let seen = std::cell::RefCell::new(Vec::new());
            let appends: Vec<_> = (0..60)
                .map(|at| {
                    let ack = p.try_append(batch(at, 1), Ack::Durable.into()).unwrap();
                    let (seen, p) = (&seen, &p);
                    async move {
                        let appended = ack.await.unwrap();
                        assert!(p.offsets().durable() >= appended.end_offset());
                        seen.borrow_mut().push(appended.base_offset);
                    }
                })
                .collect();
            futures_util::future::join_all(appends).await;
            assert_eq!(seen.borrow().len(), 60);
            assert!(
                seen.borrow().is_sorted(),
                "seed {seed}: {:?}",
                seen.borrow()
            );
            close(&store).await;
        });
    }
}

/// What one completion answers is answered in the order of the log, whatever levels are mixed.
#[test]
fn acknowledgements_of_mixed_levels_come_in_order() {
    let sim = machine(1);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        // From here on offsets are reserved.
        p.append_with(batch(0, 1), Ack::Written).await.unwrap();
        p.sync().await.unwrap();
        sim.set_stalled(true);
        let seen = std::cell::RefCell::new(Vec::new());
        let appends: Vec<_> = (1..61)
            .map(|at| {
                let level = if at % 2 == 0 {
                    Ack::Written
                } else {
                    Ack::Durable
                };
                let ack = p.try_append(batch(at, 1), level.into()).unwrap();
                let seen = &seen;
                async move {
                    let appended = ack.await.unwrap();
                    seen.borrow_mut().push(appended.base_offset);
                }
            })
            .collect();
        let go_on = async {
            sim.sleep(Duration::from_millis(1)).await;
            assert!(seen.borrow().is_empty());
            sim.set_stalled(false);
        };
        futures_util::join!(futures_util::future::join_all(appends), go_on);
        let seen = seen.take();
        assert_eq!(seen.len(), 60);
        assert!(seen.is_sorted(), "{seen:?}");
        close(&store).await;
    });
}

/// Offsets that a crash made skipped lie between segments. A trim whose write fails takes nothing
/// out of the log, and whoever reads on is led over them as before.
#[test]
fn skipped_offsets_are_passed_over_after_a_trim_that_failed() {
    let sim = machine(9);
    sim.block_on(async {
        let (_store, p) = store_and_partition(&sim).await;
        fill(&p, 10, 1).await;
        p.append_with(batch(10, 1), Ack::Accepted).await.unwrap();
        sim.power_loss();
    });
    sim.block_on(async {
        let (_store, p) = store_and_partition(&sim).await;
        let start = p.offsets().log_end();
        assert!(start > 1000, "{start}");
        fill(&p, 20, 1).await;
        sim.fail_op(sim.op_count() + 1, EIO);
        let trimmed = p.trim_before(start + 10).await;
        let unknown = matches!(trimmed, Err(Error::OutcomeUnknown { .. }));
        assert!(unknown, "{trimmed:?}");
        for (from, expected) in [(0, 0), (11, start)] {
            let read = p.read(from, ReadLimits::default(), Visibility::Durable);
            let first = read.await.unwrap().records().next().unwrap().unwrap();
            assert_eq!(first.offset, expected);
        }
    });
}
