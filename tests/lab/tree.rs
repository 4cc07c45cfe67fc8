//! What a directory tree holds, in words that can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Times before this are none that a clock has given: somebody has set them.
const SET_ON_PURPOSE: i64 = 1_000_000_000;

/// Names below a directory and what is behind each.
pub type Tree = BTreeMap<PathBuf, String>;

/// Looks at a tree.
pub fn of(root: &Path) -> Tree {
    let mut tree = Tree::new();
    add(root, Path::new(""), &mut tree);
    tree
}

/// Files below a directory whose name has that in it, sorted. What vanishes while it is looked at is none.
pub fn named_below(directory: &Path, part: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(named_below(&entry.path(), part));
        } else if entry.file_name().to_string_lossy().contains(part) {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

fn add(root: &Path, directory: &Path, tree: &mut Tree) {
    for entry in std::fs::read_dir(root.join(directory)).unwrap().map(Result::unwrap) {
        let path = directory.join(entry.file_name());
        tree.insert(path.clone(), describe(&root.join(&path)));
        if entry.file_type().unwrap().is_dir() {
            add(root, &path, tree);
        }
    }
}

fn describe(path: &Path) -> String {
    let found = std::fs::symlink_metadata(path).unwrap();
    let (mode, kind) = (found.permissions().mode() & 0o7777, found.file_type());
    let mut text = if kind.is_symlink() {
        format!("symlink to {}", std::fs::read_link(path).unwrap().display())
    } else if kind.is_dir() {
        format!("directory {mode:04o}")
    } else if kind.is_file() {
        let data = std::fs::read(path).unwrap();
        let mut hasher = DefaultHasher::new();
        data.hash(&mut hasher);
        let links = found.nlink();
        format!("file {mode:04o}, {links} links, {} bytes that make {:016x}", data.len(), hasher.finish())
    } else if kind.is_fifo() {
        format!("fifo {mode:04o}")
    } else {
        format!("{kind:?} {mode:04o}")
    };
    if found.mtime() < SET_ON_PURPOSE {
        text += &format!(", of {}", found.mtime());
    }
    text
}

/// One line for each name that is not the same in both.
pub fn differences(wanted: &Tree, found: &Tree) -> Vec<String> {
    let names: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
    let word = |tree: &Tree, name: &Path| tree.get(name).cloned().unwrap_or_else(|| "nothing".into());
    let differing = names.into_iter().filter(|name| wanted.get(*name) != found.get(*name));
    differing
        .map(|name| format!("{}: {} instead of {}", name.display(), word(found, name), word(wanted, name)))
        .collect()
}
