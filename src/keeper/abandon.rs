//! Ends a FUSE connection that nobody serves any more, known by what mount tables say of it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;

use nix::mount::MntFlags;
use serde::{Deserialize, Serialize};

use crate::backing::mountinfo::{self, Entry};
use crate::backing::unmount;

/// A mount. The kernel gives its device number to the next one when it is gone, so type and source count too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Major and minor number of its st_dev.
    dev: (u32, u32),
    fstype: Vec<u8>,
    source: Vec<u8>,
    /// Number of the mount itself, where it is known. When that has gone, others that look the same are somebody else's of the same
    /// source, who has got the device number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
}

impl Place {
    /// Type and source as in `/proc/self/mountinfo`.
    pub fn new(dev: (u32, u32), fstype: &OsStr, source: &OsStr) -> Place {
        Place { dev, fstype: fstype.as_bytes().to_owned(), source: source.as_bytes().to_owned(), id: None }
    }

    /// The same, with the number of the mount itself.
    pub fn numbered(self, id: Option<u64>) -> Place {
        Place { id, ..self }
    }

    /// What a mount table says of it.
    pub fn of(entry: &Entry) -> Place {
        Place::new(entry.dev, &entry.fstype, &entry.source).numbered(Some(entry.id))
    }

    fn is(&self, entry: &Entry) -> bool {
        let name = |bytes: &[u8]| OsString::from_vec(bytes.to_owned());
        entry.dev == self.dev && entry.fstype == name(&self.fstype) && entry.source == name(&self.source)
    }

    /// Its mounts that can be reached by path, last mounted first; and whether it is mounted at all.
    fn mounts(&self) -> io::Result<(Vec<Entry>, bool)> {
        let table = mountinfo::entries()?;
        let mut ours: Vec<&Entry> = table.iter().rev().filter(|entry| self.is(entry)).collect();
        if self.id.is_some_and(|id| ours.iter().all(|entry| entry.id != id)) {
            ours.clear();
        }
        let reachable = |entry: &&&Entry| {
            mountinfo::covering_in(&table, &entry.mountpoint).is_some_and(|found| found.id == entry.id)
        };
        Ok((ours.iter().filter(reachable).map(|entry| (*entry).clone()).collect(), !ours.is_empty()))
    }

    /// Aborts the connection: whoever waits in it gets ECONNABORTED or ENOTCONN. The mount stays.
    pub fn abort(&self) -> io::Result<()> {
        let (mounts, mounted) = self.mounts()?;
        if mounted {
            // Where fusectl is not mounted the other way has to do.
            let _ = std::fs::write(format!("/sys/fs/fuse/connections/{}/abort", self.dev.1), "1");
        }
        for entry in mounts {
            // EBUSY is the usual answer, and the connection is aborted all the same.
            let _ = unmount::exactly(&entry, MntFlags::MNT_FORCE);
        }
        Ok(())
    }

    /// Aborts it and detaches it wherever it can be reached.
    pub fn abandon(&self) -> io::Result<()> {
        self.abort()?;
        for entry in self.mounts()?.0 {
            detach(&entry)?;
        }
        Ok(())
    }
}

fn detach(entry: &Entry) -> io::Result<()> {
    let mountpoint: &Path = &entry.mountpoint;
    match unmount::exactly(entry, MntFlags::MNT_DETACH) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EPERM) => {
            let status = std::process::Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mountpoint).status()?;
            if status.success() { Ok(()) } else { Err(io::Error::other(format!("fusermount3: {status}"))) }
        }
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stranger_with_the_same_number_is_left_alone() {
        let entry = mountinfo::entries().expect("a table").into_iter().next().expect("a mount");
        assert!(Place::of(&entry).is(&entry));
        let gone = Place::of(&entry).numbered(Some(u64::MAX));
        assert_eq!(gone.mounts().expect("a table"), (Vec::new(), false), "whoever looks like it is somebody else");
        let other = Place::new(entry.dev, OsStr::new("fuse.steadfs"), OsStr::new("h:"));
        assert!(!other.is(&entry));
        other.abandon().expect("nothing is done");
        let text = serde_json::to_string(&other).expect("text");
        assert_eq!(serde_json::from_str::<Place>(&text).expect("a place"), other);
    }
}
