//! Mountpoints below directories that somebody else may write to.

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use crate::lab::{mount_of, sweep};
use crate::rig::Rig;
use crate::user::{NOBODY, as_nobody};

fn exchange(one: &Path, other: &Path) {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).unwrap();
    let (one, other) = (text(one), text(other));
    // SAFETY: two strings that live as long as the call.
    unsafe { libc::renameat2(libc::AT_FDCWD, one.as_ptr(), libc::AT_FDCWD, other.as_ptr(), libc::RENAME_EXCHANGE) };
}

/// Somebody exchanges a directory above the mountpoint for a link to a place of root's, all the time. Whatever comes of a
/// mount and of its unmount, it is never there; nor is the place guarded.
#[test]
fn a_mount_never_lands_where_somebody_leads_it() {
    let rig = Rig::new();
    let (theirs, private) = (rig.path("theirs"), rig.path("private"));
    for path in [theirs.join("a/hot"), private.join("hot")] {
        std::fs::create_dir_all(path).unwrap();
    }
    std::os::unix::fs::symlink(&private, theirs.join("b")).unwrap();
    for path in [theirs.clone(), theirs.join("a"), theirs.join("b")] {
        std::os::unix::fs::lchown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    std::fs::set_permissions(rig.directory(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let before = std::fs::metadata(private.join("hot")).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (over, one, other) = (Arc::clone(&stop), theirs.join("a"), theirs.join("b"));
    let attacker = as_nobody(move || {
        let mut times = 0_u64;
        while !over.load(SeqCst) {
            exchange(&one, &other);
            times += 1;
            // At different moments of a mount.
            std::thread::sleep(std::time::Duration::from_micros(50 * (times % 40)));
        }
        times
    });
    let (source, hot) = (format!("dir:{}", rig.path("store").display()), theirs.join("a/hot"));
    let (mut mounted, mut refused) = (0, 0);
    for _ in 0..40 {
        let output =
            rig.steadfs(&["mount", &source, hot.to_str().unwrap(), "-o", "guard=yes,keeper=no"]).output().unwrap();
        if output.status.success() {
            mounted += 1
        } else {
            refused += 1
        }
        assert_eq!(sweep::mounts_below(&private), Vec::<String>::new(), "{output:?}");
        for place in sweep::mounts_below(&theirs) {
            // By whichever name it can be reached now.
            let _ = rig.steadfs(&["umount", &place]).output().unwrap();
            let _ = nix::mount::umount2(place.as_str(), nix::mount::MntFlags::MNT_DETACH);
        }
    }
    stop.store(true, SeqCst);
    let times = attacker.join().unwrap();
    println!("{mounted} mounted, {refused} refused, {times} exchanges");
    assert!(times > 100, "nobody attacked");
    let after = std::fs::metadata(private.join("hot")).unwrap();
    assert_eq!(before.mode(), after.mode());
    std::fs::write(private.join("hot/file"), "x").expect("it is not guarded");
    for name in ["a/hot", "b/hot"] {
        crate::lab::run("chattr", &["-i", theirs.join(name).to_str().unwrap()]);
    }
}

#[test]
fn a_link_of_somebody_else_is_not_followed_to_a_mountpoint() {
    let rig = Rig::new();
    let (private, link) = (rig.path("private"), rig.path("link"));
    std::fs::create_dir_all(private.join("hot")).unwrap();
    std::os::unix::fs::symlink(&private, &link).unwrap();
    std::os::unix::fs::lchown(&link, Some(NOBODY), None).unwrap();
    let source = format!("dir:{}", rig.path("store").display());
    let output = rig.steadfs(&["mount", &source, link.join("hot").to_str().unwrap()]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("is a link that is not root's"), "{output:?}");
    assert_eq!(mount_of(&private.join("hot")), None);
}
