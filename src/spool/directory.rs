//! A directory that is ours alone. All that is done in it goes through one descriptor, so that nobody can swap it.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, geteuid, unlinkat};

use super::SpoolError;

/// Why a directory is not used. The text completes a sentence that begins with its path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// It is a symbolic link.
    #[error("is a symbolic link: give the directory itself")]
    Link,
    /// It is something else.
    #[error("is not a directory: give another one, or remove it")]
    NotADirectory,
    /// Its owner could read and alter what is in it.
    #[error("belongs to uid {0} and not to uid {1}: run as its owner, or give another one")]
    Owner(u32, u32),
    /// Others could.
    #[error("can be written by others: run chmod go-w on it, or give another one")]
    Writable,
}

/// Whether `dir` may be used: fit, or not there yet. What cannot be looked at is for the one who uses it to report.
pub fn check(dir: &Path) -> Result<(), String> {
    std::fs::symlink_metadata(dir).map_or(Ok(()), |found| fit(&found)).map_err(|why| why.to_string())
}

fn fit(found: &Metadata) -> Result<(), Unfit> {
    let (owner, own) = (found.uid(), geteuid().as_raw());
    match () {
        () if found.is_symlink() => Err(Unfit::Link),
        () if !found.is_dir() => Err(Unfit::NotADirectory),
        () if owner != own => Err(Unfit::Owner(owner, own)),
        () if found.mode() & 0o022 != 0 => Err(Unfit::Writable),
        () => Ok(()),
    }
}

/// See the module.
pub struct Directory {
    fd: File,
    path: PathBuf,
}

impl Directory {
    /// Opens it; it is made first, with mode 0700 as all that is made above it, if it is missing.
    pub fn make(path: &Path) -> Result<Directory, SpoolError> {
        let fail = |error| SpoolError::io("make the spool directory", path, error);
        if std::fs::symlink_metadata(path).is_err() {
            let make = || DirBuilder::new().recursive(true).mode(0o700).create(path);
            // Whoever tidies up above may remove a parent in between.
            make().or_else(|_| make()).map_err(fail)?;
            // A new directory is lost with its name, and so on upwards, as far as it may be read.
            for above in path.ancestors().skip(1).take(3) {
                File::open(above).map_or(Ok(()), |above| above.sync_all()).map_err(fail)?;
            }
        }
        Directory::open(path)
    }

    /// Opens it.
    pub fn open(path: &Path) -> Result<Directory, SpoolError> {
        let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
        let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(path);
        let unfit = |why| SpoolError::Unfit { dir: path.to_owned(), why };
        let fd = opened.map_err(|error| match std::fs::symlink_metadata(path).map(|found| fit(&found)) {
            Ok(Err(why)) => unfit(why),
            _ => SpoolError::io("open the spool directory", path, error),
        })?;
        let found = fd.metadata().map_err(|error| SpoolError::io("look at", path, error))?;
        fit(&found).map_err(unfit)?;
        Ok(Directory { fd, path: path.to_owned() })
    }

    /// Its descriptor.
    pub fn file(&self) -> &File {
        &self.fd
    }

    /// The path of a name in it.
    pub fn join(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a file with mode 0600; `None` if the name is taken.
    pub fn create(&self, name: &OsStr) -> Result<Option<File>, SpoolError> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&self.fd, name, flags, Mode::S_IRUSR | Mode::S_IWUSR) {
            Ok(fd) => Ok(Some(fd.into())),
            Err(Errno::EEXIST) => Ok(None),
            Err(errno) => Err(SpoolError::io("make", &self.join(name), errno)),
        }
    }

    /// Opens a regular file to read it.
    pub fn read(&self, name: &OsStr) -> Result<File, SpoolError> {
        // A fifo or a device must neither block nor do anything.
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let path = self.join(name);
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ELOOP) => return Err(SpoolError::damaged(&path, "it is a symbolic link")),
            Err(errno) => return Err(SpoolError::io("open", &path, errno)),
        };
        match file.metadata() {
            Ok(found) if found.is_file() => Ok(file),
            Ok(_) => Err(SpoolError::damaged(&path, "it is not a file")),
            Err(error) => Err(SpoolError::io("look at", &path, error)),
        }
    }

    /// True if something has that name.
    pub fn has(&self, name: &OsStr) -> bool {
        fstatat(&self.fd, name, AtFlags::AT_SYMLINK_NOFOLLOW) != Err(Errno::ENOENT)
    }

    /// Gives a file another name, for good.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), SpoolError> {
        renameat(&self.fd, from, &self.fd, to).map_err(|errno| SpoolError::io("rename", &self.join(from), errno))?;
        self.sync()
    }

    /// Removes a file, for good.
    pub fn remove(&self, name: &OsStr) -> Result<(), SpoolError> {
        let removed = unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir);
        removed.map_err(|errno| SpoolError::io("remove", &self.join(name), errno))?;
        self.sync()
    }

    /// Bytes of all files in it.
    pub fn used(&self) -> Result<u64, SpoolError> {
        let fail = |error: io::Error| SpoolError::io("read", &self.path, error);
        let mut used = 0u64;
        for entry in std::fs::read_dir(&self.path).map_err(fail)? {
            // One that is gone again takes no room.
            used = used.saturating_add(entry.map_err(fail)?.metadata().map_or(0, |found| found.len()));
        }
        Ok(used)
    }

    fn sync(&self) -> Result<(), SpoolError> {
        self.fd.sync_all().map_err(|error| SpoolError::io("sync", &self.path, error))
    }
}
