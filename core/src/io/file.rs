//! The fail-stop wrapper: the only way the engine writes to a file.
//!
//! After the first failed write or sync of a file, later successes mean nothing: the kernel drops
//! the dirty pages of a failed `fsync`, and the next one reports success without them. So the
//! wrapper makes the first failure final, and that is a property of the type: a [`FailStop`] that
//! has failed refuses to write or sync again, whatever the disk would say. Reads go on.

use std::cell::RefCell;
use std::io;

use bytes::Bytes;

use super::backend::{IoFile, LockKind};
use super::buf::AlignedBuf;

/// How far a write must have come when it completes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Durability {
    /// Seen by every reader, survives the process.
    Written,
    /// On stable media.
    Durable,
}

/// How often an interrupted call is tried again before the interruption counts as a failure.
const INTERRUPTIONS_MAX: u32 = 1_000;

/// An open file whose first failed write or sync is final.
#[derive(Debug)]
pub struct FailStop<F> {
    file: F,
    failure: RefCell<Option<(io::ErrorKind, Option<i32>)>>,
}

impl<F: IoFile> FailStop<F> {
    /// Wraps a file that has not failed yet.
    pub fn new(file: F) -> Self {
        Self {
            file,
            failure: RefCell::new(None),
        }
    }

    /// See [`IoFile::alignment`].
    pub fn alignment(&self) -> u32 {
        self.file.alignment()
    }

    /// Whether a write or sync has failed.
    pub fn has_failed(&self) -> bool {
        self.failure.borrow().is_some()
    }

    /// Writes all of `buf` at `offset`, going on after short counts and interruptions.
    ///
    /// With [`Durability::Durable`] all bytes are on stable media afterwards.
    pub async fn write_all_at(
        &self,
        buf: Bytes,
        offset: u64,
        durability: Durability,
    ) -> io::Result<()> {
        self.check()?;
        let written = self.write_through(buf, offset, durability).await;
        written.map_err(|e| self.fail(e))?;
        // A failure of another write in the meantime covers this one too.
        self.check()
    }

    /// Writes all of `buf` where nothing of value is or will be before another write: a failure is
    /// returned and is not final.
    pub async fn write_filler_at(&self, buf: Bytes, offset: u64) -> io::Result<()> {
        self.check()?;
        self.write_through(buf, offset, Durability::Written).await
    }

    async fn write_through(
        &self,
        buf: Bytes,
        offset: u64,
        durability: Durability,
    ) -> io::Result<()> {
        let alignment = u64::from(self.alignment());
        let mut done = 0_usize;
        let mut interruptions = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let rest = buf.slice(done..);
            let (result, _rest) = match durability {
                Durability::Written => self.file.write_at(rest, at).await,
                Durability::Durable => self.file.write_durable(rest, at).await,
            };
            match result {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                // Direct I/O must go on at an aligned place; what is written twice is identical.
                Ok(n) => {
                    let reached = done.saturating_add(n).min(buf.len());
                    let aligned = if reached == buf.len() {
                        reached
                    } else {
                        reached - reached % usize::try_from(alignment).unwrap_or(1)
                    };
                    if aligned == done {
                        interruptions += 1;
                    }
                    done = aligned;
                }
                Err(e) if is_interruption(&e) => interruptions += 1,
                Err(e) => return Err(e),
            }
            if interruptions > INTERRUPTIONS_MAX {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(())
    }

    /// Makes all completed writes durable. See [`IoFile::sync_data`].
    pub async fn sync_data(&self) -> io::Result<()> {
        self.check()?;
        // No retry, not even of an interruption: the state after a failed sync is unknown.
        if let Err(e) = self.file.sync_data().await {
            return Err(self.fail(e));
        }
        self.check()
    }

    /// Reads `len` bytes at `offset`, or fewer when the file ends there.
    pub async fn read_at(
        &self,
        buf: AlignedBuf,
        offset: u64,
        len: usize,
    ) -> io::Result<AlignedBuf> {
        read_full(&self.file, buf, offset, len).await
    }

    /// See [`IoFile::allocate`]. A failure here is not final: no acknowledged byte is touched.
    pub async fn allocate(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.allocate(len).await
    }

    /// See [`IoFile::set_len`]. A failure here is not final.
    pub async fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.file.set_len(len).await
    }

    /// See [`IoFile::len`].
    pub async fn len(&self) -> io::Result<u64> {
        self.file.len().await
    }

    /// See [`IoFile::try_lock`].
    pub fn try_lock(&self, kind: LockKind) -> io::Result<bool> {
        self.file.try_lock(kind)
    }

    fn check(&self) -> io::Result<()> {
        match *self.failure.borrow() {
            None => Ok(()),
            Some((_, Some(code))) => Err(io::Error::from_raw_os_error(code)),
            Some((kind, None)) => Err(kind.into()),
        }
    }

    fn fail(&self, error: io::Error) -> io::Error {
        let mut failure = self.failure.borrow_mut();
        if failure.is_none() {
            *failure = Some((error.kind(), error.raw_os_error()));
        }
        error
    }
}

/// Reads until `len` bytes or the end of the file, going on after short counts.
///
/// Continuations of a direct read need an aligned place in file and memory, so a short count that
/// is not the end of the file starts the read over.
async fn read_full<F: IoFile>(
    file: &F,
    buf: AlignedBuf,
    offset: u64,
    len: usize,
) -> io::Result<AlignedBuf> {
    let mut buf = buf;
    for _ in 0..INTERRUPTIONS_MAX {
        let (result, back) = file.read_at(buf, offset, len).await;
        buf = back;
        match result {
            Ok(n) if n >= len || n == 0 => return Ok(buf),
            Ok(n) if offset.saturating_add(n as u64) >= file.len().await? => return Ok(buf),
            Ok(_) => {}
            Err(e) if is_interruption(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

fn is_interruption(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}
