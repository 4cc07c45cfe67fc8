//! The supervisor owns generations: it gathers evidence, reaches a verdict, repairs, and tells the gate (promise P3).

pub mod report;

pub use report::{Event, Snapshot, Watch};
