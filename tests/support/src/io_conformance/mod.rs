//! The contract of [`alluvium_core::io`], check by check, for any backend.
//!
//! [`run`] gives every check a shard and a directory of its own. A check fails by a panic; one
//! that does not end in time fails too. All checks run, then the failed ones are named together.
//!
//! What cannot be seen from inside a process is not here: that a durable write is durable, and
//! that idle backends make no system calls.

mod cancellation;
mod directories;
mod files;
mod locks;
mod maps;
mod shards;
mod tasks;
mod transfers;

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc;
use std::time::Duration;

use alluvium_core::io::{
    AlignedBuf, BackendFactory, IoBackend, IoFile, LocalFuture, OpenOptions, ShardSpec,
};
use bytes::Bytes;

/// How long one check may take before it counts as hanging.
const CHECK_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs every check on `factory`, with files below `dir`, which must exist and be empty.
///
/// # Panics
/// When a check fails; the message names all that failed.
pub fn run<F: BackendFactory>(factory: &F, dir: &Path) {
    run_with(factory, dir, Allowances::default());
}

/// What a backend is known to do wrong for reasons outside this project.
#[derive(Debug, Clone, Copy, Default)]
pub struct Allowances {
    /// Descriptors that a shard leaves open for ever when it ends.
    pub descriptors_left_per_shard: usize,
}

/// The same as [`run`], but what `allowances` admits does not fail.
///
/// # Panics
/// When a check fails; the message names all that failed.
pub fn run_with<F: BackendFactory>(factory: &F, dir: &Path, allowances: Allowances) {
    let _guard = crate::alone();
    let mut suite = Suite {
        factory,
        dir,
        direct: direct_io_works(factory, dir),
        allowances,
        failed: vec![],
    };
    directories::all(&mut suite);
    files::all(&mut suite);
    transfers::all(&mut suite);
    locks::all(&mut suite);
    maps::all(&mut suite);
    cancellation::all(&mut suite);
    tasks::all(&mut suite);
    shards::all(&mut suite);
    let failed = suite.failed;
    assert!(
        failed.is_empty(),
        "{} on {}: {}",
        factory.name(),
        dir.display(),
        failed.join("; ")
    );
}

/// What a check gets.
pub(crate) struct Ctx<B> {
    /// The runtime of the shard that the check runs on.
    pub(crate) backend: Rc<B>,
    /// An empty directory.
    pub(crate) dir: PathBuf,
    /// Whether the file system under `dir` takes direct I/O.
    pub(crate) direct: bool,
}

impl<B: IoBackend> Ctx<B> {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub(crate) async fn create(&self, name: &str, direct: bool) -> B::File {
        let options = OpenOptions::CREATE_NEW.direct(direct);
        self.backend.open(&self.path(name), options).await.unwrap()
    }

    /// Buffered, and direct where that works.
    pub(crate) fn modes(&self) -> Vec<bool> {
        if self.direct {
            vec![false, true]
        } else {
            vec![false]
        }
    }
}

/// Collects the outcome of the checks.
pub(crate) struct Suite<'a, F> {
    pub(crate) factory: &'a F,
    pub(crate) dir: &'a Path,
    direct: bool,
    pub(crate) allowances: Allowances,
    failed: Vec<String>,
}

impl<F: BackendFactory> Suite<'_, F> {
    /// Runs one check as the `main` of a shard.
    pub(crate) fn check(
        &mut self,
        name: &str,
        body: impl FnOnce(Ctx<F::Backend>) -> LocalFuture<()> + Send + 'static,
    ) {
        let name = name.replace("::", "-").replace(' ', "");
        let dir = self.dir.join(&name);
        fs::create_dir(&dir).unwrap();
        let direct = self.direct;
        let (passed, outcome) = mpsc::channel();
        let spec = ShardSpec {
            name: name.clone(),
            core: None,
        };
        let started = self.factory.spawn_shard(
            spec,
            Box::new(move |backend| {
                Box::pin(async move {
                    body(Ctx {
                        backend,
                        dir,
                        direct,
                    })
                    .await;
                    passed.send(()).ok();
                })
            }),
        );
        match started.map(|()| outcome.recv_timeout(CHECK_TIMEOUT)) {
            Ok(Ok(())) => {}
            Ok(Err(mpsc::RecvTimeoutError::Disconnected)) => self.fail(&name, "panicked"),
            Ok(Err(mpsc::RecvTimeoutError::Timeout)) => self.fail(&name, "hangs"),
            Err(e) => self.fail(&name, &format!("shard did not start: {e}")),
        }
    }

    /// Runs a check that starts its own shards, on the calling thread.
    pub(crate) fn check_outside(
        &mut self,
        name: &str,
        body: impl FnOnce(&F) -> Result<(), String>,
    ) {
        if let Err(why) = body(self.factory) {
            self.fail(name, &why);
        }
    }

    fn fail(&mut self, name: &str, why: &str) {
        self.failed.push(format!("{name}: {why}"));
    }
}

/// Runs each named async function as a check.
macro_rules! checks {
    ($suite:expr; $($name:ident),+ $(,)?) => {
        $($suite.check(stringify!($name), |ctx| Box::pin($name(ctx)));)+
    };
}
pub(crate) use checks;

/// Asks the backend itself; a check compares the answer with its capabilities.
fn direct_io_works<F: BackendFactory>(factory: &F, dir: &Path) -> bool {
    let path = dir.join("direct-io-probe");
    let (answer, answered) = mpsc::channel();
    let spec = ShardSpec {
        name: "probe".to_owned(),
        core: None,
    };
    let main = move |backend: Rc<F::Backend>| -> LocalFuture<()> {
        Box::pin(async move {
            let options = OpenOptions::CREATE_NEW.direct(true);
            let works = match backend.open(&path, options).await {
                Ok(_) => {
                    backend.remove_file(&path).await.unwrap();
                    true
                }
                Err(e) => {
                    let code = e.raw_os_error();
                    assert!(code == Some(EINVAL) || code == Some(EOPNOTSUPP), "{e}");
                    let left = backend
                        .kind(&path)
                        .await
                        .expect_err("a refused file was left");
                    assert_eq!(left.raw_os_error(), Some(ENOENT));
                    false
                }
            };
            answer.send(works).ok();
        })
    };
    factory.spawn_shard(spec, Box::new(main)).unwrap();
    answered
        .recv_timeout(CHECK_TIMEOUT)
        .expect("the direct I/O probe ends")
}

// Numbers of the kernel's errors, the same on every architecture that Linux runs on today
// except for a few that nobody embeds this on.
pub(crate) const ENOENT: i32 = 2;
pub(crate) const EEXIST: i32 = 17;
pub(crate) const ENOTDIR: i32 = 20;
pub(crate) const EISDIR: i32 = 21;
pub(crate) const EINVAL: i32 = 22;
pub(crate) const ENOSPC: i32 = 28;
pub(crate) const ENOTEMPTY: i32 = 39;
pub(crate) const ELOOP: i32 = 40;
pub(crate) const EBADF: i32 = 9;
pub(crate) const EOPNOTSUPP: i32 = 95;

/// Asserts that `result` failed with this code of the operating system.
#[track_caller]
pub(crate) fn assert_errno<T>(result: std::io::Result<T>, code: i32) {
    match result {
        Ok(_) => panic!("expected error {code}, got success"),
        Err(e) => assert_eq!(e.raw_os_error(), Some(code), "{e:?}"),
    }
}

/// `len` bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Bytes {
    let mut buf = AlignedBuf::with_capacity(len);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while buf.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let rest = (len - buf.len()).min(8);
        buf.extend_from_slice(&state.to_le_bytes()[..rest]);
    }
    buf.freeze()
}

/// Reads once and returns what came.
pub(crate) async fn read<F: IoFile>(file: &F, offset: u64, len: usize) -> Vec<u8> {
    let (result, buf) = file
        .read_at(AlignedBuf::with_capacity(len), offset, len)
        .await;
    let n = result.unwrap();
    assert_eq!(buf.len(), n, "the buffer's length is what was read");
    buf.to_vec()
}

/// Writes once and expects all of it to be taken.
pub(crate) async fn write<F: IoFile>(file: &F, bytes: &Bytes, offset: u64) {
    let (result, back) = file.write_at(bytes.clone(), offset).await;
    assert_eq!(result.unwrap(), bytes.len());
    assert_eq!(&back, bytes, "the buffer comes back");
}
