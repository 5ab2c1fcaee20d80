//! One store on one disk, through all its cuts.
//!
//! What strikes it is the harness's own: it takes the disk, runs a writer on it, and gives back what
//! the cut has left.

use std::path::{Path, PathBuf};
use std::time::Duration;

use alluvium_backends::BackendKind;
use alluvium_testkit::promises::{Survival, Violation};
use alluvium_testkit::stress::{Behaviour, Event, Judge, Judged, Rng, Writer, backends};

use crate::{Disk, Layout, Mount, Options, ROOT, Volume};

/// One store on one disk, and everything that strikes it.
#[derive(Debug)]
pub struct Bench {
    kind: BackendKind,
    kinds: Vec<BackendKind>,
    layout: Layout,
    options: Options,
    store_seed: u64,
    /// Draws what happens.
    pub rng: Rng,
    /// What was promised.
    pub judge: Judge,
    /// What the judgements came across.
    pub judged: Judged,
    /// Between two mounts.
    disk: Option<Disk>,
    /// What this process has mounted. Goes before its directory does.
    volume: Option<Volume>,
    /// What the last cut left.
    left: Option<Disk>,
    place: tempfile::TempDir,
}

impl Bench {
    /// A new disk for a store of `kind`, mounted in a directory of its own in `scratch`. Below xfs it tears
    /// at 4096 bytes only.
    ///
    /// # Panics
    /// When there is no room for a directory.
    pub fn new(kind: BackendKind, layout: Layout, seed: u64, scratch: &Path) -> Self {
        let place = tempfile::Builder::new()
            .prefix("powercut-")
            .tempdir_in(scratch)
            .unwrap();
        let mut disk = Disk::new(seed);
        if layout == Layout::Xfs {
            // Its log recovery leaves a block of metadata alone whose first sector tells of the last change,
            // and so does not mend one that is torn inside: it is not mounted then.
            disk.tear_at_pages();
        }
        Self {
            kind,
            kinds: backends(),
            layout,
            options: Options {
                delay_max: Duration::from_micros(400),
                seed,
            },
            store_seed: seed,
            rng: Rng(seed),
            judge: Judge::new(&layout.store(place.path()), seed),
            judged: Judged::default(),
            disk: Some(disk),
            volume: None,
            left: None,
            place,
        }
    }

    /// What is between the store and the disk.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The directory that everything is mounted below.
    pub fn place(&self) -> &Path {
        self.place.path()
    }

    /// Lets answers take up to this long.
    pub fn slow_down(&mut self, delay_max: Duration) {
        self.options.delay_max = delay_max;
    }

    /// See [`Disk::tear_at_pages`]; before anything is mounted.
    pub fn tear_at_pages(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.tear_at_pages();
        }
    }

    /// From now on, the disk answers flushes and does nothing.
    pub fn lie(&mut self) {
        match (&self.volume, &mut self.disk) {
            (Some(volume), _) => volume.mount.lie(),
            (None, Some(disk)) => disk.lying = true,
            (None, None) => {}
        }
    }

    /// The disk with its file system, mounted by this machine.
    ///
    /// # Errors
    /// What is left cannot be mounted: that breaks P1.
    ///
    /// # Panics
    /// When the disk is taken.
    pub fn volume(&mut self) -> Result<&Volume, Violation> {
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

    /// Takes the disk alone, without its file system, out of this machine: for another one. There
    /// is a file system on it.
    ///
    /// # Errors
    /// As for [`volume`](Self::volume).
    ///
    /// # Panics
    /// When it cannot be unmounted or mounted.
    pub fn hand_over(&mut self) -> Result<Mount, Violation> {
        // Makes the file system, the first time.
        if self.left.is_none() {
            self.volume()?;
        }
        if let Some(volume) = self.volume.take() {
            self.disk = Some(volume.unmount().unwrap());
        }
        let disk = self.disk.take().unwrap();
        self.options.seed = self.rng.any();
        let at = self.layout.disk(self.place.path());
        Ok(Mount::new(disk, &at, self.options).unwrap())
    }

    /// Unmounts after a cut: what that has left is mounted next. Returns how many operations had
    /// failed on order.
    ///
    /// # Panics
    /// When it cannot be unmounted.
    pub fn unmount(&mut self) -> u64 {
        let volume = self.volume.take().unwrap();
        let failed = volume.mount.failed();
        self.leave(volume.unmount().unwrap());
        failed
    }

    /// Gives the disk back as a cut has left it.
    pub fn leave(&mut self, disk: Disk) {
        self.left = Some(disk.clone());
        self.disk = Some(disk);
    }

    /// What the next writer is told, on a store in `dir`.
    pub fn writer(&mut self, behaviour: Behaviour, dir: PathBuf) -> Writer {
        Writer {
            dir,
            backend: self.kind,
            store_seed: self.store_seed,
            seed: self.rng.any(),
            behaviour,
            rounds: 0,
            slots: self.judge.plan(),
        }
    }

    /// Takes in what the writer said.
    ///
    /// # Errors
    /// A promise that was broken before the cut.
    pub fn hear(&mut self, event: Event) -> Result<(), Violation> {
        self.judge.hear(event, &mut self.judged)
    }

    /// Recovers with a backend drawn by lot, after the events of `late`, and compares.
    ///
    /// # Errors
    /// The promise that was broken.
    ///
    /// # Panics
    /// When there is no runtime.
    pub fn judge_now(
        &mut self,
        survival: Survival,
        late: impl FnOnce() -> Vec<Event>,
    ) -> Result<(), Violation> {
        self.volume()?;
        let kind = self.kinds[self.rng.size(0, self.kinds.len() - 1)];
        let (judge, judged) = (&mut self.judge, &mut self.judged);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        runtime.unwrap().block_on(async {
            let store = judge.open(kind, judged).await?;
            for event in late() {
                judge.hear(event, judged)?;
            }
            judge.judge(store, survival, judged).await
        })
    }

    /// Leaves the history and what the last cut left of the disk in a directory in `scratch`.
    ///
    /// # Panics
    /// When there is no room for it.
    pub fn keep_evidence(&self, scratch: &Path) -> PathBuf {
        let dir = scratch.join(format!("powercut-evidence-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        if let Some(disk) = &self.left {
            disk.export(ROOT, &dir).unwrap();
        }
        std::fs::write(dir.join("history"), self.judge.history()).unwrap();
        dir
    }
}
