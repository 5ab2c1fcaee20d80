//! A process whose disk loses power, and one that is killed while its disk goes on.

use std::path::Path;

use alluvium_backends::BackendKind;
use alluvium_powercut::{Bench, Layout};
use alluvium_testkit::promises::{Survival, Violation};
use alluvium_testkit::stress::{Behaviour, Judged, Victim};
use rustix::process::{Pid, Signal};

/// What the disk answers on order.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    cuts: u64,
    cuts_in_recovery: u64,
    kills: u64,
    errors: u64,
}

/// See the [module](self).
pub(crate) struct Cuts {
    pub(crate) bench: Bench,
    faulty: bool,
    tally: Tally,
}

impl Cuts {
    pub(crate) fn new(kind: BackendKind, layout: Layout, seed: u64) -> Self {
        Self {
            bench: Bench::new(kind, layout, seed, scratch()),
            faulty: false,
            tally: Tally::default(),
        }
    }

    pub(crate) fn tally(&self) -> (&Tally, &Judged) {
        (&self.tally, &self.bench.judged)
    }

    fn start(&mut self, behaviour: Behaviour) -> Victim {
        let dir = self.bench.layout().store(self.bench.place());
        let writer = self.bench.writer(behaviour, dir);
        Victim::start(Victim::this_test("writer").unwrap(), &writer).unwrap()
    }

    /// A writer, the cut, perhaps cuts in the recovery, and the judgement.
    pub(crate) fn cut(&mut self, behaviour: Behaviour) -> Result<(), Violation> {
        let rng = &mut self.bench.rng;
        let operations = match rng.range(0, 9) {
            0 => rng.range(1, 30),
            1..=3 => rng.range(1, 300),
            _ => rng.range(100, 2500),
        };
        // Every second time, errors come first. A file system takes those as the end of its journal.
        self.faulty = self.bench.layout() == Layout::Plain && self.bench.rng.percent(50);
        self.strike(behaviour, operations)?;
        while self.bench.rng.percent(25) {
            self.faulty = false;
            let operations = self.bench.rng.range(1, 25);
            self.strike(Behaviour::OpenOnly, operations)?;
            self.tally.cuts_in_recovery += 1;
        }
        self.bench.judge_now(Survival::Durable, Vec::new)
    }

    /// A process until the power fails at its `operations`-th operation, or it ends before.
    fn strike(&mut self, behaviour: Behaviour, operations: u64) -> Result<(), Violation> {
        let rng = &mut self.bench.rng;
        let errors: Vec<(u64, i32)> = (0..if self.faulty { 2 } else { 0 })
            .map(|_| {
                (
                    rng.range(1, operations),
                    if rng.percent(50) { EIO } else { ENOSPC },
                )
            })
            .collect();
        self.bench.judge.note(format!(
            "{behaviour:?}: cut in {operations}, errors {errors:?}"
        ));
        let mount = &self.bench.volume()?.mount;
        mount.cut_in(operations);
        for (at, errno) in errors {
            mount.fail_in(at, errno);
        }
        let switch = mount.switch();
        let mut victim = self.start(behaviour);
        let pid = Pid::from_raw(i32::try_from(victim.pid()).unwrap()).unwrap();
        // Whoever notices the failure of its disk is dead before it can do anything about it.
        let killer = std::thread::spawn(move || {
            switch.wait();
            // It may have ended by itself, when all its partitions had failed.
            rustix::process::kill_process(pid, Signal::KILL).ok();
        });
        let mut heard = Ok(());
        while let Some(event) = victim.hear().unwrap() {
            heard = heard.and_then(|()| self.bench.hear(event));
        }
        let mount = &self.bench.volume()?.mount;
        let ended = behaviour != Behaviour::OpenOnly && !mount.has_failed();
        mount.cut();
        killer.join().unwrap();
        victim.last_words().unwrap();
        self.tally.cuts += 1;
        self.tally.errors += self.bench.unmount();
        let failures = self.bench.judge.failures();
        // With errors, all its partitions may have failed.
        assert!(!ended || self.faulty, "it ended by itself: {failures:?}");
        heard
    }

    /// A writer, SIGKILL while the disk goes on, and the judgement.
    pub(crate) fn kill(&mut self) -> Result<(), Violation> {
        self.bench.volume()?;
        let mut victim = self.start(Behaviour::Sound);
        for _ in 0..self.bench.rng.range(20, 400) {
            let event = victim.hear().unwrap().expect("the writer goes on for ever");
            self.bench.hear(event)?;
        }
        victim.kill().unwrap();
        self.tally.kills += 1;
        self.bench.judged.held += self.bench.judge.held();
        let words = std::thread::spawn(move || victim.last_words().unwrap());
        let late = || words.join().unwrap();
        let judged = self.bench.judge_now(Survival::Written, late);
        let failures = self.bench.judge.failures();
        assert!(failures.is_empty(), "the writer failed: {failures:?}");
        judged
    }
}

/// Where disks are mounted.
pub(crate) fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}
