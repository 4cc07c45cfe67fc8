//! One generation of a real sshfs over a local sftp-server: it starts, serves, hangs, is aborted, and leaves nothing.
//! Needs root, /dev/fuse and sshfs.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use steadfs::backing::sshfs::SshfsBacking;
use steadfs::backing::{Backing, ExitSink, Generation, StartError, mountinfo};

const LIMIT: Duration = Duration::from_secs(20);

struct Rig {
    directory: tempfile::TempDir,
    backing: SshfsBacking,
    exits: Receiver<String>,
    sink: ExitSink,
}

/// A program that stands in for ssh and is its own server.
fn transport(directory: &Path) -> PathBuf {
    let path = directory.join("transport");
    let server = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("sftp-server is installed (package openssh-sftp-server)");
    std::fs::write(&path, format!("#!/bin/sh\nexec {server}\n")).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    path
}

fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let (store, run) = (directory.path().join("store"), directory.path().join("run"));
    std::fs::create_dir(&store).unwrap();
    std::fs::create_dir(&run).unwrap();
    let options = [format!("ssh_command={}", transport(directory.path()).display())];
    let backing = SshfsBacking::new(&format!("localhost:{}", store.display()), &options, &run).unwrap();
    let (sender, exits) = channel();
    let sender = Mutex::new(sender);
    Rig { directory, backing, exits, sink: Arc::new(move |exit| _ = sender.lock().send(exit.what)) }
}

impl Rig {
    fn start(&self, number: u64) -> Arc<dyn Generation> {
        self.backing.start(number, LIMIT, Arc::clone(&self.sink)).expect("sshfs starts")
    }

    fn mounts(&self) -> usize {
        mountinfo::entries().unwrap().iter().filter(|entry| entry.mountpoint.starts_with(self.directory.path())).count()
    }

    fn processes(&self) -> Vec<i32> {
        let name = self.directory.path().to_string_lossy().into_owned();
        std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&name))
            })
            .collect()
    }
}

/// A test that fails leaves nothing either: a sweep aborts and unmounts what is there, and sshfs ends.
impl Drop for Rig {
    fn drop(&mut self) {
        let _ = SshfsBacking::new("localhost:/", &[], &self.directory.path().join("run"));
    }
}

fn end(rig: &Rig, generation: &dyn Generation) {
    generation.abort();
    generation.retire().expect("nothing is left");
    assert_eq!((rig.mounts(), rig.processes()), (0, vec![]));
}

#[test]
fn a_generation_serves_and_leaves_nothing() {
    let rig = rig();
    let generation = rig.start(1);
    assert!(generation.probe().expect("a probe is answered").blocks > 0);
    let file = generation.tree().create(Path::new("file"), libc::O_RDWR, 0o640).expect("a file is made");
    assert_eq!(file.write_at(b"hello", 0), Ok(5));
    assert_eq!(file.sync(false), Ok(()));
    assert_eq!(std::fs::read(rig.directory.path().join("store/file")).unwrap(), b"hello");
    drop(file);
    end(&rig, &*generation);
    assert!(rig.exits.try_recv().is_err(), "an end that was asked for is no news");
}

#[test]
fn a_killed_sshfs_is_reported_at_once_and_its_calls_fail() {
    let rig = rig();
    let generation = rig.start(1);
    let sshfs = rig.processes()[0];
    kill(Pid::from_raw(sshfs), Signal::SIGKILL).unwrap();
    // ssh ends too, of itself; either may be seen first.
    let reports =
        [rig.exits.recv_timeout(LIMIT), rig.exits.recv_timeout(LIMIT)].map(|report| report.expect("a report"));
    assert!(reports.iter().any(|what| what.contains("SIGKILL")), "{reports:?}");
    assert_eq!(generation.probe(), Err(Errno::ENOTCONN));
    end(&rig, &*generation);
    let second = rig.start(2);
    assert!(second.probe().is_ok());
    end(&rig, &*second);
}

#[test]
fn a_call_into_a_frozen_sshfs_is_freed_by_the_abort() {
    let rig = rig();
    let generation = rig.start(1);
    kill(Pid::from_raw(rig.processes()[0]), Signal::SIGSTOP).unwrap();
    let end_of_freeze = Instant::now() + LIMIT;
    while !generation.vitals().stopped {
        assert!(Instant::now() < end_of_freeze, "the freeze was not seen");
    }
    let (sender, result) = channel();
    let stuck = Arc::clone(&generation);
    std::thread::spawn(move || sender.send(stuck.probe()));
    assert!(result.recv_timeout(Duration::from_millis(300)).is_err(), "a frozen sshfs answers nothing");
    generation.abort();
    let freed = result.recv_timeout(Duration::from_secs(5)).expect("the call is freed");
    assert!(matches!(freed, Err(Errno::ECONNABORTED | Errno::ENOTCONN)), "{freed:?}");
    end(&rig, &*generation);
}

#[test]
fn a_missing_directory_is_named_and_nothing_is_left() {
    let rig = rig();
    std::fs::remove_dir(rig.directory.path().join("store")).unwrap();
    let error = rig.backing.start(1, LIMIT, Arc::clone(&rig.sink)).err().expect("no start");
    assert!(matches!(&error, StartError::Local(words) if words.contains("No such file or directory")), "{error:?}");
    assert_eq!((rig.mounts(), rig.processes()), (0, vec![]));
}

#[test]
fn what_a_killed_predecessor_left_is_swept_though_it_is_frozen() {
    let rig = rig();
    let generation = rig.start(1);
    rig.processes().iter().for_each(|&pid| kill(Pid::from_raw(pid), Signal::SIGSTOP).unwrap());
    // As after a kill -9 of the daemon: nobody retires it.
    std::mem::forget(generation);
    assert_eq!(rig.mounts(), 1);
    let run = rig.directory.path().join("run");
    SshfsBacking::new("localhost:/", &[], &run).expect("sweeps");
    assert_eq!(rig.mounts(), 0);
    let until = Instant::now() + LIMIT;
    while !rig.processes().is_empty() {
        assert!(Instant::now() < until, "sshfs did not end");
    }
    assert_eq!(std::fs::read_dir(run).unwrap().count(), 0);
}
