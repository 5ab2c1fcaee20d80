//! Files mapped into memory.

use std::future::Future;
use std::io::ErrorKind;
use std::pin::pin;
use std::task::{Context, Waker};

use alluvium_core::io::{BackendFactory, FileMap, IoBackend, IoFile, LockKind, OpenOptions};
use bytes::Bytes;

use super::{Ctx, EINVAL, EISDIR, ELOOP, ENOENT, Suite, assert_errno, checks, pattern, write};

pub(super) fn all<F: BackendFactory>(suite: &mut Suite<'_, F>) {
    checks!(suite;
        a_mapping_shows_the_file,
        a_mapping_is_known_by_the_file_until_its_last_bytes_go,
        a_mapping_holds_no_lock,
        what_cannot_be_read_is_an_error,
        populating_may_be_given_up,
    );
}

/// A mapping of the file; `None` on the one backend that has none, which must say so.
fn map<B: IoBackend>(ctx: &Ctx<B>, name: &str, len: usize) -> Option<FileMap> {
    match ctx.backend.map(&ctx.path(name), len) {
        Ok(map) => Some(map),
        Err(e) => {
            assert_eq!(ctx.backend.capabilities().backend, "sim", "{e}");
            assert_eq!(e.kind(), ErrorKind::Unsupported);
            assert!(!ctx.backend.is_mapped(&ctx.path(name)));
            None
        }
    }
}

async fn filled<B: IoBackend>(ctx: &Ctx<B>, name: &str) -> (B::File, Bytes) {
    let file = ctx.create(name, ctx.direct).await;
    let bytes = pattern(3, 64 << 10);
    write(&file, &bytes, 0).await;
    (file, bytes)
}

async fn a_mapping_shows_the_file<B: IoBackend>(ctx: Ctx<B>) {
    let (_file, bytes) = filled(&ctx, "file").await;
    let Some(whole) = map(&ctx, "file", 64 << 10) else {
        return;
    };
    for range in [0..4096, 60 << 10..64 << 10, 0..64 << 10] {
        ctx.backend.populate(&whole, range.clone()).await.unwrap();
        assert_eq!(whole.bytes(range.clone()).unwrap(), bytes[range]);
    }
    let beyond = 60 << 10..(64 << 10) + 1;
    assert_eq!(whole.bytes(beyond.clone()), None);
    assert_errno(ctx.backend.populate(&whole, beyond).await, EINVAL);
    let longer = ctx.backend.map(&ctx.path("file"), (64 << 10) + 1);
    assert_eq!(longer.unwrap_err().kind(), ErrorKind::InvalidInput);
    assert_errno(ctx.backend.map(&ctx.path("nothing"), 1), ENOENT);
    std::os::unix::fs::symlink(ctx.path("file"), ctx.path("link")).unwrap();
    assert_errno(ctx.backend.map(&ctx.path("link"), 1), ELOOP);
    assert_errno(ctx.backend.map(&ctx.dir, 1), EISDIR);
}

async fn a_mapping_is_known_by_the_file_until_its_last_bytes_go<B: IoBackend>(ctx: Ctx<B>) {
    let (_file, bytes) = filled(&ctx, "file").await;
    drop(filled(&ctx, "other").await);
    let Some(whole) = map(&ctx, "file", 4096) else {
        return;
    };
    let part = whole.bytes(100..200).unwrap();
    drop(whole);
    let (old, new) = (ctx.path("file"), ctx.path("renamed"));
    ctx.backend.rename(&old, &new).await.unwrap();
    assert!(ctx.backend.is_mapped(&new));
    assert!(!ctx.backend.is_mapped(&ctx.path("other")));
    ctx.backend.remove_file(&new).await.unwrap();
    assert_eq!(part, bytes[100..200], "a removed file stays as it was");
    drop(part);
    assert!(!ctx.backend.is_mapped(&ctx.path("other")));
}

async fn a_mapping_holds_no_lock<B: IoBackend>(ctx: Ctx<B>) {
    let (file, bytes) = filled(&ctx, "file").await;
    assert!(file.try_lock(LockKind::Exclusive).unwrap());
    let Some(whole) = map(&ctx, "file", 4096) else {
        return;
    };
    drop(file);
    let path = ctx.path("file");
    let opened = ctx.backend.open(&path, OpenOptions::READ).await.unwrap();
    assert!(opened.try_lock(LockKind::Exclusive).unwrap());
    assert_eq!(whole.bytes(0..4096).unwrap(), bytes[..4096]);
}

async fn what_cannot_be_read_is_an_error<B: IoBackend>(ctx: Ctx<B>) {
    let (file, _) = filled(&ctx, "file").await;
    let Some(whole) = map(&ctx, "file", 64 << 10) else {
        return;
    };
    // The one thing that must not be done; looking at these bytes would kill the process.
    file.set_len(0).await.unwrap();
    let populated = ctx.backend.populate(&whole, 0..64 << 10).await;
    assert!(populated.is_err());
}

async fn populating_may_be_given_up<B: IoBackend>(ctx: Ctx<B>) {
    let (_file, bytes) = filled(&ctx, "file").await;
    let Some(whole) = map(&ctx, "file", 64 << 10) else {
        return;
    };
    for _ in 0..20 {
        let populating = pin!(ctx.backend.populate(&whole, 0..64 << 10));
        let polled = populating.poll(&mut Context::from_waker(Waker::noop()));
        assert!(!matches!(polled, std::task::Poll::Ready(Err(_))));
    }
    drop(whole);
    let again = map(&ctx, "file", 64 << 10).unwrap();
    ctx.backend.populate(&again, 0..64 << 10).await.unwrap();
    assert_eq!(again.bytes(0..64 << 10).unwrap(), bytes);
}
