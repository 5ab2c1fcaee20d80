//! What is written beside the appends leaves room for them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use alluvium::backends::layer::{Layer, Layered};
use alluvium::backends::sim::{Latency, SimConfig};
use alluvium::io::IoBackend;
use alluvium::{InspectDetail, InspectRequest, ReadLimits, Store, Visibility};
use alluvium_testkit::logs::{SEGMENT_BYTES, batch, close, fill, small};
use futures_util::future::join_all;

use crate::machine::{DIR, EIO, machine, machine_with, store_and_partition, try_open};

/// Counts the writes that are not durable ones (where every append is durable: the zeros ahead of the
/// appends), on a backend that has room for so many.
#[derive(Clone)]
struct Zeros {
    room: usize,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    under_way: AtomicUsize,
    most: AtomicUsize,
    done: AtomicUsize,
}

impl Layer for Zeros {
    fn before(&self, operation: &'static str, _: &Path) {
        if operation == "write_at" {
            let under_way = self.counts.under_way.fetch_add(1, Ordering::SeqCst) + 1;
            self.counts.most.fetch_max(under_way, Ordering::SeqCst);
        }
    }

    fn after(&self, operation: &'static str, _: &Path, _: Duration) {
        if operation == "write_at" {
            self.counts.under_way.fetch_sub(1, Ordering::SeqCst);
            self.counts.done.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn background_writes_max<B: IoBackend>(&self, _: &B) -> usize {
        self.room
    }
}

const PARTITIONS: u64 = 12;

/// Appends to every partition at once, some times over: the most zeroing writes that were under way
/// at a time, and how many there were.
fn zeros_under_way(room: usize) -> (usize, usize) {
    let sim = machine(11);
    sim.block_on(async {
        let counts = Arc::new(Counts::default());
        let layer = Zeros {
            room,
            counts: Arc::clone(&counts),
        };
        let builder = Store::builder(DIR).configure(small).configure(|c| {
            c.preinitialise = true;
            c.segment_bytes = 4 << 20;
            c.initialise_ahead_bytes = 128 << 10;
            c.spare_segments_max = 0;
        });
        let backend = Layered::new(sim.new_process(), layer);
        let (store, _) = builder.backend(backend).open().await.unwrap();
        let mut logs = Vec::new();
        for id in 0..PARTITIONS {
            logs.push(store.create_partition(id).await.unwrap());
        }
        // The files of new partitions begin with zeros; these are not what is counted.
        counts.most.store(0, Ordering::SeqCst);
        counts.done.store(0, Ordering::SeqCst);
        for round in 0..PARTITIONS {
            let appends = logs.iter().map(|p| p.append(batch(round, 1)));
            for appended in join_all(appends).await {
                appended.unwrap();
            }
            sim.sleep(Duration::from_millis(200)).await;
        }
        close(&store).await;
        let most = counts.most.load(Ordering::SeqCst);
        (most, counts.done.load(Ordering::SeqCst))
    })
}

/// Zeros of one partition must not hold what the appends of others need: a backend says for how many
/// it has room. Those that found none have theirs with a later append.
#[test]
fn zeros_ahead_take_no_more_than_the_backend_has_room_for() {
    let partitions = usize::try_from(PARTITIONS).unwrap();
    let (most, without_bound) = zeros_under_way(usize::MAX);
    assert_eq!(
        most, partitions,
        "without a bound all are under way at once"
    );
    assert!(without_bound >= partitions);
    for room in [1, 3] {
        let (most, zeroed) = zeros_under_way(room);
        assert_eq!(most, room);
        assert_eq!(
            zeroed, without_bound,
            "each partition has its zeros, room {room}"
        );
    }
}

/// A segment whose time is not known, because its index can neither be read nor made, keeps nobody from
/// removing by size.
#[test]
fn retention_by_size_goes_on_where_an_age_cannot_be_read() {
    let sim = machine(12);
    sim.block_on(async {
        let (store, _) = try_open(&sim, |_| {}).await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 600, 4).await;
        close(&store).await;
        let indexes = sim.list_files().into_iter();
        for path in indexes.filter(|path| path.extension().is_some_and(|e| e == "idx")) {
            sim.write_file(&path, b"not an index").unwrap();
        }
        let (store, _) = try_open(&sim, |c| {
            c.retention_bytes = Some(2 * SEGMENT_BYTES);
            c.retention_age = Some(Duration::from_secs(86_400));
            c.retention_interval = Duration::from_millis(20);
        })
        .await
        .unwrap();
        let p = store.partition(1).await.unwrap();
        for n in 1..10_000 {
            sim.fail_read(sim.counters().reads + n, EIO);
        }
        sim.sleep(Duration::from_secs(2)).await;
        sim.cancel_failures();
        let info = p.describe().await.unwrap();
        assert!(info.segments <= 3, "{info:?}");
        let failures = store.stats().await.unwrap()[0].housekeeping_failures;
        assert!(failures > 0, "and it is counted");
        close(&store).await;
    });
}

/// Retention looks again and again, and asks once: what it asks for takes of the room that control batches
/// need on a full disk.
#[test]
fn retention_writes_one_control_batch_however_long_it_takes() {
    let sim = machine(14);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 600, 4).await;
        close(&store).await;
        let slow = |c: &mut SimConfig| {
            let second = Latency::micros(1_000_000, 1_000_000);
            (c.write, c.write_durable, c.sync) = (second, second, second);
        };
        let (store, _) = try_open(&sim, |c| {
            c.retention_bytes = Some(2 * SEGMENT_BYTES);
            c.retention_interval = Duration::from_millis(20);
        })
        .await
        .unwrap();
        sim.configure(slow);
        let p = store.partition(1).await.unwrap();
        sim.sleep(Duration::from_secs(15)).await;
        let start = p.offsets().log_start();
        assert!(start > 0);
        let request = InspectRequest {
            detail: InspectDetail::Batches,
            ..InspectRequest::default()
        };
        let found = p.inspect(request).await.unwrap();
        let batches = found.segments.iter().flat_map(|s| &s.batches);
        let trims = batches
            .filter_map(|b| b.control)
            .filter(|c| c.log_start == start);
        assert_eq!(trims.count(), 2, "itself, and the seal behind it");
        close(&store).await;
    });
}

/// A read holds the file of a segment that is trimmed meanwhile; the space comes back when it ends,
/// though nobody asks anything of the partition any more.
#[test]
fn space_comes_back_when_the_last_reader_has_gone() {
    let sim = machine(13);
    sim.block_on(async {
        let (store, _) = try_open(&sim, |c| {
            c.tail_cache_bytes_max = 0;
            c.spare_segments_max = 0;
        })
        .await
        .unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 600, 4).await;
        let segments = || {
            let files = sim.list_files().into_iter();
            files
                .filter(|f| f.extension().is_some_and(|e| e == "seg"))
                .count()
        };
        let before = segments();
        sim.configure(|c| c.read = Latency::micros(20_000_000, 20_000_000));
        let trimming = async {
            sim.sleep(Duration::from_millis(10)).await;
            p.trim_before(300).await.unwrap();
            sim.sleep(Duration::from_secs(5)).await;
            segments()
        };
        let reading = p.read(0, ReadLimits::default(), Visibility::Durable);
        let (read, held) = futures_util::join!(reading, trimming);
        // What became of the read is its own matter.
        drop(read);
        assert!(
            held < before,
            "{held} of {before} files before the reader has gone"
        );
        sim.sleep(Duration::from_secs(5)).await;
        let left = segments();
        assert!(
            left < held,
            "{left} of {before} files, {held} beside the reader"
        );
        assert_eq!(left, p.describe().await.unwrap().segments);
        close(&store).await;
    });
}

/// A partition at rest wakes nobody, also where its segment has no room for a seal: nobody would ever
/// write it.
#[test]
fn a_partition_at_rest_sleeps_in_a_full_segment_too() {
    // A trim at rest takes two blocks, for itself and its seal; of an odd number the last one is left.
    let sim = machine_with(19, |c| c.alignment = 4096);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 64, 1).await;
        let mut without_seal = 0;
        for to in 1..=40 {
            let before = sim.counters();
            p.trim_before(to).await.unwrap();
            sim.sleep(Duration::from_secs(1)).await;
            let at_rest = sim.counters();
            sim.sleep(Duration::from_secs(1)).await;
            let wakes = sim.counters().sleeps - at_rest.sleeps - 1;
            assert_eq!(wakes, 0, "trim to {to}, within a second of rest");
            without_seal += u64::from(at_rest.durable_writes - before.durable_writes == 1);
        }
        assert!(without_seal > 0, "no trim took the last block");
        close(&store).await;
    });
}
