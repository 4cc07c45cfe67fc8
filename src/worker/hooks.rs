//! Runs a hook: without a shell, in a process group of its own, under a timeout, its output kept short.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::config::HookCommand;

/// Bytes of output that are kept.
const OUTPUT: u64 = 4096;

/// How a hook ended, with what it printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Exit code 0.
    Ok(String),
    /// Another exit code, a signal, or not started at all.
    Failed(String),
    /// Killed, with its whole group.
    Timeout,
}

impl Ended {
    /// Label value in metrics.
    pub fn word(&self) -> &'static str {
        match self {
            Ended::Ok(_) => "ok",
            Ended::Failed(_) => "failed",
            Ended::Timeout => "timeout",
        }
    }

    /// What it printed.
    pub fn output(&self) -> &str {
        match self {
            Ended::Ok(output) | Ended::Failed(output) => output,
            Ended::Timeout => "",
        }
    }
}

/// Runs it to its end or to its timeout.
pub fn run(command: &HookCommand, environment: &[(&str, &OsStr)], timeout: Duration) -> Ended {
    let Some((program, arguments)) = command.argv.split_first() else { return Ended::Failed("no command".into()) };
    let spawned = Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return Ended::Failed(format!("{program}: {error}")),
    };
    let group = Pid::from_raw(child.id().cast_signed());
    let outputs = (child.stdout.take(), child.stderr.take());
    let (sender, ended) = channel();
    // Waits for the process alone: what it left running in the background must not hold the worker up.
    std::thread::spawn(move || _ = sender.send(child.wait()));
    let output = std::thread::spawn(move || {
        let mut text = String::new();
        for stream in [outputs.0.map(|s| Box::new(s) as Box<dyn Read>), outputs.1.map(|s| Box::new(s) as Box<dyn Read>)]
        {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                // A part of the output is better than none.
                let _ = stream.by_ref().take(OUTPUT).read_to_end(&mut bytes);
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
            text.push_str(&String::from_utf8_lossy(&bytes));
        }
        text
    });
    match ended.recv_timeout(timeout) {
        Ok(Ok(status)) => {
            // Children that still write keep the pipe open: what they say is not waited for.
            let text = if output.is_finished() || wait_briefly(&output) {
                output.join().unwrap_or_default()
            } else {
                String::new()
            };
            if status.success() { Ended::Ok(text) } else { Ended::Failed(format!("{status}: {text}")) }
        }
        Ok(Err(error)) => Ended::Failed(error.to_string()),
        Err(_) => {
            // ESRCH: it ended just now.
            let _ = killpg(group, Signal::SIGKILL);
            Ended::Timeout
        }
    }
}

fn wait_briefly(thread: &std::thread::JoinHandle<String>) -> bool {
    for _ in 0..50 {
        if thread.is_finished() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    thread.is_finished()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> HookCommand {
        HookCommand { argv: ["sh", "-c", script].map(String::from).into() }
    }

    #[test]
    fn the_environment_and_the_result_are_passed_on() {
        let environment = [("STEADFS_REASON", OsStr::new("probe_late"))];
        let ended = run(&shell("echo $STEADFS_REASON"), &environment, Duration::from_secs(20));
        assert_eq!(ended, Ended::Ok("probe_late\n".into()));
        assert_eq!(run(&shell("exit 3"), &[], Duration::from_secs(20)).word(), "failed");
        let missing = HookCommand { argv: vec!["/does/not/exist".into()] };
        assert_eq!(run(&missing, &[], Duration::from_secs(20)).word(), "failed");
    }

    #[test]
    fn a_hook_that_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().expect("a directory");
        let pid_file = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        assert_eq!(run(&shell(&script), &[], Duration::from_millis(500)), Ended::Timeout);
        let pid: i32 = std::fs::read_to_string(pid_file).expect("it ran").trim().parse().expect("a pid");
        let gone = || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
        for _ in 0..2000 {
            if !gone() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("the child lives on");
    }

    #[test]
    fn no_shell_looks_at_the_words() {
        let echo = HookCommand { argv: ["echo", "$HOME;", "a b"].map(String::from).into() };
        assert_eq!(run(&echo, &[], Duration::from_secs(20)), Ended::Ok("$HOME; a b\n".into()));
    }
}
