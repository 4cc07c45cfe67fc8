//! As much of SFTP (draft-ietf-secsh-filexfer-02) as a look at directories needs, over a program's standard input and output.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use super::tool;

const INIT: u8 = 1;
const VERSION: u8 = 2;
const STAT: u8 = 17;
const STATUS: u8 = 101;
const ATTRS: u8 = 105;
/// Longest packet that is believed: answers to what is asked here have some hundred bytes.
const LONGEST: u32 = 64 << 10;
/// How long the last words may be on their way after the session's end.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a path is.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    Directory,
    Other,
    Missing,
    Denied,
    Failed(String),
}

/// Why there is no session.
#[derive(Debug)]
pub struct Failure {
    /// What the program said.
    pub stderr: String,
    /// How it ended.
    pub ending: String,
    /// Somebody answered, but not SFTP: a whole sentence.
    pub no_sftp: Option<String>,
}

/// A session that is open. Its program is ended with it.
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    packets: Receiver<io::Result<Vec<u8>>>,
    until: Instant,
    number: u32,
    extensions: Vec<String>,
}

impl Drop for Session {
    fn drop(&mut self) {
        end(&mut self.child);
    }
}

fn end(child: &mut Child) {
    // A group of its own; ESRCH: it ended by itself.
    let _ = killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGKILL);
    let _ = child.wait();
}

impl Session {
    /// Starts the program and shakes hands; all of the session has that much time.
    pub fn open(mut command: Command, limit: Duration) -> Result<Session, Failure> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command.env("LC_ALL", "C").env_remove("SSH_ASKPASS").env_remove("DISPLAY");
        let nothing = |ending: String| Failure { stderr: String::new(), ending, no_sftp: None };
        let mut child = command.spawn().map_err(|error| nothing(error.to_string()))?;
        let stderr = tool::drain(child.stderr.take());
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            end(&mut child);
            return Err(nothing("it has no pipes".into()));
        };
        let mut session = Session {
            child,
            stdin,
            packets: packets(stdout),
            until: Instant::now() + limit,
            number: 0,
            extensions: Vec::new(),
        };
        let greeting = session.send(INIT, &3u32.to_be_bytes()).and_then(|()| session.receive());
        let no_sftp = match &greeting {
            Ok(packet) if packet.first() == Some(&VERSION) => {
                session.extensions = extensions(packet);
                return Ok(session);
            }
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::InvalidData,
        };
        let timed_out = greeting.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
        let ending = match session.child.try_wait() {
            Ok(Some(status)) => format!("ssh ended ({status})"),
            _ if timed_out => format!("no answer after {}", crate::cli::options::duration::format(limit)),
            _ => greeting.err().map(|error| error.to_string()).unwrap_or_default(),
        };
        drop(session);
        let stderr = stderr.recv_timeout(LAST_WORDS).unwrap_or_default();
        let no_sftp = no_sftp.then(|| {
            "the server answers with something else than SFTP: see that its login shell prints nothing, and that sftp_server \
             is right"
                .to_owned()
        });
        Err(Failure { stderr, ending, no_sftp })
    }

    /// True if the server has said that it knows this extension.
    pub fn offers(&self, extension: &str) -> bool {
        self.extensions.iter().any(|offered| offered == extension)
    }

    /// What that path is, links followed.
    pub fn stat(&mut self, path: &Path) -> Result<Answer, String> {
        self.number += 1;
        let name = path.as_os_str().as_bytes();
        let length = u32::try_from(name.len()).map_err(|_| "the path is too long".to_owned())?;
        let body = [&self.number.to_be_bytes()[..], &length.to_be_bytes(), name].concat();
        let packet = self.send(STAT, &body).and_then(|()| self.receive());
        let packet = packet.map_err(|error| format!("the session was lost ({error})"))?;
        parse(&packet, self.number).ok_or_else(|| "the server answers nonsense".to_owned())
    }

    fn send(&mut self, kind: u8, body: &[u8]) -> io::Result<()> {
        let length = u32::try_from(body.len() + 1).map_err(io::Error::other)?;
        // Less than a pipe holds: it cannot block.
        self.stdin.write_all(&[&length.to_be_bytes()[..], &[kind], body].concat())
    }

    fn receive(&mut self) -> io::Result<Vec<u8>> {
        match self.packets.recv_timeout(self.until.saturating_duration_since(Instant::now())) {
            Ok(packet) => packet,
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Packets without their length, as they come.
fn packets(mut stdout: impl Read + Send + 'static) -> Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = channel();
    let read = move || {
        loop {
            let packet = packet(&mut stdout);
            let last = packet.is_err();
            if sender.send(packet).is_err() || last {
                return;
            }
        }
    };
    // Without a thread nothing is received.
    _ = std::thread::Builder::new().name("sftp".into()).spawn(read);
    receiver
}

fn packet(from: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_be_bytes(length);
    if length == 0 || length > LONGEST {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut packet = vec![0; length as usize];
    from.read_exact(&mut packet)?;
    Ok(packet)
}

/// Names of the extensions that a VERSION lists, each followed by some data.
fn extensions(packet: &[u8]) -> Vec<String> {
    let mut rest = packet.get(5..).unwrap_or_default();
    let mut string = || {
        let (length, tail) = rest.split_first_chunk()?;
        let (text, tail) = tail.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        rest = tail;
        Some(text)
    };
    let pairs = std::iter::from_fn(|| Some((string()?, string()?)));
    pairs.map(|(name, _)| String::from_utf8_lossy(name).into_owned()).collect()
}

/// The answer to a STAT of that number.
fn parse(packet: &[u8], number: u32) -> Option<Answer> {
    let (&kind, body) = packet.split_first()?;
    let word = |at: usize| Some(u32::from_be_bytes(body.get(at..at + 4)?.try_into().ok()?));
    if word(0)? != number {
        return None;
    }
    match (kind, word(4)?) {
        (ATTRS, flags) => {
            // Size, then owners, then permissions, each if its flag is set.
            let at = 8 + if flags & 1 != 0 { 8 } else { 0 } + if flags & 2 != 0 { 8 } else { 0 };
            let mode = (flags & 4 != 0).then(|| word(at)).flatten();
            // A server that does not tell the mode may have a directory there.
            let directory = mode.is_none_or(|mode| mode & libc::S_IFMT == libc::S_IFDIR);
            Some(if directory { Answer::Directory } else { Answer::Other })
        }
        (STATUS, 2) => Some(Answer::Missing),
        (STATUS, 3) => Some(Answer::Denied),
        (STATUS, code) => {
            let length = word(8).unwrap_or_default() as usize;
            let words = body.get(12..).and_then(|rest| rest.get(..length)).map(String::from_utf8_lossy);
            Some(Answer::Failed(format!("{} (SFTP status {code})", words.unwrap_or_default())))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_secs(20);

    fn sh(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_real_server_tells_directories_from_files() {
        let servers = ["/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server"];
        let server =
            servers.into_iter().find(|path| Path::new(path).exists()).expect("openssh-sftp-server is installed");
        let mut session = Session::open(Command::new(server), LIMIT).expect("it speaks SFTP");
        let dir = tempfile::tempdir().expect("tempdir");
        std::fs::write(dir.path().join("file"), "x").expect("write");
        assert_eq!(session.stat(dir.path()), Ok(Answer::Directory));
        assert_eq!(session.stat(&dir.path().join("file")), Ok(Answer::Other));
        assert_eq!(session.stat(&dir.path().join("none")), Ok(Answer::Missing));
        assert!(session.offers("fsync@openssh.com") && !session.offers("1"));
    }

    #[test]
    fn what_is_no_server_is_told_apart() {
        let fails = |script: &str, limit| Session::open(sh(script), limit).err().expect(script);
        let failure = fails("echo 'ssh: no way' >&2; exit 255", LIMIT);
        assert_eq!((failure.stderr.as_str(), failure.no_sftp.is_none()), ("ssh: no way\n", true));
        assert!(fails("echo welcome to this machine; sleep 1000", LIMIT).no_sftp.is_some());
        assert!(fails("sleep 1000", Duration::from_millis(200)).ending.starts_with("no answer after 200ms"));
    }

    proptest! {
        #[test]
        fn nonsense_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = (parse(&bytes, 1), packet(&mut bytes.as_slice()), extensions(&bytes));
        }
    }
}
