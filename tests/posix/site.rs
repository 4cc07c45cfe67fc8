//! The targets: a directory, steadfs over it, an sshfs, steadfs over that, and both once more with the options of the field
//! case and a server that is not root. Each has a directory of its own on the same filesystem.

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
pub const BACKINGS: [(&str, &str); 3] =
    [("steadfs-dir", "plain"), ("steadfs-sshfs", "sshfs"), ("steadfs-sshfs-field", "sshfs-field")];

const NAMES: [&str; 6] = ["plain", "steadfs-dir", "sshfs", "steadfs-sshfs", "sshfs-field", "steadfs-sshfs-field"];
/// How the field case mounts its storage: owner and modes are made up.
const FIELD: &str = "uid=1000,gid=1000,umask=0027,reconnect,ServerAliveInterval=15,ServerAliveCountMax=3,kernel_cache";
/// Whom its server is: nobody, of every Debian.
const SERVER_USER: u32 = 65534;
/// In the place of ssh, whose arguments it does without.
const SERVER: &str =
    "#!/bin/sh\nexec setpriv --reuid 65534 --regid 65534 --clear-groups /usr/lib/openssh/sftp-server\n";

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
        for (number, name) in NAMES.into_iter().enumerate() {
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
        let is_field = name.ends_with("field");
        let (source, options) = match name {
            "plain" => return store,
            "steadfs-dir" => (format!("dir:{}", store.display()), String::new()),
            _ if is_field => {
                std::os::unix::fs::chown(&store, Some(SERVER_USER), Some(SERVER_USER)).unwrap();
                let options = format!(",{FIELD},ssh_command={}", self.server().display());
                (format!("localhost:{}", store.display()), options)
            }
            _ => (format!("{}/{directory}", lab.source()), format!(",{}", lab.sshd.client_options())),
        };
        let mut command = if name.starts_with("sshfs") {
            let mut command = Command::new("sshfs");
            command.args([&source, "-o", &format!("allow_other,default_permissions,suid,dev{options}")]);
            command
        } else {
            let mut command = lab.steadfs(&["mount", &source]);
            command.args(["-o", &format!("guard=no,suid,dev{options}")]);
            command
        };
        let output = command.arg(&hot).output().unwrap();
        assert!(output.status.success(), "{name}: {output:?}");
        wait("the mount is there", || mount_of(&hot).is_some());
        hot
    }

    /// The program that is the field case's server.
    fn server(&self) -> PathBuf {
        let path = self.lab.path("server");
        if !path.exists() {
            std::fs::write(&path, SERVER).unwrap();
            std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        }
        path
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
