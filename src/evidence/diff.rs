//! What two bundles differ in: counts that tell at a glance, then each file as a unified diff.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use similar::{Algorithm, TextDiff};

use crate::backing::mountinfo;

/// Most bytes of a file that are compared.
const COMPARED: u64 = 4 << 20;
/// How long the comparison may take to be a short one; after that it is a longer one.
const PATIENCE: Duration = Duration::from_secs(10);
/// How a dead mount is told of in logs, in small letters.
const DEAD: [&str; 4] = ["transport endpoint is not connected", "[errno 107]", "errno=107", "enotconn"];

/// The files of a bundle by their names.
pub type Files = BTreeMap<String, String>;

/// One side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Side {
    /// Lines that tell of errno 107, by which a dead mount is known.
    pub errno_107_lines: usize,
    /// FUSE mounts.
    pub fuse_mounts: usize,
}

/// One file that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileDiff {
    /// Its name.
    pub file: String,
    /// `a`, `b` or `both`: where it is.
    pub is_in: &'static str,
    /// Lines that only the second has.
    pub added: usize,
    /// Lines that only the first has.
    pub removed: usize,
    /// The unified diff.
    pub diff: String,
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Comparison {
    /// The first bundle.
    pub a: Side,
    /// The second.
    pub b: Side,
    /// What differs, by name.
    pub files: Vec<FileDiff>,
}

/// Reads the plain files of a bundle, of this program or another that makes such directories.
pub fn read(directory: &Path) -> io::Result<Files> {
    let mut files = Files::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let mut text = Vec::new();
            std::fs::File::open(entry.path())?.take(COMPARED).read_to_end(&mut text)?;
            files.insert(entry.file_name().to_string_lossy().into_owned(), String::from_utf8_lossy(&text).into_owned());
        }
    }
    Ok(files)
}

/// Compares.
pub fn compare(a: &Files, b: &Files) -> Comparison {
    let until = Instant::now() + PATIENCE;
    let mut names: Vec<&String> = a.keys().chain(b.keys()).collect();
    names.sort();
    names.dedup();
    let differ = |name: &String| {
        let (old, new) = (a.get(name), b.get(name));
        if old == new {
            return None;
        }
        let is_in = match (old, new) {
            (Some(_), Some(_)) => "both",
            (Some(_), None) => "a",
            _ => "b",
        };
        let text = |file: Option<&'_ String>| file.cloned().unwrap_or_default();
        let (old, new) = (text(old), text(new));
        let mut config = TextDiff::configure();
        let diff = config.algorithm(Algorithm::Myers).deadline(until).diff_lines(&old, &new);
        let count = |tag| diff.iter_all_changes().filter(|change| change.tag() == tag).count();
        let (added, removed) = (count(similar::ChangeTag::Insert), count(similar::ChangeTag::Delete));
        let head = |side: &str, here: bool| if here { format!("{side}/{name}") } else { "/dev/null".into() };
        let mut unified = diff.unified_diff();
        let unified = unified.context_radius(3).header(&head("a", is_in != "b"), &head("b", is_in != "a")).to_string();
        Some(FileDiff { file: name.clone(), is_in, added, removed, diff: unified })
    };
    Comparison { a: side(a), b: side(b), files: names.into_iter().filter_map(differ).collect() }
}

fn side(files: &Files) -> Side {
    let lines = files.values().flat_map(|text| text.lines());
    let dead = lines.filter(|line| {
        let line = line.to_ascii_lowercase();
        DEAD.iter().any(|word| line.contains(word))
    });
    Side { errno_107_lines: dead.count(), fuse_mounts: fuse_mounts(files) }
}

/// By the kernel's table if there is one, or else by what mount(8) says.
fn fuse_mounts(files: &Files) -> usize {
    if let Some(text) = files.get("mountinfo.txt") {
        return mountinfo::parse(text.as_bytes()).iter().filter(|entry| entry.is_fuse()).count();
    }
    let text = files.get("mount.txt").map_or("", String::as_str);
    let is_fuse = |line: &&str| {
        let kind = line.split(" type ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap_or_default();
        kind == "fuse" || kind == "fuseblk" || kind.starts_with("fuse.")
    };
    text.lines().filter(is_fuse).count()
}

impl Comparison {
    /// For people.
    pub fn text(&self, a: &Path, b: &Path) -> String {
        let mut text = format!("a: {}\nb: {}\n\n", a.display(), b.display());
        text.push_str(&format!("{:<18} {:>8} {:>8}\n", "", "a", "b"));
        for (name, a, b) in [
            ("errno 107 lines", self.a.errno_107_lines, self.b.errno_107_lines),
            ("fuse mounts", self.a.fuse_mounts, self.b.fuse_mounts),
        ] {
            text.push_str(&format!("{name:<18} {a:>8} {b:>8}\n"));
        }
        text.push_str(&format!("{:<18} {:>8}\n\n", "files that differ", self.files.len()));
        for file in &self.files {
            text.push_str(&file.diff);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Files {
        list.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn counts_come_first_and_then_each_file_that_differs() {
        let a = files(&[
            ("same.txt", "x\n"),
            ("path.txt", "$ look\n  stat: [errno 107] Transport endpoint is not connected\n  [Errno 107]\n"),
            ("mountinfo.txt", "$ cat\n31 30 0:26 / /srv rw - fuse.sshfs u@h:/a rw\n33 22 0:28 / /x rw - tmpfs t rw\n"),
            ("gone.txt", "1\n"),
        ]);
        let b = files(&[("same.txt", "x\n"), ("path.txt", "$ look\n  stat: fine\n"), ("new.txt", "2\n")]);
        let found = compare(&a, &b);
        assert_eq!(found.a, Side { errno_107_lines: 2, fuse_mounts: 1 });
        assert_eq!(found.b, Side { errno_107_lines: 0, fuse_mounts: 0 });
        let list: Vec<_> = found.files.iter().map(|f| (f.file.as_str(), f.is_in, f.added, f.removed)).collect();
        assert_eq!(
            list,
            [("gone.txt", "a", 0, 1), ("mountinfo.txt", "a", 0, 3), ("new.txt", "b", 1, 0), ("path.txt", "both", 1, 2)]
        );
        let text = found.text(Path::new("/a"), Path::new("/b"));
        assert!(text.contains("errno 107 lines           2        0"), "{text}");
        assert!(text.contains("--- a/path.txt\n+++ b/path.txt\n@@ "), "{text}");
        assert!(text.contains("--- a/gone.txt\n+++ /dev/null\n"), "{text}");
    }

    #[test]
    fn bundles_of_other_programs_are_counted_by_what_mount_says() {
        let text = "u@h:/a on /srv type fuse.sshfs (rw)\nnone on /x type tmpfs (rw)\n/dev/a on /y type fuseblk (rw)\n";
        assert_eq!(side(&files(&[("mount.txt", text)])).fuse_mounts, 2);
    }

    #[test]
    fn of_a_bundle_only_plain_files_are_read() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("f"), [b'a', 0xff]).expect("written");
        std::fs::create_dir(directory.path().join("d")).expect("made");
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("l")).expect("linked");
        assert_eq!(read(directory.path()).expect("read"), files(&[("f", "a\u{fffd}")]));
        assert!(read(Path::new("/nonexistent")).is_err());
    }
}
