//! The line that a spool file begins with.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::{Saved, SpoolError, text};
use crate::moment;

/// The version of the format that is written.
const VERSION: u32 = 1;
/// Largest offset of a file on Linux.
const LARGEST: u64 = i64::MAX.cast_unsigned();
/// Length of [`tail`].
const TAIL: usize = 20;

/// Where data belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// Offset in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// CRC-32 of them.
    #[serde(with = "text::crc")]
    pub crc32: u32,
}

impl Extent {
    /// Where it ends.
    pub fn end(&self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// All of a spool file but the data; fields as in [`Saved`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// Version of the format.
    #[serde(rename = "steadfs_spool")]
    pub version: u32,
    /// The mountpoint.
    #[serde(with = "text::path")]
    pub overlay: PathBuf,
    /// What it showed: the backing's label with the overlay's own directory, as mount tables show it.
    pub backing: String,
    /// The file, below the root.
    #[serde(with = "text::path")]
    pub path: PathBuf,
    /// Why it was saved.
    pub reason: String,
    /// When.
    #[serde(with = "text::time")]
    pub at: SystemTime,
    /// The file was cut to this size first.
    pub cut: Option<u64>,
    /// Its size in the end, if known.
    pub size: Option<u64>,
    /// Where the data belongs, in the order in which it follows.
    pub extents: Vec<Extent>,
}

impl Header {
    /// The header of what is to be saved.
    pub(super) fn of(saved: &Saved) -> Result<Header, SpoolError> {
        let extent = |(offset, data): &(u64, Vec<u8>)| Extent {
            offset: *offset,
            len: data.len() as u64,
            crc32: crc32fast::hash(data),
        };
        let header = Header {
            version: VERSION,
            overlay: saved.overlay.clone(),
            backing: saved.backing.clone(),
            path: saved.path.clone(),
            reason: saved.reason.clone(),
            at: moment::writable(saved.at),
            cut: saved.cut,
            size: saved.size,
            extents: saved.extents.iter().map(extent).collect(),
        };
        if header.is_sound() { Ok(header) } else { Err(SpoolError::Extents { path: saved.path.clone() }) }
    }

    /// Bytes of data that follow it.
    pub fn data_len(&self) -> u64 {
        // Sound extents have no overlaps, so the sum is no larger than an offset.
        self.extents.iter().map(|extent| extent.len).fold(0, u64::saturating_add)
    }

    /// The line with its newline.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut line = serde_json::to_vec(self)?;
        line.pop();
        let tail = tail(&line);
        line.extend_from_slice(tail.as_bytes());
        line.push(b'\n');
        Ok(line)
    }

    /// Reads the line, without its newline, of the file at `path`.
    pub(crate) fn decode(line: &[u8], path: &Path) -> Result<Header, SpoolError> {
        let damaged = |what: &str| SpoolError::damaged(path, what);
        let (body, end) =
            line.split_at_checked(line.len().wrapping_sub(TAIL)).ok_or_else(|| damaged("its header is cut off"))?;
        if end != tail(body).as_bytes() {
            return Err(damaged("the checksum of its header does not hold"));
        }
        // Later versions need not have the other members.
        #[derive(Deserialize)]
        struct Version {
            steadfs_spool: u32,
        }
        let foreign = |error: serde_json::Error| damaged(&format!("its header is not steadfs's: {error}"));
        let version = serde_json::from_slice::<Version>(line).map_err(foreign)?.steadfs_spool;
        if version != VERSION {
            return Err(SpoolError::Version { path: path.to_owned(), version });
        }
        let header: Header = serde_json::from_slice(line).map_err(foreign)?;
        if header.is_sound() { Ok(header) } else { Err(damaged("its extents are not in order")) }
    }

    /// Extents ascend without overlaps, and no offset is beyond the largest.
    fn is_sound(&self) -> bool {
        let mut from = 0;
        let ascend = self.extents.iter().all(|extent| {
            let sound =
                extent.offset >= from && extent.offset.checked_add(extent.len).is_some_and(|end| end <= LARGEST);
            from = extent.end();
            sound
        });
        ascend && [self.cut, self.size].into_iter().flatten().all(|size| size <= LARGEST)
    }
}

/// The end of the line whose beginning is `body`.
pub(crate) fn tail(body: &[u8]) -> String {
    format!(",\"crc32\":\"{:08x}\"}}", crc32fast::hash(body))
}
