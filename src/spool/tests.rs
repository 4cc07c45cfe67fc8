#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

fn sample() -> Saved {
    Saved {
        overlay: "/srv/jobs".into(),
        backing: "box:/jobs".into(),
        path: Path::new("crawl").join(OsStr::from_bytes(b"a \xff%\n.warc")),
        reason: "it is \"another\" file\nnow".into(),
        at: SystemTime::UNIX_EPOCH + Duration::new(1_795_000_000, 123_456_789),
        cut: Some(4),
        size: Some(12),
        extents: vec![(4, b"four".to_vec()), (8, b"\neigh".to_vec())],
    }
}

/// A directory that is made by the first save, below one that is removed in the end.
fn place() -> (TempDir, PathBuf) {
    let above = tempfile::tempdir().unwrap();
    let dir = above.path().join("state/hot/spool");
    (above, dir)
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_saved_can_be_read_by_us_alone() {
    let (_above, dir) = place();
    let path = save(&dir, &sample(), None).unwrap();
    assert_eq!(read(&path).unwrap(), sample());
    assert_eq!((mode(&path), mode(&dir), mode(dir.parent().unwrap())), (0o600, 0o700, 0o700));
    let name = path.file_name().unwrap().to_str().unwrap();
    assert!(name.starts_with("20261118T") && name.ends_with(".spool"), "{name}");
    assert_eq!(names(&dir), [name]);
    let listed = list(&dir).unwrap();
    assert_eq!((listed[0].name.as_str(), listed[0].state), (name, State::Kept));
    assert_eq!(listed[0].header.as_ref().unwrap().extents[1].offset, 8);
    assert_eq!(listed[0].bytes, std::fs::metadata(&path).unwrap().len());
}

#[test]
fn the_header_is_one_line_of_json() {
    let (_above, dir) = place();
    let path = save(&dir, &sample(), None).unwrap();
    let bytes = std::fs::read(path).unwrap();
    let line = bytes.split(|&b| b == b'\n').next().unwrap();
    let value: serde_json::Value = serde_json::from_slice(line).unwrap();
    assert_eq!(value["steadfs_spool"], 1);
    assert_eq!(value["path"], "crawl/a %ff%25%0a.warc");
    assert_eq!(value["at"], "2026-11-18T11:06:40.123456789Z");
    assert_eq!(value["extents"][0], serde_json::json!({"offset": 4, "len": 4, "crc32": "90c1667d"}));
    assert_eq!(&bytes[line.len() + 1..], b"four\neigh");
}

#[test]
fn equal_entries_have_names_of_their_own() {
    let (_above, dir) = place();
    let mut paths: Vec<_> = (0..5).map(|_| save(&dir, &sample(), None).unwrap()).collect();
    // What a killed steadfs left does not get in the way, and is not removed.
    let left = paths.pop().unwrap();
    let part = left.with_extension("spool.part");
    std::fs::rename(&left, &part).unwrap();
    paths.push(save(&dir, &sample(), None).unwrap());
    paths.sort();
    paths.dedup();
    assert_eq!(paths.len(), 5);
    assert!(paths.iter().all(|path| read(path).unwrap() == sample()));
    assert_eq!(list(&dir).unwrap().iter().filter(|entry| entry.state == State::Unfinished).count(), 1);
}

#[test]
fn the_limit_counts_all_that_is_there() {
    let (_above, dir) = place();
    let path = save(&dir, &sample(), None).unwrap();
    let one = std::fs::metadata(&path).unwrap().len();
    assert!(save(&dir, &sample(), Some(2 * one)).is_ok());
    let error = save(&dir, &sample(), Some(3 * one - 1)).unwrap_err();
    assert!(matches!(error, SpoolError::Full { used, needed, .. } if used == 2 * one && needed == one), "{error}");
    assert!(error.to_string().contains("spool_size"), "{error}");
    assert_eq!(names(&dir).len(), 2);
}

#[test]
fn a_directory_that_others_could_use_is_refused() {
    let (above, dir) = place();
    let path = |name: &str| above.path().join(name);
    std::fs::create_dir(path("real")).unwrap();
    symlink("real", path("link")).unwrap();
    std::fs::write(path("file"), "").unwrap();
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o770)).unwrap();
    for (dir, why) in [
        (path("link"), "is a symbolic link: give the directory itself"),
        (path("file"), "is not a directory: give another one, or remove it"),
        (dir, "can be written by others: run chmod go-w on it, or give another one"),
    ] {
        let error = save(&dir, &sample(), None).unwrap_err();
        assert!(matches!(error, SpoolError::Unfit { .. }) && error.to_string().ends_with(why), "{error}");
        assert_eq!(check_directory(&dir), Err(why.into()));
    }
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(path("real"), Some(12345), None).unwrap();
        let error = save(&path("real"), &sample(), None).unwrap_err();
        assert!(error.to_string().contains("belongs to uid 12345"), "{error}");
    }
    assert_eq!(check_directory(&path("none")), Ok(()));
}

#[test]
fn extents_out_of_order_are_refused() {
    let (_above, dir) = place();
    for extents in [
        vec![(4, vec![0; 4]), (7, vec![0])],
        vec![(4, vec![0]), (0, vec![0])],
        vec![(u64::MAX, vec![0])],
        vec![(i64::MAX as u64, vec![0])],
    ] {
        let error = save(&dir, &Saved { extents, ..sample() }, None).unwrap_err();
        assert!(matches!(error, SpoolError::Extents { .. }), "{error}");
    }
    assert!(!dir.exists());
}

#[test]
fn a_file_torn_at_any_length_is_recognised() {
    let (_above, dir) = place();
    let path = save(&dir, &sample(), None).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = Entry::open(&path).map(|_| ()).unwrap_err();
        assert!(matches!(error, SpoolError::Damaged { .. }), "{length}: {error}");
    }
    std::fs::write(&path, [&whole[..], b"x"].concat()).unwrap();
    assert!(read(&path).unwrap_err().to_string().ends_with("it is 1 bytes too long"));
    std::fs::write(&path, &whole).unwrap();
    assert!(read(&path).is_ok());
}

#[test]
fn a_flipped_bit_anywhere_is_recognised() {
    let (_above, dir) = place();
    let path = save(&dir, &sample(), None).unwrap();
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        for bit in 0..8 {
            let mut altered = whole.clone();
            altered[at] ^= 1 << bit;
            std::fs::write(&path, &altered).unwrap();
            let error = read(&path).unwrap_err();
            assert!(matches!(error, SpoolError::Damaged { .. }), "{at}: {error}");
        }
    }
}

#[test]
fn other_files_are_not_taken_for_entries() {
    let (_above, dir) = place();
    let path = save(&dir, &sample(), None).unwrap();
    symlink(&path, dir.join("link.spool")).unwrap();
    nix::unistd::mkfifo(&dir.join("fifo.spool"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    std::fs::write(dir.join("README"), "").unwrap();
    std::fs::write(dir.join(OsStr::from_bytes(b"\xff.spool")), "").unwrap();
    let listed = list(&dir).unwrap();
    assert_eq!(listed.len(), 3);
    let damaged = |header: &Result<Header, SpoolError>| matches!(header, Err(SpoolError::Damaged { .. }));
    assert_eq!(listed.iter().filter(|entry| damaged(&entry.header)).count(), 2);
    assert!(drop_entry(&dir.join("README")).is_err() && dir.join("README").exists());
}

#[test]
fn a_later_version_is_named() {
    let (_above, dir) = place();
    let path = save(&dir, &sample(), None).unwrap();
    let body = b"{\"steadfs_spool\":2";
    let line = format!("{},\"crc32\":\"{:08x}\"}}\n", std::str::from_utf8(body).unwrap(), crc32fast::hash(body));
    std::fs::write(&path, line).unwrap();
    let error = read(&path).unwrap_err();
    assert!(matches!(error, SpoolError::Version { version: 2, .. }), "{error}");
}

#[test]
fn restoring_says_what_it_does_and_does_it() {
    let (above, dir) = place();
    let root = above.path().join("hot");
    std::fs::create_dir_all(root.join("crawl")).unwrap();
    let file = root.join(sample().path);
    std::fs::write(&file, b"0123fourth and more").unwrap();
    let path = save(&dir, &sample(), None).unwrap();
    let planned = plan(&path, Target::Below(&root)).unwrap();
    assert_eq!(planned.present.unwrap().size, 19);
    assert_eq!((planned.cut, planned.size), (Some(4), 12));
    assert_eq!(planned.changes[0], Change { offset: 4, len: 4, differing: 0, beyond: 0 });
    assert_eq!(planned.changes[1], Change { offset: 8, len: 5, differing: 5, beyond: 0 });
    assert_eq!(std::fs::read(&file).unwrap(), b"0123fourth and more");
    let (done, marked) = restore(&path, Target::Below(&root)).unwrap();
    assert_eq!(done.changes, planned.changes);
    assert_eq!(std::fs::read(&file).unwrap(), b"0123four\neig");
    assert_eq!(marked, path.with_extension("restored"));
    assert!(!path.exists() && read(&marked).is_ok());
    // Once more is possible and changes nothing.
    let (again, same) = restore(&marked, Target::Below(&root)).unwrap();
    assert_eq!((again.changes[1].differing, same), (0, marked.clone()));
    drop_entry(&marked).unwrap();
    assert_eq!(names(&dir), Vec::<String>::new());
}

#[test]
fn restoring_leaves_alone_what_it_must_not_write() {
    let (above, dir) = place();
    let root = above.path().join("hot");
    std::fs::create_dir_all(root.join("directory")).unwrap();
    std::fs::write(above.path().join("outside"), "precious").unwrap();
    symlink("../outside", root.join("link")).unwrap();
    symlink("..", root.join("up")).unwrap();
    nix::unistd::mkfifo(&root.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for name in
        ["", "none", "none/below", "directory", "link", "up/outside", "../outside", "/etc/passwd", "fifo", "a/./../b"]
    {
        let path = save(&dir, &Saved { path: name.into(), ..sample() }, None).unwrap();
        let error = restore(&path, Target::Below(&root)).unwrap_err();
        assert!(matches!(error, SpoolError::Refused { .. }) && !error.is_system(), "{name}: {error}");
        assert!(path.exists(), "{name}");
    }
    assert_eq!(std::fs::read_to_string(above.path().join("outside")).unwrap(), "precious");
    let path = save(&dir, &sample(), None).unwrap();
    for name in ["directory", "link", "fifo"] {
        let error = restore(&path, Target::File(&root.join(name))).unwrap_err();
        assert!(matches!(error, SpoolError::Refused { .. }), "{name}: {error}");
    }
}

#[test]
fn a_damaged_entry_is_not_restored() {
    let (above, dir) = place();
    let path = save(&dir, &sample(), None).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let target = above.path().join("file");
    std::fs::write(&target, "0123").unwrap();
    assert!(matches!(restore(&path, Target::File(&target)), Err(SpoolError::Damaged { .. })));
    assert_eq!(std::fs::read(&target).unwrap(), b"0123");
}

#[test]
fn threads_that_save_at_once_keep_the_limit() {
    let (_above, dir) = place();
    let one = std::fs::metadata(save(&dir, &sample(), None).unwrap()).unwrap().len();
    let saved = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| save(&dir, &sample(), Some(4 * one)).is_ok())).collect();
        threads.into_iter().map(|thread| usize::from(thread.join().unwrap())).sum::<usize>()
    });
    assert_eq!((saved, names(&dir).len()), (3, 4));
}

/// Ascending extents without overlaps, some of them adjacent, some empty, some far away.
fn extents() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
    let gap = prop_oneof![Just(0u64), 0u64..40, 0u64..5_000_000_000];
    proptest::collection::vec((gap, proptest::collection::vec(any::<u8>(), 0..50)), 0..8).prop_map(|parts| {
        let mut at = 0;
        let place = |(gap, data): (u64, Vec<u8>)| {
            let offset = at + gap;
            at = offset + data.len() as u64;
            (offset, data)
        };
        parts.into_iter().map(place).collect()
    })
}

fn saved() -> impl Strategy<Value = Saved> {
    let path = proptest::collection::vec(any::<u8>(), 1..20);
    let size = || proptest::option::of(0u64..200);
    (path, "\\PC{0,20}", any::<u32>(), size(), size(), extents()).prop_map(
        |(path, reason, secs, cut, size, extents)| Saved {
            path: OsStr::from_bytes(&path).into(),
            at: SystemTime::UNIX_EPOCH + Duration::new(secs.into(), secs % 1_000_000_000),
            reason,
            cut,
            size,
            extents,
            ..sample()
        },
    )
}

/// What the file would hold had all been written when it was meant to be.
fn model(mut content: Vec<u8>, saved: &Saved) -> Vec<u8> {
    if let Some(cut) = saved.cut {
        content.truncate(cut as usize);
    }
    for (offset, data) in saved.extents.iter().filter(|(_, data)| !data.is_empty()) {
        let offset = *offset as usize;
        content.resize(content.len().max(offset + data.len()), 0);
        content[offset..offset + data.len()].copy_from_slice(data);
    }
    if let Some(size) = saved.size {
        content.resize(size as usize, 0);
    }
    content
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_saved_comes_back(saved in saved()) {
        let (_above, dir) = place();
        let path = save(&dir, &saved, None).unwrap();
        prop_assert_eq!(read(&path).unwrap(), saved);
    }

    #[test]
    fn restoring_makes_the_file_what_it_should_have_been(
        content in proptest::collection::vec(any::<u8>(), 0..200),
        mut saved in saved(),
    ) {
        // The model is in memory.
        for (offset, _) in &mut saved.extents {
            *offset %= 1 << 20;
        }
        let ordered = saved.extents.windows(2).all(|pair| pair[0].0 + pair[0].1.len() as u64 <= pair[1].0);
        prop_assume!(ordered);
        let (above, dir) = place();
        let target = above.path().join("file");
        std::fs::write(&target, &content).unwrap();
        let path = save(&dir, &saved, None).unwrap();
        let (plan, _) = restore(&path, Target::File(&target)).unwrap();
        let expected = model(content, &saved);
        prop_assert_eq!(plan.size, expected.len() as u64);
        prop_assert!(std::fs::read(&target).unwrap() == expected);
    }

    #[test]
    fn reading_anything_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), more in "[ -~\n]{0,80}") {
        let (_above, dir) = place();
        let path = save(&dir, &sample(), None).unwrap();
        for content in [bytes, format!("{{\"steadfs_spool\":{more}").into_bytes()] {
            std::fs::write(&path, content).unwrap();
            prop_assert!(read(&path).is_err());
        }
    }
}
