//! What a run has really put the engine through. A test that reaches nothing proves nothing.

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
    truncations_cut_short,
    trims_by_retention,
    partitions_created,
    partitions_deleted,
    reopened_after_failure,
    faults_injected,
    disk_full_spells,
    no_space_answers,
    shard_changes,
}
