//! What is exported (promise P8).

use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where `/metrics` and `/healthz` are served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetricsListen {
    /// A TCP address; loopback unless the user insists.
    Tcp(SocketAddr),
    /// A unix socket.
    Unix(PathBuf),
}

/// What is exported.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TelemetryConfig {
    /// `metrics=ADDR:PORT` or `metrics=unix:PATH`.
    pub listen: Option<MetricsListen>,
    /// `textfile=DIR`: directory of node_exporter's textfile collector.
    pub textfile: Option<PathBuf>,
    /// `journal`: events are appended to that file, one JSON object a line.
    pub journal: Option<PathBuf>,
    /// `journal_size`: bytes after which it is rotated; 1 MiB when 0.
    pub journal_size: u64,
    /// `journal_keep`: rotated files that are kept; 5 when absent.
    pub journal_keep: Option<u32>,
    /// `compat`: another watchdog's state file and metrics, for alerts and reports that were made for it.
    pub compat: Option<CompatConfig>,
}

/// See [`TelemetryConfig::compat`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum CompatConfig {
    /// That of HealthArchive's hot path watchdog.
    Healtharchive {
        /// Its state file.
        state: PathBuf,
    },
}
