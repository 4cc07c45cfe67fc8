//! Programs and looks at files that may never come back.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How long a look at a file may take.
pub const LOOK: Duration = Duration::from_secs(5);
/// How long a program may take that asks nobody.
pub const PROGRAM: Duration = Duration::from_secs(10);
/// How much of what a program prints is kept.
const OUTPUT: u64 = 64 << 10;

/// What a program said.
#[derive(Debug)]
pub struct Said {
    /// It ended by itself with exit code 0.
    pub well: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Said {
    /// Its last words.
    pub fn words(&self) -> String {
        let lines = self.stderr.lines().chain(self.stdout.lines());
        lines.map(str::trim).rfind(|line| !line.is_empty()).unwrap_or("it failed and said nothing").to_owned()
    }
}

/// Runs a program for no longer than that; the error is a half sentence.
pub fn run(command: &mut Command, limit: Duration) -> Result<Said, String> {
    let until = Instant::now() + limit;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0).env("LC_ALL", "C");
    let mut child = command.spawn().map_err(|error| format!("cannot be run: {error}"))?;
    let group = Pid::from_raw(child.id().cast_signed());
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let left = || until.saturating_duration_since(Instant::now());
    let text = |from: &Receiver<String>| from.recv_timeout(left()).ok();
    let (out, err) = (text(&stdout), text(&stderr));
    if out.is_none() || err.is_none() {
        // ESRCH: it ended just now.
        let _ = killpg(group, Signal::SIGKILL);
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    match (out, err) {
        (Some(stdout), Some(stderr)) => Ok(Said { well: status.success(), stdout, stderr }),
        _ => Err(format!("has not ended after {}", crate::cli::options::duration::format(limit))),
    }
}

/// Reads to the end, in a thread of its own.
pub fn drain(from: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    let read = move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            _ = from.by_ref().take(OUTPUT).read_to_end(&mut bytes);
            // What prints more is not to be stopped by a full pipe.
            _ = io::copy(&mut from, &mut io::sink());
        }
        _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    };
    // Without a thread nothing is received, and that is a program that did not end.
    _ = std::thread::Builder::new().name("drain".into()).spawn(read);
    receiver
}

/// Does something that may hang on a dead mount; `None` if it did.
pub fn within<T: Send + 'static>(limit: Duration, look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (sender, receiver) = channel();
    std::thread::Builder::new().name("look".into()).spawn(move || _ = sender.send(look())).ok()?;
    receiver.recv_timeout(limit).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_hangs_is_ended() {
        let mut hangs = Command::new("sh");
        hangs.args(["-c", "sleep 1000 & wait"]);
        assert!(run(&mut hangs, Duration::from_millis(200)).is_err_and(|words| words.starts_with("has not ended")));
        let said = run(Command::new("sh").args(["-c", "echo a; echo b >&2; exit 3"]), PROGRAM).expect("it runs");
        assert_eq!((said.well, said.stdout.as_str(), said.words().as_str()), (false, "a\n", "a"));
        assert!(run(&mut Command::new("/no/such/program"), PROGRAM).is_err());
    }

    #[test]
    fn a_look_that_hangs_is_left_behind() {
        let (sender, receiver) = channel::<()>();
        assert_eq!(within(Duration::from_millis(50), move || receiver.recv().is_ok()), None);
        drop(sender);
        assert_eq!(within(LOOK, || 5), Some(5));
    }
}
