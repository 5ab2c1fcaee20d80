//! Every pair of backends: a process writes with one and is killed, another opens with the other.
//!
//! The writer is this very test binary, started again for the one test that is only its body.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use alluvium::format::Batch;
use alluvium::{Ack, BackendKind, ReadLimits, Shards, Store, Visibility, probe};

const PARTITIONS: usize = 3;
const SEGMENT_BYTES: u64 = 1 << 20;
/// Acknowledgements that the parent waits for before it kills.
const ACKNOWLEDGED_MIN: usize = 300;
const CHILD: &str = "cross_backend::the_writer_that_is_killed";
const DIR_VARIABLE: &str = "ALLUVIUM_TEST_WRITER_DIR";
const BACKEND_VARIABLE: &str = "ALLUVIUM_TEST_WRITER_BACKEND";

async fn open(dir: &Path, backend: BackendKind) -> Store {
    Store::builder(dir)
        .configure(|c| {
            c.shards = Shards::Count(2);
            c.segment_bytes = SEGMENT_BYTES;
            c.retention_bytes = Some(64 * SEGMENT_BYTES);
        })
        .backend(backend)
        .open()
        .await
        .unwrap()
        .0
}

/// The value at an offset: long and short ones, all different.
fn value(partition: u64, offset: u64) -> Vec<u8> {
    let len = 1 + usize::try_from((offset * 7919 + partition * 31) % 5000).unwrap();
    let mut value = vec![(offset % 251) as u8; len];
    value.extend_from_slice(&offset.to_le_bytes());
    value
}

fn level(offset: u64) -> Ack {
    if offset.is_multiple_of(3) {
        Ack::Written
    } else {
        Ack::Durable
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread();
    { runtime }.enable_all().build().unwrap().block_on(future)
}

/// Not a test by itself: appends until it is killed, when told where.
#[test]
fn the_writer_that_is_killed() {
    let (Ok(dir), Ok(backend)) = (std::env::var(DIR_VARIABLE), std::env::var(BACKEND_VARIABLE))
    else {
        return;
    };
    block_on(async {
        let store = open(Path::new(&dir), backend.parse().unwrap()).await;
        let mut writers = Vec::new();
        for id in (0..).take(PARTITIONS) {
            let partition = store.partition_or_create(id).await.unwrap();
            writers.push(async move {
                for offset in 0_u64.. {
                    let batch = Batch::from_values([value(id, offset)]).unwrap();
                    let append = partition.append_with(batch, level(offset));
                    let appended = append.await.unwrap();
                    assert_eq!(appended.base_offset, offset);
                    // One write, so that a line is whole or absent.
                    let line = format!("acknowledged {id} {offset}\n");
                    std::io::stdout().write_all(line.as_bytes()).unwrap();
                    std::io::stdout().flush().unwrap();
                }
            });
        }
        futures_util::future::join_all(writers).await;
    });
}

struct KillOnDrop(Child);

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        // It may have ended by itself, which the checks find out.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Lets a writer run and kills it; the ends of what it was acknowledged.
fn write_and_kill(dir: &Path, backend: BackendKind) -> [u64; PARTITIONS] {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", CHILD, "--nocapture", "--test-threads=1"])
        .env(DIR_VARIABLE, dir)
        .env(BACKEND_VARIABLE, backend.to_string())
        .stdout(Stdio::piped());
    let mut child = KillOnDrop(command.spawn().unwrap());
    let mut lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut ends = [0; PARTITIONS];
    let mut note = |line: String| {
        // The test harness talks on the same stream.
        let Some(words) = line.split_once("acknowledged ").map(|(_, words)| words) else {
            return 0;
        };
        let (id, offset) = words.split_once(' ').unwrap();
        ends[id.parse::<usize>().unwrap()] = offset.parse::<u64>().unwrap() + 1;
        1
    };
    let mut seen = 0;
    while seen < ACKNOWLEDGED_MIN {
        let line = lines.next().expect("the writer ended by itself").unwrap();
        seen += note(line);
    }
    child.0.kill().unwrap();
    for line in lines {
        note(line.unwrap());
    }
    ends
}

async fn check(store: &Store, ends: &[u64], backend: BackendKind) {
    for (id, &end) in (0..).zip(ends) {
        let partition = store.partition(id).await.unwrap();
        let log_end = partition.offsets().log_end();
        assert!(
            log_end >= end,
            "{backend}: {id} ends at {log_end}, not {end}"
        );
        let mut at = 0;
        while at < log_end {
            let read = partition.read(at, ReadLimits::default(), Visibility::Durable);
            let fetched = read.await.unwrap();
            for record in fetched.records() {
                let record = record.unwrap();
                // Offsets that a crash took from nobody are skipped, none that was acknowledged.
                let skipped = at..record.offset;
                assert!(
                    skipped.is_empty() || at >= end,
                    "{backend}: {id} lacks {skipped:?}"
                );
                assert_eq!(
                    record.value,
                    value(id, record.offset),
                    "{backend}: {id} at {at}"
                );
                at = record.offset + 1;
            }
            assert!(fetched.next_offset >= at);
            assert!(
                !fetched.is_empty() || at >= end,
                "{backend}: nothing at {at}"
            );
            at = fetched.next_offset;
        }
    }
}

#[test]
fn what_one_backend_was_killed_writing_any_other_opens() {
    let _alone = alluvium_testkit::alone();
    let works: Vec<_> = probe::probe()
        .into_iter()
        .filter(|result| result.works)
        .map(|result| result.backend)
        .collect();
    assert!(!works.is_empty());
    for &writer in &works {
        for &reader in &works {
            let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let dir = tempfile::Builder::new()
                .prefix("cross-")
                .tempdir_in(parent)
                .unwrap();
            let ends = write_and_kill(dir.path(), writer);
            block_on(async {
                let store = open(dir.path(), reader).await;
                check(&store, &ends, reader).await;
                // The other goes on where the first was killed.
                for id in (0..).take(PARTITIONS) {
                    let partition = store.partition(id).await.unwrap();
                    let from = partition.offsets().log_end();
                    for offset in from..from + 20 {
                        let batch = Batch::from_values([value(id, offset)]).unwrap();
                        assert_eq!(partition.append(batch).await.unwrap().base_offset, offset);
                    }
                }
                store.close(Duration::from_secs(10)).await.unwrap();
                let store = open(dir.path(), writer).await;
                check(&store, &ends, writer).await;
                store.close(Duration::from_secs(10)).await.unwrap();
            });
        }
    }
}
