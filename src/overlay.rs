//! The mounted hot path: FUSE protocol, node ids and handles. No policy: every call that needs the backing goes
//! through the [`crate::gate`].

/// Figures of one overlay, for telemetry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Open files.
    pub open_files: usize,
    /// Open directories.
    pub open_dirs: usize,
    /// Nodes that the kernel holds.
    pub nodes: usize,
}
