//! Sweeps: not by chance but one after the other, everything that can happen once.
//!
//! | sweep | at every | plain run | the whole |
//! | --- | --- | --- | --- |
//! | [`crashes`] | operation that changes the disk, before it and behind its effect; again at every one of the recovery that follows | `SWEEP_SEEDS` lineages | more seeds |
//! | [`failures`] | call of the seam, with every error that it can return, once | every so many | `SWEEP=1` |
//! | [`damage`] | bit and sector of a store of several segments | every so many | `SWEEP=1` |

pub(crate) mod crashes;
pub(crate) mod damage;
pub(crate) mod failures;

/// One of how many is looked at: `SWEEP`, or so many in a plain run.
pub(crate) fn stride(plain: u64) -> u64 {
    alluvium_testkit::simulation::setting("SWEEP").map_or(plain, |n| n.max(1))
}
