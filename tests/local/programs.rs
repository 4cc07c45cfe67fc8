//! Programs run from the overlay; what is not a plain file.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use super::compare::{Log, agree, differences};
use super::rig::Local;
use crate::lab::wait;

fn run(path: &Path, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(path).args(arguments).stdin(Stdio::null()).output()?;
    Ok(format!("{} {}", output.status, String::from_utf8_lossy(&output.stdout).trim()))
}

fn install(program: &str, to: &Path, mode: u32) {
    std::fs::copy(program, to).unwrap();
    std::fs::set_permissions(to, PermissionsExt::from_mode(mode)).unwrap();
}

pub fn body(log: &mut Log) {
    let (script, sleeper, who) = (log.at("script"), log.at("sleeper"), log.at("who"));
    std::fs::write(&script, "#!/bin/sh\necho script $1\n").unwrap();
    log.note("not executable", run(&script, &[]));
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    log.note("a script", run(&script, &["runs"]));
    let interpreter = log.at("sh");
    install("/bin/sh", &interpreter, 0o755);
    std::fs::write(&script, format!("#!{} -e\necho own interpreter\n", interpreter.display())).unwrap();
    log.note("its interpreter is here too", run(&script, &[]));
    install("/usr/bin/id", &who, 0o755);
    log.note("a program", run(&who, &["-u"]));
    chown(&who, Some(1001), Some(1001)).unwrap();
    std::fs::set_permissions(&who, PermissionsExt::from_mode(0o6755)).unwrap();
    log.note("setuid", run(&who, &["-u"]));
    log.note("setgid", run(&who, &["-g"]));

    install("/bin/sleep", &sleeper, 0o755);
    let mut running = Command::new(&sleeper).arg("1000").spawn().unwrap();
    let write = || OpenOptions::new().write(true).open(&sleeper).map(drop);
    wait("it runs", || write().is_err());
    log.note("a write to what runs", write());
    log.note("O_TRUNC of what runs", File::create(&sleeper).map(drop));
    log.note("a truncate of what runs", nix::unistd::truncate(&sleeper, 0).map_err(io::Error::from));
    log.note("unlinked while it runs", std::fs::remove_file(&sleeper));
    running.kill().unwrap();
    running.wait().unwrap();
    install("/bin/true", &sleeper, 0o755);
    let writer = OpenOptions::new().write(true).open(&sleeper).unwrap();
    log.note("what is written to", run(&sleeper, &[]));
    drop(writer);
    log.note("afterwards", run(&sleeper, &[]));

    mapped(log, &who);
    others(log);
}

/// As a shared library is.
fn mapped(log: &mut Log, path: &Path) {
    let file = File::open(path).unwrap();
    let protection = libc::PROT_READ | libc::PROT_EXEC;
    // SAFETY: a new mapping of a file that nobody cuts meanwhile.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), 4096, protection, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    log.see("mapped to be executed", map != libc::MAP_FAILED);
    if map != libc::MAP_FAILED {
        // SAFETY: four bytes of a page that is mapped.
        log.see("it is", unsafe { std::slice::from_raw_parts(map.cast::<u8>(), 4) }.to_vec());
    }
}

fn others(log: &mut Log) {
    let fifo = log.at("fifo");
    nix::unistd::mkfifo(&fifo, Mode::from_bits_truncate(0o600)).unwrap();
    let nobody = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(&fifo);
    log.note("a fifo without a reader", nobody.map(drop));
    let mut shell = Command::new("sh").args(["-c", "echo through > \"$1\"", "sh"]).arg(&fifo).spawn().unwrap();
    log.note("through a fifo", std::fs::read_to_string(&fifo));
    shell.wait().unwrap();
    let socket = log.at("socket");
    // A path of a socket is no longer than 107 bytes.
    std::env::set_current_dir(log.at("")).unwrap();
    let listener = UnixListener::bind("socket").unwrap();
    log.note("its type", std::fs::metadata(&socket).map(|found| found.file_type().is_socket()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["programs::connecting_process", "--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("LOCAL_CONNECT", "1")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut text = String::new();
    log.note("through a socket", listener.accept().and_then(|(mut stream, _)| stream.read_to_string(&mut text)));
    log.see("it says", text);
    child.wait().unwrap();
    log.note("bound twice", UnixListener::bind("socket").map(drop));
    drop(listener);
    log.note("nobody listens", UnixStream::connect("socket").map(drop));
    let null = log.at("null");
    mknod(&null, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(1, 3)).unwrap();
    log.note(
        "a device",
        OpenOptions::new().read(true).write(true).open(&null).and_then(|mut null| null.write(b"gone")),
    );
    log.note("its type", std::fs::metadata(&null).map(|found| found.file_type().is_char_device()));
}

/// In the directory of the socket.
#[test]
#[ignore = "a process of other tests, not a test"]
fn connecting_process() {
    if std::env::var_os("LOCAL_CONNECT").is_some() {
        UnixStream::connect("socket").unwrap().write_all(b"hello").unwrap();
    }
}

#[test]
fn programs_devices_fifos_and_sockets_are_those_of_the_backing() {
    let local = Local::new("suid,dev");
    agree(&local, "programs");
    local.end();
}

#[test]
fn without_suid_and_dev_programs_and_devices_have_no_special_rights() {
    let local = Local::new("");
    let differences = differences(&local, "programs");
    let starts = |line: &str| line.split(':').next().unwrap().to_owned();
    let found: Vec<_> = differences.iter().map(|(_, found)| starts(found)).collect();
    assert_eq!(found, ["setuid", "setgid", "a device"], "{differences:#?}");
    assert!(differences[0].1.ends_with(" 0\""), "{differences:#?}");
    assert!(differences[2].1.ends_with("EACCES"), "{differences:#?}");
    local.end();
}
