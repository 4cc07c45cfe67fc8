//! Names on a good store that a program might take for something else.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::lab::{process, relayed::Relayed, wait};

/// Control characters, what is no UTF-8, the longest name, what looks like an option, an escape or a directory.
const NAMES: [&[u8]; 16] = [
    b"new\nline",
    b"\xff\xfe\x80",
    &[b'x'; 255],
    b"-o",
    b"-oProxyCommand=touch x",
    b"--",
    b"..foo",
    b"...",
    b"a\x1b[2Jb",
    b"tab\tbell\x07",
    b"quote'\"`$(x)",
    b"back\\slash\\n",
    b"%25%0a",
    b" blank ",
    "turned\u{202e}txt".as_bytes(),
    b"a,suid",
];

fn steadfs(rig: &Relayed, arguments: &[&str]) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
    let directory = rig.directory();
    command.args(arguments).env("STEADFS_RUNTIME_DIR", directory.join("run"));
    let output = command.env("STEADFS_STATE_DIR", directory.join("state")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("what is printed is text")
}

/// Nothing in it that a terminal obeys.
fn assert_plain(what: &str, text: &str) {
    let bad: Vec<char> = text.chars().filter(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}').collect();
    assert!(bad.is_empty(), "{what} has {bad:?}: {}", text.escape_debug());
}

#[test]
fn hostile_names_round_trip_and_survive_a_repair() {
    let mut rig = Relayed::new("");
    let fresh = rig.fresh();
    let mut open = Vec::new();
    for name in NAMES {
        let name = OsStr::from_bytes(name);
        let mut file = File::options().read(true).write(true).create_new(true).open(fresh.hot.join(name)).unwrap();
        file.write_all(name.as_bytes()).unwrap();
        open.push(file);
    }
    let sshfs = rig.family().into_iter().find(|&pid| process::name(pid) == "sshfs").unwrap();
    let generation = rig.status()["generation"].clone();
    process::signal(sshfs, Signal::SIGKILL);
    wait("another generation", || rig.status()["generation"] != generation && rig.status()["state"] == "live");
    for (name, mut file) in NAMES.into_iter().zip(open) {
        let mut data = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut data).unwrap();
        assert_eq!(data, name, "{}", name.escape_ascii());
        file.sync_all().unwrap();
    }
    let listed = |path: &std::path::Path| {
        let mut names: Vec<_> =
            std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().as_bytes().to_vec()).collect();
        names.sort();
        names
    };
    let mut wanted: Vec<_> = NAMES.iter().map(|name| name.to_vec()).collect();
    wanted.sort();
    assert_eq!((listed(&fresh.hot), listed(&fresh.store)), (wanted.clone(), wanted));
    for name in NAMES {
        // A name of 255 bytes is renamed to another one as long.
        let mut other = name.to_vec();
        *other.last_mut().unwrap() = b'Z';
        let (from, to) = (fresh.hot.join(OsStr::from_bytes(name)), fresh.hot.join(OsStr::from_bytes(&other)));
        std::fs::rename(&from, &to).unwrap();
        assert_eq!(std::fs::read(fresh.store.join(OsStr::from_bytes(&other))).unwrap(), name);
        std::fs::remove_file(to).unwrap();
    }
    assert_eq!(listed(&fresh.store), Vec::<Vec<u8>>::new());
    rig.settle().unwrap();
    rig.umount();
}

#[test]
fn names_that_steadfs_keeps_for_itself_are_nobody_elses() {
    let mut rig = Relayed::new("");
    let fresh = rig.fresh();
    for name in [".steadfs-hidden-0000", ".fuse_hidden0000000100000001"] {
        std::fs::write(fresh.store.join(name), "theirs").unwrap();
        assert!(std::fs::write(fresh.hot.join(name), "x").is_err(), "{name}");
        assert!(std::fs::read(fresh.hot.join(name)).is_err(), "{name}");
        assert!(std::fs::remove_file(fresh.hot.join(name)).is_err(), "{name}");
        std::fs::write(fresh.hot.join("plain"), "x").unwrap();
        assert!(std::fs::rename(fresh.hot.join("plain"), fresh.hot.join(name)).is_err(), "{name}");
        assert_eq!(std::fs::read_to_string(fresh.store.join(name)).unwrap(), "theirs", "{name}");
        assert_eq!(std::fs::read_dir(&fresh.hot).unwrap().count(), 1, "it is not shown");
    }
    rig.umount();
}

#[test]
fn a_hostile_name_is_escaped_wherever_it_is_told() {
    for name in [&b"new\nline\x1b[2J\x9b1m"[..], "c1\u{9b}31m\u{202e}x\r\n".as_bytes()] {
        let mut rig = Relayed::new("deadline=2s,gather=0");
        let fresh = rig.fresh();
        let path = OsStr::from_bytes(name);
        let mut file = File::options().write(true).create_new(true).open(fresh.hot.join(path)).unwrap();
        file.write_all(b"synced").unwrap();
        file.sync_all().unwrap();
        // Nobody can be reached, what is on the store becomes another file, and something is written meanwhile.
        rig.relay.is_away(true);
        let sshfs = rig.family().into_iter().find(|&pid| process::name(pid) == "sshfs").unwrap();
        file.write_all(b"not yet synced").unwrap();
        process::signal(sshfs, Signal::SIGKILL);
        std::fs::remove_file(fresh.store.join(path)).unwrap();
        std::fs::write(fresh.store.join(path), vec![b'?'; 100_000]).unwrap();
        rig.relay.is_away(false);
        steadfs(&rig, &["recover", rig.mountpoint().to_str().unwrap()]);
        wait("it is given up", || rig.status()["log"]["spooled_files_total"] == 1);
        drop(file);
        let list = steadfs(&rig, &["spool", "list"]);
        assert!(list.contains("line") || list.contains("31m"), "{list}");
        assert_plain("the list", &list);
        let entry = list.split_whitespace().next().unwrap().to_owned();
        assert_plain("an entry", &steadfs(&rig, &["spool", "show", &entry]));
        assert_plain("the list as JSON", &steadfs(&rig, &["spool", "list", "--json"]));
        let hot = rig.mountpoint().to_str().unwrap().to_owned();
        assert_plain("the status", &steadfs(&rig, &["status", &hot]));
        let json = steadfs(&rig, &["status", "--json", &hot]);
        assert_plain("the status as JSON", &json);
        assert_eq!(json.lines().count(), 1);
        let log = rig.log();
        assert!(log.contains("31m") || log.contains("line"), "the log names the file:\n{log}");
        assert_plain("the log", &log);
        assert!(log.lines().all(|line| line.contains("Z ")), "each line of the log is one of ours:\n{log}");
        rig.umount();
    }
}
