//! A mount of the steadfs binary, and the hand that lets its processes and its link come to harm.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::Signal;

use crate::lab::parts::Part;
use crate::lab::relayed::Relayed;
use crate::lab::{Lab, PATIENCE, process};
use crate::mishap::{Mishap, What, Who};
use crate::shared::outcome::Tree;
use crate::shared::play::Scene;
use crate::shared::program::Program;
use crate::shared::real::tree;
use crate::site::{Site, Store};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);
/// The least that `log_size=` takes.
const LEAST_LOG: u64 = 1 << 20;

/// Deaths of daemons and keepers in all runs.
pub static DEATHS: AtomicU64 = AtomicU64::new(0);

/// What is wrong at the moment.
#[derive(Default)]
struct Harm {
    parted: bool,
    frozen: Vec<i32>,
}

/// What the threads that do harm share with the scene.
struct Stage {
    site: Site,
    harm: Mutex<Harm>,
    /// Held by whoever kills a part of steadfs itself.
    steadfs: Mutex<()>,
}

/// See the module.
pub struct RealScene {
    stage: Arc<Stage>,
    /// Those that do harm a moment later.
    threads: Mutex<Vec<JoinHandle<()>>>,
    long: bool,
}

/// What a store holds. libfuse's names for what was removed while open may be left by an sshfs that died (docs/semantics.md).
pub fn stored(store: &Path) -> Result<Tree, Errno> {
    let mut tree = tree(store)?;
    let stray = |name: &str| name.starts_with(".fuse_hidden");
    tree.retain(|(name, ..)| !name.rsplit('/').next().is_some_and(stray));
    Ok(tree)
}

impl RealScene {
    /// Mounts.
    pub fn new(program: &Program<Mishap>, network: bool) -> RealScene {
        // Longer than a start whose ssh is frozen is waited for.
        let (deadline, sync_deadline) = if program.long { ("400ms", "800ms") } else { ("45s", "60s") };
        // What the kernel believes of a call that failed is not the overlay's fault.
        let timeout = if program.caching && !program.long { "1s" } else { "0s" };
        let log = program.log.max(LEAST_LOG);
        // A generation that dies young makes the next one wait, and here many do.
        let gather = if program.gather { "50ms" } else { "0" };
        let options = format!(
            "deadline={deadline},sync_deadline={sync_deadline},attr_timeout={timeout},entry_timeout={timeout},\
             log_size={log},gather={gather},backoff_min=100ms,backoff_max=200ms"
        );
        let site = if network {
            Site::Network(Box::new(Lab::new(&options)))
        } else {
            let mut mount = Relayed::new(&options);
            let fresh = mount.fresh();
            Site::Relayed(mount, fresh)
        };
        let stage = Arc::new(Stage { site, harm: Mutex::default(), steadfs: Mutex::default() });
        RealScene { stage, threads: Mutex::default(), long: program.long }
    }

    pub fn hot(&self) -> &Path {
        self.stage.site.hot()
    }

    pub fn directory(&self) -> &Path {
        self.stage.site.directory()
    }

    pub fn log(&self) -> String {
        self.stage.site.log()
    }

    fn end_threads(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap());
        threads.into_iter().for_each(|thread| thread.join().expect("it does harm, but comes to none"));
    }

    /// Waits until status says so; what it said last otherwise.
    fn until(&self, condition: impl Fn(&serde_json::Value) -> bool) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let status = self.stage.site.status();
            if condition(&status) {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(status.to_string());
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Outages so far.
    pub fn outages(&self) -> u64 {
        self.stage.site.status()["outages_total"].as_u64().unwrap_or(0)
    }

    /// Unmounts.
    pub fn end(self) -> Store {
        let stage = Arc::into_inner(self.stage).expect("no thread is left");
        stage.site.umount()
    }
}

impl Scene for RealScene {
    type Mishap = Mishap;

    fn mishap(&self, mishap: &Mishap) {
        let (stage, long) = (Arc::clone(&self.stage), self.long);
        let Mishap { after, what } = *mishap;
        let harm = move || {
            std::thread::sleep(after);
            stage.harm(what, long);
        };
        self.threads.lock().unwrap().push(std::thread::spawn(harm));
    }

    fn settle(&self) -> bool {
        self.end_threads();
        self.stage.heal();
        let calm = |status: &serde_json::Value| {
            status["state"] == "live" && status["calls"]["waiting"] == 0 && status["threads_stuck"] == 0
        };
        self.until(calm).is_ok()
    }

    fn finish(&self) -> Result<(), String> {
        let fields = ["/open_files", "/log/bytes", "/log/files", "/calls/waiting"];
        let calm = |status: &serde_json::Value| {
            status["state"] == "live" && fields.iter().all(|field| status.pointer(field) == Some(&0.into()))
        };
        // The kernel waits for no release, so the last hidden name may go a moment later.
        let hides = || self.stored().is_ok_and(|tree| tree.iter().any(|(name, ..)| name.contains(".steadfs-hidden-")));
        self.until(|status| calm(status) && !hides())
    }

    fn given_up(&self) -> Option<String> {
        let status = self.stage.site.status();
        let log = &status["log"];
        (log["spooled_files_total"] != 0 || log["lost_files_total"] != 0).then(|| status.to_string())
    }

    fn on_disk(&self, name: &str) -> std::io::Result<Vec<u8>> {
        std::fs::read(self.stage.site.store().join(name))
    }

    fn stored(&self) -> Result<Tree, Errno> {
        stored(self.stage.site.store())
    }

    fn blurs_errors(&self) -> bool {
        true
    }
}

impl Stage {
    fn signal(&self, who: Who, signal: Signal) -> Vec<i32> {
        let pids = self.site.pids(who);
        pids.iter().for_each(|&pid| process::signal(pid, signal));
        pids
    }

    fn part(&self, parted: bool) {
        let mut harm = self.harm.lock().unwrap();
        if harm.parted != parted {
            harm.parted = parted;
            self.site.part(parted);
        }
    }

    fn harm(&self, what: What, long: bool) {
        let network = matches!(self.site, Site::Network(_));
        match what {
            What::Kill(who) => drop(self.signal(who, Signal::SIGKILL)),
            What::Twice(who, after) => {
                self.signal(who, Signal::SIGKILL);
                std::thread::sleep(after);
                self.signal(who, Signal::SIGKILL);
            }
            What::Freeze(who) => {
                let pids = self.signal(who, Signal::SIGSTOP);
                self.harm.lock().unwrap().frozen.extend(pids);
            }
            // What a server behind a network has received before it froze it may do after it was given up
            // (docs/semantics.md), so there it is only ever given up.
            What::Pause(Who::Server, _) if network => self.harm(What::Freeze(Who::Server), long),
            What::Cut(length) if !network => self.harm(What::Pause(Who::Ssh, length), long),
            What::Pause(who, length) => {
                let pids = self.signal(who, Signal::SIGSTOP);
                std::thread::sleep(length);
                pids.into_iter().for_each(|pid| process::signal(pid, Signal::SIGCONT));
            }
            What::Cut(length) => {
                self.part(true);
                std::thread::sleep(length);
                self.part(false);
            }
            What::Away(length) => {
                self.part(true);
                self.signal(Who::Ssh, Signal::SIGKILL);
                std::thread::sleep(length);
                self.part(false);
            }
            What::Down => {
                if long {
                    self.part(true);
                }
                self.signal(Who::Ssh, Signal::SIGKILL);
            }
            What::Steadfs(part) => self.kill(part),
            What::Both(part, who) => {
                self.kill(part);
                self.signal(who, Signal::SIGKILL);
            }
        }
    }

    fn kill(&self, part: Part) {
        let _alone = self.steadfs.lock().unwrap();
        DEATHS.fetch_add(u64::from(self.site.parts().kill(part).is_some()), Relaxed);
    }

    fn heal(&self) {
        self.part(false);
        // Those that have been given up are gone; a pid that is used again would have to be one of this mount's.
        let frozen = std::mem::take(&mut self.harm.lock().unwrap().frozen);
        let mine = [Who::Sshfs, Who::Ssh, Who::Server].map(|who| self.site.pids(who)).concat();
        frozen.into_iter().filter(|pid| mine.contains(pid)).for_each(|pid| process::signal(pid, Signal::SIGKILL));
    }
}
