//! The table itself: what every change of names has in common, under one lock.

use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::hash::Hash;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;

use super::{Name, ROOT, Stamp};
use crate::backing::{Attr, FileKind, OpResult};
use crate::handover::{Item, Notes, item};

/// A walk that is longer goes in a circle. Paths may be longer than PATH_MAX: who is deep down names what is near.
const MAX_DEPTH: usize = 1 << 20;

/// From there on node ids are of our own making, on a filesystem whose inode numbers are node ids. None has such numbers but
/// overlayfs, for what it made up itself.
pub(super) const OWN: u64 = 1 << 63;
/// From there on they were made by a daemon that did not know what the kernel still holds of its predecessor's: nobody counts
/// that far. Then no inode number is known to be free.
pub(super) const BLIND: u64 = OWN + (1 << 48);
/// No map is made shorter than for so many.
const FEW: usize = 1024;
/// Lives of a node id are told apart up to that; the kernel keeps an int.
const LIVES: u32 = i32::MAX as u32;

/// The node id that a file of that inode number is to have, if it can.
pub(super) fn preferred(ino: u64) -> Option<u64> {
    (ROOT + 1..OWN).contains(&ino).then_some(ino)
}

/// The names of a file: one as a rule, 65,000 at times.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// The one that was seen last.
    first: Option<Name>,
    others: BTreeSet<Name>,
}

impl Names {
    pub(super) fn first(&self) -> Option<&Name> {
        self.first.as_ref()
    }

    /// All of them, the one that was seen last first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Name> {
        self.first.iter().chain(&self.others)
    }

    /// True if there is more than one.
    pub(super) fn are_several(&self) -> bool {
        !self.others.is_empty()
    }

    fn add(&mut self, name: Name) {
        match &self.first {
            None => self.first = Some(name),
            Some(first) if *first == name => {}
            Some(_) => _ = self.others.insert(name),
        }
    }

    fn remove(&mut self, name: &Name) {
        if self.first.as_ref() == Some(name) {
            self.first = self.others.pop_first();
        } else {
            self.others.remove(name);
        }
    }

    /// True if that made another one the first.
    fn see(&mut self, name: &Name) -> bool {
        let Some(name) = self.others.take(name) else { return false };
        self.others.extend(self.first.replace(name));
        true
    }
}

#[derive(Debug)]
pub(super) struct Node {
    /// Tells it from others that had its id before; 0 if none had.
    pub(super) life: u32,
    pub(super) kind: FileKind,
    pub(super) identity: (u64, u64),
    pub(super) lookups: u64,
    /// Names below it and handles open on it.
    pub(super) held: u64,
    /// Handles that could still write or read its data.
    pub(super) open: u64,
    pub(super) names: Names,
    /// State of the table when its names were last changed.
    pub(super) moved: u64,
    /// Until then the backing may remember by other names than the first what it was before it was changed.
    pub(super) led_until: Option<Instant>,
    /// What it was by a first name that has gone, as long as the others may say otherwise.
    pub(super) kept: Option<Attr>,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) nodes: HashMap<u64, Node>,
    pub(super) by_name: HashMap<Name, u64>,
    pub(super) by_identity: HashMap<(u64, u64), u64>,
    /// The highest node id of our own making.
    pub(super) last: u64,
    /// The last life of a node id.
    pub(super) life: u32,
    /// Path of the root on the backing.
    pub(super) base: PathBuf,
    /// Renames that are under way, by ticket.
    pub(super) renaming: HashMap<u64, (Name, Name)>,
    pub(super) last_rename: u64,
    /// Renames that may have been done by a generation that died.
    pub(super) doubtful: Vec<(Name, Name)>,
    /// Counts changes of names.
    pub(super) version: u64,
    /// For a successor.
    pub(super) notes: Notes,
}

/// A name as it is noted.
pub(super) fn noted(parent: u64, name: &OsStr) -> item::Name<'_> {
    item::Name::new(parent, name.as_bytes())
}

impl Node {
    pub(super) fn new(kind: FileKind, identity: (u64, u64)) -> Node {
        let (names, led_until, kept) = (Names::default(), None, None);
        Node { life: 0, kind, identity, lookups: 0, held: 0, open: 0, names, moved: 0, led_until, kept }
    }

    /// True if it has several names, of which the first alone says what it is: it is open by that, or was a moment ago.
    pub(super) fn is_led(&self, now: Instant) -> bool {
        self.names.are_several() && (self.open > 0 || self.led_until.is_some_and(|until| now < until))
    }
}

impl Table {
    pub(super) fn path(&self, mut node: u64) -> OpResult<PathBuf> {
        let mut components: Vec<&OsStr> = Vec::new();
        while node != ROOT {
            let (parent, name) = self.names(node).next().ok_or(Errno::ENOENT)?;
            components.push(name);
            node = *parent;
            if components.len() > MAX_DEPTH {
                return Err(Errno::ELOOP);
            }
        }
        let mut path = self.base.clone();
        path.extend(components.into_iter().rev());
        Ok(path)
    }

    pub(super) fn path_of(&self, (parent, name): &Name) -> OpResult<PathBuf> {
        self.path(*parent).map(|path| path.join(name))
    }

    pub(super) fn names(&self, node: u64) -> impl Iterator<Item = &Name> {
        self.nodes.get(&node).into_iter().flat_map(|found| found.names.iter())
    }

    /// The node and the directories above it, by the names that make its path.
    pub(super) fn chain(&self, node: u64) -> impl Iterator<Item = (&Node, Option<&Name>)> {
        let step = |node: u64| self.nodes.get(&node).map(|found| (found, found.names.first()));
        std::iter::successors(step(node), move |(_, name)| step(name.as_ref()?.0)).take(MAX_DEPTH)
    }

    /// True if the path of a node has changed since.
    pub(super) fn has_moved(&self, node: u64, since: Stamp) -> bool {
        self.version != since.0 && self.chain(node).any(|(found, _)| found.moved > since.0)
    }

    /// True if a rename is under way that concerns, as `concerns` says, a name in the node's path.
    pub(super) fn is_in_rename(&self, node: u64, concerns: impl Fn(&Name, &(Name, Name)) -> bool) -> bool {
        let concerned = |name| self.renaming.values().any(|rename| concerns(name, rename));
        !self.renaming.is_empty() && self.chain(node).filter_map(|(_, name)| name).any(concerned)
    }

    pub(super) fn enter(&mut self, parent: u64, name: &OsStr, attr: &Attr, by_identity: bool) -> u64 {
        if let Some(&node) = self.by_name.get(&(parent, name.to_owned())) {
            let same = self
                .nodes
                .get(&node)
                .is_some_and(|found| found.kind == attr.kind && (!by_identity || found.identity == attr.identity));
            if same {
                let led = !by_identity && self.nodes.get(&node).is_some_and(|found| found.is_led(Instant::now()));
                if !led {
                    self.seen(node, parent, name);
                }
                return node;
            }
            // Replaced behind our back: the old file, if it is still held, goes on without this name.
            self.remove_name(parent, name);
            self.drop_if_unused(node);
        }
        if let Some(&node) = self.by_identity.get(&attr.identity).filter(|_| by_identity)
            && attr.kind != FileKind::Directory
            && self.nodes.get(&node).is_some_and(|found| found.kind == attr.kind)
        {
            self.add_name(node, parent, name);
            self.seen(node, parent, name);
            return node;
        }
        let (node, life) = self.number(attr.identity.1, by_identity);
        self.notes.note_with(|| {
            let names = vec![noted(parent, name)];
            Item::Node { node, life, kind: attr.kind, identity: attr.identity, lookups: 0, by: (0, 0), names }
        });
        self.nodes.insert(node, Node { life, ..Node::new(attr.kind, attr.identity) });
        if by_identity {
            self.by_identity.insert(attr.identity, node);
        }
        self.name(node, parent, name.to_owned());
        node
    }

    /// The id of a new node and which of its lives it is. fuser shows the id as st_ino, so it is the backing's number if it can
    /// be: unless a file that is gone still has it, or one of another filesystem.
    fn number(&mut self, ino: u64, by_identity: bool) -> (u64, u32) {
        let wanted =
            preferred(ino).filter(|wanted| by_identity && !self.is_blind() && !self.nodes.contains_key(wanted));
        if let Some(wanted) = wanted {
            self.life = self.life % LIVES + 1;
            return (wanted, self.life);
        }
        self.last += 1;
        (self.last, 0)
    }

    /// True if the kernel may hold nodes that are not known here.
    pub(super) fn is_blind(&self) -> bool {
        self.last >= BLIND
    }

    /// The kernel has one more lookup of a node, which it was granted for the request `by`.
    pub(super) fn looked_up(&mut self, node: u64, by: u64) {
        if let Some(found) = self.nodes.get_mut(&node) {
            found.lookups += 1;
            self.notes.note(&Item::Lookup { node, count: 1, by });
        }
    }

    /// Of several names the one that is known to lead to the file makes its path.
    pub(super) fn seen(&mut self, node: u64, parent: u64, name: &OsStr) {
        if let Some(found) = self.nodes.get_mut(&node)
            && found.names.are_several()
            && found.names.see(&(parent, name.to_owned()))
        {
            self.notes.note(&Item::Seen(noted(parent, name)));
        }
    }

    /// A node has one more name.
    pub(super) fn add_name(&mut self, node: u64, parent: u64, name: &OsStr) {
        self.notes.note(&Item::Named { node, name: noted(parent, name) });
        self.name(node, parent, name.to_owned());
    }

    /// A node has lost a name.
    pub(super) fn remove_name(&mut self, parent: u64, name: &OsStr) -> Option<u64> {
        let node = self.unname(parent, name)?;
        self.notes.note(&Item::Unnamed(noted(parent, name)));
        Some(node)
    }

    /// As [`Table::add_name`], of what is noted as part of something larger.
    pub(super) fn name(&mut self, node: u64, parent: u64, name: OsString) {
        if let Some(found) = self.nodes.get_mut(&node) {
            self.version += 1;
            found.moved = self.version;
            found.names.add((parent, name.clone()));
            self.by_name.insert((parent, name), node);
            if let Some(directory) = self.nodes.get_mut(&parent) {
                directory.held += 1;
            }
        }
    }

    /// As [`Table::remove_name`], of what is noted as part of something larger.
    pub(super) fn unname(&mut self, parent: u64, name: &OsStr) -> Option<u64> {
        let key = (parent, name.to_owned());
        let node = self.by_name.remove(&key)?;
        if let Some(found) = self.nodes.get_mut(&node) {
            self.version += 1;
            found.moved = self.version;
            found.names.remove(&key);
        }
        if let Some(directory) = self.nodes.get_mut(&parent) {
            directory.held = directory.held.saturating_sub(1);
        }
        Some(node)
    }

    /// A name is gone, and with it what nothing else kept.
    pub(super) fn lose(&mut self, parent: u64, name: &OsStr) {
        if let Some(node) = self.remove_name(parent, name) {
            self.drop_if_unused(node);
            self.drop_if_unused(parent);
        }
    }

    pub(super) fn drop_if_unused(&mut self, node: u64) {
        // Upwards: the last name below a forgotten directory may have kept it.
        let mut doubtful = vec![node];
        while let Some(node) = doubtful.pop() {
            let Some(found) = self.nodes.get(&node).filter(|found| found.lookups == 0 && found.held == 0) else {
                continue;
            };
            let (names, identity): (Vec<Name>, _) = (found.names.iter().cloned().collect(), found.identity);
            for (parent, name) in names {
                self.unname(parent, &name);
                doubtful.push(parent);
            }
            self.nodes.remove(&node);
            self.notes.note(&Item::Gone { node });
            if self.by_identity.get(&identity) == Some(&node) {
                self.by_identity.remove(&identity);
            }
        }
        give_back(&mut self.nodes);
        give_back(&mut self.by_name);
        give_back(&mut self.by_identity);
    }
}

/// A map keeps the room of its fullest time by itself. To move what is left costs less than it took to remove the rest.
fn give_back<K: Eq + Hash, V>(map: &mut HashMap<K, V>) {
    let left = map.len().max(FEW);
    if map.capacity() > 8 * left {
        map.shrink_to(2 * left);
    }
}
