//! Files mapped into memory, for reading; the part that the real backends share.
//!
//! The engine never writes to a file while it is mapped, and never makes one shorter. It cannot
//! know by itself whether one is: a reader may hold bytes of a mapping after the store was closed
//! and opened again, on another backend perhaps. So the mappings of the process are noted here, by
//! what the file is rather than by its name.

#![cfg_attr(
    not(all(
        feature = "compio",
        feature = "glommio",
        feature = "tokio",
        feature = "uring"
    )),
    allow(dead_code, reason = "each backend uses its part")
)]

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use alluvium_core::io::{FileMap, OpenOptions};
use memmap2::Mmap;
use rustix::io::Errno;
use rustix::mm::Advice;

use crate::posix::PosixFile;

/// Device and inode.
type FileId = (u64, u64);

/// Every mapping that was made. Those that have ended leave with the next that is made.
static MAPPED: Mutex<BTreeMap<FileId, Weak<Mmap>>> = Mutex::new(BTreeMap::new());

fn mapped() -> MutexGuard<'static, BTreeMap<FileId, Weak<Mmap>>> {
    // Nothing that is done under this lock panics half-way.
    MAPPED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See [`alluvium_core::io::IoBackend::map`].
pub(crate) fn map(path: &Path, len: usize) -> io::Result<FileMap> {
    // A descriptor of its own: the mapping keeps it open, and the locks of the others need not
    // wait for that.
    let file = PosixFile::open(path, OpenOptions::READ)?;
    let found = file.len()?;
    if found < len as u64 {
        let message = format!("{len} bytes were to be mapped, the file has {found}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let stat = rustix::fs::fstat(&file)?;
    let id = (stat.st_dev, stat.st_ino);
    let mut mapped = mapped();
    if let Some(known) = mapped.get(&id).and_then(Weak::upgrade) {
        if known.len() < len {
            // One mapping per file is noted; this one is of before the file became longer.
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        return Ok(FileMap::new(known));
    }
    // SAFETY: nobody writes to the file or shortens it while it is mapped: the engine asks
    // `is_mapped` before it uses a file again, a sealed segment is never written to before, and the
    // store's lock keeps other processes from it.
    let map = unsafe { Mmap::map(&file) }?;
    let map = Arc::new(map);
    mapped.retain(|_, map| map.strong_count() > 0);
    mapped.insert(id, Arc::downgrade(&map));
    Ok(FileMap::new(map))
}

/// See [`alluvium_core::io::IoBackend::is_mapped`]. A file that cannot be looked at counts as
/// mapped.
pub(crate) fn is_mapped(path: &Path) -> bool {
    let mut mapped = mapped();
    mapped.retain(|_, map| map.strong_count() > 0);
    if mapped.is_empty() {
        return false;
    }
    let stat = rustix::fs::lstat(path);
    stat.map_or(true, |s| mapped.contains_key(&(s.st_dev, s.st_ino)))
}

/// Reads a range into memory: first as few large reads that nobody waits for, then waiting for
/// them.
pub(crate) const POPULATE: [Advice; 2] = [Advice::WillNeed, Advice::LinuxPopulateRead];

/// Start and length of a range of a mapping.
pub(crate) fn address(map: &FileMap, range: Range<usize>) -> io::Result<(*mut u8, usize)> {
    let bytes = map.as_ref().get(range).ok_or(Errno::INVAL)?;
    Ok((bytes.as_ptr().cast_mut(), bytes.len()))
}

/// See [`alluvium_core::io::IoBackend::populate`]; for threads that may wait.
pub(crate) fn populate(map: &FileMap, range: Range<usize>) -> io::Result<()> {
    let (start, len) = address(map, range)?;
    for advice in POPULATE {
        // SAFETY: the range is mapped, `map` keeps it so, and the advice changes no byte of it.
        unsafe { rustix::mm::madvise(start.cast(), len, advice) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_shows_the_file_and_is_known_until_the_last_bytes_of_it_are_gone() {
        let path = std::env::temp_dir().join(format!("alluvium-map-{}", std::process::id()));
        std::fs::write(&path, vec![7; 10_000]).expect("a file");
        assert!(!is_mapped(&path));
        assert!(map(&path, 10_001).is_err(), "longer than the file");
        let whole = map(&path, 10_000).expect("a mapping");
        let other = map(&path, 4096).expect("the same mapping");
        assert_eq!(other.as_ref().as_ptr(), whole.as_ref().as_ptr());
        populate(&whole, 0..8192).expect("it can be read");
        assert!(populate(&whole, 8192..10_001).is_err(), "not mapped");
        let bytes = whole.bytes(9000..9003).expect("mapped");
        assert_eq!(bytes.as_ref(), [7, 7, 7]);
        drop((whole, other));
        assert!(is_mapped(&path));
        drop(bytes);
        assert!(!is_mapped(&path));
        std::fs::remove_file(&path).expect("it is there");
    }
}
