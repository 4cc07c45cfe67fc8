//! Reads a spool file. Its header and its length are checked when it is opened, its data whenever it is read.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::directory::Directory;
use super::header::Header;
use super::{Saved, SpoolError};

/// Bytes of data that are in memory at a time.
const CHUNK: u64 = 1 << 20;
/// What every version of the format begins with.
const MAGIC: &[u8] = b"{\"steadfs_spool\":";

/// An open spool file.
pub struct Entry {
    path: PathBuf,
    file: File,
    header: Header,
    /// Where the data begins.
    data: u64,
}

/// All of a spool file, in memory.
pub fn read(path: &Path) -> Result<Saved, SpoolError> {
    let entry = Entry::open(path)?;
    let mut extents: Vec<(u64, Vec<u8>)> = Vec::new();
    for extent in &entry.header.extents {
        extents.push((extent.offset, Vec::new()));
    }
    entry.each_chunk(|index, _, chunk| {
        if let Some((_, data)) = extents.get_mut(index) {
            data.extend_from_slice(chunk);
        }
        Ok(())
    })?;
    let Header { overlay, backing, path, reason, at, cut, size, .. } = entry.header;
    Ok(Saved { overlay, backing, path, reason, at, cut, size, extents })
}

impl Entry {
    /// Opens it and checks its header and its length.
    pub fn open(path: &Path) -> Result<Entry, SpoolError> {
        let (directory, name) = split(path)?;
        Entry::open_in(&directory, &name)
    }

    pub(super) fn open_in(directory: &Directory, name: &std::ffi::OsStr) -> Result<Entry, SpoolError> {
        let path = directory.join(name);
        let file = directory.read(name)?;
        let damaged = |what: &str| SpoolError::damaged(&path, what);
        let fail = |error| SpoolError::io("read", &path, error);
        let length = file.metadata().map_err(fail)?.len();
        let mut reader = BufReader::new(&file);
        let start = reader.fill_buf().map_err(fail)?;
        if start.is_empty() {
            return Err(damaged("it is empty"));
        }
        let magic = start.len().min(MAGIC.len());
        // Not a line of any length of something else.
        if start[..magic] != MAGIC[..magic] {
            return Err(damaged("it is not a spool file"));
        }
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line).map_err(fail)?;
        let data = line.len() as u64;
        if line.pop() != Some(b'\n') {
            return Err(damaged("its header is cut off"));
        }
        let header = Header::decode(&line, &path)?;
        let expected = data.saturating_add(header.data_len());
        match length.cmp(&expected) {
            std::cmp::Ordering::Less => Err(damaged(&format!("its last {} bytes are missing", expected - length))),
            std::cmp::Ordering::Greater => Err(damaged(&format!("it is {} bytes too long", length - expected))),
            std::cmp::Ordering::Equal => Ok(Entry { path, file, header, data }),
        }
    }

    /// What it says about itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Checks all of its data.
    pub fn verify(&self) -> Result<(), SpoolError> {
        self.each_chunk(|_, _, _| Ok(()))
    }

    /// Calls with all data in order, piece by piece: the number of the extent, the offset in the file it belongs to, the
    /// bytes. The checksum of an extent is checked after its last piece.
    pub(super) fn each_chunk(
        &self,
        mut take: impl FnMut(usize, u64, &[u8]) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        let mut buffer = Vec::new();
        let mut from = self.data;
        for (index, extent) in self.header.extents.iter().enumerate() {
            let mut hasher = crc32fast::Hasher::new();
            let mut done = 0;
            while done < extent.len {
                let piece = CHUNK.min(extent.len - done);
                // No larger than CHUNK.
                buffer.resize(piece as usize, 0);
                let read = self.file.read_exact_at(&mut buffer, from);
                read.map_err(|error| SpoolError::io("read", &self.path, error))?;
                hasher.update(&buffer);
                take(index, extent.offset + done, &buffer)?;
                done += piece;
                from += piece;
            }
            if hasher.finalize() != extent.crc32 {
                let what =
                    format!("the checksum of its {} bytes for offset {} does not hold", extent.len, extent.offset);
                return Err(SpoolError::damaged(&self.path, what));
            }
        }
        Ok(())
    }
}

/// The directory of a spool file, opened, and the name in it.
pub(super) fn split(path: &Path) -> Result<(Directory, std::ffi::OsString), SpoolError> {
    let Some(name) = path.file_name() else { return Err(SpoolError::damaged(path, "it is not a file")) };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((Directory::open(parent)?, name.to_owned()))
}
