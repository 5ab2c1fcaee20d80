//! `probe`: what works on this machine and in a directory.

use std::path::{Path, PathBuf};

use alluvium::BackendKind;
use alluvium::backends::probe::{probe, probe_dir};

use crate::failure::{Failure, Outcome};
use crate::output::{Output, complain, table};

/// Prints what was found out.
pub(crate) fn run(dir: Option<&Path>) -> Result<Outcome, Failure> {
    let mut out = Output::new();
    let mut table = table(&["backend", "works", "why", "facts"]);
    for result in probe() {
        let works = if result.works { "yes" } else { "no" };
        let name = result.backend.to_string();
        table.add_row([
            name.as_str(),
            works,
            &result.why,
            &result.details.join("\n"),
        ]);
    }
    out.line(table)?;
    match BackendKind::Auto.resolve() {
        Ok(resolved) => out.line(format_args!(
            "auto takes {}: {}",
            resolved.kind, resolved.why
        ))?,
        Err(e) => out.line(e)?,
    }
    match dir {
        Some(dir) => describe_directory(&mut out, dir)?,
        None => out.line("name a directory with --dir to learn about its file system")?,
    }
    out.flush()?;
    Ok(Outcome::Done)
}

fn describe_directory(out: &mut Output, dir: &Path) -> Result<(), Failure> {
    let existing = nearest_existing(dir)?;
    if existing != dir {
        complain(&format!(
            "{} does not exist; looking at {}",
            dir.display(),
            existing.display()
        ));
    }
    let found = probe_dir(&existing).map_err(Failure::io("probe the directory", &existing))?;
    out.line(format_args!("directory    {}", existing.display()))?;
    out.line(format_args!("file system  {}", found.file_system))?;
    if found.direct_io {
        out.line("O_DIRECT     yes")?;
        out.line(format_args!("alignment    {} bytes", found.alignment))?;
    } else {
        out.line(format_args!("O_DIRECT     no: {}", found.why))?;
    }
    if let Some(core) = found.interrupt_core {
        out.line(format_args!(
            "interrupts   on core {core}, all of the disk's: compare --cores {core} shows whether \
             a shard pinned there is faster"
        ))?;
    }
    if NO_POWER_LOSS_PROMISE.contains(&found.file_system.as_str()) {
        out.line(format_args!(
            "warning      stores run on {}, but without the promise to survive a loss of power",
            found.file_system
        ))?;
    }
    Ok(())
}

/// Copy-on-write, network and memory file systems.
const NO_POWER_LOSS_PROMISE: [&str; 11] = [
    "btrfs", "zfs", "bcachefs", "tmpfs", "ramfs", "nfs", "cifs", "smb2", "9p", "fuse", "overlay",
];

fn nearest_existing(dir: &Path) -> Result<PathBuf, Failure> {
    let absolute = std::path::absolute(dir).map_err(Failure::io("find", dir))?;
    let existing = absolute.ancestors().find(|path| path.is_dir());
    match existing {
        Some(path) if path == absolute => Ok(dir.to_path_buf()),
        Some(path) => Ok(path.to_path_buf()),
        None => Err(Failure::Other(format!(
            "{}: no parent of it exists",
            dir.display()
        ))),
    }
}
