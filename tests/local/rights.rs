//! Owners, modes, and what is taken away when somebody writes.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;

use nix::sys::stat::{Mode, umask};

use super::compare::{Log, agree, as_user, c, done};
use super::rig::Local;

const ONE: u32 = 1001;
const TWO: u32 = 1002;
const GROUP: u32 = 2000;
const CAPABILITY: &std::ffi::CStr = c"security.capability";

type Change = fn(&Path) -> io::Result<()>;

/// Everything that changes a file's content or owner.
const CHANGES: [(&str, Change); 7] = [
    ("write", |path| OpenOptions::new().write(true).open(path)?.write_all_at(b"new", 0)),
    ("append", |path| io::Write::write_all(&mut OpenOptions::new().append(true).open(path)?, b"new")),
    ("ftruncate", |path| OpenOptions::new().write(true).open(path)?.set_len(3)),
    ("truncate", |path| Ok(nix::unistd::truncate(path, 2)?)),
    ("O_TRUNC", |path| OpenOptions::new().write(true).truncate(true).open(path).map(drop)),
    ("fallocate", |path| {
        let file = OpenOptions::new().write(true).open(path)?;
        // SAFETY: only numbers are passed.
        done(unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, 10_000) }).map(drop)
    }),
    ("chown", |path| chown(path, None, Some(GROUP))),
];

fn mode(path: &Path) -> io::Result<String> {
    let found = std::fs::symlink_metadata(path)?;
    Ok(format!("{:o} {}:{}", found.mode(), found.uid(), found.gid()))
}

fn file(path: &Path, owner: u32, group: u32, mode: u32) {
    let _ = std::fs::remove_file(path);
    std::fs::write(path, "content").unwrap();
    chown(path, Some(owner), Some(group)).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn directory(path: &Path, owner: u32, group: u32, mode: u32) {
    std::fs::create_dir(path).unwrap();
    chown(path, Some(owner), Some(group)).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

fn set_capability(path: &Path) -> io::Result<i64> {
    // VFS_CAP_REVISION_2 of linux/capability.h, CAP_NET_RAW.
    let value: Vec<u8> = [0x0200_0000_u32, 1 << 13, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect();
    let path = c(path);
    // SAFETY: both names end with NUL, the value has that length.
    done(unsafe { libc::setxattr(path.as_ptr(), CAPABILITY.as_ptr(), value.as_ptr().cast(), value.len(), 0) })
}

fn capability(path: &Path) -> io::Result<i64> {
    let path = c(path);
    // SAFETY: both names end with NUL; nothing is written to a buffer of no length.
    done(unsafe { libc::getxattr(path.as_ptr(), CAPABILITY.as_ptr(), std::ptr::null_mut(), 0) } as i64)
}

pub fn body(log: &mut Log) {
    what_writing_takes_away(log);
    directories(log);
    groups(log);
    protected(log);
}

fn what_writing_takes_away(log: &mut Log) {
    let path = log.at("program");
    for (name, change) in CHANGES {
        for (owner, special) in [(ONE, 0o6777), (ONE, 0o2747), (ONE, 0o4666), (0, 0o6755)] {
            file(&path, owner, owner, special);
            let result = match owner {
                0 => change(&path),
                _ => as_user(ONE, ONE, &[GROUP], || change(&path)),
            };
            log.note(format!("{name} of {special:o} by {owner}"), result);
            log.note("its mode", mode(&path));
        }
        file(&path, TWO, TWO, 0o6777);
        log.note(format!("{name} by a stranger"), as_user(ONE, ONE, &[], || change(&path)));
        log.note("its mode", mode(&path));
        for writer in [ONE, 0] {
            file(&path, ONE, ONE, 0o755);
            log.note("a capability", set_capability(&path));
            log.note("is there", capability(&path));
            log.note(format!("{name} by {writer}"), as_user(writer, writer, &[GROUP], || change(&path)));
            log.note("the capability", capability(&path));
        }
    }
    // One that is given after a write, which may be on its way still.
    let written = OpenOptions::new().append(true).open(&path).unwrap();
    io::Write::write_all(&mut &written, b"before").unwrap();
    log.note("a capability after a write", set_capability(&path));
    drop(written);
    log.note("the capability after close", capability(&path));
    file(&path, ONE, ONE, 0o755);
    let written = OpenOptions::new().append(true).open(&path).unwrap();
    io::Write::write_all(&mut &written, b"before").unwrap();
    log.note("setuid after a write", std::fs::set_permissions(&path, PermissionsExt::from_mode(0o4755)));
    drop(written);
    log.note("its mode after close", mode(&path));
}

fn directories(log: &mut Log) {
    let (sticky, shared) = (log.at("sticky"), log.at("shared"));
    directory(&sticky, 0, 0, 0o1777);
    file(&sticky.join("one"), ONE, ONE, 0o666);
    file(&sticky.join("two"), TWO, TWO, 0o666);
    let remove = |path: &str| std::fs::remove_file(sticky.join(path));
    log.note("remove another's in sticky", as_user(TWO, TWO, &[], || remove("one")));
    log.note(
        "rename another's in sticky",
        as_user(TWO, TWO, &[], || std::fs::rename(sticky.join("one"), sticky.join("x"))),
    );
    log.note(
        "rename over another's",
        as_user(TWO, TWO, &[], || std::fs::rename(sticky.join("two"), sticky.join("one"))),
    );
    log.note("rename one's own", as_user(ONE, ONE, &[], || std::fs::rename(sticky.join("one"), sticky.join("x"))));
    log.note("remove one's own", as_user(ONE, ONE, &[], || remove("x")));
    log.note("remove by root", remove("two"));

    directory(&shared, 0, GROUP, 0o2775);
    as_user(ONE, ONE, &[GROUP], || {
        log.note("mkdir in setgid", std::fs::create_dir(shared.join("d")));
        log.note("create in setgid", File::create(shared.join("f")).map(drop));
        log.note("symlink in setgid", symlink("f", shared.join("l")));
        log.note(
            "fifo in setgid",
            nix::unistd::mkfifo(&shared.join("p"), Mode::from_bits_truncate(0o644)).map_err(std::io::Error::from),
        );
        let open = |name: &str| {
            OpenOptions::new().write(true).create(true).truncate(false).mode(0o2755).open(shared.join(name))
        };
        log.note("setgid file of a member", open("s").map(drop));
        log.note("mkdir further down", std::fs::create_dir(shared.join("d/e")));
    });
    directory(&log.at("open"), 0, GROUP, 0o2777);
    let open = log.at("open");
    as_user(ONE, ONE, &[], || {
        let file = |mode| {
            OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(open.join(format!("{mode:o}")))
        };
        log.note("setgid file of a stranger", file(0o2755).map(drop));
        log.note("setgid file of a stranger, not executable", file(0o2644).map(drop));
        log.note("mkdir by a stranger", std::fs::create_dir(open.join("d")));
        log.note(
            "chmod g+s by a stranger",
            std::fs::set_permissions(open.join("2755"), PermissionsExt::from_mode(0o2755)),
        );
    });
    for name in
        ["shared/d", "shared/f", "shared/l", "shared/p", "shared/s", "shared/d/e", "open/2755", "open/2644", "open/d"]
    {
        log.note(name, mode(&log.at(name)));
    }
    let masks = log.at("masks");
    directory(&masks, 0, 0, 0o777);
    for (uid, mask) in [(ONE, 0o027), (TWO, 0o777), (0, 0o002)] {
        let before = umask(Mode::from_bits_truncate(mask));
        as_user(uid, uid, &[], || {
            std::fs::write(masks.join(format!("f{uid}")), "").unwrap();
            std::fs::create_dir(masks.join(format!("d{uid}"))).unwrap();
        });
        umask(before);
        log.note("a file", mode(&masks.join(format!("f{uid}"))));
        log.note("a directory", mode(&masks.join(format!("d{uid}"))));
    }
}

fn groups(log: &mut Log) {
    let (secret, inner) = (log.at("secret"), log.at("inner"));
    file(&secret, 0, GROUP, 0o640);
    directory(&inner, 0, GROUP, 0o710);
    file(&inner.join("f"), 0, 0, 0o644);
    for (name, list) in [("a member", &[7, GROUP, 8][..]), ("a stranger", &[7, 8])] {
        as_user(ONE, ONE, list, || {
            log.note(format!("{name} reads"), std::fs::read(&secret));
            log.note(format!("{name} writes"), std::fs::write(&secret, "x"));
            log.note(format!("{name} goes through"), std::fs::read(inner.join("f")));
            log.note(format!("{name} lists"), std::fs::read_dir(&inner).map(|entries| entries.count()));
        });
    }
    let own = log.at("own");
    for target in [GROUP, 2001, 0] {
        file(&own, ONE, ONE, 0o644);
        log.note(format!("chgrp to {target}"), as_user(ONE, ONE, &[GROUP], || chown(&own, None, Some(target))));
        log.note("its owner", mode(&own));
    }
    log.note("give away", as_user(ONE, ONE, &[], || chown(&own, Some(TWO), None)));
    log.note(
        "chmod another's",
        as_user(TWO, TWO, &[], || std::fs::set_permissions(&own, PermissionsExt::from_mode(0o777))),
    );
    log.note(
        "touch another's",
        as_user(TWO, TWO, &[], || File::open(&own)?.set_modified(std::time::SystemTime::UNIX_EPOCH)),
    );
}

/// protected_hardlinks, protected_symlinks, protected_fifos, protected_regular (proc_sys_fs(5)), as they are set.
fn protected(log: &mut Log) {
    let place = log.at("tmp");
    directory(&place, TWO, TWO, 0o1777);
    file(&log.at("roots"), 0, 0, 0o644);
    file(&place.join("twos"), TWO, TWO, 0o666);
    let (link, roots) = (place.join("link"), log.at("roots"));
    log.note("a hard link of root's", as_user(ONE, ONE, &[], || std::fs::hard_link(&roots, place.join("hard"))));
    as_user(ONE, ONE, &[], || symlink(&roots, &link)).unwrap();
    log.note("a link of another's", as_user(1003, 1003, &[], || std::fs::read(&link)));
    log.note("root follows it", std::fs::read(&link));
    log.note("its owner follows it", as_user(ONE, ONE, &[], || std::fs::read(&link)));
    as_user(ONE, ONE, &[], || std::fs::write(place.join("ones"), "x")).unwrap();
    std::fs::set_permissions(place.join("ones"), PermissionsExt::from_mode(0o666)).unwrap();
    let create = |name: &str| {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NONBLOCK)
            .open(place.join(name))
            .map(drop)
    };
    log.note("O_CREAT of another's", as_user(1003, 1003, &[], || create("ones")));
    log.note("O_CREAT of another's by root", create("ones"));
    as_user(ONE, ONE, &[], || nix::unistd::mkfifo(&place.join("fifo"), Mode::from_bits_truncate(0o666))).unwrap();
    log.note("O_CREAT of another's fifo", as_user(1003, 1003, &[], || create("fifo")));
}

#[test]
fn owners_modes_groups_and_what_a_write_takes_away_are_those_of_the_backing() {
    let local = Local::new("");
    agree(&local, "rights");
    local.end();
}
