//! What a run has really put the engine through. A test that reaches nothing proves nothing.

/// Fewest times that everything must have happened in a full run.
const ENOUGH: u64 = 100;

impl Coverage {
    /// Fails when something was hardly met, or when files were not recycled in most lineages.
    pub(crate) fn assert_complete(&self) {
        for (name, count) in self.all() {
            assert!(count >= ENOUGH, "the run hardly met: {name} ({count})");
        }
        let Self {
            cases_with_recycling,
            cases_watched,
            ..
        } = *self;
        assert!(
            cases_with_recycling * 2 > cases_watched,
            "files were recycled in {cases_with_recycling} of {cases_watched} lineages only"
        );
    }
}

macro_rules! coverage {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// Counts of what happened.
        #[derive(Debug, Clone, Copy, Default)]
        pub(crate) struct Coverage {
            $($(#[$doc])* pub(crate) $name: u64,)+
        }

        impl Coverage {
            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)+
            }

            /// Names and counts, in order of declaration.
            pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)+]
            }
        }
    };
}

coverage! {
    cases,
    /// Losses of power and kills, those during a recovery included.
    crashes,
    kills,
    power_losses,
    /// Kills that left operations in flight.
    kills_with_zombies,
    /// Crashes while the store was being opened.
    crashes_in_recovery,
    /// The second or third crash in a row.
    crashes_nested_deep,
    clean_closes,
    drops_without_close,
    tail_clean,
    tail_unsealed,
    tail_torn,
    skipped_offsets,
    /// Files that were put to another use.
    cases_watched,
    cases_with_recycling,
    files_watched,
    files_recycled,
    batches_submitted,
    acks_accepted,
    acks_written,
    acks_durable,
    refused,
    outcome_unknown,
    futures_dropped,
    weak_batches_lost,
    reads,
    records_read,
    subscriber_items,
    syncs,
    trims,
    truncations,
    truncations_in_doubt,
    partitions_created,
    partitions_deleted,
    reopened_after_failure,
    faults_injected,
    disk_full_spells,
    no_space_answers,
    shard_changes,
}
