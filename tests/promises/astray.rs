//! P7 for writes that the device acknowledges and does not do, or does elsewhere in the file.

use std::time::Duration;

use alluvium::backends::sim::Sim;
use alluvium::{Ack, Error, OnCorruption, Partition, ReadLimits, Store, StoreConfig, Visibility};
use alluvium_testkit::promises::{BatchShape, Life, Seen, Survival, observe};

use crate::machine;
use crate::rng::Rng;

/// What came of the write that went astray.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It hit nothing that counts.
    Harmless,
    /// The opening was refused.
    Refused,
    /// A read reported it.
    ByRead,
}

/// One store at rest, one of whose writes went astray.
pub(crate) fn run(seed: u64) -> Result<Found, String> {
    let mut rng = Rng::new(seed);
    let sim = Sim::new(machine::machine(seed, &mut rng, false));
    sim.create_dir_all("/store").map_err(|e| e.to_string())?;
    let mut config = machine::store(&mut rng);
    config.retention_bytes = None;
    config.retention_age = None;
    let mut life = Life::new(1, false);
    let written = sim.block_on(fill(&sim, &mut rng, config.clone(), &mut life));
    written.map_err(|e| e.to_string())?;
    sim.power_loss();
    match sim.block_on(look(&sim, &config, OnCorruption::Refuse, &mut life))? {
        Some(Found::Refused) => {}
        Some(found) => return Ok(found),
        None => return Err("P7: damage, and yet it was opened for writing".into()),
    }
    sim.power_loss();
    sim.block_on(look(&sim, &config, OnCorruption::Salvage, &mut life))?;
    Ok(Found::Refused)
}

/// Appends durably, with one write going astray, often until all of it is sealed.
async fn fill(sim: &Sim, rng: &mut Rng, config: StoreConfig, life: &mut Life) -> Result<(), Error> {
    let builder = Store::builder("/store").config(config);
    let (store, _) = builder.backend(sim.new_process()).open().await?;
    let partition = store.create_partition(1).await?;
    // Without a seal only what has successors that know it to be durable is judged.
    let rests = rng.percent(60);
    let astray = sim.write_count() + rng.range(1, if rests { 20 } else { 3 });
    if rng.percent(50) {
        sim.lose_write(astray);
    } else {
        sim.misdirect_write(astray);
    }
    let appends = if rests {
        rng.range(15, 30)
    } else {
        rng.range(4, 7)
    };
    for _ in 0..appends {
        let record_bytes = usize::try_from(rng.range(16, 600)).unwrap_or(16);
        let shape = BatchShape {
            count: 2,
            record_bytes,
            opaque: rng.percent(30),
        };
        let id = life.submit(0, shape);
        let appended = partition.append(shape.encode(id)).await?;
        let checked = life.acknowledged(id, Ack::Durable, appended, partition.offsets());
        assert_eq!(checked, Ok(()));
        if rests && rng.percent(10) {
            sim.sleep(Duration::from_millis(10)).await;
        }
    }
    if !rests {
        return Ok(());
    }
    sim.sleep(Duration::from_millis(20)).await;
    if rng.percent(50) {
        store.close(Duration::from_secs(5)).await?;
    }
    Ok(())
}

/// Opens the store and reads all of it; whatever is read must be right, and what is missing must
/// be named.
async fn look(
    sim: &Sim,
    config: &StoreConfig,
    policy: OnCorruption,
    life: &mut Life,
) -> Result<Option<Found>, String> {
    let builder = Store::builder("/store").config(config.clone());
    let builder = builder.configure(|c| c.on_corruption = policy);
    let (store, report) = match builder.backend(sim.new_process()).open().await {
        Ok(opened) => opened,
        Err(Error::Corrupt(_)) if policy == OnCorruption::Refuse => {
            return Ok(Some(Found::Refused));
        }
        Err(e) => return Err(format!("P7: {policy:?} gives {e}")),
    };
    let partition = store.partition(1).await.map_err(|e| format!("P7: {e}"))?;
    let (seen, named) = read_all(&partition, life).await?;
    let told = report.partitions.iter().any(|p| p.corruption.is_some());
    if told && policy == OnCorruption::Refuse {
        return Ok(None);
    }
    if named || told {
        return Ok(Some(Found::ByRead));
    }
    // Nothing is reported: then nothing may be missing.
    let whole = life.recovered(Survival::Durable, partition.offsets(), &seen);
    match whole {
        Ok(()) => Ok(Some(Found::Harmless)),
        Err(violation) => Err(format!("P7: not reported: {violation}")),
    }
}

async fn read_all(partition: &Partition, life: &Life) -> Result<(Vec<Seen>, bool), String> {
    let offsets = partition.offsets();
    let (mut at, mut named, mut seen) = (offsets.log_start(), false, Vec::new());
    while at < offsets.durable() {
        match partition
            .read(at, ReadLimits::default(), Visibility::Durable)
            .await
        {
            Ok(fetched) => {
                let found = observe(life, &fetched).map_err(|v| format!("P7: {v}"))?;
                seen.extend(found);
                if fetched.next_offset <= at {
                    return Err(format!("P10: a read at {at} stands still"));
                }
                at = fetched.next_offset;
            }
            Err(Error::Corrupt(place)) => {
                named = true;
                at = place.offset_end.unwrap_or(u64::MAX).max(at + 1);
            }
            Err(e) => return Err(format!("P7: a read at {at} gives {e}")),
        }
    }
    Ok((seen, named))
}
