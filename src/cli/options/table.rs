//! steadfs's own options, each defined once: parsing, help and suggestions are all made from this table.

use std::net::IpAddr;
use std::time::Duration;

use super::{Options, duration, size, value};
use crate::config::MetricsListen;

/// Heading in the help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// Promises P1 and P2.
    Calls,
    /// Promise P3.
    Repair,
    /// Promise P3: what holds repairs back.
    Permit,
    /// What the kernel sees.
    Mount,
    /// Promise P4.
    Log,
    /// Promise P7.
    Worker,
    /// Promise P8.
    Telemetry,
    /// Promise P6.
    Keeper,
}

/// All headings in the order of the help.
pub const GROUPS: [(Group, &str); 8] = [
    (Group::Calls, "Deadlines of calls"),
    (Group::Repair, "Probing and repair"),
    (Group::Permit, "Permits of repairs"),
    (Group::Mount, "The mount"),
    (Group::Log, "The write log"),
    (Group::Worker, "The worker"),
    (Group::Telemetry, "Metrics"),
    (Group::Keeper, "The keeper"),
];

/// How an option is written and what it does.
pub enum Kind {
    /// `NAME=DURATION` within the two limits.
    Duration(Duration, Duration, fn(&mut Options) -> &mut Duration),
    /// `NAME=SIZE` within the two limits.
    Size(u64, u64, fn(&mut Options) -> &mut u64),
    /// `NAME`, `noNAME`, `NAME=yes|no`.
    Switch(fn(&mut Options, bool)),
    /// `NAME`.
    Flag(fn(&mut Options)),
    /// `NAME=VALUE`.
    Value(&'static str, fn(&mut Options, &str) -> Result<(), String>),
}

/// One option.
pub struct Definition {
    /// Its name.
    pub name: &'static str,
    /// Its heading.
    pub group: Group,
    /// What it does.
    pub kind: Kind,
    /// The default of those that are neither durations nor sizes; empty for none.
    default: &'static str,
    /// What it is for, in a line or two.
    pub help: &'static str,
}

impl Definition {
    /// The option as it is written.
    pub fn syntax(&self) -> String {
        match self.kind {
            Kind::Duration(..) => format!("{}=DURATION", self.name),
            Kind::Size(..) => format!("{}=SIZE", self.name),
            Kind::Switch(_) => format!("{0}=yes|no, {0}, no{0}", self.name),
            Kind::Flag(_) => self.name.into(),
            Kind::Value(syntax, _) => format!("{}={syntax}", self.name),
        }
    }

    /// What holds when the option is not given; empty for nothing.
    pub fn default(&self) -> String {
        match self.kind {
            Kind::Duration(_, _, field) => duration::format(*field(&mut Options::default())),
            Kind::Size(_, _, field) => size::format(*field(&mut Options::default())),
            _ => self.default.into(),
        }
    }

    /// Takes the option with its value; the error is a whole sentence.
    pub fn apply(&self, options: &mut Options, given: Option<&str>) -> Result<(), String> {
        let name = self.name;
        let need = || given.ok_or_else(|| format!("option '{name}' needs a value: write {}", self.syntax()));
        let wrap = |error: String| format!("{name}={} {error}", given.unwrap_or_default());
        match self.kind {
            Kind::Duration(min, max, field) => {
                let parsed = duration::parse(need()?).map_err(wrap)?;
                if parsed < min || parsed > max {
                    let (min, max) = (duration::format(min), duration::format(max));
                    let default = self.default();
                    return Err(wrap(format!("is out of range: give {min} to {max} (the default is {default})")));
                }
                *field(options) = parsed;
            }
            Kind::Size(min, max, field) => {
                let parsed = size::parse(need()?).map_err(wrap)?;
                if parsed < min || parsed > max {
                    let (min, max, default) = (size::format(min), size::format(max), self.default());
                    return Err(wrap(format!("is out of range: give {min} to {max} (the default is {default})")));
                }
                *field(options) = parsed;
            }
            Kind::Switch(set) => set(options, given.map_or(Ok(true), value::yes_no).map_err(wrap)?),
            Kind::Flag(set) => match given {
                None => set(options),
                Some(_) => return Err(format!("option '{name}' takes no value: write {name}")),
            },
            Kind::Value(_, set) => set(options, need()?).map_err(wrap)?,
        }
        options.given.insert(name);
        Ok(())
    }
}

const MS100: Duration = Duration::from_millis(100);
const GATHER: Duration = Duration::from_millis(50);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86400);
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

macro_rules! options {
    ($($name:literal $group:ident $kind:expr, $default:literal, $help:literal;)*) => {
        /// All of steadfs's own options.
        pub static TABLE: &[Definition] = &[$(Definition {
            name: $name, group: Group::$group, kind: $kind, default: $default, help: $help,
        }),*];
    };
}

use Kind::{Flag, Switch, Value};

options! {
    "deadline" Calls Kind::Duration(MS100, HOUR, |o| &mut o.calls.deadline), "",
        "Limit of a call, and the age from which an outage fails calls at once.";
    "sync_deadline" Calls Kind::Duration(MS100, DAY, |o| &mut o.calls.sync_deadline), "",
        "Limit of fsync and close, and of reads and writes while bytes move. At least deadline.";
    "hold" Calls Kind::Duration(Duration::ZERO, DAY, |o| &mut o.calls.hold), "",
        "How much longer than deadline calls wait an outage out before they fail.";
    "errno" Calls Value("NAME", |o, v| value::errno(v).map(|e| o.calls.outage_errno = e)), "ENOTCONN",
        "What calls fail with in an outage: ENOTCONN, EIO, ETIMEDOUT, EAGAIN or EHOSTDOWN.";

    "probe_interval" Repair Kind::Duration(MS100, HOUR, |o| &mut o.repair.probe_interval), "",
        "Time between two probes of a backing that works.";
    "probe_deadline" Repair Kind::Duration(MS100, HOUR, |o| &mut o.repair.probe_deadline), "",
        "Silence after which an unanswered probe speaks against the backing.";
    "start_deadline" Repair Kind::Duration(SECOND, HOUR, |o| &mut o.repair.start_deadline), "",
        "Time that a new sshfs has to connect and to answer its first probe.";
    "backoff_min" Repair Kind::Duration(MS100, HOUR, |o| &mut o.repair.backoff_min), "",
        "First delay between two failed starts.";
    "backoff_max" Repair Kind::Duration(MS100, DAY, |o| &mut o.repair.backoff_max), "",
        "Longest delay between two failed starts. At least backoff_min.";
    "steady" Repair Kind::Duration(Duration::ZERO, DAY, |o| &mut o.repair.steady), "",
        "How long a backing must have worked before a recovery is announced to the worker.";
    "soft_start" Repair Switch(|o, on| o.soft_start = on), "yes",
        "Mount even while the server cannot be reached; with no, fail instead.";

    "deploy_lock" Permit Value("PATH", |o, v| value::path(v).map(|p| o.permit.deploy_lock = Some(p))), "",
        "Repair nothing while somebody holds a lock (flock(2)) on this file.";
    "deploy_lock_max_age" Permit Value("DURATION", |o, v| duration::parse(v).map(|d| o.permit.deploy_lock_max_age = Some(d))),
        "2h", "How long a lock counts that cannot be probed.";
    "enable_file" Permit Value("PATH", |o, v| value::path(v).map(|p| o.permit.enable_file = Some(p))), "",
        "Repair nothing while this file is not there.";
    "confirmations" Permit Value("NUMBER", |o, v| value::count(v).map(|n| o.permit.confirmations = n)), "1",
        "Looks that have to find the backing dead, confirm_interval apart, the verdict being the first.";
    "confirm_interval" Permit Kind::Duration(SECOND, DAY, |o| &mut o.permit.confirm_interval), "",
        "Time between two of them.";
    "min_age" Permit Kind::Duration(Duration::ZERO, DAY, |o| &mut o.permit.min_age), "",
        "How old an outage must be.";
    "cool_down" Permit Kind::Duration(Duration::ZERO, DAY, |o| &mut o.permit.cool_down), "",
        "Time between the starts of two repairs.";
    "max_per_hour" Permit Value("NUMBER", |o, v| value::count(v).map(|n| o.permit.max_per_hour = n)), "0",
        "Most repairs that may start within an hour. 0 for any number.";
    "max_per_day" Permit Value("NUMBER", |o, v| value::count(v).map(|n| o.permit.max_per_day = n)), "0",
        "Most repairs that may start within 24 hours. 0 for any number.";

    "ro" Mount Flag(|o| o.overlay.read_only = true), "",
        "Refuse every change.";
    "rw" Mount Flag(|o| o.overlay.read_only = false), "yes",
        "Allow changes.";
    "allow_other" Mount Flag(|o| o.overlay.allow_other = true), "yes for root",
        "Let other users in. Others than root need user_allow_other in /etc/fuse.conf.";
    "guard" Mount Switch(|o, on| o.overlay.guard = on), "yes for root",
        "Keep the directory below the mountpoint unwritable while nothing is mounted there.";
    "nonempty" Mount Flag(|o| o.nonempty = true), "",
        "Mount over a directory that is not empty.";
    "subtype" Mount Value("NAME", |o, v| value::subtype(v).map(|s| o.overlay.subtype = s)), "steadfs",
        "The filesystem type shown is fuse.NAME.";
    "fsname" Mount Value("NAME", |o, v| value::fsname(v).map(|s| o.overlay.fsname = Some(s))), "SOURCE",
        "The source shown in mount tables.";
    "attr_timeout" Mount Value("DURATION|exclusive", |o, v| value::fresh(v).map(|d| o.overlay.attr_timeout = d)), "20s",
        "How old attributes may be: what others change on the store is seen after that time at the latest. exclusive if \
         nobody else changes anything.";
    "entry_timeout" Mount Value("DURATION|exclusive", |o, v| value::fresh(v).map(|d| o.overlay.entry_timeout = Some(d))),
        "attr_timeout", "The same for names.";

    "log_size" Log Kind::Size(MIB, 4 * GIB, |o| &mut o.log.size), "",
        "How much of what was written and is not committed on the store yet is kept to be written again.";
    "gather" Log Kind::Duration(Duration::ZERO, GATHER, |o| &mut o.overlay.gather), "",
        "How long small appends may be held back to be sent together. 0 sends each by itself.";
    "spool_dir" Log Value("DIR", |o, v| value::spool(v).map(|d| o.log.spool_dir = Some(d))), "below the state directory",
        "Where it is saved if its file is no longer the one that was open. See steadfs spool.";
    "spool_size" Log Kind::Size(MIB, TIB, |o| &mut o.log.spool_size), "",
        "How large that directory may become. At least log_size.";

    "pause_file" Worker Value("PATH", |o, v| value::file_in_directory(v).map(|p| o.worker.pause_file = Some(p))), "",
        "A file that exists while the worker should pause.";
    "on_outage" Worker Value("COMMAND", |o, v| value::command(v).map(|c| o.worker.on_outage = Some(c))), "",
        "Run when an outage has outlived deadline. Words are split as by a shell, but no shell is run unless the \
         command starts with sh: (then the rest is its script).";
    "on_recovery" Worker Value("COMMAND", |o, v| value::command(v).map(|c| o.worker.on_recovery = Some(c))), "",
        "Run when the backing has been steady again. Written as on_outage.";
    "hook_timeout" Worker Kind::Duration(MS100, DAY, |o| &mut o.hook_timeout), "",
        "After this a command is killed.";

    "metrics" Telemetry Value("ADDR:PORT|unix:PATH", |o, v| value::listen(v).map(|l| o.telemetry.listen = Some(l))), "",
        "Serve /metrics, /healthz and a status page there.";
    "metrics_public" Telemetry Flag(|o| o.metrics_public = true), "",
        "Allow an address that is not loopback in metrics=.";
    "textfile" Telemetry Value("DIR", |o, v| value::directory(v).map(|d| o.telemetry.textfile = Some(d))), "",
        "Write metrics for node_exporter's textfile collector into this directory.";

    "keeper" Keeper Switch(|o, on| o.keeper.wanted = on), "yes",
        "Have a second process that starts the daemon again when it dies; with no, the mount ends with it.";
    "watchdog" Keeper Kind::Duration(Duration::ZERO, HOUR, |o| &mut o.keeper.watchdog), "",
        "Silence after which the daemon counts as hung, is killed and started again. 0 for never.";
    "keeper_deadline" Keeper Kind::Duration(SECOND, HOUR, |o| &mut o.keeper.deadline), "",
        "How long a daemon that cannot be started again keeps callers waiting before the mount is given up.";
}

/// The definition that `name` is written for, and the value that a `no` in front of it stands for.
pub fn find(name: &str) -> Option<(&'static Definition, Option<&'static str>)> {
    let named = |name: &str| TABLE.iter().find(|definition| definition.name == name);
    if let Some(definition) = named(name) {
        return Some((definition, None));
    }
    let positive = named(name.strip_prefix("no")?)?;
    matches!(positive.kind, Kind::Switch(_)).then_some((positive, Some("no")))
}

/// What options contradict each other. Runs after all of them were taken; the error is a whole sentence.
pub fn check(options: &mut Options) -> Result<(), String> {
    contradictions(options).into_iter().next().map_or(Ok(()), |(_, sentence)| Err(sentence))
}

/// All contradictions: for each the option that it is about, and a whole sentence. What is derived is set too.
pub fn contradictions(options: &mut Options) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    let mut note = |name, result: Result<(), String>| found.extend(result.err().map(|sentence| (name, sentence)));
    // Only what was asked for can contradict: a default gives way.
    let durations = duration::format;
    let calls =
        pair(options, "deadline", "sync_deadline", |o| (o.calls.deadline, &mut o.calls.sync_deadline), durations);
    note("sync_deadline", calls);
    let backoff =
        pair(options, "backoff_min", "backoff_max", |o| (o.repair.backoff_min, &mut o.repair.backoff_max), durations);
    note("backoff_max", backoff);
    note("spool_size", pair(options, "log_size", "spool_size", |o| (o.log.size, &mut o.log.spool_size), size::format));
    if let Some(MetricsListen::Tcp(addr)) = options.telemetry.listen {
        let loopback = match addr.ip() {
            IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
            ip => ip.is_loopback(),
        };
        if !loopback && !options.metrics_public {
            let sentence = format!(
                "metrics={addr} can be read by anybody who reaches it: give a loopback address, or add metrics_public"
            );
            note("metrics", Err(sentence));
        }
    }
    if options.overlay.guard && options.given.contains("guard") && !nix::unistd::geteuid().is_root() {
        note("guard", Err("option 'guard' needs root: remove it".into()));
    }
    options.worker.hook_timeout = Some(options.hook_timeout);
    found
}

fn pair<T: Copy + PartialOrd>(
    options: &mut Options,
    low: &'static str,
    high: &'static str,
    get: fn(&mut Options) -> (T, &mut T),
    format: fn(T) -> String,
) -> Result<(), String> {
    let (low_given, high_given) = (options.given.contains(low), options.given.contains(high));
    let (low_value, high_value) = get(options);
    if *high_value >= low_value {
        return Ok(());
    }
    if low_given && !high_given {
        *high_value = low_value;
        return Ok(());
    }
    let (low_text, high_text) = (format(low_value), format(*high_value));
    let which = if low_given { "" } else { " (the default)" };
    Err(format!(
        "{high}={high_text} is less than {low}={low_text}{which}: give {high}={low_text} or more, or less for {low}"
    ))
}
