//! Wires one mount together and runs it until it is unmounted.

mod limits;
pub mod link;
mod notify;
mod orphans;
mod signals;
mod succession;
mod upkeep;

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::backing::dir::DirBacking;
use crate::backing::sshfs::SshfsBacking;
use crate::backing::{Backing, Generation};
use crate::config::{DaemonConfig, Source};
use crate::gate::Gate;
use crate::handover::Inherited;
use crate::keeper::executable::Executable;
use crate::overlay::Overlay;
use crate::overlay::mount::Mount;
use crate::overlay::rescue::{Rescue, Spool};
use crate::overlay::{Before, Device};
use crate::rundir;
use crate::spool;
use crate::statedir;
use crate::supervisor::permit::record;
use crate::supervisor::{Event, Inbox, Parts, PermitParts, Supervisor, Watch};
use crate::telemetry::{self, Observed, UmountRefused};
use crate::worker::Worker;
use link::{Link, Start};
use succession::{Heritage, Mounted, Succession};
use upkeep::Upkeep;

/// mount(8)'s code for a mount that failed.
const FAILED: i32 = 32;
/// How long a first start may take before the overlay is mounted without it. Refused keys are known by then.
const FIRST_ANSWER: Duration = Duration::from_secs(3);
/// Time between two looks for signals while the first start is under way.
const GLANCE: Duration = Duration::from_millis(50);
/// Time between two looks whether the overlay is still mounted.
const LOOK: Duration = Duration::from_millis(500);
/// Time between two events that belong together.
const SAME_BREATH: Duration = Duration::from_millis(200);
/// How long descriptors may take to be reopened before the gate opens; the rest is reopened when it is used.
const RESTORE: Duration = Duration::from_secs(5);
/// How long what is uncommitted at the end may take to be committed; what is not, is saved.
const COMMIT: Duration = Duration::from_secs(30);
/// How long a daemon that is to be replaced may take to answer what it has read, where nobody else can.
const FINISH: Duration = Duration::from_millis(500);
/// How long calls that were submitted before an unmount may take.
const DRAIN: Duration = Duration::from_secs(5);

/// Why a mount did not come about; the texts are for users and name the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// Bad invocation or missing permission: exit code 1 of mount(8).
    #[error("{0}")]
    Usage(String),
    /// This machine lacks something: exit code 2 of mount(8).
    #[error("{0}")]
    System(String),
    /// The mount failed: exit code 32 of mount(8).
    #[error("{0}")]
    Mount(String),
}

/// What makes the daemon act.
pub(crate) enum Wakeup {
    /// The overlay is no longer mounted anywhere, or its session failed.
    Unmounted(io::Result<()>),
    /// SIGTERM or SIGINT.
    Terminate,
    /// SIGHUP: try again at once.
    Retry,
}

/// Mounts and serves until the overlay is unmounted, in this process alone. `ready` is called once, when the overlay answers.
pub fn run(config: DaemonConfig, ready: impl FnOnce() + Send + 'static) -> Result<(), MountError> {
    live(config, Life::default(), Succession::none(), Heritage::None, ready)
}

/// As [`run`] for a daemon that a keeper has started, perhaps in the place of one that died.
pub fn run_kept(
    config: DaemonConfig,
    life: Life,
    link: Link,
    start: Start,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), MountError> {
    let reason = start.reason.clone();
    let begun = Succession::begin(link, start, &config);
    let (succession, heritage) =
        begun.map_err(|error| MountError::System(format!("nothing to go on with: {error}")))?;
    if !matches!(heritage, Heritage::None) {
        tracing::warn!(reason, "the daemon before this one ended; going on in its place");
    }
    let keeper = succession.link().clone();
    live(config, life, succession, heritage, move || {
        ready();
        keeper.ready();
    })
}

/// What the sign of life goes by: the gate, once there is one. And the overlay, which is asked before an end that was wanted.
#[derive(Clone, Default)]
pub struct Life(Arc<OnceLock<(Arc<Gate>, Arc<Overlay>)>>);

impl Life {
    /// True as long as the daemon does its work: asking for the load takes the gate's lock, so that one that is stuck
    /// gives no sign.
    pub fn alive(&self) -> Box<dyn Fn() -> bool + Send> {
        let gate = Arc::clone(&self.0);
        Box::new(move || gate.get().is_none_or(|(gate, _)| gate.load().threads < usize::MAX))
    }

    /// Ends the daemon for a successor.
    pub fn end(&self) -> ! {
        if let Some((_, overlay)) = self.0.get() {
            overlay.finish_what_was_read(FINISH);
        }
        // Everything that a successor needs is where it finds it after a death, so this is one.
        std::process::exit(0)
    }
}

fn live(
    config: DaemonConfig,
    life: Life,
    succession: Succession,
    heritage: Heritage,
    ready: impl FnOnce() + Send + 'static,
) -> Result<(), MountError> {
    // Modes come from the callers; the kernel has applied their umask.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    limits::raise_descriptors();
    let config = Arc::new(config);
    let started = SystemTime::now();
    // Before anything is started: whatever ends the daemon from here on, it cleans up after itself.
    let (wakeups, inbox) = channel();
    let _forwarding = signals::forward(wakeups.clone()).map_err(system)?;
    let watch = Watch::default();
    // Both follow the supervisor from its first event on.
    let successor = !matches!(heritage, Heritage::None);
    let bound = match telemetry::bind(&config, &watch) {
        // Nobody waits for a page of metrics as callers do for their answers.
        Err(error) if successor => {
            tracing::error!(error, "going on without metrics");
            telemetry::bind(&config.without_metrics(), &watch)
        }
        bound => bound,
    };
    let bound = bound.map_err(MountError::System)?;
    let start = if successor { Worker::succeed } else { Worker::start };
    let worker = start(&config.worker, &config.home, &watch).map_err(MountError::System)?;
    let worker = Arc::new(worker);
    let mut guard = None;
    let succession = Arc::new(succession);
    let before = (&succession, heritage, &life);
    let result = serve(&config, before, (wakeups, inbox), (bound, &mut guard), &watch, &worker, started, ready);
    if let (true, Err(error)) = (successor, &result) {
        leave_to_the_next(error);
    }
    // However it ended: nobody would let the worker go later. Until then the status can be asked for.
    worker.stop();
    drop(guard);
    result
}

#[allow(clippy::too_many_arguments)]
fn serve(
    config: &Arc<DaemonConfig>,
    (succession, heritage, life): (&Arc<Succession>, Heritage, &Life),
    wakeups: (Sender<Wakeup>, Receiver<Wakeup>),
    (bound, guard): (telemetry::Bound, &mut Option<telemetry::Guard>),
    watch: &Watch,
    worker: &Arc<Worker>,
    started: SystemTime,
    ready: impl FnOnce(),
) -> Result<(), MountError> {
    let directory = rundir::of(&config.home);
    let backing = make_backing(&config.source, &config.sshfs_options, &directory, succession.spared())?;
    let core = Core::start(config, backing, watch.clone(), wakeups, (succession, &heritage)).map_err(system)?;
    _ = life.0.set((Arc::clone(&core.gate), Arc::clone(&core.overlay)));
    let successor = !matches!(heritage, Heritage::None);
    let _upkeep = Upkeep::start(succession.notes(), &core.overlay, successor).map_err(system)?;
    // Served before there is a mount: a start that takes its time is what people ask about.
    let served = bound.serve(core.observed(config, worker, started)).map_err(system);
    let ended = heritage.device_ended();
    let first = served.and_then(|served| {
        *guard = Some(served);
        match heritage {
            Heritage::None => {
                core.first_answer(config.soft_start)?;
                core.mount(config)
            }
            Heritage::Whole(mounted, inherited) => core.go_on(config, mounted, Some(inherited)),
            Heritage::Blind(mounted, _) => core.go_on(config, mounted, None),
        }
    });
    let mount = match first {
        Ok(mount) => mount,
        Err(error) => {
            let over = ended();
            if over {
                tracing::info!(%error, "unmounted while nobody served");
                // An aborted connection stays mounted, and every call on it would fail for ever.
                core.mount.get().inspect(|mount| _ = mount.unmount(true));
            } else if successor {
                leave_to_the_next(&error);
            }
            core.stop();
            return if over { Ok(()) } else { Err(error) };
        }
    };
    ready();
    if let Some(event) = succession.ready() {
        watch.publish(event);
    }
    notify::ready();
    core.serve(&mount);
    notify::stopping();
    core.stop();
    Ok(())
}

/// Ends a daemon that cannot go on with what its predecessor left: the next one can, or the old executable. Nothing is tidied
/// up: what was not committed, the sshfs, and a worker that is paused are still needed.
fn leave_to_the_next(error: &MountError) -> ! {
    tracing::error!(%error, "cannot go on with the mount");
    std::process::exit(FAILED)
}

/// Asks the keeper for a daemon of the executable at `path`.
fn upgrade(succession: &Succession, mountpoint: &Path, path: &Path) -> Result<(), String> {
    let shown = path.display();
    if !path.is_absolute() {
        return Err(format!("{shown}: an absolute path is needed"));
    }
    // Nobody would serve it while it is started.
    if path.starts_with(mountpoint) {
        return Err(format!("{shown} lies on the overlay itself: copy it to a local disk"));
    }
    let without = "this mount has no keeper (keeper=no): unmount it and mount it again with the new steadfs";
    if succession.link().is_kept() && !succession.kept().possible {
        return Err("what a successor would have to know could not be noted (see `steadfs status`): an upgrade would cost open \
                    files and what is not committed; unmount it and mount it again with the new steadfs"
            .into());
    }
    let executable = Executable::open(path).map_err(|error| format!("{shown}: {error}"))?;
    match succession.link().upgrade(&executable) {
        Ok(true) => Ok(()),
        Ok(false) => Err(without.into()),
        Err(error) => Err(error.to_string()),
    }
}

fn system(error: io::Error) -> MountError {
    MountError::System(error.to_string())
}

fn spool_of(config: &DaemonConfig) -> Spool {
    Spool {
        directory: config.log.spool_dir.clone().unwrap_or_else(|| spool::default_dir(&config.home)),
        limit: config.log.spool_size,
        overlay: config.home.clone(),
        backing: config.source.label(),
    }
}

fn make_backing(
    source: &Source,
    options: &[String],
    directory: &Path,
    spared: Option<u64>,
) -> Result<Arc<dyn Backing>, MountError> {
    Ok(match source {
        Source::Sshfs { target } => Arc::new(
            SshfsBacking::after(target, options, directory, spared)
                .map_err(|error| MountError::System(format!("cannot clean up {}: {error}", directory.display())))?,
        ),
        Source::Dir { path } => {
            Arc::new(DirBacking::new(path.clone()).map_err(|error| MountError::Mount(error.to_string()))?)
        }
    })
}

/// The data path and its supervisor.
struct Core {
    gate: Arc<Gate>,
    overlay: Arc<Overlay>,
    supervisor: Arc<Supervisor>,
    watch: Watch,
    events: Receiver<(SystemTime, Event)>,
    wakeups: Sender<Wakeup>,
    inbox: Receiver<Wakeup>,
    /// Set when there is one.
    mount: Arc<OnceLock<Arc<Mount>>>,
    succession: Arc<Succession>,
}

impl Core {
    fn start(
        config: &DaemonConfig,
        backing: Arc<dyn Backing>,
        watch: Watch,
        (wakeups, wakeup_inbox): (Sender<Wakeup>, Receiver<Wakeup>),
        (succession, heritage): (&Arc<Succession>, &Heritage),
    ) -> io::Result<Core> {
        let events = watch.subscribe();
        let inbox = Inbox::new();
        let gate = Gate::new(config.calls, inbox.complaints())?;
        let (traits, mounted) = (backing.traits(), config.overlays[0].overlay.clone());
        let (rescue, notes) = (Rescue::new(spool_of(config)), succession.notes());
        let overlay = Overlay::noting(Arc::clone(&gate), traits, mounted, config.log.size, rescue, notes);
        match heritage {
            Heritage::None => {}
            Heritage::Whole(_, inherited) => overlay.resume(inherited),
            Heritage::Blind(_, reason) => {
                overlay.resume_blind();
                let detail =
                    format!("what the daemon before this one knew is lost ({reason}): files that are open fail");
                watch.publish(Event::Notice { detail });
            }
        }
        overlay.keep_hidden_journal(&statedir::of(&config.home), &config.source.label());
        let teller = watch.clone();
        overlay.on_notice(Box::new(move |detail| teller.publish(Event::Notice { detail })));
        let (restored, told, handed_on) = (Arc::clone(&overlay), watch.clone(), Arc::clone(succession));
        let restore = move |generation: &Arc<dyn Generation>| {
            handed_on.using(generation);
            let report = restored.restore(generation, RESTORE)?;
            for (path, errno) in report.failed {
                let detail = format!("{} cannot be reopened: {}", path.display(), errno.desc());
                told.publish(Event::Notice { detail });
            }
            Ok(())
        };
        let record = Some(statedir::of(&config.home).join(record::NAME));
        let parts = Parts {
            inbox,
            backing,
            gate: Arc::clone(&gate),
            restore: Arc::new(restore),
            policy: config.repair,
            permit: PermitParts { config: config.permit.clone(), record },
            deadline: config.calls.deadline,
            watch: watch.clone(),
        };
        let supervisor = match heritage {
            Heritage::None => Supervisor::start(parts)?,
            _ => Supervisor::resume(parts, succession.predecessor())?,
        };
        Ok(Core {
            gate,
            overlay,
            supervisor: Arc::new(supervisor),
            watch,
            events,
            wakeups,
            inbox: wakeup_inbox,
            mount: Arc::default(),
            succession: Arc::clone(succession),
        })
    }

    /// Waits for the first generation, or for the news that there will be none, or for the end.
    fn first_answer(&self, soft: bool) -> Result<(), MountError> {
        let mut until = Instant::now() + FIRST_ANSWER;
        loop {
            match self.inbox.try_recv() {
                Ok(Wakeup::Terminate) => {
                    return Err(MountError::Mount("it was told to end before the overlay was mounted".into()));
                }
                Ok(Wakeup::Retry) => self.supervisor.retry_now(),
                Ok(Wakeup::Unmounted(_)) | Err(_) => {}
            }
            let wait = if soft { until.saturating_duration_since(Instant::now()).min(GLANCE) } else { GLANCE };
            let event = match self.events.recv_timeout(wait) {
                Ok((_, event)) => event,
                Err(RecvTimeoutError::Timeout) if soft && Instant::now() >= until => return Ok(()),
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return Err(MountError::Mount("the supervisor ended".into())),
            };
            match event {
                Event::Recovered { .. } => return Ok(()),
                Event::StartFailed { detail, halted: true, .. } => return Err(MountError::Mount(detail)),
                // Nothing has been said: a login that takes longer than `deadline`.
                Event::OutageBegan { detail, .. } if !soft && detail.is_empty() => {}
                Event::StartFailed { detail, .. } | Event::OutageBegan { detail, .. } if !soft => {
                    return Err(MountError::Mount(format!("{detail} (soft_start=no was given)")));
                }
                Event::StartFailed { .. } => return Ok(()),
                // If it began with a failed start, the next event says whether another one makes sense.
                Event::OutageBegan { .. } => until = until.min(Instant::now() + SAME_BREATH),
                _ => {}
            }
        }
    }

    /// Mounts the overlay and returns when the kernel and the session agree.
    fn mount(&self, config: &DaemonConfig) -> Result<Arc<Mount>, MountError> {
        let (device, mount) = Mount::attach(&config.overlays[0].overlay, &config.source.label(), &config.home)?;
        let mount = Arc::new(mount);
        self.serve_session(&mount, Device::new(device), None).inspect_err(|_| _ = mount.unmount(true))?;
        mount.raise_read_ahead();
        Ok(Arc::clone(self.mount.get_or_init(|| mount)))
    }

    /// Goes on with the mount of a predecessor.
    fn go_on(
        &self,
        config: &DaemonConfig,
        mounted: Mounted,
        inherited: Option<Box<Inherited>>,
    ) -> Result<Arc<Mount>, MountError> {
        let Mounted { device, greeting, dev } = mounted;
        let mount = Arc::new(Mount::resumed(&config.overlays[0].overlay, &config.source.label(), &config.home, dev));
        // First of all: whoever unmounts must find it.
        let mount = Arc::clone(self.mount.get_or_init(|| mount));
        self.serve_session(&mount, device, Some((greeting, inherited)))?;
        if self.overlay.awaits_a_request() {
            // The callers of what a predecessor had read make none while they wait.
            let path = config.home.clone();
            let ask = move || {
                let _ = nix::sys::statvfs::statvfs(&path);
            };
            std::thread::Builder::new().name("first".into()).spawn(ask).map_err(system)?;
        }
        Ok(mount)
    }

    /// Serves a session, one that begins or a predecessor's, in a thread of its own; returns when it has begun.
    fn serve_session(&self, mount: &Arc<Mount>, device: Device, before: Option<Before>) -> Result<(), MountError> {
        let (sender, begun) = channel();
        let (overlay, wakeups) = (Arc::clone(&self.overlay), self.wakeups.clone());
        let (succession, mounted) = (Arc::clone(&self.succession), Arc::clone(mount));
        let session = move || {
            let session = overlay.begin_session(device, before, |device, greeting| {
                // Before the first request is read: whoever is told something is told it by one that has a successor.
                succession.serving(device.as_fd(), greeting, &mounted)
            });
            let result = session.and_then(|session| {
                _ = sender.send(());
                crate::overlay::run_session(session)
            });
            _ = wakeups.send(Wakeup::Unmounted(result));
        };
        std::thread::Builder::new().name("session".into()).spawn(session).map_err(system)?;
        match begun.recv_timeout(DRAIN) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Timeout) => {
                Err(MountError::System("the kernel did not begin the FUSE session".into()))
            }
            // It has said why to the one who waits for its end.
            Err(RecvTimeoutError::Disconnected) => Err(match self.inbox.recv_timeout(DRAIN) {
                Ok(Wakeup::Unmounted(Err(error))) => MountError::System(format!("the FUSE session: {error}")),
                _ => MountError::System("the FUSE session ended at once".into()),
            }),
        }
    }

    fn observed(&self, config: &Arc<DaemonConfig>, worker: &Arc<Worker>, started: SystemTime) -> Observed {
        let (overlay, supervisor) = (Arc::clone(&self.overlay), Arc::clone(&self.supervisor));
        let replaced = Arc::clone(&self.supervisor);
        let (mount, wakeups) = (Arc::clone(&self.mount), Mutex::new(self.wakeups.clone()));
        let succession = Arc::clone(&self.succession);
        let (handed_on, told) = (Arc::clone(&self.succession), self.succession.link().clone());
        let hot = config.home.clone();
        Observed {
            config: Arc::clone(config),
            gate: Arc::clone(&self.gate),
            watch: self.watch.clone(),
            worker: Arc::clone(worker),
            started,
            counts: Arc::new(move || overlay.counts()),
            kept: Arc::new(move || succession.kept()),
            retry_now: Arc::new(move || supervisor.retry_now()),
            replace: Arc::new(move || replaced.replace()),
            upgrade: Arc::new(move |path| upgrade(&handed_on, &hot, path)),
            upgraded: Arc::new(move || told.upgraded()),
            stop: Arc::new(move |lazy| {
                let Some(mount) = mount.get() else {
                    // Nothing is mounted yet; who asks wants the daemon to end.
                    _ = wakeups.lock().send(Wakeup::Terminate);
                    return Ok(());
                };
                match mount.unmount(lazy) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        Err(UmountRefused::Busy("target is busy".into()))
                    }
                    Err(error) => Err(UmountRefused::Other(error.to_string())),
                    Ok(()) => Ok(()),
                }
            }),
        }
    }

    /// Serves until nothing is mounted any more.
    fn serve(&self, mount: &Mount) {
        let every = notify::watchdog_interval().unwrap_or(LOOK).min(LOOK);
        let (mut gone_since, mut told_to_end) = (None, None::<Instant>);
        let mut orphans = orphans::Orphans::default();
        loop {
            orphans.look();
            if told_to_end.is_some_and(|at| at.elapsed() >= DRAIN) {
                // Somebody in another mount namespace holds a copy of the mount, and a file in it; our end is theirs.
                tracing::warn!("still in use elsewhere; its users are cut off");
                let _ = mount.unmount(true);
                return;
            }
            if mount.is_mounted() {
                gone_since = None;
            } else if self.is_abandoned(*gone_since.get_or_insert_with(Instant::now)) {
                tracing::info!("unmounted here; another mount namespace has a copy, which ends now");
                return;
            }
            for (_, event) in self.events.try_iter() {
                tracing::debug!(?event);
                match event {
                    Event::OutageBegan { since, .. } => self.succession.outage(Some(since)),
                    Event::Recovered { .. } => self.succession.outage(None),
                    _ => {}
                }
                notify::status(&self.watch.snapshot());
            }
            match self.inbox.recv_timeout(every) {
                Ok(Wakeup::Unmounted(Ok(()))) => {
                    // Somebody has ended the connection and left the mount: every call on it would fail for ever.
                    if mount.is_at_its_place() {
                        tracing::error!("the FUSE connection was aborted; the overlay is unmounted");
                        let _ = mount.unmount(true);
                    }
                    return;
                }
                Ok(Wakeup::Unmounted(Err(error))) => {
                    tracing::error!(%error, "the FUSE session failed");
                    let _ = mount.unmount(true);
                    return;
                }
                Ok(Wakeup::Terminate) => {
                    told_to_end.get_or_insert_with(Instant::now);
                    self.terminate(mount);
                }
                Ok(Wakeup::Retry) => self.supervisor.retry_now(),
                // Asking for the load takes the gate's lock: a gate that is stuck keeps the watchdog silent.
                Err(RecvTimeoutError::Timeout) if self.gate.load().threads < usize::MAX => notify::alive(),
                Err(_) => return,
            }
        }
    }

    /// True when the overlay has been unmounted here for a moment and nobody has anything open. The kernel does not end
    /// the session as long as a copy of the mount exists in another namespace, and every process that made its own
    /// namespace while the overlay was mounted has one.
    fn is_abandoned(&self, gone_since: Instant) -> bool {
        let counts = self.overlay.counts();
        gone_since.elapsed() >= LOOK && counts.open_files == 0 && counts.open_dirs == 0
    }

    /// Unmounts; users that are still there lose the mount, but never a write that was acknowledged.
    fn terminate(&self, mount: &Mount) {
        if let Err(error) = mount.unmount(false) {
            tracing::warn!(%error, "the overlay is in use; its users are cut off");
            // The connection is found by its mount, so it is ended first.
            mount.abort();
            let _ = mount.unmount(true);
        }
    }

    fn stop(&self) {
        let until = Instant::now() + DRAIN;
        while self.gate.load().waiting > 0 && !self.gate.in_outage() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.overlay.finish(Instant::now() + COMMIT);
        self.gate.stop();
        self.supervisor.stop();
    }
}
