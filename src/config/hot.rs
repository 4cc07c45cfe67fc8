//! One overlay of a daemon: which part of the backing is mounted where.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::OverlayConfig;

/// A hot path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotPath {
    /// Absolute, canonical path of the directory that is mounted over.
    pub mountpoint: PathBuf,
    /// Directory of the backing that is shown there, relative to its root; empty for all of it. Has no `.` and no `..`.
    #[serde(default)]
    pub path: PathBuf,
    /// Number under which its descriptors are held for a successor; another one for each overlay of a daemon.
    #[serde(default)]
    pub slot: u32,
    /// How it looks.
    #[serde(default)]
    pub overlay: OverlayConfig,
}

impl HotPath {
    /// True if some file of the backing is shown by both.
    pub fn shares_files_with(&self, other: &HotPath) -> bool {
        self.path.starts_with(&other.path) || other.path.starts_with(&self.path)
    }

    /// True if both could change such a file: each has a write log of its own, and does not know of the other's.
    pub fn rivals(&self, other: &HotPath) -> bool {
        self.shares_files_with(other) && !self.overlay.read_only && !other.overlay.read_only
    }
}

/// Whose figures statfs(2) reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatfsFrom {
    /// Those of the store.
    #[default]
    Backing,
    /// Those of the local filesystem that the mountpoint is on, for scripts that watch it there.
    Local,
}
