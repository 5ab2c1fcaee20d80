//! A comparison: every contender through every case, interleaved round by round.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;

use crate::case::{Case, Workload};
use crate::contender::{Contender, Role};
use crate::error::{Error, Result};
use crate::machine::Machine;
use crate::measure::{Outcome, Run, Sizes, Stop};
use crate::report::{Measured, Report};
use crate::syscalls::SyscallCounter;

/// The share of the load of W2 that WT runs under.
const OPEN_LOOP_SHARE: f64 = 0.5;
/// The least time to measure that load.
const CAPACITY_MIN: Duration = Duration::from_millis(200);
/// Bytes per second that a run is assumed to write at most.
const WRITE_RATE_MAX: u64 = 3 << 30;

/// What is to be measured.
#[derive(Debug)]
pub struct Plan {
    /// Cases, in order.
    pub cases: Vec<Case>,
    /// Rounds; medians are over these. At least 1.
    pub rounds: usize,
    /// Measured time per case, contender and round; more than zero.
    pub duration: Duration,
    /// How much data the workloads handle.
    pub sizes: Sizes,
}

/// What is about to be run.
#[derive(Debug)]
pub struct Step {
    /// Runs that are done.
    pub done: usize,
    /// Runs altogether.
    pub total: usize,
    /// The case.
    pub case: Case,
    /// The contender.
    pub contender: String,
    /// The round, from 1.
    pub round: usize,
}

/// A directory in which contenders are measured. It is removed when this is dropped.
#[derive(Debug)]
pub struct Session {
    root: TempDir,
    machine: Machine,
    stop: Stop,
    syscalls: Arc<SyscallCounter>,
}

impl Session {
    /// Makes a directory below `dir`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(dir: &Path, stop: Stop, syscalls: SyscallCounter) -> Result<Self> {
        let root = tempfile::Builder::new()
            .prefix("alluvium-compare-")
            .tempdir_in(dir)
            .map_err(Error::io("create a directory in", dir))?;
        let machine = Machine::look(root.path())?;
        Ok(Self {
            root,
            machine,
            stop,
            syscalls: Arc::new(syscalls),
        })
    }

    /// Where the files of the session are.
    pub fn dir(&self) -> &Path {
        self.root.path()
    }

    /// Where it is measured.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Removes the session's files.
    ///
    /// # Errors
    /// [`Error::Io`] with what is left.
    pub fn close(self) -> Result<()> {
        let path = self.root.path().to_path_buf();
        self.root.close().map_err(Error::io("remove", &path))
    }

    /// Runs the plan; `on_step` hears of every run before it begins. Must be called on a tokio
    /// runtime with several threads: producers are its tasks.
    ///
    /// # Errors
    /// [`Error::InvalidPlan`] and [`Error::NoSpace`] before anything is run; [`Error::In`] with the
    /// first failure of a contender; [`Error::Stopped`].
    ///
    /// # Cancellation
    /// Dropping the future leaves producers that end when their time is over. Stop the session
    /// first.
    pub async fn run(
        &self,
        plan: &Plan,
        contenders: &[Box<dyn Contender>],
        on_step: &mut dyn FnMut(&Step),
    ) -> Result<Report> {
        self.check(plan)?;
        let Some(&first) = plan.cases.first() else {
            return Err(no_workloads());
        };
        let mut report = Report::new(self.machine.clone(), plan, &self.syscalls);
        let takes_part = |case| contenders.iter().filter(move |c| c.runs(case));
        let total: usize = plan.cases.iter().map(|&c| takes_part(c).count()).sum();
        let mut steps = Step {
            done: 0,
            total: plan.rounds * total,
            case: first,
            contender: String::new(),
            round: 0,
        };
        for &case in &plan.cases {
            let part: Vec<_> = takes_part(case).map(AsRef::as_ref).collect();
            let mut measured: Vec<_> = part.iter().map(|&c| Measured::new(c)).collect();
            for round in 0..plan.rounds {
                (steps.case, steps.round) = (case, round + 1);
                let mut rates = vec![None; part.len()];
                if case.workload == Workload::WT {
                    rates = self.rates(plan, &part, &mut steps, on_step).await?;
                }
                for n in 0..part.len() {
                    let at = (n + round) % part.len();
                    steps.contender = part[at].name();
                    on_step(&steps);
                    let outcome = self.run_one(plan, part[at], case, rates[at]).await?;
                    measured[at].rounds.push(outcome);
                    steps.done += 1;
                }
            }
            report.add(case, measured);
        }
        Ok(report)
    }

    /// Appends per second for WT. All stores get the same: half of what the slowest of them did in
    /// W2 just now. Others, which may be far slower, get half of their own.
    async fn rates(
        &self,
        plan: &Plan,
        part: &[&dyn Contender],
        steps: &mut Step,
        on_step: &mut dyn FnMut(&Step),
    ) -> Result<Vec<Option<f64>>> {
        let w2 = Case {
            workload: Workload::W2,
            variant: 0,
        };
        let plan = Plan {
            cases: vec![w2],
            rounds: 1,
            duration: plan.duration.max(CAPACITY_MIN),
            sizes: plan.sizes.clone(),
        };
        let mut capacities = Vec::new();
        for contender in part {
            steps.contender = format!("{} (its load)", contender.name());
            on_step(steps);
            let outcome = self.run_one(&plan, *contender, w2, None).await?;
            capacities.push(outcome.rate());
        }
        let stores = part.iter().zip(&capacities);
        let slowest_store = stores
            .filter(|(contender, _)| contender.role() == Role::Store)
            .map(|(_, &rate)| rate)
            .fold(f64::INFINITY, f64::min);
        let rates = part.iter().zip(capacities).map(|(contender, own)| {
            let capacity = match contender.role() {
                Role::Store => slowest_store,
                _ => own,
            };
            Some(capacity * OPEN_LOOP_SHARE)
        });
        Ok(rates.collect())
    }

    async fn run_one(
        &self,
        plan: &Plan,
        contender: &dyn Contender,
        case: Case,
        rate: Option<f64>,
    ) -> Result<Outcome> {
        self.stop.check()?;
        let dir = tempfile::tempdir_in(self.dir());
        let dir = dir.map_err(Error::io("create a directory in", self.dir()))?;
        let run = Run {
            dir: dir.path().to_path_buf(),
            duration: plan.duration,
            sizes: plan.sizes.clone(),
            rate,
            stop: self.stop.clone(),
            syscalls: Arc::clone(&self.syscalls),
        };
        match contender.run(case, &run).await {
            Ok(outcome) if outcome.operations > 0 => Ok(outcome),
            Ok(_) => Err(failed(
                contender,
                case,
                Error::Peer("no operation ended within the time".to_owned()),
            )),
            Err(Error::Stopped) => Err(Error::Stopped),
            Err(e) => Err(failed(contender, case, e)),
        }
    }

    fn check(&self, plan: &Plan) -> Result<()> {
        let invalid = |setting, value, allowed| {
            Err(Error::InvalidPlan {
                setting,
                value,
                allowed,
            })
        };
        if plan.rounds == 0 {
            return invalid("rounds", "0".to_owned(), "at least 1");
        }
        if plan.duration.is_zero() {
            return invalid("duration", "0".to_owned(), "more than zero");
        }
        let needed_bytes = needed_bytes(plan);
        let space = rustix::fs::statvfs(self.dir())
            .map_err(|e| Error::io("ask for the space of", self.dir())(e.into()))?;
        let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
        if free_bytes < needed_bytes {
            return Err(Error::NoSpace {
                dir: PathBuf::from(self.dir()),
                free_bytes,
                needed_bytes,
            });
        }
        Ok(())
    }
}

fn no_workloads() -> Error {
    Error::InvalidPlan {
        setting: "workloads",
        value: "none".to_owned(),
        allowed: "at least one",
    }
}

fn failed(contender: &dyn Contender, case: Case, source: Error) -> Error {
    Error::In {
        contender: contender.name(),
        case,
        source: Box::new(source),
    }
}

/// Bytes that the largest case may have on the disk at a time, with some to spare.
fn needed_bytes(plan: &Plan) -> u64 {
    const GIB: u64 = 1 << 30;
    let sizes = &plan.sizes;
    let millis = u64::try_from(plan.duration.as_millis()).unwrap_or(u64::MAX);
    let written = (WRITE_RATE_MAX / 1_000).saturating_mul(millis);
    let appended = written.min(sizes.append_bytes_max);
    let of_case = |case: &Case| match case.workload {
        // Segments are preallocated, the next of each partition among them.
        Workload::W3k => case.variant.saturating_mul(5 << 20),
        Workload::W3 => appended + 3 * GIB,
        Workload::W6 | Workload::W6c => sizes.read_bytes / 4 * 5,
        Workload::W7 => case.variant / 4 * 5,
        Workload::WT => sizes.read_bytes / 4 * 5 + appended,
        Workload::WB => 0,
        _ => appended,
    };
    let largest = plan.cases.iter().map(of_case).max().unwrap_or(0);
    let raw = sizes.raw_file_bytes.max(sizes.read_bytes);
    largest.saturating_add(raw).saturating_add(GIB / 4)
}
