//! SIGKILL, again and again, on every real backend through the real kernel.
//!
//! A process appends to several partitions at all acknowledgement levels and says through a pipe
//! what it does and what was acknowledged ([`alluvium_testkit::stress`]). It is killed at a random
//! moment, while it opens, appends, rolls or trims, and at once, often while its writes are still
//! in flight, the store is opened again, by this process or by one that is killed in the middle of
//! the recovery. Then every promise is checked, and the next process goes on with the same store.
//!
//! SIGKILL takes from a store what the process held, not what the kernel holds: this proves
//! recovery, locks and fences on the real system, and acknowledgements from `Written` on. Power
//! cuts are the business of `tests/crash` (simulated) and `tests/powercut` (real backends).
//!
//! `CYCLES` sets the number of kills per backend, `SEED` where chance begins. As root,
//! `SLOW_DISK_IOPS=60` slows the writers' disk through a cgroup, so that far more writes of the
//! dead are in flight.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test reports a failure"
)]

mod slow_disk;

use std::path::Path;
use std::time::{Duration, Instant};

use alluvium::BackendKind;
use alluvium_testkit::promises::{Survival, Violation};
use alluvium_testkit::stress::{Behaviour, Event, Judge, Judged, Rng, Victim, Writer, backends};

use slow_disk::SlowDisk;

/// Kills per backend in a plain `cargo test`.
const CYCLES: u64 = 12;
/// Kills within which the negative control has to be caught.
const CONTROL_CYCLES: u64 = 100;

/// Not a test by itself: the process that the others kill.
#[test]
fn writer() {
    if let Some(writer) = Writer::from_environment() {
        writer.run();
    }
}

#[test]
fn what_was_acknowledged_survives_sigkill() {
    let cycles = setting("CYCLES").unwrap_or(CYCLES);
    let seed = setting("SEED").unwrap_or(1);
    let slow = setting("SLOW_DISK_IOPS").map(SlowDisk::new);
    let kinds = backends();
    assert!(!kinds.is_empty(), "no backend works here");
    for (n, kind) in kinds.into_iter().enumerate() {
        let mut killer = Killer::new(kind, seed + n as u64, slow.as_ref());
        let begun = Instant::now();
        for cycle in 0..cycles {
            if let Err(violation) = killer.cycle(Behaviour::Sound) {
                panic!("{kind}, seed {seed}, cycle {cycle}: {violation}");
            }
        }
        eprintln!("{kind}: {:?} {:?}", killer.tally, begun.elapsed());
        assert!(
            killer.tally.judged.acknowledged > cycles,
            "hardly anything was acknowledged"
        );
        assert!(
            killer.tally.judged.records > cycles,
            "hardly anything was read back"
        );
        assert_eq!(killer.tally.kills, cycles);
    }
    if let Some(slow) = &slow {
        let writes = slow.writes();
        eprintln!("slow disk: {writes} writes");
        assert!(writes > cycles, "the disk was not slowed: {writes} writes");
    }
}

/// An acknowledgement that comes before the write has to be found out.
#[test]
fn a_store_that_acknowledges_too_early_is_caught() {
    for kind in backends() {
        let mut killer = Killer::new(kind, 77, None);
        let caught = (0..CONTROL_CYCLES).find_map(|_| killer.cycle(Behaviour::EarlyAck).err());
        let violation = caught.expect("nobody noticed the early acknowledgements");
        assert_eq!(violation.promise, "P1", "{violation}");
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    /// Processes that were killed while they recovered the store.
    kills_in_recovery: u64,
    judged: Judged,
}

struct Killer<'a> {
    kind: BackendKind,
    /// All that work here.
    kinds: Vec<BackendKind>,
    rng: Rng,
    slow: Option<&'a SlowDisk>,
    tally: Tally,
    judge: Judge,
    store_seed: u64,
    dir: tempfile::TempDir,
}

impl<'a> Killer<'a> {
    fn new(kind: BackendKind, seed: u64, slow: Option<&'a SlowDisk>) -> Self {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = tempfile::Builder::new()
            .prefix("kill9-")
            .tempdir_in(place)
            .unwrap();
        let judge = Judge::new(&dir.path().join("store"), seed);
        let (rng, tally) = (Rng(seed), Tally::default());
        let store_seed = seed;
        let kinds = backends();
        Self {
            kind,
            kinds,
            rng,
            slow,
            tally,
            judge,
            store_seed,
            dir,
        }
    }

    fn start(&mut self, behaviour: Behaviour) -> Victim {
        let writer = Writer {
            dir: self.dir.path().join("store"),
            backend: self.kind,
            store_seed: self.store_seed,
            seed: self.rng.any(),
            behaviour,
            rounds: 0,
            slots: self.judge.plan(),
        };
        let command = Victim::this_test("writer").unwrap();
        let victim = Victim::start(command, &writer).unwrap();
        if let Some(slow) = self.slow {
            slow.add(victim.pid());
        }
        victim
    }

    /// One process from start to kill, perhaps a few that are killed while they recover, and the
    /// judgement.
    fn cycle(&mut self, behaviour: Behaviour) -> Result<(), Violation> {
        let mut victim = self.start(behaviour);
        // Early kills strike the creation or the recovery.
        let patience = match self.rng.range(0, 9) {
            0 => self.rng.range(0, 3),
            1..=3 => self.rng.range(0, 60),
            _ => self.rng.range(60, 3000),
        };
        for _ in 0..patience {
            let Some(event) = victim.hear().unwrap() else {
                panic!("the writer ended by itself: {:?}", self.judge.failures());
            };
            self.hear(event)?;
        }
        victim.kill().unwrap();
        self.tally.kills += 1;
        self.tally.judged.held += self.judge.held();
        let mut others = Vec::new();
        while self.rng.percent(25) {
            let mut other = self.start(Behaviour::OpenOnly);
            std::thread::sleep(Duration::from_micros(self.rng.range(0, 25_000)));
            other.kill().unwrap();
            self.tally.kills_in_recovery += 1;
            others.push(other);
        }
        // Any backend opens what any other has written.
        let kind = self.kinds[self.rng.size(0, self.kinds.len() - 1)];
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(async {
            let store = self.judge.open(kind, &mut self.tally.judged).await?;
            // What it said before it died was in the pipe all the time.
            for event in victim.last_words().unwrap() {
                self.hear(event)?;
            }
            let failures = self.judge.failures();
            assert!(failures.is_empty(), "the writer failed: {failures:?}");
            self.judge
                .judge(store, Survival::Written, &mut self.tally.judged)
                .await
        })
    }

    fn hear(&mut self, event: Event) -> Result<(), Violation> {
        self.judge.hear(event, &mut self.tally.judged)
    }
}
