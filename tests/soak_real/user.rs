//! Does the operations, in a process of its own: this test binary, started again for one hidden test. It holds descriptors
//! of the mount and may hang in it, so it never forks, and nobody waits for it without a limit.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use crate::lab::wait;
use crate::shared::outcome::{Look, Outcome, Value};
use crate::shared::play::User;
use crate::shared::program::Op;
use crate::shared::real::Real;

/// Longest time of one operation; after that a call has got lost.
const LIMIT: Duration = Duration::from_secs(60);

/// What it is asked. Names of operations are constants, so the text has to live as long.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound(deserialize = "'de: 'static"))]
enum Ask {
    Apply(Op),
    Offset(usize),
    Look,
}

/// What it says, errors by number.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    Outcome(Result<Value, i32>),
    Offset(Option<usize>),
    Look(Result<Look, i32>),
}

/// The test's side.
pub struct Remote {
    child: Child,
    requests: Option<UnixStream>,
    answers: BufReader<UnixStream>,
}

impl Remote {
    /// Starts one that works in `root`; `directory` is outside the mount.
    pub fn start(root: &Path, directory: &Path) -> Remote {
        let path = directory.join("user.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            // The directory selects no test; it marks the process as this laboratory's.
            .args(["user_process".as_ref(), directory.as_os_str()])
            .args(["--exact", "--ignored", "--nocapture", "--test-threads=1"])
            .env("SOAK_SOCKET", &path)
            .env("SOAK_ROOT", root)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut connected = None;
        wait("the user of the mount is there", || {
            assert!(matches!(child.try_wait(), Ok(None)), "the user of the mount does not start");
            connected = listener.accept().ok();
            connected.is_some()
        });
        let (socket, _) = connected.unwrap();
        socket.set_nonblocking(false).unwrap();
        socket.set_read_timeout(Some(LIMIT)).unwrap();
        Remote { child, answers: BufReader::new(socket.try_clone().unwrap()), requests: Some(socket) }
    }

    fn ask(&mut self, ask: &Ask) -> Answer {
        send(self.requests.as_mut().unwrap(), ask);
        let mut line = String::new();
        match self.answers.read_line(&mut line) {
            Ok(1..) => serde_json::from_str(&line).unwrap(),
            other => panic!("{ask:?} hangs, or its process died: {other:?}"),
        }
    }
}

impl User for Remote {
    fn apply(&mut self, op: &Op) -> Outcome {
        match self.ask(&Ask::Apply(op.clone())) {
            Answer::Outcome(outcome) => outcome.map_err(Errno::from_raw),
            other => unreachable!("{other:?}"),
        }
    }

    fn offset(&mut self, slot: usize) -> Option<usize> {
        match self.ask(&Ask::Offset(slot)) {
            Answer::Offset(offset) => offset,
            other => unreachable!("{other:?}"),
        }
    }

    fn look(&mut self) -> Result<Look, Errno> {
        match self.ask(&Ask::Look) {
            Answer::Look(look) => look.map_err(Errno::from_raw),
            other => unreachable!("{other:?}"),
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(socket) = self.requests.take() {
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
        // It ends by itself, unless it hangs in the mount; then nobody waits for it.
        for round in 0..400 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            if round == 200 {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn send(socket: &mut UnixStream, message: &impl Serialize) {
    let mut line = serde_json::to_vec(message).unwrap();
    line.push(b'\n');
    socket.write_all(&line).unwrap();
}

/// The hidden test calls this.
pub fn main() {
    let Some(path) = std::env::var_os("SOAK_SOCKET") else { return };
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    let mut real = Real::new(&PathBuf::from(std::env::var_os("SOAK_ROOT").unwrap()));
    let mut socket = UnixStream::connect(path).unwrap();
    let requests = BufReader::new(socket.try_clone().unwrap());
    for line in requests.lines() {
        // Names of operations are constants in a program; here they live as long as the process.
        let line: &'static str = Box::leak(line.unwrap().into_boxed_str());
        let answer = match serde_json::from_str(line).unwrap() {
            Ask::Apply(op) => Answer::Outcome(real.apply(&op).map_err(|errno| errno as i32)),
            Ask::Offset(slot) => Answer::Offset(real.offset(slot)),
            Ask::Look => Answer::Look(real.look().map_err(|errno| errno as i32)),
        };
        send(&mut socket, &answer);
    }
}
