//! The mount itself: how it looks, who may unmount it, what lies below it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use steadfs::backing::mountinfo;
use steadfs::config::OverlayConfig;
use steadfs::overlay::mount::Mount;

use crate::rig::{LOCAL, PATIENCE, Rig, errno};

#[test]
fn the_mount_table_shows_what_was_configured_and_nothing_else() {
    let rig = Rig::with(LOCAL, PATIENCE, |config| {
        config.subtype = "sshfs,allow_root".into();
        config.fsname = Some("box:/a b,suid\\,dev".into());
        config.mount_flags = ["noexec", "noatime", "nosymfollow", "lazytime", "sync"].map(String::from).into();
    });
    let entry = mountinfo::at(rig.mountpoint()).unwrap().expect("mounted");
    assert_eq!(entry.fstype, "fuse.sshfs,allow_root");
    assert_eq!(entry.source, "box:/a b,suid\\,dev");
    assert_eq!(entry.dev, rig.mount.dev());
    for option in ["rw", "nosuid", "nodev", "noexec", "noatime", "nosymfollow"] {
        assert!(entry.has_option(option), "{option}");
    }
    let options = entry.super_options.into_string().unwrap();
    for option in ["default_permissions", "allow_other", "user_id=0", "max_read=131072", "lazytime", "sync"] {
        assert!(options.split(',').any(|other| other == option), "{option} in {options}");
    }
    std::fs::write(rig.hot("x"), "#!/bin/sh\n").unwrap();
    std::fs::set_permissions(rig.hot("x"), PermissionsExt::from_mode(0o755)).unwrap();
    assert_eq!(errno(Command::new(rig.hot("x")).status()), Some(libc::EACCES));
}

#[test]
fn the_read_ahead_is_raised_after_the_session_has_begun() {
    let rig = Rig::new(LOCAL);
    rig.mount.raise_read_ahead();
    let (major, minor) = rig.mount.dev();
    let read = std::fs::read_to_string(format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb"));
    assert_eq!(read.expect("sysfs").trim(), "1024");
}

#[test]
fn read_only_is_read_only() {
    let rig = Rig::with(LOCAL, PATIENCE, |config| config.read_only = true);
    std::fs::write(rig.cold("f"), "x").unwrap();
    assert_eq!(std::fs::read_to_string(rig.hot("f")).unwrap(), "x");
    assert_eq!(errno(File::create(rig.hot("g"))), Some(libc::EROFS));
}

#[test]
fn a_busy_overlay_is_not_unmounted_unless_lazily() {
    let rig = Rig::new(LOCAL);
    let file = File::create(rig.hot("f")).unwrap();
    assert_eq!(errno(rig.mount.unmount(false)), Some(libc::EBUSY));
    assert!(rig.mount.is_mounted());
    drop(file);
    rig.mount.unmount(false).unwrap();
    assert!(!rig.mount.is_mounted());
    rig.mount.unmount(false).unwrap();
}

#[test]
fn a_strangers_mount_on_the_same_directory_is_left_alone() {
    let rig = Rig::new(LOCAL);
    let stranger = || mount(Some("stranger"), rig.mountpoint(), Some("tmpfs"), MsFlags::empty(), Some("size=64k"));
    let top = || mountinfo::at(rig.mountpoint()).unwrap().map(|entry| entry.source);
    stranger().unwrap();
    assert_eq!(errno(rig.mount.unmount(false)), Some(libc::EBUSY));
    assert_eq!(errno(rig.mount.unmount(true)), Some(libc::EBUSY));
    assert_eq!(top().as_deref(), Some(OsStr::new("stranger")));
    umount2(rig.mountpoint(), MntFlags::empty()).unwrap();
    rig.mount.unmount(false).unwrap();
    stranger().unwrap();
    rig.mount.unmount(true).unwrap();
    rig.mount.abort();
    assert_eq!(top().as_deref(), Some(OsStr::new("stranger")));
    umount2(rig.mountpoint(), MntFlags::empty()).unwrap();
}

#[test]
fn overlays_that_come_while_others_go_are_mounted() {
    // The kernel gives the numbers of those that go to those that come.
    let come_and_go = || {
        for _ in 0..40 {
            let place = tempfile::tempdir().unwrap();
            let config = OverlayConfig { guard: false, ..OverlayConfig::default() };
            let (device, mount) = Mount::attach(&config, "host:/dir", place.path()).expect("mounted");
            drop(device);
            mount.unmount(true).unwrap();
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(come_and_go))));
}

#[test]
fn bind_mounts_of_the_overlay_go_with_it() {
    let rig = Rig::new(LOCAL);
    std::fs::create_dir(rig.hot("d")).unwrap();
    let other = tempfile::tempdir().unwrap();
    mount(Some(&rig.hot("d")), other.path(), None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    std::fs::write(other.path().join("f"), "x").unwrap();
    assert!(rig.cold("d/f").exists());
    rig.mount.unmount(false).unwrap();
    assert!(mountinfo::at(other.path()).unwrap().is_none());
}

#[test]
fn abort_ends_the_connection_at_once() {
    let rig = Rig::new(LOCAL);
    let file = File::create(rig.hot("f")).unwrap();
    rig.mount.unmount(true).unwrap();
    assert!(file.metadata().is_ok(), "a lazy unmount leaves descriptors alone");
    // Nothing of it is in the mount table, so only fusectl could end it; with the last descriptor it ends by itself.
    drop(file);
    let second = Rig::new(LOCAL);
    let file = File::create(second.hot("f")).unwrap();
    second.mount.abort();
    assert_eq!(errno(file.sync_all()), Some(libc::ENOTCONN));
}

/// chattr -i.
fn unguard(directory: &Path) {
    assert!(Command::new("chattr").arg("-i").arg(directory).status().expect("chattr runs").success());
}

#[test]
fn nobody_writes_below_a_guarded_mountpoint_not_even_root() {
    let hot = tempfile::Builder::new().prefix("steadfs-guard-").tempdir().unwrap();
    let config = OverlayConfig { guard: true, ..OverlayConfig::default() };
    let (device, mount) = Mount::attach(&config, "dir:/x", hot.path()).expect("mounted");
    drop(device);
    mount.unmount(true).unwrap();
    let wrote = std::fs::write(hot.path().join("stray"), "x");
    // Some filesystems have no such attribute; then the directory is at least shut for everybody but root.
    let mode = std::fs::metadata(hot.path()).unwrap().permissions().mode() & 0o7777;
    unguard(hot.path());
    assert!(errno_of(&wrote) == Some(libc::EPERM) || mode == 0, "{wrote:?}, mode {mode:o}");
    let _ = std::fs::remove_file(hot.path().join("stray"));
}

fn errno_of<T>(result: &std::io::Result<T>) -> Option<i32> {
    result.as_ref().err().and_then(std::io::Error::raw_os_error)
}

#[test]
fn a_directory_that_holds_something_is_not_guarded() {
    let hot = tempfile::tempdir().unwrap();
    std::fs::write(hot.path().join("theirs"), "x").unwrap();
    let config = OverlayConfig { guard: true, ..OverlayConfig::default() };
    let (device, mount) = Mount::attach(&config, "dir:/x", hot.path()).expect("mounted");
    drop(device);
    mount.unmount(true).unwrap();
    std::fs::write(hot.path().join("theirs"), "y").expect("as before");
}

/// Run by the next test, as an ordinary user.
#[test]
#[ignore = "only as another user, by the next test"]
fn as_an_ordinary_user() {
    let rig = Rig::with(LOCAL, PATIENCE, |config| config.fsname = Some("box:/a,allow_other,b\\c".into()));
    std::fs::write(rig.hot("f"), "x").unwrap();
    assert_eq!(std::fs::read_to_string(rig.cold("f")).unwrap(), "x");
    let entry = mountinfo::at(rig.mountpoint()).unwrap().expect("mounted");
    assert_eq!((entry.fstype.to_str(), entry.source.to_str()), (Some("fuse.steadfs"), Some("box:/a,allow_other,b\\c")));
    assert!(entry.has_option("nosuid") && entry.has_option("nodev"));
    assert!(!entry.super_options.to_string_lossy().contains("allow_other"));
    let file = File::open(rig.hot("f")).unwrap();
    assert_eq!(errno(rig.mount.unmount(false)), Some(libc::EBUSY));
    drop(file);
    rig.mount.unmount(false).unwrap();
    assert!(!rig.mount.is_mounted());
}

#[test]
fn an_ordinary_user_mounts_through_fusermount() {
    let home = tempfile::tempdir().unwrap();
    std::fs::set_permissions(home.path(), PermissionsExt::from_mode(0o777)).unwrap();
    // A copy: the build directory may be out of an ordinary user's reach.
    let program = home.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    // Where /dev/fuse is root's alone, everybody gets one in a mount namespace of the test's own.
    let script = "set -e; mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse; \
                  exec setpriv --reuid 65534 --regid 65534 --clear-groups \
                  ./test --ignored --exact mounting::as_an_ordinary_user";
    let output = Command::new("unshare")
        .args(["--mount", "sh", "-c", script])
        .env("TMPDIR", home.path())
        .current_dir(home.path())
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}
