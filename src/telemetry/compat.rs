//! The state file and metrics of another watchdog, for alerts and reports that were made for it
//! ([`crate::config::CompatConfig`]): HealthArchive's hot path watchdog, field by field and name by name.
//!
//! What it said of its applies is made of the supervisor's events ([`fold`]), what it said of its hot paths of the table of
//! mounts and the supervisor's state ([`targets`]). Its state file is gone on with.

pub mod fold;
pub mod metrics;
pub mod state;
pub mod targets;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;

use super::journal::Journal;
use super::textfile::Textfile;
use super::{Observed, held, overlays, replace};
use crate::config::{CompatConfig, DaemonConfig};
use crate::supervisor::{Event, Snapshot, Watch};
use metrics::Look;
use state::State;

/// Time between two looks; an event is a reason for one at once. The other watchdog looked once a minute.
const EVERY: Duration = Duration::from_secs(20);
/// Its file in the textfile directory.
pub const FILE: &str = "healtharchive_storage_hotpath_auto_recover.prom";

/// See the module.
pub struct Compat {
    path: PathBuf,
    textfile: Option<Textfile>,
    known: Mutex<(State, Receiver<(SystemTime, Event)>)>,
}

impl Compat {
    /// Reads what is known and follows the supervisor from now on. The error names the option and the remedy.
    pub fn bind(config: &DaemonConfig, watch: &Watch) -> Result<Option<Compat>, String> {
        let Some(CompatConfig::Healtharchive { state: path }) = &config.telemetry.compat else { return Ok(None) };
        let parent = path.parent().filter(|parent| parent.is_dir());
        if parent.is_none() {
            return Err(format!("compat_state: {}: there is no such directory; make it first", shown_parent(path)));
        }
        let textfile = config.telemetry.textfile.as_ref().map(|dir| Textfile::named(dir, FILE)).transpose()?;
        let state = State::read(path);
        Ok(Some(Compat { path: path.clone(), textfile, known: Mutex::new((state, watch.subscribe())) }))
    }

    /// Looks once, and writes both files.
    pub fn look(&self, observed: &Observed) -> std::io::Result<()> {
        let mut known = self.known.lock();
        let (state, events) = &mut *known;
        for (at, event) in events.try_iter() {
            state.applies.fold(at, &event);
        }
        let (snapshot, now) = (observed.watch.snapshot(), SystemTime::now());
        let calls = &observed.config.calls;
        let outage = snapshot.outage_from.map(|from| from.elapsed()).unwrap_or_default();
        let targets = targets::targets(&overlays::look(observed), &snapshot, outage, calls);
        state.observe(&targets, now);
        let log = &snapshot.repair_log;
        if let Some(reason) = skipped(&snapshot) {
            state.last_skip = Some((now, reason.into()));
        }
        let written = replace::replace(&self.path, &state.text());
        let look = Look {
            now,
            ok: written.is_ok(),
            enabled: log.enabled,
            lock_active: log.deploy_lock_active,
            lock_age: log.deploy_lock_age,
            backing_ok: targets::backing(&snapshot, outage, calls).is_none(),
            targets,
        };
        // In any case: that the state cannot be written is one of the metrics.
        let exported = self.textfile.as_ref().map_or(Ok(()), |textfile| textfile.write(&metrics::render(&look, state)));
        written.and(exported)
    }

    /// Takes a last look at the events and removes the metrics; the state file stays.
    pub fn end(&self) {
        if let Some(mut known) = self.known.try_lock_for(Duration::from_secs(2)) {
            let (state, events) = &mut *known;
            for (at, event) in events.try_iter() {
                state.applies.fold(at, &event);
            }
            if let Err(error) = replace::replace(&self.path, &state.text()) {
                tracing::warn!(path = %self.path.display(), %error, "the state file cannot be written");
            }
        }
        self.textfile.iter().for_each(Textfile::end);
    }
}

/// Why a repair that is due does not begin; none if nothing keeps it.
fn skipped(snapshot: &Snapshot) -> Option<&'static str> {
    // The other watchdog notes a deploy whether or not anything is to be repaired.
    held::held(snapshot).or(snapshot.repair_log.deploy_lock_active.then_some("deploy_lock"))
}

fn shown_parent(path: &Path) -> String {
    path.parent().unwrap_or(path).display().to_string()
}

/// Looks again and again.
pub async fn keep(compat: Arc<Compat>, observed: Observed, journal: Arc<Journal>) {
    let mut changes = journal.changes();
    loop {
        let (target, watched) = (Arc::clone(&compat), observed.clone());
        // The directories may lie on a slow disk.
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || target.look(&watched)).await {
            tracing::warn!(path = %compat.path.display(), %error, "the state file or its metrics cannot be written");
        }
        // Neither outcome matters: both mean that it is time.
        let _ = tokio::time::timeout(EVERY, changes.changed()).await;
    }
}
