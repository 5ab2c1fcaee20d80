//! Scheduling, time, tasks, determinism.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use alluvium_core::io::{BackendFactory, IoBackend, IoFile, ShardSpec};
use tokio::sync::{mpsc, oneshot};

use super::{create, process};
use crate::sim::{CrashKind, Sim, SimConfig, SimFactory, Stop};

fn spec(name: &str) -> ShardSpec {
    ShardSpec {
        name: name.to_owned(),
        core: None,
    }
}

type Request = (u64, oneshot::Sender<u64>);

/// A shard that doubles numbers, slowly.
fn doubler(factory: &SimFactory) -> mpsc::Sender<Request> {
    let (sender, mut receiver) = mpsc::channel::<Request>(4);
    factory
        .spawn_shard(
            spec("doubler"),
            Box::new(move |backend| {
                Box::pin(async move {
                    while let Some((n, reply)) = receiver.recv().await {
                        let timer = Rc::clone(&backend);
                        backend.spawn(Box::pin(async move {
                            timer.sleep(Duration::from_millis(n)).await;
                            reply.send(2 * n).ok();
                        }));
                    }
                })
            }),
        )
        .expect("shards start");
    sender
}

#[test]
fn tasks_and_shards_talk_through_tokio_channels() {
    let sim = Sim::from_seed(1);
    let sender = doubler(&sim.new_process());
    let sum = Rc::new(Cell::new(0));
    for n in 0..20 {
        let (sender, sum) = (sender.clone(), Rc::clone(&sum));
        sim.spawn(async move {
            let (reply, answer) = oneshot::channel();
            sender.send((n, reply)).await.expect("the shard lives");
            let doubled = answer.await.expect("the shard answers");
            sum.set(sum.get() + doubled);
        });
    }
    let waiting = sim.clone();
    sim.block_on(async move { waiting.sleep(Duration::from_secs(1)).await });
    assert_eq!(sum.get(), 380);
    assert!(sim.now() < Duration::from_millis(1100));
}

#[test]
fn a_shard_ends_with_its_main_and_takes_its_tasks_along() {
    let sim = Sim::from_seed(2);
    let token = Rc::new(());
    let held = Rc::new(RefCell::new(Vec::new()));
    let (stop, stopped) = oneshot::channel::<()>();
    let (started, running) = oneshot::channel::<()>();
    let factory = sim.new_process();
    factory
        .spawn_shard(
            spec("short"),
            Box::new(move |backend| {
                Box::pin(async move {
                    let sleeper = Rc::clone(&backend);
                    backend.spawn(Box::pin(async move {
                        started.send(()).ok();
                        sleeper.sleep(Duration::from_secs(3600)).await;
                    }));
                    stopped.await.ok();
                })
            }),
        )
        .expect("shards start");
    held.borrow_mut().push(Rc::clone(&token));
    sim.block_on(async move {
        running.await.expect("the task runs");
        stop.send(()).ok();
    });
    // Nothing is left but what ends at once: then a wait for ever is a hang.
    assert_eq!(
        sim.try_block_on(std::future::pending::<()>()),
        Err(Stop::Stuck)
    );
    assert!(sim.now() < Duration::from_secs(1));
}

#[test]
fn a_hang_is_found() {
    let sim = Sim::from_seed(3);
    let (_kept, never) = oneshot::channel::<()>();
    assert_eq!(sim.try_block_on(never).map(drop), Err(Stop::Stuck));
}

#[test]
#[should_panic(expected = "a hang")]
fn block_on_panics_at_a_hang() {
    Sim::from_seed(3).block_on(std::future::pending::<()>());
}

#[test]
fn endless_polling_is_found() {
    let mut config = SimConfig::new(4);
    config.run_time_max = Duration::from_secs(10);
    let sim = Sim::new(config);
    let inner = sim.clone();
    let endless = async move {
        loop {
            inner.sleep(Duration::from_millis(10)).await;
        }
    };
    assert_eq!(sim.try_block_on::<()>(endless), Err(Stop::TooLong));
    assert!(sim.now() < Duration::from_secs(12));
}

#[test]
fn busy_tasks_do_not_stop_time() {
    let sim = Sim::from_seed(5);
    let busy = sim.clone();
    sim.spawn(async move {
        loop {
            busy.yield_now().await;
        }
    });
    let inner = sim.clone();
    sim.block_on(async move { inner.sleep(Duration::from_millis(1)).await });
}

#[test]
fn timers_fire_in_order_and_dropped_ones_do_not() {
    let sim = Sim::from_seed(6);
    let order = Rc::new(RefCell::new(Vec::new()));
    for ms in [30_u64, 10, 20] {
        let (inner, order) = (sim.clone(), Rc::clone(&order));
        sim.spawn(async move {
            inner.sleep(Duration::from_millis(ms)).await;
            order.borrow_mut().push(ms);
        });
    }
    let inner = sim.clone();
    sim.block_on(async move {
        drop(inner.sleep(Duration::from_secs(3600)));
        inner.sleep(Duration::from_millis(40)).await;
    });
    assert_eq!(*order.borrow(), [10, 20, 30]);
    assert!(sim.now() < Duration::from_millis(41));
}

#[test]
#[should_panic(expected = "deliberate")]
fn a_panic_of_a_task_reaches_the_test() {
    let sim = Sim::from_seed(7);
    let backend = process(&sim);
    backend.spawn(Box::pin(async { panic!("deliberate") }));
    sim.block_on(std::future::pending::<()>());
}

#[test]
fn a_caught_panic_ends_its_shard_alone() {
    let mut config = SimConfig::new(8);
    config.catch_panics = true;
    let sim = Sim::new(config);
    let sender = doubler(&sim.new_process());
    let (kept, lost) = oneshot::channel::<()>();
    sim.new_process()
        .spawn_shard(
            spec("doomed"),
            Box::new(move |_| {
                Box::pin(async move {
                    let _kept = kept;
                    panic!("deliberate");
                })
            }),
        )
        .expect("shards start");
    sim.block_on(async move {
        assert!(lost.await.is_err());
        let (reply, answer) = oneshot::channel();
        sender
            .send((4, reply))
            .await
            .expect("the other shard lives");
        assert_eq!(answer.await, Ok(8));
    });
    assert_eq!(sim.counters().panics_caught, 1);
}

#[test]
fn the_machine_lets_go_of_its_tasks() {
    let token = Rc::new(());
    let sim = Sim::from_seed(9);
    let (inner, held) = (sim.clone(), Rc::clone(&token));
    sim.spawn(async move {
        inner.sleep(Duration::from_secs(1)).await;
        drop(held);
    });
    drop(sim);
    assert_eq!(Rc::strong_count(&token), 1);
}

#[test]
fn dead_processes_start_no_shards() {
    let sim = Sim::from_seed(10);
    let factory = sim.new_process();
    sim.kill(factory.process());
    assert!(
        factory
            .spawn_shard(spec("late"), Box::new(|_| Box::pin(async {})))
            .is_err()
    );
    let pinned = ShardSpec {
        name: "pinned".to_owned(),
        core: Some(0),
    };
    assert!(
        sim.new_process()
            .spawn_shard(pinned, Box::new(|_| Box::pin(async {})))
            .is_err()
    );
}

/// Several tasks on several files with everything that chance decides, and two crashes.
fn workload(seed: u64) -> (u64, Vec<Vec<u8>>) {
    let mut config = SimConfig::new(seed);
    config.short_per_mille = 50;
    config.interrupted_per_mille = 50;
    let sim = Sim::new(config);
    sim.crash_at_op(60, CrashKind::Kill);
    for _ in 0..2 {
        let backend = process(&sim);
        let round = sim.random_u64();
        for task in 0..4_u8 {
            let backend = Rc::clone(&backend);
            sim.spawn(async move {
                let file = create(&backend, &format!("/{round}-{task}")).await;
                for i in 0..8 {
                    file.write_at(super::pattern(task, 2048), i * 2048)
                        .await
                        .0
                        .ok();
                    file.write_durable(super::pattern(task + 9, 512), i * 512)
                        .await
                        .0
                        .ok();
                    file.sync_data().await.ok();
                }
            });
        }
        let inner = sim.clone();
        let slept = sim.try_block_on(async move { inner.sleep(Duration::from_millis(50)).await });
        slept.ok();
        if !sim.is_alive(crate::sim::ProcessId(0)) {
            sim.power_loss();
        }
    }
    let files = sim.list_files();
    let content = files
        .iter()
        .map(|f| sim.read_file(f).expect("it is listed"))
        .collect();
    (sim.trace_hash(), content)
}

#[test]
fn the_seed_fixes_the_run() {
    let mut hashes = Vec::new();
    for seed in 0..20 {
        let first = workload(seed);
        assert_eq!(first, workload(seed), "seed {seed}");
        hashes.push(first.0);
    }
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), 20);
}
