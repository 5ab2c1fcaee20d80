//! Futures dropped at any time under load, and openings half-way, on the real backends.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use alluvium::io::BackendFactory;
use alluvium::{Ack, Error, ReadLimits, Shards, Store, Visibility};
use alluvium_testkit::logs::{batch, close, fill, small, verify};
use futures_util::StreamExt;

/// They count the descriptors of the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const CALLERS: u64 = 6;
const ROUNDS: u64 = 60;

fn descriptors_below(dir: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(dir)))
        .count()
}

/// A cheap sequence of numbers that look random.
fn scramble(n: u64) -> u64 {
    let mixed = (n ^ 0x9E37_79B9).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed ^ (mixed >> 29)
}

/// Returns up to where appends were acknowledged durable.
async fn caller(store: Store, id: u64) -> u64 {
    let mut durable = 0;
    let p = store.partition_or_create(id).await.unwrap();
    for round in 0..ROUNDS {
        let dice = scramble(id * 1000 + round);
        let patience = Duration::from_micros(dice % 900);
        let limits = ReadLimits {
            bytes_max: 8192,
            records_max: 50,
        };
        let start = p.offsets().log_start();
        let request = async {
            match dice % 7 {
                0..=2 => {
                    let level = [Ack::Accepted, Ack::Written, Ack::Durable][(dice % 3) as usize];
                    let end = p.offsets().log_end();
                    let next = batch(end, 1 + dice % 5);
                    // Only if nothing that was dropped came in between.
                    let options = alluvium::AppendOptions::from(level);
                    let options = options.expected_end(end);
                    match p.append_with(next, options).await {
                        Ok(appended) if level == Ack::Durable => {
                            durable = durable.max(appended.end_offset());
                        }
                        Ok(_) | Err(Error::WrongOffset { .. }) => {}
                        Err(e) => panic!("append: {e}"),
                    }
                }
                3 => match p.read(start, limits, Visibility::Durable).await {
                    // Trims of before go on.
                    Ok(_) | Err(Error::OutOfRange { .. }) => {}
                    Err(e) => panic!("read: {e}"),
                },
                4 => drop(p.subscribe(start).next().await),
                5 => drop(p.sync().await.unwrap()),
                _ => match p.trim_before(start + 1).await {
                    Ok(()) | Err(Error::OutOfRange { .. }) => {}
                    Err(e) => panic!("trim: {e}"),
                },
            }
        };
        let _in_time = tokio::time::timeout(patience, request).await;
    }
    durable
}

fn under_load<F: BackendFactory + Clone>(factory: &F) {
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_time()
        .build()
        .unwrap();
    let open = || async {
        let builder = Store::builder(dir.path()).configure(small);
        let builder = builder.configure(|c| c.shards = Shards::Count(2));
        builder.backend(factory.clone()).open().await.unwrap().0
    };
    let body = async {
        let store = open().await;
        let callers: Vec<_> = (0..CALLERS)
            .map(|id| tokio::spawn(caller(store.clone(), id)))
            .collect();
        let mut durable = vec![];
        for caller in callers {
            durable.push(caller.await.unwrap());
        }
        assert!(durable.iter().sum::<u64>() > CALLERS, "{durable:?}");
        for _ in 0..2000 {
            let stats = store.stats().await.unwrap();
            if stats
                .iter()
                .all(|s| s.requests_under_way == 0 && s.bytes_under_way == 0)
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let stats = store.stats().await.unwrap();
        let left = stats
            .iter()
            .map(|s| s.requests_under_way + s.bytes_under_way);
        assert_eq!(left.sum::<usize>(), 0, "permits come back: {stats:?}");
        let mut ends = vec![];
        for id in 0..CALLERS {
            let p = store.partition(id).await.unwrap();
            p.sync().await.unwrap();
            let offsets = p.offsets();
            assert!(offsets.log_end() >= durable[usize::try_from(id).unwrap()]);
            verify(&p, offsets.log_start(), offsets.log_end()).await;
            ends.push(offsets);
        }
        close(&store).await;
        let store = open().await;
        for (id, offsets) in (0..).zip(ends) {
            let p = store.partition(id).await.unwrap();
            verify(&p, offsets.log_start(), offsets.log_end()).await;
        }
        close(&store).await;
    };
    runtime.block_on(async {
        let ended = tokio::time::timeout(Duration::from_secs(60), body).await;
        ended.expect("something hangs");
    });
    no_descriptors_below(dir.path());
}

/// Openings of a log of many segments, left by their caller after a moment, a later one, and so on,
/// or ended by a file that somebody else has locked; then it is whole and can be had.
fn openings_that_come_to_nothing<F: BackendFactory + Clone>(factory: &F) {
    const RECORDS: u64 = 4_000;
    let _guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let open = || {
        let builder = Store::builder(dir.path()).configure(small);
        builder.backend(factory.clone()).open()
    };
    // The shard of an opening that was dropped holds the lock for a moment more.
    let until_had = || async {
        for _ in 0..1000 {
            match open().await {
                Err(Error::AlreadyOpen { .. }) => {}
                opened => return opened.unwrap().0,
            }
        }
        panic!("the lock stays");
    };
    runtime.block_on(async {
        let store = until_had().await;
        let p = store.create_partition(1).await.unwrap();
        fill(&p, RECORDS, 10).await;
        close(&store).await;
        // More segments than are opened at a time.
        let ends = p.offsets().log_end() * 750;
        assert!(ends / alluvium_testkit::logs::SEGMENT_BYTES > 40);
        let mut dropped = 0;
        for round in 1..=60 {
            no_descriptors_below(dir.path());
            let patience = Duration::from_micros(100) * round;
            match tokio::time::timeout(patience, open()).await {
                Ok(opened) => close(&opened.unwrap().0).await,
                Err(_) => dropped += 1,
            }
        }
        assert!(dropped > 0, "no opening was dropped");
        for n in [0, 20, 39] {
            no_descriptors_below(dir.path());
            let lock = lock_segment(dir.path(), n);
            let builder = Store::builder(dir.path()).configure(small);
            let builder = builder.configure(|c| c.fence_timeout = Duration::from_millis(30));
            let refused = builder.backend(factory.clone()).open().await;
            assert!(matches!(refused, Err(Error::Fenced { .. })), "{refused:?}");
            drop(lock);
            close(&until_had().await).await;
        }
        let store = until_had().await;
        verify(&store.partition(1).await.unwrap(), 0, RECORDS).await;
        close(&store).await;
    });
    no_descriptors_below(dir.path());
}

/// Locks the n-th segment file below `dir`, until it is dropped.
fn lock_segment(dir: &Path, n: usize) -> std::fs::File {
    let mut segments = segment_files(dir);
    segments.sort_unstable();
    let file = std::fs::File::open(&segments[n]).unwrap();
    file.lock().unwrap();
    file
}

fn segment_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(segment_files(&path));
        } else if path.extension().is_some_and(|e| e == "seg") {
            all.push(path);
        }
    }
    all
}

fn no_descriptors_below(dir: &Path) {
    // The last operations in the kernel may outlive the shards by a moment.
    for _ in 0..1000 {
        if descriptors_below(dir) == 0 {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("{} descriptors leak", descriptors_below(dir));
}

#[cfg(feature = "tokio")]
#[test]
fn on_tokio() {
    let factory = alluvium::backends::tokio::TokioFactory::new();
    under_load(&factory);
    openings_that_come_to_nothing(&factory);
}

#[cfg(feature = "compio")]
#[test]
fn on_compio() {
    let factory = alluvium::backends::compio::CompioFactory::new();
    under_load(&factory);
    openings_that_come_to_nothing(&factory);
}

#[cfg(feature = "uring")]
#[test]
fn on_uring() {
    let factory = alluvium::backends::uring::UringFactory::new();
    under_load(&factory);
    openings_that_come_to_nothing(&factory);
}

#[cfg(feature = "uring")]
#[test]
fn on_uring_with_registered_memory() {
    let factory = alluvium::backends::uring::UringFactory::new();
    under_load(&factory.registered_bytes(4 << 20));
}

#[cfg(feature = "glommio")]
#[test]
fn on_glommio() {
    let factory = alluvium::backends::glommio::GlommioFactory::new();
    under_load(&factory);
    openings_that_come_to_nothing(&factory);
}
