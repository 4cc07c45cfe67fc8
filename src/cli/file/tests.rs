#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use proptest::prelude::*;

use super::keys::{SECTIONS, Section};
use super::*;
use crate::config::{CompatConfig, Means, MetricsListen, Source, StatfsFrom, UnitBy};

/// A machine of the test's own.
#[derive(Default)]
struct Fake {
    variables: BTreeMap<&'static str, &'static str>,
    manifest: Option<&'static str>,
}

impl Outside for Fake {
    fn variable(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(ToString::to_string)
    }

    fn read(&self, path: &Path, _: u64) -> io::Result<Vec<u8>> {
        let manifest = self.manifest.filter(|_| path.ends_with("warc-tiering.binds") || path == Path::new("/m"));
        manifest.map(|text| text.as_bytes().to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn user(&self, name: &str) -> Option<u32> {
        (name == "crawler").then_some(1001)
    }

    fn group(&self, name: &str) -> Option<u32> {
        (name == "archive").then_some(1002)
    }
}

const EXAMPLE: &str = include_str!("../../../examples/healtharchive.toml");
const MANIFEST: &str = "# cold hot\n\
    /srv/healtharchive/storagebox/jobs/hc/1 /srv/healtharchive/jobs/hc/1\n\
    /srv/healtharchive/storagebox/jobs/hc/2 /srv/healtharchive/jobs/hc/2 ignored\n";

fn field() -> Fake {
    let variables = [
        ("STORAGEBOX_HOST", "u1.example.org"),
        ("STORAGEBOX_USER", "u1"),
        ("STORAGEBOX_IDENTITY", "/etc/keys/box"),
        ("STORAGEBOX_UID", "1001"),
        ("STORAGEBOX_GID", "1002"),
    ];
    Fake { variables: variables.into(), manifest: Some(MANIFEST) }
}

fn read_with(text: &str, outside: &Fake) -> Result<Loaded, Vec<Mistake>> {
    parse(Path::new("/c"), text, outside)
}

/// All mistakes of a text behind `name` and `source`, as `LINE: TEXT`, where the text begins with line 0.
fn mistakes(text: &str) -> Vec<String> {
    let whole = format!("name = 'x'\nsource = 'h:d'\n{text}");
    let outside =
        Fake { variables: [("SECRET", "hunter2"), ("FIVE", "5")].into(), manifest: Some("/cold/a /hot/a\n/b\n") };
    let found = read_with(&whole, &outside).err().unwrap_or_default();
    // The first two lines are not the text's.
    found.iter().map(|mistake| format!("{}: {}", mistake.place.line.saturating_sub(3), mistake.text)).collect()
}

fn good(text: &str) -> Loaded {
    read_with(&format!("name = 'x'\nsource = 'h:d'\n{text}"), &Fake::default())
        .unwrap_or_else(|m| panic!("{text}: {m:#?}"))
}

#[test]
fn the_field_case_is_understood() {
    let loaded = read_with(EXAMPLE, &field()).unwrap_or_else(|mistakes| panic!("{mistakes:#?}"));
    let config = &loaded.config;
    assert_eq!(config.home, Path::new("@healtharchive"));
    assert_eq!(config.source, Source::Sshfs { target: "u1@u1.example.org:".into() });
    let shown: Vec<_> = config.overlays.iter().map(|hot| (hot.path.to_str(), hot.mountpoint.to_str())).collect();
    let expected = [("jobs/hc/1", "/srv/healtharchive/jobs/hc/1"), ("jobs/hc/2", "/srv/healtharchive/jobs/hc/2")];
    assert_eq!(shown, expected.map(|(path, hot)| (Some(path), Some(hot))));
    let look = &config.overlays[1].overlay;
    assert_eq!((look.subtype.as_str(), look.statfs, look.umask), ("sshfs", StatfsFrom::Local, Some(0o027)));
    assert_eq!((look.owner, look.mount_flags.len()), (Some((1001, 1002)), 2));
    let has = |option: &str| config.sshfs_options.iter().any(|given| given == option);
    assert!(has("port=23") && has("IdentityFile=/etc/keys/box") && has("IdentitiesOnly=yes"), "{config:?}");
    assert_eq!(config.calls.hold, Duration::from_secs(10));
    assert_eq!(config.permit.deploy_lock_max_age, Some(Duration::from_secs(7200)));
    let state = "/srv/healtharchive/ops/watchdog/storage-hotpath-auto-recover.json".into();
    assert_eq!(config.telemetry.compat, Some(CompatConfig::Healtharchive { state }));
    assert_eq!(config.evidence.manifest.as_deref(), Some(Path::new("/etc/healtharchive/warc-tiering.binds")));
    let unit = "healtharchive-worker.service".into();
    assert_eq!(config.worker.workers[0].means, Means::Unit { unit, by: UnitBy::Stop });
    assert_eq!(config.worker.after_recovery[1].command.argv.len(), 3);
    let place = &loaded.places[Path::new("/srv/healtharchive/jobs/hc/2")];
    assert_eq!((place.file.as_path(), place.line), (Path::new("/etc/healtharchive/warc-tiering.binds"), 3));
    assert_eq!(loaded.missing_here().len(), 1, "its textfile directory is not here: {:?}", loaded.missing_here());
}

#[test]
fn without_its_environment_each_missing_variable_is_named() {
    let outside = Fake { manifest: Some(MANIFEST), ..Fake::default() };
    let found = read_with(EXAMPLE, &outside).unwrap_err();
    let text = lines(&found);
    for name in ["STORAGEBOX_USER", "STORAGEBOX_IDENTITY", "STORAGEBOX_UID"] {
        assert!(text.contains(&format!("the environment variable {name}, which is not set")), "{text}");
    }
    assert!(found.iter().all(|mistake| mistake.text.contains("not set")), "nothing else is wrong: {text}");
}

/// A value that the key takes, and what else must be there.
fn sample(section: &Section, key: &str) -> (String, &'static str) {
    let (value, more) = match (section.name, key) {
        ("", "name") => return ("\"x\"".into(), "source = \"h:d\""),
        ("", "source") => return ("\"h:d\"".into(), "name = \"x\""),
        ("", "manifest") => ("\"/m\"", "manifest_root = \"/cold\""),
        ("", "manifest_root") => ("\"/cold\"", "manifest = \"/m\""),
        (_, "errno") => ("\"EIO\"", ""),
        (_, "metrics") => ("\"127.0.0.1:9\"", ""),
        (_, "deploy_lock_max_age") => ("\"1h\"", "deploy_lock = \"/l\""),
        (_, "confirm_interval") => ("1", "confirmations = 2"),
        (_, "journal_size") => ("\"1M\"", "journal = \"/j\""),
        (_, "journal_keep") => ("3", "journal = \"/j\""),
        (_, "compat") => ("\"healtharchive\"", "compat_state = \"/s\""),
        (_, "compat_state") => ("\"/s\"", "compat = \"healtharchive\""),
        ("evidence", "keep") => ("3", "dir = \"/e\""),
        (_, "subtype" | "fsname") => ("\"sshfs\"", ""),
        (_, "owner") => ("\"crawler:1002\"", ""),
        (_, "umask") => ("\"0027\"", ""),
        (_, "statfs") => ("\"local\"", ""),
        (_, "flags") => ("[\"noexec\", \"nosuid\"]", ""),
        (_, "gather") => ("\"20ms\"", ""),
        (_, "spool_size") => ("\"1G\"", ""),
        ("overlay", "mountpoint") => ("\"/hot\"", ""),
        ("overlay", "path") => ("\"a/b\"", ""),
        ("worker", "name") => ("\"w\"", "kind = \"flag\"\nfile = \"/f\""),
        ("worker", "kind") => ("\"flag\"", "name = \"w\"\nfile = \"/f\""),
        ("worker", "timeout" | "steady") => ("\"9s\"", "name = \"w\"\nkind = \"flag\"\nfile = \"/f\""),
        ("worker", "file") => ("\"/f\"", "name = \"w\"\nkind = \"flag\""),
        ("worker", "pause") => ("[\"/p\", \"a\"]", "name = \"w\"\nkind = \"command\"\nresume = \"sh:x\""),
        ("worker", "resume") => ("\"CONT\"", "name = \"w\"\nkind = \"signal\"\npause = 20\npid_file = \"/p\""),
        ("worker", "pid_file") => ("\"/p\"", "name = \"w\"\nkind = \"signal\""),
        ("worker", "group") => ("true", "name = \"w\"\nkind = \"signal\"\npid_file = \"/p\""),
        ("worker", "unit") => ("\"a.service\"", "name = \"w\"\nkind = \"unit\""),
        ("worker", "by") => ("\"freeze\"", "name = \"w\"\nkind = \"unit\"\nunit = \"a.service\""),
        ("worker", "path") => ("\"/sys/fs/cgroup/a\"", "name = \"w\"\nkind = \"cgroup\""),
        ("worker", "engine") => ("\"podman\"", "name = \"w\"\nkind = \"container\"\nlabel = \"a=b\""),
        ("worker", "names") => ("[\"a\"]", "name = \"w\"\nkind = \"container\""),
        ("worker", "label") => ("\"a\"", "name = \"w\"\nkind = \"container\""),
        ("after_recovery", "name") => ("\"h\"", "command = \"true\""),
        ("after_recovery", "command") => ("\"sh:a | b\"", "name = \"h\""),
        ("after_recovery", "timeout") => ("3", "name = \"h\"\ncommand = [\"true\"]"),
        (_, "units") => ("[\"a.service\"]", ""),
        _ => return (by_syntax(&section.key(key).unwrap().syntax()).into(), ""),
    };
    (value.into(), more)
}

fn by_syntax(syntax: &str) -> &'static str {
    match syntax {
        "\"DURATION\"" => "\"31s\"",
        "\"DURATION|exclusive\"" => "\"exclusive\"",
        "\"SIZE\"" => "\"64M\"",
        "\"PATH\"" | "\"DIR\"" => "\"/some/where\"",
        "true|false" => "true",
        "NUMBER" => "3",
        other => panic!("no sample for {other}"),
    }
}

/// The file with that key in the line returned, and all that it needs.
fn file_with(section: &Section, key: &str, written: &str) -> (String, usize) {
    let (value, more) = sample(section, key);
    let mut head = String::new();
    if !section.name.is_empty() || !["name", "source"].contains(&key) {
        head.push_str("name = \"x\"\nsource = \"h:d\"\n");
    }
    if !section.name.is_empty() {
        head.push_str(&format!("{}\n", section.title()));
        if section.name == "overlay" && key != "mountpoint" {
            head.push_str("mountpoint = \"/hot\"\n");
        }
    }
    let text = format!("{head}{written} = {value}\n{more}\n");
    (text, head.lines().count() + 1)
}

fn every_key() -> Vec<(&'static Section, &'static str)> {
    SECTIONS.iter().flat_map(|section| section.keys().map(|key| (*section, key.name))).collect()
}

#[test]
fn every_key_of_the_shape_is_accepted() {
    let outside = Fake { manifest: Some("/cold/a /hot/a\n"), ..Fake::default() };
    for (section, key) in every_key() {
        let (text, _) = file_with(section, key, key);
        let read = read_with(&text, &outside);
        assert!(read.is_ok(), "{key} in {}: {:#?}\n{text}", section.title(), read.unwrap_err());
    }
}

#[test]
fn every_slip_of_the_pen_is_found_in_its_line_with_the_key_that_was_meant() {
    for (section, key) in every_key() {
        let slip = format!("{key}{}", key.chars().last().unwrap());
        let (text, line) = file_with(section, key, &slip);
        let outside = Fake { manifest: Some(""), ..Fake::default() };
        let found = read_with(&text, &outside).unwrap_err();
        let meant = format!("did you mean '{key}'?");
        let right = |mistake: &Mistake| mistake.place.line == line && mistake.text.contains(&meant);
        assert!(found.iter().any(right), "{slip} in {}, line {line}: {found:#?}\n{text}", section.title());
    }
}

#[test]
fn options_of_sshfs_are_those_of_the_command_line() {
    let loaded = good(
        "[sshfs]\nuid = 5\numask = 0o27\nCompression = true\nno_readahead = true\nfollow_symlinks = false\n\
         reconnect = true\nIdentityFile = ['/a', '/b']\nserveraliveinterval = '15'\nSetEnv = 'A=1'\nF = '/ssh/config'\n",
    );
    let mut given = loaded.config.sshfs_options;
    given.sort();
    let expected = [
        "-F/ssh/config",
        "Compression=yes",
        "IdentityFile=/a",
        "IdentityFile=/b",
        "ServerAliveInterval=15",
        "no_readahead",
        "ssh_command=ssh -oSetEnv=A=1",
        "uid=5",
        "umask=0027",
    ];
    assert_eq!(given.iter().filter(|option| *option != "idmap=user").collect::<Vec<_>>(), expected.each_ref());
    assert!(loaded.notes[0].starts_with("option 'reconnect' is not handed to sshfs"), "{:?}", loaded.notes);
}

#[test]
fn an_overlay_has_the_defaults_unless_it_says_otherwise() {
    let loaded = good(
        "[defaults]\nread_only = true\nnonempty = true\nattr_timeout = 3\nflags = ['noexec']\n\
         [[overlay]]\nmountpoint = '/a//x/'\n[[overlay]]\nmountpoint = '/b'\npath = './y/'\nread_only = false\n\
         nonempty = false\nflags = []\n",
    );
    let [first, second] = loaded.config.overlays.as_slice() else { panic!("{:?}", loaded.config.overlays) };
    assert_eq!((first.mountpoint.to_str(), first.path.to_str()), (Some("/a/x"), Some("")));
    assert_eq!((second.mountpoint.to_str(), second.path.to_str()), (Some("/b"), Some("y")));
    assert!(first.overlay.read_only && !second.overlay.read_only);
    assert_eq!(second.overlay.attr_timeout, Duration::from_secs(3));
    assert_eq!((first.overlay.mount_flags.len(), second.overlay.mount_flags.len()), (1, 0));
    assert_eq!(loaded.nonempty, [PathBuf::from("/a/x")].into());
}

#[test]
fn a_daemon_without_overlays_is_one() {
    assert_eq!(good("").config.overlays, []);
    assert_eq!(good("").config.file.as_deref(), Some(Path::new("/c")));
}

#[test]
fn a_directory_needs_no_manifest_root() {
    let text = "name = 'x'\nsource = 'dir:/cold'\nmanifest = '/m'\n";
    let outside = Fake { manifest: Some("/cold/a/b /hot"), ..Fake::default() };
    assert_eq!(read_with(text, &outside).unwrap().config.overlays[0].path, Path::new("a/b"));
}

#[test]
fn directories_of_this_machine_are_looked_for_when_it_is_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    let text = format!("name = 'x'\nsource = 'h:'\n[telemetry]\ntextfile = '{}/none'\n", dir.path().display());
    std::fs::write(&file, &text).unwrap();
    let Err(LoadError::Mistakes(found)) = load(&file) else { panic!("it is not there") };
    assert_eq!((found[0].place.line, found.len()), (4, 1));
    assert!(found[0].text.ends_with("is not a directory: make it first"), "{found:?}");
    std::fs::create_dir(dir.path().join("none")).unwrap();
    assert_eq!(load(&file).unwrap().config.telemetry.textfile, Some(dir.path().join("none")));
    assert!(matches!(load(&dir.path().join("missing")), Err(LoadError::Unreadable(_))));
    assert!(matches!(load(dir.path()), Err(LoadError::Unreadable(_))));
    std::fs::write(&file, b"name = 'x'\n\xff").unwrap();
    assert!(matches!(load(&file), Err(LoadError::Mistakes(found)) if found[0].place.line == 2));
}

#[test]
fn metrics_are_read_as_on_the_command_line() {
    let listen = good("[telemetry]\nmetrics = '10.0.0.1:9'\nmetrics_public = true\n").config.telemetry.listen;
    assert_eq!(listen, Some(MetricsListen::Tcp(([10, 0, 0, 1], 9).into())));
    let listen = good("[telemetry]\nmetrics = 'unix:/run/s'\n").config.telemetry.listen;
    assert_eq!(listen, Some(MetricsListen::Unix("/run/s".into())));
}

#[test]
fn there_is_an_end_to_overlays() {
    let all = |count: usize| (0..count).map(|n| format!("/cold/{n} /hot/{n}\n")).collect::<String>();
    let read = |manifest: String| {
        let outside = Fake { manifest: Some(manifest.leak()), ..Fake::default() };
        read_with("name = 'x'\nsource = 'dir:/cold'\nmanifest = '/m'\n", &outside)
    };
    assert_eq!(read(all(1000)).unwrap().config.overlays.len(), 1000);
    let found = read(all(1001)).unwrap_err();
    assert!(found[0].text.starts_with("more than 1000 overlays") && found[0].place.line == 1001, "{found:?}");
    // As many complaints as lines, however many conflict with each other.
    assert!(read("/cold/a /hot\n".repeat(900)).unwrap_err().len() < 2000);
}

#[test]
fn signals_have_names_and_numbers() {
    let worker = |more: &str| {
        let text = format!("[[worker]]\nname = 'w'\nkind = 'signal'\npid_file = '/p'\n{more}");
        good(&text).config.worker.workers[0].means.clone()
    };
    let signal = |pause, resume| Means::Signal { pid_file: "/p".into(), pause, resume, group: false };
    assert_eq!(worker(""), signal(libc::SIGSTOP, libc::SIGCONT));
    assert_eq!(worker("pause = 'tstp'\nresume = 10\n"), signal(libc::SIGTSTP, 10));
    assert_eq!(worker("pause = 'SIGUSR1'\nresume = '35'\n"), signal(libc::SIGUSR1, 35));
}

#[test]
fn mistakes_say_where_what_is_allowed_and_what_to_do() {
    let overlay = "[[overlay]]\nmountpoint = '/hot'\n";
    for (text, expected) in [
        ("deadline = 5", "0: unknown key 'deadline': it belongs into [calls]"),
        ("[call]\n", "0: unknown key 'call': did you mean 'calls'? allowed are name, source, manifest"),
        ("[calls]\ndeadline = '5x'", "1: deadline=5x is not a duration: write a number of seconds or a sum such as 5s"),
        ("[calls]\n\ndeadline = true", "2: deadline is a boolean: write deadline = \"DURATION\""),
        ("[calls]\ndeadline = '2h'", "1: deadline=2h is out of range: give 100ms to 1h (the default is 5s)"),
        ("[calls]\ndeadline = '9s'\nsync_deadline = 1", "2: sync_deadline=1s is less than deadline=9s: give"),
        ("[calls]\nro = true", "1: unknown key 'ro' in [calls]: write read_only = true in [[overlay]]"),
        ("[calls]\nnoexec = true", "1: unknown key 'noexec' in [calls]: write flags = [\"noexec\"]"),
        ("[calls]\nuid = 1", "1: unknown key 'uid' in [calls]: it belongs into [sshfs]"),
        ("[calls]\ndeadline = 1\ndeadline = 2", "2: 'deadline' is given twice: remove one"),
        ("[calls]\ndeadline = ", "1: is no TOML here"),
        ("[[calls]]\ndeadline = 1", "0: there is only one: write [calls]"),
        ("[overlay]\nmountpoint = '/a'", "0: there may be several: write [[overlay]]"),
        ("[worker]\nkind = 'flag'", "0: there may be several: write [[worker]]"),
        ("[evidence]\nunits = ['a', 'b', 'a']", "1: units has 'a' twice: remove one"),
        ("overlay = [5]", "0: overlay has an integer in it: write [[overlay]]"),
        ("[calls]\n[calls]", "1: 'calls' is given twice: remove one"),
        ("calls = 5", "0: calls is an integer: it is a section, write [calls]"),
        ("[sshfs]\nIdentityFil = '/k'", "1: unknown key 'IdentityFil' in [sshfs]: did you mean 'IdentityFile'?"),
        ("[sshfs]\ndeadline = 1", "1: unknown key 'deadline' in [sshfs]: it belongs into [calls]"),
        ("[sshfs]\nport = 70000", "1: port=70000 is not a port"),
        ("[sshfs]\nport = 22\nPort = 23", "2: Port and port are the same option: remove one"),
        ("[sshfs]\nIdentityFile = 'k'", "1: IdentityFile=k is not an absolute path"),
        ("[sshfs]\npassword_stdin = true", "1: option 'password_stdin' does not work with steadfs"),
        ("[sshfs]\numask = 27", "1: umask is octal: write it as a string"),
        ("[sshfs]\nuid = [1]", "1: uid is an array: write uid = NUMBER"),
        ("[sshfs]\nuid = 1\nidmap = 'file'", "2: idmap=file needs a map"),
        ("[repair]\nmax_per_hour = -1", "1: max_per_hour=-1 is not a number from 0 to 10000"),
        ("[repair]\nconfirm_interval = 1", "1: confirm_interval has no effect without confirmations: add"),
        ("[repair]\nenable_file = 'x'", "1: enable_file=x is not an absolute path: begin it with /"),
        ("[repair]\nenable_file = '/a/../x'", "1: enable_file=/a/../x must not contain ..: write the path out"),
        ("[log]\nlog_size = '1X'", "1: log_size=1X is not a size"),
        ("[telemetry]\nmetrics = '1.1.1.1:1'", "1: metrics=1.1.1.1:1 can be read by anybody"),
        ("[telemetry]\nmetrics = 'unix:s'", "1: metrics=unix:s is not"),
        ("[telemetry]\ncompat = 'x'\ncompat_state = '/s'", "1: compat=x is not a watchdog that can be stood in for"),
        ("[telemetry]\ncompat = 'healtharchive'", "1: compat has no effect without compat_state: add compat_state"),
        ("[[overlay]]\npath = 'a'", "0: [[overlay]] lacks 'mountpoint': add mountpoint = \"PATH\""),
        ("[[overlay]]\nmountpoint = 'a'", "1: mountpoint=a is not an absolute path"),
        ("[[overlay]]\nmountpoint = '/'", "1: mountpoint=/ is the root directory"),
        ("[[overlay]]\nmountpoint = '/a'\npath = '/b'", "2: path=/b is absolute"),
        ("[[overlay]]\nmountpoint = '/a'\npath = 'b/../c'", "2: path=b/../c must not contain .."),
        ("[[overlay]]\nmountpoint = '/a'\numask = '999'", "2: umask=999 is not a umask"),
        ("[[overlay]]\nmountpoint = '/a'\nowner = 'nobody_here:1'", "2: owner=nobody_here:1 names no user"),
        (
            "[[overlay]]\nmountpoint = '/a'\nflags = ['noexe']",
            "2: flags has 'noexe', no mount flag: did you mean 'noexec'?",
        ),
        ("[[overlay]]\nmountpoint = '/a'\nflags = ['exec', 'noexec']", "2: flags has 'exec' and 'noexec': remove one"),
        ("[[overlay]]\nmountpoint = '/a'\nflags = [1]", "2: flags has an integer in it: write strings"),
        (
            &format!("{overlay}{overlay}read_only = true"),
            "3: mountpoint /hot is given twice: remove one (the other is at /c:4:1)",
        ),
        (
            &format!("{overlay}[[overlay]]\nmountpoint = '/b'\npath = 'x'"),
            "3: /hot and /b show the same files of the store",
        ),
        (&format!("{overlay}[telemetry]\ntextfile = '/hot/x'"), "3: textfile: /hot/x lies below /hot"),
        (
            &format!("{overlay}[[worker]]\nname = 'w'\nkind = 'flag'\nfile = '/hot/f'"),
            "2: a file of worker 'w': /hot/f lies below /hot",
        ),
        ("[[worker]]\nname = 'w'\nkind = 'sginal'", "2: kind=sginal is not a kind of worker: did you mean 'signal'?"),
        (
            "[[worker]]\nname = 'w'\nkind = 'flag'\nfile = '/f'\nunit = 'a'",
            "4: unit is not for kind 'flag': allowed are",
        ),
        ("[[worker]]\nname = 'w'\nkind = 'flag'", "0: [[worker]] lacks 'file': add file = \"PATH\""),
        (
            "[[worker]]\nname = 'w'\nkind = 'unit'\nunit = 'crawl'",
            "3: unit=crawl lacks the unit's kind: write crawl.service",
        ),
        ("[[worker]]\nname = 'w'\nkind = 'container'", "0: [[worker]] lacks names or label: add one of them"),
        (
            "[[worker]]\nname = 'w'\nkind = 'container'\nnames = ['--all']",
            "3: names has '--all', which is empty, starts with a",
        ),
        ("[[after_recovery]]\nname = 'h'\ncommand = './x'", "2: command=./x runs ./x in whatever directory"),
        ("[[after_recovery]]\nname = 'h'\ncommand = []", "2: command has no command"),
        ("manifest = '/m'", "0: manifest needs manifest_root"),
        ("manifest = '/none'\nmanifest_root = '/cold'", "0: manifest=/none cannot be read: entity not found"),
        ("manifest = '/m'\nmanifest_root = '/cold'", "0: has one column: write COLD_PATH HOT_PATH"),
        ("manifest_root = '/cold'", "0: manifest_root has no effect without manifest"),
        ("[calls]\nerrno = '${NONE}'", "1: errno needs the environment variable NONE, which is not set"),
        ("[calls]\nerrno = '${SECRET}'", "1: errno=${SECRET} is not an errno to choose"),
        (
            "[calls]\ndeadline = '${FIVE}d'",
            "1: deadline=${FIVE}d is out of range: give 100ms to 1h (the default is 5s)",
        ),
    ] {
        let found = mistakes(text);
        assert!(found.iter().any(|line| line.starts_with(expected)), "{text}\n{found:#?}\n{expected}");
        assert!(!found.iter().any(|line| line.contains("hunter2")), "{found:#?}");
    }
}

#[test]
fn all_mistakes_are_told_at_once_and_in_order() {
    let text = "nam = 'x'\n[calls]\ndeadlin = 1\nhold = 'x'\n[telemetry]\nspool = 1\n[[overlay]]\nmountpoint = 'a'\n";
    let found = read_with(text, &Fake::default()).unwrap_err();
    let lines: Vec<usize> = found.iter().map(|mistake| mistake.place.line).collect();
    assert_eq!(lines, [1, 1, 1, 3, 4, 6, 8], "{found:#?}");
}

#[test]
fn what_is_missing_in_a_broken_file_is_not_complained_of() {
    let found = read_with("name = \nsource == 'h:'\n[calls]\ndeadlin = 1\n", &Fake::default()).unwrap_err();
    assert!(found.iter().all(|mistake| !mistake.text.contains("lacks")), "{found:#?}");
    assert!(found.iter().any(|mistake| mistake.place.line == 4), "{found:#?}");
}

#[test]
fn every_key_is_in_the_documentation() {
    let guide = include_str!("../../../docs/configuration.md");
    let page = include_str!("../../../docs/steadfs.toml.5").replace("\\-", "-");
    for section in SECTIONS {
        assert!(
            section.name.is_empty() || page.contains(&section.title()),
            "{} is not in the man page",
            section.title()
        );
        for key in section.keys() {
            let default = key.default().replace('|', "\\|");
            let row = format!(
                "| `{}` | `{}` | {} | {} |\n",
                key.name,
                key.syntax().replace('|', "\\|"),
                if default.is_empty() { "-" } else { &default },
                key.help().replace('|', "\\|")
            );
            assert!(guide.contains(&row), "docs/configuration.md lacks\n{row}");
            assert!(page.contains(key.name), "{} is not in the man page", key.name);
        }
    }
    assert!(guide.contains(EXAMPLE), "the example of the guide is another");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn never_panics(text in "\\PC{0,80}") {
        let _ = read_with(&text, &field());
    }

    /// The example with a piece cut out, doubled, or replaced.
    #[test]
    fn a_mutated_file_never_panics(
        cuts in proptest::collection::vec((0..EXAMPLE.len(), 0usize..40, "[\\[\\]='\"$\\{\\}\n#.a-z0-9é-]{0,8}"), 1..6)
    ) {
        let mut text = EXAMPLE.to_owned();
        for (at, length, instead) in cuts {
            let floor = |at: usize| (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            let (start, end) = (floor(at), floor(at + length));
            text.replace_range(start..end, &instead);
        }
        if let Err(found) = read_with(&text, &field()) {
            prop_assert!(!found.is_empty());
            let lines = text.matches('\n').count() + 1;
            prop_assert!(found.iter().all(|mistake| (1..=lines.max(3)).contains(&mistake.place.line)));
        }
    }

    #[test]
    fn a_mutated_manifest_never_panics(bytes in "[/a-z# \t\n.]{0,60}") {
        struct Own(Vec<u8>);
        impl Outside for Own {
            fn variable(&self, _: &str) -> Option<String> { None }
            fn read(&self, _: &Path, _: u64) -> io::Result<Vec<u8>> { Ok(self.0.clone()) }
            fn user(&self, _: &str) -> Option<u32> { None }
            fn group(&self, _: &str) -> Option<u32> { None }
        }
        let text = "name = 'x'\nsource = 'h:'\nmanifest = '/m'\nmanifest_root = '/a'\n";
        let _ = parse(Path::new("/c"), text, &Own(bytes.into_bytes()));
    }
}
