//! Runs what may hang in children that can be left behind, several at a time, until a moment that is kept.
//!
//! A process that hangs inside a filesystem may be in state D, which SIGKILL does not end: nobody waits for such a one. The
//! threads that watch the children touch nothing but their pipes.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, pipe2};
use parking_lot::Mutex;

/// Where programs are looked for: never in a directory that a user's PATH may have on a dead mount.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// What a child needs of the environment to find the same directories as its parent.
const HANDED_ON: [&str; 5] = ["STEADFS_RUNTIME_DIR", "STEADFS_STATE_DIR", "XDG_RUNTIME_DIR", "XDG_STATE_HOME", "HOME"];
/// Most bytes that are kept of what one prints: its end, where the latest lines of a log are.
const KEPT: usize = 1 << 20;
/// Time between two looks at a child.
const LOOK: Duration = Duration::from_millis(20);
/// How long output may still come after a child has ended: what it left running may hold the pipe for ever.
const AFTERWORDS: Duration = Duration::from_millis(100);
/// How long a killed child may take to be gone before it is left behind.
const DEATH: Duration = Duration::from_millis(500);
/// How much later than `until` the last answer may come.
const GRACE: Duration = Duration::from_secs(1);

/// This executable: for children that look at something by themselves. It is there even if its file is not.
pub const SELF: &str = "/proc/self/exe";

/// How a child ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// By itself, with this code; 128 and the signal's number if by a signal.
    Exited(i32),
    /// Killed when its time was over.
    Killed,
    /// Told to die when its time was over, and did not: that process hangs in the kernel.
    LeftBehind(u32),
    /// There was no such program, or no time.
    NotStarted(String),
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What it printed on either stream; the end of it.
    pub output: Vec<u8>,
    /// Bytes before that.
    pub left_out: usize,
    /// How it ended.
    pub end: End,
}

/// Runs a program for no longer than `limit` (and a moment for its death).
pub fn run(argv: &[OsString], limit: Duration) -> Seen {
    run_unless(argv, limit, || false)
}

/// As [`run`], until it is `cut` short.
pub fn run_unless(argv: &[OsString], limit: Duration, cut: impl Fn() -> bool) -> Seen {
    let not_started = |text: String| Seen { output: Vec::new(), left_out: 0, end: End::NotStarted(text) };
    let until = Instant::now() + limit;
    let started = start(argv);
    let (mut child, mut pipe) = match started {
        Ok(started) => started,
        Err(error) => return not_started(error.to_string()),
    };
    let (mut output, mut left_out) = (Vec::new(), 0);
    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut open = true;
    loop {
        open = open && read_some(&mut pipe, &mut output, &mut left_out);
        if ended.is_none() {
            ended = child.try_wait().ok().flatten().map(|status| (status, Instant::now()));
        }
        match ended {
            Some((status, at)) if !open || at.elapsed() > AFTERWORDS => {
                let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(1);
                return Seen { output, left_out, end: End::Exited(code) };
            }
            None if Instant::now() >= until || cut() => {
                let end = kill(&mut child);
                read_some(&mut pipe, &mut output, &mut left_out);
                return Seen { output, left_out, end };
            }
            _ if !open => std::thread::sleep(LOOK),
            _ => {}
        }
    }
}

fn start(argv: &[OsString]) -> std::io::Result<(Child, std::fs::File)> {
    let (program, arguments) = argv.split_first().ok_or_else(|| std::io::Error::other("no command"))?;
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        // So that times can be compared, and said to dmesg(1), which takes no seconds since 1970.
        .env("TZ", "UTC")
        .envs(HANDED_ON.iter().filter_map(|name| Some((name, std::env::var_os(name)?))))
        // Ours may be on a mount that hangs.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    if program == OsStr::new(SELF) {
        command.arg0("steadfs");
    }
    // Who is killed while it collects leaves nobody behind that nobody watches.
    // SAFETY: prctl(2) is async-signal-safe and the closure allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
    }
    Ok((command.spawn()?, reader.into()))
}

/// Reads what is there, waiting a moment for it; false at the end.
fn read_some(pipe: &mut std::fs::File, output: &mut Vec<u8>, left_out: &mut usize) -> bool {
    let mut piece = [0; 1 << 14];
    let mut wait = LOOK;
    for _ in 0..64 {
        let mut polled = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut polled, PollTimeout::try_from(wait).unwrap_or(PollTimeout::ZERO)) {
            Ok(1..) => {}
            _ => return true,
        }
        match pipe.read(&mut piece) {
            Ok(0) | Err(_) => return false,
            Ok(n) => output.extend_from_slice(&piece[..n]),
        }
        if output.len() > 2 * KEPT {
            *left_out += output.len() - KEPT;
            output.drain(..output.len() - KEPT);
        }
        wait = Duration::ZERO;
    }
    true
}

fn kill(child: &mut Child) -> End {
    // ESRCH: it ended just now.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    let until = Instant::now() + DEATH;
    while Instant::now() < until {
        if !matches!(child.try_wait(), Ok(None)) {
            return End::Killed;
        }
        std::thread::sleep(LOOK);
    }
    End::LeftBehind(child.id())
}

/// Runs each of them for at most its limit, `width` at a time, and returns by `until`, or a moment later. `done` is told of
/// each, in the order in which they end; what is not done by then is `NotStarted`, or counts as left behind.
pub fn run_all<T: Send + Clone + 'static>(
    probes: Vec<(T, Vec<OsString>, Duration)>,
    width: usize,
    until: Instant,
    mut done: impl FnMut(T, Seen),
) {
    let mut open: Vec<Option<T>> = probes.iter().map(|(what, ..)| Some(what.clone())).collect();
    let queue: Arc<Mutex<VecDeque<_>>> = Arc::new(Mutex::new(probes.into_iter().enumerate().collect()));
    let (sender, results) = channel();
    for _ in 0..width.min(open.len()) {
        let (queue, sender) = (Arc::clone(&queue), sender.clone());
        // Not joined: a thread may hang where even starting a program hangs.
        let worker = move || {
            loop {
                let Some((index, (what, argv, limit))) = queue.lock().pop_front() else { return };
                let left = until.saturating_duration_since(Instant::now());
                let seen = match left.min(limit) {
                    Duration::ZERO => {
                        let end = End::NotStarted("the time for the whole bundle was over".into());
                        Seen { output: Vec::new(), left_out: 0, end }
                    }
                    limit => run(&argv, limit),
                };
                if sender.send((index, what, seen)).is_err() {
                    return;
                }
            }
        };
        _ = std::thread::Builder::new().name("probe".into()).spawn(worker);
    }
    drop(sender);
    loop {
        let wait = (until + GRACE).saturating_duration_since(Instant::now());
        match results.recv_timeout(wait) {
            Ok((index, what, seen)) => {
                open[index] = None;
                done(what, seen);
            }
            Err(RecvTimeoutError::Disconnected | RecvTimeoutError::Timeout) => break,
        }
    }
    for what in open.into_iter().flatten() {
        let end = End::NotStarted("it did not even start in time".into());
        done(what, Seen { output: Vec::new(), left_out: 0, end });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Vec<OsString> {
        ["sh", "-c", script].map(OsString::from).to_vec()
    }

    #[test]
    fn both_streams_and_the_exit_code_are_kept() {
        let seen = run(&sh("echo out; echo err >&2; exit 7"), Duration::from_secs(10));
        assert_eq!((seen.end, seen.output), (End::Exited(7), b"out\nerr\n".to_vec()));
        assert!(matches!(run(&["no-such-program".into()], Duration::from_secs(10)).end, End::NotStarted(_)));
    }

    #[test]
    fn one_that_hangs_is_killed_with_its_children_and_what_it_said_is_kept() {
        let begun = Instant::now();
        let seen = run(&sh("echo said; sleep 600 & echo $!; wait"), Duration::from_secs(3));
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!(seen.end, End::Killed);
        let text = String::from_utf8(seen.output).expect("text");
        let pid: i32 = text.lines().nth(1).and_then(|line| line.parse().ok()).expect("a pid");
        let gone = || std::fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "));
        while !gone() {
            assert!(begun.elapsed() < Duration::from_secs(20), "its child lives");
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn one_that_leaves_a_process_behind_is_not_waited_for() {
        let begun = Instant::now();
        let seen = run(&sh("setsid sleep 30 & echo done"), Duration::from_secs(25));
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!((seen.end, seen.output), (End::Exited(0), b"done\n".to_vec()));
    }

    #[test]
    fn of_much_output_the_end_is_kept() {
        let seen = run(&sh("yes 0123456 | head -n 500000; echo last"), Duration::from_secs(60));
        assert_eq!(seen.end, End::Exited(0));
        assert!(seen.left_out > 0 && seen.output.len() <= 2 * KEPT && seen.output.ends_with(b"last\n"));
        assert_eq!(seen.left_out + seen.output.len(), 4_000_005);
    }

    #[test]
    fn the_whole_ends_in_time_and_tells_of_each() {
        let begun = Instant::now();
        let probes = (0..12).map(|n| (n, sh("sleep 600"), Duration::from_secs(600))).collect();
        let mut told = Vec::new();
        run_all(probes, 4, Instant::now() + Duration::from_secs(1), |n, seen| told.push((n, seen.end)));
        assert!(begun.elapsed() < Duration::from_secs(15));
        told.sort_by_key(|(n, _)| *n);
        assert_eq!(told.iter().map(|(n, _)| *n).collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
        assert!(told[..4].iter().all(|(_, end)| *end == End::Killed), "{told:?}");
        assert!(told[4..].iter().all(|(_, end)| matches!(end, End::NotStarted(_))), "{told:?}");
    }

    #[test]
    fn a_child_gets_no_more_of_the_environment_than_it_needs() {
        let seen = run(&sh("env"), Duration::from_secs(10));
        let text = String::from_utf8(seen.output).expect("text");
        let known = |line: &str| {
            let name = line.split('=').next().unwrap_or_default();
            ["PATH", "LC_ALL", "TZ", "PWD", "SHLVL", "_", "OLDPWD"].contains(&name) || HANDED_ON.contains(&name)
        };
        assert!(text.lines().all(known), "{text}");
    }
}
