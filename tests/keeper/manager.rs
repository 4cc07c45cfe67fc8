//! A service manager that only listens and keeps descriptors.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;

use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

use super::fake::inode;
use super::rig::{Plan, Rig, signal};

struct Manager(UnixDatagram);

impl Manager {
    /// The next notification, with its descriptor.
    fn next(&self) -> (String, Option<OwnedFd>) {
        let mut buffer = [0; 1000];
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let mut space = nix::cmsg_space!([i32; 1]);
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = recvmsg::<()>(self.0.as_raw_fd(), &mut parts, Some(&mut space), flags).expect("told");
        let mut descriptor = None;
        for control in received.cmsgs().expect("whole") {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made it for us.
                descriptor = raw.into_iter().map(|raw| unsafe { OwnedFd::from_raw_fd(raw) }).next();
            }
        }
        let length = received.bytes;
        (String::from_utf8_lossy(&buffer[..length]).into_owned(), descriptor)
    }

    fn wait_for(&self, start: &str) -> (String, Option<OwnedFd>) {
        loop {
            let (text, descriptor) = self.next();
            if text.starts_with(start) {
                return (text, descriptor);
            }
        }
    }
}

#[test]
fn a_service_manager_is_told_and_what_it_kept_is_gone_on_with() {
    let directory = tempfile::tempdir().expect("tempdir");
    let path = directory.path().join("notify");
    let manager = Manager(UnixDatagram::bind(&path).expect("bound"));
    manager.0.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a timeout");
    let mut rig = Rig::begin(Plan { notify: Some(&path), ..Plan::default() });
    let first = rig.started();
    let device = rig.ready();
    let (text, stored) = manager.wait_for("FDSTORE=1");
    assert_eq!(text, "FDSTORE=1\nFDNAME=device");
    let stored = stored.expect("a descriptor");
    assert_eq!(inode(&stored), device);
    manager.wait_for("STATUS=all is well");
    let pid = rig.keeper.id();
    assert_eq!(manager.wait_for("READY=1").0, format!("READY=1\nMAINPID={pid}"));
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");
    // Another keeper is the main process then.
    rig.keeper.kill().expect("killed");
    rig.keeper.wait().expect("reaped");
    let (text, _) = manager.wait_for("MAINPID=");
    let second: i32 = text.trim_start_matches("MAINPID=").parse().expect("a number");
    assert_eq!(rig.keepers(), [second]);
    manager.wait_for("WATCHDOG=1");
    // Both at once, as by a kill of the whole control group.
    signal(first.pid, Signal::SIGSTOP);
    signal(second, Signal::SIGKILL);
    signal(first.pid, Signal::SIGKILL);
    drop(rig);
    let mut rig = Rig::begin(Plan { notify: Some(&path), kept: Some(File::from(stored)), ..Plan::default() });
    let next = rig.started();
    assert!(next.successor && next.held == device, "{next:?}");
    rig.ready();
    rig.order("end 0");
    assert_eq!(rig.keeper_exit().code(), Some(0));
    manager.wait_for("FDSTOREREMOVE=1\nFDNAME=device");
    manager.wait_for("STOPPING=1");
}
