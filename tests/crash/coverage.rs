//! What a run came across; a run that misses one of these proves less than it says.

use alluvium_testkit::coverage;
use alluvium_testkit::simulation::{self, Tails};

/// All that is counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Coverage {
    pub(crate) counts: Counts,
    /// Rows of the table of recovery.
    pub(crate) tails: Tails,
}

impl simulation::Coverage for Coverage {
    fn add(&mut self, other: &Self) {
        self.counts.add(&other.counts);
        self.tails.add(&other.tails);
    }

    fn all(&self) -> Vec<(String, u64)> {
        let mut all = self.counts.all();
        all.extend(simulation::Coverage::all(&self.tails));
        all
    }
}

coverage! {
    /// Counts of what happened.
    pub(crate) struct Counts {
        kills,
        power_losses,
        /// Crashes before the opening of that life had returned.
        crashes_in_recovery,
        /// The second and the third in a row.
        crashes_in_recovery_twice,
        crashes_in_recovery_thrice,
        /// Kills with operations still in flight.
        zombies,
        /// Writes in flight at the crash.
        writes_in_flight_0,
        writes_in_flight_1,
        writes_in_flight_2_to_3,
        writes_in_flight_4_to_7,
        writes_in_flight_8_to_16,
        skipped_offsets,
        reopened,
        closed,
        spares,
        trimmed,
        truncated,
        deleted,
        dropped_futures,
        /// Batches handed over before the one before them was answered.
        pipelined,
        retained_by_age,
        retained_by_bytes,
        /// Lives on another device, under other settings or at another hour.
        other_surroundings,
        errors_armed,
    }
}

impl Counts {
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
