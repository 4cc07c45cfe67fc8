//! The same operations on a real directory, through the kernel.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AtFlags;

use super::outcome::{Kind, Look, Outcome, Seen, Tree, Value};
use super::play::User;
use super::program::{How, Op, SLOTS, bytes};

/// A directory and the descriptors of a program on it.
pub struct Real {
    root: PathBuf,
    slots: [Option<File>; SLOTS],
}

fn errno(error: std::io::Error) -> Errno {
    // What has no number is an end of file or a write of nothing.
    error.raw_os_error().map_or(Errno::ENODATA, Errno::from_raw)
}

fn nothing(result: std::io::Result<()>) -> Outcome {
    result.map(|()| Value::Nothing).map_err(errno)
}

fn seen(of: &std::fs::Metadata) -> Seen {
    let (kind, size, links) = if of.is_dir() {
        (Kind::Directory, 0, 0)
    } else if of.is_symlink() {
        (Kind::Symlink, of.len(), of.nlink())
    } else {
        (Kind::File, of.len(), of.nlink())
    };
    Seen { kind, mode: of.mode() & 0o7777, size: size as usize, links: links as u32 }
}

impl Real {
    pub fn new(root: &Path) -> Real {
        Real { root: root.to_owned(), slots: Default::default() }
    }

    /// Opens a slot's file once more: nothing that the kernel believes of its content is used then.
    fn content(&self, slot: usize) -> Option<Result<Vec<u8>, Errno>> {
        let file = self.slots[slot].as_ref()?;
        Some(std::fs::read(format!("/proc/self/fd/{}", file.as_raw_fd())).map_err(errno))
    }

    fn open(&self, name: &str, how: &How) -> Result<File, Errno> {
        let mut options = OpenOptions::new();
        // Not its own words for creating: it refuses what open(2) does not mind, such as O_CREAT without write access.
        options.read(how.read).write(how.write).mode(how.mode).custom_flags(flags(how));
        let file = options.open(self.root.join(name)).map_err(errno)?;
        if file.metadata().map_err(errno)?.is_dir() {
            return Err(Errno::EISDIR);
        }
        Ok(file)
    }

    fn close(&mut self, slot: usize) -> Outcome {
        match self.slots[slot].take() {
            Some(file) => nix::unistd::close(file).map(|()| Value::Nothing),
            None => Ok(Value::Nothing),
        }
    }
}

impl User for Real {
    fn apply(&mut self, op: &Op) -> Outcome {
        let at = |name: &str| self.root.join(name);
        match op {
            Op::Open { slot, name, how } => {
                self.slots[*slot] = Some(self.open(name, how)?);
                Ok(Value::Nothing)
            }
            Op::Close { slot } => self.close(*slot),
            Op::Write { slot, length, tone } => match &mut self.slots[*slot] {
                Some(file) => nothing(file.write_all(&bytes(*tone, *length))),
                None => Ok(Value::Nothing),
            },
            Op::WriteAt { slot, offset, length, tone } => match &self.slots[*slot] {
                Some(file) => nothing(file.write_all_at(&bytes(*tone, *length), *offset as u64)),
                None => Ok(Value::Nothing),
            },
            Op::Read { slot, length } => match &mut self.slots[*slot] {
                Some(file) => {
                    let mut data = vec![0; *length];
                    // One call each: what an error in the middle leaves of the offset would be unknown.
                    let read = file.read(&mut data).map_err(errno)?;
                    data.truncate(read);
                    Ok(Value::Bytes(data))
                }
                None => Ok(Value::Nothing),
            },
            Op::ReadAt { slot, offset, length } => match &self.slots[*slot] {
                Some(file) => {
                    let mut data = vec![0; *length];
                    let read = file.read_at(&mut data, *offset as u64).map_err(errno)?;
                    data.truncate(read);
                    Ok(Value::Bytes(data))
                }
                None => Ok(Value::Nothing),
            },
            Op::Seek { slot, offset } => match &mut self.slots[*slot] {
                Some(file) => nothing(file.seek(SeekFrom::Start(*offset as u64)).map(drop)),
                None => Ok(Value::Nothing),
            },
            Op::Sync { slot, data_only } => match &self.slots[*slot] {
                Some(file) if *data_only => nothing(file.sync_data()),
                Some(file) => nothing(file.sync_all()),
                None => Ok(Value::Nothing),
            },
            Op::SetLength { slot, size } => match &self.slots[*slot] {
                Some(file) => nothing(file.set_len(*size as u64)),
                None => Ok(Value::Nothing),
            },
            Op::Truncate { name, size } => nix::unistd::truncate(&at(name), *size as i64).map(|()| Value::Nothing),
            Op::Unlink { name } => nix::unistd::unlink(&at(name)).map(|()| Value::Nothing),
            Op::Rename { from, to } => nothing(std::fs::rename(at(from), at(to))),
            Op::Link { from, to } => {
                let here = nix::fcntl::AT_FDCWD;
                nix::unistd::linkat(here, &at(from), here, &at(to), AtFlags::empty()).map(|()| Value::Nothing)
            }
            Op::Symlink { target, name } => nothing(std::os::unix::fs::symlink(target, at(name))),
            Op::ReadLink { name } => {
                let target = std::fs::read_link(at(name)).map_err(errno)?;
                Ok(Value::Text(target.to_string_lossy().into_owned()))
            }
            Op::MakeDirectory { name, mode } => nothing(DirBuilder::new().mode(*mode).create(at(name))),
            Op::RemoveDirectory { name } => nothing(std::fs::remove_dir(at(name))),
            Op::SetMode { name, mode } => nothing(std::fs::set_permissions(at(name), Permissions::from_mode(*mode))),
            Op::Stat { name } => std::fs::symlink_metadata(at(name)).map(|of| Value::Seen(seen(&of))).map_err(errno),
            Op::StatOpen { slot } => match &self.slots[*slot] {
                Some(file) => file.metadata().map(|of| Value::Seen(seen(&of))).map_err(errno),
                None => Ok(Value::Nothing),
            },
            Op::List { name } => list(&at(name)).map(Value::Names),
        }
    }

    fn offset(&mut self, slot: usize) -> Option<usize> {
        self.slots[slot].as_mut()?.stream_position().ok().map(|at| at as usize)
    }

    fn look(&mut self) -> Result<Look, Errno> {
        let tree = tree(&self.root)?;
        Ok(Look { tree, open: (0..SLOTS).map(|slot| self.content(slot).and_then(Result::ok)).collect() })
    }
}

fn flags(how: &How) -> i32 {
    let flag = |wanted: bool, flag: i32| if wanted { flag } else { 0 };
    flag(how.create, libc::O_CREAT)
        | flag(how.exclusive, libc::O_EXCL)
        | flag(how.truncate, libc::O_TRUNC)
        | flag(how.append, libc::O_APPEND)
}

fn list(path: &Path) -> Result<Vec<String>, Errno> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path).map_err(errno)? {
        names.push(entry.map_err(errno)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Everything below a directory, as [`super::model::Model::tree`] says it.
pub fn tree(root: &Path) -> Result<Tree, Errno> {
    let mut found = Vec::new();
    walk(root, "", &mut found)?;
    Ok(found)
}

fn walk(directory: &Path, prefix: &str, found: &mut Tree) -> Result<(), Errno> {
    for name in list(directory)? {
        let (at, path) = (directory.join(&name), format!("{prefix}{name}"));
        let seen = seen(&std::fs::symlink_metadata(&at).map_err(errno)?);
        let content = match seen.kind {
            Kind::File => std::fs::read(&at).map_err(errno)?,
            Kind::Symlink => std::fs::read_link(&at).map_err(errno)?.into_os_string().into_encoded_bytes(),
            Kind::Directory => Vec::new(),
        };
        found.push((path.clone(), seen, content));
        if seen.kind == Kind::Directory {
            walk(&at, &format!("{path}/"), found)?;
        }
    }
    Ok(())
}
