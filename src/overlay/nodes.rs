//! The node table: which node id of the kernel is which path below the backing's root.
//!
//! fuser shows a node's id as its st_ino. Where the backing's inode numbers are those of its files, a node has that number as
//! its id as long as no other node has it; what has none then gets a number from 2^63 on. Elsewhere ids are counted from 2 on.
//! The root is 1 in any case. An id that is free again may be given out again, with another *life* (the protocol's generation).
//!
//! A node lives while the kernel holds lookups of it, a handle is open on it, or a known name hangs below it. Paths are
//! made by walking up; a call that raced with a rename finds out afterwards and resolves its path again.

mod table;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::backing::{Attr, FileKind, OpResult};
use crate::handover::item::Outcome;
use crate::handover::{Item, Notes, Picture, item};
use table::{BLIND, Node, OWN, Table, noted, preferred};

/// Node id of the root in the FUSE protocol (FUSE_ROOT_ID).
pub const ROOT: u64 = 1;

/// Identity of a file whose attributes could not be read.
pub const NO_IDENTITY: (u64, u64) = (0, 0);

/// More renames than that are not in doubt at once: each has a caller.
const MOST_DOUBTFUL: usize = 1024;

/// A name: the directory's node and the last component.
pub type Name = (u64, OsString);

/// Says which state of the tree a path was taken from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u64);

/// The node that a name led to, and when.
#[derive(Debug, Clone, Copy)]
pub struct Known(Option<u64>, Stamp);

/// See the module.
#[derive(Debug)]
pub struct Nodes {
    table: Mutex<Table>,
    renamed: Condvar,
    /// (st_dev, st_ino) tell files apart, so that hard links share a node.
    by_identity: bool,
    /// How long the backing may answer from what it remembers, which it does by name where identities mean nothing.
    remembers: Duration,
}

impl Nodes {
    /// A table with nothing but the root, which is `base` on the backing. What a successor has to know is noted.
    pub fn new(stable_inodes: bool, base: PathBuf, notes: Notes) -> Nodes {
        let root = Node { lookups: 1, held: 1, ..Node::new(FileKind::Directory, NO_IDENTITY) };
        let last = if stable_inodes { OWN } else { ROOT };
        let table = Table { nodes: HashMap::from([(ROOT, root)]), last, base, notes, ..Table::default() };
        Nodes {
            table: Mutex::new(table),
            renamed: Condvar::new(),
            by_identity: stable_inodes,
            remembers: Duration::ZERO,
        }
    }

    /// The same over a backing that remembers attributes for that long.
    pub fn remembering(self, remembers: Duration) -> Nodes {
        Nodes { remembers, ..self }
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

    /// True if the path of one of `nodes` has changed since `stamp`, so that one from then may have been wrong. Waits for a
    /// rename that is under way of one of them or of a directory above, until `deadline`.
    pub fn has_moved_since(&self, stamp: Stamp, nodes: &[u64], deadline: Instant) -> bool {
        let mut table = self.table.lock();
        loop {
            if nodes.iter().any(|&node| table.has_moved(node, stamp)) {
                return true;
            }
            let under_way =
                nodes.iter().any(|&node| table.is_in_rename(node, |name, (from, to)| [from, to].contains(&name)));
            if !under_way || self.renamed.wait_until(&mut table, deadline).timed_out() {
                return false;
            }
        }
    }

    /// True if what was done at this path from `stamp` was done to this node, and not to a file that took its place. Waits
    /// for a rename that is under way to that path, until `deadline`.
    pub fn was_at(&self, node: u64, path: &Path, stamp: Stamp, deadline: Instant) -> bool {
        let mut table = self.table.lock();
        while table.is_in_rename(node, |name, (_, to)| name == to) {
            if self.renamed.wait_until(&mut table, deadline).timed_out() {
                break;
            }
        }
        !table.has_moved(node, stamp) || table.names(node).any(|name| table.path_of(name).is_ok_and(|now| now == path))
    }

    /// Nothing was found at a node's path from `stamp`. True if the node has another path to be tried now: the name that
    /// proved dead is dropped if there are others.
    pub fn not_found_at(&self, node: u64, path: &Path, stamp: Stamp) -> bool {
        let mut table = self.table.lock();
        let several = table.nodes.get(&node).filter(|found| found.names.are_several());
        let Some(first) = several.and_then(|found| found.names.first()) else { return false };
        let (first, now) = (first.clone(), table.path_of(first));
        if !table.has_moved(node, stamp) && now.is_ok_and(|now| now == path) {
            table.lose(first.0, &first.1);
        }
        true
    }

    /// The kernel learns of a name: finds or makes its node and counts the lookup, for the request `by`. To be called
    /// right before the reply.
    pub fn remember(&self, parent: u64, name: &OsStr, attr: &Attr, by: u64) -> u64 {
        let mut table = self.table.lock();
        let node = table.enter(parent, name, attr, self.by_identity && attr.identity != NO_IDENTITY);
        table.looked_up(node, by);
        node
    }

    /// A file was made under a name by a call that fails if there is one: it is none of those that are known. To be called
    /// as soon as it is made, so that whoever looks it up from then on and [`Nodes::remember`] afterwards agree.
    pub fn made(&self, parent: u64, name: &OsStr, attr: &Attr) {
        let mut table = self.table.lock();
        // A number that the backing has given away again.
        table.by_identity.remove(&attr.identity);
        table.lose(parent, name);
    }

    /// What is known of a name before it is looked for; see [`Nodes::missed`].
    pub fn known(&self, parent: u64, name: &OsStr) -> Known {
        let table = self.table.lock();
        Known(table.by_name.get(&(parent, name.to_owned())).copied(), Stamp(table.version))
    }

    /// A name was looked for after `known` and is not there: if a file had it then and still has, it has lost it. Those
    /// who have that file open go on with it.
    pub fn missed(&self, parent: u64, name: &OsStr, known: &Known) {
        let mut table = self.table.lock();
        let key = (parent, name.to_owned());
        let Some(node) = known.0.filter(|node| table.by_name.get(&key) == Some(node)) else { return };
        let under_way = table.renaming.values().any(|(from, to)| *from == key || *to == key);
        if !under_way && !table.has_moved(node, known.1) {
            table.lose(parent, name);
        }
    }

    /// The kernel got to know a node by another name (link), for the request `by`.
    pub fn remember_link(&self, node: u64, parent: u64, name: &OsStr, by: u64) {
        let mut table = self.table.lock();
        let replaced = table.remove_name(parent, name);
        table.add_name(node, parent, name);
        if let Some(replaced) = replaced.filter(|replaced| *replaced != node) {
            table.drop_if_unused(replaced);
        }
        table.looked_up(node, by);
    }

    /// The kernel forgets `lookups` lookups of a node.
    pub fn forget(&self, node: u64, lookups: u64) {
        let mut table = self.table.lock();
        if let Some(found) = table.nodes.get_mut(&node).filter(|_| node != ROOT) {
            found.lookups = found.lookups.saturating_sub(lookups);
            table.notes.note(&Item::Forget { node, count: lookups });
            table.drop_if_unused(node);
        }
    }

    /// Node ids, and how many lookups the kernel has of each.
    pub fn lookups(&self) -> Vec<Lookups> {
        let table = self.table.lock();
        let nodes = table.nodes.iter().filter(|(node, found)| **node != ROOT && found.lookups > 0);
        nodes.map(|(&node, found)| Lookups { node, life: found.life, count: found.lookups }).collect()
    }

    /// The kernel has forgotten a node; false if it has been granted lookups since it had that many.
    pub fn forget_all(&self, lookups: Lookups) -> bool {
        let Lookups { node, life, count } = lookups;
        let found = self.table.lock().nodes.get(&node).map(|found| (found.life, found.lookups));
        let same = found == Some((life, count));
        if same {
            self.forget(node, count);
        }
        same
    }

    /// Which of the lives of its id a node is.
    pub fn life(&self, node: u64) -> u32 {
        self.table.lock().nodes.get(&node).map_or(0, |found| found.life)
    }

    /// The id of the node behind a name, or else the one that it would get; `ino` is what its directory says of it, 0 if it is
    /// not known.
    pub fn number(&self, parent: u64, name: &OsStr, ino: u64) -> Option<u64> {
        let table = self.table.lock();
        if let Some(&node) = table.by_name.get(&(parent, name.to_owned())) {
            return Some(node);
        }
        let wanted = preferred(ino).filter(|_| self.by_identity && !table.is_blind())?;
        let device = table.nodes.get(&parent).map(|found| found.identity.0);
        if let Some(&node) = device.and_then(|device| table.by_identity.get(&(device, ino))) {
            return Some(node);
        }
        let free =
            table.nodes.get(&wanted).is_none_or(|found| found.identity.1 == ino && found.names.first().is_some());
        free.then_some(wanted)
    }

    /// Keeps the node behind a name, if there is one: its id is nobody else's for as long.
    pub fn hold_named(&self, parent: u64, name: &OsStr) -> Option<Held<'_>> {
        let mut table = self.table.lock();
        let node = *table.by_name.get(&(parent, name.to_owned()))?;
        table.nodes.get_mut(&node)?.held += 1;
        Some(Held { nodes: self, node })
    }

    /// True if the kernel has lookups of it.
    pub fn is_looked_up(&self, node: u64) -> bool {
        self.table.lock().nodes.get(&node).is_some_and(|found| found.lookups > 0)
    }

    /// A handle was opened.
    pub fn opened(&self, node: u64) {
        if let Some(found) = self.table.lock().nodes.get_mut(&node) {
            (found.open, found.held, found.kept) = (found.open + 1, found.held + 1, None);
        }
    }

    /// Keeps a node until [`Nodes::closed`], whatever becomes of its handles.
    pub fn hold(&self, node: u64) {
        if let Some(found) = self.table.lock().nodes.get_mut(&node) {
            found.held += 1;
        }
    }

    /// A file was changed by its first name, or by a descriptor that was opened under that.
    pub fn changed(&self, node: u64) {
        let mut table = self.table.lock();
        if let Some(found) = table.nodes.get_mut(&node) {
            (found.led_until, found.kept) = (Some(Instant::now() + self.remembers), None);
        }
    }

    /// The node behind a name that may say at present what the file was before it was changed: its first name knows better.
    pub fn led_elsewhere(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.led(parent, name, false)
    }

    /// The node behind a name that is the one of several that says at present what the file is.
    pub fn led_by(&self, parent: u64, name: &OsStr) -> Option<u64> {
        self.led(parent, name, true)
    }

    fn led(&self, parent: u64, name: &OsStr, by_this: bool) -> Option<u64> {
        let table = self.table.lock();
        let name = (parent, name.to_owned());
        let node = *table.by_name.get(&name).filter(|_| !self.by_identity)?;
        let found = table.nodes.get(&node).filter(|found| found.is_led(Instant::now()))?;
        (by_this == (found.names.first() == Some(&name))).then_some(node)
    }

    /// The name by which a file was last changed has gone; that is what it said of it.
    pub fn keep(&self, node: u64, attr: Attr) {
        let mut table = self.table.lock();
        if let Some(found) = table.nodes.get_mut(&node).filter(|found| found.open == 0) {
            (found.led_until, found.kept) = (Some(Instant::now() + self.remembers), Some(attr));
        }
    }

    /// What is known of a file better than the backing may know it by the names that are left.
    pub fn kept(&self, node: u64) -> Option<Attr> {
        let mut table = self.table.lock();
        let found = table.nodes.get_mut(&node)?;
        if found.led_until.is_none_or(|until| until <= Instant::now()) {
            found.kept = None;
        }
        found.kept
    }

    /// Number of names of a node that `count`.
    pub fn count_names(&self, node: u64, count: impl Fn(&OsStr) -> bool) -> usize {
        self.table.lock().names(node).filter(|(_, name)| count(name)).count()
    }

    /// False if a file of that identity is certainly another one than the node's.
    pub fn may_be(&self, node: u64, identity: (u64, u64)) -> bool {
        let table = self.table.lock();
        let known = table.nodes.get(&node).map(|found| found.identity);
        !self.by_identity || known.is_none_or(|known| known == identity || known == NO_IDENTITY)
    }

    /// A handle is being closed; true if it is the last. The node is held until [`Nodes::closed`].
    pub fn closing(&self, node: u64) -> bool {
        match self.table.lock().nodes.get_mut(&node) {
            Some(found) => {
                found.open = found.open.saturating_sub(1);
                found.led_until = Some(Instant::now() + self.remembers);
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
            // What was written to it may have been sent as late as that.
            found.led_until = Some(Instant::now() + self.remembers);
            table.drop_if_unused(node);
        }
    }

    /// The node behind a name, if the kernel has looked it up and files are open on it.
    pub fn open_node(&self, parent: u64, name: &OsStr) -> Option<u64> {
        let table = self.table.lock();
        let node = *table.by_name.get(&(parent, name.to_owned()))?;
        table.nodes.get(&node).filter(|found| found.open > 0).map(|_| node)
    }

    /// True if the file at a path of the backing is open.
    pub fn is_open_at(&self, path: &Path) -> bool {
        let table = self.table.lock();
        let Ok(path) = path.strip_prefix(&table.base) else { return false };
        let node = path.iter().try_fold(ROOT, |at, name| table.by_name.get(&(at, name.to_owned())).copied());
        node.and_then(|node| table.nodes.get(&node)).is_some_and(|found| found.open > 0)
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

    /// The node of a file of that identity, if identities tell files apart here.
    pub fn of_identity(&self, identity: (u64, u64)) -> Option<u64> {
        if !self.by_identity {
            return None;
        }
        self.table.lock().by_identity.get(&identity).copied()
    }

    /// Type of a node.
    pub fn kind(&self, node: u64) -> Option<FileKind> {
        self.table.lock().nodes.get(&node).map(|found| found.kind)
    }

    /// Every name a node has.
    pub fn names(&self, node: u64) -> Vec<Name> {
        self.table.lock().names(node).cloned().collect()
    }

    /// The directory that it is in.
    pub fn parent(&self, node: u64) -> Option<u64> {
        self.table.lock().names(node).next().map(|(parent, _)| *parent)
    }

    /// A name is gone.
    pub fn removed(&self, parent: u64, name: &OsStr) {
        self.table.lock().lose(parent, name);
    }

    /// A rename begins; [`Renaming::done`] says that it happened, dropping it that it did not.
    pub fn rename(&self, from: Name, to: Name) -> Renaming<'_> {
        let mut table = self.table.lock();
        table.last_rename += 1;
        let ticket = table.last_rename;
        table.renaming.insert(ticket, (from.clone(), to.clone()));
        table.notes.note(&Item::Renaming { ticket, from: noted(from.0, &from.1), to: noted(to.0, &to.1) });
        Renaming { nodes: self, ticket, from, to, ended: false }
    }

    /// Renames that may have been done by a generation that died, those included that are still in it.
    pub fn doubtful_renames(&self) -> Vec<(Name, Name)> {
        let table = self.table.lock();
        table.doubtful.iter().chain(table.renaming.values()).cloned().collect()
    }

    /// It is known by now whether that one was done.
    pub fn rename_settled(&self, from: &Name, to: &Name) {
        let mut table = self.table.lock();
        let before = table.doubtful.len();
        table.doubtful.retain(|doubtful| (&doubtful.0, &doubtful.1) != (from, to));
        if before > 0 && table.doubtful.is_empty() {
            table.notes.note(&Item::RenamesSettled);
        }
    }

    /// Goes on with what a predecessor had. Handles are to be counted again ([`Nodes::opened`]), then
    /// [`Nodes::resumed`].
    pub fn resume(&self, picture: &Picture) {
        let mut table = self.table.lock();
        for (&node, found) in picture.nodes.iter().filter(|(node, _)| **node != ROOT) {
            let (life, lookups, led_until) = (found.life, found.lookups, Some(Instant::now() + self.remembers));
            table.nodes.insert(node, Node { life, lookups, led_until, ..Node::new(found.kind, found.identity) });
            if self.by_identity && found.identity != NO_IDENTITY {
                table.by_identity.insert(found.identity, node);
            }
        }
        for (&node, found) in &picture.nodes {
            for name in &found.names {
                table.name(node, name.parent, OsStr::from_bytes(name.name.as_ref()).to_owned());
            }
        }
        table.last = table.last.max(picture.counters.node);
        table.life = picture.counters.life;
        table.last_rename = picture.counters.rename;
        let own = |name: &item::Name<'_>| (name.parent, OsStr::from_bytes(name.name.as_ref()).to_owned());
        for (&ticket, (from, to)) in &picture.renaming {
            table.notes.note(&Item::Renamed { ticket, outcome: Outcome::InDoubt });
            table.doubtful.push((own(from), own(to)));
        }
        table.doubtful.extend(picture.doubtful.iter().map(|(from, to)| (own(from), own(to))));
    }

    /// It is not known what a predecessor gave out: no id of `above` or less of its own making is given out again, nor is any
    /// inode number.
    pub fn resume_blind(&self, above: u64) {
        let mut table = self.table.lock();
        table.last = table.last.max(if self.by_identity { BLIND + above } else { above });
    }

    /// Forgets what nobody needs of what was resumed: the predecessor died between making it and telling the kernel.
    pub fn resumed(&self) {
        let mut table = self.table.lock();
        let all: Vec<u64> = table.nodes.keys().copied().collect();
        all.into_iter().for_each(|node| table.drop_if_unused(node));
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.table.lock().nodes.len()
    }
}

/// How many lookups the kernel has of a node.
#[derive(Debug, Clone, Copy)]
pub struct Lookups {
    /// Its id.
    pub node: u64,
    life: u32,
    count: u64,
}

/// See [`Nodes::hold_named`].
pub struct Held<'a> {
    nodes: &'a Nodes,
    /// Its id.
    pub node: u64,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.nodes.closed(self.node);
    }
}

/// A rename that is under way.
pub struct Renaming<'a> {
    nodes: &'a Nodes,
    ticket: u64,
    from: Name,
    to: Name,
    /// How it ended has been noted.
    ended: bool,
}

impl Renaming<'_> {
    /// The backing did it.
    pub fn done(mut self, exchange: bool) {
        let mut table = self.nodes.table.lock();
        let moved = table.by_name.get(&self.from).copied();
        let target = table.by_name.get(&self.to).copied();
        // The kernel knows what it renames, so the table does: unless a repair has found it under its new name already.
        if moved.is_none() && !exchange {
            return;
        }
        self.ended = true;
        table.notes.note(&Item::Renamed { ticket: self.ticket, outcome: Outcome::Done { exchange } });
        table.doubtful.retain(|(from, to)| (from, to) != (&self.from, &self.to));
        let led = |table: &Table, node: Option<u64>, name| {
            node.filter(|node| table.nodes.get(node).is_some_and(|found| found.names.first() == Some(name)))
        };
        let (moved_led, target_led) = (led(&table, moved, &self.from), led(&table, target, &self.to));
        table.unname(self.from.0, &self.from.1);
        table.unname(self.to.0, &self.to.1);
        if let Some(moved) = moved {
            table.name(moved, self.to.0, self.to.1.clone());
        }
        if let Some(target) = target.filter(|_| exchange) {
            table.name(target, self.from.0, self.from.1.clone());
        }
        // The name that was first of several is so under its new name.
        if let Some(moved) = moved_led {
            table.seen(moved, self.to.0, &self.to.1);
        }
        if let Some(target) = target_led.filter(|_| exchange) {
            table.seen(target, self.from.0, &self.from.1);
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

impl Renaming<'_> {
    /// Nobody knows whether the backing did it: the next generation is looked at.
    pub fn in_doubt(mut self) {
        let mut table = self.nodes.table.lock();
        if table.doubtful.len() < MOST_DOUBTFUL {
            self.ended = true;
            table.notes.note(&Item::Renamed { ticket: self.ticket, outcome: Outcome::InDoubt });
            table.doubtful.push((self.from.clone(), self.to.clone()));
        }
    }
}

impl Drop for Renaming<'_> {
    fn drop(&mut self) {
        let mut table = self.nodes.table.lock();
        table.renaming.remove(&self.ticket);
        if !self.ended {
            table.notes.note(&Item::Renamed { ticket: self.ticket, outcome: Outcome::NotDone });
        }
        drop(table);
        self.nodes.renamed.notify_all();
    }
}

#[cfg(test)]
mod tests;
