//! What recovery knows beside the tail of the newest segment: the offset that this process has
//! acknowledged, a trim behind the damage, and that the store is read only.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alluvium::backends::sim::Sim;
use alluvium::format::{SegmentHeader, SegmentKind};
use alluvium::{
    CorruptionKind, DamageFacts, Error, OnCorruption, Partition, PartitionReport, RecoveryReport,
    Store, StoreConfig, TailCase,
};
use alluvium_testkit::logs::{batch, close, fill, value, verify};
use futures_util::future::join_all;

use crate::machine::{DIR, EIO, at_rest, machine, machine_from, snapshot, try_open};

const CUT: OnCorruption = OnCorruption::CutTail { partition: 1 };
const POLICIES: [OnCorruption; 3] = [OnCorruption::Refuse, OnCorruption::Salvage, CUT];

/// The segments of partition 1, with their sequence, oldest first.
fn log_segments(sim: &Sim) -> Vec<(u64, PathBuf)> {
    let files = snapshot(sim).into_iter().filter_map(|(path, content)| {
        let header = SegmentHeader::decode(&content).ok()?;
        let of_the_log = header.kind == SegmentKind::Log && header.partition == 1;
        of_the_log.then_some((header.sequence, path))
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    files
}

fn newest_segment(sim: &Sim) -> PathBuf {
    log_segments(sim).pop().unwrap().1
}

/// Where the value at `offset` stands in a file.
fn position_of(sim: &Sim, path: &Path, offset: u64) -> u64 {
    let wanted = value(offset);
    let content = sim.read_file(path).unwrap();
    let at = content.windows(wanted.len()).position(|w| w == wanted);
    at.unwrap() as u64
}

fn report_of(report: &RecoveryReport) -> &PartitionReport {
    report.partitions.iter().find(|p| p.partition == 1).unwrap()
}

/// Closes a store of which a partition has failed, and says so.
async fn end(store: &Store) {
    let e = store.close(Duration::from_secs(30)).await.unwrap_err();
    assert!(matches!(e, Error::PartitionFailed { id: 1, .. }), "{e}");
}

/// A closed store with so many records.
fn closed_log(sim: &Sim, records: u64) {
    sim.block_on(async {
        let (store, _) = try_open(sim, |_| {}).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, records, 1).await;
        close(&store).await;
    });
}

/// Ten records, and a failure behind them.
async fn failed_log(sim: &Sim, on_corruption: OnCorruption) -> (Store, Partition) {
    let set = |c: &mut StoreConfig| c.on_corruption = on_corruption;
    let (store, _) = try_open(sim, set).await.unwrap();
    let p = store.create_partition(1).await.unwrap();
    fill(&p, 10, 1).await;
    fail(sim, &store, &p).await;
    (store, p)
}

/// The next append fails, and ends the partition's life.
async fn fail(sim: &Sim, store: &Store, p: &Partition) {
    sim.fail_op(sim.op_count() + 1, EIO);
    let next = batch(p.offsets().log_end(), 1);
    p.append(next).await.unwrap_err();
    at_rest(sim, store).await;
}

/// The file ends like one to which the last batch was never written: nothing on the disk says that it
/// was acknowledged. But this process knows.
#[test]
fn reopening_a_log_without_what_was_acknowledged_changes_nothing() {
    for on_corruption in POLICIES {
        let sim = machine(3);
        sim.block_on(async {
            let (store, p) = failed_log(&sim, on_corruption).await;
            let path = newest_segment(&sim);
            let whole = sim.read_file(&path).unwrap();
            let last = position_of(&sim, &path, 9);
            sim.corrupt(&path, last & !511..whole.len() as u64).unwrap();
            let damaged = snapshot(&sim);
            for _ in 0..2 {
                let e = p.reopen().await.unwrap_err();
                let Error::Corrupt(corruption) = &e else {
                    panic!("{on_corruption:?}: {e}")
                };
                assert_eq!(corruption.offset_start, 9, "{on_corruption:?}: {e}");
                assert_eq!(corruption.offset_end, Some(10), "{on_corruption:?}: {e}");
                assert!(
                    snapshot(&sim) == damaged,
                    "{on_corruption:?}: refused, and yet changed"
                );
            }
            // So the bytes may come back from elsewhere, and nothing is lost.
            sim.write_file(&path, &whole).unwrap();
            p.reopen().await.unwrap();
            let end = p.offsets().log_end();
            assert!(end >= 10, "{on_corruption:?}: ends at {end}");
            verify(&p, 0, end).await;
            fill(&p, 3, 1).await;
            close(&store).await;
        });
    }
}

/// A cut that comes to nothing, because an operation fails or the disk is full, leaves the proof that
/// records are missing.
#[test]
fn a_cut_that_is_not_made_leaves_the_proof_of_the_damage() {
    let sim = machine(12);
    closed_log(&sim, 10);
    let path = newest_segment(&sim);
    let sound = sim.read_file(&path).unwrap();
    let headers = log_segments(&sim);
    let cut = position_of(&sim, &path, 6) & !511;
    sim.write_file(&path, &sound[..usize::try_from(cut).unwrap()])
        .unwrap();
    let damaged = snapshot(&sim);
    let (mut told, mut made) = (0, 0);
    for n in 0..200 {
        let sim = machine_from(&damaged);
        // The first time the disk is full, then one operation after the other fails.
        if n == 0 {
            sim.set_capacity(0);
        }
        let opened = sim.block_on(async {
            if n > 0 {
                sim.fail_op(sim.op_count() + n, EIO);
            }
            let opened = try_open(&sim, |c| c.on_corruption = CUT).await;
            sim.cancel_failures();
            if let Ok((store, _)) = &opened {
                close(store).await;
            }
            opened.is_ok()
        });
        sim.set_capacity(1 << 30);
        if log_segments(&sim) != headers {
            // Made by a newer segment.
            made += 1;
            if opened && n > 0 {
                break;
            }
            continue;
        }
        let e = sim.block_on(try_open(&sim, |_| {})).unwrap_err();
        let Error::Corrupt(corruption) = &e else {
            panic!("operation {n}: {e}")
        };
        let kind = &corruption.found;
        assert!(matches!(kind, CorruptionKind::Shortened { .. }), "{n}: {e}");
        told += 1;
    }
    assert!(told > 5 && made > 0, "{told} told, {made} cut");
}

/// The file ends inside of a block, in the second batch of a group: the first one is kept, with a write of
/// whole blocks.
#[test]
fn a_file_that_ends_inside_of_a_block_can_be_cut() {
    let sim = machine(14);
    sim.block_on(async {
        let (store, _) = try_open(&sim, |_| {}).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 4, 1).await;
        let group = (4..9).map(|n| p.append(batch(n, 1)));
        for appended in join_all(group).await {
            appended.unwrap();
        }
        close(&store).await;
    });
    let path = newest_segment(&sim);
    let sound = sim.read_file(&path).unwrap();
    for lost in 5..9 {
        let sim = machine_from(&snapshot(&sim));
        let cut = position_of(&sim, &path, lost) + 3;
        assert!(!cut.is_multiple_of(512));
        let shorter = &sound[..usize::try_from(cut).unwrap()];
        sim.write_file(&path, shorter).unwrap();
        sim.block_on(async {
            let (store, report) = try_open(&sim, |c| c.on_corruption = CUT).await.unwrap();
            assert_eq!(report_of(&report).log_end, lost, "{report}");
            let p = store.partition(1).await.unwrap();
            fill(&p, 3, 1).await;
            verify(&p, 0, lost + 3).await;
            close(&store).await;
        });
    }
}

/// Here the damage shows on the disk: it is judged by the policy, but never cut.
#[test]
fn reopening_a_damaged_log_cuts_nothing() {
    for on_corruption in POLICIES {
        let sim = machine(3);
        sim.block_on(async {
            let (store, p) = failed_log(&sim, on_corruption).await;
            let path = newest_segment(&sim);
            sim.flip_bit(&path, position_of(&sim, &path, 4), 0).unwrap();
            let damaged = snapshot(&sim);
            let reopened = p.reopen().await;
            assert!(snapshot(&sim) == damaged, "{on_corruption:?}: changed");
            if on_corruption == OnCorruption::Refuse {
                let Err(Error::Corrupt(corruption)) = reopened else {
                    panic!("{reopened:?}")
                };
                assert_eq!((corruption.path, corruption.offset_start), (path, 4));
                end(&store).await;
            } else {
                let report = reopened.unwrap();
                assert!(report.corruption.is_some(), "{on_corruption:?}: {report}");
                assert!(report.log_end >= 10, "{on_corruption:?}: {report}");
                assert_eq!(read_from(&p, 0).await, 4, "{on_corruption:?}");
                assert_eq!(read_from(&p, 5).await, report.log_end, "{on_corruption:?}");
                p.append(batch(10, 1)).await.unwrap_err();
                close(&store).await;
            }
        });
    }
}

#[test]
fn a_log_without_any_segment_is_not_reopened_as_an_empty_one() {
    for on_corruption in POLICIES {
        let sim = machine(3);
        sim.block_on(async {
            let (store, p) = failed_log(&sim, on_corruption).await;
            for (path, content) in snapshot(&sim) {
                let of_it = SegmentHeader::decode(&content).is_ok_and(|h| h.partition == 1);
                if of_it {
                    sim.corrupt(&path, 0..content.len() as u64).unwrap();
                }
            }
            let damaged = snapshot(&sim);
            let e = p.reopen().await.unwrap_err();
            assert!(matches!(e, Error::Corrupt(_)), "{on_corruption:?}: {e}");
            assert!(snapshot(&sim) == damaged, "{on_corruption:?}: changed");
            assert_eq!(p.offsets().durable(), 10, "{on_corruption:?}");
            end(&store).await;
        });
    }
}

/// The device has lost the trim's control batch; the files that it freed are gone.
#[test]
fn an_acknowledged_trim_is_not_undone_by_a_reopening() {
    for sealed_before in [false, true] {
        let sim = machine(6);
        sim.block_on(async {
            let set = |c: &mut StoreConfig| c.spare_segments_max = 0;
            let (store, _) = try_open(&sim, set).await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 400, 1).await;
            if sealed_before {
                // Longer than a partition goes without a seal.
                sim.sleep(Duration::from_secs(60)).await;
            }
            let path = newest_segment(&sim);
            let untrimmed = sim.read_file(&path).unwrap();
            let oldest = log_segments(&sim).remove(0);
            p.trim_before(300).await.unwrap();
            sim.sleep(Duration::from_secs(1)).await;
            at_rest(&sim, &store).await;
            assert!(!log_segments(&sim).contains(&oldest), "files went");
            fail(&sim, &store, &p).await;
            sim.write_file(&path, &untrimmed).unwrap();
            let report = p.reopen().await.unwrap();
            assert_eq!(report.case == TailCase::Clean, sealed_before, "{report}");
            assert_eq!(p.offsets().log_start(), 300);
            let end = p.offsets().log_end();
            verify(&p, 300, end).await;
            fill(&p, 3, 1).await;
            // It is on the disk again, whatever comes.
            sim.power_loss();
            drop((p, store));
            let (store, report) = try_open(&sim, set).await.unwrap();
            assert_eq!(report_of(&report).log_start, 300);
            let p = store.partition(1).await.unwrap();
            verify(&p, 300, end + 3).await;
            close(&store).await;
        });
    }
}

/// A truncation that failed may have happened or not. A log that ends in between is neither.
#[test]
fn half_a_truncation_excuses_no_loss() {
    let sim = machine(8);
    sim.block_on(async {
        let store = try_open(&sim, |_| {}).await.unwrap().0;
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 10, 1).await;
        let whole = snapshot(&sim);
        let path = newest_segment(&sim);
        // Of the operations of a truncation, the one that fails the partition.
        let mut nth = 1;
        loop {
            sim.fail_op(sim.op_count() + nth, EIO);
            let truncated = p.truncate_to(5).await;
            sim.cancel_failures();
            assert!(truncated.is_err(), "it never failed the partition");
            if p.describe().await.unwrap().failure.is_some() {
                break;
            }
            nth += 1;
        }
        at_rest(&sim, &store).await;
        // It did not happen, and the end is lost.
        for (file, mut content) in snapshot(&sim) {
            if let Some(before) = whole.get(&file) {
                sim.write_file(&file, before).unwrap();
            } else if let Ok(mut header) = SegmentHeader::decode(&content) {
                header.kind = SegmentKind::Spare;
                content[..header.encode().len()].copy_from_slice(&header.encode());
                sim.write_file(&file, &content).unwrap();
            }
        }
        let last = position_of(&sim, &path, 7);
        let len = whole[&path].len() as u64;
        sim.corrupt(&path, last & !511..len).unwrap();
        let Err(Error::Corrupt(c)) = p.reopen().await else {
            panic!("the end of neither the old log nor the truncated one")
        };
        assert_eq!((c.offset_start, c.offset_end), (7, Some(10)), "{c}");
        end(&store).await;
    });
}

/// A closed log of 400 records that was trimmed to `start` by a control batch in its newest segment, whose
/// files before that are gone, with a damaged batch in front of the control batch. The newest segment,
/// and the first record in it, which is the damaged one.
async fn trimmed_behind_damage(sim: &Sim, start: u64) -> (PathBuf, u64) {
    let (store, _) = try_open(sim, |c| c.spare_segments_max = 0).await.unwrap();
    let p = store.create_partition(1).await.unwrap();
    fill(&p, 400, 1).await;
    p.trim_before(start).await.unwrap();
    close(&store).await;
    let path = newest_segment(sim);
    let content = sim.read_file(&path).unwrap();
    let header = SegmentHeader::decode(&content).unwrap();
    assert!(header.log_start < 300, "the trim is not in the header");
    assert!(header.base_offset < 399, "something stands before the trim");
    let position = position_of(sim, &path, header.base_offset);
    sim.flip_bit(&path, position, 0).unwrap();
    (path, header.base_offset)
}

#[test]
fn what_was_trimmed_behind_the_damage_is_not_missing() {
    for (on_corruption, start) in POLICIES.into_iter().flat_map(|p| [(p, 300), (p, 400)]) {
        let sim = machine(4);
        sim.block_on(async {
            let (path, damaged) = trimmed_behind_damage(&sim, start).await;
            let opened = try_open(&sim, |c| c.on_corruption = on_corruption).await;
            let (store, report) = match opened {
                Err(Error::Corrupt(c)) if on_corruption == OnCorruption::Refuse => {
                    assert_eq!(c.path, path, "the damage, not a file that was let go: {c}");
                    return;
                }
                opened => opened.unwrap(),
            };
            let report = report_of(&report);
            let tail = DamageFacts {
                tail_corrupt: true,
                ..DamageFacts::default()
            };
            assert_eq!(report.damage, tail, "{on_corruption:?}");
            let p = store.partition(1).await.unwrap();
            assert_eq!(p.offsets().log_start(), start, "{on_corruption:?}");
            // What was trimmed is not given to other records.
            let end = damaged.max(start);
            if on_corruption == CUT {
                assert_eq!(p.offsets().log_end(), end);
                assert_eq!(read_from(&p, start).await, end);
                fill(&p, 3, 1).await;
                close(&store).await;
                let (store, report) = try_open(&sim, |_| {}).await.unwrap();
                assert!(!report_of(&report).damage.any());
                let p = store.partition(1).await.unwrap();
                verify(&p, start, end + 3).await;
                close(&store).await;
            } else {
                assert_eq!(p.offsets().log_end(), 400);
                assert_eq!(read_from(&p, start).await, end);
                p.append(batch(400, 1)).await.unwrap_err();
                close(&store).await;
            }
        });
    }
}

/// Reads to the log end or to damage; how far it got.
async fn read_from(p: &Partition, mut at: u64) -> u64 {
    let (limits, seen) = Default::default();
    while at < p.offsets().log_end() {
        match p.read(at, limits, seen).await {
            Ok(fetched) => {
                for record in fetched.records() {
                    let record = record.unwrap();
                    assert_eq!(record.value[..], value(record.offset)[..]);
                }
                assert!(fetched.next_offset > at);
                at = fetched.next_offset;
            }
            Err(Error::Corrupt(_)) => break,
            Err(e) => panic!("{e}"),
        }
    }
    at
}

/// A store that writes nothing cannot cut: the damage is told, and what lies behind it served.
#[test]
fn a_read_only_store_reads_around_damage_whatever_the_policy() {
    let sim = machine(5);
    closed_log(&sim, 10);
    sim.block_on(async {
        let path = newest_segment(&sim);
        sim.flip_bit(&path, position_of(&sim, &path, 4), 0).unwrap();
        let damaged = snapshot(&sim);
        for on_corruption in [OnCorruption::Salvage, CUT] {
            let builder = Store::builder(DIR).read_only();
            let builder = builder.configure(|c| c.on_corruption = on_corruption);
            let (store, report) = builder.backend(sim.new_process()).open().await.unwrap();
            let report = report_of(&report);
            assert!(report.corruption.is_some(), "{on_corruption:?}: {report}");
            assert_eq!(report.cut, None, "{on_corruption:?}");
            assert_eq!(report.log_end, 10, "{on_corruption:?}");
            let p = store.partition(1).await.unwrap();
            assert_eq!(read_from(&p, 5).await, 10, "{on_corruption:?}");
            close(&store).await;
        }
        assert!(snapshot(&sim) == damaged);
    });
}
