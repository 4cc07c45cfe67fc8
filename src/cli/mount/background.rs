//! The daemon in the background: the parent waits until the overlay answers and passes on what goes wrong before that.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, dup2_stderr, dup2_stdin, dup2_stdout, fork, getpid, pipe2, setsid};

use super::{Prepared, kept, logging, serve};
use crate::cli::{complain, exit_code};
use crate::daemon::MountError;

/// First byte of the child's message: the overlay answers.
const READY: u8 = b'R';
/// First byte of the child's message: an exit code and a text follow.
const FAILED: u8 = b'E';

/// Forks. Must be called before the process has any thread.
pub fn run(prepared: Prepared) -> ExitCode {
    match split(prepared) {
        Ok(code) => code,
        Err(error) => {
            complain(&format!("cannot go to the background: {error}"));
            ExitCode::from(2)
        }
    }
}

fn split(prepared: Prepared) -> io::Result<ExitCode> {
    let (verdict_in, verdict_out) = pipe2(OFlag::O_CLOEXEC)?;
    let (words_in, words_out) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the process has a single thread, so the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop((verdict_out, words_out));
            drop(prepared);
            parent(child, verdict_in, words_in)
        }
        ForkResult::Child => {
            drop((verdict_in, words_in));
            Ok(child(prepared, File::from(verdict_out), words_out))
        }
    }
}

/// Waits for the verdict and forwards the child's stderr until then.
fn parent(child: Pid, verdict: OwnedFd, words: OwnedFd) -> io::Result<ExitCode> {
    let (mut verdict, mut words) = (File::from(verdict), File::from(words));
    let mut listening = true;
    loop {
        let mut fds = vec![PollFd::new(verdict.as_fd(), PollFlags::POLLIN)];
        if listening {
            fds.push(PollFd::new(words.as_fd(), PollFlags::POLLIN));
        }
        match poll(&mut fds, PollTimeout::NONE) {
            Err(nix::errno::Errno::EINTR) => continue,
            other => other?,
        };
        let ready = |index: usize| fds.get(index).and_then(PollFd::any) == Some(true);
        let (decided, spoken) = (ready(0), ready(1));
        // First what was said before the verdict.
        if spoken {
            listening = forward(&mut words)?;
        } else if decided {
            break;
        }
    }
    let mut message = Vec::new();
    let mut first = [0];
    if verdict.read(&mut first)? == 1 {
        if first[0] == READY {
            return Ok(ExitCode::SUCCESS);
        }
        verdict.read_to_end(&mut message)?;
    }
    if let Some((code, text)) = message.split_first() {
        // A daemon of its own has said it already.
        if !text.is_empty() {
            complain(&String::from_utf8_lossy(text));
        }
        return Ok(ExitCode::from(*code));
    }
    let how = match waitpid(child, None)? {
        WaitStatus::Exited(_, code) => format!("exit code {code}"),
        WaitStatus::Signaled(_, signal, _) => format!("{signal}"),
        other => format!("{other:?}"),
    };
    complain(&format!("the daemon ended before the overlay answered ({how})"));
    Ok(ExitCode::from(32))
}

/// Copies what is there; false at the end.
fn forward(words: &mut File) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    let count = words.read(&mut buffer)?;
    // A closed stderr is no reason to give up the mount.
    let _ = io::stderr().write_all(&buffer[..count]);
    Ok(count > 0)
}

fn child(prepared: Prepared, verdict: File, words: OwnedFd) -> ExitCode {
    let log_path = prepared.claim.log();
    let detached = Arc::new(AtomicBool::new(false));
    let result = detach(&words, &verdict, &detached)
        .and_then(|()| logging::to_file(&log_path, detached.clone()))
        .map_err(|error| MountError::System(format!("cannot start the daemon: {error}")))
        .and_then(|log| {
            drop(words);
            let mut verdict = verdict.try_clone().map_err(|error| MountError::System(error.to_string()))?;
            let ready = move || {
                detached.store(true, Ordering::SeqCst);
                if let Err(error) = log.to_stderr() {
                    tracing::warn!(%error, "cannot leave the terminal");
                }
                tracing::info!("mounted");
                // The parent may have been killed; the mount stands all the same.
                let _ = verdict.write_all(&[READY]);
            };
            if prepared.config.keeper.wanted {
                kept::run(prepared, &kept::Log::File(log_path), ready)
            } else {
                serve(prepared, ready).map(|()| 0)
            }
        });
    let (code, text) = match result {
        Ok(0) => return ExitCode::SUCCESS,
        Ok(code) => (code, String::new()),
        Err(error) => (exit_code(&error), error.to_string()),
    };
    // Only a parent that still waits reads it.
    let _ = (&verdict).write_all(&[&[FAILED, code], text.as_bytes()].concat());
    ExitCode::from(code)
}

/// A session of its own, and stderr to the parent.
fn detach(words: &OwnedFd, verdict: &File, detached: &Arc<AtomicBool>) -> io::Result<()> {
    setsid()?;
    // For the main thread, which asks for them when it is ready to: the one below would die of them.
    let kept: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().collect();
    kept.thread_block()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(words)?;
    let (verdict, detached) = (verdict.try_clone()?, detached.clone());
    // Ctrl-C ends only the parent; then nobody wants the mount any more.
    std::thread::Builder::new().name("parent-watch".into()).spawn(move || {
        let mut fds = [PollFd::new(verdict.as_fd(), PollFlags::empty())];
        while poll(&mut fds, PollTimeout::NONE) == Err(nix::errno::Errno::EINTR) {}
        if !detached.load(Ordering::SeqCst) {
            // The only failure is that the process is not there.
            let _ = kill(getpid(), Signal::SIGTERM);
        }
    })?;
    Ok(())
}
