use std::time::{Duration, SystemTime};

use nix::errno::Errno;

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
    nodes.remember(parent, OsStr::new(name), &attr(FileKind::Directory, 0), 0)
}

fn file(nodes: &Nodes, parent: u64, name: &str, ino: u64) -> u64 {
    nodes.remember(parent, OsStr::new(name), &attr(FileKind::Regular, ino), 0)
}

fn path(nodes: &Nodes, node: u64) -> OpResult<PathBuf> {
    nodes.path(node).map(|(path, _)| path)
}

fn rename(nodes: &Nodes, from: (u64, &str), to: (u64, &str), exchange: bool) {
    nodes.rename((from.0, from.1.into()), (to.0, to.1.into())).done(exchange);
}

#[test]
fn a_rename_takes_everything_below_along() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let (a, b) = (dir(&nodes, ROOT, "a"), dir(&nodes, ROOT, "b"));
    let f = file(&nodes, a, "f", 1);
    rename(&nodes, (ROOT, "a"), (b, "c"), false);
    assert_eq!(path(&nodes, f), Ok("b/c/f".into()));
    assert_eq!(nodes.remember(b, OsStr::new("c"), &attr(FileKind::Directory, 0), 0), a, "the node stays the same");
}

#[test]
fn a_file_that_was_renamed_over_has_no_path() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let (f, g) = (file(&nodes, ROOT, "f", 1), file(&nodes, ROOT, "g", 2));
    rename(&nodes, (ROOT, "f"), (ROOT, "g"), false);
    assert_eq!((path(&nodes, f), path(&nodes, g)), (Ok("g".into()), Err(Errno::ENOENT)));
}

#[test]
fn an_exchange_swaps() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let (f, g) = (file(&nodes, ROOT, "f", 1), file(&nodes, ROOT, "g", 2));
    rename(&nodes, (ROOT, "f"), (ROOT, "g"), true);
    assert_eq!((path(&nodes, f), path(&nodes, g)), (Ok("g".into()), Ok("f".into())));
}

#[test]
fn hard_links_share_a_node_where_inodes_are_stable_and_where_they_were_made_here() {
    let stable = Nodes::new(true, PathBuf::new(), Notes::nowhere());
    assert_eq!(file(&stable, ROOT, "f", 7), file(&stable, ROOT, "g", 7));
    assert_ne!(file(&stable, ROOT, "h", 8), file(&stable, ROOT, "g", 7));
    let unstable = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let f = file(&unstable, ROOT, "f", 7);
    assert_ne!(f, file(&unstable, ROOT, "g", 7));
    unstable.remember_link(f, ROOT, OsStr::new("l"), 0);
    assert_eq!(file(&unstable, ROOT, "l", 9), f);
    unstable.removed(ROOT, OsStr::new("f"));
    assert_eq!(path(&unstable, f), Ok("l".into()));
}

#[test]
fn the_name_by_which_a_file_was_changed_leads_until_nobody_remembers_otherwise() {
    let long = Duration::from_secs(3600);
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere()).remembering(long);
    let (f, b) = (file(&nodes, ROOT, "a", 1), OsStr::new("b"));
    nodes.remember_link(f, ROOT, b, 0);
    file(&nodes, ROOT, "b", 2);
    assert_eq!(path(&nodes, f), Ok("b".into()), "unchanged, by the name that was seen last");
    nodes.changed(f);
    file(&nodes, ROOT, "a", 1);
    assert_eq!(path(&nodes, f), Ok("b".into()));
    assert_eq!((nodes.led_elsewhere(ROOT, OsStr::new("a")), nodes.led_elsewhere(ROOT, b)), (Some(f), None));
    rename(&nodes, (ROOT, "b"), (ROOT, "z"), false);
    assert_eq!((path(&nodes, f), nodes.led_by(ROOT, OsStr::new("z"))), (Ok("z".into()), Some(f)), "renamed");
    nodes.removed(ROOT, OsStr::new("z"));
    let last = Attr { size: 7, ..attr(FileKind::Regular, 1) };
    nodes.keep(f, last);
    assert_eq!((path(&nodes, f), nodes.kept(f)), (Ok("a".into()), Some(last)));
    nodes.changed(f);
    assert_eq!(nodes.kept(f), None, "what is done by the name that is left is known by that");

    let forgetful = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let f = file(&forgetful, ROOT, "a", 1);
    forgetful.remember_link(f, ROOT, b, 0);
    forgetful.changed(f);
    assert_eq!(forgetful.led_elsewhere(ROOT, b), None, "nothing is remembered");
    forgetful.opened(f);
    assert_eq!(forgetful.led_elsewhere(ROOT, b), Some(f), "one more change may come at any moment");
}

#[test]
fn numbers_that_are_made_up_anew_mix_no_files() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let (f, g) = (file(&nodes, ROOT, "f", 1), file(&nodes, ROOT, "g", 2));
    // As after a new mount.
    assert_eq!((file(&nodes, ROOT, "g", 1), file(&nodes, ROOT, "f", 2)), (g, f));
    assert!(![f, g].contains(&file(&nodes, ROOT, "h", 1)));
}

#[test]
fn a_name_that_became_another_kind_of_file_gets_another_node() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let f = file(&nodes, ROOT, "x", 1);
    nodes.opened(f);
    let d = dir(&nodes, ROOT, "x");
    assert_ne!(f, d);
    assert_eq!(path(&nodes, f), Err(Errno::ENOENT));
}

#[test]
fn what_nobody_holds_is_dropped_with_what_it_held() {
    let nodes = Nodes::new(true, PathBuf::new(), Notes::nowhere());
    let d = dir(&nodes, ROOT, "d");
    let f = file(&nodes, d, "f", 3);
    nodes.opened(f);
    nodes.forget(d, 1);
    nodes.forget(f, 1);
    assert_eq!(path(&nodes, f), Ok("d/f".into()), "an open file keeps its path");
    assert!(nodes.closing(f));
    assert_eq!(path(&nodes, f), Ok("d/f".into()), "and goes on having it while it is closed");
    nodes.closed(f);
    assert_eq!(nodes.count(), 1);
    assert!(nodes.table.lock().by_name.is_empty() && nodes.table.lock().by_identity.is_empty());
}

#[test]
fn a_path_taken_before_a_rename_is_found_to_be_old() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let (a, b) = (dir(&nodes, ROOT, "a"), dir(&nodes, ROOT, "b"));
    let f = file(&nodes, a, "f", 1);
    let (_, stamp) = nodes.path(f).expect("it has a path");
    let soon = Instant::now() + Duration::from_secs(5);
    assert!(!nodes.has_moved_since(stamp, &[f], soon));
    rename(&nodes, (ROOT, "b"), (ROOT, "z"), false);
    assert!(!nodes.has_moved_since(stamp, &[f, ROOT], soon), "another directory is nobody's business");
    assert!(nodes.has_moved_since(stamp, &[b], soon));
    rename(&nodes, (ROOT, "a"), (ROOT, "c"), false);
    rename(&nodes, (ROOT, "c"), (ROOT, "a"), false);
    assert!(nodes.has_moved_since(stamp, &[f], soon), "there and back");
    rename(&nodes, (a, "f"), (ROOT, "g"), false);
    let (_, stamp) = nodes.path(f).expect("it has a path");
    drop(nodes.rename((ROOT, "g".into()), (ROOT, "h".into())));
    assert!(!nodes.has_moved_since(stamp, &[f], soon), "a rename that failed moved nothing");
    assert_eq!(nodes.path_of(ROOT, OsStr::new("g")).map(|(path, _)| path).as_deref(), Ok(Path::new("g")));
}

#[test]
fn only_a_rename_above_is_waited_for_and_not_for_ever() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let (a, b) = (dir(&nodes, ROOT, "a"), dir(&nodes, ROOT, "b"));
    let (_, stamp) = nodes.path(a).expect("it has a path");
    let renaming = nodes.rename((ROOT, "a".into()), (ROOT, "c".into()));
    let long = Instant::now() + Duration::from_secs(60);
    assert!(!nodes.has_moved_since(stamp, &[b], long), "another directory's rename is nobody's business");
    assert!(!nodes.has_moved_since(stamp, &[a], Instant::now() + Duration::from_millis(20)));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| nodes.has_moved_since(stamp, &[b, a], long));
        std::thread::sleep(Duration::from_millis(20));
        renaming.done(false);
        assert!(waiting.join().expect("it ends"));
    });
}

#[test]
fn a_directory_that_only_a_second_name_kept_is_dropped_with_it() {
    let nodes = Nodes::new(true, PathBuf::new(), Notes::nowhere());
    let (a, b) = (dir(&nodes, ROOT, "a"), dir(&nodes, ROOT, "b"));
    let f = file(&nodes, a, "f", 7);
    assert_eq!(file(&nodes, b, "g", 7), f);
    nodes.forget(a, 1);
    nodes.forget(b, 1);
    nodes.forget(f, 2);
    assert_eq!(nodes.count(), 1);
}

#[test]
fn what_was_done_to_a_file_that_took_the_place_is_told_apart() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let (d, f) = (dir(&nodes, ROOT, "d"), file(&nodes, ROOT, "f", 1));
    let soon = Instant::now() + Duration::from_secs(5);
    let (path, stamp) = nodes.path(f).expect("it has a path");
    nodes.remember_link(f, d, OsStr::new("l"), 0);
    rename(&nodes, (ROOT, "d"), (ROOT, "e"), false);
    assert!(nodes.was_at(f, &path, stamp, soon), "the name is still its own");
    let other = file(&nodes, ROOT, "other", 2);
    let renaming = nodes.rename((ROOT, "other".into()), (ROOT, "f".into()));
    assert!(nodes.was_at(other, Path::new("other"), stamp, soon), "who is renamed himself was where he was");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| nodes.was_at(f, &path, stamp, soon));
        std::thread::sleep(Duration::from_millis(20));
        renaming.done(false);
        assert!(!waiting.join().expect("it ends"), "it may have been the other file");
    });
    let (path, stamp) = nodes.path(other).expect("it has a path");
    nodes.removed(ROOT, OsStr::new("f"));
    assert!(!nodes.was_at(other, &path, stamp, soon), "nor is it told apart from one that comes after it");
}

#[test]
fn a_dead_name_gives_way_to_the_others() {
    let nodes = Nodes::new(true, PathBuf::new(), Notes::nowhere());
    let d = dir(&nodes, ROOT, "d");
    let f = file(&nodes, ROOT, "f", 7);
    assert_eq!(file(&nodes, d, "l", 7), f);
    assert_eq!(path(&nodes, f), Ok("d/l".into()), "the name that was seen last");
    assert_eq!(file(&nodes, ROOT, "f", 7), f);
    let (first, stamp) = nodes.path(f).expect("it has a path");
    assert_eq!(first, Path::new("f"));
    assert!(!nodes.not_found_at(d, Path::new("d"), stamp), "the only name is kept");
    assert!(nodes.not_found_at(f, &first, stamp));
    let (second, stamp) = nodes.path(f).expect("it has a path");
    assert_eq!(second, Path::new("d/l"));
    assert_eq!(nodes.node(ROOT, OsStr::new("f")), None);
    assert!(!nodes.not_found_at(f, &second, stamp));
}

#[test]
fn what_is_made_is_never_an_old_node() {
    for stable in [false, true] {
        let nodes = Nodes::new(stable, PathBuf::new(), Notes::nowhere());
        let old = file(&nodes, ROOT, "f", 7);
        nodes.opened(old);
        // Removed behind our back, and the number given to the new one.
        nodes.made(ROOT, OsStr::new("f"), &attr(FileKind::Regular, 7));
        let looked_up = file(&nodes, ROOT, "f", 7);
        assert_ne!(looked_up, old);
        assert_eq!(file(&nodes, ROOT, "f", 7), looked_up, "who looks it up before the reply gets the same");
        assert_eq!(path(&nodes, old), Err(Errno::ENOENT));
    }
}

#[test]
fn a_name_that_is_missed_is_lost_unless_it_came_anew() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    let name = OsStr::new("f");
    let old = file(&nodes, ROOT, "f", 1);
    nodes.opened(old);
    let known = nodes.known(ROOT, name);
    let renaming = nodes.rename((ROOT, "f".into()), (ROOT, "hidden".into()));
    nodes.missed(ROOT, name, &known);
    assert_eq!(nodes.node(ROOT, name), Some(old), "it is only being renamed");
    drop(renaming);
    nodes.missed(ROOT, name, &known);
    assert_eq!(nodes.node(ROOT, name), None);
    let known = nodes.known(ROOT, name);
    let new = file(&nodes, ROOT, "f", 2);
    assert_ne!(new, old);
    nodes.missed(ROOT, name, &known);
    let known = nodes.known(ROOT, name);
    rename(&nodes, (ROOT, "f"), (ROOT, "g"), false);
    rename(&nodes, (ROOT, "g"), (ROOT, "f"), false);
    nodes.missed(ROOT, name, &known);
    assert_eq!(path(&nodes, new), Ok("f".into()), "it was away only for a moment");
}

#[test]
fn a_node_has_the_backings_number_as_long_as_no_other_has_it() {
    let nodes = Nodes::new(true, PathBuf::new(), Notes::nowhere());
    let d = nodes.remember(ROOT, OsStr::new("d"), &attr(FileKind::Directory, 12), 0);
    let old = file(&nodes, d, "f", 13);
    assert_eq!((d, old), (12, 13));
    for (name, ino) in [("zero", 0), ("the root's", ROOT), ("of our own", OWN + 1), ("the highest", u64::MAX)] {
        assert!(file(&nodes, ROOT, name, ino) > OWN, "{name}");
    }
    // It was removed, and its number given to another one before the kernel has forgotten it.
    nodes.removed(d, OsStr::new("f"));
    assert_eq!(nodes.number(ROOT, OsStr::new("unknown"), 13), None);
    nodes.made(d, OsStr::new("g"), &attr(FileKind::Regular, 13));
    let new = file(&nodes, d, "g", 13);
    assert!(new > OWN);
    assert_eq!((file(&nodes, d, "g", 13), file(&nodes, d, "its link", 13)), (new, new));
    assert_eq!(nodes.number(d, OsStr::new("g"), 13), Some(new));
    assert_eq!(nodes.number(d, OsStr::new("another link"), 13), Some(new));
    let life = nodes.life(old);
    nodes.forget(old, 1);
    assert_eq!(file(&nodes, d, "g", 13), new, "it has this number for as long as the kernel knows it");
    nodes.forget(new, 4);
    assert_eq!(nodes.number(d, OsStr::new("g"), 13), Some(13));
    assert_eq!(file(&nodes, d, "g", 13), 13);
    assert_ne!(nodes.life(13), life);
    // A filesystem that is mounted below.
    let other = Attr { identity: (2, 13), ..attr(FileKind::Regular, 13) };
    assert!(nodes.remember(d, OsStr::new("other"), &other, 0) > OWN);
}

#[test]
fn numbers_of_no_meaning_are_no_ids() {
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    assert_eq!((file(&nodes, ROOT, "f", 77), file(&nodes, ROOT, "g", 78)), (2, 3));
    assert_eq!(nodes.number(ROOT, OsStr::new("h"), 79), None);
    assert_eq!((nodes.number(ROOT, OsStr::new("g"), 79), nodes.life(3)), (Some(3), 0));
}

/// The picture that such nodes come to.
fn picture(nodes: &[(u64, u64)]) -> Picture {
    let mut picture = Picture::default();
    for &(node, ino) in nodes {
        let name = format!("n{node}");
        let names = vec![item::Name::new(ROOT, name.as_bytes()).into_owned()];
        let (kind, identity) = (FileKind::Regular, (1, ino));
        picture.apply(Item::Node { node, life: 5, kind, identity, lookups: 1, by: (0, 0), names });
    }
    picture
}

#[test]
fn a_successor_gives_no_number_that_the_kernel_may_still_hold() {
    let successor = |before: &[(u64, u64)]| {
        let nodes = Nodes::new(true, PathBuf::new(), Notes::nowhere());
        nodes.resume(&picture(before));
        nodes
    };
    let nodes = successor(&[(13, 13), (OWN + 7, 14)]);
    assert_eq!((file(&nodes, ROOT, "n13", 13), file(&nodes, ROOT, "link", 14)), (13, OWN + 7));
    assert_eq!((file(&nodes, ROOT, "new", 15), nodes.life(15)), (15, 6));
    nodes.made(ROOT, OsStr::new("again"), &attr(FileKind::Regular, 13));
    assert_eq!(file(&nodes, ROOT, "again", 13), OWN + 8);
    // Of a predecessor that took its numbers for none.
    let nodes = successor(&[(2, 900), (3, 2)]);
    assert_eq!((file(&nodes, ROOT, "n3", 2), file(&nodes, ROOT, "three", 3)), (3, OWN + 1));
    assert_eq!(file(&nodes, ROOT, "four", 4), 4);
    // And the other way round.
    let nodes = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    nodes.resume(&picture(&[(13, 13)]));
    assert_eq!(file(&nodes, ROOT, "new", 2), 14);
}

#[test]
fn who_does_not_know_what_the_kernel_holds_gives_numbers_of_its_own() {
    let nodes = Nodes::new(true, PathBuf::new(), Notes::nowhere());
    nodes.resume_blind(1 << 54);
    let first = file(&nodes, ROOT, "f", 13);
    assert!(first > OWN + (1 << 54));
    assert_eq!(nodes.number(ROOT, OsStr::new("g"), 14), None);
    let next = Nodes::new(true, PathBuf::new(), Notes::nowhere());
    next.resume(&picture(&[(first, 13)]));
    assert_eq!(file(&next, ROOT, "g", 14), first + 1, "nor does its successor know");
    let unstable = Nodes::new(false, PathBuf::new(), Notes::nowhere());
    unstable.resume_blind(1 << 54);
    assert_eq!(file(&unstable, ROOT, "f", 13), (1 << 54) + 1);
}

proptest::proptest! {
    /// Whatever the kernel does in whatever order, paths end, and nothing is left when all is forgotten.
    #[test]
    fn nothing_is_left_when_all_is_forgotten(
        stable: bool,
        steps in proptest::collection::vec((0..6_u8, 0..4_usize, 0..4_usize, 0..3_usize), 0..60),
    ) {
        const NAMES: [&str; 3] = ["x", "y", "z"];
        let nodes = Nodes::new(stable, PathBuf::new(), Notes::nowhere());
        let (mut known, mut directories, mut open) = (vec![ROOT], vec![ROOT], Vec::new());
        let mut lookups: HashMap<u64, u64> = HashMap::new();
        for (what, one, other, name) in steps {
            let (node, parent) = (known[one % known.len()], directories[other % directories.len()]);
            let name = OsStr::new(NAMES[name]);
            match what {
                0 | 1 => {
                    let kind = if what == 0 { FileKind::Directory } else { FileKind::Regular };
                    let node = nodes.remember(parent, name, &attr(kind, one as u64), 0);
                    *lookups.entry(node).or_default() += 1;
                    known.push(node);
                    if kind == FileKind::Directory {
                        directories.push(node);
                    }
                }
                2 => nodes.removed(parent, name),
                3 => {
                    let (from, to) = (directories[one % directories.len()], (parent, NAMES[one % 3].into()));
                    // No kernel asks to move a directory below itself.
                    let below = match (path(&nodes, from), path(&nodes, parent)) {
                        (Ok(from), Ok(parent)) => parent.starts_with(from.join(name)),
                        _ => true,
                    };
                    if !below {
                        nodes.rename((from, name.to_owned()), to).done(false);
                    }
                }
                4 => {
                    if lookups.contains_key(&node) {
                        nodes.opened(node);
                        open.push(node);
                    }
                }
                _ => {
                    if let Some(node) = open.pop() {
                        nodes.closing(node);
                        nodes.closed(node);
                    }
                }
            }
            for &node in &known {
                let _ = nodes.path(node);
            }
        }
        for node in open {
            nodes.closing(node);
            nodes.closed(node);
        }
        for (node, count) in lookups {
            nodes.forget(node, count);
        }
        let table = nodes.table.lock();
        proptest::prop_assert_eq!(table.nodes.len(), 1, "{:?}", &*table);
        proptest::prop_assert!(table.by_name.is_empty() && table.by_identity.is_empty());
    }
}

#[test]
fn a_path_is_as_long_as_it_is_and_a_file_has_as_many_names_as_it_has() {
    let nodes = Nodes::new(true, PathBuf::new(), Notes::nowhere());
    let deepest = (0..6000)
        .fold(ROOT, |above, number| nodes.remember(above, OsStr::new("d"), &attr(FileKind::Directory, number + 10), 0));
    assert_eq!(path(&nodes, deepest).map(|path| path.as_os_str().len()), Ok(2 * 6000 - 1));
    let names: Vec<String> = (0..65_000).map(|number| format!("n{number}")).collect();
    let all: Vec<u64> = names.iter().map(|name| file(&nodes, ROOT, name, 1)).collect();
    assert!(all.iter().all(|node| *node == all[0]));
    assert_eq!(path(&nodes, all[0]), Ok("n64999".into()), "the name that was seen last");
    assert_eq!(file(&nodes, ROOT, "n7", 1), all[0]);
    assert_eq!(path(&nodes, all[0]), Ok("n7".into()));
    names.iter().for_each(|name| nodes.removed(ROOT, OsStr::new(name)));
    assert_eq!(path(&nodes, all[0]), Err(Errno::ENOENT));
}

#[test]
fn the_room_of_many_nodes_is_given_back_when_they_are_forgotten() {
    let nodes = Nodes::new(true, PathBuf::new(), Notes::nowhere());
    let all: Vec<u64> = (0..50_000).map(|number| file(&nodes, ROOT, &format!("n{number}"), number + 10)).collect();
    let room = || {
        let table = nodes.table.lock();
        [table.nodes.capacity(), table.by_name.capacity(), table.by_identity.capacity()]
    };
    assert!(room().iter().all(|&room| room >= 50_000));
    for &node in &all[..49_000] {
        nodes.forget(node, 1);
    }
    assert!(room().iter().all(|&room| room < 50_000 / 4), "{:?}", room());
    assert_eq!(path(&nodes, all[49_500]), Ok("n49500".into()));
}
