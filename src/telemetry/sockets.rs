//! Unix sockets that only their owner may use, and that are gone with whoever bound them.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use nix::sys::stat::{Mode, fchmod};

/// Longest path of a socket in bytes, without the NUL (unix(7)).
const LONGEST: usize = 107;

/// A bound socket and its name, which is removed on drop.
pub struct OwnSocket {
    listener: Option<UnixListener>,
    path: PathBuf,
}

impl OwnSocket {
    /// Binds a socket of mode 0600 that does not block. The stale one of a daemon that was killed is replaced; anything
    /// else that is there is left alone, and is an error.
    pub fn bind(path: &Path) -> io::Result<OwnSocket> {
        if is_stale(path) {
            std::fs::remove_file(path)?;
        }
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        let name = Name::of(path)?;
        // Before the name exists: bind(2) gives it the mode of the socket, so that nobody gets in meanwhile.
        fchmod(&fd, Mode::from_bits_truncate(0o600))?;
        bind(fd.as_raw_fd(), &UnixAddr::new(&name.path)?)?;
        let mut bound = OwnSocket { listener: None, path: path.to_owned() };
        listen(&fd, Backlog::MAXCONN)?;
        bound.listener = Some(fd.into());
        Ok(bound)
    }

    /// The socket, once; the name stays with this value.
    pub fn take(&mut self) -> io::Result<UnixListener> {
        self.listener.take().ok_or_else(|| io::Error::other("the socket is served already"))
    }
}

/// Connects to a socket, however long its path is.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(Name::of(path)?.path)
}

/// A path that fits into the 107 bytes of unix(7); a mountpoint may be longer than that.
struct Name {
    path: PathBuf,
    /// What the path leads through.
    _directory: Option<File>,
}

impl Name {
    fn of(path: &Path) -> io::Result<Name> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        if path.as_os_str().len() <= LONGEST {
            return Ok(Name { path: path.to_owned(), _directory: None });
        }
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let directory = OpenOptions::new().read(true).custom_flags(flags).open(parent)?;
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
        Ok(Name { path, _directory: Some(directory) })
    }
}

fn is_stale(path: &Path) -> bool {
    let is_socket = std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket && connect(path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        // Gone already, as a rule, if somebody cleaned up by hand.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_socket_is_its_owners_alone_and_goes_with_its_value() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        let socket = OwnSocket::bind(&path).expect("it is bound");
        assert_eq!(path.metadata().expect("it is there").permissions().mode() & 0o777, 0o600);
        let busy = OwnSocket::bind(&path).map(drop).expect_err("somebody listens there");
        assert_eq!(busy.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists(), "the one in use stays");
        drop(socket);
        assert!(!path.exists());
    }

    #[test]
    fn a_path_may_be_longer_than_the_address_of_a_socket() {
        let directory = tempfile::tempdir().expect("a directory");
        let deep = directory.path().join("x".repeat(200));
        std::fs::create_dir(&deep).expect("made");
        let mut socket = OwnSocket::bind(&deep.join("s")).expect("it is bound");
        let listener = socket.take().expect("it is there");
        let client = connect(&deep.join("s")).expect("it answers");
        assert!(listener.accept().is_ok());
        drop((client, socket));
        assert!(!deep.join("s").exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_file_never() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("s");
        drop(UnixListener::bind(&path).expect("it is bound"));
        assert!(path.exists(), "std leaves the name behind");
        drop(OwnSocket::bind(&path).expect("the stale one is replaced"));
        std::fs::write(&path, "precious").expect("written");
        assert!(OwnSocket::bind(&path).is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "precious");
    }
}
