//! Beginning the session with the kernel, or going on with one that another steadfs began.
//!
//! The kernel sends FUSE_INIT once a mount. It is read here and played to fuser over a socket pair, so that a successor can
//! be played the same; then the device takes the socket's place. What was read and not answered when a steadfs died, the
//! kernel sends again when it is asked to (FUSE_NOTIFY_RESEND, Linux 6.9), or it is answered with an error.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use fuser::{Config, Filesystem, InitFlags, Session, SessionACL};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, recv, send, shutdown, socketpair};

/// Threads that read requests; they only hand them on.
pub const READERS: usize = 2;
/// FUSE_MIN_READ_BUFFER of linux/fuse.h: what the kernel asks of whoever reads requests.
const MIN_READ_BUFFER: usize = 8192;
/// Smaller than that no device may be read with once the session has begun; INIT comes before, but may grow.
const INIT_BUFFER: usize = 2 * MIN_READ_BUFFER;
/// FUSE_NOTIFY_INVAL_INODE and FUSE_NOTIFY_RESEND of linux/fuse.h.
const NOTIFY_INVAL_INODE: i32 = 2;
const NOTIFY_RESEND: i32 = 7;
/// Length of struct fuse_out_header.
const OUT_HEADER: usize = 16;
/// Offset of the major version in FUSE_INIT: struct fuse_in_header comes first.
const IN_HEADER: usize = 40;
/// Offsets of flags and flags2 in struct fuse_init_out.
const OUT_FLAGS: usize = 12;
const OUT_FLAGS2: usize = 32;

/// What was said when a session began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Greeting {
    /// FUSE_INIT as the kernel sent it.
    pub init: Vec<u8>,
    /// What it was answered.
    pub reply: Vec<u8>,
}

impl Greeting {
    /// Major and minor version of the kernel's protocol.
    pub fn protocol(&self) -> (u32, u32) {
        (number(&self.init, IN_HEADER), number(&self.init, IN_HEADER + 4))
    }

    /// What was agreed on with the kernel, which goes by it as long as the mount lives.
    pub fn agreed(&self) -> InitFlags {
        let (low, high) = (number(&self.reply, OUT_HEADER + OUT_FLAGS), number(&self.reply, OUT_HEADER + OUT_FLAGS2));
        InitFlags::from_bits_truncate(u64::from(low) | u64::from(high) << 32)
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_ne_bytes)
}

/// The kernel's end of a mount: the descriptor of /dev/fuse.
#[derive(Debug)]
pub struct Device(File);

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Device {
    /// Of a descriptor of /dev/fuse that is mounted.
    pub fn new(descriptor: OwnedFd) -> Device {
        Device(File::from(descriptor))
    }

    /// Another descriptor of the same session.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.0.as_fd().try_clone_to_owned()
    }

    /// Begins the session: waits for the kernel's FUSE_INIT and answers it.
    pub fn begin<FS: Filesystem>(&self, filesystem: FS) -> io::Result<(Session<FS>, Greeting)> {
        let mut init = vec![0; INIT_BUFFER];
        let length = loop {
            match (&self.0).read(&mut init) {
                // See fuse_dev_do_read of the kernel, fs/fuse/dev.c: the request was withdrawn, or there was none.
                Err(error) if is_passing(&error) => {}
                result => break result?,
            }
        };
        init.truncate(length);
        let (session, reply) = self.play(filesystem, &init, READERS)?;
        (&self.0).write_all(&reply)?;
        Ok((session, Greeting { init, reply }))
    }

    /// Goes on with a session that began so. Fails if `filesystem`, which is to ask for [`Greeting::agreed`], agrees on anything
    /// else: the kernel goes by what was agreed on then.
    /// `readers` threads read requests.
    pub fn go_on<FS: Filesystem>(
        &self,
        filesystem: FS,
        greeting: &Greeting,
        readers: usize,
    ) -> io::Result<Session<FS>> {
        let (session, reply) = self.play(filesystem, &greeting.init, readers)?;
        if reply != greeting.reply {
            let words = "the session was begun by a steadfs that agreed on other things with the kernel";
            return Err(io::Error::new(io::ErrorKind::Unsupported, words));
        }
        Ok(session)
    }

    /// Lets fuser answer a FUSE_INIT, then puts the device in the place of what it read it from.
    fn play<FS: Filesystem>(&self, filesystem: FS, init: &[u8], readers: usize) -> io::Result<(Session<FS>, Vec<u8>)> {
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        send(ours.as_raw_fd(), init, MsgFlags::empty())?;
        // Whatever else it asks for, it finds the end instead of waiting.
        shutdown(ours.as_raw_fd(), Shutdown::Write)?;
        let mut config = Config::default();
        config.n_threads = Some(readers);
        let session = Session::from_fd(filesystem, theirs, SessionACL::All, config)?;
        let mut reply = vec![0; INIT_BUFFER];
        let length = recv(ours.as_raw_fd(), &mut reply, MsgFlags::MSG_DONTWAIT)?;
        reply.truncate(length);
        // SAFETY: both are open descriptors; the one that is replaced stays the session's, which goes on to own it.
        let replaced = unsafe { libc::dup3(self.0.as_raw_fd(), session.as_fd().as_raw_fd(), libc::O_CLOEXEC) };
        Errno::result(replaced)?;
        Ok((session, reply))
    }

    /// Asks the kernel to send again what was read and never answered; it comes with bit 63 of its unique set. EINVAL
    /// before Linux 6.9.
    pub fn resend(&self) -> io::Result<()> {
        (&self.0).write_all(&header(NOTIFY_RESEND, 0))
    }

    /// True if the kernel has an inode of that number. It asks for its attributes anew when it needs them next.
    pub fn is_known(&self, node: u64) -> io::Result<bool> {
        // struct fuse_notify_inval_inode_out: no byte of what is cached is invalidated before the file begins.
        let (offset, length) = (-1_i64, 0_i64);
        let body = [node.to_ne_bytes(), offset.to_ne_bytes(), length.to_ne_bytes()].concat();
        let mut message = header(NOTIFY_INVAL_INODE, 0).to_vec();
        message.extend(body);
        let length = message.len() as u32;
        message[..4].copy_from_slice(&length.to_ne_bytes());
        self.tell(&message)
    }

    /// Answers a request with an error. False if the kernel does not wait for an answer to it.
    pub fn refuse(&self, unique: u64, error: Errno) -> io::Result<bool> {
        self.tell(&header(-(error as i32), unique))
    }

    /// False if the kernel does not know what this is about.
    fn tell(&self, message: &[u8]) -> io::Result<bool> {
        match (&self.0).write(message) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Serves until the session ends. A connection that somebody ends in the moment in which a request is read says ECONNABORTED
/// (fuse_dev_do_read of the kernel, fs/fuse/dev.c), which is an end like any other.
pub fn run<FS: Filesystem>(session: Session<FS>) -> io::Result<()> {
    match session.run() {
        Err(error) if error.raw_os_error() == Some(libc::ECONNABORTED) => Ok(()),
        result => result,
    }
}

/// struct fuse_out_header of linux/fuse.h, and nothing behind it.
fn header(error: i32, unique: u64) -> [u8; OUT_HEADER] {
    let mut header = [0; OUT_HEADER];
    header[..4].copy_from_slice(&(OUT_HEADER as u32).to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
    header
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR | libc::EAGAIN))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Asks for these.
    struct Asks(InitFlags);

    impl Filesystem for Asks {
        fn init(&mut self, _request: &fuser::Request, config: &mut fuser::KernelConfig) -> io::Result<()> {
            self.0.iter().for_each(|flag| _ = config.add_capabilities(flag));
            Ok(())
        }
    }

    /// A FUSE_INIT that offers everything: struct fuse_in_header with opcode 26, then struct fuse_init_in of version 7.40.
    fn init() -> Vec<u8> {
        let length = IN_HEADER + 64;
        let mut words = vec![u32::try_from(length).expect("short"), 26, 1, 0, 1, 0, 0, 0, 0, 0];
        words.extend([7, 40, 1 << 17, u32::MAX, u32::MAX]);
        words.resize(length / 4, 0);
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    #[test]
    fn a_session_is_gone_on_with_by_what_was_agreed_on() {
        let device = || Device::new(File::open("/dev/null").expect("opened").into());
        let theirs = InitFlags::FUSE_ATOMIC_O_TRUNC | InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_SETXATTR_EXT;
        let (_session, reply) = device().play(Asks(theirs), &init(), 1).expect("played");
        let greeting = Greeting { init: init(), reply };
        assert!(greeting.agreed().contains(theirs), "{:?}", greeting.agreed());
        assert!(!greeting.agreed().contains(InitFlags::FUSE_POSIX_ACL));
        device().go_on(Asks(greeting.agreed()), &greeting, 1).expect("gone on with");
        let ours = theirs | InitFlags::FUSE_POSIX_ACL;
        assert!(device().go_on(Asks(ours), &greeting, 1).is_err(), "the kernel does not check ACLs");
    }
}
