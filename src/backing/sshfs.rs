//! The backing behind `[user@]host:[dir]`: one sshfs a generation, without `reconnect`, in a private directory.

mod adopt;
pub mod caches;
pub mod command;
pub mod failure;
pub mod group;
pub mod link;
pub mod once;
pub mod orphans;
pub mod queue;
pub mod reach;
pub mod reset;
pub mod stderr;
pub mod tcp;

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};

use super::posix::PosixTree;
use super::record::{AdoptError, Life, Mounted, Record, SshfsLife};
use super::{
    Backing, ExitSink, Generation, OpResult, ProcessExit, StartError, StatFs, Traits, Tree, Vitals, mountinfo,
};
use crate::config::OverlayConfig;
use command::Arguments;
use group::Group;
use link::Link;
use once::Once;
use reach::Lookout;
use reset::Connections;

/// How often a start looks whether it has come further.
const LOOK: Duration = Duration::from_millis(10);
/// A start is given up when the peer's kernel has acknowledged nothing for that long: the link went in the middle.
const START_SILENCE: Duration = Duration::from_millis(2500);
/// How long a failing sshfs may take to end after its first failed call.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Time that killed processes have to be reaped. Those of an aborted connection are never in state D for long.
const REAP: Duration = Duration::from_secs(5);
/// f_files and f_blocks of the reply that sshfs makes up when the server cannot say (sshfs_statfs in sshfs.c).
const MADE_UP_FILES: u64 = 1_000_000_000;

/// See the module.
pub struct SshfsBacking {
    arguments: Arguments,
    /// Private, mode 0700; generations are mounted below it.
    directory: PathBuf,
    lookout: Lookout,
    connections: Arc<Connections>,
    cancelled: AtomicBool,
}

impl SshfsBacking {
    /// A backing that mounts below `directory`. Left-overs of a predecessor there are aborted and removed.
    pub fn new(target: &str, options: &[String], directory: &Path) -> io::Result<SshfsBacking> {
        SshfsBacking::after(&Arguments::new(target, options, OverlayConfig::default().attr_timeout), directory, None)
    }

    /// As [`SshfsBacking::new`], but the generation with that number is left for [`Backing::adopt`], which is to be called
    /// before anything is started.
    pub fn after(arguments: &Arguments, directory: &Path, spared: Option<u64>) -> io::Result<SshfsBacking> {
        let arguments = arguments.clone();
        let directory = directory.canonicalize()?;
        nix::sys::prctl::set_child_subreaper(true)?;
        orphans::end_all(&directory, spared);
        sweep(&directory, spared)?;
        let ssh = (!arguments.has_own_transport()).then(|| [vec![arguments.ssh_program()], arguments.ssh()].concat());
        Ok(SshfsBacking {
            arguments,
            directory,
            lookout: Lookout::new(ssh),
            connections: Arc::default(),
            cancelled: AtomicBool::new(false),
        })
    }

    fn wait_until_mounted(&self, started: &Started, until: Instant) -> Result<Mounted, StartError> {
        loop {
            if let Some(entry) = mountinfo::at(&started.mountpoint).map_err(local)?.filter(mountinfo::Entry::is_fuse) {
                return Ok(Mounted::from(&entry));
            }
            self.check(started, until)?;
            std::thread::sleep(LOOK);
        }
    }

    /// Fails when a start that is under way has no future.
    fn check(&self, started: &Started, until: Instant) -> Result<(), StartError> {
        if let Some(ending) = started.group.ending() {
            // The last words may still be on their way from the pipe.
            std::thread::sleep(LOOK * 3);
            return Err(failure::classify(&started.group.output(), &ending, &self.arguments.peer()));
        }
        if self.cancelled.load(Relaxed) {
            return Err(StartError::Unreachable("cancelled".into()));
        }
        if Instant::now() >= until {
            let output = started.group.output();
            let words = failure::last_words(&output).map(|line| format!(": {line}")).unwrap_or_default();
            return Err(StartError::Unreachable(format!("no answer in time{words}")));
        }
        if started.since.elapsed() > START_SILENCE && self.is_silent(started) {
            return Err(StartError::Silent("the link went silent while connecting".into()));
        }
        Ok(())
    }

    /// True if the link went in the middle of a start. An address that never answered is left to ssh, which tries others
    /// after it.
    fn is_silent(&self, started: &Started) -> bool {
        let vitals = started.link.vitals(&started.group);
        let connecting = started.link.connecting();
        !vitals.link_acked && connecting.is_none_or(|address| self.lookout.answered() == Some(address))
    }

    /// Opens the root and has the first probe answered.
    fn enter(&self, started: &Started, dev: (u32, u32), until: Instant) -> Result<PosixTree, StartError> {
        // Both may hang like any call into a generation, so a thread that may be lost does them.
        let (sender, receiver) = channel();
        let mountpoint = started.mountpoint.clone();
        let open = move || {
            let result = open_root(&mountpoint, dev).and_then(|root| {
                let tree = PosixTree::new(root);
                probe(&tree).map(|_| tree)
            });
            _ = sender.send(result);
        };
        std::thread::Builder::new().name("first-probe".into()).spawn(open).map_err(local)?;
        loop {
            match receiver.recv_timeout(LOOK) {
                Ok(Ok(tree)) => return Ok(tree),
                // An sshfs that mounts and then fails to log in says why just before it ends.
                Ok(Err(errno)) => {
                    let end = Instant::now() + LAST_WORDS;
                    while Instant::now() < end {
                        self.check(started, until)?;
                        std::thread::sleep(LOOK);
                    }
                    return Err(StartError::Unreachable(format!("the first probe failed: {}", errno.desc())));
                }
                Err(RecvTimeoutError::Timeout) => self.check(started, until)?,
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(StartError::Unreachable("the first probe was lost".into()));
                }
            }
        }
    }
}

impl Backing for SshfsBacking {
    fn traits(&self) -> Traits {
        let asynchronous = self.arguments.writes_asynchronously();
        let remembers = self.arguments.remembers;
        Traits { stable_inodes: false, keeps_unlinked: false, owners: false, asynchronous, remembers }
    }

    fn reach(&self, limit: Duration) -> Result<(), String> {
        self.lookout.reach(limit)
    }

    fn start(&self, number: u64, limit: Duration, exits: ExitSink) -> Result<Arc<dyn Generation>, StartError> {
        let until = Instant::now() + limit;
        let mountpoint = mountpoint(&self.directory, number);
        DirBuilder::new().mode(0o700).create(&mountpoint).map_err(local)?;
        // Before a server that counts connections is asked for one more.
        self.connections.knock();
        let sink = move |what| exits(ProcessExit { generation: number, what });
        let once = Once::new(&self.directory, self.arguments.ssh_command());
        let command = self.arguments.sshfs(&mountpoint, once.as_ref().map(Once::command));
        let group = Group::spawn(command, sink).map_err(|error| {
            let _ = std::fs::remove_dir(&mountpoint);
            StartError::Local(format!("sshfs cannot be started: {error}; is it installed?"))
        })?;
        if let Err(error) = orphans::record(&self.directory, number, group.leader()) {
            tracing::warn!(%error, "the processes of generation {number} are not written down");
        }
        let (connections, since) = (Arc::clone(&self.connections), Instant::now());
        let started = Started { number, mountpoint, group, link: Link::default(), connections, since };
        let began = SystemTime::now();
        let entered = self
            .wait_until_mounted(&started, until)
            .and_then(|mount| Ok((self.enter(&started, mount.dev, until)?, mount)));
        drop(once);
        match entered {
            Ok((tree, mount)) => {
                // Once more: the link may have been cut when it was done before.
                self.connections.knock();
                self.connections.forget();
                // Now, for the case that ssh ends by itself, and again before it is killed.
                self.connections.arm(&started.group);
                let arguments = self.arguments.clone();
                Ok(Arc::new(SshfsGeneration { started, arguments, began, mount, tree }))
            }
            Err(error) => {
                let dev = mountinfo::at(&started.mountpoint).ok().flatten().map(|entry| entry.dev);
                started.abort(dev);
                started.retire(None).unwrap_or_else(|left| tracing::warn!("{left}"));
                Err(error)
            }
        }
    }

    fn adopt(
        &self,
        record: &Record,
        root: Option<OwnedFd>,
        limit: Duration,
        exits: ExitSink,
    ) -> Result<Arc<dyn Generation>, AdoptError> {
        self.take_over(record, root, limit, exits)
    }

    fn cancel_start(&self) {
        self.cancelled.store(true, Relaxed);
    }
}

fn local(error: io::Error) -> StartError {
    StartError::Local(error.to_string())
}

/// Processes and mountpoint of a generation, whether it came up or not.
struct Started {
    number: u64,
    mountpoint: PathBuf,
    group: Arc<Group>,
    link: Link,
    connections: Arc<Connections>,
    since: Instant,
}

impl Started {
    fn abort(&self, dev: Option<(u32, u32)>) {
        self.group.condemn();
        // First of all: ssh ends as soon as sshfs does, and leaves what it has not sent to the kernel.
        self.connections.cut(&self.group);
        abort_connection(&self.mountpoint, dev);
        // Without CAP_SYS_ADMIN and fusectl this is what ends the connection: nobody holds /dev/fuse any more.
        self.group.kill();
    }

    /// `dev` is that of its mount, if it is known: nobody else's is detached then.
    fn retire(&self, dev: Option<(u32, u32)>) -> Result<(), String> {
        let reaped = self.group.wait_empty(REAP);
        detach(&self.mountpoint, dev).and_then(|()| std::fs::remove_dir(&self.mountpoint)).map_err(|error| {
            format!("generation {}: {} is left behind: {error}", self.number, self.mountpoint.display())
        })?;
        if reaped {
            if let Some(directory) = self.mountpoint.parent() {
                orphans::forget(directory, self.number);
            }
            Ok(())
        } else {
            Err(format!("generation {}: processes {:?} do not end", self.number, self.group.members()))
        }
    }
}

struct SshfsGeneration {
    started: Started,
    arguments: Arguments,
    began: SystemTime,
    mount: Mounted,
    tree: PosixTree,
}

impl Generation for SshfsGeneration {
    fn number(&self) -> u64 {
        self.started.number
    }

    fn tree(&self) -> &dyn Tree {
        &self.tree
    }

    fn probe(&self) -> OpResult<StatFs> {
        probe(&self.tree)
    }

    fn vitals(&self) -> Vitals {
        self.started.link.vitals(&self.started.group)
    }

    fn moved_bytes(&self) -> Option<u64> {
        self.started.link.moved_bytes(&self.started.group)
    }

    fn abort(&self) {
        self.tree.stop();
        self.started.abort(Some(self.mount.dev));
    }

    fn record(&self) -> Option<Record> {
        let (identity, members) = self.started.group.record()?;
        let life = SshfsLife {
            target: self.arguments.target.clone(),
            options: self.arguments.options.clone(),
            mount: self.mount.clone(),
            leader: identity.leader,
            session: identity.session.as_raw(),
            members,
            connections: self.started.connections.known(),
        };
        Some(Record::new(self.started.number, self.began, Life::Sshfs(life)))
    }

    fn root(&self) -> Option<BorrowedFd<'_>> {
        Some(self.tree.root().as_fd())
    }

    fn retire(&self) -> Result<(), String> {
        self.started.retire(Some(self.mount.dev))
    }
}

/// fstatfs(2) always goes to the server if it has `statvfs@openssh.com`; else a name that no cache can know is looked up.
fn probe(tree: &PosixTree) -> OpResult<StatFs> {
    let answer = tree.stat_fs()?;
    if answer.files == MADE_UP_FILES && answer.files_free == MADE_UP_FILES && answer.blocks == answer.blocks_free {
        let nonce = Instant::now().elapsed().as_nanos() ^ u128::from(std::process::id());
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |at| at.as_nanos());
        match tree.stat(Path::new(&format!(".steadfs-probe-{at:x}-{nonce:x}"))) {
            Ok(_) | Err(Errno::ENOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(answer)
}

/// Opens the root of a mount and makes sure that it is that mount and not the directory below it.
fn open_root(mountpoint: &Path, dev: (u32, u32)) -> OpResult<OwnedFd> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
    let root = open(mountpoint, flags, nix::sys::stat::Mode::empty())?;
    if is_on(&root, dev)? { Ok(root) } else { Err(Errno::ENOTCONN) }
}

/// True if a descriptor is on a mount of that device, in this namespace.
fn is_on(root: &OwnedFd, dev: (u32, u32)) -> OpResult<bool> {
    // fstat would ask the server; fdinfo only asks the kernel.
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", root.as_raw_fd())).map_err(|_| Errno::EIO)?;
    let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    let entries = mountinfo::entries().map_err(|_| Errno::EIO)?;
    Ok(entries.iter().any(|entry| Some(entry.id) == id && entry.dev == dev))
}

/// Aborts a FUSE connection: every call inside returns at once. Two ways, since neither is there on every machine:
/// umount2(2) with MNT_FORCE, which says EBUSY and aborts all the same, and fusectl (Documentation/filesystems/fuse).
fn abort_connection(mountpoint: &Path, dev: Option<(u32, u32)>) {
    let still_there = mountinfo::at(mountpoint).ok().flatten().filter(mountinfo::Entry::is_fuse);
    if let Some(entry) = still_there.filter(|entry| dev.is_none_or(|dev| dev == entry.dev)) {
        let _ = umount2(mountpoint, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW);
        let _ = std::fs::write(format!("/sys/fs/fuse/connections/{}/abort", entry.dev.1), "1");
    }
}

/// Takes every FUSE mount away from `mountpoint`, or every one of that device, busy or not.
fn detach(mountpoint: &Path, dev: Option<(u32, u32)>) -> io::Result<()> {
    let ours = |entry: &mountinfo::Entry| entry.is_fuse() && dev.is_none_or(|dev| dev == entry.dev);
    while mountinfo::at(mountpoint)?.as_ref().is_some_and(ours) {
        match umount2(mountpoint, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Err(Errno::EPERM) => {
                let status =
                    std::process::Command::new("fusermount3").args(["-u", "-z", "--"]).arg(mountpoint).status()?;
                if !status.success() {
                    return Err(io::Error::other(format!("fusermount3 -u -z: {status}")));
                }
            }
            // EINVAL: sshfs unmounted itself between the look and the call.
            Ok(()) | Err(Errno::EINVAL) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Where the generation with that number is mounted.
fn mountpoint(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("gen-{number}"))
}

/// What generation `number` has in the runtime directory.
pub fn names(number: u64) -> [String; 2] {
    [format!("gen-{number}"), orphans::name(number)]
}

/// Removes the mounts that a predecessor that was killed has left, but for that of one generation.
fn sweep(directory: &Path, spared: Option<u64>) -> io::Result<()> {
    let spared = spared.map(|number| mountpoint(directory, number));
    for entry in std::fs::read_dir(directory)?.flatten() {
        if entry.file_name().to_string_lossy().starts_with("gen-") && spared.as_ref() != Some(&entry.path()) {
            abort_connection(&entry.path(), None);
            detach(&entry.path(), None)?;
            std::fs::remove_dir(entry.path())?;
        }
    }
    Ok(())
}
