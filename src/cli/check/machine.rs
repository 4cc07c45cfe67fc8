//! /dev/fuse, sshfs, ssh, and steadfs's own directories.

use std::path::Path;
use std::process::Command;

use super::report::Report;
use super::tool;
use crate::backing::sshfs::command::Arguments;
use crate::cli::mount::machine;
use crate::config::{DaemonConfig, Source};
use crate::mountpoint::claim;
use crate::{rundir, statedir};

/// The oldest sshfs whose ways are known here.
const OLDEST: (u32, u32) = (3, 7);

pub fn check(config: &DaemonConfig, report: &mut Report) {
    let root = nix::unistd::geteuid().is_root();
    let allow_other = config.overlays.iter().any(|hot| hot.overlay.allow_other);
    match machine::fuse(allow_other) {
        Ok(()) => report.ok("/dev/fuse", if root { "there" } else { "there, and fusermount3 may be used" }),
        Err(error) => report.error("/dev/fuse", error.to_string()),
    }
    if let Source::Sshfs { target } = &config.source {
        match machine::sshfs(&config.sshfs_options) {
            Ok(()) => {
                let arguments = Arguments::new(target, &config.sshfs_options, config.fresh());
                version("sshfs", "--version", report);
                if !arguments.has_own_transport() {
                    version(&arguments.ssh_program(), "-V", report);
                }
            }
            Err(error) => report.error("sshfs", error.to_string()),
        }
    }
    for (what, dir) in [("runtime directory", rundir::base()), ("state directory", statedir::base())] {
        report.take(format!("{what} {}", dir.display()), ours(&dir));
    }
    let own = rundir::of(&config.home);
    if own.symlink_metadata().is_ok() {
        report.take(format!("runtime directory {}", own.display()), ours(&own));
    }
}

fn version(program: &str, switch: &str, report: &mut Report) {
    match tool::run(Command::new(program).arg(switch), tool::PROGRAM) {
        Ok(said) if said.well => {
            let lines: Vec<&str> = said.stdout.lines().chain(said.stderr.lines()).collect();
            let named = lines.iter().find(|line| line.to_ascii_lowercase().contains(&*name(program)));
            let words = named.or(lines.first()).copied().unwrap_or_default();
            match release(words).filter(|_| program == "sshfs") {
                Some(old) if old < OLDEST => {
                    report.warn(program, format!("{words}: steadfs is tested with 3.7: install a newer one"));
                }
                _ => report.ok(program, words),
            }
        }
        Ok(said) => report.error(program, format!("{}: install it again", said.words())),
        Err(words) => report.error(program, format!("{words}: install it again")),
    }
}

/// The program's name as its version has it.
fn name(program: &str) -> String {
    program.rsplit('/').next().unwrap_or(program).to_ascii_lowercase()
}

/// `SSHFS version 3.7.3` is (3, 7).
fn release(words: &str) -> Option<(u32, u32)> {
    let mut numbers = words.split_whitespace().last()?.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// One that is ours alone, or that can be made.
fn ours(dir: &Path) -> Result<String, String> {
    if dir.symlink_metadata().is_ok() {
        return claim::own(dir).map(|()| "is ours alone".into()).map_err(|error| error.to_string());
    }
    // The next one above that is there.
    let above = dir.ancestors().skip(1).find(|above| above.symlink_metadata().is_ok()).unwrap_or(Path::new("/"));
    super::outputs::writable(above).map(|()| "can be made".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(release("SSHFS version 3.7.3"), Some((3, 7)));
        assert_eq!(release("SSHFS version 2.10"), Some((2, 10)));
        assert_eq!(release("no version"), None);
        assert!(release("SSHFS version 2.10") < Some(OLDEST));
    }

    #[test]
    fn a_directory_of_somebody_elses_is_not_ours() {
        let dir = tempfile::tempdir().expect("tempdir");
        assert_eq!(ours(&dir.path().join("a/b")), Ok("can be made".into()));
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).expect("chmod");
        assert!(ours(dir.path()).is_err_and(|words| words.contains("can be written by others")));
    }
}
