//! Where a seccomp filter forbids io_uring, as container runtimes do: an error, an explanation,
//! and the other backend; never a panic.

#![cfg(all(feature = "compio", feature = "tokio", feature = "uring"))]
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

use std::collections::BTreeMap;
use std::rc::Rc;
use std::thread;

use alluvium_backends::compio::CompioFactory;
use alluvium_backends::probe::probe;
use alluvium_backends::tokio::{TokioBackend, TokioFactory};
use alluvium_backends::uring::UringFactory;
use alluvium_backends::{BackendKind, ResolveError};
use alluvium_core::io::{
    AlignedBuf, BackendFactory, IoBackend, IoFile, OpenMode, OpenOptions, ShardSpec,
};
use alluvium_testkit::io_conformance;
use bytes::Bytes;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

const EPERM: u32 = 1;
const ENOMEM: u32 = 12;
const ENOSYS: u32 = 38;
const EMFILE: u32 = 24;
const EIO: u32 = 5;
const EAGAIN: u32 = 11;

// The same numbers on every architecture.
const IO_URING_SETUP: i64 = 425;
const CLONE3: i64 = 435;
// Of older C libraries.
const CLONE: i64 = if cfg!(target_arch = "x86_64") {
    56
} else {
    220
};

/// From now on, a system call fails with `errno` on this thread and those that it starts.
fn deny(call: i64, errno: u32) {
    let filter = SeccompFilter::new(
        BTreeMap::from([(call, vec![])]),
        SeccompAction::Allow,
        SeccompAction::Errno(errno),
        std::env::consts::ARCH.try_into().unwrap(),
    );
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// Runs `body` on a thread where `io_uring_setup` fails with `errno`, there and in all threads
/// that it starts.
fn with_denied_io_uring(errno: u32, body: impl FnOnce() + Send + 'static) {
    let denied = thread::spawn(move || {
        deny(IO_URING_SETUP, errno);
        body();
    });
    denied.join().unwrap();
}

/// A pool without a thread that is refused its first one: an error of that operation. The shard, and
/// what else runs there, goes on.
#[test]
fn a_refused_thread_fails_one_operation_of_tokio() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("file");
    let (sender, receiver) = std::sync::mpsc::channel();
    let main = move |backend: Rc<_>| -> alluvium_core::io::LocalFuture<()> {
        Box::pin(async move {
            let backend: Rc<TokioBackend> = backend;
            let options = OpenOptions {
                mode: OpenMode::CreateNew,
                direct: false,
            };
            let file = backend.open(&path, options).await.unwrap();
            for call in [CLONE3, CLONE] {
                deny(call, EAGAIN);
            }
            let written = file.write_durable(Bytes::from_static(b"ours"), 0).await.0;
            let read = file
                .read_at(AlignedBuf::with_capacity(4096), 0, 4096)
                .await
                .0;
            backend.yield_now().await;
            sender
                .send([written, read, file.sync_data().await.map(|()| 0)])
                .unwrap();
        })
    };
    let spec = ShardSpec {
        name: "denied".to_owned(),
        core: None,
    };
    TokioFactory::new()
        .spawn_shard(spec, Box::new(main))
        .unwrap();
    for result in receiver
        .recv_timeout(std::time::Duration::from_secs(60))
        .unwrap()
    {
        let e = result.unwrap_err();
        // Not one that is tried again: the call may still run.
        assert_eq!(e.kind(), std::io::ErrorKind::Other, "{e}");
    }
}

fn is_refused(factory: &impl BackendFactory, errno: u32) {
    let spec = ShardSpec {
        name: "denied".to_owned(),
        core: None,
    };
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let main = move |_| -> alluvium_core::io::LocalFuture<()> {
        Box::pin(async move { sender.send(()).unwrap() })
    };
    let e = factory.spawn_shard(spec, Box::new(main)).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(i32::try_from(errno).unwrap()), "{e}");
    // What main captured is dropped, main never runs.
    assert!(receiver.recv().is_err());
}

#[test]
fn starting_a_shard_returns_the_kernels_error() {
    for errno in [EPERM, ENOMEM, ENOSYS] {
        with_denied_io_uring(errno, move || {
            is_refused(&CompioFactory::new(), errno);
            is_refused(&UringFactory::new(), errno);
        });
    }
}

#[test]
fn the_probe_explains_and_auto_takes_the_other() {
    for (errno, word) in [
        (EPERM, "seccomp"),
        (ENOMEM, "RLIMIT_MEMLOCK"),
        (ENOSYS, "no io_uring"),
        (EMFILE, "no file descriptor is left"),
        (EIO, "io_uring cannot be set up"),
    ] {
        with_denied_io_uring(errno, move || {
            let results = probe();
            let find = |kind| {
                results
                    .iter()
                    .find(|result| result.backend == kind)
                    .unwrap()
            };
            for kind in [BackendKind::Compio, BackendKind::Uring] {
                let denied = find(kind);
                assert!(denied.compiled && !denied.works);
                assert!(denied.why.contains(word), "{}", denied.why);
                let e: ResolveError = kind.resolve().unwrap_err();
                assert!(e.to_string().contains(word), "{e}");
            }
            assert!(find(BackendKind::Tokio).works);

            let resolved = BackendKind::Auto.resolve().unwrap();
            assert_eq!(resolved.kind, BackendKind::Tokio);
            assert!(resolved.why.contains(word), "{}", resolved.why);
        });
    }
}

#[test]
fn tokio_needs_no_io_uring() {
    with_denied_io_uring(EPERM, || {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        io_conformance::run(&TokioFactory::new(), dir.path());
    });
}

#[cfg(feature = "glommio")]
#[test]
fn glommio_gets_an_error_instead_of_a_panic() {
    use alluvium_backends::glommio::GlommioFactory;
    for (errno, word) in [
        (EPERM, "seccomp"),
        (ENOMEM, "RLIMIT_MEMLOCK"),
        (ENOSYS, "no io_uring"),
    ] {
        with_denied_io_uring(errno, move || {
            let spec = ShardSpec {
                name: "denied".to_owned(),
                core: None,
            };
            let main = |_| -> alluvium_core::io::LocalFuture<()> { Box::pin(async {}) };
            let e = GlommioFactory::new()
                .spawn_shard(spec, Box::new(main))
                .unwrap_err();
            assert_eq!(e.raw_os_error(), Some(i32::try_from(errno).unwrap()), "{e}");
            let e = BackendKind::Glommio.resolve().unwrap_err();
            assert!(e.to_string().contains(word), "{e}");
        });
    }
}
