//! `steadfs check`: what it finds out, with and without a real server. Needs root, /dev/fuse and sshd.
#![allow(clippy::unwrap_used)]

mod lab;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use lab::Lab;
use serde_json::Value;

/// What it said.
struct Said {
    code: i32,
    json: Value,
    text: String,
}

impl Said {
    fn of(mut command: Command, config: &Path, more: &[&str]) -> Said {
        let output = command.arg(config).arg("--json").args(more).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        Said { code: output.status.code().unwrap(), json: serde_json::from_str(&text).unwrap_or_default(), text }
    }

    /// Verdict and text of each item of that name.
    fn items(&self, what: &str) -> Vec<(&str, &str)> {
        let items = self.json["items"].as_array().into_iter().flatten();
        let found = items.filter(|item| item["what"].as_str().unwrap().starts_with(what));
        found.map(|item| (item["verdict"].as_str().unwrap(), item["text"].as_str().unwrap())).collect()
    }

    /// One of them has that verdict and says all of that.
    fn has(&self, what: &str, verdict: &str, words: &[&str]) {
        let items = self.items(what);
        let right = |(found, text): &&(&str, &str)| *found == verdict && words.iter().all(|word| text.contains(word));
        assert!(items.iter().any(|item| right(&item)), "{what}, {verdict}: {words:?}\n{items:#?}\n{}", self.text);
    }
}

/// The laboratory's server as a configuration, with other files in the place of the right ones, and more lines.
fn config(lab: &Lab, file: &str, other: &str, more: &str) -> PathBuf {
    let options = if file.is_empty() { lab.sshd.client_options() } else { lab.sshd.options_with(file, other) };
    let options: String = options
        .split(',')
        .filter_map(|option| option.split_once('='))
        .map(|(name, value)| format!("{name} = '{value}'\n"))
        .collect();
    let text = format!("name = 'lab'\nsource = '{}'\n[sshfs]\n{options}{more}", lab.source());
    let path = lab.path("c.toml");
    std::fs::write(&path, text).unwrap();
    path
}

fn check(lab: &Lab, file: &str, other: &str, more: &str) -> Said {
    Said::of(lab.steadfs(&["check"]), &config(lab, file, other, more), &[])
}

fn overlay(lab: &Lab, path: &str) -> String {
    format!("[[overlay]]\nmountpoint = '{}'\npath = '{path}'\n", lab.hot.display())
}

#[test]
fn a_server_that_works_is_found_to_work() {
    let lab = Lab::unmounted();
    std::fs::create_dir_all(lab.store.join("jobs/a")).unwrap();
    let secret = "SetEnv = 'TOKEN=hunter2'\n";
    let said = check(&lab, "", "", &(secret.to_owned() + &overlay(&lab, "jobs/a")));
    assert_eq!((said.code, said.json["verdict"].as_str()), (0, Some("ok")), "{}", said.text);
    for what in ["/dev/fuse", "sshfs", "ssh", "key ", "server", "host key of", "login", "mountpoint"] {
        said.has(what, "ok", &[]);
    }
    let directory = format!("directory {}/jobs/a (for {})", lab.store.display(), lab.hot.display());
    said.has(&directory, "ok", &["is there"]);
    assert!(!said.text.contains("hunter2"));
    let plain = lab.steadfs(&["check"]).arg(lab.path("c.toml")).output().unwrap();
    assert!(String::from_utf8_lossy(&plain.stdout).ends_with("0 errors, 0 warnings\n"), "{plain:?}");
    // Nothing of it is left, here or there.
    lab::wait("the server sees the client go", || lab.sshd.sessions() == 0);
    assert!(!lab.path("run").exists() && !lab.path("state").exists());
}

#[test]
fn what_a_server_does_not_know_is_told() {
    let lab = Lab::unmounted();
    let server = lab.path("server");
    let script = format!("#!/bin/sh\nexec {} -P fsync,posix-rename,hardlink,statvfs\n", lab::sshd::SFTP_SERVER);
    std::fs::write(&server, script).unwrap();
    std::fs::set_permissions(&server, PermissionsExt::from_mode(0o755)).unwrap();
    let said = check(&lab, "", "", &format!("sftp_server = '{}'\n", server.display()));
    assert_eq!((said.code, said.json["verdict"].as_str()), (0, Some("warning")), "{}", said.text);
    for (extension, words) in
        [("fsync", "not when its disk has"), ("posix-rename", "EPERM"), ("hardlink", "EPERM"), ("statvfs", "made up")]
    {
        said.has("server", "warning", &[&format!("does not know {extension}@openssh.com"), words]);
    }
}

#[test]
fn what_is_wrong_with_a_login_is_told_apart() {
    let mut lab = Lab::unmounted();
    let said = check(&lab, "client", "stranger", "");
    assert_eq!(said.code, 1);
    said.has("host key of", "ok", &[]);
    said.has("login", "error", &["Permission denied", "lets nobody in with this key"]);

    let said = check(&lab, "known", "unknown", "");
    assert_eq!(said.code, 1);
    said.has("host key of", "error", &["is not known", "ssh-keyscan"]);
    said.has("login", "error", &["is not known: connect once with"]);

    let said = check(&lab, "known", "mistaken", "");
    assert_eq!(said.code, 1);
    said.has("login", "error", &["is another one than before", "ssh-keygen -f"]);

    let said = check(&lab, "", "", "sftp_server = 'no-such-subsystem'\n");
    assert_eq!(said.code, 1);
    said.has("sftp", "error", &["subsystem request failed", "give sftp_server"]);

    lab.sshd.stop();
    let said = check(&lab, "", "", "");
    assert_eq!(said.code, 1);
    said.has("server", "error", &["refused", "see that the name and port are right"]);
    assert_eq!(said.items("login"), []);
    let said = Said::of(lab.steadfs(&["check"]), &lab.path("c.toml"), &["--offline"]);
    assert_eq!(said.code, 0, "{}", said.text);
    said.has("server", "ok", &["is left out"]);
}

#[test]
fn directories_that_the_server_lacks_are_named() {
    let lab = Lab::unmounted();
    std::fs::write(lab.store.join("file"), "x").unwrap();
    let other = lab.path("other");
    std::fs::create_dir(&other).unwrap();
    let more = format!("[[overlay]]\nmountpoint = '{}'\npath = 'file'\n", other.display());
    let said = check(&lab, "", "", &(overlay(&lab, "nowhere") + &more));
    assert_eq!(said.code, 1);
    let store = lab.store.display();
    said.has(&format!("directory {store}/nowhere (for {})", lab.hot.display()), "error", &["is not there: make it"]);
    said.has(&format!("directory {store}/file (for {})", other.display()), "error", &["is not a directory"]);
    said.has(&format!("directory {store}"), "ok", &[]);
}

#[test]
fn a_server_that_hangs_is_waited_for_no_longer_than_a_start() {
    let lab = Lab::unmounted();
    // The port answers, and nobody speaks behind it.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = silent.local_addr().unwrap().port();
    let text = format!(
        "name = 'lab'\nsource = 'root@127.0.0.1:/'\n[sshfs]\nport = {port}\nStrictHostKeyChecking = 'no'\nUserKnownHostsFile = '{}'\n\
         ConnectTimeout = 60\n[repair]\nstart_deadline = '2s'\n",
        lab.path("none").display()
    );
    std::fs::write(lab.path("c.toml"), text).unwrap();
    let said = Said::of(lab.steadfs(&["check"]), &lab.path("c.toml"), &[]);
    assert_eq!(said.code, 1);
    said.has("login", "error", &["no answer after 2s"]);
    said.has("host key of", "warning", &["is not checked"]);
}

/// A private place without a server.
struct Place(tempfile::TempDir);

/// Whatever is mounted in it goes with it.
impl Drop for Place {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.path("hot"), nix::mount::MntFlags::MNT_DETACH);
    }
}

impl Place {
    fn new() -> Place {
        let place = Place(tempfile::tempdir().unwrap());
        for name in ["hot", "store"] {
            std::fs::create_dir(place.path(name)).unwrap();
        }
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().canonicalize().unwrap().join(name)
    }

    /// Checks a file in which `@` stands for the place.
    fn check(&self, text: &str) -> Said {
        let root = self.path("");
        let text = text.replace("@/", root.to_str().unwrap());
        let config = self.path("c.toml");
        std::fs::write(&config, text).unwrap();
        Said::of(self.steadfs(), &config, &[])
    }

    fn steadfs(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
        command.arg("check").env("STEADFS_RUNTIME_DIR", self.path("run")).env("STEADFS_STATE_DIR", self.path("state"));
        command.env_remove("SSH_AUTH_SOCK");
        command
    }
}

const DIR: &str = "name = 'x'\nsource = 'dir:@/store'\n";
const HOT: &str = "[[overlay]]\nmountpoint = '@/hot'\n";

#[test]
fn mistakes_in_the_file_have_an_exit_code_of_their_own() {
    let place = Place::new();
    let said = place.check("name = 'x'\nsource = 'dir:/x'\n[calls]\ndeadlin = 1\nhold = true\n");
    assert_eq!(said.code, 78);
    let lines: Vec<_> = said.json["mistakes"].as_array().unwrap().iter().map(|m| m["line"].as_u64().unwrap()).collect();
    assert_eq!(lines, [4, 5], "{}", said.text);
    assert!(said.text.contains("did you mean 'deadline'?"));
    let output = place.steadfs().arg(place.path("c.toml")).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let expected = format!("steadfs: {}:4:1: unknown key 'deadlin'", place.path("c.toml").display());
    assert!(stderr.starts_with(&expected), "{stderr}");
    assert_eq!(stderr.lines().count(), 2);
    let missing = Said::of(place.steadfs(), &place.path("missing"), &[]);
    assert_eq!(missing.code, 66);
    assert!(missing.text.contains("No such file"), "{}", missing.text);
}

#[test]
fn a_mountpoint_has_to_be_there_free_empty_and_safe() {
    let place = Place::new();
    let config = DIR.to_owned() + HOT;
    assert_eq!(place.check(&config).code, 0, "{}", place.check(&config).text);

    std::fs::write(place.path("hot/file"), "x").unwrap();
    place.check(&config).has("mountpoint", "error", &["is not empty", "set nonempty = true", "c.toml:4:1"]);
    let hidden = place.check(&(config.clone() + "nonempty = true\n"));
    assert_eq!(hidden.code, 0);
    hidden.has("mountpoint", "ok", &["will be hidden"]);
    std::fs::remove_file(place.path("hot/file")).unwrap();

    lab::run_ok("mount", &["-t", "tmpfs", "none", place.path("hot").to_str().unwrap()]);
    let said = place.check(&config);
    lab::run_ok("umount", &[place.path("hot").to_str().unwrap()]);
    assert_eq!(said.code, 1);
    said.has("mountpoint", "error", &["is already mounted (none, tmpfs): run umount"]);

    std::fs::remove_dir(place.path("hot")).unwrap();
    place.check(&config).has("mountpoint", "error", &["does not exist: run mkdir -p"]);

    std::fs::create_dir_all(place.path("open/hot")).unwrap();
    std::fs::set_permissions(place.path("open"), PermissionsExt::from_mode(0o777)).unwrap();
    std::os::unix::fs::symlink("open/hot", place.path("hot")).unwrap();
    let said = place.check(&config);
    assert_eq!(said.code, 1);
    said.has("mountpoint", "error", &["can be written by everybody", "run chmod o-w"]);

    // Two links to one place are one mountpoint.
    std::fs::set_permissions(place.path("open"), PermissionsExt::from_mode(0o755)).unwrap();
    let twice = format!("{config}[[overlay]]\nmountpoint = '@/open/hot'\nread_only = true\n");
    place.check(&twice).has("mountpoints", "error", &["is given twice"]);
}

#[test]
fn a_configuration_that_others_can_write_is_refused() {
    let place = Place::new();
    place.check(DIR);
    std::fs::set_permissions(place.path("c.toml"), PermissionsExt::from_mode(0o666)).unwrap();
    let said = Said::of(place.steadfs(), &place.path("c.toml"), &[]);
    assert_eq!(said.code, 1);
    said.has("file", "error", &["can be written by others", "run chmod go-w"]);
}

#[test]
fn keys_are_looked_at() {
    let place = Place::new();
    let key = |name: &str, passphrase: &str| {
        let path = place.path(name);
        lab::run_ok("ssh-keygen", &["-q", "-t", "ed25519", "-N", passphrase, "-f", path.to_str().unwrap()]);
    };
    key("good", "");
    key("locked", "hunter2hunter2");
    std::fs::copy(place.path("good"), place.path("open")).unwrap();
    std::fs::set_permissions(place.path("open"), PermissionsExt::from_mode(0o640)).unwrap();
    let keys =
        "IdentityFile = ['@/good', '@/locked', '@/open', '@/none']".replace("@/", place.path("").to_str().unwrap());
    std::fs::write(place.path("c.toml"), format!("name = 'x'\nsource = 'u@h:'\n[sshfs]\n{keys}\n")).unwrap();
    let said = Said::of(place.steadfs(), &place.path("c.toml"), &["--offline"]);
    assert_eq!(said.code, 1);
    let shown = |name: &str| format!("key {}", place.path(name).display());
    said.has(&shown("good"), "ok", &[]);
    said.has(&shown("locked"), "error", &["needs a passphrase", "ssh-keygen -p"]);
    said.has(&shown("open"), "error", &["can be read by others (mode 0640)", "chmod 600"]);
    said.has(&shown("none"), "error", &["No such file", "ssh-keygen -t ed25519"]);
}

#[test]
fn outputs_workers_and_locks_are_tried() {
    let place = Place::new();
    let lock = std::fs::File::create(place.path("lock")).unwrap();
    let _held = nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusive).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    std::fs::write(place.path("pid"), std::process::id().to_string()).unwrap();
    let address = port.local_addr().unwrap();
    let said = place.check(&format!(
        "{DIR}[repair]\ndeploy_lock = '@/lock'\nenable_file = '@/enabled'\n\
         [telemetry]\ntextfile = '@/none'\njournal = '@/journal'\nmetrics = '{address}'\n[log]\nspool_dir = '@/store/a/b'\n\
         [[worker]]\nname = 'pid'\nkind = 'signal'\npid_file = '@/pid'\n\
         [[worker]]\nname = 'flag'\nkind = 'flag'\nfile = '@/none/flag'\n\
         [[worker]]\nname = 'program'\nkind = 'command'\npause = '@/no-program'\nresume = 'true'\n\
         [[worker]]\nname = 'engine'\nkind = 'container'\nengine = 'no-such-engine'\nlabel = 'a'\n\
         [[worker]]\nname = 'group'\nkind = 'cgroup'\npath = '@/store'\n\
         [[after_recovery]]\nname = 'hook'\ncommand = ['no-such-program']\n"
    ));
    assert_eq!(said.code, 1);
    said.has("deploy_lock", "warning", &["is held now"]);
    said.has("enable_file", "warning", &["is not there", "run touch"]);
    said.has("textfile", "error", &["does not exist: run mkdir -p"]);
    said.has("journal", "ok", &["can be made"]);
    said.has("metrics", "error", &["in use", "give another address"]);
    said.has("spool_dir", "error", &["store/a does not exist: run mkdir -p"]);
    said.has("worker 'pid'", "ok", &["runs"]);
    said.has("worker 'flag'", "error", &["is not a directory: make it"]);
    said.has("worker 'program' pause", "error", &["install it, or mend the path"]);
    said.has("worker 'program' resume", "ok", &[]);
    said.has("worker 'engine'", "error", &["there is no no-such-engine in PATH"]);
    said.has("worker 'group'", "warning", &["has no cgroup.freeze"]);
    said.has("after_recovery 'hook'", "error", &["there is no no-such-program in PATH"]);
    assert!(!place.path("journal").exists() && !place.path("run").exists(), "a check makes nothing");
}

#[test]
fn directories_of_a_local_store_are_looked_for() {
    let place = Place::new();
    let said = place.check(&format!("{DIR}{HOT}path = 'none'\n"));
    assert_eq!(said.code, 1);
    let dir = format!("directory {}", place.path("store/none").display());
    said.has(&dir, "error", &["make it, or mend the path"]);
}
