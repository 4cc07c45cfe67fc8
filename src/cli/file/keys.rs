//! The shape of the file: each section and key once. Reading, suggestions and the documentation are made from it.

use crate::cli::options::table::{self, Definition, Kind};

/// A key.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    form: Form,
}

#[derive(Debug, Clone, Copy)]
enum Form {
    /// The `-o` option of that name.
    Option,
    /// One of the file alone: how its value is written, its default, what it is for.
    Own(&'static str, &'static str, &'static str),
}

/// A section.
#[derive(Debug)]
pub struct Section {
    /// Its name; empty for what comes before the first section.
    pub name: &'static str,
    /// Written `[[NAME]]`, any number of times.
    pub many: bool,
    /// What it is for.
    pub help: &'static str,
    keys: &'static [&'static [Key]],
}

impl Key {
    /// The `-o` option that it is, if it is one.
    pub fn option(&self) -> Option<&'static Definition> {
        match self.form {
            Form::Option => table::find(self.name).map(|(definition, _)| definition),
            Form::Own(..) => None,
        }
    }

    /// How its value is written.
    pub fn syntax(&self) -> String {
        match (self.form, self.option().map(|definition| &definition.kind)) {
            (Form::Own(syntax, ..), _) => syntax.into(),
            (_, Some(Kind::Duration(..))) => "\"DURATION\"".into(),
            (_, Some(Kind::Size(..))) => "\"SIZE\"".into(),
            (_, Some(Kind::Value(syntax, _))) => format!("\"{syntax}\""),
            (_, Some(Kind::Switch(_) | Kind::Flag(_)) | None) => "true|false".into(),
        }
    }

    /// What holds when it is not given; empty for nothing.
    pub fn default(&self) -> String {
        match self.form {
            Form::Own(_, default, _) => default.into(),
            Form::Option => self.option().map(default_of).unwrap_or_default(),
        }
    }

    /// What it is for.
    pub fn help(&self) -> &'static str {
        match self.form {
            Form::Own(_, _, help) => help,
            Form::Option => self.option().map_or("", |definition| definition.help),
        }
    }
}

/// A switch is written `yes` there and `true` here.
fn default_of(definition: &Definition) -> String {
    match definition.kind {
        Kind::Switch(_) => definition.default().replacen("yes", "true", 1),
        Kind::Flag(_) => "false".into(),
        _ => definition.default(),
    }
}

impl Section {
    /// Its keys.
    pub fn keys(&self) -> impl Iterator<Item = &'static Key> + use<> {
        self.keys.iter().copied().flatten()
    }

    /// One of them.
    pub fn key(&self, name: &str) -> Option<&'static Key> {
        self.keys().find(|key| key.name == name)
    }

    /// As it is written.
    pub fn title(&self) -> String {
        match (self.name, self.many) {
            ("", _) => "before the first section".into(),
            (name, true) => format!("[[{name}]]"),
            (name, false) => format!("[{name}]"),
        }
    }
}

const fn option(name: &'static str) -> Key {
    Key { name, form: Form::Option }
}

const fn own(name: &'static str, syntax: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { name, form: Form::Own(syntax, default, help) }
}

/// What comes before the first section.
pub static TOP: Section = Section {
    name: "",
    many: false,
    help: "Who it is, and where the files really are.",
    keys: &[&[
        own(
            "name",
            "\"NAME\"",
            "required",
            "What the daemon is called: `steadfs status @NAME`. Up to 64 of a-z 0-9 _ . -",
        ),
        own("source", "\"[USER@]HOST:[DIR]\" or \"dir:/PATH\"", "required", "The store, as `steadfs mount` takes it."),
        own("manifest", "\"PATH\"", "", "A file that adds overlays: lines `COLD_PATH HOT_PATH`."),
        own(
            "manifest_root",
            "\"PATH\"",
            "the path of dir:",
            "What all cold paths of the manifest lie below: the rest is the path on the store.",
        ),
    ]],
};

/// Options of sshfs and ssh; any of theirs that `-o` takes.
pub static SSHFS: Section = Section {
    name: "sshfs",
    many: false,
    help: "Options of sshfs(1) and ssh_config(5), as `-o` takes them. A switch of sshfs is written NAME = true; what ssh \
           adds up (IdentityFile, SendEnv, ...) may be an array.",
    keys: &[&[own("F", "\"PATH\"", "", "Another configuration file for ssh.")]],
};

/// Deadlines.
pub static CALLS: Section = Section {
    name: "calls",
    many: false,
    help: "How long calls may take, and how they fail.",
    keys: &[&[option("deadline"), option("sync_deadline"), option("hold"), option("errno")]],
};

/// Supervision and permits.
pub static REPAIR: Section = Section {
    name: "repair",
    many: false,
    help: "When the store is doubted and connected to again, and what holds a repair back.",
    keys: &[
        &[
            option("probe_interval"),
            option("probe_deadline"),
            option("start_deadline"),
            option("backoff_min"),
            option("backoff_max"),
            option("steady"),
            option("soft_start"),
        ],
        &[
            own(
                "deploy_lock",
                "\"PATH\"",
                "",
                "While somebody holds a lock (flock(2)) on this file nothing is repaired.",
            ),
            own(
                "deploy_lock_max_age",
                "\"DURATION\"",
                "2h",
                "A lock file that cannot be probed counts while it is younger.",
            ),
            own("enable_file", "\"PATH\"", "", "Nothing is repaired while this file is not there."),
            own("confirmations", "NUMBER", "1", "Looks in a row that have to find the store dead."),
            own("confirm_interval", "\"DURATION\"", "1m", "Time between two such looks."),
            own("min_age", "\"DURATION\"", "0s", "How old an outage must be."),
            own("cool_down", "\"DURATION\"", "0s", "Time between the starts of two repairs."),
            own("max_per_hour", "NUMBER", "0", "Repairs within an hour; 0 for no limit."),
            own("max_per_day", "NUMBER", "0", "Repairs within 24 hours; 0 for no limit."),
        ],
    ],
};

/// The write log.
pub static LOG: Section = Section {
    name: "log",
    many: false,
    help: "What is kept of writes that are not committed on the store yet.",
    keys: &[&[option("log_size"), option("spool_dir"), option("spool_size")]],
};

/// Metrics and journal.
pub static TELEMETRY: Section = Section {
    name: "telemetry",
    many: false,
    help: "How it is seen from outside.",
    keys: &[&[
        option("metrics"),
        option("metrics_public"),
        option("textfile"),
        own("journal", "\"PATH\"", "", "Append events to this file, one JSON object a line."),
        own("journal_size", "\"SIZE\"", "1MiB", "The journal is rotated when it is larger."),
        own("journal_keep", "NUMBER", "5", "Rotated journals that are kept."),
        own(
            "compat",
            "\"healtharchive\"",
            "",
            "Also write state and metrics as that watchdog did, for its alerts and reports.",
        ),
        own("compat_state", "\"PATH\"", "required with compat", "Its state file."),
    ]],
};

/// The keeper.
pub static KEEPER: Section = Section {
    name: "keeper",
    many: false,
    help: "The process that starts the daemon again.",
    keys: &[&[option("keeper"), option("watchdog"), option("keeper_deadline")]],
};

/// Bundles of evidence.
pub static EVIDENCE: Section = Section {
    name: "evidence",
    many: false,
    help: "Evidence that is taken at each outage and recovery.",
    keys: &[&[
        own("dir", "\"DIR\"", "", "Where bundles go; none are taken by themselves without it."),
        own("keep", "NUMBER", "20", "How many of them are kept."),
        own("manifest", "\"PATH\"", "the manifest above", "A file that is copied into each."),
        own("units", "[\"UNIT\", ...]", "", "Systemd units whose state and journal go into each."),
    ]],
};

const LOOK: &[Key] = &[
    own("read_only", "true|false", "false", "Refuse every change."),
    option("guard"),
    own("nonempty", "true|false", "false", "Mount over a directory that is not empty."),
    own("allow_other", "true|false", "true for root", "Let other users in."),
    option("subtype"),
    option("fsname"),
    own("owner", "\"USER:GROUP\"", "", "Shown as the owner of everything; names or numbers."),
    own("umask", "\"OCTAL\"", "", "Permissions that are taken away from what is shown, such as \"0027\"."),
    own(
        "statfs",
        "\"backing|local\"",
        "backing",
        "Whose figures df shows: the store's, or those of the disk below the mountpoint.",
    ),
    option("attr_timeout"),
    option("entry_timeout"),
    option("gather"),
    own("flags", "[\"FLAG\", ...]", "", "The kernel's mount flags: nosuid, nodev, noexec, noatime, ..."),
];

/// What all overlays have in common.
pub static DEFAULTS: Section =
    Section { name: "defaults", many: false, help: "For all overlays, those of the manifest too.", keys: &[LOOK] };

/// An overlay.
pub static OVERLAY: Section = Section {
    name: "overlay",
    many: true,
    help: "A hot path. What it does not say is as in [defaults].",
    keys: &[
        &[
            own("mountpoint", "\"PATH\"", "required", "The directory that is mounted over."),
            own("path", "\"DIR\"", "all of it", "Directory on the store, below that of source."),
        ],
        LOOK,
    ],
};

/// A worker.
pub static WORKER: Section = Section {
    name: "worker",
    many: true,
    help: "Somebody to be paused in an outage. They are paused in this order and let go in the opposite one.",
    keys: &[&[
        own("name", "\"NAME\"", "required", "What it is called."),
        own("kind", "\"flag|command|signal|unit|cgroup|container\"", "required", "How it is paused."),
        own("timeout", "\"DURATION\"", "30s", "How long a step may take."),
        own("steady", "\"DURATION\"", "steady of [repair]", "How long the store must have worked before it is let go."),
        own("file", "\"PATH\"", "required for flag", "Exists while it should pause."),
        own("pause", "COMMAND or \"SIGNAL\"", "required for command; STOP for signal", "What pauses it."),
        own("resume", "COMMAND or \"SIGNAL\"", "required for command; CONT for signal", "What lets it go."),
        own("pid_file", "\"PATH\"", "required for signal", "Contains the process's id."),
        own("group", "true|false", "false", "For signal: to its whole process group."),
        own("unit", "\"UNIT\"", "required for unit", "A systemd unit."),
        own("by", "\"stop|freeze\"", "stop", "For unit: stopped and started, or frozen and thawed."),
        own("path", "\"DIR\"", "required for cgroup", "The directory of a cgroup (version 2)."),
        own("engine", "\"PROGRAM\"", "docker", "For container: what pauses it."),
        own("names", "[\"NAME\", ...]", "", "For container: these, or ..."),
        own("label", "\"KEY[=VALUE]\"", "", "... all that run and have this label."),
    ]],
};

/// Something done after a recovery.
pub static AFTER_RECOVERY: Section = Section {
    name: "after_recovery",
    many: true,
    help: "Run in this order when everybody has been let go.",
    keys: &[&[
        own("name", "\"NAME\"", "required", "What it is called."),
        own("command", "COMMAND", "required", "What is run."),
        own("timeout", "\"DURATION\"", "30s", "How long it may take."),
    ]],
};

/// All sections, in the order of the documentation.
pub static SECTIONS: [&Section; 12] = [
    &TOP,
    &SSHFS,
    &CALLS,
    &REPAIR,
    &LOG,
    &TELEMETRY,
    &KEEPER,
    &EVIDENCE,
    &DEFAULTS,
    &OVERLAY,
    &WORKER,
    &AFTER_RECOVERY,
];

/// What an option is called here if not by its own name, and where it is.
const MOVED: [(&str, &str); 8] = [
    ("ro", "read_only = true in [[overlay]] or [defaults]"),
    ("rw", "read_only = false in [[overlay]] or [defaults]"),
    ("noguard", "guard = false in [[overlay]] or [defaults]"),
    ("nokeeper", "keeper = false in [keeper]"),
    ("nosoft_start", "soft_start = false in [repair]"),
    ("pause_file", "a [[worker]] with kind = \"flag\" and file"),
    ("on_outage", "a [[worker]] with kind = \"command\" and pause, resume"),
    ("on_recovery", "an [[after_recovery]] with command"),
];

/// What is said of a name that `section` has not got.
pub fn unknown(section: &Section, name: &str) -> String {
    let moved = MOVED.iter().find(|(old, _)| *old == name).map(|(_, new)| (*new).to_owned());
    let elsewhere = || {
        let home = SECTIONS.iter().find(|other| other.name != "sshfs" && other.key(name).is_some())?;
        Some(format!("it belongs {}{}", if home.name.is_empty() { "" } else { "into " }, home.title()))
    };
    let handed_on = || {
        use crate::cli::options::known;
        let flag =
            known::FLAGS.contains(&name).then(|| format!("write flags = [\"{name}\"] in [[overlay]] or [defaults]"));
        let sshfs =
            || (known::sshfs(name).is_some() || known::ssh(name).is_some()).then(|| "it belongs into [sshfs]".into());
        flag.or_else(sshfs)
    };
    let titles = SECTIONS.iter().filter(|_| section.name.is_empty()).map(|section| section.name);
    let near = || {
        use crate::cli::options::{known, nearest};
        // What ssh knows is far too much to be listed.
        let theirs: Vec<&str> = if section.name == "sshfs" { known::handed_on().collect() } else { Vec::new() };
        nearest(name, section.keys().map(|key| key.name).chain(titles).chain(theirs).filter(|name| !name.is_empty()))
    };
    let place = if section.name.is_empty() { String::new() } else { format!(" in {}", section.title()) };
    if let Some(words) = moved.map(|new| format!("write {new}")).or_else(|| elsewhere().or_else(handed_on)) {
        return format!("unknown key '{name}'{place}: {words}");
    }
    let suggestion = near().map(|near| format!("did you mean '{near}'? ")).unwrap_or_default();
    let allowed: Vec<&str> = section.keys().map(|key| key.name).collect();
    let allowed = match section.name {
        "sshfs" => "allowed are the options of sshfs(1) and ssh_config(5)".into(),
        "" => format!("allowed are {}, and the sections {}", allowed.join(", "), sections()),
        _ => format!("allowed are {}", allowed.join(", ")),
    };
    format!("unknown key '{name}'{place}: {suggestion}{allowed}")
}

fn sections() -> String {
    SECTIONS.iter().skip(1).map(|section| section.title()).collect::<Vec<_>>().join(", ")
}
