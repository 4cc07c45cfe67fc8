//! The processes of steadfs itself, keeper and daemon, found by the runtime directory in their environment; and their deaths.
//!
//! Who kills one waits until the other can do without it: both at once are the end of an overlay without systemd's store.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{PATIENCE, process};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Daemon,
    Keeper,
}

/// Those of one mount.
#[derive(Debug, Clone)]
pub struct Parts {
    directory: PathBuf,
}

impl Parts {
    /// Of the mount whose laboratory has that directory.
    pub fn of(directory: &Path) -> Parts {
        Parts { directory: directory.to_owned() }
    }

    fn all(&self) -> Vec<i32> {
        let mark = format!("STEADFS_RUNTIME_DIR={}", self.directory.join("run").display());
        process::with_environment(&mark)
    }

    /// Those that serve; a zombie has no command line.
    pub fn daemons(&self) -> Vec<i32> {
        let is = |pid: &i32| process::command_line(*pid).starts_with(b"steadfs\0daemon");
        self.all().into_iter().filter(is).collect()
    }

    /// Those that keep.
    pub fn keepers(&self) -> Vec<i32> {
        let is = |pid: &i32| {
            process::name(*pid) == "steadfs-keeper" && !process::command_line(*pid).starts_with(b"steadfs\0daemon")
        };
        self.all().into_iter().filter(is).filter(|&pid| !process::is_zombie(pid)).collect()
    }

    /// The keeper that has all that a successor needs.
    pub fn able_keeper(&self) -> Option<i32> {
        let needed = ["/dev/fuse", "/memfd:steadfs-session"];
        self.keepers().into_iter().find(|&pid| {
            let held = process::descriptors(pid);
            needed.iter().all(|needed| held.iter().any(|found| found.starts_with(needed)))
        })
    }

    /// Waits until the other part can do without it, and sends it that signal. The pid, or nothing if that never came about.
    pub fn signal(&self, part: Part, signal: Signal) -> Option<i32> {
        let until = Instant::now() + PATIENCE;
        while Instant::now() < until {
            let (keeper, daemons) = (self.able_keeper(), self.daemons());
            if let (Some(keeper), [daemon]) = (keeper, daemons.as_slice()) {
                let pid = if part == Part::Daemon { *daemon } else { keeper };
                process::signal(pid, signal);
                return Some(pid);
            }
            std::thread::sleep(LOOK);
        }
        None
    }

    /// Kills it. The pid, or nothing if there never was one that the other could do without.
    pub fn kill(&self, part: Part) -> Option<i32> {
        let pid = self.signal(part, Signal::SIGKILL)?;
        let until = Instant::now() + PATIENCE;
        // Nobody may take the dead for the living.
        while process::exists(pid) && !process::is_zombie(pid) && Instant::now() < until {
            std::thread::sleep(LOOK);
        }
        Some(pid)
    }
}
