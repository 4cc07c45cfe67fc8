//! The field case: an archive of crawls on a storage box, six hot paths from the manifest that its bind mounts were made from, and
//! a day of what went wrong there. No crawl dies, nothing lands on the local disk, the worker is paused and let go at the right
//! moments, the alerts that should fire do and no others, and nobody does anything.
//!
//! Minutes of the day are as short as they can be: in an outage one passes in a second, in quiet hours they are not waited for.
#![allow(clippy::unwrap_used)]

#[path = "../lab/mod.rs"]
mod lab;
mod record;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::container::Container;
use lab::{Lab, mount_of, process, run, run_ok, wait};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use record::Recorder;

lab::also_runs_as!(agent_process: lab::agents::main);

/// Sources and their jobs.
const JOBS: [&str; 6] = ["hc/2024", "hc/2025", "phac/2024", "phac/2025", "cihr/2025", "cihr/2026"];
/// The archive's user, and its group, in which the replay service is.
const OWNER: (u32, u32) = (4711, 4712);
/// The replay service's user; somebody else.
const REPLAY: u32 = 4713;
const STRANGER: u32 = 4799;
/// Minutes of the outage in the afternoon.
const CUT: usize = 20;

/// The archive.
struct Field {
    lab: Lab,
    metrics: u16,
    recorder: Recorder,
    container: Option<Container>,
    crawls: BTreeMap<&'static str, Child>,
    replay: Option<Child>,
    worker: Option<Child>,
}

impl Field {
    fn new() -> Field {
        let lab = Lab::unmounted();
        // Those who are not root have to get to it.
        std::fs::set_permissions(lab.directory(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut manifest = String::from("# cold path  hot path\n\n");
        for job in JOBS {
            std::fs::create_dir_all(lab.store.join("archive").join(job)).unwrap();
            std::fs::create_dir_all(lab.hot.join(job)).unwrap();
            let (cold, hot) = (lab.path("storagebox").join(job), lab.hot.join(job));
            manifest += &format!("{}\t{}  rw # a job\n", cold.display(), hot.display());
        }
        std::fs::write(lab.path("warc-tiering.binds"), manifest).unwrap();
        for directory in ["textfiles", "ops", "evidence", "reports"] {
            std::fs::create_dir(lab.path(directory)).unwrap();
        }
        std::fs::write(lab.path("enabled"), "").unwrap();
        // Left behind by a deploy that never ended in order: nobody holds it.
        std::fs::write(lab.path("deploy.lock"), "pid 1\n").unwrap();
        let field = Field {
            lab,
            metrics,
            recorder: Recorder::default(),
            container: None,
            crawls: BTreeMap::new(),
            replay: None,
            worker: None,
        };
        std::fs::write(field.lab.path("field.toml"), field.config()).unwrap();
        field
    }

    fn config(&self) -> String {
        let at = |name: &str| self.lab.path(name).display().to_string();
        let options = self.lab.sshd.client_options();
        let handed_on: String = options
            .split(',')
            .map(|option| option.split_once('=').unwrap())
            .map(|(name, value)| match name {
                "IdentityFile" => "IdentityFile = \"${STORAGEBOX_IDENTITY}\"\n".into(),
                _ => format!("{name} = {value:?}\n"),
            })
            .collect();
        format!(
            r#"name = "field"
source = "${{STORAGEBOX_USER}}@${{STORAGEBOX_HOST}}:${{STORAGEBOX_REMOTE_PATH}}"
manifest = "{binds}"
manifest_root = "{cold}"
[sshfs]
{handed_on}
[calls]
hold = "45m"
[repair]
backoff_max = "2s"
steady = "1s"
deploy_lock = "{lock}"
enable_file = "{enabled}"
[telemetry]
metrics = "127.0.0.1:{port}"
textfile = "{textfiles}"
journal = "{journal}"
compat = "healtharchive"
compat_state = "{state}"
[evidence]
dir = "{evidence}"
[defaults]
subtype = "sshfs"
statfs = "local"
owner = "${{STORAGEBOX_UID}}:${{STORAGEBOX_GID}}"
umask = "0027"
[[worker]]
name = "crawl-worker"
kind = "signal"
pid_file = "{pid}"
[[worker]]
name = "trace"
kind = "command"
pause = "sh:echo paused >> {trace}"
resume = "sh:echo resumed >> {trace}"
[[after_recovery]]
name = "jobs"
command = "sh:echo jobs >> {trace}"
"#,
            binds = at("warc-tiering.binds"),
            cold = at("storagebox"),
            lock = at("deploy.lock"),
            enabled = at("enabled"),
            port = self.metrics,
            textfiles = at("textfiles"),
            journal = at("ops/events.jsonl"),
            state = at("ops/auto-recover.json"),
            evidence = at("evidence"),
            pid = at("worker.pid"),
            trace = at("trace"),
        )
    }

    fn steadfs(&self, words: &[&str]) -> Command {
        let mut command = self.lab.steadfs(words);
        let identity = self.lab.sshd.client_options();
        let identity = identity.split(',').find_map(|option| option.strip_prefix("IdentityFile=")).unwrap();
        command
            .env("STORAGEBOX_USER", "root")
            .env("STORAGEBOX_HOST", &self.lab.net.server)
            .env("STORAGEBOX_REMOTE_PATH", self.lab.store.join("archive"))
            .env("STORAGEBOX_IDENTITY", identity)
            .env("STORAGEBOX_UID", OWNER.0.to_string())
            .env("STORAGEBOX_GID", OWNER.1.to_string());
        command
    }

    /// The machine comes up: steadfs does.
    fn boot(&mut self) {
        let path = self.lab.path("field.toml");
        let command = self.steadfs(&["run", "-f", path.to_str().unwrap()]);
        self.lab.start(command);
        wait("all hot paths are mounted", || JOBS.iter().all(|job| mount_of(&self.hot(job)).is_some()));
    }

    fn hot(&self, job: &str) -> PathBuf {
        self.lab.hot.join(job)
    }

    fn status(&self) -> serde_json::Value {
        let output = self.steadfs(&["status", "--json", "@field"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn generation(&self) -> u64 {
        self.status()["generation"].as_u64().unwrap_or(0)
    }

    /// Whatever has just been done to the generation of that number is over.
    fn wait_for_repair(&self, generation: u64) {
        wait("another generation lives", || {
            let status = self.status();
            status["state"] == "live" && status["generation"].as_u64() > Some(generation)
        });
    }

    fn wait_live(&self) {
        wait("it is live", || self.status()["state"] == "live");
    }

    /// A service that takes jobs, and may be stopped and let go.
    fn start_worker(&mut self) {
        let script = "while :; do date +%s >> \"$0\"; sleep 0.1; done";
        let child = Command::new("sh").args(["-c", script]).arg(self.lab.path("ticks")).spawn().unwrap();
        std::fs::write(self.lab.path("worker.pid"), child.id().to_string()).unwrap();
        self.worker = Some(child);
    }

    fn worker_is_stopped(&self) -> bool {
        let pid = self.worker.as_ref().unwrap().id();
        std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap().contains(") T ")
    }

    fn trace(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.lab.path("trace")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Crawls in a container that was made now, and sees no mount that is made later.
    fn start_crawls(&mut self) {
        let container = Container::new();
        let before: usize = JOBS.iter().map(|job| self.told(job, "begun").len()).sum();
        for job in JOBS {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field_case/crawl.py");
            let (hot, report) = (self.hot(job), self.report(job));
            let words = ["/usr/bin/python3", script.to_str().unwrap(), hot.to_str().unwrap(), report.to_str().unwrap()];
            let said = File::create(report.with_extension("err")).unwrap();
            self.crawls.insert(job, container.command(&words).stderr(said).spawn().unwrap());
        }
        self.container = Some(container);
        let begun = || JOBS.iter().map(|job| self.told(job, "begun").len()).sum::<usize>();
        wait("every crawl has begun", || begun() == before + JOBS.len());
    }

    fn report(&self, job: &str) -> PathBuf {
        self.lab.path("reports").join(job.replace('/', "-"))
    }

    fn told(&self, job: &str, event: &str) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.report(job)).unwrap_or_default();
        let all = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        all.filter(|line| line["event"] == event).collect()
    }

    fn start_replay(&mut self) {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field_case/replay.py");
        let report = self.lab.path("replay");
        File::create(&report).unwrap();
        std::fs::set_permissions(&report, std::fs::Permissions::from_mode(0o666)).unwrap();
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={REPLAY}"), &format!("--regid={}", OWNER.1), "--clear-groups"]);
        command
            .args(["--inh-caps=-all", "--bounding-set=-all", "/usr/bin/python3"])
            .arg(script)
            .arg(&self.lab.hot)
            .arg(report);
        self.replay = Some(command.stdin(Stdio::null()).spawn().unwrap());
    }

    /// The metrics of the watchdog that was there before.
    fn compat(&self) -> String {
        let path = self.lab.path("textfiles/healtharchive_storage_hotpath_auto_recover.prom");
        std::fs::read_to_string(path).unwrap_or_default()
    }

    /// The next minute of the day.
    fn minute(&mut self) {
        let pages = [page(self.metrics), self.compat()];
        self.recorder.minute(&pages);
    }

    /// Quiet hours, after a minute in which all is well again.
    fn quiet(&mut self, minutes: usize) {
        self.wait_live();
        wait("it is steady", || self.status()["worker"]["paused_since"].is_null());
        // Written at events and every 20 s.
        wait("the other watchdog's metrics tell of no target", || {
            let text = self.compat();
            text.lines().any(|line| line == "healtharchive_storage_hotpath_auto_recover_detected_targets 0")
        });
        self.minute();
        self.recorder.quiet(minutes);
    }

    /// Nothing but mounts and empty directories is below the hot paths on the local disk.
    fn local_disk_is_clean(&self) {
        let look = self.lab.path("below");
        std::fs::create_dir_all(&look).unwrap();
        // A bind mount without what is mounted on it shows what lies under the mounts.
        run_ok("mount", &["--bind", self.lab.directory().to_str().unwrap(), look.to_str().unwrap()]);
        let found = run("find", &[look.join("hot").to_str().unwrap(), "-type", "f"]);
        run_ok("umount", &[look.to_str().unwrap()]);
        assert_eq!(String::from_utf8_lossy(&found.stdout), "", "this lies on the local disk");
    }

    /// The crawls are asked to end, and have lost nothing.
    fn end_crawls(&mut self) {
        for (job, crawl) in &mut self.crawls {
            // The command is nsenter, which has become the crawl.
            process::signal(crawl.id().cast_signed(), Signal::SIGTERM);
            let said =
                || std::fs::read_to_string(self.lab.path("reports").join(job.replace('/', "-")).with_extension("err"));
            let until = Instant::now() + Duration::from_secs(60);
            let status = loop {
                match crawl.try_wait().unwrap() {
                    Some(status) => break status,
                    None if Instant::now() > until => panic!("{job} does not end"),
                    None => std::thread::sleep(Duration::from_millis(20)),
                }
            };
            assert!(status.success(), "the crawl of {job} died: {status}: {}", said().unwrap());
        }
        self.crawls.clear();
        self.container = None;
    }

    /// Whoever waits in a dead link cannot be killed before what it waits for.
    fn kill_clients(&self) {
        for name in ["sshfs", "ssh"] {
            self.lab.clients(name).into_iter().for_each(|pid| process::signal(pid, Signal::SIGKILL));
        }
    }

    /// The machine goes down without a word.
    fn power_off(&mut self) {
        for crawl in self.crawls.values_mut() {
            crawl.kill().unwrap();
        }
        self.replay.iter_mut().for_each(|replay| replay.kill().unwrap());
        self.replay.take().unwrap().wait().unwrap();
        self.worker.iter_mut().for_each(|worker| worker.kill().unwrap());
        self.worker.take().unwrap().wait().unwrap();
        let daemon = i32::try_from(self.status()["pid"].as_i64().unwrap()).unwrap();
        self.kill_clients();
        process::kill_both(daemon);
        self.kill_clients();
        let keeper = self.lab.parts();
        wait("all of it is dead", || keeper.daemons().is_empty() && keeper.keepers().is_empty());
        for (_, mut crawl) in std::mem::take(&mut self.crawls) {
            crawl.wait().unwrap();
        }
        self.container = None;
        for job in JOBS {
            while mount_of(&self.hot(job)).is_some() {
                run_ok("umount", &["-l", self.hot(job).to_str().unwrap()]);
            }
        }
        for mount in lab::sweep::mounts_below(self.lab.directory()) {
            run("umount", &["-l", &mount]);
        }
        std::fs::remove_dir_all(self.lab.path("run")).unwrap();
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let parts = self.lab.parts();
            [parts.keepers(), parts.daemons()]
                .concat()
                .into_iter()
                .for_each(|pid| process::signal(pid, Signal::SIGKILL));
            self.kill_clients();
        }
        let children = self.crawls.values_mut().chain(self.replay.as_mut()).chain(self.worker.as_mut());
        children.for_each(|child| {
            let _ = child.kill();
            let _ = child.wait();
        });
        for job in JOBS {
            for path in [self.hot(job), self.lab.store.join("archive").join(job)] {
                let _ = Command::new("chattr").args(["-i"]).arg(path).output();
            }
        }
    }
}

/// The page of metrics.
fn page(port: u16) -> String {
    use std::io::Write;
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text.split_once("\r\n\r\n").unwrap().1.to_owned()
}

#[test]
fn a_day_of_the_field_case_needs_nobody() {
    let mut field = Field::new();
    field.boot();
    field.wait_live();
    field.start_worker();
    field.start_crawls();
    field.start_replay();
    for job in JOBS {
        let hot = field.hot(job);
        let found = run("findmnt", &["-n", "-o", "FSTYPE,TARGET", "-T", hot.to_str().unwrap()]);
        let found = String::from_utf8(found.stdout).unwrap();
        assert_eq!(found.split_whitespace().collect::<Vec<_>>(), ["fuse.sshfs", hot.to_str().unwrap()]);
    }
    assert_eq!(field.lab.clients("ssh").len(), 1, "one connection for all hot paths");
    let stranger = Command::new("setpriv")
        .args([&format!("--reuid={STRANGER}"), &format!("--regid={STRANGER}"), "--clear-groups", "--", "ls"])
        .arg(field.hot(JOBS[0]))
        .output()
        .unwrap();
    assert!(!stranger.status.success(), "somebody else looks into a job: {stranger:?}");
    field.minute();
    field.quiet(6 * 60 + 20);

    // 06:25: sshfs is killed. The deploy lock lies there and nobody holds it: it does not count.
    let generation = field.generation();
    field.lab.signal("sshfs", Signal::SIGKILL);
    field.minute();
    field.wait_for_repair(generation);
    field.quiet(60);
    assert_eq!(field.trace(), Vec::<String>::new(), "nobody was paused for a blip");

    // A reconnect storm: the server lets the session go again and again.
    for _ in 0..4 {
        let generation = field.generation();
        wait("the session is there", || field.lab.sshd.sessions() > 0);
        field.lab.sshd.kill_sessions();
        field.wait_for_repair(generation);
        field.minute();
    }
    field.quiet(60);

    // A deploy is under way, really, when sshfs dies: the repair waits for its end.
    let lock = File::open(field.lab.path("deploy.lock")).unwrap();
    let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| errno).unwrap();
    field.lab.signal("sshfs", Signal::SIGKILL);
    let generation = field.generation();
    wait("the deploy holds the repair back", || field.status()["state"] == "held");
    field.minute();
    drop(lock);
    field.wait_for_repair(generation);
    field.quiet(60);

    // A hot path is not writable for a while: one crawl's own trouble, and no outage.
    let outages = field.status()["outages_total"].clone();
    let closed = field.lab.store.join("archive").join(JOBS[0]);
    run_ok("chattr", &["+i", closed.to_str().unwrap()]);
    wait("the store says no", || !field.told(JOBS[0], "error").is_empty());
    field.minute();
    run_ok("chattr", &["-i", closed.to_str().unwrap()]);
    assert_eq!(field.status()["outages_total"], outages, "a server that refuses is not away");
    field.quiet(60);

    // The daemon is replaced.
    let output = field.steadfs(&["upgrade", "@field"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    field.quiet(60);
    let before = field.trace();

    // The link is cut for twenty minutes.
    let cut_at = field.recorder.len();
    field.lab.net.cut();
    for minute in 0..CUT {
        lab::sleep_secs(1.0);
        field.minute();
        if minute == CUT - 1 {
            assert!(field.worker_is_stopped(), "the worker is not paused: {}", field.status());
            let listed = Command::new("timeout").args(["5", "df"]).arg(field.hot(JOBS[1])).output().unwrap();
            assert!(listed.status.success(), "df: {listed:?}");
        }
    }
    field.lab.net.heal();
    let healed_at = field.recorder.len();
    field.quiet(180);
    assert!(!field.worker_is_stopped(), "the worker is not let go");
    wait("hooks have run", || field.trace().last().is_some_and(|last| last == "jobs"));
    assert_eq!(field.trace()[before.len()..], ["paused", "resumed", "jobs"]);

    // Power fails, and the machine comes up before the network: whoever writes too early must not fill the local disk.
    let closed_before: BTreeMap<&str, usize> = JOBS.iter().map(|job| (*job, field.told(job, "closed").len())).collect();
    field.lab.net.cut();
    let orphans = field.lab.sshd.servers();
    field.power_off();
    let early = std::fs::write(field.hot(JOBS[2]).join("too-early"), "50 GB");
    assert!(early.is_err(), "a job that starts too early writes to the local disk");
    field.boot();
    field.start_worker();
    let boot_at = field.recorder.len();
    field.minute();
    field.lab.net.heal();
    field.wait_live();
    // Of a machine that loses its power a server hears nothing: it would take minutes to give its sessions up by itself.
    let left = field.lab.sshd.servers().into_iter().filter(|pid| orphans.contains(pid));
    left.for_each(|pid| process::signal(pid, Signal::SIGKILL));
    field.start_crawls();
    field.start_replay();
    field.quiet(543);

    // Midnight.
    lab::sleep_secs(1.0);
    field.local_disk_is_clean();
    field.end_crawls();
    let mut replay = field.replay.take().unwrap();
    process::signal(replay.id().cast_signed(), Signal::SIGTERM);
    assert!(replay.wait().unwrap().success());
    check_replay(&std::fs::read_to_string(field.lab.path("replay")).unwrap());
    let bytes = check_archive(&field);
    let errors: Vec<_> = JOBS.iter().flat_map(|job| field.told(job, "error")).collect();
    let refused = |error: &serde_json::Value| [1, 13].contains(&error["errno"].as_i64().unwrap_or(0));
    assert!(errors.iter().all(refused), "only the store's own no was seen: {errors:?}");
    assert!(closed_before.values().all(|count| *count > 0), "{closed_before:?}");

    let monitoring = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/monitoring");
    let theirs = field.lab.path("healtharchive.yml");
    std::fs::write(&theirs, THEIR_RULES).unwrap();
    let fired = field.recorder.alerts(&[monitoring.join("alerts.yml"), theirs], field.lab.directory());
    println!(
        "== a day of {} minutes, cut at {cut_at}, healed at {healed_at}, booted at {boot_at}: {bytes} bytes of WARCs, {} calls refused by the store; alerts: {:?}",
        field.recorder.len(),
        errors.len(),
        fired.iter().map(|(name, at)| (name, at.first(), at.last())).collect::<Vec<_>>()
    );
    for wanted in ["SteadfsOutage", "SteadfsOutageOverdue", "HealthArchiveStorageHotpathStale"] {
        let at = fired.get(wanted).unwrap_or_else(|| panic!("{wanted} did not fire: {fired:?}"));
        assert!(at.iter().all(|minute| (cut_at..=healed_at + 2).contains(minute)), "{wanted}: {at:?}");
        assert!(at.last().unwrap() <= &(healed_at + 2), "{wanted} goes on after the outage: {at:?}");
    }
    let others: Vec<_> = fired
        .keys()
        .filter(|name| {
            !["SteadfsOutage", "SteadfsOutageOverdue", "HealthArchiveStorageHotpathStale"].contains(&name.as_str())
        })
        .collect();
    assert!(others.is_empty(), "these should not have fired: {others:?} of {fired:?}");

    let bundles = std::fs::read_dir(field.lab.path("evidence")).unwrap().count();
    assert!(bundles >= 2, "evidence was taken by itself: {bundles}");
    let output = field.steadfs(&["umount", "field"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut worker = field.worker.take().unwrap();
    worker.kill().unwrap();
    worker.wait().unwrap();
    field.lab.assert_ended();
}

/// The alerts that the archive had before, on the metrics of its old watchdog.
const THEIR_RULES: &str = r#"groups:
  - name: healtharchive
    rules:
      - alert: HealthArchiveStorageHotpathStale
        expr: healtharchive_storage_hotpath_auto_recover_detected_targets > 0
        for: 10m
      - alert: HealthArchiveStorageHotpathApplyFailed
        expr: healtharchive_storage_hotpath_auto_recover_last_apply_ok == 0 and healtharchive_storage_hotpath_auto_recover_last_apply_timestamp_seconds > 0 and (time() - healtharchive_storage_hotpath_auto_recover_last_apply_timestamp_seconds) > 86400
      - alert: HealthArchiveStorageHotpathWatchdogStale
        expr: time() - healtharchive_storage_hotpath_auto_recover_last_run_timestamp_seconds > 600
"#;

/// The replay service has seen no file go and no directory empty, and its group was never kept out.
fn check_replay(report: &str) {
    let lines: Vec<serde_json::Value> = report.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let wrong: Vec<_> = lines.iter().filter(|line| line["event"] != "ended").collect();
    assert!(wrong.is_empty(), "the replay service saw {wrong:?}");
    let ended = lines.iter().find(|line| line["event"] == "ended").unwrap();
    assert!(ended["looks"].as_u64() > Some(3) && ended["files"].as_u64() > Some(0), "{ended}");
}

/// Every WARC that was closed is on the store, whole; its two names are one file. Returns their bytes.
fn check_archive(field: &Field) -> u64 {
    let mut bytes = 0;
    for job in JOBS {
        assert!(field.told(job, "wrong").is_empty(), "{job}: {:?}", field.told(job, "wrong"));
        assert!(!field.told(job, "ended").is_empty(), "{job} did not end in order");
        for closed in field.told(job, "closed") {
            let name = closed["name"].as_str().unwrap();
            let stored = field.lab.store.join("archive").join(job).join("warcs").join(name);
            assert_eq!(stored.metadata().unwrap().len(), closed["size"].as_u64().unwrap(), "{}", stored.display());
            let sum = run("sha256sum", &[stored.to_str().unwrap()]);
            assert!(
                sum.stdout.starts_with(closed["sha256"].as_str().unwrap().as_bytes()),
                "{} differs",
                stored.display()
            );
            bytes += closed["size"].as_u64().unwrap();
        }
    }
    bytes
}
