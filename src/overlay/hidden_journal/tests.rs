//! The file: what a successor reads of it, how long it gets, what it leaves.

use std::os::unix::fs::PermissionsExt;

use super::*;

const BACKING: &str = "user@host:dir";

fn name(number: usize) -> PathBuf {
    format!("d/.steadfs-hidden-{number:032x}").into()
}

fn kept_in(directory: &Path) -> HiddenJournal {
    let journal = HiddenJournal::default();
    journal.keep_in(directory, BACKING, |_| false);
    journal
}

fn file_in(directory: &Path) -> PathBuf {
    let mut entries = std::fs::read_dir(directory).expect("it is there");
    let file = entries.next().expect("a file").expect("readable").path();
    assert!(entries.next().is_none(), "nothing else");
    file
}

#[test]
fn a_successor_finds_what_was_listed_and_not_struck() {
    let base = tempfile::tempdir().expect("a directory");
    let directory = base.path().join("state/hot");
    let killed = kept_in(&directory);
    assert!(!directory.exists(), "nothing hidden, nothing kept");
    (0..3).for_each(|number| killed.add(&name(number)));
    killed.removed(name(1).file_name().expect("it has one"));
    let ticket = killed.begin_move(Path::new("d"), Path::new("e"), false);
    killed.end_move(ticket, Outcome::Doubt);
    assert_eq!(killed.doomed(), Vec::<PathBuf>::new());
    let file = file_in(&directory);
    assert_eq!(file.metadata().expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(directory.metadata().expect("there").permissions().mode() & 0o777, 0o700);
    // It is not closed: it was killed.
    let successor = kept_in(&directory);
    let mut doomed = successor.doomed();
    doomed.sort();
    let moved = |number| Path::new("e").join(name(number).file_name().expect("it has one"));
    assert_eq!(doomed, [name(0), name(2), moved(0), moved(2)]);
    for number in [0, 2] {
        successor.removed(name(number).file_name().expect("it has one"));
    }
    successor.close();
    assert!(!base.path().join("state").exists(), "its directories go with it");
}

#[test]
fn each_backing_has_a_journal_of_its_own() {
    let base = tempfile::tempdir().expect("a directory");
    kept_in(base.path()).add(&name(1));
    let other = HiddenJournal::default();
    assert_eq!(other.keep_in(base.path(), "user@host:other", |_| false), 0);
    other.add(&name(2));
    assert_eq!(kept_in(base.path()).doomed(), [name(1)]);
}

#[test]
fn a_torn_end_is_left_behind() {
    let base = tempfile::tempdir().expect("a directory");
    let killed = kept_in(base.path());
    killed.add(&name(1));
    let file = file_in(base.path());
    let mut text = std::fs::read(&file).expect("read");
    text.extend(b"0123abcd + d/.steadfs-hid");
    std::fs::write(&file, text).expect("written");
    let successor = kept_in(base.path());
    successor.add(&name(2));
    assert_eq!(kept_in(base.path()).doomed(), [name(1), name(2)]);
}

#[test]
fn it_does_not_grow_for_ever() {
    let base = tempfile::tempdir().expect("a directory");
    let journal = kept_in(base.path());
    journal.add(&name(0));
    for number in 1..3 * SLACK {
        journal.add(&name(number));
        journal.removed(name(number).file_name().expect("it has one"));
        let lines = std::fs::read_to_string(file_in(base.path())).expect("read").lines().count();
        assert!(lines <= SLACK + 5, "{lines} lines");
    }
    assert_eq!(kept_in(base.path()).doomed(), [name(0)]);
}

#[test]
fn without_a_place_to_write_names_are_listed_all_the_same() {
    let base = tempfile::tempdir().expect("a directory");
    std::fs::write(base.path().join("file"), "").expect("written");
    let journal = kept_in(&base.path().join("file"));
    journal.add(&name(1));
    assert!(journal.has(name(1).file_name().expect("it has one")));
    journal.close();
}

#[test]
fn a_journal_that_others_could_write_is_not_believed() {
    let base = tempfile::tempdir().expect("a directory");
    kept_in(base.path()).add(&name(1));
    std::fs::set_permissions(file_in(base.path()), PermissionsExt::from_mode(0o622)).expect("ours");
    assert_eq!(kept_in(base.path()).doomed(), Vec::<PathBuf>::new());
}
