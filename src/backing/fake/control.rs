//! The switches of a [`super::FakeBacking`].

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::fault::{Call, Fault, FaultId};
use super::state::Shared;
use crate::backing::Vitals;

/// Scripts a [`super::FakeBacking`] at run time, from any thread. Clones are the same hand.
#[derive(Debug, Clone)]
pub struct FakeControl {
    shared: Arc<Shared>,
}

impl FakeControl {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        FakeControl { shared }
    }

    /// Adds a fault. The first that matches a call and strikes is applied; a call meets one at most. Calls that are
    /// inside already are left alone.
    pub fn inject(&self, fault: Fault) -> FaultId {
        self.shared.change(|state| state.inject(fault))
    }

    /// Takes one fault away; calls that hang by it go on.
    pub fn remove(&self, id: FaultId) {
        self.shared.change(|state| state.remove(id));
    }

    /// Takes all faults away; calls that hang by them go on. Freezing is another matter.
    pub fn clear_faults(&self) {
        self.shared.change(|state| state.clear());
    }

    /// As SIGKILL of sshfs: every call of the newest generation, inside and later, fails with ENOTCONN, and the exit
    /// is told before this returns. Nothing if it is dead already.
    pub fn kill_generation(&self) {
        self.shared.kill();
    }

    /// As SIGSTOP of sshfs: all calls of the generations there are, the probe too, hang until
    /// [`FakeControl::thaw`] or the abort. A generation that is started later is not frozen.
    pub fn freeze(&self) {
        self.shared.change(|state| state.freeze(true));
    }

    /// As a frozen server or a cut link: as [`FakeControl::freeze`], and later starts hang for the whole of their
    /// limit too. [`FakeControl::unreachable`] tells whether [`crate::backing::Backing::reach`] notices.
    pub fn freeze_server(&self) {
        self.shared.change(|state| state.server_frozen = true);
    }

    /// Ends both kinds of freezing; what hangs goes on where it was.
    pub fn thaw(&self) {
        self.shared.change(|state| {
            state.server_frozen = false;
            state.freeze(false);
        });
    }

    /// While true, reach and start fail at once. Says nothing of calls in a live generation.
    pub fn unreachable(&self, unreachable: bool) {
        self.shared.change(|state| state.unreachable = unreachable);
    }

    /// While set, starts fail with [`crate::backing::StartError::Refused`] and these words.
    pub fn refuse(&self, words: Option<&str>) {
        self.shared.change(|state| state.refusal = words.map(str::to_owned));
    }

    /// How long each later start takes.
    pub fn set_start_delay(&self, delay: Duration) {
        self.shared.change(|state| state.start_delay = delay);
    }

    /// What generations say of themselves from now on.
    pub fn set_vitals(&self, vitals: Vitals) {
        self.shared.change(|state| state.vitals = vitals);
    }

    /// From now on the server writes behind: see [`FakeControl::crash`].
    pub fn write_behind(&self) {
        self.shared.disk.watch();
    }

    /// What the disk of a server that writes behind has of the file at that path of this machine.
    pub fn on_disk(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.shared.disk.content(path)
    }

    /// Between two generations: the server crashes, and of every file below that directory of this machine it keeps what
    /// was synced and some of what was not. `dice` gives numbers below its argument.
    pub fn crash(&self, below: &Path, dice: &mut dyn FnMut(u64) -> u64) -> io::Result<()> {
        self.shared.disk.crash(below, dice)
    }

    /// Calls of a kind that have come in since the beginning, in all generations, whatever became of them.
    pub fn calls(&self, call: Call) -> u64 {
        self.shared.state().calls.get(&call).copied().unwrap_or(0)
    }

    /// Calls of all kinds.
    pub fn all_calls(&self) -> u64 {
        self.shared.state().calls.values().sum()
    }

    /// Calls that are inside at this moment.
    pub fn inside(&self) -> usize {
        self.shared.state().inside
    }

    /// Waits until exactly `count` calls are inside; false if that has not come about within `limit`.
    pub fn wait_inside(&self, count: usize, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while self.inside() != count {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        true
    }

    /// Starts that were tried.
    pub fn starts(&self) -> u64 {
        self.shared.state().starts
    }

    /// Starts that succeeded.
    pub fn started(&self) -> u64 {
        self.shared.state().started
    }

    /// Calls of abort.
    pub fn aborts(&self) -> u64 {
        self.shared.state().aborts
    }

    /// Calls of retire.
    pub fn retires(&self) -> u64 {
        self.shared.state().retires
    }
}
