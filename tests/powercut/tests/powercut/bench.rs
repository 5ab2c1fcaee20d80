//! One store on one disk, through all its cuts.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alluvium_backends::BackendKind;
use alluvium_powercut::{Disk, Options, ROOT};
use alluvium_testkit::promises::{Survival, Violation};
use alluvium_testkit::stress::{Behaviour, Judge, Judged, Rng, Victim, Writer, backends};
use rustix::process::{Pid, Signal};

use crate::volume::{Layout, Volume};

/// What the disk answers on order.
const EIO: i32 = 5;
const ENOSPC: i32 = 28;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    cuts: u64,
    cuts_in_recovery: u64,
    kills: u64,
    errors: u64,
    pub(crate) judged: Judged,
}

/// See the [module](self).
pub(crate) struct Bench {
    kind: BackendKind,
    kinds: Vec<BackendKind>,
    layout: Layout,
    rng: Rng,
    options: Options,
    store_seed: u64,
    faulty: bool,
    judge: Judge,
    pub(crate) tally: Tally,
    /// Between two mounts.
    disk: Option<Disk>,
    volume: Option<Volume>,
    /// What the last cut left.
    left: Option<Disk>,
    place: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new(kind: BackendKind, layout: Layout, seed: u64) -> Self {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let place = tempfile::Builder::new()
            .prefix("powercut-")
            .tempdir_in(place)
            .unwrap();
        let disk = Disk::new(seed);
        let judge = Judge::new(&layout.store(place.path()), seed);
        Self {
            kind,
            kinds: backends(),
            layout,
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
            volume: None,
            left: None,
            place,
        }
    }

    /// Lets answers take up to this long.
    pub(crate) fn slow_down(&mut self, delay_max: Duration) {
        self.options.delay_max = delay_max;
    }

    /// From now on, the disk answers flushes and does nothing.
    pub(crate) fn lie(&mut self) {
        self.volume().unwrap().mount.lie();
    }

    fn volume(&mut self) -> Result<&Volume, Violation> {
        if self.volume.is_none() {
            let disk = self.disk.take().unwrap();
            self.options.seed = self.rng.any();
            let mounted = Volume::mount(disk, self.place.path(), self.layout, self.options);
            // A disk that loses what it has promised may leave no file system.
            let lost = |e| Violation::new("P1", format!("what is left cannot be mounted: {e}"));
            self.volume = Some(mounted.map_err(lost)?);
        }
        Ok(self.volume.as_ref().unwrap())
    }

    /// Unmounts: what the cut left is mounted next.
    fn unmount(&mut self) {
        let volume = self.volume.take().unwrap();
        self.tally.errors += volume.mount.failed();
        let disk = volume.unmount().unwrap();
        self.left = Some(disk.clone());
        self.disk = Some(disk);
    }

    /// Leaves the history and what the last cut left of the disk in the target directory.
    pub(crate) fn keep_evidence(&self) -> PathBuf {
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
            dir: self.layout.store(self.place.path()),
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
    pub(crate) fn cut(&mut self, behaviour: Behaviour) -> Result<(), Violation> {
        let operations = match self.rng.range(0, 9) {
            0 => self.rng.range(1, 30),
            1..=3 => self.rng.range(1, 300),
            _ => self.rng.range(100, 2500),
        };
        // Every second time, errors come first. A file system takes those as the end of its journal.
        self.faulty = self.layout == Layout::Plain && self.rng.percent(50);
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
        let mount = &self.volume()?.mount;
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
        self.volume()?.mount.cut();
        killer.join().unwrap();
        victim.last_words().unwrap();
        self.tally.cuts += 1;
        self.unmount();
        self.judge.failures();
        heard
    }

    /// A writer, SIGKILL while the disk goes on, and the judgement.
    pub(crate) fn kill(&mut self) -> Result<(), Violation> {
        self.volume()?;
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
        self.volume()?;
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
        self.volume = None;
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}
