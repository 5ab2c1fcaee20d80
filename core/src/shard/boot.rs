//! Opening the store's directory: checks first, then the lock, then whatever has to be made.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::command::Booted;
use super::layout::{DirName, FoundPartition, LOCK, STORE, STORE_TEMPORARY};
use crate::error::{Corruption, CorruptionKind, Error, Result};
use crate::format::{FORMAT_VERSION, FormatError, STORE_HEADER_LEN, StoreHeader};
use crate::io::{
    AlignedBuf, Durability, EntryKind, FailStop, IoBackend, IoFile, LockKind, OpenMode, OpenOptions,
};
use crate::recovery::fence;

/// How long the lock of a process that has just died may take to go.
const LOCK_PATIENCE: Duration = Duration::from_millis(250);

/// What opening needs to know.
#[derive(Debug, Clone)]
pub(super) struct BootRequest {
    pub(super) path: PathBuf,
    pub(super) create: bool,
    pub(super) read_only: bool,
    pub(super) direct_wanted: bool,
}

/// The directory, and the lock that makes it ours as long as the value lives.
#[derive(Debug)]
pub(super) struct BootedStore<F> {
    pub(super) booted: Booted,
    pub(super) lock: F,
}

/// Opens the directory. Whatever is wrong is found before anything is written.
pub(super) async fn boot<B: IoBackend>(
    backend: &B,
    request: &BootRequest,
) -> Result<BootedStore<B::File>> {
    let started = backend.now();
    let path = request.path.as_path();
    check_directory(backend, request).await?;
    let lock = take_lock(backend, request).await?;
    let header = match read_store_file(backend, path).await? {
        Some(header) => header,
        None if request.read_only => return Err(not_a_store(path, NO_STORE_FILE)),
        None => write_store_file(backend, path).await?,
    };
    let (partitions, leftovers) = list(backend, path).await?;
    if !request.read_only {
        // The names first: were the renaming that deleted a partition still undone by a loss of
        // power, it would come back without the files that are removed here.
        let synced = backend.sync_dir(path).await;
        synced.map_err(|e| Error::io("sync the directory", path, e))?;
        for leftover in leftovers {
            remove_tree(backend, &leftover).await?;
        }
    }
    let direct = request.direct_wanted && can_do_direct(backend, path, request.read_only).await;
    let booted = Booted {
        took: backend.now().saturating_sub(started),
        store_id: header.store_id,
        capabilities: backend.capabilities(),
        direct,
        partitions,
    };
    Ok(BootedStore { booted, lock })
}

const NO_STORE_FILE: &str = "no store here: the directory has no STORE file; check the path (only \
                             an opening for writing creates a store, in an empty directory)";

fn not_a_store(path: &Path, why: &'static str) -> Error {
    Error::NotAStore {
        path: path.to_path_buf(),
        why,
    }
}

/// Checks that the directory is a store or may become one; makes it when it is missing and
/// creation was asked for.
async fn check_directory<B: IoBackend>(backend: &B, request: &BootRequest) -> Result<()> {
    let path = request.path.as_path();
    let may_create = request.create && !request.read_only;
    match backend.kind(path).await {
        Ok(EntryKind::Dir) => {}
        Ok(_) => {
            return Err(not_a_store(
                path,
                "not a directory; name the store's directory",
            ));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            if !may_create {
                let why = "the directory does not exist; check the path (only an opening for writing \
                     creates a store)";
                return Err(not_a_store(path, why));
            }
            return match backend.create_dir(path).await {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Err(not_a_store(
                    path,
                    "the directory that it is to be made in does not exist; create that first",
                )),
                created => created.map_err(|e| Error::io("create", path, e)),
            };
        }
        Err(e) => return Err(Error::io("look at", path, e)),
    }
    let entries = backend
        .list(path)
        .await
        .map_err(|e| Error::io("list", path, e))?;
    if entries.iter().any(|e| e.name == STORE) {
        return Ok(());
    }
    let ours = |name: &OsStr| name == LOCK || name == STORE_TEMPORARY;
    if entries.iter().any(|e| !ours(&e.name)) {
        let why = "the directory is not empty and has no STORE file; name a store, or an empty \
                   directory";
        return Err(not_a_store(path, why));
    }
    if may_create {
        Ok(())
    } else {
        Err(not_a_store(path, NO_STORE_FILE))
    }
}

async fn take_lock<B: IoBackend>(backend: &B, request: &BootRequest) -> Result<B::File> {
    let path = request.path.join(LOCK);
    let failed = |e| Error::io("open", &path, e);
    let mode = if request.read_only {
        OpenMode::Read
    } else {
        OpenMode::ReadWrite
    };
    let file = match backend
        .open(
            &path,
            OpenOptions {
                mode,
                direct: false,
            },
        )
        .await
    {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound && request.read_only => {
            let why = "the store has no LOCK file; open it once for writing";
            return Err(not_a_store(&request.path, why));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            match backend.open(&path, OpenOptions::CREATE_NEW).await {
                Ok(file) => file,
                // Another process was faster; the lock decides.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => backend
                    .open(&path, OpenOptions::READ_WRITE)
                    .await
                    .map_err(failed)?,
                Err(e) => return Err(failed(e)),
            }
        }
        Err(e) => return Err(failed(e)),
    };
    let kind = if request.read_only {
        LockKind::Shared
    } else {
        LockKind::Exclusive
    };
    if fence(backend, &file, kind, &path, LOCK_PATIENCE).await? {
        Ok(file)
    } else {
        Err(Error::AlreadyOpen {
            path: request.path.clone(),
        })
    }
}

async fn read_store_file<B: IoBackend>(backend: &B, dir: &Path) -> Result<Option<StoreHeader>> {
    let path = dir.join(STORE);
    let file = match backend.open(&path, OpenOptions::READ).await {
        Ok(file) => FailStop::new(file),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", &path, e)),
    };
    let buf = AlignedBuf::with_capacity(STORE_HEADER_LEN);
    let read = file.read_at(buf, 0, STORE_HEADER_LEN).await;
    let bytes = read.map_err(|e| Error::io("read", &path, e))?;
    match StoreHeader::decode(&bytes) {
        Ok(header) => Ok(Some(header)),
        Err(FormatError::UnsupportedVersion { found }) => Err(Error::UnsupportedVersion {
            path,
            found,
            supported: FORMAT_VERSION,
        }),
        Err(FormatError::BadMagic) => Err(not_a_store(
            dir,
            "the STORE file was not written by this library, or is damaged",
        )),
        Err(e) => Err(damaged(path, 0, e.into())),
    }
}

fn damaged(path: PathBuf, partition: u64, found: CorruptionKind) -> Error {
    let (position, offset_start, offset_end) = (0, 0, None);
    Error::corrupt(Corruption {
        path,
        partition,
        position,
        offset_start,
        offset_end,
        found,
    })
}

async fn write_store_file<B: IoBackend>(backend: &B, dir: &Path) -> Result<StoreHeader> {
    // A STORE file says that the directory's own name is durable: whoever made the directory may
    // have died before that was so.
    let parent = dir.parent().filter(|p| !p.as_os_str().is_empty());
    let parent = parent.unwrap_or(Path::new("."));
    let synced = backend.sync_dir(parent).await;
    synced.map_err(|e| Error::io("sync the directory", parent, e))?;
    let temporary = dir.join(STORE_TEMPORARY);
    let header = StoreHeader {
        store_id: backend.random_u64(),
        created_ms: backend.wall_clock_ms(),
    };
    let make = async {
        match backend.remove_file(&temporary).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        let file = FailStop::new(backend.open(&temporary, OpenOptions::CREATE_NEW).await?);
        let mut block = AlignedBuf::with_capacity(STORE_HEADER_LEN);
        block.extend_from_slice(&header.encode());
        file.write_all_at(block.freeze(), 0, Durability::Written)
            .await?;
        file.sync_data().await?;
        backend.rename(&temporary, &dir.join(STORE)).await?;
        backend.sync_dir(dir).await
    };
    match make.await {
        Ok(()) => Ok(header),
        Err(e) if Error::is_no_space(&e) => Err(Error::NoSpace {
            path: dir.to_path_buf(),
        }),
        Err(e) => Err(Error::io("create", &temporary, e)),
    }
}

/// The partitions, and what a crash during a creation or deletion left.
async fn list<B: IoBackend>(
    backend: &B,
    dir: &Path,
) -> Result<(Vec<FoundPartition>, Vec<PathBuf>)> {
    let entries = backend
        .list(dir)
        .await
        .map_err(|e| Error::io("list", dir, e))?;
    let (mut partitions, mut leftovers) = (Vec::new(), Vec::new());
    for entry in entries.into_iter().filter(|e| e.kind == EntryKind::Dir) {
        match DirName::parse(&entry.name) {
            Some(DirName::Partition(found)) => partitions.push(found),
            Some(DirName::Leftover) => leftovers.push(dir.join(entry.name)),
            None => {}
        }
    }
    partitions.sort_unstable();
    for pair in partitions.windows(2) {
        if let [first, second] = pair
            && first.id == second.id
        {
            let found = CorruptionKind::Misplaced("two directories of one partition");
            return Err(damaged(second.dir(dir), second.id, found));
        }
    }
    Ok((partitions, leftovers))
}

/// Removes a directory of files.
pub(super) async fn remove_tree<B: IoBackend>(backend: &B, dir: &Path) -> Result<()> {
    let entries = backend
        .list(dir)
        .await
        .map_err(|e| Error::io("list", dir, e))?;
    for entry in entries {
        let path = dir.join(entry.name);
        backend
            .remove_file(&path)
            .await
            .map_err(|e| Error::io("remove", &path, e))?;
    }
    backend
        .remove_dir(dir)
        .await
        .map_err(|e| Error::io("remove", dir, e))
}

/// Whether files in the directory can be opened with O_DIRECT: asked of the lock file.
async fn can_do_direct<B: IoBackend>(backend: &B, dir: &Path, read_only: bool) -> bool {
    let mode = if read_only {
        OpenMode::Read
    } else {
        OpenMode::ReadWrite
    };
    let options = OpenOptions { mode, direct: true };
    backend.capabilities().direct_io
        && match backend.open(&dir.join(LOCK), options).await {
            Ok(file) => file.alignment() <= 4096,
            Err(_) => false,
        }
}
