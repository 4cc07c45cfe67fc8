//! What the machine takes in, gives out, and is.

use std::fmt;
use std::time::{Duration, Instant};

/// How patient the keeper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// `keeper_deadline=`: after so long without a daemon that serves the overlay is abandoned.
    pub deadline: Duration,
    /// `watchdog=`: a daemon that has been silent for so long is hung; `None`: it never is.
    pub watchdog: Option<Duration>,
    /// A daemon that served for less died early.
    pub served: Duration,
    /// Pause after the second early death in a row; it doubles with each further one.
    pub pause_min: Duration,
    /// Longest pause.
    pub pause_max: Duration,
    /// How long a daemon that is to be replaced may take to stop serving before it is killed.
    pub yielding: Duration,
    /// How long a daemon that was killed may take to end before its backing is aborted to free it.
    pub dying: Duration,
    /// How long a new executable may take to be ready, and how long it must live then, to be kept.
    pub trial: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            deadline: Duration::from_secs(30),
            watchdog: Some(Duration::from_secs(10)),
            served: Duration::from_secs(1),
            pause_min: Duration::from_millis(100),
            pause_max: Duration::from_secs(2),
            yielding: Duration::from_secs(2),
            dying: Duration::from_millis(500),
            trial: Duration::from_secs(10),
        }
    }
}

impl Policy {
    /// The pause after that many early deaths in a row.
    pub fn pause(&self, early: u32) -> Duration {
        match early.checked_sub(2) {
            None => Duration::ZERO,
            Some(doublings) => {
                self.pause_min.saturating_mul(2_u32.saturating_pow(doublings.min(20))).min(self.pause_max)
            }
        }
    }

    /// How long a new executable may take to be ready: callers wait, and the old one must have its time too.
    pub fn starting(&self) -> Duration {
        self.trial.min(self.deadline / 3)
    }

    /// How often a daemon should give a sign of life.
    pub fn beat(&self) -> Duration {
        self.watchdog.map_or(Duration::from_secs(1), |limit| (limit / 4).min(Duration::from_secs(1)))
    }
}

/// How a daemon ended, or why it was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    /// It exited with that code.
    Exited(i32),
    /// That signal killed it.
    Signalled(i32),
    /// It gave no sign of life and was killed.
    Silent,
    /// A new executable was not ready in time and was killed.
    NotReady,
    /// It could not be started, for that errno.
    NotStarted(i32),
    /// It was not a child, so nobody can say.
    Unknown,
}

impl Death {
    /// The exit code of mount(8) if the mount fails by it.
    pub(super) fn code(self) -> u8 {
        match self {
            Death::Exited(code) => u8::try_from(code).unwrap_or(32),
            Death::NotStarted(_) => 2,
            _ => 32,
        }
    }
}

impl fmt::Display for Death {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Death::Exited(code) => write!(f, "exit code {code}"),
            Death::Signalled(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => f.write_str(signal.as_str()),
                Err(_) => write!(f, "signal {number}"),
            },
            Death::Silent => f.write_str("no sign of life"),
            Death::NotReady => f.write_str("not ready in time"),
            Death::NotStarted(errno) => {
                write!(f, "it cannot be started: {}", nix::errno::Errno::from_raw(*errno).desc())
            }
            Death::Unknown => f.write_str("it ended"),
        }
    }
}

/// Which executable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Image {
    /// The one that is known to work.
    Present,
    /// The one that an upgrade brought and that is on trial.
    Candidate,
}

/// Something that happened. Of a daemon it is only told while that one is the present daemon, and what it said before
/// that it exited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// Time passed.
    Tick,
    /// Whether what is held suffices for a successor.
    Resumable(bool),
    /// A sign of life.
    Beat,
    /// The daemon serves.
    Ready,
    /// The daemon is about to exit for good, with that code.
    Said(u8),
    /// The daemon was killed, and threads of it have not ended: they are inside something that keeps them.
    Dying,
    /// The daemon has ended, or could not be started.
    Exited(Death),
    /// The keeper was sent that signal.
    Stop(i32),
    /// A new executable is there.
    UpgradeAsked,
    /// The daemon that was adopted is on trial; its trial begins again.
    OnTrial,
}

/// Something to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Start a daemon.
    Start {
        /// From which executable.
        image: Image,
        /// It is to go on with what is held.
        successor: bool,
        /// Early deaths in a row before it.
        deaths: u32,
        /// What its predecessor died of.
        reason: Option<Death>,
    },
    /// Ask the daemon to stop serving and to exit.
    Yield,
    /// SIGKILL to the daemon.
    Kill,
    /// Write down where its threads are.
    DumpThreads,
    /// Abort the backing in which the killed daemon may be stuck.
    Free,
    /// Send the daemon that signal.
    Pass(i32),
    /// The candidate is the present executable from now on.
    Accept,
    /// The candidate failed, by that.
    Reject(Death),
    /// An upgrade is not possible now; `keep`: what an earlier one brought is still in use.
    Refuse {
        /// See there.
        keep: bool,
    },
    /// Tell whoever waits that the overlay answers.
    TellReady,
    /// Tell that a daemon died.
    TellDeath(Death),
    /// Tell that the first daemon failed before the overlay was mounted.
    TellFailed(Death),
    /// End the FUSE connection and detach the overlay.
    Abandon,
    /// End with that code. A daemon that still lives is killed.
    Exit(u8),
}

/// Where the keeper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum State {
    /// A daemon has been started.
    Starting { since: Instant },
    /// It serves.
    Serving { since: Instant },
    /// It was killed for `death`; at `free_at` something must keep it from dying.
    Hung { death: Death, free_at: Option<Instant> },
    /// There is none; the next is started then.
    Down { until: Instant },
    /// It was asked to stop serving; at `kill_at` it is killed, and then freed.
    Upgrading { killed: bool, kill_at: Option<Instant> },
    /// The end.
    Ended { code: u8 },
}

impl State {
    /// A stable word.
    pub fn name(&self) -> &'static str {
        match self {
            State::Starting { .. } => "starting",
            State::Serving { .. } => "serving",
            State::Hung { .. } => "hung",
            State::Down { .. } => "down",
            State::Upgrading { .. } => "upgrading",
            State::Ended { .. } => "ended",
        }
    }
}
