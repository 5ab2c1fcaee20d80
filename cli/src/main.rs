//! `alluvium`: looks at stores, verifies and repairs them, appends to them, reads them, and measures
//! what they do on the machine at hand.
//!
//! Exit codes: 0 done (for `verify`: clean), 1 damage was found, 2 the command could not run.

mod append;
mod args;
mod backup;
mod compare;
mod failure;
mod input;
mod inspect;
mod output;
mod probe;
mod read;
mod repair;
mod stress;
mod survey;
mod tail;
mod target;
mod verify;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command, StoreCommand};
use failure::{Failure, Outcome};
use target::Target;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let target = cli.target();
    let result = match cli.command {
        // It measures what an embedding program gets, on a runtime with several threads.
        Command::Compare(args) => compare::run(&target, &args),
        Command::Stress(args) => stress::run(&target, &args),
        Command::OnOneThread(command) => on_one_thread(&target, command),
    };
    match result {
        Ok(outcome) => outcome.into(),
        Err(failure) => failure.report(target.dir()),
    }
}

fn on_one_thread(target: &Target, command: StoreCommand) -> Result<Outcome, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Other(format!("start the runtime: {e}")))?;
    let result = runtime.block_on(run(target, command));
    // A thread that waits for standard input must not keep the process.
    runtime.shutdown_background();
    result
}

async fn run(target: &Target, command: StoreCommand) -> Result<Outcome, Failure> {
    match command {
        StoreCommand::Probe => probe::run(target.dir()),
        StoreCommand::Append(args) => append::run(&target.named()?, args).await,
        StoreCommand::Read(args) => read::run(&target.named()?, args).await,
        StoreCommand::Tail(args) => tail::run(&target.named()?, args).await,
        StoreCommand::Inspect(args) => inspect::run(&target.named()?, args).await,
        StoreCommand::Verify(args) => verify::run(&target.named()?, args).await,
        StoreCommand::Repair(args) => repair::run(&target.named()?, args).await,
    }
}
