//! What recovery knows beside the tail of the newest segment: the offset that this process has
//! acknowledged, a trim behind the damage, and that the store is read only.

use std::path::{Path, PathBuf};

use alluvium::backends::sim::Sim;
use alluvium::format::{SegmentHeader, SegmentKind};
use alluvium::{
    DamageFacts, Error, OnCorruption, Partition, PartitionReport, RecoveryReport, Store,
    StoreConfig,
};
use alluvium_testkit::logs::{batch, close, fill, value, verify};

use crate::machine::{DIR, EIO, at_rest, machine, snapshot, try_open};

const CUT: OnCorruption = OnCorruption::CutTail { partition: 1 };

/// The segment of partition 1 with the highest sequence.
fn newest_segment(sim: &Sim) -> PathBuf {
    let files = snapshot(sim).into_iter().filter_map(|(path, content)| {
        let header = SegmentHeader::decode(&content).ok()?;
        let of_the_log = header.kind == SegmentKind::Log && header.partition == 1;
        of_the_log.then_some((header.sequence, path))
    });
    files.max().unwrap().1
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

/// The file ends like one to which the last batch was never written: nothing on the disk says that it
/// was acknowledged. But this process knows.
#[test]
fn reopening_a_log_without_what_was_acknowledged_changes_nothing() {
    for on_corruption in [OnCorruption::Refuse, OnCorruption::Salvage, CUT] {
        let sim = machine(3);
        sim.block_on(async {
            let set = |c: &mut StoreConfig| c.on_corruption = on_corruption;
            let (store, _) = try_open(&sim, set).await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 10, 1).await;
            sim.fail_op(sim.op_count() + 1, EIO);
            p.append(batch(10, 1)).await.unwrap_err();
            at_rest(&sim, &store).await;

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

/// A closed log that was trimmed to 70 by a control batch in its newest segment, whose files before
/// that are gone, with a damaged batch in front of the control batch.
async fn trimmed_behind_damage(sim: &Sim) -> PathBuf {
    let (store, _) = try_open(sim, |c| c.spare_segments_max = 0).await.unwrap();
    let p = store.create_partition(1).await.unwrap();
    fill(&p, 160, 1).await;
    p.trim_before(70).await.unwrap();
    fill(&p, 3, 1).await;
    close(&store).await;
    let path = newest_segment(sim);
    let content = sim.read_file(&path).unwrap();
    let header = SegmentHeader::decode(&content).unwrap();
    assert!(header.log_start < 70, "the trim is not in the header");
    assert!(header.base_offset < 159, "something stands before the trim");
    let position = position_of(sim, &path, header.base_offset);
    sim.flip_bit(&path, position, 0).unwrap();
    path
}

#[test]
fn what_was_trimmed_behind_the_damage_is_not_missing() {
    for on_corruption in [OnCorruption::Refuse, OnCorruption::Salvage, CUT] {
        let sim = machine(4);
        sim.block_on(async {
            let path = trimmed_behind_damage(&sim).await;
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
            assert_eq!(p.offsets().log_start(), 70, "{on_corruption:?}");
            read_or_damaged(&p).await;
            let appended = p.append(batch(p.offsets().log_end(), 1)).await;
            assert_eq!(appended.is_ok(), on_corruption == CUT, "{appended:?}");
            close(&store).await;
            if on_corruption == CUT {
                let (store, report) = try_open(&sim, |_| {}).await.unwrap();
                let report = report_of(&report);
                assert_eq!((report.damage.any(), report.log_start), (false, 70));
                close(&store).await;
            }
        });
    }
}

/// Reads from the log start to the end, or to the damage; how far it got.
async fn read_or_damaged(p: &Partition) -> u64 {
    let mut at = p.offsets().log_start();
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
    sim.block_on(async {
        let (store, _) = try_open(&sim, |_| {}).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 10, 1).await;
        close(&store).await;
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
            let (limits, seen) = Default::default();
            let behind = p.read(5, limits, seen).await.unwrap();
            assert_eq!(behind.next_offset, 10, "{on_corruption:?}");
            close(&store).await;
        }
        assert!(snapshot(&sim) == damaged);
    });
}
