//! One life of a store: open, judge, work.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use alluvium::backends::sim::{Sim, SimFactory};
use alluvium::{
    Ack, AppendOptions, Error, ErrorClass, Partition, ReadLimits, Shards, Store, StoreConfig,
    TailCase, Visibility,
};
use futures_util::future::{Either, join_all, select};

use crate::case::Coverage;
use crate::model::{Log, Loss, Name, Submitted, Verdict, ensure};
use crate::payload::{batch_of, take_batch};
use crate::rng::Rng;

/// What the test knows, across lives.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) logs: BTreeMap<u64, Log>,
    /// Partitions whose creation or deletion was under way: they may be there or not.
    pub(crate) unsure: BTreeSet<u64>,
    pub(crate) next_batch: u64,
    pub(crate) next_producer: u64,
    pub(crate) loss: Loss,
    pub(crate) rng: Rng,
    pub(crate) coverage: Coverage,
    /// Whether errors are injected.
    pub(crate) faults: bool,
    /// An error was injected and may still strike.
    pub(crate) faulty: bool,
    pub(crate) opened: bool,
    pub(crate) trace: bool,
}

pub(crate) type Shared = Rc<RefCell<World>>;

macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.borrow().trace {
            eprintln!($($text)*);
        }
    };
}

pub(crate) type Found = (BTreeMap<u64, Name>, BTreeSet<u64>);

/// Everything durable that the partition holds, checked byte for byte against its names.
pub(crate) async fn read_all(
    p: &Partition,
    offsets: alluvium::Offsets,
    rng: &mut Rng,
) -> Result<Result<Found, String>, Error> {
    let (mut found, mut opaque) = (BTreeMap::new(), BTreeSet::new());
    let mut at = offsets.log_start();
    while at < offsets.durable() {
        let bytes_max = 1 << rng.below(16);
        let limits = ReadLimits {
            bytes_max,
            ..ReadLimits::default()
        };
        let fetched = p.read(at, limits, Visibility::Durable).await?;
        for batch in &fetched.batches {
            if let Err(e) = take_batch(batch, &mut found, &mut opaque) {
                return Ok(Err(e));
            }
        }
        if fetched.next_offset <= at {
            return Ok(Err(format!("P10 a read at {at} does not get on")));
        }
        at = fetched.next_offset;
    }
    // More may have become durable in the meantime; that is not judged yet.
    found.split_off(&offsets.durable());
    Ok(Ok((found, opaque)))
}

/// Settings of a case: the smallest segments, so that everything happens all the time.
pub(crate) fn config(seed: u64) -> StoreConfig {
    let mut rng = Rng(seed ^ 0xC0FF_EE00);
    let mut c = StoreConfig::default();
    c.segment_bytes = 16 << 10;
    c.group_bytes_max = 4096;
    c.group_bytes_min = u32::try_from(rng.below(2) * 2048).unwrap();
    c.writes_in_flight_max = u16::try_from(1 + rng.below(8)).unwrap();
    c.preinitialise = rng.chance(50);
    c.initialise_ahead_bytes = 4096;
    c.direct_io = rng.chance(70);
    c.spare_segments_max = usize::try_from(1 + rng.below(2)).unwrap();
    c.seal_after = Duration::from_millis(2);
    c.tail_cache_bytes_max = if rng.chance(50) { 0 } else { 64 << 10 };
    if rng.chance(15) {
        c.retention_bytes = Some(48 << 10);
        c.retention_interval = Duration::from_millis(3);
    }
    c
}

/// Opens the store, judges everything, then works until it is told to stop (or crashes); at the
/// end it rests, if asked, until every tail is sealed.
pub(crate) async fn life(
    sim: Sim,
    factory: SimFactory,
    world: Shared,
    config: StoreConfig,
    phases: u64,
    rest: bool,
) -> Verdict {
    let retention = config.retention_bytes.is_some();
    let shards = usize::try_from(1 + world.borrow_mut().rng.below(3)).unwrap();
    let mut tries = 0;
    let (store, report) = loop {
        let builder = Store::builder("/store").config(config.clone());
        let builder = builder.configure(|c| c.shards = Shards::Count(shards));
        match builder.backend(factory.clone()).open().await {
            Ok(opened) => break opened,
            // An injected error struck the recovery: the next try must do.
            Err(e @ (Error::Io { .. } | Error::NoSpace { .. }))
                if world.borrow().faulty && tries < 3 =>
            {
                tries += 1;
                trace!(world, "a fault struck the opening: {e}");
                // The shards of the failed try let go of the lock.
                sim.sleep(Duration::from_millis(5)).await;
            }
            Err(e) => return Err(format!("refused to open: {e}")),
        }
    };
    trace!(world, "open on {shards} shards: {report}");
    for partition in &report.partitions {
        let coverage = &mut world.borrow_mut().coverage;
        match partition.case {
            TailCase::Clean => coverage.clean += 1,
            TailCase::Unsealed => coverage.unsealed += 1,
            TailCase::Torn => coverage.torn += 1,
            _ => {
                return Err(format!(
                    "P7 damage reported where there is none: {partition}"
                ));
            }
        }
        coverage.skipped += u64::from(partition.skipped_offsets > 0);
    }
    let mut partitions = Vec::new();
    let listed: BTreeSet<u64> = store
        .list_partitions()
        .await
        .map_err(|e| e.to_string())?
        .iter()
        .map(|p| p.id)
        .collect();
    let known: Vec<u64> = world.borrow().logs.keys().copied().collect();
    for id in known {
        if !listed.contains(&id) {
            let mut world = world.borrow_mut();
            ensure!(world.unsure.contains(&id), "P1 partition {id} is gone");
            world.logs.remove(&id);
        }
    }
    for id in listed {
        let p = store.partition(id).await.map_err(|e| e.to_string())?;
        ensure!(
            world.borrow().logs.contains_key(&id),
            "P4 partition {id} came back"
        );
        let loss = world.borrow().loss;
        judge(&sim, &world, &p, loss, retention).await?;
        partitions.push(p);
    }
    {
        let mut world = world.borrow_mut();
        world.unsure.clear();
        world.loss = Loss::Nothing;
        world.opened = true;
    }
    for _ in 0..phases {
        phase(&sim, &store, &mut partitions, &world, retention).await?;
    }
    if rest {
        for p in &partitions {
            settle(&sim, &world, p, retention).await?;
        }
        // Long enough for every tail to be sealed.
        sim.sleep(config.seal_after * 10).await;
        return Ok(());
    }
    if world.borrow_mut().rng.chance(25) {
        trace!(world, "close");
        let closed = store.close(Duration::from_secs(5)).await;
        if closed.is_ok() {
            let mut world = world.borrow_mut();
            world.coverage.closed += 1;
            for log in world.logs.values_mut() {
                // Everything acknowledged is durable now.
                let end = log.records.keys().next_back().map_or(0, |o| o + 1);
                log.durable = log.durable.max(end);
            }
        } else {
            ensure!(world.borrow().faulty, "close: {closed:?}");
        }
    }
    Ok(())
}

async fn judge(sim: &Sim, world: &Shared, p: &Partition, loss: Loss, retention: bool) -> Verdict {
    let mut rng = world.borrow_mut().rng.clone();
    // Retention may trim between the offsets and the read.
    let (found, offsets) = loop {
        let offsets = p.offsets();
        match read_all(p, offsets, &mut rng).await {
            Ok(found) => break (found?, offsets),
            // Its segment may be in its next use before the offsets tell.
            Err(Error::OutOfRange { .. }) if retention => sim.sleep(Duration::from_millis(1)).await,
            Err(e) => return Err(format!("P1 partition {}: {e}", p.id())),
        }
    };
    let (found, opaque) = found;
    let mut world = world.borrow_mut();
    let Some(log) = world.logs.get_mut(&p.id()) else {
        return Ok(());
    };
    log.judge(&found, &opaque, offsets, loss, retention)
        .map_err(|e| format!("{e}\n  partition {} after {loss:?}, {offsets:?}", p.id()))
}

/// Brings the model up to date with a living partition: everything sent before is decided.
async fn settle(sim: &Sim, world: &Shared, p: &Partition, retention: bool) -> Result<bool, String> {
    match p.sync().await {
        Ok(_) => {}
        Err(e) if failed(&e) => return Ok(false),
        Err(e) => return Err(format!("sync: {e}")),
    }
    judge(sim, world, p, Loss::Nothing, retention).await?;
    Ok(true)
}

fn failed(e: &Error) -> bool {
    matches!(
        e.class(),
        ErrorClass::PartitionFailed | ErrorClass::OutcomeUnknown
    )
}

async fn phase(
    sim: &Sim,
    store: &Store,
    partitions: &mut Vec<Partition>,
    world: &Shared,
    retention: bool,
) -> Verdict {
    let draw = world.borrow_mut().rng.below(100);
    if partitions.is_empty() || (partitions.len() < 3 && draw < 4) {
        return create(store, partitions, world).await;
    }
    let n = usize::try_from(world.borrow_mut().rng.below(partitions.len() as u64)).unwrap();
    let p = partitions[n].clone();
    let fault = world.borrow_mut().rng.chance(4) && world.borrow().faults;
    if fault {
        trace!(world, "a fault is armed at operation {}", sim.op_count());
        let mut world = world.borrow_mut();
        world.faulty = true;
        let errno = if world.rng.chance(70) { 5 } else { 28 };
        let at = sim.op_count() + 1 + world.rng.below(12);
        sim.fail_op(at, errno);
    }
    let healthy = match draw {
        0..=59 => appends(sim, &p, world).await?,
        60..=69 => {
            let pause = world.borrow_mut().rng.below(8);
            sim.sleep(Duration::from_millis(pause)).await;
            true
        }
        70..=78 => trim(sim, &p, world, retention).await?,
        79..=88 => truncate(sim, &p, world, retention).await?,
        93..=95 => return delete(store, partitions, n, world).await,
        _ => settle(sim, world, &p, retention).await?,
    };
    let info = p.describe().await.map_err(|e| e.to_string())?;
    world.borrow_mut().coverage.spares += u64::from(info.spares > 0);
    if healthy && info.failure.is_none() {
        return Ok(());
    }
    reopen(sim, &p, world, retention).await
}

async fn create(store: &Store, partitions: &mut Vec<Partition>, world: &Shared) -> Verdict {
    // A partition whose deletion failed may be there still.
    let free = (1..=4).find(|id| !world.borrow().logs.contains_key(id));
    let Some(id) = free else { return Ok(()) };
    trace!(world, "create {id}");
    {
        let mut world = world.borrow_mut();
        world.unsure.insert(id);
        world.logs.insert(id, Log::default());
    }
    match store.create_partition(id).await {
        Ok(p) => {
            world.borrow_mut().unsure.remove(&id);
            partitions.push(p);
        }
        Err(e) => {
            ensure!(world.borrow().faulty, "create: {e}");
            trace!(world, "create: {e}");
        }
    }
    Ok(())
}

async fn delete(
    store: &Store,
    partitions: &mut Vec<Partition>,
    n: usize,
    world: &Shared,
) -> Verdict {
    let p = partitions.remove(n);
    trace!(world, "delete {}", p.id());
    world.borrow_mut().unsure.insert(p.id());
    match store.delete_partition(&p).await {
        Ok(()) => {
            let mut world = world.borrow_mut();
            world.logs.remove(&p.id());
            world.unsure.remove(&p.id());
            world.coverage.deleted += 1;
        }
        Err(e) => ensure!(world.borrow().faulty, "delete: {e}"),
    }
    Ok(())
}

async fn reopen(sim: &Sim, p: &Partition, world: &Shared, retention: bool) -> Verdict {
    let mut tries = 0;
    loop {
        match p.reopen().await {
            Ok(_) => break,
            Err(Error::Io { .. } | Error::NoSpace { .. }) if tries < 3 => tries += 1,
            Err(e) => return Err(format!("P8 reopen: {e}")),
        }
    }
    world.borrow_mut().coverage.reopened += 1;
    trace!(world, "reopened {}: {:?}", p.id(), p.offsets());
    judge(sim, world, p, Loss::Power, retention).await
}

async fn trim(sim: &Sim, p: &Partition, world: &Shared, retention: bool) -> Result<bool, String> {
    if !settle(sim, world, p, retention).await? {
        return Ok(false);
    }
    let offsets = p.offsets();
    let span = offsets.log_end() - offsets.log_start();
    let to = offsets.log_start() + world.borrow_mut().rng.below(span + 1);
    trace!(world, "trim {} to {to}", p.id());
    let id = p.id();
    world.borrow_mut().logs.get_mut(&id).unwrap().trimming = Some(to);
    let result = p.trim_before(to).await;
    let mut world = world.borrow_mut();
    let log = world.logs.get_mut(&id).unwrap();
    match result {
        Ok(()) => {
            log.log_start = log.log_start.max(to);
            log.trimming = None;
            log.records = log.records.split_off(&to);
            world.coverage.trimmed += 1;
            Ok(true)
        }
        Err(e) if failed(&e) => Ok(false),
        Err(e) if world.faulty => {
            world.logs.get_mut(&id).unwrap().trimming = None;
            Ok(!matches!(e, Error::PartitionFailed { .. }))
        }
        Err(e) => Err(format!("trim: {e}")),
    }
}

async fn truncate(
    sim: &Sim,
    p: &Partition,
    world: &Shared,
    retention: bool,
) -> Result<bool, String> {
    if !settle(sim, world, p, retention).await? {
        return Ok(false);
    }
    let offsets = p.offsets();
    let span = offsets.log_end() - offsets.log_start();
    let back = world.borrow_mut().rng.below(span.min(12) + 1);
    let to = offsets.log_end() - back;
    trace!(world, "truncate {} to {to}", p.id());
    let id = p.id();
    world.borrow_mut().logs.get_mut(&id).unwrap().truncating = Some(to);
    let result = p.truncate_to(to).await;
    let mut world = world.borrow_mut();
    let faulty = world.faulty || retention;
    let log = world.logs.get_mut(&id).unwrap();
    match result {
        Ok(()) => {
            log.truncated(to);
            world.coverage.truncated += 1;
            Ok(true)
        }
        Err(Error::InsideOpaqueBatch { .. }) => {
            log.truncating = None;
            Ok(true)
        }
        Err(e) if failed(&e) => Ok(false),
        Err(_) if faulty => {
            log.truncating = None;
            Ok(true)
        }
        Err(e) => Err(format!("truncate: {e}")),
    }
}

/// Several sequential producers and a subscriber at once.
async fn appends(sim: &Sim, p: &Partition, world: &Shared) -> Result<bool, String> {
    let producers = 1 + world.borrow_mut().rng.below(5);
    let weak = world.borrow_mut().rng.chance(35);
    trace!(world, "appends {} by {producers}, weak {weak}", p.id());
    let all = join_all((0..producers).map(|_| produce(sim, p, world, weak)));
    let watch = subscribe(p, world);
    let (results, watched) = match select(Box::pin(all), Box::pin(watch)).await {
        Either::Left((results, _)) => (results, Ok(())),
        Either::Right((watched, all)) => (all.await, watched),
    };
    watched?;
    let mut healthy = true;
    for result in results {
        healthy &= result?;
    }
    Ok(healthy)
}

/// Shows what a subscriber sees to the model; ends only with an error.
async fn subscribe(p: &Partition, world: &Shared) -> Verdict {
    use futures_util::StreamExt as _;
    let from = world.borrow().logs[&p.id()]
        .durable
        .max(p.offsets().log_start());
    let mut stream = Box::pin(p.subscribe(from.min(p.offsets().durable())));
    while let Some(item) = stream.next().await {
        let Ok(fetched) = item else { break };
        let (mut found, mut opaque) = (BTreeMap::new(), BTreeSet::new());
        for batch in &fetched.batches {
            take_batch(batch, &mut found, &mut opaque)?;
        }
        let mut world = world.borrow_mut();
        let log = world.logs.get_mut(&p.id()).unwrap();
        for (offset, name) in found {
            log.show(offset, name)?;
            // Seen by a durable reader: durable from now on.
            log.records.insert(offset, (name, Ack::Durable));
            log.durable = log.durable.max(offset + 1);
        }
    }
    std::future::pending().await
}

async fn produce(sim: &Sim, p: &Partition, world: &Shared, weak: bool) -> Result<bool, String> {
    let (producer, rounds) = {
        let mut world = world.borrow_mut();
        world.next_producer += 1;
        (world.next_producer, 1 + world.rng.below(4))
    };
    for _ in 0..rounds {
        let (id, count, opaque, level, how) = {
            let mut world = world.borrow_mut();
            world.next_batch += 1;
            let id = world.next_batch;
            let count = u32::try_from(1 + world.rng.below(4)).unwrap();
            let opaque = world.rng.chance(15);
            let level = match world.rng.below(3) {
                0 if weak => Ack::Accepted,
                1 if weak => Ack::Written,
                _ => Ack::Durable,
            };
            let how = world.rng.below(10);
            let submitted = Submitted {
                count,
                opaque,
                producer,
                alive: true,
            };
            world
                .logs
                .get_mut(&p.id())
                .unwrap()
                .submitted
                .insert(id, submitted);
            (id, count, opaque, level, how)
        };
        let batch = batch_of(id, count, opaque);
        let result = match how {
            0 => match p.try_append(batch, AppendOptions::from(level)) {
                Ok(done) => done.await,
                Err(refused) => Err(refused.error),
            },
            1 => match p.begin_append(batch, level).await {
                Ok(pending) => pending.acknowledged().await,
                Err(e) => Err(e),
            },
            2 => p.append_at(p.offsets().log_end(), batch).await,
            3 => {
                // The caller loses patience; the append goes on or never began.
                let patience = Duration::from_micros(world.borrow_mut().rng.below(300));
                let append = Box::pin(p.append_with(batch, level));
                match select(append, Box::pin(sim.sleep(patience))).await {
                    Either::Left((result, _)) => result,
                    Either::Right(_) => {
                        world.borrow_mut().coverage.dropped += 1;
                        continue;
                    }
                }
            }
            _ => p.append_with(batch, level).await,
        };
        let mut world = world.borrow_mut();
        let faulty = world.faulty;
        let log = world.logs.get_mut(&p.id()).unwrap();
        match result {
            Ok(appended) => {
                let level = if how == 2 { Ack::Durable } else { level };
                ensure!(appended.count == count, "P3 {appended:?} of {count}");
                log.acknowledged(id, appended.base_offset, level)?;
            }
            Err(e) => {
                let fine = faulty || matches!(e, Error::WrongOffset { .. } | Error::Full { .. });
                ensure!(fine, "append: {e}");
                if e.class() == ErrorClass::OutcomeUnknown {
                    return Ok(false);
                }
                log.submitted.get_mut(&id).unwrap().alive = false;
                if failed(&e) {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}
