use std::path::Path;
use std::time::{Duration, SystemTime};

use super::*;

fn attr(kind: FileKind, ino: u64) -> Attr {
    Attr {
        identity: (1, ino),
        kind,
        perm: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        size: 0,
        blocks: 0,
        block_size: 4096,
        atime: SystemTime::UNIX_EPOCH,
        mtime: SystemTime::UNIX_EPOCH,
        ctime: SystemTime::UNIX_EPOCH,
    }
}

fn dir(nodes: &Nodes, parent: u64, name: &str) -> u64 {
    nodes.remember(parent, OsStr::new(name), &attr(FileKind::Directory, 0))
}

fn file(nodes: &Nodes, parent: u64, name: &str, ino: u64) -> u64 {
    nodes.remember(parent, OsStr::new(name), &attr(FileKind::Regular, ino))
}

fn path(nodes: &Nodes, node: u64) -> OpResult<PathBuf> {
    nodes.path(node).map(|(path, _)| path)
}

fn rename(nodes: &Nodes, from: (u64, &str), to: (u64, &str), exchange: bool) {
    nodes.rename((from.0, from.1.into()), (to.0, to.1.into())).done(exchange);
}

#[test]
fn a_rename_takes_everything_below_along() {
    let nodes = Nodes::new(false);
    let (a, b) = (dir(&nodes, ROOT, "a"), dir(&nodes, ROOT, "b"));
    let f = file(&nodes, a, "f", 1);
    rename(&nodes, (ROOT, "a"), (b, "c"), false);
    assert_eq!(path(&nodes, f), Ok("b/c/f".into()));
    assert_eq!(nodes.remember(b, OsStr::new("c"), &attr(FileKind::Directory, 0)), a, "the node stays the same");
}

#[test]
fn a_file_that_was_renamed_over_has_no_path() {
    let nodes = Nodes::new(false);
    let (f, g) = (file(&nodes, ROOT, "f", 1), file(&nodes, ROOT, "g", 2));
    rename(&nodes, (ROOT, "f"), (ROOT, "g"), false);
    assert_eq!((path(&nodes, f), path(&nodes, g)), (Ok("g".into()), Err(Errno::ESTALE)));
}

#[test]
fn an_exchange_swaps() {
    let nodes = Nodes::new(false);
    let (f, g) = (file(&nodes, ROOT, "f", 1), file(&nodes, ROOT, "g", 2));
    rename(&nodes, (ROOT, "f"), (ROOT, "g"), true);
    assert_eq!((path(&nodes, f), path(&nodes, g)), (Ok("g".into()), Ok("f".into())));
}

#[test]
fn hard_links_share_a_node_where_inodes_are_stable_and_where_they_were_made_here() {
    let stable = Nodes::new(true);
    assert_eq!(file(&stable, ROOT, "f", 7), file(&stable, ROOT, "g", 7));
    assert_ne!(file(&stable, ROOT, "h", 8), file(&stable, ROOT, "g", 7));
    let unstable = Nodes::new(false);
    let f = file(&unstable, ROOT, "f", 7);
    assert_ne!(f, file(&unstable, ROOT, "g", 7));
    unstable.remember_link(f, ROOT, OsStr::new("l"));
    assert_eq!(file(&unstable, ROOT, "l", 9), f);
    unstable.removed(ROOT, OsStr::new("f"));
    assert_eq!(path(&unstable, f), Ok("l".into()));
}

#[test]
fn a_name_that_became_another_kind_of_file_gets_another_node() {
    let nodes = Nodes::new(false);
    let f = file(&nodes, ROOT, "x", 1);
    nodes.opened(f);
    let d = dir(&nodes, ROOT, "x");
    assert_ne!(f, d);
    assert_eq!(path(&nodes, f), Err(Errno::ESTALE));
}

#[test]
fn what_nobody_holds_is_dropped_with_what_it_held() {
    let nodes = Nodes::new(true);
    let d = dir(&nodes, ROOT, "d");
    let f = file(&nodes, d, "f", 3);
    nodes.opened(f);
    nodes.forget(d, 1);
    nodes.forget(f, 1);
    assert_eq!(path(&nodes, f), Ok("d/f".into()), "an open file keeps its path");
    assert!(nodes.closed(f));
    assert_eq!(nodes.count(), 1);
    assert!(nodes.table.lock().by_name.is_empty() && nodes.table.lock().by_identity.is_empty());
}

#[test]
fn a_path_taken_before_a_rename_is_found_to_be_old() {
    let nodes = Nodes::new(false);
    file(&nodes, ROOT, "f", 1);
    let (_, stamp) = nodes.path(ROOT).expect("the root has a path");
    let soon = Instant::now() + Duration::from_secs(5);
    assert!(!nodes.has_moved_since(stamp, soon));
    rename(&nodes, (ROOT, "f"), (ROOT, "g"), false);
    assert!(nodes.has_moved_since(stamp, soon));
    let (_, stamp) = nodes.path(ROOT).expect("the root has a path");
    drop(nodes.rename((ROOT, "g".into()), (ROOT, "h".into())));
    assert!(!nodes.has_moved_since(stamp, soon), "a rename that failed moved nothing");
    assert_eq!(nodes.path_of(ROOT, OsStr::new("g")).map(|(path, _)| path).as_deref(), Ok(Path::new("g")));
}
