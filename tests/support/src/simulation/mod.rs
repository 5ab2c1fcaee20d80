//! What the simulations of the whole store share: the settings of a run, the loop over its cases on
//! several threads, coverage, and the reduction of a case that failed to its smallest form.
//!
//! A *lineage* is one seed: a simulated machine, and lives of a store on it, each of which ends with
//! a crash or a close. A *case* is one such crash together with the recovery after it, whose outcome
//! the model judges. So a lineage has several cases.
//!
//! | variable | meaning |
//! | --- | --- |
//! | `CASES` | how many cases to run |
//! | `SECONDS` | how long to run, instead |
//! | `FIRST` | seed of the first lineage; the others follow it |
//! | `THREADS` | threads that share the lineages |
//! | `NESTED=1` | every recovery is struck by one to three crashes before one may end |
//! | `SEED` | run this lineage alone and tell what happens |
//! | `LIVES`, `WITHOUT`, `STEPS`, `CRASHES`, `FAULTS`, `NESTED` | with `SEED`: what is left of it, as a failure prints it |
//!
//! What a lineage does is drawn from its seed, the number of the life and the number of the step, so
//! that a step that is left out changes the draws of no other.

mod coverage;
mod runner;
mod shrink;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

pub use coverage::{Coverage, Tails};
pub use runner::{Failure, Settings, Summary, run, setting};
pub use shrink::{Smallest, shrink};

/// A lineage, or what is left of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lineage {
    /// Decides everything else.
    pub seed: u64,
    /// How many lives there are at most. The last one is judged like the others.
    pub lives: Option<u64>,
    /// Lives that are left out.
    pub without: BTreeSet<u64>,
    /// Steps that are carried out; `None` stands for all.
    pub steps: Option<BTreeSet<u64>>,
    /// By life, the operation (counted from its beginning) at which it crashes, instead of the
    /// one that is drawn.
    pub crashes: BTreeMap<u64, u64>,
    /// Neither errors nor short transfers.
    pub sound: bool,
    /// Every recovery is struck.
    pub nested: bool,
}

impl Lineage {
    /// All of a seed.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            ..Self::default()
        }
    }

    /// The one that the environment asks for.
    ///
    /// # Panics
    /// When it asks for many as well: one replayed lineage must not look like a run of all of them.
    pub fn from_environment() -> Option<Self> {
        let seed = std::env::var("SEED").ok()?;
        for many in ["CASES", "SECONDS"] {
            assert!(
                std::env::var_os(many).is_none(),
                "SEED runs one lineage alone, so leave out {many}; FIRST is the seed of the first of many"
            );
        }
        let mut words = vec![format!("SEED={seed}")];
        for name in ["LIVES", "WITHOUT", "STEPS", "CRASHES", "FAULTS", "NESTED"] {
            if let Ok(value) = std::env::var(name) {
                words.push(format!("{name}={value}"));
            }
        }
        let text = words.join(" ");
        Some(text.parse().unwrap_or_else(|e| panic!("{e}")))
    }

    /// Whether a life takes place.
    pub fn lives(&self, life: u64) -> bool {
        self.lives.is_none_or(|lives| life < lives) && !self.without.contains(&life)
    }

    /// Whether a step takes place.
    pub fn takes(&self, step: u64) -> bool {
        self.steps.as_ref().is_none_or(|all| all.contains(&step))
    }
}

/// As it stands in a shell's command line and in a list of regressions.
impl fmt::Display for Lineage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SEED={}", self.seed)?;
        if let Some(lives) = self.lives {
            write!(f, " LIVES={lives}")?;
        }
        if !self.without.is_empty() {
            write!(f, " WITHOUT={}", list(&self.without))?;
        }
        if let Some(steps) = &self.steps {
            write!(f, " STEPS={}", list(steps))?;
        }
        if !self.crashes.is_empty() {
            let pairs = self.crashes.iter();
            let pairs: Vec<_> = pairs.map(|(life, at)| format!("{life}:{at}")).collect();
            write!(f, " CRASHES={}", pairs.join(","))?;
        }
        if self.sound {
            write!(f, " FAULTS=0")?;
        }
        if self.nested {
            write!(f, " NESTED=1")?;
        }
        Ok(())
    }
}

fn list(numbers: &BTreeSet<u64>) -> String {
    let numbers: Vec<_> = numbers.iter().map(ToString::to_string).collect();
    numbers.join(",")
}

impl FromStr for Lineage {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| {
            text.parse::<u64>()
                .map_err(|_| format!("{text:?} is not a number"))
        };
        let numbers = |text: &str| {
            let parts = text.split(',').filter(|part| !part.is_empty());
            parts.map(number).collect::<Result<BTreeSet<u64>, _>>()
        };
        let mut lineage = Self::default();
        let mut has_seed = false;
        for word in text.split_whitespace() {
            let (name, value) = word
                .split_once('=')
                .ok_or_else(|| format!("{word:?} is not NAME=VALUE"))?;
            match name {
                "SEED" => {
                    lineage.seed = number(value)?;
                    has_seed = true;
                }
                "LIVES" => lineage.lives = Some(number(value)?),
                "WITHOUT" => lineage.without = numbers(value)?,
                "STEPS" => lineage.steps = Some(numbers(value)?),
                "CRASHES" => {
                    for pair in value.split(',') {
                        let (life, at) = pair
                            .split_once(':')
                            .ok_or_else(|| format!("{pair:?} is not LIFE:OPERATION"))?;
                        lineage.crashes.insert(number(life)?, number(at)?);
                    }
                }
                "FAULTS" => lineage.sound = number(value)? == 0,
                "NESTED" => lineage.nested = number(value)? != 0,
                _ => return Err(format!("{name} is not known")),
            }
        }
        if has_seed {
            Ok(lineage)
        } else {
            Err("there is no SEED".into())
        }
    }
}

/// Lineages that once failed, one a line, with comments behind `#`.
pub fn regressions(text: &str) -> Vec<Lineage> {
    let lines = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or(line).trim())
        .filter(|line| !line.is_empty());
    lines
        .map(|line| line.parse().unwrap_or_else(|e| panic!("{line:?}: {e}")))
        .collect()
}

/// Adds the smallest form of a failure to the list at `file`, unless it is there; says what it did.
pub fn keep(file: &str, failure: &Failure) -> String {
    let line = failure.smallest.lineage.to_string();
    let text = std::fs::read_to_string(file).unwrap_or_default();
    if regressions(&text).contains(&failure.smallest.lineage) {
        return format!("it stands in {file}");
    }
    let why = failure.violation.lines().next().unwrap_or_default();
    match std::fs::write(file, format!("{text}{line} # {why}\n")) {
        Ok(()) => format!("kept in {file}"),
        Err(e) => format!("not kept in {file}: {e}"),
    }
}

/// What running a lineage came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ran {
    /// The first promise that was broken, by its name, and how.
    pub violation: Option<String>,
    /// Crashes whose recovery was judged.
    pub cases: u64,
    /// Lives that began.
    pub lives: u64,
    /// Steps that were carried out.
    pub steps: Vec<u64>,
    /// By life, the operation at which it crashed.
    pub crashes: BTreeMap<u64, u64>,
    /// Hash over all operations of the disk and their answers, in order.
    pub trace: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_failure_prints_can_be_read_again() {
        let lineage = Lineage {
            seed: 7,
            lives: Some(3),
            without: [1].into(),
            steps: Some([4, 200].into()),
            crashes: [(0, 5), (2, 9)].into(),
            sound: true,
            nested: true,
        };
        let text = lineage.to_string();
        assert_eq!(
            text,
            "SEED=7 LIVES=3 WITHOUT=1 STEPS=4,200 CRASHES=0:5,2:9 FAULTS=0 NESTED=1"
        );
        assert_eq!(text.parse(), Ok(lineage));
        let nothing = Lineage {
            steps: Some(BTreeSet::new()),
            ..Lineage::new(1)
        };
        assert_eq!(nothing.to_string().parse(), Ok(nothing));
        assert!("LIVES=1".parse::<Lineage>().is_err());
        assert!("SEED=x".parse::<Lineage>().is_err());
        let kept = regressions("# a comment\nSEED=1\n\nSEED=2 LIVES=1 # why\n");
        assert_eq!(kept.len(), 2);
    }
}
