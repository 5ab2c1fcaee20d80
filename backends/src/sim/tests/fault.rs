//! Faults: space, errors, stalls, decay; and breaches of the contract.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use alluvium_core::io::{AlignedBuf, Durability, FailStop, IoBackend, IoFile, OpenOptions};

use super::{count, create, open, pattern, process, read, write, write_durable};
use crate::sim::{Sim, SimConfig, Stop};

const ENOSPC: i32 = 28;
const EIO: i32 = 5;

fn code<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.expect_err("it fails").raw_os_error()
}

#[test]
fn a_full_disk_refuses_growth_and_takes_preallocated_writes() {
    let mut config = SimConfig::new(1);
    config.capacity_bytes = 64 * 1024;
    let sim = Sim::new(config);
    let backend = process(&sim);
    sim.block_on(async {
        let file = create(&backend, "/f").await;
        assert_eq!(code(file.allocate(68 * 1024).await), Some(ENOSPC));
        assert_eq!(file.len().await.expect("it has a length"), 0);
        file.allocate(48 * 1024).await.expect("there is room");
        let other = create(&backend, "/g").await;
        write(&other, 0, 1, 16 * 1024).await;
        assert_eq!(
            backend
                .space(Path::new("/"))
                .await
                .expect("it is known")
                .available_bytes,
            0
        );
        write(&file, 0, 2, 48 * 1024).await;
        assert_eq!(
            code(other.write_at(pattern(1, 512), 16 * 1024).await.0),
            Some(ENOSPC)
        );
        assert_eq!(code(other.set_len(20 * 1024).await), Some(ENOSPC));
        let refused = backend.open(Path::new("/h"), OpenOptions::CREATE_NEW).await;
        assert_eq!(code(refused), Some(ENOSPC));
        drop(other);
        backend
            .remove_file(Path::new("/g"))
            .await
            .expect("it is there");
        backend.sync_dir(Path::new("/")).await.expect("it syncs");
        let space = backend.space(Path::new("/")).await.expect("it is known");
        assert_eq!(space.available_bytes, 16 * 1024);
        create(&backend, "/h").await;
    });
}

#[test]
fn nothing_completes_on_a_stalled_disk_but_time_goes_on() {
    let sim = Sim::from_seed(2);
    let backend = process(&sim);
    let inner = sim.clone();
    let file = sim.block_on(async { create(&backend, "/f").await });
    sim.set_stalled(true);
    assert_eq!(sim.try_block_on(write(&file, 0, 1, 512)), Err(Stop::Stuck));
    sim.block_on(async { inner.sleep(Duration::from_secs(5)).await });
    assert_eq!(sim.in_flight(), 1);
    assert!(sim.read_file("/f").expect("it is there").is_empty());
    sim.set_stalled(false);
    sim.block_on(async { inner.sleep(Duration::from_secs(1)).await });
    assert_eq!(sim.read_file("/f").expect("it is there"), [1; 512]);
}

#[test]
fn a_dropped_future_does_not_undo_its_operation() {
    let sim = Sim::from_seed(3);
    let backend = process(&sim);
    let inner = sim.clone();
    sim.block_on(async {
        let file = create(&backend, "/f").await;
        {
            let mut writing = std::pin::pin!(file.write_durable(pattern(4, 512), 0));
            std::future::poll_fn(|context| {
                assert!(writing.as_mut().poll(context).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
        }
        drop(file);
        assert_eq!(sim.in_flight(), 1);
        inner.sleep(Duration::from_secs(1)).await;
    });
    assert_eq!(sim.in_flight(), 0);
    assert_eq!(sim.read_file("/f").expect("it is there"), [4; 512]);
}

#[test]
fn an_operation_fails_as_scripted() {
    let sim = Sim::from_seed(4);
    let backend = process(&sim);
    sim.block_on(async {
        let file = create(&backend, "/f").await;
        sim.fail_op(sim.op_count() + 2, EIO);
        write(&file, 0, 1, 512).await;
        assert_eq!(code(file.sync_data().await), Some(EIO));
        file.sync_data().await.expect("only one fails");
        sim.fail_op(sim.op_count() + 1, ENOSPC);
        let renamed = backend.rename(Path::new("/f"), Path::new("/g")).await;
        assert_eq!(code(renamed), Some(ENOSPC));
        sim.fail_read(sim.counters().reads + 1, EIO);
        let (refused, buf) = file.read_at(AlignedBuf::with_capacity(512), 0, 512).await;
        assert_eq!((code(refused), buf.capacity()), (Some(EIO), 4096));
        assert_eq!(read(&file, 0, 512).await, [1; 512]);
    });
    assert_eq!(sim.list_files(), [Path::new("/f")]);
}

#[test]
fn a_sync_after_a_failed_one_does_not_save_what_the_kernel_forgot() {
    let mut lost = 0;
    for seed in 0..200 {
        let sim = Sim::from_seed(seed);
        sim.write_file("/f", &[1; 512]).expect("it can be planted");
        let backend = process(&sim);
        sim.block_on(async {
            let file = open(&backend, "/f").await;
            write(&file, 0, 2, 512).await;
            sim.fail_op(sim.op_count() + 1, EIO);
            assert_eq!(code(file.sync_data().await), Some(EIO));
            file.sync_data().await.expect("and this one says yes");
            assert_eq!(read(&file, 0, 512).await, [2; 512]);
        });
        sim.power_loss();
        lost += u32::from(sim.read_file("/f").expect("it was planted") == [1; 512]);
    }
    assert!(lost > 20);
}

#[test]
fn a_younger_synced_write_is_safe_from_an_older_lost_one() {
    for seed in 0..200 {
        let sim = Sim::from_seed(seed);
        sim.write_file("/f", &[1; 1024]).expect("it can be planted");
        let backend = process(&sim);
        sim.block_on(async {
            let file = open(&backend, "/f").await;
            write(&file, 0, 2, 1024).await;
            sim.fail_op(sim.op_count() + 1, EIO);
            assert_eq!(code(file.sync_data().await), Some(EIO));
            write(&file, 512, 3, 512).await;
            file.sync_data().await.expect("only one fails");
            write(&file, 512, 4, 512).await;
        });
        sim.power_loss();
        let left = sim.read_file("/f").expect("it was planted");
        assert!(matches!(left[512], 3 | 4), "seed {seed}: {}", left[512]);
    }
}

#[test]
fn short_and_interrupted_transfers_are_survived_by_the_wrapper() {
    for seed in 0..50 {
        let mut config = SimConfig::new(seed);
        config.short_per_mille = 300;
        config.interrupted_per_mille = 300;
        let sim = Sim::new(config);
        let backend = process(&sim);
        sim.block_on(async {
            let options = OpenOptions::CREATE_NEW.direct(true);
            let file = backend
                .open(Path::new("/f"), options)
                .await
                .expect("it can be created");
            let file = FailStop::new(file);
            let durable = Durability::Durable;
            file.write_all_at(pattern(3, 16384), 0, durable)
                .await
                .expect("it is retried");
            let buf = AlignedBuf::with_capacity(16384);
            let buf = file.read_at(buf, 0, 16384).await.expect("it is retried");
            assert_eq!(&buf[..], [3; 16384]);
        });
    }
}

#[test]
fn lost_and_misdirected_writes_are_acknowledged() {
    let sim = Sim::from_seed(5);
    sim.write_file("/f", &[1; 16384])
        .expect("it can be planted");
    let backend = process(&sim);
    sim.block_on(async {
        let file = open(&backend, "/f").await;
        sim.lose_write(sim.write_count() + 1);
        sim.misdirect_write(sim.write_count() + 2);
        write_durable(&file, 0, 2, 4096).await;
        write_durable(&file, 4096, 3, 4096).await;
    });
    let left = sim.read_file("/f").expect("it was planted");
    assert!(!left.contains(&2));
    assert_eq!(count(&left, 3), 4096);
    assert_eq!(left[4096], 1);
}

#[test]
fn decay_is_on_the_medium() {
    let sim = Sim::from_seed(6);
    sim.write_file("/f", &[0; 1024]).expect("it can be planted");
    sim.flip_bit("/f", 3, 2).expect("it is there");
    sim.corrupt("/f", 512..520).expect("it is there");
    sim.power_loss();
    let left = sim.read_file("/f").expect("it was planted");
    assert_eq!(left[..4], [0, 0, 0, 4]);
    assert!(left[512..520].iter().all(|b| *b != 0));
    assert!(sim.flip_bit("/f", 1024, 0).is_err());
}

#[test]
fn clocks_jump_and_descriptors_run_out() {
    let mut config = SimConfig::new(7);
    config.descriptors_max = 1;
    let sim = Sim::new(config);
    let backend = process(&sim);
    let before = backend.wall_clock_ms();
    sim.jump_wall_clock(-5000);
    assert_eq!(backend.wall_clock_ms(), before - 5000);
    sim.block_on(async {
        let file = create(&backend, "/f").await;
        let refused = backend.open(Path::new("/f"), OpenOptions::READ).await;
        assert_eq!(code(refused), Some(24));
        drop(file);
        open(&backend, "/f").await;
    });
}

#[test]
fn direct_io_can_be_refused_and_leaves_nothing_behind() {
    let mut config = SimConfig::new(8);
    config.direct_io = false;
    let sim = Sim::new(config);
    let backend = process(&sim);
    sim.block_on(async {
        let options = OpenOptions::CREATE_NEW.direct(true);
        assert_eq!(code(backend.open(Path::new("/f"), options).await), Some(22));
    });
    assert!(sim.list_files().is_empty());
}

#[test]
#[should_panic(expected = "is in flight")]
fn overlapping_writes_are_refused() {
    let sim = Sim::from_seed(9);
    let backend = process(&sim);
    sim.block_on(async {
        let file = create(&backend, "/f").await;
        let mut first = std::pin::pin!(write(&file, 0, 1, 1024));
        let mut second = std::pin::pin!(write(&file, 512, 2, 1024));
        std::future::poll_fn(|context| {
            let _ready = first.as_mut().poll(context);
            second.as_mut().poll(context)
        })
        .await;
    });
}

#[test]
#[should_panic(expected = "not aligned")]
fn misaligned_direct_writes_are_refused() {
    let sim = Sim::from_seed(10);
    let backend = process(&sim);
    sim.block_on(async {
        let options = OpenOptions::CREATE_NEW.direct(true);
        let file = backend
            .open(Path::new("/f"), options)
            .await
            .expect("it can be created");
        write(&file, 100, 1, 512).await;
    });
}

#[test]
#[should_panic(expected = "was given a buffer")]
fn reads_beyond_the_buffer_are_refused() {
    let sim = Sim::from_seed(11);
    let backend = process(&sim);
    sim.block_on(async {
        let file = create(&backend, "/f").await;
        file.read_at(AlignedBuf::with_capacity(4096), 0, 8192)
            .await
            .0
            .ok();
    });
}

#[test]
fn a_reader_sees_a_write_arrive_sector_by_sector() {
    let mut partly = 0;
    for seed in 0..100 {
        let sim = Sim::from_seed(seed);
        sim.write_file("/f", &[1; 4096]).expect("it can be planted");
        let backend = process(&sim);
        sim.configure(|config| config.write.min = Duration::from_millis(50));
        sim.configure(|config| config.write.max = Duration::from_millis(50));
        let inner = sim.clone();
        let writer = process(&sim);
        sim.spawn(async move {
            let file = open(&writer, "/f").await;
            write(&file, 0, 2, 4096).await;
        });
        sim.block_on(async {
            let file = open(&backend, "/f").await;
            inner.sleep(Duration::from_millis(10)).await;
            let seen = read(&file, 0, 4096).await;
            let new = count(&seen, 2);
            partly += u32::from(new > 0 && new < 4096);
            inner.sleep(Duration::from_secs(1)).await;
            assert_eq!(read(&file, 0, 4096).await, [2; 4096]);
        });
    }
    assert!(partly > 50);
}

/// Every call has a number, also those that change nothing, and fails when it is told to.
#[test]
fn any_call_fails_by_its_number() {
    let sim = Sim::from_seed(12);
    let backend = process(&sim);
    let file = sim.block_on(async {
        let file = create(&backend, "/f").await;
        write(&file, 0, 1, 4096).await;
        file
    });
    assert_eq!(sim.calls(), ["create", "write_at"]);
    sim.fail_call(3, EIO);
    sim.fail_call(4, EIO);
    sim.fail_call(5, 24);
    sim.shorten_call(6);
    sim.fail_call(100, EIO);
    sim.block_on(async {
        assert_eq!(code(file.len().await), Some(EIO));
        assert_eq!(
            code(file.try_lock(alluvium_core::io::LockKind::Shared)),
            Some(EIO)
        );
        let opened = backend.open(Path::new("/f"), OpenOptions::READ_WRITE).await;
        assert_eq!(code(opened), Some(24));
        let (result, _) = file.read_at(AlignedBuf::with_capacity(4096), 0, 4096).await;
        let short = result.expect("it is read in part");
        assert!((1..4096).contains(&short), "{short}");
        assert_eq!(file.len().await.expect("once only"), 4096);
    });
    let names = sim.calls();
    assert_eq!(names[2..], ["len", "try_lock", "open", "read_at", "len"]);
    sim.cancel_failures();
}

/// What is written and what is answered is part of the trace, when it is asked for.
#[test]
fn the_trace_has_every_byte() {
    let trace = |bytes, fill: u8| {
        let mut config = SimConfig::new(13);
        config.trace_bytes = bytes;
        let sim = Sim::new(config);
        let backend = process(&sim);
        sim.block_on(async {
            let file = create(&backend, "/f").await;
            write(&file, 0, fill, 512).await;
        });
        sim.trace_hash()
    };
    assert_eq!(trace(false, 1), trace(false, 2));
    assert_ne!(trace(true, 1), trace(true, 2));
    assert_eq!(trace(true, 1), trace(true, 1));
}
