//! Repairs that are held back, and those that somebody orders, with a real sshfs (promise P3).
#![allow(clippy::unwrap_used)]

mod lab;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use lab::{Lab, process, wait};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::Value;

lab::also_runs_as!(agent_process: lab::agents::main);

/// Live, with these options and quick deadlines.
fn mounted(options: impl FnOnce(&Lab) -> String) -> Lab {
    let mut lab = Lab::unmounted();
    let command = lab.mount_command("-f", &format!("deadline=1s,backoff_max=1s,{}", options(&lab)));
    lab.serve(command);
    lab.wait_state("live");
    lab
}

/// Holds the deploy lock of a laboratory.
fn deploy(lab: &Lab) -> Flock<File> {
    let lock = OpenOptions::new().create(true).append(true).open(lab.path("deploy.lock")).unwrap();
    Flock::lock(lock, FlockArg::LockExclusiveNonblock).unwrap()
}

fn with_lock(lab: &Lab) -> String {
    format!("deploy_lock={}", lab.path("deploy.lock").display())
}

/// `steadfs recover` with these switches: exit code and what it says.
fn recover(lab: &Lab, switches: &[&str]) -> (i32, String) {
    let mut command = lab.steadfs(&["recover", lab.hot.to_str().unwrap()]);
    let output = command.args(switches).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    (output.status.code().unwrap(), text)
}

fn events(lab: &Lab, name: &str) -> Vec<Value> {
    let all = lab.status()["events"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|event| event["event"] == name).collect()
}

fn why(lab: &Lab) -> String {
    lab.status()["why"].as_str().unwrap_or_default().to_owned()
}

/// A call on the overlay is answered at once with the errno of an outage.
fn fails_fast(lab: &Lab) {
    wait("the outage is overdue", || !events(lab, "outage_overdue").is_empty());
    let begun = Instant::now();
    let error = std::fs::read_dir(&lab.hot).and_then(|mut all| all.next().transpose()).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(Errno::ENOTCONN as i32));
    assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
}

#[test]
fn a_deploy_holds_a_repair_back_and_its_end_lets_it_go() {
    let lab = mounted(with_lock);
    let file = File::create_new(lab.hot.join("file")).unwrap();
    file.write_all_at(b"before", 0).unwrap();
    file.sync_all().unwrap();
    let lock = deploy(&lab);
    lab.signal("sshfs", Signal::SIGKILL);
    lab.wait_state("held");
    wait("it says by what", || why(&lab).contains("deploy_lock"));
    fails_fast(&lab);
    // What is dead is gone all the same.
    assert_eq!((lab.clients("sshfs"), lab.clients("ssh")), (vec![], vec![]));
    let path = lab.path("deploy.lock").display().to_string();
    let said = why(&lab);
    assert!(said.starts_with(&format!("held back by deploy_lock {path} (held for ")), "{said}");
    assert!(said.ends_with("): finish the deploy, or `steadfs recover --apply`"), "{said}");

    // A dry run tells the same and changes nothing.
    let (code, text) = recover(&lab, &[]);
    assert_eq!(code, 1, "{text}");
    for words in
        ["state  held for", &path, "go ahead in spite of deploy_lock", "start generation 2", "reopen 1 open files"]
    {
        assert!(text.contains(words), "{words} is missing:\n{text}");
    }
    let (code, text) = recover(&lab, &["--json"]);
    let plan: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &plan["result"], &plan["held"][0]["by"]), (1, &"to_do".into(), &"deploy_lock".into()));
    assert_eq!(plan["held"][0]["until"], Value::Null);
    assert_eq!((lab.state().as_str(), lab.generation()), ("held", 1));

    drop(lock);
    let released = Instant::now();
    lab.wait_state("live");
    assert!(released.elapsed() < Duration::from_secs(15), "{:?} after the lock", released.elapsed());
    file.write_all_at(b"after!", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(std::fs::read(lab.store.join("file")).unwrap(), b"after!");
    assert_eq!(events(&lab, "repair_held").len(), 1);
    assert_eq!(events(&lab, "repair_held")[0]["by"], "deploy_lock");
    assert_eq!(events(&lab, "repair_released")[0]["ordered"], false);
    assert_eq!(events(&lab, "repair_started")[0]["generation"], 2);
    assert_eq!(recover(&lab, &[]).0, 0, "there is nothing to do any more");
    drop(file);
    lab.umount();
}

#[test]
fn an_order_overrides_a_deploy_and_only_force_replaces_what_is_well() {
    let lab = mounted(with_lock);
    let file = File::create_new(lab.hot.join("file")).unwrap();
    let _lock = deploy(&lab);
    lab.signal("sshfs", Signal::SIGKILL);
    wait("it is held back", || why(&lab).contains("deploy_lock"));
    let (code, text) = recover(&lab, &["--apply", "--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["result"], &report["then"]["generation"]), (0, &"live".into(), &2.into()));
    assert_eq!(events(&lab, "repair_released")[0]["ordered"], true);
    file.write_all_at(b"x", 0).unwrap();

    let probed = lab.status()["last_probe"]["at"].clone();
    let (code, text) = recover(&lab, &["--apply"]);
    assert!(code == 0 && text.contains("generation 2 answered a probe"), "{code}: {text}");
    assert_ne!(lab.status()["last_probe"]["at"], probed);
    assert_eq!(lab.generation(), 2, "one that is well is left alone");

    let (code, text) = recover(&lab, &["--force"]);
    assert!(code == 1 && text.contains("abort generation 2") && text.contains("kill the process group"), "{text}");
    assert_eq!(lab.generation(), 2, "that was a dry run");
    let (code, text) = recover(&lab, &["--apply", "--force"]);
    assert!(code == 0 && text.contains("generation 3 is live"), "{code}: {text}");
    file.write_all_at(b"y", 0).unwrap();
    file.sync_all().unwrap();
    drop(file);

    // What cannot be done is said to have failed, and goes on by itself when it can be.
    lab.net.cut();
    lab.signal("sshfs", Signal::SIGKILL);
    wait("it is missed", || lab.state() != "live");
    let (code, text) = recover(&lab, &["--apply", "--wait", "2s"]);
    assert!(code == 1 && text.contains("not live after 2"), "{code}: {text}");
    lab.net.heal();
    lab.wait_state("live");
    lab.umount();
}

#[test]
fn limits_hold_repairs_back_and_outlive_the_daemon() {
    let options = |_: &Lab| "max_per_hour=2".to_owned();
    let mut lab = mounted(options);
    for generation in 2..4 {
        lab.signal("sshfs", Signal::SIGKILL);
        wait("the next generation serves", || lab.live() == Some(generation));
    }
    lab.signal("sshfs", Signal::SIGKILL);
    wait("the third is too many", || why(&lab).starts_with("held back by max_per_hour (2 within an hour)"));
    assert!(lab.status()["next_at"].as_str().is_some(), "{}", lab.status());
    lab::run_ok("umount", &[lab.hot.to_str().unwrap()]);
    wait("the daemon ends", || lab.family().iter().all(|&pid| process::is_zombie(pid) || !process::exists(pid)));

    // A mount is no repair; what died in it is, and the hour is not over.
    let again = lab.mount_command("-f", &format!("deadline=1s,{}", options(&lab)));
    lab.serve(again);
    lab.wait_state("live");
    lab.signal("sshfs", Signal::SIGKILL);
    wait("it is remembered", || why(&lab).contains("max_per_hour"));
    let (code, text) = recover(&lab, &["--apply"]);
    assert_eq!(code, 0, "{text}");
    // Three now, of which two are within the limit; a limit of a day would see all.
    let directory = std::fs::read_dir(lab.path("state")).unwrap().next().unwrap().unwrap().path();
    let written = || {
        let text = std::fs::read_to_string(directory.join("repairs.json")).unwrap_or_default();
        serde_json::from_str::<Value>(&text).unwrap_or_default()
    };
    // What the first daemon has left says the same of the second repair.
    wait("it is written down", || {
        let now = written();
        now["last"]["ok"] == true && now["started_total"] == 3
    });
    assert_eq!(written()["starts"].as_array().map(Vec::len), Some(3));
    std::fs::remove_dir_all(lab.path("state")).unwrap();
    lab.umount();
}

#[test]
fn a_daemon_that_is_killed_is_no_way_around_a_permit() {
    let lab = mounted(|lab| format!("enable_file={},min_age=2s", lab.path("enabled").display()));
    lab.signal("sshfs", Signal::SIGKILL);
    wait("nobody has enabled it", || why(&lab).contains("enable_file"));
    let daemon = lab.serving();
    process::signal(daemon, Signal::SIGKILL);
    wait("its successor is held back too", || {
        let status = lab.status();
        status["pid"].as_i64().is_some_and(|pid| pid != i64::from(daemon)) && status["state"] == "held"
    });
    wait("it says by what", || why(&lab).contains("enable_file"));
    File::create(lab.path("enabled")).unwrap();
    lab.wait_state("live");
    assert_eq!(lab.generation(), 2);
    lab.umount();
}

/// A plain sshfs that answers nobody; gone when it is dropped.
struct Dead {
    sshfs: std::process::Child,
    place: std::path::PathBuf,
}

impl Dead {
    fn mounted(lab: &Lab) -> Dead {
        let place = lab.path("dead");
        std::fs::create_dir(&place).unwrap();
        let mut command = std::process::Command::new("sshfs");
        command.args(["-f", "-o", &lab.sshd.client_options(), &lab.source()]).arg(&place);
        let sshfs = command.stdin(std::process::Stdio::null()).spawn().unwrap();
        wait("it is mounted", || lab::mount_of(&place).is_some());
        Dead { sshfs, place }
    }

    fn pid(&self) -> i32 {
        self.sshfs.id().cast_signed()
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        let _ = self.sshfs.kill();
        let _ = self.sshfs.wait();
        lab::run("umount", &["-l", self.place.to_str().unwrap()]);
    }
}

#[test]
fn a_deploy_lock_on_a_dead_filesystem_holds_nothing_up_but_the_start_and_not_for_ever() {
    let mut lab = Lab::unmounted();
    let dead = Dead::mounted(&lab);
    let lock = dead.place.join("deploy.lock");
    let options = format!("deadline=1s,deploy_lock={},deploy_lock_max_age=8s", lock.display());
    let command = lab.mount_command("-f", &options);
    lab.serve(command);
    lab.wait_state("live");
    process::signal(dead.pid(), Signal::SIGSTOP);
    let own: Vec<i32> = lab.clients("sshfs").into_iter().filter(|&pid| pid != dead.pid()).collect();
    assert_eq!(own.len(), 1, "{own:?}");
    process::signal(own[0], Signal::SIGKILL);
    wait("it says what does not answer", || why(&lab).contains("it cannot be probed: no answer within 2 s"));
    fails_fast(&lab);
    lab.wait_state("live");
    assert_eq!((lab.generation(), events(&lab, "repair_held").len()), (2, 1));
    drop(dead);
    lab.umount();
}
