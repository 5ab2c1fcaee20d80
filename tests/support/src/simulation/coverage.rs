//! What a run has really put the engine through. A test that reaches nothing proves nothing.

use std::collections::BTreeMap;

use alluvium_core::{PartitionReport, TailCase, TailFacts};

/// Counts of what happened.
pub trait Coverage: Default + Send {
    /// Adds the counts of other lineages.
    fn add(&mut self, other: &Self);

    /// Names and counts.
    fn all(&self) -> Vec<(String, u64)>;

    /// Fails when something was met fewer than `enough` times.
    fn assert_complete(&self, enough: u64) {
        for (name, count) in self.all() {
            assert!(count >= enough, "the run hardly met: {name} ({count})");
        }
    }
}

/// Declares a struct of counts with its [`Coverage`].
#[macro_export]
macro_rules! coverage {
    ($(#[$of:meta])* $visible:vis struct $type:ident {
        $($(#[$doc:meta])* $name:ident,)+
    }) => {
        $(#[$of])*
        #[derive(Debug, Clone, Copy, Default)]
        $visible struct $type {
            $($(#[$doc])* $visible $name: u64,)+
        }

        impl $crate::simulation::Coverage for $type {
            fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }

            fn all(&self) -> Vec<(String, u64)> {
                vec![$((stringify!($name).to_owned(), self.$name),)+]
            }
        }
    };
}

/// How often recovery has met each combination of facts of its table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tails(BTreeMap<TailFacts, u64>);

impl Tails {
    /// Takes a report over. The label must be the one of its facts, and the facts be possible.
    pub fn note(&mut self, report: &PartitionReport) -> Result<(), String> {
        let Some(facts) = report.tail else {
            return Ok(());
        };
        if let Some(why) = facts.impossible() {
            return Err(format!("P7 a tail that cannot be: {facts}: {why}"));
        }
        if report.case != facts.case() {
            return Err(format!("P7 {} is labelled {}", facts, report.case));
        }
        *self.0.entry(facts).or_default() += 1;
        Ok(())
    }

    /// The possible combinations with their labels and counts.
    pub fn all(&self) -> impl Iterator<Item = (TailFacts, TailCase, u64)> {
        let possible = TailFacts::all().filter(|facts| facts.impossible().is_none());
        possible.map(|facts| {
            let count = self.0.get(&facts).copied().unwrap_or(0);
            (facts, facts.case(), count)
        })
    }
}

impl Coverage for Tails {
    fn add(&mut self, other: &Self) {
        for (facts, count) in &other.0 {
            *self.0.entry(*facts).or_default() += count;
        }
    }

    /// Without those that only damage brings about, unless they were met.
    fn all(&self) -> Vec<(String, u64)> {
        Tails::all(self)
            .filter(|(_, case, count)| *case != TailCase::Corrupt || *count > 0)
            .map(|(facts, case, count)| (format!("{case}: {facts}"), count))
            .collect()
    }
}
