//! `alluvium`: looks at stores, verifies and repairs them, appends to them and reads them.
//!
//! Exit codes: 0 done (for `verify`: clean), 1 damage was found, 2 the command could not run.

mod append;
mod args;
mod backup;
mod failure;
mod input;
mod inspect;
mod output;
mod probe;
mod read;
mod repair;
mod survey;
mod tail;
mod target;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::{Failure, Outcome};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Other(format!("start the runtime: {e}")))
        .and_then(|runtime| {
            let result = runtime.block_on(run(cli));
            // A thread that waits for standard input must not keep the process.
            runtime.shutdown_background();
            result
        });
    match result {
        Ok(outcome) => outcome.into(),
        Err(failure) => failure.report(),
    }
}

async fn run(cli: Cli) -> Result<Outcome, Failure> {
    let target = cli.target();
    match cli.command {
        Command::Probe => probe::run(target.dir()),
        Command::Append(args) => append::run(&target.named()?, args).await,
        Command::Read(args) => read::run(&target.named()?, args).await,
        Command::Tail(args) => tail::run(&target.named()?, args).await,
        Command::Inspect(args) => inspect::run(&target.named()?, args).await,
        Command::Verify(args) => verify::run(&target.named()?, args).await,
        Command::Repair(args) => repair::run(&target.named()?, args).await,
    }
}
