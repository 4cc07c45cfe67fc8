//! `steadfs attach` and `steadfs detach`: overlays of a daemon that runs.

use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::file::{self, overlays};
use super::{complain, daemons, finish, options};
use crate::config::{HotPath, OverlayConfig};
use crate::daemon::MountError;
use crate::mountpoint::{dead, place};
use crate::rundir;
use crate::telemetry::control::{Reply, Request};

/// A first generation may be on its way, and an unmount may have to wait for calls that are.
const PATIENCE: Duration = Duration::from_secs(40);

/// Arguments of `steadfs attach`.
#[derive(Debug, Clone, clap::Args)]
pub struct AttachArgs {
    /// The hot path: an empty directory.
    pub mountpoint: PathBuf,
    /// Directory of the backing that is shown there, relative to its root; all of it when absent.
    #[arg(long, value_name = "SUB")]
    pub path: Option<PathBuf>,
    /// The daemon, by the `name` of its configuration; the only one that runs when absent.
    #[arg(long, value_name = "NAME")]
    pub to: Option<String>,
    /// Options of the overlay, as `steadfs mount` takes them.
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    pub options: Vec<String>,
}

/// Arguments of `steadfs detach`.
#[derive(Debug, Clone, clap::Args)]
pub struct DetachArgs {
    /// The hot path.
    pub mountpoint: PathBuf,
    /// Detach now, even if it is in use; what is open goes on until it is closed.
    #[arg(short, long)]
    pub lazy: bool,
}

/// Attaches.
pub fn attach(args: &AttachArgs) -> ExitCode {
    finish(try_attach(args))
}

/// Detaches.
pub fn detach(args: &DetachArgs) -> ExitCode {
    finish(daemons::hot_path(&args.mountpoint).and_then(|path| try_detach(&path, args.lazy)))
}

fn try_attach(args: &AttachArgs) -> Result<(), MountError> {
    let path = args.path.clone().unwrap_or_default();
    let path = below(&path).map_err(MountError::Usage)?;
    let (overlay, nonempty) = look(&args.options).map_err(MountError::Usage)?;
    let mountpoint = place::resolve(&args.mountpoint)?;
    let home = daemons::of_name(args.to.as_deref());
    // What is wrong with the directory is told first; a dead mount goes only if somebody is there to attach another one.
    if home.is_ok() && dead::clear(&mountpoint, &overlay.subtype)? {
        complain(&format!("the dead mount of an earlier steadfs on {} is detached", mountpoint.display()));
    }
    place::check(&mountpoint, nonempty)?;
    ask(&home?, &Request::Attach { hot: HotPath { mountpoint, path, slot: 0, overlay }, nonempty })
}

/// How an overlay is to look, by `-o` options: those of `steadfs mount` that are about the mount, and those that are keys of an
/// overlay in a configuration. Whether it may be mounted over a directory that is not empty.
fn look(given: &[String]) -> Result<(OverlayConfig, bool), String> {
    let (mut owner, mut umask, mut statfs) = (None, None, None);
    let mut others = Vec::new();
    for option in given.iter().flat_map(|values| options::split::split(values)) {
        let said = |words| format!("{option} {words}");
        match option.split_once('=') {
            Some(("owner", value)) => owner = Some(overlays::owner(value, &file::Machine).map_err(said)?),
            Some(("umask", value)) => umask = Some(overlays::umask(value).map_err(said)?),
            Some(("statfs", value)) => statfs = Some(overlays::statfs(value).map_err(said)?),
            _ => others.push(options::split::join([option.as_str()])),
        }
    }
    let parsed = options::parse(others.iter().map(String::as_str))?;
    if let Some(name) = parsed.beyond_the_overlay() {
        return Err(format!("option '{name}' is of the daemon and not of one overlay: give it in its configuration"));
    }
    let overlay = OverlayConfig { owner, umask, statfs: statfs.unwrap_or_default(), ..parsed.overlay };
    Ok((overlay, parsed.nonempty))
}

/// The daemon and the directory that `NAME:/SUB` means, if there is a daemon or a configuration of that name; otherwise it is a
/// host's.
pub(super) fn of_source(source: &str) -> Option<(String, PathBuf)> {
    let (name, path) = source.split_once(':')?;
    let plain = !name.is_empty() && !name.contains(['@', '/', '[']);
    let home = PathBuf::from(format!("@{name}"));
    let configured = || Path::new("/etc/steadfs").join(format!("{name}.toml")).exists();
    (plain && name != "dir" && (rundir::of(&home).is_dir() || configured())).then(|| (name.into(), path.into()))
}

/// Asks the daemon that has it to detach this overlay.
pub(super) fn try_detach(mountpoint: &Path, lazy: bool) -> Result<(), MountError> {
    let home = daemons::of_overlay(mountpoint)?;
    ask(&home, &Request::Detach { mountpoint: mountpoint.to_owned(), lazy })
}

fn ask(home: &Path, request: &Request) -> Result<(), MountError> {
    let shown = home.display();
    match super::status::ask(&rundir::control_socket(home), request, PATIENCE) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Busy { text }) => Err(MountError::Mount(format!("{text}: close what is open there, or give --lazy"))),
        Ok(Reply::Failed { text }) => Err(MountError::Mount(text)),
        Ok(other) => Err(MountError::System(format!("{shown}: unexpected answer: {other:?}"))),
        Err(error) => Err(MountError::Mount(format!("{shown}: the daemon does not answer: {error}"))),
    }
}

/// A directory of the backing, without leading slashes.
pub(super) fn below(path: &Path) -> Result<PathBuf, String> {
    let mut clean = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(format!(
                    "--path {}: '..' leads out of the backing: give a directory below it",
                    path.display()
                ));
            }
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_below_the_backing() {
        assert_eq!(below(Path::new("/jobs/./a/")), Ok("jobs/a".into()));
        assert_eq!(below(Path::new("")), Ok("".into()));
        assert!(below(Path::new("jobs/../../etc")).is_err());
    }
}
