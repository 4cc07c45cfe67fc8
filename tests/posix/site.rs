//! The four targets: a directory, steadfs over it, an sshfs, and steadfs over that. Each has a directory of its own on the same
//! filesystem.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Lab, mount_of, run, run_ok, wait};

/// Where a suite runs.
pub struct Target {
    pub name: &'static str,
    pub path: PathBuf,
}

/// Names of what steadfs stands before, by the name of the target.
pub const BACKINGS: [(&str, &str); 2] = [("steadfs-dir", "plain"), ("steadfs-sshfs", "sshfs")];

/// Filesystems that are what a disk has. On others (overlayfs of a container) an image is made and mounted.
const GOOD: [&str; 3] = ["ext2/ext3", "xfs", "btrfs"];
/// Of that image: suites need less than half of it.
const IMAGE: &str = "4G";

pub struct Site {
    pub lab: Lab,
    pub targets: Vec<Target>,
}

impl Site {
    /// Mounts those of the targets that are wanted.
    pub fn new(is_wanted: impl Fn(&str) -> bool) -> Site {
        let lab = Lab::unmounted();
        // Others than root have to get at the targets.
        for place in [lab.directory(), &lab.store, &lab.hot] {
            std::fs::set_permissions(place, Permissions::from_mode(0o755)).unwrap();
        }
        have_a_disk(&lab.store, &lab.path("image"));
        let mut site = Site { targets: Vec::new(), lab };
        // Their paths are short, for the sake of sockets' names, which may have 108 bytes (unix(7)).
        for (number, name) in ["plain", "steadfs-dir", "sshfs", "steadfs-sshfs"].into_iter().enumerate() {
            if is_wanted(name) {
                let path = site.begin(name, &number.to_string());
                site.targets.push(Target { name, path });
            }
        }
        site
    }

    fn begin(&self, name: &str, directory: &str) -> PathBuf {
        let lab = &self.lab;
        let (store, hot) = (lab.store.join(directory), lab.hot.join(directory));
        for directory in [&store, &hot] {
            std::fs::create_dir(directory).unwrap();
        }
        let (source, ssh) = (format!("{}/{directory}", lab.source()), lab.sshd.client_options());
        let mut command = match name {
            "plain" => return store,
            "sshfs" => {
                let mut command = Command::new("sshfs");
                command.args(["-o", &format!("{ssh},allow_other,default_permissions,suid,dev"), &source]);
                command
            }
            _ => {
                let source = if name == "steadfs-dir" { format!("dir:{}", store.display()) } else { source };
                let ssh = if name == "steadfs-dir" { String::new() } else { format!(",{ssh}") };
                let mut command = lab.steadfs(&["mount", &source]);
                command.args(["-o", &format!("guard=no,suid,dev{ssh}")]);
                command
            }
        };
        let output = command.arg(&hot).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        wait("the mount is there", || mount_of(&hot).is_some());
        hot
    }

    /// Unmounts everything; what is busy by then stays to be swept.
    pub fn end(self) {
        for target in self.targets.iter().rev().filter(|target| target.path.starts_with(&self.lab.hot)) {
            run("umount", &[target.path.to_str().unwrap()]);
        }
        if mount_of(&self.lab.store).is_some() {
            run("umount", &[self.lab.store.to_str().unwrap()]);
        }
    }
}

fn have_a_disk(place: &Path, image: &Path) {
    let place = place.to_str().unwrap();
    let kind = String::from_utf8(run("stat", &["-f", "-c", "%T", place]).stdout).unwrap();
    if GOOD.contains(&kind.trim()) {
        return;
    }
    let image = image.to_str().unwrap();
    run_ok("truncate", &["-s", IMAGE, image]);
    run_ok("mkfs.ext4", &["-q", "-F", image]);
    run_ok("mount", &["-o", "loop", image, place]);
}
