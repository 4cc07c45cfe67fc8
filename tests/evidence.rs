//! `steadfs evidence` and `steadfs triage` against real mounts, alive, frozen and dead; and bundles that are taken by themselves.

mod lab;

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::Signal;
use serde_json::Value;

use lab::parts::Part;
use lab::{Lab, process, wait};
use steadfs::config::{DaemonConfig, OverlayConfig, Source};
use steadfs::supervisor::{Event, Watch};
use steadfs::{evidence, rundir};

/// What a bundle may take, whatever hangs.
const LIMIT: Duration = Duration::from_secs(30);

fn evidence_of(lab: &Lab, tag: &str) -> (PathBuf, Output, Duration) {
    let begun = Instant::now();
    let mut command = lab.steadfs(&["evidence", lab.hot.to_str().expect("plain"), "--tag", tag]);
    let output = command.arg("--out").arg(lab.path("bundles")).output().expect("it runs");
    let took = begun.elapsed();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let last = said.lines().last().unwrap_or_default();
    let directory = last.strip_prefix("OK: evidence bundle complete: ").unwrap_or_else(|| panic!("{said}"));
    (directory.into(), output, took)
}

/// The text of the one file whose name begins so.
fn file(bundle: &Path, beginning: &str) -> String {
    let entries = std::fs::read_dir(bundle).expect("there").flatten();
    let found: Vec<PathBuf> =
        entries.filter(|e| e.file_name().to_string_lossy().starts_with(beginning)).map(|e| e.path()).collect();
    let [path] = found.as_slice() else { panic!("{beginning}: {found:?}") };
    std::fs::read_to_string(path).expect("text")
}

fn triage(lab: &Lab) -> (Option<i32>, Value) {
    let output = lab.steadfs(&["triage", "--json", lab.hot.to_str().expect("plain")]).output().expect("it runs");
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}")))
}

/// The most urgent finding.
fn first(verdicts: &Value) -> &str {
    verdicts[0]["findings"][0]["code"].as_str().unwrap_or_default()
}

#[test]
fn a_live_mount_and_a_dead_one_differ_in_their_bundles_and_their_verdicts() {
    let mut lab = Lab::new("SetEnv=LAB_WORD=HUNTER2");
    let (code, verdicts) = triage(&lab);
    assert_eq!((code, first(&verdicts)), (Some(0), "healthy"), "{verdicts:#}");
    // Who asks with other directories is not told that it is dead.
    let mut stranger = lab.steadfs(&["triage", "--json", lab.hot.to_str().expect("plain")]);
    let output = stranger.env("STEADFS_RUNTIME_DIR", lab.path("other")).output().expect("it runs");
    let verdicts = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!((output.status.code(), first(&verdicts)), (Some(2), "elsewhere"), "{verdicts:#}");
    let (live, _, took) = evidence_of(&lab, "live");
    assert!(took < LIMIT, "{took:?}");
    let mode = |path: &Path| path.metadata().expect("there").permissions().mode() & 0o777;
    assert_eq!((mode(&live), mode(&live.join("meta.txt"))), (0o700, 0o600));
    for entry in std::fs::read_dir(&live).expect("there").flatten() {
        let text = std::fs::read_to_string(entry.path()).expect("text");
        assert!(text.starts_with("$ "), "{}: {text}", entry.path().display());
        assert!(!text.contains("HUNTER2"), "{}: {text}", entry.path().display());
        let misspoken = ["invalid", "unrecognized", "unknown option", "Usage:", "usage:"];
        let first = text.lines().nth(1).unwrap_or_default();
        assert!(!misspoken.iter().any(|word| first.contains(word)), "{}: {text}", entry.path().display());
    }
    let status = file(&live, "status-");
    let answer: Value = serde_json::from_str(status.split_once('\n').expect("two lines").1).expect("JSON");
    assert_eq!((&answer["state"], &answer["generation"]), (&"live".into(), &1.into()));
    assert!(answer["events"].as_array().is_some_and(|events| !events.is_empty()));
    let pid = |name: &str| answer[name].as_u64().or(answer[name]["pid"].as_u64()).expect("a pid");
    let threads = file(&live, "threads-");
    for wanted in
        [format!("process {}", pid("pid")), format!("process {}", pid("keeper")), ": sshfs".into(), ": ssh".into()]
    {
        assert!(threads.contains(&wanted), "{wanted}: {threads}");
    }
    assert!(threads.contains("syscall ") && threads.contains("thread "), "{threads}");
    let generations = file(&live, "generations-");
    assert!(generations.contains("fuse.sshfs") && generations.contains("control.sock"), "{generations}");
    assert!(file(&live, "commands").contains("SetEnv=LAB_WORD=[redacted]"), "{}", file(&live, "commands"));
    assert!(file(&live, "descriptors-").contains("/dev/fuse"));
    assert!(file(&live, "mountinfo").contains(lab.hot.to_str().expect("plain")));
    assert!(!file(&live, "path-").contains("errno"), "{}", file(&live, "path-"));
    assert!(file(&live, "path-").contains("statfs: "), "{}", file(&live, "path-"));
    let connections = file(&live, "fuse-connections");
    assert!(connections.contains("waiting") || connections.contains("EXIT_CODE"), "{connections}");

    lab.kill_daemon();
    let (code, verdicts) = triage(&lab);
    assert_eq!((code, first(&verdicts)), (Some(1), "dead_overlay"), "{verdicts:#}");
    let (dead, _, took) = evidence_of(&lab, "dead");
    assert!(took < LIMIT, "{took:?}");
    assert!(file(&dead, "path-").contains("[errno 107]"), "{}", file(&dead, "path-"));
    let diff = |arguments: &[&OsStr]| {
        let output = lab.steadfs(&["evidence", "diff"]).args(arguments).output().expect("it runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let found: Value =
        serde_json::from_str(&diff(&[live.as_os_str(), dead.as_os_str(), OsStr::new("--json")])).expect("JSON");
    assert_eq!(found["a"]["errno_107_lines"], 0, "{found:#}");
    assert!(found["b"]["errno_107_lines"].as_u64() > Some(0), "{found:#}");
    assert!(found["a"]["fuse_mounts"].as_u64() > Some(0), "{found:#}");
    let text = diff(&[live.as_os_str(), dead.as_os_str()]);
    assert!(text.contains("errno 107 lines") && text.contains("+++ b/path-"), "{text}");

    let output = lab.steadfs(&["umount", lab.hot.to_str().expect("plain")]).output().expect("it runs");
    assert!(output.status.success(), "{output:?}");
    let (code, verdicts) = triage(&lab);
    assert_eq!((code, first(&verdicts)), (Some(1), "not_mounted_unguarded"), "{verdicts:#}");
    lab.assert_ended();
}

#[test]
fn a_bundle_ends_in_time_though_daemon_keeper_and_sshfs_are_frozen_and_calls_hang() {
    let lab = Lab::new("");
    let parts = lab.parts();
    let keeper = parts.signal(Part::Keeper, Signal::SIGSTOP).expect("a keeper");
    let [daemon] = parts.daemons()[..] else { panic!("one daemon: {:?}", parts.daemons()) };
    let sshfs = lab.clients("sshfs");
    process::stop(sshfs[0]);
    process::stop(daemon);
    let thaw = Thaw(vec![sshfs[0], daemon, keeper]);
    let mut stuck = std::process::Command::new("stat").arg("-f").arg(&lab.hot).spawn().expect("it runs");

    let (code, verdicts) = triage(&lab);
    assert_eq!((code, first(&verdicts)), (Some(1), "silent"), "{verdicts:#}");
    let (bundle, output, took) = evidence_of(&lab, "frozen");
    assert!(took < LIMIT, "{took:?}");
    let path = file(&bundle, "path-");
    assert!(path.contains("TIMED OUT") && path.ends_with("EXIT_CODE=124\n"), "{path}");
    assert!(path.contains("  statfs: ") || path.contains("  stat: "), "what it hangs at is told: {path}");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("did not end in time: path-"), "{said}");
    let threads = file(&bundle, "threads-");
    assert!(threads.contains(&format!("process {}", sshfs[0])) && threads.contains(" T (sshfs)"), "{threads}");
    assert!(file(&bundle, "status-").contains("EXIT_CODE="));
    assert!(stuck.try_wait().expect("ours").is_none(), "the mount was to hang");

    drop(thaw);
    wait("the call that hung is answered", || stuck.try_wait().expect("ours").is_some());
    lab.wait_state("live");
    lab.umount();
}

#[test]
fn a_call_that_cannot_be_killed_is_left_behind_and_the_bundle_says_so() {
    let lab = Lab::plain();
    // Read by sshfs and never answered: such a call waits in state D, and SIGKILL does not end it.
    // It is mounted before it is connected.
    lab::run_ok("stat", &["-f", lab.hot.to_str().expect("plain")]);
    lab.sshd.freeze_sftp();
    let thaw = Frozen(&lab);
    let (bundle, _, took) = evidence_of(&lab, "stuck");
    assert!(took < LIMIT, "{took:?}");
    let path = file(&bundle, "path-");
    assert!(path.contains("left behind") && path.ends_with("EXIT_CODE=124\n"), "{path}");
    let stuck: i32 =
        path.split("process ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok()).expect("a pid");
    assert!(process::exists(stuck), "it hangs on");
    let (code, verdicts) = triage(&lab);
    assert_eq!((code, first(&verdicts)), (Some(2), "not_ours"), "{verdicts:#}");
    drop(thaw);
    wait("it ends when what it hangs in does", || !process::exists(stuck) || process::is_zombie(stuck));
}

/// Its sessions go on whatever happens.
struct Frozen<'a>(&'a Lab);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.0.sshd.thaw_sftp();
    }
}

/// Thaws whatever happens.
struct Thaw(Vec<i32>);

impl Drop for Thaw {
    fn drop(&mut self) {
        self.0.iter().for_each(|&pid| process::signal(pid, Signal::SIGCONT));
    }
}

#[test]
fn a_bundle_is_not_written_to_a_mount_that_may_hang() {
    let lab = Lab::new("");
    let inside = lab.hot.join("bundles");
    let output = lab.steadfs(&["evidence", "--out", inside.to_str().expect("plain")]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--out"), "{output:?}");
    assert!(!lab.store.join("bundles").exists());
    lab.umount();
}

/// A daemon's configuration without a daemon; its runtime directory goes on drop.
struct Quiet {
    config: DaemonConfig,
    directory: tempfile::TempDir,
}

impl Quiet {
    fn new(keep: u32) -> Quiet {
        let directory = tempfile::tempdir().expect("a directory");
        let source = Source::Dir { path: directory.path().join("store") };
        let mut config = DaemonConfig::of_one(source, directory.path().join("hot"), OverlayConfig::default());
        config.evidence.dir = Some(directory.path().join("bundles"));
        config.evidence.keep = keep;
        config.evidence.manifest = Some(directory.path().join("manifest"));
        std::fs::write(directory.path().join("manifest"), "/cold /hot\n").expect("written");
        Quiet { config, directory }
    }

    /// Names of the bundles, oldest first.
    fn bundles(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path().join("bundles")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    fn follow(&self, watch: &Watch) -> evidence::Follower {
        evidence::follow_by(Path::new(env!("CARGO_BIN_EXE_steadfs")), &self.config, watch)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(rundir::of(&self.config.home));
    }
}

fn overdue() -> Event {
    Event::OutageOverdue { since: SystemTime::now(), reason: "probe_late".into() }
}

#[test]
fn outages_and_recoveries_leave_bundles_and_only_the_newest_are_kept() {
    let quiet = Quiet::new(2);
    let watch = Watch::default();
    let follower = quiet.follow(&watch);
    let told = evidence::Settings::read(&quiet.config.home);
    assert_eq!((told.evidence, told.overlays), (quiet.config.evidence.clone(), vec![quiet.config.home.clone()]));
    let complete = |tag: &str| quiet.bundles().iter().any(|name| name.contains(tag));
    watch.publish(overdue());
    wait("a bundle of the outage", || complete("-auto-outage"));
    // The second waits for the first.
    watch.publish(Event::Recovered { generation: 2, outage_secs: 9.0 });
    wait("a bundle of the recovery", || complete("-auto-recovery"));
    let outage = quiet.bundles().into_iter().find(|name| name.contains("outage")).expect("a name");
    assert!(file(&quiet.directory.path().join("bundles").join(&outage), "manifest").contains("/cold /hot"));
    watch.publish(overdue());
    wait("the oldest goes", || !quiet.bundles().contains(&outage) && quiet.bundles().len() == 2);
    drop(follower);
    assert_eq!(evidence::Settings::read(&quiet.config.home), evidence::Settings::default());
}

#[test]
fn nothing_is_taken_without_a_directory_and_a_daemon_that_ends_waits_for_no_bundle() {
    let mut quiet = Quiet::new(0);
    let watch = Watch::default();
    let follower = quiet.follow(&watch);
    watch.publish(overdue());
    wait("a bundle is begun", || !quiet.bundles().is_empty());
    let begun = Instant::now();
    drop(follower);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let bundles = quiet.bundles();
    quiet.config.evidence.dir = None;
    let follower = quiet.follow(&watch);
    watch.publish(overdue());
    drop(follower);
    assert_eq!(quiet.bundles(), bundles);
}
