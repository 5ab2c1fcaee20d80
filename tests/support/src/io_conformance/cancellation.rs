//! Futures dropped in mid-flight: memory and descriptors stay alive, nothing leaks.

use std::future::{Future, poll_fn};
use std::path::Path;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use alluvium_core::io::{
    AlignedBuf, BackendFactory, BufPool, IoBackend, IoFile, LockKind, OpenOptions,
};

use super::{Ctx, Suite, checks, pattern, read, write};

pub(super) fn all<F: BackendFactory>(suite: &mut Suite<'_, F>) {
    checks!(suite;
        dropped_writes_leave_old_or_new,
        dropped_reads_write_to_no_foreign_memory,
        dropped_operations_leak_no_descriptor,
        dropped_sleeps_and_yields_do_no_harm,
        what_may_wait_for_the_file_system_is_done_elsewhere,
    );
    suite.check("shards_end_with_operations_in_flight_one", |ctx| {
        Box::pin(leave_in_flight(ctx))
    });
    suite.check("shards_end_with_operations_in_flight_two", |ctx| {
        Box::pin(leave_in_flight(ctx))
    });
}

/// Polls once, as if a caller lost interest right after submission.
async fn poll_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// Waits until `done` says yes; in vain for no more than ten seconds.
async fn eventually<B: IoBackend>(ctx: &Ctx<B>, what: &str, mut done: impl FnMut() -> bool) {
    let deadline = ctx.backend.now() + Duration::from_secs(10);
    while !done() {
        assert!(ctx.backend.now() < deadline, "{what}");
        ctx.backend.sleep(Duration::from_millis(5)).await;
    }
}

async fn dropped_writes_leave_old_or_new<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = ctx.create(&format!("file-{direct}"), direct).await;
        let old = pattern(1000, 4096);
        for i in 0..200 {
            write(&file, &old, i * 4096).await;
        }
        for i in 0..200 {
            let bytes = pattern(i, 4096);
            if i % 2 == 0 {
                poll_once(file.write_at(bytes, i * 4096)).await;
            } else {
                poll_once(file.write_durable(bytes, i * 4096)).await;
            }
        }
        // Whatever is still under way has ended when the descriptor's lock is free.
        let path = ctx.path(&format!("file-{direct}"));
        let again = ctx
            .backend
            .open(&path, OpenOptions::READ_WRITE)
            .await
            .unwrap();
        assert!(file.try_lock(LockKind::Exclusive).unwrap());
        drop(file);
        eventually(&ctx, "operations hold the file", || {
            again.try_lock(LockKind::Exclusive).unwrap()
        })
        .await;
        assert_eq!(again.len().await.unwrap(), 200 * 4096);
        for i in 0..200 {
            let now = read(&again, i * 4096, 4096).await;
            assert!(
                now == old || now == pattern(i, 4096),
                "block {i} is neither old nor new"
            );
        }
        // The backend still works.
        write(&again, &pattern(7, 4096), 0).await;
        assert_eq!(read(&again, 0, 4096).await, pattern(7, 4096));
    }
}

async fn dropped_reads_write_to_no_foreign_memory<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = ctx.create(&format!("file-{direct}"), direct).await;
        write(&file, &pattern(1, 65536), 0).await;
        let pool = BufPool::new(64 << 20);
        let mut guards = Vec::new();
        for _ in 0..200 {
            poll_once(file.read_at(pool.take(65536), 0, 65536)).await;
            // If the abandoned buffer came back too early, this one is the same memory.
            let mut guard = pool.take(65536);
            guard.resize(65536);
            guard.fill(0x5A);
            guards.push(guard);
        }
        let name = ctx.path(&format!("file-{direct}"));
        let again = ctx
            .backend
            .open(&name, OpenOptions::READ_WRITE)
            .await
            .unwrap();
        assert!(file.try_lock(LockKind::Exclusive).unwrap());
        drop(file);
        eventually(&ctx, "operations hold the file", || {
            again.try_lock(LockKind::Exclusive).unwrap()
        })
        .await;
        for guard in guards {
            assert!(
                guard.iter().all(|&byte| byte == 0x5A),
                "a late read hit foreign memory"
            );
        }
    }
}

/// Descriptors on files below `dir`; what other tests of the process hold does not count.
fn open_descriptors(dir: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    links
        .filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| to.starts_with(dir)))
        .count()
}

async fn dropped_operations_leak_no_descriptor<B: IoBackend>(ctx: Ctx<B>) {
    write(&ctx.create("file", false).await, &pattern(1, 65536), 0).await;
    // The first use may open what the runtime keeps.
    ctx.backend.sync_dir(&ctx.dir).await.unwrap();
    let before = open_descriptors(&ctx.dir);
    for i in 0..200_u64 {
        let path = ctx.path("file");
        let file = ctx
            .backend
            .open(&path, OpenOptions::READ_WRITE)
            .await
            .unwrap();
        poll_once(file.read_at(AlignedBuf::with_capacity(4096), 0, 4096)).await;
        poll_once(file.write_durable(pattern(i, 4096), 4096)).await;
        poll_once(file.sync_data()).await;
        poll_once(file.allocate(65536)).await;
        poll_once(ctx.backend.sync_dir(&ctx.dir)).await;
        drop(poll_once(ctx.backend.open(&path, OpenOptions::READ)).await);
    }
    eventually(&ctx, "descriptors leak", || {
        open_descriptors(&ctx.dir) <= before
    })
    .await;
    let file = ctx
        .backend
        .open(&ctx.path("file"), OpenOptions::READ)
        .await
        .unwrap();
    assert_eq!(file.len().await.unwrap(), 65536);
    assert_eq!(open_descriptors(&ctx.dir), before + 1, "the count counts");
}

async fn dropped_sleeps_and_yields_do_no_harm<B: IoBackend>(ctx: Ctx<B>) {
    for _ in 0..200 {
        poll_once(ctx.backend.sleep(Duration::from_millis(1))).await;
        poll_once(ctx.backend.yield_now()).await;
    }
    let before = ctx.backend.now();
    ctx.backend.sleep(Duration::from_millis(5)).await;
    ctx.backend.yield_now().await;
    assert!(ctx.backend.now() >= before + Duration::from_millis(5));
}

/// The file system makes who creates, removes, renames or shortens a file wait for its journal, and
/// with the shard's thread every append would wait. Here nothing waits for long, so what is seen is
/// that such a call is not over when it has been polled once: of so many, at least now and then.
async fn what_may_wait_for_the_file_system_is_done_elsewhere<B: IoBackend>(ctx: Ctx<B>) {
    const TRIES: usize = 50;
    let backend = &ctx.backend;
    let mut over = [0; 6];
    for n in 0..TRIES {
        let (one, two) = (ctx.path(&format!("one-{n}")), ctx.path(&format!("two-{n}")));
        let file = backend.open(&one, OpenOptions::CREATE_NEW).await.unwrap();
        let at_once = [
            poll_once(backend.open(&two, OpenOptions::CREATE_NEW))
                .await
                .is_some(),
            poll_once(file.set_len(4096)).await.is_some(),
            poll_once(backend.rename(&one, &ctx.path("three")))
                .await
                .is_some(),
            poll_once(backend.create_dir(&ctx.path(&format!("dir-{n}"))))
                .await
                .is_some(),
            poll_once(backend.list(&ctx.dir)).await.is_some(),
            poll_once(backend.remove_file(&two)).await.is_some(),
        ];
        for (over, at_once) in over.iter_mut().zip(at_once) {
            *over += usize::from(at_once);
        }
    }
    assert!(over.iter().all(|&over| over < TRIES), "{over:?}");
}

/// Ends the shard while the kernel is at work; run twice, so that the second shard meets the
/// memory of the first.
async fn leave_in_flight<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = Rc::new(ctx.create(&format!("file-{direct}"), direct).await);
        write(&*file, &pattern(1, 1 << 20), 0).await;
        for i in 0..32_u64 {
            let file = Rc::clone(&file);
            ctx.backend.spawn(Box::pin(async move {
                file.read_at(AlignedBuf::with_capacity(1 << 20), 0, 1 << 20)
                    .await
                    .0
                    .unwrap();
                file.write_durable(pattern(i, 65536), i * 65536)
                    .await
                    .0
                    .unwrap();
                std::future::pending::<()>().await;
            }));
        }
        ctx.backend.yield_now().await;
    }
}
