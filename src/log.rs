//! The write log (promise P4): what was acknowledged is kept until an fsync of the backing has committed it.
//!
//! The model is NFS (RFC 1813, COMMIT): a write is acknowledged when it has been handed to the backing, unstable, and a
//! copy is kept; a commit makes the copies superfluous; the generation's number is the verifier, whose change means
//! that everything unstable has to be sent again.
//!
//! ```text
//!             write, truncate                  commit begins               fsync returned 0
//!   caller ─────────────────────▶ unstable ──────────────────▶ committing ─────────────────▶ forgotten
//!                                    ▲ │                           │
//!                                    │ │ the generation died       │ the fsync failed,
//!                                    │ ▼                           │ or the generation died
//!                                   replay ◀───────────────────────┘
//! ```
//!
//! Small appends may be acknowledged before they are handed over ([`FileLog::hold_back`]): they are unstable like any other
//! write, and what is held back is a range at the end of the file.
//!
//! Nothing in here does I/O or knows of files of the overlay: [`changes`] is what a sequence of writes and truncations
//! comes to, [`doubt`] is what may
//! have been done besides, [`mod@file`] is the log of one file, [`budget`] bounds all logs together.

pub mod budget;
pub mod bytes;
pub mod changes;
pub mod doubt;
pub mod file;

pub use budget::Budget;
pub use bytes::Bytes;
pub use changes::{Change, Changes};
pub use doubt::Attempt;
pub use file::FileLog;
