//! What all records come to: the state that a successor starts from.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::item::{Counters, Entry, Item, ItemError, LogEvent, Name, Outcome, SOFTWARE, Session, pieces};
use crate::backing::FileKind;
use crate::log::FileLog;

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Which of the lives of its id it is.
    pub life: u32,
    /// Its type.
    pub kind: FileKind,
    /// st_dev and st_ino.
    pub identity: (u64, u64),
    /// Lookups that the kernel holds.
    pub lookups: u64,
    /// The request that the last of them were granted to, and how many of them.
    pub by: (u64, u64),
    /// Its names; the first makes its path.
    pub names: Vec<Name<'static>>,
}

/// A handle of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFile {
    /// Its node.
    pub node: u64,
    /// Flags of open(2).
    pub flags: i32,
    /// Failed commits that its holder knows of.
    pub told: u64,
    /// The request that it was granted to.
    pub by: u64,
    /// A repair found another file in the place of its own.
    pub lost: bool,
}

/// A handle of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenDir {
    /// Its node.
    pub node: u64,
    /// What it shows, as far as it is known.
    pub listing: Vec<Entry<'static>>,
    /// All of it is known.
    pub is_whole: bool,
    /// The request that it was granted to.
    pub by: u64,
}

/// A file that is open, or has been written to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inode {
    /// Its write log.
    pub log: FileLog,
    /// Failed commits, and the errno of the last.
    pub refused: (u64, i32),
}

/// What was granted to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// So many lookups of a node.
    Lookups {
        /// The node.
        node: u64,
        /// How many.
        count: u64,
    },
    /// A handle of a file.
    File(u64),
    /// A handle of a directory.
    Directory(u64),
}

/// A rename: from, to.
pub type Rename = (Name<'static>, Name<'static>);

/// See the module. Items that make no sense are taken for as much as they do: whoever notes them keeps the order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Picture {
    /// What was mounted.
    pub session: Option<Session>,
    /// By id; the root only if it was noted.
    pub nodes: HashMap<u64, Node>,
    /// Which node has which name.
    by_name: HashMap<Name<'static>, u64>,
    /// Renames under way, by ticket. Their outcome is unknown to a successor.
    pub renaming: BTreeMap<u64, Rename>,
    /// Renames that ended without anybody knowing how.
    pub doubtful: Vec<Rename>,
    /// Open files by handle.
    pub files: BTreeMap<u64, OpenFile>,
    /// Open directories by handle.
    pub directories: BTreeMap<u64, OpenDir>,
    /// Files with a state of their own by node.
    pub inodes: BTreeMap<u64, Inode>,
    /// Hidden files to be removed, by their paths below the root.
    pub hidden: BTreeSet<Vec<u8>>,
    /// The live generation of the backing, as it described itself.
    pub backing: Option<Vec<u8>>,
    /// Whatever else was kept, by name.
    pub aside: BTreeMap<String, Vec<u8>>,
    /// The highest numbers given out.
    pub counters: Counters,
}

fn raise<T: Copy + Ord>(counter: &mut T, number: T) {
    *counter = (*counter).max(number);
}

impl Picture {
    /// What records, given as kind and payload, come to.
    pub fn fold<'a, E: From<ItemError>>(
        records: impl IntoIterator<Item = Result<(u16, &'a [u8]), E>>,
    ) -> Result<Picture, E> {
        let mut picture = Picture::default();
        for record in records {
            let (kind, payload) = record?;
            let item = Item::decode(kind, payload, SOFTWARE)?;
            if picture.session.is_none() && !matches!(item, Item::Session(_)) {
                return Err(ItemError::NoSession.into());
            }
            picture.apply(item);
        }
        Ok(picture)
    }

    /// Something happened.
    pub fn apply(&mut self, item: Item<'_>) {
        match item {
            Item::Session(session) => self.session = Some(session),
            Item::Node { node, life, kind, identity, lookups, by, names } => {
                raise(&mut self.counters.node, node);
                raise(&mut self.counters.life, life);
                let new = Node { life, kind, identity, lookups, by, names: Vec::with_capacity(names.len()) };
                if let Some(replaced) = self.nodes.insert(node, new) {
                    self.lose_names(replaced);
                }
                names.into_iter().for_each(|name| self.name(node, name.into_owned()));
            }
            Item::Gone { node } => self.forget_node(node),
            Item::Named { node, name } => self.name(node, name.into_owned()),
            Item::Unnamed(name) => _ = self.unname(&name.into_owned()),
            Item::Seen(name) => self.see(&name.into_owned()),
            Item::Lookup { node, count, by } => {
                if let Some(found) = self.nodes.get_mut(&node) {
                    found.lookups = found.lookups.saturating_add(count);
                    found.by = (by, if found.by.0 == by { found.by.1.saturating_add(count) } else { count });
                }
            }
            Item::Forget { node, count } => {
                if let Some(found) = self.nodes.get_mut(&node) {
                    found.lookups = found.lookups.saturating_sub(count);
                    // Or what was granted to a call that a daemon died over would be taken back once more with each death.
                    found.by = (0, 0);
                }
            }
            Item::Renaming { ticket, from, to } => {
                raise(&mut self.counters.rename, ticket);
                self.renaming.insert(ticket, (from.into_owned(), to.into_owned()));
            }
            Item::Renamed { ticket, outcome } => self.renamed(ticket, outcome),
            Item::Doubtful { from, to } => self.doubtful.push((from.into_owned(), to.into_owned())),
            Item::RenamesSettled => self.doubtful.clear(),
            Item::Opened { handle, node, flags, told, by } => {
                raise(&mut self.counters.handle, handle);
                self.files.insert(handle, OpenFile { node, flags, told, by, lost: false });
            }
            Item::Told { handle, count } => {
                if let Some(file) = self.files.get_mut(&handle) {
                    file.told = count;
                }
            }
            Item::Closed { handle } => _ = self.files.remove(&handle),
            Item::DirOpened { handle, node, by } => {
                raise(&mut self.counters.directory, handle);
                self.directories.insert(handle, OpenDir { node, listing: Vec::new(), is_whole: false, by });
            }
            Item::Listed { handle, first, last, entries } => {
                if let Some(directory) = self.directories.get_mut(&handle) {
                    if first {
                        directory.listing.clear();
                    }
                    directory.listing.extend(entries.into_iter().map(Entry::into_owned));
                    directory.is_whole = last;
                }
            }
            Item::DirClosed { handle } => _ = self.directories.remove(&handle),
            Item::Log { node, event } => event.apply(&mut self.inodes.entry(node).or_default().log),
            Item::Refused { node, count, errno } => self.inodes.entry(node).or_default().refused = (count, errno),
            Item::Lost { handle } => {
                if let Some(file) = self.files.get_mut(&handle) {
                    file.lost = true;
                }
            }
            Item::Settled { node } => _ = self.inodes.remove(&node),
            Item::HiddenAdded(path) => _ = self.hidden.insert(path.0.into_owned()),
            Item::HiddenRemoved(path) => _ = self.hidden.remove(path.as_ref()),
            Item::Backing(state) => self.backing = Some(state.0.into_owned()).filter(|state| !state.is_empty()),
            Item::Aside { key, value } if value.as_ref().is_empty() => _ = self.aside.remove(key),
            Item::Aside { key, value } => _ = self.aside.insert(key.to_owned(), value.0.into_owned()),
            Item::Counters(counters) => {
                raise(&mut self.counters.node, counters.node);
                raise(&mut self.counters.life, counters.life);
                raise(&mut self.counters.handle, counters.handle);
                raise(&mut self.counters.directory, counters.directory);
                raise(&mut self.counters.hidden, counters.hidden);
                raise(&mut self.counters.rename, counters.rename);
            }
        }
    }

    fn name(&mut self, node: u64, name: Name<'static>) {
        if !self.nodes.contains_key(&node) {
            return;
        }
        if let Some(before) = self.by_name.insert(name.clone(), node)
            && let Some(found) = self.nodes.get_mut(&before)
        {
            found.names.retain(|its| *its != name);
        }
        if let Some(found) = self.nodes.get_mut(&node) {
            found.names.push(name);
        }
    }

    fn unname(&mut self, name: &Name<'static>) -> Option<u64> {
        let node = self.by_name.remove(name)?;
        if let Some(found) = self.nodes.get_mut(&node)
            && let Some(at) = found.names.iter().rposition(|its| its == name)
        {
            found.names.swap_remove(at);
        }
        Some(node)
    }

    fn see(&mut self, name: &Name<'static>) {
        if let Some(found) = self.by_name.get(name).and_then(|node| self.nodes.get_mut(node))
            && found.names.first() != Some(name)
            // As a rule it has just been added; a file may have 65,000.
            && let Some(at) = found.names.iter().rposition(|its| its == name)
        {
            found.names.swap(0, at);
        }
    }

    fn forget_node(&mut self, node: u64) {
        if let Some(found) = self.nodes.remove(&node) {
            self.lose_names(found);
        }
    }

    fn lose_names(&mut self, node: Node) {
        for name in node.names {
            self.by_name.remove(&name);
        }
    }

    fn renamed(&mut self, ticket: u64, outcome: Outcome) {
        let Some((from, to)) = self.renaming.remove(&ticket) else { return };
        match outcome {
            Outcome::NotDone => {}
            Outcome::InDoubt => self.doubtful.push((from, to)),
            Outcome::Done { exchange } => {
                let (moved, target) = (self.by_name.get(&from).copied(), self.by_name.get(&to).copied());
                // A repair has found it under its new name already.
                if moved.is_none() && !exchange {
                    return;
                }
                self.doubtful.retain(|doubtful| (&doubtful.0, &doubtful.1) != (&from, &to));
                self.unname(&from);
                self.unname(&to);
                if let Some(moved) = moved {
                    self.name(moved, to);
                }
                if let Some(target) = target.filter(|_| exchange) {
                    self.name(target, from);
                }
            }
        }
    }

    /// The node behind a name.
    pub fn node(&self, name: &Name<'static>) -> Option<u64> {
        self.by_name.get(name).copied()
    }

    /// What was granted to a request, which may have it by its number with or without [`super::slots::RESENT`]. Of a node
    /// whose lookups were granted to several at once only the last is known; the kernel then holds fewer than it is said
    /// to, which keeps the node for longer than necessary.
    pub fn granted(&self, unique: u64) -> Vec<Grant> {
        let same = |by: u64| by != 0 && by & !super::slots::RESENT == unique & !super::slots::RESENT;
        let nodes = self.nodes.iter().filter(|(_, node)| same(node.by.0));
        let lookups = nodes.map(|(&node, found)| Grant::Lookups { node, count: found.by.1.min(found.lookups) });
        let files = self.files.iter().filter(|(_, file)| same(file.by)).map(|(&handle, _)| Grant::File(handle));
        let directories = self.directories.iter().filter(|(_, directory)| same(directory.by));
        lookups.chain(files).chain(directories.map(|(&handle, _)| Grant::Directory(handle))).collect()
    }

    /// Gives `emit` the fewest items that come to this picture.
    pub fn items<E>(&self, mut emit: impl FnMut(&Item<'_>) -> Result<(), E>) -> Result<(), E> {
        if let Some(session) = &self.session {
            emit(&Item::Session(session.clone()))?;
        }
        emit(&Item::Counters(self.counters))?;
        let mut nodes: Vec<(&u64, &Node)> = self.nodes.iter().collect();
        nodes.sort_unstable_by_key(|(node, _)| **node);
        for (&node, found) in nodes {
            let Node { life, kind, identity, lookups, by, ref names } = *found;
            let names = names.iter().map(borrowed).collect();
            emit(&Item::Node { node, life, kind, identity, lookups, by, names })?;
        }
        for (from, to) in &self.doubtful {
            emit(&Item::Doubtful { from: borrowed(from), to: borrowed(to) })?;
        }
        for (&ticket, (from, to)) in &self.renaming {
            emit(&Item::Renaming { ticket, from: borrowed(from), to: borrowed(to) })?;
        }
        for (&handle, &OpenFile { node, flags, told, by, lost }) in &self.files {
            emit(&Item::Opened { handle, node, flags, told, by })?;
            if lost {
                emit(&Item::Lost { handle })?;
            }
        }
        for (&handle, directory) in &self.directories {
            emit(&Item::DirOpened { handle, node: directory.node, by: directory.by })?;
            pieces(&directory.listing, directory.is_whole, |first, last, piece| {
                emit(&Item::Listed { handle, first, last, entries: piece.iter().map(Entry::borrowed).collect() })
            })?;
        }
        for (&node, inode) in &self.inodes {
            emit(&Item::Log { node, event: LogEvent::Is(Cow::Borrowed(&inode.log)) })?;
            let (count, errno) = inode.refused;
            if inode.refused != (0, 0) {
                emit(&Item::Refused { node, count, errno })?;
            }
        }
        for path in &self.hidden {
            emit(&Item::HiddenAdded(path.as_slice().into()))?;
        }
        if let Some(backing) = &self.backing {
            emit(&Item::Backing(backing.as_slice().into()))?;
        }
        for (key, value) in &self.aside {
            emit(&Item::Aside { key, value: value.as_slice().into() })?;
        }
        Ok(())
    }
}

fn borrowed<'a>(name: &'a Name<'static>) -> Name<'a> {
    Name::new(name.parent, name.name.as_ref())
}

#[cfg(test)]
#[path = "tests/picture.rs"]
mod tests;
