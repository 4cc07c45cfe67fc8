//! `steadfs mount -o remount,…`: what mount(8) hands over when an overlay that is mounted is to be mounted otherwise.
//!
//! The kernel lets flags of a FUSE mount be changed and nothing else, and mount(8) hands over what fstab says beside what its
//! user said: so an option that the mount has, or that fstab has, is no wish for a change. Any other is refused by its name.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use super::super::{options, status};
use crate::backing::mountinfo::{self, Entry};
use crate::daemon::MountError;
use crate::mountpoint::{claim, place};
use crate::overlay::mount::flag;
use crate::rundir;
use crate::telemetry::control::{Reply, Request};

/// Where libmount reads fstab(5), unless told otherwise.
const FSTAB: &str = "/etc/fstab";
/// A daemon answers this in any state.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two questions while nobody listens.
const AGAIN: Duration = Duration::from_millis(20);

/// Whether these options ask for it.
pub fn is_asked_for(options: &[String]) -> bool {
    options.iter().flat_map(|values| options::split::split(values)).any(|option| option == "remount")
}

/// Changes the flags of the overlay at that mountpoint.
pub fn run(mountpoint: &Path, given: &[String]) -> Result<(), MountError> {
    let path = place::resolve(mountpoint)?;
    let shown = path.display();
    let entry = mountinfo::at(&path).map_err(place::no_mountinfo)?;
    let entry = entry.ok_or_else(|| MountError::Mount(format!("{shown} is not mounted")))?;
    if !entry.is_fuse() || !rundir::of(&path).is_dir() {
        return Err(MountError::Usage(format!("{shown} is not a mount of a steadfs of this user")));
    }
    let given: Vec<String> = given.iter().flat_map(|values| options::split::split(values)).collect();
    let fstab = std::env::var_os("LIBMOUNT_FSTAB").unwrap_or_else(|| FSTAB.into());
    let listed = listed(&std::fs::read_to_string(fstab).unwrap_or_default(), &path);
    let flags = flags(&entry, &given, &listed).map_err(|names| {
        MountError::Usage(format!(
            "{shown}: {names} cannot be changed while it is mounted: unmount it and mount it again"
        ))
    })?;
    if !flags.contains(MsFlags::MS_RDONLY) {
        may_be_writable(&path)?;
    }
    let none: Option<&str> = None;
    mount(none, &path, none, flags | MsFlags::MS_REMOUNT, none).map_err(|errno| match errno {
        nix::errno::Errno::EBUSY => {
            MountError::Mount(format!("{shown}: files are open for writing: see fuser -vm {shown}"))
        }
        nix::errno::Errno::EPERM => MountError::Usage(format!("{shown}: only root can remount")),
        errno => MountError::Mount(format!("{shown}: {}", errno.desc())),
    })
}

/// The flags that the mount is to have, or the names of what cannot be changed. mount(8) hands over all flags that are to be
/// set, and does not say which are to be cleared.
fn flags(entry: &Entry, given: &[String], listed: &[String]) -> Result<MsFlags, String> {
    let (own, of_all) = (entry.options.to_string_lossy(), entry.super_options.to_string_lossy());
    let present: Vec<&str> = own.split(',').chain(of_all.split(',')).collect();
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let mut refused = Vec::new();
    let given = given.iter().map(String::as_str);
    for (option, is_wish) in present.iter().map(|option| (*option, false)).chain(given.map(|option| (option, true))) {
        let name = option.split_once('=').map_or(option, |(name, _)| name);
        match (option, flag(option)) {
            ("ro", _) => flags |= MsFlags::MS_RDONLY,
            // Of the mount itself and of the filesystem one may be read-only and the other not.
            ("rw", _) if is_wish => flags -= MsFlags::MS_RDONLY,
            // Changes the flags of the mount and leaves the filesystem alone.
            ("bind", _) => flags |= MsFlags::MS_BIND,
            ("rw" | "remount", _) => {}
            (_, Some((set, clear))) if is_wish => flags = (flags - clear) | set,
            _ if !is_wish || options::known::ignored(name) || present.contains(&option) => {}
            _ if listed.iter().any(|other| other == option) => {}
            _ => refused.push(name),
        }
    }
    if refused.is_empty() { Ok(flags) } else { Err(refused.join(", ")) }
}

/// The options that a fstab(5) has for this mountpoint.
fn listed(fstab: &str, mountpoint: &Path) -> Vec<String> {
    let lines = fstab.lines().map(str::trim_start).filter(|line| !line.starts_with('#'));
    let rows = lines.map(|line| {
        line.split_ascii_whitespace().map(|field| mountinfo::unescape(field.as_bytes())).collect::<Vec<_>>()
    });
    let at = |row: &Vec<_>| row.get(1).is_some_and(|place| Path::new(place) == mountpoint);
    let found = rows.into_iter().filter(at).find_map(|row| Some(options::split::split(row.get(3)?.to_str()?)));
    found.unwrap_or_default()
}

/// An overlay may be read-only because another one shows the same directory.
fn may_be_writable(path: &Path) -> Result<(), MountError> {
    let shown = path.display();
    let request = Request::Writable { mountpoint: path.to_owned() };
    let until = Instant::now() + PATIENCE;
    let answer = loop {
        match status::ask(&rundir::control_socket(path), &request, PATIENCE) {
            // Between a daemon and its successor nobody listens.
            Err(error) if status::is_absent(&error) && claim::is_alive(path) && Instant::now() < until => {
                std::thread::sleep(AGAIN);
            }
            answer => break answer,
        }
    };
    match answer {
        Ok(Reply::Failed { text }) => Err(MountError::Usage(format!("{shown} stays read-only: {text}"))),
        Ok(_) => Ok(()),
        Err(error) => Err(MountError::Mount(format!("{shown}: the daemon does not answer: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(options: &str, of_all: &str) -> Entry {
        let line = format!("9 1 0:50 / /hot {options} - fuse.steadfs box:/a {of_all}\n");
        mountinfo::parse(line.as_bytes()).pop().expect("an entry")
    }

    fn given(options: &str) -> Vec<String> {
        options::split::split(options)
    }

    #[test]
    fn flags_change_and_nothing_else() {
        let there = entry("rw,nosuid,nodev,relatime", "rw,user_id=0,group_id=0,default_permissions,allow_other");
        let begin = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let ask = |options: &str, listed: &str| flags(&there, &given(options), &given(listed));
        assert_eq!(ask("remount,ro", ""), Ok(begin | MsFlags::MS_RDONLY));
        assert_eq!(
            ask("remount,ro,noexec,dev", ""),
            Ok((begin - MsFlags::MS_NODEV) | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC)
        );
        assert_eq!(ask("rw,_netdev,x-systemd.after=a,user_id=0,allow_other,remount", ""), Ok(begin));
        assert_eq!(ask("remount,ro,rw", ""), Ok(begin), "the last word counts");
        assert_eq!(ask("port=23,deadline=9s,remount,ro", "port=23,_netdev"), Err("deadline".into()));
        assert_eq!(ask("port=24,uid=5,remount", "port=23"), Err("port, uid".into()));
        let read_only = entry("rw,nosuid,noexec", "ro,user_id=0");
        assert_eq!(
            flags(&read_only, &given("remount,noexec"), &[]),
            Ok(begin | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY)
        );
        assert_eq!(flags(&read_only, &given("remount,rw"), &[]), Ok(begin));
    }

    #[test]
    fn fstab_is_read_as_libmount_does() {
        let text = "# x /hot steadfs a 0 0\n\nbox:/a\t/hot\\040one steadfs port=23,ro 0 0\nb: /hot steadfs rw\n";
        assert_eq!(listed(text, Path::new("/hot one")), ["port=23", "ro"]);
        assert_eq!(listed(text, Path::new("/hot")), ["rw"]);
        assert_eq!(listed("short /hot", Path::new("/hot")), Vec::<String>::new());
    }
}
