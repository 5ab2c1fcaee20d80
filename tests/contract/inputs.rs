//! Paths that are no store: each gets an error that names it, and nothing is changed.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use alluvium::backends::tokio::TokioFactory;
use alluvium::{Error, Result, Store};
use alluvium_testkit::logs::{close, fill, small, verify};

use crate::machine::{
    DIR, EIO, ENOSPC, EROFS, check_answers, machine, path_of, store_and_partition, try_open,
};

/// Opens on a real file system.
fn open_real(path: &Path, create: bool) -> Result<Store> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let builder = Store::builder(path).configure(small).create(create);
        let (store, _) = builder.backend(TokioFactory::new()).open().await?;
        Ok(store)
    })
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort_unstable();
    names
}

type Expected<'a> = &'a dyn Fn(&Error) -> bool;

#[test]
fn paths_that_are_no_store() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = dir.path();
    fs::write(root.join("file"), b"text").unwrap();
    fs::create_dir(root.join("foreign")).unwrap();
    fs::write(root.join("foreign/data.db"), b"mine").unwrap();
    fs::create_dir(root.join("empty")).unwrap();
    fs::create_dir(root.join("other")).unwrap();
    fs::write(root.join("other/STORE"), b"SQLite format 3\0 and more").unwrap();
    fs::create_dir(root.join("directory")).unwrap();
    fs::create_dir(root.join("directory/STORE")).unwrap();
    symlink(root.join("empty"), root.join("link")).unwrap();
    symlink(root.join("loop"), root.join("loop")).unwrap();
    let before = names(root);
    let not_a_store = |e: &Error| matches!(e, Error::NotAStore { .. });
    let errno = |code: i32| move |e: &Error| matches!(e, Error::Io { source, .. } if source.code == Some(code));
    let (enotdir, eloop) = (errno(20), errno(40));
    let cases: [(&str, bool, Expected<'_>); 12] = [
        ("missing", false, &not_a_store),
        ("missing/deeper", true, &not_a_store),
        ("file", true, &not_a_store),
        ("file", false, &not_a_store),
        ("file/below", true, &enotdir),
        ("foreign", true, &not_a_store),
        ("empty", false, &not_a_store),
        ("other", true, &not_a_store),
        ("directory", true, &|e| {
            not_a_store(e) || matches!(e, Error::Io { .. })
        }),
        ("link", true, &not_a_store),
        ("loop", true, &not_a_store),
        ("loop/below", true, &eloop),
    ];
    for (name, create, expected) in cases {
        let path = root.join(name);
        let e = open_real(&path, create).unwrap_err();
        check_answers(&e);
        assert!(expected(&e), "{name}, create({create}): {e:?}");
        let named = path_of(&e).unwrap();
        assert!(path.starts_with(named) || named.starts_with(&path), "{e}");
    }
    assert_eq!(names(root), before);
    assert_eq!(names(&root.join("foreign")), ["data.db"]);
    assert_eq!(names(&root.join("empty")), Vec::<String>::new());
    assert_eq!(
        fs::read(root.join("other/STORE")).unwrap(),
        b"SQLite format 3\0 and more"
    );
}

/// Links in the place of the store's own files lead nowhere.
#[test]
fn symbolic_links_inside_are_not_followed() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("store");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let store = open_real(&path, true).unwrap();
    runtime.block_on(async {
        let p = store.create_partition(1).await.unwrap();
        fill(&p, 10, 2).await;
        close(&store).await;
    });
    drop(store);
    let partition = names(&path).into_iter().find(|n| n.contains('.')).unwrap();
    let segment = path.join(partition).join("00000000000000000000.seg");
    for file in [path.join("STORE"), path.join("LOCK"), segment] {
        let aside = dir.path().join("aside");
        fs::rename(&file, &aside).unwrap();
        symlink(&aside, &file).unwrap();
        let e = open_real(&path, true).unwrap_err();
        check_answers(&e);
        match &e {
            Error::Io { source, .. } => {
                assert_eq!((source.code, path_of(&e)), (Some(40), Some(&*file)));
            }
            // A link is no segment: the one that should be there is missing.
            Error::Corrupt(c) => assert_eq!(Some(&*c.path), file.parent()),
            _ => panic!("{e:?}"),
        }
        fs::remove_file(&file).unwrap();
        fs::rename(&aside, &file).unwrap();
    }
    let store = open_real(&path, false).unwrap();
    runtime.block_on(async {
        verify(&store.partition(1).await.unwrap(), 0, 10).await;
        close(&store).await;
    });
}

/// Not a check by itself: the other process of the check below.
#[test]
fn hold_a_store_for_another_process() {
    let Ok(path) = std::env::var("ALLUVIUM_TEST_HOLD") else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let store = open_real(Path::new(&path), true).unwrap();
    runtime.block_on(async {
        let p = store.partition_or_create(1).await.unwrap();
        fill(&p, 25, 5).await;
    });
    // To the parent, past what the harness captures.
    fs::write(Path::new(&path).with_extension("ready"), b"").unwrap();
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}

#[test]
fn another_process_is_the_owner_until_it_dies() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let path = dir.path().join("store");
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inputs::hold_a_store_for_another_process"])
        .env("ALLUVIUM_TEST_HOLD", &path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    while !path.with_extension("ready").exists() {
        assert!(
            owner.try_wait().unwrap().is_none(),
            "the owner has ended early"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    let e = open_real(&path, true).unwrap_err();
    check_answers(&e);
    assert_eq!(e, Error::AlreadyOpen { path: path.clone() });
    owner.kill().unwrap();
    owner.wait().unwrap();
    let output = BufReader::new(owner.stdout.take().unwrap());
    assert!(output.lines().all(|line| !line.unwrap().contains("FAILED")));
    let store = open_real(&path, false).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(async {
        let p = store.partition(1).await.unwrap();
        verify(&p, 0, 25).await;
        close(&store).await;
    });
}

/// Every operation of an opening fails in turn, on a new directory and on a store: the error says
/// where, and the next attempt finds a whole store.
#[test]
fn an_opening_may_fail_at_every_operation() {
    for errno in [EROFS, ENOSPC, EIO] {
        for old in [false, true] {
            let mut failed = 0;
            for n in 1.. {
                let sim = machine(n);
                if old {
                    sim.block_on(async {
                        let (store, p) = store_and_partition(&sim).await;
                        fill(&p, 30, 2).await;
                        drop((store, p));
                    });
                }
                sim.fail_op(sim.op_count() + n, errno);
                let ops = sim.op_count();
                let opened = sim.block_on(try_open(&sim, |_| {}));
                let count = sim.op_count() - ops;
                if let Some(e) = opened.err() {
                    check_answers(&e);
                    assert!(
                        path_of(&e).is_some_and(|p| p.starts_with(DIR) || p == Path::new("/data")),
                        "{e}"
                    );
                    let fits = match &e {
                        Error::Io { source, .. } => source.code == Some(errno),
                        Error::NoSpace { .. } => errno == ENOSPC,
                        _ => false,
                    };
                    assert!(fits, "{e:?}");
                    failed += 1;
                }
                if count < n {
                    break;
                }
                sim.block_on(async {
                    let (store, p) = store_and_partition(&sim).await;
                    if old {
                        verify(&p, 0, 30).await;
                    }
                    fill(&p, 5, 1).await;
                    close(&store).await;
                });
            }
            assert!(
                failed > 3,
                "{failed} openings failed with {errno}, old: {old}"
            );
        }
    }
}
