//! /dev/fuse, sshfs, ssh, and steadfs's own directories.

use std::path::Path;
use std::process::Command;

use super::report::Report;
use super::tool;
use crate::backing::sshfs::command::Arguments;
use crate::cli::mount::{claim, machine};
use crate::config::{DaemonConfig, Source};
use crate::{rundir, statedir};

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
                let arguments = Arguments::new(target, &config.sshfs_options);
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
            let first =
                said.stdout.lines().chain(said.stderr.lines()).find(|line| !line.is_empty()).unwrap_or_default();
            report.ok(program, first);
        }
        Ok(said) => report.error(program, format!("{}: install it again", said.words())),
        Err(words) => report.error(program, format!("{words}: install it again")),
    }
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
