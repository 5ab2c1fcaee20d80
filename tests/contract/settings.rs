//! Settings out of their range are refused by name, before the disk is touched.

use std::collections::BTreeSet;
use std::time::Duration;

use alluvium::{Error, Shards, StoreConfig};

use crate::machine::{check_answers, machine, snapshot, try_open};

/// Settings with a range. A new one needs a line here or in [`FREE`], and ways to miss it below.
const BOUNDED: [&str; 17] = [
    "fence_timeout",
    "group_bytes_max",
    "group_bytes_min",
    "index_interval_bytes",
    "initialise_ahead_bytes",
    "mailbox_bytes_max",
    "mailbox_requests_max",
    "read_ahead_bytes_max",
    "read_ahead_chunks",
    "read_chunk_bytes",
    "retention_interval",
    "seal_after",
    "segment_bytes",
    "shards",
    "spare_segments_max",
    "tail_cache_bytes_max",
    "writes_in_flight_max",
];

/// Settings of which every value is right.
const FREE: [&str; 6] = [
    "direct_io",
    "on_corruption",
    "preinitialise",
    "retention_age",
    "retention_bytes",
    "sealed_reads",
];

const CENTURY: Duration = Duration::from_secs(100 * 366 * 86_400);

/// Values just outside of the ranges, or far from them.
const WRONG: [fn(&mut StoreConfig); 36] = [
    |c| c.fence_timeout = Duration::ZERO,
    |c| c.fence_timeout = Duration::MAX,
    |c| c.group_bytes_max = 4095,
    |c| c.group_bytes_max = (256 << 20) + 1,
    |c| c.group_bytes_min = c.group_bytes_max + 1,
    |c| c.index_interval_bytes = 511,
    |c| c.index_interval_bytes = (1 << 30) + 1,
    |c| c.initialise_ahead_bytes = 4095,
    |c| c.initialise_ahead_bytes = (1 << 30) + 1,
    |c| c.mailbox_bytes_max = 1,
    |c| c.mailbox_bytes_max = (1 << 31) + 1,
    |c| c.mailbox_requests_max = 0,
    |c| c.mailbox_requests_max = (1 << 24) + 1,
    |c| c.read_ahead_bytes_max = (1 << 31) + 1,
    |c| c.read_ahead_chunks = 1025,
    |c| c.read_chunk_bytes = 4095,
    |c| c.read_chunk_bytes = (64 << 20) + 1,
    |c| c.retention_interval = Duration::from_micros(999),
    |c| c.retention_interval = CENTURY,
    |c| c.seal_after = Duration::ZERO,
    |c| c.seal_after = CENTURY,
    |c| c.segment_bytes = 0,
    |c| c.segment_bytes = 1,
    |c| c.segment_bytes = (64 << 20) + 512,
    |c| c.segment_bytes = (4 << 30) + 4096,
    |c| c.segment_bytes = u64::MAX,
    |c| c.shards = Shards::Count(0),
    |c| c.shards = Shards::Count(1025),
    |c| c.shards = Shards::Cores(vec![]),
    |c| c.shards = Shards::Cores(vec![0, 0]),
    |c| c.shards = Shards::Cores(vec![usize::MAX]),
    |c| c.spare_segments_max = 65,
    |c| c.tail_cache_bytes_max = (1 << 40) + 1,
    |c| c.tail_cache_bytes_max = usize::MAX,
    |c| c.writes_in_flight_max = 0,
    |c| c.writes_in_flight_max = 65,
];

#[test]
fn settings_are_checked_before_the_disk_is_touched() {
    let sim = machine(1);
    StoreConfig::default().validate().unwrap();
    let before = snapshot(&sim);
    let mut refused = BTreeSet::new();
    for wrong in WRONG {
        let only_this = |c: &mut StoreConfig| {
            *c = StoreConfig::default();
            wrong(c);
        };
        let e = sim.block_on(try_open(&sim, only_this)).unwrap_err();
        check_answers(&e);
        let Error::InvalidConfig {
            setting,
            value,
            allowed,
        } = &e
        else {
            panic!("{e:?}")
        };
        let named = BOUNDED.iter().find(|name| setting.starts_with(**name));
        refused.insert(*named.unwrap_or_else(|| panic!("{e}")));
        assert!(!value.is_empty() && !allowed.is_empty(), "{e:?}");
        assert!(e.to_string().contains(setting), "{e}");
    }
    assert_eq!(refused, BTreeSet::from(BOUNDED));
    assert!(FREE.iter().all(|free| !refused.contains(free)));
    assert_eq!((snapshot(&sim), sim.op_count()), (before, 0));
}
