//! Metrics, status, health (promise P8). Reads what others count; nobody calls it.

pub mod control;
pub mod http;
pub mod journal;
pub mod metrics;
pub mod status;
pub mod textfile;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use crate::config::{MetricsListen, MountConfig};
use crate::gate::Gate;
use crate::overlay::Counts;
use crate::rundir;
use crate::supervisor::Watch;
use crate::worker::Worker;
use journal::Journal;

/// Why the daemon does not unmount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UmountRefused {
    /// Somebody uses it.
    Busy(String),
    /// Something else.
    Other(String),
}

/// All that may be observed of one mount.
#[derive(Clone)]
pub struct Observed {
    /// Its configuration.
    pub config: Arc<MountConfig>,
    /// Its gate.
    pub gate: Arc<Gate>,
    /// Its supervisor.
    pub watch: Watch,
    /// Its worker.
    pub worker: Arc<Worker>,
    /// Its overlay's figures.
    pub counts: Arc<dyn Fn() -> Counts + Send + Sync>,
    /// Asks the supervisor to try again at once (`steadfs recover`).
    pub retry_now: Arc<dyn Fn() + Send + Sync>,
    /// Unmounts (`steadfs umount`), lazily if so asked; the error is for the user.
    pub stop: Arc<dyn Fn(bool) -> Result<(), UmountRefused> + Send + Sync>,
    /// When the daemon started.
    pub started: SystemTime,
}

/// Sockets that are bound, so that what cannot be served is known before anything is mounted.
pub struct Bound {
    control: control::Listener,
    metrics: Option<http::Listener>,
    textfile: Option<PathBuf>,
    files: Files,
}

/// Files that go when nobody serves them any more.
struct Files(Vec<PathBuf>);

impl Drop for Files {
    fn drop(&mut self) {
        for file in &self.0 {
            // Gone already, if somebody cleaned up by hand or it was never made.
            let _ = std::fs::remove_file(file);
        }
    }
}

/// Binds what the configuration asks for. The error names the option and the remedy.
pub fn bind(config: &MountConfig) -> Result<Bound, String> {
    rundir::create(&config.mountpoint)
        .map_err(|error| format!("{}: {error}", rundir::of(&config.mountpoint).display()))?;
    let textfile = config.telemetry.textfile.as_ref().map(|directory| {
        if !directory.is_dir() {
            return Err(format!("textfile={}: there is no such directory; make it first", directory.display()));
        }
        Ok(textfile::path(directory, &config.mountpoint))
    });
    let textfile = textfile.transpose()?;
    let control_path = rundir::control_socket(&config.mountpoint);
    let control = control::bind(&control_path)?;
    let mut files = Files(vec![control_path]);
    let metrics = config.telemetry.listen.as_ref().map(http::bind).transpose()?;
    if let Some(MetricsListen::Unix(path)) = &config.telemetry.listen {
        files.0.push(path.clone());
    }
    files.0.extend(textfile.clone());
    Ok(Bound { control, metrics, textfile, files })
}

/// Everything that observes; ends, and removes its files, when dropped.
pub struct Guard {
    runtime: Option<tokio::runtime::Runtime>,
    _files: Files,
}

impl Bound {
    /// Serves until the guard is dropped.
    pub fn serve(self, observed: Observed) -> std::io::Result<Guard> {
        let journal = Journal::follow(&observed.watch)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("telemetry")
            .enable_all()
            .build()?;
        runtime.spawn(control::serve(self.control, observed.clone(), Arc::clone(&journal)));
        if let Some(listener) = self.metrics {
            runtime.spawn(http::serve(listener, observed.clone()));
        }
        if let Some(path) = self.textfile {
            runtime.spawn(textfile::keep(path, observed, journal));
        }
        Ok(Guard { runtime: Some(runtime), _files: self.files })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A write of the textfile that is under way must not come after its removal.
            runtime.shutdown_timeout(std::time::Duration::from_secs(1));
        }
    }
}
