//! What systemd is told (sd_notify(3)). Without a service manager all of it does nothing.

use std::time::Duration;

use sd_notify::NotifyState;

use crate::supervisor::Snapshot;

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::debug!(%error, "sd_notify");
    }
}

/// READY=1.
pub fn ready() {
    send(&[NotifyState::Ready]);
}

/// STOPPING=1.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// STATUS= in a line.
pub fn status(snapshot: &Snapshot) {
    let words = match &snapshot.why {
        Some(why) => format!("{}: {why}; next: {}", snapshot.state, snapshot.next),
        None => format!("{}, generation {}", snapshot.state, snapshot.generation),
    };
    send(&[NotifyState::Status(&words)]);
}

/// WATCHDOG=1.
pub fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// Half of WATCHDOG_USEC, if systemd asked for signs of life.
pub fn watchdog_interval() -> Option<Duration> {
    let mut micros = 0;
    sd_notify::watchdog_enabled(false, &mut micros).then(|| Duration::from_micros(micros) / 2)
}
