//! A store in a machine, through all its cuts.

use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use alluvium_backends::BackendKind;
use alluvium_powercut::{Bench, Layout};
use alluvium_testkit::promises::{Survival, Violation};
use alluvium_testkit::stress::{Behaviour, Event, Judged, Victim};
use rustix::process::{Pid, Signal};

use crate::vm::Vm;

/// A machine that has said nothing for so long hangs. It boots in seconds; nobody waits for this
/// bound but in a failure.
const PATIENCE: Duration = Duration::from_secs(180);
/// What the writer says must never wait for the one who hears it.
const PIPE_BYTES: usize = 1 << 20;
/// The store in the guest.
const STORE: &str = "/mnt/store";

/// When the machine dies.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// At this operation of its disk, counted from power on.
    Operation(u64),
    /// When it has said so many steps, whatever the disk is doing.
    Step(u64),
    /// When it has come to its end.
    Never,
}

#[derive(Debug, Default)]
pub(crate) struct Tally {
    cuts: u64,
    /// Of them before the store was open: in the boot, the file system's recovery, the store's.
    cuts_before_open: u64,
    /// Recoveries in the guest that came to their end.
    recovered_in_guest: u64,
}

/// See the [module](self).
pub(crate) struct Rig<'a> {
    pub(crate) bench: Bench,
    vm: &'a Vm,
    tally: Tally,
}

impl<'a> Rig<'a> {
    pub(crate) fn new(
        vm: &'a Vm,
        kind: BackendKind,
        layout: Layout,
        seed: u64,
        scratch: &Path,
    ) -> Self {
        let mut bench = Bench::new(kind, layout, seed, scratch);
        if layout == Layout::Ext4 {
            // Linux 6.1 takes a commit block of the journal that is torn inside for damage, and does
            // not mount; newer ones do. `images` tears at 512 bytes below those.
            bench.tear_at_pages();
        }
        let tally = Tally::default();
        Self { bench, vm, tally }
    }

    pub(crate) fn tally(&self) -> (&Tally, &Judged) {
        (&self.tally, &self.bench.judged)
    }

    /// A writer and the cut, perhaps cuts of machines that only recover, perhaps one that comes to
    /// the end of it, and the judgement.
    pub(crate) fn cut(&mut self, behaviour: Behaviour) -> Result<(), Violation> {
        let rng = &mut self.bench.rng;
        let moment = match rng.range(0, 9) {
            0 => Moment::Operation(rng.range(1, 60)),
            1..=5 => Moment::Operation(rng.range(60, 2500)),
            _ => Moment::Step(rng.range(1, 3000)),
        };
        let mut done = self.strike(behaviour, moment);
        while done.is_ok() && self.bench.rng.percent(25) {
            let moment = Moment::Operation(self.bench.rng.range(1, 60));
            done = self.strike(Behaviour::OpenOnly, moment);
        }
        if done.is_ok() && self.bench.rng.percent(30) {
            done = self.strike(Behaviour::OpenOnly, Moment::Never);
        }
        done?;
        let failures = self.bench.judge.failures();
        self.bench.judge_now(Survival::Durable, Vec::new)?;
        // Only now: what was lost says more than who stumbled over it.
        if failures.is_empty() {
            return Ok(());
        }
        let console = self.vm.console();
        let text = format!("the guest failed: {failures:?}\n{console}");
        Err(Violation::new("P1", text))
    }

    /// A machine from power on to its death.
    fn strike(&mut self, behaviour: Behaviour, moment: Moment) -> Result<(), Violation> {
        self.bench.judge.note(format!("{behaviour:?}: {moment:?}"));
        let mount = self.bench.hand_over()?;
        let (operation, mut steps) = match moment {
            Moment::Operation(n) => (n, u64::MAX),
            Moment::Step(n) => (u64::MAX, n),
            Moment::Never => (u64::MAX, u64::MAX),
        };
        mount.cut_in(operation);
        let writer = self.bench.writer(behaviour, STORE.into());
        let layout = self.bench.layout();
        let image = layout.image(self.bench.place());
        let command = self.vm.command(layout, &image, &writer);
        let mut victim = Victim::start(command, &writer).unwrap();
        rustix::pipe::fcntl_setpipe_size(victim.pipe(), PIPE_BYTES).unwrap();
        let pid = Pid::from_raw(i32::try_from(victim.pid()).unwrap()).unwrap();

        let (mut opened, mut killed, mut heard) = (false, false, Ok(()));
        let hangs = thread::scope(|scope| {
            let (lives, signs) = mpsc::channel();
            let watch = scope.spawn(move || watch(&signs, pid));
            let switch = mount.switch();
            scope.spawn(move || {
                switch.wait();
                kill(pid);
            });
            // What cannot be read ends it as well: the thread that waits for the cut must not be left.
            while let Ok(Some(event)) = victim.hear() {
                opened |= event == Event::Opened;
                if heard.is_ok() {
                    heard = self.bench.hear(event);
                }
                lives.send(()).ok();
                steps = steps.saturating_sub(1);
                if steps == 0 && !killed {
                    killed = true;
                    kill(pid);
                }
            }
            killed |= mount.has_failed();
            mount.cut();
            drop(lives);
            watch.join().unwrap()
        });
        victim.last_words().unwrap();
        self.bench.leave(mount.unmount().unwrap());
        assert!(!hangs, "the machine hangs\n{}", self.vm.console());
        heard?;
        self.tally.cuts += u64::from(killed);
        self.tally.cuts_before_open += u64::from(killed && !opened);
        let has_ended = behaviour == Behaviour::OpenOnly && opened;
        if !killed && has_ended {
            self.tally.recovered_in_guest += 1;
        } else if !killed {
            let text = "the machine ended by itself".to_owned();
            self.bench.hear(Event::Failed { text })?;
        }
        Ok(())
    }
}

/// Kills a machine that gives no signs of life any more; whether it did.
fn watch(signs: &mpsc::Receiver<()>, pid: Pid) -> bool {
    loop {
        match signs.recv_timeout(PATIENCE) {
            Ok(()) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => {
                kill(pid);
                return true;
            }
        }
    }
}

/// Before it is waited for, so that the number is still its own.
fn kill(pid: Pid) {
    // It may have come to its end.
    rustix::process::kill_process(pid, Signal::KILL).ok();
}
