//! A server that speaks SFTP and nothing on top of it (draft-ietf-secsh-filexfer-02): no fsync, no hard links, no rename over
//! a file, no figures of space.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;

use super::rig::Pair;
use super::said::{Log, agree};

const NONE_OF: &str = "-P posix-rename,hardlink,fsync,statvfs,fstatvfs,lsetstat";

/// What an event says of it.
const TOLD: &str = "does not know fsync@openssh.com";

pub fn body(log: &mut Log) {
    let at = |name: &str| log.at(name);
    let (f, g, h) = (at("f"), at("g"), at("h"));
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&f).unwrap();
    let file = open();
    file.write_all_at(b"content", 0).unwrap();
    log.note("fsync", file.sync_all());
    log.note("fsync again", file.sync_all());
    log.note("fdatasync", file.sync_data());
    drop(file);
    log.note("link", std::fs::hard_link(&f, &g));
    log.note("link again", std::fs::hard_link(&f, &g));
    log.note("nothing is made", g.try_exists());
    log.note("rename", std::fs::rename(&f, &g));
    std::fs::write(&h, "other").unwrap();
    log.note("rename over a file", std::fs::rename(&h, &g));
    log.note("both are there", Ok((std::fs::read_to_string(&h).unwrap(), std::fs::read_to_string(&g).unwrap())));
    for directory in ["d", "e"] {
        std::fs::create_dir(log.at(directory)).unwrap();
    }
    log.note("rename over a directory", std::fs::rename(log.at("d"), log.at("e")));
    let file = OpenOptions::new().read(true).open(&g).unwrap();
    log.note("unlink of an open file", std::fs::remove_file(&g));
    let mut content = [0; 7];
    log.note("it goes on", file.read_exact_at(&mut content, 0).map(|()| content));
    drop(file);
    std::os::unix::fs::symlink("h", log.at("l")).unwrap();
    log.note("statvfs", nix::sys::statvfs::statvfs(&log.at(".")).map(|_| ()).map_err(std::io::Error::from));
    log.note("the end", std::fs::read_to_string(&h));
}

#[test]
fn a_server_without_extensions() {
    let pair = Pair::of("", NONE_OF, "", "");
    let said = agree(&pair, "extensions", &[]);
    for line in ["fsync: ()", "link: EPERM", "nothing is made: false", "rename: ()", "rename over a file: EPERM"] {
        assert!(said.contains(&line.to_owned()), "{line}: {said:#?}");
    }
    let held = "both are there: (\"other\", \"content\")".to_owned();
    assert!(said.contains(&held), "a rename that is refused changes nothing: {said:#?}");
    // A probe may be sent during an fsync, which then proves nothing.
    let synced = std::fs::File::create(pair.hot.join("synced")).unwrap();
    crate::lab::wait("it is told", || {
        synced.write_all_at(b"record", 0).and_then(|()| synced.sync_all()).unwrap();
        pair.log().contains(TOLD)
    });
    drop(synced);
    // An fsync waits for the server to have it all, which is as much as can be had: what it has outlives everything here.
    std::fs::write(pair.hot.join("big"), vec![7; 1 << 20]).unwrap();
    assert_eq!(std::fs::read(pair.stored("big")).unwrap(), vec![7; 1 << 20]);
    pair.kill_sshfs();
    assert_eq!(std::fs::read(pair.hot.join("big")).unwrap(), vec![7; 1 << 20]);
    assert_eq!(std::fs::read_to_string(pair.hot.join("h")).unwrap(), "other");
    pair.end();
}

#[test]
fn a_server_that_knows_fsync_is_not_said_not_to() {
    let pair = Pair::new("gather=0");
    let file = OpenOptions::new().write(true).create_new(true).open(pair.hot.join("f")).unwrap();
    for number in 0..25 {
        file.write_all_at(b"record", number * 6).unwrap();
        file.sync_all().unwrap();
        file.sync_all().unwrap();
    }
    drop(file);
    assert!(!pair.log().contains(TOLD), "{}", pair.log());
    pair.end();
}
