//! Runs the workloads W1..W6 and WB over the chosen contenders, interleaved round by round, and
//! prints medians and ratios. One command makes every figure in the README again:
//!
//! ```text
//! cargo run --release -p alluvium-compare -- --rounds 5
//! ```
//!
//! A round runs every contender once, one after the other, so that drift of the machine hits all
//! alike; ratios are taken within a round, and their median is reported.
#![allow(clippy::print_stdout, reason = "a program that prints a table")]

mod measure;
mod naive;
mod raw;
mod store;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use alluvium::backends::uring::UringFactory;
use clap::Parser;
use measure::{Outcome, Summary};

/// What is compared: a name and how to run one workload once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Contender {
    Uring,
    UringNoSpin,
    Compio,
    Tokio,
    Naive,
    Raw,
}

impl Contender {
    fn name(self) -> &'static str {
        match self {
            Self::Uring => "alluvium/uring",
            Self::UringNoSpin => "uring, no spin",
            Self::Compio => "alluvium/compio",
            Self::Tokio => "alluvium/tokio",
            Self::Naive => "naive tokio::fs",
            Self::Raw => "raw disk",
        }
    }
}

/// Workloads by the names that the documentation uses.
const WORKLOADS: [&str; 8] = ["W1", "W2", "W3", "W4", "W5", "W6", "WB", "WB1"];

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
    #[arg(long, value_delimiter = ',', default_values_t = WORKLOADS.map(String::from))]
    workloads: Vec<String>,
    /// Contenders to leave out: `uring, no spin` (by `no spin`), uring, compio, tokio,
    /// naive, raw.
    #[arg(long, value_delimiter = ',')]
    without: Vec<String>,
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), AnyError> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.dir)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let all = [
        Contender::Uring,
        Contender::UringNoSpin,
        Contender::Compio,
        Contender::Tokio,
        Contender::Naive,
        Contender::Raw,
    ];
    let left_out = |c: &Contender| {
        arguments
            .without
            .iter()
            .any(|w| c.name().contains(w.as_str()))
    };
    let contenders: Vec<_> = all.into_iter().filter(|c| !left_out(c)).collect();
    for workload in &arguments.workloads {
        let mut results: BTreeMap<Contender, Vec<Outcome>> = BTreeMap::new();
        for _ in 0..arguments.rounds {
            for &contender in &contenders {
                let dir = tempfile::tempdir_in(&arguments.dir)?;
                let run = measure::Run {
                    dir: dir.path().into(),
                    seconds: arguments.seconds,
                };
                let outcome = match contender {
                    Contender::Uring => runtime.block_on(store::run("uring", workload, &run))?,
                    Contender::UringNoSpin => {
                        let factory = UringFactory::new().spin(Duration::ZERO);
                        runtime.block_on(store::run_on(factory, workload, &run))?
                    }
                    Contender::Compio => runtime.block_on(store::run("compio", workload, &run))?,
                    Contender::Tokio => runtime.block_on(store::run("tokio", workload, &run))?,
                    Contender::Naive => runtime.block_on(naive::run(workload, &run))?,
                    Contender::Raw => raw::run(workload, &run)?,
                };
                if let Some(outcome) = outcome {
                    results.entry(contender).or_default().push(outcome);
                }
            }
        }
        print_table(workload, &results);
    }
    Ok(())
}

fn print_table(workload: &str, results: &BTreeMap<Contender, Vec<Outcome>>) {
    println!("\n{workload}: {}", measure::describe(workload));
    println!(
        "{:<18} {:>12} {:>10} {:>9} {:>9} {:>9} {:>9} {:>10}",
        "", "ops/s", "MiB/s", "p50 us", "p99 us", "p99.9 us", "cpu us/op", "vs naive"
    );
    let naive = results.get(&Contender::Naive);
    for (contender, outcomes) in results {
        let Summary {
            ops,
            mib,
            p50,
            p99,
            p999,
            cpu,
        } = measure::summarize(outcomes);
        let ratio = naive.map(|naive| measure::median_ratio(outcomes, naive));
        let ratio = ratio.map_or_else(String::new, |r| format!("{r:.2}x"));
        println!(
            "{:<18} {ops:>12.0} {mib:>10.1} {p50:>9.1} {p99:>9.1} {p999:>9.1} {cpu:>9.2} {ratio:>10}",
            contender.name()
        );
    }
}
