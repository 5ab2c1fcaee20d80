//! One core: a thread with a backend, the partitions placed on it, and the turn that serves them.
//!
//! [`command`] is what comes through the mailbox, [`boot`] opens the store's directory, [`catalog`]
//! is what partitions there are, [`turn`] is the loop of the shard's main task.

mod boot;
mod catalog;
mod command;
mod layout;
mod turn;

pub(crate) use command::{Adopted, Command, Commands};
pub(crate) use layout::FoundPartition;
pub(crate) use turn::{ShardSetup, shard_main};

/// The shard that a partition lives on. Not part of the disk's layout: the number of shards may
/// change from run to run.
pub(crate) fn placement(partition: u64, shards: usize) -> usize {
    // Fibonacci hashing: ids that differ in their low or high bits only spread evenly.
    let mixed = partition.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    let shards = u64::try_from(shards.max(1)).unwrap_or(1);
    usize::try_from((mixed * shards) >> 32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::placement;

    #[test]
    fn consecutive_ids_spread_evenly() {
        for shards in 1..=9 {
            let mut counts = vec![0_u32; shards];
            for id in 0..9_000 {
                counts[placement(id, shards)] += 1;
            }
            let expected = 9_000 / u32::try_from(shards).unwrap();
            assert!(
                counts.iter().all(|&n| n.abs_diff(expected) <= 10),
                "{counts:?}"
            );
        }
    }
}
