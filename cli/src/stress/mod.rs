//! `stress`: one store under the load of W2 for as long as wanted, with segments that roll and are
//! recycled and a reader that follows, watched from outside: memory, descriptors, pauses.
//!
//! A pause is an append that took longer than [`PAUSE`]. Witnesses tell whose it was:
//!
//! * the disk's: another file, written durably all the time; the store's own durable writes, timed
//!   below the engine while its thread was there to see them end; that thread, held by the disk
//!   while it hands operations over (a kernel that finds a durable write done when it has handed it
//!   over flushes the device right there). In any other system call it waits by its own fault, and
//!   so do appends that wait for zeros or for a file in preparation;
//! * the machine's: on each core a thread that only sleeps, in front of all others if it may be
//!   (root), and the kernel's count of how long the shard waited for a core. Short absences add
//!   up;
//! * the store's own is what nobody has seen.
//!
//! They do not tell who made the disk slow: what the store asks of it besides (reads, zeros, new
//! files) the other file's writes feel as well. And the shard that waits for a core may wait for the
//! load's own tasks.
//!
//! Without producers there are no witnesses either: what is seen then is what an open store costs
//! that nobody uses.

mod spans;
mod witness;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use alluvium::backends::layer::Layered;
use alluvium::format::Batch;
use alluvium::{Partition, Shards, Store};
use alluvium_workloads::{Payload, cpu_time};
use bytesize::ByteSize;
use futures_util::StreamExt;
use tokio::task::JoinHandle;

use crate::args::StressArgs;
use crate::compare::existing;
use crate::failure::{Failure, Outcome};
use crate::output::{Output, grouped, size};
use crate::target::{Target, close};
use spans::{Seen, Span, Whose, moments};
use witness::{Pauses, StoreTimes, Witnesses};

/// Appends that take longer than this are told.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// Loads a new store below the target's directory, tells what it sees, and removes it.
pub(crate) fn run(target: &Target, args: &StressArgs) -> Result<Outcome, Failure> {
    let parent = existing(&target.named()?.dir)?;
    let dir = Scratch::create(&parent)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Other(format!("start the runtime: {e}")))?;
    let result = runtime.block_on(stress(target, args, &dir.0));
    runtime.shutdown_timeout(Duration::from_secs(5));
    result
}

/// A directory that is removed whatever happens.
struct Scratch(PathBuf);

impl Scratch {
    fn create(parent: &Path) -> Result<Self, Failure> {
        let dir = parent.join(format!("alluvium-stress-{}", std::process::id()));
        fs::create_dir(&dir).map_err(Failure::io("create", &dir))?;
        Ok(Self(dir))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // The summary stands; who cannot remove it sees the directory's name.
        fs::remove_dir_all(&self.0).ok();
    }
}

async fn stress(target: &Target, args: &StressArgs, dir: &Path) -> Result<Outcome, Failure> {
    let times = StoreTimes::default();
    let (store, _) = Store::builder(dir.join("store"))
        .configure(|c| {
            c.shards = Shards::Count(1);
            c.segment_bytes = args.segment_bytes.as_u64();
            c.retention_bytes = Some(args.retention_bytes.as_u64());
            c.retention_interval = Duration::from_millis(100);
        })
        .backend(Layered::new(target.backend(), times.clone()))
        .open()
        .await?;
    let mut out = Output::new();
    out.line(&store.info().backend_reason)?;
    let partition = store.create_partition(0).await?;
    let watch = || Witnesses::start(&dir.join("witness"), &store, times.clone());
    let witnesses = (args.producers > 0).then(watch);
    let witnesses = witnesses.transpose()?;
    let stop = Arc::new(AtomicBool::new(false));
    let pauses = Arc::new(Pauses::default());
    let producers: Vec<_> = (0..args.producers)
        .map(|_| producer(&partition, &stop, &pauses))
        .collect();
    let follower = (args.producers > 0).then(|| follower(&partition, &stop));

    let began = Instant::now();
    let until = began + Duration::from_secs(args.seconds);
    let mut samples = Vec::new();
    let mut last_end = 0;
    // A producer that ends early has failed.
    while Instant::now() < until && !producers.iter().any(JoinHandle::is_finished) {
        let (started, cpu) = (Instant::now(), cpu_time());
        let left = until.saturating_duration_since(started);
        let interval = Duration::from_secs(args.interval).min(left);
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = tokio::signal::ctrl_c() => break,
        }
        let end = partition.offsets().log_end();
        let sample = Sample {
            appends_per_s: per_second(end - last_end, started.elapsed()),
            cores: cpu_time().saturating_sub(cpu).as_secs_f64() / started.elapsed().as_secs_f64(),
            longest: pauses.take_longest(),
            resident_bytes: resident_bytes()?.saturating_sub(witness::noted_bytes()),
            noted_bytes: witness::noted_bytes(),
            descriptors: descriptors()?,
        };
        last_end = end;
        out.line(sample)?;
        out.flush()?;
        samples.push(sample);
    }
    stop.store(true, Ordering::Relaxed);
    let mut failed = None;
    for task in producers {
        failed = joined(task).await.err().or(failed);
    }
    let read = match follower {
        Some(follower) => joined(follower).await.unwrap_or_else(|e| {
            failed.get_or_insert(e);
            0
        }),
        None => 0,
    };
    let offsets = partition.offsets();
    drop(partition);
    out.line(format_args!(
        "{} appends, {} removed by retention, {} read",
        grouped(offsets.log_end()),
        grouped(offsets.log_start()),
        grouped(read),
    ))?;
    summarise(&mut out, &samples)?;
    if let Some(witnesses) = witnesses {
        let seen = witnesses.stop().await?;
        tell_pauses(&mut out, &pauses, &seen, &times, began)?;
    }
    out.flush()?;
    match failed {
        Some(failed) => Err(failed),
        None => close(&store).await.map(|()| Outcome::Done),
    }
}

fn tell_pauses(
    out: &mut Output,
    pauses: &Pauses,
    seen: &Seen,
    times: &StoreTimes,
    began: Instant,
) -> Result<(), Failure> {
    let (count, spans) = pauses.take();
    let of = |whose| {
        spans
            .iter()
            .filter(move |s| seen.whose(s) == whose)
            .copied()
    };
    let own: Vec<Span> = of(Whose::Own).collect();
    out.line(format_args!(
        "appends over {} ms: {}; {} while the disk paused, {} while the machine did, {} our own",
        PAUSE.as_millis(),
        grouped(count),
        grouped(of(Whose::Disk).count() as u64),
        grouped(of(Whose::Machine).count() as u64),
        grouped(own.len() as u64),
    ))?;
    let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
    for pause in moments(own) {
        out.line(format_args!(
            "  our own: {:.1} ms, {:.3} s after the start; slowest write {:.1} ms, slowest answer \
             of the shard {:.1} ms, disk {:.1} ms, shard held by it {:.1} ms (0: below {:.1} ms), cores gone for {:.1} \
             ms in all (each time over {:.1} ms); begun in it: {}",
            ms(pause.len()),
            (pause.from - began).as_secs_f64(),
            ms(seen.store.longest_during(&pause)),
            ms(seen.shard.longest_during(&pause)),
            ms(seen.disk.longest_during(&pause)),
            ms(seen.blocked.longest_during(&pause)),
            ms(witness::SLOW),
            ms(seen.machine.total_during(&pause)),
            ms(witness::GONE),
            times.others_during(&pause).join(", "),
        ))?;
    }
    Ok(())
}

fn producer(
    partition: &Partition,
    stop: &Arc<AtomicBool>,
    pauses: &Arc<Pauses>,
) -> JoinHandle<Result<u64, Failure>> {
    let (partition, stop, pauses) = (partition.clone(), Arc::clone(stop), Arc::clone(pauses));
    tokio::spawn(async move {
        let payload = Payload::new(1);
        let mut appended = 0;
        while !stop.load(Ordering::Relaxed) {
            let batch =
                Batch::from_values([payload.value()]).map_err(|e| Failure::Other(e.to_string()))?;
            let started = Instant::now();
            partition.append(batch).await?;
            pauses.note(started, Instant::now());
            appended += 1;
        }
        Ok(appended)
    })
}

/// Reads what becomes durable; every checksum is verified on the way.
fn follower(partition: &Partition, stop: &Arc<AtomicBool>) -> JoinHandle<Result<u64, Failure>> {
    let (partition, stop) = (partition.clone(), Arc::clone(stop));
    tokio::spawn(async move {
        let mut subscription = partition.subscribe(0);
        let mut read = 0;
        while !stop.load(Ordering::Relaxed) {
            // It waits no longer than the look at `stop` may be late.
            let next = tokio::time::timeout(Duration::from_millis(100), subscription.next());
            let fetched = match next.await {
                Ok(Some(Ok(fetched))) => fetched,
                Ok(Some(Err(alluvium::Error::OutOfRange { start, .. }))) => {
                    // Retention was faster.
                    subscription.seek(start);
                    continue;
                }
                Ok(Some(Err(e))) => return Err(e.into()),
                Ok(None) => break,
                Err(_) => continue,
            };
            for record in fetched.records() {
                record.map_err(|e| Failure::Other(e.to_string()))?;
                read += 1;
            }
        }
        Ok(read)
    })
}

async fn joined(task: JoinHandle<Result<u64, Failure>>) -> Result<u64, Failure> {
    let ended = task.await;
    ended.map_err(|e| Failure::Other(format!("a task of the load: {e}")))?
}

/// One look at the process.
#[derive(Debug, Clone, Copy)]
struct Sample {
    appends_per_s: u64,
    /// CPU time of the whole process, in cores.
    cores: f64,
    longest: Duration,
    /// Without what was noted.
    resident_bytes: u64,
    noted_bytes: u64,
    descriptors: usize,
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:>9} appends/s  CPU {:>5.1} %  longest {:>6.1} ms  resident {:>9} and {} of notes  {} descriptors",
            grouped(self.appends_per_s),
            self.cores * 100.0,
            self.longest.as_secs_f64() * 1e3,
            size(self.resident_bytes),
            size(self.noted_bytes),
            self.descriptors,
        )
    }
}

/// Compares the end with the second quarter: the first fills caches and pools.
fn summarise(out: &mut Output, samples: &[Sample]) -> Result<(), Failure> {
    let quarter = samples.len() / 4;
    let (Some(early), Some(late)) = (
        samples.get(quarter..2 * quarter.max(1)),
        samples.get(samples.len() - quarter.max(1)..),
    ) else {
        return Ok(());
    };
    let resident = |part: &[Sample]| part.iter().map(|s| s.resident_bytes).max().unwrap_or(0);
    let all = || samples.iter().map(|s| s.descriptors);
    out.line(format_args!(
        "resident at most {} in the second quarter, {} in the last, without notes; {} to {} descriptors",
        ByteSize(resident(early)),
        ByteSize(resident(late)),
        all().min().unwrap_or(0),
        all().max().unwrap_or(0),
    ))
}

fn per_second(count: u64, elapsed: Duration) -> u64 {
    let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
    count.saturating_mul(1_000_000) / micros.max(1)
}

fn resident_bytes() -> Result<u64, Failure> {
    let path = Path::new("/proc/self/status");
    let status = fs::read_to_string(path).map_err(Failure::io("read", path))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    Ok(kib.unwrap_or(0) * 1024)
}

fn descriptors() -> Result<usize, Failure> {
    let path = Path::new("/proc/self/fd");
    Ok(fs::read_dir(path)
        .map_err(Failure::io("read", path))?
        .count())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;
    use std::thread;

    use alluvium::backends::BackendKind;
    use alluvium::backends::layer::Layer;

    use super::*;

    /// Durable writes from one stop of the shard to the next, and how many stops there are.
    const EVERY: u64 = 20;
    const STOPS: u64 = 10;

    /// Stops the shard now and then, as a store does that has something wrong with it.
    #[derive(Clone)]
    struct Stops {
        times: StoreTimes,
        writes: Arc<AtomicU64>,
    }

    impl Layer for Stops {
        fn before(&self, operation: &'static str, path: &Path) {
            self.times.before(operation, path);
            if operation == "write_durable" {
                let before = self.writes.fetch_add(1, Ordering::Relaxed);
                if before % EVERY == EVERY - 1 {
                    thread::sleep(10 * PAUSE);
                }
            }
        }

        fn after(&self, operation: &'static str, path: &Path, took: Duration) {
            self.times.after(operation, path, took);
        }
    }

    /// The control of the judgement: what is our own is found, whatever disk and machine do besides.
    #[test]
    fn a_store_that_stops_by_itself_is_found_out() {
        let dir = tempfile::tempdir().expect("a directory");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            let stops = Stops {
                times: StoreTimes::default(),
                writes: Arc::default(),
            };
            let opened = Store::builder(dir.path().join("store"))
                .configure(|c| {
                    c.shards = Shards::Count(1);
                    c.segment_bytes = 16 << 20;
                })
                .backend(Layered::new(BackendKind::Tokio, stops.clone()))
                .open();
            let (store, _) = opened.await.expect("it opens");
            let partition = store.create_partition(0).await.expect("it is new");
            let witness = dir.path().join("witness");
            let witnesses = Witnesses::start(&witness, &store, stops.times.clone());
            let witnesses = witnesses.expect("they watch");
            let (stop, pauses) = (Arc::default(), Arc::default());
            let load = producer(&partition, &stop, &pauses);
            while stops.writes.load(Ordering::Relaxed) <= EVERY * STOPS && !load.is_finished() {
                tokio::time::sleep(PAUSE).await;
            }
            stop.store(true, Ordering::Relaxed);
            joined(load).await.expect("it appends");
            let seen = witnesses.stop().await.expect("they have watched");
            let (count, spans) = pauses.take();
            assert!(count >= STOPS - 1, "{count} pauses of {STOPS}");
            let own = spans.iter().filter(|span| seen.whose(span) == Whose::Own);
            // Disk and machine may have been slow at the same time, but not every time.
            assert!(own.count() > 0, "{spans:?} are nobody's: {seen:?}");
            close(&store).await.expect("it closes");
        });
    }
}
