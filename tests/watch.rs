//! `steadfs status --watch` on a terminal of the test's own, and without one. The daemon is played by the test.

#[allow(dead_code)]
#[path = "telemetry/rig.rs"]
mod rig;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{LocalFlags, tcgetattr};
use nix::unistd::Pid;
use rig::Rig;
use steadfs::supervisor::Event;

const SIZE: Winsize = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };

/// A terminal with the program on it, and everything that was written to it.
struct Terminal {
    child: Child,
    master: File,
    slave: std::os::fd::OwnedFd,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Terminal {
    fn of(rig: &Rig) -> Terminal {
        let pair = openpty(Some(&SIZE), None).expect("a terminal");
        let end = || Stdio::from(pair.slave.try_clone().expect("a descriptor"));
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
        command.args(["status", "--watch"]).arg(rig.mountpoint()).env_remove("NO_COLOR");
        let child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("it starts");
        let (master, text) = (File::from(pair.master), Arc::new(Mutex::new(Vec::new())));
        let (mut source, target) = (master.try_clone().expect("a descriptor"), Arc::clone(&text));
        std::thread::spawn(move || {
            let mut part = [0; 4096];
            // EIO when the last user of the terminal has gone.
            while let Ok(count @ 1..) = source.read(&mut part) {
                target.lock().expect("nobody panicked").extend_from_slice(&part[..count]);
            }
        });
        Terminal { child, master, slave: pair.slave, text }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.text.lock().expect("nobody panicked")).into_owned()
    }

    /// The last whole frame, line by line, without colours.
    fn screen(&self) -> Vec<String> {
        let text = self.text();
        let Some((frames, _)) = text.rsplit_once("\x1b[?2026l") else { return Vec::new() };
        let frame = frames.rsplit_once("\x1b[H").map_or("", |(_, frame)| frame);
        // The terminal adds a return to each line.
        frame.split('\n').map(|line| without_escapes(line.trim_end_matches('\r'))).collect()
    }

    fn echoes(&self) -> bool {
        tcgetattr(self.slave.as_fd())
            .expect("it is a terminal")
            .local_flags
            .contains(LocalFlags::ECHO | LocalFlags::ICANON)
    }

    /// The exit code.
    fn ends(&mut self) -> Option<i32> {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("it does not end");
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn without_escapes(line: &str) -> String {
    let mut parts = line.split("\x1b[");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text += part.split_once(|c: char| c.is_ascii_alphabetic()).map_or("", |(_, rest)| rest);
    }
    text
}

fn live() -> Rig {
    let rig = Rig::served();
    rig.read_ok();
    rig.observed.watch.update(|snapshot| snapshot.state = "live");
    rig
}

#[test]
fn the_screen_follows_the_daemon_and_is_given_back() {
    let rig = live();
    let mut terminal = Terminal::of(&rig);
    let shows = |terminal: &Terminal, words: &str| terminal.screen().iter().any(|line| line.contains(words));
    rig.wait(|| shows(&terminal, "  live for ") && shows(&terminal, "/s; 0 waiting"));
    assert!(!terminal.echoes(), "keys are not shown");
    // The newest name wants to clear the screen.
    let since = SystemTime::now();
    rig.observed.watch.publish(Event::OutageBegan {
        since,
        reason: "probe_late".into(),
        detail: "a\u{1b}[2Jb\nc".into(),
    });
    rig.observed.watch.update(|snapshot| {
        snapshot.state = "waiting";
        snapshot.begin_outage(since, Instant::now());
        snapshot.why = Some("no route to host".into());
    });
    rig.wait(|| shows(&terminal, "  waiting for ") && shows(&terminal, "why        no route to host"));
    rig.wait(|| shows(&terminal, "outage_began detail: a\\u{1b}[2Jb"));
    let screen = terminal.screen();
    assert!(screen.len() <= 24 && screen.iter().all(|line| line.chars().count() <= 80), "{screen:#?}");
    assert!(screen[0].ends_with("q quits"), "the last column is not erased: {screen:#?}");
    assert!(!terminal.text().contains("\x1b[2J"), "nothing is cleared, so that nothing flickers");
    terminal.master.write_all(b"xq").expect("typed");
    assert_eq!(terminal.ends(), Some(1), "as `steadfs status` in an outage");
    rig.wait(|| terminal.text().ends_with("\x1b[?25h\x1b[?1049l"));
    assert!(terminal.echoes(), "the terminal is as it was");
}

#[test]
fn ctrl_c_gives_the_screen_back_too() {
    let rig = live();
    let mut terminal = Terminal::of(&rig);
    rig.wait(|| !terminal.screen().is_empty());
    kill(Pid::from_raw(terminal.child.id() as i32), Signal::SIGINT).expect("it is there");
    assert_eq!(terminal.ends(), Some(0));
    rig.wait(|| terminal.text().ends_with("\x1b[?25h\x1b[?1049l"));
    assert!(terminal.echoes());
}

#[test]
fn without_a_terminal_it_is_printed_again_and_again() {
    let rig = live();
    for (argument, mark) in [(None, "  state       live"), (Some("--json"), "\"state\":\"live\"")] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_steadfs"));
        command.args(["status", "--watch"]).args(argument).arg(rig.mountpoint());
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("it starts");
        let mut out = child.stdout.take().expect("it is piped");
        let (mut text, mut part) = (String::new(), [0; 65536]);
        while text.matches(mark).count() < 2 {
            let count = out.read(&mut part).expect("it goes on");
            assert!(count > 0, "it has ended: {text}");
            text += &String::from_utf8_lossy(&part[..count]);
        }
        assert!(!text.contains('\x1b'), "{text}");
        // A reader that goes away ends it.
        drop(out);
        assert_eq!(child.wait().expect("it ends").code(), Some(0));
    }
    let status = Command::new(env!("CARGO_BIN_EXE_steadfs")).args(["status", "--watch", "/no/such"]).status();
    assert_eq!(status.expect("it runs").code(), Some(3));
}
