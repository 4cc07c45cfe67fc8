//! fstab(5), mount(8) and umount(8) in a mount namespace of its own, where /etc/fstab is the test's and the helper is where mount(8)
//! looks for it.
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use lab::{Lab, mount_in, process, wait};

lab::also_runs_as!(agent_process: lab::agents::main);

/// Has /etc/fstab bound and the helper where mount(8) looks for it, in a layer over the directory. $1: a directory of ours,
/// $2: the repository.
const SCENE: &str = r#"
set -eu
helpers=$(realpath /usr/sbin)
mount -t tmpfs tmpfs "$1/layer"
mkdir "$1/layer/upper" "$1/layer/work"
mount -t overlay overlay -o "lowerdir=$helpers,upperdir=$1/layer/upper,workdir=$1/layer/work" "$helpers"
cp "$2/mount-helper/mount.steadfs" "$helpers/mount.steadfs"
ln -s mount.steadfs "$helpers/mount.fuse.steadfs"
ln -s "$3" "$helpers/steadfs"
mount --bind "$1/fstab" /etc/fstab
exec cat
"#;

/// The namespace, as long as it is there. The daemons in it are the laboratory's.
struct Scene {
    lab: Lab,
    keeper: Child,
}

impl Scene {
    fn new() -> Scene {
        let lab = Lab::unmounted();
        std::fs::create_dir(lab.path("layer")).unwrap();
        std::fs::write(lab.path("fstab"), "").unwrap();
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", SCENE, "sh"]).arg(lab.directory());
        command.arg(env!("CARGO_MANIFEST_DIR")).arg(env!("CARGO_BIN_EXE_steadfs"));
        let keeper = command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        wait("the namespace is there", || process::name(keeper.id().cast_signed()) == "cat");
        Scene { lab, keeper }
    }

    /// Lines of fstab.
    fn fstab(&self, lines: &[String]) {
        std::fs::write(self.lab.path("fstab"), lines.join("\n") + "\n").unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.keeper.id().to_string(), "-m", "--"]).args(words).stdin(Stdio::null());
        command.env("STEADFS_RUNTIME_DIR", self.lab.path("run")).env("STEADFS_STATE_DIR", self.lab.path("state"));
        // As mount(8) has it under systemd.
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("LC_ALL", "C");
        command
    }

    fn ask(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap()
    }

    fn ok(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// It has to be refused, with these words among what is said.
    fn refused(&self, words: &[&str], complaint: &str) {
        let output = self.ask(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(complaint), "{words:?}: {output:?}");
    }

    fn is_mounted(&self, path: &Path) -> bool {
        self.mount_of(path).is_some()
    }

    fn mount_of(&self, path: &Path) -> Option<(String, String)> {
        mount_in(&std::fs::read_to_string(format!("/proc/{}/mountinfo", self.keeper.id())).unwrap(), path)
    }

    fn options(&self, path: &Path) -> Vec<String> {
        let found = self.ok(&["findmnt", "-n", "-o", "OPTIONS", "-M", path.to_str().unwrap()]);
        found.trim().split(',').map(str::to_owned).collect()
    }

    fn has(&self, path: &Path, option: &str) -> bool {
        self.options(path).iter().any(|found| found == option)
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.lab.path(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    /// Nothing is left, and the namespace goes.
    fn end(mut self) {
        self.lab.assert_ended();
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let parts = self.lab.parts();
        process::end(&[parts.keepers(), parts.daemons()].concat());
        let _ = self.keeper.kill();
        let _ = self.keeper.wait();
    }
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_mount_of_its_own_by_fstab() {
    let scene = Scene::new();
    let (lab, hot) = (&scene.lab, scene.lab.hot.clone());
    let ours = format!("guard=no,{}", lab.sshd.client_options());
    let manager = "x-systemd.automount,x-systemd.requires=network-online.target,X-mount.mkdir=0755,comment=nightly";
    let later = scene.directory("later");
    scene.fstab(&[
        format!("# comment\n{} {} steadfs _netdev,nofail,{manager},{ours} 0 0", lab.source(), hot.display()),
        format!("{} {} steadfs noauto,nofail,ro,noexec,{ours} 0 0", lab.source(), later.display()),
    ]);
    scene.ok(&["mount", "-a"]);
    assert!(scene.is_mounted(&hot) && !scene.is_mounted(&later));
    let before = scene.mount_of(&hot);
    // What is mounted is known to be.
    scene.ok(&["mount", "-a"]);
    assert_eq!(scene.mount_of(&hot), before);
    scene.ok(&["sh", "-c", &format!("echo text > {}/file", hot.display())]);
    assert_eq!(std::fs::read_to_string(lab.store.join("file")).unwrap(), "text\n");
    scene.ok(&["mount", name(&later)]);
    assert!(scene.has(&later, "ro") && scene.has(&later, "noexec") && scene.has(&later, "nosuid"));
    assert_eq!(scene.ok(&["cat", name(&later.join("file"))]), "text\n");
    scene.ok(&["umount", name(&later)]);
    assert!(!scene.is_mounted(&later));
    scene.ok(&["umount", name(&hot)]);
    // As a mount unit and old fstabs say it.
    scene.ok(&["mount", "-t", "fuse.steadfs", "-o", &ours, &lab.source(), name(&hot)]);
    assert!(scene.is_mounted(&hot));
    scene.ok(&["umount", "-a", "-t", "fuse.steadfs"]);
    assert!(!scene.is_mounted(&hot));
    // A private table, as -T has it.
    std::fs::rename(lab.path("fstab"), lab.path("other")).unwrap();
    std::fs::write(lab.path("fstab"), "").unwrap();
    scene.ok(&["mount", "-T", name(&lab.path("other")), name(&hot)]);
    assert!(scene.is_mounted(&hot));
    scene.ok(&["umount", name(&hot)]);
    // What is wrong is said by name, with mount(8)'s exit code.
    let wrong = scene.ask(&["mount", "-t", "steadfs", "-o", "deadlin=3s", &lab.source(), name(&hot)]);
    assert_eq!(wrong.status.code(), Some(1), "{wrong:?}");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("deadline"), "{wrong:?}");
    scene.end();
}

#[test]
fn overlays_of_a_daemon_by_fstab() {
    let mut scene = Scene::new();
    let (first, second) = (scene.directory("first"), scene.directory("second"));
    for place in ["jobs/alpha", "jobs/beta"] {
        std::fs::create_dir_all(scene.lab.store.join(place)).unwrap();
    }
    let handed_on = scene.lab.sshd.client_lines();
    let config = scene.lab.path("box.toml");
    let source = scene.lab.source();
    let text = format!("name = \"box\"\nsource = {source:?}\n[sshfs]\n{handed_on}[defaults]\nguard = false\n");
    std::fs::write(&config, text).unwrap();
    scene.fstab(&[
        format!(
            "box:/jobs/alpha {} steadfs _netdev,nofail,guard=no,x-systemd.requires=steadfs@box.service",
            first.display()
        ),
        format!("box:/jobs/beta {} steadfs nofail,guard=no,subtype=sshfs,umask=0027 0 0", second.display()),
    ]);
    // Before the daemon is there the name is one of a host that nobody knows: with nofail the boot goes on, and nothing is mounted.
    let command = scene.command(&["steadfs", "run", "-f", name(&config)]);
    scene.lab.start(command);
    wait("it answers", || scene.ask(&["steadfs", "status", "@box"]).status.success());
    scene.ok(&["mount", "-a"]);
    scene.ok(&["sh", "-c", &format!("echo text > {}/file", first.display())]);
    assert_eq!(std::fs::read_to_string(scene.lab.store.join("jobs/alpha/file")).unwrap(), "text\n");
    assert_eq!(scene.lab.clients("sshfs").len(), 1, "one connection for all");
    let before = (scene.mount_of(&first), scene.mount_of(&second));
    scene.ok(&["mount", "-a"]);
    assert_eq!((scene.mount_of(&first), scene.mount_of(&second)), before);
    let shown = scene.ok(&["findmnt", "-rn", "-o", "SOURCE,FSTYPE", "-M", name(&second)]);
    assert_eq!(shown.trim(), "box:/jobs/beta fuse.sshfs");
    scene.ok(&["umount", name(&first)]);
    scene.ok(&["mount", name(&first)]);
    assert_eq!(scene.ok(&["cat", name(&first.join("file"))]), "text\n");
    scene.ok(&["umount", name(&first), name(&second)]);
    scene.ok(&["steadfs", "umount", "@box"]);
    scene.end();
}

#[test]
fn a_remount_changes_flags_and_nothing_else() {
    let scene = Scene::new();
    let (lab, hot) = (&scene.lab, scene.lab.hot.clone());
    scene.fstab(&[format!(
        "{} {} steadfs _netdev,nofail,guard=no,{} 0 0",
        lab.source(),
        hot.display(),
        lab.sshd.client_options()
    )]);
    let at = name(&hot).to_owned();
    scene.refused(&["mount", "-o", "remount,ro", &at], "");
    scene.ok(&["mount", &at]);
    let before = scene.mount_of(&hot);
    let file = format!("{at}/file");
    scene.ok(&["sh", "-c", &format!("echo one > {file}")]);

    scene.ok(&["mount", "-o", "remount,ro", &at]);
    assert!(scene.has(&hot, "ro"));
    scene.refused(&["sh", "-c", &format!("echo two > {file}")], "Read-only file system");
    assert_eq!(scene.ok(&["cat", &file]), "one\n");
    // A daemon that goes on leaves it so.
    process::signal(lab.serving(), nix::sys::signal::Signal::SIGKILL);
    scene.refused(&["sh", "-c", &format!("echo two > {file}")], "Read-only file system");
    scene.ok(&["mount", "-o", "remount,rw", &at]);
    scene.ok(&["sh", "-c", &format!("echo three > {file}")]);
    assert_eq!(std::fs::read_to_string(lab.store.join("file")).unwrap(), "three\n");

    scene.ok(&["mount", "-o", "remount,noexec,noatime", &at]);
    assert!(
        scene.has(&hot, "noexec") && scene.has(&hot, "noatime") && scene.has(&hot, "nosuid") && scene.has(&hot, "rw")
    );
    scene.ok(&["mount", "-o", "remount,exec", &at]);
    assert!(!scene.has(&hot, "noexec"));
    assert_eq!(scene.mount_of(&hot), before, "it is the same mount");

    scene.refused(&["mount", "-o", "remount,deadline=9s", &at], "deadline cannot be changed");
    scene.refused(&["mount", "-o", "remount,ro,uid=7,port=24", &at], "uid, port cannot be changed");
    assert!(scene.has(&hot, "rw"), "all or nothing");
    // Somebody writes: the kernel refuses, and says so.
    let keeper = scene.keeper.id();
    let through = PathBuf::from(format!("/proc/{keeper}/root{file}"));
    let mut held = OpenOptions::new().append(true).open(through).unwrap();
    scene.refused(&["mount", "-o", "remount,ro", &at], "open for writing");
    held.write_all(b"four\n").unwrap();
    drop(held);
    scene.ok(&["umount", &at]);
    scene.end();
}

/// A process in a mount namespace made from that of a scene, which ends with its input.
struct Inner(Child);

impl Inner {
    fn of(scene: &Scene) -> Inner {
        let mut command = scene.command(&["unshare", "-m", "--propagation", "private", "cat"]);
        let inner = Inner(command.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap());
        wait("the inner namespace is there", || process::name(inner.0.id().cast_signed()) == "cat");
        inner
    }

    fn mounts(&self) -> String {
        std::fs::read_to_string(format!("/proc/{}/mountinfo", self.0.id())).unwrap()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn switches_of_mount_reach_the_helper() {
    let scene = Scene::new();
    let (lab, hot) = (&scene.lab, scene.lab.hot.clone());
    let ours = format!("guard=no,{}", lab.sshd.client_options());
    let (at, source) = (name(&hot).to_owned(), lab.source());
    scene.fstab(&[format!("{source} {at} steadfs noauto,{ours} 0 0")]);

    // -f and -v: what would be done, and nothing is.
    let said = scene.ok(&["mount", "-f", "-v", &at]);
    assert!(said.contains("mount.steadfs: steadfs mount -o ") && !scene.is_mounted(&hot), "{said}");
    assert!(scene.ok(&["mount", "-f", &at]).is_empty() && !scene.is_mounted(&hot));
    // -s: options that nobody knows are refused all the same.
    scene.refused(&["mount", "-s", "-t", "steadfs", "-o", "deadlin=3s", &source, &at], "deadline");
    // -n: there is no /etc/mtab to leave alone.
    scene.ok(&["mount", "-n", &at]);
    assert!(scene.is_mounted(&hot));
    scene.ok(&["umount", "-n", &at]);
    // -i leaves the helper out, and the kernel knows no such type: nothing is mounted.
    for (kind, complaint) in [("steadfs", "unknown filesystem type"), ("fuse.steadfs", "wrong fs type")] {
        scene.refused(&["mount", "-i", "-t", kind, "-o", &ours, &source, &at], complaint);
        assert!(!scene.is_mounted(&hot));
    }
    // -v for real.
    assert!(scene.ok(&["mount", "-v", &at]).contains("-- "));
    scene.ok(&["umount", &at]);

    // -N: into another mount namespace.
    let inner = Inner::of(&scene);
    let namespace = format!("/proc/{}/ns/mnt", inner.0.id());
    scene.ok(&["mount", "-N", &namespace, &at]);
    assert!(mount_in(&inner.mounts(), &hot).is_some() && !scene.is_mounted(&hot));
    scene.ok(&["umount", "-N", &namespace, &at]);
    assert!(mount_in(&inner.mounts(), &hot).is_none());
    drop(inner);
    // What the helper is not told by mount(8).
    for words in [&["mount.steadfs"][..], &["mount.steadfs", &source], &["mount.steadfs", &source, &at, "-x"]] {
        let output = scene.ask(words);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("usage: mount.steadfs "), "{output:?}");
    }
    scene.end();
}

#[test]
fn an_overlay_of_sshfs_s_type_is_remounted_by_its_line_or_without_a_helper() {
    let scene = Scene::new();
    let (lab, hot) = (&scene.lab, scene.lab.hot.clone());
    let at = name(&hot).to_owned();
    let line = format!("{} {at} steadfs noauto,guard=no,subtype=sshfs,{} 0 0", lab.source(), lab.sshd.client_options());
    scene.fstab(&[line]);
    scene.ok(&["mount", &at]);
    let before = scene.mount_of(&hot);
    assert_eq!(scene.ok(&["findmnt", "-n", "-o", "FSTYPE", "-M", &at]).trim(), "fuse.sshfs");
    // The line says steadfs, so it is steadfs that is asked.
    scene.ok(&["mount", "-o", "remount,ro", &at]);
    assert!(scene.has(&hot, "ro"));
    scene.ok(&["mount", "-o", "remount,rw", &at]);
    assert!(scene.has(&hot, "rw"));
    // Without a line mount(8) goes by the type, and asks sshfs, which refuses: nothing changes, and nothing is mounted over it.
    scene.fstab(&[]);
    scene.refused(&["mount", "-o", "remount,ro", &at], "unknown option");
    assert!(scene.has(&hot, "rw"));
    assert_eq!(scene.mount_of(&hot), before);
    // Without a helper it is the kernel's.
    scene.ok(&["mount", "-i", "-o", "remount,ro", &at]);
    assert!(scene.has(&hot, "ro"));
    // Or the type is given.
    scene.ok(&["mount", "-t", "steadfs", "-o", "remount,rw", &lab.source(), &at]);
    assert!(scene.has(&hot, "rw"));
    assert_eq!(scene.mount_of(&hot), before);
    scene.ok(&["umount", &at]);
    scene.end();
}
