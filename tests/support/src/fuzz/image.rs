//! A whole store directory that somebody has altered: it opens or says why not, ends, and serves
//! nothing that was not there.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use alluvium_backends::sim::{Sim, SimConfig};
use alluvium_core::format::{
    BATCH_HEADER_LEN, Batch, BatchHeader, SEGMENT_HEADER_LEN, SegmentHeader,
};
use alluvium_core::{
    Ack, Error, InspectRequest, OnCorruption, Partition, ReadLimits, Store, Visibility,
};

use super::batch::crc32;
use super::input::Input;
use crate::logs;

const STORE: &str = "/store";
/// Most alterations of one input: more only take longer.
const ALTERATIONS_MAX: usize = 12;
/// Most reads of one opening; a store that was cut to pieces has no more readable stretches.
const READS_MAX: usize = 2000;

type Image = BTreeMap<PathBuf, Vec<u8>>;

fn machine() -> Sim {
    let mut config = SimConfig::new(7);
    config.run_time_max = Duration::from_secs(600);
    config.run_steps_max = 3_000_000;
    Sim::new(config)
}

fn configure(config: &mut alluvium_core::StoreConfig) {
    logs::small(config);
    config.segment_bytes = 32 << 10;
    config.initialise_ahead_bytes = 4096;
}

/// A store of several segments, sealed and not, trimmed, with a spare and indexes; the value of
/// every record follows from its offset.
fn sound() -> &'static Image {
    static IMAGE: OnceLock<Image> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let sim = machine();
        sim.create_dir_all("/").unwrap();
        let factory = sim.new_process();
        let process = factory.process();
        sim.block_on(async {
            let builder = Store::builder(STORE).configure(configure);
            let (store, _) = builder.backend(factory).open().await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            logs::fill(&p, 120, 3).await;
            p.trim_before(70).await.unwrap();
            logs::fill(&p, 30, 4).await;
            let weak = logs::batch(p.offsets().log_end(), 2);
            p.append_with(weak, Ack::Written).await.unwrap();
            let q = store.create_partition(2).await.unwrap();
            logs::fill(&q, 9, 1).await;
            sim.sleep(Duration::from_millis(50)).await;
            logs::fill(&q, 2, 1).await;
        });
        sim.kill(process);
        let files = sim.list_files().into_iter();
        let read = |path: PathBuf| {
            let bytes = sim.read_file(&path).unwrap();
            (path, bytes)
        };
        files.map(read).collect()
    })
}

/// Whole stores: the bytes say what is altered, with and without mended checksums.
pub fn open_image(data: &[u8]) {
    let mut input = Input(data);
    let mut image = sound().clone();
    let mut forged = false;
    for _ in 0..ALTERATIONS_MAX {
        if input.is_empty() {
            break;
        }
        forged |= alter(&mut image, &mut input);
    }
    for policy in [
        OnCorruption::Refuse,
        OnCorruption::Salvage,
        OnCorruption::CutTail { partition: 1 },
    ] {
        visit(&image, policy, false, !forged);
    }
    visit(&image, OnCorruption::Salvage, true, !forged);
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
    let at = (usize::from(input.u16()) * 8).min(bytes.len());
    match what {
        0 => {
            let patch = input.bytes(16);
            let end = (at + patch.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&patch[..end - at]);
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
    let crc = crc32(&header[..BATCH_HEADER_LEN - 4]);
    header[BATCH_HEADER_LEN - 4..].copy_from_slice(&crc.to_le_bytes());
    true
}

fn plant(image: &Image) -> Sim {
    let sim = machine();
    sim.create_dir_all(STORE).unwrap();
    for (path, bytes) in image {
        sim.write_file(path, bytes).unwrap();
    }
    sim
}

/// Opens the image, reads everything, and closes. `honest`: records must be those of the offset.
fn visit(image: &Image, policy: OnCorruption, read_only: bool, honest: bool) {
    let sim = plant(image);
    sim.block_on(async {
        let builder = Store::builder(STORE).configure(|config| {
            configure(config);
            config.on_corruption = policy;
        });
        let builder = if read_only {
            builder.read_only()
        } else {
            builder
        };
        let Ok((store, _)) = builder.backend(sim.new_process()).open().await else {
            return;
        };
        for info in store.list_partitions().await.unwrap_or_default() {
            let Ok(p) = store.partition(info.id).await else {
                continue;
            };
            read_through(&p, honest).await;
            // Tells what it finds, or fails with a type.
            drop(p.inspect(InspectRequest::default()).await);
            drop(p.offset_for_timestamp(0).await);
            if !read_only {
                drop(p.append(Batch::from_values(["x"]).unwrap()).await);
            }
        }
        drop(store.close(Duration::from_secs(30)).await);
    });
}

async fn read_through(p: &Partition, honest: bool) {
    let offsets = p.offsets();
    let mut at = offsets.log_start();
    for _ in 0..READS_MAX {
        if at >= offsets.durable() {
            return;
        }
        match p.read(at, ReadLimits::default(), Visibility::Durable).await {
            Ok(fetched) => {
                for record in fetched.records() {
                    let Ok(record) = record else { break };
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
                _ => return,
            },
            Err(_) => return,
        }
    }
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
