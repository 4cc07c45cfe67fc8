//! The command line from outside: one clear line and mount(8)'s exit code for everything that can be wrong before a
//! mount is tried.

use std::path::Path;

use assert_cmd::Command;
use tempfile::TempDir;

/// A private place: an empty mountpoint `hot`, a directory `store`, and a runtime directory.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("tempdir");
        for name in ["hot", "store", "run"] {
            std::fs::create_dir(dir.path().join(name)).expect("mkdir");
        }
        Place { dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().canonicalize().expect("real path").join(name).display().to_string()
    }

    fn steadfs(&self, arguments: &[&str]) -> Command {
        let mut command = Command::cargo_bin("steadfs").expect("binary");
        command.args(arguments).env("STEADFS_RUNTIME_DIR", self.path("run")).env_remove("STEADFS_LOG");
        command.timeout(std::time::Duration::from_secs(20));
        command
    }

    /// Mounts `store` on `hot` with more arguments, and expects one line and an exit code.
    fn mount_fails(&self, more: &[&str], code: i32, line: &str) {
        let (source, hot) = (format!("dir:{}", self.path("store")), self.path("hot"));
        fails(&mut self.steadfs(&[&["mount", &source, &hot], more].concat()), code, line);
        self.nothing_changed();
    }

    fn nothing_changed(&self) {
        let left: Vec<_> = std::fs::read_dir(self.path("run")).expect("readdir").flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

/// The command ends with this code and exactly this line on stderr.
fn fails(command: &mut Command, code: i32, line: &str) {
    let output = command.output().expect("run");
    assert_eq!(String::from_utf8_lossy(&output.stderr), format!("steadfs: {line}\n"));
    assert_eq!(output.status.code(), Some(code));
    assert!(output.stdout.is_empty());
}

fn succeeds(command: &mut Command) -> String {
    let output = command.output().expect("run");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text")
}

#[test]
fn help_and_version_succeed() {
    let place = Place::new();
    assert_eq!(succeeds(&mut place.steadfs(&["--version"])), format!("steadfs {}\n", env!("CARGO_PKG_VERSION")));
    let help = succeeds(&mut place.steadfs(&["--help"]));
    for command in ["mount", "umount", "status", "recover", "spool", "demo"] {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not in the help");
    }
    let help = succeeds(&mut place.steadfs(&["mount", "--help"]));
    assert!(help.contains("deadline=DURATION") && help.contains("[default: 5s]"), "{help}");
}

#[test]
fn bad_invocations_are_one_line_and_1() {
    let place = Place::new();
    let see = "(see steadfs --help)";
    fails(
        &mut place.steadfs(&["mount", "h:"]),
        1,
        &format!("the following required arguments were not provided: <MOUNTPOINT> {see}"),
    );
    fails(
        &mut place.steadfs(&["mount", "--bogus", "h:", "/m"]),
        1,
        &format!("unexpected argument '--bogus' found tip: to pass '--bogus' as a value, use '-- --bogus' {see}"),
    );
    let output = place.steadfs(&["frobnicate"]).output().expect("run");
    assert_eq!(output.status.code(), Some(1));
    let output = place.steadfs(&[]).output().expect("run");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn bad_options_are_named() {
    let place = Place::new();
    place.mount_fails(&["-o", "deadlne=5s"], 1, "unknown option 'deadlne': did you mean 'deadline'?");
    place.mount_fails(
        &["-o", "ro,deadline=soon"],
        1,
        "deadline=soon is not a duration: write a number of seconds or a sum such as 5s, 500ms, 2m, 1h30m",
    );
    place.mount_fails(&["-o", "deadline=0"], 1, "deadline=0 is out of range: give 100ms to 1h (the default is 5s)");
    place.mount_fails(
        &["-o", "deadline=10s", "-o", "sync_deadline=5s"],
        1,
        "sync_deadline=5s is less than deadline=10s: give sync_deadline=10s or more, or less for deadline",
    );
    place.mount_fails(&["-p", "0"], 1, "port=0 is not a port: give 1 to 65535");
    place.mount_fails(&["-F", "/no/such"], 1, "-F /no/such: No such file or directory (os error 2)");
}

#[test]
fn a_source_must_be_one() {
    let place = Place::new();
    let hot = place.path("hot");
    fails(
        &mut place.steadfs(&["mount", "/srv/x", &hot]),
        1,
        "source '/srv/x' is neither [user@]host:[dir] nor dir:/path (an IPv6 address goes into brackets)",
    );
    fails(
        &mut place.steadfs(&["mount", "dir:x", &hot]),
        1,
        "source 'dir:x': give the directory's absolute path, as in dir:/srv/files",
    );
    let none = place.path("none");
    fails(
        &mut place.steadfs(&["mount", &format!("dir:{none}"), &hot]),
        32,
        &format!("dir:{none} does not exist: make it first"),
    );
    fails(
        &mut place.steadfs(&["mount", &format!("dir:{hot}"), &hot]),
        32,
        &format!("dir:{hot} and {hot} contain one another: choose paths side by side"),
    );
    place.nothing_changed();
}

#[test]
fn a_mountpoint_must_be_an_empty_directory() {
    let place = Place::new();
    let source = format!("dir:{}", place.path("store"));
    let none = place.path("none");
    fails(
        &mut place.steadfs(&["mount", &source, &none]),
        32,
        &format!("mountpoint {none} does not exist: run mkdir -p {none}"),
    );
    let file = place.path("file");
    std::fs::write(&file, "").expect("write");
    fails(&mut place.steadfs(&["mount", &source, &file]), 32, &format!("{file} is not a directory"));
    let hot = place.path("hot");
    std::fs::write(Path::new(&hot).join("precious"), "").expect("write");
    place.mount_fails(
        &[],
        32,
        &format!("{hot} is not empty: empty it first, or add -o nonempty to hide what is there"),
    );
    fails(
        &mut place.steadfs(&["mount", &source, &format!("{file}/below")]),
        32,
        &format!("{file}/below: Not a directory (os error 20)"),
    );
}

#[test]
fn a_mount_is_not_mounted_over() {
    let place = Place::new();
    let source = format!("dir:{}", place.path("store"));
    fails(
        &mut place.steadfs(&["mount", &source, "/proc"]),
        32,
        "/proc is already mounted (proc, proc): run umount /proc first",
    );
}

#[test]
fn steadfs_must_not_write_below_its_own_mount() {
    let place = Place::new();
    let hot = place.path("hot");
    place.mount_fails(
        &["-o", &format!("pause_file={hot}/pause")],
        1,
        &format!("pause_file={hot}/pause lies below {hot}: give another path"),
    );
}

#[test]
fn missing_programs_are_named() {
    let place = Place::new();
    let hot = place.path("hot");
    let empty = place.path("store");
    fails(
        place.steadfs(&["mount", "h:", &hot]).env("PATH", &empty),
        2,
        "there is no sshfs in PATH: run apt install sshfs",
    );
    std::os::unix::fs::symlink("/bin/true", Path::new(&empty).join("sshfs")).expect("symlink");
    fails(
        place.steadfs(&["mount", "h:", &hot]).env("PATH", &empty),
        2,
        "there is no ssh in PATH: run apt install openssh-client",
    );
    place.nothing_changed();
}

#[test]
fn umount_knows_what_is_not_its_own() {
    let place = Place::new();
    let hot = place.path("hot");
    fails(&mut place.steadfs(&["umount", &hot]), 32, &format!("{hot} is not mounted"));
    fails(
        &mut place.steadfs(&["umount", "/proc"]),
        1,
        "/proc is not a mount of steadfs but proc (proc): run umount /proc",
    );
    let none = place.path("none");
    fails(&mut place.steadfs(&["umount", "--lazy", &none]), 32, &format!("{none} is not mounted"));
}

#[test]
fn a_repair_of_what_is_not_mounted_cannot_be_told() {
    let place = Place::new();
    let hot = place.path("hot");
    for switches in [&["recover", &hot][..], &["recover", &hot, "--apply"], &["recover", &hot, "--json"]] {
        fails(&mut place.steadfs(switches), 2, &format!("no steadfs serves {hot}"));
    }
    fails(&mut place.steadfs(&["recover", "@jobs"]), 2, "no steadfs serves @jobs");
    fails(
        &mut place.steadfs(&["recover", &hot, "--wait", "soon"]),
        1,
        "invalid value 'soon' for '--wait <DURATION>': is not a duration: write a number of seconds or a sum such as 5s, \
         500ms, 2m, 1h30m (see steadfs --help)",
    );
}

#[test]
fn nothing_of_a_runtime_directory_that_others_could_have_made_is_trusted_or_touched() {
    let place = Place::new();
    let hot = place.path("hot");
    // As systemd.unit(5) escapes it.
    let name: String = hot[1..].chars().map(|c| if c == '/' { "-".into() } else { escaped(c) }).collect();
    let (own, precious) = (format!("{}/{name}", place.path("run")), place.path("precious"));
    std::fs::create_dir(&precious).expect("mkdir");
    let socket = std::os::unix::net::UnixListener::bind(format!("{precious}/control.sock")).expect("bound");
    std::fs::write(format!("{precious}/file"), "x").expect("write");
    std::os::unix::fs::symlink(&precious, &own).expect("symlink");
    let line = format!("{own} belongs to somebody else or can be written by others: remove it");
    let commands = [(&["umount", &hot][..], 1), (&["status", &hot], 1), (&["status"], 1), (&["recover", &hot], 2)];
    for (command, code) in commands {
        fails(&mut place.steadfs(command), code, &line);
    }
    std::fs::remove_file(&own).expect("rm");
    let run = place.path("run");
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
    for (command, code) in commands {
        let line = format!("{run} belongs to somebody else or can be written by others: remove it");
        fails(&mut place.steadfs(command), code, &line);
    }
    drop(socket);
    assert_eq!(std::fs::read_dir(&precious).expect("readdir").count(), 2, "nothing was removed");
}

fn escaped(c: char) -> String {
    if c.is_ascii_alphanumeric() || "._:".contains(c) { c.into() } else { format!("\\x{:02x}", u32::from(c)) }
}

#[test]
fn umount_lets_go_a_worker_that_a_killed_daemon_left_paused() {
    let place = Place::new();
    let (hot, state, flag) = (place.path("hot"), place.path("state"), place.path("pause"));
    let name: String = hot[1..].chars().map(|c| if c == '/' { "-".into() } else { escaped(c) }).collect();
    let (note, trace) = (format!("{state}/{name}/paused.json"), place.path("trace"));
    std::fs::create_dir_all(format!("{state}/{name}")).expect("mkdir");
    std::fs::write(&flag, "{}").expect("write");
    let command = ["sh".into(), "-c".into(), format!("echo $STEADFS_STATE >> {trace}")];
    let record = serde_json::json!({
        "since": "1970-01-01T00:00:00Z", "reason": "probe_late", "overlay": hot, "pause_file": flag, "on_recovery": command,
    });
    std::fs::write(&note, record.to_string()).expect("write");
    let line = format!("{hot} is not mounted; what an earlier steadfs left behind is gone now");
    fails(place.steadfs(&["umount", &hot]).env("STEADFS_STATE_DIR", &state), 32, &line);
    assert_eq!(std::fs::read_to_string(&trace).expect("it ran"), "running\n");
    assert!(!Path::new(&flag).exists() && !Path::new(&note).exists());
    place.nothing_changed();
}

#[test]
fn the_mount_helper_speaks_mount_8() {
    let helper = Path::new(env!("CARGO_MANIFEST_DIR")).join("mount-helper/mount.steadfs");
    let shown = |arguments: &[&str]| {
        let output = std::process::Command::new(&helper).args(arguments).output().expect("run");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    };
    assert_eq!(
        shown(&["h:/d", "/hot", "-f", "-v", "-n", "-s", "-o", "rw,nofail", "-t", "steadfs.sshfs"]),
        (Some(0), "mount.steadfs: steadfs mount -o rw,nofail,subtype=sshfs -- h:/d /hot".into())
    );
    assert_eq!(
        shown(&["h:", "/hot", "-fv", "-N", "/proc/1/ns/mnt"]),
        (Some(0), "mount.steadfs: nsenter --mount=/proc/1/ns/mnt -- steadfs mount -- h: /hot".into())
    );
    assert_eq!(shown(&["h:"]).0, Some(1));
    assert_eq!(shown(&["h:", "/hot", "-x"]).0, Some(1));
}
