//! systemd as the first process, in namespaces of its own: what `make install` installs comes up at boot, goes on after the death
//! of all of it, stops, and does not keep the machine from shutting down; and a job that comes too early fails.
#![allow(clippy::unwrap_used)]

mod lab;
#[path = "boot/workers.rs"]
mod workers;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lab::boot::Machine;

lab::also_runs_as!(agent_process: lab::agents::main);

/// A shutdown that waits for a timeout takes longer: the shortest of systemd's and ours is 90 s.
const NO_TIMEOUT: Duration = Duration::from_secs(60);

const CONFIG: &str = r#"
name = "box"
source = "box.example.org:/srv/store"

[sshfs]
ssh_command = "/etc/steadfs/server"

[[overlay]]
mountpoint = "/srv/jobs/alpha"
path = "alpha"

[[overlay]]
mountpoint = "/srv/jobs/beta"
path = "beta"
"#;

/// A job that writes to the first overlay, with the example's conditions.
const JOB: &str = "
[Unit]
Description=A job

[Service]
Type=oneshot
ExecStart=/bin/sh -c 'echo written > /srv/jobs/alpha/by-the-job'
";

/// Writes records by one descriptor, and says how many are synced.
const WRITER: &str = r#"
import os, time

out = os.open("/srv/jobs/beta/warc", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
number = os.fstat(out).st_size // 16
while True:
    os.write(out, b"record %08d\n" % number)
    os.fsync(out)
    number += 1
    with open("/run/written.new", "w") as file:
        file.write(str(number))
    os.rename("/run/written.new", "/run/written")
    time.sleep(0.02)
"#;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What `make install` puts on that machine's disk.
fn make_install(machine: &Machine) {
    let variables = [
        format!("DESTDIR={}", machine.disk("").display()),
        format!("BINARY={}", env!("CARGO_BIN_EXE_steadfs")),
        "PREFIX=/usr".into(),
    ];
    let output = Command::new("make").arg("-C").arg(root()).arg("install").args(variables).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    // As `systemctl enable` would have it.
    machine.write(
        "etc/systemd/system/multi-user.target.d/steadfs.conf",
        "[Unit]\nWants=steadfs@box.service remote-fs.target\n",
    );
}

/// A program on that disk.
fn write_script(machine: &Machine, name: &str, script: &str) {
    machine.write(name, &format!("#!/bin/sh\n{script}\n"));
    fs::set_permissions(machine.disk(name), fs::Permissions::from_mode(0o755)).unwrap();
}

/// The example's drop-in for a job that needs the first overlay.
fn write_drop_in(machine: &Machine, job: &str) {
    let example = fs::read_to_string(root().join("systemd/examples/worker.conf")).unwrap();
    machine.write(&format!("etc/systemd/system/{job}.service.d/steadfs.conf"), &example);
}

/// What is on that machine's disk.
fn install(machine: &Machine) {
    make_install(machine);
    machine.write("etc/steadfs/box.toml", CONFIG);
    write_script(machine, "etc/steadfs/server", "exec /usr/lib/openssh/sftp-server");
    machine.write("etc/systemd/system/job.service", JOB);
    machine.write("etc/writer.py", WRITER);
    machine.write("etc/systemd/system/writer.service", "[Service]\nExecStart=/usr/bin/python3 -u /etc/writer.py\n");
    for job in ["job", "writer"] {
        write_drop_in(machine, job);
    }
    let after = "x-systemd.after=steadfs@box.service";
    let fstab = format!(
        "box:/delta /srv/jobs/delta steadfs _netdev,nofail,{after} 0 0\n\
         other.example.org:/srv/store/own /srv/jobs/own steadfs _netdev,nofail,ssh_command=/etc/steadfs/server 0 0\n"
    );
    machine.write("etc/fstab", &fstab);
    for place in ["alpha", "beta", "delta", "own"] {
        fs::create_dir_all(machine.disk("srv/jobs").join(place)).unwrap();
        fs::create_dir(machine.store(place)).unwrap();
    }
}

const UNIT: &str = "steadfs@box.service";

fn is_mounted(machine: &Machine, place: &str) -> bool {
    machine.ask(&["mountpoint", "-q", place]).status.success()
}

/// Written by the writer, as it says.
fn written(machine: &Machine) -> u64 {
    String::from_utf8_lossy(&machine.ask(&["cat", "/run/written"]).stdout).trim().parse().unwrap_or(0)
}

fn goes_on(machine: &Machine, what: &str) {
    let before = written(machine);
    machine.wait(what, || written(machine) > before + 3);
}

fn mount_ids(machine: &Machine) -> String {
    machine.ok(&["findmnt", "-rn", "-t", "fuse.steadfs", "-o", "ID,TARGET,MAJ:MIN"])
}

#[test]
fn it_comes_up_at_boot_goes_on_after_every_death_and_shuts_down() {
    let mut machine = Machine::new();
    install(&machine);
    machine.boot();
    // systemd counts it as started only by READY=1.
    machine.wait("the unit is active", || machine.property(UNIT, "ActiveState") == "active");
    assert_eq!(machine.property(UNIT, "SubState"), "running");
    for place in ["/srv/jobs/alpha", "/srv/jobs/beta"] {
        assert!(is_mounted(&machine, place), "{place}");
    }
    let status = machine.ok(&["cat", &format!("/proc/{}/status", machine.property(UNIT, "MainPID"))]);
    assert!(status.contains("Seccomp:\t2"), "all that is in the unit is in force: {status}");
    // Lines of fstab: an overlay of that daemon, and one with a daemon of its own.
    for place in ["delta", "own"] {
        let (unit, path) = (format!("srv-jobs-{place}.mount"), format!("/srv/jobs/{place}"));
        machine.wait(&unit, || machine.property(&unit, "ActiveState") == "active" && is_mounted(&machine, &path));
        machine.ok(&["sh", "-c", &format!("echo text > {path}/file")]);
        assert_eq!(fs::read_to_string(machine.store(place).join("file")).unwrap(), "text\n");
    }
    println!("{}", machine.ok(&["systemctl", "status", "--no-pager", "-n", "0", UNIT, "srv-jobs-*.mount"]));

    // A job that is ordered after it.
    machine.ok(&["systemctl", "start", "job.service"]);
    assert_eq!(fs::read_to_string(machine.store("alpha/by-the-job")).unwrap(), "written\n");
    fs::remove_file(machine.store("alpha/by-the-job")).unwrap();

    // All of it is killed at once: systemd has the descriptors, and the next goes on with the same mount.
    machine.ok(&["systemctl", "start", "writer.service"]);
    goes_on(&machine, "records are written");
    let (ids, writer) = (mount_ids(&machine), machine.property("writer.service", "MainPID"));
    for round in 1..=2 {
        machine.wait("systemd keeps descriptors", || {
            machine.property(UNIT, "NFileDescriptorStore").parse::<u32>().is_ok_and(|kept| kept >= 4)
        });
        let before = machine.property(UNIT, "MainPID");
        machine.ok(&["systemctl", "kill", "-s", "KILL", "--kill-whom=all", UNIT]);
        // Until the last of its processes has ended it is active without a main process (ExitType=cgroup).
        machine.wait("it is started again", || {
            let main = machine.property(UNIT, "MainPID");
            main != "0" && main != before && machine.property(UNIT, "ActiveState") == "active"
        });
        assert_eq!(machine.property(UNIT, "NRestarts"), round.to_string());
        goes_on(&machine, "the writer goes on by the descriptor that it has");
        assert_eq!(mount_ids(&machine), ids, "no mount was touched");
    }
    assert_eq!(machine.property("writer.service", "MainPID"), writer);
    machine.ok(&["systemctl", "stop", "writer.service"]);
    let (count, found) = (written(&machine), fs::read_to_string(machine.store("beta/warc")).unwrap());
    let wanted: String = (0..=count).map(|number| format!("record {number:08}\n")).collect();
    // The last one may be written and not counted.
    assert!(found.len() as u64 >= count * 16 && wanted.starts_with(&found), "{count} records: {} bytes", found.len());

    // An overlay comes by a change of the file.
    let more = format!("{CONFIG}\n[[overlay]]\nmountpoint = \"/srv/jobs/gamma\"\npath = \"gamma\"\n");
    fs::create_dir(machine.store("gamma")).unwrap();
    machine.ok(&["mkdir", "/srv/jobs/gamma"]);
    machine.ok(&["sh", "-c", "printf %s \"$1\" > /etc/steadfs/box.toml", "sh", &more]);
    machine.ok(&["systemctl", "reload", UNIT]);
    assert!(is_mounted(&machine, "/srv/jobs/gamma"));
    assert!(mount_ids(&machine).contains(ids.lines().next().unwrap()));

    // Stopped: nothing is mounted, and a job that comes now fails, or the daemon is started for it.
    machine.ok(&["systemctl", "stop", UNIT]);
    for place in ["/srv/jobs/alpha", "/srv/jobs/beta", "/srv/jobs/gamma", "/srv/jobs/delta"] {
        assert!(!is_mounted(&machine, place), "{place}");
    }
    assert_eq!(machine.property(UNIT, "Result"), "success");
    machine.ok(&["systemctl", "stop", "srv-jobs-own.mount"]);
    machine.wait("its daemon ends", || machine.ok(&["sh", "-c", "ls -A /run/steadfs"]).is_empty());
    machine.ok(&["systemctl", "start", "srv-jobs-own.mount"]);
    machine.ok(&["systemctl", "mask", "--runtime", UNIT]);
    let early = machine.ask(&["systemctl", "start", "job.service"]);
    assert!(!early.status.success(), "{early:?}");
    machine.ok(&["systemctl", "unmask", "--runtime", UNIT]);
    // Without any condition of systemd's it cannot write either: the directory below is guarded.
    let output = machine.ask(&["sh", "-c", "echo x > /srv/jobs/alpha/by-the-job"]);
    assert!(!output.status.success(), "{output:?}");
    // One that looks by itself, though the unit is active.
    machine.ok(&["systemctl", "start", UNIT]);
    machine.ok(&["umount", "/srv/jobs/alpha"]);
    assert_eq!(machine.property(UNIT, "ActiveState"), "active");
    let early = machine.ask(&["systemctl", "start", "job.service"]);
    assert!(!early.status.success(), "{early:?}");
    assert_eq!(machine.ok(&["sh", "-c", "ls -A /srv/jobs/alpha"]), "", "nothing landed on the local disk");

    // Shut down with everything in use, and on again.
    machine.ok(&["systemctl", "restart", UNIT]);
    machine.ok(&["systemctl", "start", "writer.service"]);
    goes_on(&machine, "records are written");
    let synced = written(&machine) * 16;
    let took = machine.down("reboot");
    println!("shut down in {took:?}");
    assert!(took < NO_TIMEOUT, "{took:?}");
    assert!(fs::metadata(machine.store("beta/warc")).unwrap().len() >= synced, "what was synced is on the store");
    machine.boot();
    machine.wait("the unit is active", || machine.property(UNIT, "ActiveState") == "active");
    for place in ["alpha", "delta", "own"] {
        let path = format!("/srv/jobs/{place}");
        machine.wait(&path, || is_mounted(&machine, &path));
    }
    machine.ok(&["systemctl", "start", "job.service"]);
    assert_eq!(fs::read_to_string(machine.store("alpha/by-the-job")).unwrap(), "written\n");
    let took = machine.down("poweroff");
    println!("shut down in {took:?}");
    assert!(took < NO_TIMEOUT, "{took:?}");
}
