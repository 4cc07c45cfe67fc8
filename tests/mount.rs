//! `steadfs mount` as users meet it: at the prompt, without a server, with the wrong key, and at the end.
#![allow(clippy::unwrap_used)]

mod lab;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use lab::{Lab, mount_of, run, wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim().to_owned()
}

/// A pid from `status`; the daemon of a background mount is nobody's child.
fn daemon(lab: &Lab) -> i32 {
    i32::try_from(lab.status()["pid"].as_u64().expect("a daemon")).unwrap()
}

/// The last of keeper and daemon clears up.
fn wait_for_the_end(lab: &Lab) {
    let parts = lab.parts();
    wait("keeper and daemon end", || parts.keepers().is_empty() && parts.daemons().is_empty());
}

fn assert_gone(lab: &Lab, pid: i32) {
    wait("the daemon ends", || !Path::new(&format!("/proc/{pid}")).exists());
    wait_for_the_end(lab);
    assert_eq!(mount_of(&lab.hot), None);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(lab.path("").to_str().unwrap()), "{mounts}");
    assert_eq!(std::fs::read_dir(lab.path("run")).unwrap().count(), 0);
}

fn mount_in_background(lab: &Lab, options: &str) {
    let output = lab.mount_command("", options).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn back_at_the_prompt_when_the_overlay_answers_and_ended_by_each_kind_of_unmount() {
    let lab = Lab::unmounted();
    let hot = lab.hot.to_str().unwrap().to_owned();
    std::fs::write(lab.store.join("file"), "content").unwrap();
    for way in ["umount", "fusermount3", "steadfs", "SIGTERM", "busy SIGTERM", "abort"] {
        mount_in_background(&lab, "");
        assert_eq!(std::fs::read_to_string(lab.hot.join("file")).unwrap(), "content", "{way}");
        let pid = daemon(&lab);
        let held =
            (way == "busy SIGTERM").then(|| Command::new("sleep").arg("1000").current_dir(&lab.hot).spawn().unwrap());
        match way {
            "umount" => assert!(run("umount", &[&hot]).status.success()),
            "fusermount3" => assert!(run("fusermount3", &["-u", &hot]).status.success()),
            "steadfs" => assert!(lab.steadfs(&["umount", &hot]).status().unwrap().success()),
            // Says EBUSY and ends the connection, not the mount.
            "abort" => _ = run("umount", &["-f", &hot]),
            _ => kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap(),
        }
        assert_gone(&lab, pid);
        if let Some(mut held) = held {
            held.kill().unwrap();
            held.wait().unwrap();
        }
    }
}

#[test]
fn an_unmount_ends_everything_though_another_namespace_has_a_copy() {
    let lab = Lab::unmounted();
    mount_in_background(&lab, "");
    let pid = daemon(&lab);
    let mut copy = Command::new("unshare").args(["-m", "--propagation", "private", "sleep", "1000"]).spawn().unwrap();
    wait("the namespace is there", || lab::command_name(copy.id().cast_signed()) == "sleep");
    assert!(run("umount", &[lab.hot.to_str().unwrap()]).status.success());
    assert_gone(&lab, pid);
    copy.kill().unwrap();
    copy.wait().unwrap();
}

#[test]
fn a_mount_in_use_is_refused_and_one_already_there_too() {
    let lab = Lab::unmounted();
    let hot = lab.hot.to_str().unwrap().to_owned();
    mount_in_background(&lab, "");
    let pid = daemon(&lab);
    let again = lab.mount_command("", "").output().unwrap();
    assert_eq!(again.status.code(), Some(32), "{again:?}");
    assert!(stderr(&again).contains("already"), "{again:?}");
    let mut held = Command::new("sleep").arg("1000").current_dir(&lab.hot).spawn().unwrap();
    let busy = lab.steadfs(&["umount", &hot]).output().unwrap();
    assert_eq!(busy.status.code(), Some(32));
    assert!(stderr(&busy).contains("busy"), "{busy:?}");
    held.kill().unwrap();
    held.wait().unwrap();
    wait("it is free", || lab.steadfs(&["umount", &hot]).status().unwrap().success());
    assert_gone(&lab, pid);
}

#[test]
fn a_refused_key_and_an_unknown_host_are_named_with_exit_code_32() {
    let lab = Lab::unmounted();
    let server = &lab.net.server;
    for (from, to, words, remedy) in [
        ("client", "stranger", "Permission denied", "give IdentityFile="),
        ("known", "unknown", "host key", "connect once with ssh "),
        ("known", "mistaken", "HAS CHANGED", "remove the old one with ssh-keygen -f "),
    ] {
        let mut command = lab.steadfs(&["mount"]);
        command.args([&format!("root@{}:/", lab.net.server), lab.hot.to_str().unwrap()]);
        let output = command.args(["-o", &format!("guard=no,{}", lab.sshd.options_with(from, to))]).output().unwrap();
        assert_eq!(output.status.code(), Some(32), "{output:?}");
        let text = stderr(&output);
        assert!(text.contains(words) && text.contains(remedy) && text.contains(server), "{text}");
        assert_eq!(text.lines().count(), 1, "{text}");
        assert_eq!((mount_of(&lab.hot), std::fs::read_dir(lab.path("run")).unwrap().count()), (None, 0));
    }
    let mut command = lab.steadfs(&["mount"]);
    command.args([&format!("root@{}:/no/such/dir", lab.net.server), lab.hot.to_str().unwrap()]);
    let output = command.args(["-o", &format!("guard=no,{}", lab.sshd.client_options())]).output().unwrap();
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    assert!(stderr(&output).contains("No such file or directory"), "{output:?}");
}

#[test]
fn an_unreachable_server_is_waited_for_in_outage_unless_asked_not_to() {
    let mut lab = Lab::unmounted();
    lab.sshd.stop();
    let output = lab.mount_command("", "soft_start=no").output().unwrap();
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    assert!(stderr(&output).contains("refused"), "{output:?}");
    assert_eq!(mount_of(&lab.hot), None);
    mount_in_background(&lab, "deadline=1s,sync_deadline=2s");
    let pid = daemon(&lab);
    for arguments in [["df"].as_slice(), &["ls", "-d"], &["findmnt"], &["mountpoint"]] {
        let started = Instant::now();
        let output = run(arguments[0], &[&arguments[1..], &[lab.hot.to_str().unwrap()]].concat());
        assert!(output.status.success(), "{output:?}");
        assert!(started.elapsed() < Duration::from_secs(2), "{arguments:?}");
    }
    let listed = std::fs::read_dir(&lab.hot).and_then(|mut entries| entries.next().transpose());
    let missing = listed.expect_err("a missing backing is an error, never an empty directory");
    assert_eq!(missing.raw_os_error(), Some(libc::ENOTCONN));
    lab.sshd.begin();
    lab.wait_state("live");
    std::fs::write(lab.hot.join("file"), "x").unwrap();
    run("umount", &[lab.hot.to_str().unwrap()]);
    assert_gone(&lab, pid);
}

#[test]
fn a_login_that_takes_longer_than_the_deadline_is_waited_for_without_a_soft_start() {
    let lab = Lab::unmounted();
    let slow = lab.path("slow/ssh");
    std::fs::create_dir(lab.path("slow")).unwrap();
    std::fs::write(&slow, "#!/bin/sh\ncase $1 in -G) ;; *) sleep 3 ;; esac\nexec ssh \"$@\"\n").unwrap();
    std::fs::set_permissions(&slow, std::fs::Permissions::from_mode(0o755)).unwrap();
    let options = format!("soft_start=no,deadline=1s,sync_deadline=2s,ssh_command={}", slow.display());
    mount_in_background(&lab, &options);
    std::fs::write(lab.hot.join("file"), "x").unwrap();
    let pid = daemon(&lab);
    run("umount", &[lab.hot.to_str().unwrap()]);
    assert_gone(&lab, pid);
}

#[test]
fn the_guard_keeps_the_directory_below_unwritable() {
    let lab = Lab::unmounted();
    let mut command = lab.steadfs(&["mount"]);
    command.args([&format!("root@{}:{}", lab.net.server, lab.store.display()), lab.hot.to_str().unwrap()]);
    let output = command.args(["-o", &lab.sshd.client_options()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    std::fs::write(lab.hot.join("through"), "x").unwrap();
    let pid = daemon(&lab);
    run("umount", &[lab.hot.to_str().unwrap()]);
    let below = std::fs::write(lab.hot.join("too early"), "x");
    // The directory must be removable whatever comes of the test.
    run("chattr", &["-i", lab.hot.to_str().unwrap()]);
    assert_gone(&lab, pid);
    let refused = below.err().map(|error| error.kind());
    assert_eq!(refused, Some(std::io::ErrorKind::PermissionDenied), "even for root");
}

/// A start that took long, on a busy machine, is an outage of its own: waits until nothing of it is left.
fn begin_anew(lab: &Lab, trace: &Path) {
    lab.wait_state("live");
    wait("the worker runs", || {
        let status = lab.status();
        let overdue = status["events"].to_string().contains("outage_overdue");
        // What is overdue is told before it is done.
        let dealt_with = !overdue || std::fs::read_to_string(trace).is_ok_and(|text| text.contains("recovery"));
        status["state"] == "live" && status["worker"]["paused_since"].is_null() && dealt_with
    });
    let _ = std::fs::remove_file(trace);
}

#[test]
fn the_worker_is_paused_in_a_long_outage_and_let_go_after_it() {
    let mut lab = Lab::unmounted();
    let (pause, trace) = (lab.path("pause"), lab.path("trace"));
    let hook = |word: &str| format!("on_{word}=sh:echo {word} >> {}", trace.display());
    let options = format!(
        "deadline=1s,sync_deadline=1s,steady=500ms,pause_file={},{},{}",
        pause.display(),
        hook("outage"),
        hook("recovery")
    );
    mount_in_background(&lab, &options);
    begin_anew(&lab, &trace);
    lab.sshd.stop();
    wait("the pause file", || pause.exists());
    let flag: serde_json::Value = serde_json::from_slice(&std::fs::read(&pause).unwrap()).unwrap();
    assert_eq!(flag["overlay"], lab.hot.to_str().unwrap());
    // Whichever comes first: a probe may be inside when its ssh ends.
    assert!(["process_exit", "probe_failed"].iter().any(|reason| flag["reason"] == *reason), "{flag}");
    assert!(lab.path("state").exists(), "it is written down for a successor");
    lab.sshd.begin();
    wait("the pause file is removed", || !pause.exists());
    wait("the hooks have run", || std::fs::read_to_string(&trace).unwrap_or_default() == "outage\nrecovery\n");
    let pid = daemon(&lab);
    run("umount", &[lab.hot.to_str().unwrap()]);
    assert_gone(&lab, pid);
    assert!(!lab.path("state").exists());
}

#[test]
fn a_worker_is_let_go_by_umount_after_its_daemon_was_killed() {
    let mut lab = Lab::unmounted();
    let (pause, trace, run) = (lab.path("pause"), lab.path("trace"), lab.path("run"));
    let hook = format!("on_recovery=sh:echo recovery >> {}", trace.display());
    // The same directory for both: what is written down must not be swept.
    let mut command = lab
        .mount_command("", &format!("deadline=1s,sync_deadline=1s,steady=500ms,pause_file={},{hook}", pause.display()));
    assert!(command.env("STEADFS_STATE_DIR", &run).status().unwrap().success());
    begin_anew(&lab, &trace);
    let pid = daemon(&lab);
    lab.sshd.stop();
    wait("the pause file", || pause.exists());
    lab::process::kill_both(pid);
    let mut command = lab.steadfs(&["umount", lab.hot.to_str().unwrap()]);
    let output = command.env("STEADFS_STATE_DIR", &run).output().unwrap();
    assert!(output.status.success() && stderr(&output).contains("its worker let go"), "{output:?}");
    assert!(!pause.exists());
    assert_eq!(std::fs::read_to_string(&trace).unwrap(), "recovery\n");
    assert_gone(&lab, pid);
}

#[test]
fn a_mount_replaces_its_own_dead_one_and_no_other() {
    let lab = Lab::unmounted();
    std::fs::write(lab.store.join("file"), "content").unwrap();
    mount_in_background(&lab, "");
    for options in ["", "subtype=sshfs"] {
        lab.wait_state("live");
        let pid = daemon(&lab);
        // Somebody is in the dead mount, which must not matter.
        let mut held = Command::new("sleep").arg("1000").current_dir(&lab.hot).spawn().unwrap();
        lab::process::kill_both(pid);
        mount_in_background(&lab, options);
        assert_ne!(daemon(&lab), pid);
        assert_eq!(std::fs::read_to_string(lab.hot.join("file")).unwrap(), "content");
        held.kill().unwrap();
        held.wait().unwrap();
    }
    let pid = daemon(&lab);
    assert!(lab.steadfs(&["umount", lab.hot.to_str().unwrap()]).status().unwrap().success());
    assert_gone(&lab, pid);
    // A dead sshfs is none of ours, whatever we would call ourselves.
    let mut lab = lab;
    let mut sshfs = Command::new("sshfs");
    sshfs.args(["-f", "-o", &lab.sshd.client_options(), &lab.source()]).arg(&lab.hot);
    let mut sshfs = sshfs.stderr(Stdio::null()).spawn().unwrap();
    wait("sshfs serves", || lab.hot.join("file").exists());
    sshfs.kill().unwrap();
    sshfs.wait().unwrap();
    let output = lab.mount_command("", "subtype=sshfs").output().unwrap();
    assert_eq!(output.status.code(), Some(32), "{output:?}");
    assert!(stderr(&output).contains("already mounted"), "{output:?}");
    assert!(run("umount", &[lab.hot.to_str().unwrap()]).status.success());
    lab.sshd.stop();
}

#[test]
fn an_ordinary_user_is_not_kept_out_of_what_the_server_lets_him_have() {
    let lab = Lab::unmounted();
    let secret = lab.store.join("secret");
    std::fs::write(&secret, "for the server's user\n").unwrap();
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o600)).unwrap();
    // Programs, keys and mountpoint where an ordinary user can reach them.
    let home = tempfile::tempdir().unwrap();
    let at = home.path().display().to_string();
    std::fs::copy(env!("CARGO_BIN_EXE_steadfs"), home.path().join("steadfs")).unwrap();
    std::fs::create_dir(home.path().join("hot")).unwrap();
    let ssh = lab.path("ssh").display().to_string();
    for file in ["client", "known"] {
        std::fs::copy(format!("{ssh}/{file}"), home.path().join(file)).unwrap();
    }
    assert!(run("chown", &["-R", "65534:65534", &at]).status.success());
    let options = lab.sshd.client_options().replace(&ssh, &at);
    let user = "./steadfs mount $SOURCE hot -o $OPTIONS && { cat hot/secret && echo more >> hot/secret; \
                result=$?; ./steadfs umount hot && exit $result; }";
    // Where /dev/fuse is root's alone, he gets one in a mount namespace of the test's own.
    let script = format!(
        "set -e; mknod fuse c 10 229; chmod 666 fuse; mount --bind fuse /dev/fuse; \
         exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c '{user}'"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir(&at).env("HOME", &at).env("OPTIONS", options);
    command.env("SOURCE", lab.source()).env("STEADFS_RUNTIME_DIR", format!("{at}/run"));
    let output = command.env_remove("XDG_STATE_HOME").env_remove("STEADFS_STATE_DIR").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"for the server's user\n");
    assert_eq!(std::fs::read_to_string(&secret).unwrap(), "for the server's user\nmore\n");
}

/// A mount whose ssh never says a word, so that its start takes as long as it may.
fn silent_ssh(lab: &Lab, flag: &str, options: &str) -> Command {
    let ssh = lab.path("silent-ssh");
    std::fs::write(&ssh, format!("#!/bin/sh\nexec sleep 1000 # {}\n", ssh.display())).unwrap();
    std::fs::set_permissions(&ssh, PermissionsExt::from_mode(0o755)).unwrap();
    lab.mount_command(flag, &format!("ssh_command={},{options}", ssh.display()))
}

fn assert_nothing_left(lab: &Lab) {
    wait("sshfs ends", || lab.clients("sshfs").is_empty() && lab.clients("steadfs").is_empty());
    wait_for_the_end(lab);
    assert_eq!(mount_of(&lab.hot), None);
    let left: Vec<_> = std::fs::read_dir(lab.path("run")).unwrap().flatten().map(|entry| entry.path()).collect();
    assert_eq!(left, Vec::<std::path::PathBuf>::new());
    assert!(!lab.path("state").exists());
}

#[test]
fn a_start_can_be_asked_about_and_ended_before_the_overlay_answers() {
    let lab = Lab::unmounted();
    let hot = lab.hot.to_str().unwrap();
    for way in ["SIGTERM", "SIGINT", "umount"] {
        let mut daemon = silent_ssh(&lab, "-f", "soft_start=no").stderr(Stdio::piped()).spawn().unwrap();
        wait("sshfs runs", || !lab.clients("sshfs").is_empty());
        wait("it answers", || lab.state() == "starting");
        let pid = Pid::from_raw(daemon.id().cast_signed());
        match way {
            "SIGTERM" => kill(pid, Signal::SIGTERM).unwrap(),
            "SIGINT" => kill(pid, Signal::SIGINT).unwrap(),
            _ => assert!(lab.steadfs(&["umount", hot]).status().unwrap().success()),
        }
        let begun = Instant::now();
        wait("it ends", || daemon.try_wait().unwrap().is_some());
        assert!(begun.elapsed() < Duration::from_secs(10), "{way}");
        let output = daemon.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(32), "{way}: {output:?}");
        assert!(stderr(&output).ends_with("it was told to end before the overlay was mounted"), "{way}: {output:?}");
        assert_nothing_left(&lab);
    }
}

#[test]
fn a_mount_command_that_is_interrupted_takes_its_daemon_with_it() {
    let lab = Lab::unmounted();
    let mut parent = silent_ssh(&lab, "", "soft_start=no").spawn().unwrap();
    wait("sshfs runs", || !lab.clients("sshfs").is_empty());
    kill(Pid::from_raw(parent.id().cast_signed()), Signal::SIGINT).unwrap();
    parent.wait().unwrap();
    assert_nothing_left(&lab);
}

#[test]
fn a_daemon_that_does_not_answer_is_said_to_be_silent() {
    let lab = Lab::unmounted();
    mount_in_background(&lab, "");
    let pid = Pid::from_raw(daemon(&lab));
    kill(pid, Signal::SIGSTOP).unwrap();
    let output = lab.steadfs(&["status", lab.hot.to_str().unwrap()]).output().unwrap();
    kill(pid, Signal::SIGCONT).unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).ends_with("the daemon does not answer: no answer within 2 s"), "{output:?}");
    assert!(lab.steadfs(&["umount", lab.hot.to_str().unwrap()]).status().unwrap().success());
    assert_gone(&lab, pid.as_raw());
}

fn http(path: &Path, target: &str) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    write!(stream, "GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn metrics_and_health_are_served_and_written() {
    let mut lab = Lab::unmounted();
    let (socket, directory) = (lab.path("metrics.sock"), lab.path("textfile"));
    std::fs::create_dir(&directory).unwrap();
    mount_in_background(&lab, &format!("metrics=unix:{},textfile={}", socket.display(), directory.display()));
    lab.wait_state("live");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(lab.hot.join("file"), "twelve bytes").unwrap();
    // Calls are counted after they have been answered.
    wait("the calls are counted", || {
        let page = http(&socket, "/metrics");
        page.contains("operation=\"create\",result=\"ok\"} 1")
            && page.lines().any(|line| line.starts_with("steadfs_written_bytes_total{") && line.ends_with(" 12"))
    });
    let page = http(&socket, "/metrics");
    let (_, text) = page.split_once("\r\n\r\n").unwrap();
    let overlay = lab.hot.display();
    for line in [
        format!("steadfs_up{{overlay=\"{overlay}\"}} 1"),
        format!("steadfs_state{{overlay=\"{overlay}\",state=\"live\"}} 1"),
        format!("steadfs_written_bytes_total{{overlay=\"{overlay}\"}} 12"),
        format!("steadfs_calls_total{{overlay=\"{overlay}\",operation=\"create\",result=\"ok\"}} 1"),
    ] {
        assert!(text.contains(&line), "{line} is not in\n{text}");
    }
    check_exposition(text);
    assert!(http(&socket, "/healthz").starts_with("HTTP/1.1 200"));
    let textfile = || std::fs::read_dir(&directory).unwrap().flatten().next().map(|entry| entry.path());
    wait("the textfile", || textfile().is_some_and(|path| path.extension().is_some_and(|end| end == "prom")));
    lab.sshd.stop();
    wait("the outage shows", || http(&socket, "/healthz").starts_with("HTTP/1.1 503"));
    wait("in the textfile too", || {
        std::fs::read_to_string(textfile().unwrap())
            .is_ok_and(|text| text.contains(&format!("steadfs_up{{overlay=\"{overlay}\"}} 0")))
    });
    let pid = daemon(&lab);
    run("umount", &[lab.hot.to_str().unwrap()]);
    assert_gone(&lab, pid);
    assert!(!socket.exists() && textfile().is_none());
}

/// The rules that `promtool check metrics` has: help for every family, counters end in `_total`, base units.
fn check_exposition(text: &str) {
    let mut families = std::collections::BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        assert!(families.insert(name), "{name} twice");
        assert!(text.contains(&format!("# HELP {name} ")), "{name} has no help");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
        for unit in ["_milliseconds", "_ms", "_kib", "_mib", "_minutes"] {
            assert!(!name.contains(unit), "{name} is not in base units");
        }
    }
    assert!(families.len() > 25);
    for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        let name = line.split(['{', ' ']).next().unwrap();
        let base = name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count");
        assert!(families.contains(name) || families.contains(base), "{line}");
    }
    // promtool itself, where it is installed.
    if let Ok(mut promtool) = Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).spawn() {
        promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(promtool.wait().unwrap().success());
    }
}
