//! Metrics, status, health, events (promise P8). Reads what others count; nobody calls it.

pub mod compat;
pub mod control;
pub mod held;
pub mod http;
pub mod journal;
mod limited;
pub mod metrics;
pub mod overlays;
pub mod page;
pub mod recovery;
pub mod replace;
pub mod sockets;
pub mod status;
pub mod textfile;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::{DaemonConfig, HotPath};
use crate::daemon::link::Upgraded;
use crate::daemon::reload::Reloaded;
use crate::gate::Gate;
use crate::overlay::Counts;
use crate::rundir;
use crate::supervisor::Watch;
use crate::worker::Worker;
use compat::Compat;
use control::Pending;
use journal::Journal;
use journal::file::Writing;
use sockets::OwnSocket;
use textfile::Textfile;

/// Why the daemon does not unmount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UmountRefused {
    /// Somebody uses it.
    Busy(String),
    /// Something else.
    Other(String),
}

/// The last time that a daemon took the place of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Last {
    /// When the new one began.
    pub at: SystemTime,
    /// What became of the old one.
    pub reason: String,
    /// How long nobody served.
    pub pause: Duration,
}

/// What keeps a mount while its daemon dies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The keeper's process id.
    pub keeper: Option<u32>,
    /// A successor could go on.
    pub possible: bool,
    /// Daemons that came after the first one of the mount.
    pub successions: u64,
    /// When that one began.
    pub mounted: SystemTime,
    /// The last of them.
    pub last: Option<Last>,
    /// Bytes that are noted for a successor.
    pub used: u64,
    /// Most that may be; 0 if nothing is noted.
    pub limit: u64,
    /// Bytes of memory that this takes.
    pub resident: u64,
    /// Most that it may take, while it is compacted.
    pub most: u64,
}

/// Asks to be replaced by the executable at that path; an error says why that cannot be.
pub type Upgrade = Arc<dyn Fn(&Path) -> Result<(), String> + Send + Sync>;

/// What can be seen of one overlay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// The hot path.
    pub mountpoint: PathBuf,
    /// What it shows of the backing.
    pub path: PathBuf,
    /// Its filesystem type is `fuse.` and this.
    pub subtype: String,
    /// It refuses every change.
    pub read_only: bool,
    /// It is mounted there.
    pub mounted: bool,
    /// Its figures.
    pub counts: Counts,
}

impl View {
    /// One that should be there and is not.
    pub fn missing(mountpoint: PathBuf) -> View {
        let (path, subtype, counts) = (PathBuf::new(), "steadfs".into(), Counts::default());
        View { mountpoint, path, subtype, read_only: false, mounted: false, counts }
    }
}

/// Mounts one more overlay, though its directory be not empty if so asked; the error is for the user.
pub type Attach = Arc<dyn Fn(HotPath, bool) -> Result<(), String> + Send + Sync>;
/// Unmounts one, lazily if so asked.
pub type Detach = Arc<dyn Fn(&Path, bool) -> Result<(), UmountRefused> + Send + Sync>;

/// Takes another configuration over, with the mountpoints that need not be empty.
pub type Reload = Arc<dyn Fn(DaemonConfig, BTreeSet<PathBuf>) -> Result<Reloaded, String> + Send + Sync>;

/// All that may be observed of one daemon.
#[derive(Clone)]
pub struct Observed {
    /// Its configuration.
    pub config: Arc<DaemonConfig>,
    /// Its gate.
    pub gate: Arc<Gate>,
    /// Its supervisor.
    pub watch: Watch,
    /// Its worker.
    pub worker: Arc<Worker>,
    /// Its overlays' figures.
    pub counts: Arc<dyn Fn() -> Counts + Send + Sync>,
    /// Its overlays.
    pub overlays: Arc<dyn Fn() -> Vec<View> + Send + Sync>,
    /// What keeps it.
    pub kept: Arc<dyn Fn() -> Kept + Send + Sync>,
    /// Asks the supervisor to try again at once (`steadfs recover --apply`).
    pub retry_now: Arc<dyn Fn() + Send + Sync>,
    /// Asks it for another generation, however well the present one is (`--force`).
    pub replace: Arc<dyn Fn() + Send + Sync>,
    /// Unmounts (`steadfs umount`), lazily if so asked; the error is for the user.
    pub stop: Arc<dyn Fn(bool) -> Result<(), UmountRefused> + Send + Sync>,
    /// Attaches an overlay (`steadfs attach`).
    pub attach: Attach,
    /// Detaches one (`steadfs detach`, `steadfs umount`).
    pub detach: Detach,
    /// The configuration as it is at present.
    pub configured: Arc<dyn Fn() -> DaemonConfig + Send + Sync>,
    /// Takes another configuration over (`steadfs reload`).
    pub reload: Reload,
    /// Asks for another executable in the place of this one (`steadfs upgrade`); the error is for the user.
    pub upgrade: Upgrade,
    /// What became of that.
    pub upgraded: Arc<dyn Fn() -> Option<Upgraded> + Send + Sync>,
    /// When the daemon started.
    pub started: SystemTime,
}

/// What is bound and can be served, so that what cannot is known before anything is mounted. Its files go on drop.
pub struct Bound {
    control: OwnSocket,
    metrics: Option<(http::Listener, Option<OwnSocket>)>,
    textfile: Option<Arc<Textfile>>,
    compat: Option<Arc<Compat>>,
    journal: Arc<Journal>,
    journal_file: Option<Writing>,
}

/// Binds what the configuration asks for, and begins the journal: to be called before the supervisor starts, so that no
/// event is missed. The error names the option and the remedy.
pub fn bind(config: &DaemonConfig, watch: &Watch) -> Result<Bound, String> {
    let textfile = config.telemetry.textfile.as_ref().map(|dir| Textfile::bind(dir, &config.home)).transpose()?;
    let compat = Compat::bind(config, watch)?;
    let journal_file = journal::file::follow(&config.telemetry, &config.home, watch)?;
    let metrics = config.telemetry.listen.as_ref().map(http::bind).transpose()?;
    rundir::create(&config.home).map_err(|error| format!("{}: {error}", rundir::of(&config.home).display()))?;
    let path = rundir::control_socket(&config.home);
    let control = OwnSocket::bind(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let journal = Journal::follow(watch).map_err(|error| error.to_string())?;
    let (textfile, compat) = (textfile.map(Arc::new), compat.map(Arc::new));
    Ok(Bound { control, metrics, textfile, compat, journal, journal_file })
}

/// Everything that observes; ends, and removes its files, when dropped.
pub struct Guard {
    runtime: Option<tokio::runtime::Runtime>,
    pending: Pending,
    textfile: Option<Arc<Textfile>>,
    compat: Option<Arc<Compat>>,
    _journal_file: Option<Writing>,
    _sockets: Vec<OwnSocket>,
}

impl Bound {
    /// Serves until the guard is dropped.
    pub fn serve(mut self, observed: Observed) -> std::io::Result<Guard> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("telemetry")
            .enable_all()
            .build()?;
        let pending = Pending::default();
        let (control, journal) = (self.control.take()?, Arc::clone(&self.journal));
        runtime.spawn(control::serve(control, observed.clone(), journal, pending.clone()));
        let mut sockets = vec![self.control];
        if let Some((listener, socket)) = self.metrics {
            runtime.spawn(http::serve(listener, observed.clone(), Arc::clone(&self.journal)));
            sockets.extend(socket);
        }
        if let Some(textfile) = &self.textfile {
            runtime.spawn(textfile::keep(Arc::clone(textfile), observed.clone(), Arc::clone(&self.journal)));
        }
        if let Some(compat) = &self.compat {
            runtime.spawn(compat::keep(Arc::clone(compat), observed, self.journal));
        }
        Ok(Guard {
            runtime: Some(runtime),
            pending,
            textfile: self.textfile,
            compat: self.compat,
            _journal_file: self.journal_file,
            _sockets: sockets,
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.pending.settle();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        if let Some(textfile) = &self.textfile {
            textfile.end();
        }
        if let Some(compat) = &self.compat {
            compat.end();
        }
    }
}
