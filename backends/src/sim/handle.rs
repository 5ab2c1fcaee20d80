//! The test's handle on a simulated machine.

use std::future::Future;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use super::backend::{ProcessId, SimBackend, SimFactory, Sleep, YieldNow};
use super::config::SimConfig;
use super::directory::Node;
use super::executor::{Executor, Owner, Stop};
use super::fault::{Counters, CrashKind, Moment};
use super::slab::Key;
use super::world::{Shared, World};

/// One simulated machine with its disk, its processes and its time.
///
/// Clones are handles on the same machine, for tasks of the test. When the first one, which
/// [`Sim::new`] returned, is dropped, all tasks are.
///
/// ```
/// use alluvium_backends::sim::{Sim, SimConfig};
/// use std::time::Duration;
///
/// let sim = Sim::new(SimConfig::new(7));
/// let inner = sim.clone();
/// sim.block_on(async move { inner.sleep(Duration::from_secs(60)).await });
/// assert!(sim.now() >= Duration::from_secs(60));
/// ```
#[derive(Debug)]
pub struct Sim {
    shared: Arc<Shared>,
    executor: Rc<Executor>,
    is_owner: bool,
}

impl Clone for Sim {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
            executor: Rc::clone(&self.executor),
            is_owner: false,
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        // Tasks hold handles on the machine that holds them.
        if self.is_owner {
            self.executor.drop_tasks(|_| true);
        }
        // A store that dies while calls go on keeps its lock's handle for good, and with it this machine:
        // nothing of the disk may stay with that.
        if Rc::strong_count(&self.executor) == 1 {
            let mut world = self.shared.lock();
            let empty = World::new(world.config.clone());
            let old = std::mem::replace(&mut *world, empty);
            drop(world);
            drop(old);
        }
    }
}

impl Sim {
    /// A machine with an empty disk and no process.
    pub fn new(config: SimConfig) -> Self {
        let seed = config.seed;
        let shared = Arc::new(Shared::new(config));
        let executor = Rc::new(Executor::new(Arc::clone(&shared), seed));
        Self {
            shared,
            executor,
            is_owner: true,
        }
    }

    /// A machine as [`SimConfig::new`] has it.
    pub fn from_seed(seed: u64) -> Self {
        Self::new(SimConfig::new(seed))
    }

    // Running.

    /// Runs `future` to its end, and all tasks meanwhile. Tasks that are left stay for the next run.
    ///
    /// # Panics
    /// When the run stops otherwise, see [`Stop`]; and with what a task panics with.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        match self.try_block_on(future) {
            Ok(value) => value,
            Err(stop) => panic!("simulation of seed {}: {stop}", self.seed()),
        }
    }

    /// As [`block_on`](Self::block_on), but says why the run stopped.
    ///
    /// After [`Stop::Crashed`] the tasks of the dead processes and all tasks of the test are gone;
    /// the disk stands, and a new process may be started on it.
    pub fn try_block_on<T>(&self, future: impl Future<Output = T>) -> Result<T, Stop> {
        self.executor.run(future)
    }

    /// Starts a task of the test. It dies at a scripted crash and at a loss of power.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.executor.spawn(
            Owner {
                process: None,
                shard: 0,
            },
            false,
            Box::pin(task),
        );
    }

    /// Starts a task that dies with a process.
    pub fn spawn_in(&self, process: ProcessId, task: impl Future<Output = ()> + 'static) {
        if self.lock().alive(process.0) {
            let owner = Owner {
                process: Some(process.0),
                shard: 0,
            };
            self.executor.spawn(owner, false, Box::pin(task));
        }
    }

    /// Virtual time.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.lock().now)
    }

    /// Waits for virtual time.
    pub async fn sleep(&self, duration: Duration) {
        Sleep::new(&self.shared, duration).await;
    }

    /// Lets other tasks run.
    pub async fn yield_now(&self) {
        YieldNow::default().await;
    }

    /// The seed that fixes the run.
    pub fn seed(&self) -> u64 {
        self.lock().config.seed
    }

    /// A number of the test's own, from the seed.
    pub fn random_u64(&self) -> u64 {
        self.lock().entropy.next_u64()
    }

    // Processes and crashes.

    /// Starts a process on this machine.
    pub fn new_process(&self) -> SimFactory {
        let process = self.lock().new_process();
        SimFactory::new(Arc::clone(&self.shared), process)
    }

    /// A backend in a process, for tests that work on files themselves. It is a shard of its own
    /// that ends with the process.
    pub fn backend(&self, process: ProcessId) -> Rc<SimBackend> {
        Rc::new(self.executor.backend(process.0))
    }

    /// `kill -9` of one process. Tasks of the test live on.
    pub fn kill(&self, process: ProcessId) {
        self.lock().kill(process.0);
        self.executor
            .drop_tasks(|owner| owner.process == Some(process.0));
    }

    /// Whether a process has been neither killed nor stopped by a loss of power.
    pub fn is_alive(&self, process: ProcessId) -> bool {
        self.lock().alive(process.0)
    }

    /// All processes and all tasks die (but for the future given to `block_on`, when it is what
    /// calls this); the disk keeps what the fault model says.
    pub fn power_loss(&self) {
        self.lock().power_loss();
        self.executor.drop_tasks(|_| true);
    }

    /// Crashes at the `n`-th counted operation from the beginning of the machine, at its start or
    /// after its effect and before its report. See [`op_count`](Self::op_count).
    pub fn crash_at_op(&self, n: u64, kind: CrashKind) {
        self.lock().faults.crash = Some((n, kind, None));
    }

    /// As [`crash_at_op`](Self::crash_at_op), at a moment that chance does not choose.
    pub fn crash_at(&self, n: u64, kind: CrashKind, moment: Moment) {
        self.lock().faults.crash = Some((n, kind, Some(moment)));
    }

    /// Forgets a scripted crash that has not happened yet.
    pub fn cancel_crash(&self) {
        let mut world = self.lock();
        world.faults.crash = None;
        for key in world.ops.keys(|op| op.crash.is_some()) {
            if let Some(op) = world.ops.get_mut(key) {
                op.crash = None;
            }
        }
    }

    /// Operations that change the disk, begun so far: writes, syncs of files and directories,
    /// creations, renames, removals, allocations and changes of length. The first has number 1.
    pub fn op_count(&self) -> u64 {
        self.lock().op_count
    }

    // Faults.

    /// Lets the `n`-th counted operation fail with `errno`.
    pub fn fail_op(&self, n: u64, errno: i32) {
        self.lock()
            .faults
            .fail
            .insert(n, Errno::from_raw_os_error(errno));
    }

    /// Lets the `n`-th call of the seam fail with `errno`, whatever it is: see [`calls`](Self::calls).
    pub fn fail_call(&self, n: u64, errno: i32) {
        let errno = Errno::from_raw_os_error(errno);
        self.lock().faults.fail_calls.insert(n, errno);
    }

    /// Lets the `n`-th call transfer about half of what it was asked for, if it is a read or write of
    /// more than the least that can be transferred.
    pub fn shorten_call(&self, n: u64) {
        self.lock().faults.short_calls.insert(n);
    }

    /// Calls of the seam so far, by the names of its methods: those that change nothing, too. The
    /// first has number 1. (An `open` that creates the file is a `create`.)
    pub fn calls(&self) -> Vec<&'static str> {
        self.lock().calls.clone()
    }

    /// Number of [`calls`](Self::calls).
    pub fn call_count(&self) -> u64 {
        self.lock().calls.len() as u64
    }

    /// Forgets failures of operations and reads that have not happened yet.
    pub fn cancel_failures(&self) {
        let mut world = self.lock();
        world.faults.fail.clear();
        world.faults.fail_reads.clear();
        world.faults.fail_calls.clear();
        world.faults.short_calls.clear();
    }

    /// Lets the `n`-th read (see [`Counters::reads`]) fail with `errno`.
    pub fn fail_read(&self, n: u64, errno: i32) {
        self.lock()
            .faults
            .fail_reads
            .insert(n, Errno::from_raw_os_error(errno));
    }

    /// While stalled, reads, writes and syncs do not complete. Time goes on.
    pub fn set_stalled(&self, stalled: bool) {
        self.lock().set_stalled(stalled);
    }

    /// Acknowledges the `n`-th write (of both kinds, see [`write_count`](Self::write_count))
    /// without doing it.
    pub fn lose_write(&self, n: u64) {
        self.lock().faults.lost.insert(n);
    }

    /// Acknowledges the `n`-th write and does it, durably, at another page of the same file.
    pub fn misdirect_write(&self, n: u64) {
        self.lock().faults.misdirected.insert(n);
    }

    /// Writes begun so far, of both kinds.
    pub fn write_count(&self) -> u64 {
        self.lock().write_count
    }

    /// Moves the wall clock; monotonic time is not touched.
    pub fn jump_wall_clock(&self, by_ms: i64) {
        let mut world = self.lock();
        world.wall_base_ms = world.wall_base_ms.saturating_add(by_ms);
    }

    /// Changes the size of the disk. What is on it stays, even when it is more.
    pub fn set_capacity(&self, bytes: u64) {
        self.lock().disk.capacity_blocks = bytes / super::file::PAGE;
    }

    /// Changes what the machine is like from now on. The seed has done its work already.
    pub fn configure(&self, change: impl FnOnce(&mut SimConfig)) {
        change(&mut self.lock().config);
    }

    /// Turns one bit of a file over, on the medium.
    pub fn flip_bit(&self, path: impl AsRef<Path>, byte: u64, bit: u8) -> io::Result<()> {
        self.damage(path.as_ref(), byte..byte.saturating_add(1), |old, _| {
            old ^ 1 << (bit % 8)
        })
    }

    /// Fills a range of a file with other bytes, on the medium.
    pub fn corrupt(&self, path: impl AsRef<Path>, range: Range<u64>) -> io::Result<()> {
        self.damage(path.as_ref(), range, |old, random| {
            old ^ u8::try_from(1 + random % 255).unwrap_or(1)
        })
    }

    fn damage(
        &self,
        path: &Path,
        range: Range<u64>,
        change: impl Fn(u8, u64) -> u8,
    ) -> io::Result<()> {
        let mut world = self.lock();
        let inode = world.disk.file(path)?;
        let end = range.end.min(world.disk.inode(inode).image.len());
        let len = super::file::to_usize(end.saturating_sub(range.start));
        if len == 0 {
            return Err(Errno::INVAL.into());
        }
        let mut bytes = vec![0; len];
        world.disk.inode(inode).image.read(range.start, &mut bytes);
        for byte in &mut bytes {
            *byte = change(*byte, world.fault_rng.next_u64());
        }
        world
            .disk
            .change(inode, |image| image.damage(range.start, &bytes));
        Ok(())
    }

    // Looking at the machine, and planting.

    /// What has been done so far.
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    /// Hash over all operations and completions with their order and time.
    pub fn trace_hash(&self) -> u64 {
        self.lock().trace_hash()
    }

    /// Descriptors that processes hold.
    pub fn open_descriptors(&self) -> usize {
        self.lock().disk.open_descriptors()
    }

    /// Operations that the kernel works on, zombies included.
    pub fn in_flight(&self) -> usize {
        self.lock().in_flight()
    }

    /// Paths of all files, ascending.
    pub fn list_files(&self) -> Vec<PathBuf> {
        let world = self.lock();
        let mut files = Vec::new();
        let mut dirs = vec![(PathBuf::from("/"), world.disk.tree.root())];
        while let Some((path, dir)) = dirs.pop() {
            for (name, node) in world.disk.tree.entries(dir) {
                match node {
                    Node::File(_) => files.push(path.join(name)),
                    Node::Dir(sub) => dirs.push((path.join(name), sub)),
                }
            }
        }
        files.sort_unstable();
        files
    }

    /// Content of a file as readers see it now.
    pub fn read_file(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let world = self.lock();
        let inode = world.disk.file(path.as_ref())?;
        Ok(world.disk.inode(inode).image.contents())
    }

    /// Plants a file with this content, durable with its name and missing parents. The content of
    /// a file that is there is replaced.
    pub fn write_file(&self, path: impl AsRef<Path>, content: &[u8]) -> io::Result<()> {
        let path = path.as_ref();
        if let Some(parent) = path.parent() {
            self.create_dir_all(parent)?;
        }
        let mut world = self.lock();
        let inode = match world.disk.file(path) {
            Ok(inode) => inode,
            Err(_) => world.disk.create(path, 0)?,
        };
        let stamp = world.next_stamp();
        world.disk.change(inode, |image| {
            image.set_len(0, stamp);
            image.write(0, content, stamp);
            image.sync(stamp);
        });
        Ok(())
    }

    /// Makes a directory and its missing parents, durable.
    pub fn create_dir_all(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut world = self.lock();
        let mut at = PathBuf::from("/");
        for component in path.as_ref().components() {
            at.push(component);
            if world.disk.tree.lookup(&at) == Err(Errno::NOENT) {
                let (parent, name) = world.disk.tree.parent(&at)?;
                let _: Key = world.disk.tree.add_dir(parent, name, 0);
            }
        }
        world.disk.tree.lookup_dir(&at)?;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, World> {
        self.shared.lock()
    }
}
