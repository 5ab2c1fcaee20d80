//! A model of what a log has promised, for tests that crash it.
//!
//! The model knows nothing of segments or recovery. It writes down what was submitted, what was
//! answered and what was shown, and after every recovery compares that with what can be read:
//!
//! * [`Life`] holds one partition from its creation to its deletion;
//! * [`payload`] makes records that say who they are;
//! * [`observe`] turns what a read returned into [`Seen`] records, checked byte for byte.
//!
//! A breach is a [`Violation`] that names the promise:
//!
//! | promise | in short |
//! | --- | --- |
//! | P1 | what was acknowledged durable is read back (after a kill: what was acknowledged written) |
//! | P2 | log start <= durable <= log end; published offsets never lag behind an acknowledgement |
//! | P3 | a batch is whole or absent |
//! | P4 | nothing is invented, doubled, reordered, or comes back once a recovery has lost it |
//! | P5 | an offset that was shown is never given to other data |
//! | P6 | what was trimmed or truncated does not come back |
//! | P7 | damage of acknowledged bytes is reported |
//! | P8 | a failure poisons one partition, its durable data stays readable, `reopen` heals it |
//! | P9 | without space appends are refused, and go on when space is back |
//! | P10 | nobody hangs |

mod life;
mod payload;
mod recovered;
mod seen;

use std::fmt;

pub use life::{Life, ReadStart, Survival};
pub use payload::{BatchId, BatchShape, payload};
pub use seen::{Seen, observe};

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Its short name, as in the table of the [module](self).
    pub promise: &'static str,
    /// What was expected and what was found.
    pub detail: String,
}

impl Violation {
    /// A breach of `promise`.
    pub fn new(promise: &'static str, detail: impl Into<String>) -> Self {
        Self {
            promise,
            detail: detail.into(),
        }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.detail)
    }
}

impl std::error::Error for Violation {}
