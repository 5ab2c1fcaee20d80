//! Wakes from other threads under stress: none may be lost, at whatever point of falling asleep
//! it comes. A lost wake shows as a hang.
//!
//! `WAKES` sets the number of round trips: `WAKES=10000000 cargo test --test conformance wakes`.

use std::path::Path;
use std::rc::Rc;
use std::sync::mpsc as std_mpsc;
use std::thread;
use std::time::Duration;

use alluvium_core::io::{
    AlignedBuf, BackendFactory, IoBackend, IoFile, LocalFuture, OpenOptions, ShardSpec,
};
use tokio::sync::{mpsc, oneshot};

const THREADS: u64 = 4;
const WAKES_DEFAULT: u64 = 200_000;
/// Without any progress for this long, something is lost.
const STUCK: Duration = Duration::from_secs(30);

type Question = (u64, oneshot::Sender<u64>);

/// Asks one question after the other, at changing distances.
fn ask(count: u64, seed: u64, questions: &mpsc::Sender<Question>, progress: &std_mpsc::Sender<()>) {
    let mut dice = seed;
    for i in 0..count {
        let (reply, replied) = oneshot::channel();
        questions.blocking_send((i, reply)).unwrap();
        assert_eq!(replied.blocking_recv(), Ok(i + 1));
        dice = dice.wrapping_mul(0x5851_F42D_4C95_7F2D).wrapping_add(1);
        // From at once to longer than a shard spins, so that some find it asleep, some awake,
        // and some in between.
        let pause = if dice >> 63 == 0 {
            0
        } else {
            (dice >> 40) % 4000
        };
        for _ in 0..pause {
            std::hint::spin_loop();
        }
        if i % 1000 == 0 {
            progress.send(()).unwrap();
        }
    }
}

async fn answer(mut questions: mpsc::Receiver<Question>) {
    while let Some((i, reply)) = questions.recv().await {
        reply.send(i + 1).unwrap();
    }
}

/// Keeps the loop busy with something else that ends its sleeps: disk and timers.
async fn disturb<B: IoBackend>(backend: Rc<B>, path: std::path::PathBuf) {
    let file = backend.open(&path, OpenOptions::CREATE_NEW).await.unwrap();
    for i in 0_u64.. {
        let mut buf = AlignedBuf::with_capacity(4096);
        buf.resize(4096);
        file.write_at(buf.freeze(), 0).await.0.unwrap();
        backend.sleep(Duration::from_micros(i % 300)).await;
    }
}

fn stress<F: BackendFactory>(factory: &F, dir: &Path) {
    let wakes = std::env::var("WAKES").map_or(WAKES_DEFAULT, |n| n.parse().unwrap());
    let (progress, progressed) = std_mpsc::channel();
    let mut askers = vec![];
    let mut receivers = vec![];
    for seed in 0..THREADS {
        let (sender, receiver) = mpsc::channel(4);
        receivers.push(receiver);
        let progress = progress.clone();
        askers.push(thread::spawn(move || {
            ask(wakes / THREADS, seed, &sender, &progress);
        }));
    }
    drop(progress);
    let path = dir.join("disturbed");
    let spec = ShardSpec {
        name: "wakes".to_owned(),
        core: None,
    };
    let main = move |backend: Rc<F::Backend>| -> LocalFuture<()> {
        Box::pin(async move {
            backend.spawn(Box::pin(disturb(Rc::clone(&backend), path)));
            let (ended, mut all_ended) = mpsc::channel::<()>(1);
            for receiver in receivers {
                let ended = ended.clone();
                backend.spawn(Box::pin(async move {
                    answer(receiver).await;
                    drop(ended);
                }));
            }
            drop(ended);
            assert_eq!(all_ended.recv().await, None);
        })
    };
    factory.spawn_shard(spec, Box::new(main)).unwrap();
    loop {
        match progressed.recv_timeout(STUCK) {
            Ok(()) => {}
            Err(std_mpsc::RecvTimeoutError::Disconnected) => break,
            Err(std_mpsc::RecvTimeoutError::Timeout) => panic!("a wake was lost"),
        }
    }
    for asker in askers {
        asker.join().unwrap();
    }
}

fn on_disk(factory: &impl BackendFactory) {
    let _alone = alluvium_testkit::alone();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    stress(factory, dir.path());
}

#[cfg(feature = "uring")]
#[test]
fn on_uring() {
    on_disk(&alluvium_backends::uring::UringFactory::new());
}

#[cfg(feature = "uring")]
#[test]
fn on_uring_without_spinning() {
    let factory = alluvium_backends::uring::UringFactory::new();
    on_disk(&factory.spin(Duration::ZERO));
}

#[cfg(feature = "compio")]
#[test]
fn on_compio() {
    on_disk(&alluvium_backends::compio::CompioFactory::new());
}
