//! Where steadfs keeps what must not be on the mount: one directory a hot path, mode 0700, gone after unmounting.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// `/run/steadfs` for root; `$XDG_RUNTIME_DIR/steadfs`, or `/tmp/steadfs-UID`, for others. `$STEADFS_RUNTIME_DIR` wins.
pub fn base() -> PathBuf {
    if let Some(dir) = std::env::var_os("STEADFS_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
        return dir.into();
    }
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return "/run/steadfs".into();
    }
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_dir()) {
        Some(dir) => Path::new(&dir).join("steadfs"),
        None => format!("/tmp/steadfs-{uid}").into(),
    }
}

/// The directory of the overlay at `mountpoint`, an absolute path, or of a daemon's `home`.
pub fn of(mountpoint: &Path) -> PathBuf {
    base().join(name(mountpoint))
}

/// The name of an overlay's directories, here and elsewhere: its path escaped as systemd.unit(5) does. `@NAME`, which is no
/// absolute path, stays what it is.
pub fn name(mountpoint: &Path) -> String {
    match mountpoint.to_str() {
        Some(name) if name.starts_with('@') => name.into(),
        _ => escape(mountpoint.as_os_str()),
    }
}

/// Makes that directory with mode 0700 and returns it.
pub fn create(mountpoint: &Path) -> io::Result<PathBuf> {
    let dir = of(mountpoint);
    DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    Ok(dir)
}

/// The socket on which the daemon of that directory answers `steadfs status` and its like.
pub fn control_socket(mountpoint: &Path) -> PathBuf {
    of(mountpoint).join("control.sock")
}

fn escape(path: &OsStr) -> String {
    let trimmed = path.as_bytes().iter().skip_while(|&&b| b == b'/');
    let mut name = String::new();
    for &byte in trimmed {
        match byte {
            b'/' => name.push('-'),
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b':' => name.push(byte as char),
            b'.' if !name.is_empty() => name.push('.'),
            _ => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    // Names of directories end at 255 bytes; a hash keeps long ones apart.
    if name.len() > 200 {
        let hash = path
            .as_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
        name.truncate(180);
        name.push_str(&format!("{hash:016x}"));
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_as_systemd_does() {
        assert_eq!(escape(OsStr::new("/srv/jobs/a-b c")), "srv-jobs-a\\x2db\\x20c");
        assert_eq!(name(Path::new("/@box")), "\\x40box");
        assert_eq!(name(Path::new("@box")), "@box");
    }

    #[test]
    fn long_paths_fit_a_name_and_stay_apart() {
        let long = format!("/{}", "x".repeat(4000));
        let other = format!("{long}y");
        assert!(escape(OsStr::new(&long)).len() < 255);
        assert_ne!(escape(OsStr::new(&long)), escape(OsStr::new(&other)));
    }
}
