//! Copies of segment files, on stable media before anything is cut.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::failure::Failure;

/// A directory for copies, outside of the store.
#[derive(Debug)]
pub(crate) struct Backup {
    dir: PathBuf,
}

impl Backup {
    /// Decides on the directory without making it: the one given, or one beside the store.
    ///
    /// Fails when it lies inside of the store, where it would be taken for a part of it.
    pub(crate) fn plan(store: &Path, given: Option<PathBuf>) -> Result<Self, Failure> {
        let store = store.canonicalize().map_err(Failure::io("find", store))?;
        let dir = match given {
            Some(dir) => std::path::absolute(&dir).map_err(Failure::io("find", &dir))?,
            None => beside(&store),
        };
        let existing = dir.ancestors().find(|path| path.exists()).unwrap_or(&dir);
        let real = existing
            .canonicalize()
            .map_err(Failure::io("find", existing))?;
        if real.starts_with(&store) {
            return Err(Failure::Other(format!(
                "{}: lies inside of the store; name a directory outside of it with --backup-dir",
                dir.display()
            )));
        }
        Ok(Self { dir })
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Copies the files into `<dir>/<name of their directory>/` and makes the copies durable. A
    /// copy that is there already is an error, never overwritten.
    pub(crate) fn copy(&self, files: &[PathBuf]) -> Result<(), Failure> {
        for file in files {
            let partition = file.parent().and_then(Path::file_name);
            let (Some(partition), Some(name)) = (partition, file.file_name()) else {
                let text = format!("{}: has no name to copy it under", file.display());
                return Err(Failure::Other(text));
            };
            let into = self.dir.join(partition);
            // As the store's own: records are nobody else's to read.
            let mut private = DirBuilder::new();
            private.recursive(true).mode(0o700);
            private
                .create(&into)
                .map_err(Failure::io("create", &into))?;
            let copy = into.join(name);
            copy_file(file, &copy).map_err(|e| match e.kind() {
                io::ErrorKind::AlreadyExists => Failure::Other(format!(
                    "{}: is there already, from an earlier repair; name another directory with \
                     --backup-dir. Nothing was cut",
                    copy.display()
                )),
                _ => Failure::io("copy a segment to", &copy)(e),
            })?;
            for dir in into.ancestors().take(3) {
                sync_dir(dir).map_err(Failure::io("sync the directory", dir))?;
            }
        }
        Ok(())
    }
}

fn beside(store: &Path) -> PathBuf {
    let seconds = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    let named = |n: u64| {
        let mut name = store.as_os_str().to_owned();
        name.push(format!(".repair-{n}"));
        PathBuf::from(name)
    };
    // Two repairs within a second: the later one takes the next name that is free.
    (seconds..seconds.saturating_add(1000))
        .map(&named)
        .find(|dir| !dir.exists())
        .unwrap_or_else(|| named(seconds))
}

fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut copy = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(to)?;
    let copied = io::copy(&mut source, &mut copy)?;
    let len = source.metadata()?.len();
    if copied != len {
        return Err(io::Error::other(format!(
            "{copied} of {len} bytes were copied"
        )));
    }
    copy.sync_all()
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
