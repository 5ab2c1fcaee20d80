//! Where a seccomp filter forbids io_uring, as container runtimes do: an error, an explanation,
//! and the other backend; never a panic.

#![cfg(all(feature = "compio", feature = "tokio", feature = "uring"))]
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

use std::collections::BTreeMap;
use std::thread;

use alluvium_backends::compio::CompioFactory;
use alluvium_backends::probe::probe;
use alluvium_backends::tokio::TokioFactory;
use alluvium_backends::uring::UringFactory;
use alluvium_backends::{BackendKind, ResolveError};
use alluvium_core::io::{BackendFactory, ShardSpec};
use alluvium_testkit::io_conformance;
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

const EPERM: u32 = 1;
const ENOMEM: u32 = 12;
const ENOSYS: u32 = 38;
const EMFILE: u32 = 24;
const EIO: u32 = 5;

/// Runs `body` on a thread where `io_uring_setup` fails with `errno`, there and in all threads
/// that it starts.
fn with_denied_io_uring(errno: u32, body: impl FnOnce() + Send + 'static) {
    // The same number on every architecture.
    const IO_URING_SETUP: i64 = 425;
    let denied = thread::spawn(move || {
        let filter = SeccompFilter::new(
            BTreeMap::from([(IO_URING_SETUP, vec![])]),
            SeccompAction::Allow,
            SeccompAction::Errno(errno),
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let program: BpfProgram = filter.unwrap().try_into().unwrap();
        seccompiler::apply_filter(&program).unwrap();
        body();
    });
    denied.join().unwrap();
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
