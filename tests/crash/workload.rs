//! One life of a store: open, judge, work.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use alluvium::backends::sim::{Sim, SimFactory};
use alluvium::{
    Error, ErrorClass, Partition, ReadLimits, Shards, Store, StoreConfig, TailCase, Visibility,
};
use alluvium_testkit::simulation::{Lineage, Ran};

use crate::appends::appends;
use crate::coverage::Coverage;
use crate::machine;
use crate::model::{Log, Loss, Name, Verdict, ensure};
use crate::payload::take_batch;
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
    pub(crate) lineage: Lineage,
    pub(crate) life: u64,
    pub(crate) ran: Ran,
    /// Errors that were injected and may have struck in this life: so many operations may still fail.
    pub(crate) faults: u64,
    /// The last operation that was told to fail.
    pub(crate) last_fault_at: u64,
    /// The opening has returned in this life.
    pub(crate) recovered: bool,
    pub(crate) verbose: bool,
}

pub(crate) type Shared = Rc<RefCell<World>>;

impl World {
    /// Whether an error was injected that may still strike.
    pub(crate) fn faulty(&self) -> bool {
        self.faults > 0
    }

    /// Whether what failed `tries` times may do so once more: each error strikes one operation, wherever
    /// that was, and two more are let pass.
    fn may_fail_again(&self, tries: u64) -> bool {
        self.faulty() && tries < self.faults + 2
    }

    /// Begins a step of this life, with chance of its own. `false`: it is left out.
    fn begins(&mut self, step: u64) -> bool {
        self.rng = Rng::of(self.lineage.seed, self.life, step);
        let number = self.life * STEPS_MAX + step;
        let takes = self.lineage.takes(number);
        if takes {
            self.ran.steps.push(number);
        }
        takes
    }
}

/// Steps of a life have numbers from 1 to below this; opening is none.
const STEPS_MAX: u64 = 100;

/// The step that closes the store, at times.
const CLOSE: u64 = STEPS_MAX - 1;

macro_rules! trace {
    ($world:expr, $($text:tt)*) => {
        if $world.borrow().verbose {
            eprintln!($($text)*);
        }
    };
}

pub(crate) use trace;

pub(crate) type Found = (BTreeMap<u64, Name>, BTreeSet<u64>);

/// Everything durable that the partition holds, checked byte for byte against its names.
pub(crate) async fn read_all(
    p: &Partition,
    offsets: alluvium::Offsets,
    rng: &mut Rng,
) -> Result<Result<Found, String>, Error> {
    let (mut found, mut opaque) = (BTreeMap::new(), BTreeSet::new());
    let mut at = offsets.log_start();
    // Batch by batch, or in large pieces.
    let (low, high) = if rng.chance(20) { (0, 10) } else { (12, 16) };
    while at < offsets.durable() {
        let bytes_max = 1 << (low + rng.below(high - low));
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
    let retention = machine::retains(&config);
    let by_age = config.retention_age.is_some();
    {
        let mut world = world.borrow_mut();
        world.rng = Rng::of(world.lineage.seed, world.life, STEPS_MAX);
        if sim.op_count() > world.last_fault_at {
            // What has struck a life before this one excuses nothing here.
            world.faults = 0;
        }
    }
    let shards = usize::try_from(1 + world.borrow_mut().rng.below(3)).unwrap();
    let mut tries = 0;
    let (store, report) = loop {
        let builder = Store::builder("/store").config(config.clone());
        let builder = builder.configure(|c| c.shards = Shards::Count(shards));
        match builder.backend(factory.clone()).open().await {
            Ok(opened) => break opened,
            // An injected error struck the recovery; it does so once.
            Err(e @ (Error::Io { .. } | Error::NoSpace { .. }))
                if world.borrow().may_fail_again(tries) =>
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
    world.borrow_mut().recovered = true;
    for partition in &report.partitions {
        let possible = partition.case != TailCase::Corrupt;
        ensure!(
            possible,
            "P7 damage reported where there is none: {partition}"
        );
        let mut world = world.borrow_mut();
        world.coverage.tails.note(partition)?;
        world.coverage.counts.skipped_offsets += u64::from(partition.skipped_offsets > 0);
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
    }
    for step in 1..=phases {
        if world.borrow_mut().begins(step) {
            phase(&sim, &store, &mut partitions, &world, retention).await?;
        }
    }
    {
        let moved = |log: &Log, p: &Partition| p.offsets().log_start() > log.log_start;
        let mut world = world.borrow_mut();
        let logs = &world.logs;
        let retained = partitions
            .iter()
            .filter(|p| retention && logs.get(&p.id()).is_some_and(|log| moved(log, p)));
        let retained = retained.count() as u64;
        *if by_age {
            &mut world.coverage.counts.retained_by_age
        } else {
            &mut world.coverage.counts.retained_by_bytes
        } += retained;
    }
    if rest {
        for p in &partitions {
            settle(&sim, &world, p, retention).await?;
        }
        // Long enough for every tail to be sealed.
        sim.sleep(config.seal_after * 10).await;
        return Ok(());
    }
    let closes = world.borrow_mut().begins(CLOSE) && world.borrow_mut().rng.chance(25);
    if closes {
        trace!(world, "close");
        let closed = store.close(Duration::from_secs(5)).await;
        if closed.is_ok() {
            let mut world = world.borrow_mut();
            world.coverage.counts.closed += 1;
            for log in world.logs.values_mut() {
                // Everything acknowledged is durable now.
                let end = log.records.keys().next_back().map_or(0, |o| o + 1);
                log.durable = log.durable.max(end);
            }
        } else {
            ensure!(world.borrow().faulty(), "close: {closed:?}");
        }
    }
    Ok(())
}

pub(crate) async fn judge(
    sim: &Sim,
    world: &Shared,
    p: &Partition,
    loss: Loss,
    retention: bool,
) -> Verdict {
    let mut rng = world.borrow_mut().rng.clone();
    let mut tries = 0;
    // Retention may trim between the offsets and the read.
    let (found, offsets) = loop {
        let offsets = p.offsets();
        match read_all(p, offsets, &mut rng).await {
            Ok(found) => break (found?, offsets),
            // Its segment may be in its next use before the offsets tell.
            Err(Error::OutOfRange { .. }) if retention => sim.sleep(Duration::from_millis(1)).await,
            // A read may fail, and is tried again.
            Err(Error::Io { .. }) if world.borrow().may_fail_again(tries) => tries += 1,
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

pub(crate) fn failed(e: &Error) -> bool {
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
    let fault = world.borrow_mut().rng.chance(4) && !world.borrow().lineage.sound;
    if fault {
        trace!(world, "a fault is armed at operation {}", sim.op_count());
        let mut world = world.borrow_mut();
        world.faults += 1;
        world.coverage.counts.errors_armed += 1;
        // EIO, ENOSPC, ENOMEM.
        let errno = world.rng.pick(&[5, 5, 5, 28, 12]);
        let at = sim.op_count() + 1 + world.rng.below(12);
        sim.fail_op(at, errno);
        world.last_fault_at = world.last_fault_at.max(at);
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
    world.borrow_mut().coverage.counts.spares += u64::from(info.spares > 0);
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
            ensure!(world.borrow().faulty(), "create: {e}");
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
            world.coverage.counts.deleted += 1;
        }
        Err(e) => ensure!(world.borrow().faulty(), "delete: {e}"),
    }
    Ok(())
}

async fn reopen(sim: &Sim, p: &Partition, world: &Shared, retention: bool) -> Verdict {
    ensure!(
        world.borrow().faulty(),
        "P8 partition {} failed without a fault",
        p.id()
    );
    let mut tries = 0;
    loop {
        match p.reopen().await {
            Ok(_) => break,
            Err(Error::Io { .. } | Error::NoSpace { .. }) if tries < 3 => tries += 1,
            Err(e) => return Err(format!("P8 reopen: {e}")),
        }
    }
    world.borrow_mut().coverage.counts.reopened += 1;
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
            world.coverage.counts.trimmed += 1;
            Ok(true)
        }
        Err(e) if failed(&e) => Ok(false),
        Err(e) if world.faulty() => {
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
    let faulty = world.faulty() || retention;
    let log = world.logs.get_mut(&id).unwrap();
    match result {
        Ok(()) => {
            log.truncated(to);
            world.coverage.counts.truncated += 1;
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
