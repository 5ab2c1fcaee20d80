//! What works on this machine, found out by trying.
//!
//! Nothing is concluded from kernel versions: a backend works when a shard of it has run, a
//! directory takes direct I/O when a direct write into it has been read back.

mod interrupts;

use std::io;
use std::path::Path;

use alluvium_core::io::{AlignedBuf, OpenMode, OpenOptions};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use crate::kind::BackendKind;
use crate::posix::{self, PosixFile};

/// What came of trying a backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// Which one.
    pub backend: BackendKind,
    /// Whether this build contains it.
    pub compiled: bool,
    /// Whether a shard of it ran.
    pub works: bool,
    /// The reason, in one sentence for users.
    pub why: String,
    /// Facts that help to understand the reason, one each.
    pub details: Vec<String>,
}

/// Tries every backend, best first. Takes a few milliseconds.
pub fn probe() -> Vec<ProbeResult> {
    BackendKind::CONCRETE.into_iter().map(probe_kind).collect()
}

/// Each shard of glommio leaves a descriptor open: when one has worked, only what may have changed
/// since is looked at.
#[cfg(feature = "glommio")]
fn probe_glommio() -> std::io::Result<()> {
    use std::sync::atomic::{AtomicBool, Ordering};
    static WORKS: AtomicBool = AtomicBool::new(false);
    let factory = crate::glommio::GlommioFactory::new().ring_entries(8);
    if WORKS.load(Ordering::Relaxed) {
        return factory.check();
    }
    run_shard(&factory)?;
    WORKS.store(true, Ordering::Relaxed);
    Ok(())
}

/// Tries one backend by running a shard; [`BackendKind::Auto`] never works as such.
pub(crate) fn probe_kind(backend: BackendKind) -> ProbeResult {
    let outcome = match backend {
        #[cfg(feature = "tokio")]
        BackendKind::Tokio => Some(run_shard(&crate::tokio::TokioFactory::new())),
        #[cfg(feature = "compio")]
        BackendKind::Compio => Some(run_shard(
            &crate::compio::CompioFactory::new().ring_entries(8),
        )),
        #[cfg(feature = "uring")]
        BackendKind::Uring => Some(run_shard(
            &crate::uring::UringFactory::new().ring_entries(8),
        )),
        #[cfg(feature = "glommio")]
        BackendKind::Glommio => Some(probe_glommio()),
        _ => None,
    };
    let details = match backend {
        BackendKind::Compio | BackendKind::Glommio | BackendKind::Uring => io_uring_facts(),
        BackendKind::Auto | BackendKind::Tokio => Vec::new(),
    };
    let (works, why) = match &outcome {
        None => (false, format!("not compiled in (feature `{backend}`)")),
        Some(Ok(())) => (true, "a shard ran".to_owned()),
        Some(Err(e))
            if matches!(
                backend,
                BackendKind::Compio | BackendKind::Glommio | BackendKind::Uring
            ) =>
        {
            (false, explain_io_uring(e))
        }
        Some(Err(e)) => (false, e.to_string()),
    };
    ProbeResult {
        backend,
        compiled: outcome.is_some(),
        works,
        why,
        details,
    }
}

/// Starts a shard and lets it go once round its event loop.
#[cfg(any(
    feature = "tokio",
    feature = "compio",
    feature = "glommio",
    feature = "uring"
))]
fn run_shard<F: alluvium_core::io::BackendFactory>(factory: &F) -> io::Result<()> {
    use alluvium_core::io::{IoBackend, LocalFuture, ShardSpec};
    use std::{rc::Rc, sync::mpsc, time::Duration};

    /// How long the thread may take to run its first line.
    const TIMEOUT: Duration = Duration::from_secs(10);

    let (ran, has_run) = mpsc::sync_channel(1);
    let spec = ShardSpec {
        name: "alluvium-probe".to_owned(),
        core: None,
    };
    let main = move |backend: Rc<F::Backend>| -> LocalFuture<()> {
        Box::pin(async move {
            backend.yield_now().await;
            // The receiver waits, or has given up and does not care.
            ran.send(()).ok();
        })
    };
    factory.spawn_shard(spec, Box::new(main))?;
    has_run
        .recv_timeout(TIMEOUT)
        .map_err(|_| io::Error::other("a shard started but did not run"))
}

/// Says what to do about an io_uring that cannot be set up.
fn explain_io_uring(error: &io::Error) -> String {
    let Some(code) = error.raw_os_error() else {
        return error.to_string();
    };
    match Errno::from_raw_os_error(code) {
        Errno::PERM | Errno::ACCESS => format!(
            "io_uring is forbidden ({error}): by a seccomp filter (the default of container \
             runtimes) or by the sysctl kernel.io_uring_disabled"
        ),
        Errno::NOMEM => format!(
            "the ring does not fit the limit of locked memory ({error}): raise RLIMIT_MEMLOCK \
             (ulimit -l)"
        ),
        Errno::NOSYS => format!("the kernel has no io_uring ({error})"),
        Errno::MFILE | Errno::NFILE => {
            format!("no file descriptor is left for the ring ({error})")
        }
        _ => format!("io_uring cannot be set up: {error}"),
    }
}

fn io_uring_facts() -> Vec<String> {
    let kernel = rustix::system::uname();
    let mut facts = vec![format!("kernel {}", kernel.release().to_string_lossy())];
    if let Ok(value) = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled") {
        facts.push(format!("kernel.io_uring_disabled = {}", value.trim()));
    }
    let limit = getrlimit(Resource::Memlock).current;
    facts.push(match limit {
        Some(bytes) => format!("RLIMIT_MEMLOCK = {bytes} bytes"),
        None => "RLIMIT_MEMLOCK = unlimited".to_owned(),
    });
    facts
}

/// What a directory's file system offers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirProbe {
    /// Name of the file system's type: `ext4`, `xfs`, `tmpfs`, ...; `0x..` when unknown.
    pub file_system: String,
    /// Whether a direct write was read back.
    pub direct_io: bool,
    /// Alignment that direct transfers need, in bytes; 1 without direct I/O.
    pub alignment: u32,
    /// Why there is no direct I/O; empty when there is.
    pub why: String,
    /// The core that takes all interrupts of the disk, when it is one, as on most virtual machines:
    /// a good place for the shard of a log whose appends wait for each other
    /// ([`Shards::Cores`](alluvium_core::Shards::Cores)). `None` when there are several, or when
    /// the kernel does not tell.
    pub interrupt_core: Option<usize>,
}

/// Tries direct I/O in a directory, with a file that is removed again.
///
/// Fails when the directory cannot be read or no file can be created in it.
pub fn probe_dir(dir: &Path) -> io::Result<DirProbe> {
    let file_system = file_system_name(dir)?;
    let path = dir.join(format!(".alluvium-probe-{:016x}", posix::random_u64()));
    let attempt = try_direct(&path);
    let (direct_io, alignment, why) = match attempt {
        Ok(alignment) => (true, alignment, String::new()),
        Err(e) if is_refusal(&e) => (false, 1, format!("O_DIRECT is refused: {e}")),
        Err(e) => return Err(e),
    };
    Ok(DirProbe {
        file_system,
        direct_io,
        alignment,
        why,
        interrupt_core: interrupts::core_of(dir),
    })
}

fn is_refusal(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::INVAL | Errno::OPNOTSUPP))
}

fn try_direct(path: &Path) -> io::Result<u32> {
    let options = OpenOptions {
        mode: OpenMode::CreateNew,
        direct: true,
    };
    let file = PosixFile::open(path, options)?;
    // The descriptor keeps the file alive for as long as it takes.
    posix::remove_file(path)?;
    let size = alluvium_core::io::BUFFER_ALIGNMENT;
    let mut buf = AlignedBuf::with_capacity(size);
    buf.resize(size);
    buf.fill(0xA5);
    let written = file.write_at(&buf, 0)?;
    let read = file.read_at(&mut buf, 0, size)?;
    if written == size && read == size && buf.iter().all(|&byte| byte == 0xA5) {
        Ok(file.alignment())
    } else {
        Err(Errno::IO.into())
    }
}

fn file_system_name(dir: &Path) -> io::Result<String> {
    let magic = u64::try_from(rustix::fs::statfs(dir)?.f_type).unwrap_or(0) & 0xffff_ffff;
    let known = FILE_SYSTEMS.iter().find(|(number, _)| *number == magic);
    Ok(known.map_or_else(|| format!("{magic:#x}"), |(_, name)| (*name).to_owned()))
}

/// Numbers of `statfs(2)`. ext2 and ext3 have the number of ext4.
const FILE_SYSTEMS: [(u64, &str); 14] = [
    (0xef53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683e, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0x8584_58f6, "ramfs"),
    (0x794c_7630, "overlay"),
    (0x6969, "nfs"),
    (0x6573_5546, "fuse"),
    (0xf2f5_2010, "f2fs"),
    (0x2fc1_2fc1, "zfs"),
    (0xff53_4d42, "cifs"),
    (0xfe53_4d42, "smb2"),
    (0x0102_1997, "9p"),
    (0xca45_1a4e, "bcachefs"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_backend_is_reported_once() {
        let results = probe();
        assert_eq!(results.len(), BackendKind::CONCRETE.len());
        for result in results {
            assert_eq!(result.compiled, result.backend.is_compiled());
            assert!(!result.works || result.compiled);
            assert!(!result.why.is_empty());
        }
    }

    #[test]
    fn refusals_of_io_uring_are_explained() {
        let explain = |errno: Errno| explain_io_uring(&errno.into());
        assert!(explain(Errno::PERM).contains("io_uring_disabled"));
        assert!(explain(Errno::NOMEM).contains("RLIMIT_MEMLOCK"));
        assert!(explain(Errno::NOSYS).contains("no io_uring"));
    }

    #[test]
    fn a_directory_is_probed_and_left_as_it_was() {
        let dir = std::env::temp_dir().join(format!("alluvium-probe-dir-{}", std::process::id()));
        std::fs::create_dir(&dir).expect("create");
        let result = probe_dir(&dir).expect("probe");
        assert_eq!(result.direct_io, result.why.is_empty());
        assert!(result.alignment.is_power_of_two());
        assert_eq!(posix::list(&dir).expect("list"), []);
        std::fs::remove_dir(&dir).expect("remove");
        assert!(probe_dir(&dir).is_err());
    }

    #[test]
    fn proc_refuses_but_is_named() {
        let name = file_system_name(Path::new("/proc")).expect("statfs");
        assert_eq!(name, "0x9fa0");
    }
}
