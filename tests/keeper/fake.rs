//! A daemon that serves nothing: this test binary again, run by the keeper.

use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use steadfs::config::OverlayConfig;
use steadfs::daemon::link::{Link, Request};
use steadfs::keeper::DEVICE;
use steadfs::keeper::abandon::Place;
use steadfs::keeper::executable::Executable;
use steadfs::keeper::message::{What, Why};
use steadfs::overlay::mount::Mount;

/// Names the directory of the test; only then this is the daemon.
pub const DIRECTORY: &str = "STEADFS_FAKE";

struct Fake {
    directory: PathBuf,
    events: UnixDatagram,
}

impl Fake {
    fn tell(&self, text: &str) {
        // A test that is over does not listen.
        let _ = self.events.send_to(text.as_bytes(), self.directory.join("events"));
    }

    /// What the test wants of each daemon that is started from now on.
    fn wanted(&self, what: &str) -> Option<String> {
        std::fs::read_to_string(self.directory.join(what)).ok()
    }
}

/// The inode of a descriptor.
pub fn inode(fd: impl AsFd) -> u64 {
    let file = std::fs::File::from(fd.as_fd().try_clone_to_owned().expect("a copy"));
    file.metadata().expect("its metadata").ino()
}

#[test]
fn fake_daemon() {
    let Some(directory) = std::env::var_os(DIRECTORY) else { return };
    let directory = PathBuf::from(directory);
    let fake = Fake { events: UnixDatagram::unbound().expect("a socket"), directory };
    let code = live(&fake).unwrap_or(99);
    std::process::exit(code);
}

fn live(fake: &Fake) -> Option<i32> {
    let orders = fake.directory.join("orders");
    // Each life binds it anew.
    let _ = std::fs::remove_file(&orders);
    let orders = UnixDatagram::bind(&orders).ok()?;
    let handshake = Link::accept().ok()??;
    let beats = Arc::new(AtomicBool::new(true));
    let (sender, requests) = mpsc::channel();
    let (alive, keeper) = (Arc::clone(&beats), Executable::open(Path::new(env!("CARGO_BIN_EXE_steadfs"))).ok()?);
    let tell = move |request| _ = sender.send(request);
    let (link, start) = handshake.begin(Box::new(move || alive.load(SeqCst)), Box::new(tell), Some(keeper)).ok()?;
    let executable = std::env::current_exe().ok()?.file_name()?.to_string_lossy().into_owned();
    let mut held = start.held.iter().find(|(name, _)| name == DEVICE).map_or(0, |(_, fd)| inode(fd));
    let pid = std::process::id();
    fake.tell(&format!("start {pid} {:?} {held} {} {executable} {}", start.why, start.deaths, start.reason));
    let fails = if executable == "candidate" { "candidate-fails" } else { "fails" };
    if let Some(code) = fake.wanted(fails) {
        return code.trim().parse().ok();
    }
    let mut mount = None;
    if start.why == Why::First {
        if let Some(mountpoint) = fake.wanted("mount") {
            let config = OverlayConfig { guard: false, ..OverlayConfig::default() };
            let (device, made) = Mount::attach(&config, "fake", Path::new(&mountpoint)).ok()?;
            link.hold(DEVICE, device.as_fd()).ok()?;
            link.mounted(What::Overlay, 0, Some(Place::new(made.dev(), "fuse.steadfs".as_ref(), "fake".as_ref())));
            mount = Some((device, made));
        } else if fake.wanted("holds-nothing").is_none() {
            let memory = nix::sys::memfd::memfd_create("state", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).ok()?;
            held = inode(&memory);
            link.hold(DEVICE, memory.as_fd()).ok()?;
        }
    }
    link.status("all is well".into());
    link.ready();
    fake.tell(&format!("ready {pid} {held}"));
    orders.set_read_timeout(Some(Duration::from_millis(20))).ok()?;
    let mut buffer = [0; 500];
    loop {
        match requests.try_recv() {
            Ok(Request::Yield) if fake.wanted("stays").is_none() => return Some(0),
            Ok(Request::Yield) => fake.tell("stays"),
            Ok(Request::Upgraded { accepted, reason }) => fake.tell(&format!("upgraded {accepted} {reason}")),
            Err(_) => {}
        }
        let Ok(length) = orders.recv(&mut buffer) else { continue };
        let order = String::from_utf8_lossy(&buffer[..length]).into_owned();
        match order.split_once(' ').unwrap_or((&order, "")) {
            ("end", code) => {
                let code = code.parse().ok()?;
                link.ended(code);
                drop(mount);
                return Some(i32::from(code));
            }
            ("exit", code) => return code.parse().ok(),
            ("silence", _) => beats.store(false, SeqCst),
            ("upgrade", path) => _ = link.upgrade(&Executable::open(Path::new(path)).ok()?).ok()?,
            _ => return None,
        }
    }
}
