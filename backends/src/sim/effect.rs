//! What operations do to the disk when they complete.

use std::path::Path;
use std::task::Waker;

use alluvium_core::io::{AlignedBuf, DirEntry, EntryKind, FsSpace, OpenMode, OpenOptions};
use bytes::Bytes;
use rustix::io::Errno;

use super::directory::Node;
use super::disk::Fd;
use super::fault::Fate;
use super::file::{PAGE, Tear, to_usize};
use super::op::{Op, OpKind, Output, Phase};
use super::slab::Key;
use super::world::World;

impl World {
    /// The operation leaves the kernel; returns whom to tell.
    pub(super) fn complete(&mut self, key: Key) -> Option<Waker> {
        let op = self.ops.get_mut(key)?;
        let mut kind = std::mem::replace(&mut op.kind, OpKind::Taken);
        let (process, fd, fate) = (op.process, op.fd, op.fate);
        let (zombie, crash) = (op.zombie, op.crash.take());
        let inode = self.disk.fds.get(fd).map(|fd| fd.inode);
        if let (OpKind::Write { .. }, Some(inode)) = (&kind, inode) {
            self.disk
                .inode_mut(inode)
                .writes
                .retain(|(other, ..)| *other != key);
        }
        let result = match (zombie, inode) {
            (Some(tear), Some(inode)) => {
                self.haunt(inode, &kind, tear);
                Ok(Output::Done)
            }
            (None, Some(inode)) => self.apply_to_file(fd, inode, &mut kind, fate),
            (_, None) => self.apply_to_names(process, &kind, fate),
        };
        self.note(self.now);
        self.note(key.number() ^ u64::from(result.is_ok()) << 63);
        if self.config.trace_bytes {
            self.note_answer(&result);
        }
        self.disk.end(fd);
        if let Some(crash) = crash
            && zombie.is_none()
            && self.alive(process)
        {
            self.ops.remove(key);
            self.crash(crash, process);
            return None;
        }
        let op = self.ops.get_mut(key)?;
        if op.abandoned {
            self.ops.remove(key);
            // A descriptor that nobody will hear of.
            if let Ok(Output::Fd(fd)) = result {
                self.disk.close(fd);
            }
            return None;
        }
        op.kind = kind;
        op.phase = Phase::Finished(result);
        op.waker.take()
    }

    /// What the engine is told, in the trace.
    fn note_answer(&mut self, result: &Result<Output, Errno>) {
        match result {
            Err(errno) => self.note(u64::from(errno.raw_os_error().unsigned_abs())),
            Ok(Output::Count(n)) => self.note(*n as u64),
            Ok(Output::Len(len)) => self.note(*len),
            Ok(Output::Entries(entries)) => {
                for entry in entries {
                    self.note_bytes(entry.name.as_encoded_bytes());
                }
            }
            Ok(Output::Space(space)) => self.note(space.available_bytes),
            Ok(Output::Fd(fd)) => self.note(fd.number()),
            Ok(Output::Done | Output::Kind(_)) => {}
        }
    }

    /// What an operation of a dead process does, late: all, part or nothing; never durable.
    fn haunt(&mut self, inode: Key, kind: &OpKind, tear: Tear) {
        match kind {
            OpKind::Write { buf, offset, .. } => self.land(inode, *offset, buf, tear),
            OpKind::Sync { stamp } if matches!(tear, Tear::Whole) && !self.config.lying_flush => {
                self.disk.change(inode, |image| image.sync(*stamp));
            }
            OpKind::Allocate { len } if matches!(tear, Tear::Whole) => {
                drop(self.allocate(inode, *len));
            }
            OpKind::SetLen { len } if matches!(tear, Tear::Whole) => {
                drop(self.set_len(inode, *len));
            }
            _ => {}
        }
    }

    /// Some sectors of a write become visible, without a report.
    fn land(&mut self, inode: Key, offset: u64, bytes: &[u8], tear: Tear) {
        let room = self.disk.free_blocks();
        let stamp = self.next_stamp();
        let rng = &mut self.rng;
        self.disk.change(inode, |image| {
            if image.blocks_for_write(offset, bytes.len()) <= room {
                tear.runs(offset, bytes.len(), rng, |start, end| {
                    image.write(offset + start as u64, &bytes[start..end], stamp);
                });
            }
        });
    }

    fn apply_to_file(
        &mut self,
        fd: Key,
        inode: Key,
        kind: &mut OpKind,
        fate: Fate,
    ) -> Result<Output, Errno> {
        if fate == Fate::Interrupted {
            return Err(Errno::INTR);
        }
        let failure = if let Fate::Fails(errno) = fate {
            Err(errno)
        } else {
            Ok(())
        };
        let writable = self.disk.fds.get(fd).is_some_and(|fd| fd.writable);
        match kind {
            OpKind::Read { buf, offset, len } => {
                failure?;
                let limit = if let Fate::Short(n) = fate { n } else { *len };
                let Some(buf) = buf else {
                    return Err(Errno::FAULT);
                };
                Ok(Output::Count(self.read(
                    inode,
                    buf,
                    *offset,
                    limit.min(*len),
                )))
            }
            OpKind::Len => failure.map(|()| Output::Len(self.disk.inode(inode).image.len())),
            _ if !writable && !matches!(kind, OpKind::Sync { .. }) => Err(Errno::BADF),
            OpKind::Write {
                buf,
                offset,
                durable,
            } => self.write(inode, buf, *offset, *durable, fate),
            OpKind::Sync { stamp } => {
                let rng = &mut self.rng;
                let lying = self.config.lying_flush;
                self.disk.change(inode, |image| match fate {
                    Fate::Fails(errno) => {
                        image.fail_sync(*stamp, rng);
                        Err(errno)
                    }
                    _ if lying => Ok(Output::Done),
                    _ => {
                        image.sync(*stamp);
                        Ok(Output::Done)
                    }
                })
            }
            OpKind::Allocate { len } => failure.and_then(|()| self.allocate(inode, *len)),
            OpKind::SetLen { len } => failure.and_then(|()| self.set_len(inode, *len)),
            _ => Err(Errno::INVAL),
        }
    }

    fn read(&mut self, inode: Key, buf: &mut AlignedBuf, offset: u64, len: usize) -> usize {
        // Sectors of a write in flight land one by one, and a reader can come in between.
        let end = offset + len as u64;
        let writes = &self.disk.inode(inode).writes;
        let racing: Vec<Key> = writes
            .iter()
            .filter(|w| w.1 < end && offset < w.2)
            .map(|w| w.0)
            .collect();
        for key in racing {
            let Some(Op {
                kind: OpKind::Write { buf, offset, .. },
                fate,
                ..
            }) = self.ops.get(key)
            else {
                continue;
            };
            if matches!(fate, Fate::Fine) {
                let (buf, offset) = (buf.clone(), *offset);
                self.land(inode, offset, &buf, Tear::Holes(8));
            }
        }
        let image = &self.disk.inode(inode).image;
        let n = to_usize(image.len().saturating_sub(offset).min(len as u64));
        buf.clear();
        image.read(offset, &mut buf.spare_capacity_mut()[..n]);
        buf.set_len(n);
        self.counters.bytes_read += n as u64;
        self.note_bytes(buf);
        n
    }

    fn write(
        &mut self,
        inode: Key,
        buf: &Bytes,
        offset: u64,
        durable: bool,
        fate: Fate,
    ) -> Result<Output, Errno> {
        let n = if let Fate::Short(n) = fate {
            n.min(buf.len())
        } else {
            buf.len()
        };
        let bytes = &buf[..n];
        match fate {
            Fate::Fails(errno) => {
                let tear = Tear::random(&mut self.rng);
                self.land(inode, offset, bytes, tear);
                return Err(errno);
            }
            Fate::Lost => return Ok(Output::Count(n)),
            Fate::Misdirected => {
                self.misdirect(inode, offset, bytes);
                return Ok(Output::Count(n));
            }
            _ => {}
        }
        let room = self.disk.free_blocks();
        if self.disk.inode(inode).image.blocks_for_write(offset, n) > room {
            return Err(Errno::NOSPC);
        }
        let stamp = self.next_stamp();
        let durable = durable && !self.config.lying_flush;
        self.disk.change(inode, |image| {
            if durable {
                image.write_durable(offset, bytes);
            } else {
                image.write(offset, bytes, stamp);
            }
        });
        Ok(Output::Count(n))
    }

    /// The bytes go to another aligned place of the file, over whatever is there.
    fn misdirect(&mut self, inode: Key, offset: u64, bytes: &[u8]) {
        let len = self.disk.inode(inode).image.len();
        let places = len.saturating_sub(bytes.len() as u64) / PAGE + 1;
        let mut place = self.fault_rng.below(places) * PAGE;
        if place == offset && places > 1 {
            place = (place + PAGE) % (places * PAGE);
        }
        let room = to_usize(len.saturating_sub(place).min(bytes.len() as u64));
        if place != offset {
            self.disk
                .change(inode, |image| image.damage(place, &bytes[..room]));
        }
    }

    fn allocate(&mut self, inode: Key, len: u64) -> Result<Output, Errno> {
        if self.disk.inode(inode).image.blocks_for_allocation(len) > self.disk.free_blocks() {
            return Err(Errno::NOSPC);
        }
        let stamp = self.next_stamp();
        self.disk.change(inode, |image| image.allocate(len, stamp));
        Ok(Output::Done)
    }

    fn set_len(&mut self, inode: Key, len: u64) -> Result<Output, Errno> {
        let grows = len > self.disk.inode(inode).image.len();
        if grows && self.disk.free_blocks() == 0 {
            return Err(Errno::NOSPC);
        }
        let stamp = self.next_stamp();
        self.disk.change(inode, |image| image.set_len(len, stamp));
        Ok(Output::Done)
    }

    fn apply_to_names(&mut self, process: u32, kind: &OpKind, fate: Fate) -> Result<Output, Errno> {
        if let Fate::Fails(errno) = fate {
            return Err(errno);
        }
        let full = self.disk.free_blocks() == 0;
        let stamp = self.stamp + 1;
        let disk = &mut self.disk;
        let done = match kind {
            OpKind::Open { path, options } => return self.open(process, path, *options),
            OpKind::List { path } => {
                let dir = disk.tree.lookup_dir(path)?;
                let entries = disk.tree.entries(dir).map(|(name, node)| DirEntry {
                    name: name.clone(),
                    kind: entry_kind(node),
                });
                let mut entries: Vec<DirEntry> = entries.collect();
                // The order of a directory means nothing.
                for i in (1..entries.len()).rev() {
                    entries.swap(i, self.rng.index(i + 1));
                }
                return Ok(Output::Entries(entries));
            }
            OpKind::Kind { path } => {
                return Ok(Output::Kind(entry_kind(disk.tree.lookup(path)?)));
            }
            OpKind::Space => {
                return Ok(Output::Space(FsSpace {
                    total_bytes: disk.capacity_blocks * PAGE,
                    available_bytes: disk.free_blocks() * PAGE,
                }));
            }
            OpKind::CreateDir { path } => {
                let (parent, name) = disk.tree.parent(path)?;
                if disk.tree.entry(parent, name).is_some() {
                    Err(Errno::EXIST)
                } else if full {
                    Err(Errno::NOSPC)
                } else {
                    disk.tree.add_dir(parent, name, stamp);
                    Ok(())
                }
            }
            // Renaming can need a new block in the directory.
            OpKind::Rename { .. } if full && self.rng.coin() => Err(Errno::NOSPC),
            OpKind::Rename { from, to } => disk.rename(from, to, stamp),
            OpKind::Remove { path, dir } => disk.remove(path, *dir, stamp),
            OpKind::SyncDir { path, .. } if self.config.lying_flush => {
                disk.tree.lookup_dir(path).map(|_| ())
            }
            OpKind::SyncDir { path, stamp } => disk.sync_dir(path, *stamp),
            _ => Err(Errno::BADF),
        };
        done?;
        self.stamp = stamp;
        Ok(Output::Done)
    }

    fn open(&mut self, process: u32, path: &Path, options: OpenOptions) -> Result<Output, Errno> {
        if self.disk.open_descriptors() >= self.config.descriptors_max {
            return Err(Errno::MFILE);
        }
        let exists = self.disk.tree.lookup(path);
        if options.direct && !self.config.direct_io {
            return Err(match (options.mode, exists) {
                (OpenMode::CreateNew, Ok(_)) => Errno::EXIST,
                (OpenMode::Read | OpenMode::ReadWrite, Err(errno)) => errno,
                _ => Errno::INVAL,
            });
        }
        let inode = if options.mode == OpenMode::CreateNew {
            if exists.is_err() && self.disk.free_blocks() == 0 {
                return Err(Errno::NOSPC);
            }
            let stamp = self.next_stamp();
            self.disk.create(path, stamp)?
        } else {
            self.disk.file(path)?
        };
        let alignment = if options.direct {
            self.config.alignment
        } else {
            1
        };
        let writable = options.mode != OpenMode::Read;
        Ok(Output::Fd(
            self.disk
                .open_fd(Fd::new(inode, process, writable, alignment)),
        ))
    }
}

fn entry_kind(node: Node) -> EntryKind {
    match node {
        Node::File(_) => EntryKind::File,
        Node::Dir(_) => EntryKind::Dir,
    }
}
