//! Appends of several producers at once, and a subscriber beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use alluvium::backends::sim::Sim;
use alluvium::format::Batch;
use alluvium::{Ack, AppendOptions, Appended, Error, ErrorClass, Partition};
use futures_util::future::{Either, join_all, select};

use crate::model::{Submitted, Verdict, ensure};
use crate::payload::{batch_of, take_batch};
use crate::workload::{Shared, failed, trace};

/// Several sequential producers and a subscriber at once.
pub(crate) async fn appends(sim: &Sim, p: &Partition, world: &Shared) -> Result<bool, String> {
    let producers = 1 + world.borrow_mut().rng.below(5);
    let weak = world.borrow_mut().rng.chance(35);
    trace!(world, "appends {} by {producers}, weak {weak}", p.id());
    let pipelined = world.borrow_mut().rng.chance(25);
    let all = join_all((0..producers).map(async |n| {
        if n == 0 && pipelined {
            pipeline(sim, p, world, weak).await
        } else {
            produce(sim, p, world, weak).await
        }
    }));
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

/// A batch that the model knows of.
struct Next {
    id: u64,
    count: u32,
    level: Ack,
    batch: Batch,
}

fn next(p: &Partition, world: &Shared, producer: u64, weak: bool) -> Next {
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
    let submitted = Submitted {
        count,
        opaque,
        producer,
        alive: true,
    };
    let log = world.logs.get_mut(&p.id()).unwrap();
    log.submitted.insert(id, submitted);
    let batch = batch_of(id, count, opaque);
    Next {
        id,
        count,
        level,
        batch,
    }
}

/// Takes an answer over. `false`: the partition has failed.
fn answered(
    p: &Partition,
    world: &Shared,
    (id, count, level): (u64, u32, Ack),
    result: Result<Appended, Error>,
) -> Result<bool, String> {
    let mut world = world.borrow_mut();
    let faulty = world.faulty();
    let log = world.logs.get_mut(&p.id()).unwrap();
    match result {
        Ok(appended) => {
            ensure!(appended.count == count, "P3 {appended:?} of {count}");
            ensure!(
                appended.level == level,
                "P1 {appended:?}, asked for {level:?}"
            );
            log.acknowledged(id, appended.base_offset, level)?;
            Ok(true)
        }
        Err(e) => {
            let fine = faulty || matches!(e, Error::WrongOffset { .. } | Error::Full { .. });
            ensure!(fine, "append: {e}");
            if e.class() == ErrorClass::OutcomeUnknown {
                return Ok(false);
            }
            log.submitted.get_mut(&id).unwrap().alive = false;
            Ok(!failed(&e))
        }
    }
}

/// Hands over many batches before it waits for an answer: as many writes as may be are under way.
async fn pipeline(sim: &Sim, p: &Partition, world: &Shared, weak: bool) -> Result<bool, String> {
    let (producer, batches) = {
        let mut world = world.borrow_mut();
        world.next_producer += 1;
        (world.next_producer, 8 + world.rng.below(17))
    };
    let mut answers = Vec::new();
    let mut healthy = true;
    for _ in 0..batches {
        let Next {
            id,
            count,
            level,
            batch,
        } = next(p, world, producer, weak);
        match p.try_append(batch, AppendOptions::from(level)) {
            Ok(answer) => answers.push(((id, count, level), answer)),
            Err(refused) => {
                healthy &= answered(p, world, (id, count, level), Err(refused.error))?;
            }
        }
        world.borrow_mut().coverage.counts.pipelined += 1;
        // Long enough for a group of its own.
        sim.sleep(Duration::from_micros(2)).await;
    }
    for (what, answer) in answers {
        healthy &= answered(p, world, what, answer.await)?;
    }
    Ok(healthy)
}

async fn produce(sim: &Sim, p: &Partition, world: &Shared, weak: bool) -> Result<bool, String> {
    let (producer, rounds) = {
        let mut world = world.borrow_mut();
        world.next_producer += 1;
        (world.next_producer, 1 + world.rng.below(4))
    };
    for _ in 0..rounds {
        let Next {
            id,
            count,
            level,
            batch,
        } = next(p, world, producer, weak);
        let how = world.borrow_mut().rng.below(10);
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
                        world.borrow_mut().coverage.counts.dropped_futures += 1;
                        continue;
                    }
                }
            }
            _ => p.append_with(batch, level).await,
        };
        let level = if how == 2 { Ack::Durable } else { level };
        if !answered(p, world, (id, count, level), result)? {
            return Ok(false);
        }
    }
    Ok(true)
}
