//! A mounted overlay in front of a backing in trouble.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;
use steadfs::backing::Traits;
use steadfs::config::{CallPolicy, OverlayConfig};
use steadfs::gate::{Complaint, Gate};
use steadfs::overlay::Overlay;
use steadfs::overlay::mount::Mount;
use steadfs::overlay::rescue::{Rescue, Spool};

use crate::mishap::Mishap;
use crate::shared::outcome::Tree;
use crate::shared::play::Scene;
use crate::shared::program::Program;
use crate::shared::real::tree;

/// Longer than anything takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The deadline of programs whose outages outlive it.
const SHORT: Duration = Duration::from_millis(150);

/// A backing, whoever starts its generations, and the hand that lets it come to harm. Dropping it ends all of that.
pub trait Stage {
    /// Lets something go wrong.
    fn mishap(&self, mishap: Mishap);
    /// Sees to it that everything is well.
    fn heal(&self);
    /// True while calls are under way behind the gate's back.
    fn is_busy(&self) -> bool;
    /// What a server that crashes now would have of a file.
    fn on_disk(&self, name: &str) -> std::io::Result<Vec<u8>>;
    /// The directory behind it.
    fn store(&self) -> PathBuf;
}

/// How a stage begins, closed gate and all.
pub type Begin = Box<dyn FnOnce(Arc<Gate>, Arc<Overlay>) -> Box<dyn Stage>>;

/// What a stage needs before it can begin, and how it does.
pub struct Plan {
    pub traits: Traits,
    pub complain: Box<dyn Fn(u64, Complaint) + Send + Sync>,
    pub begin: Begin,
}

/// Removes itself, even when a program fails.
pub struct World {
    stage: Option<Box<dyn Stage>>,
    overlay: Arc<Overlay>,
    pub mount: Arc<Mount>,
    gate: Arc<Gate>,
    session: Option<JoinHandle<()>>,
    mountpoint: tempfile::TempDir,
    _spool: tempfile::TempDir,
    /// What the overlay has told of files.
    notices: Arc<Mutex<Vec<String>>>,
}

impl World {
    pub fn new(program: &Program<Mishap>, plan: Plan) -> World {
        let mountpoint = tempfile::Builder::new().prefix("steadfs-hot-").tempdir().expect("a directory");
        let mut config = OverlayConfig { guard: false, ..OverlayConfig::default() };
        if !program.caching || program.long {
            // What the kernel believes of a call that failed is not the overlay's fault.
            (config.attr_timeout, config.entry_timeout) = (Duration::ZERO, None);
        }
        if !program.gather {
            config.gather = Duration::ZERO;
        }
        let deadline = if program.long { SHORT } else { PATIENCE };
        let policy = CallPolicy { deadline, sync_deadline: deadline * 2, ..CallPolicy::default() };
        let Plan { traits, complain, begin } = plan;
        let gate = Gate::new(policy, complain).expect("a thread can be started");
        let spool = tempfile::Builder::new().prefix("steadfs-spool-").tempdir().expect("a directory");
        std::fs::set_permissions(spool.path(), PermissionsExt::from_mode(0o700)).expect("it is ours");
        let notices: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&notices);
        let rescue = Rescue::new(Spool {
            directory: spool.path().to_owned(),
            limit: 1 << 30,
            overlay: mountpoint.path().to_owned(),
            backing: "host:/dir".into(),
        });
        let overlay = Overlay::new(Arc::clone(&gate), traits, config.clone(), program.log, rescue);
        overlay.on_notice(Box::new(move |words| kept.lock().push(words)));
        let (device, mount) = Mount::attach(&config, "host:/dir", mountpoint.path()).expect("mounted");
        let (sender, initialised) = sync_channel(1);
        let served = Arc::clone(&overlay);
        let session = std::thread::spawn(move || {
            served.serve(device, move || sender.send(()).expect("it is waited for")).expect("a clean end");
        });
        initialised.recv_timeout(PATIENCE).expect("the kernel begins the session");
        let stage = Some(begin(Arc::clone(&gate), Arc::clone(&overlay)));
        let (mount, session) = (Arc::new(mount), Some(session));
        World { stage, overlay, mount, gate, session, mountpoint, _spool: spool, notices }
    }

    fn stage(&self) -> &dyn Stage {
        &**self.stage.as_ref().expect("it is there until the end")
    }

    /// What the overlay has told of files.
    pub fn notices(&self) -> Vec<String> {
        self.notices.lock().clone()
    }

    pub fn hot(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Waits until it is so; false if it does not come about.
    fn until(&self, condition: impl Fn(&World) -> bool) -> bool {
        let end = Instant::now() + PATIENCE;
        while !condition(self) {
            if Instant::now() > end {
                return false;
            }
            std::thread::sleep(Duration::from_micros(300));
        }
        true
    }
}

impl Scene for World {
    type Mishap = Mishap;

    fn mishap(&self, mishap: &Mishap) {
        self.stage().mishap(*mishap);
    }

    fn settle(&self) -> bool {
        self.stage().heal();
        self.until(|world| {
            let load = world.gate.load();
            load.waiting == 0 && load.stuck == 0 && !world.stage().is_busy()
        })
    }

    fn finish(&self) -> Result<(), String> {
        let idle = |world: &World| {
            let counts = world.overlay.counts();
            counts.open_files == 0 && counts.log_bytes == 0 && counts.dirty_files == 0
        };
        // What was hidden goes after the last close, in a thread that nobody waits for.
        let swept = |world: &World| {
            let stored = world.stored().unwrap_or_default();
            !stored.iter().any(|(name, ..)| name.contains(".steadfs-hidden-"))
        };
        if self.until(idle) && self.settle() && self.until(swept) {
            Ok(())
        } else {
            Err(format!("{:?}", self.overlay.counts()))
        }
    }

    fn given_up(&self) -> Option<String> {
        let counts = self.overlay.counts();
        ((counts.spooled_files, counts.lost_files) != (0, 0)).then(|| format!("{counts:?}"))
    }

    fn on_disk(&self, name: &str) -> std::io::Result<Vec<u8>> {
        self.stage().on_disk(name)
    }

    fn stored(&self) -> Result<Tree, Errno> {
        tree(&self.stage().store())
    }

    fn blurs_errors(&self) -> bool {
        false
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.gate.stop();
        self.stage = None;
        let _ = self.mount.unmount(true);
        self.mount.abort();
        if let Some(session) = self.session.take() {
            // Whoever has made a mount namespace meanwhile has a copy of the mount, which keeps the session going.
            let end = Instant::now() + Duration::from_secs(2);
            while !session.is_finished() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(2));
            }
            if !session.is_finished() {
                self.mount.end_connection();
            }
            let ended = session.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the session ended badly");
        }
    }
}
