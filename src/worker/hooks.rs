//! Runs a hook: without a shell, in a process group of its own, under a timeout, its output kept short. It does not outlive
//! the thread that waits for it.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};
use parking_lot::Mutex;

use crate::config::HookCommand;

/// Bytes of output that are kept.
const OUTPUT: usize = 4096;
/// How often it is looked whether a hook should be cut short.
const LOOK: Duration = Duration::from_millis(50);
/// How long output may still come after the hook has ended: what it left running may hold the pipe for ever.
const AFTERWORDS: Duration = Duration::from_millis(100);

/// How a hook ended, with what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Exit code 0.
    Ok(String),
    /// Another exit code, a signal, cut short, or not started at all.
    Failed(String),
    /// Killed, with its whole group.
    Timeout(String),
}

impl Ended {
    /// Label value in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Ended::Ok(_) => "ok",
            Ended::Failed(_) => "failed",
            Ended::Timeout(_) => "timeout",
        }
    }

    /// What it printed.
    pub fn output(&self) -> &str {
        match self {
            Ended::Ok(output) | Ended::Failed(output) | Ended::Timeout(output) => output,
        }
    }
}

/// Runs it to its end, to its timeout, or until it is `cut` short.
pub fn run(command: &HookCommand, environment: &[(&str, &OsStr)], timeout: Duration, cut: impl Fn() -> bool) -> Ended {
    run_keeping(OUTPUT, command, environment, timeout, cut)
}

/// As [`run`], but keeps that many bytes of output: of a program that is asked something.
pub fn run_keeping(
    output: usize,
    command: &HookCommand,
    environment: &[(&str, &OsStr)],
    timeout: Duration,
    cut: impl Fn() -> bool,
) -> Ended {
    let until = Instant::now() + timeout;
    let program = command.argv.first().map_or("", String::as_str);
    let (mut child, listener) = match start(command, environment, output) {
        Ok(started) => started,
        Err(error) => return Ended::Failed(format!("{program}: {error}")),
    };
    let group = Pid::from_raw(child.id() as i32);
    // ESRCH: it ended just now.
    let kill = || _ = killpg(group, Signal::SIGKILL);
    let (sender, ended) = channel();
    // Waits for the process alone: what it left running in the background must not hold the worker up.
    let waiter = std::thread::Builder::new().name("hook".into()).spawn(move || _ = sender.send(child.wait()));
    if let Err(error) = waiter {
        kill();
        return Ended::Failed(format!("{program}: {error}"));
    }
    loop {
        let wait = until.saturating_duration_since(Instant::now()).min(LOOK);
        match ended.recv_timeout(wait) {
            Ok(Ok(status)) if status.success() => return Ended::Ok(listener.text()),
            Ok(Ok(status)) => return Ended::Failed(format!("{status}: {}", listener.text())),
            Ok(Err(error)) => return Ended::Failed(error.to_string()),
            Err(RecvTimeoutError::Disconnected) => return Ended::Failed("nobody waited for it".into()),
            Err(RecvTimeoutError::Timeout) if cut() => {
                kill();
                return Ended::Failed(format!("cut short: steadfs ends: {}", listener.text()));
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() >= until => {
                kill();
                return Ended::Timeout(listener.text());
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

fn start(command: &HookCommand, environment: &[(&str, &OsStr)], output: usize) -> io::Result<(Child, Listener)> {
    let (program, arguments) = command.argv.split_first().ok_or_else(|| io::Error::other("no command"))?;
    // One pipe for both streams: a hook that fills the one must not wait for somebody who reads the other.
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let listener = Listener::begin(reader.into(), output)?;
    let mut hook = Command::new(program);
    hook.args(arguments)
        .envs(environment.iter().copied())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let parent = std::process::id().cast_signed();
    // SAFETY: these are system calls that are async-signal-safe and touch no memory.
    unsafe {
        hook.pre_exec(move || {
            // The daemon's is 0, and nothing a hook makes is meant to be writable for everybody.
            libc::umask(0o022);
            // What a killed daemon was doing must not go on while its successor undoes it. The thread that is meant here
            // waits for the hook, so it does not end before.
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            Ok(())
        });
    }
    Ok((hook.spawn()?, listener))
}

/// Keeps the beginning of what a hook says, and reads on so that it never has to wait.
struct Listener {
    heard: Arc<Mutex<Vec<u8>>>,
    thread: JoinHandle<()>,
}

impl Listener {
    fn begin(mut pipe: std::fs::File, output: usize) -> io::Result<Listener> {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&heard);
        let thread = std::thread::Builder::new().name("hook-output".into()).spawn(move || {
            let mut piece = [0; OUTPUT];
            while let Ok(n @ 1..) = pipe.read(&mut piece) {
                let mut kept = kept.lock();
                let room = output.saturating_sub(kept.len());
                kept.extend_from_slice(&piece[..n.min(room)]);
            }
        })?;
        Ok(Listener { heard, thread })
    }

    fn text(&self) -> String {
        let until = Instant::now() + AFTERWORDS;
        while !self.thread.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        String::from_utf8_lossy(&self.heard.lock()).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> HookCommand {
        HookCommand { argv: ["sh", "-c", script].map(String::from).into() }
    }

    fn run_for(script: &str, timeout: Duration) -> Ended {
        run(&shell(script), &[], timeout, || false)
    }

    #[test]
    fn the_environment_and_the_result_are_passed_on() {
        let environment = [("STEADFS_REASON", OsStr::new("probe_late"))];
        let ended = run(&shell("echo $STEADFS_REASON"), &environment, LONG, || false);
        assert_eq!(ended, Ended::Ok("probe_late\n".into()));
        assert_eq!(run_for("exit 3", LONG).word(), "failed");
        let missing = HookCommand { argv: vec!["/does/not/exist".into()] };
        assert_eq!(run(&missing, &[], LONG, || false).word(), "failed");
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().expect("a directory");
        let pid_file = directory.path().join("pid");
        let script = format!("echo before; sleep 1000 & echo $! > {}; wait", pid_file.display());
        assert_eq!(run_for(&script, Duration::from_secs(3)), Ended::Timeout("before\n".into()));
        let pid: i32 = std::fs::read_to_string(pid_file).expect("it ran").trim().parse().expect("a pid");
        let lives = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
        for _ in 0..2000 {
            if !lives() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the child lives on");
    }

    #[test]
    fn a_hook_may_say_more_than_a_pipe_holds_on_either_stream() {
        let ended = run_for("head -c 300000 /dev/zero >&2; head -c 300000 /dev/zero; echo done >&2", LONG);
        assert_eq!((ended.word(), ended.output().len()), ("ok", OUTPUT));
    }

    #[test]
    fn what_a_hook_leaves_running_is_not_waited_for() {
        let begun = Instant::now();
        assert_eq!(run_for("sleep 5 & echo said", LONG), Ended::Ok("said\n".into()));
        assert!(begun.elapsed() < Duration::from_secs(4));
    }

    #[test]
    fn a_hook_is_cut_short_when_steadfs_ends() {
        let begun = Instant::now();
        let ended = run(&shell("sleep 1000"), &[], LONG, || begun.elapsed() > Duration::from_millis(200));
        assert_eq!(ended.word(), "failed");
        assert!(begun.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn a_hook_runs_at_the_root_with_an_ordinary_umask_and_nothing_to_read() {
        assert_eq!(run_for("pwd; umask; cat", LONG), Ended::Ok("/\n0022\n".into()));
    }

    #[test]
    fn a_hook_does_not_outlive_who_waits_for_it() {
        let begun = std::thread::spawn(|| start(&shell("exec sleep 1000"), &[], OUTPUT).map(|(child, _)| child));
        let mut child = begun.join().expect("no panic").expect("it starts");
        let status = child.wait().expect("it is waited for");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(libc::SIGKILL));
    }

    #[test]
    fn no_shell_looks_at_the_words() {
        let echo = HookCommand { argv: ["echo", "$HOME;", "a b"].map(String::from).into() };
        assert_eq!(run(&echo, &[], LONG, || false), Ended::Ok("$HOME; a b\n".into()));
    }
}
