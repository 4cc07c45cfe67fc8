//! Calls that are ready to run, in the order in which they came.
//!
//! Data waits for room in the window without holding a thread, first come, first served, so that a second writer gets
//! its share. Everything else never waits behind data that has no room.

use std::collections::VecDeque;
use std::sync::Arc;

use super::call::Call;
use super::window::{Admission, Window};

/// See the module.
#[derive(Default)]
pub(super) struct Queue {
    others: VecDeque<Arc<Call>>,
    data: VecDeque<Arc<Call>>,
    /// Data had to wait since the queue of it was last empty.
    crowded: bool,
}

impl Queue {
    pub fn push(&mut self, call: Arc<Call>) {
        if call.bytes > 0 { &mut self.data } else { &mut self.others }.push_back(call);
    }

    /// Calls without payload.
    pub fn others(&self) -> usize {
        self.others.len()
    }

    /// Payload of the data call whose turn it is.
    pub fn next_data(&mut self) -> Option<u64> {
        drop_answered(&mut self.data);
        self.data.front().map(|call| call.bytes)
    }

    /// The oldest call that may run now; data only if it is `allowed` and has room, which it is given.
    pub fn take(&mut self, allowed: bool, window: &mut Window) -> Option<(Arc<Call>, Option<Admission>)> {
        drop_answered(&mut self.others);
        let bytes = self.next_data();
        self.crowded &= bytes.is_some();
        let older = match (self.data.front(), self.others.front()) {
            (Some(data), Some(other)) => data.arrived <= other.arrived,
            (data, _) => data.is_some(),
        };
        if let Some(bytes) = bytes.filter(|_| older && allowed) {
            if let Some(admission) = window.admit(bytes, self.crowded) {
                return Some((self.data.pop_front()?, Some(admission)));
            }
            self.crowded = true;
        }
        if let Some(call) = self.others.pop_front() {
            return Some((call, None));
        }
        None
    }

    /// Empties it.
    pub fn drain(&mut self) -> impl Iterator<Item = Arc<Call>> {
        self.crowded = false;
        self.others.drain(..).chain(self.data.drain(..))
    }
}

/// Whoever was answered by its deadline is not run any more, and must not hold up those behind it.
fn drop_answered(calls: &mut VecDeque<Arc<Call>>) {
    while calls.front().is_some_and(|call| call.is_answered()) {
        calls.pop_front();
    }
}
