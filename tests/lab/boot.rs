//! systemd as the first process of namespaces of its own: its own processes, mounts, network and host name, on a root that is
//! this machine's with a layer of its own on top. Everything ends with its first process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::{process, run_ok};

/// A boot, a shutdown or a job may take so long on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(90);

/// Control groups of machines are this, the pid of their test, and a number.
const CGROUP: &str = "steadfs-boot-";
/// Of the machines of this process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Makes the namespaces' mounts, and becomes the first process. $1 is the directory of everything.
const INIT: &str = r#"
set -eu
root=$1/root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/layer/upper,workdir=$1/layer/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t fusectl fusectl "$root/sys/fs/fuse/connections" 2>/dev/null || true
for place in run tmp dev; do mount -t tmpfs -o mode=0755 tmpfs "$root/$place"; done
chmod 1777 "$root/tmp"
for name in null zero full random urandom tty fuse; do
    : > "$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
# The store outlives the machine, as a server does.
mkdir -p "$root/srv/store"
mount --bind "$1/store" "$root/srv/store"
mkdir -p "$root/old"
cd "$root"
pivot_root . old
exec chroot . /usr/bin/env -i container=steadfs PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    sh -c 'umount -l /old && exec /lib/systemd/systemd --log-target=console --log-level=info'
"#;

/// A machine that is on or off.
pub struct Machine {
    /// `layer` is its disk, `store` what its server has.
    directory: tempfile::TempDir,
    cgroup: PathBuf,
    init: Option<Child>,
}

impl Machine {
    /// One that is off.
    pub fn new() -> Machine {
        assert!(nix::unistd::geteuid().is_root(), "this test needs root: run it as root");
        assert!(Path::new("/dev/fuse").exists(), "this test needs /dev/fuse: run modprobe fuse");
        assert!(Path::new("/lib/systemd/systemd").exists(), "this test needs systemd: run apt install systemd");
        let tree = steadfs::backing::mountinfo::entries().unwrap();
        let tree = tree.iter().find(|entry| entry.fstype == "cgroup2").expect("this test needs a mount of cgroup2");
        let prefix = format!("{}{}-", super::sweep::PREFIX, std::process::id());
        let directory = tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let number = NUMBER.fetch_add(1, SeqCst);
        let cgroup = tree.mountpoint.join(format!("{CGROUP}{}.{number}", std::process::id()));
        for entry in fs::read_dir(&tree.mountpoint).into_iter().flatten().flatten() {
            let owner =
                entry.file_name().to_str().and_then(|name| name.strip_prefix(CGROUP)?.split('.').next()?.parse().ok());
            if owner.is_some_and(|pid| !process::exists(pid)) {
                remove_tree(&entry.path());
            }
        }
        super::sweep::orphans();
        for place in ["root", "layer", "store"] {
            fs::create_dir(directory.path().join(place)).unwrap();
        }
        // The disk's layer must lie on something that an overlay may have on top.
        run_ok("mount", &["-t", "tmpfs", "tmpfs", directory.path().join("layer").to_str().unwrap()]);
        let machine = Machine { directory, cgroup, init: None };
        for place in ["upper", "work"] {
            fs::create_dir(machine.path("layer").join(place)).unwrap();
        }
        // Units and mounts of this machine are not this one's: whiteouts (overlayfs).
        machine.write("etc/fstab", "");
        machine.write("etc/machine-id", "");
        let units = Path::new("etc/systemd/system");
        fs::create_dir_all(machine.disk("etc/systemd/system")).unwrap();
        for entry in fs::read_dir(Path::new("/").join(units)).into_iter().flatten().flatten() {
            let hidden = machine.disk("etc/systemd/system").join(entry.file_name());
            run_ok("mknod", &[hidden.to_str().unwrap(), "c", "0", "0"]);
        }
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A path of the server.
    pub fn store(&self, name: &str) -> PathBuf {
        self.path("store").join(name)
    }

    /// A file of the disk, while the machine is off or on. Only what differs from this machine's is there.
    pub fn disk(&self, name: &str) -> PathBuf {
        self.path("layer/upper").join(name)
    }

    /// Writes to the disk while it is off.
    pub fn write(&self, name: &str, text: &str) {
        let path = self.disk(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// What the console showed since the last start.
    pub fn console(&self) -> String {
        fs::read_to_string(self.path("console")).unwrap_or_default()
    }

    /// Switches it on, and waits until it has booted.
    pub fn boot(&mut self) {
        fs::create_dir_all(&self.cgroup).unwrap();
        let console = fs::File::create(self.path("console")).unwrap();
        let words = "echo $$ > \"$1/cgroup.procs\" && shift && exec setpriv --pdeathsig KILL unshare --pid --mount --uts --ipc --cgroup --net --fork \
                     --kill-child --propagation private bash -c \"$1\" init \"$2\"";
        let mut command = Command::new("bash");
        command.args([
            "-c",
            words,
            "begin",
            self.cgroup.to_str().unwrap(),
            INIT,
            self.directory.path().to_str().unwrap(),
        ]);
        command.stdin(Stdio::null()).stdout(console.try_clone().unwrap()).stderr(console);
        self.init = Some(command.spawn().unwrap());
        let booted = || {
            let output = self.run(&["systemctl", "is-system-running"]);
            // Degraded: something of this machine's does not work in there.
            output.is_some_and(|output| ["running", "degraded"].contains(&text(&output.stdout).trim()))
        };
        self.wait("it has booted", booted);
    }

    /// The first process as this machine numbers it.
    fn first(&self) -> Option<i32> {
        let init = self.init.as_ref()?.id().cast_signed();
        process::children(init).first().copied().filter(|&pid| process::name(pid) == "systemd")
    }

    /// A command that runs inside, if it is on.
    pub fn command(&self, words: &[&str]) -> Option<Command> {
        let mut command = Command::new("nsenter");
        command.args([
            "-t",
            &self.first()?.to_string(),
            "-p",
            "-m",
            "-u",
            "-i",
            "-n",
            "--wd=/",
            "timeout",
            "60",
            "env",
        ]);
        command.args(["-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin"]).args(words).stdin(Stdio::null());
        Some(command)
    }

    fn run(&self, words: &[&str]) -> Option<Output> {
        Some(self.command(words)?.output().unwrap())
    }

    /// Runs a command inside.
    pub fn ask(&self, words: &[&str]) -> Output {
        self.run(words).expect("it is on")
    }

    /// Runs one that has to succeed, and says what it printed.
    pub fn ok(&self, words: &[&str]) -> String {
        let output = self.ask(words);
        assert!(output.status.success(), "{words:?}: {output:?}");
        text(&output.stdout)
    }

    /// A property of a unit.
    pub fn property(&self, unit: &str, name: &str) -> String {
        self.ok(&["systemctl", "show", "--value", "-p", name, unit]).trim().to_owned()
    }

    /// Waits for something, with the console in the words of a failure.
    pub fn wait(&self, what: &str, condition: impl Fn() -> bool) {
        let until = Instant::now() + LIMIT;
        while !condition() {
            assert!(Instant::now() < until, "it never came about: {what}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has it shut down by this command, and says how long that took.
    pub fn down(&mut self, command: &str) -> Duration {
        let begun = Instant::now();
        self.ok(&["systemctl", command]);
        let mut init = self.init.take().expect("it is on");
        let until = begun + LIMIT;
        while init.try_wait().unwrap().is_none() {
            if Instant::now() > until {
                self.init = Some(init);
                panic!("{command} hangs");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        begun.elapsed()
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let journal = self.run(&["journalctl", "-b", "--no-pager", "-n", "150"]).map(|output| text(&output.stdout));
            eprintln!("--- console ---\n{}\n--- journal ---\n{}", self.console(), journal.unwrap_or_default());
        }
        let first = self.first();
        if let Some(mut init) = self.init.take() {
            // All others of its namespace go with it.
            first.iter().for_each(|&pid| process::signal(pid, Signal::SIGKILL));
            let _ = init.kill();
            let _ = init.wait();
        }
        let _ = umount2(&self.path("layer"), MntFlags::MNT_DETACH);
        let until = Instant::now() + Duration::from_secs(10);
        while !remove_tree(&self.cgroup) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A tree of control groups is removed from its leaves.
fn remove_tree(path: &Path) -> bool {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_tree(&entry.path());
        }
    }
    fs::remove_dir(path).is_ok() || !path.exists()
}
