use std::process::Command;

use super::*;
use crate::backing::ProcessExit;

fn sink() -> ExitSink {
    Arc::new(|exit: ProcessExit| panic!("a directory has no processes: {exit:?}"))
}

const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn starts_and_serves() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("f"), "data").expect("write");
    let backing = DirBacking::new(dir.path().to_owned()).expect("absolute");
    assert_eq!(backing.reach(LIMIT), Ok(()));
    let generation = backing.start(7, LIMIT, sink()).expect("starts");
    assert_eq!(generation.number(), 7);
    assert_eq!(generation.tree().stat(Path::new("f")).map(|a| a.size), Ok(4));
    assert!(generation.probe().expect("probe").blocks > 0);
    assert_eq!(generation.vitals(), Vitals::default());
    assert_eq!(backing.reach(LIMIT), Ok(()));
}

#[test]
fn an_aborted_generation_answers_no_more_and_the_next_one_does() {
    let dir = tempfile::tempdir().expect("tempdir");
    std::fs::write(dir.path().join("f"), "data").expect("write");
    let backing = DirBacking::new(dir.path().to_owned()).expect("absolute");
    let first = backing.start(1, LIMIT, sink()).expect("starts");
    let file = first.tree().open(Path::new("f"), libc::O_RDWR).expect("opens");
    first.abort();
    assert_eq!(first.tree().stat(Path::new("f")), Err(nix::errno::Errno::ECONNABORTED));
    assert_eq!(first.probe(), Err(nix::errno::Errno::ECONNABORTED));
    assert_eq!(file.write_at(b"late", 0), Err(nix::errno::Errno::ECONNABORTED));
    assert_eq!(first.retire(), Ok(()));
    let second = backing.start(2, LIMIT, sink()).expect("starts again");
    let mut buf = [0; 9];
    let file = second.tree().open(Path::new("f"), libc::O_RDONLY).expect("opens");
    assert_eq!(file.read_at(&mut buf, 0), Ok(4));
    assert_eq!(&buf[..4], b"data");
}

#[test]
fn a_path_that_never_was_is_a_mistake_and_one_that_was_may_come_back() {
    let dir = tempfile::tempdir().expect("tempdir");
    let path = dir.path().join("later");
    let backing = DirBacking::new(path.clone()).expect("absolute");
    assert!(matches!(backing.start(1, LIMIT, sink()).err(), Some(StartError::Local(text)) if text.contains("later")));
    std::fs::create_dir(&path).expect("mkdir");
    drop(backing.start(1, LIMIT, sink()).expect("starts"));
    std::fs::remove_dir(&path).expect("rmdir");
    assert!(matches!(backing.start(2, LIMIT, sink()).err(), Some(StartError::Unreachable(_))));
    assert!(matches!(DirBacking::new("relative".into()), Err(StartError::Local(_))));
}

#[test]
fn a_local_filesystem_is_relied_on_and_one_that_is_not_known_is_not() {
    let dir = tempfile::tempdir().expect("tempdir");
    let fstype = mountinfo::covering(dir.path()).expect("mountinfo").expect("a mount").fstype;
    let local = LOCAL.iter().any(|name| *name == fstype);
    let backing = DirBacking::new(dir.path().to_owned()).expect("absolute");
    let expected = Traits {
        stable_inodes: local,
        keeps_unlinked: local,
        owners: true,
        asynchronous: false,
        remembers: Duration::ZERO,
    };
    assert_eq!(backing.traits(), expected, "{fstype:?}");
    drop(backing.start(1, LIMIT, sink()).expect("starts"));
    assert_eq!(backing.traits(), expected);
    let unknown = Traits {
        stable_inodes: false,
        keeps_unlinked: false,
        owners: true,
        asynchronous: false,
        remembers: Duration::ZERO,
    };
    for path in ["/proc/self", "/nonexistent/x"] {
        assert_eq!(DirBacking::new(path.into()).expect("absolute").traits(), unknown, "{path}");
    }
}

/// A mount of its own; detached on drop, as the directory below it goes with the tempdir.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path) -> Option<Self> {
        let done = Command::new("mount").args(["-t", "tmpfs", "steadfs-test"]).arg(at).output().ok()?;
        done.status.success().then(|| Tmpfs(at.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn the_directory_below_a_lost_mount_is_never_served() {
    let dir = tempfile::tempdir().expect("tempdir");
    let at = dir.path().canonicalize().expect("path").join("mnt");
    std::fs::create_dir_all(at.join("sub")).expect("mkdir");
    let Some(mount) = Tmpfs::mount(&at) else {
        eprintln!("skipped: may not mount");
        return;
    };
    std::fs::create_dir(at.join("sub")).expect("mkdir on the mount");
    let backing = DirBacking::new(at.join("sub")).expect("absolute");
    let first = backing.start(1, LIMIT, sink()).expect("starts");

    drop(mount);
    let gone = backing.reach(LIMIT).expect_err("not mounted");
    assert!(gone.contains("not mounted"), "{gone}");
    let error = backing.start(2, LIMIT, sink()).err();
    assert!(matches!(&error, Some(StartError::Unreachable(text)) if text.contains("tmpfs")), "{error:?}");
    // What was open stays on the mount it was on.
    assert_eq!(first.tree().mkdir(Path::new("kept"), 0o700), Ok(()));
    assert!(!at.join("sub/kept").exists());

    let again = Tmpfs::mount(&at).expect("mounts again");
    std::fs::create_dir(at.join("sub")).expect("mkdir on the mount");
    assert_eq!(backing.reach(LIMIT), Ok(()));
    drop(backing.start(3, LIMIT, sink()).expect("starts on the new mount"));
    drop(again);
}

/// As written down by a daemon that is dead.
fn record_of_a_dead_daemon(generation: &Arc<dyn Generation>) -> Record {
    let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep starts");
    let daemon = crate::backing::process::Process::of(child.id().cast_signed()).expect("it lives");
    child.kill().expect("killed");
    child.wait().expect("it ends");
    Record { daemon, ..generation.record().expect("it has one") }
}

#[test]
fn a_successor_goes_on_under_the_same_number_and_on_the_same_mount_only() {
    let dir = tempfile::tempdir().expect("tempdir");
    let backing = || DirBacking::new(dir.path().to_owned()).expect("absolute");
    let first = backing().start(7, LIMIT, sink()).expect("starts");
    let living = first.record().expect("it has one");
    let refused = backing().adopt(&living, None, LIMIT, sink()).err();
    assert!(matches!(refused, Some(AdoptError::Unsettled(_))), "{refused:?}");
    let record = record_of_a_dead_daemon(&first);
    let next = backing().adopt(&record, None, LIMIT, sink()).expect("taken over");
    assert_eq!((next.number(), next.probe().is_ok()), (7, true));
    // The mount has gone meanwhile, and the directory below it is there.
    let Life::Dir(place) = &record.life else { panic!("{record:?}") };
    let gone = Place { fstype: "fuse.other".into(), ..place.clone() };
    let (successor, record) = (backing(), Record { life: Life::Dir(gone), ..record });
    let refused = successor.adopt(&record, None, LIMIT, sink()).err();
    assert!(matches!(&refused, Some(AdoptError::Dead(words)) if words.contains("mount gone")), "{refused:?}");
    assert!(matches!(successor.start(8, LIMIT, sink()).err(), Some(StartError::Unreachable(_))), "nor later");
}
