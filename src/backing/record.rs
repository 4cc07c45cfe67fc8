//! What a successor has to know of a live generation in order to take it over (promise P6).

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::mountinfo::Entry;
use super::process::Process;
use crate::keeper::abandon;

/// Version of [`Record`]. One of another version is refused, whatever it says.
pub const VERSION: u32 = 1;

/// A live generation, written down. Made by [`super::Generation::record`], read by [`super::Backing::adopt`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// [`VERSION`] of whoever wrote it.
    pub version: u32,
    /// Its number; those of later ones are greater.
    pub number: u64,
    /// The daemon that it belonged to. As long as a thread of that lives, something old may be sent.
    pub daemon: Process,
    /// When it began, in milliseconds since 1970.
    pub began_ms: u64,
    /// The rest.
    pub life: Life,
}

impl Record {
    /// A record of a generation of this very process.
    pub(super) fn new(number: u64, began: SystemTime, life: Life) -> Record {
        let began = began.duration_since(UNIX_EPOCH).unwrap_or_default();
        let began_ms = u64::try_from(began.as_millis()).unwrap_or(u64::MAX);
        Record { version: VERSION, number, daemon: Process::own(), began_ms, life }
    }

    /// The mount that has to be aborted to free whoever hangs in it.
    pub fn place(&self) -> Option<abandon::Place> {
        match &self.life {
            Life::Sshfs(life) => Some(abandon::Place::new(life.mount.dev, &life.mount.fstype, &life.mount.source)),
            Life::Dir(_) | Life::Fake => None,
        }
    }

    /// When it began.
    pub(super) fn began(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(std::time::Duration::from_millis(self.began_ms)).unwrap_or(UNIX_EPOCH)
    }
}

/// What lives, by the kind of backing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Life {
    /// An sshfs.
    Sshfs(SshfsLife),
    /// A directory: nothing lives, but the mount that it has to be on is known.
    Dir(Place),
    /// Something in a test.
    Fake,
}

/// An sshfs with all that belongs to it. Its mountpoint is `gen-NUMBER` in the runtime directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshfsLife {
    /// What was mounted, and the options: another successor's would be other ones.
    pub target: String,
    /// See `target`.
    pub options: Vec<String>,
    /// Its mount.
    pub mount: Mounted,
    /// sshfs, which leads the process group.
    pub leader: Process,
    /// The session of the group.
    pub session: i32,
    /// All of the group, ssh and sshfs among them.
    pub members: Vec<Process>,
    /// The TCP connections of ssh, local and remote address, for the reset.
    pub connections: Vec<(SocketAddr, SocketAddr)>,
}

/// A mount of an sshfs: what no other mount at the same place has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounted {
    /// st_dev, major and minor.
    pub dev: (u32, u32),
    /// Filesystem type with its subtype.
    #[serde(with = "bytes")]
    pub fstype: OsString,
    /// What the table of mounts says is mounted.
    #[serde(with = "bytes")]
    pub source: OsString,
}

impl From<&Entry> for Mounted {
    fn from(entry: &Entry) -> Mounted {
        Mounted { dev: entry.dev, fstype: entry.fstype.clone(), source: entry.source.clone() }
    }
}

/// The mount that a directory is on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The directory itself.
    #[serde(with = "bytes")]
    pub path: OsString,
    /// Where that mount is.
    #[serde(with = "bytes")]
    pub mountpoint: OsString,
    /// Its filesystem type.
    pub fstype: String,
}

impl Place {
    pub(super) fn new(path: &Path, mountpoint: &Path, fstype: &str) -> Place {
        Place { path: path.into(), mountpoint: mountpoint.into(), fstype: fstype.into() }
    }

    pub(super) fn mountpoint(&self) -> PathBuf {
        PathBuf::from(&self.mountpoint)
    }
}

/// Why a generation was not taken over. Nothing of it is left then, but for what the text says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AdoptError {
    /// The record is of another version of steadfs, or of another backing or other options.
    #[error("{0}")]
    Other(String),
    /// A thread of the daemon that it belonged to lives on, or what that had sent has not been carried out in time.
    #[error("{0}")]
    Unsettled(String),
    /// It has ended, or part of it.
    #[error("{0}")]
    Dead(String),
    /// Something else is mounted in its place.
    #[error("{0}")]
    Foreign(String),
    /// It does not answer.
    #[error("{0}")]
    Silent(String),
    /// It cannot be told how it is.
    #[error("{0}")]
    Unknown(String),
}

/// Names as the bytes that they are.
mod bytes {
    use super::*;

    pub fn serialize<S: Serializer>(name: &OsString, serializer: S) -> Result<S::Ok, S::Error> {
        name.as_bytes().serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<OsString, D::Error> {
        Vec::deserialize(deserializer).map(OsString::from_vec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_whole_whatever_bytes_names_have() {
        let odd = OsString::from_vec(vec![b'/', 0xff, b',']);
        let own = Process::own();
        let connection = ("127.0.0.1:4000".parse().expect("one"), "[::1]:22".parse().expect("one"));
        let lives = [
            Life::Fake,
            Life::Dir(Place::new(Path::new(&odd), Path::new("/"), "ext4")),
            Life::Sshfs(SshfsLife {
                target: "h:".into(),
                options: vec!["port=23".into()],
                mount: Mounted { dev: (0, 77), fstype: "fuse.sshfs".into(), source: odd.clone() },
                leader: own,
                session: 1,
                members: vec![own],
                connections: vec![connection],
            }),
        ];
        for life in lives {
            let record = Record::new(7, SystemTime::now(), life);
            let text = serde_json::to_string(&record).expect("it can be written");
            assert_eq!(serde_json::from_str::<Record>(&text).expect("and read"), record);
        }
    }
}
