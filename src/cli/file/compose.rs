//! From the text to the configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::keys::{self, Section};
use super::mistake::{Mistake, Source};
use super::outside::Outside;
use super::overlays::{self, Overlays};
use super::reader::{Reader, Scalar, Table, a};
use super::{Loaded, hand_on, workers};
use crate::cli::options::{Options, table};
use crate::cli::source;
use crate::config::{
    self, CompatConfig, DaemonConfig, EvidenceConfig, Means, MetricsListen, PermitConfig, WorkerConfig,
};

/// Most repairs that a limit may allow, and most looks that may be asked for.
const MOST: u32 = 10_000;

/// Reads the text of a file. Looks at nothing but what `outside` answers.
pub fn parse(file: &Path, text: &str, outside: &dyn Outside) -> Result<Loaded, Vec<Mistake>> {
    let source = Source::new(file, text);
    let mut reader = Reader { source, outside, mistakes: Vec::new(), broken: false, here: Vec::new() };
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        reader.broken = true;
        let span = error.span().unwrap_or(text.len()..text.len());
        let words = syntax(error.message(), source.slice(span.clone()));
        reader.complain(span.start, words);
    }
    let loaded = Sections::of(document.get_ref(), &mut reader).load(file, &mut reader);
    let mut mistakes = reader.mistakes;
    if mistakes.is_empty() {
        // Whatever is missing without a mistake is a mistake of ours.
        return loaded.ok_or_else(|| vec![Mistake { place: source.place(0), text: "cannot be read".into() }]);
    }
    // The file before its manifest, each from its top.
    mistakes.sort_by_key(|mistake| (mistake.place.file != file, mistake.place.clone()));
    mistakes.dedup();
    Err(mistakes)
}

/// The parser's words for what is not TOML.
fn syntax(message: &str, written: &str) -> String {
    let written: String = written.chars().take(40).collect();
    if message.contains("duplicate key") {
        return format!("'{}' is given twice: remove one", written.trim_matches(['"', '\'']));
    }
    format!("is no TOML here: {message}: see toml.io, and quote strings with \"")
}

/// The sections that are there.
struct Sections<'d> {
    top: Table<'d>,
    single: BTreeMap<&'static str, (usize, &'d DeTable<'d>)>,
    many: BTreeMap<&'static str, Vec<(usize, &'d DeTable<'d>)>>,
}

impl<'d> Sections<'d> {
    fn of(document: &'d DeTable<'d>, reader: &mut Reader<'_>) -> Sections<'d> {
        let section =
            |name: &str| keys::SECTIONS.iter().copied().find(|section| section.name == name && !name.is_empty());
        let top = Table::open(&keys::TOP, 0, document, |name| section(name).is_some(), reader);
        let mut sections = Sections { top, single: BTreeMap::new(), many: BTreeMap::new() };
        for (key, value) in document {
            let Some(section) = section(key.get_ref()) else { continue };
            sections.take(section, key.span().start, value, reader);
        }
        sections
    }

    fn take(&mut self, section: &'static Section, at: usize, value: &'d Spanned<DeValue<'d>>, reader: &mut Reader<'_>) {
        match value.get_ref() {
            DeValue::Table(table) if !section.many => _ = self.single.insert(section.name, (at, table)),
            DeValue::Array(values) if section.many => {
                let all = self.many.entry(section.name).or_default();
                for value in values {
                    match value.get_ref().as_table() {
                        Some(table) => all.push((value.span().start, table)),
                        None => {
                            let (what, title) = (a(value.get_ref()), section.title());
                            reader.complain(
                                value.span().start,
                                format!("{} has {what} in it: write {title}", section.name),
                            );
                        }
                    }
                }
            }
            DeValue::Table(_) => {
                reader.complain(at, format!("there may be several: write {}", section.title()));
            }
            DeValue::Array(_) => reader.complain(at, format!("there is only one: write {}", section.title())),
            other => {
                let (name, title) = (section.name, section.title());
                reader.complain(at, format!("{name} is {}: it is a section, write {title}", a(other)));
            }
        }
    }

    fn one(&self, section: &'static Section, reader: &mut Reader<'_>) -> Table<'d> {
        match self.single.get(section.name) {
            Some(&(at, table)) => Table::open(section, at, table, |_| false, reader),
            None => Table::absent(section),
        }
    }

    fn all(&self, section: &'static Section, reader: &mut Reader<'_>) -> Vec<Table<'d>> {
        let found = self.many.get(section.name).into_iter().flatten();
        found.map(|&(at, table)| Table::open(section, at, table, |_| false, reader)).collect()
    }

    fn load(&self, file: &Path, reader: &mut Reader<'_>) -> Option<Loaded> {
        let top = &self.top;
        top.require("name", reader);
        top.require("source", reader);
        let name = top.get("name", Scalar::Text, reader, name);
        let source = top.scalar("source", Scalar::Text, reader).and_then(|text| {
            source::parse(&text.text).map_err(|words| reader.complain(top.at("source"), text.conceal(words))).ok()
        });
        // Of the whole daemon.
        let mut options = Options::default();
        for section in [&keys::CALLS, &keys::REPAIR, &keys::LOG, &keys::TELEMETRY, &keys::KEEPER] {
            let table = self.one(section, reader);
            table.apply(&mut options, reader);
            for (name, sentence) in table::contradictions(&mut options) {
                // Each is about a key that was given, and is seen from its own section.
                if table.has(name) {
                    reader.complain(table.at(name), sentence);
                }
            }
        }
        if let Some((_, section)) = self.single.get(keys::SSHFS.name) {
            hand_on::read(section, &mut options, reader);
        }
        if matches!(source, Some(config::Source::Sshfs { .. })) && !nix::unistd::geteuid().is_root() {
            options.own_files();
        }
        let permit = self.permit(reader);
        let worker = WorkerConfig { hook_timeout: options.worker.hook_timeout, ..self.worker(reader) };
        self.telemetry(&mut options, reader);
        let (overlays, manifest) = self.overlays(source.as_ref(), reader);
        let evidence = self.evidence(manifest, reader);
        let config = DaemonConfig {
            home: format!("@{}", name.unwrap_or_default()).into(),
            source: source?,
            expected: Vec::new(),
            overlays: overlays.hot,
            calls: options.calls,
            repair: options.repair,
            permit,
            log: options.log,
            worker,
            telemetry: options.telemetry,
            evidence,
            soft_start: options.soft_start,
            sshfs_options: options.sshfs,
            began_fresh: None,
            keeper: options.keeper,
            file: Some(file.to_owned()),
        };
        self.own_paths(&config, reader);
        let here = std::mem::take(&mut reader.here);
        Some(Loaded { config, nonempty: overlays.nonempty, places: overlays.places, notes: options.notes, here })
    }
}

/// The parts that are no `-o` options.
impl Sections<'_> {
    fn permit(&self, reader: &mut Reader<'_>) -> PermitConfig {
        // Opened before: what is not known was complained of there.
        let Some(&(at, table)) = self.single.get(keys::REPAIR.name) else { return PermitConfig::default() };
        let table = Table::open(&keys::REPAIR, at, table, |_| true, reader);
        table.needs("deploy_lock_max_age", "deploy_lock", reader);
        table.needs("confirm_interval", "confirmations", reader);
        PermitConfig {
            deploy_lock: table.path("deploy_lock", reader),
            deploy_lock_max_age: table.long_duration("deploy_lock_max_age", reader),
            enable_file: table.path("enable_file", reader),
            confirmations: table.number("confirmations", MOST, reader).unwrap_or_default(),
            confirm_interval: table
                .duration("confirm_interval", reader)
                .unwrap_or(PermitConfig::default().confirm_interval),
            min_age: table.duration("min_age", reader).unwrap_or_default(),
            cool_down: table.duration("cool_down", reader).unwrap_or_default(),
            max_per_hour: table.number("max_per_hour", MOST, reader).unwrap_or_default(),
            max_per_day: table.number("max_per_day", MOST, reader).unwrap_or_default(),
        }
    }

    fn telemetry(&self, options: &mut Options, reader: &mut Reader<'_>) {
        let Some(&(at, table)) = self.single.get(keys::TELEMETRY.name) else { return };
        let table = Table::open(&keys::TELEMETRY, at, table, |_| true, reader);
        for (name, other) in [
            ("journal_size", "journal"),
            ("journal_keep", "journal"),
            ("compat_state", "compat"),
            ("compat", "compat_state"),
        ] {
            table.needs(name, other, reader);
        }
        let telemetry = &mut options.telemetry;
        telemetry.journal = table.path("journal", reader);
        telemetry.journal_size = table.size("journal_size", 4 << 10, 1 << 40, reader).unwrap_or_default();
        telemetry.journal_keep = table.number("journal_keep", 1000, reader);
        let known = table.get("compat", Scalar::Text, reader, |text| match text {
            "healtharchive" => Ok(()),
            _ => Err("is not a watchdog that can be stood in for: write healtharchive".into()),
        });
        let state = table.path("compat_state", reader);
        telemetry.compat = known.and(state).map(|state| CompatConfig::Healtharchive { state });
    }

    fn evidence(&self, manifest: Option<PathBuf>, reader: &mut Reader<'_>) -> EvidenceConfig {
        let table = self.one(&keys::EVIDENCE, reader);
        table.needs("keep", "dir", reader);
        EvidenceConfig {
            dir: table.path("dir", reader),
            keep: table.number("keep", MOST, reader).unwrap_or_default(),
            manifest: table.path("manifest", reader).or(manifest),
            units: table.strings("units", reader).unwrap_or_default(),
        }
    }

    fn worker(&self, reader: &mut Reader<'_>) -> WorkerConfig {
        let (mut worker, mut names) = (WorkerConfig::default(), workers::Names::new());
        for table in self.all(&keys::WORKER, reader) {
            worker.workers.extend(workers::worker(&table, &mut names, reader));
        }
        names.clear();
        for table in self.all(&keys::AFTER_RECOVERY, reader) {
            worker.after_recovery.extend(workers::after_recovery(&table, &mut names, reader));
        }
        worker
    }

    /// The overlays, and the manifest that they are from.
    fn overlays(&self, source: Option<&config::Source>, reader: &mut Reader<'_>) -> (Overlays, Option<PathBuf>) {
        let defaults = overlays::look(&self.one(&keys::DEFAULTS, reader), &Options::default(), reader);
        let mut overlays = Overlays::default();
        for table in self.all(&keys::OVERLAY, reader) {
            overlays.add(&table, &defaults, reader);
        }
        let top = &self.top;
        top.needs("manifest_root", "manifest", reader);
        let manifest = top.path("manifest", reader);
        let root = top.path("manifest_root", reader);
        // A store that lies here has its cold paths there.
        let root = root.or_else(|| match source {
            Some(config::Source::Dir { path }) if !top.has("manifest_root") => Some(path.clone()),
            _ => None,
        });
        match (&manifest, root) {
            (Some(file), Some(root)) => overlays.add_manifest(top.at("manifest"), file, &root, &defaults, reader),
            (Some(_), None) if !top.has("manifest_root") && source.is_some() => {
                let text = "manifest needs manifest_root, below which its cold paths lie: add manifest_root = \"PATH\"";
                reader.complain(top.at("manifest"), text);
            }
            _ => {}
        }
        overlays.check(source, reader);
        (overlays, manifest)
    }

    /// Files that steadfs itself uses must not lie on an overlay: in an outage it could not.
    fn own_paths(&self, config: &DaemonConfig, reader: &mut Reader<'_>) {
        let place = |section: &str, name: &str| {
            let named = |table: &DeTable<'_>| {
                table.iter().find(|(key, _)| key.get_ref() == name).map(|(key, _)| key.span().start)
            };
            // The one of evidence may be that of the overlays.
            let found = self.single.get(section).and_then(|(_, table)| named(table));
            found.unwrap_or_else(|| self.top.at(name))
        };
        for (section, name, path) in paths(config) {
            let Some(hot) = config.overlays.iter().find(|hot| path.starts_with(&hot.mountpoint)) else { continue };
            let at = match section {
                "worker" => {
                    let index = config.worker.workers.iter().position(|worker| worker.name == name);
                    let table = index.and_then(|index| self.many.get("worker")?.get(index));
                    table.map_or(0, |(at, _)| *at)
                }
                _ => place(section, name),
            };
            let (path, hot) = (path.display(), hot.mountpoint.display());
            let what = if section == "worker" { format!("a file of worker '{name}'") } else { name.to_owned() };
            reader.complain(
                at,
                format!("{what}: {path} lies below {hot}, where it cannot be reached in an outage: give another path"),
            );
        }
    }
}

/// What steadfs reads or writes by itself: section, key (or the worker's name), path.
pub(in crate::cli) fn paths(config: &DaemonConfig) -> Vec<(&'static str, &str, &Path)> {
    let telemetry = &config.telemetry;
    let socket = match &telemetry.listen {
        Some(MetricsListen::Unix(path)) => Some(path.as_path()),
        _ => None,
    };
    let compat = telemetry.compat.as_ref().map(|CompatConfig::Healtharchive { state }| state.as_path());
    let all = [
        ("log", "spool_dir", config.log.spool_dir.as_deref()),
        ("telemetry", "textfile", telemetry.textfile.as_deref()),
        ("telemetry", "metrics", socket),
        ("telemetry", "journal", telemetry.journal.as_deref()),
        ("telemetry", "compat_state", compat),
        ("repair", "deploy_lock", config.permit.deploy_lock.as_deref()),
        ("repair", "enable_file", config.permit.enable_file.as_deref()),
        ("evidence", "dir", config.evidence.dir.as_deref()),
        ("evidence", "manifest", config.evidence.manifest.as_deref()),
    ];
    let mut paths: Vec<_> = all.into_iter().filter_map(|(section, name, path)| Some((section, name, path?))).collect();
    for worker in &config.worker.workers {
        match &worker.means {
            Means::Flag { file: path } | Means::Signal { pid_file: path, .. } => {
                paths.push(("worker", &*worker.name, &**path))
            }
            _ => {}
        }
    }
    paths
}

fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
    let begins = |text: &str| text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if begins(text) && text.len() <= 64 && text.chars().all(good) {
        return Ok(text.to_owned());
    }
    Err("is not a name: give up to 64 of a-z, 0-9, _, . and -, with a letter or digit first".into())
}
