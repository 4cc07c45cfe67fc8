#![allow(clippy::unwrap_used)]

use std::time::Duration;

use nix::errno::Errno;
use proptest::prelude::*;

use super::*;
use crate::config::{MetricsListen, PermitConfig};

fn parse_one(text: &str) -> Result<Options, String> {
    parse([text])
}

fn error(text: &str) -> String {
    parse_one(text).expect_err(text)
}

#[test]
fn own_options_reach_the_configuration() {
    let options = parse([
        "deadline=2s,sync_deadline=1m,hold=1h30m,errno=eio,probe_interval=500ms,probe_deadline=1,start_deadline=9s",
        "backoff_min=1s,backoff_max=2s,steady=0,soft_start=no,ro,subtype=sshfs,fsname=a\\,b,attr_timeout=3",
        "entry_timeout=0.5,pause_file=/tmp/p,on_outage=/bin/a 'b c',on_recovery=sh:x | y,hook_timeout=4s,metrics=[::1]:9",
        "log_size=1G,spool_dir=/tmp/no-spool-yet,spool_size=2GiB",
        "deploy_lock=/tmp/l,deploy_lock_max_age=1h,enable_file=/etc/e,confirmations=2,confirm_interval=30,min_age=2m,cool_down=15m",
        "max_per_hour=2,max_per_day=6",
        "textfile=/tmp,noguard,nosuid,noatime,allow_other,nonempty",
    ])
    .unwrap();
    let seconds = Duration::from_secs;
    assert_eq!(options.calls.deadline, seconds(2));
    assert_eq!(options.calls.sync_deadline, seconds(60));
    assert_eq!(options.calls.hold, seconds(5400));
    assert_eq!(options.calls.outage_errno, Errno::EIO);
    assert_eq!(options.repair.probe_interval, Duration::from_millis(500));
    assert_eq!(options.repair.probe_deadline, seconds(1));
    assert_eq!(options.repair.start_deadline, seconds(9));
    assert_eq!((options.repair.backoff_min, options.repair.backoff_max), (seconds(1), seconds(2)));
    assert_eq!(options.repair.steady, Duration::ZERO);
    assert!(!options.soft_start && options.overlay.read_only && options.nonempty && options.overlay.allow_other);
    assert!(!options.overlay.guard);
    assert_eq!(options.overlay.subtype, "sshfs");
    assert_eq!(options.overlay.fsname.as_deref(), Some("a,b"));
    assert_eq!(options.overlay.attr_timeout, seconds(3));
    assert_eq!(options.overlay.entry_timeout, Some(Duration::from_millis(500)));
    assert_eq!(options.overlay.mount_flags, ["nosuid", "noatime"]);
    assert_eq!((options.log.size, options.log.spool_size), (1 << 30, 2 << 30));
    let permit = PermitConfig {
        deploy_lock: Some("/tmp/l".into()),
        deploy_lock_max_age: Some(seconds(3600)),
        enable_file: Some("/etc/e".into()),
        confirmations: 2,
        confirm_interval: seconds(30),
        min_age: seconds(120),
        cool_down: seconds(900),
        max_per_hour: 2,
        max_per_day: 6,
    };
    assert_eq!(options.permit, permit);
    assert_eq!(options.log.spool_dir.as_deref(), Some(Path::new("/tmp/no-spool-yet")));
    assert_eq!(options.worker.pause_file.as_deref(), Some(Path::new("/tmp/p")));
    assert_eq!(options.worker.on_outage.unwrap().argv, ["/bin/a", "b c"]);
    assert_eq!(options.worker.on_recovery.unwrap().argv, ["/bin/sh", "-c", "x | y"]);
    assert_eq!(options.worker.hook_timeout, Some(seconds(4)));
    assert_eq!(options.telemetry.listen, Some(MetricsListen::Tcp("[::1]:9".parse().unwrap())));
    assert_eq!(options.telemetry.textfile.as_deref(), Some(Path::new("/tmp")));
    assert!(options.sshfs.is_empty() && options.notes.is_empty());
}

#[test]
fn the_line_that_people_use_with_sshfs_is_taken_as_it_is() {
    let options = parse_one(
        "allow_other,default_permissions,uid=1000,gid=1001,umask=0027,reconnect,serveraliveinterval=15,\
         ServerAliveCountMax=3,kernel_cache,_netdev,nofail,x-systemd.automount,Port=23,StrictHostKeyChecking=yes",
    )
    .unwrap();
    let handed_on =
        ["uid=1000", "gid=1001", "umask=0027", "ServerAliveInterval=15", "ServerAliveCountMax=3", "port=23"];
    assert_eq!(options.sshfs[..6], handed_on);
    assert_eq!(options.notes.len(), 3, "{:?}", options.notes);
}

#[test]
fn what_sshfs_does_not_hand_on_goes_into_the_ssh_command() {
    let options = parse(["SetEnv=A=b c,ConnectTimeout=3,User=me"]).unwrap();
    assert_eq!(options.sshfs, ["ConnectTimeout=3", "ssh_command=ssh -oSetEnv=A=b\\ c -oUser=me"]);
    let options = parse(["ssh_command=/x/ssh,Tag=a"]).unwrap();
    assert_eq!(options.sshfs, ["ssh_command=/x/ssh -oTag=a"]);
}

#[test]
fn errors_name_the_option_what_is_allowed_and_the_remedy() {
    for (text, expected) in [
        ("deadlin=5s", "unknown option 'deadlin': did you mean 'deadline'?"),
        ("ServerAliveIntervall=5", "unknown option 'ServerAliveIntervall': did you mean 'ServerAliveInterval'?"),
        ("frobnicate", "unknown option 'frobnicate': see steadfs mount --help, sshfs(1) and ssh_config(5)"),
        ("deadline", "option 'deadline' needs a value: write deadline=DURATION"),
        (
            "deadline=abc",
            "deadline=abc is not a duration: write a number of seconds or a sum such as 5s, 500ms, 2m, 1h30m",
        ),
        ("deadline=0", "deadline=0 is out of range: give 100ms to 1h (the default is 5s)"),
        ("deadline=99ms", "deadline=99ms is out of range: give 100ms to 1h (the default is 5s)"),
        (
            "sync_deadline=2s",
            "sync_deadline=2s is less than deadline=5s (the default): give sync_deadline=5s or more, or less for deadline",
        ),
        (
            "backoff_min=3,backoff_max=1",
            "backoff_max=1s is less than backoff_min=3s: give backoff_max=3s or more, or less for backoff_min",
        ),
        (
            "log_size=64MB",
            "log_size=64MB is not a size: write a number of bytes, or of units of 1024 such as 512K, 64M, 64MiB, 1G",
        ),
        ("log_size=4K", "log_size=4K is out of range: give 1MiB to 4GiB (the default is 64MiB)"),
        ("log_size", "option 'log_size' needs a value: write log_size=SIZE"),
        (
            "spool_size=8M",
            "spool_size=8MiB is less than log_size=64MiB (the default): give spool_size=64MiB or more, or less for log_size",
        ),
        ("spool_dir=/no/such/dir", "spool_dir=/no/such/dir cannot be made: make the directory /no/such first"),
        ("max_per_hour=-1", "max_per_hour=-1 is not a number: give 0, 1, 2 and so on"),
        ("soft_start=maybe", "soft_start=maybe is neither yes nor no"),
        ("noguard=yes", "option 'noguard' takes no value: write guard=yes|no, guard, noguard"),
        ("ro=1", "option 'ro' takes no value: write ro"),
        (
            "metrics=0.0.0.0:9",
            "metrics=0.0.0.0:9 can be read by anybody who reaches it: give a loopback address, or add metrics_public",
        ),
        ("textfile=/no/such", "textfile=/no/such is not a directory: make it first"),
        (
            "errno=ENOENT",
            "errno=ENOENT is not an errno to choose: give one of ENOTCONN, EIO, ETIMEDOUT, EAGAIN, EHOSTDOWN",
        ),
        (
            "password_stdin",
            "option 'password_stdin' does not work with steadfs: steadfs logs in again after an outage with nobody there to ask: use a key",
        ),
        ("umask=9", "umask=9 is not an octal number: see sshfs(1)"),
        ("uid", "option 'uid' of sshfs needs a value: write uid=VALUE"),
        ("port=70000", "port=70000 is not a port: give 1 to 65535"),
        ("idmap=file", "idmap=file needs a map: add uidfile=FILE or gidfile=FILE"),
        (
            "RemoteCommand=x",
            "option 'RemoteCommand' of ssh does not work with steadfs: it would break the sftp session: remove it",
        ),
        ("ConnectTimeout", "option 'ConnectTimeout' of ssh needs a value: write ConnectTimeout=VALUE"),
    ] {
        assert_eq!(error(text), expected);
    }
}

#[test]
fn a_default_gives_way_to_what_was_asked_for() {
    let options = parse_one("deadline=2m,backoff_min=1m,log_size=1G").unwrap();
    assert_eq!(options.calls.sync_deadline, Duration::from_secs(120));
    assert_eq!(options.repair.backoff_max, Duration::from_secs(60));
    assert_eq!(options.log.spool_size, 1 << 30);
}

#[test]
fn the_last_of_two_wins() {
    let options = parse(["deadline=2s,ro", "deadline=3s,rw"]).unwrap();
    assert_eq!(options.calls.deadline, Duration::from_secs(3));
    assert!(!options.overlay.read_only);
}

#[test]
fn the_last_of_two_wins_for_ssh_too_unless_it_adds_up() {
    let options = parse([
        "Port=1,ConnectTimeout=3,IdentityFile=/a,User=a,SetEnv=A=1,-F/x,-C,uid=1",
        "port=2,connecttimeout=9,IdentityFile=/b,user=x,User=b,SetEnv=B=2,-F/y,Compression=no,uid=2",
    ])
    .unwrap();
    let expected = [
        "IdentityFile=/a",
        "uid=1",
        "port=2",
        "ConnectTimeout=9",
        "IdentityFile=/b",
        "-F/y",
        "Compression=no",
        "uid=2",
        "ssh_command=ssh -oSetEnv=A=1 -oUser=b -oSetEnv=B=2",
    ];
    assert_eq!(options.sshfs, expected);
}

#[test]
fn a_user_sees_his_files_as_his_own_unless_he_wants_otherwise() {
    for (given, mapped) in [("", true), ("gid=5", true), ("uid=7", false), ("idmap=none", false)] {
        let mut options = parse_one(given).unwrap();
        options.own_files();
        assert_eq!(options.sshfs.contains(&"idmap=user".to_owned()), mapped, "{given}");
    }
}

#[test]
fn help_and_man_page_name_what_is_refused() {
    let page = include_str!("../../../docs/steadfs.8").replace("\\-", "-");
    let refused = |text: &str| text.split_once("cannot work with it").expect("it is said").1.to_owned();
    let (help, page) = (refused(&help()), refused(&page));
    for name in known::refused() {
        assert!(help.contains(name), "{name} is not in the help");
        assert!(page.contains(name), "{name} is not in the man page");
    }
}

#[test]
fn public_metrics_have_to_be_asked_for() {
    assert!(parse_one("metrics=10.0.0.1:9100,metrics_public").is_ok());
    assert!(parse_one("metrics=[::ffff:127.0.0.1]:9100").is_ok());
    assert!(parse_one("metrics=[::]:9100").is_err());
}

#[test]
fn every_default_is_within_its_own_limits() {
    for option in table::TABLE {
        if let table::Kind::Duration(..) | table::Kind::Size(..) = option.kind {
            let mut options = Options::default();
            option.apply(&mut options, Some(&option.default())).unwrap();
        }
    }
}

#[test]
fn help_and_man_page_name_every_option_and_default() {
    let page = include_str!("../../../docs/steadfs.8").replace("\\-", "-");
    let help = help();
    for option in table::TABLE {
        assert!(help.contains(&format!("  {}\n", option.syntax())), "{} is not in the help", option.name);
        let heading = page.lines().position(|line| {
            line.starts_with(".B") && line.replace("\\fR", "").replace("\\fI", "").contains(option.name)
        });
        assert!(heading.is_some(), "{} is not in the man page", option.name);
        if let table::Kind::Duration(..) | table::Kind::Size(..) = option.kind {
            let entry: Vec<&str> = page.lines().skip(heading.unwrap()).take_while(|line| *line != ".TP").collect();
            let default = format!("Default: {}.", option.default());
            assert!(entry.contains(&default.as_str()), "{}: {default} is not in the man page", option.name);
        }
    }
}

proptest! {
    #[test]
    fn never_panics(text in "\\PC{0,60}") {
        let _ = parse_one(&text);
    }

    #[test]
    fn near_misses_never_panic(
        name in proptest::sample::select(
            table::TABLE.iter().map(|o| o.name).chain(known::names()).collect::<Vec<_>>()),
        text in "=?[-0-9a-z.:/'\"\\\\,=]{0,20}",
    ) {
        let _ = parse_one(&format!("{name}{text}"));
    }

    #[test]
    fn durations_round_trip_through_options(millis in 100u64..3_600_000, sync in 0u64..3_600_000) {
        let (deadline, sync) = (Duration::from_millis(millis), Duration::from_millis(millis + sync));
        let text = format!("deadline={},sync_deadline={}", duration::format(deadline), duration::format(sync));
        let options = parse_one(&text).unwrap();
        prop_assert_eq!((options.calls.deadline, options.calls.sync_deadline), (deadline, sync));
    }

    #[test]
    fn values_for_ssh_arrive_as_they_were_written(value in "[!-~ ]{1,30}") {
        let option = format!("ProxyCommand={value}");
        let options = parse_one(&split::join([option.as_str()])).unwrap();
        prop_assert_eq!(options.sshfs, [option]);
    }
}
