//! The manifest: `COLD_PATH HOT_PATH` a line, white space between. Blank lines, lines that begin with `#` and further columns
//! are ignored; there is no quoting.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// From 1.
    pub number: usize,
    /// From 1, of the cold path.
    pub column: usize,
    /// What the cold path is below the root; empty for the root itself.
    pub path: PathBuf,
    /// The hot path.
    pub mountpoint: PathBuf,
}

/// What is wrong with a line: its number, the column, a whole sentence.
pub type Wrong = (usize, usize, String);

/// Reads all lines. Cold paths lie below `root`, an absolute path.
pub fn parse(bytes: &[u8], root: &Path) -> (Vec<Line>, Vec<Wrong>) {
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    for (index, line) in bytes.split(|&byte| byte == b'\n').enumerate() {
        let number = index + 1;
        let words = words(line);
        let Some((column, cold)) = words.first().copied().filter(|(_, cold)| !cold.starts_with(b"#")) else { continue };
        let mut complain = |column, text| wrong.push((number, column, text));
        let Some((hot_column, hot)) = words.get(1).copied() else {
            complain(column, "has one column: write COLD_PATH HOT_PATH".into());
            continue;
        };
        let cold = absolute(cold, "cold").map_err(|text| complain(column, text)).ok();
        let hot = absolute(hot, "hot").map_err(|text| complain(hot_column, text)).ok();
        let path = cold.and_then(|cold| {
            let path = cold.strip_prefix(root).map(Path::to_owned);
            let outside =
                || format!("cold path {} does not lie below manifest_root {}", cold.display(), root.display());
            path.map_err(|_| complain(column, outside() + ": mend the line, or manifest_root")).ok()
        });
        if let (Some(path), Some(mountpoint)) = (path, hot) {
            lines.push(Line { number, column, path, mountpoint });
        }
    }
    (lines, wrong)
}

/// Words with their columns.
fn words(line: &[u8]) -> Vec<(usize, &[u8])> {
    let is_blank = |byte: &u8| byte.is_ascii_whitespace() || *byte == b'\x0b';
    let mut words = Vec::new();
    let mut at = 0;
    for word in line.split(is_blank) {
        if !word.is_empty() {
            words.push((at + 1, word));
        }
        at += word.len() + 1;
    }
    words
}

fn absolute(word: &[u8], which: &str) -> Result<PathBuf, String> {
    let path = Path::new(OsStr::from_bytes(word));
    if word.contains(&0) {
        return Err(format!("the {which} path contains a NUL byte: remove it"));
    }
    if !path.is_absolute() {
        return Err(format!("the {which} path {} is not absolute: begin it with /", path.display()));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(format!("the {which} path {} must not contain ..: write the path out", path.display()));
    }
    Ok(path.components().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &str) -> (Vec<(usize, String, String)>, Vec<Wrong>) {
        let (lines, wrong) = parse(text.as_bytes(), Path::new("/srv/box"));
        let shown = |path: &Path| path.display().to_string();
        (lines.iter().map(|line| (line.number, shown(&line.path), shown(&line.mountpoint))).collect(), wrong)
    }

    #[test]
    fn the_format_of_the_field() {
        let (lines, wrong) = read(
            "# cold hot\n\n  # more\n/srv/box/jobs/a\t/hot/a\n  /srv//box/b/./c/  /hot/b/ nofail # x\r\n/srv/box /hot/all",
        );
        assert_eq!(wrong, []);
        let expected = [(4, "jobs/a", "/hot/a"), (5, "b/c", "/hot/b"), (6, "", "/hot/all")];
        assert_eq!(lines, expected.map(|(number, path, hot)| (number, path.to_owned(), hot.to_owned())));
    }

    #[test]
    fn each_wrong_line_is_named() {
        let (lines, wrong) =
            read("/srv/box/a\na /hot\n/srv/box/a hot\n/srv/boxes/a /hot\n\n/srv/box/../a /hot\n x  y\n");
        assert_eq!(lines, []);
        let places: Vec<_> = wrong.iter().map(|(line, column, _)| (*line, *column)).collect();
        assert_eq!(places, [(1, 1), (2, 1), (3, 12), (4, 1), (6, 1), (7, 2), (7, 5)]);
        assert_eq!(wrong[0].2, "has one column: write COLD_PATH HOT_PATH");
        assert!(wrong[3].2.contains("/srv/boxes/a does not lie below manifest_root /srv/box"), "{}", wrong[3].2);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80), near in "[/a.# \t\n]{0,40}") {
            let _ = (parse(&bytes, Path::new("/a")), parse(near.as_bytes(), Path::new("/")));
        }
    }
}
