//! rename with flags. SFTP knows none, and sshfs refuses them; programs that want NOREPLACE fall back by themselves on EINVAL
//! (coreutils and glibc do), so nothing is gained by doing it with a link and an unlink, which others could see in between.

use std::path::Path;

use super::rig::Pair;
use super::said::{Log, agree, done, tree};

const FLAGS: [(&str, u32); 5] = [
    ("NOREPLACE", libc::RENAME_NOREPLACE),
    ("EXCHANGE", libc::RENAME_EXCHANGE),
    ("WHITEOUT", libc::RENAME_WHITEOUT),
    ("NOREPLACE and EXCHANGE", libc::RENAME_NOREPLACE | libc::RENAME_EXCHANGE),
    ("no such flag", 64),
];
const PLACES: [(&str, &str); 7] = [
    ("file", "nothing"),
    ("file", "other"),
    ("dir", "nothing"),
    ("dir", "empty"),
    ("file", "dir"),
    ("dir", "file"),
    ("nothing", "file"),
];

fn fill(at: &Path) {
    for name in ["dir", "empty"] {
        std::fs::create_dir(at.join(name)).unwrap();
    }
    for name in ["file", "other", "dir/inside"] {
        std::fs::write(at.join(name), name).unwrap();
    }
}

pub fn body(log: &mut Log) {
    for (name, flag) in FLAGS {
        for (from, to) in PLACES {
            let before = tree(&log.at("."));
            let (old, new) = (log.c(from), log.c(to));
            // SAFETY: both paths end with NUL.
            let result =
                done(unsafe { libc::renameat2(libc::AT_FDCWD, old.as_ptr(), libc::AT_FDCWD, new.as_ptr(), flag) });
            assert!(result.is_err(), "{name}, {from} to {to}: it was not refused");
            assert_eq!(tree(&log.at(".")), before, "{name}, {from} to {to}");
            log.note(format!("{name}, {from} to {to}"), result);
        }
    }
}

#[test]
fn renames_with_flags_over_sshfs_change_nothing() {
    let pair = Pair::new("");
    let before = pair.both().map(|(_, store)| {
        fill(&store);
        tree(&store)
    });
    let said = agree(&pair, "renames", &[]);
    assert!(said.contains(&"NOREPLACE, file to other: EEXIST".to_owned()), "{said:#?}");
    assert!(said.contains(&"NOREPLACE, file to nothing: EINVAL".to_owned()), "{said:#?}");
    assert_eq!(pair.both().map(|(_, store)| tree(&store)), before);
    // Programs get what they want all the same.
    for (mount, store) in pair.both() {
        let path = |name: &str| mount.join(name).display().to_string();
        crate::lab::run_ok("mv", &["-n", &path("file"), &path("moved")]);
        crate::lab::run("mv", &["-n", &path("moved"), &path("other")]);
        let left = tree(&store);
        assert!(left.contains(&"moved=file".into()) && left.contains(&"other=other".into()), "{left:?}");
        assert!(!left.contains(&"file=file".into()), "{left:?}");
    }
    pair.end();
}
