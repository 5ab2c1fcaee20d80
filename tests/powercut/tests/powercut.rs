//! Power cuts under every real backend, through the real kernel.
//!
//! A process appends to a store on a disk that keeps what was not synced volatile, tears at 512
//! bytes and completes out of order ([`alluvium_powercut`]). At a random operation the power fails:
//! the process is killed, the disk is mounted again with what a cut may leave, and every promise
//! is checked. The recovery itself is struck as well. Then the next process goes on.
//!
//! `CUTS` sets the number of cuts per backend, `SEED` where chance begins. Needs root and
//! `/dev/fuse`; says so and does nothing otherwise. `tests/powercut/run` sets up what is missing.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a panic is how a test reports a failure"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alluvium_backends::BackendKind;
use alluvium_powercut::{Disk, Mount, Options, ROOT};
use alluvium_testkit::promises::{Survival, Violation};
use alluvium_testkit::stress::{Behaviour, Judge, Judged, Rng, Victim, Writer, backends};
use rustix::process::{Pid, Signal};

/// Cuts per backend without `CUTS`.
const CUTS: u64 = 15;
/// Cuts within which a negative control has to be caught.
const CONTROL_CUTS: u64 = 60;
/// What the disk answers on order.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

/// Not a test by itself: the process that the others take the disk away from.
#[test]
fn writer() {
    if let Some(writer) = Writer::from_environment() {
        writer.run();
    }
}

#[test]
fn what_was_acknowledged_durable_survives_power_cuts() {
    if !is_usable() {
        return;
    }
    let (cuts, seed) = (
        setting("CUTS").unwrap_or(CUTS),
        setting("SEED").unwrap_or(1),
    );
    for (n, kind) in backends().into_iter().enumerate() {
        let begun = Instant::now();
        let mut bench = Bench::new(kind, seed + n as u64);
        for cut in 0..cuts {
            if let Err(violation) = bench.cut(Behaviour::Sound) {
                let evidence = bench.keep_evidence();
                panic!(
                    "{kind}, seed {seed}, cut {cut}: {violation}; see {}",
                    evidence.display()
                );
            }
        }
        eprintln!("{kind}: {:?} {:?}", bench.tally, begun.elapsed());
        assert!(
            bench.tally.judged.acknowledged > 5 * cuts,
            "hardly anything was acknowledged"
        );
        assert!(
            bench.tally.judged.records > cuts,
            "hardly anything was read back"
        );
    }
}

#[test]
fn a_disk_that_lies_about_its_flush_is_caught() {
    if !is_usable() {
        return;
    }
    for kind in backends() {
        let mut bench = Bench::new(kind, 5);
        // A store that stands, so that more than its beginning can be lost.
        bench.cut(Behaviour::Sound).unwrap();
        bench.mount().lie();
        let violation = (0..CONTROL_CUTS).find_map(|_| bench.cut(Behaviour::Sound).err());
        eprintln!("{kind}, lying disk: {violation:?} after {:?}", bench.tally);
        assert!(
            violation.is_some(),
            "nobody noticed that the disk of {kind} lies"
        );
    }
}

#[test]
fn a_store_whose_durable_writes_are_plain_is_caught() {
    if !is_usable() || !backends().contains(&BackendKind::Tokio) {
        return;
    }
    let mut bench = Bench::new(BackendKind::Tokio, 6);
    let violation = (0..CONTROL_CUTS).find_map(|_| bench.cut(Behaviour::PlainWrites).err());
    eprintln!("plain writes: {violation:?} after {:?}", bench.tally);
    assert!(violation.is_some(), "nobody noticed the plain writes");
}

/// SIGKILL on a slow disk: writes of the dead land while the store is opened again.
#[test]
fn writes_of_the_dead_do_not_overwrite_those_of_the_living() {
    if !is_usable() {
        return;
    }
    let kills = setting("CUTS").unwrap_or(CUTS).div_ceil(3);
    for kind in backends() {
        let mut bench = Bench::new(kind, 9);
        bench.options.delay_max = Duration::from_millis(60);
        for kill in 0..kills {
            if let Err(violation) = bench.kill() {
                panic!("{kind}, kill {kill}: {violation}");
            }
        }
        eprintln!("{kind}, slow disk: {:?}", bench.tally);
    }
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is not a number")),
    )
}

/// Whether a disk can be mounted here. Says so when not, past the capture of test output.
fn is_usable() -> bool {
    let place = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    match Mount::new(Disk::new(0), place.path(), Options::default()).and_then(Mount::unmount) {
        Ok(_) => true,
        Err(e) => {
            let line = format!("powercut: SKIPPED, no FUSE file system can be mounted: {e}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
            false
        }
    }
}

#[derive(Debug, Default)]
struct Tally {
    cuts: u64,
    cuts_in_recovery: u64,
    kills: u64,
    errors: u64,
    judged: Judged,
}

/// One store on one disk, through all cuts.
struct Bench {
    kind: BackendKind,
    kinds: Vec<BackendKind>,
    rng: Rng,
    options: Options,
    store_seed: u64,
    faulty: bool,
    judge: Judge,
    tally: Tally,
    /// Between two mounts.
    disk: Option<Disk>,
    mount: Option<Mount>,
    /// What the last cut left.
    left: Option<Disk>,
    place: tempfile::TempDir,
}

impl Bench {
    fn new(kind: BackendKind, seed: u64) -> Self {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let place = tempfile::Builder::new()
            .prefix("powercut-")
            .tempdir_in(place)
            .unwrap();
        let disk = Disk::new(seed);
        let judge = Judge::new(&place.path().join("store"), seed);
        Self {
            kind,
            kinds: backends(),
            rng: Rng(seed),
            options: Options {
                delay_max: Duration::from_micros(400),
                seed,
            },
            store_seed: seed,
            faulty: false,
            judge,
            tally: Tally::default(),
            disk: Some(disk),
            mount: None,
            left: None,
            place,
        }
    }

    fn store(&self) -> PathBuf {
        self.place.path().join("store")
    }

    fn mount(&mut self) -> &Mount {
        if self.mount.is_none() {
            let disk = self.disk.take().unwrap();
            self.options.seed = self.rng.any();
            self.mount = Some(Mount::new(disk, self.place.path(), self.options).unwrap());
        }
        self.mount.as_ref().unwrap()
    }

    /// Unmounts: what the cut left is mounted next.
    fn unmount(&mut self) {
        let mount = self.mount.take().unwrap();
        self.tally.errors += mount.failed();
        let disk = mount.unmount().unwrap();
        self.left = Some(disk.clone());
        self.disk = Some(disk);
    }

    /// Leaves the history and what the last cut left of the disk in the target directory.
    fn keep_evidence(&self) -> PathBuf {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let dir = dir.join(format!("powercut-evidence-{}", std::process::id()));
        if let Some(disk) = &self.left {
            disk.export(ROOT, &dir).unwrap();
        }
        std::fs::write(dir.join("history"), self.judge.history()).unwrap();
        dir
    }

    fn start(&mut self, behaviour: Behaviour) -> Victim {
        let writer = Writer {
            dir: self.store(),
            backend: self.kind,
            store_seed: self.store_seed,
            seed: self.rng.any(),
            behaviour,
            rounds: 0,
            slots: self.judge.plan(),
        };
        Victim::start(Victim::this_test("writer").unwrap(), &writer).unwrap()
    }

    /// A writer, the cut, perhaps cuts in the recovery, and the judgement.
    fn cut(&mut self, behaviour: Behaviour) -> Result<(), Violation> {
        let operations = match self.rng.range(0, 9) {
            0 => self.rng.range(1, 30),
            1..=3 => self.rng.range(1, 300),
            _ => self.rng.range(100, 2500),
        };
        // Every second time, errors come first.
        self.faulty = self.rng.percent(50);
        self.strike(behaviour, operations)?;
        while self.rng.percent(25) {
            self.faulty = false;
            let operations = self.rng.range(1, 25);
            self.strike(Behaviour::OpenOnly, operations)?;
            self.tally.cuts_in_recovery += 1;
        }
        self.judge_now(Survival::Durable)
    }

    /// A process until the power fails at its `operations`-th operation, or it ends before.
    fn strike(&mut self, behaviour: Behaviour, operations: u64) -> Result<(), Violation> {
        let errors: Vec<(u64, i32)> = (0..if self.faulty { 2 } else { 0 })
            .map(|_| {
                (
                    self.rng.range(1, operations),
                    if self.rng.percent(50) { EIO } else { ENOSPC },
                )
            })
            .collect();
        self.judge.note(format!(
            "{behaviour:?}: cut in {operations}, errors {errors:?}"
        ));
        let mount = self.mount();
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
            heard = heard.and_then(|()| self.judge.hear(event, &mut self.tally.judged));
        }
        self.mount().cut();
        killer.join().unwrap();
        victim.last_words().unwrap();
        self.tally.cuts += 1;
        self.unmount();
        self.judge.failures();
        heard
    }

    /// A writer, SIGKILL while the disk goes on, and the judgement.
    fn kill(&mut self) -> Result<(), Violation> {
        self.mount();
        let mut victim = self.start(Behaviour::Sound);
        for _ in 0..self.rng.range(20, 400) {
            let event = victim.hear().unwrap().expect("the writer goes on for ever");
            self.judge.hear(event, &mut self.tally.judged)?;
        }
        victim.kill().unwrap();
        self.tally.kills += 1;
        self.tally.judged.held += self.judge.held();
        let words = std::thread::spawn(move || victim.last_words().unwrap());
        let judged = {
            let kind = self.kinds[self.rng.size(0, self.kinds.len() - 1)];
            let (judge, judged) = (&mut self.judge, &mut self.tally.judged);
            runtime().block_on(async {
                let store = judge.open(kind, judged).await?;
                for event in words.join().unwrap() {
                    judge.hear(event, judged)?;
                }
                judge.judge(store, Survival::Written, judged).await
            })
        };
        let failures = self.judge.failures();
        assert!(failures.is_empty(), "the writer failed: {failures:?}");
        judged
    }

    fn judge_now(&mut self, survival: Survival) -> Result<(), Violation> {
        self.mount();
        let kind = self.kinds[self.rng.size(0, self.kinds.len() - 1)];
        let (judge, judged) = (&mut self.judge, &mut self.tally.judged);
        runtime().block_on(async {
            let store = judge.open(kind, judged).await?;
            judge.judge(store, survival, judged).await
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Before its directory goes.
        self.mount = None;
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}
