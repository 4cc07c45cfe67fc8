//! A mounted overlay in front of a store that forgets.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use steadfs::backing::Traits;
use steadfs::backing::fake::{FakeBacking, FakeControl};
use steadfs::config::{CallPolicy, OverlayConfig};
use steadfs::gate::Gate;
use steadfs::overlay::Overlay;
use steadfs::overlay::mount::Mount;
use steadfs::overlay::rescue::{Rescue, Spool};

use crate::dice::Dice;
use crate::keeper::{Hand, Keeper, Word};
use crate::program::Program;

const LOCAL: Traits = Traits { stable_inodes: true, keeps_unlinked: true, owners: true };
const SSHFS: Traits = Traits { stable_inodes: false, keeps_unlinked: false, owners: false };
/// Longer than anything takes on a loaded machine.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// The deadline of programs whose outages outlive it.
const SHORT: Duration = Duration::from_millis(150);

/// Removes itself, even when a program fails.
pub struct World {
    pub hand: Option<Hand>,
    pub overlay: Arc<Overlay>,
    pub mount: Arc<Mount>,
    control: FakeControl,
    gate: Arc<Gate>,
    session: Option<JoinHandle<()>>,
    mountpoint: tempfile::TempDir,
    _spool: tempfile::TempDir,
    /// What the overlay has told of files.
    notices: Arc<Mutex<Vec<String>>>,
    store: tempfile::TempDir,
}

/// In memory if possible: the fake really syncs.
fn store() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let at = if memory.is_dir() { memory.to_owned() } else { std::env::temp_dir() };
    let store = tempfile::Builder::new().prefix("steadfs-store-").tempdir_in(at).expect("a directory");
    std::fs::set_permissions(store.path(), PermissionsExt::from_mode(0o755)).expect("it is ours");
    store
}

impl World {
    pub fn new(program: &Program, dice: Dice) -> World {
        let (store, traits) = (store(), if program.like_sshfs { SSHFS } else { LOCAL });
        let backing = FakeBacking::over(store.path().to_owned()).with_traits(traits);
        let control = backing.control();
        control.write_behind();
        let mountpoint = tempfile::Builder::new().prefix("steadfs-hot-").tempdir().expect("a directory");
        let mut config = OverlayConfig { guard: false, ..OverlayConfig::default() };
        if !program.caching || program.long {
            // What the kernel believes of a call that failed is not the overlay's fault.
            (config.attr_timeout, config.entry_timeout) = (Duration::ZERO, Duration::ZERO);
        }
        let deadline = if program.long { SHORT } else { PATIENCE };
        let policy = CallPolicy { deadline, sync_deadline: deadline * 2, ..CallPolicy::default() };
        let (me, words) = channel();
        let complaints = Mutex::new(me.clone());
        let gate = Gate::new(policy, move |generation, complaint| {
            drop(complaints.lock().send(Word::Complaint(generation, complaint)));
        })
        .expect("a thread can be started");
        let spool = tempfile::Builder::new().prefix("steadfs-spool-").tempdir().expect("a directory");
        std::fs::set_permissions(spool.path(), PermissionsExt::from_mode(0o700)).expect("it is ours");
        let notices: Arc<Mutex<Vec<String>>> = Arc::default();
        let kept = Arc::clone(&notices);
        let rescue = Rescue::new(
            Spool {
                directory: spool.path().to_owned(),
                limit: 1 << 30,
                overlay: mountpoint.path().to_owned(),
                backing: "host:/dir".into(),
            },
            Box::new(move |words| kept.lock().push(words)),
        );
        let overlay = Overlay::new(Arc::clone(&gate), traits, config.clone(), program.log, rescue);
        let (device, mount) = Mount::attach(&config, "host:/dir", mountpoint.path()).expect("mounted");
        let (sender, initialised) = sync_channel(1);
        let served = Arc::clone(&overlay);
        let session = std::thread::spawn(move || {
            served.serve(device, move || sender.send(()).expect("it is waited for")).expect("a clean end");
        });
        initialised.recv_timeout(PATIENCE).expect("the kernel begins the session");
        let parts = (Arc::clone(&gate), Arc::clone(&overlay), backing);
        let hand = Some(Keeper::begin(parts, (me, words), dice, program.long));
        let (mount, session) = (Arc::new(mount), Some(session));
        World { hand, overlay, mount, control, gate, session, mountpoint, _spool: spool, notices, store }
    }

    pub fn hand(&self) -> &Hand {
        self.hand.as_ref().expect("it is there until the end")
    }

    /// What the overlay has told of files.
    pub fn notices(&self) -> Vec<String> {
        self.notices.lock().clone()
    }

    pub fn hot(&self) -> &Path {
        self.mountpoint.path()
    }

    pub fn cold(&self) -> PathBuf {
        self.store.path().to_owned()
    }

    /// What the server's disk has of a file.
    pub fn on_disk(&self, name: &str) -> std::io::Result<Vec<u8>> {
        self.control.on_disk(&self.store.path().join(name))
    }

    /// Makes everything well and waits until nothing is under way; false if that does not come about.
    pub fn settle(&self) -> bool {
        self.hand().heal();
        self.until(|world| {
            let load = world.gate.load();
            load.waiting == 0 && load.stuck == 0 && world.control.inside() == 0
        })
    }

    /// Waits until it is so; false if it does not come about.
    pub fn until(&self, condition: impl Fn(&World) -> bool) -> bool {
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

impl Drop for World {
    fn drop(&mut self) {
        self.hand = None;
        let _ = self.mount.unmount(true);
        self.mount.abort();
        if let Some(session) = self.session.take() {
            let ended = session.join();
            assert!(ended.is_ok() || std::thread::panicking(), "the session ended badly");
        }
    }
}
