//! Everything without root: fusermount3 mounts, and all files are the user's own.
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use lab::{mount_in, process, wait};
use nix::sys::signal::Signal;

lab::also_runs_as!(agent_process: lab::agents::main);

/// `nobody` of any Linux: fusermount3 wants a user that has a name.
const USER: u32 = 65534;

/// Binds a /dev/fuse that anybody may open, as udev makes it where it runs; has mount(8)'s helper where it looks for it, and an
/// /etc/fstab of ours. $1: a directory of ours, $2: that above it, $3: the repository.
const SCENE: &str = r#"
set -eu
mount -t tmpfs tmpfs "$1"
mknod -m 0666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
helpers=$(realpath /usr/sbin)
mkdir "$1/upper" "$1/work"
mount -t overlay overlay -o "lowerdir=$helpers,upperdir=$1/upper,workdir=$1/work" "$helpers"
install -m 0755 "$3/mount-helper/mount.steadfs" "$helpers/mount.steadfs"
ln -s "$2/steadfs" "$helpers/steadfs"
mount --bind "$2/fstab" /etc/fstab
exec cat
"#;

/// A user with a home of his own, in a mount namespace of his own.
struct User {
    directory: tempfile::TempDir,
    keeper: Child,
}

impl User {
    fn new() -> User {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root, to become somebody else: run it as root");
        assert!(Path::new("/dev/fuse").exists(), "this test needs /dev/fuse: run modprobe fuse");
        let prefix = format!("{}{}-", lab::sweep::PREFIX, std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o711)).unwrap();
        let device = directory.path().join("device");
        fs::create_dir(&device).unwrap();
        let mut command = Command::new("unshare");
        fs::write(directory.path().join("fstab"), "").unwrap();
        command.args(["-m", "--propagation", "private", "sh", "-c", SCENE, "sh"]).arg(device);
        command.arg(directory.path()).arg(env!("CARGO_MANIFEST_DIR"));
        let keeper = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        wait("the namespace is there", || process::name(keeper.id().cast_signed()) == "cat");
        let user = User { directory, keeper };
        // The program under test may lie where he cannot look.
        fs::copy(env!("CARGO_BIN_EXE_steadfs"), user.path("steadfs")).unwrap();
        fs::set_permissions(user.path("steadfs"), PermissionsExt::from_mode(0o755)).unwrap();
        fs::write(user.path("server"), "#!/bin/sh\nexec /usr/lib/openssh/sftp-server\n").unwrap();
        fs::set_permissions(user.path("server"), PermissionsExt::from_mode(0o755)).unwrap();
        for place in ["home", "home/runtime", "home/state", "home/hot", "home/second", "store", "store/a", "store/b"] {
            fs::create_dir(user.path(place)).unwrap();
            chown(user.path(place), Some(USER), Some(USER)).unwrap();
        }
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// As root in the namespace.
    fn inside(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.keeper.id().to_string(), "-m", "--"]).args(words).stdin(Stdio::null());
        command
    }

    fn is_mounted(&self, path: &Path) -> bool {
        mount_in(&self.mounts(), path).is_some()
    }

    fn mounts(&self) -> String {
        fs::read_to_string(format!("/proc/{}/mountinfo", self.keeper.id())).unwrap()
    }

    fn command(&self, words: &[&str]) -> Command {
        let id = USER.to_string();
        let mut command = self.inside(&["setpriv"]);
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all", "--"]).args(words);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.path("home"));
        command.env("XDG_RUNTIME_DIR", self.path("home/runtime")).env("XDG_STATE_HOME", self.path("home/state"));
        command.current_dir("/").stdin(Stdio::null());
        command
    }

    fn ask(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn steadfs(&self, words: &[&str]) -> Output {
        let program = self.path("steadfs");
        self.ask(&[&[program.to_str().unwrap()], words].concat())
    }

    fn ok(&self, words: &[&str]) -> Output {
        let output = self.steadfs(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        output
    }

    fn status(&self, what: &str) -> serde_json::Value {
        let value: serde_json::Value =
            serde_json::from_slice(&self.steadfs(&["status", "--json", what]).stdout).unwrap_or_default();
        value.get(0).cloned().unwrap_or(value)
    }

    /// His processes of that name, which all have a path of this test in their command line.
    fn processes(&self, name: &str) -> Vec<i32> {
        let all = process::mentioning(self.directory.path().to_str().unwrap());
        all.into_iter().filter(|&pid| process::name(pid) == name).collect()
    }

    /// Writes as he does, appending and syncing.
    fn write(&self, path: &Path, text: &str) {
        let script = "printf %s \"$1\" >> \"$2\" && sync \"$2\"";
        let output = self.ask(&["sh", "-c", script, "sh", text, path.to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
    }

    /// The sshfs is killed; what is written next is written by another one.
    fn outlives_its_sshfs(&self, what: &str, hot: &Path, stored: &Path) {
        self.write(hot, "before ");
        let killed = self.processes("sshfs");
        assert_eq!(killed.len(), 1, "{killed:?}");
        process::signal(killed[0], Signal::SIGKILL);
        self.write(hot, "after ");
        assert_eq!(fs::read_to_string(stored).unwrap(), "before after ");
        assert_eq!(fs::metadata(stored).unwrap().uid(), USER);
        wait("it is live", || self.status(what)["state"] == "live");
        // So does steadfs itself.
        let daemon = self.status(what)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
        process::signal(daemon, Signal::SIGKILL);
        self.write(hot, "later");
        assert_eq!(fs::read_to_string(stored).unwrap(), "before after later");
    }

    fn left_in(&self, place: &str) -> Vec<String> {
        let all = fs::read_dir(self.path(place)).into_iter().flatten().flatten();
        all.map(|entry| entry.path().display().to_string()).collect()
    }

    /// Nothing is left of it.
    fn ended(&self) {
        for name in ["sshfs", "steadfs", "steadfs-keeper"] {
            wait(name, || self.processes(name).is_empty());
        }
        let (mounts, home) = (self.mounts(), self.path("home").display().to_string());
        assert!(!mounts.contains(&home), "{mounts}");
        assert_eq!(self.left_in("home/runtime/steadfs"), Vec::<String>::new());
    }
}

impl Drop for User {
    fn drop(&mut self) {
        lab::sweep::directory(self.directory.path());
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

#[test]
fn a_mount_of_a_user_outlives_its_sshfs() {
    let user = User::new();
    let hot = user.path("home/hot");
    let options = format!("ssh_command={}", user.path("server").display());
    let (source, place) = (format!("box:{}", user.path("store/a").display()), hot.to_str().unwrap());
    user.ok(&["mount", &source, place, "-o", &options]);
    assert!(user.is_mounted(&hot));
    let owner = fs::metadata(user.path("home/runtime/steadfs")).unwrap();
    assert_eq!((owner.uid(), owner.mode() & 0o777), (USER, 0o700), "his own, and nobody else's");
    user.outlives_its_sshfs(place, &hot.join("file"), &user.path("store/a/file"));
    // Others are kept out, as FUSE does without allow_other: root too.
    assert!(!user.inside(&["cat", hot.join("file").to_str().unwrap()]).output().unwrap().status.success());
    let refused = user.steadfs(&["mount", &source, user.path("home/second").to_str().unwrap(), "-o", "guard"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    user.ok(&["umount", place]);
    user.ended();
    // umount(8)'s way for users.
    user.ok(&["mount", &source, place, "-o", &options]);
    let output = user.ask(&["fusermount3", "-u", place]);
    assert!(output.status.success(), "{output:?}");
    user.ended();
}

#[test]
fn so_do_the_overlays_of_a_configuration() {
    let user = User::new();
    let (hot, second) = (user.path("home/hot"), user.path("home/second"));
    let config = user.path("home/box.toml");
    let text = format!(
        "name = \"box\"\nsource = \"box:{}\"\n[sshfs]\nssh_command = {:?}\n\
         [[overlay]]\nmountpoint = {hot:?}\npath = \"a\"\n",
        user.path("store").display(),
        user.path("server")
    );
    fs::write(&config, text).unwrap();
    user.ok(&["run", config.to_str().unwrap()]);
    user.outlives_its_sshfs("@box", &hot.join("file"), &user.path("store/a/file"));
    user.ok(&["attach", second.to_str().unwrap(), "--path", "b"]);
    user.write(&second.join("file"), "second");
    assert_eq!(fs::read_to_string(user.path("store/b/file")).unwrap(), "second");
    assert_eq!(user.processes("sshfs").len(), 1);
    user.ok(&["detach", second.to_str().unwrap()]);
    user.ok(&["umount", "@box"]);
    user.ended();
}

#[test]
fn a_user_mounts_and_unmounts_what_fstab_lets_him() {
    let user = User::new();
    let (hot, second) = (user.path("home/hot"), user.path("home/second"));
    let line = |place: &Path, dir: &str, who: &str| {
        let store = user.path("store").join(dir);
        let server = user.path("server");
        format!(
            "box:{} {} steadfs {who},noauto,guard=no,ssh_command={} 0 0\n",
            store.display(),
            place.display(),
            server.display()
        )
    };
    fs::write(user.path("fstab"), line(&hot, "a", "user") + &line(&second, "b", "users")).unwrap();
    let (at, other) = (hot.to_str().unwrap(), second.to_str().unwrap());
    let mount = |words: &[&str]| user.ask(&[&["mount"], words].concat());
    let refused = |output: Output| {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && !said.is_empty(), "{output:?}");
        said
    };

    for (place, path, stored) in [(at, &hot, "store/a/file"), (other, &second, "store/b/file")] {
        let output = mount(&[place]);
        assert!(output.status.success(), "{output:?}");
        // His own, with the flags that mount(8) adds for a user's mount.
        let mounts = user.mounts();
        let shown = mounts.lines().find(|found| found.contains(place)).unwrap();
        for wanted in ["nosuid", "nodev", "noexec", "fuse.steadfs", &format!("user_id={USER}")] {
            assert!(shown.contains(wanted), "{wanted}: {shown}");
        }
        user.outlives_its_sshfs(place, &path.join("file"), &user.path(stored));
        assert!(refused(mount(&["-o", "remount,exec", place])).contains("only root can remount"));
        let output = user.ask(&["umount", place]);
        assert!(output.status.success(), "{output:?}");
        user.ended();
    }
    // With options of his own, or by a line that is not for users, he mounts as by `steadfs mount`: as himself.
    for (who, words) in [("user", &["-o", "rw", at][..]), ("owner", &[at]), ("nofail", &[at])] {
        fs::write(user.path("fstab"), line(&hot, "a", who)).unwrap();
        let output = mount(words);
        assert!(output.status.success(), "{who}: {output:?}");
        let mounts = user.mounts();
        let shown = mounts.lines().find(|found| found.contains(at)).unwrap();
        for wanted in ["nosuid", "nodev", &format!("user_id={USER}")] {
            assert!(shown.contains(wanted), "{who}: {wanted}: {shown}");
        }
        let output = user.ask(&["umount", at]);
        assert!(output.status.success(), "{who}: {output:?}");
        user.ended();
    }

    // What root has mounted by a line with `user` is root's; with `users` it is anybody's to unmount.
    fs::write(user.path("fstab"), line(&hot, "a", "user") + &line(&second, "b", "users")).unwrap();
    for (place, path) in [(at, &hot), (other, &second)] {
        let mut command = user.inside(&["mount", place]);
        command.env("STEADFS_RUNTIME_DIR", user.path("run")).env("STEADFS_STATE_DIR", user.path("state"));
        let output = command.output().unwrap();
        assert!(output.status.success() && user.is_mounted(path), "{output:?}");
    }
    refused(user.ask(&["umount", at]));
    assert!(user.is_mounted(&hot));
    let output = user.ask(&["umount", other]);
    assert!(output.status.success(), "{output:?}");
    let output = user.inside(&["umount", at]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    user.ended();
}
