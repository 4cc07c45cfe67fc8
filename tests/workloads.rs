//! Programs that people trust to notice damage, through short outages: fio with checksums, SQLite, git and rsync. None of
//! them sees an error, and none of them finds anything wrong afterwards.
#![allow(clippy::unwrap_used)]

mod lab;

use std::path::Path;
use std::process::{Child, Command, Stdio};

use lab::scenario::wait_for_successor;
use lab::{Lab, run, wait};
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

/// Outages that are shorter than the deadline, one after the other, while a program runs.
fn strike_thrice(lab: &Lab) {
    type Strike = fn(&Lab);
    let strikes: [Strike; 3] = [
        |lab| lab.signal("sshfs", Signal::SIGKILL),
        |lab| lab.signal("ssh", Signal::SIGSTOP),
        |lab| lab.sshd.kill_sessions(),
    ];
    for (number, strike) in (1..).zip(strikes) {
        lab::sleep_secs(1.0);
        strike(lab);
        wait_for_successor(lab, number);
    }
}

/// A program that was struck while it ran, and that it ended well.
fn survives(lab: &Lab, name: &str, command: &mut Command) {
    let output = std::fs::File::create(lab.path(name)).unwrap();
    let errors = output.try_clone().unwrap();
    let mut child = command.stdin(Stdio::null()).stdout(output).stderr(errors).spawn().unwrap();
    strike_thrice(lab);
    assert!(child.try_wait().unwrap().is_none(), "{name} ended before the last strike: {}", said(lab, name));
    wait_for_end(&mut child);
    let status = child.wait().unwrap();
    assert!(status.success(), "{name}: {status}: {}", said(lab, name));
    assert_eq!(lab.status()["calls"]["outage"], 0, "{name} was told of an outage");
}

fn said(lab: &Lab, name: &str) -> String {
    std::fs::read_to_string(lab.path(name)).unwrap()
}

fn wait_for_end(child: &mut Child) {
    wait("the program ends", || child.try_wait().unwrap().is_some());
}

#[test]
fn fio_finds_every_checksum() {
    let lab = Lab::new("");
    survives(&lab, "fio", &mut lab::tools::fio(&lab.hot));
    lab.umount();
}

const SQLITE: &str = r#"
import sqlite3, sys, time
path, until = sys.argv[1], time.time() + 10
db = sqlite3.connect(path, timeout=20, isolation_level=None)
db.execute("pragma journal_mode=delete"); db.execute("pragma synchronous=full")
db.execute("create table t(id integer primary key, data blob, sum integer)")
number = 0
while time.time() < until:
    db.execute("begin immediate")
    for _ in range(20):
        data = bytes((number * 31 + i * 7) % 256 for i in range(number % 3000))
        db.execute("insert into t values(?, ?, ?)", (number, data, sum(data)))
        number += 1
    if number % 100 == 0:
        db.execute("delete from t where id % 7 = 0 and id < ?", (number - 50,))
    db.execute("commit")
db.close()
print(number)
"#;

const SQLITE_CHECK: &str = r#"
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
wanted, found = int(sys.argv[2]), dict(db.execute("select id, sum from t"))
for number in range(wanted):
    if number % 7 or number >= wanted - 150:
        assert number in found or number % 7 == 0, number
for number, data, total in db.execute("select id, data, sum from t"):
    assert data == bytes((number * 31 + i * 7) % 256 for i in range(number % 3000)) and sum(data) == total, number
"#;

#[test]
fn sqlite_finds_its_database_whole() {
    let lab = Lab::new("");
    let path = lab.hot.join("db").display().to_string();
    survives(&lab, "sqlite", Command::new("python3").args(["-c", SQLITE, &path]));
    let written = said(&lab, "sqlite").trim().to_owned();
    println!("== SQLite: {written} rows through three outages");
    // What the store has, read by itself.
    let store = lab.store.join("db").display().to_string();
    let check = run("python3", &["-c", SQLITE_CHECK, &store, &written]);
    assert!(check.status.success(), "{check:?}");
    assert!(!lab.store.join("db-journal").exists());
    lab.umount();
}

const GIT: &str = r#"
set -e
cd "$1"
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@example.org GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@example.org
export GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null
git init -q repository
cd repository
git config gc.auto 0
end=$(($(date +%s) + 11))
number=0
while [ "$(date +%s)" -lt "$end" ]; do
    number=$((number + 1))
    mkdir -p "d$((number % 5))"
    head -c $((number * 997 % 60000)) /dev/urandom > "d$((number % 5))/f$number"
    git add -A
    git commit -q -m "$number"
done
git repack -q -a -d
echo "$number"
"#;

#[test]
fn git_finds_every_object() {
    let lab = Lab::new("");
    survives(&lab, "git", Command::new("bash").args(["-c", GIT, "git", lab.hot.to_str().unwrap()]));
    println!("== git: {} commits through three outages", said(&lab, "git").trim());
    let store = lab.store.join("repository").display().to_string();
    let safe = format!("safe.directory={store}");
    for arguments in [&["fsck", "--full", "--strict"][..], &["status", "--porcelain"], &["log", "--stat", "--oneline"]]
    {
        let output = run("git", &[&["-c", &safe, "-C", &store], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        assert!(arguments[0] != "status" || output.stdout.is_empty(), "{output:?}");
    }
    lab.umount();
}

/// Files of many sizes, in a directory outside the mount.
fn grow(root: &Path) {
    for number in 0..400_usize {
        let directory = root.join(format!("d{}", number % 13));
        std::fs::create_dir_all(&directory).unwrap();
        let data: Vec<u8> = (0..number * number % 150_000).map(|i| (i * 31 + number) as u8).collect();
        std::fs::write(directory.join(format!("f{number}")), data).unwrap();
    }
}

#[test]
fn rsync_finds_no_difference() {
    let lab = Lab::new("");
    let source = lab.path("source");
    grow(&source);
    let (from, to) = (format!("{}/", source.display()), lab.hot.join("copy"));
    let mut rsync = Command::new("rsync");
    rsync.args(["-a", "--bwlimit=3M", &from]).arg(&to);
    survives(&lab, "rsync", &mut rsync);
    let store = lab.store.join("copy");
    let compared = run("rsync", &["-rcn", "--delete", "--itemize-changes", &from, store.to_str().unwrap()]);
    assert!(compared.status.success() && compared.stdout.is_empty(), "{compared:?}");
    lab.umount();
}
