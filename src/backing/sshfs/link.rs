//! Signs of life on the link below a generation, read without asking it anything.
//!
//! What counts as life: at least `STEP` bytes came in, or as many were acknowledged while `BACKLOG` more were
//! waiting. Less is noise: keepalives are answered by a server whose sftp-server is frozen, and its kernel goes on
//! acknowledging the small requests that we send it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::group::{Group, state_letter};
use super::tcp::{self, Connection, TcpCounters};
use crate::backing::Vitals;

/// Bytes that count as progress.
const STEP: u64 = 1024;
/// Bytes that must be queued for acknowledgements to count.
const BACKLOG: u64 = 4096;
/// An acknowledgement that recent says that the link works.
const FRESH_ACK_MS: u32 = 1000;
/// How often the members of the group and their connections are looked for again.
const SURVEY: Duration = Duration::from_secs(5);
/// The same as long as there is no connection.
const EARLY_SURVEY: Duration = Duration::from_millis(100);
/// But not for longer than a login may take: a local `ssh_command` never has one.
const LOGIN: Duration = Duration::from_secs(30);
/// Assumed size of a segment, where only segments are counted.
const SEGMENT: u64 = 1448;

#[derive(Default)]
struct State {
    members: Vec<i32>,
    connections: Vec<Connection>,
    first_look: Option<Instant>,
    surveyed_at: Option<Instant>,
    progress: Progress,
}

/// Finds progress in counters that only grow: a pure state machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Progress {
    received: u64,
    sent: u64,
    at: Option<Instant>,
}

impl Progress {
    fn observe(&mut self, received: u64, sent: u64, backlog: u64, now: Instant) {
        // Counters start anew with a new connection.
        if received < self.received || sent < self.sent {
            (self.received, self.sent) = (received, sent);
        }
        let came_in = received - self.received >= STEP;
        let went_out = sent - self.sent >= STEP;
        if came_in || (went_out && backlog >= BACKLOG) {
            self.at = Some(now);
        }
        if came_in {
            self.received = received;
        }
        if went_out {
            self.sent = sent;
        }
    }
}

/// Watches the link of one process group.
#[derive(Default)]
pub struct Link {
    state: Mutex<State>,
}

impl Link {
    /// The address that nobody has answered from yet, if at the last look there was no connection but the wait for one.
    pub fn connecting(&self) -> Option<SocketAddr> {
        let state = self.state.lock();
        let all = state.connections.iter().all(|connection| !connection.established);
        state.connections.first().filter(|_| all).map(|connection| connection.remote)
    }

    /// Bytes that the processes behind sshfs (ssh as a rule) have read and written; `None` if there are none.
    pub fn moved_bytes(&self, group: &Group) -> Option<u64> {
        let mut state = self.state.lock();
        if state.members.iter().all(|&pid| pid == group.leader()) {
            state.members = group.members();
        }
        let moved = state.members.iter().filter(|&&pid| pid != group.leader()).map(|&pid| moved_bytes(pid)).sum();
        Some(moved).filter(|&moved| moved > 0)
    }

    /// Looks once.
    pub fn vitals(&self, group: &Group) -> Vitals {
        let now = Instant::now();
        let mut state = self.state.lock();
        let early = now < *state.first_look.get_or_insert(now) + LOGIN;
        let settled = !early || state.connections.iter().any(|connection| connection.established);
        let interval = if settled { SURVEY } else { EARLY_SURVEY };
        if state.surveyed_at.is_none_or(|at| now >= at + interval) {
            state.members = group.members();
            state.connections = state.members.iter().flat_map(|&pid| tcp::connections(pid)).collect();
            state.surveyed_at = Some(now);
        }
        let stopped = state.members.iter().any(|&pid| state_letter(pid) == Some('T'));
        let established = state.connections.iter().filter(|connection| connection.established);
        let seen: Vec<TcpCounters> = established.filter_map(|c| tcp::counters(c.local, c.remote).ok()).collect();
        if seen.is_empty() {
            // No network (a local ssh_command), or a connection that has just gone: look at the processes themselves.
            let moved = state.members.iter().filter(|&&pid| pid != group.leader()).map(|&pid| moved_bytes(pid)).sum();
            state.progress.observe(moved, 0, 0, now);
            if !state.connections.is_empty() {
                state.surveyed_at = None;
            }
            return Vitals { progress_at: state.progress.at, stopped, link_acked: state.connections.is_empty() };
        }
        let received = seen.iter().map(|counters| counters.received).sum();
        let acked = seen.iter().map(|counters| counters.acked).sum();
        let backlog = seen.iter().map(|c| u64::from(c.not_sent) + u64::from(c.unacked) * SEGMENT).sum();
        state.progress.observe(received, acked, backlog, now);
        // Whoever still waits for an answer to its SYN has had nothing acknowledged.
        let link_acked = state.connections.iter().all(|connection| connection.established)
            && seen.iter().all(|counters| counters.unacked == 0 || counters.last_ack_ms < FRESH_ACK_MS);
        Vitals { progress_at: state.progress.at, stopped, link_acked }
    }
}

/// Bytes that a process has read and written (proc_pid_io(5): rchar, wchar).
fn moved_bytes(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let field =
        |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u64>().ok()).unwrap_or(0);
    field("rchar:") + field("wchar:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_that_come_in_are_life_and_keepalives_are_not() {
        let (mut progress, t) = (Progress::default(), Instant::now());
        for second in 0..10 {
            progress.observe(52 * second, 0, 0, t);
        }
        assert_eq!(progress.at, None);
        progress.observe(4000, 0, 0, t);
        assert_eq!(progress.at, Some(t));
    }

    #[test]
    fn acknowledged_bytes_are_life_only_while_more_wait() {
        let (mut progress, t) = (Progress::default(), Instant::now());
        progress.observe(0, 5000, 0, t);
        assert_eq!(progress.at, None);
        progress.observe(0, 9000, 100_000, t);
        assert_eq!(progress.at, Some(t));
    }

    #[test]
    fn counters_of_a_new_connection_do_not_count_backwards() {
        let (mut progress, t) = (Progress::default(), Instant::now());
        progress.observe(1 << 30, 1 << 30, 0, t);
        progress.observe(10, 10, 0, t);
        progress.observe(10, 10 + STEP, BACKLOG, t + Duration::from_secs(1));
        assert_eq!(progress.at, Some(t + Duration::from_secs(1)));
    }
}
