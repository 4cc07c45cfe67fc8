//! The two places for a program: a mount without a network, and one with a namespace and a real sshd.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::lab::parts::Parts;
use crate::lab::relayed::{Fresh, Relayed};
use crate::lab::{Lab, control, process};
use crate::mishap::Who;

/// See the module.
pub enum Site {
    Relayed(Relayed, Fresh),
    Network(Box<Lab>),
}

/// A store, and what must not be removed before it has been looked at.
pub struct Store {
    pub path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Site {
    pub fn hot(&self) -> &Path {
        match self {
            Site::Relayed(_, fresh) => &fresh.hot,
            Site::Network(lab) => &lab.hot,
        }
    }

    pub fn store(&self) -> &Path {
        match self {
            Site::Relayed(_, fresh) => &fresh.store,
            Site::Network(lab) => &lab.store,
        }
    }

    /// Outside the mount.
    pub fn directory(&self) -> &Path {
        match self {
            Site::Relayed(mount, _) => mount.directory(),
            Site::Network(lab) => lab.directory(),
        }
    }

    pub fn status(&self) -> Value {
        control::status(&self.directory().join("run")).unwrap_or_default()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory().join("log")).unwrap_or_default()
    }

    /// Processes in that place at the moment.
    pub fn pids(&self, who: Who) -> Vec<i32> {
        let named = |all: Vec<i32>, is: &dyn Fn(&str) -> bool| {
            all.into_iter().filter(|&pid| is(&process::name(pid))).collect::<Vec<_>>()
        };
        let family = match self {
            Site::Relayed(mount, _) => mount.family(),
            Site::Network(lab) => ["sshfs", "ssh"].map(|name| lab.clients(name)).concat(),
        };
        match (self, who) {
            (_, Who::Sshfs) => named(family, &|name| name == "sshfs"),
            (Site::Relayed(mount, _), Who::Ssh) => mount.relays(),
            (Site::Relayed(..), Who::Server) => named(family, &|name| name == "sftp-server"),
            (Site::Network(_), Who::Ssh) => named(family, &|name| name == "ssh"),
            (Site::Network(lab), Who::Server) => lab.sshd.servers(),
        }
    }

    /// Keeper and daemon.
    pub fn parts(&self) -> Parts {
        Parts::of(self.directory())
    }

    /// Nobody can be reached, or everybody again.
    pub fn part(&self, parted: bool) {
        match self {
            Site::Relayed(mount, _) => mount.relay.is_away(parted),
            Site::Network(lab) if parted => lab.net.cut(),
            Site::Network(lab) => lab.net.heal(),
        }
    }

    /// Unmounts as a user would and checks that nothing is left behind.
    pub fn umount(self) -> Store {
        match self {
            Site::Relayed(mount, fresh) => Store { path: fresh.store, _directory: mount.umount() },
            Site::Network(lab) => {
                let path = lab.store.clone();
                Store { path, _directory: lab.umount() }
            }
        }
    }
}
