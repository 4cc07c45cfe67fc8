//! A server that answers as it should not.

use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use steadfs::backing::mountinfo;

use crate::lab::{process, wait};
use crate::rig::{LIMIT, Rig, within};
use crate::server::NAMES;

fn stat(rig: &Rig, name: &str) -> std::io::Result<std::fs::Metadata> {
    let path = rig.hot.join(name);
    within(name, move || std::fs::symlink_metadata(path))
}

fn read(rig: &Rig, name: &str) -> std::io::Result<Vec<u8>> {
    let path = rig.hot.join(name);
    within(name, move || {
        let mut data = Vec::new();
        // Of a file that is said to have no end only the beginning.
        File::open(path)?.take(1 << 20).read_to_end(&mut data)?;
        Ok(data)
    })
}

#[test]
fn absurd_attributes_harm_nobody() {
    let rig = Rig::hostile("");
    let daemon = rig.status()["pid"].clone();
    for name in ["huge", "endless", "times", "setuid", "character", "block", "nobody", "typeless", "all-bits"] {
        let name = format!("odd/{name}");
        let found = stat(&rig, &name);
        let data = read(&rig, &name);
        println!(
            "{name}: {:?}, {:?}",
            found.as_ref().map(|f| (f.mode(), f.size(), f.uid())),
            data.as_ref().map(Vec::len)
        );
        let append = within(&name, {
            let path = rig.hot.join(&name);
            move || std::fs::OpenOptions::new().append(true).open(path).map(drop)
        });
        println!("{name}: append {append:?}");
    }
    // Times beyond 2038 are shown as they are sent.
    assert_eq!(stat(&rig, "odd/times").unwrap().atime(), i64::from(u32::MAX));
    // Neither mount lets anybody use a device, or become somebody else.
    let table = mountinfo::entries().unwrap();
    let ours: Vec<_> = table.iter().filter(|entry| entry.mountpoint.starts_with(rig.directory())).collect();
    assert_eq!(ours.len(), 2, "the overlay and the sshfs");
    assert!(ours.iter().all(|entry| entry.has_option("nosuid") && entry.has_option("nodev")), "{ours:?}");
    for device in ["odd/character", "odd/block"] {
        let error = read(&rig, device).expect_err("a device of the server's choice is opened");
        assert!(matches!(error.raw_os_error(), Some(libc::EACCES | libc::EIO | libc::ENXIO | libc::ESTALE)), "{error}");
    }
    let listed = within("odd", {
        let path = rig.hot.join("odd");
        move || std::fs::read_dir(path).map(Iterator::count)
    });
    println!("odd: {listed:?}");
    rig.is_well_anew(&daemon);
    rig.end();
}

#[test]
fn absurd_figures_of_the_store_harm_nobody() {
    for figures in ["zeros", "ones"] {
        let rig = Rig::hostile("");
        let daemon = rig.status()["pid"].clone();
        rig.server.tell(figures);
        let started = Instant::now();
        // Until a probe and a statfs have brought them.
        while started.elapsed() < LIMIT / 4 {
            let hot = rig.hot.clone();
            let seen = within(figures, move || nix::sys::statvfs::statvfs(&hot));
            if seen.is_ok_and(|seen| seen.blocks() != 1000) {
                break;
            }
        }
        let hot = rig.hot.clone();
        let df = within("df", move || std::process::Command::new("df").arg(hot).output().unwrap());
        println!("{figures}: {}", String::from_utf8_lossy(&df.stdout));
        rig.is_well_anew(&daemon);
        rig.end();
    }
}

#[test]
fn no_listing_brings_a_name_that_leads_elsewhere() {
    let rig = Rig::hostile("");
    let daemon = rig.status()["pid"].clone();
    let path = rig.hot.join("names");
    let listed = within("names", move || -> std::io::Result<Vec<Vec<u8>>> {
        std::fs::read_dir(path)?.map(|entry| Ok(entry?.file_name().as_bytes().to_vec())).collect()
    });
    // The kernel refuses the whole of a listing that has a slash in a name (fuse_emit): EIO.
    println!("names: {listed:?}");
    for name in listed.unwrap_or_default() {
        assert!(!name.is_empty() && !name.contains(&b'/') && name != b".." && name != b".", "{}", name.escape_ascii());
        assert!(NAMES.iter().any(|sent| sent.starts_with(&name)), "{}", name.escape_ascii());
    }
    // A listing that says that it has more than it has.
    let path = rig.hot.join("grown");
    let grown = within("grown", move || std::fs::read_dir(path).map(|entries| entries.filter(Result::is_ok).count()));
    println!("grown: {grown:?}");
    rig.is_well_anew(&daemon);
    rig.end();
}

#[test]
fn a_listing_without_an_end_ends() {
    let mut rig = Rig::new();
    // The limit of sshfs is what it would be, or less if there is less.
    let mount = rig.mount("");
    let mut command = std::process::Command::new("prlimit");
    command.args(["--data=600000000:unlimited", "--"]).arg(mount.get_program()).args(mount.get_args());
    command.envs(mount.get_envs().filter_map(|(name, value)| Some((name, value?))));
    rig.serve(command);
    let (daemon, first) = (rig.status()["pid"].clone(), rig.sshfs());
    let path = rig.hot.join("endless");
    let error = within("endless", move || std::fs::read_dir(path)?.collect::<Result<Vec<_>, _>>().map(drop));
    println!("endless: {error:?}");
    assert!(error.is_err(), "it has an end");
    wait("sshfs is another one", || rig.sshfs().is_some_and(|pid| Some(pid) != first));
    rig.is_well_anew(&daemon);
    rig.end();
}

#[test]
fn sshfs_may_not_have_all_memory() {
    let rig = Rig::hostile("");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", rig.sshfs().unwrap())).unwrap();
    let data = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    let most: u64 = data.split_whitespace().nth(3).unwrap().parse().unwrap_or(u64::MAX);
    assert!(most <= 2 << 30, "{data}");
    rig.end();
}

#[test]
fn wrong_answers_and_none_cost_an_error_each() {
    let rig = Rig::hostile("");
    let daemon = rig.status()["pid"].clone();
    for name in ["wrong-id", "garbage", "cut-short", "vast", "tiny", "hangs-up", "silent"] {
        let started = Instant::now();
        let error = stat(&rig, name).expect_err(name);
        println!("{name}: {error} after {:.1} s", started.elapsed().as_secs_f64());
        assert_ne!(error.raw_os_error(), Some(libc::ENOENT), "{name}: what cannot be asked about is not absent");
        rig.is_well_anew(&daemon);
    }
    for name in ["mute", "long", "short", "status", "error"] {
        let started = Instant::now();
        let data = read(&rig, name);
        println!("{name}: {:?} after {:.1} s", data.as_ref().map(Vec::len), started.elapsed().as_secs_f64());
        // Never more than there is, and never zeros in the place of what the server did not send.
        if let Ok(data) = data {
            assert!(data.len() <= 100 && !data.contains(&0), "{name}: {}", data.escape_ascii());
        }
        rig.is_well_anew(&daemon);
    }
    rig.end();
}

/// Reads that are never answered hold the threads that read, and the room for bytes in flight.
#[test]
fn reads_that_are_never_answered_do_not_stop_the_others_for_ever() {
    let rig = Rig::hostile("sync_deadline=2s");
    let daemon = rig.status()["pid"].clone();
    let readers: Vec<_> = (0..24)
        .map(|number| {
            let path = rig.hot.join("mute");
            // Of each one request, and no read-ahead.
            let open = move || File::options().read(true).custom_flags(libc::O_DIRECT).open(path);
            std::thread::spawn(move || open()?.read_at(&mut vec![0; 128 << 10], number << 20))
        })
        .collect();
    for reader in readers {
        assert!(within("mute", || reader.join().unwrap()).is_err());
    }
    println!("{} threads, {} stuck", rig.status()["threads"], rig.status()["threads_stuck"]);
    rig.is_well_anew(&daemon);
    rig.end();
}

#[test]
fn links_lead_the_daemon_nowhere() {
    links("");
    // Newer versions of sshfs refuse what leads out of the tree, and are not what is tested here.
    let help = std::process::Command::new("sshfs").arg("--help").output().unwrap();
    let help = [help.stdout, help.stderr].concat();
    if String::from_utf8_lossy(&help).contains("no_contain_symlinks") {
        links(",no_contain_symlinks");
    }
}

fn links(options: &str) {
    let rig = Rig::hostile(&format!("attr_timeout=0,entry_timeout=0{options}"));
    let daemon = rig.status()["pid"].clone();
    let secret = rig.path("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("secret"), "local secret").unwrap();
    for (name, target) in [("absolute", "/etc/passwd"), ("up", "../../../../../../etc/passwd"), ("self", "self")] {
        let path = rig.hot.join("links").join(name);
        match within(name, move || std::fs::read_link(path)) {
            Err(error) if options.is_empty() && target != "self" => assert_eq!(error.raw_os_error(), Some(libc::EPERM)),
            found => assert_eq!(found.unwrap(), PathBuf::from(target)),
        }
        let below = rig.hot.join("links").join(name).join("x");
        // No call on a name below a link is the daemon's to follow: to the caller it is a link like any other.
        let how = OpenHow::new().flags(OFlag::O_PATH).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        assert_eq!(within(name, move || openat2(AT_FDCWD, &below, how).map(drop)), Err(Errno::ELOOP));
    }
    for name in ["nul", "empty", "long"] {
        let path = rig.hot.join("links").join(name);
        let target = within(name, move || std::fs::read_link(path));
        println!("{name}: {:?}", target.as_ref().map(|target| target.as_os_str().len()));
        assert!(target.is_err() || target.is_ok_and(|target| target.as_os_str().len() < 4096), "{name}");
    }
    // A file and a directory that turn into links to something of this machine, between two calls.
    assert!(stat(&rig, "turns").unwrap().is_file() && stat(&rig, "turns-dir").unwrap().is_dir());
    std::fs::write(rig.path("server/target"), secret.as_os_str().as_bytes()).unwrap();
    rig.server.tell("turn");
    for name in ["turns", "turns/secret", "turns-dir/secret", "turns-dir"] {
        for _ in 0..50 {
            let path = rig.hot.join(name);
            let how =
                OpenHow::new().flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
            let read = within(name, move || {
                let file = openat2(AT_FDCWD, &path, how)?;
                let mut data = String::new();
                File::from(file).read_to_string(&mut data).map_err(|_| Errno::EIO)?;
                Ok::<_, Errno>(data)
            });
            assert!(!read.as_ref().is_ok_and(|data| data.contains("secret")), "{name}: {read:?}");
        }
        let path = rig.hot.join(name);
        let made = within(name, move || {
            std::fs::OpenOptions::new().write(true).create(true).custom_flags(libc::O_NOFOLLOW).open(path).map(drop)
        });
        println!("{name}: {made:?}");
    }
    assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 1, "nothing was made there");
    assert!(!rig.server.asked().contains("etc/passwd"), "the server was asked for what a link leads to");
    rig.is_well_anew(&daemon);
    rig.end();
}

#[test]
fn a_flood_of_words_is_cut_and_nothing_of_it_is_obeyed() {
    let mut rig = Rig::new();
    rig.server.tell("flood");
    let mut command = rig.mount("");
    command.env("STEADFS_LOG", "debug");
    rig.serve(command);
    let daemon = rig.status()["pid"].clone();
    rig.is_well_anew(&daemon);
    let pid = i32::try_from(daemon.as_i64().unwrap()).unwrap();
    assert!(process::status_number(pid, "VmHWM") < 80 << 10, "{} KiB at most", process::status_number(pid, "VmHWM"));
    let log = rig.log();
    assert!(log.contains("owned") && !log.contains('\x1b') && !log.contains('\x07'), "it is in the log, and escaped");
    assert!(log.len() < 1 << 20, "{} bytes of log", log.len());
    assert!(log.lines().all(|line| line.is_empty() || line.contains("Z ")), "each line of the log is one of ours");
    rig.end();
}
