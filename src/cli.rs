//! The command line.

pub mod attach;
pub mod check;
pub mod completions;
pub mod daemon;
pub mod daemons;
pub mod demo;
pub mod drill;
pub mod evidence;
pub mod file;
mod homes;
pub mod keeper;
pub mod mount;
pub mod options;
pub mod recover;
pub mod run;
pub mod source;
pub mod spool;
mod stage;
pub mod status;
pub mod triage;
pub mod umount;
pub mod upgrade;
pub mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::daemon::MountError;
use crate::plain::plain;

/// A mount that outlives its sshfs.
///
/// steadfs serves a remote directory through an sshfs that it starts, watches and replaces by itself, so that the death
/// of that sshfs is never the problem of whoever uses the path.
#[derive(Parser)]
#[command(name = "steadfs", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mount a remote directory; a drop-in for sshfs's command line.
    Mount(mount::MountArgs),
    /// Serve any number of overlays over one backing, as a file says.
    Run(run::RunArgs),
    /// Have a daemon read its configuration again, without unmounting what stays.
    Reload(run::ReloadArgs),
    /// Mount one more overlay of a daemon that runs.
    Attach(attach::AttachArgs),
    /// Unmount one overlay of a daemon that runs.
    Detach(attach::DetachArgs),
    /// Unmount and wait until everything of the mount has ended.
    Umount(umount::UmountArgs),
    /// Say what the daemon of a mount, or of all mounts, is doing.
    Status(status::StatusArgs),
    /// Say what a repair would do and what holds it back, or do it now.
    Recover(recover::RecoverArgs),
    /// Say what is wrong, and what to do next.
    Triage(triage::TriageArgs),
    /// Serve mounts by the installed steadfs from now on, without unmounting.
    Upgrade(upgrade::UpgradeArgs),
    /// Look at, restore or drop what was written and could not be kept on the store.
    Spool(spool::SpoolArgs),
    /// Try everything that a configuration file for run needs, and say how to mend what is wrong.
    Check(check::CheckArgs),
    /// Kill, freeze and cut a private sshfs under load, and show what a program above it notices.
    Demo(demo::DemoArgs),
    /// Do to a canary of its own what may happen to a mount, and see that it is mended.
    Drill(drill::DrillArgs),
    /// Write down what somebody needs who finds out later what happened; compare two such bundles.
    Evidence(evidence::EvidenceArgs),
    /// Print what a shell needs to complete command lines.
    #[command(hide = true)]
    Completions(completions::CompletionsArgs),
    /// Keep a daemon.
    #[command(hide = true)]
    Keeper(keeper::KeeperArgs),
    /// Serve a mount for a keeper.
    #[command(hide = true)]
    Daemon(daemon::DaemonArgs),
}

/// Runs the command line and returns the process's exit code.
pub fn main() -> ExitCode {
    // No help subcommand: it would repeat what --help says.
    let matches = command().try_get_matches();
    let cli = match matches.and_then(|matches| read(&matches)) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match cli.command {
        Command::Mount(args) => mount::run(args),
        Command::Run(args) => run::run(&args),
        Command::Reload(args) => run::reload(&args),
        Command::Attach(args) => attach::attach(&args),
        Command::Detach(args) => attach::detach(&args),
        Command::Umount(args) => umount::run(&args),
        Command::Status(args) => status::run(args),
        Command::Recover(args) => recover::run(&args),
        Command::Triage(args) => triage::run(&args),
        Command::Upgrade(args) => upgrade::run(&args),
        Command::Spool(args) => spool::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Demo(args) => demo::run(args),
        Command::Drill(args) => drill::run(&args),
        Command::Evidence(args) => evidence::run(args),
        Command::Completions(args) => completions::run(&args),
        Command::Keeper(args) => keeper::run(args),
        Command::Daemon(args) => daemon::run(args),
    }
}

fn read(matches: &clap::ArgMatches) -> Result<Cli, clap::Error> {
    let mut cli = Cli::from_arg_matches(matches)?;
    if let (Command::Mount(args), Some((_, given))) = (&mut cli.command, matches.subcommand()) {
        args.order(given);
    }
    Ok(cli)
}

/// The command line as clap sees it, with the `-o` options in the help of `mount`.
fn command() -> clap::Command {
    Cli::command()
        .disable_help_subcommand(true)
        .mut_subcommand("mount", |mount| mount.after_help(options::help()).after_long_help(options::help()))
}

/// Help and version as clap prints them; an error as one line, with the exit code 1 of mount(8).
fn usage(error: &clap::Error) -> ExitCode {
    use clap::error::ErrorKind;
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // Nothing can be done about a closed stdout.
        let _ = error.print();
        return if error.use_stderr() { ExitCode::from(1) } else { ExitCode::SUCCESS };
    }
    let text = error.to_string();
    let line: Vec<&str> = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    let line = line.join(" ");
    complain(&format!("{} (see steadfs --help)", line.strip_prefix("error: ").unwrap_or(&line)));
    ExitCode::from(1)
}

/// One line on stderr.
fn complain(text: &str) {
    use std::io::Write;
    // A closed stderr must not become a panic.
    let _ = writeln!(std::io::stderr(), "steadfs: {}", plain(text));
}

/// Text on stdout. A reader that went away (a pager, `head`) is no error.
fn say(text: &str) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(text.as_bytes());
}

/// Says why a mount, or what was to be done with it, failed.
fn failed(error: &MountError) -> ExitCode {
    complain(&error.to_string());
    ExitCode::from(exit_code(error))
}

/// The end of a command that says nothing if all went well.
fn finish(result: Result<(), MountError>) -> ExitCode {
    result.map_or_else(|error| failed(&error), |()| ExitCode::SUCCESS)
}

/// The exit code that mount(8) documents for this kind of failure.
fn exit_code(error: &MountError) -> u8 {
    match error {
        MountError::Usage(_) => 1,
        MountError::System(_) => 2,
        MountError::Mount(_) => 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_command_and_switch_is_in_the_man_page() {
        let page = include_str!("../docs/steadfs.8").replace("\\-", "-");
        in_the_page(&command(), "steadfs", &page);
    }

    fn in_the_page(command: &clap::Command, name: &str, page: &str) {
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            let name = format!("{name} {}", sub.get_name());
            assert!(page.contains(&name), "{name} is not in the man page");
            for arg in sub.get_arguments() {
                if let Some(long) = arg.get_long() {
                    assert!(page.contains(&format!("--{long}")), "--{long} is not in the man page");
                }
            }
            in_the_page(sub, &name, page);
        }
    }
}
