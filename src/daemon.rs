//! Wires one mount together and runs it until it is unmounted.

mod notify;
mod orphans;
mod signals;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

use crate::backing::dir::DirBacking;
use crate::backing::sshfs::SshfsBacking;
use crate::backing::{Backing, Generation};
use crate::config::{MountConfig, Source};
use crate::gate::Gate;
use crate::overlay::Overlay;
use crate::overlay::mount::Mount;
use crate::rundir;
use crate::supervisor::{Event, Inbox, Supervisor, Watch};
use crate::telemetry::{self, Observed, UmountRefused};
use crate::worker::Worker;

/// How long a first start may take before the overlay is mounted without it. Refused keys are known by then.
const FIRST_ANSWER: Duration = Duration::from_secs(3);
/// Time between two looks whether the overlay is still mounted.
const LOOK: Duration = Duration::from_millis(500);
/// Time between two events that belong together.
const SAME_BREATH: Duration = Duration::from_millis(200);
/// How long descriptors may take to be reopened before the gate opens; the rest is reopened when it is used.
const RESTORE: Duration = Duration::from_secs(5);
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

/// Mounts and serves until the overlay is unmounted. `ready` is called once, when the overlay answers.
pub fn run(config: MountConfig, ready: impl FnOnce() + Send + 'static) -> Result<(), MountError> {
    // Modes come from the callers; the kernel has applied their umask.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let config = Arc::new(config);
    let started = SystemTime::now();
    let watch = Watch::default();
    // Both follow the supervisor from its first event on.
    let bound = telemetry::bind(&config, &watch).map_err(MountError::System)?;
    let worker = Worker::start(&config.worker, &config.mountpoint, &watch).map_err(MountError::System)?;
    let worker = Arc::new(worker);
    let result = serve(&config, bound, &watch, &worker, started, ready);
    // However it ended: nobody would let the worker go later. Until then the status can be asked for.
    worker.stop();
    result.map(drop)
}

fn serve(
    config: &Arc<MountConfig>,
    bound: telemetry::Bound,
    watch: &Watch,
    worker: &Arc<Worker>,
    started: SystemTime,
    ready: impl FnOnce(),
) -> Result<(telemetry::Guard, signals::Forwarding), MountError> {
    let backing = make_backing(&config.source, &config.sshfs_options, &rundir::of(&config.mountpoint))?;
    let core = Core::start(config, backing, watch.clone()).map_err(system)?;
    let first = core.first_answer(config.soft_start).and_then(|()| core.mount(config));
    let mount = match first {
        Ok(mount) => mount,
        Err(error) => {
            core.stop();
            return Err(error);
        }
    };
    let observed = core.observed(config, &mount, worker, started);
    let guard = bound.serve(observed).and_then(|guard| Ok((guard, signals::forward(core.wakeups.clone())?)));
    let guard = guard.map_err(system).inspect_err(|_| {
        let _ = mount.unmount(true);
        core.stop();
    })?;
    ready();
    notify::ready();
    core.serve(&mount);
    notify::stopping();
    core.stop();
    Ok(guard)
}

fn system(error: io::Error) -> MountError {
    MountError::System(error.to_string())
}

fn make_backing(source: &Source, options: &[String], directory: &Path) -> Result<Arc<dyn Backing>, MountError> {
    Ok(match source {
        Source::Sshfs { target } => Arc::new(
            SshfsBacking::new(target, options, directory)
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
}

impl Core {
    fn start(config: &MountConfig, backing: Arc<dyn Backing>, watch: Watch) -> io::Result<Core> {
        let events = watch.subscribe();
        let inbox = Inbox::new();
        let gate = Gate::new(config.calls, inbox.complaints())?;
        let overlay = Overlay::new(Arc::clone(&gate), backing.traits(), config.overlay.clone());
        let teller = watch.clone();
        overlay.on_notice(Box::new(move |detail| teller.publish(Event::Notice { detail })));
        let (restored, told) = (Arc::clone(&overlay), watch.clone());
        let restore = move |generation: &Arc<dyn Generation>| {
            let report = restored.restore(generation, RESTORE);
            for (path, errno) in report.failed {
                let detail = format!("{} cannot be reopened: {}", path.display(), errno.desc());
                told.publish(Event::Notice { detail });
            }
        };
        let supervisor = Supervisor::begin(
            inbox,
            backing,
            Arc::clone(&gate),
            Arc::new(restore),
            config.repair,
            config.calls.deadline,
            watch.clone(),
        )?;
        let (wakeups, inbox) = channel();
        Ok(Core { gate, overlay, supervisor: Arc::new(supervisor), watch, events, wakeups, inbox })
    }

    /// Waits for the first generation, or for the news that there will be none.
    fn first_answer(&self, soft: bool) -> Result<(), MountError> {
        let mut until = Instant::now() + FIRST_ANSWER;
        loop {
            let event = if soft {
                match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                    Ok((_, event)) => event,
                    Err(RecvTimeoutError::Timeout) => return Ok(()),
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(MountError::Mount("the supervisor ended".into()));
                    }
                }
            } else {
                self.events.recv().map_err(|_| MountError::Mount("the supervisor ended".into()))?.1
            };
            match event {
                Event::Recovered { .. } => return Ok(()),
                Event::StartFailed { detail, halted: true, .. } => return Err(MountError::Mount(detail)),
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
    fn mount(&self, config: &MountConfig) -> Result<Arc<Mount>, MountError> {
        let (device, mount) = Mount::attach(&config.overlay, &config.source.label(), &config.mountpoint)?;
        let (sender, initialised) = channel();
        let (overlay, wakeups) = (Arc::clone(&self.overlay), self.wakeups.clone());
        let session = move || {
            let result = overlay.serve(device, move || _ = sender.send(()));
            _ = wakeups.send(Wakeup::Unmounted(result));
        };
        std::thread::Builder::new().name("session".into()).spawn(session).map_err(system)?;
        if initialised.recv_timeout(DRAIN).is_err() {
            let _ = mount.unmount(true);
            return Err(MountError::System("the kernel did not begin the FUSE session".into()));
        }
        mount.raise_read_ahead();
        Ok(Arc::new(mount))
    }

    fn observed(
        &self,
        config: &Arc<MountConfig>,
        mount: &Arc<Mount>,
        worker: &Arc<Worker>,
        started: SystemTime,
    ) -> Observed {
        let (overlay, supervisor, mount) = (Arc::clone(&self.overlay), Arc::clone(&self.supervisor), Arc::clone(mount));
        Observed {
            config: Arc::clone(config),
            gate: Arc::clone(&self.gate),
            watch: self.watch.clone(),
            worker: Arc::clone(worker),
            started,
            counts: Arc::new(move || overlay.counts()),
            retry_now: Arc::new(move || supervisor.retry_now()),
            stop: Arc::new(move |lazy| match mount.unmount(lazy) {
                Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                    Err(UmountRefused::Busy("target is busy".into()))
                }
                Err(error) => Err(UmountRefused::Other(error.to_string())),
                Ok(()) => Ok(()),
            }),
        }
    }

    /// Serves until nothing is mounted any more.
    fn serve(&self, mount: &Mount) {
        let every = notify::watchdog_interval().unwrap_or(LOOK).min(LOOK);
        let mut gone_since = None;
        let mut orphans = orphans::Orphans::default();
        loop {
            orphans.look();
            if mount.is_mounted() {
                gone_since = None;
            } else if self.is_abandoned(*gone_since.get_or_insert_with(Instant::now)) {
                tracing::info!("unmounted here; another mount namespace has a copy, which ends now");
                return;
            }
            for (_, event) in self.events.try_iter() {
                tracing::debug!(?event);
                notify::status(&self.watch.snapshot());
            }
            match self.inbox.recv_timeout(every) {
                Ok(Wakeup::Unmounted(Ok(()))) => return,
                Ok(Wakeup::Unmounted(Err(error))) => {
                    tracing::error!(%error, "the FUSE session failed");
                    let _ = mount.unmount(true);
                    return;
                }
                Ok(Wakeup::Terminate) => self.terminate(mount),
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
        self.gate.stop();
        self.supervisor.stop();
    }
}
