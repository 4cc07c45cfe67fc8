//! `steadfs run`: one backing and any number of overlays, as a file says.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use super::file::{self, Loaded};
use super::mount::{self, Prepared, machine};
use super::{complain, daemons, failed, say, status};
use crate::config::{DaemonConfig, Source};
use crate::daemon::MountError;
use crate::daemon::reload::Reloaded;
use crate::mountpoint::claim::Claim;
use crate::mountpoint::{dead, place};
use crate::rundir;
use crate::telemetry::control::{Reply, Request};

/// How long a daemon may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long it may take to take a configuration over: what is uncommitted on overlays that go is committed.
const RELOAD: Duration = Duration::from_secs(120);

/// Arguments of `steadfs run`.
#[derive(Debug, Clone, clap::Args)]
pub struct RunArgs {
    /// The configuration: see steadfs.toml(5).
    pub config: PathBuf,
    /// Stay in the foreground and log to stderr; tells systemd when it is ready.
    #[arg(short, long)]
    pub foreground: bool,
    /// Log in detail; implies --foreground.
    #[arg(short, long)]
    pub debug: bool,
}

/// Mounts all overlays. In the background the process returns when they answer. Exit codes: those of mount(8); 78 for mistakes in
/// the file, 66 if it cannot be read (sysexits.h).
pub fn run(args: &RunArgs) -> ExitCode {
    mount::start(args.foreground, args.debug, || prepare(&args.config))
}

/// Arguments of `steadfs reload`.
#[derive(Debug, Clone, clap::Args)]
pub struct ReloadArgs {
    /// The daemon, by the `name` of its configuration, or that file.
    pub daemon: PathBuf,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Has a daemon read its file again. Exit codes: 0 if all of it was taken over, 1 if something was not, those of
/// [`run`] for mistakes in the file.
pub fn reload(args: &ReloadArgs) -> ExitCode {
    let done = match try_reload(&args.daemon) {
        Ok(done) => done,
        Err(code) => return code,
    };
    let text = if args.json {
        serde_json::to_string(&done).unwrap_or_default() + "\n"
    } else {
        let lines = [
            ("detached", &done.detached),
            ("changed", &done.changed),
            ("attached", &done.attached),
            ("at the next start", &done.later),
        ];
        let lines = lines.iter().flat_map(|(word, what)| what.iter().map(move |one| format!("{word}: {one}\n")));
        lines.collect()
    };
    say(&text);
    done.failed.iter().for_each(|words| complain(words));
    if done.is_whole() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn try_reload(daemon: &Path) -> Result<Reloaded, ExitCode> {
    let fail = |error| failed(&error);
    let unanswered = |words: String| fail(MountError::Mount(words));
    let file = if daemon.is_file() { daemon.to_owned() } else { file_of(daemon).map_err(fail)? };
    let Loaded { config, nonempty, .. } = file::load(&file).map_err(|error| {
        complain(&error.to_string());
        ExitCode::from(error.exit_code())
    })?;
    let config = resolved(config).map_err(fail)?;
    let home = config.home.clone();
    let nonempty = nonempty.iter().map(|path| place::resolve(path)).collect::<Result<_, _>>().map_err(fail)?;
    let request = Request::Reload { config: Box::new(config), nonempty };
    match status::ask(&rundir::control_socket(&home), &request, RELOAD) {
        Ok(Reply::Reloaded(done)) => Ok(done),
        Ok(Reply::Failed { text }) => Err(unanswered(text)),
        Ok(other) => Err(unanswered(format!("{}: unexpected answer: {other:?}", home.display()))),
        Err(error) if status::is_absent(&error) => {
            Err(unanswered(format!("no steadfs of the name {} runs: start it with steadfs run", home.display())))
        }
        Err(error) => Err(unanswered(format!("{}: the daemon does not answer: {error}", home.display()))),
    }
}

/// The file that the daemon of that name was started with.
fn file_of(daemon: &Path) -> Result<PathBuf, MountError> {
    let shown = daemon.display();
    let name = daemon.to_str().ok_or_else(|| MountError::Usage(format!("{shown} is no name and no file")))?;
    let home = daemons::of_name(Some(name))?;
    match status::ask(&rundir::control_socket(&home), &Request::Config, ANSWER) {
        Ok(Reply::Config(config)) => {
            config.file.ok_or_else(|| MountError::Usage(format!("{shown} was not started with a file")))
        }
        Ok(other) => Err(MountError::System(format!("{shown}: unexpected answer: {other:?}"))),
        Err(error) => Err(MountError::Mount(format!("{shown}: the daemon does not answer: {error}"))),
    }
}

fn prepare(path: &Path) -> Result<Prepared, ExitCode> {
    let Loaded { config, nonempty, notes, .. } = file::load(path).map_err(|error| {
        complain(&error.to_string());
        ExitCode::from(error.exit_code())
    })?;
    checked(config, |mountpoint| nonempty.contains(mountpoint), notes).map_err(|error| failed(&error))
}

/// Everything that can be found out before anything is changed, but for dead mounts of ours that are in the way.
fn checked(
    config: DaemonConfig,
    nonempty: impl Fn(&Path) -> bool,
    mut notes: Vec<String>,
) -> Result<Prepared, MountError> {
    let config = resolved(config)?;
    if let Source::Sshfs { .. } = config.source {
        machine::sshfs(&config.sshfs_options)?;
    }
    machine::fuse(config.overlays.iter().any(|hot| hot.overlay.allow_other))?;
    let mut config = config;
    for hot in &mut config.overlays {
        if let Source::Dir { path } = &config.source {
            place::check_source(path, &hot.mountpoint)?;
        }
        if dead::clear(&hot.mountpoint, &hot.overlay.subtype)? {
            notes.push(format!("the dead mount of an earlier steadfs on {} is detached", hot.mountpoint.display()));
        }
        hot.overlay.directory = Some(place::check(&hot.mountpoint, nonempty(&hot.mountpoint))?);
    }
    let claim = Claim::take(&config.home)?;
    Ok(Prepared { config, notes, claim })
}

/// With links resolved in all mountpoints, and a number for each overlay.
pub(super) fn resolved(mut config: DaemonConfig) -> Result<DaemonConfig, MountError> {
    let mut done = Vec::with_capacity(config.overlays.len());
    for (hot, slot) in std::mem::take(&mut config.overlays).into_iter().zip(1..) {
        let mountpoint = place::resolve(&hot.mountpoint)?;
        let hot = crate::config::HotPath { mountpoint, slot, ..hot };
        // Links may have led to the same place.
        crate::daemon::overlaps(&done, &hot)?;
        done.push(hot);
    }
    config.expected = done.iter().map(|hot| hot.mountpoint.clone()).collect();
    config.overlays = done;
    Ok(config)
}
