//! Reduces a lineage that breaks a promise: fewer lives, fewer steps, no errors, earlier crashes.
//!
//! Every run is determined by its lineage, so a reduction is kept when it breaks the same promise.
//! What a step draws does not depend on the steps before it; their timing does, so a reduction may
//! come to nothing: then the next one is tried.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::{Lineage, Ran};

/// The least that was found.
#[derive(Debug)]
pub struct Smallest {
    /// What to run.
    pub lineage: Lineage,
    /// What it comes to.
    pub ran: Ran,
    /// Runs that it took.
    pub runs: u64,
}

/// Most runs that a reduction takes, and how long: a lineage that hangs takes its time to say so.
const RUNS_MAX: u64 = 2_000;
const TIME_MAX: Duration = Duration::from_secs(60);

/// Reduces `lineage`, which came to `ran`, by running parts of it.
pub fn shrink(lineage: &Lineage, ran: &Ran, run: impl FnMut(&Lineage) -> Ran) -> Smallest {
    let promise = promise_of(ran).to_owned();
    let mut search = Search {
        begin: Instant::now(),
        best: Smallest {
            lineage: lineage.clone(),
            ran: ran.clone(),
            runs: 0,
        },
        promise,
        run,
    };
    // A panic tells nothing but itself: see first how far it went.
    search.improves(lineage.clone());
    loop {
        let before = search.best.lineage.clone();
        search.lives();
        search.faults();
        search.steps();
        search.crashes();
        if search.best.lineage == before || search.is_over() {
            return search.best;
        }
    }
}

/// The first word names the promise.
fn promise_of(ran: &Ran) -> &str {
    let text = ran.violation.as_deref().unwrap_or_default();
    text.split([' ', ':']).next().unwrap_or_default()
}

struct Search<R> {
    begin: Instant,
    best: Smallest,
    promise: String,
    run: R,
}

impl<R: FnMut(&Lineage) -> Ran> Search<R> {
    fn is_over(&self) -> bool {
        self.best.runs >= RUNS_MAX || self.begin.elapsed() >= TIME_MAX
    }

    /// Takes the candidate over when it breaks the same promise.
    fn improves(&mut self, candidate: Lineage) -> bool {
        if self.is_over() {
            return false;
        }
        self.best.runs += 1;
        let ran = (self.run)(&candidate);
        let same = ran.violation.is_some() && promise_of(&ran) == self.promise;
        if same {
            self.best.lineage = candidate;
            self.best.ran = ran;
        }
        same
    }

    /// None after the one that fails, then as few before it as possible.
    fn lives(&mut self) {
        let last = self.best.ran.lives;
        if last == 0 {
            return;
        }
        if self.best.lineage.lives != Some(last) {
            let mut candidate = self.best.lineage.clone();
            candidate.lives = Some(last);
            self.improves(candidate);
        }
        for life in (0..last).rev() {
            if self.best.lineage.lives(life) {
                let mut candidate = self.best.lineage.clone();
                candidate.without.insert(life);
                self.improves(candidate);
            }
        }
    }

    fn faults(&mut self) {
        if !self.best.lineage.sound {
            let mut candidate = self.best.lineage.clone();
            candidate.sound = true;
            self.improves(candidate);
        }
        if self.best.lineage.nested {
            let mut candidate = self.best.lineage.clone();
            candidate.nested = false;
            self.improves(candidate);
        }
    }

    /// Half of them at a time, then a quarter, down to one.
    fn steps(&mut self) {
        let steps: BTreeSet<u64> = self.best.ran.steps.iter().copied().collect();
        if self.best.lineage.steps.as_ref() != Some(&steps) {
            let mut candidate = self.best.lineage.clone();
            candidate.steps = Some(steps.clone());
            if !self.improves(candidate) {
                return;
            }
        }
        let mut kept: Vec<u64> = steps.into_iter().collect();
        let mut chunk = kept.len().div_ceil(2);
        while chunk > 0 {
            let mut at = 0;
            while at < kept.len() {
                let end = (at + chunk).min(kept.len());
                let fewer: Vec<u64> = [&kept[..at], &kept[end..]].concat();
                let mut candidate = self.best.lineage.clone();
                candidate.steps = Some(fewer.iter().copied().collect());
                if self.improves(candidate) {
                    kept = fewer;
                } else {
                    at = end;
                }
            }
            chunk /= 2;
        }
    }

    /// Each crash as early as it may be.
    fn crashes(&mut self) {
        let struck: Vec<_> = self.best.ran.crashes.clone().into_iter().collect();
        for (life, at) in struck {
            let (mut low, mut high) = (1, at);
            while low < high {
                let middle = low + (high - low) / 2;
                let mut candidate = self.best.lineage.clone();
                candidate.crashes.insert(life, middle);
                if self.improves(candidate) {
                    high = middle;
                } else {
                    low = middle + 1;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails when steps 3 and 40 are taken, life 1 crashes at its 6th operation or later, and life 2
    /// judges it.
    fn toy(lineage: &Lineage) -> Ran {
        let mut ran = Ran::default();
        for life in (0..9).filter(|life| lineage.lives(*life)) {
            ran.lives = life + 1;
            let steps = (life * 20..life * 20 + 20).filter(|step| lineage.takes(*step));
            ran.steps.extend(steps);
            let at = lineage.crashes.get(&life).copied().unwrap_or(50);
            ran.crashes.insert(life, at);
            let done = |step| ran.steps.contains(&step);
            if life == 2 && done(3) && done(40) && ran.crashes.get(&1).is_some_and(|at| *at > 5) {
                ran.violation = Some("P1 lost".into());
                break;
            }
        }
        ran
    }

    #[test]
    fn what_does_not_matter_is_left_out() {
        let whole = Lineage::new(1);
        let ran = toy(&whole);
        assert!(ran.violation.is_some());
        let least = shrink(&whole, &ran, toy);
        let text = least.lineage.to_string();
        assert_eq!(
            text,
            "SEED=1 LIVES=3 STEPS=3,40 CRASHES=0:1,1:6,2:1 FAULTS=0"
        );
        assert_eq!(least.ran.violation.as_deref(), Some("P1 lost"));
        assert!(least.runs < 100, "{}", least.runs);
    }

    #[test]
    fn another_failure_is_not_the_same() {
        let other = |lineage: &Lineage| {
            let mut ran = toy(lineage);
            if ran.steps.len() < 30 {
                ran.violation = Some("P4 invented".into());
            }
            ran
        };
        let whole = Lineage::new(1);
        let least = shrink(&whole, &toy(&whole), other);
        assert_eq!(least.ran.violation.as_deref(), Some("P1 lost"));
        assert_eq!(least.ran.steps.len(), 30);
    }
}
