//! What POSIX says a directory tree does, in memory.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::outcome::{Kind, Outcome, Seen, Tree, Value};
use super::program::{How, Op, SLOTS, bytes};

/// More links than that in one path are ELOOP (path_resolution(7)).
const MAX_LINKS: usize = 40;
const ROOT: usize = 0;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Body {
    File(Vec<u8>),
    Directory(BTreeMap<String, usize>),
    Symlink(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Inode {
    body: Body,
    mode: u32,
    links: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Descriptor {
    inode: usize,
    offset: usize,
    how: How,
}

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    inodes: Vec<Inode>,
    slots: [Option<Descriptor>; SLOTS],
}

/// Where a path leads.
struct Place {
    directory: usize,
    name: String,
    inode: Option<usize>,
}

impl Model {
    /// An empty directory.
    pub fn new() -> Model {
        Model {
            inodes: vec![Inode { body: Body::Directory(BTreeMap::new()), mode: 0o755, links: 2 }],
            slots: [None; SLOTS],
        }
    }

    /// Does what an operation does.
    pub fn apply(&mut self, op: &Op) -> Outcome {
        match op {
            Op::Open { slot, name, how } => {
                let inode = self.open(name, how)?;
                self.slots[*slot] = Some(Descriptor { inode, offset: 0, how: *how });
                Ok(Value::Nothing)
            }
            Op::Close { slot } => {
                self.slots[*slot] = None;
                Ok(Value::Nothing)
            }
            Op::Write { slot, length, tone } => self.write(*slot, None, &bytes(*tone, *length)),
            Op::WriteAt { slot, offset, length, tone } => self.write(*slot, Some(*offset), &bytes(*tone, *length)),
            Op::Read { slot, length } => self.read(*slot, None, *length),
            Op::ReadAt { slot, offset, length } => self.read(*slot, Some(*offset), *length),
            Op::Seek { slot, offset } => {
                if let Some(descriptor) = &mut self.slots[*slot] {
                    descriptor.offset = *offset;
                }
                Ok(Value::Nothing)
            }
            Op::Sync { .. } => Ok(Value::Nothing),
            Op::SetLength { slot, size } => {
                let Some(descriptor) = self.slots[*slot] else { return Ok(Value::Nothing) };
                if !descriptor.how.write {
                    return Err(Errno::EINVAL);
                }
                self.content_mut(descriptor.inode).resize(*size, 0);
                Ok(Value::Nothing)
            }
            Op::Truncate { name, size } => {
                let inode = self.existing(name, true)?;
                match &mut self.inodes[inode].body {
                    Body::File(content) => content.resize(*size, 0),
                    Body::Directory(_) => return Err(Errno::EISDIR),
                    Body::Symlink(_) => return Err(Errno::EINVAL),
                }
                Ok(Value::Nothing)
            }
            Op::Unlink { name } => self.unlink(name),
            Op::Rename { from, to } => self.rename(from, to),
            Op::Link { from, to } => self.link(from, to),
            Op::Symlink { target, name } => {
                self.make(name, Body::Symlink((*target).to_owned()), 0o777).map(|_| Value::Nothing)
            }
            Op::ReadLink { name } => match &self.inodes[self.existing(name, false)?].body {
                Body::Symlink(target) => Ok(Value::Text(target.clone())),
                _ => Err(Errno::EINVAL),
            },
            Op::MakeDirectory { name, mode } => {
                let place = self.place(name, false)?;
                self.make(name, Body::Directory(BTreeMap::new()), *mode)?;
                self.inodes[place.directory].links += 1;
                Ok(Value::Nothing)
            }
            Op::RemoveDirectory { name } => self.remove_directory(name),
            Op::SetMode { name, mode } => {
                let inode = self.existing(name, true)?;
                self.inodes[inode].mode = *mode;
                Ok(Value::Nothing)
            }
            Op::Stat { name } => self.existing(name, false).map(|inode| Value::Seen(self.seen(inode))),
            Op::StatOpen { slot } => {
                Ok(self.slots[*slot].map_or(Value::Nothing, |open| Value::Seen(self.seen(open.inode))))
            }
            Op::List { name } => match &self.inodes[self.existing(name, true)?].body {
                Body::Directory(entries) => Ok(Value::Names(entries.keys().cloned().collect())),
                _ => Err(Errno::ENOTDIR),
            },
        }
    }

    /// What has a name.
    pub fn tree(&self) -> Tree {
        let mut found = Vec::new();
        self.walk(ROOT, "", &mut found);
        found
    }

    fn walk(&self, directory: usize, prefix: &str, found: &mut Tree) {
        let Body::Directory(entries) = &self.inodes[directory].body else { return };
        for (name, &inode) in entries {
            let path = format!("{prefix}{name}");
            let content = match &self.inodes[inode].body {
                Body::File(content) => content.clone(),
                Body::Symlink(target) => target.clone().into_bytes(),
                Body::Directory(_) => Vec::new(),
            };
            found.push((path.clone(), self.seen(inode), content));
            self.walk(inode, &format!("{path}/"), found);
        }
    }

    /// What a descriptor's file holds.
    pub fn content(&self, slot: usize) -> Option<&[u8]> {
        match &self.inodes[self.slots[slot]?.inode].body {
            Body::File(content) => Some(content),
            _ => None,
        }
    }

    /// A name of a descriptor's file, if it has one.
    pub fn name_of(&self, slot: usize) -> Option<String> {
        let inode = self.slots[slot]?.inode;
        fn find(model: &Model, directory: usize, prefix: &str, wanted: usize) -> Option<String> {
            let Body::Directory(entries) = &model.inodes[directory].body else { return None };
            entries.iter().find_map(|(name, &inode)| {
                let path = format!("{prefix}{name}");
                if inode == wanted { Some(path) } else { find(model, inode, &format!("{path}/"), wanted) }
            })
        }
        find(self, ROOT, "", inode)
    }

    /// How a slot was opened.
    pub fn how(&self, slot: usize) -> Option<How> {
        self.slots[slot].map(|open| open.how)
    }

    /// True if the slot's file has no name.
    pub fn is_orphan(&self, slot: usize) -> bool {
        self.slots[slot].is_some_and(|open| self.inodes[open.inode].links == 0)
    }

    /// Takes the descriptors from another: those of a call that failed are as they were.
    pub fn descriptors_of(&mut self, other: &Model) {
        self.slots = other.slots;
    }

    /// Where the kernel says that a slot's descriptor is.
    pub fn place_at(&mut self, slot: usize, offset: usize) {
        if let Some(open) = &mut self.slots[slot] {
            open.offset = offset;
        }
    }

    /// Empties a slot.
    pub fn drop_slot(&mut self, slot: usize) {
        self.slots[slot] = None;
    }

    /// The same with that content of a slot's file, if a write of `length` bytes, done in part, may have left it.
    pub fn with_part_of(&self, slot: usize, at: Option<usize>, length: usize, now: Vec<u8>) -> Option<Model> {
        let (open, old) = (self.slots[slot]?, self.content(slot)?);
        let start = if open.how.append { old.len() } else { at.unwrap_or(open.offset) };
        let end = start + length;
        let outside = |content: &[u8], at: usize| if at < start || at >= end { content.get(at).copied() } else { None };
        let common = (0..now.len()).all(|at| {
            let zero = at >= old.len() && now[at] == 0;
            zero || outside(&now, at) == outside(old, at)
        });
        let sized = now.len() >= old.len() && now.len() <= end.max(old.len());
        (common && sized).then(|| {
            let mut model = self.clone();
            *model.content_mut(open.inode) = now;
            model
        })
    }

    fn seen(&self, inode: usize) -> Seen {
        let Inode { body, mode, links } = &self.inodes[inode];
        match body {
            Body::File(content) => Seen { kind: Kind::File, mode: *mode, size: content.len(), links: *links },
            Body::Symlink(target) => Seen { kind: Kind::Symlink, mode: 0o777, size: target.len(), links: *links },
            Body::Directory(_) => Seen { kind: Kind::Directory, mode: *mode, size: 0, links: 0 },
        }
    }

    fn content_mut(&mut self, inode: usize) -> &mut Vec<u8> {
        match &mut self.inodes[inode].body {
            Body::File(content) => content,
            _ => unreachable!("only files are opened"),
        }
    }

    fn entries(&self, directory: usize) -> Result<&BTreeMap<String, usize>, Errno> {
        match &self.inodes[directory].body {
            Body::Directory(entries) => Ok(entries),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn entries_mut(&mut self, directory: usize) -> &mut BTreeMap<String, usize> {
        match &mut self.inodes[directory].body {
            Body::Directory(entries) => entries,
            _ => unreachable!("a place is in a directory"),
        }
    }

    /// Where a path leads; the last component is followed if it is a symbolic link and `follow` says so.
    fn place(&self, path: &str, follow: bool) -> Result<Place, Errno> {
        let mut ahead: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
        let (mut directory, mut links) = (ROOT, 0);
        while let Some(name) = ahead.pop() {
            let entries = self.entries(directory)?;
            if name.is_empty() {
                return Ok(Place { directory, name, inode: Some(directory) });
            }
            let inode = entries.get(&name).copied();
            if let Some(Body::Symlink(target)) = inode.map(|inode| &self.inodes[inode].body)
                && (follow || !ahead.is_empty())
            {
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::ELOOP);
                }
                ahead.extend(target.split('/').rev().map(str::to_owned));
                continue;
            }
            if ahead.is_empty() {
                return Ok(Place { directory, name, inode });
            }
            directory = inode.ok_or(Errno::ENOENT)?;
        }
        unreachable!("a path has a last component")
    }

    fn existing(&self, path: &str, follow: bool) -> Result<usize, Errno> {
        self.place(path, follow)?.inode.ok_or(Errno::ENOENT)
    }

    fn make(&mut self, path: &str, body: Body, mode: u32) -> Result<usize, Errno> {
        let place = self.place(path, false)?;
        if place.inode.is_some() {
            return Err(Errno::EEXIST);
        }
        let links = if matches!(body, Body::Directory(_)) { 2 } else { 1 };
        self.inodes.push(Inode { body, mode, links });
        let inode = self.inodes.len() - 1;
        self.entries_mut(place.directory).insert(place.name, inode);
        Ok(inode)
    }

    fn open(&mut self, path: &str, how: &How) -> Result<usize, Errno> {
        let place = self.place(path, !how.exclusive)?;
        let inode = match place.inode {
            Some(_) if how.create && how.exclusive => return Err(Errno::EEXIST),
            Some(inode) => inode,
            None if !how.create => return Err(Errno::ENOENT),
            None => {
                self.inodes.push(Inode { body: Body::File(Vec::new()), mode: how.mode, links: 1 });
                let inode = self.inodes.len() - 1;
                self.entries_mut(place.directory).insert(place.name, inode);
                inode
            }
        };
        match &mut self.inodes[inode].body {
            Body::File(content) if how.truncate => content.clear(),
            Body::File(_) => {}
            // Programs do not read directories through descriptors.
            Body::Directory(_) => return Err(Errno::EISDIR),
            Body::Symlink(_) => return Err(Errno::ELOOP),
        }
        Ok(inode)
    }

    fn write(&mut self, slot: usize, at: Option<usize>, data: &[u8]) -> Outcome {
        let Some(mut descriptor) = self.slots[slot] else { return Ok(Value::Nothing) };
        if !descriptor.how.write {
            return Err(Errno::EBADF);
        }
        let content = self.content_mut(descriptor.inode);
        // With O_APPEND pwrite(2) appends too, on Linux.
        let start = if descriptor.how.append { content.len() } else { at.unwrap_or(descriptor.offset) };
        let end = start + data.len();
        content.resize(content.len().max(end), 0);
        content[start..end].copy_from_slice(data);
        if at.is_none() {
            descriptor.offset = end;
            self.slots[slot] = Some(descriptor);
        }
        Ok(Value::Nothing)
    }

    fn read(&mut self, slot: usize, at: Option<usize>, length: usize) -> Outcome {
        let Some(mut descriptor) = self.slots[slot] else { return Ok(Value::Nothing) };
        if !descriptor.how.read {
            return Err(Errno::EBADF);
        }
        let start = at.unwrap_or(descriptor.offset);
        let content = self.content_mut(descriptor.inode);
        let data = content[start.min(content.len())..(start + length).min(content.len())].to_vec();
        if at.is_none() {
            descriptor.offset = start + data.len();
            self.slots[slot] = Some(descriptor);
        }
        Ok(Value::Bytes(data))
    }

    fn unlink(&mut self, path: &str) -> Outcome {
        let place = self.place(path, false)?;
        let inode = place.inode.ok_or(Errno::ENOENT)?;
        if matches!(self.inodes[inode].body, Body::Directory(_)) {
            return Err(Errno::EISDIR);
        }
        self.entries_mut(place.directory).remove(&place.name);
        self.inodes[inode].links -= 1;
        Ok(Value::Nothing)
    }

    fn remove_directory(&mut self, path: &str) -> Outcome {
        let place = self.place(path, false)?;
        let inode = place.inode.ok_or(Errno::ENOENT)?;
        if !self.entries(inode)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.entries_mut(place.directory).remove(&place.name);
        Ok(Value::Nothing)
    }

    fn link(&mut self, from: &str, to: &str) -> Outcome {
        let inode = self.existing(from, false)?;
        let place = self.place(to, false)?;
        if place.inode.is_some() {
            return Err(Errno::EEXIST);
        }
        if matches!(self.inodes[inode].body, Body::Directory(_)) {
            return Err(Errno::EPERM);
        }
        self.entries_mut(place.directory).insert(place.name, inode);
        self.inodes[inode].links += 1;
        Ok(Value::Nothing)
    }

    /// True if that directory is the other or lies above it.
    fn is_above(&self, directory: usize, below: usize) -> bool {
        directory == below
            || self.entries(directory).is_ok_and(|entries| entries.values().any(|&entry| self.is_above(entry, below)))
    }

    fn rename(&mut self, from: &str, to: &str) -> Outcome {
        let (old, new) = (self.place(from, false)?, self.place(to, false)?);
        let moved = old.inode.ok_or(Errno::ENOENT)?;
        // As the kernel orders its checks (do_renameat2).
        if self.is_above(moved, new.directory) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = new.inode {
            if self.is_above(target, old.directory) {
                return Err(Errno::ENOTEMPTY);
            }
            if moved == target {
                return Ok(Value::Nothing);
            }
            let directory = matches!(self.inodes[moved].body, Body::Directory(_));
            match &self.inodes[target].body {
                Body::Directory(_) if !directory => return Err(Errno::EISDIR),
                Body::Directory(entries) if !entries.is_empty() => return Err(Errno::ENOTEMPTY),
                Body::Directory(_) => {}
                _ if directory => return Err(Errno::ENOTDIR),
                _ => self.inodes[target].links -= 1,
            }
        }
        self.entries_mut(old.directory).remove(&old.name);
        self.entries_mut(new.directory).insert(new.name, moved);
        Ok(Value::Nothing)
    }
}
