//! What a daemon is configured to do: plain data, made by the command line, read by everything below it.
//!
//! Nothing here parses text; [`crate::cli`] turns `-o` options or a file into a [`DaemonConfig`] and rejects bad input first.

mod hot;
mod permit;
mod telemetry;
mod worker;

use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

pub use hot::{HotPath, StatfsFrom};
pub use permit::{EvidenceConfig, PermitConfig};
pub use telemetry::{CompatConfig, MetricsListen, TelemetryConfig};
pub use worker::{HookCommand, Means, RecoveryHook, UnitBy, WorkerConfig, WorkerEntry};

/// Where the files really are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Source {
    /// `[user@]host:[dir]`, reached through an sshfs that steadfs starts and owns.
    Sshfs {
        /// `[user@]host:[dir]`, exactly as sshfs takes it.
        target: String,
    },
    /// `dir:/path`: a directory that exists already (a local disk, NFS, an rclone mount).
    Dir {
        /// Absolute path of the directory.
        path: PathBuf,
    },
}

impl Source {
    /// The mount's source as `findmnt` shows it.
    pub fn label(&self) -> String {
        match self {
            Source::Sshfs { target } => target.clone(),
            Source::Dir { path } => format!("dir:{}", path.display()),
        }
    }
}

/// How long calls may take, and with which error they fail in an outage (promises P1 and P2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CallPolicy {
    /// `deadline=`: the limit of an ordinary call, and the age at which an outage starts to fail calls at once.
    pub deadline: Duration,
    /// `sync_deadline=`: the limit of fsync, flush and fsyncdir, and of reads and writes while bytes move.
    pub sync_deadline: Duration,
    /// `hold=`: how much longer than `deadline` calls wait an outage out.
    pub hold: Duration,
    /// `errno=`: what calls fail with in an outage.
    #[serde(with = "errno")]
    pub outage_errno: Errno,
}

impl Default for CallPolicy {
    fn default() -> Self {
        CallPolicy {
            deadline: Duration::from_secs(5),
            sync_deadline: Duration::from_secs(30),
            hold: Duration::ZERO,
            outage_errno: Errno::ENOTCONN,
        }
    }
}

/// When a backing is doubted, pronounced dead and started again (promise P3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepairPolicy {
    /// `probe_interval=`: time between two probes of a live generation.
    pub probe_interval: Duration,
    /// `probe_deadline=`: silence after which an unanswered probe is evidence.
    pub probe_deadline: Duration,
    /// `start_deadline=`: time a new generation has to connect and answer its first probe.
    pub start_deadline: Duration,
    /// `backoff_min=`: first delay between two failed starts.
    pub backoff_min: Duration,
    /// `backoff_max=`: longest delay between two failed starts.
    pub backoff_max: Duration,
    /// `steady=`: how long a generation must live before a recovery is announced to the worker.
    pub steady: Duration,
}

impl Default for RepairPolicy {
    fn default() -> Self {
        RepairPolicy {
            probe_interval: Duration::from_millis(800),
            probe_deadline: Duration::from_secs(2),
            start_deadline: Duration::from_secs(20),
            backoff_min: Duration::from_millis(500),
            backoff_max: Duration::from_secs(30),
            steady: Duration::from_secs(2),
        }
    }
}

/// How the overlay looks to the kernel and to `findmnt`, and how it treats what is written to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OverlayConfig {
    /// `subtype=`: the part after `fuse.` in the filesystem type.
    pub subtype: String,
    /// `fsname=`: the source shown in mount tables; the backing's label when absent.
    pub fsname: Option<String>,
    /// `ro`: refuse every change.
    pub read_only: bool,
    /// Other users may use the mount; always so for root, an option for others.
    pub allow_other: bool,
    /// `attr_timeout=`: how old the attributes may be that callers are told.
    pub attr_timeout: Duration,
    /// `entry_timeout=`: how old the names may be; as attributes when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry_timeout: Option<Duration>,
    /// `gather=`: how long small appends may be held back to be sent together; zero for not at all.
    pub gather: Duration,
    /// `guard`: make the directory below the mountpoint immutable (promise P5).
    pub guard: bool,
    /// `owner=UID:GID`: shown as the owner of everything; chown(2) to others is refused.
    pub owner: Option<(u32, u32)>,
    /// `umask=`: permissions that are taken away from what is shown.
    pub umask: Option<u32>,
    /// `statfs=`: whose figures are reported.
    pub statfs: StatfsFrom,
    /// mount(2) flags such as `nosuid`, `nodev`, `noexec`, `noatime`, by their option names.
    pub mount_flags: Vec<String>,
    /// st_dev and st_ino of the directory that was checked: no other is mounted over. Any when absent.
    pub directory: Option<(u64, u64)>,
}

impl OverlayConfig {
    /// `attr_timeout=exclusive`: nobody else changes what is there.
    pub const EXCLUSIVE: Duration = Duration::from_secs(86400);

    /// How old names may be.
    pub fn entry_timeout(&self) -> Duration {
        self.entry_timeout.unwrap_or(self.attr_timeout)
    }

    /// How old anything may be that callers are told of names and attributes.
    pub fn fresh(&self) -> Duration {
        self.attr_timeout.min(self.entry_timeout())
    }
}

/// The overlay answers root's calls and everybody's only if started by root.
impl Default for OverlayConfig {
    fn default() -> Self {
        let root = nix::unistd::geteuid().is_root();
        OverlayConfig {
            subtype: "steadfs".into(),
            fsname: None,
            read_only: false,
            allow_other: root,
            attr_timeout: Duration::from_secs(20),
            entry_timeout: None,
            gather: Duration::from_millis(50),
            guard: root,
            owner: None,
            umask: None,
            statfs: StatfsFrom::Backing,
            mount_flags: Vec::new(),
            directory: None,
        }
    }
}

/// What is kept of writes that were acknowledged and not committed yet (promise P4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogConfig {
    /// `log_size=`: bytes of such writes that are kept in memory.
    pub size: u64,
    /// `spool_dir=`: where those are saved that can no longer be written; below the state directory when absent.
    pub spool_dir: Option<PathBuf>,
    /// `spool_size=`: bytes that the files in that directory may have together.
    pub spool_size: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        LogConfig { size: 64 << 20, spool_dir: None, spool_size: 256 << 20 }
    }
}

impl DaemonConfig {
    /// One overlay, of all of the source, with the defaults otherwise.
    pub fn of_one(source: Source, mountpoint: PathBuf, overlay: OverlayConfig) -> DaemonConfig {
        DaemonConfig {
            home: mountpoint.clone(),
            source,
            expected: vec![mountpoint.clone()],
            overlays: vec![HotPath { mountpoint, path: PathBuf::new(), slot: 0, overlay }],
            calls: CallPolicy::default(),
            repair: RepairPolicy::default(),
            permit: PermitConfig::default(),
            log: LogConfig::default(),
            worker: WorkerConfig::default(),
            telemetry: TelemetryConfig::default(),
            evidence: EvidenceConfig::default(),
            soft_start: true,
            sshfs_options: Vec::new(),
            began_fresh: None,
            keeper: KeeperConfig::default(),
            file: None,
        }
    }

    /// As [`OverlayConfig::fresh`]: how fresh the sshfs was started to be, which the strictest of the first overlays was to.
    pub fn fresh(&self) -> Duration {
        let all = self.overlays.iter().map(|hot| hot.overlay.fresh());
        self.began_fresh.or(all.min()).unwrap_or_else(|| OverlayConfig::default().fresh())
    }

    /// True if it is of a `steadfs run`: overlays come and go.
    pub fn is_run(&self) -> bool {
        self.home.is_relative()
    }

    /// What mount tables show as the source of one of its overlays: as sshfs would be asked for that directory.
    pub fn label_of(&self, at: &HotPath) -> String {
        let label = self.source.label();
        if at.path.as_os_str().is_empty() {
            return label;
        }
        let joint = if label.ends_with(['/', ':']) { "" } else { "/" };
        format!("{label}{joint}{}", at.path.display())
    }

    /// The same, seen by nobody but `steadfs status`.
    pub fn without_metrics(&self) -> DaemonConfig {
        DaemonConfig { telemetry: TelemetryConfig::default(), ..self.clone() }
    }
}

/// How the daemon is kept running.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeeperConfig {
    /// `keeper=`: whether there is a keeper at all.
    pub wanted: bool,
    /// `watchdog=`: silence after which a daemon counts as hung and is killed; zero for never.
    pub watchdog: Duration,
    /// `keeper_deadline=`: after so long without a daemon that serves, callers are let go and the overlay ends.
    pub deadline: Duration,
}

impl Default for KeeperConfig {
    fn default() -> Self {
        KeeperConfig { wanted: true, watchdog: Duration::from_secs(10), deadline: Duration::from_secs(30) }
    }
}

/// Everything about one daemon. As JSON it goes from the keeper to each daemon, of another version too: fields may be added
/// with a default, and those that are not known are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonConfig {
    /// What its runtime and state directories are named after: the hot path of a `steadfs mount`, `@NAME` of a
    /// `steadfs run`, which is no path and meets none.
    pub home: PathBuf,
    /// The backing.
    pub source: Source,
    /// The overlays: one of a `steadfs mount`, any number of a `steadfs run`.
    pub overlays: Vec<HotPath>,
    /// Hot paths that the file names: one of them on which nothing is mounted is told of, whoever unmounted it.
    #[serde(default)]
    pub expected: Vec<PathBuf>,
    /// Deadlines.
    #[serde(default)]
    pub calls: CallPolicy,
    /// Supervision.
    #[serde(default)]
    pub repair: RepairPolicy,
    /// What holds repairs back.
    #[serde(default)]
    pub permit: PermitConfig,
    /// The write log.
    #[serde(default)]
    pub log: LogConfig,
    /// The workers.
    #[serde(default)]
    pub worker: WorkerConfig,
    /// Metrics.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Evidence.
    #[serde(default)]
    pub evidence: EvidenceConfig,
    /// `soft_start=`: mount even if the server cannot be reached yet.
    #[serde(default = "yes")]
    pub soft_start: bool,
    /// Options handed to sshfs (and by it to ssh), one `-o` value each, unescaped.
    #[serde(default)]
    pub sshfs_options: Vec<String>,
    /// How fresh the first daemon had its sshfs be, which successors take over; as the strictest overlay when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub began_fresh: Option<Duration>,
    /// The process that starts the daemon again when it dies (promise P6).
    #[serde(default)]
    pub keeper: KeeperConfig,
    /// The file it was read from, by `steadfs run`.
    #[serde(default)]
    pub file: Option<PathBuf>,
}

/// soft_start= as it is when nothing is said.
fn yes() -> bool {
    true
}

/// For `#[serde(with)]`: an errno by its number.
mod errno {
    use nix::errno::Errno;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(errno: &Errno, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i32(*errno as i32)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Errno, D::Error> {
        i32::deserialize(deserializer).map(Errno::from_raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read(value: Value) -> DaemonConfig {
        serde_json::from_value(value).expect("another version's is understood")
    }

    #[test]
    fn mount_tables_show_the_directory() {
        let label = |target: &str, path: &str| {
            let source = Source::Sshfs { target: target.into() };
            let config = DaemonConfig::of_one(source, "/hot".into(), OverlayConfig::default());
            config.label_of(&HotPath { path: path.into(), ..config.overlays[0].clone() })
        };
        assert_eq!(label("u@h:/d", "a/b"), "u@h:/d/a/b");
        assert_eq!(label("h:", "a"), "h:a");
        assert_eq!(label("h:/", ""), "h:/");
    }

    #[test]
    fn a_configuration_of_another_version_is_understood() {
        let ours = read(json!({
            "home": "/hot", "source": {"Sshfs": {"target": "h:d"}}, "overlays": [{"mountpoint": "/hot"}]
        }));
        assert_eq!((ours.calls, ours.keeper, ours.soft_start), (CallPolicy::default(), KeeperConfig::default(), true));
        let mut value = serde_json::to_value(&ours).expect("text");
        assert_eq!(read(value.clone()), ours);
        // What a later version has added, at each level; what an earlier one did not have yet.
        value["unheard_of"] = json!({"a": [1]});
        let sections = ["calls", "repair", "permit", "log", "worker", "telemetry", "evidence", "keeper"];
        for section in sections {
            value[section]["unheard_of"] = json!("x");
        }
        assert_eq!(read(value.clone()), ours);
        for section in sections {
            let fields: Vec<String> = value[section].as_object().expect("a table").keys().cloned().collect();
            for field in fields {
                let mut fewer = value.clone();
                fewer[section].as_object_mut().expect("a table").remove(&field);
                assert_eq!(read(fewer), ours, "{section}.{field}");
            }
        }
    }
}
