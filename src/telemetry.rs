//! Metrics, status, health (promise P8). Reads what others count; nobody calls it.

pub mod control;
pub mod http;
pub mod journal;
mod limited;
pub mod metrics;
pub mod sockets;
pub mod status;
pub mod textfile;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::DaemonConfig;
use crate::daemon::link::Upgraded;
use crate::gate::Gate;
use crate::overlay::Counts;
use crate::rundir;
use crate::supervisor::Watch;
use crate::worker::Worker;
use control::Pending;
use journal::Journal;
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

/// All that may be observed of one mount.
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
    /// Its overlay's figures.
    pub counts: Arc<dyn Fn() -> Counts + Send + Sync>,
    /// What keeps it.
    pub kept: Arc<dyn Fn() -> Kept + Send + Sync>,
    /// Asks the supervisor to try again at once (`steadfs recover`).
    pub retry_now: Arc<dyn Fn() + Send + Sync>,
    /// Unmounts (`steadfs umount`), lazily if so asked; the error is for the user.
    pub stop: Arc<dyn Fn(bool) -> Result<(), UmountRefused> + Send + Sync>,
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
    journal: Arc<Journal>,
}

/// Binds what the configuration asks for, and begins the journal: to be called before the supervisor starts, so that no
/// event is missed. The error names the option and the remedy.
pub fn bind(config: &DaemonConfig, watch: &Watch) -> Result<Bound, String> {
    let textfile = config.telemetry.textfile.as_ref().map(|dir| Textfile::bind(dir, &config.home)).transpose()?;
    let metrics = config.telemetry.listen.as_ref().map(http::bind).transpose()?;
    rundir::create(&config.home).map_err(|error| format!("{}: {error}", rundir::of(&config.home).display()))?;
    let path = rundir::control_socket(&config.home);
    let control = OwnSocket::bind(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let journal = Journal::follow(watch).map_err(|error| error.to_string())?;
    Ok(Bound { control, metrics, textfile: textfile.map(Arc::new), journal })
}

/// Everything that observes; ends, and removes its files, when dropped.
pub struct Guard {
    runtime: Option<tokio::runtime::Runtime>,
    pending: Pending,
    textfile: Option<Arc<Textfile>>,
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
            runtime.spawn(http::serve(listener, observed.clone()));
            sockets.extend(socket);
        }
        if let Some(textfile) = &self.textfile {
            runtime.spawn(textfile::keep(Arc::clone(textfile), observed, self.journal));
        }
        Ok(Guard { runtime: Some(runtime), pending, textfile: self.textfile, _sockets: sockets })
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
    }
}
