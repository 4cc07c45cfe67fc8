//! What is done to the write log of a file: the calls of [`FileLog`] that change it, as values. The log does no I/O and
//! asks no clock, so the same calls in the same order give the same log.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::log::{Attempt, Bytes, Change, FileLog};

/// One call. It may be noted before it is made or after, as long as the order is the same; a call that was refused
/// (`Superseded`) is refused again, so it may be noted or not. New variants go to the end, and raise
/// [`super::item::FORMAT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogEvent<'a> {
    /// [`FileLog::record`] of a write. Its data comes last, so that it need not be copied to be noted.
    Write {
        /// The generation it was handed to.
        generation: u64,
        /// Where.
        offset: u64,
        /// What.
        #[serde(borrow)]
        data: Bytes<'a>,
    },
    /// [`FileLog::record`] of a truncation.
    SetSize {
        /// The generation it was handed to.
        generation: u64,
        /// The size.
        size: u64,
    },
    /// [`FileLog::attempt`].
    Attempt(Attempt),
    /// [`FileLog::learn_size`].
    LearnSize(u64),
    /// [`FileLog::found`].
    Found {
        /// The generation that was looked at.
        generation: u64,
        /// The size.
        size: u64,
    },
    /// [`FileLog::found_committed`].
    FoundCommitted(u64),
    /// [`FileLog::begin`].
    Begin,
    /// [`FileLog::begin_replay`].
    BeginReplay,
    /// [`FileLog::committed`].
    Committed {
        /// [`crate::log::file::Ticket::serial`].
        serial: u64,
        /// The generation.
        generation: u64,
    },
    /// [`FileLog::failed`].
    Failed {
        /// [`crate::log::file::Ticket::serial`].
        serial: u64,
        /// As there.
        again: bool,
    },
    /// [`FileLog::send_again`].
    SendAgain,
    /// [`FileLog::abandon`].
    Abandon,
    /// [`FileLog::hold_back`] that took a write in.
    HoldBack {
        /// The generation it is to be handed to.
        generation: u64,
        /// Where.
        offset: u64,
        /// What.
        #[serde(borrow)]
        data: Bytes<'a>,
    },
    /// [`FileLog::hand_over`].
    HandOver,
    /// [`FileLog::handed_over`].
    HandedOver {
        /// The generation that has seen it.
        generation: u64,
        /// Up to where.
        end: u64,
    },
    /// [`FileLog::settle_truncation`].
    SettleTruncation(u64),
    /// It is like that, whatever it was.
    Is(Cow<'a, FileLog>),
    /// [`FileLog::displace`].
    Displace(u64),
}

impl LogEvent<'_> {
    /// Makes the call.
    pub fn apply(self, log: &mut FileLog) {
        match self {
            LogEvent::Write { generation, offset, data } => {
                let _ = log.record(generation, Change::Write(offset, &mut data.0.into_owned()));
            }
            LogEvent::SetSize { generation, size } => _ = log.record(generation, Change::SetSize(size)),
            LogEvent::Attempt(attempt) => log.attempt(attempt),
            LogEvent::LearnSize(size) => log.learn_size(size),
            LogEvent::Found { generation, size } => _ = log.found(generation, size),
            LogEvent::FoundCommitted(size) => log.found_committed(size),
            LogEvent::Begin => _ = log.begin(),
            LogEvent::BeginReplay => _ = log.begin_replay(),
            LogEvent::Committed { serial, generation } => {
                let ticket = log.ticket(serial);
                let _ = log.committed(&ticket, generation);
            }
            LogEvent::Failed { serial, again } => {
                let ticket = log.ticket(serial);
                log.failed(&ticket, again);
            }
            LogEvent::SendAgain => log.send_again(),
            LogEvent::Abandon => _ = log.abandon(),
            LogEvent::HoldBack { generation, offset, data } => {
                _ = log.hold_back(generation, offset, &mut data.0.into_owned());
            }
            LogEvent::HandOver => _ = log.hand_over(),
            LogEvent::HandedOver { generation, end } => _ = log.handed_over(generation, end),
            LogEvent::SettleTruncation(found) => log.settle_truncation(found),
            LogEvent::Is(new) => *log = new.into_owned(),
            LogEvent::Displace(to) => log.displace(to),
        }
    }
}
