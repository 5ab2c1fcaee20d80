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
/// A direct read needs an aligned place in file and memory: what is missing is read from the last such
/// place before it, into memory of its own. The same read once more could give the same count for ever,
/// and where a short count hides a sector that cannot be read, only the read of what follows is told so.
async fn read_full<F: IoFile>(
    file: &F,
    buf: AlignedBuf,
    offset: u64,
    len: usize,
) -> io::Result<AlignedBuf> {
    let (mut result, mut whole) = file.read_at(buf, offset, len).await;
    if result.is_err() {
        whole.clear();
    }
    let block = usize::try_from(file.alignment()).unwrap_or(1).max(1);
    let (mut reached, mut interruptions) = (0, 0);
    loop {
        match result {
            Ok(n) if n == 0 || whole.len() >= len => return Ok(whole),
            Ok(_) if offset.saturating_add(whole.len() as u64) >= file.len().await? => {
                return Ok(whole);
            }
            Ok(_) if whole.len() > reached => reached = whole.len(),
            Ok(_) => interruptions += 1,
            Err(e) if is_interruption(&e) => interruptions += 1,
            Err(e) => return Err(e),
        }
        if interruptions > INTERRUPTIONS_MAX {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let kept = reached - reached % block;
        let rest = AlignedBuf::with_capacity(len - kept);
        let (next, rest) = file
            .read_at(rest, offset.saturating_add(kept as u64), len - kept)
            .await;
        if next.is_ok() && kept + rest.len() > reached {
            whole.truncate(kept);
            whole.extend_from_slice(&rest);
        }
        result = next;
    }
}

fn is_interruption(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
    )
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use async_trait::async_trait;

    use super::*;

    /// A file that gives no more than so many bytes at a time, and an error from a place on.
    #[derive(Debug)]
    struct Sparing {
        content: Vec<u8>,
        at_a_time: usize,
        bad_from: usize,
        interrupted: Cell<u32>,
        reads: Cell<usize>,
    }

    const EIO: i32 = 5;

    #[async_trait(?Send)]
    impl IoFile for Sparing {
        fn alignment(&self) -> u32 {
            512
        }

        async fn read_at(
            &self,
            mut buf: AlignedBuf,
            offset: u64,
            len: usize,
        ) -> (io::Result<usize>, AlignedBuf) {
            self.reads.set(self.reads.get() + 1);
            if self.interrupted.get() > 0 {
                self.interrupted.set(self.interrupted.get() - 1);
                return (Err(io::ErrorKind::Interrupted.into()), buf);
            }
            let start = usize::try_from(offset).unwrap();
            assert!(start.is_multiple_of(512) && len.is_multiple_of(512));
            let end = self.content.len().min(start + len.min(self.at_a_time));
            if start < end && start >= self.bad_from {
                return (Err(io::Error::from_raw_os_error(EIO)), buf);
            }
            let start = start.min(end);
            let end = end.min(self.bad_from).max(start);
            buf.clear();
            buf.extend_from_slice(&self.content[start..end]);
            (Ok(end - start), buf)
        }

        async fn write_at(&self, buf: Bytes, _: u64) -> (io::Result<usize>, Bytes) {
            (Err(io::ErrorKind::Unsupported.into()), buf)
        }

        async fn write_durable(&self, buf: Bytes, _: u64) -> (io::Result<usize>, Bytes) {
            (Err(io::ErrorKind::Unsupported.into()), buf)
        }

        async fn sync_data(&self) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        async fn allocate(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        async fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        async fn len(&self) -> io::Result<u64> {
            Ok(self.content.len() as u64)
        }

        fn try_lock(&self, _: LockKind) -> io::Result<bool> {
            Ok(true)
        }
    }

    fn sparing(len: usize, at_a_time: usize) -> Sparing {
        Sparing {
            content: (0..len).map(|i| (i / 7 % 251).to_le_bytes()[0]).collect(),
            at_a_time,
            bad_from: usize::MAX,
            interrupted: Cell::new(0),
            reads: Cell::new(0),
        }
    }

    /// No future here ever waits.
    fn read(file: &Sparing, offset: usize, len: usize) -> io::Result<AlignedBuf> {
        let buf = AlignedBuf::with_capacity(len);
        let mut reading = pin!(read_full(file, buf, offset as u64, len));
        match reading
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
        {
            Poll::Ready(read) => read,
            Poll::Pending => panic!("it waits"),
        }
    }

    #[test]
    fn a_short_count_is_gone_on_behind() {
        for at_a_time in [512, 4096, 5000, 12_288, 1 << 20] {
            let mut file = sparing(100_000, at_a_time);
            file.interrupted.set(3);
            for (offset, len) in [(0, 65_536), (8192, 512), (4096, 131_072), (98_304, 4096)] {
                let end = file.content.len().min(offset + len);
                let bytes = read(&file, offset, len).unwrap();
                assert_eq!(
                    bytes[..],
                    file.content[offset..end],
                    "{at_a_time}, {offset}"
                );
            }
            assert!(read(&file, 102_400, 4096).unwrap().is_empty());
            file.content.truncate(4096);
            assert_eq!(read(&file, 0, 8192).unwrap().len(), 4096);
        }
    }

    #[test]
    fn what_a_short_count_hides_is_told() {
        let mut file = sparing(100_000, usize::MAX);
        file.bad_from = 20_480;
        let e = read(&file, 4096, 65_536).unwrap_err();
        assert_eq!((e.raw_os_error(), file.reads.get()), (Some(EIO), 2));
        assert_eq!(read(&file, 0, 20_480).unwrap().len(), 20_480);
    }

    #[test]
    fn a_read_that_comes_no_further_ends() {
        let file = sparing(100_000, 511);
        let e = read(&file, 0, 8192).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::Interrupted);
        let file = sparing(100_000, 4096);
        file.interrupted.set(u32::MAX);
        let e = read(&file, 0, 8192).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::Interrupted);
    }
}
