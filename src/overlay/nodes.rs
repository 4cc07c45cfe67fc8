//! The node table: which node id of the kernel is which path below the backing's root.
//!
//! A node lives while the kernel holds lookups of it, a handle is open on it, or a known name hangs below it. Paths are
//! made by walking up; a call that raced with a rename finds out afterwards and resolves its path again.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use crate::backing::{Attr, FileKind, OpResult};

/// No path of PATH_MAX bytes has more components; a walk that is longer goes in a circle.
const MAX_DEPTH: usize = 4096;

/// Node id of the root in the FUSE protocol (FUSE_ROOT_ID).
pub const ROOT: u64 = 1;

/// Identity of a file whose attributes could not be read.
pub const NO_IDENTITY: (u64, u64) = (0, 0);

/// A name: the directory's node and the last component.
pub type Name = (u64, OsString);

#[derive(Debug)]
struct Node {
    kind: FileKind,
    identity: (u64, u64),
    lookups: u64,
    /// Names below it and handles open on it.
    held: u64,
    /// Handles that could still write or read its data.
    open: u64,
    names: Vec<Name>,
    /// Version of the table since which it has these names.
    moved: u64,
}

#[derive(Debug, Default)]
struct Table {
    nodes: HashMap<u64, Node>,
    by_name: HashMap<Name, u64>,
    by_identity: HashMap<(u64, u64), u64>,
    last: u64,
    /// Renames that are under way, by ticket.
    renaming: HashMap<u64, (Name, Name)>,
    last_rename: u64,
    version: u64,
}

/// Says which state of the tree a path was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u64);

/// See the module.
#[derive(Debug)]
pub struct Nodes {
    table: Mutex<Table>,
    renamed: Condvar,
    /// (st_dev, st_ino) tell files apart, so that hard links share a node.
    by_identity: bool,
}

impl Nodes {
    /// A table with nothing but the root.
    pub fn new(stable_inodes: bool) -> Nodes {
        let root = Node {
            kind: FileKind::Directory,
            identity: (0, 0),
            lookups: 1,
            held: 1,
            open: 0,
            names: Vec::new(),
            moved: 0,
        };
        let table = Table { nodes: HashMap::from([(ROOT, root)]), last: ROOT, ..Table::default() };
        Nodes { table: Mutex::new(table), renamed: Condvar::new(), by_identity: stable_inodes }
    }

    /// Path of a node. ENOENT if it has no name any more.
    pub fn path(&self, node: u64) -> OpResult<(PathBuf, Stamp)> {
        let table = self.table.lock();
        Ok((table.path(node)?, Stamp(table.version)))
    }

    /// Path of a name.
    pub fn path_of(&self, parent: u64, name: &OsStr) -> OpResult<(PathBuf, Stamp)> {
        self.path(parent).map(|(path, stamp)| (path.join(name), stamp))
    }

    /// True if one of `nodes` or a directory above it was renamed since `stamp`, so that a path from then may have been
    /// wrong, even if it is right again. Waits for such a rename that is under way, until `deadline`.
    pub fn has_moved_since(&self, stamp: Stamp, nodes: &[u64], deadline: Instant) -> bool {
        let mut table = self.table.lock();
        loop {
            if nodes.iter().any(|&node| table.has_moved_since(stamp.0, node)) {
                return true;
            }
            let waits = nodes.iter().any(|&node| table.is_being_renamed(node));
            if !waits || self.renamed.wait_until(&mut table, deadline).timed_out() {
                return false;
            }
        }
    }

    /// The kernel learns of a name: finds or makes its node and counts the lookup. To be called right before the reply.
    pub fn remember(&self, parent: u64, name: &OsStr, attr: &Attr) -> u64 {
        let mut table = self.table.lock();
        let node = table.enter(parent, name, attr, self.by_identity && attr.identity != NO_IDENTITY);
        if let Some(found) = table.nodes.get_mut(&node) {
            found.lookups += 1;
        }
        node
    }

    /// The kernel got to know a node by another name (link).
    pub fn remember_link(&self, node: u64, parent: u64, name: &OsStr) {
        let mut table = self.table.lock();
        let replaced = table.unname(parent, name);
        table.name(node, parent, name.to_owned());
        if let Some(replaced) = replaced.filter(|replaced| *replaced != node) {
            table.drop_if_unused(replaced);
        }
        if let Some(found) = table.nodes.get_mut(&node) {
            found.lookups += 1;
        }
    }

    /// The kernel forgets `lookups` lookups of a node.
    pub fn forget(&self, node: u64, lookups: u64) {
        let mut table = self.table.lock();
        if let Some(found) = table.nodes.get_mut(&node).filter(|_| node != ROOT) {
            found.lookups = found.lookups.saturating_sub(lookups);
            table.drop_if_unused(node);
        }
    }

    /// A handle was opened.
    pub fn opened(&self, node: u64) {
        if let Some(found) = self.table.lock().nodes.get_mut(&node) {
            (found.open, found.held) = (found.open + 1, found.held + 1);
        }
    }

    /// A handle is being closed; true if it is the last. The node is held until [`Nodes::closed`].
    pub fn closing(&self, node: u64) -> bool {
        match self.table.lock().nodes.get_mut(&node) {
            Some(found) => {
                found.open = found.open.saturating_sub(1);
                found.open == 0
            }
            None => false,
        }
    }

    /// What closing a handle takes has been done.
    pub fn closed(&self, node: u64) {
        let mut table = self.table.lock();
        if let Some(found) = table.nodes.get_mut(&node) {
            found.held = found.held.saturating_sub(1);
            table.drop_if_unused(node);
        }
    }

    /// The node behind a name, if the kernel has looked it up and files are open on it.
    pub fn open_node(&self, parent: u64, name: &OsStr) -> Option<u64> {
        let table = self.table.lock();
        let node = *table.by_name.get(&(parent, name.to_owned()))?;
        table.nodes.get(&node).filter(|found| found.open > 0).map(|_| node)
    }

    /// True if the last handle of the file behind a name is being closed.
    pub fn is_closing(&self, parent: u64, name: &OsStr) -> bool {
        let table = self.table.lock();
        let node = table.by_name.get(&(parent, name.to_owned())).and_then(|node| table.nodes.get(node));
        node.is_some_and(|found| found.kind != FileKind::Directory && found.open == 0 && found.held > 0)
    }

    /// The node behind a name, if there is one.
    pub fn node(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.table.lock().by_name.get(&(parent, name.to_owned())).copied()
    }

    /// Type of a node.
    pub fn kind(&self, node: u64) -> Option<FileKind> {
        self.table.lock().nodes.get(&node).map(|found| found.kind)
    }

    /// Every name a node has.
    pub fn names(&self, node: u64) -> Vec<Name> {
        self.table.lock().nodes.get(&node).map(|found| found.names.clone()).unwrap_or_default()
    }

    /// A name is gone.
    pub fn removed(&self, parent: u64, name: &OsStr) {
        let mut table = self.table.lock();
        if let Some(node) = table.unname(parent, name) {
            table.drop_if_unused(node);
        }
    }

    /// A rename begins; [`Renaming::done`] says that it happened, dropping it that it did not.
    pub fn rename(&self, from: Name, to: Name) -> Renaming<'_> {
        let mut table = self.table.lock();
        table.last_rename += 1;
        let ticket = table.last_rename;
        table.renaming.insert(ticket, (from.clone(), to.clone()));
        Renaming { nodes: self, ticket, from, to }
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.table.lock().nodes.len()
    }
}

/// A rename that is under way.
pub struct Renaming<'a> {
    nodes: &'a Nodes,
    ticket: u64,
    from: Name,
    to: Name,
}

impl Renaming<'_> {
    /// The backing did it.
    pub fn done(self, exchange: bool) {
        let mut table = self.nodes.table.lock();
        let moved = table.by_name.get(&self.from).copied();
        let target = table.by_name.get(&self.to).copied();
        table.unname(self.from.0, &self.from.1);
        table.unname(self.to.0, &self.to.1);
        if let Some(moved) = moved {
            table.name(moved, self.to.0, self.to.1.clone());
        }
        if let Some(target) = target.filter(|_| exchange) {
            table.name(target, self.from.0, self.from.1.clone());
        }
        table.version += 1;
        let version = table.version;
        for node in [moved, target].into_iter().flatten() {
            if let Some(found) = table.nodes.get_mut(&node) {
                found.moved = version;
            }
            table.drop_if_unused(node);
        }
    }
}

impl Drop for Renaming<'_> {
    fn drop(&mut self) {
        self.nodes.table.lock().renaming.remove(&self.ticket);
        self.nodes.renamed.notify_all();
    }
}

impl Table {
    fn path(&self, mut node: u64) -> OpResult<PathBuf> {
        let mut components: Vec<&OsStr> = Vec::new();
        while node != ROOT {
            let (parent, name) = self.nodes.get(&node).and_then(|found| found.names.first()).ok_or(Errno::ENOENT)?;
            components.push(name);
            node = *parent;
            if components.len() > MAX_DEPTH {
                return Err(Errno::ELOOP);
            }
        }
        Ok(components.into_iter().rev().collect())
    }

    /// True if the node or a directory above it was renamed since that version.
    fn has_moved_since(&self, version: u64, mut node: u64) -> bool {
        for _ in 0..MAX_DEPTH {
            let Some(found) = self.nodes.get(&node) else { return false };
            if found.moved > version {
                return true;
            }
            let Some((parent, _)) = found.names.first() else { return false };
            node = *parent;
        }
        false
    }

    /// True if the node or a directory above it is being renamed.
    fn is_being_renamed(&self, mut node: u64) -> bool {
        for _ in 0..MAX_DEPTH {
            let Some(name) = self.nodes.get(&node).and_then(|found| found.names.first()) else { return false };
            if self.renaming.values().any(|(from, to)| from == name || to == name) {
                return true;
            }
            node = name.0;
        }
        false
    }

    fn enter(&mut self, parent: u64, name: &OsStr, attr: &Attr, by_identity: bool) -> u64 {
        if let Some(&node) = self.by_name.get(&(parent, name.to_owned())) {
            let same = self
                .nodes
                .get(&node)
                .is_some_and(|found| found.kind == attr.kind && (!by_identity || found.identity == attr.identity));
            if same {
                return node;
            }
            // Replaced behind our back: the old file, if it is still held, goes on without this name.
            self.unname(parent, name);
            self.drop_if_unused(node);
        }
        if let Some(&node) = self.by_identity.get(&attr.identity).filter(|_| by_identity)
            && attr.kind != FileKind::Directory
            && self.nodes.get(&node).is_some_and(|found| found.kind == attr.kind)
        {
            self.name(node, parent, name.to_owned());
            return node;
        }
        self.last += 1;
        let node = self.last;
        let made = Node {
            kind: attr.kind,
            identity: attr.identity,
            lookups: 0,
            held: 0,
            open: 0,
            names: Vec::new(),
            moved: 0,
        };
        self.nodes.insert(node, made);
        if by_identity {
            self.by_identity.insert(attr.identity, node);
        }
        self.name(node, parent, name.to_owned());
        node
    }

    fn name(&mut self, node: u64, parent: u64, name: OsString) {
        if let Some(found) = self.nodes.get_mut(&node) {
            found.names.push((parent, name.clone()));
            self.by_name.insert((parent, name), node);
            if let Some(directory) = self.nodes.get_mut(&parent) {
                directory.held += 1;
            }
        }
    }

    fn unname(&mut self, parent: u64, name: &OsStr) -> Option<u64> {
        let key = (parent, name.to_owned());
        let node = self.by_name.remove(&key)?;
        if let Some(found) = self.nodes.get_mut(&node) {
            found.names.retain(|name| *name != key);
        }
        if let Some(directory) = self.nodes.get_mut(&parent) {
            directory.held = directory.held.saturating_sub(1);
        }
        Some(node)
    }

    fn drop_if_unused(&mut self, node: u64) {
        // Upwards: the last name below a forgotten directory may have kept it.
        let mut doubtful = vec![node];
        while let Some(node) = doubtful.pop() {
            let Some(found) = self.nodes.get(&node).filter(|found| found.lookups == 0 && found.held == 0) else {
                continue;
            };
            let (names, identity) = (found.names.clone(), found.identity);
            for (parent, name) in names {
                self.unname(parent, &name);
                doubtful.push(parent);
            }
            self.nodes.remove(&node);
            if self.by_identity.get(&identity) == Some(&node) {
                self.by_identity.remove(&identity);
            }
        }
    }
}

#[cfg(test)]
mod tests;
