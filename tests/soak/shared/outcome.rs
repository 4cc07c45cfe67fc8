//! What an operation gives, in the words that the model and a real directory share.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

/// What an operation gave.
pub type Outcome = Result<Value, Errno>;

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    Nothing,
    Bytes(Vec<u8>),
    Text(String),
    Names(Vec<String>),
    Seen(Seen),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Value::Nothing => write!(f, "nothing"),
            Value::Bytes(bytes) => write!(f, "{} bytes {:?}…", bytes.len(), &bytes[..bytes.len().min(16)]),
            Value::Text(text) => write!(f, "{text:?}"),
            Value::Names(names) => write!(f, "{names:?}"),
            Value::Seen(seen) => write!(f, "{seen:?}"),
        }
    }
}

/// Type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    File,
    Directory,
    Symlink,
}

/// What stat(2) shows. Sizes and links of directories differ between filesystems: they are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    pub kind: Kind,
    pub mode: u32,
    pub size: usize,
    pub links: u32,
}

/// Everything that has a name, what it is and what it holds. Directories come before what is in them.
pub type Tree = Vec<(String, Seen, Vec<u8>)>;

/// Everything that can be seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Look {
    pub tree: Tree,
    /// What the descriptors show, where they can be read.
    pub open: Vec<Option<Vec<u8>>>,
}
