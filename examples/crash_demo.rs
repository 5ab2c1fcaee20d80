//! Kills a process that appends, again and again, and checks what it was promised.
//!
//! ```text
//! cargo run --release --example crash_demo [-- --backend auto|uring|compio|tokio] [--rounds N]
//! ```
//!
//! A child process appends the project's own sources line by line and reports each acknowledged
//! end offset through a pipe. It is killed with SIGKILL at a random point. The store is then opened
//! here, which recovers it, and read: every acknowledged line must be there, byte for byte, at its
//! offset, and nothing that was never appended. The next child takes up where the log ends. In the
//! end the whole log must be the whole text. Any violation makes the exit code 1.
//!
//! A killed process loses what the process held, not what the kernel holds: this shows atomicity,
//! recovery and resumption. Power cuts are the business of the simulated disk.

#![expect(clippy::print_stdout, reason = "a demonstration talks")]

use std::collections::VecDeque;
use std::env;
use std::error::Error;
use std::fs;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use alluvium::format::Batch;
use alluvium::{
    AppendOptions, Appended, BackendKind, Partition, PartitionReport, ReadLimits, Shards, Store,
    StoreBuilder, Visibility,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const PARTITION: u64 = 1;
/// Small, so that a run crosses many segments.
const SEGMENT_BYTES: u64 = 1 << 20;
/// Appends that the child has under way.
const IN_FLIGHT: usize = 64;
const ROUNDS: u64 = 5;
const CHILD: &str = "--child";

fn main() -> ExitCode {
    let result = Arguments::parse().and_then(|arguments| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        match arguments.child {
            Some((dir, text)) => runtime.block_on(append_from(&dir, &text, arguments.backend)),
            None => runtime.block_on(demonstrate(arguments.backend, arguments.rounds)),
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell when that fails.
            writeln!(std::io::stderr(), "crash_demo: {error}").ok();
            ExitCode::FAILURE
        }
    }
}

struct Arguments {
    backend: BackendKind,
    rounds: u64,
    /// Directory and text, in the process that is killed.
    child: Option<(PathBuf, PathBuf)>,
}

impl Arguments {
    fn parse() -> Result<Self> {
        let mut arguments = Self {
            backend: BackendKind::Auto,
            rounds: ROUNDS,
            child: None,
        };
        let mut given = env::args().skip(1);
        while let Some(name) = given.next() {
            let mut value = || given.next().ok_or_else(|| format!("{name} needs a value"));
            match name.as_str() {
                "--backend" => arguments.backend = value()?.parse()?,
                "--rounds" => arguments.rounds = value()?.parse()?,
                CHILD => arguments.child = Some((value()?.into(), value()?.into())),
                other => {
                    let known = "--backend auto|uring|compio|tokio and --rounds N";
                    return Err(format!("unknown argument {other}; known are {known}").into());
                }
            }
        }
        Ok(arguments)
    }
}

/// The settings of child and parent.
fn builder(dir: &Path) -> StoreBuilder {
    Store::builder(dir).configure(|config| {
        config.shards = Shards::Count(1);
        config.segment_bytes = SEGMENT_BYTES;
    })
}

/// The child: appends what the log does not hold yet, and reports each acknowledgement.
async fn append_from(dir: &Path, text: &Path, backend: BackendKind) -> Result<()> {
    type Acknowledgement = Pin<Box<dyn Future<Output = alluvium::Result<Appended>>>>;
    async fn report(oldest: Acknowledgement) -> Result<()> {
        let appended = oldest.await?;
        writeln!(std::io::stdout().lock(), "{}", appended.end_offset())?;
        Ok(())
    }

    let text = fs::read(text)?;
    let (store, _) = builder(dir).backend(backend).open().await?;
    let partition = store.partition_or_create(PARTITION).await?;
    let held = usize::try_from(partition.offsets().log_end())?;
    let mut under_way: VecDeque<Acknowledgement> = VecDeque::with_capacity(IN_FLIGHT);
    for line in lines(&text).skip(held) {
        if under_way.len() == IN_FLIGHT
            && let Some(oldest) = under_way.pop_front()
        {
            report(oldest).await?;
        }
        let append = partition.try_append(Batch::from_values([line])?, AppendOptions::default())?;
        under_way.push_back(Box::pin(append));
    }
    for oldest in under_way {
        report(oldest).await?;
    }
    store.close(Duration::from_secs(10)).await?;
    Ok(())
}

/// The parent: rounds of killing and checking, then one without a kill.
async fn demonstrate(backend: BackendKind, rounds: u64) -> Result<()> {
    let began = Instant::now();
    let resolved = backend.resolve()?;
    let text = project_text()?;
    let lines: Vec<&[u8]> = lines(&text).collect();
    let total = lines.len() as u64;
    let executable = env::current_exe()?;
    let place = executable.parent().unwrap_or(Path::new("."));
    let scratch = tempfile::Builder::new()
        .prefix("crash-demo-")
        .tempdir_in(place)?;
    let (dir, text_path) = (scratch.path().join("store"), scratch.path().join("text"));
    fs::write(&text_path, &text)?;
    println!("backend   {} ({})", resolved.kind, resolved.why);
    println!(
        "text      the project's sources: {total} lines, {} KiB",
        text.len() / 1024
    );
    println!("store     {}", dir.display());
    println!("promise   an acknowledged line is there after any crash, byte for byte");

    let start = || start_child(&executable, &dir, &text_path, resolved.kind);
    let random = RandomState::new();
    let mut held = 0;
    for round in 1..=rounds {
        // On average, the kills share what is left evenly among the rounds to come.
        let share = (total - held).saturating_mul(2) / (rounds - round + 2);
        let kill_at = held + 1 + random.hash_one(round) % share.max(1);
        let ended = watch(start()?, kill_at)?;
        let acknowledged = ended.acknowledged.max(held);
        let opened = Instant::now();
        let (store, report) = builder(&dir).backend(resolved.kind).open().await?;
        let recovery = opened.elapsed();
        let what = report.partitions.iter().find(|p| p.partition == PARTITION);
        let found = match what {
            Some(_) => check(&store.partition(PARTITION).await?, &lines, acknowledged).await?,
            // Killed before the partition stood.
            None if acknowledged == 0 => 0,
            None => {
                return Err(violation(
                    "the partition is gone, with its acknowledged lines",
                ));
            }
        };
        store.close(Duration::from_secs(10)).await?;
        println!(
            "round {round}   {} at {acknowledged} acknowledged; recovered {found} \
             (+{} in flight), {}, {:.1} ms: all there",
            if ended.killed { "killed" } else { "finished" },
            found - acknowledged,
            describe(what),
            recovery.as_secs_f64() * 1e3,
        );
        held = found;
    }

    let ended = watch(start()?, u64::MAX)?;
    let (store, report) = builder(&dir).backend(resolved.kind).open().await?;
    let found = check(&store.partition(PARTITION).await?, &lines, total).await?;
    store.close(Duration::from_secs(10)).await?;
    if found != total || ended.acknowledged.max(held) != total {
        return Err(violation("the log is not the whole text"));
    }
    let segments = report.partitions.first().map_or(0, |p| p.segments);
    println!(
        "the end   not killed; {total} lines in {segments} segments are the text, byte for byte"
    );
    println!("passed    in {:.1} s", began.elapsed().as_secs_f64());
    Ok(())
}

fn start_child(executable: &Path, dir: &Path, text: &Path, backend: BackendKind) -> Result<Child> {
    let mut command = Command::new(executable);
    command
        .args(["--backend", backend.name(), CHILD])
        .arg(dir)
        .arg(text);
    Ok(command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?)
}

struct Ended {
    killed: bool,
    /// Highest end offset that the child reported, up to its last breath.
    acknowledged: u64,
}

/// Reads the child's reports and kills it once it reports `kill_at` or more.
fn watch(mut child: Child, kill_at: u64) -> Result<Ended> {
    let mut ended = Ended {
        killed: false,
        acknowledged: 0,
    };
    let pipe = child.stdout.take().ok_or("the child has no pipe")?;
    for line in BufReader::new(pipe).lines() {
        // The kill may have cut the last line short; a shorter number claims less.
        if let Ok(end) = line?.parse::<u64>() {
            ended.acknowledged = ended.acknowledged.max(end);
        }
        if !ended.killed && ended.acknowledged >= kill_at {
            child.kill()?;
            ended.killed = true;
        }
    }
    let status = child.wait()?;
    if !ended.killed && !status.success() {
        return Err(format!("the appending process failed: {status}").into());
    }
    // It may have finished in the very moment of the kill.
    ended.killed &= !status.success();
    Ok(ended)
}

/// Reads the whole log and compares it with the text; returns how many lines it holds.
async fn check(partition: &Partition, lines: &[&[u8]], acknowledged: u64) -> Result<u64> {
    let offsets = partition.offsets();
    let mut at = offsets.log_start();
    if at != 0 {
        return Err(violation(&format!("the log starts at {at}, not at 0")));
    }
    while at < offsets.log_end() {
        let fetched = partition
            .read(at, ReadLimits::default(), Visibility::Durable)
            .await?;
        for record in fetched.records() {
            let record = record?;
            let line = lines.get(usize::try_from(at)?);
            if record.offset != at || line.is_none_or(|line| record.value != *line) {
                let place = format!("line {at}: found {:?} at {}", record.value, record.offset);
                return Err(violation(&format!("{place}, where {line:?} belongs")));
            }
            at += 1;
        }
        if at != fetched.next_offset {
            return Err(violation(&format!(
                "lines {at} to {} are missing",
                fetched.next_offset
            )));
        }
    }
    if at < acknowledged {
        let lost = acknowledged - at;
        return Err(violation(&format!(
            "{lost} acknowledged lines are lost, from {at} on"
        )));
    }
    Ok(at)
}

fn violation(what: &str) -> Box<dyn Error> {
    format!("VIOLATION: {what}").into()
}

fn describe(report: Option<&PartitionReport>) -> String {
    match report {
        None => "nothing to recover".to_owned(),
        Some(report) => {
            format!(
                "tail {}, {} KiB rewritten",
                report.case,
                report.rewritten_bytes / 1024
            )
        }
    }
}

/// All sources and documents of the project, in order of their names.
fn project_text() -> Result<Vec<u8>> {
    let mut files = Vec::new();
    collect(Path::new(env!("CARGO_MANIFEST_DIR")), &mut files)?;
    files.sort_unstable();
    let mut text = Vec::new();
    for file in &files {
        text.extend_from_slice(&fs::read(file)?);
    }
    if text.is_empty() {
        return Err("the project's sources are not where they were built".into());
    }
    Ok(text)
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        fs::read_dir(dir).map_err(|e| format!("the project's sources, {}: {e}", dir.display()))?;
    for entry in entries {
        let (path, kind) = entry.map(|e| (e.path(), e.file_type()))?;
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if kind?.is_dir() {
            if name != "target" && !name.starts_with('.') {
                collect(&path, files)?;
            }
        } else if path
            .extension()
            .is_some_and(|end| end == "md" || end == "rs")
        {
            files.push(path);
        }
    }
    Ok(())
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}
