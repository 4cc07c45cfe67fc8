//! What goes into a bundle: a list of commands, each with the name of its file and its own time limit. Pure.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use super::bundle::plain;
use super::guard::SELF;
use super::settings::Settings;
use crate::{rundir, statedir};

/// How long a look may take.
const LOOK: Duration = Duration::from_secs(3);
/// How long a program may take that reads logs or asks the service manager.
const SLOW: Duration = Duration::from_secs(8);
/// Lines of a log that are asked for.
const LINES: &str = "3000";
/// Where HealthArchive has the state of its watchdog, its manifest and how names of its metrics files begin: of interest only
/// where steadfs stands in for that watchdog (`compat`).
const WATCHDOG: &str = "/srv/healtharchive/ops/watchdog/storage-hotpath-auto-recover.json";
const MANIFEST: &str = "/etc/healtharchive/warc-tiering.binds";
const ITS_METRICS: &str = "healtharchive_";
/// How names of ours begin.
const METRICS: &str = "steadfs";
/// Where node_exporter reads metrics that others write, where it does.
const TEXTFILES: [&str; 3] =
    ["/var/lib/node_exporter/textfile_collector", "/var/lib/prometheus/node-exporter", "/var/lib/node_exporter"];

/// One daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Target {
    /// What its directories are named after.
    pub home: PathBuf,
    /// What it wrote down of its configuration.
    pub settings: Settings,
    /// Its hot paths.
    pub hot: Vec<PathBuf>,
    /// Process ids of daemon and keeper, as far as they are known.
    pub pids: Vec<i32>,
}

/// What a bundle is about.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// The daemons.
    pub targets: Vec<Target>,
    /// Units besides those of the configuration.
    pub units: Vec<String>,
    /// A manifest besides those of the configuration.
    pub manifest: Option<PathBuf>,
    /// Logs from then on, in seconds since 1970.
    pub since: u64,
    /// The process that collects.
    pub collector: u32,
}

/// A command and where what it prints goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Name of the file.
    pub file: String,
    /// The command as people would type it.
    pub shown: String,
    /// The command.
    pub argv: Vec<OsString>,
    /// How long it may take.
    pub limit: Duration,
}

impl Probe {
    fn of(file: impl Into<String>, limit: Duration, argv: Vec<OsString>) -> Probe {
        let words =
            argv.iter().map(|word| if word == OsStr::new(SELF) { "steadfs".into() } else { word.to_string_lossy() });
        let shown = words.collect::<Vec<_>>().join(" ");
        Probe { file: file.into(), shown, argv, limit }
    }

    fn run(file: impl Into<String>, limit: Duration, words: &[&str]) -> Probe {
        Probe::of(file, limit, words.iter().map(OsString::from).collect())
    }
}

/// A look by this executable (see [`super::look`]).
fn look<S: AsRef<OsStr>>(
    scope: &Scope,
    file: impl Into<String>,
    kind: &str,
    about: impl IntoIterator<Item = S>,
) -> Probe {
    let without = format!("--without={}", scope.collector);
    let mut argv: Vec<OsString> = [SELF, "evidence", "look", kind, &without, "--"].map(OsString::from).to_vec();
    argv.extend(about.into_iter().map(|word| word.as_ref().to_owned()));
    Probe::of(file, LOOK, argv)
}

/// A name for what belongs to a home or path, for files.
fn short(home: &Path) -> String {
    let name: String = home.to_string_lossy().trim_start_matches('/').replace('/', "-");
    let plain = plain(&name);
    // The end of a long path tells more.
    plain[plain.len().saturating_sub(60)..].to_owned()
}

/// The status of each daemon, which has to be known before the rest: its pids are in it.
pub fn statuses(scope: &Scope) -> Vec<(PathBuf, Probe)> {
    let ask = |target: &Target| {
        let file = format!("status-{}.txt", short(&target.home));
        (target.home.clone(), look(scope, file, "status", [&target.home]))
    };
    scope.targets.iter().map(ask).collect()
}

/// Everything else, what is gone soonest first. Names of files are unique.
pub fn probes(scope: &Scope) -> Vec<Probe> {
    let mut all = Vec::new();
    for target in &scope.targets {
        let (name, runtime) = (short(&target.home), rundir::of(&target.home));
        let pids: Vec<String> = target.pids.iter().map(ToString::to_string).collect();
        all.push(look(scope, format!("threads-{name}.txt"), "threads", &pids));
        all.push(look(scope, format!("generations-{name}.txt"), "generations", [&runtime]));
        all.push(look(scope, format!("descriptors-{name}.txt"), "descriptors", &pids));
    }
    all.push(look(scope, "fuse-connections.txt", "connections", [""; 0]));
    all.push(look(scope, "processes.txt", "processes", [""; 0]));
    all.push(Probe::run("mountinfo.txt", LOOK, &["cat", "/proc/self/mountinfo"]));
    for target in &scope.targets {
        for hot in &target.hot {
            all.push(look(scope, format!("path-{}.txt", short(hot)), "path", [hot]));
        }
    }
    all.push(look(scope, "commands.txt", "commands", [""; 0]));
    all.push(Probe::run("ss.txt", LOOK, &["ss", "-tnpio"]));
    all.push(look(scope, "machine.txt", "machine", [""; 0]));
    logs(scope, &mut all);
    for target in &scope.targets {
        let (name, runtime) = (short(&target.home), rundir::of(&target.home));
        let Settings { spool_dir, journal, .. } = &target.settings;
        let state = [Some(statedir::of(&target.home)), spool_dir.clone()];
        all.push(look(scope, format!("state-{name}.txt"), "listing", state.into_iter().flatten()));
        let log = [Some(runtime.join("log.1")), Some(runtime.join("log")), journal.clone()];
        all.push(look(scope, format!("log-{name}.txt"), "files", log.into_iter().flatten()));
        // Another program's view of it: df hangs where it always has.
        for hot in &target.hot {
            let argv = ["df", "-hT", "--"].map(OsString::from).into_iter().chain([hot.clone().into()]);
            all.push(Probe::of(format!("df-{}.txt", short(hot)), LOOK, argv.collect()));
        }
    }
    all.push(Probe::run("mount.txt", LOOK, &["mount"]));
    let columns = "TARGET,SOURCE,FSTYPE,OPTIONS,PROPAGATION";
    all.push(Probe::run("findmnt.txt", LOOK, &["findmnt", "--list", "--output", columns]));
    all.push(Probe::run("df.txt", LOOK, &["df", "-lhT"]));
    all.push(Probe::run("ip-address.txt", LOOK, &["ip", "-s", "address"]));
    all.push(Probe::run("ip-route.txt", LOOK, &["ip", "route", "show", "table", "all"]));
    all.push(Probe::run("sshfs-version.txt", LOOK, &["sshfs", "-V"]));
    all.push(Probe::run("ssh-version.txt", LOOK, &["ssh", "-V"]));
    files(scope, &mut all);
    // Two paths may have the same short name.
    let mut seen = std::collections::BTreeSet::new();
    for (number, probe) in all.iter_mut().enumerate() {
        if !seen.insert(probe.file.clone()) {
            probe.file = format!("{}-{number}.txt", probe.file.trim_end_matches(".txt"));
        }
    }
    all
}

fn logs(scope: &Scope, all: &mut Vec<Probe>) {
    let since = format!("--since=@{}", scope.since);
    let of_config = scope.targets.iter().flat_map(|target| &target.settings.evidence.units);
    let mut units: Vec<&String> = of_config.chain(&scope.units).collect();
    units.sort();
    units.dedup();
    for unit in units {
        let name = plain(unit);
        // Never `show`: the environment is in it.
        let status = ["systemctl", "--no-pager", "--full", "--lines=20", "status", "--", unit];
        all.push(Probe::run(format!("unit-{name}.txt"), SLOW, &status));
        let unit = format!("--unit={unit}");
        let journal = ["journalctl", "--no-pager", "--output=short-iso-precise", "--lines", LINES, &since, &unit];
        all.push(Probe::run(format!("journal-{name}.txt"), SLOW, &journal));
    }
    for target in scope.targets.iter().filter(|target| !target.pids.is_empty()) {
        let name = short(&target.home);
        let pids = target.pids.iter().map(|pid| format!("_PID={pid}"));
        let journal = ["journalctl", "--no-pager", "--output=short-iso-precise", "--lines", LINES, &since];
        let argv = journal.into_iter().map(OsString::from).chain(pids.map(OsString::from));
        all.push(Probe::of(format!("journal-steadfs-{name}.txt"), SLOW, argv.collect()));
        // The unit that a process belongs to, whatever it is called.
        let pid = target.pids[0].to_string();
        let status = ["systemctl", "--no-pager", "--full", "--lines=0", "status", &pid];
        all.push(Probe::run(format!("unit-steadfs-{name}.txt"), SLOW, &status));
    }
    all.push(Probe::run("units-failed.txt", SLOW, &["systemctl", "--no-pager", "--failed"]));
    let since = humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(scope.since)).to_string();
    let since = format!("--since={}", since.replace('T', " ").trim_end_matches('Z'));
    all.push(Probe::run("dmesg.txt", SLOW, &["dmesg", "--time-format=iso", &since]));
}

fn files(scope: &Scope, all: &mut Vec<Probe>) {
    let settings = scope.targets.iter().map(|target| &target.settings);
    let mut watchdog: Vec<PathBuf> = settings.clone().filter_map(|settings| settings.compat_state.clone()).collect();
    let mut manifests: Vec<PathBuf> = settings.clone().filter_map(|s| s.evidence.manifest.clone()).collect();
    manifests.extend(scope.manifest.clone());
    let mut metrics: Vec<PathBuf> = vec![METRICS.into()];
    metrics.extend(settings.filter_map(|s| s.textfile.as_ref()?.parent().map(PathBuf::from)));
    metrics.extend(TEXTFILES.map(PathBuf::from));
    if !watchdog.is_empty() {
        watchdog.push(WATCHDOG.into());
        manifests.push(MANIFEST.into());
        metrics.push(ITS_METRICS.into());
    }
    for (file, kind, mut about) in
        [("watchdog.txt", "files", watchdog), ("manifest.txt", "files", manifests), ("metrics.txt", "metrics", metrics)]
    {
        let mut seen = std::collections::BTreeSet::new();
        about.retain(|path| seen.insert(path.clone()));
        if !about.is_empty() {
            all.push(look(scope, file, kind, about));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn scope() -> Scope {
        let target =
            |home: &str| Target { home: home.into(), hot: vec![home.into()], pids: vec![7, 8], ..Target::default() };
        let mut scope = Scope { targets: vec![target("/a/b"), target("/a-b")], since: 5, ..Scope::default() };
        scope.targets[0].settings.evidence.units = vec!["crawl.service".into()];
        scope.units = vec!["crawl.service".into(), "replay.service".into()];
        scope.manifest = Some("/m".into());
        scope
    }

    #[test]
    fn each_file_has_one_command_and_each_command_a_limit() {
        let all = probes(&scope());
        let names: BTreeSet<&str> = all.iter().map(|probe| probe.file.as_str()).collect();
        assert_eq!(names.len(), all.len());
        assert!(all.iter().all(|probe| !probe.limit.is_zero() && probe.limit <= SLOW && !probe.argv.is_empty()));
        for wanted in ["threads-a-b.txt", "unit-crawl.service.txt", "journal-replay.service.txt", "dmesg.txt", "ss.txt"]
        {
            assert!(names.contains(wanted), "{wanted}: {names:?}");
        }
        assert_eq!(all.iter().filter(|probe| probe.shown.contains("--unit=crawl.service")).count(), 1);
        assert!(all.iter().any(|probe| probe.file == "manifest.txt" && probe.shown.ends_with(" /m")));
    }

    #[test]
    fn paths_of_another_project_are_read_only_where_its_watchdog_is_stood_in_for() {
        let mut scope = scope();
        let theirs = |scope: &Scope| -> Vec<String> {
            let all = probes(scope).into_iter().filter(|probe| probe.shown.contains("healtharchive"));
            all.map(|probe| probe.file).collect()
        };
        assert_eq!(theirs(&scope), Vec::<String>::new());
        assert!(!probes(&scope).iter().any(|probe| probe.file == "watchdog.txt"));
        scope.targets[1].settings.compat_state = Some("/state.json".into());
        assert_eq!(theirs(&scope), ["watchdog.txt", "manifest.txt", "metrics.txt"]);
        let all = probes(&scope);
        let watchdog = all.iter().find(|probe| probe.file == "watchdog.txt").expect("there");
        assert!(watchdog.shown.contains(" /state.json "), "{}", watchdog.shown);
        // Who has no manifest has no file about one.
        assert!(!probes(&Scope::default()).iter().any(|probe| probe.file == "manifest.txt"));
    }

    #[test]
    fn every_probe_is_in_the_operators_guide() {
        let guide = include_str!("../../docs/operations.md");
        let mut scope = scope();
        scope.targets[0].settings.compat_state = Some("/state.json".into());
        // Names of files end with what they are about.
        let kinds =
            ["status", "threads", "generations", "descriptors", "path", "log", "state", "journal", "unit", "df"];
        for probe in statuses(&scope).into_iter().map(|(_, probe)| probe).chain(probes(&scope)) {
            let kind = kinds.iter().find(|kind| probe.file.starts_with(&format!("{kind}-")));
            let name = match kind {
                Some(kind) => format!("`{kind}-*.txt`"),
                None => format!("`{}`", probe.file),
            };
            assert!(guide.contains(&name), "{name} is not in docs/operations.md");
        }
        for path in TEXTFILES.iter().chain(&[WATCHDOG, MANIFEST]) {
            assert!(guide.contains(path), "{path} is not in docs/operations.md");
        }
    }

    #[test]
    fn nothing_reads_an_environment_or_a_key() {
        for probe in probes(&scope()) {
            let words: Vec<&str> = probe.shown.split(' ').collect();
            assert!(!words.contains(&"show") || words[0] == "ip", "{}", probe.shown);
            assert!(!probe.shown.contains("environ") && !probe.shown.contains("Identity"), "{}", probe.shown);
        }
    }
}
