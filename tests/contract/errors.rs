//! Every error is reached, and says what the caller may do.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::fmt::Debug;
use std::pin::pin;
use std::time::Duration;

use alluvium::backends::sim::Latency;
use alluvium::format::{Batch, Control, ControlReason, SegmentHeader, SegmentKind};
use alluvium::{Ack, BlockingPool, Error, OnCorruption, PoolError, ReadLimits, Store, Visibility};
use alluvium_testkit::logs::{batch, close, fill, small};

use crate::damage::{closed_store, tiny};
use crate::failure::quiet_panics;
use crate::machine::{
    DIR, EIO, check_answers, machine, machine_from, machine_with, open, polled,
    store_and_partition, try_open,
};

/// Names of all errors; a new one needs a line here, as `cargo test --test tidy` says, and a way to
/// reach it below.
const ALL: [&str; 26] = [
    "AlreadyOpen",
    "BackendUnavailable",
    "CloseTimeout",
    "Closed",
    "ClosedInFlight",
    "ControlBatch",
    "Corrupt",
    "DeletionUnknown",
    "Fenced",
    "Full",
    "InsideOpaqueBatch",
    "InvalidConfig",
    "Io",
    "NoSpace",
    "NotAStore",
    "OutOfRange",
    "OutcomeUnknown",
    "PartitionBusy",
    "PartitionExists",
    "PartitionFailed",
    "PartitionNotFound",
    "ReadOnly",
    "ShardDead",
    "TooLarge",
    "UnsupportedVersion",
    "WrongOffset",
];

/// The same for what an error may mean.
const CLASSES: [&str; 5] = [
    "Corrupt",
    "Misuse",
    "NotApplied",
    "OutcomeUnknown",
    "PartitionFailed",
];

/// And for what may be wrong with a file.
const CORRUPTIONS: [&str; 5] = [
    "Format",
    "Misplaced",
    "MissingSegment",
    "Shortened",
    "Unreadable",
];

/// And for jobs of a pool.
const POOL: [&str; 2] = ["Full", "Panicked"];

#[derive(Default)]
struct Seen {
    errors: BTreeSet<String>,
    classes: BTreeSet<String>,
    corruptions: BTreeSet<String>,
}

impl Seen {
    /// Notes an error by its name, after its answers are checked.
    fn note(&mut self, e: &Error) {
        check_answers(e);
        self.errors.insert(name(e));
        self.classes.insert(name(&e.class()));
        if let Error::Corrupt(corruption) = e {
            self.corruptions.insert(name(&corruption.found));
        }
    }
}

/// Name of an enum's variant.
fn name(value: &impl Debug) -> String {
    let debug = format!("{value:?}");
    let end = debug.find([' ', '(', '{']).unwrap_or(debug.len());
    debug[..end].to_owned()
}

fn are_all<const N: usize>(seen: &BTreeSet<String>, all: [&str; N]) {
    let all: BTreeSet<String> = all.map(str::to_owned).into();
    let missing: Vec<_> = all.difference(seen).collect();
    let unlisted: Vec<_> = seen.difference(&all).collect();
    assert!(
        missing.is_empty() && unlisted.is_empty(),
        "missing {missing:?}, unlisted {unlisted:?}"
    );
}

#[test]
fn every_error_is_reached() {
    let mut seen = Seen::default();
    of_requests(&mut seen);
    of_openings(&mut seen);
    of_damage(&mut seen);
    of_ends(&mut seen);
    of_the_disk(&mut seen);
    unavailable(&mut seen);
    are_all(&seen.errors, ALL);
    are_all(&seen.classes, CLASSES);
    are_all(&seen.corruptions, CORRUPTIONS);
}

#[test]
fn every_error_of_a_blocking_pool_is_reached() {
    quiet_panics();
    let spawn = |name: String, body: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name).spawn(body).map(drop)
    };
    let pool = BlockingPool::start("errors", 1, 1, &spawn).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (go_on, told) = std::sync::mpsc::channel();
        let mut first = pin!(pool.run(move || told.recv().is_ok()));
        assert!(polled(first.as_mut(), 1).await.is_none());
        let full = pool.try_run(|| ()).await.unwrap_err();
        go_on.send(()).unwrap();
        assert_eq!(first.await, Ok(true));
        let panicked = pool.run(|| panic!("planted panic in a job")).await;
        let panicked: PoolError = panicked.map(|(): ()| ()).unwrap_err();
        are_all(&[name(&full), name(&panicked)].into(), POOL);
        assert_eq!(pool.run(|| 1).await, Ok(1), "the pool goes on");
    });
}

fn of_requests(seen: &mut Seen) {
    let sim = machine(1);
    sim.block_on(async {
        let opened = try_open(&sim, |c| c.mailbox_requests_max = 1);
        let (store, _) = opened.await.unwrap();
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 5, 5).await;
        let limit = p.batch_bytes_max();
        p.append(Batch::opaque(b"unit", 5, None).unwrap())
            .await
            .unwrap();
        let control = Control {
            reason: ControlReason::Seal,
            segment_end: false,
            end_offset: 0,
            log_start: 0,
            reserved_end: 0,
        };
        for e in [
            p.append_at(7, batch(0, 1)).await.unwrap_err(),
            p.append(Batch::opaque(&vec![0; limit], 1, None).unwrap())
                .await
                .unwrap_err(),
            p.append(Batch::control(&control)).await.unwrap_err(),
            p.truncate_to(7).await.unwrap_err(),
            p.read(99, ReadLimits::default(), Visibility::Durable)
                .await
                .unwrap_err(),
            store.create_partition(1).await.unwrap_err(),
            store.partition(2).await.unwrap_err(),
        ] {
            seen.note(&e);
        }
        let _first = p.try_append(batch(10, 1), Ack::Durable.into()).unwrap();
        let refused = p
            .try_append(batch(11, 1), Ack::Durable.into())
            .err()
            .unwrap();
        seen.note(&refused.error);
        assert_eq!(refused.to_string(), refused.error.to_string());
        assert!(refused.source().is_some() && refused.batch.record_count() == 1);
        let gone = store.create_partition(3).await.unwrap();
        let (one, two) =
            futures_util::join!(store.delete_partition(&gone), store.delete_partition(&gone));
        seen.note(&one.and(two).unwrap_err());
        close(&store).await;
        seen.note(&p.sync().await.unwrap_err());
        drop((store, p));
        let builder = Store::builder(DIR).configure(small).read_only();
        let (store, _) = builder.backend(sim.new_process()).open().await.unwrap();
        seen.note(&store.create_partition(8).await.unwrap_err());
        close(&store).await;
    });
}

fn of_openings(seen: &mut Seen) {
    let sim = machine(2);
    sim.block_on(async {
        seen.note(&try_open(&sim, |c| c.segment_bytes = 0).await.unwrap_err());
        let builder = Store::builder(DIR).create(false).backend(sim.new_process());
        seen.note(&builder.open().await.unwrap_err());
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 3, 1).await;
        seen.note(&try_open(&sim, |_| {}).await.unwrap_err());
        close(&store).await;
    });
    let store_file = format!("{DIR}/STORE");
    let good = sim.read_file(&store_file).unwrap();
    let mut newer = good.clone();
    newer[8] = 9;
    sim.write_file(&store_file, &newer).unwrap();
    seen.note(&sim.block_on(try_open(&sim, |_| {})).unwrap_err());
    let mut damaged = good;
    damaged[20] ^= 1;
    sim.write_file(&store_file, &damaged).unwrap();
    seen.note(&sim.block_on(try_open(&sim, |_| {})).unwrap_err());
    // The last writes of a dead process take longer than the next one waits.
    let sim = machine_with(3, |c| c.zombie_delay_max = Duration::from_secs(3600));
    let mut fenced = None;
    for _ in 0..20 {
        let factory = sim.new_process();
        let process = factory.process();
        sim.block_on(async {
            let builder = Store::builder(DIR).configure(small);
            let builder = builder.configure(|c| c.fence_timeout = Duration::from_secs(4000));
            let (store, _) = builder.backend(factory).open().await.unwrap();
            let p = store.partition_or_create(1).await.unwrap();
            let _ack = p.try_append(batch(0, 5), Ack::Durable.into()).unwrap();
            while sim.in_flight() == 0 {
                sim.yield_now().await;
            }
            sim.kill(process);
        });
        let opened = try_open(&sim, |c| c.fence_timeout = Duration::from_millis(1));
        if let Err(e) = sim.block_on(opened) {
            fenced = Some(e);
            break;
        }
    }
    seen.note(&fenced.expect("an opening during a late write"));
}

/// What may be wrong with a file, as the next opening finds it.
fn of_damage(seen: &mut Seen) {
    let files = closed_store();
    let segments = |partition| {
        let mut found: Vec<_> = files
            .iter()
            .filter_map(|(path, content)| Some((SegmentHeader::decode(content).ok()?, path)))
            .filter(|(h, _)| h.kind == SegmentKind::Log && h.partition == partition)
            .map(|(h, path)| (h.sequence, path.clone()))
            .collect();
        found.sort_unstable();
        found
    };
    let (own, other) = (segments(0), segments(1));
    // The one before the newest, which the newest names.
    let path = &own[own.len() - 2].1;
    let content = &files[path];
    let mut zeros = content.clone();
    zeros[..4096].fill(0);
    let altered = [
        Some(zeros),
        Some(content[..4096].to_vec()),
        Some(files[&other[0].1].clone()),
        None,
    ];
    for content in altered {
        let mut files = files.clone();
        match content {
            Some(content) => _ = files.insert(path.clone(), content),
            None => _ = files.remove(path),
        }
        let sim = machine_from(&files);
        seen.note(&sim.block_on(try_open(&sim, tiny)).unwrap_err());
    }
    // A bad sector is an error of the disk, and damage where that is read around.
    let sim = machine_from(&files);
    let open = |on_corruption: OnCorruption| {
        for read in 3..300 {
            sim.fail_read(sim.counters().reads + read, EIO);
        }
        let opened = sim.block_on(try_open(&sim, |config| {
            tiny(config);
            config.on_corruption = on_corruption;
        }));
        sim.cancel_failures();
        opened.map(|(_, report)| report)
    };
    seen.note(&open(OnCorruption::Refuse).unwrap_err());
    let report = open(OnCorruption::Salvage).unwrap();
    let found = report
        .partitions
        .iter()
        .filter_map(|p| p.corruption.as_ref());
    let found: Vec<_> = found.map(|c| name(&c.found)).collect();
    assert_eq!(found.len(), 2, "{report}");
    seen.corruptions.extend(found);
}

fn of_ends(seen: &mut Seen) {
    let sim = machine_with(4, |c| c.catch_panics = true);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        fill(&p, 3, 1).await;
        sim.set_stalled(true);
        let _ack = p.try_append(batch(3, 1), Ack::Durable.into()).unwrap();
        let closed = store.close(Duration::from_millis(5)).await;
        seen.note(&closed.unwrap_err());
        sim.set_stalled(false);
        close(&store).await;
        drop((store, p));
        // A read that takes longer than the closing.
        let opened = try_open(&sim, |c| c.tail_cache_bytes_max = 0);
        let (store, _) = opened.await.unwrap();
        let p = store.partition(1).await.unwrap();
        sim.configure(|c| c.read = Latency::micros(10_000_000, 20_000_000));
        let read = p.read(0, ReadLimits::default(), Visibility::Durable);
        let closing = async {
            sim.sleep(Duration::from_millis(1)).await;
            close(&store).await;
        };
        let (read, ()) = futures_util::join!(read, closing);
        seen.note(&read.unwrap_err());
    });
    let sim = machine(5);
    let process = sim.new_process();
    let id = process.process();
    sim.block_on(async {
        let (store, p) = crate::machine::open_in(process).await;
        sim.kill(id);
        seen.note(&p.sync().await.unwrap_err());
        assert!(store.stats().await.is_err());
    });
}

fn of_the_disk(seen: &mut Seen) {
    let sim = machine_with(6, |c| c.capacity_bytes = 300 << 10);
    sim.block_on(async {
        let (store, p) = store_and_partition(&sim).await;
        let full = loop {
            if let Err(e) = p.append(batch(p.offsets().log_end(), 1)).await {
                break e;
            }
        };
        seen.note(&full);
        sim.sleep(Duration::from_millis(200)).await;
        sim.set_capacity(1 << 20);
        sim.fail_op(sim.op_count() + 1, EIO);
        seen.note(&store.create_partition(5).await.unwrap_err());
        let (_, other) = (0, store.create_partition(6).await.unwrap());
        sim.fail_op(sim.op_count() + 1, EIO);
        let unknown = other.append(batch(0, 1)).await.unwrap_err();
        assert!(
            matches!(&unknown, Error::OutcomeUnknown { cause, .. } if cause.code == Some(EIO)),
            "{unknown:?}"
        );
        seen.note(&unknown);
        seen.note(&other.append(batch(0, 1)).await.unwrap_err());
        let doomed = store.create_partition(7).await.unwrap();
        // The renaming, behind a seal that the partition does not need.
        sim.fail_op(sim.op_count() + 1, EIO);
        seen.note(&store.delete_partition(&doomed).await.unwrap_err());
        drop((store, p, other));
    });
    sim.block_on(async {
        sim.sleep(Duration::from_secs(1)).await;
        drop(open(&sim).await);
    });
}

/// io_uring is forbidden to this thread, so that the backend which needs it does not work.
fn unavailable(seen: &mut Seen) {
    use alluvium::BackendKind;
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    const IO_URING_SETUP: i64 = 425;
    let denied = std::thread::spawn(|| {
        let filter = SeccompFilter::new(
            std::collections::BTreeMap::from([(IO_URING_SETUP, vec![])]),
            SeccompAction::Allow,
            SeccompAction::Errno(1),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let path = dir.path().join("store");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let builder = Store::builder(&path).backend(BackendKind::Compio);
        let e = runtime.block_on(builder.open()).unwrap_err();
        assert!(!path.exists(), "nothing was made");
        e
    });
    let e = denied.join().unwrap();
    assert!(e.to_string().contains("seccomp"), "{e}");
    seen.note(&e);
}
