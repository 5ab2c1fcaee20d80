//! Who may open a store whose shard has panicked.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use alluvium::backends::layer::{Layer, Layered};
use alluvium::io::IoBackend;
use alluvium::{Error, Store};
use alluvium_testkit::logs::{batch, close, fill, small};
use futures_util::StreamExt;

use crate::failure::quiet_panics;
use crate::faulty::hooked;
use crate::machine::{DIR, machine_with, try_open};

/// The shard that holds the store's lock dies; the others go on, and stay the only owners.
#[test]
fn the_lock_outlives_a_panic_of_the_shard_that_holds_it() {
    quiet_panics();
    // While it serves a request, and between two.
    for operation in ["spawn", "yield_now"] {
        the_holder_panics(operation);
    }
}

fn the_holder_panics(operation: &'static str) {
    let sim = machine_with(5, |c| c.catch_panics = true);
    sim.block_on(async {
        let armed = Arc::new(AtomicBool::new(false));
        let is_armed = Arc::clone(&armed);
        let hook = move |name: &'static str, _: &Path| {
            assert!(name != operation || !is_armed.swap(false, Ordering::SeqCst));
        };
        let factory = hooked(sim.new_process(), hook);
        let builder = Store::builder(DIR).configure(small);
        let builder = builder.configure(|c| c.shards = alluvium::Shards::Count(2));
        let (store, _) = builder.backend(factory).open().await.unwrap();
        let mut logs = Vec::new();
        for id in 0..8 {
            let p = store.create_partition(id).await.unwrap();
            fill(&p, 10, 1).await;
            logs.push(p);
        }
        sim.sleep(Duration::from_millis(200)).await;
        // The first partition is on the first shard.
        armed.store(true, Ordering::SeqCst);
        let dead = logs[0].offset_for_timestamp(0).await.unwrap_err();
        assert_eq!(dead, Error::ShardDead { shard: 0 });
        let mut alive = 0;
        for p in &logs {
            match p.append(batch(10, 1)).await {
                Ok(_) => alive += 1,
                Err(e) => assert_eq!(e, Error::ShardDead { shard: 0 }),
            }
        }
        assert!((1..8).contains(&alive), "{alive} partitions go on");
        let e = try_open(&sim, |_| {}).await.unwrap_err();
        assert!(matches!(e, Error::AlreadyOpen { .. }), "{e}");
        let mut ended = logs[0].subscribe(10);
        let ended = ended.next().await.unwrap().unwrap_err();
        assert_eq!(ended, Error::ShardDead { shard: 0 });
    });
}

/// A shard panics when it is armed; calls on names may go on behind the first one that ends.
#[derive(Clone, Default)]
struct CallsGoOn {
    armed: Arc<AtomicBool>,
    go_on: Arc<AtomicBool>,
}

impl Layer for CallsGoOn {
    fn before(&self, operation: &'static str, _: &Path) {
        let panics = operation == "spawn" && self.armed.swap(false, Ordering::SeqCst);
        assert!(!panics, "planted panic at {operation}");
    }

    fn finish_calls<B: IoBackend>(&self, backend: &B) -> bool {
        backend.finish_calls() && !self.go_on.swap(false, Ordering::SeqCst)
    }
}

/// A removal that is still to come must not meet a store that somebody else has opened: not behind
/// the shard that holds the lock, not behind another one.
#[test]
fn the_lock_outlives_a_shard_whose_calls_go_on() {
    quiet_panics();
    for shards in [1, 2] {
        for go_on in [false, true] {
            a_shard_panics(shards, go_on);
        }
    }
}

/// The last of so many shards panics.
fn a_shard_panics(shards: usize, go_on: bool) {
    let sim = machine_with(6, |c| c.catch_panics = true);
    sim.block_on(async {
        let layer = CallsGoOn {
            go_on: Arc::new(go_on.into()),
            ..CallsGoOn::default()
        };
        let armed = Arc::clone(&layer.armed);
        let builder = Store::builder(DIR).configure(small);
        let builder = builder.configure(|c| c.shards = alluvium::Shards::Count(shards));
        let backend = Layered::new(sim.new_process(), layer);
        let (store, _) = builder.backend(backend).open().await.unwrap();
        let mut logs = Vec::new();
        for id in 0..8 {
            let p = store.create_partition(id).await.unwrap();
            fill(&p, 10, 1).await;
            logs.push(p);
        }
        sim.sleep(Duration::from_millis(200)).await;
        armed.store(true, Ordering::SeqCst);
        // The second partition is on the last shard.
        let dead = logs[1].offset_for_timestamp(0).await.unwrap_err();
        assert_eq!(dead, Error::ShardDead { shard: shards - 1 });
        drop(logs);
        close(&store).await;
        match try_open(&sim, |_| {}).await {
            Ok((store, _)) => {
                assert!(!go_on, "{shards} shards: it is opened while a call goes on");
                close(&store).await;
            }
            Err(e) => {
                assert!(go_on, "{shards} shards, nothing goes on: {e}");
                assert!(matches!(e, Error::AlreadyOpen { .. }), "{e}");
            }
        }
    });
}
