//! `steadfs status --watch`: the status again each second, on a terminal as a screen that is drawn over.

mod frame;
mod screen;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant, SystemTime};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGWINCH};

use super::status::Found;
use crate::daemon::MountError;
use frame::Rates;
use screen::Screen;

/// Time between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// Looks and shows until somebody has seen enough; the exit code is that of the last look. `text` is what is printed where
/// there is no terminal, or if it is JSON.
pub(super) fn run(
    look: impl Fn() -> Result<Found, MountError>,
    text: impl Fn(&Found) -> Result<String, String>,
    json: bool,
) -> ExitCode {
    match watch(look, text, json) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            super::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn watch(
    look: impl Fn() -> Result<Found, MountError>,
    text: impl Fn(&Found) -> Result<String, String>,
    json: bool,
) -> Result<u8, String> {
    let words = |error: io::Error| error.to_string();
    let end = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&end)).map_err(words)?;
    }
    // Only to be woken by it.
    signal_hook::flag::register(SIGWINCH, Arc::default()).map_err(words)?;
    let mut found = look().map_err(|error| error.to_string())?;
    if found.code() == 3 {
        let nothing = "nothing is mounted".to_owned();
        super::complain(found.complaints.first().unwrap_or(&nothing));
        return Ok(3);
    }
    let screen = if io::stdout().is_terminal() && !json { Some(Screen::enter().map_err(words)?) } else { None };
    let mut rates = Rates::default();
    loop {
        rates.look(&found.statuses, Instant::now());
        match &screen {
            Some(screen) => screen.draw(|size| frame::frame(&found, &rates, SystemTime::now(), size)).map_err(words)?,
            None => {
                found.silent.iter().chain(&found.complaints).for_each(|complaint| super::complain(complaint));
                let text = text(&found)? + if json { "" } else { "\n" };
                // A reader that went away has seen enough.
                if io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).is_err() {
                    return Ok(found.code());
                }
            }
        }
        let until = Instant::now() + EVERY;
        while !end.load(SeqCst) && Instant::now() < until {
            let rest = until.saturating_duration_since(Instant::now());
            match &screen {
                Some(screen) => match screen.wait(rest).map_err(words)? {
                    screen::Woken::Quit => end.store(true, SeqCst),
                    screen::Woken::Resized => break,
                    screen::Woken::Time => {}
                },
                None => std::thread::sleep(rest.min(Duration::from_millis(100))),
            }
        }
        if end.load(SeqCst) {
            return Ok(found.code());
        }
        found = look().map_err(|error| error.to_string())?;
    }
}
