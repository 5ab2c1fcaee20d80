//! The disk: inodes, open file descriptions, advisory locks, space.

use std::path::Path;

use alluvium_core::io::LockKind;
use rustix::io::Errno;

use super::directory::{Node, Tree};
use super::file::{FileImage, PAGE};
use super::rng::Rng;
use super::slab::{Key, Slab};

/// A file without its name.
#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) image: FileImage,
    /// Names that stand for it now.
    links: u32,
    /// Un-synced directory changes that could bring a name back.
    held: u32,
    /// Open descriptions.
    opened: u32,
    locks: Vec<(Key, LockKind)>,
    /// Writes in flight: operation, offset, end.
    pub(super) writes: Vec<(Key, u64, u64)>,
}

/// An open file description.
#[derive(Debug)]
pub(super) struct Fd {
    pub(super) inode: Key,
    pub(super) process: u32,
    pub(super) writable: bool,
    /// Alignment that transfers must keep.
    pub(super) alignment: u32,
    /// Operations that the kernel has not finished: they keep the description, and its lock.
    in_flight: u32,
    /// Whether the process still has the descriptor.
    open: bool,
}

/// Everything that outlives a process.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) tree: Tree,
    pub(super) inodes: Slab<Inode>,
    pub(super) fds: Slab<Fd>,
    pub(super) capacity_blocks: u64,
    used_blocks: u64,
}

impl Disk {
    pub(super) fn new(capacity_bytes: u64) -> Self {
        Self {
            tree: Tree::new(),
            inodes: Slab::default(),
            fds: Slab::default(),
            capacity_blocks: capacity_bytes / PAGE,
            used_blocks: 0,
        }
    }

    pub(super) fn free_blocks(&self) -> u64 {
        self.capacity_blocks.saturating_sub(self.used_blocks)
    }

    /// The file of a path.
    pub(super) fn file(&self, path: &Path) -> Result<Key, Errno> {
        match self.tree.lookup(path)? {
            Node::File(inode) => Ok(inode),
            Node::Dir(_) => Err(Errno::ISDIR),
        }
    }

    pub(super) fn inode(&self, key: Key) -> &Inode {
        self.inodes
            .get(key)
            .expect("inodes live as long as a name, a log or a descriptor")
    }

    /// Changes an image and keeps count of the blocks in use.
    pub(super) fn change<T>(&mut self, key: Key, f: impl FnOnce(&mut FileImage) -> T) -> T {
        let image = &mut self.inode_mut(key).image;
        let before = image.blocks();
        let result = f(image);
        let after = image.blocks();
        self.used_blocks = self.used_blocks + after - before;
        result
    }

    pub(super) fn inode_mut(&mut self, key: Key) -> &mut Inode {
        self.inodes
            .get_mut(key)
            .expect("inodes live as long as a name, a log or a descriptor")
    }

    /// Creates an empty file under a free name.
    pub(super) fn create(&mut self, path: &Path, stamp: u64) -> Result<Key, Errno> {
        let (dir, name) = self.tree.parent(path)?;
        if self.tree.entry(dir, name).is_some() {
            return Err(Errno::EXIST);
        }
        let inode = self.inodes.insert(Inode {
            links: 1,
            ..Inode::default()
        });
        self.tree.add(dir, name, Node::File(inode), stamp);
        Ok(inode)
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path, stamp: u64) -> Result<(), Errno> {
        let Self { tree, inodes, .. } = self;
        let replaced = tree.rename(from, to, stamp, |inode| {
            if let Some(inode) = inodes.get_mut(inode) {
                inode.held += 1;
            }
        })?;
        if let Some(inode) = replaced {
            self.inode_mut(inode).links -= 1;
            self.reap(inode);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path, want_dir: bool, stamp: u64) -> Result<(), Errno> {
        if let Node::File(key) = self.tree.remove(path, want_dir, stamp)? {
            let inode = self.inode_mut(key);
            inode.held += 1;
            inode.links -= 1;
            self.reap(key);
        }
        Ok(())
    }

    pub(super) fn sync_dir(&mut self, path: &Path, stamp: u64) -> Result<(), Errno> {
        let dir = self.tree.lookup_dir(path)?;
        let mut released = Vec::new();
        self.tree.sync(dir, stamp, |inode| released.push(inode));
        for key in released {
            self.inode_mut(key).held -= 1;
            self.reap(key);
        }
        Ok(())
    }

    /// Frees the space of a file that nobody can reach, and forgets it when no log holds it.
    ///
    /// The blocks of a removed file stay charged until its removal is durable, as a journalling
    /// file system has it: only then may they be given to others.
    fn reap(&mut self, key: Key) {
        let inode = self.inode(key);
        if inode.links == 0 && inode.opened == 0 && inode.held == 0 {
            self.used_blocks -= inode.image.blocks();
            self.inodes.remove(key);
        }
    }

    pub(super) fn open_fd(&mut self, fd: Fd) -> Key {
        self.inode_mut(fd.inode).opened += 1;
        self.fds.insert(fd)
    }

    pub(super) fn begin(&mut self, fd: Key) {
        if let Some(fd) = self.fds.get_mut(fd) {
            fd.in_flight += 1;
        }
    }

    /// An operation of the descriptor has left the kernel.
    pub(super) fn end(&mut self, key: Key) {
        if let Some(fd) = self.fds.get_mut(key) {
            fd.in_flight -= 1;
            self.release(key);
        }
    }

    /// The process lets go of the descriptor.
    pub(super) fn close(&mut self, key: Key) {
        if let Some(fd) = self.fds.get_mut(key) {
            fd.open = false;
            self.release(key);
        }
    }

    fn release(&mut self, key: Key) {
        let Some(fd) = self.fds.get(key) else { return };
        if fd.open || fd.in_flight > 0 {
            return;
        }
        let inode_key = fd.inode;
        self.fds.remove(key);
        let inode = self.inode_mut(inode_key);
        inode.locks.retain(|(holder, _)| *holder != key);
        inode.opened -= 1;
        self.reap(inode_key);
    }

    /// `flock(LOCK_NB)`: a failed conversion loses the lock that was held, as on Linux.
    pub(super) fn try_lock(&mut self, key: Key, kind: LockKind) -> bool {
        let Some(fd) = self.fds.get(key) else {
            return false;
        };
        let inode = self.inode_mut(fd.inode);
        inode.locks.retain(|(holder, _)| *holder != key);
        let free = inode
            .locks
            .iter()
            .all(|(_, other)| kind == LockKind::Shared && *other == LockKind::Shared);
        if free {
            inode.locks.push((key, kind));
        }
        free
    }

    /// Descriptors that processes hold.
    pub(super) fn open_descriptors(&self) -> usize {
        self.fds.iter().filter(|(_, fd)| fd.open).count()
    }

    /// Content and names after the power went. Descriptors, locks and writes in flight are gone.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        self.fds = Slab::default();
        for (_, inode) in self.inodes.iter_mut() {
            if !inode.image.is_clean() {
                inode.image.lose_power(rng);
            }
            inode.writes.clear();
            inode.locks.clear();
            (inode.links, inode.held, inode.opened) = (0, 0, 0);
        }
        self.tree.lose_power(rng);
    }

    /// Counts references anew and forgets what no name leads to.
    pub(super) fn settle(&mut self) {
        let mut dirs = vec![self.tree.root()];
        while let Some(dir) = dirs.pop() {
            for (_, node) in self.tree.entries(dir) {
                match node {
                    Node::Dir(sub) => dirs.push(sub),
                    Node::File(key) => {
                        if let Some(inode) = self.inodes.get_mut(key) {
                            inode.links += 1;
                        }
                    }
                }
            }
        }
        for key in self.inodes.keys(|inode| inode.links == 0) {
            self.inodes.remove(key);
        }
        self.used_blocks = self
            .inodes
            .iter()
            .map(|(_, inode)| inode.image.blocks())
            .sum();
    }
}

impl Fd {
    pub(super) fn new(inode: Key, process: u32, writable: bool, alignment: u32) -> Self {
        Self {
            inode,
            process,
            writable,
            alignment,
            in_flight: 0,
            open: true,
        }
    }
}
