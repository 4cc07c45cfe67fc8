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
