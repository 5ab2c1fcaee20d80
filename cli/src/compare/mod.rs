//! `compare`: the backends of this machine through the workloads, beside the disk itself.

mod html;

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use alluvium::BackendKind;
use alluvium_workloads::{
    Alluvium, Case, ChecksumScan, Contender, Driven, Error, Machine, Naive, Plan, RawDisk, Report,
    Session, Sizes, Step, Stop, SyscallCounter, Workload,
};
use bytesize::ByteSize;
use comfy_table::CellAlignment;
use indicatif::ProgressBar;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::{Against, CompareArgs};
use crate::failure::{Failure, Outcome};
use crate::output::{Output, complain, steps, table};
use crate::target::Target;

/// How long what is under way may take to end after an interruption.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// File systems that keep nothing.
const IN_MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// What `--quick` makes of the sizes.
const QUICK_BYTES: u64 = 32 << 20;

/// Measures, prints tables, writes reports, and leaves nothing else behind.
pub(crate) fn run(target: &Target, args: &CompareArgs) -> Result<Outcome, Failure> {
    let plan = plan(args)?;
    let backends = stores(target, args)?;
    for file in [&args.json, &args.html].into_iter().flatten() {
        check_writable(file)?;
    }
    let dir = directory(target)?;
    // Before the runtime and the shards, so that it counts the calls of all their threads.
    let syscalls = SyscallCounter::open();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Other(format!("start the runtime: {e}")))?;
    // Before there is anything that an interruption could leave behind.
    let signals = runtime.block_on(async { Signals::listen() })?;
    let stop = Stop::default();
    let session = Session::create(&dir, stop.clone(), syscalls)?;
    let report = refuse_memory(session.machine(), &dir, args.allow_tmpfs)
        .and_then(|()| contenders(&session, backends, &args.against))
        .and_then(|contenders| {
            runtime.block_on(until_interrupted(
                &session,
                &plan,
                &contenders,
                signals,
                &stop,
            ))
        });
    // Nothing of it may write any more when the files are removed.
    runtime.shutdown_timeout(STOP_PATIENCE);
    let removed = session.close();
    let report = report?;
    removed?;
    let mut out = Output::new();
    print(&mut out, &report)?;
    out.flush()?;
    if let Some(path) = &args.json {
        let mut json =
            serde_json::to_vec_pretty(&report).map_err(|e| Failure::io("write", path)(e.into()))?;
        json.push(b'\n');
        fs::write(path, json).map_err(Failure::io("write", path))?;
    }
    if let Some(path) = &args.html {
        let page = html::page(&report).map_err(|e| Failure::Other(format!("draw: {e}")))?;
        fs::write(path, page).map_err(Failure::io("write", path))?;
    }
    Ok(Outcome::Done)
}

fn plan(args: &CompareArgs) -> Result<Plan, Failure> {
    let mut sizes = Sizes::default();
    if args.quick {
        sizes.read_bytes = QUICK_BYTES;
        sizes.reopen_bytes = vec![QUICK_BYTES];
        sizes.raw_file_bytes = 2 * QUICK_BYTES;
        sizes.recycled_bytes = 2 * QUICK_BYTES;
    }
    if let Some(size) = args.read_size {
        sizes.read_bytes = size.as_u64();
    }
    if !args.reopen_size.is_empty() {
        sizes.reopen_bytes = args.reopen_size.iter().map(ByteSize::as_u64).collect();
    }
    let mut cases = Vec::new();
    for name in &args.workloads {
        cases.extend(Case::parse(name, &sizes.reopen_bytes)?);
    }
    if args.workloads.is_empty() {
        for workload in Workload::ALL {
            // A thousand partitions take longer to create than --quick has.
            if !(args.quick && workload == Workload::W3k) {
                cases.extend(workload.cases(&sizes.reopen_bytes));
            }
        }
    }
    let (rounds, seconds) = if args.quick { (1, 0.25) } else { (5, 1.0) };
    let rounds = args.rounds.unwrap_or(rounds);
    Ok(Plan {
        cases,
        rounds: usize::try_from(rounds).unwrap_or(usize::MAX),
        duration: Duration::from_secs_f64(args.seconds.unwrap_or(seconds)),
        sizes,
    })
}

/// The backends, and the first of them with memory maps.
fn stores(target: &Target, args: &CompareArgs) -> Result<Vec<Alluvium>, Failure> {
    let mut all = backends(target, args)?;
    let mapped = all.first().map(|first| first.clone().mapped());
    all.extend(mapped);
    let pinned = all.into_iter().map(|store| store.on_cores(&args.cores));
    Ok(pinned.collect())
}

/// What was asked for, resolved, each once; otherwise everything that works here.
fn backends(target: &Target, args: &CompareArgs) -> Result<Vec<Alluvium>, Failure> {
    let mut asked = args.backends.clone();
    if asked.is_empty() && target.backend() != BackendKind::Auto {
        asked.push(target.backend());
    }
    if asked.is_empty() {
        return Ok(Alluvium::all());
    }
    let mut kinds = Vec::new();
    for kind in asked {
        let resolved = kind.resolve();
        let kind = resolved.map_err(|e| Failure::Other(e.to_string()))?.kind;
        if !kinds.contains(&kind) {
            kinds.push(kind);
        }
    }
    Ok(kinds.into_iter().map(Alluvium::new).collect())
}

/// The directory to make a temporary one in.
fn directory(target: &Target) -> Result<PathBuf, Failure> {
    existing(target.dir().unwrap_or_else(|| Path::new(".")))
}

/// A directory, and not that of a store.
pub(crate) fn existing(dir: &Path) -> Result<PathBuf, Failure> {
    if dir.join("STORE").exists() {
        return Err(Failure::Other(format!(
            "{} is a store; name a directory beside it",
            dir.display()
        )));
    }
    if !dir.is_dir() {
        return Err(Failure::Other(format!(
            "{}: not a directory; name one on the disk that is to be measured",
            dir.display()
        )));
    }
    Ok(dir.to_path_buf())
}

/// Finds out before the measuring whether a report can be written after it.
fn check_writable(path: &Path) -> Result<(), Failure> {
    let parent = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let problem = if path.is_dir() {
        "it is a directory; name a file".to_owned()
    } else if !parent.is_dir() {
        format!("there is no directory {}", parent.display())
    } else {
        return Ok(());
    };
    Err(Failure::Other(format!(
        "cannot write {}: {problem}",
        path.display()
    )))
}

fn refuse_memory(machine: &Machine, dir: &Path, allowed: bool) -> Result<(), Failure> {
    if allowed || !IN_MEMORY.contains(&machine.file_system.as_str()) {
        return Ok(());
    }
    Err(Failure::Other(format!(
        "{} is on {}, which is memory: nothing is durable there, and the figures would say nothing \
         about a disk; name another directory with --dir, or insist with --allow-tmpfs",
        dir.display(),
        machine.file_system
    )))
}

fn contenders(
    session: &Session,
    backends: Vec<Alluvium>,
    against: &[Against],
) -> Result<Vec<Box<dyn Contender>>, Failure> {
    let mut contenders: Vec<Box<dyn Contender>> = Vec::new();
    for backend in backends {
        contenders.push(Box::new(Driven(backend)));
    }
    if against.contains(&Against::Naive) {
        contenders.push(Box::new(Driven(Naive)));
    }
    contenders.push(Box::new(RawDisk::new(session.dir())?));
    contenders.push(Box::new(ChecksumScan));
    Ok(contenders)
}

/// What ends a comparison early.
#[derive(Debug)]
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    /// From now on they do not end the process. Must be called on a runtime.
    fn listen() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|e| Failure::Other(format!("signals: {e}")));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }
}

async fn until_interrupted(
    session: &Session,
    plan: &Plan,
    contenders: &[Box<dyn Contender>],
    mut signals: Signals,
    stop: &Stop,
) -> Result<Report, Failure> {
    let bar = steps();
    let mut on_step = |step: &Step| show(&bar, step);
    let mut running = pin!(session.run(plan, contenders, &mut on_step));
    let report = tokio::select! {
        report = &mut running => report,
        _ = signals.interrupt.recv() => give_up(running, stop).await,
        _ = signals.terminate.recv() => give_up(running, stop).await,
    };
    bar.finish_and_clear();
    Ok(report?)
}

/// Lets what is under way end by itself, for a while.
async fn give_up(
    running: std::pin::Pin<&mut impl Future<Output = Result<Report, Error>>>,
    stop: &Stop,
) -> Result<Report, Error> {
    stop.stop();
    let ended = tokio::time::timeout(STOP_PATIENCE, running).await;
    ended.unwrap_or(Err(Error::Stopped))
}

fn show(bar: &ProgressBar, step: &Step) {
    bar.set_length(step.total as u64);
    bar.set_position(step.done as u64);
    bar.set_message(format!(
        "{} {}, round {}",
        step.case, step.contender, step.round
    ));
}

fn print(out: &mut Output, report: &Report) -> Result<(), Failure> {
    out.line(report.machine.describe())?;
    out.line(format_args!(
        "medians of {} interleaved rounds of {} s; latencies are those of single operations",
        report.rounds, report.seconds
    ))?;
    if report.machine.debug_build {
        complain("this is a debug build: its figures are not those of a release");
    }
    if let Some(why) = &report.syscalls_refused {
        out.line(format_args!("system calls are not counted: {why}"))?;
    }
    for case in report.tables() {
        let mut drawn = table(&case.header);
        drawn.add_rows(case.rows);
        for column in drawn.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        out.line(format_args!("\n{}\n{drawn}", case.title))?;
        for note in case.notes {
            out.line(note)?;
        }
    }
    Ok(())
}
