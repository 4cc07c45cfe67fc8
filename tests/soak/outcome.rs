//! What an operation gives, in the words that the model and a real directory share.

use nix::errno::Errno;

/// What an operation gave.
pub type Outcome = Result<Value, Errno>;

#[derive(Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    File,
    Directory,
    Symlink,
}

/// What stat(2) shows. Sizes and links of directories differ between filesystems: they are 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub kind: Kind,
    pub mode: u32,
    pub size: usize,
    pub links: u32,
}
