//! What keeper and daemon say to each other: one JSON object a packet, with at most one descriptor.
//!
//! Fields may be added; a packet that cannot be understood is logged and ignored, so that two versions can talk.

use serde::{Deserialize, Serialize};

use super::abandon::Place;

/// Version of what is defined here.
pub const VERSION: u32 = 1;

/// A message. The direction is that of each paragraph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Message {
    /// Daemon to keeper, first of all, with a pidfd of the daemon.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// The daemon's process id, which means nothing once the pidfd says that it has ended.
        pid: i32,
    },
    /// Daemon to keeper, with a descriptor: keep it under that name, in place of what was kept under it.
    Hold {
        /// Up to 200 characters, none of which is a colon or a control character.
        name: String,
    },
    /// Daemon to keeper: close what is kept under that name.
    Drop {
        /// As in `Hold`.
        name: String,
    },
    /// Daemon to keeper: where the overlay or the backing is mounted, for the case that they have to be aborted.
    Mounted {
        /// Which of the two.
        what: What,
        /// Number of the overlay.
        #[serde(default)]
        slot: u32,
        /// Where; nowhere any more when absent.
        place: Option<Place>,
    },
    /// Daemon to keeper: calls are served.
    Ready,
    /// Daemon to keeper: it lives.
    Beat,
    /// Daemon to keeper: a line for `systemctl status`.
    Status {
        /// The line.
        text: String,
    },
    /// Daemon to keeper: it is going to exit for good with that code; there shall be no successor.
    Ended {
        /// The code.
        status: u8,
    },
    /// Daemon to keeper, with a descriptor of the executable (O_PATH will do).
    Upgrade {
        /// Its path, for people.
        path: String,
    },

    /// Keeper to daemon at its start, with a descriptor: this is kept under that name.
    Held {
        /// As in `Hold`.
        name: String,
    },
    /// The daemon is on trial. Keeper to daemon at its start, with a descriptor of the executable to go back to; daemon to the
    /// next keeper, which it starts from that one, with its own.
    Trial {
        /// What people call the executable.
        path: String,
    },
    /// Keeper to daemon, when all of it has been handed over.
    Go {
        /// [`VERSION`].
        version: u32,
        /// Whether there was a daemon before.
        why: Why,
        /// How many died early in a row.
        deaths: u32,
        /// What the last one died of; empty for the first.
        reason: String,
        /// When the last one died, by CLOCK_MONOTONIC in milliseconds; 0 if nobody saw it.
        #[serde(default)]
        died: u64,
        /// Milliseconds between two beats.
        beat: u64,
        /// Arguments of the next keeper, if this one dies; none if there shall be none.
        #[serde(default)]
        keeper: Vec<String>,
    },
    /// Keeper to daemon: stop serving and exit, without unmounting and without `Ended`.
    Yield,
    /// Keeper to daemon: what became of the upgrade.
    UpgradeResult {
        /// The new executable is in use.
        accepted: bool,
        /// Otherwise why not.
        reason: String,
    },
}

/// See [`Message::Mounted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum What {
    Overlay,
    Backing,
}

/// See [`Message::Go`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// Nothing has been mounted yet.
    First,
    /// Go on with what is held.
    Successor,
}
