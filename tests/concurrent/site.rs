//! Where the processes work, and the hand that lets it come to harm.

use std::any::Any;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::dice::Dice;
use crate::lab::parts::Part;
use crate::lab::relayed::Relayed;
use crate::lab::{self, process};
use crate::rig::Local;

/// No outage lasts that long: whoever waits is not told of it.
const OPTIONS: &str = "deadline=60s,sync_deadline=60s,backoff_min=100ms,backoff_max=200ms";

/// See the module.
pub enum Site {
    Local(Box<Local>),
    Sshfs(Box<Relayed>),
    /// Unmounted, with the directory of what is left and who removes it in the end.
    Over {
        is_local: bool,
        directory: PathBuf,
        _kept: Box<dyn Any>,
    },
}

impl Site {
    /// `dir:` on the filesystem of temporary files.
    pub fn local() -> Site {
        let local = Local::over(lab::Lab::untimed(), "store", OPTIONS, |command| {
            command.env("STEADFS_TRIAL", "1s");
        });
        std::fs::create_dir(local.lab.path("plain")).unwrap();
        Site::Local(Box::new(local))
    }

    /// A real sshfs and a real sftp-server.
    pub fn sshfs() -> Site {
        let relayed = Relayed::new(OPTIONS);
        std::fs::create_dir(relayed.directory().join("plain")).unwrap();
        Site::Sshfs(Box::new(relayed))
    }

    pub fn is_local(&self) -> bool {
        matches!(self, Site::Local(_) | Site::Over { is_local: true, .. })
    }

    /// Outside the mount.
    pub fn directory(&self) -> PathBuf {
        match self {
            Site::Local(local) => local.lab.directory().to_owned(),
            Site::Sshfs(relayed) => relayed.directory().to_owned(),
            Site::Over { directory, .. } => directory.clone(),
        }
    }

    pub fn hot(&self) -> PathBuf {
        self.directory().join("hot")
    }

    pub fn cold(&self) -> PathBuf {
        self.directory().join("store")
    }

    pub fn plain(&self) -> PathBuf {
        self.directory().join("plain")
    }

    /// Does harm at random moments; what it did.
    pub fn harm_until(&self, seed: u64, until: Instant) -> String {
        let (mut dice, mut done) = (Dice(seed ^ 0xbad), std::collections::BTreeMap::new());
        loop {
            let pause = Duration::from_millis(200 + dice.below(1500));
            if Instant::now() + pause >= until {
                return format!("{done:?}");
            }
            std::thread::sleep(pause);
            let what = match self {
                Site::Local(local) => harm_local(local, &mut dice),
                Site::Sshfs(relayed) => harm_sshfs(relayed, &mut dice),
                Site::Over { .. } => "nothing",
            };
            *done.entry(what).or_insert(0) += 1;
        }
    }

    /// Waits until it is live.
    pub fn settle(&self) {
        match self {
            Site::Local(local) => local.lab.wait_state("live"),
            Site::Sshfs(relayed) => lab::wait("live", || relayed.status()["state"] == "live"),
            Site::Over { .. } => {}
        }
    }

    /// Unmounts as a user would, and checks that nothing is left.
    pub fn umount(self) -> Site {
        let (is_local, directory) = (self.is_local(), self.directory());
        let kept: Box<dyn Any> = match self {
            Site::Local(mut local) => {
                lab::run_ok("umount", &[local.lab.hot.to_str().unwrap()]);
                let parts = local.lab.parts();
                lab::wait("keeper and daemon end", || parts.keepers().is_empty() && parts.daemons().is_empty());
                // What was written to files without a name when their daemon died is in the spool.
                let _ = std::fs::remove_dir_all(local.lab.path("state"));
                local.lab.assert_ended();
                Box::new(local)
            }
            Site::Sshfs(relayed) => {
                relayed.settle().unwrap();
                Box::new(relayed.umount())
            }
            Site::Over { _kept, .. } => _kept,
        };
        Site::Over { is_local, directory, _kept: kept }
    }
}

fn harm_local(local: &Local, dice: &mut Dice) -> &'static str {
    match dice.below(6) {
        0..3 => {
            local.outage();
            "outages"
        }
        3 => {
            local.succession();
            "deaths"
        }
        4 => {
            local.lab.parts().kill(Part::Keeper).expect("there is one");
            "deaths of keepers"
        }
        _ => {
            let hot = local.lab.hot.to_str().unwrap();
            let output = local.lab.steadfs(&["upgrade", hot, "--executable", env!("CARGO_BIN_EXE_steadfs")]).output();
            assert!(output.as_ref().is_ok_and(|output| output.status.success()), "{output:?}");
            "upgrades"
        }
    }
}

fn harm_sshfs(relayed: &Relayed, dice: &mut Dice) -> &'static str {
    let named = |name: &str| relayed.family().into_iter().filter(|&pid| process::name(pid) == name).collect::<Vec<_>>();
    let kill = |pids: Vec<i32>| pids.into_iter().for_each(|pid| process::signal(pid, Signal::SIGKILL));
    match dice.below(6) {
        0 => {
            kill(named("sshfs"));
            "deaths of sshfs"
        }
        1 => {
            kill(named("sftp-server"));
            "deaths of the server"
        }
        2 => {
            kill(relayed.relays());
            "deaths of ssh"
        }
        3 => {
            let pids = named("sftp-server");
            pids.iter().for_each(|&pid| process::signal(pid, Signal::SIGSTOP));
            std::thread::sleep(Duration::from_millis(dice.below(700)));
            pids.iter().for_each(|&pid| process::signal(pid, Signal::SIGCONT));
            "pauses"
        }
        4 => {
            relayed.parts().kill(Part::Daemon).expect("there is one");
            "deaths"
        }
        _ => {
            relayed.parts().kill(Part::Keeper).expect("there is one");
            "deaths of keepers"
        }
    }
}
