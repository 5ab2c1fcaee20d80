//! The scheduler: one thread, a random ready task each step, virtual time in between.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::pin;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use alluvium_core::io::LocalFuture;

use super::backend::SimBackend;
use super::rng::Rng;
use super::slab::{Key, Slab};
use super::world::{Crash, Next, Shared};

/// Why a run ended before its future did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Nothing is ready and nothing is pending: somebody waits for ever.
    Stuck,
    /// A scripted crash happened.
    Crashed,
    /// The run took more virtual time or more steps than the configuration allows.
    TooLong,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Stuck => "every task waits and nothing is pending: a hang",
            Self::Crashed => "a scripted crash happened",
            Self::TooLong => "the run exceeded its limit of virtual time or steps",
        })
    }
}

impl std::error::Error for Stop {}

/// Tasks that have been woken.
#[derive(Debug, Default)]
pub(super) struct Ready {
    queue: Mutex<Vec<Key>>,
}

impl Ready {
    fn lock(&self) -> MutexGuard<'_, Vec<Key>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pick(&self, rng: &mut Rng) -> Option<Key> {
        let mut queue = self.lock();
        match queue.len() {
            0 => None,
            1 => queue.pop(),
            n => Some(queue.swap_remove(rng.index(n))),
        }
    }
}

struct TaskWaker {
    key: Key,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if !self.queued.swap(true, Ordering::Relaxed) {
            self.ready.lock().push(self.key);
        }
    }
}

/// To whom a task belongs; it dies with either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    /// `None`: to the test.
    pub(super) process: Option<u32>,
    /// Zero: to none.
    pub(super) shard: u64,
}

struct Task {
    /// `None` while it runs.
    future: Option<LocalFuture<()>>,
    state: Arc<TaskWaker>,
    waker: Waker,
    owner: Owner,
    /// The shard ends with it.
    is_main: bool,
}

/// All tasks.
pub(super) struct Executor {
    shared: Arc<Shared>,
    tasks: RefCell<Slab<Task>>,
    rng: RefCell<Rng>,
    shards: Cell<u64>,
    running: Cell<bool>,
    catch_panics: Cell<bool>,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Executor")
            .field("tasks", &self.tasks.borrow().len())
            .finish_non_exhaustive()
    }
}

/// Says that no run is going on, also when a panic leaves it.
struct Running<'a>(&'a Cell<bool>);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

impl Executor {
    pub(super) fn new(shared: Arc<Shared>, seed: u64) -> Self {
        Self {
            shared,
            tasks: RefCell::default(),
            rng: RefCell::new(Rng::new(seed ^ 0x7A5C_5EED)),
            shards: Cell::new(0),
            running: Cell::new(false),
            catch_panics: Cell::new(false),
        }
    }

    pub(super) fn spawn(&self, owner: Owner, is_main: bool, future: LocalFuture<()>) {
        let ready = &self.shared.ready;
        let key = self.tasks.borrow_mut().insert_with(|key| {
            let state = Arc::new(TaskWaker {
                key,
                queued: AtomicBool::new(true),
                ready: Arc::clone(ready),
            });
            let waker = Waker::from(Arc::clone(&state));
            Task {
                future: Some(future),
                state,
                waker,
                owner,
                is_main,
            }
        });
        ready.lock().push(key);
    }

    pub(super) fn next_shard(&self) -> u64 {
        self.shards.set(self.shards.get() + 1);
        self.shards.get()
    }

    /// Drops the tasks of these owners, the running one when its step is over.
    pub(super) fn drop_tasks(&self, dies: impl Fn(Owner) -> bool) {
        let keys = self.tasks.borrow().keys(|task| dies(task.owner));
        for key in keys {
            let task = self.tasks.borrow_mut().remove(key);
            // Outside of the borrow: what it captured may wake and spawn.
            drop(task);
        }
    }

    /// Runs until `future` is done or something else ends the run.
    pub(super) fn run<T>(self: &Rc<Self>, future: impl Future<Output = T>) -> Result<T, Stop> {
        assert!(
            !self.running.replace(true),
            "a run of the simulation inside another one"
        );
        let _running = Running(&self.running);
        let mut future = pin!(future);
        let main = Arc::new(TaskWaker {
            key: Key::NONE,
            queued: AtomicBool::new(false),
            ready: Arc::clone(&self.shared.ready),
        });
        let waker = Waker::from(Arc::clone(&main));
        waker.wake_by_ref();
        let mut limits = self.limits();
        loop {
            let picked = self.shared.ready.pick(&mut self.rng.borrow_mut());
            let next = match picked {
                None => {
                    let next = self.shared.lock().advance();
                    if matches!(next, Next::Idle) {
                        return Err(Stop::Stuck);
                    }
                    next
                }
                Some(Key::NONE) => {
                    main.queued.store(false, Ordering::Relaxed);
                    let polled = future.as_mut().poll(&mut Context::from_waker(&waker));
                    let next = self.shared.lock().after_step();
                    if let (Poll::Ready(value), false) = (polled, matches!(next, Next::Crashed(_)))
                    {
                        self.act(next).ok();
                        self.forget_main();
                        return Ok(value);
                    }
                    next
                }
                Some(key) => {
                    self.step(key);
                    self.shared.lock().after_step()
                }
            };
            if let Err(stop) = self.act(next).and_then(|()| self.check(&mut limits)) {
                self.forget_main();
                return Err(stop);
            }
        }
    }

    /// A wake of a future that has ended must not reach its successor.
    fn forget_main(&self) {
        self.shared.ready.lock().retain(|key| *key != Key::NONE);
    }

    /// Reads the configuration: virtual time and steps at which the run is too long.
    fn limits(&self) -> (u64, u64) {
        let world = self.shared.lock();
        self.catch_panics.set(world.config.catch_panics);
        let time = world
            .now
            .saturating_add(super::world::nanos(world.config.run_time_max));
        (time, world.config.run_steps_max)
    }

    fn check(&self, (time, steps): &mut (u64, u64)) -> Result<(), Stop> {
        *steps = steps.saturating_sub(1);
        // Time is looked at now and then only.
        if *steps == 0 || *steps % 64 == 0 && self.shared.lock().now > *time {
            return Err(Stop::TooLong);
        }
        Ok(())
    }

    fn act(self: &Rc<Self>, next: Next) -> Result<(), Stop> {
        match next {
            Next::Idle | Next::Wake(None) => {}
            Next::Wake(Some(waker)) => waker.wake(),
            Next::Shards => self.start_shards(),
            Next::Crashed(crash) => {
                self.drop_tasks(|owner| match (crash, owner.process) {
                    (Crash::Machine, _) | (_, None) => true,
                    (Crash::Process(dead), Some(process)) => dead == process,
                });
                return Err(Stop::Crashed);
            }
        }
        Ok(())
    }

    fn start_shards(self: &Rc<Self>) {
        let shards = std::mem::take(&mut self.shared.lock().shards);
        for new in shards {
            let backend = self.backend(new.process);
            let owner = backend.owner();
            // Built at its first step: a panic in it is one of the shard.
            self.spawn(
                owner,
                true,
                Box::pin(async move { (new.main)(Rc::new(backend)).await }),
            );
        }
    }

    /// A backend of a new shard of a process.
    pub(super) fn backend(self: &Rc<Self>, process: u32) -> SimBackend {
        let owner = Owner {
            process: Some(process),
            shard: self.next_shard(),
        };
        SimBackend::new(Arc::clone(&self.shared), Rc::downgrade(self), owner)
    }

    fn step(&self, key: Key) {
        let (mut future, waker) = {
            let mut tasks = self.tasks.borrow_mut();
            let Some(task) = tasks.get_mut(key) else {
                return;
            };
            task.state.queued.store(false, Ordering::Relaxed);
            let Some(future) = task.future.take() else {
                return;
            };
            (future, task.waker.clone())
        };
        let mut context = Context::from_waker(&waker);
        let polled = if self.catch_panics.get() {
            catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut context)))
        } else {
            Ok(future.as_mut().poll(&mut context))
        };
        let ended = match polled {
            Ok(Poll::Pending) => {
                if let Some(task) = self.tasks.borrow_mut().get_mut(key) {
                    task.future = Some(future);
                    return;
                }
                // It was killed during its step.
                drop(future);
                return;
            }
            Ok(Poll::Ready(())) => self.tasks.borrow_mut().remove(key),
            Err(panic) => {
                self.caught(key, panic);
                return;
            }
        };
        drop(future);
        if let Some(Task {
            is_main: true,
            owner,
            ..
        }) = ended
        {
            self.drop_tasks(|other| other == owner);
        }
    }

    fn caught(&self, key: Key, panic: Box<dyn Any + Send>) {
        let owner = self.tasks.borrow_mut().remove(key).map(|task| task.owner);
        match owner {
            Some(owner) if owner.shard != 0 && self.shared.lock().violation.is_none() => {
                self.shared.lock().counters.panics_caught += 1;
                self.drop_tasks(|other| other == owner);
            }
            _ => resume_unwind(panic),
        }
    }
}

/// A backend's way back to its executor.
pub(super) type ExecutorRef = Weak<Executor>;
