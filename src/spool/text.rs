//! Values of the header as text: paths of any bytes, times, checksums.

use std::path::{Path, PathBuf};

use crate::plain::obeyed;

/// The path with what a terminal obeys, `%` and what is not UTF-8 as `%XX`.
pub fn encode(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    let mut text = String::new();
    let escape = |text: &mut String, bytes: &[u8]| bytes.iter().for_each(|b| text.push_str(&format!("%{b:02x}")));
    for chunk in path.as_os_str().as_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if obeyed(c) || c == '%' {
                escape(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(c);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

/// The path that [`encode`] made this of.
pub fn decode(text: &str) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, tail) = tail.split_at_checked(2)?;
        bytes.push(u8::try_from(hex(std::str::from_utf8(digits).ok()?)?).ok()?);
        rest = tail;
    }
    Some(std::ffi::OsString::from_vec(bytes).into())
}

/// A number of lower-case hexadecimal digits and nothing else.
fn hex(text: &str) -> Option<u32> {
    let digits = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if text.bytes().all(digits) { u32::from_str_radix(text, 16).ok() } else { None }
}

/// For `#[serde(with)]` on a path.
pub mod path {
    use std::path::{Path, PathBuf};

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&super::encode(path))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        super::decode(&String::deserialize(from)?).ok_or_else(|| D::Error::custom("a path with a bad %XX"))
    }
}

/// For `#[serde(with)]` on a time.
pub mod time {
    use std::time::SystemTime;

    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(at: &SystemTime, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&humantime::format_rfc3339_nanos(crate::moment::writable(*at)))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<SystemTime, D::Error> {
        humantime::parse_rfc3339(&String::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// For `#[serde(with)]` on a checksum.
pub mod crc {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub fn serialize<S: Serializer>(crc: &u32, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{crc:08x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        super::hex(&String::deserialize(from)?).ok_or_else(|| D::Error::custom("a bad checksum"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_stay_readable() {
        use std::os::unix::ffi::OsStrExt;
        let path = std::ffi::OsStr::from_bytes(b"a b/\xc3\xa4\xff%\n");
        assert_eq!(encode(Path::new(path)), "a b/ä%ff%25%0a");
        for bad in ["%", "%1", "%FF", "%+f", "%ä"] {
            assert_eq!(decode(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn paths_come_back(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            use std::os::unix::ffi::OsStringExt;
            let path = PathBuf::from(std::ffi::OsString::from_vec(bytes));
            let text = encode(&path);
            prop_assert!(!text.chars().any(char::is_control));
            prop_assert_eq!(decode(&text), Some(path));
        }

        #[test]
        fn never_panics(text in "\\PC{0,20}", near in "[%a-f0-9ä]{0,8}") {
            let _ = (decode(&text), decode(&near));
        }
    }
}
