//! A daemon that started an sshfs is killed, and its successor takes that sshfs over, or ends it. The daemon is this very
//! program, run again; the server is a local sftp-server outside the process group, so that it can be frozen alone.
//! Needs root, /dev/fuse and sshfs.
#![allow(clippy::unwrap_used)]

mod lab;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use parking_lot::Mutex;
use steadfs::backing::process::Process;
use steadfs::backing::record::{AdoptError, Life, SshfsLife};
use steadfs::backing::sshfs::command::Arguments;
use steadfs::backing::sshfs::{SshfsBacking, queue};
use steadfs::backing::{Backing, ExitSink, Generation, Record, mountinfo};
use steadfs::config::{CallPolicy, RepairPolicy};
use steadfs::gate::Gate;
use steadfs::supervisor::{Event, Inbox, Legacy, Parts, PermitParts, Predecessor, Supervisor, Watch};

use lab::{Lab, process, wait};

/// Longer than anything takes on a loaded machine.
const LIMIT: Duration = Duration::from_secs(20);
/// Tells the program, by its environment, that it is the daemon, and of which directory.
const DAEMON: &str = "ADOPTION_DAEMON";

/// A directory with a store, a server, and a daemon that has mounted it.
struct Rig {
    directory: tempfile::TempDir,
    daemon: Child,
}

/// Stands in for ssh: two cats of the group between sshfs and a server in a session of its own.
fn transport(directory: &Path) {
    let server = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .expect("sftp-server is installed (package openssh-sftp-server)");
    let at = directory.display();
    let script = format!(
        "#!/bin/sh\nexec 3<&0\nrm -f {at}/up {at}/down\nmkfifo {at}/up {at}/down\n\
         setsid sh -c 'echo $$ >{at}/server; exec {server} <{at}/up >{at}/down' &\n\
         cat <&3 >{at}/up &\nexec cat {at}/down 3<&-\n"
    );
    std::fs::write(directory.join("transport"), script).unwrap();
    std::fs::set_permissions(directory.join("transport"), PermissionsExt::from_mode(0o755)).unwrap();
}

/// What the daemon was told to mount, and its successor is.
fn target(directory: &Path) -> (String, Vec<String>) {
    let read = |name| std::fs::read_to_string(directory.join(name)).unwrap();
    (read("target"), read("options").lines().map(str::to_owned).collect())
}

fn read_number(path: &Path) -> Option<i32> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Not a test by itself: the daemon that gets killed.
#[test]
fn daemon() {
    let Some(directory) = std::env::var_os(DAEMON).map(PathBuf::from) else { return };
    let (target, options) = target(&directory);
    // What an overlay has, and somebody has forgotten to mark.
    std::mem::forget(nix::fcntl::open("/dev/fuse", OFlag::O_RDWR, Mode::empty()).unwrap());
    let backing = SshfsBacking::new(&target, &options, &directory.join("run")).unwrap();
    let generation = backing.start(1, LIMIT, Arc::new(|_| {})).unwrap();
    let file = generation.tree().create(Path::new("file"), libc::O_RDWR, 0o640).unwrap();
    file.write_at(b"hello", 0).unwrap();
    file.sync(false).unwrap();
    // Whoever finds it finds all of it.
    std::fs::write(directory.join("record.new"), serde_json::to_vec(&generation.record().unwrap()).unwrap()).unwrap();
    std::fs::rename(directory.join("record.new"), directory.join("record")).unwrap();
    // Told to, it writes what the server will not have seen when it dies.
    loop {
        std::thread::sleep(Duration::from_millis(5));
        if directory.join("write").exists() {
            file.write_at(b"old", 0).unwrap();
            std::fs::rename(directory.join("write"), directory.join("written")).unwrap();
        }
    }
}

impl Rig {
    fn new() -> Rig {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root: run them as root");
        let directory = tempfile::tempdir().unwrap();
        for name in ["store", "run"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        transport(directory.path());
        let at = directory.path().display();
        let (target, options) = (format!("localhost:{at}/store"), format!("ssh_command={at}/transport"));
        Rig::over(directory, &target, &options)
    }

    /// Over a laboratory's server; its link can be cut.
    fn over_ssh(lab: &Lab) -> Rig {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("run")).unwrap();
        Rig::over(directory, &lab.source(), &lab.sshd.client_options().replace(',', "\n"))
    }

    fn over(directory: tempfile::TempDir, target: &str, options: &str) -> Rig {
        std::fs::write(directory.path().join("target"), target).unwrap();
        std::fs::write(directory.path().join("options"), options).unwrap();
        // Whoever lets the sshfs go is its parent from then on, as init would be.
        nix::sys::prctl::set_child_subreaper(true).unwrap();
        let daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "daemon", "--nocapture"])
            .env(DAEMON, directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut rig = Rig { directory, daemon };
        let record = rig.path("record");
        wait("the daemon has mounted", || {
            assert!(rig.daemon.try_wait().unwrap().is_none(), "the daemon ended");
            record.exists()
        });
        rig
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn record(&self) -> Record {
        serde_json::from_slice(&std::fs::read(self.path("record")).unwrap()).unwrap()
    }

    fn life(&self) -> SshfsLife {
        match self.record().life {
            Life::Sshfs(life) => life,
            other => panic!("{other:?}"),
        }
    }

    fn sshfs(&self) -> i32 {
        self.life().leader.pid
    }

    fn server(&self) -> i32 {
        read_number(&self.path("server")).unwrap()
    }

    fn kill_daemon(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    /// What is left of the daemon is to be taken over by this backing.
    fn successor(&self) -> SshfsBacking {
        let (target, options) = target(self.directory.path());
        SshfsBacking::after(&Arguments::new(&target, &options, LIMIT), &self.path("run"), Some(1)).unwrap()
    }

    fn adopt(&self, backing: &SshfsBacking) -> Result<Taken, AdoptError> {
        self.adopt_with(backing, None)
    }

    fn adopt_with(&self, backing: &SshfsBacking, root: Option<OwnedFd>) -> Result<Taken, AdoptError> {
        let (sender, exits) = channel();
        let sender = Mutex::new(sender);
        let sink: ExitSink = Arc::new(move |exit| _ = sender.lock().send(exit.what));
        let generation = backing.adopt(&self.record(), root, LIMIT, sink)?;
        Ok(Taken { generation, exits })
    }

    fn refused(&self, backing: &SshfsBacking) -> AdoptError {
        match self.adopt(backing) {
            Ok(_) => panic!("it was taken over"),
            Err(error) => error,
        }
    }

    fn mounts(&self) -> usize {
        let table = mountinfo::entries().unwrap();
        table.iter().filter(|entry| entry.mountpoint.starts_with(self.directory.path())).count()
    }

    /// Everything of the generation that lives.
    fn processes(&self) -> Vec<i32> {
        process::mentioning(self.directory.path().to_str().unwrap())
    }

    fn assert_nothing_left(&self) {
        assert_eq!(self.mounts(), 0);
        wait("every process has ended", || self.processes().is_empty());
        assert_eq!(std::fs::read_dir(self.path("run")).unwrap().count(), 0);
    }
}

struct Taken {
    generation: Arc<dyn Generation>,
    exits: Receiver<String>,
}

impl Taken {
    fn read(&self, name: &str) -> Vec<u8> {
        let file = self.generation.tree().open(Path::new(name), libc::O_RDONLY).unwrap();
        let mut bytes = vec![0; 100];
        let length = file.read_at(&mut bytes, 0).unwrap();
        bytes.truncate(length);
        bytes
    }

    fn end(&self) {
        self.generation.abort();
        self.generation.retire().expect("nothing is left");
    }
}

/// A test that fails leaves nothing either.
impl Drop for Rig {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        if let Some(server) = read_number(&self.path("server")).filter(|&pid| self.processes().contains(&pid)) {
            process::signal(server, Signal::SIGKILL);
        }
        let _ = umount2(&self.path("run/gen-1"), MntFlags::MNT_DETACH);
        let _ = SshfsBacking::new("localhost:/", &[], &self.path("run"));
        let _ = self.daemon.wait();
    }
}

#[test]
fn the_same_sshfs_serves_on_and_its_end_is_noticed_at_once() {
    let mut rig = Rig::new();
    rig.kill_daemon();
    let (backing, before) = (rig.successor(), rig.processes());
    let taken = rig.adopt(&backing).unwrap();
    assert_eq!(rig.processes(), before, "nothing ended and nothing was started");
    assert_eq!(taken.read("file"), b"hello");
    let file = taken.generation.tree().open(Path::new("file"), libc::O_RDWR).unwrap();
    assert_eq!((file.write_at(b"HE", 0), file.sync(false)), (Ok(2), Ok(())));
    assert_eq!(std::fs::read(rig.path("store/file")).unwrap(), b"HEllo");
    // It can be handed on.
    let again = taken.generation.record().unwrap();
    assert_eq!((again.number, again.began_ms, again.daemon), (1, rig.record().began_ms, Process::own()));
    assert_eq!(again.life, rig.record().life);
    assert!(!taken.generation.vitals().stopped);
    process::signal(rig.sshfs(), Signal::SIGKILL);
    // The cats end too, of themselves; who is seen first does not matter.
    let mut reports = vec![taken.exits.recv_timeout(LIMIT).expect("a report")];
    while !reports.iter().any(|what| what.contains("sshfs")) {
        reports.push(taken.exits.recv_timeout(LIMIT).expect("one of sshfs"));
    }
    assert!(taken.generation.probe().is_err());
    drop(file);
    taken.end();
    rig.assert_nothing_left();
}

#[test]
fn a_root_that_was_kept_is_used_and_one_of_something_else_is_not() {
    let mut rig = Rig::new();
    let kept: OwnedFd = File::open(rig.path("run/gen-1")).unwrap().into();
    rig.kill_daemon();
    let taken = rig.adopt_with(&rig.successor(), Some(kept)).unwrap();
    let root = taken.generation.root().unwrap().as_fd().try_clone_to_owned().unwrap();
    assert_eq!(taken.read("file"), b"hello");
    drop(root);
    taken.end();
    rig.assert_nothing_left();

    let mut rig = Rig::new();
    rig.kill_daemon();
    let wrong: OwnedFd = File::open("/").unwrap().into();
    let taken = rig.adopt_with(&rig.successor(), Some(wrong)).unwrap();
    assert_eq!(taken.read("file"), b"hello", "that of the mount is opened");
    taken.end();
    rig.assert_nothing_left();
}

#[test]
fn a_supervisor_takes_over_and_repairs_with_the_next_number() {
    let mut rig = Rig::new();
    rig.kill_daemon();
    let (inbox, watch) = (Inbox::new(), Watch::default());
    let events = watch.subscribe();
    let gate = Gate::new(CallPolicy::default(), inbox.complaints()).unwrap();
    let parts = Parts {
        inbox,
        backing: Arc::new(rig.successor()),
        gate: Arc::clone(&gate),
        restore: Arc::new(|_| Ok(())),
        policy: RepairPolicy::default(),
        permit: PermitParts::default(),
        deadline: CallPolicy::default().deadline,
        watch,
    };
    let predecessor =
        Predecessor { newest: 1, live: Some(Legacy { record: rig.record(), root: None }), outage_since: None };
    let supervisor = Supervisor::resume(parts, predecessor).unwrap();
    let recovered = || loop {
        match events.recv_timeout(LIMIT).expect("an event").1 {
            Event::Recovered { generation, .. } => return generation,
            Event::OutageOverdue { .. } => panic!("too late"),
            _ => {}
        }
    };
    assert_eq!(recovered(), 1);
    process::signal(rig.sshfs(), Signal::SIGKILL);
    assert_eq!(recovered(), 2);
    assert_eq!(rig.mounts(), 1);
    supervisor.stop();
    gate.stop();
    rig.assert_nothing_left();
}

#[test]
fn a_frozen_sshfs_is_refused_and_ended() {
    let mut rig = Rig::new();
    rig.kill_daemon();
    process::stop(rig.sshfs());
    let began = Instant::now();
    assert!(matches!(rig.refused(&rig.successor()), AdoptError::Silent(words) if words.contains("stopped")));
    assert!(began.elapsed() < LIMIT, "it is seen without asking");
    rig.assert_nothing_left();
}

#[test]
fn a_server_that_does_not_answer_is_refused_and_the_next_generation_serves() {
    let mut rig = Rig::new();
    rig.kill_daemon();
    process::signal(rig.server(), Signal::SIGSTOP);
    let backing = rig.successor();
    let record = rig.record();
    let refused = backing.adopt(&record, None, Duration::from_millis(300), Arc::new(|_| {})).err();
    assert!(matches!(refused, Some(AdoptError::Silent(_))), "{refused:?}");
    process::signal(rig.server(), Signal::SIGKILL);
    rig.assert_nothing_left();
    let next = backing.start(2, LIMIT, Arc::new(|_| {})).unwrap();
    assert_eq!(rig.mounts(), 1);
    Taken { generation: next, exits: channel().1 }.end();
    rig.assert_nothing_left();
}

#[test]
fn a_dead_sshfs_is_refused_and_removed_and_so_is_one_whose_ssh_is_dead() {
    for whose in ["sshfs", "ssh"] {
        let mut rig = Rig::new();
        rig.kill_daemon();
        let life = rig.life();
        let other = life.members.iter().find(|member| **member != life.leader).unwrap().pid;
        let victim = if whose == "sshfs" { life.leader.pid } else { other };
        process::signal(victim, Signal::SIGKILL);
        wait("it is dead", || !process::exists(victim) || process::is_zombie(victim));
        assert!(matches!(rig.refused(&rig.successor()), AdoptError::Dead(_)), "{whose}");
        rig.assert_nothing_left();
    }
}

#[test]
fn a_strangers_mount_in_its_place_is_refused_and_left_alone() {
    let mut rig = Rig::new();
    rig.kill_daemon();
    let place = rig.path("run/gen-1");
    mount(Some("stranger"), &place, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    assert!(matches!(rig.refused(&rig.successor()), AdoptError::Foreign(words) if words.contains("stranger")));
    wait("the sshfs has ended", || rig.processes().is_empty());
    assert_eq!(mountinfo::at(&place).unwrap().unwrap().source, "stranger");
    umount2(&place, MntFlags::MNT_DETACH).unwrap();
    drop(rig.successor());
    drop(SshfsBacking::new("localhost:/", &[], &rig.path("run")).unwrap());
    rig.assert_nothing_left();
}

#[test]
fn other_options_or_another_version_are_refused_and_the_old_sshfs_is_ended() {
    let mut rig = Rig::new();
    rig.kill_daemon();
    let (target, mut options) = target(rig.directory.path());
    options.push("cache=no".into());
    let backing = SshfsBacking::after(&Arguments::new(&target, &options, LIMIT), &rig.path("run"), Some(1)).unwrap();
    assert!(matches!(rig.refused(&backing), AdoptError::Other(_)));
    rig.assert_nothing_left();

    let mut rig = Rig::new();
    rig.kill_daemon();
    let record = Record { version: 99, ..rig.record() };
    let refused = rig.successor().adopt(&record, None, LIMIT, Arc::new(|_| {})).err();
    assert!(matches!(refused, Some(AdoptError::Other(_))), "{refused:?}");
    rig.assert_nothing_left();
}

/// The daemon has written, sshfs has said yes, and the server has seen nothing.
fn with_a_write_on_its_way() -> Rig {
    let rig = Rig::new();
    process::signal(rig.server(), Signal::SIGSTOP);
    std::fs::write(rig.path("write"), "").unwrap();
    wait("sshfs has the write", || rig.path("written").exists());
    rig
}

#[test]
fn what_the_dead_daemon_had_sent_and_is_not_done_makes_it_refused() {
    let mut rig = with_a_write_on_its_way();
    rig.daemon.kill().unwrap();
    // Its last thread waits in the close of the file, and cannot be killed there.
    let dying = rig.daemon.id().cast_signed();
    wait("the end of the daemon flushes", || queue::waiting(rig.life().mount.dev.1).unwrap() > 0);
    assert!(!process::is_zombie(dying) || rig.daemon.try_wait().unwrap().is_none());
    assert!(matches!(rig.refused(&rig.successor()), AdoptError::Unsettled(_)));
    rig.daemon.wait().unwrap();
    process::signal(rig.server(), Signal::SIGKILL);
    rig.assert_nothing_left();
    assert_eq!(std::fs::read(rig.path("store/file")).unwrap(), b"hello", "it never lands");
}

#[test]
fn what_the_dead_daemon_had_sent_is_done_before_anything_new() {
    let mut rig = with_a_write_on_its_way();
    rig.daemon.kill().unwrap();
    let minor = rig.life().mount.dev.1;
    wait("the end of the daemon flushes", || queue::waiting(minor).unwrap() > 0);
    let waited = std::thread::spawn(move || queue::wait_until_empty(minor, Instant::now() + LIMIT));
    process::signal(rig.server(), Signal::SIGCONT);
    assert_eq!(waited.join().unwrap().unwrap(), 0);
    rig.daemon.wait().unwrap();
    let taken = rig.adopt(&rig.successor()).unwrap();
    assert_eq!(taken.read("file"), b"oldlo");
    let file = taken.generation.tree().open(Path::new("file"), libc::O_RDWR).unwrap();
    assert_eq!((file.write_at(b"new", 0), file.sync(false)), (Ok(3), Ok(())));
    drop(file);
    taken.end();
    assert_eq!(std::fs::read(rig.path("store/file")).unwrap(), b"newlo");
    rig.assert_nothing_left();
}

#[test]
fn over_ssh_the_connection_is_taken_over_and_there_is_never_a_second_one() {
    let lab = Lab::unmounted();
    let mut rig = Rig::over_ssh(&lab);
    assert_eq!(rig.life().connections.len(), 1, "{:?}", rig.life());
    rig.kill_daemon();
    let backing = rig.successor();
    let taken = rig.adopt(&backing).unwrap();
    assert_eq!((taken.read("file"), lab.sshd.sessions()), (b"hello".to_vec(), 1));
    assert!(taken.generation.vitals().link_acked);
    let again = taken.generation.record().unwrap();
    assert_eq!(again.life, rig.record().life, "the connection is known to it");
    process::signal(rig.sshfs(), Signal::SIGKILL);
    taken.exits.recv_timeout(LIMIT).expect("a report");
    taken.end();
    let next = backing.start(2, LIMIT, Arc::new(|_| {})).unwrap();
    wait("the server has one session", || lab.sshd.sessions() == 1);
    Taken { generation: next, exits: channel().1 }.end();
    wait("the server sees the client go", || lab.sshd.sessions() == 0);
}

#[test]
fn over_a_cut_link_it_is_ended_and_what_it_had_sent_never_lands() {
    let lab = Lab::unmounted();
    let mut rig = Rig::over_ssh(&lab);
    lab.net.cut();
    std::fs::write(rig.path("write"), "").unwrap();
    wait("sshfs has the write", || rig.path("written").exists());
    rig.daemon.kill().unwrap();
    let backing = rig.successor();
    assert!(matches!(rig.refused(&backing), AdoptError::Unsettled(_)));
    rig.daemon.wait().unwrap();
    rig.assert_nothing_left();
    lab.net.heal();
    let next = Taken { generation: backing.start(2, LIMIT, Arc::new(|_| {})).unwrap(), exits: channel().1 };
    wait("the server knows that the old connection has gone", || lab.sshd.sessions() == 1);
    assert_eq!(next.read("file"), b"hello");
    next.end();
    wait("the server sees the client go", || lab.sshd.sessions() == 0);
    assert_eq!(std::fs::read(lab.store.join("file")).unwrap(), b"hello");
}

#[test]
fn a_daemon_that_lives_is_not_succeeded() {
    let mut rig = Rig::new();
    assert!(matches!(rig.refused(&rig.successor()), AdoptError::Unsettled(words) if words.contains("not ended")));
    rig.kill_daemon();
    rig.assert_nothing_left();
}

/// What the descriptors of a process lead to, but for the usual ones.
fn descriptors(pid: i32) -> Vec<String> {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = all.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    links.map(|link| link.to_string_lossy().into_owned()).filter(|link| link != "/dev/null").collect()
}

#[test]
fn what_is_not_marked_is_not_inherited_either() {
    let mut rig = Rig::new();
    let daemon = rig.daemon.id().cast_signed();
    let devices = |pid: i32| descriptors(pid).iter().filter(|link| *link == "/dev/fuse").count();
    assert_eq!((devices(daemon), devices(rig.sshfs())), (1, 1), "to each its own");
    for member in rig.life().members.iter().filter(|member| member.pid != rig.sshfs()) {
        assert_eq!(devices(member.pid), 0);
    }
    rig.kill_daemon();
    rig.adopt(&rig.successor()).unwrap().end();
    rig.assert_nothing_left();
}

#[test]
fn sshfs_and_ssh_inherit_nothing_of_the_daemon() {
    let lab = Lab::new("");
    let (sshfs, ssh) = (lab.clients("sshfs")[0], lab.clients("ssh")[0]);
    let of_sshfs = descriptors(sshfs);
    assert_eq!(of_sshfs.iter().filter(|link| *link == "/dev/fuse").count(), 1, "its own: {of_sshfs:?}");
    let of_ssh = descriptors(ssh);
    assert!(!of_ssh.iter().any(|link| link == "/dev/fuse"), "{of_ssh:?}");
    for link in of_sshfs.iter().chain(&of_ssh).filter(|link| *link != "/dev/fuse") {
        assert!(link.starts_with("pipe:") || link.starts_with("socket:"), "{of_sshfs:?} {of_ssh:?}");
    }
    // The one pipe is that of what they print; ssh makes copies of it.
    let pipes = |links: &[String]| -> BTreeSet<String> {
        links.iter().filter(|link| link.starts_with("pipe:")).cloned().collect()
    };
    assert_eq!((pipes(&of_sshfs).len(), pipes(&of_ssh)), (1, pipes(&of_sshfs)));
    lab.umount();
}
