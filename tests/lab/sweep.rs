//! Removes what laboratories of dead test processes have left: namespaces, processes, mounts and directories that carry
//! the name of a laboratory and the pid of a process that is gone.

use std::path::Path;

use nix::mount::{MntFlags, umount2};
use steadfs::backing::mountinfo;

use super::{net, process, run};

/// Directories of laboratories are `/tmp/<PREFIX><pid>-<random>`.
pub const PREFIX: &str = net::PREFIX;

fn owner(name: &str) -> Option<i32> {
    name.strip_prefix(PREFIX)?.split('-').next()?.parse().ok()
}

fn is_orphan(name: &str) -> bool {
    owner(name).is_some_and(|pid| !process::exists(pid))
}

/// Sweeps.
pub fn orphans() {
    for line in String::from_utf8_lossy(&run("ip", &["netns", "list"]).stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default();
        if is_orphan(name) {
            net::remove(name);
        }
    }
    for entry in std::fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(is_orphan) {
            directory(&entry.path());
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// Ends every process that names this directory and detaches every mount below it.
pub fn directory(directory: &Path) {
    process::end(&process::mentioning(directory.to_str().unwrap()));
    for place in mounts_below(directory) {
        let _ = umount2(Path::new(&place), MntFlags::MNT_DETACH);
    }
    // A guarded mountpoint of a killed daemon stays immutable.
    run("chattr", &["-i", directory.join("hot").to_str().unwrap()]);
}

/// Mountpoints below a directory, the newest first.
pub fn mounts_below(directory: &Path) -> Vec<String> {
    let table = mountinfo::entries().unwrap();
    let below = table.iter().rev().filter(|entry| entry.mountpoint.starts_with(directory));
    below.map(|entry| entry.mountpoint.display().to_string()).collect()
}
