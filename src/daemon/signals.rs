//! Turns signals into wakeups.

use std::io;
use std::sync::mpsc::Sender;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::{Handle, Signals};

use super::Wakeup;

/// Ends the forwarding when dropped.
pub struct Forwarding(Handle);

/// Forwards SIGTERM, SIGINT and SIGHUP from a thread of its own.
pub fn forward(wakeups: Sender<Wakeup>) -> io::Result<Forwarding> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let handle = signals.handle();
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            let wakeup = if signal == SIGHUP { Wakeup::Retry } else { Wakeup::Terminate };
            if wakeups.send(wakeup).is_err() {
                break;
            }
        }
    })?;
    Ok(Forwarding(handle))
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.0.close();
    }
}
