//! Every error is reached, and says what the caller may do.

use std::collections::BTreeSet;
use std::time::Duration;

use alluvium::backends::sim::Latency;
use alluvium::format::{Batch, Control, ControlReason};
use alluvium::{Ack, Error, ReadLimits, Store, Visibility};
use alluvium_testkit::logs::{batch, close, fill, small};

use crate::machine::{
    DIR, EIO, check_answers, machine, machine_with, open, store_and_partition, try_open,
};

/// Names of all errors; a new one needs a line here and a way to reach it below.
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

#[derive(Default)]
struct Seen(BTreeSet<String>);

impl Seen {
    /// Notes an error by its name, after its answers are checked.
    fn note(&mut self, e: &Error) {
        check_answers(e);
        let debug = format!("{e:?}");
        let end = debug.find([' ', '(', '{']).unwrap_or(debug.len());
        self.0.insert(debug[..end].to_owned());
    }
}

#[test]
fn every_error_is_reached() {
    let mut seen = Seen::default();
    of_requests(&mut seen);
    of_openings(&mut seen);
    of_ends(&mut seen);
    of_the_disk(&mut seen);
    unavailable(&mut seen);
    let all: BTreeSet<String> = ALL.iter().map(|s| (*s).to_owned()).collect();
    let missing: Vec<_> = all.difference(&seen.0).collect();
    let unlisted: Vec<_> = seen.0.difference(&all).collect();
    assert!(
        missing.is_empty() && unlisted.is_empty(),
        "missing {missing:?}, unlisted {unlisted:?}"
    );
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
        seen.note(
            &p.try_append(batch(11, 1), Ack::Durable.into())
                .err()
                .unwrap()
                .error,
        );
        let (one, two) = futures_util::join!(store.create_partition(3), store.create_partition(3));
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
        seen.note(&other.append(batch(0, 1)).await.unwrap_err());
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
