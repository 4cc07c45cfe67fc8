//! What a successor has to know, as records: one for each thing that happened. [`super::picture`] says what they come to.
//!
//! A record's kind says which [`Item`] it is; its payload is the item in postcard's encoding, as of [`FORMAT`]. Only the
//! session's begins with what every version can read: the format, and which steadfs wrote it. An item that a successor does
//! not know, or reads otherwise, is an error that names both versions, never a guess.

use std::cell::Cell;

use serde::{Deserialize, Serialize};

pub use super::event::LogEvent;
use crate::backing::FileKind;
pub use crate::log::Bytes;

/// Version of the encoding. To be raised with every change of an item or of what is in one ([`LogEvent`],
/// [`crate::log::FileLog`], [`FileKind`]).
pub const FORMAT: u32 = 2;

/// The version of this steadfs.
pub const SOFTWARE: &str = env!("CARGO_PKG_VERSION");

/// Why a record cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ItemError {
    /// It was written in another format.
    #[error(
        "steadfs {software} ran before, whose records have format {found}; steadfs {SOFTWARE} knows {FORMAT}: start \
         {software} again, or unmount and mount again"
    )]
    Format {
        /// The format.
        found: u32,
        /// Who wrote it.
        software: String,
    },
    /// No item has that kind.
    #[error(
        "a record of the unknown kind {kind} was left by steadfs {software}, and this is {SOFTWARE}: start {software} again, or unmount and mount again"
    )]
    Kind {
        /// The kind.
        kind: u16,
        /// Who wrote it.
        software: String,
    },
    /// It is whole, and yet no item.
    #[error("a record of kind {kind} cannot be read ({why}): unmount and mount again, and please report it")]
    Payload {
        /// The kind.
        kind: u16,
        /// Why not.
        why: String,
    },
    /// The first record is not that of a session.
    #[error("nothing says what was mounted: the predecessor died before it had mounted anything; mount again")]
    NoSession,
}

/// What was mounted, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// The mountpoint, as bytes of a path.
    pub mountpoint: Vec<u8>,
    /// Major and minor number of its st_dev.
    pub dev: (u32, u32),
    /// Major and minor version of the protocol that the kernel speaks.
    pub protocol: (u32, u32),
    /// FUSE_INIT as the kernel sent it, to be played to the successor's session.
    pub init: Vec<u8>,
    /// What it was answered.
    pub init_reply: Vec<u8>,
}

/// A name: the directory's node and the last component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Name<'a> {
    /// Node of the directory.
    pub parent: u64,
    /// Last component.
    #[serde(borrow)]
    pub name: Bytes<'a>,
}

impl<'a> Name<'a> {
    /// That name in that directory.
    pub fn new(parent: u64, name: &'a [u8]) -> Name<'a> {
        Name { parent, name: name.into() }
    }

    /// The same, belonging to nobody else.
    pub fn into_owned(self) -> Name<'static> {
        Name { parent: self.parent, name: self.name.into_owned() }
    }
}

/// One name in a directory's listing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<'a> {
    /// The name.
    #[serde(borrow)]
    pub name: Bytes<'a>,
    /// Its type, where it is known.
    pub kind: Option<FileKind>,
}

/// What became of a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The backing did it.
    Done {
        /// Both names changed places.
        exchange: bool,
    },
    /// It did not.
    NotDone,
    /// Nobody knows: the next generation is to be looked at.
    InDoubt,
}

/// The highest numbers given out so far, none of which may be given out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Node ids.
    pub node: u64,
    /// Handles of files.
    pub handle: u64,
    /// Handles of directories.
    pub directory: u64,
    /// Hidden names.
    pub hidden: u64,
    /// Tickets of renames.
    pub rename: u64,
}

/// Something that happened. Each is one record, so all of it is known or nothing. `by` is the unique of the request that it
/// is granted to: if the kernel sends that again, the answer did not arrive, and what it granted is to be taken back
/// ([`super::Picture::granted`]). Numbers of handles and nodes are the overlay's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item<'a> {
    /// Comes first, and once more by each successor.
    Session(Session),
    /// There is a node; one of that id is replaced.
    Node {
        /// Its id.
        node: u64,
        /// Its type.
        kind: FileKind,
        /// st_dev and st_ino.
        identity: (u64, u64),
        /// Lookups that the kernel holds.
        lookups: u64,
        /// The request that the last of them were granted to, and how many of them; 0 if none.
        by: (u64, u64),
        /// Its names; the first makes its path.
        #[serde(borrow)]
        names: Vec<Name<'a>>,
    },
    /// A node is forgotten, with its names.
    Gone {
        /// The node.
        node: u64,
    },
    /// A node has one more name, the last of its names. Whoever had it before has lost it.
    Named {
        /// The node.
        node: u64,
        /// The name.
        #[serde(borrow)]
        name: Name<'a>,
    },
    /// A name is gone.
    Unnamed(#[serde(borrow)] Name<'a>),
    /// Of several names of a node this one now makes its path.
    Seen(#[serde(borrow)] Name<'a>),
    /// The kernel is given lookups of a node. To be noted before the answer.
    Lookup {
        /// The node.
        node: u64,
        /// How many.
        count: u64,
        /// The request.
        by: u64,
    },
    /// The kernel gives lookups back.
    Forget {
        /// The node.
        node: u64,
        /// How many.
        count: u64,
    },
    /// A rename begins.
    Renaming {
        /// Its number.
        ticket: u64,
        /// From.
        #[serde(borrow)]
        from: Name<'a>,
        /// To.
        #[serde(borrow)]
        to: Name<'a>,
    },
    /// It ended; nodes have got their new names if it was done.
    Renamed {
        /// Its number.
        ticket: u64,
        /// How.
        outcome: Outcome,
    },
    /// A rename is in doubt, of which nothing else is known.
    Doubtful {
        /// From.
        #[serde(borrow)]
        from: Name<'a>,
        /// To.
        #[serde(borrow)]
        to: Name<'a>,
    },
    /// No rename that has ended is in doubt any more.
    RenamesSettled,
    /// A file is opened. To be noted before the answer.
    Opened {
        /// The handle.
        handle: u64,
        /// The node.
        node: u64,
        /// Flags of open(2).
        flags: i32,
        /// Failed commits that its holder knows of.
        told: u64,
        /// The request.
        by: u64,
    },
    /// The holder of a handle has been told of failed commits.
    Told {
        /// The handle.
        handle: u64,
        /// Of how many.
        count: u64,
    },
    /// A file is closed.
    Closed {
        /// The handle.
        handle: u64,
    },
    /// A directory is opened. To be noted before the answer.
    DirOpened {
        /// The handle.
        handle: u64,
        /// The node.
        node: u64,
        /// The request.
        by: u64,
    },
    /// What a directory handle shows from now on.
    Listed {
        /// The handle.
        handle: u64,
        /// The names, in order.
        #[serde(borrow)]
        entries: Vec<Entry<'a>>,
    },
    /// A directory is closed.
    DirClosed {
        /// The handle.
        handle: u64,
    },
    /// Something is done to the write log of a file.
    Log {
        /// The node.
        node: u64,
        /// What.
        #[serde(borrow)]
        event: LogEvent<'a>,
    },
    /// A live backing refused a commit.
    Refused {
        /// The node.
        node: u64,
        /// How many it has refused of this file.
        count: u64,
        /// The errno.
        errno: i32,
    },
    /// A repair found another file in the place of the one that a handle was opened on.
    Lost {
        /// The handle.
        handle: u64,
    },
    /// Nothing of the file is open or uncommitted any more: its log, failed commits and loss are of no interest.
    Settled {
        /// The node.
        node: u64,
    },
    /// A hidden file is to be removed when the backing is there again: its path below the root.
    HiddenAdded(#[serde(borrow)] Bytes<'a>),
    /// It has been removed.
    HiddenRemoved(#[serde(borrow)] Bytes<'a>),
    /// The live generation of the backing, as it describes itself; empty if there is none.
    Backing(#[serde(borrow)] Bytes<'a>),
    /// Something that the handover need not understand, by a name. What was kept under that name is replaced; nothing is
    /// kept of what is empty.
    Aside {
        /// The name.
        key: &'a str,
        /// What it is.
        #[serde(borrow)]
        value: Bytes<'a>,
    },
    /// Numbers were given out. What other items show is known without.
    Counters(Counters),
}

/// Kind of [`Item::Session`], in every format.
const SESSION: u16 = 1;

/// What a session's record begins with, in every format.
#[derive(Serialize, Deserialize)]
struct Preamble<'a> {
    format: u32,
    software: &'a str,
}

thread_local! {
    /// Items are encoded here, so that noting one takes no memory from the heap.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}
/// A larger buffer is not kept, in bytes.
const KEPT: usize = 64 << 10;

impl<'a> Item<'a> {
    /// The kind of its record. Numbers are never used for anything else.
    pub fn kind(&self) -> u16 {
        match self {
            Item::Session(_) => SESSION,
            Item::Node { .. } => 2,
            Item::Gone { .. } => 3,
            Item::Named { .. } => 4,
            Item::Unnamed(_) => 5,
            Item::Seen(_) => 6,
            Item::Lookup { .. } => 7,
            Item::Forget { .. } => 8,
            Item::Renaming { .. } => 9,
            Item::Renamed { .. } => 10,
            Item::Doubtful { .. } => 11,
            Item::RenamesSettled => 12,
            Item::Opened { .. } => 13,
            Item::Told { .. } => 14,
            Item::Closed { .. } => 15,
            Item::DirOpened { .. } => 16,
            Item::Listed { .. } => 17,
            Item::DirClosed { .. } => 18,
            Item::Log { .. } => 19,
            Item::Refused { .. } => 20,
            Item::Lost { .. } => 21,
            Item::Settled { .. } => 22,
            Item::HiddenAdded(_) => 23,
            Item::HiddenRemoved(_) => 24,
            Item::Backing(_) => 25,
            Item::Aside { .. } => 26,
            Item::Counters(_) => LAST_KIND,
        }
    }

    /// Encodes it: gives `take` its kind and the parts of its payload. The data of a write is a part of its own, not copied.
    pub fn encode<T>(&self, take: impl FnOnce(u16, &[&[u8]]) -> T) -> Result<T, ItemError> {
        let kind = self.kind();
        let failed = |error: postcard::Error| ItemError::Payload { kind, why: error.to_string() };
        let mut buffer = BUFFER.take();
        buffer.clear();
        let mut tail: &[u8] = &[];
        let buffer = match self {
            Item::Session(session) => {
                let preamble = Preamble { format: FORMAT, software: SOFTWARE };
                postcard::to_extend(&(preamble, session), buffer)
            }
            Item::Log { node, event: LogEvent::Write { generation, offset, data } } => {
                // The same as if it were encoded as a whole: data comes last, after its length.
                tail = data.as_ref();
                let event = LogEvent::Write { generation: *generation, offset: *offset, data: Bytes::default() };
                postcard::to_extend(&Item::Log { node: *node, event }, buffer).and_then(|mut buffer| {
                    buffer.pop();
                    postcard::to_extend(&tail.len(), buffer)
                })
            }
            item => postcard::to_extend(item, buffer),
        };
        let buffer = buffer.map_err(failed)?;
        let result = if tail.is_empty() { take(kind, &[&buffer]) } else { take(kind, &[&buffer, tail]) };
        if buffer.capacity() <= KEPT {
            BUFFER.set(buffer);
        }
        Ok(result)
    }

    /// The item in a record, which `software` wrote as far as one knows.
    pub fn decode(kind: u16, payload: &'a [u8], software: &str) -> Result<Item<'a>, ItemError> {
        let failed = |why: String| ItemError::Payload { kind, why };
        let (item, rest) = match kind {
            SESSION => {
                let (preamble, rest) =
                    postcard::take_from_bytes::<Preamble<'_>>(payload).map_err(|error| failed(error.to_string()))?;
                if preamble.format != FORMAT {
                    return Err(ItemError::Format { found: preamble.format, software: preamble.software.to_owned() });
                }
                postcard::take_from_bytes(rest).map(|(session, rest)| (Item::Session(session), rest))
            }
            2..=LAST_KIND => postcard::take_from_bytes::<Item<'a>>(payload),
            _ => return Err(ItemError::Kind { kind, software: software.to_owned() }),
        }
        .map_err(|error| failed(error.to_string()))?;
        if !rest.is_empty() || item.kind() != kind {
            return Err(failed(format!("it has {} bytes too many, or is of kind {}", rest.len(), item.kind())));
        }
        Ok(item)
    }
}

/// The highest kind in use.
const LAST_KIND: u16 = 27;

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(item: &Item<'_>) -> (u16, Vec<u8>) {
        item.encode(|kind, parts| (kind, parts.concat())).expect("it can be encoded")
    }

    #[test]
    fn the_data_of_a_write_is_not_copied_and_yet_encoded_as_ever() {
        for length in [0, 1, 127, 128, 20_000] {
            let data = vec![7; length];
            let event = LogEvent::Write { generation: 3, offset: 1 << 40, data: data.as_slice().into() };
            let item = Item::Log { node: 5, event };
            item.encode(|_, parts| {
                assert!(length == 0 || parts[1].as_ptr() == data.as_ptr());
                assert_eq!(parts.concat(), postcard::to_allocvec(&item).expect("it can be encoded"));
            })
            .expect("it can be encoded");
            let (kind, payload) = encoded(&item);
            let back = Item::decode(kind, &payload, "1").expect("it can be decoded");
            assert_eq!(back, item);
            let Item::Log { event: LogEvent::Write { data, .. }, .. } = back else { panic!("a write") };
            assert!(matches!(data.0, std::borrow::Cow::Borrowed(_)), "nor is it copied back");
        }
    }

    #[test]
    fn another_version_is_named() {
        let session =
            Session { mountpoint: b"/m".to_vec(), dev: (0, 1), protocol: (7, 40), init: vec![], init_reply: vec![] };
        let (kind, payload) = encoded(&Item::Session(session.clone()));
        assert_eq!(Item::decode(kind, &payload, ""), Ok(Item::Session(session)));
        let later = postcard::to_allocvec(&(Preamble { format: 9, software: "9.9" }, "whatever")).expect("text");
        let error = Item::decode(kind, &later, "").expect_err("another format");
        assert_eq!(error, ItemError::Format { found: 9, software: "9.9".to_owned() });
        assert!(error.to_string().contains("9.9"));
        assert_eq!(Item::decode(999, b"", "8.1"), Err(ItemError::Kind { kind: 999, software: "8.1".to_owned() }));
    }

    #[test]
    fn what_is_no_item_is_refused() {
        let (kind, mut payload) = encoded(&Item::Closed { handle: 300 });
        assert!(matches!(Item::decode(kind, &payload[..1], ""), Err(ItemError::Payload { .. })));
        assert!(matches!(Item::decode(kind + 1, &payload, ""), Err(ItemError::Payload { .. })));
        payload.push(0);
        assert!(matches!(Item::decode(kind, &payload, ""), Err(ItemError::Payload { .. })));
    }
}
