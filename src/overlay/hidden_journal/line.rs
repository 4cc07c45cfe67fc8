//! One line of the journal: the checksum of the backing and the rest, what happens, a path.
//!
//! ```text
//! 5c1b0f3e + jobs/a/.steadfs-hidden-00000000187b6c2f4d3e1a0000000000
//! 90aa41d7 - jobs/a/.steadfs-hidden-00000000187b6c2f4d3e1a0000000000
//! ```
//!
//! A line that was torn, or is of another backing, has not that checksum. Lines that begin with `#` are for people.

use std::path::{Component, Path};

use super::names::{Change, Names};
use crate::overlay::HIDDEN;
use crate::spool::text;

/// The line of a change, with its end.
pub fn encode(backing: &str, change: &Change) -> String {
    let (sign, path) = match change {
        Change::Add(path) => ('+', path),
        Change::Strike(path) => ('-', path),
    };
    let body = format!("{sign} {}", text::encode(path));
    format!("{:08x} {body}\n", checksum(backing, &body))
}

/// The change that such a line, without its end, tells; `None` if it is not one.
fn decode(backing: &str, line: &str) -> Option<Change> {
    let (sum, body) = line.split_at_checked(8).and_then(|(sum, body)| Some((sum, body.strip_prefix(' ')?)))?;
    if sum != format!("{:08x}", checksum(backing, body)) {
        return None;
    }
    let (sign, path) = body.split_at_checked(2)?;
    let path = text::decode(path).filter(|path| is_ours(path))?;
    match sign {
        "+ " => Some(Change::Add(path)),
        "- " => Some(Change::Strike(path)),
        _ => None,
    }
}

/// What a journal says, and how many of its lines say nothing.
pub fn fold(backing: &str, journal: &[u8]) -> (Names, usize) {
    let (mut names, mut bad) = (Names::default(), 0);
    for line in journal.split(|&byte| byte == b'\n').filter(|line| !line.is_empty() && line[0] != b'#') {
        match std::str::from_utf8(line).ok().and_then(|line| decode(backing, line)) {
            Some(change) => _ = names.apply(&change),
            None => bad += 1,
        }
    }
    (names, bad)
}

/// A whole journal that says this.
pub fn summary(backing: &str, names: &Names) -> String {
    let head = format!("# hidden names of files on {}\n", text::encode(Path::new(backing)));
    names.summary().iter().map(|change| encode(backing, change)).fold(head, |all, line| all + &line)
}

/// Nothing but a hidden name below the root is ever removed.
fn is_ours(path: &Path) -> bool {
    path.components().all(|part| matches!(part, Component::Normal(_)))
        && path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(HIDDEN.as_bytes()))
}

pub(crate) fn checksum(backing: &str, body: &str) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(backing.as_bytes());
    hasher.update(&[0]);
    hasher.update(body.as_bytes());
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn path(directory: &str, tail: &[u8]) -> PathBuf {
        let name = [HIDDEN.as_bytes(), tail].concat();
        Path::new(directory).join(OsString::from_vec(name))
    }

    #[test]
    fn what_is_no_hidden_name_below_the_root_is_not_listed() {
        for bad in
            ["a/b", "/.steadfs-hidden-1", "../.steadfs-hidden-1", "a/../.steadfs-hidden-1", "a/.fuse_hidden1", ""]
        {
            let line = encode("h:", &Change::Add(bad.into()));
            assert_eq!(decode("h:", line.trim_end()), None, "{bad}");
        }
    }

    #[test]
    fn lines_of_another_backing_say_nothing() {
        let line = encode("h:/one", &Change::Add(path("a", b"1")));
        assert!(decode("h:/one", line.trim_end()).is_some());
        assert_eq!(fold("h:/two", line.as_bytes()).0.count(), 0);
    }

    #[test]
    fn a_torn_line_costs_itself_alone() {
        let lines: Vec<_> = [b"1", b"2", b"3"].map(|tail| encode("h:", &Change::Add(path("a", tail)))).into();
        for cut in 0..lines[1].len() {
            let torn = format!("{}{}\n{}", lines[0], &lines[1][..cut], lines[2]);
            let (names, bad) = fold("h:", torn.as_bytes());
            assert_eq!(names.count() + bad, if cut == 0 { 2 } else { 3 }, "{torn}");
            assert!(names.has(path("", b"1").as_os_str()) && names.has(path("", b"3").as_os_str()));
        }
    }

    proptest! {
        #[test]
        fn changes_come_back(
            tail in proptest::collection::vec(any::<u8>().prop_filter("no slash", |b| ![0, b'/'].contains(b)), 0..20),
            directory in "[a-z \n%ä]{1,5}(/[a-z]{1,3}){0,3}",
            add in any::<bool>(),
        ) {
            let path = path(&directory, &tail);
            let change = if add { Change::Add(path) } else { Change::Strike(path) };
            let line = encode("root@h:dir", &change);
            prop_assert_eq!(line.matches('\n').count(), 1);
            prop_assert_eq!(decode("root@h:dir", line.trim_end_matches('\n')), Some(change));
        }

        #[test]
        fn a_line_that_was_altered_says_nothing(at in 0_usize..40, byte in any::<u8>()) {
            let change = Change::Add(path("dir", b"0011"));
            let mut line = encode("h:", &change).into_bytes();
            let at = at.min(line.len() - 2);
            prop_assume!(line[at] != byte && byte != b'\n' && !(at == 0 && byte == b'#'));
            line[at] = byte;
            prop_assert_eq!(fold("h:", &line).1, 1);
        }

        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = fold("h:", &bytes);
        }
    }
}
