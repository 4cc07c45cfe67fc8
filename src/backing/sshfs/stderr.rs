//! Where sshfs and ssh print: a pipe that a daemon reads, and that neither breaks nor blocks when there is none.
//!
//! Who writes to a pipe that nobody reads is sent SIGPIPE, and ssh ends when it cannot pass on what the server prints. So the
//! writers' end is open for reading too: the pipe lasts as long as one of them does. It does not block: what exceeds
//! `SIZE` while there is no reader is lost. The pipe has no name, and needs none: a successor opens it by the
//! descriptor of sshfs (`/proc/PID/fd/2`) and reads on where the daemon before it has stopped.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::process::Stdio;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::plain::plain;

/// Bytes that can wait for a reader: more than ssh prints with `-vvv` while it logs in.
const SIZE: i32 = 256 << 10;
/// Most bytes of a line that are kept: a server's words come this way, and nothing says that they ever end.
const LONGEST: usize = 1000;

/// The reader's end and the writers'.
pub fn pipe() -> io::Result<(File, Stdio)> {
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // Less than that will do as well: users other than root have a limit for all their pipes.
    let _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(SIZE));
    let path = format!("/proc/self/fd/{}", writer.as_raw_fd());
    let both = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Ok((reader.into(), both.into()))
}

/// The reader's end of what the process with that number prints to.
pub fn of(pid: i32) -> io::Result<File> {
    // Not blocked by the open, whatever it is.
    let options = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(format!("/proc/{pid}/fd/2"))?;
    if !options.metadata()?.file_type().is_fifo() {
        return Err(io::Error::other("it is no pipe"));
    }
    fcntl(&options, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(options)
}

/// Gives each line to `take` until the end, without what a terminal would obey.
pub fn lines(from: impl io::Read, mut take: impl FnMut(String)) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        let (used, ended) = match reader.fill_buf() {
            Ok([]) => break,
            Ok(more) => {
                let end = more.iter().position(|&byte| byte == b'\n');
                let part = &more[..end.unwrap_or(more.len())];
                line.extend_from_slice(&part[..part.len().min(LONGEST - line.len())]);
                (part.len() + usize::from(end.is_some()), end.is_some())
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => break,
        };
        reader.consume(used);
        if ended {
            take(text(&std::mem::take(&mut line)));
        }
    }
    if !line.is_empty() {
        take(text(&line));
    }
}

fn text(line: &[u8]) -> String {
    // ssh ends its lines with a carriage return too.
    plain(String::from_utf8_lossy(line).trim_end())
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_line_without_an_end_is_cut_and_nothing_is_obeyed() {
        let mut found = Vec::new();
        let endless = io::repeat(b'x').take(10 << 20).chain(&b"\nnext\r\n\x1b[2J\xff\n\nlast"[..]);
        lines(endless, |line| found.push(line));
        assert_eq!(found[0].len(), LONGEST);
        assert_eq!(found[1..], ["next", "\\u{1b}[2J\u{fffd}", "", "last"]);
    }

    #[test]
    fn a_writer_without_a_reader_is_neither_killed_nor_blocked_and_a_later_reader_reads_on() {
        let (reader, writer) = pipe().expect("a pipe");
        let mut command = Command::new("sh");
        // More than fits; then a word of life by another way, and it stays until it is told to go on.
        let script = "echo one >&2; read go; head -c 1000000 /dev/zero >&2 2>&2; echo alive; read go; exit 0";
        command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(writer);
        let mut child = command.spawn().expect("sh starts");
        drop(command);
        let mut first = BufReader::with_capacity(1, reader);
        let mut line = String::new();
        first.read_line(&mut line).expect("a line");
        assert_eq!(line, "one\n");
        drop(first);
        let mut tell = child.stdin.take().expect("piped");
        std::io::Write::write_all(&mut tell, b"go\n").expect("told");
        let mut said = BufReader::new(child.stdout.take().expect("piped"));
        line.clear();
        said.read_line(&mut line).expect("a line");
        assert_eq!(line, "alive\n", "it lives on");
        let mut second = of(child.id().cast_signed()).expect("a pipe");
        let mut some = vec![0; 4096];
        second.read_exact(&mut some).expect("what was printed meanwhile");
        let drained = std::thread::spawn(move || {
            let mut rest = Vec::new();
            second.read_to_end(&mut rest).map(|_| rest)
        });
        // Room is made in a moment; a shell that finds none says nothing.
        drop(tell);
        assert!(child.wait().expect("it ends").success());
        drained.join().expect("no panic").expect("an end comes when the last writer has gone");
    }
}
