//! Starting and ending shards.

use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use alluvium_core::io::{
    BackendFactory, BufPool, IoBackend, IoFile, LocalFuture, OpenMode, OpenOptions, ShardSpec,
};

use tokio::sync::oneshot;

use super::{CHECK_TIMEOUT, Suite, pattern};

pub(super) fn all<F: BackendFactory>(suite: &mut Suite<'_, F>) {
    suite.check_outside("the_thread_is_named", the_thread_is_named);
    suite.check_outside("cores_are_the_schedulers", cores_are_the_schedulers);
    suite.check_outside("a_shard_is_pinned", a_shard_is_pinned);
    suite.check_outside(
        "threads_beside_a_shard_use_all_cores",
        threads_beside_a_shard_use_all_cores,
    );
    suite.check_outside("a_wrong_core_is_named", a_wrong_core_is_named);
    suite.check_outside("a_name_with_nul_is_an_error", a_name_with_nul_is_an_error);
    suite.check_outside(
        "a_panic_in_main_drops_everything",
        a_panic_in_main_drops_everything,
    );
    suite.check_outside("a_panic_before_the_future", a_panic_before_the_future);
    suite.check_outside("the_end_of_main_drops_tasks", the_end_of_main_drops_tasks);
    let left = suite.allowances.descriptors_left_per_shard;
    suite.check_outside("many_shards_start_and_end", |factory| {
        many_shards_start_and_end(factory, left)
    });
    let path = suite.dir.join("kept");
    suite.check_outside("nothing_begins_behind_the_end_of_a_shard", |factory| {
        nothing_begins_behind_the_end_of_a_shard(factory, &path)
    });
    let (path, direct) = (suite.dir.join("end-of-shard"), suite.direct);
    suite.check_outside("memory_outlives_operations", |factory| {
        memory_outlives_operations(factory, &path, direct)
    });
}

fn spec(name: &str) -> ShardSpec {
    ShardSpec {
        name: name.to_owned(),
        core: None,
    }
}

/// Runs `body` on a shard's thread and returns what it returned.
fn on_shard<F: BackendFactory, T: Send + 'static>(
    factory: &F,
    spec: ShardSpec,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    with_shard(factory, spec, async move |_| body())
}

fn with_shard<F: BackendFactory, T: Send + 'static>(
    factory: &F,
    spec: ShardSpec,
    body: impl AsyncFnOnce(Rc<F::Backend>) -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    let main = move |backend: Rc<F::Backend>| -> LocalFuture<()> {
        Box::pin(async move { sender.send(body(backend).await).unwrap() })
    };
    factory
        .spawn_shard(spec, Box::new(main))
        .map_err(|e| e.to_string())?;
    receiver
        .recv_timeout(CHECK_TIMEOUT)
        .map_err(|e| e.to_string())
}

fn expect(condition: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what()) }
}

fn the_thread_is_named<F: BackendFactory>(factory: &F) -> Result<(), String> {
    let comm = || std::fs::read_to_string("/proc/thread-self/comm").unwrap();
    let name = on_shard(factory, spec("shard-name-7"), comm)?;
    expect(name.trim() == "shard-name-7", || {
        format!("the thread is called {name:?}")
    })
}

/// The mask of the calling thread as the kernel prints it: `0-3,6`.
fn mask() -> String {
    mask_in(Path::new("/proc/thread-self")).unwrap()
}

/// The same of any thread; `None` when it has ended.
fn mask_in(thread: &Path) -> Option<String> {
    let status = std::fs::read_to_string(thread.join("status")).ok()?;
    let line = status
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list:"))?;
    Some(line.split_whitespace().nth(1)?.to_owned())
}

/// The masks of the threads that belong to a shard, which are named after it.
fn masks_beside(shard: &str) -> Vec<String> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let beside = threads.map(|thread| thread.path()).filter(|thread| {
        // It may have ended.
        let name = std::fs::read_to_string(thread.join("comm")).unwrap_or_default();
        name.strip_prefix(shard)
            .is_some_and(|rest| rest.starts_with('-'))
    });
    beside.filter_map(|thread| mask_in(&thread)).collect()
}

fn parse(mask: &str) -> Vec<usize> {
    let mut cores = Vec::new();
    for range in mask.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cores.extend(first.parse::<usize>().unwrap()..=last.parse().unwrap());
    }
    cores
}

fn cores_are_the_schedulers<F: BackendFactory>(factory: &F) -> Result<(), String> {
    let cores = factory.allowed_cores();
    if cores.is_empty() {
        return Ok(());
    }
    expect(cores == parse(&mask()), || {
        format!("{cores:?} instead of {}", mask())
    })?;
    // Unpinned shards may use all of them.
    let there = on_shard(factory, spec("unpinned"), mask)?;
    expect(parse(&there) == cores, || {
        format!("an unpinned shard may use {there}")
    })
}

fn a_shard_is_pinned<F: BackendFactory>(factory: &F) -> Result<(), String> {
    for core in factory.allowed_cores() {
        let spec = ShardSpec {
            name: "pinned".to_owned(),
            core: Some(core),
        };
        let there = on_shard(factory, spec, mask)?;
        expect(parse(&there) == [core], || {
            format!("asked for {core}, got {there}")
        })?;
    }
    Ok(())
}

/// What waits in a shard's place is to wait elsewhere: its core is the shard's.
fn threads_beside_a_shard_use_all_cores<F: BackendFactory>(factory: &F) -> Result<(), String> {
    let cores = factory.allowed_cores();
    for core in cores.iter().copied() {
        let name = format!("beside{core}");
        let spec = ShardSpec {
            name: name.clone(),
            core: Some(core),
        };
        let look = async move |backend: Rc<F::Backend>| {
            // A thread gives itself its name: one that has made a call has it.
            let root = backend.kind(Path::new("/")).await;
            root.map(|_| masks_beside(&name)).map_err(|e| e.to_string())
        };
        let beside = with_shard(factory, spec, look)??;
        expect(!beside.is_empty(), || {
            format!("a shard on core {core} makes calls on names itself")
        })?;
        expect(beside.iter().all(|mask| parse(mask) == cores), || {
            format!("beside a shard on core {core} threads may use {beside:?}")
        })?;
    }
    Ok(())
}

/// Others may have opened the store by then.
fn nothing_begins_behind_the_end_of_a_shard<F: BackendFactory>(
    factory: &F,
    path: &Path,
) -> Result<(), String> {
    std::fs::write(path, b"kept").map_err(|e| e.to_string())?;
    let (results, heard) = mpsc::channel();
    let removed = path.to_path_buf();
    let main = async move |backend: Rc<F::Backend>| {
        let (go, gone) = oneshot::channel::<()>();
        let remover = Rc::clone(&backend);
        backend.spawn(Box::pin(async move {
            gone.await.unwrap();
            results.send(remover.remove_file(&removed).await).unwrap();
        }));
        backend.yield_now().await;
        // From here on both are ready to go on: this task is at its end already.
        go.send(()).unwrap();
        backend.finish_calls()
    };
    let finished = with_shard(factory, spec("ends-first"), main)?;
    expect(finished, || "nothing is under way".to_owned())?;
    let result = heard.recv_timeout(CHECK_TIMEOUT);
    expect(!matches!(result, Ok(Ok(()))), || {
        "a file is removed behind the end of the shard".to_owned()
    })?;
    let deadline = Instant::now() + CHECK_TIMEOUT;
    while !masks_beside("ends-first").is_empty() && Instant::now() < deadline {
        std::thread::yield_now();
    }
    expect(path.exists(), || {
        "a file was removed behind the end of the shard".to_owned()
    })?;
    std::fs::remove_file(path).map_err(|e| e.to_string())
}

fn a_wrong_core_is_named<F: BackendFactory>(factory: &F) -> Result<(), String> {
    if factory.allowed_cores().is_empty() {
        return Ok(());
    }
    for core in [1023, 1_000_003] {
        let spec = ShardSpec {
            name: "wrong".to_owned(),
            core: Some(core),
        };
        match on_shard(factory, spec, || ()) {
            Ok(()) => return Err(format!("a shard runs on core {core}")),
            Err(e) => expect(e.contains(&core.to_string()), || format!("no core in: {e}"))?,
        }
    }
    Ok(())
}

fn a_name_with_nul_is_an_error<F: BackendFactory>(factory: &F) -> Result<(), String> {
    let result = on_shard(factory, spec("nul\0"), || ());
    expect(result.is_err(), || {
        "a thread has a NUL in its name".to_owned()
    })
}

/// Waits until the sender is dropped, which must happen without a message.
fn dropped(receiver: &mpsc::Receiver<()>) -> Result<(), String> {
    match receiver.recv_timeout(CHECK_TIMEOUT) {
        Err(RecvTimeoutError::Disconnected) => Ok(()),
        Err(RecvTimeoutError::Timeout) => Err("something captured is never dropped".to_owned()),
        Ok(()) => Err("what should have ended went on".to_owned()),
    }
}

fn a_panic_in_main_drops_everything<F: BackendFactory>(factory: &F) -> Result<(), String> {
    let (sender, receiver) = mpsc::channel::<()>();
    let in_task = sender.clone();
    let main = move |backend: Rc<F::Backend>| -> LocalFuture<()> {
        Box::pin(async move {
            let sleeper = Rc::clone(&backend);
            backend.spawn(Box::pin(async move {
                sleeper.sleep(Duration::from_secs(3600)).await;
                in_task.send(()).unwrap();
            }));
            backend.yield_now().await;
            let _held = sender;
            panic!("on purpose: main of the conformance suite");
        })
    };
    factory
        .spawn_shard(spec("panics"), Box::new(main))
        .map_err(|e| e.to_string())?;
    dropped(&receiver)
}

fn a_panic_before_the_future<F: BackendFactory>(factory: &F) -> Result<(), String> {
    let (sender, receiver) = mpsc::channel::<()>();
    let main = move |_: Rc<F::Backend>| -> LocalFuture<()> {
        let _held = sender;
        panic!("on purpose: main of the conformance suite, at once");
    };
    factory
        .spawn_shard(spec("panics"), Box::new(main))
        .map_err(|e| e.to_string())?;
    dropped(&receiver)
}

fn the_end_of_main_drops_tasks<F: BackendFactory>(factory: &F) -> Result<(), String> {
    let (sender, receiver) = mpsc::channel::<()>();
    let main = move |backend: Rc<F::Backend>| -> LocalFuture<()> {
        Box::pin(async move {
            for i in 0..10 {
                let (sender, inner) = (sender.clone(), Rc::clone(&backend));
                backend.spawn(Box::pin(async move {
                    // Destructors may come back to the backend.
                    let _guard = SpawnOnDrop(Rc::clone(&inner), sender.clone());
                    if i % 2 == 0 {
                        std::future::pending::<()>().await;
                    }
                    inner.sleep(Duration::from_secs(3600)).await;
                    sender.send(()).unwrap();
                }));
            }
            backend.yield_now().await;
        })
    };
    factory
        .spawn_shard(spec("ends"), Box::new(main))
        .map_err(|e| e.to_string())?;
    dropped(&receiver)
}

/// Spawns from a destructor, once.
struct SpawnOnDrop<B: IoBackend>(Rc<B>, mpsc::Sender<()>);

impl<B: IoBackend> Drop for SpawnOnDrop<B> {
    fn drop(&mut self) {
        let sender = self.1.clone();
        self.0.spawn(Box::pin(async move {
            let _held = sender;
            std::future::pending::<()>().await;
        }));
    }
}

fn many_shards_start_and_end<F: BackendFactory>(
    factory: &F,
    left_per_shard: usize,
) -> Result<(), String> {
    const SHARDS: usize = 20;
    let before = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (sender, receiver) = mpsc::channel::<()>();
    for i in 0..SHARDS {
        let sender = sender.clone();
        let main = move |backend: Rc<F::Backend>| -> LocalFuture<()> {
            Box::pin(async move {
                backend.sleep(Duration::from_millis(5)).await;
                drop(sender);
            })
        };
        factory
            .spawn_shard(spec(&format!("many-{i}")), Box::new(main))
            .map_err(|e| e.to_string())?;
    }
    drop(sender);
    dropped(&receiver)?;
    // The rings and event descriptors of ended shards are gone; earlier checks may give back more.
    for _ in 0..200 {
        if std::fs::read_dir("/proc/self/fd").unwrap().count() <= before + SHARDS * left_per_shard {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Err("descriptors of ended shards stay open".to_owned())
}

/// Ends shards while the kernel reads into their buffers, then takes the memory that came free
/// and looks whether anything still writes to it.
fn memory_outlives_operations<F: BackendFactory>(
    factory: &F,
    path: &Path,
    direct: bool,
) -> Result<(), String> {
    const SIZE: usize = 1 << 20;
    const READS: usize = 24;
    for round in 0..10 {
        let pool = BufPool::new(READS * SIZE);
        let (sender, receiver) = mpsc::channel::<()>();
        let (path, taken_from) = (path.to_owned(), pool.clone());
        let main = move |backend: Rc<F::Backend>| -> LocalFuture<()> {
            Box::pin(async move {
                let mode = if round == 0 {
                    OpenMode::CreateNew
                } else {
                    OpenMode::ReadWrite
                };
                let file = backend
                    .open(&path, OpenOptions { mode, direct })
                    .await
                    .unwrap();
                let file = Rc::new(file);
                file.write_at(pattern(1, SIZE), 0).await.0.unwrap();
                for _ in 0..READS {
                    let (file, pool) = (Rc::clone(&file), taken_from.clone());
                    backend.spawn(Box::pin(async move {
                        file.read_at(pool.take(SIZE), 0, SIZE).await.0.unwrap();
                    }));
                }
                backend.yield_now().await;
                drop(sender);
            })
        };
        factory
            .spawn_shard(spec("ends"), Box::new(main))
            .map_err(|e| e.to_string())?;
        dropped(&receiver)?;
        let mut guards = Vec::new();
        let started = Instant::now();
        // One buffer must come back however busy the machine is; more if they come soon.
        let enough = |guards: &Vec<_>, time| {
            time > CHECK_TIMEOUT || (time > Duration::from_millis(100) && !guards.is_empty())
        };
        while guards.len() < READS && !enough(&guards, started.elapsed()) {
            if pool.idle_bytes() == 0 {
                std::thread::yield_now();
                continue;
            }
            let mut guard = pool.take(SIZE);
            guard.resize(SIZE);
            guard.fill(0x5A);
            guards.push(guard);
        }
        std::thread::sleep(Duration::from_millis(10));
        let clean = guards
            .iter()
            .all(|guard| guard.iter().all(|&byte| byte == 0x5A));
        expect(clean, || {
            "the kernel wrote to memory that was given back".to_owned()
        })?;
        expect(!guards.is_empty(), || "no buffer ever came back".to_owned())?;
    }
    Ok(())
}
