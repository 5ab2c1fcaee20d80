//! A panic that hits the event loop itself, not a task: who waits for the shard hears of its end.

use std::rc::Rc;
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use alluvium_core::io::{BackendFactory, IoBackend, LocalFuture, OpenOptions, ShardSpec};

/// Wakes by panicking.
struct Trap;

impl Wake for Trap {
    fn wake(self: Arc<Self>) {
        panic!("planted in a waker");
    }
}

fn main_is_dropped(factory: &impl BackendFactory) {
    let _alone = alluvium_testkit::alone();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("LOCK");
    let (held, gone) = mpsc::channel::<()>();
    let spec = ShardSpec {
        name: "trapped".to_owned(),
        core: None,
    };
    let started = factory.spawn_shard(
        spec,
        Box::new(move |backend: Rc<_>| -> LocalFuture<()> {
            Box::pin(async move {
                // A file is let go on the way out, too.
                let _file = IoBackend::open(backend.as_ref(), &path, OpenOptions::CREATE_NEW)
                    .await
                    .unwrap();
                let _held = held;
                let yields = backend.yield_now();
                let mut yields = std::pin::pin!(yields);
                let trap = Waker::from(Arc::new(Trap));
                assert!(
                    yields
                        .as_mut()
                        .poll(&mut Context::from_waker(&trap))
                        .is_pending()
                );
                std::future::pending::<()>().await;
            })
        }),
    );
    started.unwrap();
    let heard = gone.recv_timeout(Duration::from_secs(30));
    assert_eq!(heard, Err(mpsc::RecvTimeoutError::Disconnected));
}

#[cfg(feature = "uring")]
#[test]
fn on_uring() {
    main_is_dropped(&alluvium_backends::uring::UringFactory::new());
}

#[cfg(feature = "glommio")]
#[test]
fn on_glommio() {
    main_is_dropped(&alluvium_backends::glommio::GlommioFactory::new());
}
