//! The store: whether it is reached, lets us in, and has the directories.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::outputs::HANGS;
use super::report::Report;
use super::session::{Answer, Session};
use super::tool::{self, within};
use super::{login, session};
use crate::backing::StartError;
use crate::backing::sshfs::command::Arguments;
use crate::backing::sshfs::failure;
use crate::backing::sshfs::reach::Lookout;
use crate::config::{DaemonConfig, Source};

/// What sshfs asks of a server beyond SFTP (sftp_init_reply_ok in sshfs.c), and what it is without.
const EXTENSIONS: [(&str, &str); 4] = [
    (
        "fsync@openssh.com",
        "fsync and close return 0 when the server has everything, not when its disk has: sshfs does not say so",
    ),
    ("posix-rename@openssh.com", "a file cannot be renamed over another (EPERM): programs that save in that way fail"),
    ("hardlink@openssh.com", "hard links are refused (EPERM)"),
    ("statvfs@openssh.com", "the figures of df are made up, and a full store is told as EIO"),
];

/// How long the network may take to say whether the server is there.
const REACH: Duration = Duration::from_secs(10);

pub fn check(config: &DaemonConfig, offline: bool, report: &mut Report) {
    match &config.source {
        Source::Dir { path } => directory(config, path, report),
        Source::Sshfs { target } => {
            let arguments = Arguments::new(target, &config.sshfs_options, config.fresh());
            if !arguments.has_own_transport() {
                login::keys(&arguments, report);
            }
            if offline {
                report.ok("server", "is left out");
            } else {
                remote(config, &arguments, report);
            }
        }
    }
}

/// `dir:/path`.
fn directory(config: &DaemonConfig, path: &Path, report: &mut Report) {
    for (dir, hot) in std::iter::once((path.to_owned(), None))
        .chain(config.overlays.iter().map(|hot| (path.join(&hot.path), Some(&hot.mountpoint))))
    {
        let what = format!("directory {}", dir.display());
        match within(tool::LOOK, move || std::fs::metadata(dir).map(|found| found.is_dir())) {
            None => return report.error(what, HANGS),
            Some(Ok(true)) => report.ok(what, "is there"),
            Some(Ok(false)) => report.error(what, "is not a directory: give another"),
            Some(Err(error)) => {
                let hot = hot.map(|hot| format!(" (for {})", hot.display())).unwrap_or_default();
                report.error(what, format!("{error}{hot}: make it, or mend the path"));
            }
        }
    }
}

fn remote(config: &DaemonConfig, arguments: &Arguments, report: &mut Report) {
    let given = |name: &str| config.sshfs_options.iter().any(|option| option.starts_with(name));
    if given("directport=") {
        return report.warn("server", "is not tried, as directport= goes without ssh: try it with sshfs");
    }
    if !arguments.has_own_transport() {
        let ssh = [vec![arguments.ssh_program()], arguments.ssh()].concat();
        let lookout = Lookout::new(Some(ssh));
        match lookout.reach(REACH) {
            Ok(()) => match lookout.answered() {
                Some(address) => report.ok("server", format!("{address} answers")),
                None => report.ok("server", "is left to the login, as ssh makes no plain connection to it"),
            },
            Err(words) => {
                return report.error(
                    "server",
                    format!(
                        "{words}: see that the name and port are right, that it runs, and that nothing filters the port"
                    ),
                );
            }
        }
        login::host_key(arguments, report);
    }
    let limit = config.repair.start_deadline;
    match Session::open(command(arguments, &config.sshfs_options), limit) {
        Ok(session) => {
            report.ok("login", "works, and the server speaks SFTP");
            for (extension, words) in EXTENSIONS.iter().filter(|(extension, _)| !session.offers(extension)) {
                report.warn("server", format!("it does not know {extension}: {words}"));
            }
            directories(config, arguments, session, report);
        }
        Err(failure) => failed(&failure, arguments, report),
    }
}

/// As sshfs calls it (ssh_connect in sshfs.c).
fn command(arguments: &Arguments, options: &[String]) -> Command {
    let mut words = arguments.ssh();
    // `ssh` gives the host last, behind `--`.
    let host = words.split_off(words.len().saturating_sub(2));
    let server = options.iter().rev().find_map(|option| option.strip_prefix("sftp_server="));
    let mut command = Command::new(arguments.ssh_program());
    command.args(["-x", "-a", "-oClearAllForwardings=yes"]).args(words);
    if !server.is_some_and(|server| server.contains('/')) {
        command.arg("-s");
    }
    command.args(host).arg(server.unwrap_or("sftp"));
    command
}

fn failed(failure: &session::Failure, arguments: &Arguments, report: &mut Report) {
    if let Some(words) = &failure.no_sftp {
        return report.error("sftp", words.clone());
    }
    let said: Vec<String> = failure.stderr.lines().map(str::to_owned).collect();
    // A subsystem that the server has not got is no directory that it has not got.
    if said.iter().any(|line| line.contains("subsystem request failed")) {
        return report.error(
            "sftp",
            "subsystem request failed: have sftp allowed for this login, or give sftp_server = \"PATH\"",
        );
    }
    match failure::classify(&said, &failure.ending, &arguments.peer()) {
        StartError::Refused(words) => report.error("login", words),
        StartError::Local(words) => report.error("login", format!("{words}: mend the options in [sshfs]")),
        StartError::Unreachable(words) | StartError::Silent(words) => report.error(
            "login",
            format!("{words}: see that the server runs, and that nothing between filters or cuts the connection"),
        ),
    }
}

fn directories(config: &DaemonConfig, arguments: &Arguments, mut session: Session, report: &mut Report) {
    let base = remote_directory(&arguments.target);
    let all = std::iter::once((Path::new(""), None))
        .chain(config.overlays.iter().map(|hot| (hot.path.as_path(), Some(hot.mountpoint.display()))));
    for (path, hot) in all.filter(|(path, hot)| hot.is_none() || !path.as_os_str().is_empty()) {
        let dir = below(base, path);
        let what = match &hot {
            Some(hot) => format!("directory {} (for {hot})", dir.display()),
            None => format!("directory {}", dir.display()),
        };
        match session.stat(&dir) {
            Ok(Answer::Directory) => report.ok(what, "is there"),
            Ok(Answer::Other) => report.error(what, "is not a directory: give another"),
            Ok(Answer::Missing) => report.error(what, "is not there: make it on the server, or mend the path"),
            Ok(Answer::Denied) => report.error(what, "may not be entered by this login: change its mode on the server"),
            Ok(Answer::Failed(words)) => report.error(what, format!("{words}: look at it on the server")),
            Err(words) => return report.error(what, format!("{words}: try again")),
        }
    }
}

/// The part of `[user@]host:dir` behind the colon.
fn remote_directory(target: &str) -> &str {
    let colon = target.find(':').unwrap_or(target.len());
    // An IPv6 address has colons of its own, in brackets.
    let host = target
        .find('[')
        .filter(|bracket| *bracket < colon)
        .and_then(|_| target.find("]:"))
        .map_or(colon, |end| end + 1);
    target.get(host + 1..).unwrap_or_default()
}

fn below(base: &str, path: &Path) -> std::path::PathBuf {
    let whole = Path::new(base).join(path);
    if whole.as_os_str().is_empty() { ".".into() } else { whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_is_behind_the_host() {
        for (target, dir) in
            [("h:", ""), ("u@h:/a:b", "/a:b"), ("u@[fe80::1]:d", "d"), ("[::1]:", ""), ("h:x[1]:y", "x[1]:y")]
        {
            assert_eq!(remote_directory(target), dir, "{target}");
        }
        assert_eq!(below("", Path::new("")), Path::new("."));
        assert_eq!(below("a", Path::new("b")), Path::new("a/b"));
    }

    #[test]
    fn it_is_called_as_sshfs_calls_it() {
        let words = |options: &[&str]| {
            let options: Vec<String> = options.iter().map(ToString::to_string).collect();
            let arguments = Arguments { target: "u@h:d".into(), options: options.clone(), remembers: Duration::ZERO };
            let command = command(&arguments, &options);
            let words = command.get_args().map(|word| word.to_string_lossy().into_owned());
            words.skip(3).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(words(&["port=23", "uid=5"]), "-p 23 -s -- u@h sftp");
        assert_eq!(words(&["sftp_server=/usr/lib/sftp-server"]), "-- u@h /usr/lib/sftp-server");
    }
}
