//! The write log of a file whose every change is noted for a successor.

use std::ops::Deref;

use crate::handover::{Item, LogEvent, Notes};
use crate::log::file::{Begin, Superseded, Ticket};
use crate::log::{Attempt, Change, Changes, FileLog};

/// See the module. Read as a [`FileLog`]; changed by the calls here, which are that one's.
pub struct Logged {
    node: u64,
    log: FileLog,
    notes: Notes,
}

impl Deref for Logged {
    type Target = FileLog;

    fn deref(&self) -> &FileLog {
        &self.log
    }
}

impl Logged {
    /// The log of a node.
    pub fn new(node: u64, log: FileLog, notes: Notes) -> Logged {
        Logged { node, log, notes }
    }

    fn note(&self, event: LogEvent<'_>) {
        self.notes.note(&Item::Log { node: self.node, event });
    }

    /// See [`FileLog::found`].
    pub fn found(&mut self, generation: u64, size: u64) -> Result<(), Superseded> {
        self.note(LogEvent::Found { generation, size });
        self.log.found(generation, size)
    }

    /// See [`FileLog::found_committed`].
    pub fn found_committed(&mut self, size: u64) {
        self.note(LogEvent::FoundCommitted(size));
        self.log.found_committed(size);
    }

    /// See [`FileLog::attempt`].
    pub fn attempt(&mut self, attempt: Attempt) {
        self.note(LogEvent::Attempt(attempt));
        self.log.attempt(attempt);
    }

    /// See [`FileLog::learn_size`].
    pub fn learn_size(&mut self, size: u64) {
        self.note(LogEvent::LearnSize(size));
        self.log.learn_size(size);
    }

    /// See [`FileLog::record`].
    pub fn record(&mut self, generation: u64, change: Change<'_>) -> Result<(), Superseded> {
        self.note(match &change {
            Change::Write(offset, data) => {
                LogEvent::Write { generation, offset: *offset, data: data.as_slice().into() }
            }
            Change::SetSize(size) => LogEvent::SetSize { generation, size: *size },
        });
        self.log.record(generation, change)
    }

    /// See [`FileLog::hold_back`].
    pub fn hold_back(&mut self, generation: u64, offset: u64, data: &mut Vec<u8>) -> bool {
        let takes = self.log.takes(generation, offset, data.len());
        if takes {
            self.note(LogEvent::HoldBack { generation, offset, data: data.as_slice().into() });
        }
        takes && self.log.hold_back(generation, offset, data)
    }

    /// See [`FileLog::hand_over`].
    pub fn hand_over(&mut self) -> Option<(u64, Vec<u8>)> {
        let held = self.log.hand_over();
        if held.is_some() {
            self.note(LogEvent::HandOver);
        }
        held
    }

    /// See [`FileLog::handed_over`].
    pub fn handed_over(&mut self, generation: u64, end: u64) -> Result<(), Superseded> {
        self.note(LogEvent::HandedOver { generation, end });
        self.log.handed_over(generation, end)
    }

    /// See [`FileLog::displace`].
    pub fn displace(&mut self, to: u64) {
        self.note(LogEvent::Displace(to));
        self.log.displace(to);
    }

    /// See [`FileLog::begin`].
    pub fn begin(&mut self) -> Begin {
        let begun = self.log.begin();
        if matches!(begun, Begin::Commit(_)) {
            self.note(LogEvent::Begin);
        }
        begun
    }

    /// See [`FileLog::settle_truncation`].
    pub fn settle_truncation(&mut self, found: u64) {
        self.note(LogEvent::SettleTruncation(found));
        self.log.settle_truncation(found);
    }

    /// See [`FileLog::begin_replay`].
    pub fn begin_replay(&mut self) -> Ticket {
        self.note(LogEvent::BeginReplay);
        self.log.begin_replay()
    }

    /// See [`FileLog::committed`].
    pub fn committed(&mut self, ticket: &Ticket, generation: u64) -> Result<(), Superseded> {
        self.note(LogEvent::Committed { serial: ticket.serial(), generation });
        self.log.committed(ticket, generation)
    }

    /// See [`FileLog::failed`].
    pub fn failed(&mut self, ticket: &Ticket, again: bool) {
        self.note(LogEvent::Failed { serial: ticket.serial(), again });
        self.log.failed(ticket, again);
    }

    /// See [`FileLog::send_again`].
    pub fn send_again(&mut self) {
        self.note(LogEvent::SendAgain);
        self.log.send_again();
    }

    /// See [`FileLog::abandon`].
    pub fn abandon(&mut self) -> Changes {
        self.note(LogEvent::Abandon);
        self.log.abandon()
    }
}
