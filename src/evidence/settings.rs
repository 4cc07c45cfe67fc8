//! What a daemon's configuration says that somebody who looks from outside needs: written beside its control socket, so that
//! it can be read whatever state the daemon is in. Mode 0600; no secrets.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{CompatConfig, DaemonConfig, EvidenceConfig};
use crate::rundir;

/// Its name in the runtime directory.
const NAME: &str = "evidence.json";

/// See the module. Of another version too: what is not known is ignored, what is missing is as by default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// `evidence` of the configuration.
    pub evidence: EvidenceConfig,
    /// The hot paths.
    pub overlays: Vec<PathBuf>,
    /// The file of metrics that is written for node_exporter.
    pub textfile: Option<PathBuf>,
    /// The file that events are appended to.
    pub journal: Option<PathBuf>,
    /// The state file under another watchdog's name.
    pub compat_state: Option<PathBuf>,
    /// The spool.
    pub spool_dir: Option<PathBuf>,
}

impl Settings {
    /// Those of a configuration.
    pub fn of(config: &DaemonConfig) -> Settings {
        let telemetry = &config.telemetry;
        let textfile = telemetry.textfile.as_ref();
        Settings {
            evidence: config.evidence.clone(),
            overlays: config.overlays.iter().map(|overlay| overlay.mountpoint.clone()).collect(),
            textfile: textfile.map(|dir| crate::telemetry::textfile::path(dir, &config.home)),
            journal: telemetry.journal.clone(),
            compat_state: telemetry.compat.as_ref().map(|CompatConfig::Healtharchive { state, .. }| state.clone()),
            spool_dir: config.log.spool_dir.clone(),
        }
    }

    /// Those that the daemon of `home` wrote; the defaults if it wrote none.
    pub fn read(home: &Path) -> Settings {
        let text = std::fs::read(rundir::of(home).join(NAME)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Writes them.
    pub fn write(&self, home: &Path) -> io::Result<()> {
        let path = rundir::create(home)?.join(NAME);
        let new = path.with_extension("json.new");
        _ = std::fs::remove_file(&new);
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        std::fs::rename(&new, &path)
    }

    /// Removes what was written.
    pub fn remove(home: &Path) {
        // A runtime directory that has gone took it along.
        _ = std::fs::remove_file(rundir::of(home).join(NAME));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_another_version_are_understood() {
        let read = |text: &str| serde_json::from_str::<Settings>(text).expect("understood");
        assert_eq!(read("{}"), Settings::default());
        let other = read(r#"{"evidence":{"keep":3,"later":1},"overlays":["/a"],"later":{}}"#);
        assert_eq!((other.evidence.keep, other.overlays), (3, vec![PathBuf::from("/a")]));
    }
}
