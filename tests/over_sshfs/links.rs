//! Hard links that are made through the overlay. Over SFTP a link has a number of its own and st_nlink 1, and what sshfs
//! remembers of it is by name.

use std::fs::{File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::rig::Pair;

/// sshfs remembers for longer than the test takes; above it nothing is remembered, so that each look is one.
const REMEMBERING: &str = "dcache_timeout=600,attr_timeout=602s,entry_timeout=602s";

/// What becomes of a name; the second is another one beside it.
type Way = fn(&Path, &Path);

/// The same file by all of its names, and all that is known of it.
fn one_file(names: &[&Path], links: u64, content: &str, what: &str) {
    let found: Vec<_> = names.iter().map(|name| name.metadata().unwrap()).collect();
    for (name, meta) in names.iter().zip(&found) {
        let name = name.file_name().unwrap();
        assert_eq!((meta.dev(), meta.ino()), (found[0].dev(), found[0].ino()), "{what}: {name:?}");
        assert_eq!(meta.nlink(), links, "{what}: links of {name:?}");
        assert_eq!(meta.len(), content.len() as u64, "{what}: size of {name:?}");
        assert_eq!((meta.mode(), meta.mtime()), (found[0].mode(), found[0].mtime()), "{what}: {name:?}");
    }
    for name in names {
        assert_eq!(std::fs::read_to_string(name).unwrap(), content, "{what}: {:?}", name.file_name());
    }
    // Listed.
    let directory = names[0].parent().unwrap();
    let listed = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    let mut listed: Vec<_> = listed.filter(|entry| names.contains(&entry.path().as_path())).collect();
    listed.sort_by_key(std::fs::DirEntry::path);
    for entry in &listed {
        let meta = entry.metadata().unwrap();
        assert_eq!((meta.len(), meta.nlink()), (content.len() as u64, links), "{what}: {entry:?} as listed");
    }
    assert_eq!(listed.len(), names.len(), "{what}: {listed:?}");
}

fn names(pair: &Pair, directory: &str) -> (PathBuf, PathBuf) {
    std::fs::create_dir(pair.hot.join(directory)).unwrap();
    (pair.hot.join(directory).join("a"), pair.hot.join(directory).join("b"))
}

fn append(path: &Path) -> File {
    OpenOptions::new().append(true).open(path).unwrap()
}

#[test]
fn links_made_here_are_one_file_over_sshfs() {
    let pair = Pair::new(REMEMBERING);
    let (a, b) = names(&pair, "d");
    let both = [a.as_path(), b.as_path()];
    let mut content = "made".to_owned();
    std::fs::write(&a, &content).unwrap();
    one_file(&[&a], 1, &content, "made");
    std::fs::hard_link(&a, &b).unwrap();
    one_file(&both, 2, &content, "linked");
    // By each name, open and closed.
    for (number, name) in both.into_iter().cycle().take(4).enumerate() {
        let mut file = append(name);
        for _ in 0..2 {
            let word = format!(" {number}");
            file.write_all(word.as_bytes()).unwrap();
            content.push_str(&word);
            one_file(&both, 2, &content, "written, and open");
        }
        drop(file);
        one_file(&both, 2, &content, "closed");
    }
    for (length, name) in [(9, &a), (6, &b), (3, &a)] {
        OpenOptions::new().write(true).open(name).unwrap().set_len(length).unwrap();
        content.truncate(length as usize);
        one_file(&both, 2, &content, "cut");
    }
    for (mode, set, seen) in [(0o600, &a, &b), (0o640, &b, &a)] {
        std::fs::set_permissions(set, Permissions::from_mode(mode)).unwrap();
        assert_eq!(seen.metadata().unwrap().mode() & 0o777, mode);
    }
    // Through whatever dies, with and without a descriptor.
    let mut file = append(&b);
    let mut deaths: [(&str, &dyn Fn()); 3] = [
        ("the sshfs was killed", &|| pair.kill_sshfs()),
        ("the daemon was killed", &|| pair.kill_daemon()),
        ("the kernel forgot what nobody holds", &|| pair.drop_caches()),
    ];
    for (what, death) in &mut deaths {
        death();
        one_file(&both, 2, &content, what);
        file.write_all(b"+").unwrap();
        content.push('+');
        one_file(&both, 2, &content, &format!("{what}, and it was written to"));
    }
    drop(file);
    for (what, death) in &mut deaths[..2] {
        death();
        one_file(&both, 2, &content, &format!("closed, and {what}"));
    }
    assert_eq!(std::fs::read_to_string(pair.stored("d/a")).unwrap(), content);
    assert_eq!(pair.stored("d/b").metadata().unwrap().nlink(), 2);
    pair.end();
}

#[test]
fn a_link_is_known_when_the_name_that_was_written_by_has_gone() {
    let pair = Pair::new(REMEMBERING);
    let ways: [(&str, Way); 4] = [
        ("unlinked", |a, _| std::fs::remove_file(a).unwrap()),
        ("renamed", |a, away| std::fs::rename(a, away.with_file_name("c")).unwrap()),
        ("renamed over", |a, away| {
            std::fs::write(away, "another").unwrap();
            std::fs::rename(away, a).unwrap();
        }),
        ("unlinked while open, then closed", |a, _| {
            let mut file = append(a);
            std::fs::remove_file(a).unwrap();
            file.write_all(b"!").unwrap();
        }),
    ];
    for (what, way) in ways {
        let (a, b) = names(&pair, &what.replace(' ', "-"));
        std::fs::write(&a, "made").unwrap();
        std::fs::hard_link(&a, &b).unwrap();
        one_file(&[&a, &b], 2, "made", what);
        let mut file = append(&a);
        file.write_all(b" and written").unwrap();
        drop(file);
        way(&a, &a.with_file_name("x"));
        let c = a.with_file_name("c");
        match what {
            "renamed" => one_file(&[&b, &c], 2, "made and written", what),
            "unlinked while open, then closed" => one_file(&[&b], 1, "made and written!", what),
            _ => one_file(&[&b], 1, "made and written", what),
        }
        // What comes after is known too.
        append(&b).write_all(b".").unwrap();
        let end = if what.contains("open") { "made and written!." } else { "made and written." };
        one_file(&[&b], if what == "renamed" { 2 } else { 1 }, end, what);
        std::fs::set_permissions(&b, Permissions::from_mode(0o604)).unwrap();
        assert_eq!(b.metadata().unwrap().mode() & 0o777, 0o604, "{what}");
    }
    pair.end();
}

#[test]
fn a_file_that_was_written_published_by_a_link_and_renamed_is_whole() {
    // As a crawler does it: a temporary file, a link to its place, the temporary directory removed.
    let pair = Pair::new("");
    let (temporary, place) = (pair.hot.join(".tmp"), pair.hot.join("warcs"));
    for directory in [&temporary, &place] {
        std::fs::create_dir(directory).unwrap();
    }
    for number in 0..8 {
        let (from, to) = (temporary.join("part"), place.join(format!("warc-{number}")));
        let mut file = File::create(&from).unwrap();
        let mut written = String::new();
        for piece in 0..20 {
            let line = format!("{number} {piece}\n");
            file.write_all(line.as_bytes()).unwrap();
            written.push_str(&line);
            if piece == 10 {
                std::fs::hard_link(&from, &to).unwrap();
            }
        }
        one_file(&[&to], 2, &written, "linked while it is written");
        drop(file);
        let (first, second) = (from.metadata().unwrap(), to.metadata().unwrap());
        assert_eq!((first.dev(), first.ino()), (second.dev(), second.ino()));
        std::fs::remove_file(&from).unwrap();
        one_file(&[&to], 1, &written, "published");
    }
    std::fs::remove_dir_all(&temporary).unwrap();
    pair.end();
}
