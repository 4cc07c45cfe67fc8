//! A mount without a mount: everything that telemetry observes, in a directory of the test's.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use serde_json::Value;
use steadfs::backing::Backing;
use steadfs::backing::fake::{FakeBacking, FakeControl};
use steadfs::config::*;
use steadfs::gate::{Class, Gate, Op};
use steadfs::overlay::Counts;
use steadfs::rundir;
use steadfs::supervisor::{Event, Watch};
use steadfs::telemetry::{self, Guard, Kept, Last, Observed, UmountRefused, View};
use steadfs::worker::Worker;

/// Says that it has begun, and waits for a word.
type Hold = (Sender<()>, Receiver<()>);

pub struct Rig {
    directory: tempfile::TempDir,
    config: DaemonConfig,
    pub observed: Observed,
    guard: Option<Guard>,
    fake: FakeControl,
    _backing: FakeBacking,
    pub retries: Arc<AtomicUsize>,
    pub replacements: Arc<AtomicUsize>,
    /// What an unmount is answered with, and how it was asked for.
    pub stopping: Arc<Mutex<Result<(), UmountRefused>>>,
    pub lazy: Arc<Mutex<Vec<bool>>>,
    holding: Arc<Mutex<Option<Hold>>>,
}

/// What the overlay counts.
fn counts() -> Counts {
    Counts { open_files: 11, open_dirs: 12, nodes: 13, log_bytes: 14, ..Counts::default() }
}

impl Rig {
    /// Over a unix socket, with a textfile.
    pub fn served() -> Rig {
        Rig::new(|_| {})
    }

    pub fn new(change: impl FnOnce(&mut DaemonConfig)) -> Rig {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        std::fs::create_dir(path("textfiles")).expect("made");
        // Quotes and the like have to be escaped.
        let source = Source::Sshfs { target: "box:/jobs".into() };
        let mut config = DaemonConfig::of_one(source, path("hot \"1\"\\"), OverlayConfig::default());
        config.worker.on_outage = Some(HookCommand { argv: vec!["true".into()] });
        let flag = Means::Flag { file: path("flag") };
        config.worker.workers = vec![WorkerEntry { name: "crawler".into(), means: flag, timeout: None, steady: None }];
        config.telemetry.listen = Some(MetricsListen::Unix(path("metrics.sock")));
        config.telemetry.textfile = Some(path("textfiles"));
        change(&mut config);
        let watch = Watch::default();
        let bound = telemetry::bind(&config, &watch).expect("it is bound");
        let note = path("state/hot/paused.json");
        let worker = Worker::start_with(&config.worker, &config.home, &watch, note).expect("it starts");
        watch.publish(Event::OutageBegan { since: SystemTime::now(), reason: "start".into(), detail: "x".into() });
        let backing = FakeBacking::new().expect("a fake");
        let gate = Gate::new(config.calls, |_, _| {}).expect("a gate");
        gate.open(backing.start(1, Duration::from_secs(5), Arc::new(|_| {})).expect("it starts"));
        let retries = Arc::new(AtomicUsize::new(0));
        let replacements = Arc::new(AtomicUsize::new(0));
        let replaced = Arc::clone(&replacements);
        let stopping = Arc::new(Mutex::new(Ok(())));
        let lazy = Arc::new(Mutex::new(Vec::new()));
        let holding = Arc::new(Mutex::new(None::<Hold>));
        let (retried, answer, asked, held) =
            (Arc::clone(&retries), Arc::clone(&stopping), Arc::clone(&lazy), Arc::clone(&holding));
        let observed = Observed {
            config: Arc::new(config.clone()),
            gate,
            watch,
            worker: Arc::new(worker),
            counts: Arc::new(counts),
            kept: Arc::new(|| Kept {
                keeper: Some(77),
                possible: true,
                successions: 3,
                mounted: SystemTime::UNIX_EPOCH,
                last: Some(Last {
                    at: SystemTime::UNIX_EPOCH + Duration::from_secs(9),
                    reason: "it was killed by SIGKILL".into(),
                    pause: Duration::from_millis(250),
                }),
                used: 1000,
                limit: 2000,
                resident: 3000,
                most: 4000,
            }),
            retry_now: Arc::new(move || _ = retried.fetch_add(1, SeqCst)),
            replace: Arc::new(move || _ = replaced.fetch_add(1, SeqCst)),
            upgrade: Arc::new(|_| Err("nothing to upgrade here".into())),
            upgraded: Arc::new(|| None),
            overlays: {
                let all = config.overlays.clone();
                let view = |hot: &HotPath| View {
                    mountpoint: hot.mountpoint.clone(),
                    path: hot.path.clone(),
                    subtype: hot.overlay.subtype.clone(),
                    read_only: false,
                    mounted: false,
                    counts: counts(),
                };
                Arc::new(move || all.iter().map(view).collect())
            },
            attach: Arc::new(|_, _| Err("nothing to attach to here".into())),
            detach: Arc::new(|_, _| Err(UmountRefused::Other("nothing to detach here".into()))),
            configured: {
                let config = config.clone();
                Arc::new(move || config.clone())
            },
            reload: Arc::new(|_, _| Err("nothing to reload here".into())),
            stop: Arc::new(move |lazy| {
                asked.lock().expect("nobody panicked").push(lazy);
                if let Some((begun, go)) = held.lock().expect("nobody panicked").take() {
                    begun.send(()).expect("it is waited for");
                    go.recv().expect("it is let go");
                }
                answer.lock().expect("nobody panicked").clone()
            }),
            started: SystemTime::now() - Duration::from_secs(15 * 3600),
        };
        let guard = bound.serve(observed.clone()).expect("it is served");
        let fake = backing.control();
        let guard = Some(guard);
        Rig {
            directory,
            config,
            observed,
            guard,
            fake,
            _backing: backing,
            retries,
            replacements,
            stopping,
            lazy,
            holding,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn mountpoint(&self) -> String {
        self.config.home.display().to_string()
    }

    pub fn control_socket(&self) -> PathBuf {
        rundir::control_socket(&self.config.home)
    }

    pub fn textfile(&self) -> PathBuf {
        telemetry::textfile::path(&self.path("textfiles"), &self.config.home)
    }

    /// As the daemon does it.
    pub fn end(&mut self) {
        self.observed.gate.stop();
        self.observed.worker.stop();
        self.guard = None;
    }

    /// The error of a second telemetry of the same mount.
    pub fn bind_error(&self, change: impl FnOnce(&mut DaemonConfig)) -> String {
        let mut config = self.config.clone();
        change(&mut config);
        telemetry::bind(&config, &Watch::default()).err().expect("it cannot be bound")
    }

    fn call(&self, work: impl Fn() -> Result<(), Errno> + Send + 'static) {
        let before = self.counted();
        self.observed.gate.submit(Op::Read, Class::Data, 0, move |_| work(), |_| {});
        // It is counted after it has been answered.
        self.wait(|| self.counted() > before);
    }

    fn counted(&self) -> u64 {
        self.observed.gate.stats().latency(Op::Read).counts().iter().sum()
    }

    pub fn read_ok(&self) {
        self.call(|| Ok(()));
    }

    pub fn read_error(&self) {
        self.call(|| Err(Errno::EACCES));
    }

    /// A read that hangs as long as the backing does.
    pub fn submit_read(&self) {
        let stat = |context: &steadfs::gate::Context<'_>| context.generation.tree().stat(Path::new("")).map(drop);
        self.observed.gate.submit(Op::Read, Class::Data, 0, stat, |_| {});
    }

    pub fn overdue(&self) {
        self.observed.watch.publish(Event::OutageOverdue { since: SystemTime::now(), reason: "probe_late".into() });
    }

    pub fn freeze(&self) {
        self.fake.freeze();
    }

    pub fn thaw(&self) {
        self.fake.thaw();
    }

    /// The next unmount says when it has begun, and waits for a word.
    pub fn hold_umount(&self) -> (Receiver<()>, Sender<()>) {
        let ((begun, told), (go, wait)) = (channel(), channel());
        *self.holding.lock().expect("nobody panicked") = Some((begun, wait));
        (told, go)
    }

    pub fn ask(&self, request: &Value) -> Value {
        ask(&self.control_socket(), request)
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        match &self.config.telemetry.listen {
            Some(MetricsListen::Unix(socket)) => get(UnixStream::connect(socket).expect("it listens"), path),
            Some(MetricsListen::Tcp(address)) => get(std::net::TcpStream::connect(address).expect("it listens"), path),
            None => panic!("nothing is served"),
        }
    }

    pub fn wait(&self, come: impl Fn() -> bool) {
        let until = Instant::now() + Duration::from_secs(20);
        while !come() {
            assert!(Instant::now() < until, "it did not happen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.fake.thaw();
        self.end();
        let _ = std::fs::remove_dir(rundir::of(&self.config.home));
    }
}

pub fn ask(socket: &Path, request: &Value) -> Value {
    let mut stream = telemetry::sockets::connect(socket).expect("it listens");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("it is set");
    // A request that is too long is answered before all of it has been read.
    let _ = stream.write_all(format!("{request}\n").as_bytes());
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("an answer");
    serde_json::from_str(&line).expect("it is JSON")
}

fn get(mut stream: impl Read + Write, path: &str) -> (u16, String) {
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, body.to_owned())
}
