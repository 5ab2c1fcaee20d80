//! Operations, crashes and faults from bytes, on the simulated disk, against the model.

use std::time::Duration;

use alluvium_backends::sim::{CrashKind, Sim, SimFactory, Stop};
use alluvium_core::{Ack, Error, Offsets, Partition, ReadLimits, Store, StoreConfig, Visibility};

use super::input::Input;
use super::machine::{STORE, configure, machine};
use crate::promises::{BatchShape, Life, Survival, Violation, observe};

/// Most bytes of an input that are looked at.
const INPUT_MAX: usize = 300;
/// The disk, when it is not full.
const CAPACITY: u64 = 16 << 20;
const EIO: i32 = 5;
const EINTR: i32 = 4;
const ENOSPC: i32 = 28;

struct Model {
    life: Life,
    /// The worst that has happened since everything was read back.
    survival: Survival,
    /// Errors have been injected in this life.
    faulty: bool,
    /// What the stores of this input are like.
    shape: u8,
}

/// One partition through several lives: appends at every level, dropped answers, reads, trims,
/// truncations, syncs; kills, power cuts, errors, short transfers, a full disk.
pub fn ops_vs_model(data: &[u8]) {
    let mut input = Input(&data[..data.len().min(INPUT_MAX)]);
    let sim = machine(u64::from(input.byte()));
    let (shape, disk) = (input.byte(), input.byte());
    sim.configure(|config| {
        config.alignment = if disk & 1 == 0 { 512 } else { 4096 };
        config.direct_io = disk & 2 == 0;
        config.short_per_mille = [0, 0, 30, 300][usize::from(disk >> 2 & 3)];
        config.interrupted_per_mille = [0, 0, 30, 300][usize::from(disk >> 4 & 3)];
    });
    sim.create_dir_all("/").unwrap();
    let mut model = Model {
        life: Life::new(1, false),
        survival: Survival::Written,
        faulty: false,
        shape,
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
        sim.set_capacity(CAPACITY);
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
    model.faulty = false;
    let verdict = sim.block_on(live(&sim, sim.new_process(), &mut model, &mut Input(&[])));
    verdict.unwrap_or_else(|violation| panic!("{violation}"));
}

fn settings(config: &mut StoreConfig, shape: u8) {
    configure(config);
    config.initialise_ahead_bytes = 4096;
    config.preinitialise = shape & 1 != 0;
    config.spare_segments_max = usize::from(shape >> 1 & 1);
    config.writes_in_flight_max = [4, 1, 2, 3][usize::from(shape >> 2 & 3)];
    config.group_bytes_min = [4 << 10, 0][usize::from(shape >> 4 & 1)];
    config.tail_cache_bytes_max = [64 << 10, 0][usize::from(shape >> 5 & 1)];
    config.read_ahead_chunks = [0, 4][usize::from(shape >> 6 & 1)];
    config.segment_bytes = [16 << 10, 32 << 10][usize::from(shape >> 7)];
}

/// From one opening to a clean close, or to wherever the crash strikes.
async fn live(
    sim: &Sim,
    factory: SimFactory,
    model: &mut Model,
    input: &mut Input<'_>,
) -> Result<(), Violation> {
    let shape = model.shape;
    let builder = Store::builder(STORE).configure(|config| settings(config, shape));
    let opened = builder.backend(factory).open().await;
    let (store, _) = opened.map_err(|e| Violation::new("P1", format!("open: {e}")))?;
    let p = match store.partition_or_create(1).await {
        Ok(p) => p,
        Err(e) => return Err(Violation::new("P1", format!("create: {e}"))),
    };
    judge(&p, model).await?;
    loop {
        let op = input.byte();
        if op == 0 || input.is_empty() {
            break;
        }
        if !step(sim, &p, model, input, op).await? {
            model.survival = Survival::Durable;
            if p.reopen().await.is_err() {
                // Faults strike the recovery, too: once they are over it works.
                sim.cancel_failures();
                sim.set_capacity(CAPACITY);
                let reopened = p.reopen().await;
                reopened.map_err(|e| Violation::new("P8", format!("reopen: {e}")))?;
            }
            if !judge(&p, model).await? {
                break;
            }
        }
    }
    match store.close(Duration::from_secs(60)).await {
        Ok(()) if !model.faulty => model.life.closed(),
        Ok(()) => {}
        Err(
            Error::PartitionFailed { .. }
            | Error::OutcomeUnknown { .. }
            | Error::NoSpace { .. }
            | Error::Io { .. },
        ) if model.faulty => {}
        Err(e) => return Err(Violation::new("P10", format!("close: {e}"))),
    }
    Ok(())
}

/// Reads everything back and compares; `false` when an injected error got in between.
async fn judge(p: &Partition, model: &mut Model) -> Result<bool, Violation> {
    let offsets = p.offsets();
    let mut seen = Vec::new();
    let mut at = offsets.log_start();
    while at < offsets.durable() {
        let limits = ReadLimits::default();
        let fetched = match p.read(at, limits, Visibility::Durable).await {
            Ok(fetched) => fetched,
            Err(Error::Io { .. }) if model.faulty => return Ok(false),
            Err(e) => return Err(Violation::new("P1", format!("read at {at}: {e}"))),
        };
        seen.extend(observe(&model.life, &fetched)?);
        if fetched.next_offset <= at {
            return Err(Violation::new(
                "P10",
                format!("a read at {at} stands still"),
            ));
        }
        at = fetched.next_offset;
    }
    model.life.recovered(model.survival, offsets, &seen)?;
    model.survival = Survival::Written;
    Ok(true)
}

/// One operation; `false` when the partition has failed.
async fn step(
    sim: &Sim,
    p: &Partition,
    model: &mut Model,
    input: &mut Input<'_>,
    op: u8,
) -> Result<bool, Violation> {
    match op % 16 {
        0..=3 => append(p, model, input, 1).await,
        4 | 5 => {
            let count = 2 + input.pick(5);
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
            let low = offsets.log_end().saturating_sub(12);
            truncate(p, model, input, low.max(offsets.log_start()), offsets).await
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
            let time = Duration::from_millis(u64::from(input.byte()));
            sim.sleep(time).await;
            Ok(true)
        }
        10 | 11 => read(p, model, input).await,
        12 => {
            let errno = [EIO, ENOSPC, EINTR][input.pick(3)];
            // Most of them soon: a life has few operations.
            let at = 1 + u64::from(input.byte() % 32);
            sim.fail_op(sim.op_count() + at, errno);
            model.faulty = true;
            Ok(true)
        }
        13 => {
            let at = 1 + u64::from(input.byte() % 8);
            sim.fail_read(sim.counters().reads + at, EIO);
            model.faulty = true;
            Ok(true)
        }
        14 => {
            sim.set_capacity([CAPACITY, 32 << 10, 64 << 10, 128 << 10][input.pick(4)]);
            model.faulty = true;
            Ok(true)
        }
        _ => {
            sim.jump_wall_clock(i64::from(input.byte().cast_signed()) * 1000);
            Ok(true)
        }
    }
}

fn between(input: &mut Input<'_>, low: u64, offsets: Offsets) -> u64 {
    low + u64::from(input.byte()) % (offsets.log_end() - low + 1)
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

async fn truncate(
    p: &Partition,
    model: &mut Model,
    input: &mut Input<'_>,
    low: u64,
    offsets: Offsets,
) -> Result<bool, Violation> {
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

/// Part of the log, in the middle of everything.
async fn read(p: &Partition, model: &mut Model, input: &mut Input<'_>) -> Result<bool, Violation> {
    let shape = input.byte();
    let visibility = if shape & 1 == 0 {
        Visibility::Durable
    } else {
        Visibility::Visible
    };
    let limits = match shape >> 1 & 3 {
        0 => ReadLimits {
            bytes_max: 1 + usize::from(shape),
            records_max: 1 + u64::from(shape >> 5),
        },
        _ => ReadLimits::default(),
    };
    let offsets = p.offsets();
    let from = between(input, offsets.log_start(), offsets);
    let start = model.life.read_start(from);
    match p.read(from, limits, visibility).await {
        Ok(fetched) => {
            let seen = observe(&model.life, &fetched)?;
            model.life.read(start, visibility, &fetched, &seen)?;
            Ok(true)
        }
        // What may be seen ends before the log does.
        Err(Error::OutOfRange { .. }) if from >= offsets.durable() => Ok(true),
        Err(Error::PartitionFailed { .. }) if visibility == Visibility::Durable => Err(
            Violation::new("P8", format!("durable data at {from} is not readable")),
        ),
        Err(e) => tolerate(model, &e),
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
            [Ack::Durable, Ack::Written, Ack::Accepted, Ack::Durable][usize::from(flags & 3)];
        let shape = BatchShape {
            count: 1 + u32::from(flags >> 6),
            record_bytes: 16 + usize::from(input.byte()) * [1, 7][usize::from(flags >> 4 & 1)],
            opaque: flags & 8 != 0,
        };
        let id = model.life.submit(0, shape);
        match p.try_append(shape.encode(id), level.into()) {
            // Nobody waits for it; it is written all the same.
            Ok(answer) if flags & 0x24 == 0x24 => drop(answer),
            Ok(answer) => waiting.push((id, level, answer)),
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
    for (id, level, answer) in waiting {
        match answer.await {
            Ok(appended) => model.life.acknowledged(id, level, appended, p.offsets())?,
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
