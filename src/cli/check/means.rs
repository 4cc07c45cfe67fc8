//! What pauses workers, and what is run after a recovery.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use super::outputs::{self, HANGS};
use super::report::Report;
use super::tool::{self, within};
use crate::cli::mount::machine::in_path;
use crate::config::{HookCommand, Means, UnitBy, WorkerConfig, WorkerEntry};

pub fn check(config: &WorkerConfig, report: &mut Report) {
    for worker in &config.workers {
        check_worker(worker, report);
    }
    for hook in &config.after_recovery {
        report.take(format!("after_recovery '{}'", hook.name), command(&hook.command));
    }
}

fn check_worker(worker: &WorkerEntry, report: &mut Report) {
    let what = format!("worker '{}'", worker.name);
    match &worker.means {
        Means::Flag { file } => {
            let parent = file.parent().unwrap_or(Path::new("/")).to_owned();
            let shown = parent.display().to_string();
            let look =
                within(
                    tool::LOOK,
                    move || if parent.is_dir() { outputs::writable(&parent) } else { Err(String::new()) },
                );
            match look {
                None => report.error(what, HANGS),
                Some(Ok(())) => report.ok(what, format!("{} can be made", file.display())),
                Some(Err(words)) if words.is_empty() => {
                    report.error(what, format!("{shown} is not a directory: make it"))
                }
                Some(Err(words)) => report.error(what, words),
            }
        }
        Means::Command { pause, resume } => {
            report.take(format!("{what} pause"), command(pause));
            report.take(format!("{what} resume"), command(resume));
        }
        Means::Signal { pid_file, .. } => {
            let (path, shown) = (pid_file.clone(), pid_file.display());
            match within(tool::LOOK, move || std::fs::read_to_string(path)) {
                None => report.error(what, HANGS),
                Some(Err(error)) => report.warn(what, format!("{shown}: {error}: the worker may not run now; see that it writes this file")),
                Some(Ok(text)) => match text.trim().parse::<i32>().ok().filter(|pid| *pid > 1) {
                    Some(pid) if Path::new(&format!("/proc/{pid}")).exists() => report.ok(what, format!("process {pid} runs")),
                    Some(pid) => report.warn(what, format!("{shown} names process {pid}, which does not run: see that it is removed when the worker ends")),
                    None => report.error(what, format!("{shown} has no process id in it: give the file that the worker writes")),
                },
            }
        }
        Means::Unit { unit, by } => report.take(what, check_unit(unit, *by)),
        Means::Cgroup { path } => {
            let freeze = path.join("cgroup.freeze");
            match within(tool::LOOK, move || freeze.exists().then(|| outputs::writable(&freeze))) {
                None => report.error(what, HANGS),
                Some(Some(Ok(()))) => report.ok(what, format!("{} can be frozen", path.display())),
                Some(Some(Err(words))) => report.error(what, words),
                Some(None) => report.warn(
                    what,
                    format!(
                        "{} has no cgroup.freeze: the worker may not run now; see that this is a cgroup of version 2",
                        path.display()
                    ),
                ),
            }
        }
        Means::Container { engine, names, label } => containers(&what, engine, names, label.as_deref(), report),
    }
}

/// Whether its program is there.
fn command(command: &HookCommand) -> Result<String, String> {
    let program = command.argv.first().map(String::as_str).unwrap_or_default();
    if !program.contains('/') {
        return in_path(program).map(|path| path.display().to_string()).ok_or_else(|| missing(program));
    }
    let path = program.to_owned();
    match within(tool::LOOK, move || std::fs::metadata(path)) {
        None => Err(format!("{program} {HANGS}")),
        Some(Ok(found)) if found.is_file() && found.permissions().mode() & 0o111 != 0 => Ok(program.into()),
        Some(Ok(_)) => Err(format!("{program} cannot be run: run chmod +x {program}")),
        Some(Err(error)) => Err(format!("{program}: {error}: install it, or mend the path")),
    }
}

fn missing(program: &str) -> String {
    format!("there is no {program} in PATH: install it, or give its path")
}

fn check_unit(unit: &str, by: UnitBy) -> Result<String, String> {
    let mut command = Command::new("systemctl");
    command.args(["show", "--property=LoadState,CanFreeze,ActiveState", "--", unit]);
    let said =
        tool::run(&mut command, tool::PROGRAM).map_err(|words| format!("systemctl {words}: a unit needs systemd"))?;
    if !said.well {
        return Err(format!("systemctl: {}: a unit needs systemd, so choose another kind", said.words()));
    }
    let value = |name: &str| {
        said.stdout.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
    };
    match value("LoadState") {
        "loaded" if by == UnitBy::Freeze && value("CanFreeze") == "no" && value("ActiveState") == "active" => {
            Err(format!("{unit} cannot be frozen: write by = \"stop\""))
        }
        "loaded" => Ok(format!("{unit} is {}", value("ActiveState"))),
        state => Err(format!("{unit} is {state}: see systemctl status {unit}")),
    }
}

fn containers(what: &str, engine: &str, names: &[String], label: Option<&str>, report: &mut Report) {
    if !engine.starts_with('/') && in_path(engine).is_none() {
        return report.error(what, missing(engine));
    }
    let ask = |arguments: &[&str]| tool::run(Command::new(engine).args(arguments), tool::PROGRAM);
    let filter = label.map(|label| format!("label={label}"));
    let listed = match &filter {
        Some(filter) => ask(&["ps", "--quiet", "--filter", filter]),
        None => ask(&["ps", "--quiet"]),
    };
    match listed {
        Ok(said) if said.well && filter.is_some() => {
            report.ok(what, format!("{engine} runs {} with that label", said.stdout.lines().count()));
        }
        Ok(said) if said.well => {
            for name in names {
                match ask(&["inspect", "--type", "container", "--format", "{{.Id}}", "--", name]) {
                    Ok(said) if said.well => report.ok(what, format!("container {name} is there")),
                    _ => report.warn(what, format!("there is no container {name} now: see {engine} ps --all")),
                }
            }
        }
        Ok(said) => report.error(what, format!("{engine}: {}: see that its service runs", said.words())),
        Err(words) => report.error(what, format!("{engine} {words}: see that its service runs")),
    }
}
