//! The event loop: clocks, sleeping, yielding, tasks, wakes from other threads.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use alluvium_core::io::{BackendFactory, IoBackend, IoFile};
use tokio::sync::{mpsc, oneshot};

use super::{Ctx, Suite, checks, pattern};

pub(super) fn all<F: BackendFactory>(suite: &mut Suite<'_, F>) {
    checks!(suite;
        the_clock_never_goes_back,
        sleeping_takes_its_time,
        sleeps_end_in_order,
        absurd_sleeps_are_no_panic,
        the_wall_clock_is_the_systems,
        yielding_lets_others_run,
        yielding_lets_completions_in,
        tasks_run_and_spawn_tasks,
        a_panic_ends_its_task_only,
        local_wakes,
        foreign_wakes_reach_main,
        foreign_wakes_reach_tasks,
        idle_costs_nothing,
        random_bits_differ,
    );
}

async fn the_clock_never_goes_back<B: IoBackend>(ctx: Ctx<B>) {
    let start = ctx.backend.now();
    let mut last = start;
    for _ in 0..10_000 {
        let now = ctx.backend.now();
        assert!(now >= last);
        last = now;
    }
    assert!(last > start);
}

async fn sleeping_takes_its_time<B: IoBackend>(ctx: Ctx<B>) {
    for ms in [0, 1, 20, 50] {
        let duration = Duration::from_millis(ms);
        let before = ctx.backend.now();
        ctx.backend.sleep(duration).await;
        let took = ctx.backend.now().saturating_sub(before);
        assert!(took >= duration, "{took:?} for {duration:?}");
        assert!(
            took < duration + Duration::from_secs(5),
            "{took:?} for {duration:?}"
        );
    }
}

async fn sleeps_end_in_order<B: IoBackend>(ctx: Ctx<B>) {
    let order = Rc::new(RefCell::new(Vec::new()));
    for ms in [90_u64, 30, 60] {
        let (backend, order) = (Rc::clone(&ctx.backend), Rc::clone(&order));
        ctx.backend.spawn(Box::pin(async move {
            backend.sleep(Duration::from_millis(ms)).await;
            order.borrow_mut().push(ms);
        }));
    }
    while order.borrow().len() < 3 {
        ctx.backend.sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(*order.borrow(), [30, 60, 90]);
}

async fn absurd_sleeps_are_no_panic<B: IoBackend>(ctx: Ctx<B>) {
    let backend = Rc::clone(&ctx.backend);
    let ended = Rc::new(Cell::new(false));
    let flag = Rc::clone(&ended);
    ctx.backend.spawn(Box::pin(async move {
        // Set by a panic as well, when the task is dropped.
        let guard = SetOnDrop(flag);
        backend.sleep(Duration::MAX).await;
        drop(guard);
    }));
    ctx.backend.sleep(Duration::from_millis(20)).await;
    assert!(!ended.get());
}

struct SetOnDrop(Rc<Cell<bool>>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.set(true);
    }
}

async fn the_wall_clock_is_the_systems<B: IoBackend>(ctx: Ctx<B>) {
    let system = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_millis();
    let here = u128::try_from(ctx.backend.wall_clock_ms()).unwrap();
    assert!(here.abs_diff(system) < 60_000, "{here} and {system}");
}

async fn yielding_lets_others_run<B: IoBackend>(ctx: Ctx<B>) {
    let count = Rc::new(Cell::new(0));
    let (backend, counted) = (Rc::clone(&ctx.backend), Rc::clone(&count));
    ctx.backend.spawn(Box::pin(async move {
        for _ in 0..100 {
            counted.set(counted.get() + 1);
            backend.yield_now().await;
        }
    }));
    let mut rounds = 0;
    while count.get() < 100 {
        ctx.backend.yield_now().await;
        rounds += 1;
        assert!(
            rounds < 100_000,
            "the other task starves at {}",
            count.get()
        );
    }
}

async fn yielding_lets_completions_in<B: IoBackend>(ctx: Ctx<B>) {
    let file = Rc::new(ctx.create("file", false).await);
    for i in 0..20_u64 {
        let done = Rc::new(Cell::new(false));
        let (file, flag) = (Rc::clone(&file), Rc::clone(&done));
        ctx.backend.spawn(Box::pin(async move {
            file.write_durable(pattern(i, 4096), i * 4096)
                .await
                .0
                .unwrap();
            flag.set(true);
        }));
        let deadline = ctx.backend.now() + Duration::from_secs(10);
        // Never sleeps: only a yield that looks at the kernel gets out of here.
        while !done.get() {
            assert!(ctx.backend.now() < deadline, "a completion was never seen");
            ctx.backend.yield_now().await;
        }
    }
}

async fn tasks_run_and_spawn_tasks<B: IoBackend>(ctx: Ctx<B>) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    for i in 0..200 {
        let (backend, sender) = (Rc::clone(&ctx.backend), sender.clone());
        let inner = Rc::clone(&ctx.backend);
        backend.spawn(Box::pin(async move {
            inner.spawn(Box::pin(async move { sender.send(i).unwrap() }));
        }));
    }
    drop(sender);
    let mut seen = Vec::new();
    while let Some(i) = receiver.recv().await {
        seen.push(i);
    }
    seen.sort_unstable();
    assert_eq!(seen, (0..200).collect::<Vec<_>>());
}

async fn a_panic_ends_its_task_only<B: IoBackend>(ctx: Ctx<B>) {
    let (answer, answered) = oneshot::channel::<()>();
    ctx.backend.spawn(Box::pin(async move {
        let _held = answer;
        panic!("on purpose: a task of the conformance suite");
    }));
    // The sender went down with the task; whoever waits hears of it.
    assert!(answered.await.is_err());
    let (answer, answered) = oneshot::channel();
    ctx.backend
        .spawn(Box::pin(async move { answer.send(5).unwrap() }));
    assert_eq!(answered.await, Ok(5));
    ctx.backend.sleep(Duration::from_millis(1)).await;
}

async fn local_wakes<B: IoBackend>(ctx: Ctx<B>) {
    let (there, mut incoming) = mpsc::channel::<oneshot::Sender<u64>>(4);
    ctx.backend.spawn(Box::pin(async move {
        let mut count = 0;
        while let Some(reply) = incoming.recv().await {
            count += 1;
            reply.send(count).unwrap();
        }
    }));
    for i in 1..=10_000 {
        let (reply, replied) = oneshot::channel();
        there.send(reply).await.unwrap();
        assert_eq!(replied.await, Ok(i));
    }
}

type Request = (u64, oneshot::Sender<u64>);

/// A thread that asks `count` times, one question after the other.
fn ask(count: u64, requests: mpsc::Sender<Request>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for i in 0..count {
            let (reply, replied) = oneshot::channel();
            requests.blocking_send((i, reply)).unwrap();
            assert_eq!(replied.blocking_recv(), Ok(i + 1));
        }
    })
}

async fn answer(mut requests: mpsc::Receiver<Request>) -> u64 {
    let mut count = 0;
    while let Some((i, reply)) = requests.recv().await {
        reply.send(i + 1).unwrap();
        count += 1;
    }
    count
}

async fn foreign_wakes_reach_main<B: IoBackend>(_ctx: Ctx<B>) {
    let (sender, receiver) = mpsc::channel(16);
    let thread = ask(10_000, sender);
    assert_eq!(answer(receiver).await, 10_000);
    thread.join().unwrap();
}

async fn foreign_wakes_reach_tasks<B: IoBackend>(ctx: Ctx<B>) {
    let (done, mut all_done) = mpsc::unbounded_channel();
    // More tasks than the wake queue of a runtime has places.
    for _ in 0..100 {
        let (sender, receiver) = mpsc::channel(16);
        drop(ask(100, sender));
        let done = done.clone();
        ctx.backend.spawn(Box::pin(async move {
            done.send(answer(receiver).await).unwrap();
        }));
    }
    drop(done);
    let mut total = 0;
    while let Some(count) = all_done.recv().await {
        total += count;
    }
    assert_eq!(total, 10_000);
}

/// CPU time of the calling thread.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    Duration::from_nanos(stat.split(' ').next().unwrap().parse().unwrap())
}

async fn idle_costs_nothing<B: IoBackend>(ctx: Ctx<B>) {
    if !std::fs::exists("/proc/thread-self/schedstat").unwrap() {
        return;
    }
    // Idle with everything open that a shard has: a file, a waiting task, a timer.
    let file = ctx.create("file", false).await;
    file.write_durable(pattern(1, 4096), 0).await.0.unwrap();
    ctx.backend.spawn(Box::pin(std::future::pending()));
    let before = cpu_time();
    ctx.backend.sleep(Duration::from_millis(500)).await;
    let used = cpu_time().saturating_sub(before);
    assert!(
        used < Duration::from_millis(20),
        "{used:?} of CPU in half a second of nothing"
    );
}

async fn random_bits_differ<B: IoBackend>(ctx: Ctx<B>) {
    let mut seen: Vec<u64> = (0..1000).map(|_| ctx.backend.random_u64()).collect();
    assert!(
        seen.iter().fold(0, |bits, value| bits | value) == u64::MAX,
        "a bit is never set"
    );
    assert!(
        seen.iter().fold(u64::MAX, |bits, value| bits & value) == 0,
        "a bit is always set"
    );
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 1000);
}
