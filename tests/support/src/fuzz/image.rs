//! A whole store directory that somebody has altered: it opens or says why not, ends, and serves
//! nothing that was not there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use alluvium_backends::sim::Sim;
use alluvium_core::format::{
    BATCH_HEADER_LEN, Batch, BatchHeader, SEGMENT_HEADER_LEN, SegmentHeader,
};
use alluvium_core::{
    Ack, Error, InspectRequest, OnCorruption, Partition, ReadLimits, Store, Visibility,
};
use bytes::Bytes;

use super::input::Input;
use super::machine::{Image, STORE, configure, image_of, machine, plant};
use super::mend::{crc32, mend_header};
use crate::logs;

/// Most alterations of one input: more only take longer.
const ALTERATIONS_MAX: usize = 8;
/// Most reads of one opening; a store that was cut to pieces has no more readable stretches.
const READS_MAX: usize = 500;

/// A store of several segments, sealed and not, trimmed, with a spare and indexes; the value of
/// every record follows from its offset.
fn sound() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let sim = machine(7);
        sim.create_dir_all("/").unwrap();
        let factory = sim.new_process();
        let process = factory.process();
        sim.block_on(async {
            let builder = Store::builder(STORE).configure(|config| {
                configure(config);
                config.spare_segments_max = 1;
            });
            let (store, _) = builder.backend(factory).open().await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            logs::fill(&p, 36, 3).await;
            p.trim_before(20).await.unwrap();
            logs::fill(&p, 9, 4).await;
            let weak = logs::batch(p.offsets().log_end(), 2);
            p.append_with(weak, Ack::Written).await.unwrap();
            let q = store.create_partition(2).await.unwrap();
            logs::fill(&q, 5, 1).await;
            sim.sleep(Duration::from_millis(50)).await;
            logs::fill(&q, 2, 1).await;
        });
        sim.kill(process);
        image_of(&sim)
    })
}

/// Whole stores: the first byte says how the store is opened, the others what is altered, with and
/// without mended checksums.
pub fn open_image(data: &[u8]) {
    let mut input = Input(data);
    let how = input.byte();
    let mut image = sound().clone();
    let mut forged = false;
    for _ in 0..ALTERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        forged |= alter(&mut image, &mut input);
    }
    let policy = match how % 4 {
        0 => OnCorruption::Refuse,
        1 => OnCorruption::CutTail { partition: 1 },
        _ => OnCorruption::Salvage,
    };
    let visit = Visit {
        policy,
        read_only: how % 4 == 3,
        inspect: how & 4 != 0,
        honest: !forged,
    };
    let sim = plant(&image);
    let seen = visit.run(&sim);
    if seen.is_some() && !visit.read_only && how & 8 != 0 {
        // What was recovered stays, and what was appended to it: nothing is lost by a second opening.
        let again = visit.run(&sim);
        let kept = |seen: &Records| {
            let again = again.as_ref();
            again.is_some_and(|again| seen.iter().all(|(at, value)| again.get(at) == Some(value)))
        };
        assert!(
            forged || seen.as_ref().is_some_and(kept),
            "{again:?} after {seen:?}"
        );
    }
}

/// Alters one thing; whether it has forged a checksum.
fn alter(image: &mut Image, input: &mut Input<'_>) -> bool {
    let what = input.byte() % 9;
    let paths: Vec<PathBuf> = image.keys().cloned().collect();
    let Some(path) = paths.get(input.below(paths.len())) else {
        return false;
    };
    let other = paths.get(input.below(paths.len())).unwrap_or(path);
    let Some(bytes) = image.get_mut(path) else {
        return false;
    };
    let at = (usize::from(input.u16() % 2048) * 8).min(bytes.len());
    match what {
        0 => {
            // Turned over, not replaced: a fuzzer that sees the right checksum in a comparison
            // must not be able to put it there.
            for (byte, flip) in bytes[at..].iter_mut().zip(input.bytes(16)) {
                *byte ^= flip;
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (input.byte() % 8);
            }
        }
        2 => bytes.truncate(at),
        3 => {
            image.remove(path);
        }
        4 => {
            if let Some(copy) = image.get(other).cloned() {
                image.insert(path.clone(), copy);
            }
        }
        5 => {
            let end = (at + 512 * (1 + input.below(8))).min(bytes.len());
            bytes[at..end].fill(input.byte());
        }
        6 => {
            let name = format!("{:020}.seg", input.byte());
            let copy = bytes.clone();
            image.insert(path.with_file_name(name), copy);
        }
        7 => return forge_header(bytes, input),
        _ => return forge_batch(bytes, at, input),
    }
    false
}

/// A segment header with another value in one field and right checksums.
fn forge_header(bytes: &mut [u8], input: &mut Input<'_>) -> bool {
    let Some(block) = bytes.get_mut(..SEGMENT_HEADER_LEN) else {
        return false;
    };
    let Ok(mut header) = SegmentHeader::decode(block) else {
        return false;
    };
    let field = input.byte() % 12;
    let value = match input.byte() % 4 {
        0 => u64::from(input.byte()),
        1 => u64::MAX - u64::from(input.byte()),
        _ => input.u64(),
    };
    let small = u32::try_from(value & 0xFFFF_FFFF).unwrap_or(0);
    match field {
        0 => header.identity = value,
        1 => header.partition = value,
        2 => header.incarnation = small,
        3 => header.generation = small,
        4 => header.sequence = value,
        5 => header.base_offset = value,
        6 => header.prev_identity = value,
        7 => header.prev_end_offset = value,
        8 => header.prev_end_position = value,
        9 => header.log_start = value,
        10 => header.reserved_end = value,
        _ => header.capacity_bytes = value,
    }
    block.copy_from_slice(&header.encode());
    true
}

/// The first batch from `at` on with other bytes in its header and a right checksum.
fn forge_batch(bytes: &mut [u8], at: usize, input: &mut Input<'_>) -> bool {
    let places = (at - at % 512..bytes.len()).step_by(512);
    let found = places.into_iter().find(|at| {
        let header = bytes.get(*at..*at + BATCH_HEADER_LEN);
        header.is_some_and(|header| BatchHeader::decode(header).is_ok())
    });
    let Some(header) = found.and_then(|at| bytes.get_mut(at..at + BATCH_HEADER_LEN)) else {
        return false;
    };
    let place = usize::from(input.byte()) % (BATCH_HEADER_LEN - 4);
    let patch = input.bytes(8);
    let end = (place + patch.len()).min(BATCH_HEADER_LEN - 4);
    header[place..end].copy_from_slice(&patch[..end - place]);
    mend_header(header);
    true
}

/// One opening.
#[derive(Debug, Clone, Copy)]
struct Visit {
    policy: OnCorruption,
    read_only: bool,
    inspect: bool,
    /// Records must be those of the offset.
    honest: bool,
}

impl Visit {
    /// Opens the store, reads everything, appends, and closes. All records that can be read, and those that
    /// were appended, if it opens.
    fn run(self, sim: &Sim) -> Option<Records> {
        sim.block_on(async {
            let builder = Store::builder(STORE).configure(|config| {
                configure(config);
                config.on_corruption = self.policy;
            });
            let builder = if self.read_only {
                builder.read_only()
            } else {
                builder
            };
            let (store, _) = builder.backend(sim.new_process()).open().await.ok()?;
            let mut seen = Records::new();
            for info in store.list_partitions().await.unwrap_or_default() {
                let Ok(p) = store.partition(info.id).await else {
                    continue;
                };
                let to_the_end = read_through(&p, self.honest, &mut seen).await;
                if self.inspect {
                    // Tells what it finds, or fails with a type.
                    drop(p.inspect(InspectRequest::default()).await);
                    drop(p.offset_for_timestamp(0).await);
                }
                if !self.read_only {
                    // What belongs at the offset, unless a forged log has none left.
                    let end = p.offsets().log_end();
                    let (more, value) = match end.checked_add(1) {
                        Some(_) => (logs::batch(end, 1), logs::value(end)),
                        None => (Batch::from_values(["x"]).unwrap(), b"x".to_vec()),
                    };
                    if let Ok(appended) = p.append(more).await
                        && to_the_end
                    {
                        seen.insert((info.id, appended.base_offset), value.into());
                    }
                }
            }
            drop(store.close(Duration::from_secs(30)).await);
            Some(seen)
        })
    }
}

/// By partition and offset.
type Records = BTreeMap<(u64, u64), Bytes>;

/// Adds all that can be read; whether that goes to the end.
async fn read_through(p: &Partition, honest: bool, records: &mut Records) -> bool {
    let offsets = p.offsets();
    let mut at = offsets.log_start();
    for _ in 0..READS_MAX {
        if at >= offsets.durable() {
            return true;
        }
        match p.read(at, ReadLimits::default(), Visibility::Durable).await {
            Ok(fetched) => {
                for record in fetched.records() {
                    let Ok(record) = record else { break };
                    records.insert((p.id(), record.offset), record.value.clone());
                    let right = record.value[..] == logs::value(record.offset)[..];
                    assert!(right || !honest, "offset {} has other bytes", record.offset);
                }
                assert!(
                    fetched.next_offset > at,
                    "a read at {at} of {offsets:?} stands still"
                );
                at = fetched.next_offset;
            }
            Err(Error::Corrupt(damage)) => match damage.offset_end {
                Some(end) if end > at => at = end,
                _ => return false,
            },
            Err(_) => return false,
        }
    }
    false
}

/// Index files are never evidence: whatever they hold, the store opens and no read returns anything
/// but what is in the segments. Damage that no checksum covers up costs nothing; a forged checksum
/// may at most turn a read into an error.
pub fn open_index(data: &[u8]) {
    let mut input = Input(data);
    let mut image = sound().clone();
    let indexes: Vec<PathBuf> = image
        .keys()
        .filter(|path| is_index(path))
        .cloned()
        .collect();
    assert!(!indexes.is_empty(), "the image has no index");
    let mut forged = false;
    for path in &indexes {
        let Some(bytes) = image.get_mut(path) else {
            continue;
        };
        match input.byte() % 4 {
            0 => {}
            1 => *bytes = input.bytes(200).to_vec(),
            _ => {
                // One field altered; the checksum mended, so that the decoder gets to see it.
                let at = input.below(bytes.len());
                let patch = input.bytes(8);
                let end = (at + patch.len()).min(bytes.len());
                bytes[at..end].copy_from_slice(&patch[..end - at]);
                if let Some(covered) = bytes.len().checked_sub(4) {
                    let crc = crc32(&bytes[..covered]);
                    bytes[covered..].copy_from_slice(&crc.to_le_bytes());
                    forged = true;
                }
            }
        }
    }
    let sim = plant(&image);
    sim.block_on(async {
        let builder = Store::builder(STORE).configure(configure);
        let opened = builder.backend(sim.new_process()).open().await;
        let (store, _) = opened.expect("an index cannot stop an opening");
        let p = store.partition(1).await.unwrap();
        let offsets = p.offsets();
        if !forged {
            logs::verify(&p, offsets.log_start(), offsets.log_end()).await;
        }
        for at in offsets.log_start()..offsets.log_end() {
            let limits = ReadLimits::default();
            let fetched = match p.read(at, limits, Visibility::Durable).await {
                Ok(fetched) => fetched,
                Err(Error::Corrupt(_)) if forged => continue,
                Err(e) => panic!("{at} of sound segments: {e}"),
            };
            let first = fetched.records().next();
            let first = first.expect("a record").expect("sound");
            assert_eq!(first.offset, at);
            assert_eq!(first.value[..], logs::value(at)[..]);
        }
        logs::close(&store).await;
    });
}

fn is_index(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "idx")
}
