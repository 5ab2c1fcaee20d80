//! Files as a whole: alignment, length, allocation, access modes.

use std::os::unix::fs::MetadataExt;

use alluvium_core::io::{BUFFER_ALIGNMENT, BackendFactory, IoBackend, IoFile, OpenOptions};

use super::{
    Ctx, EBADF, EINVAL, ENOSPC, EOPNOTSUPP, Suite, assert_errno, checks, pattern, read, write,
};

pub(super) fn all<F: BackendFactory>(suite: &mut Suite<'_, F>) {
    checks!(suite;
        alignment_is_usable,
        a_reader_does_not_write,
        length_follows_writes,
        set_len_cuts_and_extends_with_zeros,
        allocation_extends_and_keeps_content,
        allocation_reserves_blocks,
        absurd_allocations_change_nothing,
        capabilities_name_the_backend,
    );
    let name = suite.factory.name();
    suite.check("the_factory_has_the_same_name", move |ctx| {
        Box::pin(async move { assert_eq!(ctx.backend.capabilities().backend, name) })
    });
}

async fn alignment_is_usable<B: IoBackend>(ctx: Ctx<B>) {
    assert_eq!(ctx.create("buffered", false).await.alignment(), 1);
    if ctx.direct {
        let file = ctx.create("direct", true).await;
        let alignment = file.alignment();
        assert!(alignment.is_power_of_two(), "{alignment}");
        let alignment = usize::try_from(alignment).unwrap();
        assert!(
            alignment > 1 && alignment <= BUFFER_ALIGNMENT,
            "{alignment}"
        );
        // The smallest transfer that the alignment promises.
        let bytes = pattern(7, alignment);
        write(&file, &bytes, alignment as u64 * 3).await;
        assert_eq!(read(&file, alignment as u64 * 3, alignment).await, bytes);
    }
}

async fn a_reader_does_not_write<B: IoBackend>(ctx: Ctx<B>) {
    let bytes = pattern(1, 4096);
    write(&ctx.create("file", false).await, &bytes, 0).await;
    for direct in ctx.modes() {
        let options = OpenOptions::READ.direct(direct);
        let file = ctx.backend.open(&ctx.path("file"), options).await.unwrap();
        assert_eq!(read(&file, 0, 4096).await, bytes);
        let (result, back) = file.write_at(bytes.clone(), 0).await;
        assert_errno(result, EBADF);
        assert_eq!(back, bytes, "the buffer comes back with the error");
        let (result, back) = file.write_durable(bytes.clone(), 0).await;
        assert_errno(result, EBADF);
        assert_eq!(back, bytes, "the buffer comes back with the error");
        assert_errno(file.set_len(0).await, EINVAL);
        assert_errno(file.allocate(8192).await, EBADF);
        assert_eq!(file.len().await.unwrap(), 4096);
    }
}

async fn length_follows_writes<B: IoBackend>(ctx: Ctx<B>) {
    let file = ctx.create("file", false).await;
    assert_eq!(file.len().await.unwrap(), 0);
    write(&file, &pattern(1, 10), 90).await;
    assert_eq!(file.len().await.unwrap(), 100);
    write(&file, &pattern(1, 10), 0).await;
    assert_eq!(file.len().await.unwrap(), 100);
    // The hole reads as zeros.
    assert_eq!(read(&file, 10, 80).await, [0; 80]);
}

async fn set_len_cuts_and_extends_with_zeros<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = ctx.create(&format!("file-{direct}"), direct).await;
        write(&file, &pattern(1, 16384), 0).await;
        file.set_len(4096).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 4096);
        assert_eq!(read(&file, 4096, 4096).await, []);
        file.set_len(12288).await.unwrap();
        assert_eq!(file.len().await.unwrap(), 12288);
        assert_eq!(read(&file, 0, 4096).await, pattern(1, 4096));
        assert_eq!(read(&file, 4096, 16384).await, [0; 8192]);
        assert_errno(file.set_len(u64::MAX).await, EINVAL);
        assert_eq!(file.len().await.unwrap(), 12288);
    }
}

async fn allocation_extends_and_keeps_content<B: IoBackend>(ctx: Ctx<B>) {
    for direct in ctx.modes() {
        let file = ctx.create(&format!("file-{direct}"), direct).await;
        write(&file, &pattern(1, 8192), 0).await;
        match file.allocate(1 << 20).await {
            Ok(()) => {
                assert_eq!(file.len().await.unwrap(), 1 << 20);
                assert_eq!(read(&file, 4096, 8192).await[4096..], [0; 4096]);
                // Never shortens.
                file.allocate(4096).await.unwrap();
                assert_eq!(file.len().await.unwrap(), 1 << 20);
            }
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(EOPNOTSUPP), "{e}");
                assert_eq!(file.len().await.unwrap(), 8192);
            }
        }
        assert_eq!(read(&file, 0, 8192).await, pattern(1, 8192));
    }
}

async fn allocation_reserves_blocks<B: IoBackend>(ctx: Ctx<B>) {
    let file = ctx.create("file", false).await;
    if file.allocate(1 << 20).await.is_ok() {
        let blocks = std::fs::metadata(ctx.path("file")).unwrap().blocks();
        assert!(blocks * 512 >= 1 << 20, "{blocks} blocks of 512 bytes");
    }
}

async fn absurd_allocations_change_nothing<B: IoBackend>(ctx: Ctx<B>) {
    const EFBIG: i32 = 27;
    let file = ctx.create("file", false).await;
    file.set_len(5000).await.unwrap();
    // Zero bytes is no allocation; more than any file can have is refused up front.
    assert!(file.allocate(0).await.is_err());
    for len in [1 << 62, u64::MAX] {
        let e = file.allocate(len).await.expect_err("no disk has that");
        let code = e.raw_os_error().unwrap();
        assert!([EFBIG, EINVAL, ENOSPC, EOPNOTSUPP].contains(&code), "{e}");
        assert_eq!(file.len().await.unwrap(), 5000);
    }
    // tmpfs compares with its size first, so that nothing else is starved by this.
    if ctx.dir.starts_with("/dev/shm") {
        let total = ctx.backend.space(&ctx.dir).await.unwrap().total_bytes;
        assert_errno(file.allocate(total + (1 << 30)).await, ENOSPC);
        assert_eq!(file.len().await.unwrap(), 5000);
    }
}

async fn capabilities_name_the_backend<B: IoBackend>(ctx: Ctx<B>) {
    let capabilities = ctx.backend.capabilities();
    assert!(!capabilities.backend.is_empty());
    assert!(!capabilities.durable_write.is_empty());
    assert!(capabilities.direct_io || !ctx.direct);
}
