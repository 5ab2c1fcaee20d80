//! P7: a resting store is damaged: a bit, a sector, or a piece that was written to a wrong place.
//! Whatever is read afterwards is what was written, or an
//! error that names the place.

use std::rc::Rc;
use std::time::Duration;

use alluvium::backends::sim::Sim;
use alluvium::{Error, OnCorruption, Store};
use alluvium_testkit::simulation::{Lineage, Tails};

use crate::machine;
use crate::model::Name;
use crate::rng::Rng;
use crate::workload::{self, Shared};

/// Returns what recovery met.
pub(crate) fn run(cases: u64) -> Tails {
    let (mut reported, mut readable) = (0, 0);
    let mut tails = Tails::default();
    for seed in 0..cases {
        let (was_reported, rest) =
            one(seed, &mut tails).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        reported += u64::from(was_reported);
        readable += u64::from(rest);
    }
    // Not every byte matters: padding of dead segments, spares. Many do.
    assert!(
        reported * 5 > cases,
        "only {reported} of {cases} damages were met"
    );
    assert!(
        readable * 10 > reported,
        "the rest was readable in only {readable} of {reported}"
    );
    tails
}

fn one(seed: u64, tails: &mut Tails) -> Result<(bool, bool), String> {
    let sim = Sim::from_seed(seed);
    let lineage = Lineage {
        sound: true,
        ..Lineage::new(seed)
    };
    let world = crate::case::world(&lineage, false);
    let mut config = machine::config(seed);
    config.retention_bytes = None;
    config.retention_age = None;
    let (process, phases) = (sim.new_process(), 6);
    let (shared, settings) = (Rc::clone(&world), config.clone());
    sim.block_on(workload::life(
        sim.clone(),
        process,
        shared,
        settings,
        phases,
        true,
    ))?;
    let mut rng = Rng(seed ^ 0xDA3A6E);
    // At rest and sealed: what the model knows is what must be found.
    sim.power_loss();
    let files: Vec<_> = sim
        .list_files()
        .into_iter()
        .filter(|f| f.extension().is_some_and(|e| e == "seg"))
        .collect();
    if files.is_empty() {
        return Ok((false, false));
    }
    let file = &files[usize::try_from(rng.below(files.len() as u64)).unwrap()];
    let len = sim.read_file(file).unwrap().len() as u64;
    let at = if rng.chance(20) {
        rng.below(512)
    } else {
        4096 + rng.below((len - 4096) / 2)
    };
    if rng.chance(30) {
        // A device that wrote one of its pieces to another place, too.
        let mut bytes = sim.read_file(file).unwrap();
        let mut sector = || 4096 + rng.below((len - 4096) / 1024) * 512;
        let (from, to) = (
            usize::try_from(sector()).unwrap(),
            usize::try_from(sector()).unwrap(),
        );
        // One sector: the last batch and its seal, all evidence of it, stand in two.
        bytes.copy_within(from..from + 512, to);
        sim.write_file(file, &bytes).unwrap();
    } else if rng.chance(50) {
        sim.flip_bit(file, at, u8::try_from(rng.below(8)).unwrap())
            .unwrap();
    } else {
        let sector = at / 512 * 512;
        sim.corrupt(file, sector..sector + 512).unwrap();
    }
    sim.block_on(check(&sim, &world, &config, rng, tails))
}

/// Whether the damage was reported, and whether records were readable beside it.
async fn check(
    sim: &Sim,
    world: &Shared,
    config: &alluvium::StoreConfig,
    mut rng: Rng,
    tails: &mut Tails,
) -> Result<(bool, bool), String> {
    let open = |policy| {
        let mut config = config.clone();
        config.on_corruption = policy;
        Store::builder("/store")
            .config(config)
            .backend(sim.new_process())
            .open()
    };
    let mut reported = false;
    let store = match open(OnCorruption::Refuse).await {
        Ok((store, _)) => store,
        Err(Error::Corrupt(_)) => {
            reported = true;
            sim.sleep(Duration::from_millis(5)).await;
            match open(OnCorruption::Salvage).await {
                Ok((store, report)) => {
                    for partition in &report.partitions {
                        tails.note(partition)?;
                    }
                    store
                }
                Err(Error::Corrupt(_)) => return Ok((true, false)),
                Err(e) => return Err(format!("salvage: {e}")),
            }
        }
        Err(e) => return Err(format!("open: {e}")),
    };
    let refused = reported;
    let mut read_any = false;
    let ids: Vec<u64> = world.borrow().logs.keys().copied().collect();
    for id in ids {
        let Ok(p) = store.partition(id).await else {
            if refused {
                continue;
            }
            return Err(format!("P7 partition {id} is gone and nobody said so"));
        };
        let expected = world.borrow().logs[&id].records.clone();
        let damaged = p.describe().await.map_err(|e| e.to_string())?.read_only;
        match workload::read_all(&p, p.offsets(), &mut rng).await {
            Ok(found) => {
                let (found, _) = found?;
                read_any |= !found.is_empty();
                let altered = |(o, n): &(&u64, &Name)| expected.get(o).map(|(e, _)| e) != Some(n);
                if let Some((offset, name)) = found.iter().find(altered) {
                    return Err(format!(
                        "P7 partition {id} serves {name:?} at {offset}, there was {:?}; {:?}, {:?}",
                        expected.get(offset),
                        p.offsets(),
                        p.describe().await.map(|info| info.recovery)
                    ));
                }
                let whole = expected.keys().all(|o| found.contains_key(o));
                if !whole && !damaged {
                    return Err(format!("P7 partition {id}: records are missing silently"));
                }
            }
            Err(Error::Corrupt(c)) => {
                reported = true;
                // The rest stays readable behind the damage.
                if let Some(after) = c.offset_end.filter(|end| *end < p.offsets().durable()) {
                    let limits = alluvium::ReadLimits::default();
                    let visibility = alluvium::Visibility::Durable;
                    read_any |= p.read(after, limits, visibility).await.is_ok();
                }
            }
            Err(e) => return Err(format!("P7 partition {id}: {e}")),
        }
    }
    Ok((reported, read_any))
}
