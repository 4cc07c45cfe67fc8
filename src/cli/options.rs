//! `-o` options: fstab's syntax, steadfs's own from one table, sshfs's and ssh's handed on, anything else an error.

pub mod duration;
pub mod known;
pub mod size;
pub mod split;
pub mod table;
#[cfg(test)]
mod tests;
pub mod value;
pub mod words;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use crate::config::{
    CallPolicy, DaemonConfig, KeeperConfig, LogConfig, OverlayConfig, PermitConfig, RepairPolicy, TelemetryConfig,
    WorkerConfig,
};
use crate::plain::plain;
use known::Fate;

/// All that options say, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Deadlines.
    pub calls: CallPolicy,
    /// Supervision.
    pub repair: RepairPolicy,
    /// What holds repairs back.
    pub permit: PermitConfig,
    /// The overlay.
    pub overlay: OverlayConfig,
    /// The write log.
    pub log: LogConfig,
    /// The worker.
    pub worker: WorkerConfig,
    /// Metrics.
    pub telemetry: TelemetryConfig,
    /// The keeper.
    pub keeper: KeeperConfig,
    /// Mount although the server cannot be reached.
    pub soft_start: bool,
    /// Mount over a directory that is not empty.
    pub nonempty: bool,
    /// For sshfs, one `-o` value each, unescaped.
    pub sshfs: Vec<String>,
    /// What was dropped and why, for the log.
    pub notes: Vec<String>,
    /// An address that is not loopback is meant.
    metrics_public: bool,
    /// Becomes `worker.hook_timeout`.
    hook_timeout: Duration,
    /// Names of steadfs's options that were given.
    given: BTreeSet<&'static str>,
    /// Options of ssh that sshfs does not hand on.
    for_ssh: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            calls: CallPolicy::default(),
            repair: RepairPolicy::default(),
            permit: PermitConfig::default(),
            overlay: OverlayConfig::default(),
            log: LogConfig::default(),
            worker: WorkerConfig::default(),
            telemetry: TelemetryConfig::default(),
            keeper: KeeperConfig::default(),
            soft_start: true,
            nonempty: false,
            sshfs: Vec::new(),
            notes: Vec::new(),
            metrics_public: false,
            hook_timeout: Duration::from_secs(30),
            given: BTreeSet::new(),
            for_ssh: Vec::new(),
        }
    }
}

/// Reads the values of all `-o`; the error is a whole sentence that names the option, what is allowed and the remedy.
/// A later option wins over an earlier one of the same name.
pub fn parse<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<Options, String> {
    let mut options = Options::default();
    for option in values.into_iter().flat_map(split::split) {
        options.take(&option)?;
    }
    table::check(&mut options)?;
    options.check_sshfs()?;
    options.finish_ssh();
    Ok(options)
}

/// The times and sizes of an overlay and of its daemon that concern calls, repair, the mount and the write log, and the error of an
/// outage, as they are given with `-o`.
pub fn times_and_sizes(config: &DaemonConfig, overlay: &OverlayConfig) -> Vec<String> {
    use table::{Group, Kind};
    let mut options = Options {
        calls: config.calls,
        repair: config.repair,
        log: config.log.clone(),
        overlay: overlay.clone(),
        ..Options::default()
    };
    let mut all = vec![
        format!("errno={:?}", options.calls.outage_errno),
        format!("attr_timeout={}", duration::format(overlay.attr_timeout)),
        format!("entry_timeout={}", duration::format(overlay.entry_timeout())),
    ];
    let concerned = [Group::Calls, Group::Repair, Group::Mount, Group::Log];
    for definition in table::TABLE.iter().filter(|definition| concerned.contains(&definition.group)) {
        let value = match definition.kind {
            Kind::Duration(_, _, field) => duration::format(*field(&mut options)),
            Kind::Size(_, _, field) => size::format(*field(&mut options)),
            _ => continue,
        };
        all.push(format!("{}={value}", definition.name));
    }
    all
}

impl Options {
    fn take(&mut self, option: &str) -> Result<(), String> {
        if option.contains('\0') {
            return Err("an option contains a NUL byte".into());
        }
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        if let Some((definition, implied)) = table::find(name) {
            return match (implied, value) {
                (Some(_), Some(_)) => Err(format!("option '{name}' takes no value: write {}", definition.syntax())),
                (implied, value) => definition.apply(self, implied.or(value)),
            };
        }
        if known::ignored(name) {
            if name == "user" && value.is_some() {
                self.notes.push(format!("option '{option}' is mount(8)'s: for the login give USER@HOST or User=NAME"));
            }
            return Ok(());
        }
        if known::FLAGS.contains(&name) && value.is_none() {
            self.overlay.mount_flags.retain(|flag| flag != name);
            self.overlay.mount_flags.push(name.into());
            return Ok(());
        }
        // ssh reads lines, and so do those who read its command line.
        if option.chars().any(char::is_control) {
            return Err(format!("option '{}' contains a control character", plain(name)));
        }
        if let Some(fate) = known::sshfs(name) {
            return self.take_sshfs(option, name, value, fate);
        }
        // As sshfs takes its own switches `-C` and `-F FILE`.
        if option == "-C" {
            return self.take("Compression=yes");
        }
        if option.starts_with("-F") && option.len() > 2 {
            self.sshfs.retain(|earlier| !earlier.starts_with("-F"));
            self.sshfs.push(option.into());
            return Ok(());
        }
        match known::ssh(name) {
            Some(ssh) => self.take_ssh(ssh, value),
            None => Err(unknown(name)),
        }
    }

    /// Takes an option of sshfs or ssh and nothing else; the error is a whole sentence.
    pub fn hand_on(&mut self, name: &str, value: Option<&str>) -> Result<(), String> {
        let option = value.map_or(name.to_owned(), |value| format!("{name}={value}"));
        if option.contains('\0') {
            return Err(format!("option '{name}' contains a NUL byte"));
        }
        match (known::sshfs(name), known::ssh(name)) {
            (Some(fate), _) => self.take_sshfs(&option, name, value, fate),
            (None, Some(ssh)) => self.take_ssh(ssh, value),
            (None, None) => Err(unknown(name)),
        }
    }

    /// What can be looked at only when all of sshfs's and ssh's options were taken.
    pub fn finish_handed_on(&mut self) -> Result<(), String> {
        let checked = self.check_sshfs();
        self.finish_ssh();
        checked
    }

    fn take_sshfs(&mut self, option: &str, name: &str, value: Option<&str>, fate: Fate) -> Result<(), String> {
        let number = |radix| value.filter(|v| u32::from_str_radix(v, radix).is_ok() && !v.starts_with('+')).is_some();
        match fate {
            Fate::Drop(why) => {
                self.notes.push(format!("option '{option}' is not handed to sshfs: {why}"));
                return Ok(());
            }
            Fate::Reject(remedy) => return Err(format!("option '{name}' does not work with steadfs: {remedy}")),
            Fate::Flag if value.is_some() => {
                return Err(format!("option '{name}' of sshfs takes no value: write {name}"));
            }
            Fate::Value | Fate::Number(_) if value.is_none_or(str::is_empty) => {
                return Err(format!("option '{name}' of sshfs needs a value: write {name}=VALUE"));
            }
            Fate::Number(radix) if !number(radix) => {
                let what = if radix == 8 { "an octal number" } else { "a number" };
                return Err(format!("{option} is not {what}: see sshfs(1)"));
            }
            Fate::Flag | Fate::Value | Fate::Number(_) => {}
        }
        if name == "port" && value.and_then(|port| port.parse::<u16>().ok()).is_none_or(|port| port == 0) {
            return Err(format!("{option} is not a port: give 1 to 65535"));
        }
        if name == "port" {
            // sshfs hands it to ssh, for which the first word counts.
            replace(&mut self.sshfs, name);
        }
        self.sshfs.push(option.into());
        Ok(())
    }

    fn take_ssh(&mut self, ssh: known::SshOption, value: Option<&str>) -> Result<(), String> {
        let name = ssh.name;
        if let Some(remedy) = ssh.rejected {
            return Err(format!("option '{name}' of ssh does not work with steadfs: {remedy}"));
        }
        let Some(value) = value.filter(|value| !value.is_empty()) else {
            return Err(format!("option '{name}' of ssh needs a value: write {name}=VALUE"));
        };
        if name == "Port" {
            return self.take(&format!("port={value}"));
        }
        let option = format!("{name}={}", resolve(name, value));
        let list = if ssh.handed_on { &mut self.sshfs } else { &mut self.for_ssh };
        if !known::accumulates(name) {
            replace(list, name);
        }
        list.push(option);
        Ok(())
    }

    /// The first option that was given and is not of one overlay alone.
    pub fn beyond_the_overlay(&self) -> Option<&str> {
        let own = self.given.iter().find(|name| {
            !matches!(table::find(name).map(|(definition, _)| definition.group), Some(table::Group::Mount))
        });
        own.copied().or_else(|| self.sshfs.first().map(String::as_str))
    }

    /// For others than root: sshfs shows owners as the server has them, and since the overlay checks permissions its user
    /// would be kept out of the files that the server lets him have. Unless asked otherwise they are shown as his.
    pub fn own_files(&mut self) {
        let given = |name: &str| self.sshfs.iter().any(|option| option.split_once('=').is_some_and(|(n, _)| n == name));
        if !given("idmap") && !given("uid") {
            self.sshfs.push("idmap=user".into());
        }
    }

    /// Conflicts that sshfs would otherwise report only when it is started.
    fn check_sshfs(&self) -> Result<(), String> {
        let value = |name: &str| {
            let pairs = self.sshfs.iter().rev().filter_map(|option| option.split_once('='));
            pairs.into_iter().find(|(key, _)| *key == name).map(|(_, value)| value)
        };
        let files = value("uidfile").is_some() || value("gidfile").is_some();
        match value("idmap") {
            Some("file") if !files => Err("idmap=file needs a map: add uidfile=FILE or gidfile=FILE".into()),
            Some("none" | "user" | "file") | None => Ok(()),
            Some(other) => Err(format!("idmap={other} is not a mapping of sshfs: give none, user or file")),
        }?;
        if files && value("idmap") != Some("file") {
            return Err("uidfile= and gidfile= are read only with idmap=file: add it".into());
        }
        if value("directport").is_some() && value("ssh_command").is_some() {
            return Err("directport= and ssh_command= are two ways to the server: remove one".into());
        }
        let flag = |name: &str| self.sshfs.iter().any(|option| option == name);
        if flag("contain_symlinks") && flag("no_contain_symlinks") {
            return Err("contain_symlinks and no_contain_symlinks contradict each other: remove one".into());
        }
        Ok(())
    }

    /// Puts what sshfs does not hand on into the ssh command, which sshfs splits at blanks.
    fn finish_ssh(&mut self) {
        if self.for_ssh.is_empty() {
            return;
        }
        let given = self.sshfs.iter().rposition(|option| option.starts_with("ssh_command="));
        let mut command = match given {
            Some(index) => self.sshfs.remove(index),
            None => "ssh_command=ssh".into(),
        };
        for option in self.for_ssh.drain(..) {
            // Writing to a String cannot fail.
            let _ = write!(command, " -o{}", option.replace(' ', "\\ "));
        }
        self.sshfs.push(command);
    }
}

/// Forgets what was given for `name`: for ssh the first of two values counts (ssh_config(5)), for us the last.
fn replace(list: &mut Vec<String>, name: &str) {
    list.retain(|option| option.split_once('=').is_none_or(|(earlier, _)| earlier != name));
}

/// Paths among ssh's options, which ssh reads relative to a working directory that the daemon has left.
fn resolve(name: &str, value: &str) -> String {
    let is_file = matches!(name, "IdentityFile" | "CertificateFile" | "UserKnownHostsFile" | "GlobalKnownHostsFile");
    let special = value.starts_with(['/', '~', '%', '$']) || value.contains(' ');
    match std::path::absolute(value) {
        Ok(path) if is_file && !special && Path::new(value).exists() => path.display().to_string(),
        _ => value.into(),
    }
}

/// The name that `name` is a slip of, if any.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_ascii_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&candidate.to_ascii_lowercase(), &lower), candidate))
        .min_by_key(|(distance, _)| *distance)
        // Further away than a third of the name it is no slip.
        .filter(|(distance, candidate)| *distance <= candidate.len().max(name.len()).div_ceil(3))
        .map(|(_, candidate)| candidate)
}

fn unknown(name: &str) -> String {
    match nearest(name, table::TABLE.iter().map(|definition| definition.name).chain(known::names())) {
        Some(candidate) => format!("unknown option '{name}': did you mean '{candidate}'?"),
        None => format!("unknown option '{name}': see steadfs mount --help, sshfs(1) and ssh_config(5)"),
    }
}

/// The part of the help that lists steadfs's options.
pub fn help() -> String {
    let mut text = String::from(
        "Options for -o, separated by commas (a comma within a value is written \\,):\n\
         DURATION is a number of seconds or a sum such as 500ms, 5s, 1h30m.\n\
         SIZE is a number of bytes, or of units of 1024 such as 512K, 64M, 1GiB.\n",
    );
    for (group, title) in table::GROUPS {
        text.push_str(&format!("\n{title}:\n"));
        for option in table::TABLE.iter().filter(|option| option.group == group) {
            let default = match option.default() {
                default if default.is_empty() => String::new(),
                default => format!(" [default: {default}]"),
            };
            text.push_str(&format!("  {}\n", option.syntax()));
            for line in wrap(&format!("{}{default}", option.help), 90) {
                text.push_str(&format!("          {line}\n"));
            }
        }
    }
    text.push_str(
        "\nAlso the kernel's flags (nosuid, nodev, noexec, noatime, sync, ...), and the options of sshfs(1) and\n\
         ssh_config(5), which are handed on. Options that steadfs makes needless (reconnect, kernel_cache,\n\
         auto_cache, default_permissions, ...) and those for mount(8) (_netdev, nofail, x-*, ...) are accepted.\n",
    );
    let refused =
        format!("Refused, because they cannot work with it: {}.", known::refused().collect::<Vec<_>>().join(", "));
    for line in wrap(&refused, 100) {
        text.push_str(&format!("{line}\n"));
    }
    text.push_str(
        "Of two contradicting values the last holds; some options of ssh add up instead (IdentityFile, SendEnv, ...).\n\n\
         Exit codes are those of mount(8): 0 success, 1 usage or permission, 2 system error, 32 mount failure.",
    );
    text
}

fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= width => line.extend([" ", word]),
            _ => lines.push(word.into()),
        }
    }
    lines
}
