//! The private place in which demo and drills play: directories, a local "server", the daemon, and the way to be rid of
//! them; and what is needed there: programs that use the mount, and those who look on.

pub mod cast;
pub mod check;
pub mod meter;
pub mod procs;
pub mod status;
pub mod tools;
pub mod warc;
pub mod writer;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::sys::prctl;
use nix::sys::signal::{Signal, kill};
use nix::sys::statvfs::{FsFlags, statvfs};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::options::split;
use procs::Proc;
use status::Question;

/// How long the daemon may take to end after SIGTERM.
const END: Duration = Duration::from_secs(8);

/// Which mount lies at the hot path.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Identity {
    /// First field of its line in /proc/self/mountinfo.
    pub mount_id: u64,
    /// st_dev of its root.
    pub device: u64,
}

/// Which stage it is to be.
#[derive(Debug, Clone)]
pub struct Setup {
    /// For the names of directories and for messages.
    pub name: &'static str,
    /// Metrics are written for node_exporter too, into the directory `metrics`.
    pub textfile: bool,
    /// `-o` options of the mount on top of its own.
    pub options: Vec<String>,
}

impl Setup {
    /// As simple as can be.
    pub fn named(name: &'static str) -> Setup {
        Setup { name, textfile: false, options: Vec::new() }
    }
}

/// The stage; dropping it ends everything on it.
pub struct Stage {
    setup: Setup,
    dir: Option<TempDir>,
    daemon: Option<Child>,
    exe: PathBuf,
    metrics: SocketAddr,
}

impl Stage {
    /// Makes the directories and starts the daemon. `server` is the local sftp-server.
    pub fn set(setup: &Setup, server: &Path, interrupted: &AtomicBool) -> Result<Stage, String> {
        let exe = std::env::current_exe().map_err(|e| format!("cannot find this program: {e}"))?;
        let root = private_root();
        let dir = tempfile::Builder::new().prefix(&format!("steadfs_{}_", setup.name)).tempdir_in(&root);
        let dir = dir.map_err(|e| format!("{}: {e}", root.display()))?;
        let metrics = free_port().map_err(|e| format!("no free port on loopback: {e}"))?;
        let mut stage = Stage { setup: setup.clone(), dir: Some(dir), daemon: None, exe, metrics };
        stage.furnish(server).map_err(|e| format!("{}: {e}", stage.path("").display()))?;
        // What the daemon might leave behind becomes a child of ours and can be seen.
        prctl::set_child_subreaper(true).map_err(|e| format!("prctl: {e}"))?;
        stage.daemon = Some(stage.start().map_err(|e| format!("{}: {e}", stage.exe.display()))?);
        stage.await_live(Duration::from_secs(15), interrupted)?;
        Ok(stage)
    }

    fn furnish(&self, server: &Path) -> io::Result<()> {
        for name in ["store", "hot", "run", "state", "metrics"] {
            fs::create_dir(self.path(name))?;
        }
        // The server gets a session of its own: it stands at the other end of the link, where steadfs cannot see it.
        let script = format!(
            "#!/bin/sh\n# Stands for ssh and the server at its other end.\nif [ -e '{}' ]; then\n    \
             echo 'ssh: connect to host localhost port 22: Connection refused' >&2\n    exit 255\nfi\nsetsid -w '{}'\n",
            self.path("refuse").display(),
            server.display()
        );
        let mut file = File::create(self.path("ssh"))?;
        file.write_all(script.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(0o700))
    }

    fn start(&self) -> io::Result<Child> {
        let mut options =
            format!("ssh_command={},guard=no,backoff_max=2s,metrics={}", self.path("ssh").display(), self.metrics);
        if self.setup.textfile {
            options.push_str(&format!(",textfile={}", self.path("metrics").display()));
        }
        for option in &self.setup.options {
            options.push_str(&format!(",{}", split::join([option.as_str()])));
        }
        let log = File::create(self.path("daemon.log"))?;
        let mut command = Command::new(&self.exe);
        command
            .env("STEADFS_RUNTIME_DIR", self.path("run"))
            .env("STEADFS_STATE_DIR", self.path("state"))
            .args(["mount", "-f", &self.source(), "-o", &options])
            .arg(self.hot())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for us, who then ends the daemon in its own time.
            .process_group(0);
        // SAFETY: prctl(2) is async-signal-safe and the closure allocates nothing.
        unsafe {
            command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?));
        }
        command.spawn()
    }

    fn await_live(&mut self, limit: Duration, interrupted: &AtomicBool) -> Result<(), String> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            if interrupted.load(SeqCst) {
                return Err("interrupted; everything is cleaned up".into());
            }
            if let Some(ended) = self.daemon.as_mut().and_then(|daemon| daemon.try_wait().ok().flatten()) {
                return Err(format!("the mount ended with {ended}: {}", self.last_words()));
            }
            if self.identity().is_some() && self.question().ask().is_live() {
                return Ok(());
            }
            sleep(Duration::from_millis(20));
        }
        let why = Some(self.question().ask().why).filter(|why| !why.is_empty());
        Err(format!("the mount did not become live: {}", why.unwrap_or_else(|| self.last_words())))
    }

    /// A path on the stage.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.as_ref().map(|dir| dir.path().join(name)).unwrap_or_default()
    }

    /// The mounted directory.
    pub fn hot(&self) -> PathBuf {
        self.path("hot")
    }

    /// The directory on the server's side.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// The mount's source.
    pub fn source(&self) -> String {
        format!("localhost:{}", self.store().display())
    }

    /// Address of `/metrics`.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// How to ask the daemon how it is.
    pub fn question(&self) -> Question {
        Question { exe: self.exe.clone(), run: self.path("run"), hot: self.hot() }
    }

    /// The last line that the daemon wrote, for error messages.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.path("daemon.log")).unwrap_or_default();
        log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_string()
    }

    /// Which mount lies at the hot path now.
    pub fn identity(&self) -> Option<Identity> {
        let hot = self.hot();
        let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mount_id = table.lines().rev().find_map(|line| {
            let mut fields = line.split(' ');
            let id = fields.next()?.parse().ok()?;
            (fields.nth(3)? == hot.to_str()?).then_some(id)
        })?;
        Some(Identity { mount_id, device: hot.metadata().ok()?.dev() })
    }

    /// The daemon's descendants of that name.
    pub fn processes(&self, name: &str) -> Vec<Proc> {
        let Some(daemon) = &self.daemon else { return Vec::new() };
        let mut found = procs::descendants(daemon.id() as i32);
        found.retain(|proc| proc.name == name && proc.state != 'Z');
        found
    }

    /// Sends a signal to the daemon's descendants of that name; an error when there is none.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<(), String> {
        let found = self.processes(name);
        if found.is_empty() {
            return Err(format!("no {name} is running"));
        }
        for proc in found {
            match kill(Pid::from_raw(proc.pid), signal) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => return Err(format!("kill {}: {}", proc.pid, errno.desc())),
            }
        }
        Ok(())
    }

    /// Ends frozen processes of that name, which nobody else would.
    pub fn end_frozen(&self, name: &str) {
        for proc in self.processes(name).iter().filter(|proc| proc.state == 'T') {
            let _ = kill(Pid::from_raw(proc.pid), Signal::SIGKILL);
        }
    }

    /// From now on the "server" refuses connections, or takes them again.
    pub fn refuse(&self, refuse: bool) -> io::Result<()> {
        let path = self.path("refuse");
        if refuse { File::create(path).map(drop) } else { fs::remove_file(path) }
    }

    /// Text of `/metrics`.
    pub fn metrics(&self) -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&self.metrics, Duration::from_secs(1))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        write!(stream, "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default())
    }

    /// Text of the metrics that are written for node_exporter, if there are some.
    pub fn textfile(&self) -> Option<String> {
        let entries = fs::read_dir(self.path("metrics")).ok()?.flatten().map(|entry| entry.path());
        let file = entries.into_iter().find(|path| path.extension().is_some_and(|end| end == "prom"))?;
        fs::read_to_string(file).ok()
    }

    /// Unmounts and waits for the end of all processes; returns what was left over and had to be removed by force.
    pub fn unmount(&mut self) -> Vec<String> {
        let Some(mut daemon) = self.daemon.take() else { return Vec::new() };
        let mut left = Vec::new();
        let pid = daemon.id() as i32;
        let family = procs::descendants(pid);
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        if !wait_for(&mut daemon, END) {
            left.push(format!("the daemon (pid {pid}) did not end in {} s", END.as_secs()));
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        // Its processes may take a moment; what is still there after that was forgotten.
        let begun = Instant::now();
        let mut orphans = survivors(&family);
        while !orphans.is_empty() && begun.elapsed() < Duration::from_millis(500) {
            sleep(Duration::from_millis(20));
            orphans = survivors(&family);
        }
        for orphan in orphans {
            left.push(format!("process {} ({}, state {})", orphan.pid, orphan.name, orphan.state));
            let _ = kill(Pid::from_raw(orphan.pid), Signal::SIGKILL);
            let _ = waitpid(Pid::from_raw(orphan.pid), Some(WaitPidFlag::WNOHANG));
        }
        for mountpoint in self.mounts().into_iter().rev() {
            left.push(format!("mount {}", mountpoint.display()));
            detach(&mountpoint);
        }
        left
    }

    /// Mountpoints below the stage.
    fn mounts(&self) -> Vec<PathBuf> {
        let Some(below) = self.dir.as_ref().map(TempDir::path) else { return Vec::new() };
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(below)).collect()
    }

    /// Leaves the directories where they are and says where.
    pub fn keep(&mut self) -> Option<PathBuf> {
        self.dir.take().map(TempDir::keep)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.unmount();
        if !self.mounts().is_empty() {
            // Removing the tree now would reach through the mount.
            if let Some(path) = self.keep() {
                eprintln!("steadfs {}: {} is still mounted; left as it is", self.setup.name, path.display());
            }
        }
    }
}

/// Where stages are made: in $TMPDIR, or where one can be made.
fn private_root() -> PathBuf {
    // A directory behind a symlink would not be found in mountinfo.
    let given = std::env::temp_dir().canonicalize().ok();
    let mut places = given.iter().cloned().chain(["/tmp".into(), "/var/tmp".into()]);
    let found = places.find(|path| is_plain(path) && may_hold_programs(path));
    // Then it is said what is wrong with that.
    found.or(given.filter(|path| is_plain(path))).unwrap_or_else(|| "/tmp".into())
}

/// Paths go into sshfs's `-o` list and a shell script, so only plain ones will do.
fn is_plain(path: &Path) -> bool {
    path.is_absolute()
        && path.as_os_str().as_encoded_bytes().iter().all(|b| b.is_ascii_alphanumeric() || b"/._-".contains(b))
}

/// False if the script that stands for ssh could not be run there.
fn may_hold_programs(path: &Path) -> bool {
    statvfs(path).is_ok_and(|figures| !figures.flags().contains(FsFlags::ST_NOEXEC))
}

fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

fn wait_for(child: &mut Child, limit: Duration) -> bool {
    let begun = Instant::now();
    while begun.elapsed() < limit {
        match child.try_wait() {
            Ok(None) => sleep(Duration::from_millis(20)),
            Ok(Some(_)) | Err(_) => return true,
        }
    }
    false
}

/// Those of `family` that still run, with zombies that fell to us reaped.
fn survivors(family: &[Proc]) -> Vec<Proc> {
    let mut alive: Vec<Proc> =
        family.iter().filter_map(|member| procs::look_at(member.pid).filter(|now| now.name == member.name)).collect();
    alive.retain(|p| {
        let dead = p.state == 'Z';
        if dead {
            let _ = waitpid(Pid::from_raw(p.pid), Some(WaitPidFlag::WNOHANG));
        }
        !dead
    });
    alive
}

fn detach(mountpoint: &Path) {
    if nix::unistd::geteuid().is_root() {
        let _ = umount2(mountpoint, MntFlags::MNT_DETACH);
    } else {
        let _ = Command::new("fusermount3").arg("-uz").arg(mountpoint).stderr(Stdio::null()).status();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bare() -> Stage {
        let dir = tempfile::Builder::new().prefix("steadfs_demo_").tempdir_in(private_root()).unwrap();
        Stage {
            setup: Setup::named("demo"),
            dir: Some(dir),
            daemon: None,
            exe: "/nonexistent".into(),
            metrics: ([127, 0, 0, 1], 1).into(),
        }
    }

    #[test]
    fn a_stage_is_made_where_programs_may_be_run_and_paths_are_plain() {
        assert!(is_plain(Path::new("/tmp/a-b_c.d")));
        for path in ["tmp", "/tmp/a b", "/tmp/a,b", "/tmp/a'b", "/tmp/\u{e9}"] {
            assert!(!is_plain(Path::new(path)), "{path}");
        }
        assert!(may_hold_programs(&private_root()) && !may_hold_programs(Path::new("/nonexistent")));
    }

    #[test]
    fn the_server_script_runs_the_server_until_it_is_told_to_refuse() {
        let stage = bare();
        let run = |arguments: &[&str]| loop {
            match Command::new(stage.path("ssh")).args(arguments).output() {
                // A child that another test is just starting may have it open for writing.
                Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => sleep(Duration::from_millis(5)),
                result => break result.unwrap(),
            }
        };
        stage.furnish(Path::new("/bin/true")).unwrap();
        assert!(run(&["-x"]).status.success());
        stage.refuse(true).unwrap();
        let refused = run(&["-x"]);
        assert_eq!(refused.status.code(), Some(255));
        assert!(String::from_utf8(refused.stderr).unwrap().contains("Connection refused"));
        stage.refuse(false).unwrap();
        assert!(run(&[]).status.success());
    }

    #[test]
    fn signals_go_to_descendants_only() {
        let mut stage = bare();
        let stranger = Command::new("sleep").arg("60").spawn();
        let daemon = Command::new("sh").args(["-c", "sleep 60 & wait"]).process_group(0).spawn().unwrap();
        stage.daemon = Some(daemon);
        let begun = Instant::now();
        while stage.processes("sleep").is_empty() && begun.elapsed() < Duration::from_secs(5) {
            sleep(Duration::from_millis(10));
        }
        stage.signal("sleep", Signal::SIGKILL).unwrap();
        assert!(stage.signal("no-such", Signal::SIGKILL).is_err());
        let mut stranger = stranger.unwrap();
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
        assert_eq!(stage.unmount(), Vec::<String>::new());
    }

    #[test]
    fn the_directories_are_gone_afterwards() {
        let stage = bare();
        let path = stage.path("");
        assert!(path.is_dir());
        drop(stage);
        assert!(!path.exists());
    }
}
