//! Values of options other than durations: each function's error completes `NAME=VALUE …`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use super::{duration, words};
use crate::config::{HookCommand, MetricsListen, OverlayConfig};

/// The errnos that callers may be given in an outage (promise P2).
pub const OUTAGE_ERRNOS: [(&str, Errno); 5] = [
    ("ENOTCONN", Errno::ENOTCONN),
    ("EIO", Errno::EIO),
    ("ETIMEDOUT", Errno::ETIMEDOUT),
    ("EAGAIN", Errno::EAGAIN),
    ("EHOSTDOWN", Errno::EHOSTDOWN),
];

/// One of [`OUTAGE_ERRNOS`], whatever its case.
pub fn errno(text: &str) -> Result<Errno, String> {
    let found = OUTAGE_ERRNOS.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    found.map(|(_, errno)| *errno).ok_or_else(|| {
        let names: Vec<&str> = OUTAGE_ERRNOS.iter().map(|(name, _)| *name).collect();
        format!("is not an errno to choose: give one of {}", names.join(", "))
    })
}

/// A number of things.
pub fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "is not a number: give 0, 1, 2 and so on".into())
}

/// How old what is shown may be: a duration of at most a day, or `exclusive`.
pub fn fresh(text: &str) -> Result<Duration, String> {
    if text == "exclusive" {
        return Ok(OverlayConfig::EXCLUSIVE);
    }
    match duration::parse(text)? {
        age if age <= OverlayConfig::EXCLUSIVE => Ok(age),
        _ => Err(format!("is out of range: give 0 to {}, or exclusive", duration::format(OverlayConfig::EXCLUSIVE))),
    }
}

/// `yes` or `no`, and their usual synonyms.
pub fn yes_no(text: &str) -> Result<bool, String> {
    match text {
        "yes" | "true" | "on" | "1" => Ok(true),
        "no" | "false" | "off" | "0" => Ok(false),
        _ => Err("is neither yes nor no".into()),
    }
}

/// A path, made absolute: the daemon works in `/`.
pub fn path(text: &str) -> Result<PathBuf, String> {
    if text.is_empty() || text.contains('\0') {
        return Err("is not a path".into());
    }
    let path = std::path::absolute(text).map_err(|error| format!("is not a path: {error}"))?;
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("must not contain ..: write the path out".into());
    }
    Ok(path)
}

/// A file whose directory exists.
pub fn file_in_directory(text: &str) -> Result<PathBuf, String> {
    let path = path(text)?;
    match path.parent() {
        None => Err("is a directory".into()),
        Some(parent) if !parent.is_dir() => {
            Err(format!("cannot be made: make the directory {} first", parent.display()))
        }
        Some(_) => Ok(path),
    }
}

/// A directory that exists.
pub fn directory(text: &str) -> Result<PathBuf, String> {
    let path = path(text)?;
    if path.is_dir() { Ok(path) } else { Err("is not a directory: make it first".into()) }
}

/// A directory that can be made, or one that is fit to hold what was not written.
pub fn spool(text: &str) -> Result<PathBuf, String> {
    let path = file_in_directory(text)?;
    crate::spool::check_directory(&path)?;
    Ok(path)
}

/// A command: words, or all that follows `sh:` for a shell.
pub fn command(text: &str) -> Result<HookCommand, String> {
    if let Some(script) = text.strip_prefix("sh:") {
        if script.trim().is_empty() {
            return Err("has no command after sh:".into());
        }
        return Ok(HookCommand { argv: ["/bin/sh", "-c", script].map(String::from).into() });
    }
    argv(words::split(text)?)
}

/// A command as its words.
pub fn argv(argv: Vec<String>) -> Result<HookCommand, String> {
    let Some(program) = argv.first().filter(|program| !program.is_empty()) else {
        return Err("has no command".into());
    };
    if argv.iter().any(|word| word.contains('\0')) {
        return Err("contains a NUL byte".into());
    }
    // A bare name is looked up in PATH when it is run.
    if program.contains('/') && !Path::new(program).is_absolute() {
        return Err(format!("runs {program} in whatever directory: give its absolute path"));
    }
    Ok(HookCommand { argv })
}

/// `ADDR:PORT` or `unix:PATH`.
pub fn listen(text: &str) -> Result<MetricsListen, String> {
    if let Some(path) = text.strip_prefix("unix:") {
        return file_in_directory(path).map(MetricsListen::Unix);
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(MetricsListen::Tcp(addr));
    }
    // Other names would depend on a resolver that may be down.
    let port = text.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok());
    let local = port.and_then(|port| ("localhost", port).to_socket_addrs().ok()?.find(|addr| addr.ip().is_loopback()));
    local
        .map(MetricsListen::Tcp)
        .ok_or_else(|| "is not an address: give 127.0.0.1:PORT, [::1]:PORT, localhost:PORT or unix:/PATH".into())
}

/// The second half of a filesystem type.
pub fn subtype(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if text.is_empty() || text.len() > 64 || !text.chars().all(good) {
        return Err("is not a subtype: give up to 64 letters, digits, and _ - .".into());
    }
    Ok(text.into())
}

/// The source that mount tables show.
pub fn fsname(text: &str) -> Result<String, String> {
    if text.is_empty() || text.len() > 1024 || text.chars().any(char::is_control) {
        return Err("is not a name: give up to 1024 bytes without control characters".into());
    }
    Ok(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_with_and_without_a_shell() {
        let argv = |text: &str| command(text).map(|command| command.argv);
        assert_eq!(argv("/bin/x 'a b'"), Ok(vec!["/bin/x".into(), "a b".into()]));
        assert_eq!(argv("sh:a | b"), Ok(vec!["/bin/sh".into(), "-c".into(), "a | b".into()]));
        for bad in ["", " ", "''", "sh:", "sh: ", "./x", "'a"] {
            assert!(argv(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(listen("127.0.0.1:9"), Ok(MetricsListen::Tcp(([127, 0, 0, 1], 9).into())));
        assert_eq!(listen("unix:/tmp/s"), Ok(MetricsListen::Unix("/tmp/s".into())));
        for bad in ["", "9100", ":9100", "example.org:80", "unix:", "unix:/no/such/dir/s"] {
            assert!(listen(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_cannot_carry_options() {
        assert!(subtype("sshfs").is_ok() && fsname("me@box:/a,b").is_ok());
        assert!(subtype("a,suid").is_err() && subtype("").is_err() && fsname("a\nb").is_err());
    }

    #[test]
    fn errnos_ignore_case() {
        assert_eq!(errno("eio"), Ok(Errno::EIO));
        assert!(errno("ENOENT").is_err());
    }
}
