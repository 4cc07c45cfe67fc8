//! A mounted overlay with its gate, and a hand in the place of the supervisor.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfs::backing::fake::{FakeBacking, FakeControl, Fault};
use steadfs::backing::{Backing, Generation, Traits};
use steadfs::config::{CallPolicy, OverlayConfig};
use steadfs::gate::{Complaint, Gate};
use steadfs::overlay::mount::Mount;
use steadfs::overlay::rescue::Rescue;
use steadfs::overlay::{Overlay, RestoreReport};

/// A directory on this machine.
pub const LOCAL: Traits =
    Traits { stable_inodes: true, keeps_unlinked: true, owners: true, asynchronous: false, remembers: Duration::ZERO };
/// What sshfs is like.
/// Bytes that the write log may keep.
pub const LOG: u64 = 8 << 20;
pub const SSHFS: Traits = Traits {
    stable_inodes: false,
    keeps_unlinked: false,
    owners: false,
    asynchronous: false,
    remembers: Duration::ZERO,
};
/// Longer than anything takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Removes itself: unmounted, no thread of it waiting, even when a test fails.
pub struct Rig {
    pub gate: Arc<Gate>,
    pub overlay: Arc<Overlay>,
    pub mount: Mount,
    /// Calls that spoke against a generation.
    pub complaints: Arc<Mutex<Vec<Complaint>>>,
    verdicts: Arc<AtomicBool>,
    backing: FakeBacking,
    present: Arc<Mutex<Option<Arc<dyn Generation>>>>,
    mountpoint: tempfile::TempDir,
    session: Option<JoinHandle<()>>,
}

pub fn policy(deadline: Duration) -> CallPolicy {
    CallPolicy { deadline, sync_deadline: deadline.max(Duration::from_secs(3)), ..CallPolicy::default() }
}

impl Rig {
    pub fn new(traits: Traits) -> Rig {
        Rig::with(traits, PATIENCE, |_| {})
    }

    /// Every write goes to the backing before it is acknowledged.
    pub fn prompt(traits: Traits, deadline: Duration) -> Rig {
        Rig::with(traits, deadline, |config| config.gather = Duration::ZERO)
    }

    pub fn with(traits: Traits, deadline: Duration, configure: impl FnOnce(&mut OverlayConfig)) -> Rig {
        let backing = FakeBacking::new().expect("a directory").with_traits(traits);
        Rig::mounted(backing, None, deadline, configure)
    }

    /// Over a directory that outlives it, with a journal of hidden names in `state`.
    pub fn over(path: &Path, state: &Path, traits: Traits, faults: &[Fault]) -> Rig {
        let backing = FakeBacking::over(path.to_owned()).with_traits(traits);
        faults.iter().for_each(|fault| _ = backing.control().inject(fault.clone()));
        Rig::mounted(backing, Some(state), PATIENCE, |_| {})
    }

    /// Mounted before any generation has come up.
    pub fn silent(traits: Traits) -> Rig {
        let backing = FakeBacking::new().expect("a directory").with_traits(traits);
        Rig::waiting(backing, None, PATIENCE, |_| {})
    }

    fn mounted(
        backing: FakeBacking,
        state: Option<&Path>,
        deadline: Duration,
        configure: impl FnOnce(&mut OverlayConfig),
    ) -> Rig {
        let rig = Rig::waiting(backing, state, deadline, configure);
        rig.repair();
        // What it looks at by itself it has seen, so that no fault meets that.
        until(|| rig.gate.load().waiting == 0);
        rig
    }

    fn waiting(
        backing: FakeBacking,
        state: Option<&Path>,
        deadline: Duration,
        configure: impl FnOnce(&mut OverlayConfig),
    ) -> Rig {
        nix::sys::stat::umask(nix::sys::stat::Mode::empty());
        let traits = backing.traits();
        std::fs::set_permissions(backing.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
        let mountpoint = tempfile::Builder::new().prefix("steadfs-hot-").tempdir().expect("a directory");
        let mut config = OverlayConfig { guard: false, ..OverlayConfig::default() };
        configure(&mut config);
        let complaints: Arc<Mutex<Vec<Complaint>>> = Arc::default();
        let present: Arc<Mutex<Option<Arc<dyn Generation>>>> = Arc::default();
        let (said, heard) = channel();
        let (kept, said) = (Arc::clone(&complaints), Mutex::new(said));
        let gate = Gate::new(policy(deadline), move |generation, complaint| {
            kept.lock().push(complaint);
            let _ = said.lock().send(generation);
        })
        .expect("a thread can be started");
        let verdicts = Arc::new(AtomicBool::new(true));
        let given = Arc::clone(&verdicts);
        // In the supervisor's place: a probe that answers settles doubtful errors.
        let (asked, settled) = (Arc::clone(&present), Arc::downgrade(&gate));
        std::thread::spawn(move || {
            for number in heard {
                if !given.load(Relaxed) {
                    continue;
                }
                let generation = asked.lock().clone();
                let at = Instant::now();
                if let (Some(gate), Some(generation)) = (settled.upgrade(), generation)
                    && generation.probe().is_ok()
                {
                    gate.settle(number, at);
                }
            }
        });
        let overlay = Overlay::new(Arc::clone(&gate), traits, config.clone(), LOG, Rescue::default());
        state.inspect(|state| overlay.keep_hidden_journal(state, "host:/dir"));
        let (device, mount) = Mount::attach(&config, "host:/dir", mountpoint.path()).expect("mounted");
        let (sender, initialised) = sync_channel(1);
        let served = Arc::clone(&overlay);
        let session = std::thread::spawn(move || {
            served.serve(device, move || sender.send(()).expect("it is waited for")).expect("a clean end");
        });
        initialised.recv_timeout(PATIENCE).expect("the kernel begins the session");
        let session = Some(session);
        Rig { gate, overlay, mount, complaints, verdicts, backing, present, mountpoint, session }
    }

    pub fn control(&self) -> FakeControl {
        self.backing.control()
    }

    /// A path below the mount.
    pub fn hot(&self, path: &str) -> PathBuf {
        self.mountpoint.path().join(path)
    }

    /// The same file on the backing.
    pub fn cold(&self, path: &str) -> PathBuf {
        self.backing.path().join(path)
    }

    pub fn mountpoint(&self) -> &Path {
        self.mountpoint.path()
    }

    /// Lets the present generation die and closes the gate.
    pub fn outage(&self) {
        self.gate.close(Instant::now());
        if let Some(generation) = self.present.lock().take() {
            generation.abort();
            generation.retire().expect("nothing is left behind");
        }
    }

    /// Starts the next generation.
    pub fn start(&self) -> Arc<dyn Generation> {
        let number = self.control().started() + 1;
        let generation = self.backing.start(number, PATIENCE, Arc::new(|_| {})).expect("it starts");
        *self.present.lock() = Some(Arc::clone(&generation));
        generation
    }

    /// Starts the next generation and opens the gate.
    pub fn repair(&self) -> RestoreReport {
        let generation = self.start();
        let report = self.overlay.restore(&generation, PATIENCE).expect("it is of use");
        self.gate.open(generation);
        report
    }

    /// As kill -9 of the daemon: whoever has something open is cut off, and nothing is tidied up.
    pub fn kill(self) {
        self.gate.stop();
        // While it is mounted: its connection is found by that.
        self.mount.abort();
    }

    /// From now on no probe settles what is in doubt.
    pub fn hold_verdicts(&self) {
        self.verdicts.store(false, Relaxed);
    }

    /// Names on the backing, sorted.
    pub fn cold_names(&self, path: &str) -> Vec<String> {
        names(&self.cold(path))
    }
}

/// Whoever has made a mount namespace meanwhile has a copy of the mount, which keeps the session going. Only of one that goes on
/// has nobody else got the number of the connection.
fn end_session(session: &JoinHandle<()>, mount: &Mount) {
    let end = Instant::now() + Duration::from_secs(2);
    while !session.is_finished() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(2));
    }
    if !session.is_finished() {
        mount.end_connection();
    }
}

/// Names in a directory, sorted.
pub fn names(path: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(path).expect("it can be listed");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

/// Waits until it is so.
pub fn until(condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "it never came about");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// The errno of what should have failed.
pub fn errno<T>(result: std::io::Result<T>) -> Option<i32> {
    result.err().expect("it fails").raw_os_error()
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.control().thaw();
        self.control().clear_faults();
        self.gate.stop();
        if let Some(generation) = self.present.lock().take() {
            generation.abort();
        }
        let _ = self.mount.unmount(true);
        self.mount.abort();
        if let Some(session) = self.session.take() {
            end_session(&session, &self.mount);
            let ended = session.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the session ended badly");
        }
    }
}
