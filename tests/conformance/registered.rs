//! Files in the ring's table: a lock ends with its file, and a full table is no obstacle.

#![cfg(feature = "uring")]

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use alluvium_backends::uring::{UringBackend, UringFactory};
use alluvium_core::io::{
    AlignedBuf, BackendFactory, IoBackend, IoFile, LocalFuture, LockKind, OpenOptions, ShardSpec,
};

/// Runs `body` as the main of a shard, with a directory of its own on a disk.
fn on_shard<T: Future<Output = ()> + 'static>(
    body: impl FnOnce(Rc<UringBackend>, PathBuf) -> T + Send + 'static,
) {
    let _alone = alluvium_testkit::alone();
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().to_owned();
    let (ended, has_ended) = mpsc::channel();
    let main = move |backend| -> LocalFuture<()> {
        Box::pin(async move {
            body(backend, path).await;
            ended.send(()).unwrap();
        })
    };
    let spec = ShardSpec {
        name: "registered".to_owned(),
        core: None,
    };
    UringFactory::new()
        .spawn_shard(spec, Box::new(main))
        .unwrap();
    has_ended
        .recv_timeout(Duration::from_secs(60))
        .expect("it panicked or hangs");
}

fn block(seed: usize) -> bytes::Bytes {
    let mut buf = AlignedBuf::with_capacity(4096);
    while buf.len() < 4096 {
        buf.extend_from_slice(&seed.to_le_bytes());
    }
    buf.freeze()
}

#[test]
fn a_lock_ends_when_its_file_is_dropped() {
    on_shard(async |backend: Rc<UringBackend>, dir: PathBuf| {
        let path = dir.join("locked");
        drop(backend.open(&path, OpenOptions::CREATE_NEW).await.unwrap());
        for round in 0..200 {
            let file = backend.open(&path, OpenOptions::READ_WRITE).await.unwrap();
            assert!(file.try_lock(LockKind::Exclusive).unwrap(), "{round}");
            file.write_durable(block(round), 0).await.0.unwrap();
            let other = std::fs::File::open(&path).unwrap();
            assert!(other.try_lock().is_err(), "the lock is held");
            drop(file);
            // At once, without another turn of the loop: nothing is under way.
            assert!(other.try_lock().is_ok(), "round {round}");
        }
    });
}

/// Whether a ring of this process has a file of this name in its table.
fn is_registered(name: &str) -> bool {
    let infos = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    let texts = infos.filter_map(|info| std::fs::read_to_string(info.unwrap().path()).ok());
    texts.into_iter().any(|text| text.contains(name))
}

/// The table of a process that was killed lasts as long as its slowest operation: what does no
/// transfers, as the lock of a store, must not lie there.
#[test]
fn a_file_is_registered_with_its_first_transfer() {
    on_shard(async |backend: Rc<UringBackend>, dir: PathBuf| {
        let path = dir.join("registered-late");
        let file = backend.open(&path, OpenOptions::CREATE_NEW).await.unwrap();
        assert!(file.try_lock(LockKind::Exclusive).unwrap());
        assert_eq!(file.len().await.unwrap(), 0);
        assert!(!is_registered("registered-late"));
        file.write_at(block(1), 0).await.0.unwrap();
        assert!(is_registered("registered-late"));
        drop(file);
        assert!(!is_registered("registered-late"));
    });
}

#[test]
fn a_lock_outlives_its_handle_while_an_operation_is_under_way() {
    on_shard(async |backend: Rc<UringBackend>, dir: PathBuf| {
        let path = dir.join("fenced");
        let file = backend.open(&path, OpenOptions::CREATE_NEW).await.unwrap();
        assert!(file.try_lock(LockKind::Exclusive).unwrap());
        let file = Rc::new(file);
        let (writer, written) = (Rc::clone(&file), Rc::new(std::cell::Cell::new(false)));
        let flag = Rc::clone(&written);
        backend.spawn(Box::pin(async move {
            let write = writer.write_durable(block(1), 0);
            let mut write = std::pin::pin!(write);
            // Handed to the ring, then abandoned together with the last handle.
            std::future::poll_fn(|cx| {
                assert!(write.as_mut().poll(cx).is_pending());
                std::task::Poll::Ready(())
            })
            .await;
            flag.set(true);
        }));
        drop(file);
        while !written.get() {
            backend.yield_now().await;
        }
        let other = std::fs::File::open(&path).unwrap();
        while other.try_lock().is_err() {
            backend.sleep(Duration::from_millis(1)).await;
        }
        // Who gets the lock sees everything that was ever going to be written.
        assert_eq!(std::fs::read(&path).unwrap(), block(1));
    });
}

#[test]
fn more_files_than_the_table_holds() {
    // The table has 1024 places; the process may have fewer descriptors than that.
    const FILES: usize = 1100;
    on_shard(async |backend: Rc<UringBackend>, dir: PathBuf| {
        for round in 0..2 {
            let mut files = vec![];
            for i in 0..FILES {
                let path = dir.join(format!("{round}-{i}"));
                match backend.open(&path, OpenOptions::CREATE_NEW).await {
                    Ok(file) => files.push(file),
                    Err(e) => {
                        assert_eq!(e.raw_os_error(), Some(24), "EMFILE or nothing: {e}");
                        break;
                    }
                }
                let Some(file) = files.last() else { continue };
                file.write_at(block(i), 0).await.0.unwrap();
                if i % 3 == 0 {
                    // Places come free in no order.
                    files.swap_remove(i / 3 % files.len());
                }
            }
            for file in &files {
                let (result, buf) = file.read_at(AlignedBuf::with_capacity(4096), 0, 4096).await;
                assert_eq!(result.unwrap(), 4096);
                assert_eq!(buf[..8], buf[4088..], "a block of one pattern");
            }
        }
    });
}
