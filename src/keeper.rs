//! The keeper: the smallest process that can do it holds what a daemon must not lose, and starts the next daemon when one
//! dies (promise P6).
//!
//! It holds descriptors by name (the FUSE device, the memory with the state, those of the live backing generation) and
//! knows nothing of what they are, but that with [`DEVICE`] a successor can go on. It never touches the overlay or a
//! backing: its working directory is `/`, and what it opens lies in `/proc` and `/sys`. It has one thread.
//!
//! ```text
//!      systemd ◀── READY, STATUS, WATCHDOG, FDSTORE ──┐
//!                                                     │
//!   ┌────────┐  SOCK_SEQPACKET, SCM_RIGHTS        ┌───┴────┐
//!   │ daemon │ ─── Hello Hold Ready Beat Ended ─▶ │ keeper │  pidfd: has it ended?
//!   │        │ ◀── Held Go Yield ──────────────── │        │  starts, kills, passes signals on
//!   └────────┘                                    └────────┘
//! ```
//!
//! Each watches the other: when the keeper is gone, the daemon ([`crate::daemon::link`]) starts the next one and hands all
//! descriptors over again. What is to be done when is decided by the pure [`machine`]; [`run`] does it.

pub mod abandon;
pub mod executable;
pub mod machine;
pub mod message;
pub mod notify;
pub mod process;
pub mod run;
pub mod signals;
pub mod socket;
pub mod store;
pub mod threads;

/// Name of the FUSE device among what is held: while it is, a daemon that died can have a successor.
pub const DEVICE: &str = "device";
/// How the names begin of what is held of files that have lost theirs. It comes and goes with each temporary file, so the
/// service manager is not asked to hold it too.
pub const NAMELESS: &str = "nameless-";
/// The name of something that is held once for each overlay, by the overlay's number.
pub fn slotted(name: &str, slot: u32) -> String {
    if slot == 0 { name.into() } else { format!("{name}.{slot}") }
}

/// True if such a name is that of a device.
pub fn is_device(name: &str) -> bool {
    name.strip_prefix(DEVICE).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// Environment variable with the number of the descriptor that leads to the other side.
pub const LINK: &str = "STEADFS_LINK";

/// CLOCK_MONOTONIC in milliseconds, the same for all processes; 0 where it cannot be read.
pub fn monotonic_ms() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| u64::try_from(std::time::Duration::from(now).as_millis()).unwrap_or(0))
}
