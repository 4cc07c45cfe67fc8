//! `steadfs mount`.

mod argv;
mod background;
pub(super) mod kept;
pub(super) mod logging;
pub(super) mod machine;
mod remount;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{attach, complain, failed, options, source};
use crate::config::{DaemonConfig, MetricsListen, Source};
use crate::daemon::{self, MountError};
use crate::keeper::notify;
use crate::mountpoint::{claim, dead, place};

/// Arguments of `steadfs mount`: those of sshfs, so that one can stand in for the other.
#[derive(Debug, Clone, clap::Args)]
pub struct MountArgs {
    /// `[user@]host:[dir]`, or `dir:/path` for a directory that exists here.
    pub source: String,
    /// The hot path: an empty directory.
    pub mountpoint: PathBuf,
    /// Options, separated by commas; may be repeated.
    #[arg(short = 'o', value_name = "OPTIONS", allow_hyphen_values = true)]
    pub options: Vec<String>,
    /// Stay in the foreground and log to stderr; tells systemd when it is ready.
    #[arg(short, long)]
    pub foreground: bool,
    /// Log in detail; implies --foreground.
    #[arg(short, long)]
    pub debug: bool,
    /// Port of the server, as -o port=PORT.
    #[arg(short, value_name = "PORT")]
    pub port: Option<String>,
    /// Compress, as -o Compression=yes.
    #[arg(short = 'C')]
    pub compress: bool,
    /// Another configuration file for ssh.
    #[arg(short = 'F', value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Accepted for the sake of sshfs's command line, without effect.
    #[arg(short = 's', hide = true)]
    pub single_threaded: bool,
    /// What `-o`, `-p`, `-C` and `-F` say, in the order of the command line: the last word counts.
    #[arg(skip)]
    in_order: Vec<Word>,
}

/// See [`MountArgs`].
#[derive(Debug, Clone)]
enum Word {
    Options(String),
    Port(String),
    Compress,
    ConfigFile(PathBuf),
}

impl MountArgs {
    /// Finds out in which order options were given, which clap's fields do not say.
    pub fn order(&mut self, matches: &clap::ArgMatches) {
        let places = |id: &str| matches.indices_of(id).into_iter().flatten();
        let mut words: Vec<(usize, Word)> = Vec::new();
        words.extend(places("options").zip(self.options.iter().cloned().map(Word::Options)));
        words.extend(places("port").zip(self.port.iter().cloned().map(Word::Port)));
        words.extend(places("config_file").zip(self.config_file.iter().cloned().map(Word::ConfigFile)));
        if self.compress {
            words.extend(places("compress").map(|place| (place, Word::Compress)));
        }
        words.sort_by_key(|(place, _)| *place);
        self.in_order = words.into_iter().map(|(_, word)| word).collect();
    }
}

/// A daemon whose mounts have been checked and not begun.
pub(super) struct Prepared {
    pub config: DaemonConfig,
    pub notes: Vec<String>,
    /// Held until the process ends.
    pub claim: claim::Claim,
}

/// Mounts. In the background the process returns when the overlay answers.
pub fn run(args: MountArgs) -> ExitCode {
    argv::hide_options();
    if remount::is_asked_for(&args.options) {
        return exit(remount::run(&args.mountpoint, &args.options).map(|()| ExitCode::SUCCESS));
    }
    if let Some((name, path)) = attach::of_source(&args.source) {
        let MountArgs { source, mountpoint, mut options, foreground, debug, .. } = args;
        // As fstab(5) has it: that is how `mount -a` knows that it is mounted. An option that is given comes later.
        options.insert(0, options::split::join([format!("fsname={source}").as_str()]));
        if foreground || debug {
            complain(&format!("{name} is a daemon of its own, which serves the overlay: leave --foreground out"));
            return ExitCode::from(1);
        }
        return attach::attach(&attach::AttachArgs { mountpoint, path: Some(path), to: Some(name), options });
    }
    start(args.foreground, args.debug, || prepare(&args).map_err(|error| failed(&error)))
}

/// Starts what is prepared, or goes on with what a service manager has kept of it. In the background the process returns when
/// the overlays answer. Who prepares says what is wrong.
pub(super) fn start(foreground: bool, debug: bool, prepare: impl FnOnce() -> Result<Prepared, ExitCode>) -> ExitCode {
    let foreground = foreground || debug;
    // First of all, as these descriptors have fixed numbers.
    let kept = if foreground { notify::kept() } else { Vec::new() };
    let log = if debug { kept::Log::Debug } else { kept::Log::Stderr };
    if !kept.is_empty() {
        logging::to_stderr(debug);
        if let Some(orphaned) = kept::Orphaned::of(kept) {
            return exit(orphaned.run(&log, || tracing::info!("served again")).map(ExitCode::from));
        }
    }
    let prepared = match prepare() {
        Ok(prepared) => prepared,
        Err(code) => return code,
    };
    if !foreground {
        return background::run(prepared);
    }
    logging::to_stderr(debug);
    let mountpoint = prepared.config.home.clone();
    let ready = move || tracing::info!(mountpoint = %mountpoint.display(), "mounted");
    exit(if prepared.config.keeper.wanted {
        kept::run(prepared, &log, ready).map(ExitCode::from)
    } else {
        serve(prepared, ready).map(|()| ExitCode::SUCCESS)
    })
}

fn exit(result: Result<ExitCode, MountError>) -> ExitCode {
    result.unwrap_or_else(|error| failed(&error))
}

/// Runs the daemon to its end.
fn serve(prepared: Prepared, ready: impl FnOnce() + Send + 'static) -> Result<(), MountError> {
    let Prepared { config, notes, claim } = prepared;
    for note in notes {
        tracing::debug!("{note}");
    }
    // The kernel has applied the caller's umask before a request gets here.
    nix::sys::stat::umask(nix::sys::stat::Mode::empty());
    // Held directories would make other filesystems busy.
    if let Err(error) = std::env::set_current_dir("/") {
        return Err(MountError::System(format!("cannot enter /: {error}")));
    }
    let result = daemon::run(config, ready);
    claim.release();
    result
}

/// Everything that can be found out before anything is changed, but for a dead mount of ours that is in the way.
fn prepare(args: &MountArgs) -> Result<Prepared, MountError> {
    let source = source::parse(&args.source).map_err(MountError::Usage)?;
    let mut options = parse_options(args)?;
    let mountpoint = place::resolve(&args.mountpoint)?;
    for (name, path) in paths(&options) {
        if path.starts_with(&mountpoint) {
            let place = mountpoint.display();
            return Err(MountError::Usage(format!("{name}={} lies below {place}: give another path", path.display())));
        }
    }
    match &source {
        Source::Dir { path } => place::check_source(path, &mountpoint)?,
        Source::Sshfs { .. } => {
            machine::sshfs(&options.sshfs)?;
            if !nix::unistd::geteuid().is_root() {
                options.own_files();
            }
        }
    }
    machine::fuse(options.overlay.allow_other)?;
    // Nothing else stands in the way any more.
    if dead::clear(&mountpoint, &options.overlay.subtype)? {
        options.notes.push(format!("the dead mount of an earlier steadfs on {} is detached", mountpoint.display()));
    }
    options.overlay.directory = Some(place::check(&mountpoint, options.nonempty)?);
    let claim = claim::Claim::take(&mountpoint)?;
    let notes = std::mem::take(&mut options.notes);
    let config = DaemonConfig {
        calls: options.calls,
        repair: options.repair,
        permit: options.permit,
        log: options.log,
        worker: options.worker,
        telemetry: options.telemetry,
        soft_start: options.soft_start,
        sshfs_options: options.sshfs,
        keeper: options.keeper,
        ..DaemonConfig::of_one(source, mountpoint, options.overlay)
    };
    Ok(Prepared { config, notes, claim })
}

fn parse_options(args: &MountArgs) -> Result<options::Options, MountError> {
    let mut values = Vec::new();
    for word in &args.in_order {
        values.push(match word {
            Word::Options(text) => text.clone(),
            Word::Port(port) => options::split::join([format!("port={port}").as_str()]),
            Word::Compress => "Compression=yes".into(),
            Word::ConfigFile(file) => {
                let file = std::path::absolute(file).unwrap_or_else(|_| file.clone());
                let readable = std::fs::File::open(&file).map_err(|error| format!("-F {}: {error}", file.display()));
                readable.map_err(MountError::Usage)?;
                options::split::join([format!("-F{}", file.display()).as_str()])
            }
        });
    }
    options::parse(values.iter().map(String::as_str)).map_err(MountError::Usage)
}

/// Files that steadfs itself writes or goes by, which must not lie on the mount they are about.
fn paths(options: &options::Options) -> Vec<(&'static str, &Path)> {
    let mut paths = Vec::new();
    paths.extend(options.worker.pause_file.as_deref().map(|path| ("pause_file", path)));
    paths.extend(options.permit.deploy_lock.as_deref().map(|path| ("deploy_lock", path)));
    paths.extend(options.permit.enable_file.as_deref().map(|path| ("enable_file", path)));
    paths.extend(options.log.spool_dir.as_deref().map(|path| ("spool_dir", path)));
    paths.extend(options.telemetry.textfile.as_deref().map(|path| ("textfile", path)));
    if let Some(MetricsListen::Unix(path)) = &options.telemetry.listen {
        paths.push(("metrics", path));
    }
    paths
}

#[cfg(test)]
mod tests {
    use super::super::{Command, command, read};
    use super::*;

    fn handed_on(words: &[&str]) -> Vec<String> {
        let line = [&["steadfs", "mount"], words, &["h:", "/hot"]].concat();
        let matches = command().try_get_matches_from(line).expect("it is understood");
        let Ok(super::super::Cli { command: Command::Mount(args) }) = read(&matches) else { panic!("no mount") };
        parse_options(&args).expect("they are good").sshfs
    }

    #[test]
    fn switches_and_options_obey_one_order() {
        assert_eq!(handed_on(&["-p", "1", "-o", "port=2"]), ["port=2"]);
        assert_eq!(handed_on(&["-o", "port=2,uid=1", "-p", "1"]), ["uid=1", "port=1"]);
        assert_eq!(handed_on(&["-C", "-o", "Compression=no"]), ["Compression=no"]);
        assert_eq!(handed_on(&["-o", "Compression=no", "-C"]), ["Compression=yes"]);
        assert_eq!(handed_on(&["-F", "/dev/null", "-o", "-F/x"]), ["-F/x"]);
    }
}
