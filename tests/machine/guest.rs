//! What the machine boots: Debian's kernel, and an initial file system with the writer in it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use alluvium_powercut::Layout;

/// What the guest needs of the kernel package, dependencies apart.
const MODULES: [&str; 5] = [
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "crc32c_generic",
    "crc32c_intel",
];

/// A kernel and an initial file system.
#[derive(Debug)]
pub(crate) struct Guest {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    release: String,
}

impl Guest {
    /// Makes the initial file system in the directory `work`, with this process's binary as the
    /// writer.
    pub(crate) fn build(layout: Layout, work: &Path) -> io::Result<Self> {
        let (kernel, release) = kernel()?;
        let root = work.join("root");
        for dir in ["bin", "proc", "sys", "dev", "mnt", "modules"] {
            fs::create_dir_all(root.join(dir))?;
        }
        fs::copy("/bin/busybox", root.join("bin/busybox"))?;
        let init = root.join("init");
        fs::write(&init, include_str!("init"))?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;

        let writer = std::env::current_exe()?;
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(root.join("writer")).arg(&writer);
        output(&mut strip)?;
        for library in libraries(&writer)? {
            let to = root.join(library.strip_prefix("/").unwrap_or(&library));
            fs::create_dir_all(to.parent().unwrap_or(&root))?;
            fs::copy(&library, to)?;
        }

        let mut wanted = MODULES.to_vec();
        wanted.push(file_system(layout));
        for (n, module) in modules(&release, &wanted)?.iter().enumerate() {
            // In this order they are loaded.
            let name = module.file_name().unwrap_or_default().to_string_lossy();
            fs::copy(module, root.join(format!("modules/{n:02}-{name}")))?;
        }

        let initramfs = work.join("initramfs");
        let mut pack = Command::new("sh");
        pack.args([
            "-c",
            "find . | cpio --create --format=newc --quiet > ../initramfs",
        ]);
        output(pack.current_dir(&root))?;
        fs::remove_dir_all(&root)?;
        Ok(Self {
            kernel,
            initramfs,
            release,
        })
    }

    /// Version of the kernel.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }
}

/// The name that the kernel knows a file system by.
pub(crate) fn file_system(layout: Layout) -> &'static str {
    match layout {
        Layout::Plain | Layout::Ext4 => "ext4",
        Layout::Xfs => "xfs",
    }
}

/// The newest kernel that is installed with its modules, which need not be the one that runs.
fn kernel() -> io::Result<(PathBuf, String)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/boot")? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if let Some(release) = name.strip_prefix("vmlinuz-")
            && Path::new("/lib/modules").join(release).is_dir()
        {
            let numbers = release.split(|c: char| !c.is_ascii_digit());
            let numbers: Vec<u64> = numbers.flat_map(str::parse).collect();
            found.insert((numbers, path.clone(), release.to_owned()));
        }
    }
    let missing = || io::Error::other("no kernel with modules is installed (linux-image-amd64)");
    let (_, path, release) = found.pop_last().ok_or_else(missing)?;
    Ok((path, release))
}

/// Modules and what they depend on, in the order of loading.
fn modules(release: &str, names: &[&str]) -> io::Result<Vec<PathBuf>> {
    let mut modules: Vec<PathBuf> = Vec::new();
    for name in names {
        let mut show = Command::new("modprobe");
        show.args(["--set-version", release, "--show-depends", name]);
        for line in output(&mut show)?.lines() {
            // "builtin NAME" needs no file.
            let Some(path) = line.strip_prefix("insmod ") else {
                continue;
            };
            let path = PathBuf::from(path.trim());
            if !modules.contains(&path) {
                modules.push(path);
            }
        }
    }
    Ok(modules)
}

/// Shared libraries that a binary needs, the loader among them.
fn libraries(binary: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let listed = output(Command::new("ldd").arg(binary))?;
    let paths = listed
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// Runs a command; its output, or what it complained of.
fn output(command: &mut Command) -> io::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let done = command
        .stdin(Stdio::null())
        .output()
        .map_err(|e| io::Error::new(e.kind(), format!("{name}: {e}")))?;
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let complaint = String::from_utf8_lossy(&done.stderr).into_owned();
    Err(io::Error::other(format!("{name}: {}", complaint.trim())))
}
