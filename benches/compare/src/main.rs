//! Runs the workloads of `alluvium-workloads` over Alluvium, other projects' logs, the plain way
//! and the disk itself, interleaved round by round, and prints medians and ratios:
//!
//! ```text
//! cargo run --release --manifest-path benches/compare/Cargo.toml --features peers -- --rounds 5
//! ```
//!
//! `alluvium compare` does the same without the other projects, for everybody.

#[cfg(feature = "_peer")]
mod peers;

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::time::Duration;

use alluvium_workloads::{
    Alluvium, Case, ChecksumScan, Contender, Driven, Naive, Plan, RawDisk, Session, Sizes, Stop,
    SyscallCounter,
};
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets};

#[derive(Debug, Parser)]
#[command(about, long_about = None)]
struct Arguments {
    /// Where to put the files; a real file system, not tmpfs.
    #[arg(long, default_value = "target/compare")]
    dir: PathBuf,
    /// Rounds; medians are over these.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per workload, contender and round.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Workloads to run.
    #[arg(long, value_delimiter = ',', default_values_t = ["W1", "W2", "W3", "W4", "W5", "W6"].map(String::from))]
    workloads: Vec<String>,
    /// Only contenders whose name contains one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Pin Alluvium's shards to these cores, one to each.
    #[arg(long, value_delimiter = ',')]
    cores: Vec<usize>,
    /// MiB that W6, W6c and WT read.
    #[arg(long, default_value_t = 256)]
    read_mib: u64,
    /// MiB that the partition of W7 holds; a list.
    #[arg(long, value_delimiter = ',', default_values_t = [256])]
    reopen_mib: Vec<u64>,
    /// Write all figures to this file.
    #[arg(long)]
    json: Option<PathBuf>,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), AnyError> {
    let arguments = Arguments::parse();
    // Before any other thread, so that it counts them all.
    let syscalls = SyscallCounter::open();
    std::fs::create_dir_all(&arguments.dir)?;
    let dir = arguments.dir.canonicalize()?;
    let session = Session::create(&dir, Stop::default(), syscalls)?;
    // SAFETY: this is the only thread of the process so far.
    unsafe {
        std::env::set_var("WALRUS_DATA_DIR", session.dir());
        // It tells of every write otherwise.
        std::env::set_var("WALRUS_QUIET", "1");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let sizes = Sizes {
        read_bytes: arguments.read_mib << 20,
        reopen_bytes: arguments.reopen_mib.iter().map(|mib| mib << 20).collect(),
        ..Sizes::default()
    };
    let mut cases = Vec::new();
    for name in &arguments.workloads {
        cases.extend(Case::parse(name, &sizes.reopen_bytes)?);
    }
    let plan = Plan {
        cases,
        rounds: arguments.rounds,
        duration: Duration::try_from_secs_f64(arguments.seconds)?,
        sizes,
    };
    let mut contenders = contenders(&session, &arguments.cores)?;
    contenders.retain(|c| {
        let named = |part: &String| c.name().contains(part.as_str());
        arguments.only.is_empty() || arguments.only.iter().any(named)
    });
    println!("{}", session.machine().describe());
    let report = runtime.block_on(session.run(&plan, &contenders, &mut |_| {}))?;
    session.close()?;
    if let Some(path) = &arguments.json {
        serde_json::to_writer_pretty(BufWriter::new(File::create(path)?), &report)?;
    }
    if let Some(why) = &report.syscalls_refused {
        println!("system calls are not counted: {why}");
    }
    for table in report.tables() {
        println!("\n{}", table.title);
        let mut drawn = Table::new();
        drawn.load_preset(presets::NOTHING).set_header(table.header);
        drawn.add_rows(table.rows);
        for column in drawn.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        println!("{drawn}");
        for note in table.notes {
            println!("{note}");
        }
    }
    Ok(())
}

fn contenders(session: &Session, cores: &[usize]) -> Result<Vec<Box<dyn Contender>>, AnyError> {
    let mut all: Vec<Box<dyn Contender>> = Vec::new();
    for store in Alluvium::all() {
        all.push(Box::new(Driven(store.on_cores(cores))));
    }
    #[cfg(feature = "_peer")]
    all.extend(peers::all());
    all.push(Box::new(Driven(Naive)));
    all.push(Box::new(RawDisk::new(session.dir())?));
    all.push(Box::new(ChecksumScan));
    Ok(all)
}
