//! A mounted disk with a power switch, a queue that answers late and out of order, and errors on
//! order.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, MountOption, ReplyEmpty, ReplyWrite};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::disk::{Disk, InFlight};
use crate::serve::Serve;

/// How the disk behaves while it is mounted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Writes and syncs are answered after a random time up to this.
    pub delay_max: Duration,
    /// Decides the delays.
    pub seed: u64,
}

/// A write or sync on its way.
pub(crate) enum Pending {
    Write {
        number: u64,
        at: u64,
        bytes: Vec<u8>,
        durable: bool,
        reply: ReplyWrite,
    },
    Sync {
        number: u64,
        reply: ReplyEmpty,
    },
}

impl Pending {
    fn refuse(self, error: Errno) {
        let error = fuser::Errno::from_i32(error.raw_os_error());
        match self {
            Self::Write { reply, .. } => reply.error(error),
            Self::Sync { reply, .. } => reply.error(error),
        }
    }
}

struct State {
    disk: Disk,
    on: bool,
    over: bool,
    operations: u64,
    cut_at: u64,
    failures: BTreeMap<u64, i32>,
    failed: u64,
    queue: Vec<(Instant, Pending)>,
    /// Writes that the cut struck.
    in_flight: Vec<InFlight>,
    delays: u64,
}

/// The switch, between the kernel and the disk.
pub(crate) struct Power {
    state: Mutex<State>,
    turned: Condvar,
    delay_max: Duration,
}

impl Power {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn look<T>(&self, look: impl FnOnce(&Disk) -> Result<T, Errno>) -> Result<T, Errno> {
        let state = self.lock();
        if !state.on {
            return Err(Errno::IO);
        }
        look(&state.disk)
    }

    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut Disk) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut state = self.lock();
        self.count(&mut state)?;
        change(&mut state.disk)
    }

    /// Counts an operation, which may be the one that fails or that the power fails at.
    fn count(&self, state: &mut State) -> Result<(), Errno> {
        if !state.on {
            return Err(Errno::IO);
        }
        state.operations += 1;
        if state.operations >= state.cut_at {
            self.cut(state);
            return Err(Errno::IO);
        }
        let now = state.operations;
        match state.failures.remove(&now) {
            Some(errno) => {
                state.failed += 1;
                Err(Errno::from_raw_os_error(errno))
            }
            None => Ok(()),
        }
    }

    fn cut(&self, state: &mut State) {
        if !state.on {
            return;
        }
        state.on = false;
        for (_, pending) in std::mem::take(&mut state.queue) {
            if let Pending::Write {
                number, at, bytes, ..
            } = &pending
                && let Ok(at) = usize::try_from(*at)
            {
                state.in_flight.push((*number, at, bytes.clone()));
            }
            pending.refuse(Errno::IO);
        }
        self.turned.notify_all();
    }

    pub(crate) fn submit(&self, pending: Pending) {
        let mut state = self.lock();
        if let Pending::Write {
            number, at, bytes, ..
        } = &pending
            && state.on
            && state.operations + 1 >= state.cut_at
            && let Ok(at) = usize::try_from(*at)
        {
            // The cut strikes in the middle of this one.
            state.in_flight.push((*number, at, bytes.clone()));
        }
        if let Err(e) = self.count(&mut state) {
            drop(state);
            return pending.refuse(e);
        }
        let micros = u64::try_from(self.delay_max.as_micros()).unwrap_or(u64::MAX);
        state.delays = state
            .delays
            .wrapping_mul(0xD134_2543_DE82_EF95)
            .wrapping_add(1);
        let delay = (state.delays >> 33) % (micros + 1);
        state
            .queue
            .push((Instant::now() + Duration::from_micros(delay), pending));
        self.turned.notify_all();
    }

    /// Carries out what is due, until the end.
    fn work(&self) {
        let mut state = self.lock();
        while !state.over {
            let due = state
                .queue
                .iter()
                .enumerate()
                .min_by_key(|(_, (due, _))| *due);
            let Some((index, due)) = due.map(|(index, (due, _))| (index, *due)) else {
                state = self
                    .turned
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let left = due.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let woken = self.turned.wait_timeout(state, left);
                state = woken.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            let (_, pending) = state.queue.swap_remove(index);
            state.carry_out(pending);
        }
    }
}

impl State {
    fn carry_out(&mut self, pending: Pending) {
        let error = |e: Errno| fuser::Errno::from_i32(e.raw_os_error());
        match pending {
            Pending::Write {
                number,
                at,
                bytes,
                durable,
                reply,
            } => match self.disk.write(number, at, &bytes, durable) {
                Ok(()) => reply.written(u32::try_from(bytes.len()).unwrap_or(u32::MAX)),
                Err(e) => reply.error(error(e)),
            },
            Pending::Sync { number, reply } => match self.disk.sync(number) {
                Ok(()) => reply.ok(),
                Err(e) => reply.error(error(e)),
            },
        }
    }
}

/// A mounted [`Disk`].
pub struct Mount {
    power: Arc<Power>,
    path: PathBuf,
    session: Option<BackgroundSession>,
    worker: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Mount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mount")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Attempts to unmount, a few milliseconds apart, before it is an error.
const UNMOUNT_ATTEMPTS: u32 = 5000;

impl Mount {
    /// Mounts the disk at `path`, with power and without an end.
    ///
    /// # Errors
    /// Those of mounting: `EPERM` without root, `ENOENT` without `/dev/fuse`.
    pub fn new(disk: Disk, path: &Path, options: Options) -> io::Result<Self> {
        let state = State {
            disk,
            on: true,
            over: false,
            operations: 0,
            cut_at: u64::MAX,
            failures: BTreeMap::new(),
            failed: 0,
            queue: Vec::new(),
            in_flight: Vec::new(),
            delays: options.seed,
        };
        let power = Arc::new(Power {
            state: Mutex::new(state),
            turned: Condvar::new(),
            delay_max: options.delay_max,
        });
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("alluvium-powercut".to_owned())];
        let session = fuser::spawn_mount(Serve(Arc::clone(&power)), path, &config)?;
        let working = Arc::clone(&power);
        let worker = std::thread::Builder::new().spawn(move || working.work())?;
        Ok(Self {
            power,
            path: path.to_path_buf(),
            session: Some(session),
            worker: Some(worker),
        })
    }

    /// Lets the power fail at the `n`-th operation from now that changes something.
    pub fn cut_in(&self, n: u64) {
        let mut state = self.power.lock();
        state.cut_at = state.operations + n.max(1);
    }

    /// Lets the `n`-th operation from now that changes something fail with an error number.
    pub fn fail_in(&self, n: u64, errno: i32) {
        let mut state = self.power.lock();
        let at = state.operations + n.max(1);
        state.failures.insert(at, errno);
    }

    /// From now on, syncs are answered and do nothing.
    pub fn lie(&self) {
        self.power.lock().disk.lying = true;
    }

    /// Operations that failed on order.
    pub fn failed(&self) -> u64 {
        self.power.lock().failed
    }

    /// Lets the power fail now, if it has not yet.
    pub fn cut(&self) {
        self.power.cut(&mut self.power.lock());
    }

    /// Whether the power has failed.
    pub fn has_failed(&self) -> bool {
        !self.power.lock().on
    }

    /// A handle for another thread.
    pub fn switch(&self) -> Switch {
        Switch(Arc::clone(&self.power))
    }

    /// Unmounts, and returns the disk: as it was, or what the power cut left of it.
    ///
    /// # Errors
    /// `EBUSY` when somebody does not let go of it.
    pub fn unmount(mut self) -> io::Result<Disk> {
        self.detach(UnmountFlags::empty())?;
        let mut state = self.power.lock();
        let disk = std::mem::replace(&mut state.disk, Disk::new(0));
        Ok(if state.on {
            disk
        } else {
            disk.survivor(&state.in_flight)
        })
    }

    fn detach(&mut self, flags: UnmountFlags) -> io::Result<()> {
        let Some(session) = self.session.take() else {
            return Ok(());
        };
        let mut attempts = 0;
        loop {
            match rustix::mount::unmount(&self.path, flags) {
                Err(Errno::BUSY) if attempts < UNMOUNT_ATTEMPTS => attempts += 1,
                Ok(()) | Err(Errno::INVAL) => break,
                Err(e) => {
                    self.session = Some(session);
                    return Err(e.into());
                }
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let joined = session.join();
        self.power.lock().over = true;
        self.power.turned.notify_all();
        if let Some(worker) = self.worker.take() {
            worker
                .join()
                .map_err(|_| io::Error::other("the disk's thread panicked"))?;
        }
        match joined {
            // What the kernel says to a server whose file system has just gone.
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => Ok(()),
            joined => joined,
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // On the way out of a failed test; nothing may hang on it.
        self.cut();
        self.detach(UnmountFlags::DETACH).ok();
    }
}

/// The switch of a [`Mount`].
#[derive(Clone)]
pub struct Switch(Arc<Power>);

impl std::fmt::Debug for Switch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Switch")
    }
}

impl Switch {
    /// Returns when the power has failed, or the disk is unmounted.
    pub fn wait(&self) {
        let state = self.0.lock();
        let waited = self
            .0
            .turned
            .wait_while(state, |state| state.on && !state.over);
        drop(waited);
    }
}
