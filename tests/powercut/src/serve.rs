//! The disk as the kernel's FUSE client sees it.

use std::ffi::OsStr;
use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use crate::disk::{Attributes, Disk, Kind};
use crate::mount::{Pending, Power};

/// Nothing is cached: the kernel asks every time.
const TTL: Duration = Duration::ZERO;
/// `O_DSYNC` of Linux, which `O_SYNC` contains.
const O_DSYNC: i32 = 0o10_000;

/// Serves the disk behind a [`Power`] switch.
pub(crate) struct Serve(pub(crate) Arc<Power>);

fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_i32(error.raw_os_error())
}

fn attr(of: Attributes) -> FileAttr {
    let epoch: SystemTime = UNIX_EPOCH;
    FileAttr {
        ino: INodeNo(of.number),
        size: of.len,
        blocks: of.len.div_ceil(512),
        atime: epoch,
        mtime: epoch,
        ctime: epoch,
        crtime: epoch,
        kind: file_type(of.kind),
        perm: of.mode,
        nlink: 1,
        uid: of.owner.0,
        gid: of.owner.1,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

fn file_type(kind: Kind) -> FileType {
    match kind {
        Kind::File => FileType::RegularFile,
        Kind::Directory => FileType::Directory,
    }
}

fn bits(mode: u32) -> u16 {
    u16::try_from(mode & 0o7777).unwrap_or(0)
}

/// No page cache: what is written is here, and writes may overlap.
fn direct() -> FopenFlags {
    FopenFlags::FOPEN_DIRECT_IO | FopenFlags::FOPEN_PARALLEL_DIRECT_WRITES
}

impl Serve {
    /// Reads the disk, while there is power.
    fn look<T>(
        &self,
        look: impl FnOnce(&Disk) -> Result<T, rustix::io::Errno>,
    ) -> Result<T, Errno> {
        self.0.look(look).map_err(errno)
    }

    /// Changes the disk at once.
    fn change<T>(
        &self,
        change: impl FnOnce(&mut Disk) -> Result<T, rustix::io::Errno>,
    ) -> Result<T, Errno> {
        self.0.change(change).map_err(errno)
    }

    fn done(
        &self,
        reply: ReplyEmpty,
        change: impl FnOnce(&mut Disk) -> Result<(), rustix::io::Errno>,
    ) {
        match self.change(change) {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn make(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        kind: Kind,
        mode: u32,
    ) -> Result<Attributes, Errno> {
        let owner = (req.uid(), req.gid());
        self.change(|disk| {
            let number = disk.create(parent.0, name, kind, bits(mode), owner)?;
            disk.attributes(number)
        })
    }
}

impl Filesystem for Serve {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Without them, large or parallel transfers come one after the other: still correct.
        config.add_capabilities(InitFlags::FUSE_ASYNC_DIO).ok();
        config.set_max_write(1 << 20).ok();
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.look(|disk| disk.attributes(disk.lookup(parent.0, name)?)) {
            Ok(of) => reply.entry(&TTL, &attr(of), Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.look(|disk| disk.attributes(ino.0)) {
            Ok(of) => reply.attr(&TTL, &attr(of)),
            Err(e) => reply.error(e),
        }
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let done = match size {
            Some(len) => self.change(|disk| {
                disk.set_len(ino.0, len)?;
                disk.attributes(ino.0)
            }),
            None => self.look(|disk| disk.attributes(ino.0)),
        };
        match done {
            Ok(of) => reply.attr(&TTL, &attr(of)),
            Err(e) => reply.error(e),
        }
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        reply: ReplyEntry,
    ) {
        match self.make(req, parent, name, Kind::Directory, mode) {
            Ok(of) => reply.entry(&TTL, &attr(of), Generation(0)),
            Err(e) => reply.error(e),
        }
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        match self.make(req, parent, name, Kind::File, mode) {
            Ok(of) => reply.created(&TTL, &attr(of), Generation(0), FileHandle(0), direct()),
            Err(e) => reply.error(e),
        }
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(reply, |disk| disk.remove(parent.0, name, Kind::File));
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.done(reply, |disk| disk.remove(parent.0, name, Kind::Directory));
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if parent != newparent || !flags.is_empty() {
            return reply.error(Errno::EXDEV);
        }
        self.done(reply, |disk| disk.rename(parent.0, name, newname));
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        match self.look(|disk| disk.attributes(ino.0)) {
            Ok(_) => reply.opened(FileHandle(0), direct()),
            Err(e) => reply.error(e),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let len = usize::try_from(size).unwrap_or(usize::MAX);
        match self.look(|disk| disk.read(ino.0, offset, len).map(<[u8]>::to_vec)) {
            Ok(bytes) => reply.data(&bytes),
            Err(e) => reply.error(e),
        }
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.0.submit(Pending::Write {
            number: ino.0,
            at: offset,
            bytes: data.to_vec(),
            durable: flags.0 & O_DSYNC != 0,
            reply,
        });
    }

    fn fsync(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.0.submit(Pending::Sync {
            number: ino.0,
            reply,
        });
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.done(reply, |disk| disk.sync(ino.0));
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let listed = self.look(|disk| {
            let mut entries = vec![
                (".".into(), ino.0, Kind::Directory),
                ("..".into(), ino.0, Kind::Directory),
            ];
            for (name, number) in disk.list(ino.0)? {
                entries.push((name, number, disk.attributes(number)?.kind));
            }
            Ok(entries)
        });
        match listed {
            Ok(entries) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX);
                for (next, (name, number, kind)) in (1..).zip(entries).skip(from) {
                    if reply.add(INodeNo(number), next, file_type(kind), name) {
                        break;
                    }
                }
                reply.ok();
            }
            Err(e) => reply.error(e),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        match self.look(|disk| Ok((disk.capacity, disk.used()))) {
            Ok((capacity, used)) => {
                let (all, free) = (capacity / 4096, capacity.saturating_sub(used) / 4096);
                reply.statfs(all, free, free, 1 << 20, 1 << 20, 4096, 255, 4096);
            }
            Err(e) => reply.error(e),
        }
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        match mode {
            0 => self.done(reply, |disk| {
                disk.allocate(ino.0, offset.saturating_add(length))
            }),
            // FALLOC_FL_KEEP_SIZE: no block of this disk is missing before it is needed.
            1 => reply.ok(),
            _ => reply.error(Errno::EOPNOTSUPP),
        }
    }
}
