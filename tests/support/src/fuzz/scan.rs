//! The engine's own scan of a segment: how far the log goes, and whether its tail is clean,
//! unsealed, torn or corrupt.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use alluvium_backends::sim::Sim;
use alluvium_core::format::{self, BATCH_HEADER_LEN, Batch, SEGMENT_HEADER_LEN, SegmentHeader};
use alluvium_core::{
    Ack, Error, Partition, PartitionReport, ReadLimits, Store, TailCase, Visibility,
};
use bytes::Bytes;

use super::input::Input;
use super::machine::{Image, STORE, configure, image_of, machine, plant};
use super::mend::burst;
use super::reference::{Verdict, judge};
use super::script::{CAPACITY, PARTITION, Placed, Script};

/// A store with one segment after a script, then harmed as the bytes say. Recovery must decide as
/// the reference does; writes that a crash has torn are never damage, and damage of acknowledged
/// bytes never looks like a torn tail.
pub fn scan_segment(data: &[u8]) {
    let mut input = Input(data);
    let shape = input.byte();
    let harm_input = input.bytes(12);
    let empty = empty_store();
    let script = Script::read(&mut input, empty.incarnation, shape & 3 == 3);
    let mut file = script.bytes.clone();
    let known = harm(&mut Input(harm_input), shape >> 2, &script, &mut file);
    let verdict = judge(&file, &script.header);
    match known {
        Known::Nothing => {}
        Known::Sound => {
            let sealed = script.end.sealed || script.batches.is_empty();
            let case = if sealed {
                TailCase::Clean
            } else {
                TailCase::Unsealed
            };
            assert_eq!(verdict.case, case);
            assert_eq!(verdict.end_offset, script.end.offset);
            assert_eq!(verdict.log_start, script.end.log_start);
            assert_eq!(verdict.reserved_end, script.end.reserved);
        }
        Known::Torn { kept } => {
            assert_ne!(verdict.case, TailCase::Corrupt, "a torn write is no damage");
            assert!(verdict.end_offset >= kept, "durable up to {kept}");
        }
        Known::Lost => assert_eq!(verdict.case, TailCase::Corrupt, "acknowledged, and gone"),
    }
    let end = usize::try_from(verdict.end_position).unwrap_or(usize::MAX);
    // The walk ends at a seal that ends the segment. Only a script that lies goes on behind one.
    if let Some(counts) = file.get(..end)
        && let Ok(walked) = format::walk_segment(&Bytes::copy_from_slice(counts))
        && walked.end_position == end
    {
        let clean = verdict.case == TailCase::Clean || end < file.len();
        assert!(clean, "the strict walk finds no flaw: {:?}", verdict.case);
    }
    let mut image = empty.image.clone();
    image.insert(empty.segment.clone(), file.clone());
    let sim = plant(&image);
    look(&sim, &verdict, &file, &script);
    if shape >> 6 == 3 {
        mend(&sim, &verdict, &file, &script);
    }
}

struct Empty {
    image: Image,
    segment: PathBuf,
    incarnation: u32,
}

/// A store with a partition of which the segment is taken away.
fn empty_store() -> &'static Empty {
    static EMPTY: OnceLock<Empty> = OnceLock::new();
    EMPTY.get_or_init(|| {
        let sim = machine(7);
        sim.create_dir_all("/").unwrap();
        sim.block_on(async {
            let builder = Store::builder(STORE).configure(configure);
            let (store, _) = builder.backend(sim.new_process()).open().await.unwrap();
            store.create_partition(PARTITION).await.unwrap();
            store.close(Duration::from_secs(30)).await.unwrap();
        });
        let mut image = image_of(&sim);
        let is_segment = |path: &&PathBuf| path.extension().is_some_and(|e| e == "seg");
        let segment = image.keys().find(is_segment).cloned().expect("a segment");
        let header = SegmentHeader::decode(&image[&segment]).expect("a sound header");
        image.retain(|path, _| path.parent() != segment.parent());
        Empty {
            image,
            segment,
            incarnation: header.incarnation,
        }
    })
}

/// What has to come of the harm, for who knows what was durable.
enum Known {
    Nothing,
    /// No harm was done.
    Sound,
    /// A crash has torn writes that were under way; what lies below is durable.
    Torn {
        kept: u64,
    },
    /// Something acknowledged is damaged, and what follows proves it.
    Lost,
}

fn harm(input: &mut Input<'_>, what: u8, script: &Script, file: &mut Vec<u8>) -> Known {
    match what & 7 {
        0 if !script.lies => Known::Sound,
        1 | 2 => tear(input, script, file),
        3 | 4 => rot(input, script, file),
        5 => {
            // Sectors of nothing, anywhere behind the header.
            let at = SEGMENT_HEADER_LEN + 512 * input.pick((CAPACITY - SEGMENT_HEADER_LEN) / 512);
            let end = (at + 512 * (1 + input.pick(8))).min(file.len());
            file[at..end].fill(input.byte());
            Known::Nothing
        }
        6 => {
            // The header block stays: without it there is nothing to scan.
            let len = SEGMENT_HEADER_LEN + input.below(CAPACITY - SEGMENT_HEADER_LEN);
            file.truncate(len);
            Known::Nothing
        }
        7 => {
            for _ in 0..=input.pick(3) {
                let at = SEGMENT_HEADER_LEN + input.below(CAPACITY - SEGMENT_HEADER_LEN);
                burst(file, at, u32::from(input.byte()) << input.pick(25));
            }
            Known::Nothing
        }
        _ => Known::Nothing,
    }
}

/// Of every sector of the writes under way, the new or the old content.
fn tear(input: &mut Input<'_>, script: &Script, file: &mut [u8]) -> Known {
    let open = script.groups.len() - script.durable_groups;
    let durable = script.durable_groups + input.pick(open + 1);
    for group in &script.groups[durable..] {
        let mask = input.u32();
        for (sector, at) in (group.start..group.end).step_by(512).enumerate() {
            if mask >> (sector % 32) & 1 != 0 {
                let end = (at + 512).min(group.end);
                file[at..end].copy_from_slice(&script.before[at..end]);
            }
        }
    }
    if script.lies {
        return Known::Nothing;
    }
    let kept = match durable.checked_sub(1) {
        Some(last) => script.groups[last].end_offset,
        None => script.header.base_offset,
    };
    Known::Torn { kept }
}

/// A few bits in one batch.
fn rot(input: &mut Input<'_>, script: &Script, file: &mut [u8]) -> Known {
    let Some(batch) = script.batches.get(input.pick(script.batches.len())) else {
        return Known::Nothing;
    };
    let at = batch.position + input.below(batch.end - batch.position);
    burst(&mut file[..batch.end], at, input.u32() | 1);
    let proves = |later: &Placed| {
        let begins = script
            .groups
            .get(later.group)
            .is_some_and(|group| group.start == later.position);
        later.group > batch.group && begins && (later.seal || later.durable > batch.base)
    };
    if !script.lies && script.batches.iter().any(proves) {
        Known::Lost
    } else {
        Known::Nothing
    }
}

/// Opens without changing anything, compares with the verdict, reads everything.
fn look(sim: &Sim, verdict: &Verdict, file: &[u8], script: &Script) {
    sim.block_on(async {
        let builder = Store::builder(STORE).configure(configure).read_only();
        let opened = builder.backend(sim.new_process()).open().await;
        let (store, report) = opened.expect("damage does not refuse a reader");
        let report = report.partitions.first().expect("one partition");
        compare(report, verdict, file, script);
        let p = store.partition(PARTITION).await.expect("it is there");
        // Behind damage, forged batches may claim the same offsets.
        if script.lies && verdict.case == TailCase::Corrupt {
            read_somehow(&p, file).await;
        } else {
            read_all(&p, verdict, file).await;
        }
        drop(p);
        drop(store.close(Duration::from_secs(30)).await);
    });
    assert_eq!(
        sim.read_file(&empty_store().segment).unwrap(),
        file,
        "reading changes nothing"
    );
}

fn compare(report: &PartitionReport, verdict: &Verdict, file: &[u8], script: &Script) {
    let shortened = (file.len() as u64) < script.header.capacity_bytes;
    assert_eq!(report.case, verdict.case, "{report}");
    let damaged = verdict.case == TailCase::Corrupt || shortened;
    assert_eq!(report.corruption.is_some(), damaged, "{report}");
    if verdict.unreadable {
        return;
    }
    assert_eq!(report.log_start, verdict.log_start, "{report}");
    let torn = (verdict.case == TailCase::Torn).then_some(verdict.end_position);
    assert_eq!(report.cut.as_ref().map(|cut| cut.1), torn, "{report}");
    if verdict.case == TailCase::Corrupt {
        assert!(report.log_end >= verdict.end_offset, "{report}");
    } else {
        assert_eq!(report.log_end, verdict.end_offset, "{report}");
    }
}

/// Every batch that is read stands in the file, and those of the chain are all read.
async fn read_all(p: &Partition, verdict: &Verdict, file: &[u8]) {
    let offsets = p.offsets();
    let start = offsets.log_start();
    let mut at = start;
    let mut chain = verdict
        .chain
        .iter()
        .filter(|head| head.count > 0 && head.base + u64::from(head.count) > start);
    while at < offsets.durable() {
        match p.read(at, ReadLimits::default(), Visibility::Durable).await {
            Ok(fetched) => {
                assert!(fetched.next_offset > at, "a read at {at} stands still");
                for batch in &fetched.batches {
                    let mut head = [0; BATCH_HEADER_LEN];
                    batch.header().encode_into(&mut head);
                    let position = match chain.next() {
                        Some(next) => next.position,
                        None => find(file, &head).expect("it stands in the file"),
                    };
                    let stored = &file[position..];
                    assert_eq!(stored[..BATCH_HEADER_LEN], head, "the next of the chain");
                    assert!(stored[BATCH_HEADER_LEN..].starts_with(batch.body()));
                }
                at = fetched.next_offset;
            }
            Err(Error::Corrupt(damage)) => {
                assert_eq!(chain.next().map(|head| head.base), None, "{damage}");
                match damage.offset_end {
                    Some(end) if end > at => at = end,
                    _ => return,
                }
            }
            Err(e) => panic!("a read at {at} of {offsets:?}: {e}"),
        }
    }
    assert_eq!(chain.next().map(|head| head.base), None, "not read");
}

/// Every batch that is read stands in the file, and reads end.
async fn read_somehow(p: &Partition, file: &[u8]) {
    let offsets = p.offsets();
    let mut at = offsets.log_start();
    while at < offsets.durable() {
        let limits = ReadLimits::default();
        match p.read(at, limits, Visibility::Durable).await {
            Ok(fetched) => {
                assert!(fetched.next_offset > at, "a read at {at} stands still");
                for batch in &fetched.batches {
                    let mut head = [0; BATCH_HEADER_LEN];
                    batch.header().encode_into(&mut head);
                    let position = find(file, &head).expect("it stands in the file");
                    assert!(file[position + BATCH_HEADER_LEN..].starts_with(batch.body()));
                }
                at = fetched.next_offset;
            }
            Err(Error::Corrupt(damage)) => match damage.offset_end {
                Some(end) if end > at => at = end,
                _ => return,
            },
            Err(e) => panic!("a read at {at} of {offsets:?}: {e}"),
        }
    }
}

fn find(file: &[u8], head: &[u8]) -> Option<usize> {
    let last = file.len().checked_sub(head.len())?;
    (SEGMENT_HEADER_LEN..=last).find(|at| file[*at..].starts_with(head))
}

/// Opens for writing: refused exactly when something acknowledged is missing. What was recovered
/// goes on, and is the same after another recovery.
fn mend(sim: &Sim, verdict: &Verdict, file: &[u8], script: &Script) {
    sim.block_on(async {
        let builder = Store::builder(STORE).configure(configure);
        let opened = builder.backend(sim.new_process()).open().await;
        let shortened = (file.len() as u64) < script.header.capacity_bytes;
        let damaged = verdict.case == TailCase::Corrupt || shortened;
        let (store, report) = match opened {
            Ok(opened) => opened,
            Err(Error::Corrupt(_)) if damaged => return,
            // Forged offsets may leave no room.
            Err(e) if script.lies => {
                drop(e);
                return;
            }
            Err(e) => panic!("{e}"),
        };
        assert!(!damaged, "opened in spite of damage: {report}");
        let p = store.partition(PARTITION).await.expect("it is there");
        read_all(&p, verdict, file).await;
        let before = p.offsets();
        assert!(script.lies || before.log_end() >= verdict.reserved_end);
        let more = Batch::from_values(["more"]).expect("small");
        let appended = p.append_with(more, Ack::Durable).await;
        assert!(script.lies || appended.is_ok(), "{appended:?}");
        drop(p);
        drop(store.close(Duration::from_secs(30)).await);
        drop(store);
        let Ok(appended) = appended else { return };
        assert_eq!(appended.base_offset, before.log_end());
        let builder = Store::builder(STORE).configure(configure).read_only();
        let opened = builder.backend(sim.new_process()).open().await;
        let (store, report) = opened.expect("closed properly");
        assert!(report.is_clean(), "{report}");
        if script.lies {
            // A log may start behind its end, by order of a forged batch.
            drop(store.close(Duration::from_secs(30)).await);
            return;
        }
        let p = store.partition(PARTITION).await.expect("it is there");
        assert_eq!(p.offsets().log_start(), before.log_start());
        assert_eq!(p.offsets().log_end(), appended.end_offset());
        let limits = ReadLimits::default();
        let last = p.read(before.log_end(), limits, Visibility::Durable).await;
        let last = last.expect("what was appended");
        assert_eq!(last.batches.len(), 1);
        drop(p);
        drop(store.close(Duration::from_secs(30)).await);
    });
}
