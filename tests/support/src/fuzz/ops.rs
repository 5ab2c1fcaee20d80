//! Operations, crashes and faults from bytes, on the simulated disk, against the model.

use std::time::Duration;

use alluvium_backends::sim::{CrashKind, Sim, SimConfig, SimFactory, Stop};
use alluvium_core::{Ack, Error, Offsets, Partition, ReadLimits, Store, StoreConfig, Visibility};

use super::input::Input;
use crate::promises::{BatchShape, Life, Survival, Violation, observe};

const STORE: &str = "/store";
/// Most bytes of an input that are looked at.
const INPUT_MAX: usize = 400;

struct Model {
    life: Life,
    /// The worst that has happened since everything was read back.
    survival: Survival,
    created: bool,
    /// Errors have been injected in this life.
    faulty: bool,
}

/// One partition through several lives: appends at every level, trims, truncations, syncs, reads,
/// kills, power cuts, errors, a full disk.
pub fn ops_vs_model(data: &[u8]) {
    let mut input = Input(&data[..data.len().min(INPUT_MAX)]);
    let mut config = SimConfig::new(u64::from(input.byte()));
    config.run_time_max = Duration::from_secs(600);
    config.run_steps_max = 3_000_000;
    let sim = Sim::new(config);
    sim.create_dir_all("/").unwrap();
    let mut model = Model {
        life: Life::new(1, false),
        survival: Survival::Written,
        created: false,
        faulty: false,
    };
    while !input.is_empty() {
        let kind = if input.byte() % 2 == 0 {
            CrashKind::Kill
        } else {
            CrashKind::PowerLoss
        };
        let at = u64::from(input.byte());
        let factory = sim.new_process();
        let process = factory.process();
        if at != 0 {
            sim.crash_at_op(sim.op_count() + at, kind);
        }
        model.faulty = false;
        let end = sim.try_block_on(live(&sim, factory, &mut model, &mut input));
        sim.cancel_crash();
        sim.cancel_failures();
        sim.set_capacity(1 << 30);
        match end {
            Ok(Ok(())) if at != 0 => match kind {
                // It ended first: let it strike now.
                CrashKind::Kill => sim.kill(process),
                CrashKind::PowerLoss => sim.power_loss(),
            },
            Ok(Ok(())) | Err(Stop::Crashed) => {}
            Ok(Err(violation)) => panic!("{violation}"),
            Err(stop) => panic!("nobody may hang: {stop:?}"),
        }
        if kind == CrashKind::PowerLoss && at != 0 {
            model.survival = Survival::Durable;
        }
    }
    let verdict = sim.block_on(live(&sim, sim.new_process(), &mut model, &mut Input(&[])));
    verdict.unwrap_or_else(|violation| panic!("{violation}"));
}

fn configure(config: &mut StoreConfig) {
    crate::logs::small(config);
    config.segment_bytes = 32 << 10;
    config.initialise_ahead_bytes = 4096;
    config.writes_in_flight_max = 3;
}

/// From one opening to a clean close, or to wherever the crash strikes.
async fn live(
    sim: &Sim,
    factory: SimFactory,
    model: &mut Model,
    input: &mut Input<'_>,
) -> Result<(), Violation> {
    let builder = Store::builder(STORE).configure(configure);
    let opened = builder.backend(factory).open().await;
    let (store, _) = opened.map_err(|e| Violation::new("P1", format!("open: {e}")))?;
    let p = match store.partition_or_create(1).await {
        Ok(p) => p,
        Err(e) => return Err(Violation::new("P1", format!("create: {e}"))),
    };
    model.created = true;
    judge(&p, model).await?;
    loop {
        let op = input.byte();
        if op == 0 || input.is_empty() {
            break;
        }
        if !step(sim, &p, model, input, op).await? {
            let reopened = p.reopen().await;
            if let Err(e) = reopened {
                // Faults strike the recovery, too.
                if model.faulty {
                    break;
                }
                return Err(Violation::new("P8", format!("reopen: {e}")));
            }
            model.survival = Survival::Durable;
            judge(&p, model).await?;
        }
    }
    match store.close(Duration::from_secs(60)).await {
        Ok(()) if !model.faulty => model.life.closed(),
        Ok(()) => {}
        Err(_) if model.faulty => {}
        Err(e) => return Err(Violation::new("P10", format!("close: {e}"))),
    }
    Ok(())
}

/// Reads everything back and compares.
async fn judge(p: &Partition, model: &mut Model) -> Result<(), Violation> {
    let offsets = p.offsets();
    let mut seen = Vec::new();
    let mut at = offsets.log_start();
    while at < offsets.durable() {
        let limits = ReadLimits::default();
        let fetched = match p.read(at, limits, Visibility::Durable).await {
            Ok(fetched) => fetched,
            Err(e) => return Err(Violation::new("P1", format!("read at {at}: {e}"))),
        };
        seen.extend(observe(&model.life, &fetched)?);
        at = fetched.next_offset;
    }
    model.life.recovered(model.survival, offsets, &seen)?;
    model.survival = Survival::Written;
    Ok(())
}

/// One operation; `false` when the partition has failed.
async fn step(
    sim: &Sim,
    p: &Partition,
    model: &mut Model,
    input: &mut Input<'_>,
    op: u8,
) -> Result<bool, Violation> {
    match op % 12 {
        0..=3 => append(p, model, input, 1).await,
        4 | 5 => {
            let count = 2 + input.below(5);
            append(p, model, input, count).await
        }
        6 => {
            let offsets = p.offsets();
            let to = between(input, offsets.log_start(), offsets);
            model.life.trim_asked(to);
            match p.trim_before(to).await {
                Ok(()) => {
                    model.life.trimmed(to);
                    Ok(true)
                }
                Err(e) => tolerate(model, &e),
            }
        }
        7 => {
            let offsets = p.offsets();
            let low = offsets
                .log_end()
                .saturating_sub(12)
                .max(offsets.log_start());
            let to = between(input, low, offsets);
            model.life.cut_asked(to);
            match p.truncate_to(to).await {
                Ok(()) => {
                    model.life.cut_done();
                    Ok(true)
                }
                Err(e) => {
                    if e.is_not_applied() {
                        model.life.cut_refused();
                    }
                    tolerate(model, &e)
                }
            }
        }
        8 => {
            let start = model.life.read_start(0);
            match p.sync().await {
                Ok(end) => {
                    model.life.synced(start, end);
                    Ok(true)
                }
                Err(e) => tolerate(model, &e),
            }
        }
        9 => {
            sim.sleep(Duration::from_millis(u64::from(input.byte())))
                .await;
            Ok(true)
        }
        10 => {
            let (at, errno) = (1 + u64::from(input.byte()), [5, 28][input.below(2)]);
            sim.fail_op(sim.op_count() + at, errno);
            model.faulty = true;
            Ok(true)
        }
        _ => {
            sim.set_capacity([1 << 30, 64 << 10, 200 << 10][input.below(3)]);
            model.faulty = true;
            Ok(true)
        }
    }
}

fn between(input: &mut Input<'_>, low: u64, offsets: Offsets) -> u64 {
    low + u64::from(input.u16()) % (offsets.log_end() - low + 1)
}

/// Errors that a sound disk may cause, and those that faults may.
fn tolerate(model: &Model, e: &Error) -> Result<bool, Violation> {
    match e {
        Error::InsideOpaqueBatch { .. } => Ok(true),
        Error::OutcomeUnknown { .. } | Error::PartitionFailed { .. } if model.faulty => Ok(false),
        Error::NoSpace { .. } | Error::Io { .. } if model.faulty => Ok(true),
        e => Err(Violation::new("P8", format!("without any fault: {e}"))),
    }
}

async fn append(
    p: &Partition,
    model: &mut Model,
    input: &mut Input<'_>,
    count: usize,
) -> Result<bool, Violation> {
    let mut waiting = Vec::new();
    for _ in 0..count {
        let flags = input.byte();
        let level =
            [Ack::Durable, Ack::Written, Ack::Accepted, Ack::Durable][usize::from(flags % 4)];
        let shape = BatchShape {
            count: 1 + u32::from(flags >> 6),
            record_bytes: 16 + usize::from(input.byte()) * [1, 14][usize::from(flags >> 4 & 1)],
            opaque: flags & 8 != 0,
        };
        let id = model.life.submit(0, shape);
        match p.try_append(shape.encode(id), level.into()) {
            Ok(answer) => waiting.push((id, answer)),
            Err(refused) => {
                model.life.refused(id);
                let full = matches!(refused.error, Error::Full { .. });
                if !full && !tolerate(model, &refused.error)? {
                    return Ok(false);
                }
            }
        }
    }
    let mut healthy = true;
    for (id, answer) in waiting {
        match answer.await {
            Ok(appended) => model.life.acknowledged(id, appended, p.offsets())?,
            Err(e) => {
                if e.is_not_applied() {
                    model.life.refused(id);
                }
                healthy &= tolerate(model, &e)?;
            }
        }
    }
    Ok(healthy)
}
