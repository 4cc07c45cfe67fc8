//! Taking over an sshfs whose daemon is dead, or ending it: docs/decisions/0009-taking-over-the-sshfs.md.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::unistd::Pid;

use super::group::{Group, state_letter};
use super::link::Link;
use super::orphans::{self, Identity};
use super::{LOOK, SshfsBacking, SshfsGeneration, Started, is_on, mountpoint, open_root, probe, queue, sweep};
use crate::backing::posix::PosixTree;
use crate::backing::process::Pinned;
use crate::backing::record::{AdoptError, Life, Mounted, Record, SshfsLife, VERSION};
use crate::backing::{ExitSink, Generation, ProcessExit, mountinfo};

/// How long what the dead daemon had sent may take to be carried out. Callers wait meanwhile.
const SETTLE: Duration = Duration::from_millis(300);

impl SshfsBacking {
    /// [`crate::backing::Backing::adopt`].
    pub(super) fn take_over(
        &self,
        record: &Record,
        root: Option<OwnedFd>,
        limit: Duration,
        exits: ExitSink,
    ) -> Result<Arc<dyn Generation>, AdoptError> {
        let taken = match &record.life {
            Life::Sshfs(life) => self.take(record, life, root, limit, exits),
            _ => Err(AdoptError::Other("what the dead daemon has left is no sshfs".into())),
        };
        // Whatever else there is, a generation that is not taken over must not live beside the next one.
        let spared = taken.is_ok().then_some(record.number);
        orphans::end_all(&self.directory, spared);
        if let Err(error) = sweep(&self.directory, spared) {
            tracing::warn!(%error, "something of a dead daemon is left behind in {}", self.directory.display());
        }
        taken
    }

    fn take(
        &self,
        record: &Record,
        life: &SshfsLife,
        root: Option<OwnedFd>,
        limit: Duration,
        exits: ExitSink,
    ) -> Result<Arc<dyn Generation>, AdoptError> {
        let number = record.number;
        let identity = Identity { leader: life.leader, session: Pid::from_raw(life.session) };
        let mut members = Vec::new();
        for process in &life.members {
            members.extend(process.pin().map_err(|errno| AdoptError::Unknown(format!("pidfd: {}", errno.desc())))?);
        }
        members.retain(|member| !member.has_ended());
        let whole = members.len() == life.members.len() && members.iter().any(|member| member.process() == life.leader);
        // Its ssh may have ended, and the server not know it yet.
        self.connections.remember(life.connections.clone());
        let sink = move |what| exits(ProcessExit { generation: number, what });
        let group = adopt_group(identity, members, sink).inspect_err(|_| identity.kill())?;
        let started = Started {
            number,
            mountpoint: mountpoint(&self.directory, number),
            group,
            link: Link::default(),
            connections: Arc::clone(&self.connections),
            since: Instant::now(),
        };
        let entered = self.look_it_over(record, life, whole, &started).and_then(|()| {
            let tree = enter(&started, root, life.mount.dev, limit)?;
            // Between the first look and now.
            alive(&started, life).map(|()| tree)
        });
        match entered {
            Ok(tree) => {
                self.connections.forget();
                self.connections.arm(&started.group);
                let (arguments, began, mount) = (self.arguments.clone(), record.began(), life.mount.clone());
                Ok(Arc::new(SshfsGeneration { started, arguments, began, mount, tree }))
            }
            Err(error) => {
                started.abort(Some(life.mount.dev));
                started.retire(Some(life.mount.dev)).unwrap_or_else(|left| tracing::warn!("{left}"));
                Err(error)
            }
        }
    }

    /// Everything that can be said without asking the server. The order matters: when the daemon has gone nothing is sent any
    /// more, and what was sent before has been carried out when nothing waits.
    fn look_it_over(
        &self,
        record: &Record,
        life: &SshfsLife,
        whole: bool,
        started: &Started,
    ) -> Result<(), AdoptError> {
        if record.version != VERSION {
            let (theirs, ours) = (record.version, VERSION);
            return Err(AdoptError::Other(format!("its record has version {theirs}, and this is version {ours}")));
        }
        if (&life.target, &life.options) != (&self.arguments.target, &self.arguments.options) {
            return Err(AdoptError::Other("it was mounted from elsewhere or with other options".into()));
        }
        if !self.arguments.keeps_order() {
            return Err(AdoptError::Other(
                "with max_conns= it is not known in which order a server does things".into(),
            ));
        }
        if !whole {
            return Err(AdoptError::Dead("sshfs or ssh has ended".into()));
        }
        is_mounted(started, &life.mount)?;
        alive(started, life)?;
        let until = Instant::now() + SETTLE;
        match record.daemon.wait_gone(until) {
            Ok(true) => {}
            Ok(false) => {
                let pid = record.daemon.pid;
                return Err(AdoptError::Unsettled(format!("its daemon (pid {pid}) has not ended yet")));
            }
            Err(errno) => return Err(AdoptError::Unknown(format!("pidfd: {}", errno.desc()))),
        }
        match queue::wait_until_empty(life.mount.dev.1, until) {
            Ok(0) => Ok(()),
            Ok(left) => Err(AdoptError::Unsettled(format!("{left} calls of its daemon are not carried out yet"))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(AdoptError::Dead("its FUSE connection has ended".into()))
            }
            Err(error) => Err(AdoptError::Unknown(format!("calls that wait in it cannot be counted: {error}"))),
        }
    }
}

fn adopt_group(
    identity: Identity,
    members: Vec<Pinned>,
    sink: impl Fn(String) + Send + 'static,
) -> Result<Arc<Group>, AdoptError> {
    Group::adopt(identity, members, sink).map_err(|error| AdoptError::Unknown(error.to_string()))
}

fn is_mounted(started: &Started, mount: &Mounted) -> Result<(), AdoptError> {
    match mountinfo::at(&started.mountpoint) {
        Ok(Some(entry)) if Mounted::from(&entry) == *mount => Ok(()),
        Ok(Some(entry)) => {
            let (path, source) = (started.mountpoint.display(), entry.source.to_string_lossy());
            Err(AdoptError::Foreign(format!("something else is mounted at {path}: {source}")))
        }
        Ok(None) => Err(AdoptError::Dead(format!("nothing is mounted at {}", started.mountpoint.display()))),
        Err(error) => Err(AdoptError::Unknown(format!("/proc/self/mountinfo: {error}"))),
    }
}

/// All of its processes live, and none is stopped.
fn alive(started: &Started, life: &SshfsLife) -> Result<(), AdoptError> {
    for process in &life.members {
        match state_letter(process.pid) {
            Some('T' | 't') => return Err(AdoptError::Silent("a process of it is stopped".into())),
            Some('Z' | 'X') | None => return Err(AdoptError::Dead(format!("its process {} has ended", process.pid))),
            Some(_) => {}
        }
    }
    match started.group.ending() {
        Some(ending) => Err(AdoptError::Dead(ending)),
        None => Ok(()),
    }
}

/// Opens its root, unless it has been kept, and has a probe answered, in a thread that may be lost.
fn enter(started: &Started, root: Option<OwnedFd>, dev: (u32, u32), limit: Duration) -> Result<PosixTree, AdoptError> {
    let until = Instant::now() + limit;
    let (sender, receiver) = channel();
    let mountpoint = started.mountpoint.clone();
    let open = move || {
        // One that is kept and is of something else is none.
        let kept = root.filter(|root| is_on(root, dev).unwrap_or(false));
        let opened = kept.map_or_else(|| open_root(&mountpoint, dev), Ok);
        let entered = opened.and_then(|root| {
            let tree = PosixTree::new(root);
            probe(&tree).map(|_| tree)
        });
        _ = sender.send(entered);
    };
    let thread = std::thread::Builder::new().name("first-probe".into()).spawn(open);
    thread.map_err(|error| AdoptError::Unknown(error.to_string()))?;
    loop {
        match receiver.recv_timeout(LOOK) {
            Ok(Ok(tree)) => return Ok(tree),
            Ok(Err(errno)) => return Err(AdoptError::Dead(format!("the first probe failed: {}", errno.desc()))),
            Err(RecvTimeoutError::Disconnected) => {
                return Err(AdoptError::Unknown("the first probe was lost".into()));
            }
            Err(RecvTimeoutError::Timeout) if Instant::now() >= until => {
                return Err(AdoptError::Silent(format!("no answer to a probe for {limit:?}")));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some(ending) = started.group.ending() {
                    return Err(AdoptError::Dead(ending));
                }
            }
        }
    }
}
