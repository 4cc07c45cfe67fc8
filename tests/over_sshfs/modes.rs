//! chmod and chown, where options hide modes and owners, and where the server does not do it.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use super::rig::Pair;

/// As shown in the mount, and in the store: mode, owner, group.
type Seen = ((u32, u32, u32), (u32, u32, u32));

fn seen(mount: &Path, store: &Path) -> Seen {
    let of = |path: &Path| {
        let found = path.metadata().unwrap();
        (found.mode() & 0o7777, found.uid(), found.gid())
    };
    (of(&mount.join("f")), of(&store.join("f")))
}

fn errno(result: io::Result<()>) -> i32 {
    result.map_or_else(|error| error.raw_os_error().unwrap(), |()| 0)
}

fn chmod(path: &Path, mode: u32) -> i32 {
    errno(std::fs::set_permissions(path, Permissions::from_mode(mode)))
}

/// Each change, what came of it, and what is seen at once: by name, by a descriptor, in the store.
fn changes(mount: &Path, store: &Path) -> Vec<(String, i32, Seen)> {
    let path = mount.join("f");
    let file = File::open(&path).unwrap();
    let mut all = Vec::new();
    let mut note = |what: String, result| {
        let now = seen(mount, store);
        let open = file.metadata().unwrap();
        assert_eq!((open.mode() & 0o7777, open.uid(), open.gid()), now.0, "{what}: by a descriptor");
        all.push((what, result, now));
    };
    for mode in [0o777, 0o600, 0o4755, 0o444, 0o640] {
        note(format!("chmod {mode:o}"), chmod(&path, mode));
        note(format!("fchmod {:o}", mode ^ 0o22), errno(file.set_permissions(Permissions::from_mode(mode ^ 0o22))));
    }
    for (uid, gid) in [(Some(1234), None), (None, Some(1235)), (Some(1000), Some(1000)), (Some(0), Some(0))] {
        note(format!("chown {uid:?} {gid:?}"), errno(chown(&path, uid, gid)));
    }
    all
}

/// The same on both mounts; what was said of steadfs.
fn both(pair: &Pair) -> Vec<(String, i32, Seen)> {
    let [plain, hot] = pair.both().map(|(mount, store)| changes(mount, &store));
    assert_eq!(plain, hot, "(sshfs, steadfs)");
    hot
}

#[test]
fn a_chmod_that_did_nothing_is_seen_at_once() {
    // The field case: modes and owners are what the options say, whatever the server has.
    let pair = Pair::of("", "", "umask=0027,uid=1000,gid=1000", "");
    for (_, store) in pair.both() {
        std::fs::write(store.join("f"), "x").unwrap();
    }
    let mut done = 0;
    for (what, result, (shown, stored)) in both(&pair) {
        assert_eq!(result, 0, "{what}");
        assert_eq!(shown, (0o750, 1000, 1000), "{what}: the options hide what was done");
        done += u32::from(what == format!("chmod {:o}", stored.0) || what == format!("fchmod {:o}", stored.0));
    }
    assert_eq!(done, 10, "the server did each of them");
    pair.end();
}

#[test]
fn a_chmod_that_the_server_refuses_is_told_and_changes_nothing() {
    // A file of somebody else's, and a server that is nobody in particular.
    let pair = Pair::of("setpriv --reuid=65534 --regid=65534 --clear-groups", "", "", "");
    for (_, store) in pair.both() {
        std::fs::write(store.join("f"), "x").unwrap();
        std::fs::set_permissions(store.join("f"), Permissions::from_mode(0o646)).unwrap();
    }
    for (what, result, (shown, stored)) in both(&pair) {
        // SFTP has one word for EPERM and EACCES.
        assert_eq!(result, libc::EACCES, "{what}");
        assert_eq!((shown, stored), ((0o646, 0, 0), (0o646, 0, 0)), "{what}");
    }
    pair.end();
}

#[test]
fn a_chmod_that_a_server_forbids_is_told_and_changes_nothing() {
    let pair = Pair::of("", "-P setstat,fsetstat", "", "");
    for (_, store) in pair.both() {
        std::fs::write(store.join("f"), "x").unwrap();
        std::fs::set_permissions(store.join("f"), Permissions::from_mode(0o646)).unwrap();
    }
    for (what, result, (shown, stored)) in both(&pair) {
        assert_ne!(result, 0, "{what}");
        assert_eq!((shown, stored), ((0o646, 0, 0), (0o646, 0, 0)), "{what}");
    }
    pair.end();
}
