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
    Ok(Bound {
        textfile: textfile.transpose()?,
        metrics: config.telemetry.listen.as_ref().map(http::bind).transpose()?,
        control: control::bind(&rundir::control_socket(&config.mountpoint))?,
    })
}

/// Everything that observes; ends, and removes its files, when dropped.
pub struct Guard {
    runtime: Option<tokio::runtime::Runtime>,
    files: Vec<PathBuf>,
}

impl Bound {
    /// Serves until the guard is dropped.
    pub fn serve(self, observed: Observed) -> std::io::Result<Guard> {
        let mut files = vec![rundir::control_socket(&observed.config.mountpoint)];
        if let Some(MetricsListen::Unix(path)) = &observed.config.telemetry.listen {
            files.push(path.clone());
        }
        files.extend(self.textfile.clone());
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
        Ok(Guard { runtime: Some(runtime), files })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        for file in &self.files {
            // Gone already, as a rule, if somebody cleaned up by hand.
            let _ = std::fs::remove_file(file);
        }
    }
}
