//! WARC records that can be made again from their number, so that a checker knows what every byte should be.
//!
//! The format is ISO 28500 (WARC 1.0) as crawlers write it: one gzip member a record.

use std::io::Write;
use std::time::SystemTime;

use flate2::Compression;
use flate2::write::GzEncoder;

/// Where every target URI of the demo's crawl begins.
pub const SITE: &str = "http://crawl.example";

/// Bytes of text in the body of a response record.
const BODY: usize = 12 * 1024;

const WORDS: [&str; 16] = [
    "archive", "link", "page", "of", "the", "record", "health", "and", "mount", "crawl", "in", "store", "a", "day",
    "server", "notice",
];

/// One record's gzip member, as it is appended to the file of writer `writer`.
pub fn member(writer: usize, number: u64) -> Vec<u8> {
    let block = block(writer, number);
    let kind = if number == 0 {
        "WARC-Type: warcinfo\r\nContent-Type: application/warc-fields\r\n".to_string()
    } else {
        format!(
            "WARC-Type: response\r\nWARC-Target-URI: {}\r\nContent-Type: application/http; msgtype=response\r\n",
            uri(writer, number)
        )
    };
    let date = humantime::format_rfc3339_seconds(SystemTime::now());
    let header = format!(
        "WARC/1.0\r\n{kind}WARC-Record-ID: {}\r\nWARC-Date: {date}\r\nContent-Length: {}\r\n\r\n",
        id(writer, number),
        block.len()
    );
    let mut record = header.into_bytes();
    record.extend_from_slice(&block);
    record.extend_from_slice(b"\r\n\r\n");
    compress(&record)
}

/// `WARC-Record-ID` of a record.
pub fn id(writer: usize, number: u64) -> String {
    format!("<urn:uuid:{writer:08x}-5dfa-4000-8000-{number:012x}>")
}

/// Address that a response record pretends to come from.
pub fn uri(writer: usize, number: u64) -> String {
    format!("{SITE}/{writer}/{number}")
}

/// What a record's block must be, to the byte.
pub fn block(writer: usize, number: u64) -> Vec<u8> {
    if number == 0 {
        return b"software: steadfs demo\r\nformat: WARC File Format 1.0\r\n".to_vec();
    }
    let mut seed = (number << 8 | writer as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut text = String::with_capacity(BODY + 16);
    while text.len() < BODY {
        // xorshift64: cheap, and text from it compresses about as well as HTML does.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        text.push_str(WORDS[(seed >> 60) as usize]);
        text.push(if seed & 0xf00 == 0 { '\n' } else { ' ' });
    }
    let mut block =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n", text.len()).into_bytes();
    block.extend_from_slice(text.as_bytes());
    block
}

fn compress(data: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(data.len() / 2), Compression::fast());
    // Writing to a Vec has no way to fail; an empty member would be found by the checker.
    let done = encoder.write_all(data).and_then(|()| encoder.finish());
    done.unwrap_or_default()
}

/// A record as it was read back.
#[derive(Debug, PartialEq, Eq)]
pub struct Record {
    /// `WARC-Record-ID`.
    pub id: String,
    /// The block.
    pub block: Vec<u8>,
}

/// Parses one record that fills `data` exactly.
pub fn parse(data: &[u8]) -> Result<Record, String> {
    let end = data.windows(4).position(|w| w == b"\r\n\r\n").ok_or("no end of the header")?;
    let header = std::str::from_utf8(&data[..end]).map_err(|_| "header is not UTF-8")?;
    let mut lines = header.split("\r\n");
    if lines.next() != Some("WARC/1.0") {
        return Err("does not begin with WARC/1.0".into());
    }
    let mut fields = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').ok_or_else(|| format!("header line without a colon: {line:?}"))?;
        fields.push((name.to_ascii_lowercase(), value.trim()));
    }
    let field = |name: &str| {
        fields.iter().find(|(n, _)| n == name).map(|(_, value)| *value).ok_or_else(|| format!("{name} is missing"))
    };
    for name in ["warc-type", "warc-date"] {
        field(name)?;
    }
    let length: usize = field("content-length")?.parse().map_err(|_| "content-length is not a number")?;
    let rest = &data[end + 4..];
    if rest.len() != length + 4 || !rest.ends_with(b"\r\n\r\n") {
        return Err(format!("block and end mark take {} bytes, expected {}", rest.len(), length + 4));
    }
    Ok(Record { id: field("warc-record-id")?.to_string(), block: rest[..length].to_vec() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use flate2::read::GzDecoder;
    use std::io::Read;

    fn plain(member: &[u8]) -> Vec<u8> {
        let mut data = Vec::new();
        GzDecoder::new(member).read_to_end(&mut data).unwrap();
        data
    }

    #[test]
    fn a_record_reads_back_as_it_was_made() {
        for number in [0, 1, 77] {
            let record = parse(&plain(&member(2, number))).unwrap();
            assert_eq!(record, Record { id: id(2, number), block: block(2, number) });
        }
    }

    #[test]
    fn records_differ_by_writer_and_number() {
        assert_ne!(block(0, 1), block(1, 1));
        assert_ne!(block(0, 1), block(0, 2));
    }

    #[test]
    fn a_record_with_a_wrong_length_is_refused() {
        let mut data = plain(&member(0, 1));
        data.truncate(data.len() - 1);
        assert!(parse(&data).unwrap_err().contains("expected"));
    }
}
