//! Who takes part: everything that can run a case, by a common face.

use std::fmt;
use std::pin::Pin;

use crate::case::{Case, Workload};
use crate::drive;
use crate::engine::{AtAck, Engine};
use crate::error::Result;
use crate::measure::{Outcome, Run};

/// What a contender is in the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Alluvium on one of its backends.
    Store,
    /// The plain way, without a library.
    Plain,
    /// Another project's log.
    Peer,
    /// What bounds the workload: the disk, or the checksum.
    Reference,
}

/// Something that can run cases.
pub trait Contender: fmt::Debug + Send + Sync {
    /// The name in tables.
    fn name(&self) -> String;

    /// What it is in the comparison.
    fn role(&self) -> Role;

    /// What its acknowledgements mean.
    fn at_ack(&self) -> AtAck;

    /// Whether it can run the case.
    fn runs(&self, case: Case) -> bool;

    /// Runs the case once.
    ///
    /// # Cancellation
    /// Dropping the future leaves files in the run's directory, and producers that end by
    /// themselves when the run's time is over.
    fn run<'a>(
        &'a self,
        case: Case,
        run: &'a Run,
    ) -> Pin<Box<dyn Future<Output = Result<Outcome>> + Send + 'a>>;
}

/// An [`Engine`] that the driver takes through the workloads.
#[derive(Debug)]
pub struct Driven<E>(pub E);

impl<E: Engine> Contender for Driven<E> {
    fn name(&self) -> String {
        self.0.name()
    }

    fn role(&self) -> Role {
        self.0.role()
    }

    fn at_ack(&self) -> AtAck {
        self.0.at_ack()
    }

    fn runs(&self, case: Case) -> bool {
        self.0.runs(case.workload)
    }

    fn run<'a>(
        &'a self,
        case: Case,
        run: &'a Run,
    ) -> Pin<Box<dyn Future<Output = Result<Outcome>> + Send + 'a>> {
        Box::pin(async move {
            match case.workload {
                Workload::W6 => drive::read_warm(&self.0, run).await,
                Workload::W6c => drive::read_cold(&self.0, run).await,
                Workload::W7 => drive::reopen(&self.0, case, run).await,
                Workload::WT => drive::open_loop(&self.0, run).await,
                Workload::WB => drive::bridge(&self.0, case, run).await,
                _ => drive::closed_loop(&self.0, case, run).await,
            }
        })
    }
}
