//! The tree of names, and which of its changes survive a loss of power.
//!
//! Each directory keeps the changes since its last sync, oldest first; loss of power undoes a
//! random suffix of them. A rename between directories is one change in each; while neither is
//! synced they stay or go together, and when one is synced the other may still be undone.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path};

use rustix::io::Errno;

use super::rng::Rng;
use super::slab::{Key, Slab};

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Node {
    /// A key of the disk's inodes.
    File(Key),
    /// A key of the tree's directories.
    Dir(Key),
}

#[derive(Debug, Default)]
struct Dir {
    entries: BTreeMap<OsString, Node>,
    log: Vec<Change>,
}

#[derive(Debug)]
struct Change {
    stamp: u64,
    /// Common to the two halves of a rename between directories, else zero.
    pair: u64,
    kind: ChangeKind,
}

#[derive(Debug)]
enum ChangeKind {
    Add {
        name: OsString,
        replaced: Option<Node>,
    },
    Remove {
        name: OsString,
        node: Node,
    },
    Rename {
        from: OsString,
        to: OsString,
        node: Node,
        replaced: Option<Node>,
    },
}

/// All directories.
#[derive(Debug)]
pub(super) struct Tree {
    dirs: Slab<Dir>,
    root: Key,
    pairs: u64,
}

impl Tree {
    pub(super) fn new() -> Self {
        let mut dirs = Slab::default();
        let root = dirs.insert(Dir::default());
        Self {
            dirs,
            root,
            pairs: 0,
        }
    }

    pub(super) fn lookup(&self, path: &Path) -> Result<Node, Errno> {
        let mut node = Node::Dir(self.root);
        for component in path.components() {
            match component {
                Component::RootDir | Component::CurDir => {}
                Component::Normal(name) => {
                    let Node::Dir(dir) = node else {
                        return Err(Errno::NOTDIR);
                    };
                    node = *self.dir(dir).entries.get(name).ok_or(Errno::NOENT)?;
                }
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL),
            }
        }
        Ok(node)
    }

    pub(super) fn lookup_dir(&self, path: &Path) -> Result<Key, Errno> {
        match self.lookup(path)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(Errno::NOTDIR),
        }
    }

    /// The directory that holds `path`, and the last component.
    pub(super) fn parent<'p>(&self, path: &'p Path) -> Result<(Key, &'p OsStr), Errno> {
        let name = path.file_name().ok_or(Errno::INVAL)?;
        Ok((
            self.lookup_dir(path.parent().unwrap_or(Path::new("/")))?,
            name,
        ))
    }

    pub(super) fn entry(&self, dir: Key, name: &OsStr) -> Option<Node> {
        self.dir(dir).entries.get(name).copied()
    }

    pub(super) fn entries(&self, dir: Key) -> impl Iterator<Item = (&OsString, Node)> {
        self.dir(dir)
            .entries
            .iter()
            .map(|(name, node)| (name, *node))
    }

    pub(super) fn root(&self) -> Key {
        self.root
    }

    /// Adds a name that is free. A `stamp` of zero makes the change durable at once.
    pub(super) fn add(&mut self, dir: Key, name: &OsStr, node: Node, stamp: u64) {
        let dir = self.dir_mut(dir);
        let clash = dir.entries.insert(name.to_owned(), node);
        debug_assert!(clash.is_none());
        if stamp > 0 {
            let kind = ChangeKind::Add {
                name: name.to_owned(),
                replaced: None,
            };
            dir.log.push(Change {
                stamp,
                pair: 0,
                kind,
            });
        }
    }

    pub(super) fn add_dir(&mut self, parent: Key, name: &OsStr, stamp: u64) -> Key {
        let key = self.dirs.insert(Dir::default());
        self.add(parent, name, Node::Dir(key), stamp);
        key
    }

    /// Removes a file, which the log goes on holding, or an empty directory.
    pub(super) fn remove(
        &mut self,
        path: &Path,
        want_dir: bool,
        stamp: u64,
    ) -> Result<Node, Errno> {
        let (parent, name) = self.parent(path)?;
        let node = self.entry(parent, name).ok_or(Errno::NOENT)?;
        match node {
            Node::File(_) if want_dir => return Err(Errno::NOTDIR),
            Node::Dir(_) if !want_dir => return Err(Errno::ISDIR),
            Node::Dir(dir) if !self.dir(dir).entries.is_empty() => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        let dir = self.dir_mut(parent);
        dir.entries.remove(name);
        let kind = ChangeKind::Remove {
            name: name.to_owned(),
            node,
        };
        dir.log.push(Change {
            stamp,
            pair: 0,
            kind,
        });
        Ok(node)
    }

    /// Renames; returns the file that was replaced. Calls `hold` for every file that the log
    /// holds from now on.
    pub(super) fn rename(
        &mut self,
        from: &Path,
        to: &Path,
        stamp: u64,
        mut hold: impl FnMut(Key),
    ) -> Result<Option<Key>, Errno> {
        let (from_dir, from_name) = self.parent(from)?;
        let (to_dir, to_name) = self.parent(to)?;
        let node = self.entry(from_dir, from_name).ok_or(Errno::NOENT)?;
        let replaced = self.entry(to_dir, to_name);
        match (node, replaced) {
            _ if from_dir == to_dir && from_name == to_name => return Ok(None),
            (Node::Dir(_), _) if from_dir != to_dir => return Err(Errno::XDEV),
            (Node::File(_), Some(Node::Dir(_))) => return Err(Errno::ISDIR),
            (Node::Dir(_), Some(Node::File(_))) => return Err(Errno::NOTDIR),
            (Node::Dir(_), Some(Node::Dir(_))) => return Err(Errno::NOTEMPTY),
            _ => {}
        }
        let replaced_file = match replaced {
            Some(Node::File(inode)) => Some(inode),
            _ => None,
        };
        replaced_file.into_iter().for_each(&mut hold);
        self.dir_mut(from_dir).entries.remove(from_name);
        self.dir_mut(to_dir)
            .entries
            .insert(to_name.to_owned(), node);
        let (from, to) = (from_name.to_owned(), to_name.to_owned());
        if from_dir == to_dir {
            let kind = ChangeKind::Rename {
                from,
                to,
                node,
                replaced,
            };
            self.dir_mut(from_dir).log.push(Change {
                stamp,
                pair: 0,
                kind,
            });
        } else {
            if let Node::File(inode) = node {
                hold(inode);
            }
            self.pairs += 1;
            let pair = self.pairs;
            let kind = ChangeKind::Remove { name: from, node };
            self.dir_mut(from_dir)
                .log
                .push(Change { stamp, pair, kind });
            let kind = ChangeKind::Add { name: to, replaced };
            self.dir_mut(to_dir).log.push(Change { stamp, pair, kind });
        }
        Ok(replaced_file)
    }

    /// Makes the changes up to `stamp` durable; `release` gets what no log keeps any more.
    pub(super) fn sync(&mut self, dir: Key, stamp: u64, mut release: impl FnMut(Key)) {
        let Some(entry) = self.dirs.get_mut(dir) else {
            return;
        };
        let mut gone = Vec::new();
        entry.log.retain(|change| {
            if change.stamp <= stamp {
                gone.extend(change.kind.held());
            }
            change.stamp > stamp
        });
        while let Some(node) = gone.pop() {
            match node {
                Node::File(inode) => release(inode),
                Node::Dir(dir) => {
                    let log = self.dirs.remove(dir).map(|dir| dir.log).unwrap_or_default();
                    gone.extend(log.iter().filter_map(|change| change.kind.held()));
                }
            }
        }
    }

    /// Undoes a random suffix of every directory's changes. The caller re-counts references.
    pub(super) fn lose_power(&mut self, rng: &mut Rng) {
        let dirty = self.dirs.keys(|dir| !dir.log.is_empty());
        if dirty.is_empty() {
            return;
        }
        let mut kept: BTreeMap<Key, usize> = BTreeMap::new();
        for &key in &dirty {
            let count = self.dir(key).log.len();
            let keep = match rng.below(4) {
                0 => 0,
                1 => count,
                _ => rng.index(count + 1),
            };
            kept.insert(key, keep);
        }
        self.keep_pairs_together(&mut kept);
        for (&key, &keep) in &kept {
            let dir = self.dir_mut(key);
            let log = std::mem::take(&mut dir.log);
            for change in log.into_iter().skip(keep).rev() {
                change.kind.undo(&mut dir.entries);
            }
        }
        self.drop_unreachable();
    }

    /// Cuts until each un-synced rename between directories is kept in both or in neither.
    fn keep_pairs_together(&self, kept: &mut BTreeMap<Key, usize>) {
        loop {
            let mut halves: BTreeMap<u64, Vec<(Key, usize)>> = BTreeMap::new();
            for &key in kept.keys() {
                let log = self.dir(key).log.iter().enumerate();
                for (index, change) in log.filter(|(_, change)| change.pair > 0) {
                    halves.entry(change.pair).or_default().push((key, index));
                }
            }
            let mut changed = false;
            for pair in halves.values().filter(|pair| pair.len() == 2) {
                if pair.iter().any(|(key, index)| kept[key] <= *index) {
                    for (key, index) in pair {
                        if kept[key] > *index {
                            kept.insert(*key, *index);
                            changed = true;
                        }
                    }
                }
            }
            if !changed {
                return;
            }
        }
    }

    fn drop_unreachable(&mut self) {
        let mut reachable = vec![self.root];
        let mut next = 0;
        while let Some(&dir) = reachable.get(next) {
            reachable.extend(self.entries(dir).filter_map(|(_, node)| match node {
                Node::Dir(sub) => Some(sub),
                Node::File(_) => None,
            }));
            next += 1;
        }
        reachable.sort_unstable();
        for key in self.dirs.keys(|_| true) {
            if reachable.binary_search(&key).is_err() {
                self.dirs.remove(key);
            }
        }
    }

    fn dir(&self, key: Key) -> &Dir {
        self.dirs
            .get(key)
            .expect("directory keys live as long as a name or a log holds them")
    }

    fn dir_mut(&mut self, key: Key) -> &mut Dir {
        self.dirs
            .get_mut(key)
            .expect("directory keys live as long as a name or a log holds them")
    }
}

impl ChangeKind {
    /// What this change keeps alive, because undoing it would bring a name back.
    fn held(&self) -> Option<Node> {
        match self {
            Self::Remove { node, .. } => Some(*node),
            Self::Add { replaced, .. } | Self::Rename { replaced, .. } => *replaced,
        }
    }

    fn undo(self, entries: &mut BTreeMap<OsString, Node>) {
        match self {
            Self::Add { name, replaced } => {
                entries.remove(&name);
                entries.extend(replaced.map(|old| (name, old)));
            }
            Self::Remove { name, node } => {
                entries.insert(name, node);
            }
            Self::Rename {
                from,
                to,
                node,
                replaced,
            } => {
                entries.remove(&to);
                entries.extend(replaced.map(|old| (to, old)));
                entries.insert(from, node);
            }
        }
    }
}
