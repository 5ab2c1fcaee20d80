//! Runs the conformance suite on every backend of this build, on a disk and in memory.

#![cfg(any(
    feature = "tokio",
    feature = "compio",
    feature = "glommio",
    feature = "uring"
))]
#![allow(
    clippy::unwrap_used,
    reason = "a panic is how a test reports a failure"
)]

use std::path::Path;

use alluvium_core::io::BackendFactory;
use alluvium_testkit::io_conformance::{self, Allowances};

mod cross_backend;
mod denied_io_uring;
mod hops;
#[cfg(any(feature = "glommio", feature = "uring"))]
mod panics;
mod registered;
mod store;
mod wakes;

/// On the file system of the build directory: a real disk as a rule.
fn on_disk(factory: &impl BackendFactory) {
    on_disk_with(factory, Allowances::default());
}

fn on_disk_with(factory: &impl BackendFactory, allowances: Allowances) {
    in_fresh_dir(factory, Path::new(env!("CARGO_TARGET_TMPDIR")), allowances);
}

/// On tmpfs, where direct I/O depends on the kernel.
fn in_memory(factory: &impl BackendFactory) {
    in_memory_with(factory, Allowances::default());
}

fn in_memory_with(factory: &impl BackendFactory, allowances: Allowances) {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() {
        in_fresh_dir(factory, shm, allowances);
    }
}

fn in_fresh_dir(factory: &impl BackendFactory, parent: &Path, allowances: Allowances) {
    let dir = tempfile::Builder::new()
        .prefix("conformance-")
        .tempdir_in(parent)
        .unwrap();
    io_conformance::run_with(factory, dir.path(), allowances);
}

#[cfg(feature = "tokio")]
mod tokio {
    use alluvium_backends::tokio::TokioFactory;

    #[test]
    fn on_disk() {
        super::on_disk(&TokioFactory::new());
    }

    #[test]
    fn in_memory() {
        super::in_memory(&TokioFactory::new());
    }

    #[test]
    fn one_blocking_thread_is_enough() {
        super::in_memory(&TokioFactory::new().blocking_threads_max(1));
    }
}

/// Where io_uring is forbidden these fail: a build that asks for compio has to know.
#[cfg(feature = "compio")]
mod compio {
    use alluvium_backends::compio::CompioFactory;

    #[test]
    fn on_disk() {
        super::on_disk(&CompioFactory::new());
    }

    #[test]
    fn in_memory() {
        super::in_memory(&CompioFactory::new());
    }

    #[test]
    fn a_tiny_ring_is_enough() {
        super::on_disk(&CompioFactory::new().ring_entries(2));
    }
}

/// As above: a build that asks for it has to know.
#[cfg(feature = "uring")]
mod uring {
    use std::time::Duration;

    use alluvium_backends::uring::UringFactory;

    #[test]
    fn on_disk() {
        super::on_disk(&UringFactory::new());
    }

    #[test]
    fn in_memory() {
        super::in_memory(&UringFactory::new());
    }

    #[test]
    fn a_tiny_ring_is_enough() {
        super::on_disk(&UringFactory::new().ring_entries(2));
    }

    #[test]
    fn without_spinning() {
        super::on_disk(&UringFactory::new().spin(Duration::ZERO));
    }

    #[test]
    fn with_registered_memory() {
        super::on_disk(&UringFactory::new().registered_bytes(8 << 20));
    }

    #[test]
    fn with_a_polling_thread() {
        let idle = Some(Duration::from_millis(10));
        super::on_disk(&UringFactory::new().sqpoll_idle(idle));
    }
}

/// Where io_uring is forbidden these fail: a build that asks for glommio has to know.
#[cfg(feature = "glommio")]
mod glommio {
    use alluvium_backends::glommio::GlommioFactory;
    use alluvium_testkit::io_conformance::Allowances;

    /// glommio frees the headers of its tasks without dropping them, and with each the last way to
    /// close its executor's event descriptor.
    const KNOWN: Allowances = Allowances {
        descriptors_left_per_shard: 1,
    };

    #[test]
    fn on_disk() {
        super::on_disk_with(&GlommioFactory::new(), KNOWN);
    }

    #[test]
    fn in_memory() {
        super::in_memory_with(&GlommioFactory::new(), KNOWN);
    }

    #[test]
    fn tiny_rings_and_buffers_are_enough() {
        super::on_disk_with(
            &GlommioFactory::new().ring_entries(1).io_memory_bytes(0),
            KNOWN,
        );
    }
}
