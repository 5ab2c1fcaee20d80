//! Every bit and every sector of a store of several segments is damaged, one at a time: what was
//! acknowledged is reported with its file, position and offsets or served unaltered, and everything
//! else stays readable.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

use alluvium::backends::sim::{Sim, SimFactory};
use alluvium::format::{Batch, flags};
use alluvium::{
    Corruption, Error, InspectDetail, InspectRequest, OnCorruption, ReadLimits, RecoveryReport,
    Store, StoreConfig, Visibility,
};

/// What came of the damages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counts {
    /// Inside of a batch of records: reported, every time.
    pub(crate) in_records: u64,
    /// Behind a batch of records, in the zeros that fill its group: reported or served.
    pub(crate) in_padding: u64,
    /// Inside of a control batch: reported, or served as if nothing was.
    pub(crate) in_control: u64,
    /// In a segment's header block, of which there are two copies.
    pub(crate) in_headers: u64,
    /// In what belongs to no batch, and in other files.
    pub(crate) elsewhere: u64,
    /// Reported at all.
    pub(crate) reported: u64,
    /// Openings for writing that were refused.
    pub(crate) refused: u64,
}

/// A batch of the intact image.
#[derive(Debug, Clone)]
struct Placed {
    bytes: Range<u64>,
    /// Up to here there are zeros that belong to it.
    padded_end: u64,
    /// Empty for a control batch.
    offsets: Range<u64>,
}

/// A closed store, and what lies where in it.
struct Image {
    sim: Sim,
    files: BTreeMap<PathBuf, Vec<u8>>,
    batches: BTreeMap<PathBuf, Vec<Placed>>,
    offsets: Range<u64>,
}

const RECORDS: u64 = 60;
const TRIMMED: u64 = 3;
const HEADER_BLOCK: u64 = 4096;

fn value(offset: u64) -> Vec<u8> {
    format!("the record at {offset}").into_bytes()
}

fn settings(config: &mut StoreConfig) {
    config.segment_bytes = 16 << 10;
    config.group_bytes_max = 4096;
    config.group_bytes_min = 0;
    config.preinitialise = false;
    config.tail_cache_bytes_max = 0;
    config.read_ahead_chunks = 0;
    config.read_chunk_bytes = 4096;
    config.index_interval_bytes = 512;
    config.seal_after = Duration::from_millis(2);
}

impl Image {
    fn new() -> Self {
        let sim = Sim::from_seed(3);
        sim.create_dir_all("/").unwrap();
        let process = sim.new_process();
        let batches = sim.block_on(async {
            let builder = Store::builder("/store").configure(settings);
            let (store, _) = builder.backend(process).open().await.unwrap();
            let p = store.create_partition(1).await.unwrap();
            for offset in 0..RECORDS {
                let batch = Batch::from_values([value(offset)]).unwrap();
                p.append(batch).await.unwrap();
                if offset % 17 == 16 {
                    // Long enough for a seal.
                    sim.sleep(Duration::from_millis(8)).await;
                }
            }
            p.trim_before(TRIMMED).await.unwrap();
            sim.sleep(Duration::from_millis(20)).await;
            let request = InspectRequest {
                detail: InspectDetail::Batches,
                ..InspectRequest::default()
            };
            let segments = p.inspect(request).await.unwrap().segments;
            assert!(segments.len() >= 3, "{} segments", segments.len());
            let placed = segments.into_iter().map(|segment| {
                let batches = segment.batches.into_iter().map(|batch| {
                    let base = batch.header.base_offset;
                    let end = batch.position + batch.size_bytes as u64;
                    let last = batch.header.flags & flags::LAST_IN_GROUP != 0;
                    let alignment = u64::from(segment.header.alignment);
                    Placed {
                        bytes: batch.position..end,
                        padded_end: if last {
                            end.next_multiple_of(alignment)
                        } else {
                            end
                        },
                        offsets: base..batch.end_offset.max(base),
                    }
                });
                (segment.path, batches.collect())
            });
            let placed: BTreeMap<_, _> = placed.collect();
            store.close(Duration::from_secs(5)).await.unwrap();
            placed
        });
        sim.power_loss();
        let files = sim.list_files().into_iter();
        let files = files.map(|path| (path.clone(), sim.read_file(&path).unwrap()));
        Self {
            files: files.collect(),
            sim,
            batches,
            offsets: TRIMMED..RECORDS,
        }
    }

    /// Batches that the damage touches, their padding included.
    fn touched(&self, path: &Path, bytes: &Range<u64>) -> Vec<&Placed> {
        let batches = self.batches.get(path).into_iter().flatten();
        batches
            .filter(|b| b.bytes.start < bytes.end && bytes.start < b.padded_end)
            .collect()
    }

    /// Opens the damaged store, reads all of it and compares.
    fn judge(&self, path: &Path, bytes: &Range<u64>, write: bool, counts: &mut Counts) {
        let what = format!("bytes {bytes:?} of {}", path.display());
        let touched = self.touched(path, bytes);
        let (mut lost, mut unsure) = (BTreeSet::new(), BTreeSet::new());
        for batch in &touched {
            let hit = bytes.start < batch.bytes.end;
            let offsets = if hit { &mut lost } else { &mut unsure };
            // What was trimmed may lie there still.
            offsets.extend(batch.offsets.clone().filter(|o| self.offsets.contains(o)));
        }
        *if !lost.is_empty() {
            &mut counts.in_records
        } else if !unsure.is_empty() {
            &mut counts.in_padding
        } else if !touched.is_empty() {
            &mut counts.in_control
        } else if self.batches.contains_key(path) && bytes.end <= HEADER_BLOCK {
            &mut counts.in_headers
        } else {
            &mut counts.elsewhere
        } += 1;
        let named = |c: &Corruption| {
            assert_eq!(c.path, path, "{what}: {c}");
            let at_batch = touched.iter().any(|b| b.bytes.start == c.position);
            assert!(at_batch || touched.is_empty(), "{what}: {c}");
        };
        if write && self.refuses(&what, &named) {
            counts.refused += 1;
        }
        let process = self.sim.new_process();
        let id = process.process();
        let read = self.sim.block_on(read(process, &named, &what));
        self.sim.kill(id);
        let Some(read) = read else {
            // The store's own file: nothing to be read without it.
            assert!(touched.is_empty() && path.ends_with("STORE"), "{what}");
            counts.reported += 1;
            return;
        };
        counts.reported += u64::from(read.reported);
        if !lost.is_empty() {
            assert!(read.reported, "{what}: hidden");
        }
        for offset in self.offsets.clone() {
            let there = read.offsets.contains(&offset);
            let expected = !lost.contains(&offset);
            // That the padding of a batch is damaged may be reported or not.
            let sure = expected && !(read.reported && unsure.contains(&offset));
            assert!(there || !sure, "{what}: {offset} is lost, too");
            assert!(
                expected || !there,
                "{what}: {offset} is served all the same"
            );
        }
    }

    /// Whether opening for writing is refused; whatever comes of it, the image is put back.
    fn refuses(&self, what: &str, named: &impl Fn(&Corruption)) -> bool {
        let before = self.contents();
        let process = self.sim.new_process();
        let id = process.process();
        let builder = Store::builder("/store").configure(settings);
        let builder = builder.configure(|c| c.on_corruption = OnCorruption::Refuse);
        let opened = self.sim.block_on(builder.backend(process).open());
        self.sim.kill(id);
        match opened {
            Ok(_) => {
                for (path, content) in before {
                    self.sim.write_file(path, &content).unwrap();
                }
                false
            }
            Err(e) => {
                if let Error::Corrupt(c) = &e {
                    named(c);
                }
                assert!(
                    self.contents() == before,
                    "{what}: refused, and yet changed"
                );
                true
            }
        }
    }

    fn contents(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let paths = self.files.keys();
        paths
            .map(|path| (path.clone(), self.sim.read_file(path).unwrap()))
            .collect()
    }

    /// Files that are worth damaging: of a lock nothing is read.
    fn damageable(&self) -> impl Iterator<Item = (&PathBuf, u64)> {
        let files = self
            .files
            .iter()
            .filter(|(path, _)| !path.ends_with("LOCK"));
        files.map(|(path, content)| (path, content.len() as u64))
    }
}

struct Read {
    offsets: BTreeSet<u64>,
    reported: bool,
}

/// Everything that can be read, with what is reported. `None`: the store is not opened.
async fn read(process: SimFactory, named: &impl Fn(&Corruption), what: &str) -> Option<Read> {
    let builder = Store::builder("/store").configure(settings).read_only();
    let (store, report): (Store, RecoveryReport) = match builder.backend(process).open().await {
        Ok(opened) => opened,
        Err(_) => return None,
    };
    let mut read = Read {
        offsets: BTreeSet::new(),
        reported: false,
    };
    for corruption in report
        .partitions
        .iter()
        .filter_map(|p| p.corruption.as_ref())
    {
        named(corruption);
        read.reported = true;
    }
    let p = store.partition(1).await.expect(what);
    let mut at = p.offsets().log_start();
    while at < p.offsets().durable() {
        match p.read(at, ReadLimits::default(), Visibility::Durable).await {
            Ok(fetched) => {
                for record in fetched.records() {
                    let record = record.unwrap();
                    assert_eq!(
                        record.value[..],
                        value(record.offset)[..],
                        "{what}: altered"
                    );
                    read.offsets.insert(record.offset);
                }
                assert!(fetched.next_offset > at, "{what}: {at}");
                at = fetched.next_offset;
            }
            Err(Error::Corrupt(c)) => {
                named(&c);
                assert!(c.offset_start <= at, "{what}: {c} at {at}");
                read.reported = true;
                match c.offset_end.filter(|end| *end > at) {
                    Some(end) => at = end,
                    None => break,
                }
            }
            Err(e) => panic!("{what}: {e}"),
        }
    }
    Some(read)
}

/// Every `stride`-th bit of the batches, and one in eleven of that elsewhere.
pub(crate) fn bits(stride: u64) -> Counts {
    let image = Image::new();
    let mut counts = Counts::default();
    let mut turn = 0;
    for (path, len) in image.damageable() {
        for byte in 0..len {
            let bytes = byte..byte + 1;
            let live = image
                .touched(path, &bytes)
                .iter()
                .any(|b| byte < b.bytes.end);
            let stride = if live || stride == 1 {
                stride
            } else {
                stride * 11
            };
            for bit in 0..8 {
                turn += 1;
                if !u64::is_multiple_of(turn, stride) {
                    continue;
                }
                image.sim.flip_bit(path, byte, bit).unwrap();
                image.judge(path, &bytes, false, &mut counts);
                image.sim.flip_bit(path, byte, bit).unwrap();
            }
        }
    }
    counts
}

/// Every `stride`-th sector: other bytes, and zeros.
pub(crate) fn sectors(stride: u64) -> Counts {
    let image = Image::new();
    let mut counts = Counts::default();
    let mut turn = 0;
    for (path, len) in image.damageable() {
        for start in (0..len).step_by(512) {
            let bytes = start..(start + 512).min(len);
            for zeros in [false, true] {
                turn += 1;
                if !u64::is_multiple_of(turn, stride) {
                    continue;
                }
                let intact = &image.files[path];
                let mut damaged = intact.clone();
                let range =
                    usize::try_from(bytes.start).unwrap()..usize::try_from(bytes.end).unwrap();
                if zeros {
                    damaged[range].fill(0);
                    if damaged == *intact {
                        continue;
                    }
                    image.sim.write_file(path, &damaged).unwrap();
                } else {
                    image.sim.corrupt(path, bytes.clone()).unwrap();
                }
                image.judge(path, &bytes, true, &mut counts);
                image.sim.write_file(path, intact).unwrap();
            }
        }
    }
    counts
}
