//! A process that follows an outage on behalf of workers of all kinds, killed after each step: what it has paused is let go
//! by its successor, or by the binary that cleans up after it.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use steadfs::config::{HookCommand, Means, UnitBy, WorkerConfig, WorkerEntry};
use steadfs::supervisor::{Event, Watch};
use steadfs::worker::Worker;

use crate::lab::{PATIENCE, wait};

/// The process: pauses at once, and lets go when a file is there.
pub fn main() {
    let Some(place) = std::env::var_os("WORKER_PLACE").map(PathBuf::from) else { return };
    let successor = std::env::var_os("WORKER_SUCCESSOR").is_some();
    let config: WorkerConfig = serde_json::from_slice(&std::fs::read(place.join("config")).unwrap()).unwrap();
    let watch = Watch::default();
    let start = if successor { Worker::succeed } else { Worker::start };
    let worker = start(&config, &place.join("hot"), &watch).unwrap();
    let since = SystemTime::now();
    if !successor {
        watch.publish(Event::OutageOverdue { since, reason: "probe_late".into() });
        wait("the backing is steady", || place.join("steady").exists());
    }
    watch.publish(Event::Recovered { generation: 2, outage_secs: 1.0 });
    watch.publish(Event::Steady { generation: 2 });
    if successor {
        wait("everybody is let go", || worker.report().paused_since.is_none());
        worker.stop();
    } else {
        // Until it is killed.
        std::thread::sleep(PATIENCE);
    }
}

struct Place {
    directory: tempfile::TempDir,
    config: WorkerConfig,
    /// In a process group of their own: a shell and what it waits for.
    signalled: Child,
    frozen: Option<(Child, PathBuf)>,
}

/// Of the first hierarchy of version 2 that can be used.
fn cgroup() -> Option<PathBuf> {
    let name = format!("steadfs-killed-{}", std::process::id());
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].iter().find_map(|hierarchy| {
        let path = Path::new(hierarchy).join(&name);
        let made = Path::new(hierarchy).join("cgroup.controllers").exists() && std::fs::create_dir(&path).is_ok();
        made.then_some(path)
    })
}

fn sleeper() -> Child {
    let mut command = Command::new("sleep");
    command.arg("1000").stdin(Stdio::null()).stdout(Stdio::null()).process_group(0).spawn().unwrap()
}

fn program(path: &Path, script: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{script}\n")).unwrap();
    assert!(Command::new("chmod").arg("755").arg(path).status().unwrap().success());
}

impl Place {
    fn new() -> Place {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("bin")).unwrap();
        let (stopped, paused) = (path("stopped"), path("paused"));
        program(
            &path("bin/systemctl"),
            &format!(
                r#"for word in "$@"; do case $word in
                stop) : > {0};; start) rm -f {0};;
                show) [ -e {0} ] && echo ActiveState=inactive || echo ActiveState=active; exit;; esac; done"#,
                stopped.display()
            ),
        );
        program(
            &path("bin/engine"),
            &format!(
                r#"case "$*" in
                pause*) [ -e {0} ] && exit 1; : > {0};; unpause*) rm {0} || exit 1;;
                *status=running*) [ -e {0} ] || echo "{1} crawl";; *status=paused*) [ -e {0} ] && echo "{1} crawl";; esac; exit 0"#,
                paused.display(),
                "a".repeat(64)
            ),
        );
        let signalled = sleeper();
        std::fs::write(path("pid"), signalled.id().to_string()).unwrap();
        let frozen = cgroup().map(|group| {
            let child = sleeper();
            std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
            (child, group)
        });
        let shell = |word: &str| HookCommand {
            argv: vec!["sh".into(), "-c".into(), format!("echo {word} >> {}", path("trace").display())],
        };
        let mut all = vec![
            ("flag", Means::Flag { file: path("flag") }),
            ("command", Means::Command { pause: shell("pause"), resume: shell("resume") }),
            (
                "signal",
                Means::Signal { pid_file: path("pid"), pause: libc::SIGSTOP, resume: libc::SIGCONT, group: true },
            ),
            ("unit", Means::Unit { unit: "crawler.service".into(), by: UnitBy::Stop }),
        ];
        all.extend(frozen.as_ref().map(|(_, group)| ("cgroup", Means::Cgroup { path: group.clone() })));
        let engine = path("bin/engine").display().to_string();
        all.push(("container", Means::Container { engine, names: vec!["crawl".into()], label: None }));
        let entry =
            |(name, means): (&str, Means)| WorkerEntry { name: name.into(), means, timeout: None, steady: None };
        let config = WorkerConfig { workers: all.into_iter().map(entry).collect(), ..WorkerConfig::default() };
        std::fs::write(path("config"), serde_json::to_vec(&config).unwrap()).unwrap();
        Place { directory, config, signalled, frozen }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn with_environment(&self, mut command: Command) -> Command {
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.path("bin").display()));
        command.env("STEADFS_STATE_DIR", self.path("state")).env("STEADFS_RUNTIME_DIR", self.path("run"));
        command.env("WORKER_PLACE", self.directory.path()).stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn process(&self) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "worker_process", "--ignored", "--nocapture"]);
        self.with_environment(command)
    }

    /// What the note says of each worker: its name and how far it is.
    fn noted(&self) -> Option<Vec<(String, String)>> {
        let mut states = std::fs::read_dir(self.path("state")).ok()?.flatten();
        let note = states.find_map(|state| std::fs::read(state.path().join("paused.json")).ok())?;
        let note: serde_json::Value = serde_json::from_slice(&note).ok()?;
        let word = |held: &serde_json::Value, key: &str| held[key].as_str().unwrap_or_default().to_owned();
        Some(note["workers"].as_array()?.iter().map(|held| (word(held, "name"), word(held, "stage"))).collect())
    }

    /// Starts the process and kills it when the note says so.
    fn kill_when(&self, what: &str, steady: bool, come: impl Fn(&[(String, String)]) -> bool) {
        let mut process = self.process().spawn().unwrap();
        let paused = |noted: &[(String, String)]| {
            noted.len() == self.config.workers.len() && noted.iter().all(|(_, stage)| stage == "paused")
        };
        if steady {
            wait("everybody is paused", || self.noted().is_some_and(|noted| paused(&noted)));
            std::fs::write(self.path("steady"), "").unwrap();
        }
        // Looked at without a pause, so that as little as can be happens between the look and the death.
        let until = Instant::now() + PATIENCE;
        while !self.noted().map_or(steady, |noted| come(&noted)) {
            assert!(Instant::now() < until, "it never came about: {what}");
            std::thread::sleep(Duration::from_micros(200));
        }
        process.kill().unwrap();
        process.wait().unwrap();
        let _ = std::fs::remove_file(self.path("steady"));
    }

    fn everybody_goes_on(&self, of: &str) {
        let letter = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit(") ").next().unwrap().chars().next().unwrap()
        };
        wait("the process goes on", || letter(self.signalled.id()) != 'T');
        if let Some((_, group)) = &self.frozen {
            wait("the group is thawed", || {
                std::fs::read_to_string(group.join("cgroup.events")).unwrap().contains("frozen 0")
            });
        }
        for file in ["flag", "stopped", "paused"] {
            assert!(!self.path(file).exists(), "{of}: {file} is left");
        }
        let trace = std::fs::read_to_string(self.path("trace")).unwrap_or_default();
        assert!(trace.is_empty() || trace.ends_with("resume\n"), "{of}: {trace}");
        assert_eq!(self.noted(), None, "{of}: the note is left");
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some((child, group)) = &mut self.frozen {
            let _ = std::fs::write(group.join("cgroup.freeze"), "0");
            let _ = child.kill();
            let _ = child.wait();
            let until = Instant::now() + Duration::from_secs(5);
            while std::fs::remove_dir(&*group).is_err() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.signalled.kill();
        let _ = self.signalled.wait();
    }
}

#[test]
fn workers_of_every_kind_are_let_go_wherever_their_daemon_is_killed() {
    let place = Place::new();
    let all = place.config.workers.len();
    for (number, held) in (0..=all).chain(0..=all).enumerate() {
        let steady = number > all;
        let of = format!("killed with {held} of {all} held, {}", if steady { "letting go" } else { "pausing" });
        place.kill_when(&of, steady, |noted| if steady { noted.len() <= held } else { noted.len() >= held });
        if number % 2 == 0 {
            let mut umount = Command::new(env!("CARGO_BIN_EXE_steadfs"));
            umount.arg("umount").arg(place.path("hot"));
            // It says that nothing was mounted.
            let output = place.with_environment(umount).output().unwrap();
            let words = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.code() == Some(32) && !words.contains("still paused"), "{of}: {words}");
        } else {
            let mut successor = place.process();
            assert!(successor.env("WORKER_SUCCESSOR", "1").status().unwrap().success(), "{of}");
        }
        place.everybody_goes_on(&of);
    }
}
