//! As much of SFTP as a relay has to understand (draft-ietf-secsh-filexfer-02): where packets end, and what they ask.

use std::io::Read;

/// Requests by their number.
const NAMES: [(u8, &str); 19] = [
    (3, "OPEN"),
    (4, "CLOSE"),
    (5, "READ"),
    (6, "WRITE"),
    (7, "LSTAT"),
    (8, "FSTAT"),
    (9, "SETSTAT"),
    (10, "FSETSTAT"),
    (11, "OPENDIR"),
    (12, "READDIR"),
    (13, "REMOVE"),
    (14, "MKDIR"),
    (15, "RMDIR"),
    (16, "REALPATH"),
    (17, "STAT"),
    (18, "RENAME"),
    (19, "READLINK"),
    (20, "SYMLINK"),
    (200, "EXTENDED"),
];

/// Cuts a stream into packets.
pub struct Packets<R> {
    from: R,
    buffer: Vec<u8>,
}

impl<R: Read> Packets<R> {
    pub fn new(from: R) -> Packets<R> {
        Packets { from, buffer: Vec::new() }
    }

    fn length(&self) -> Option<usize> {
        let length = u32::from_be_bytes(self.buffer.get(..4)?.try_into().unwrap());
        Some(length as usize + 4).filter(|&length| length <= self.buffer.len())
    }

    /// One can be had without waiting.
    pub fn has_whole(&self) -> bool {
        self.length().is_some()
    }

    /// The next one, its length in front; nothing at the end of the stream.
    pub fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = self.length() {
                return Some(self.buffer.drain(..length).collect());
            }
            let mut chunk = [0; 1 << 16];
            match self.from.read(&mut chunk) {
                Ok(0) | Err(_) => return None,
                Ok(more) => self.buffer.extend(&chunk[..more]),
            }
        }
    }
}

/// The id of a request or reply.
pub fn id(packet: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(packet.get(5..9)?.try_into().unwrap()))
}

/// What a request asks, and the path it names, if it is one that has an id.
pub fn name(packet: &[u8]) -> Option<String> {
    let kind = *packet.get(4)?;
    let name = NAMES.iter().find(|(number, _)| *number == kind)?.1;
    let (first, rest) = string(&packet[9..]).unwrap_or_default();
    Some(match kind {
        // These name a handle, which says nothing.
        4..=6 | 8 | 10 | 12 => name.into(),
        200 => format!("{name} {first} {}", string(rest).unwrap_or_default().0),
        _ => format!("{name} {first}"),
    })
}

fn string(bytes: &[u8]) -> Option<(String, &[u8])> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().unwrap()) as usize;
    let text = bytes.get(4..4 + length)?;
    Some((String::from_utf8_lossy(text).into_owned(), &bytes[4 + length..]))
}
