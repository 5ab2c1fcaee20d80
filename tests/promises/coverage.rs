//! What a run has really put the engine through. A test that reaches nothing proves nothing.

use alluvium_testkit::coverage;
use alluvium_testkit::simulation::Coverage as _;

/// Fewest times that everything must have happened in a full run.
const ENOUGH: u64 = 50;

coverage! {
    /// Counts of what happened.
    pub(crate) struct Coverage {
        lineages,
        /// Losses of power and kills, those during a recovery included.
        crashes,
        kills,
        power_losses,
        /// Kills that left operations in flight.
        kills_with_zombies,
        /// Crashes while the store was being opened.
        crashes_in_recovery,
        /// The second and the third in a row.
        crashes_in_recovery_twice,
        crashes_in_recovery_thrice,
        /// Writes in flight at the crash.
        writes_in_flight_0,
        writes_in_flight_1,
        writes_in_flight_2_to_3,
        writes_in_flight_4_to_7,
        writes_in_flight_8_to_16,
        clean_closes,
        drops_without_close,
        tail_clean,
        tail_unsealed,
        tail_torn,
        skipped_offsets,
        /// Files that were put to another use.
        lineages_watched,
        lineages_with_recycling,
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
        /// Another device under the store.
        alignment_changes,
        retained_by_age,
        retained_by_bytes,
    }
}

impl Coverage {
    /// Fails when something was hardly met, or when files were not recycled in most lineages.
    pub(crate) fn assert_full(&self) {
        self.assert_complete(ENOUGH);
        let Self {
            lineages_with_recycling,
            lineages_watched,
            ..
        } = *self;
        assert!(
            lineages_with_recycling * 2 > lineages_watched,
            "files were recycled in {lineages_with_recycling} of {lineages_watched} lineages only"
        );
    }

    pub(crate) fn take_depth(&mut self, writes: u64) {
        *match writes {
            0 => &mut self.writes_in_flight_0,
            1 => &mut self.writes_in_flight_1,
            2..=3 => &mut self.writes_in_flight_2_to_3,
            4..=7 => &mut self.writes_in_flight_4_to_7,
            _ => &mut self.writes_in_flight_8_to_16,
        } += 1;
    }
}
