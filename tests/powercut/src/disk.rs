//! Files and directories in memory, each with what of it is on stable media.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};

use rustix::io::Errno;

use crate::file::{Content, SECTOR};

/// Number of the root directory.
pub const ROOT: u64 = 1;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
}

/// What `stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Number of the inode.
    pub number: u64,
    /// What it is.
    pub kind: Kind,
    /// Length in bytes.
    pub len: u64,
    /// Permission bits.
    pub mode: u16,
    /// Owner: user and group.
    pub owner: (u32, u32),
}

#[derive(Debug, Clone)]
enum Node {
    File(Content),
    Directory(Directory),
}

#[derive(Debug, Clone)]
struct Inode {
    node: Node,
    mode: u16,
    owner: (u32, u32),
    linked: bool,
}

#[derive(Debug, Clone, Default)]
struct Directory {
    now: BTreeMap<OsString, u64>,
    stable: BTreeMap<OsString, u64>,
    /// Changes since the last sync, oldest first.
    changes: Vec<Change>,
}

#[derive(Debug, Clone)]
enum Change {
    Link(OsString, u64),
    Unlink(OsString),
    Rename(OsString, OsString),
}

impl Change {
    fn apply(&self, entries: &mut BTreeMap<OsString, u64>) {
        match self {
            Self::Link(name, number) => {
                entries.insert(name.clone(), *number);
            }
            Self::Unlink(name) => {
                entries.remove(name);
            }
            Self::Rename(from, to) => {
                if let Some(number) = entries.remove(from) {
                    entries.insert(to.clone(), number);
                }
            }
        }
    }
}

impl Directory {
    fn change(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.changes.push(change);
    }
}

/// What decides which sectors survive.
#[derive(Debug, Clone)]
pub(crate) struct Chance {
    state: u64,
    percent: u64,
    pub(crate) tear_bytes: usize,
}

impl Chance {
    pub(crate) fn below(&mut self, n: usize) -> usize {
        // xorshift64*: anything will do.
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        let drawn = self.state.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33;
        usize::try_from(drawn).unwrap_or(0) % n.max(1)
    }

    pub(crate) fn survives(&mut self) -> bool {
        (self.below(100) as u64) < self.percent
    }
}

/// A write that has not been carried out: file, place, bytes.
pub(crate) type InFlight = (u64, usize, Vec<u8>);

/// A disk in memory.
#[derive(Debug, Clone)]
pub struct Disk {
    inodes: HashMap<u64, Inode>,
    next: u64,
    chance: Chance,
    /// Bytes of all files together.
    pub capacity: u64,
    /// Answers syncs and does nothing.
    pub lying: bool,
}

type Result<T> = std::result::Result<T, Errno>;

impl Disk {
    /// An empty disk of a gibibyte; `seed` decides what its power cuts leave.
    pub fn new(seed: u64) -> Self {
        let root = Inode {
            node: Node::Directory(Directory::default()),
            mode: 0o700,
            owner: (0, 0),
            linked: true,
        };
        let state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        Self {
            inodes: HashMap::from([(ROOT, root)]),
            next: ROOT + 1,
            chance: Chance {
                state,
                percent: 50,
                tear_bytes: SECTOR,
            },
            capacity: 1 << 30,
            lying: false,
        }
    }

    /// Lets power cuts tear at multiples of 4096 bytes only, as on a drive with large sectors.
    pub fn tear_at_pages(&mut self) {
        self.chance.tear_bytes = 4096;
    }

    fn inode(&self, number: u64) -> Result<&Inode> {
        self.inodes.get(&number).ok_or(Errno::NOENT)
    }

    fn directory(&self, number: u64) -> Result<&Directory> {
        match &self.inode(number)?.node {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn directory_mut(&mut self, number: u64) -> Result<&mut Directory> {
        match &mut self.inodes.get_mut(&number).ok_or(Errno::NOENT)?.node {
            Node::Directory(directory) => Ok(directory),
            Node::File(_) => Err(Errno::NOTDIR),
        }
    }

    fn file(&self, number: u64) -> Result<&Content> {
        match &self.inode(number)?.node {
            Node::File(content) => Ok(content),
            Node::Directory(_) => Err(Errno::ISDIR),
        }
    }

    fn file_mut(&mut self, number: u64) -> Result<&mut Content> {
        match &mut self.inodes.get_mut(&number).ok_or(Errno::NOENT)?.node {
            Node::File(content) => Ok(content),
            Node::Directory(_) => Err(Errno::ISDIR),
        }
    }

    /// What `stat` tells of an inode.
    pub fn attributes(&self, number: u64) -> Result<Attributes> {
        let inode = self.inode(number)?;
        let (kind, len) = match &inode.node {
            Node::File(content) => (Kind::File, content.len() as u64),
            Node::Directory(_) => (Kind::Directory, 4096),
        };
        let (mode, owner) = (inode.mode, inode.owner);
        Ok(Attributes {
            number,
            kind,
            len,
            mode,
            owner,
        })
    }

    /// The inode of a name.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<u64> {
        self.directory(parent)?
            .now
            .get(name)
            .copied()
            .ok_or(Errno::NOENT)
    }

    /// Names and inodes of a directory.
    pub fn list(&self, number: u64) -> Result<Vec<(OsString, u64)>> {
        let entries = &self.directory(number)?.now;
        Ok(entries
            .iter()
            .map(|(name, number)| (name.clone(), *number))
            .collect())
    }

    /// Bytes that files hold.
    pub fn used(&self) -> u64 {
        let files = self.inodes.values().filter(|inode| inode.linked);
        files
            .map(|inode| match &inode.node {
                Node::File(content) => content.len() as u64,
                Node::Directory(_) => 0,
            })
            .sum()
    }

    /// Makes a file or directory.
    pub fn create(
        &mut self,
        parent: u64,
        name: &OsStr,
        kind: Kind,
        mode: u16,
        owner: (u32, u32),
    ) -> Result<u64> {
        let number = self.next;
        let directory = self.directory_mut(parent)?;
        if directory.now.contains_key(name) {
            return Err(Errno::EXIST);
        }
        directory.change(Change::Link(name.to_owned(), number));
        let node = match kind {
            Kind::File => Node::File(Content::default()),
            Kind::Directory => Node::Directory(Directory::default()),
        };
        let linked = true;
        self.inodes.insert(
            number,
            Inode {
                node,
                mode,
                owner,
                linked,
            },
        );
        self.next += 1;
        Ok(number)
    }

    /// Removes a name. Its inode stays: the kernel may have it open, a power cut may bring it back.
    pub fn remove(&mut self, parent: u64, name: &OsStr, kind: Kind) -> Result<()> {
        let number = self.lookup(parent, name)?;
        match (&self.inode(number)?.node, kind) {
            (Node::File(_), Kind::Directory) => return Err(Errno::NOTDIR),
            (Node::Directory(_), Kind::File) => return Err(Errno::ISDIR),
            (Node::Directory(directory), Kind::Directory) if !directory.now.is_empty() => {
                return Err(Errno::NOTEMPTY);
            }
            _ => {}
        }
        self.directory_mut(parent)?
            .change(Change::Unlink(name.to_owned()));
        self.unlinked(number);
        Ok(())
    }

    fn unlinked(&mut self, number: u64) {
        if let Some(inode) = self.inodes.get_mut(&number) {
            inode.linked = false;
        }
    }

    /// Renames within a directory.
    pub fn rename(&mut self, parent: u64, from: &OsStr, to: &OsStr) -> Result<()> {
        self.lookup(parent, from)?;
        if let Ok(replaced) = self.lookup(parent, to) {
            let in_the_way = self.directory(replaced).is_ok_and(|d| !d.now.is_empty());
            if in_the_way {
                return Err(Errno::NOTEMPTY);
            }
            self.unlinked(replaced);
        }
        let change = Change::Rename(from.to_owned(), to.to_owned());
        self.directory_mut(parent)?.change(change);
        Ok(())
    }

    /// Bytes of a file.
    pub fn read(&self, number: u64, at: u64, len: usize) -> Result<&[u8]> {
        let at = usize::try_from(at).map_err(|_| Errno::INVAL)?;
        Ok(self.file(number)?.read(at, len))
    }

    /// Writes, durably if asked to.
    pub fn write(&mut self, number: u64, at: u64, bytes: &[u8], durable: bool) -> Result<()> {
        let (lying, start) = (self.lying, usize::try_from(at).map_err(|_| Errno::INVAL)?);
        self.check_room(number, at.saturating_add(bytes.len() as u64))?;
        let file = self.file_mut(number)?;
        if durable && !lying {
            file.write_through(start, bytes);
        } else {
            file.write(start, bytes);
        }
        Ok(())
    }

    fn check_room(&self, number: u64, len: u64) -> Result<()> {
        let more = len.saturating_sub(self.file(number)?.len() as u64);
        if more > 0 && self.used().saturating_add(more) > self.capacity {
            return Err(Errno::NOSPC);
        }
        Ok(())
    }

    /// Sets the length of a file.
    pub fn set_len(&mut self, number: u64, len: u64) -> Result<()> {
        self.check_room(number, len)?;
        let len = usize::try_from(len).map_err(|_| Errno::FBIG)?;
        self.file_mut(number)?.set_len(len);
        Ok(())
    }

    /// Makes sure that a file has this length at least.
    pub fn allocate(&mut self, number: u64, len: u64) -> Result<()> {
        if len <= self.file(number)?.len() as u64 {
            return Ok(());
        }
        self.set_len(number, len)
    }

    /// Makes a file stable, or the entries of a directory.
    pub fn sync(&mut self, number: u64) -> Result<()> {
        let lying = self.lying;
        let inode = self.inodes.get_mut(&number).ok_or(Errno::NOENT)?;
        match &mut inode.node {
            _ if lying => {}
            Node::File(content) => content.sync(),
            Node::Directory(directory) => {
                directory.stable.clone_from(&directory.now);
                directory.changes.clear();
            }
        }
        Ok(())
    }

    /// Writes everything below `number` out to a directory, to be looked into.
    ///
    /// # Errors
    /// Those of writing files.
    pub fn export(&self, number: u64, to: &std::path::Path) -> std::io::Result<()> {
        std::fs::create_dir_all(to)?;
        for (name, number) in self.list(number)? {
            let to = to.join(name);
            match &self.inode(number)?.node {
                Node::File(content) => std::fs::write(to, content.read(0, content.len()))?,
                Node::Directory(_) => self.export(number, &to)?,
            }
        }
        Ok(())
    }

    /// What is left when the power fails now.
    pub(crate) fn survivor(mut self, in_flight: &[InFlight]) -> Self {
        // Some cuts leave nothing that was not synced, some nearly everything.
        self.chance.percent = [0, 20, 50, 50, 90, 100][self.chance.below(6)];
        let mut left = Self {
            inodes: HashMap::new(),
            next: self.next,
            chance: self.chance.clone(),
            capacity: self.capacity,
            lying: self.lying,
        };
        let mut numbers = vec![ROOT];
        while let Some(number) = numbers.pop() {
            let Some(inode) = self.inodes.remove(&number) else {
                continue;
            };
            let node = match inode.node {
                Node::File(content) => {
                    let here = in_flight.iter().filter(|(file, ..)| *file == number);
                    let writes: Vec<_> = here.map(|(_, at, bytes)| (*at, bytes.clone())).collect();
                    Node::File(content.survivor(&writes, &mut left.chance))
                }
                Node::Directory(directory) => {
                    let mut now = directory.stable;
                    let kept = left.chance.below(directory.changes.len() + 1);
                    directory.changes[..kept]
                        .iter()
                        .for_each(|c| c.apply(&mut now));
                    numbers.extend(now.values());
                    let stable = now.clone();
                    Node::Directory(Directory {
                        now,
                        stable,
                        changes: Vec::new(),
                    })
                }
            };
            let survivor = Inode {
                node,
                linked: true,
                ..inode
            };
            left.inodes.insert(number, survivor);
        }
        left
    }
}

#[cfg(test)]
mod tests;
