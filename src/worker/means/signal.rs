//! Signals to the process of a pid file, or to its process group.

use std::path::Path;

use nix::errno::Errno;
use nix::unistd::{Pid, getpgid, getpgrp};

use super::limit::Limit;
use super::{Failure, Job};
use crate::backing::process::{self, Process};
use crate::worker::pause::Found;

/// Signals that stop a process, so that one that is stopped already was stopped by somebody else.
const STOP: [i32; 4] = [libc::SIGSTOP, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];

/// Nothing if there is no process, or it is stopped already.
pub(super) fn look(
    limit: &Limit,
    job: &Job,
    pid_file: &Path,
    pause: i32,
    group: bool,
) -> Result<Option<Found>, Failure> {
    let Some(process) = named(limit, job, pid_file)? else { return Ok(None) };
    let stopped = process::stat(process.pid).is_some_and(|(letter, _)| letter == 'T');
    if stopped && STOP.contains(&pause) {
        return Ok(None);
    }
    if !group {
        return Ok(Some(Found::Processes { processes: vec![process], group: None }));
    }
    let Some(group) = group_of(process) else { return Ok(None) };
    if group == getpgrp().as_raw() {
        return Err(Failure::of(format!("steadfs itself is in process group {group} of {}", pid_file.display())));
    }
    let mut processes = members(group);
    if !processes.contains(&process) {
        processes.push(process);
    }
    Ok(Some(Found::Processes { processes, group: Some(group) }))
}

/// What has ended since is left alone.
pub(super) fn pause(found: &Found, number: i32) -> Result<Found, Failure> {
    send(found, number)?;
    let Found::Processes { group: Some(group), .. } = found else { return Ok(found.clone()) };
    // They are stopped now and make no more, so this is everybody.
    Ok(found.clone().and(Found::Processes { processes: members(*group), group: Some(*group) }))
}

pub(super) fn resume(
    limit: &Limit,
    job: &Job,
    pid_file: &Path,
    number: i32,
    group: bool,
    found: &Found,
) -> Result<(), Failure> {
    if *found != Found::Unknown {
        return send(found, number);
    }
    let Some(process) = named(limit, job, pid_file)? else { return Ok(()) };
    let group = if group { group_of(process).filter(|group| *group != getpgrp().as_raw()) } else { None };
    send(&Found::Processes { processes: vec![process], group }, number)
}

/// The process that the file names, if it lives.
fn named(limit: &Limit, job: &Job, pid_file: &Path) -> Result<Option<Process>, Failure> {
    let path = pid_file.to_owned();
    let pid = limit.run(job, move |_| {
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|error| Failure::of(format!("{}: {error}", path.display())))?,
        };
        let Some(word) = text.split_whitespace().next() else { return Ok(None) };
        let pid = word.parse::<i32>().ok().filter(|pid| *pid > 1);
        pid.map(Some).ok_or_else(|| Failure::of(format!("{}: not the id of a process", path.display())))
    })?;
    let Some(pid) = pid else { return Ok(None) };
    // The keeper is the daemon's parent.
    if pid == std::process::id().cast_signed() || pid == nix::unistd::getppid().as_raw() {
        return Err(Failure::of(format!("{} names steadfs itself", pid_file.display())));
    }
    Ok(Process::of(pid))
}

fn group_of(process: Process) -> Option<i32> {
    getpgid(Some(Pid::from_raw(process.pid))).ok().map(Pid::as_raw).filter(|group| *group > 1)
}

fn members(group: i32) -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let of_group = |pid: &i32| getpgid(Some(Pid::from_raw(*pid))).is_ok_and(|found| found.as_raw() == group);
    pids.filter(of_group).filter_map(Process::of).collect()
}

/// To each of them that is still the same process; to the group as a whole if one of them is still in it, since its number
/// is nobody else's as long as it has members.
fn send(found: &Found, number: i32) -> Result<(), Failure> {
    let Found::Processes { processes, group } = found else { return Ok(()) };
    let mut to_group = None;
    let mut failed = None;
    for process in processes {
        let pinned = match process.pin() {
            Ok(Some(pinned)) if !pinned.has_ended() => pinned,
            Ok(_) => continue,
            Err(errno) => {
                failed = Some((process.pid, errno));
                continue;
            }
        };
        if group.is_some() && group_of(*process) == *group {
            to_group = Some(pinned);
            continue;
        }
        if let Err(errno) = pinned.send(number)
            && errno != Errno::ESRCH
        {
            failed = Some((process.pid, errno));
        }
    }
    if let (Some(_held), Some(group)) = (to_group, group) {
        // SAFETY: plain numbers.
        let sent = unsafe { libc::kill(-group, number) };
        if let Err(errno) = Errno::result(sent)
            && errno != Errno::ESRCH
        {
            failed = Some((-group, errno));
        }
    }
    failed.map_or(Ok(()), |(pid, errno)| Err(Failure::of(format!("signal {number} to {pid}: {}", errno.desc()))))
}
