//! Damage in any file of a closed store: reported with its place, never served, never repaired.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use alluvium::backends::sim::Sim;
use alluvium::format::{Control, ControlReason, SegmentHeader, SegmentKind};
use alluvium::{
    Ack, CorruptionKind, Error, ErrorClass, InspectDetail, InspectRequest, OnCorruption,
    ReadLimits, Store, Visibility,
};
use alluvium_testkit::fuzz::crc32;
use alluvium_testkit::logs::{batch, close, fill, value};

use crate::machine::{check_answers, machine, machine_from, path_of, snapshot, try_open};

pub(crate) type Files = BTreeMap<PathBuf, Vec<u8>>;

const PARTITIONS: u64 = 2;
const START: u64 = 5;
pub(crate) const END: u64 = 60;

/// A closed store of two partitions with several segments each.
pub(crate) fn closed_store() -> Files {
    let sim = machine(7);
    sim.block_on(async {
        let (store, _) = try_open(&sim, tiny).await.unwrap();
        for id in 0..PARTITIONS {
            let p = store.create_partition(id).await.unwrap();
            fill(&p, END + 3, 3).await;
            p.trim_before(START).await.unwrap();
            p.truncate_to(END - 1).await.unwrap();
            p.append(batch(END - 1, 1)).await.unwrap();
        }
        close(&store).await;
    });
    snapshot(&sim)
}

pub(crate) fn tiny(config: &mut alluvium::StoreConfig) {
    config.segment_bytes = 16 << 10;
    config.group_bytes_max = 8 << 10;
    config.group_bytes_min = 4 << 10;
}

/// What reading around damage found.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Survey {
    records: u64,
    /// Ranges of offsets that were reported as damaged.
    damaged: Vec<(u64, Option<u64>)>,
}

/// Reads everything, going on behind damage where the error says so; checks each value.
pub(crate) async fn survey(store: &Store, id: u64, files: &[&Path]) -> Survey {
    let mut found = Survey::default();
    let Ok(p) = store.partition(id).await else {
        return found;
    };
    let mut at = p.offsets().log_start();
    while at < p.offsets().durable() {
        match p.read(at, ReadLimits::default(), Visibility::Durable).await {
            Ok(fetched) => {
                for record in fetched.records() {
                    let record = record.unwrap();
                    assert_eq!(record.value[..], value(record.offset)[..]);
                    found.records += 1;
                }
                assert!(fetched.next_offset > at, "a read goes on");
                at = fetched.next_offset;
            }
            Err(e) => {
                check_answers(&e);
                let Error::Corrupt(c) = &e else { panic!("{e}") };
                assert!(files.contains(&&*c.path), "{e} names none of {files:?}");
                assert_eq!(c.partition, id);
                assert!(c.offset_start <= at, "{e} at {at}");
                found.damaged.push((c.offset_start, c.offset_end));
                match c.offset_end {
                    Some(end) if end > at => at = end,
                    _ => break,
                }
            }
        }
    }
    found
}

/// Opens a damaged store and checks that nothing wrong is served and nothing is changed.
/// Returns whether the damage was noticed.
fn judge(files: &Files, damaged: &[&Path], what: &str) -> bool {
    let sim = machine_from(files);
    let opened = sim.block_on(try_open(&sim, tiny));
    match opened {
        Err(e) => {
            check_answers(&e);
            assert!(
                matches!(
                    e.class(),
                    ErrorClass::Corrupt | ErrorClass::Misuse | ErrorClass::NotApplied
                ),
                "{what}: {e}"
            );
            let named = path_of(&e).unwrap_or_else(|| panic!("{what}: {e} names no path"));
            assert!(
                damaged.iter().any(|path| path.starts_with(named)),
                "{what}: {e} does not name the damage"
            );
            assert!(snapshot(&sim) == *files, "{what}: refused, and yet changed");
            salvage(&sim, damaged, what);
            true
        }
        Ok((store, _)) => sim.block_on(async {
            let mut noticed = false;
            for id in 0..PARTITIONS {
                let survey = survey(&store, id, damaged).await;
                noticed |= !survey.damaged.is_empty();
                assert!(
                    !survey.damaged.is_empty() || survey.records == END - START,
                    "{what}: {} records of partition {id}, and no word",
                    survey.records
                );
            }
            close(&store).await;
            noticed
        }),
    }
}

/// The damaged store, read only: what is served is right, and the other partition is whole.
fn salvage(sim: &Sim, damaged: &[&Path], what: &str) {
    let before = snapshot(sim);
    sim.block_on(async {
        let opened = try_open(sim, |c| {
            tiny(c);
            c.on_corruption = OnCorruption::Salvage;
        });
        let (store, report) = match opened.await {
            Ok(opened) => opened,
            Err(e) => {
                let of_the_store = damaged.iter().any(|path| path.ends_with("STORE"));
                assert!(of_the_store, "{what}: not even to be read: {e}");
                return;
            }
        };
        let mut whole = 0;
        for id in 0..PARTITIONS {
            let survey = survey(&store, id, damaged).await;
            whole += u64::from(survey.records == END - START);
            let found = report
                .partitions
                .iter()
                .find(|p| p.partition == id)
                .unwrap();
            if found.corruption.is_some() {
                let p = store.partition(id).await.unwrap();
                let e = p.append(batch(0, 1)).await.unwrap_err();
                assert_eq!(e, Error::ReadOnly { id });
            }
        }
        assert!(
            whole >= PARTITIONS - 1,
            "{what}: the other partition is whole\n{report}"
        );
        close(&store).await;
    });
    for path in damaged {
        let unchanged = before.get(*path) == snapshot(sim).get(*path);
        assert!(unchanged, "{what}: the damaged file was changed");
    }
}

/// Positions worth turning a bit at: every field of the headers, and a sample of the rest.
fn positions(len: usize, salt: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..128.min(len)).step_by(5).collect();
    all.extend((128..len.min(4096)).step_by(701));
    all.extend((4096..len.min(4096 + 200)).step_by(9));
    all.extend((4096..len).step_by(1371).map(|at| at + salt % 101));
    all.retain(|at| *at < len);
    all
}

#[test]
fn one_bit_anywhere() {
    let files = closed_store();
    assert!(files.len() > 10, "{:?}", files.keys());
    let (mut noticed, mut total) = (0, 0);
    for (n, (path, content)) in files.iter().enumerate() {
        if path.ends_with("LOCK") {
            continue;
        }
        for at in positions(content.len(), n * 17) {
            let mut damaged = files.clone();
            damaged.get_mut(path).unwrap()[at] ^= 1 << (at % 8);
            let what = format!("bit at byte {at} of {}", path.display());
            noticed += u32::from(judge(&damaged, &[path], &what));
            total += 1;
        }
    }
    assert!(
        total > 500 && noticed > total / 4,
        "{noticed} of {total} were noticed"
    );
}

#[test]
fn shortened_missing_and_swapped_files() {
    let files = closed_store();
    let is_segment = |path: &&PathBuf| path.extension().is_some_and(|e| e == "seg");
    let newest: Vec<_> = (0..PARTITIONS)
        .map(|id| {
            let of_partition = files.iter().filter_map(|(path, content)| {
                let header = SegmentHeader::decode(content).ok()?;
                (header.partition == id && header.kind == SegmentKind::Log)
                    .then_some((header.sequence, path))
            });
            of_partition.max().unwrap().1
        })
        .collect();
    for (path, content) in &files {
        if path.ends_with("LOCK") {
            continue;
        }
        let len = content.len();
        for cut in [0, 1, 100, len / 2, len.saturating_sub(1)] {
            let mut damaged = files.clone();
            damaged.get_mut(path).unwrap().truncate(cut);
            let what = format!("{} cut to {cut} bytes", path.display());
            judge(&damaged, &[path], &what);
        }
        let mut damaged = files.clone();
        damaged.get_mut(path).unwrap().fill(0);
        judge(
            &damaged,
            &[path],
            &format!("{} is all zeros", path.display()),
        );
        if path.ends_with("STORE") {
            continue;
        }
        // The newest segment is the only one that knows of itself: without it, the log is what it
        // was before.
        if newest.contains(&path) {
            continue;
        }
        let mut damaged = files.clone();
        damaged.remove(path);
        let dir = path.parent().unwrap();
        let what = format!("{} is missing", path.display());
        judge(&damaged, &[path, dir], &what);
    }
    let segments: Vec<_> = files.keys().filter(is_segment).collect();
    for pair in segments.windows(2) {
        let [a, b] = pair else { continue };
        let mut damaged = files.clone();
        damaged.insert((*a).clone(), files[*b].clone());
        damaged.insert((*b).clone(), files[*a].clone());
        let what = format!("{} and {} are swapped", a.display(), b.display());
        let dirs = [a.parent().unwrap(), b.parent().unwrap()];
        judge(&damaged, &[a, b, dirs[0], dirs[1]], &what);
    }
}

/// A copy of a segment under another name, older than the segment: which of the two is the log cannot
/// be told, so nothing is written, and neither is put to another use.
#[test]
fn a_second_file_of_a_segment_is_refused() {
    let sim = machine(8);
    let append = |from: u64| {
        sim.block_on(async {
            let (store, _) = try_open(&sim, tiny).await.unwrap();
            let p = store.partition_or_create(0).await.unwrap();
            fill(&p, 5, 1).await;
            assert_eq!(p.offsets().log_end(), from + 5);
            close(&store).await;
        });
        snapshot(&sim)
    };
    let before = append(0);
    let after = append(5);
    let changed = |path: &&PathBuf| before.get(*path) != after.get(*path);
    let is_segment = |path: &&PathBuf| path.extension().is_some_and(|e| e == "seg");
    let newest: Vec<_> = after.keys().filter(is_segment).filter(changed).collect();
    let [newest] = newest[..] else {
        panic!("the log went on in place: {newest:?}");
    };
    let other = newest.with_file_name("00000000000000000777.seg");
    for older_goes_by in [newest, &other] {
        let newer_goes_by = if older_goes_by == newest {
            &other
        } else {
            newest
        };
        let mut doubled = after.clone();
        doubled.insert(newer_goes_by.clone(), after[newest].clone());
        doubled.insert(older_goes_by.clone(), before[newest].clone());
        let sim = machine_from(&doubled);
        let e = sim.block_on(try_open(&sim, tiny)).unwrap_err();
        check_answers(&e);
        let path = path_of(&e).unwrap();
        assert!(path == other || path == newest, "{e}");
        assert!(e.to_string().contains("second file"), "{e}");
        assert!(snapshot(&sim) == doubled, "refused, and yet changed");
        sim.block_on(async {
            let salvage = |c: &mut alluvium::StoreConfig| {
                tiny(c);
                c.on_corruption = OnCorruption::Salvage;
            };
            let (store, report) = try_open(&sim, salvage).await.unwrap();
            assert!(report.partitions[0].corruption.is_some(), "{report}");
            let p = store.partition(0).await.unwrap();
            let e = p.append(batch(10, 1)).await.unwrap_err();
            assert!(matches!(e, Error::ReadOnly { .. }), "{e}");
            close(&store).await;
        });
        // Without the older one all is there.
        let sim = machine_from(&after);
        sim.block_on(async {
            let (store, report) = try_open(&sim, tiny).await.unwrap();
            assert_eq!(report.partitions[0].log_end, 10);
            close(&store).await;
        });
    }
}

/// A note of the log to itself holds no record: that one is missing is proven by the seal behind it. Without
/// that seal an acknowledged trim could be undone without a word, also one that is a seal itself.
#[test]
fn a_damaged_note_before_a_seal_is_damage() {
    for at_rest in [false, true] {
        let sim = machine(9);
        let (path, position) = sim.block_on(async {
            let (store, _) = try_open(&sim, tiny).await.unwrap();
            let p = store.create_partition(0).await.unwrap();
            fill(&p, 10, 2).await;
            if at_rest {
                p.trim_before(4).await.unwrap();
                // Nobody asks for anything any more.
                sim.sleep(std::time::Duration::from_millis(100)).await;
            } else {
                // A trim while an append is under way is no seal.
                sim.set_stalled(true);
                let append = p.try_append(batch(10, 1), Ack::Durable.into()).unwrap();
                let go_on = async {
                    sim.sleep(std::time::Duration::from_millis(1)).await;
                    sim.set_stalled(false);
                };
                let (appended, trimmed, ()) = futures_util::join!(append, p.trim_before(4), go_on);
                appended.unwrap();
                trimmed.unwrap();
                close(&store).await;
            }
            let request = InspectRequest {
                detail: InspectDetail::Batches,
                ..InspectRequest::default()
            };
            drop((store, p));
            sim.power_loss();
            let (store, _) = try_open(&sim, tiny).await.unwrap();
            let p = store.partition(0).await.unwrap();
            let found = p.inspect(request).await.unwrap();
            close(&store).await;
            let segment = &found.segments[0];
            let is_trim = |c: &Control| c.log_start == 4;
            let mut batches = segment.batches.iter();
            let note = batches.find(|b| b.control.as_ref().is_some_and(is_trim));
            let note = note.unwrap();
            let reason = note.control.as_ref().unwrap().reason;
            assert_eq!(reason == ControlReason::Seal, at_rest);
            (segment.path.clone(), note.position)
        });
        sim.flip_bit(&path, position + 100, 0).unwrap();
        let e = sim.block_on(try_open(&sim, tiny)).unwrap_err();
        let Error::Corrupt(c) = &e else { panic!("{e}") };
        assert_eq!((&c.path, c.position), (&path, position));
    }
}

/// An index only says where to begin: what stands there is held against the offset that is asked for.
/// One with a forged checksum, each of whose entries points behind its batch, hides no record.
#[test]
fn an_index_that_points_elsewhere_hides_nothing() {
    const HEAD_LEN: usize = 48;
    const ENTRY_LEN: usize = 24;
    let files = closed_store();
    let (mut forged, mut noticed) = (0, 0);
    for (path, content) in &files {
        if path.extension().is_none_or(|e| e != "idx") {
            continue;
        }
        let entries: Vec<_> = content[HEAD_LEN..content.len() - 4]
            .chunks_exact(ENTRY_LEN)
            .collect();
        let mut index = content[..HEAD_LEN].to_vec();
        for pair in entries.windows(2) {
            index.extend_from_slice(&pair[0][..8]);
            index.extend_from_slice(&pair[1][8..]);
        }
        let count = entries.len() as u64 - 1;
        index[HEAD_LEN - 8..HEAD_LEN].copy_from_slice(&count.to_le_bytes());
        index.extend_from_slice(&crc32(&index).to_le_bytes());
        let mut damaged = files.clone();
        damaged.insert(path.clone(), index);
        let segment = path.with_extension("seg");
        let what = format!("{} points elsewhere", path.display());
        noticed += u32::from(judge(&damaged, &[path, &segment], &what));
        forged += u32::from(count > 0);
    }
    assert!(
        forged > 2 && noticed > 0,
        "{noticed} of {forged} were noticed"
    );
}

#[test]
fn a_newer_version_is_told_from_damage() {
    let files = closed_store();
    for (path, content) in &files {
        let is_segment = path.extension().is_some_and(|e| e == "seg");
        if !is_segment && !path.ends_with("STORE") {
            continue;
        }
        let mut newer = files.clone();
        // Magic, then the version; whatever follows may be of a shape unknown today.
        let bytes = newer.get_mut(path).unwrap();
        // A segment has its header twice.
        let copies = if is_segment { &[0, 2048][..] } else { &[0] };
        for at in copies {
            bytes[at + 8..at + 10].copy_from_slice(&2_u16.to_le_bytes());
            bytes[at + 12..at + 64].fill(0xEE);
        }
        let sim = machine_from(&newer);
        let e = sim.block_on(try_open(&sim, tiny)).unwrap_err();
        check_answers(&e);
        let expected = Error::UnsupportedVersion {
            path: path.clone(),
            found: 2,
            supported: 1,
        };
        assert_eq!(e, expected);
        assert!(snapshot(&sim) == newer);
        assert_ne!(content, &newer[path]);
    }
}

#[test]
fn two_directories_of_one_partition_are_refused() {
    let mut files = closed_store();
    let copies: Vec<_> = files
        .iter()
        .filter_map(|(path, content)| {
            let dir = path.parent()?.file_name()?.to_str()?;
            let (id, _) = dir.split_once('.')?;
            let twin = path.parent()?.with_file_name(format!("{id}.00000abc"));
            Some((twin.join(path.file_name()?), content.clone()))
        })
        .collect();
    files.extend(copies);
    let sim = machine_from(&files);
    let e = sim.block_on(try_open(&sim, tiny)).unwrap_err();
    let Error::Corrupt(c) = &e else { panic!("{e}") };
    assert!(matches!(c.found, CorruptionKind::Misplaced(_)), "{e}");
    assert!(snapshot(&sim) == files);
}

/// A group that came to nothing, and in its place the beginning of a second one: of the last write
/// only the first sector reached the disk. Nothing that was acknowledged is missing.
#[test]
fn parts_of_two_groups_at_one_place_are_a_torn_write() {
    // The same log twice; only the time of the group differs, as after a crash and a retry.
    let image = |later: u64| {
        let sim = machine(11);
        let mut before = 0;
        sim.block_on(async {
            let (store, _) = try_open(&sim, tiny).await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            fill(&p, 4, 1).await;
            sim.sleep(std::time::Duration::from_millis(200 + later))
                .await;
            before = p.describe().await.unwrap().used_bytes;
            let group = [40, 900, 900].map(|len| {
                let batch = alluvium::format::Batch::from_values([vec![b'x'; len]]).unwrap();
                p.try_append(batch, alluvium::Ack::Durable.into()).unwrap()
            });
            futures_util::future::try_join_all(group).await.unwrap();
            sim.power_loss();
        });
        (snapshot(&sim), before)
    };
    let ((old, _), (new, used)) = (image(0), image(5000));
    let segment = |files: &Files| {
        let is = |path: &&PathBuf| {
            let header = SegmentHeader::decode(&files[*path]);
            header.is_ok_and(|h| h.kind == SegmentKind::Log)
        };
        let like = |path: &&PathBuf| path.to_string_lossy().ends_with(".seg");
        files.keys().filter(like).find(is).unwrap().clone()
    };
    let path = segment(&old);
    assert_eq!(path, segment(&new));
    let at = usize::try_from(used).unwrap().next_multiple_of(512);
    assert_ne!(old[&path][at..at + 512], new[&path][at..at + 512]);
    assert_eq!(
        old[&path][..at - 512],
        new[&path][..at - 512],
        "the same use of the file"
    );
    let mut torn = old;
    torn.get_mut(&path).unwrap()[at..at + 512].copy_from_slice(&new[&path][at..at + 512]);
    let sim = machine_from(&torn);
    sim.block_on(async {
        let (store, report) = try_open(&sim, tiny).await.expect("nothing was lost");
        let p = store.partition(1).await.unwrap();
        // The first of the group is whole, and the second by what was there before.
        assert_eq!(p.offsets().durable(), 6, "{report}");
        p.append(batch(6, 1)).await.unwrap();
        close(&store).await;
    });
}
