//! What survives: kills, losses of power, zombies, directories.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use alluvium_core::io::{BackendFactory, IoBackend, IoFile, LockKind, ShardMain, ShardSpec};
use tokio::sync::mpsc;

use super::{count, create, open, process, read, sectors, write, write_durable};
use crate::sim::{CrashKind, Moment, Sim, SimBackend, SimConfig, SimFactory, Stop};

const SEEDS: u64 = 300;

/// A recycled file full of ones, then `change`, then loss of power; what is left per sector.
fn lose(seed: u64, change: impl AsyncFnOnce(&super::SimFile)) -> Vec<u8> {
    let sim = Sim::from_seed(seed);
    sim.write_file("/f", &[1; 4096]).expect("it can be planted");
    let backend = process(&sim);
    sim.block_on(async {
        let file = open(&backend, "/f").await;
        change(&file).await;
    });
    sim.power_loss();
    sectors(&sim.read_file("/f").expect("its name is durable"))
}

#[test]
fn unsynced_writes_are_lost_or_kept_or_torn() {
    let (mut lost, mut kept, mut torn) = (0, 0, 0);
    for seed in 0..SEEDS {
        let left = lose(seed, async |file| write(file, 0, 2, 4096).await);
        assert_eq!(left.len(), 8);
        match count(&left, 2) {
            0 => lost += 1,
            8 => kept += 1,
            _ => torn += 1,
        }
        assert!(left.iter().all(|b| matches!(b, 1 | 2)));
    }
    assert!(lost > 20 && kept > 20 && torn > 20, "{lost} {kept} {torn}");
}

#[test]
fn a_sector_may_be_at_any_version() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let left = lose(seed, async |file| {
            write(file, 0, 2, 1024).await;
            write(file, 512, 3, 1024).await;
            write(file, 0, 4, 1024).await;
        });
        seen.extend(left.iter().copied().enumerate());
    }
    let first: Vec<u8> = seen
        .iter()
        .filter(|(at, _)| *at == 0)
        .map(|(_, b)| *b)
        .collect();
    let second: Vec<u8> = seen
        .iter()
        .filter(|(at, _)| *at == 1)
        .map(|(_, b)| *b)
        .collect();
    let third: Vec<u8> = seen
        .iter()
        .filter(|(at, _)| *at == 2)
        .map(|(_, b)| *b)
        .collect();
    assert_eq!(first, [1, 2, 4]);
    assert_eq!(second, [1, 2, 3, 4]);
    assert_eq!(third, [1, 3]);
}

#[test]
fn what_is_durable_is_never_lost() {
    for seed in 0..SEEDS {
        let left = lose(seed, async |file| {
            write(file, 0, 2, 2048).await;
            file.sync_data().await.expect("it syncs");
            write(file, 1024, 3, 2048).await;
            write_durable(file, 512, 4, 512).await;
            write_durable(file, 2048, 5, 512).await;
        });
        assert_eq!(left[..2], [2, 4], "seed {seed}");
        assert!(left[2..4].iter().all(|b| matches!(b, 2 | 3)), "seed {seed}");
        assert_eq!(left[4], 5, "seed {seed}");
        assert!(matches!(left[5], 1 | 3), "seed {seed}");
        assert_eq!(left[6..], [1, 1], "seed {seed}");
    }
}

#[test]
fn an_unaligned_durable_write_covers_its_own_bytes_only() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let sim = Sim::from_seed(seed);
        sim.write_file("/f", &[1; 512]).expect("it can be planted");
        let backend = process(&sim);
        sim.block_on(async {
            let file = open(&backend, "/f").await;
            write(&file, 0, 2, 300).await;
            write_durable(&file, 100, 3, 100).await;
        });
        sim.power_loss();
        let left = sim.read_file("/f").expect("its name is durable");
        assert!(left[100..200].iter().all(|b| *b == 3));
        lost += u32::from(left[..100].iter().all(|b| *b == 1));
        assert!(left[300..].iter().all(|b| *b == 1));
    }
    assert!(lost > 20);
}

#[test]
fn a_sync_covers_only_what_completed_before_it() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let left = lose(seed, async |file| {
            // Both begin together; the write is not covered, even when it completes first.
            let sync = file.sync_data();
            let writing = write(file, 0, 2, 512);
            let (mut sync, mut writing) = (sync, std::pin::pin!(writing));
            let mut synced = false;
            let mut written = false;
            std::future::poll_fn(|context| {
                synced = synced || sync.as_mut().poll(context).is_ready();
                written = written || writing.as_mut().poll(context).is_ready();
                if synced && written {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
        });
        lost += u32::from(left[0] == 1);
    }
    assert!(lost > 20, "{lost}");
}

#[test]
fn a_new_file_may_have_any_length_until_it_is_synced() {
    let mut lengths = BTreeSet::new();
    for seed in 0..SEEDS {
        for synced in [false, true] {
            let sim = Sim::from_seed(seed);
            let backend = process(&sim);
            sim.block_on(async {
                let file = create(&backend, "/f").await;
                backend.sync_dir(Path::new("/")).await.expect("it syncs");
                write(&file, 0, 1, 512).await;
                file.allocate(8192).await.expect("there is room");
                if synced {
                    file.sync_data().await.expect("it syncs");
                }
            });
            sim.power_loss();
            let len = sim.read_file("/f").expect("its name is durable").len();
            if synced {
                assert_eq!(len, 8192);
            } else {
                lengths.insert(len);
            }
        }
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 512, 8192]);
}

#[test]
fn a_durable_write_brings_the_length_it_needs() {
    for seed in 0..SEEDS {
        let sim = Sim::from_seed(seed);
        let backend = process(&sim);
        sim.block_on(async {
            let file = create(&backend, "/f").await;
            backend.sync_dir(Path::new("/")).await.expect("it syncs");
            file.set_len(8192).await.expect("there is room");
            write_durable(&file, 1024, 7, 512).await;
        });
        sim.power_loss();
        let left = sim.read_file("/f").expect("its name is durable");
        assert!(left.len() == 1536 || left.len() == 8192);
        assert!(left[1024..1536].iter().all(|b| *b == 7));
    }
}

#[test]
fn cut_bytes_may_come_back_until_the_cut_is_synced() {
    let mut back = 0;
    for seed in 0..SEEDS {
        let left = lose(seed, async |file| {
            file.set_len(1024).await.expect("it can be cut");
        });
        back += u32::from(left.len() == 8);
        let left = lose(seed, async |file| {
            file.set_len(1024).await.expect("it can be cut");
            file.sync_data().await.expect("it syncs");
        });
        assert_eq!(left, [1, 1]);
    }
    assert!(back > 20);
}

#[test]
fn a_prefix_of_the_directory_changes_survives() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let sim = Sim::from_seed(seed);
        sim.write_file("/d/old", b"old").expect("it can be planted");
        let backend = process(&sim);
        sim.block_on(async {
            let dir = Path::new("/d");
            create(&backend, "/d/durable").await;
            backend.sync_dir(dir).await.expect("it syncs");
            create(&backend, "/d/a").await;
            backend
                .rename(Path::new("/d/a"), Path::new("/d/b"))
                .await
                .expect("it renames");
            backend
                .remove_file(Path::new("/d/old"))
                .await
                .expect("it is there");
        });
        sim.power_loss();
        let names: Vec<String> = sim
            .list_files()
            .iter()
            .filter_map(|p| Some(p.file_name()?.to_str()?.to_owned()))
            .collect();
        seen.insert(names);
    }
    let seen: Vec<String> = seen.iter().map(|names| names.join(" ")).collect();
    assert_eq!(
        seen,
        ["a durable old", "b durable", "b durable old", "durable old"]
    );
}

#[test]
fn a_rename_between_directories_never_loses_the_file_while_unsynced() {
    let mut seen = BTreeSet::new();
    for seed in 0..SEEDS {
        let sim = Sim::from_seed(seed);
        sim.write_file("/a/f", b"f").expect("it can be planted");
        sim.create_dir_all("/b").expect("it can be planted");
        let backend = process(&sim);
        sim.block_on(async {
            backend
                .rename(Path::new("/a/f"), Path::new("/b/f"))
                .await
                .expect("it renames");
        });
        sim.power_loss();
        seen.insert(sim.list_files());
    }
    let expected: BTreeSet<_> = [vec!["/a/f".into()], vec!["/b/f".into()]].into();
    assert_eq!(seen, expected);
}

#[test]
fn a_removed_file_comes_back_with_its_content_or_not_at_all() {
    let (mut back, mut gone) = (0, 0);
    for seed in 0..SEEDS {
        let sim = Sim::from_seed(seed);
        sim.write_file("/d/f", &[9; 5000])
            .expect("it can be planted");
        let backend = process(&sim);
        let remove = async {
            backend
                .remove_file(Path::new("/d/f"))
                .await
                .expect("it is there");
            backend
                .remove_dir(Path::new("/d"))
                .await
                .expect("it is empty");
        };
        sim.block_on(remove);
        sim.power_loss();
        match sim.read_file("/d/f") {
            Ok(content) => {
                assert_eq!(content, [9; 5000]);
                back += 1;
            }
            Err(_) => gone += 1,
        }
    }
    assert!(back > 20 && gone > 20);
}

#[test]
fn zombies_land_after_the_kill_and_the_lock_fences_them() {
    let (mut whole, mut part, mut late) = (0, 0, 0);
    for seed in 0..SEEDS {
        let sim = Sim::from_seed(seed);
        sim.write_file("/f", &[1; 4096]).expect("it can be planted");
        sim.write_file("/lock", b"").expect("it can be planted");
        let factory = sim.new_process();
        let victim = sim.backend(factory.process());
        let inner = sim.clone();
        sim.block_on(async move {
            let lock = open(&victim, "/lock").await;
            assert!(lock.try_lock(LockKind::Exclusive).expect("it can be asked"));
            let file = open(&victim, "/f").await;
            assert!(file.try_lock(LockKind::Exclusive).expect("it can be asked"));
            let mut writing = std::pin::pin!(write_durable(&file, 0, 2, 4096));
            // Hands the write to the kernel and goes no further.
            std::future::poll_fn(|context| {
                assert!(writing.as_mut().poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            inner.kill(factory.process());
        });
        assert_eq!(sim.in_flight(), 1);
        let heir = process(&sim);
        sim.block_on(async {
            let lock = open(&heir, "/lock").await;
            assert!(lock.try_lock(LockKind::Exclusive).expect("it can be asked"));
            let file = open(&heir, "/f").await;
            while !file.try_lock(LockKind::Exclusive).expect("it can be asked") {
                late += 1;
                heir.sleep(Duration::from_millis(10)).await;
            }
            let fenced = read(&file, 0, 4096).await;
            heir.sleep(Duration::from_secs(2)).await;
            assert_eq!(
                read(&file, 0, 4096).await,
                fenced,
                "nothing lands behind the fence"
            );
            match count(&fenced, 2) {
                4096 => whole += 1,
                0 => {}
                _ => part += 1,
            }
        });
        assert_eq!(sim.open_descriptors(), 0);
    }
    assert!(
        whole > 20 && part > 20 && late > 100,
        "{whole} {part} {late}"
    );
}

#[test]
fn completed_writes_survive_a_kill() {
    for seed in 0..20 {
        let sim = Sim::from_seed(seed);
        let factory = sim.new_process();
        let backend = sim.backend(factory.process());
        sim.block_on(async move {
            let file = create(&backend, "/f").await;
            write(&file, 0, 3, 4096).await;
        });
        sim.kill(factory.process());
        assert_eq!(sim.read_file("/f").expect("it was created"), [3; 4096]);
    }
}

/// Writes one durable block after another and keeps what was acknowledged.
fn crash_at(seed: u64, n: u64, kind: CrashKind) {
    let sim = Sim::from_seed(seed);
    sim.write_file("/f", &[0; 16384])
        .expect("it can be planted");
    let acknowledged = Rc::new(RefCell::new(0_u64));
    let factory = sim.new_process();
    let backend = sim.backend(factory.process());
    let acked = Rc::clone(&acknowledged);
    sim.crash_at_op(n, kind);
    let stopped = sim.try_block_on(async move {
        let file = open(&backend, "/f").await;
        for i in 0..16 {
            write_durable(&file, i * 1024, 1, 1024).await;
            *acked.borrow_mut() += 1;
        }
    });
    assert_eq!(stopped, Err(Stop::Crashed));
    assert!(!sim.is_alive(factory.process()));
    assert_eq!(*acknowledged.borrow(), n - 1);
    if kind == CrashKind::Kill {
        sim.power_loss();
    }
    let left = sim.read_file("/f").expect("its name is durable");
    let durable = crate::sim::file::to_usize(*acknowledged.borrow() * 1024);
    assert!(left[..durable].iter().all(|b| *b == 1));
    assert!(left[durable + 1024..].iter().all(|b| *b == 0));
    // The machine goes on.
    let backend = process(&sim);
    sim.block_on(async {
        let file = open(&backend, "/f").await;
        write_durable(&file, 0, 5, 512).await;
    });
}

#[test]
fn a_scripted_crash_stops_the_run_and_keeps_what_was_acknowledged() {
    for seed in 0..50 {
        for n in 1..=16 {
            crash_at(seed, n, CrashKind::PowerLoss);
            crash_at(seed, n, CrashKind::Kill);
        }
    }
}

#[test]
fn a_lying_flush_loses_data() {
    let mut lost = 0;
    for seed in 0..SEEDS {
        let mut config = SimConfig::new(seed);
        config.lying_flush = true;
        let sim = Sim::new(config);
        sim.write_file("/f", &[1; 1024]).expect("it can be planted");
        let backend = process(&sim);
        sim.block_on(async {
            let file = open(&backend, "/f").await;
            write_durable(&file, 0, 2, 512).await;
            write(&file, 512, 2, 512).await;
            file.sync_data().await.expect("so it says");
        });
        sim.power_loss();
        let left = sectors(&sim.read_file("/f").expect("it was planted"));
        lost += u32::from(left != [2, 2]);
    }
    assert!(lost > 50);
}

/// A shard that writes blocks durably, one task each, and tells the test of every one.
fn shard_writes(sim: &Sim, factory: &SimFactory, acked: &Rc<RefCell<BTreeSet<u64>>>) {
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let main: ShardMain<SimBackend> = Box::new(move |backend| {
        Box::pin(async move {
            let file = Rc::new(open(&backend, "/f").await);
            while !file.try_lock(LockKind::Exclusive).expect("it can be asked") {
                backend.sleep(Duration::from_millis(1)).await;
            }
            let (done, mut all) = mpsc::channel::<()>(1);
            for block in 0..8 {
                let (file, sender, done) = (Rc::clone(&file), sender.clone(), done.clone());
                backend.spawn(Box::pin(async move {
                    write_durable(&file, block * 1024, 1, 1024).await;
                    sender.send(block).ok();
                    drop(done);
                }));
            }
            drop(done);
            all.recv().await;
        })
    });
    let spec = ShardSpec {
        name: "writer".to_owned(),
        core: None,
    };
    factory.spawn_shard(spec, main).expect("the process lives");
    let acked = Rc::clone(acked);
    sim.spawn(async move {
        while let Some(block) = receiver.recv().await {
            acked.borrow_mut().insert(block);
        }
    });
}

#[test]
fn shards_crash_and_start_again_on_the_same_disk() {
    for seed in 0..SEEDS {
        let sim = Sim::from_seed(seed);
        sim.write_file("/f", &[0; 8192]).expect("it can be planted");
        let acked = Rc::new(RefCell::new(BTreeSet::new()));
        for round in 0..4 {
            let factory = sim.new_process();
            shard_writes(&sim, &factory, &acked);
            let kind = if seed % 2 == 0 {
                CrashKind::Kill
            } else {
                CrashKind::PowerLoss
            };
            sim.crash_at_op(sim.op_count() + 1 + (seed + round) % 8, kind);
            assert_eq!(
                sim.try_block_on(std::future::pending::<()>()),
                Err(Stop::Crashed)
            );
            assert!(!sim.is_alive(factory.process()));
            assert_eq!(sim.open_descriptors(), 0);
            let left = sim.read_file("/f").expect("it was planted");
            for block in acked.borrow().iter() {
                let at = crate::sim::file::to_usize(block * 1024);
                assert_eq!(
                    count(&left[at..at + 1024], 1),
                    1024,
                    "seed {seed} round {round}"
                );
            }
        }
    }
}

/// A scripted crash strikes at the moment that it was given: the operation is in flight, or it has
/// had its effect.
#[test]
fn a_crash_comes_at_its_moment() {
    for seed in 0..50 {
        for (moment, in_flight) in [(Moment::Begin, 1), (Moment::End, 0)] {
            let sim = Sim::from_seed(seed);
            sim.write_file("/f", &[0; 4096]).expect("it can be planted");
            let backend = process(&sim);
            sim.crash_at(1, CrashKind::PowerLoss, moment);
            let stopped = sim.try_block_on(async move {
                let file = open(&backend, "/f").await;
                write_durable(&file, 0, 7, 512).await;
            });
            assert_eq!(stopped, Err(Stop::Crashed));
            assert_eq!(sim.counters().in_flight_at_crash, in_flight);
            let kept = sim.read_file("/f").expect("it is there")[0] == 7;
            assert!(kept || moment == Moment::Begin, "seed {seed}");
        }
    }
}
