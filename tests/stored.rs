//! Keeper and daemon die at once; a service manager has kept their descriptors and starts the unit again (promise P6). The
//! manager is played by the test: it listens for sd_notify(3) and hands over as sd_listen_fds(3) says.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::Pid;

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Copies of descriptors for a child lie above all others.
const ABOVE: RawFd = 200;

/// What it has kept, in the order in which it came.
struct Manager {
    socket: UnixDatagram,
    kept: Vec<(String, OwnedFd)>,
}

impl Manager {
    fn at(path: &Path) -> Manager {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Manager { socket, kept: Vec::new() }
    }

    /// Listens until it is told a line that begins so.
    fn until(&mut self, start: &str) {
        self.socket.set_read_timeout(Some(PATIENCE)).unwrap();
        while !self.hears().unwrap().starts_with(start) {}
    }

    /// Listens for a moment.
    fn listen(&mut self) {
        self.socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        while self.hears().is_ok() {}
    }

    fn hears(&mut self) -> nix::Result<String> {
        let mut buffer = [0; 2000];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([i32; 4]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
        let mut descriptors = Vec::new();
        for control in received.cmsgs().unwrap() {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made them for us.
                descriptors.extend(raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }));
            }
        }
        let length = received.bytes;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let fields: BTreeMap<&str, &str> = text.lines().filter_map(|line| line.split_once('=')).collect();
        if let Some(name) = fields.get("FDNAME") {
            if fields.contains_key("FDSTOREREMOVE") {
                self.kept.retain(|(kept, _)| kept != name);
            }
            self.kept.extend(descriptors.into_iter().map(|descriptor| ((*name).to_owned(), descriptor)));
        }
        Ok(text)
    }

    fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.kept.iter().map(|(name, _)| name.as_str()).collect();
        names.sort_unstable();
        names
    }
}

struct Unit {
    directory: tempfile::TempDir,
    main: Option<Child>,
}

impl Unit {
    fn new() -> Unit {
        let directory = tempfile::tempdir().unwrap();
        for name in ["hot", "store"] {
            std::fs::create_dir(directory.path().join(name)).unwrap();
        }
        Unit { directory, main: None }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn steadfs(&self, shell: &str) -> Command {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", shell, "sh", env!("CARGO_BIN_EXE_steadfs")]).stdin(Stdio::null());
        command.env("STEADFS_RUNTIME_DIR", self.path("run")).env("STEADFS_STATE_DIR", self.path("state"));
        command
    }

    /// Starts the unit's command, with what is kept.
    fn start(&mut self, kept: &[(String, OwnedFd)]) {
        let mut command = self.steadfs("LISTEN_PID=$$ exec \"$@\"");
        command.args(["mount", "-f", &format!("dir:{}", self.path("store").display())]).arg(self.path("hot"));
        command.args(["-o", "guard=no"]).env("NOTIFY_SOCKET", self.path("notify"));
        let names: Vec<&str> = kept.iter().map(|(name, _)| name.as_str()).collect();
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        let copies: Vec<RawFd> =
            kept.iter().map(|(_, fd)| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(ABOVE)).unwrap()).collect();
        let handed = copies.clone();
        // SAFETY: dup2(2) is async-signal-safe; the first descriptors of the child are its own business.
        unsafe {
            command.pre_exec(move || {
                for (to, from) in (3..).zip(&handed) {
                    if libc::dup2(*from, to) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let log = OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        self.main = Some(command.stderr(log).spawn().unwrap());
        for copy in copies {
            // SAFETY: made above, and nobody else knows of it.
            drop(unsafe { OwnedFd::from_raw_fd(copy) });
        }
    }

    fn status(&self) -> serde_json::Value {
        let mut command = self.steadfs("exec \"$@\"");
        let output = command.args(["status", "--json"]).arg(self.path("hot")).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    /// The process id of the daemon.
    fn daemon(&self) -> i32 {
        self.status()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a daemon")
    }

    /// Kills both, so that neither can start the other.
    fn kill_both(&mut self) {
        let (daemon, main) = (Pid::from_raw(self.daemon()), self.main.as_mut().unwrap());
        kill(daemon, Signal::SIGSTOP).unwrap();
        main.kill().unwrap();
        main.wait().unwrap();
        kill(daemon, Signal::SIGKILL).unwrap();
        // All threads of it: the last one closes its sockets.
        let threads = || std::fs::read_dir(format!("/proc/{daemon}/task")).map_or(0, Iterator::count);
        wait("the daemon ends", || {
            threads() <= 1 && std::fs::read(format!("/proc/{daemon}/cmdline")).unwrap_or_default().is_empty()
        });
    }

    /// Unmounts, with a manager that does what it is told meanwhile: `steadfs umount` waits until nobody has the lock.
    fn umount(&mut self, manager: &mut Manager) {
        let mut umount = self.steadfs("exec \"$@\"").arg("umount").arg(self.path("hot")).spawn().unwrap();
        let until = Instant::now() + PATIENCE;
        let mut ended = None;
        while ended.is_none() && Instant::now() < until {
            manager.listen();
            ended = self.main.as_mut().unwrap().try_wait().unwrap();
        }
        // A manager lets go of what it keeps when the unit is over.
        manager.listen();
        let unmounted = umount.wait().unwrap();
        assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
        assert!(unmounted.success(), "{unmounted}");
        self.main = None;
    }

    fn mount_id(&self) -> Option<String> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let hot = self.path("hot");
        let row = table.lines().find(|line| line.split(' ').nth(4) == hot.to_str());
        row.and_then(|row| row.split(' ').next()).map(str::to_owned)
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", std::fs::read_to_string(self.path("log")).unwrap_or_default());
        }
        if let Some(mut main) = self.main.take() {
            let daemon = self.status()["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
            // Aborts the connection: whoever waits is let go.
            let _ = nix::mount::umount2(&self.path("hot"), nix::mount::MntFlags::MNT_FORCE);
            let _ = nix::mount::umount2(&self.path("hot"), nix::mount::MntFlags::MNT_DETACH);
            let _ = main.kill();
            daemon.map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
            let _ = main.wait();
        }
    }
}

/// A process with an open file. The test must not have one itself while nobody serves: a program that is run closes what it
/// inherits, and waits for the answer to that.
struct Caller(Child);

impl Caller {
    fn of(file: &Path) -> Caller {
        let script = "exec 3<>\"$1\"; while read -r word; do printf %s \"$word\" >&3 && echo done; done";
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script, "sh"]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        Caller(command.spawn().unwrap())
    }

    fn write(&mut self, word: &str) {
        writeln!(self.0.stdin.as_mut().unwrap(), "{word}").unwrap();
    }

    fn done(&mut self) {
        let mut answer = [0; 5];
        self.0.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"done\n");
    }
}

impl Drop for Caller {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait(what: &str, come: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !come() {
        assert!(Instant::now() < until, "it never came about: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_mount_whose_keeper_and_daemon_are_killed_goes_on_from_what_the_manager_kept() {
    let mut caller;
    let mut unit = Unit::new();
    let mut manager = Manager::at(&unit.path("notify"));
    unit.start(&[]);
    manager.until("READY=1");
    let names = manager.names();
    for wanted in ["claim", "config", "device", "memory", "session"] {
        assert!(names.contains(&wanted), "{names:?}");
    }
    let before = unit.mount_id().expect("mounted");
    caller = Caller::of(&unit.path("hot/file"));
    caller.write("one");
    caller.done();

    unit.kill_both();
    // It calls while nobody serves, and waits.
    caller.write("two");
    let kept = std::mem::take(&mut manager.kept);
    unit.start(&kept);
    manager.until("READY=1");
    caller.done();
    assert_eq!(unit.mount_id().as_ref(), Some(&before), "nothing was mounted anew");
    let status = unit.status();
    assert_eq!(status["keeper"]["successions_total"], 1, "{status}");
    assert_eq!(status["keeper"]["can_succeed"], true);
    drop((caller, kept));
    unit.umount(&mut manager);
    assert_eq!(manager.names(), Vec::<&str>::new(), "nothing is kept of a mount that is over");
    assert_eq!(std::fs::read_to_string(unit.path("store/file")).unwrap(), "onetwo");
}

#[test]
fn what_does_not_suffice_is_given_up_and_the_overlay_is_mounted_anew() {
    let mut unit = Unit::new();
    let mut manager = Manager::at(&unit.path("notify"));
    unit.start(&[]);
    manager.until("READY=1");
    unit.kill_both();
    // As when somebody has unmounted it meanwhile: the manager closes a device that says so (FDPOLL=1).
    let mut kept = std::mem::take(&mut manager.kept);
    kept.retain(|(name, _)| name != "device");
    nix::mount::umount2(&unit.path("hot"), nix::mount::MntFlags::MNT_DETACH).unwrap();
    unit.start(&kept);
    drop(kept);
    manager.until("READY=1");
    std::fs::write(unit.path("hot/file"), "new").unwrap();
    assert_eq!(unit.status()["keeper"]["successions_total"], 0);
    unit.umount(&mut manager);
}

#[test]
fn the_units_say_what_the_keeper_needs_of_systemd() {
    for (unit, descriptors, command) in
        [("steadfs@.service", "4096", " run --foreground "), ("steadfs-mount@.service", "64", " mount ")]
    {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(unit);
        let text = std::fs::read_to_string(path).unwrap();
        let settings: BTreeMap<&str, &str> =
            text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect();
        let wanted = [
            ("Type", "notify"),
            ("NotifyAccess", "all"),
            ("ExitType", "cgroup"),
            ("OOMPolicy", "continue"),
            ("FileDescriptorStoreMax", descriptors),
            ("KillMode", "mixed"),
            ("Restart", "on-failure"),
        ];
        for (name, value) in wanted {
            assert_eq!(settings.get(name), Some(&value), "{unit}: {name}");
        }
        assert!(settings["ExecStart"].contains(command), "{unit}");
    }
    // Without it what a dead ssh had sent may arrive later.
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/steadfs@.service");
    let text = std::fs::read_to_string(path).unwrap();
    let filter = text.lines().find_map(|line| line.strip_prefix("SystemCallFilter=")).unwrap();
    assert!(filter.split(' ').any(|call| call == "pidfd_getfd"), "{filter}");
}
