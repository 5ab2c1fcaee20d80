//! Reads, writes and syncs.

use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;

use alluvium_core::io::{AlignedBuf, BackendFactory, BufPool, IoBackend, IoFile, OpenOptions};
use bytes::Bytes;

use super::{Ctx, EBADF, EINVAL, Suite, assert_errno, checks, pattern, read, write};

pub(super) fn all<F: BackendFactory>(suite: &mut Suite<'_, F>) {
    checks!(suite;
        what_is_written_is_read,
        durable_writes_are_read,
        other_descriptors_see_writes,
        reads_stop_at_the_end,
        a_read_replaces_the_content,
        reads_take_no_more_than_asked,
        buffers_come_back_on_errors,
        impossible_offsets_are_errors,
        misaligned_direct_transfers_are_errors,
        many_transfers_overlap,
        mixed_operations_overlap,
        large_transfers,
        syncing_data,
        empty_writes,
        static_bytes_are_written,
    );
}

async fn what_is_written_is_read<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = ctx.create(&format!("file-{direct}"), direct).await;
        for i in 0..16_u64 {
            write(&file, &pattern(i, 4096), (15 - i) * 4096).await;
        }
        for i in 0..16_u64 {
            assert_eq!(read(&file, (15 - i) * 4096, 4096).await, pattern(i, 4096));
        }
        // Overwriting in the middle leaves the neighbours alone.
        write(&file, &pattern(99, 8192), 8192).await;
        let all = read(&file, 0, 65536).await;
        assert_eq!(all[..4096], pattern(15, 4096));
        assert_eq!(all[8192..16384], pattern(99, 8192));
        assert_eq!(all[16384..20480], pattern(11, 4096));
    }
    // Buffered files take any place and length.
    let file = ctx.create("odd", false).await;
    write(&file, &pattern(1, 777), 13).await;
    assert_eq!(read(&file, 13, 777).await, pattern(1, 777));
    assert_eq!(read(&file, 100, 5).await, pattern(1, 777)[87..92]);
}

async fn durable_writes_are_read<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = ctx.create(&format!("file-{direct}"), direct).await;
        let bytes = pattern(5, 8192);
        for offset in [4096, 0, 65536] {
            let (result, back) = file.write_durable(bytes.clone(), offset).await;
            assert_eq!(result.unwrap(), 8192);
            assert_eq!(back.as_ptr(), bytes.as_ptr(), "the very buffer comes back");
            assert_eq!(read(&file, offset, 8192).await, bytes);
        }
        assert_eq!(file.len().await.unwrap(), 65536 + 8192);
    }
}

async fn other_descriptors_see_writes<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let name = format!("file-{direct}");
        let writer = ctx.create(&name, direct).await;
        let reader = ctx
            .backend
            .open(&ctx.path(&name), OpenOptions::READ)
            .await
            .unwrap();
        write(&writer, &pattern(1, 4096), 0).await;
        assert_eq!(read(&reader, 0, 4096).await, pattern(1, 4096));
        // Also what the reader's page cache may hold by now.
        write(&writer, &pattern(2, 4096), 0).await;
        assert_eq!(read(&reader, 0, 4096).await, pattern(2, 4096));
    }
}

async fn reads_stop_at_the_end<B: IoBackend>(ctx: Ctx<B>) {
    let bytes = pattern(1, 10_000);
    write(&ctx.create("file", false).await, &bytes, 0).await;
    for direct in ctx.modes() {
        let options = OpenOptions::READ.direct(direct);
        let file = ctx.backend.open(&ctx.path("file"), options).await.unwrap();
        assert_eq!(read(&file, 8192, 4096).await, bytes[8192..]);
        assert_eq!(read(&file, 0, 16384).await, bytes);
        assert_eq!(read(&file, 12288, 4096).await, []);
        assert_eq!(read(&file, 1 << 40, 4096).await, []);
    }
    let empty = ctx.create("empty", false).await;
    assert_eq!(read(&empty, 0, 100).await, []);
}

async fn a_read_replaces_the_content<B: IoBackend>(ctx: Ctx<B>) {
    let file = ctx.create("file", false).await;
    write(&file, &pattern(1, 100), 0).await;
    let mut buf = AlignedBuf::with_capacity(4096);
    buf.resize(4096);
    buf.fill(0xEE);
    let address = buf.as_ptr();
    let (result, buf) = file.read_at(buf, 0, 4096).await;
    assert_eq!(result.unwrap(), 100);
    assert_eq!(&buf[..], &pattern(1, 100)[..]);
    assert_eq!(buf.as_ptr(), address, "the very buffer comes back");
    // Nothing read: nothing in the buffer.
    let (result, buf) = file.read_at(buf, 4096, 4096).await;
    assert_eq!(result.unwrap(), 0);
    assert!(buf.is_empty());
}

async fn reads_take_no_more_than_asked<B: IoBackend>(ctx: Ctx<B>) {
    let pool = BufPool::new(1 << 20);
    for direct in ctx.modes() {
        let file = ctx.create(&format!("file-{direct}"), direct).await;
        write(&file, &pattern(1, 16384), 0).await;
        let (result, buf) = file.read_at(pool.take(16384), 4096, 4096).await;
        assert_eq!(result.unwrap(), 4096);
        assert_eq!(&buf[..], &pattern(1, 16384)[4096..8192]);
    }
    // More than the buffer holds is refused, not written past its end.
    let file = ctx.create("refused", false).await;
    write(&file, &pattern(1, 16384), 0).await;
    let (result, buf) = file.read_at(AlignedBuf::with_capacity(4096), 0, 4097).await;
    assert_errno(result, EINVAL);
    assert_eq!((buf.len(), buf.capacity()), (0, 4096));
}

async fn buffers_come_back_on_errors<B: IoBackend>(ctx: Ctx<B>) {
    drop(ctx.create("file", false).await);
    let file = ctx
        .backend
        .open(&ctx.path("file"), OpenOptions::READ)
        .await
        .unwrap();
    let bytes = pattern(1, 4096);
    let (result, back) = file.write_durable(bytes.clone(), 0).await;
    assert_errno(result, EBADF);
    assert_eq!(back.as_ptr(), bytes.as_ptr());
    let buf = AlignedBuf::with_capacity(8192);
    let address = buf.as_ptr();
    let (result, buf) = file.read_at(buf, u64::MAX, 4096).await;
    assert!(result.is_err());
    assert_eq!((buf.as_ptr(), buf.capacity()), (address, 8192));
}

async fn impossible_offsets_are_errors<B: IoBackend>(ctx: Ctx<B>) {
    let file = ctx.create("file", false).await;
    write(&file, &pattern(1, 64), 0).await;
    // All ones means "the current position" to some system calls.
    for offset in [u64::MAX, 1 << 63] {
        assert_errno(file.write_at(pattern(2, 64), offset).await.0, EINVAL);
        assert_errno(file.write_durable(pattern(2, 64), offset).await.0, EINVAL);
        assert_errno(
            file.read_at(AlignedBuf::with_capacity(64), offset, 64)
                .await
                .0,
            EINVAL,
        );
    }
    assert_eq!(file.len().await.unwrap(), 64);
    assert_eq!(read(&file, 0, 64).await, pattern(1, 64));
}

async fn misaligned_direct_transfers_are_errors<B: IoBackend>(ctx: Ctx<B>) {
    if !ctx.direct {
        return;
    }
    let file = ctx.create("file", true).await;
    write(&file, &pattern(1, 8192), 0).await;
    // Some file systems fall back to the page cache; then the data must be right all the same.
    let (result, _) = file.write_at(pattern(2, 100), 1).await;
    match result {
        Ok(n) => assert_eq!(read(&file, 0, 4096).await[1..=n], pattern(2, 100)[..n]),
        Err(e) => {
            assert_eq!(e.raw_os_error(), Some(EINVAL));
            assert_eq!(read(&file, 0, 8192).await, pattern(1, 8192));
        }
    }
}

async fn many_transfers_overlap<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = Rc::new(ctx.create(&format!("file-{direct}"), direct).await);
        let left = Rc::new(Cell::new(300_u64));
        for i in 0..300_u64 {
            let (file, left) = (Rc::clone(&file), Rc::clone(&left));
            ctx.backend.spawn(Box::pin(async move {
                let bytes = pattern(i, 4096);
                let (result, _) = if i % 10 == 0 {
                    file.write_durable(bytes.clone(), i * 4096).await
                } else {
                    file.write_at(bytes.clone(), i * 4096).await
                };
                assert_eq!(result.unwrap(), 4096);
                assert_eq!(read(&*file, i * 4096, 4096).await, bytes);
                left.set(left.get() - 1);
            }));
        }
        while left.get() > 0 {
            ctx.backend.yield_now().await;
        }
        assert_eq!(file.len().await.unwrap(), 300 * 4096);
        for i in 0..300 {
            assert_eq!(read(&*file, i * 4096, 4096).await, pattern(i, 4096));
        }
    }
}

async fn mixed_operations_overlap<B: IoBackend>(ctx: Ctx<B>) {
    let file = ctx.create("file", false).await;
    write(&file, &pattern(0, 4096), 0).await;
    let mut all: Vec<Pin<Box<dyn Future<Output = ()>>>> = Vec::new();
    for i in 1..40_u64 {
        let file = &file;
        // Borrowed futures in one task: the backend must not need a task for each.
        all.push(match i % 3 {
            0 => Box::pin(async move { write(file, &pattern(i, 4096), i * 4096).await }),
            1 => Box::pin(async move { assert_eq!(read(file, 0, 4096).await, pattern(0, 4096)) }),
            _ => Box::pin(async move { file.sync_data().await.unwrap() }),
        });
    }
    std::future::poll_fn(|cx| {
        all.retain_mut(|future| future.as_mut().poll(cx).is_pending());
        if all.is_empty() {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    for i in (3..40).step_by(3) {
        assert_eq!(read(&file, i * 4096, 4096).await, pattern(i, 4096));
    }
}

async fn large_transfers<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = ctx.create(&format!("file-{direct}"), direct).await;
        let bytes = pattern(1, 4 << 20);
        let (result, back) = file.write_durable(bytes.clone(), 4096).await;
        assert_eq!(result.unwrap(), bytes.len());
        drop(back);
        assert!(read(&file, 4096, 4 << 20).await == bytes);
    }
}

async fn syncing_data<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = ctx.create(&format!("file-{direct}"), direct).await;
        file.sync_data().await.unwrap();
        write(&file, &pattern(1, 4096), 0).await;
        file.sync_data().await.unwrap();
        file.sync_data().await.unwrap();
        assert_eq!(read(&file, 0, 4096).await, pattern(1, 4096));
    }
}

async fn empty_writes<B: IoBackend>(ctx: Ctx<B>) {
    let file = ctx.create("file", false).await;
    assert_eq!(file.write_at(Bytes::new(), 100).await.0.unwrap(), 0);
    assert_eq!(file.write_durable(Bytes::new(), 100).await.0.unwrap(), 0);
    assert_eq!(file.len().await.unwrap(), 0);
    let (result, _) = file.read_at(AlignedBuf::with_capacity(1), 0, 0).await;
    assert_eq!(result.unwrap(), 0);
}

async fn static_bytes_are_written<B: IoBackend>(ctx: Ctx<B>) {
    let file = ctx.create("file", false).await;
    write(&file, &Bytes::from_static(b"static"), 0).await;
    write(&file, &Bytes::from(b"vector".to_vec()).slice(2..), 6).await;
    assert_eq!(read(&file, 0, 100).await, b"staticctor");
}
