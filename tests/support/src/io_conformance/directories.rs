//! Names: open, list, kind, create, rename, remove, sync, space.

use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::Path;

use alluvium_core::io::{BackendFactory, EntryKind, IoBackend, IoFile, OpenOptions};

use super::{
    Ctx, EEXIST, EINVAL, EISDIR, ELOOP, ENOENT, ENOTDIR, ENOTEMPTY, Suite, assert_errno, checks,
    pattern, read, write,
};

pub(super) fn all<F: BackendFactory>(suite: &mut Suite<'_, F>) {
    checks!(suite;
        opening_needs_what_it_says,
        creating_needs_a_free_name,
        links_are_not_followed,
        only_regular_files_open,
        a_new_file_is_private,
        descriptors_close_on_exec,
        listing_is_complete_and_typed,
        directories_come_and_go,
        renaming_replaces,
        renaming_what_is_not_there,
        removing,
        syncing_a_directory,
        space_is_reported,
        odd_names_pass_through,
    );
}

async fn opening_needs_what_it_says<B: IoBackend>(ctx: Ctx<B>) {
    let b = &ctx.backend;
    let absent = ctx.path("absent");
    assert_errno(b.open(&absent, OpenOptions::READ).await, ENOENT);
    assert_errno(b.open(&absent, OpenOptions::READ_WRITE).await, ENOENT);
    assert_errno(b.kind(&absent).await, ENOENT);
    assert_errno(
        b.open(&ctx.path("no/such"), OpenOptions::CREATE_NEW).await,
        ENOENT,
    );
    drop(ctx.create("file", false).await);
    assert_errno(
        b.open(&ctx.path("file/below"), OpenOptions::READ).await,
        ENOTDIR,
    );
    b.open(&ctx.path("file"), OpenOptions::READ).await.unwrap();
    b.open(&ctx.path("file"), OpenOptions::READ_WRITE)
        .await
        .unwrap();
}

async fn creating_needs_a_free_name<B: IoBackend>(ctx: Ctx<B>) {
    let file = ctx.create("file", false).await;
    write(&file, &pattern(1, 100), 0).await;
    drop(file);
    for direct in ctx.modes() {
        let options = OpenOptions::CREATE_NEW.direct(direct);
        assert_errno(ctx.backend.open(&ctx.path("file"), options).await, EEXIST);
    }
    let file = ctx
        .backend
        .open(&ctx.path("file"), OpenOptions::READ)
        .await
        .unwrap();
    assert_eq!(read(&file, 0, 200).await, pattern(1, 100));
}

async fn links_are_not_followed<B: IoBackend>(ctx: Ctx<B>) {
    let b = &ctx.backend;
    drop(ctx.create("file", false).await);
    symlink(ctx.path("file"), ctx.path("link")).unwrap();
    symlink(ctx.path("absent"), ctx.path("dangling")).unwrap();
    assert_errno(b.open(&ctx.path("link"), OpenOptions::READ).await, ELOOP);
    assert_errno(
        b.open(&ctx.path("link"), OpenOptions::READ_WRITE).await,
        ELOOP,
    );
    assert_errno(
        b.open(&ctx.path("dangling"), OpenOptions::CREATE_NEW).await,
        EEXIST,
    );
    assert_errno(b.kind(&ctx.path("absent")).await, ENOENT);
    assert_eq!(b.kind(&ctx.path("link")).await.unwrap(), EntryKind::Other);
    assert_eq!(
        b.kind(&ctx.path("dangling")).await.unwrap(),
        EntryKind::Other
    );
}

async fn only_regular_files_open<B: IoBackend>(ctx: Ctx<B>) {
    let b = &ctx.backend;
    assert_errno(b.open(&ctx.dir, OpenOptions::READ).await, EISDIR);
    assert_errno(b.open(&ctx.dir, OpenOptions::READ_WRITE).await, EISDIR);
    assert_errno(
        b.open(Path::new("/dev/null"), OpenOptions::READ_WRITE)
            .await,
        EINVAL,
    );
    // A FIFO without a peer would make a plain open wait for ever.
    let fifo = ctx.path("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    if made.is_ok_and(|status| status.success()) {
        assert!(std::fs::metadata(&fifo).unwrap().file_type().is_fifo());
        assert_errno(b.open(&fifo, OpenOptions::READ).await, EINVAL);
        assert_eq!(b.kind(&fifo).await.unwrap(), EntryKind::Other);
    }
}

async fn a_new_file_is_private<B: IoBackend>(ctx: Ctx<B>) {
    drop(ctx.create("file", false).await);
    ctx.backend.create_dir(&ctx.path("dir")).await.unwrap();
    let mode = |name| {
        std::fs::metadata(ctx.path(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    };
    assert_eq!(mode("file"), 0o600);
    assert_eq!(mode("dir"), 0o700);
}

async fn descriptors_close_on_exec<B: IoBackend>(ctx: Ctx<B>) {
    let _file = ctx.create("inherited-by-nobody", false).await;
    let output = std::process::Command::new("ls")
        .args(["-l", "/proc/self/fd"])
        .output()
        .unwrap();
    let listing = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && listing.contains("->"),
        "{listing}"
    );
    assert!(!listing.contains("inherited-by-nobody"), "{listing}");
}

async fn listing_is_complete_and_typed<B: IoBackend>(ctx: Ctx<B>) {
    let b = &ctx.backend;
    assert_eq!(b.list(&ctx.dir).await.unwrap(), []);
    for i in 0..300 {
        drop(ctx.create(&format!("file-{i:03}"), false).await);
    }
    b.create_dir(&ctx.path("dir")).await.unwrap();
    symlink("dir", ctx.path("link")).unwrap();
    let mut entries = b.list(&ctx.dir).await.unwrap();
    entries.sort_by(|x, y| x.name.cmp(&y.name));
    assert_eq!(entries.len(), 302);
    assert_eq!(
        (entries[0].name.to_str(), entries[0].kind),
        (Some("dir"), EntryKind::Dir)
    );
    for (i, entry) in entries[1..301].iter().enumerate() {
        assert_eq!(entry.name.to_str(), Some(format!("file-{i:03}").as_str()));
        assert_eq!(entry.kind, EntryKind::File);
    }
    assert_eq!(
        (entries[301].name.to_str(), entries[301].kind),
        (Some("link"), EntryKind::Other)
    );
    assert_errno(b.list(&ctx.path("absent")).await, ENOENT);
    assert_errno(b.list(&ctx.path("file-000")).await, ENOTDIR);
}

async fn directories_come_and_go<B: IoBackend>(ctx: Ctx<B>) {
    let b = &ctx.backend;
    let dir = ctx.path("dir");
    b.create_dir(&dir).await.unwrap();
    assert_eq!(b.kind(&dir).await.unwrap(), EntryKind::Dir);
    assert_errno(b.create_dir(&dir).await, EEXIST);
    assert_errno(b.create_dir(&ctx.path("a/b")).await, ENOENT);
    drop(
        b.open(&dir.join("file"), OpenOptions::CREATE_NEW)
            .await
            .unwrap(),
    );
    assert_errno(b.create_dir(&dir.join("file")).await, EEXIST);
    assert_errno(b.remove_dir(&dir).await, ENOTEMPTY);
    assert_errno(b.remove_dir(&dir.join("file")).await, ENOTDIR);
    b.remove_file(&dir.join("file")).await.unwrap();
    b.remove_dir(&dir).await.unwrap();
    assert_errno(b.kind(&dir).await, ENOENT);
    assert_errno(b.remove_dir(&dir).await, ENOENT);
}

async fn renaming_replaces<B: IoBackend>(ctx: Ctx<B>) {
    let b = &ctx.backend;
    let (new, old) = (
        ctx.create("new", false).await,
        ctx.create("old", false).await,
    );
    write(&new, &pattern(1, 64), 0).await;
    write(&old, &pattern(2, 64), 0).await;
    b.rename(&ctx.path("new"), &ctx.path("old")).await.unwrap();
    assert_errno(b.kind(&ctx.path("new")).await, ENOENT);
    let now = b.open(&ctx.path("old"), OpenOptions::READ).await.unwrap();
    assert_eq!(read(&now, 0, 64).await, pattern(1, 64));
    // Who had the replaced file open keeps it.
    assert_eq!(read(&old, 0, 64).await, pattern(2, 64));
}

async fn renaming_what_is_not_there<B: IoBackend>(ctx: Ctx<B>) {
    let b = &ctx.backend;
    assert_errno(b.rename(&ctx.path("absent"), &ctx.path("x")).await, ENOENT);
    drop(ctx.create("file", false).await);
    assert_errno(
        b.rename(&ctx.path("file"), &ctx.path("no/such")).await,
        ENOENT,
    );
    b.create_dir(&ctx.path("dir")).await.unwrap();
    assert_errno(b.rename(&ctx.path("file"), &ctx.path("dir")).await, EISDIR);
    assert_eq!(b.kind(&ctx.path("file")).await.unwrap(), EntryKind::File);
}

async fn removing<B: IoBackend>(ctx: Ctx<B>) {
    let b = &ctx.backend;
    assert_errno(b.remove_file(&ctx.path("absent")).await, ENOENT);
    b.create_dir(&ctx.path("dir")).await.unwrap();
    assert_errno(b.remove_file(&ctx.path("dir")).await, EISDIR);
    let file = ctx.create("file", false).await;
    write(&file, &pattern(3, 64), 0).await;
    b.remove_file(&ctx.path("file")).await.unwrap();
    assert_errno(b.kind(&ctx.path("file")).await, ENOENT);
    // The open file lives on until it is dropped.
    assert_eq!(read(&file, 0, 64).await, pattern(3, 64));
    assert_eq!(file.len().await.unwrap(), 64);
}

async fn syncing_a_directory<B: IoBackend>(ctx: Ctx<B>) {
    drop(ctx.create("file", false).await);
    ctx.backend.sync_dir(&ctx.dir).await.unwrap();
    assert_errno(ctx.backend.sync_dir(&ctx.path("absent")).await, ENOENT);
    assert_errno(ctx.backend.sync_dir(&ctx.path("file")).await, ENOTDIR);
}

async fn space_is_reported<B: IoBackend>(ctx: Ctx<B>) {
    let space = ctx.backend.space(&ctx.dir).await.unwrap();
    assert!(space.total_bytes > 0);
    assert!(space.available_bytes <= space.total_bytes);
    // In bytes, not in blocks: nobody tests on less than a mebibyte.
    assert!(space.total_bytes > 1 << 20, "{space:?}");
    assert_errno(ctx.backend.space(&ctx.path("absent")).await, ENOENT);
}

async fn odd_names_pass_through<B: IoBackend>(ctx: Ctx<B>) {
    let odd = std::ffi::OsString::from_vec(b"not utf-8: \xff\n".to_vec());
    drop(
        ctx.backend
            .open(&ctx.dir.join(&odd), OpenOptions::CREATE_NEW)
            .await
            .unwrap(),
    );
    let entries = ctx.backend.list(&ctx.dir).await.unwrap();
    assert_eq!(entries.len(), 1);
    assert_eq!(entries[0].name, odd);
    // A NUL cannot be in a name: an error, not a shorter name.
    let nul = ctx.path("nul\0tail");
    assert!(
        ctx.backend
            .open(&nul, OpenOptions::CREATE_NEW)
            .await
            .is_err()
    );
    assert!(ctx.backend.kind(&ctx.path("nul")).await.is_err());
}
