//! A real sshfs over a local sftp-server, its processes killed and stopped, and the real supervisor.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use steadfs::backing::sshfs::SshfsBacking;
use steadfs::backing::{Backing, Generation};
use steadfs::config::RepairPolicy;
use steadfs::gate::Gate;
use steadfs::overlay::Overlay;
use steadfs::supervisor::{Inbox, Supervisor, Watch};

use crate::dice::Dice;
use crate::program::Mishap;
use crate::world::{PATIENCE, Plan, Stage};

/// Quick, so that a run takes seconds.
const REPAIR: RepairPolicy = RepairPolicy {
    probe_interval: Duration::from_millis(50),
    probe_deadline: Duration::from_millis(400),
    start_deadline: Duration::from_secs(10),
    backoff_min: Duration::from_millis(10),
    backoff_max: Duration::from_millis(100),
    steady: Duration::from_millis(100),
};
/// Some time into an operation, at most.
const INTO: u64 = 3000;

/// One of the processes of a generation.
#[derive(Clone, Copy)]
enum Process {
    Sshfs,
    Server,
}

/// Where everything is.
struct Place(tempfile::TempDir);

struct Real {
    place: Arc<Place>,
    gate: Arc<Gate>,
    supervisor: Supervisor,
    watch: Watch,
    dice: Mutex<Dice>,
    late: Mutex<Vec<JoinHandle<()>>>,
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::Builder::new().prefix("steadfs-soak-").tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir(at("store")).expect("made");
        std::fs::set_permissions(at("store"), PermissionsExt::from_mode(0o755)).expect("it is ours");
        std::fs::create_dir(at("run")).expect("made");
        let server = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"]
            .into_iter()
            .find(|path| Path::new(path).exists())
            .expect("sftp-server is installed (package openssh-sftp-server)");
        // In ssh's place; it says who it is.
        let script = format!("#!/bin/sh\necho $$ > {}\nexec {server}\n", at("server").display());
        std::fs::write(at("transport"), script).expect("written");
        std::fs::set_permissions(at("transport"), PermissionsExt::from_mode(0o755)).expect("it is ours");
        Place(directory)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The newest process of that kind, if it lives.
    fn find(&self, process: Process) -> Option<Pid> {
        let says = |pid: i32, part: &str| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(part))
        };
        let pid = match process {
            Process::Server => {
                let pid = std::fs::read_to_string(self.at("server")).ok()?.trim().parse().ok()?;
                Some(pid).filter(|pid| says(*pid, "sftp-server"))?
            }
            Process::Sshfs => {
                let run = self.at("run").to_string_lossy().into_owned();
                let all = std::fs::read_dir("/proc").ok()?.flatten();
                all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| says(*pid, &run)).max()?
            }
        };
        Some(Pid::from_raw(pid))
    }

    fn signal(&self, process: Process, signal: Signal) {
        if let Some(pid) = self.find(process) {
            let _ = kill(pid, signal);
        }
    }
}

impl Real {
    fn later(&self, delay: Duration, process: Process, signal: Signal) {
        let place = Arc::clone(&self.place);
        self.late.lock().push(std::thread::spawn(move || {
            std::thread::sleep(delay);
            place.signal(process, signal);
        }));
    }
}

impl Stage for Real {
    fn mishap(&self, mishap: Mishap) {
        let mut dice = self.dice.lock();
        let process = if dice.below(2) == 0 { Process::Sshfs } else { Process::Server };
        let into = Duration::from_micros(dice.below(INTO));
        match mishap {
            Mishap::Blip | Mishap::Down => self.place.signal(process, Signal::SIGKILL),
            Mishap::Kill | Mishap::Die { .. } | Mishap::Late { .. } | Mishap::Short { .. } => {
                self.later(into, process, Signal::SIGKILL);
            }
            Mishap::Twice { .. } => {
                self.place.signal(process, Signal::SIGKILL);
                // In the start of the next one, in its replay, or after it.
                self.later(into * 100, process, Signal::SIGKILL);
            }
            Mishap::Freeze { thaws: true } => {
                self.place.signal(process, Signal::SIGSTOP);
                self.later(into * 10, process, Signal::SIGCONT);
            }
            Mishap::Freeze { thaws: false } => self.place.signal(process, Signal::SIGSTOP),
            Mishap::Hang { .. } => self.later(into, process, Signal::SIGSTOP),
        }
    }

    fn heal(&self) {
        for thread in std::mem::take(&mut *self.late.lock()) {
            let _ = thread.join();
        }
        for process in [Process::Sshfs, Process::Server] {
            self.place.signal(process, Signal::SIGCONT);
        }
        let end = Instant::now() + PATIENCE;
        let live = || self.watch.snapshot().state == "live" && !self.gate.in_outage();
        while !live() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        if !live() {
            println!("no generation in time: {:?}", self.watch.snapshot());
        }
    }

    fn is_busy(&self) -> bool {
        self.watch.snapshot().state != "live"
    }

    fn on_disk(&self, name: &str) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.place.at("store").join(name))
    }

    fn store(&self) -> PathBuf {
        self.place.at("store")
    }

    fn blurs_errors(&self) -> bool {
        true
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        for thread in std::mem::take(self.late.get_mut()) {
            let _ = thread.join();
        }
        self.supervisor.stop();
        // A sweep takes what a failure has left.
        let _ = SshfsBacking::new("localhost:/", &[], &self.place.at("run"));
    }
}

/// A real sshfs.
pub fn plan(dice: Dice) -> Plan {
    let place = Arc::new(Place::new());
    let options = [format!("ssh_command={}", place.at("transport").display())];
    let target = format!("localhost:{}", place.at("store").display());
    let backing = Arc::new(SshfsBacking::new(&target, &options, &place.at("run")).expect("a backing"));
    let inbox = Inbox::new();
    Plan {
        traits: backing.traits(),
        complain: Box::new(inbox.complaints()),
        begin: Box::new(move |gate: Arc<Gate>, overlay: Arc<Overlay>| {
            let watch = Watch::default();
            let restore = move |generation: &Arc<dyn Generation>| drop(overlay.restore(generation, PATIENCE));
            let (kept, told) = (Arc::clone(&gate), watch.clone());
            let supervisor = Supervisor::begin(inbox, backing, kept, Arc::new(restore), REPAIR, PATIENCE, told)
                .expect("a supervisor");
            let (dice, late) = (Mutex::new(dice), Mutex::default());
            let real = Real { place, gate, supervisor, watch, dice, late };
            real.heal();
            Box::new(real)
        }),
    }
}
