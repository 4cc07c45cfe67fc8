//! A terminal that is drawn over, and given back as it was.

use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};

use super::frame::{Line, Tone};

/// The other screen, without a cursor, and lines cut at the edge.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";

/// Why a wait is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// It took as long as it should.
    Time,
    /// Somebody has seen enough.
    Quit,
    /// A signal came: the size may be another one.
    Resized,
}

/// See the module.
pub struct Screen {
    /// How the terminal was, if keys come from one.
    before: Option<Termios>,
    /// Nothing comes from there any more.
    deaf: AtomicBool,
    plain: bool,
}

impl Screen {
    /// Takes the terminal.
    pub fn enter() -> io::Result<Screen> {
        let stdin = io::stdin();
        let before = if stdin.is_terminal() { Some(termios::tcgetattr(&stdin)?) } else { None };
        if let Some(before) = &before {
            let mut ours = before.clone();
            // Keys come at once and are not shown. Ctrl-C stays a signal; a stop would leave the screen as it is.
            ours.local_flags -= LocalFlags::ICANON | LocalFlags::ECHO;
            ours.control_chars[SpecialCharacterIndices::VSUSP as usize] = libc::_POSIX_VDISABLE;
            termios::tcsetattr(&stdin, SetArg::TCSADRAIN, &ours)?;
        }
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let screen = Screen { deaf: AtomicBool::new(before.is_none()), before, plain };
        put(ENTER)?;
        Ok(screen)
    }

    /// Draws what `frame` makes for that many columns and rows, in one write.
    pub fn draw(&self, frame: impl Fn((usize, usize)) -> Vec<Line>) -> io::Result<()> {
        let size = terminal_size::terminal_size().map_or((80, 24), |(columns, rows)| (columns.0, rows.0));
        let (columns, rows) = (usize::from(size.0).max(1), usize::from(size.1).max(1));
        let lines = frame((columns, rows));
        let shown: Vec<_> = lines.iter().take(rows).map(|line| self.paint(line, columns)).collect();
        // Over what is there and not after clearing it: that would flicker. The first and last are for terminals that can
        // hold a frame back until it is whole.
        put(&format!("\x1b[?2026h\x1b[H{}\x1b[J\x1b[?2026l", shown.join("\r\n")))
    }

    fn paint(&self, line: &Line, columns: usize) -> String {
        let text: String = line.text.chars().take(columns).collect();
        let code = match line.tone {
            _ if self.plain => "",
            Tone::Plain => "",
            Tone::Title => "\x1b[1m",
            Tone::Good => "\x1b[1;32m",
            Tone::Warn => "\x1b[33m",
            Tone::Bad => "\x1b[1;31m",
            Tone::Dim => "\x1b[2m",
        };
        let end = if code.is_empty() { "" } else { "\x1b[0m" };
        // At the edge the cursor stays on the last column, which would be erased.
        let rest = if text.chars().count() < columns { "\x1b[K" } else { "" };
        format!("{code}{text}{end}{rest}")
    }

    /// Waits for a key, a signal, or the end of `time`.
    pub fn wait(&self, time: Duration) -> io::Result<Woken> {
        let stdin = io::stdin();
        let mut watched = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
        let watched = if self.deaf.load(SeqCst) { &mut watched[..0] } else { &mut watched[..] };
        let millis = u16::try_from(time.as_millis()).unwrap_or(u16::MAX);
        match poll(watched, PollTimeout::from(millis)) {
            Err(Errno::EINTR) => return Ok(Woken::Resized),
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Ok(Woken::Time),
            Ok(_) => {}
        }
        let mut keys = [0; 64];
        let count = match stdin.lock().read(&mut keys) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Woken::Resized),
            read => read?,
        };
        if count == 0 {
            self.deaf.store(true, SeqCst);
        }
        // Ctrl-D as well: that is how one leaves what reads a terminal.
        let quits = keys[..count].iter().any(|key| matches!(key, b'q' | b'Q' | 4));
        Ok(if quits { Woken::Quit } else { Woken::Time })
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // The terminal may have gone.
        let _ = put(LEAVE);
        if let Some(before) = &self.before {
            let _ = termios::tcsetattr(io::stdin(), SetArg::TCSADRAIN, before);
        }
    }
}

fn put(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}
