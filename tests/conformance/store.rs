//! Runs the suite of the whole store on every backend, and stores across backends.

use std::path::Path;

use alluvium_testkit::store_conformance::{self, Host, SimHost};

fn in_fresh_dir(parent: &Path, body: impl FnOnce(&Path)) {
    if !parent.is_dir() {
        return;
    }
    let dir = tempfile::Builder::new()
        .prefix("store-")
        .tempdir_in(parent)
        .unwrap();
    body(dir.path());
}

fn on_disk(host: &(impl Host + Clone + 'static)) {
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    in_fresh_dir(parent, |dir| store_conformance::run(host, dir));
}

fn in_memory(host: &(impl Host + Clone + 'static)) {
    in_fresh_dir(Path::new("/dev/shm"), |dir| {
        store_conformance::run(host, dir);
    });
}

#[test]
fn sim() {
    for seed in 0..3 {
        let (sim, host) = SimHost::from_seed(seed);
        sim.create_dir_all("/checks").unwrap();
        store_conformance::run(&host, Path::new("/checks"));
    }
}

#[cfg(feature = "tokio")]
mod tokio {
    use alluvium_backends::tokio::TokioFactory;
    use alluvium_testkit::store_conformance::RealHost;

    #[test]
    fn on_disk() {
        super::on_disk(&RealHost::new(TokioFactory::new()));
    }

    #[test]
    fn in_memory() {
        super::in_memory(&RealHost::new(TokioFactory::new()));
    }
}

#[cfg(feature = "compio")]
mod compio {
    use alluvium_backends::compio::CompioFactory;
    use alluvium_testkit::store_conformance::RealHost;

    #[test]
    fn on_disk() {
        super::on_disk(&RealHost::new(CompioFactory::new()));
    }

    #[test]
    fn in_memory() {
        super::in_memory(&RealHost::new(CompioFactory::new()));
    }
}

#[cfg(feature = "uring")]
mod uring {
    use alluvium_backends::uring::UringFactory;
    use alluvium_testkit::store_conformance::RealHost;

    #[test]
    fn on_disk() {
        super::on_disk(&RealHost::new(UringFactory::new()));
    }

    #[test]
    fn with_registered_memory() {
        super::on_disk(&RealHost::new(
            UringFactory::new().registered_bytes(8 << 20),
        ));
    }

    #[test]
    fn in_memory() {
        super::in_memory(&RealHost::new(UringFactory::new()));
    }
}

#[cfg(feature = "glommio")]
mod glommio {
    use alluvium_backends::glommio::GlommioFactory;
    use alluvium_testkit::store_conformance::RealHost;

    #[test]
    fn on_disk() {
        super::on_disk(&RealHost::new(GlommioFactory::new()));
    }

    #[test]
    fn in_memory() {
        super::in_memory(&RealHost::new(GlommioFactory::new()));
    }
}

#[cfg(all(feature = "tokio", feature = "compio", feature = "uring"))]
#[test]
fn what_one_backend_wrote_the_other_reads() {
    use alluvium_backends::compio::CompioFactory;
    use alluvium_backends::tokio::TokioFactory;
    use alluvium_backends::uring::UringFactory;
    use alluvium_testkit::store_conformance::RealHost;

    let (a, b, c) = (
        RealHost::new(TokioFactory::new()),
        RealHost::new(CompioFactory::new()),
        RealHost::new(UringFactory::new()),
    );
    for parent in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
        in_fresh_dir(Path::new(parent), |dir| {
            store_conformance::run_across(&a, &b, dir);
            store_conformance::run_across(&b, &a, dir);
        });
        in_fresh_dir(Path::new(parent), |dir| {
            store_conformance::run_across(&a, &c, dir);
            store_conformance::run_across(&c, &a, dir);
        });
    }
}

#[cfg(all(feature = "tokio", feature = "glommio"))]
#[test]
fn what_glommio_wrote_the_other_reads() {
    use alluvium_backends::glommio::GlommioFactory;
    use alluvium_backends::tokio::TokioFactory;
    use alluvium_testkit::store_conformance::RealHost;

    let (a, b) = (
        RealHost::new(TokioFactory::new()),
        RealHost::new(GlommioFactory::new()),
    );
    for parent in [env!("CARGO_TARGET_TMPDIR"), "/dev/shm"] {
        in_fresh_dir(Path::new(parent), |dir| {
            store_conformance::run_across(&a, &b, dir);
            store_conformance::run_across(&b, &a, dir);
        });
    }
}
