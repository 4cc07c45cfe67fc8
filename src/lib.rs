//! steadfs: a FUSE overlay that outlives the sshfs below it.
//!
//! Data flows one way: the kernel calls the [`overlay`] (FUSE protocol only), which submits calls to the [`gate`]
//! (deadlines, admission, outage policy), whose workers run them against one generation of the [`backing`]. The
//! [`supervisor`] owns generations and opens and closes the gate. The [`log`] keeps what is not committed yet. [`worker`], [`telemetry`],
//! [`evidence`] and [`cli`] watch.

pub mod allocator;
pub mod backing;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod evidence;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod gate;
pub mod handover;
pub mod keeper;
pub mod log;
pub(crate) mod moment;
pub mod mountpoint;
pub mod overlay;
pub(crate) mod plain;
pub mod rundir;
pub mod spool;
pub mod statedir;
pub mod supervisor;
pub mod telemetry;
pub mod worker;
