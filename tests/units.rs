//! The units, their examples and what is said of them, as systemd itself reads them.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The most that `systemd-analyze security` may say, of 10. What makes it so much is said in the unit: an overlay has to be
/// mounted where everybody sees it, by root.
const EXPOSURE: f64 = 6.2;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A copy of all units, with the program under test, and the names that instances have.
fn units(into: &Path) {
    for directory in ["systemd", "systemd/examples"] {
        for entry in std::fs::read_dir(root().join(directory)).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if ["service", "mount", "automount"].iter().any(|kind| name.ends_with(kind)) {
                let text = std::fs::read_to_string(entry.path()).unwrap();
                // Which of them there is depends on systemd's version.
                let text = text.replace("FileDescriptorStorePreserve=restart\n", "");
                std::fs::write(into.join(&name), text.replace("/usr/bin/steadfs", env!("CARGO_BIN_EXE_steadfs")))
                    .unwrap();
            }
        }
    }
    std::fs::write(into.join("worker.service"), "[Service]\nExecStart=/bin/true\n").unwrap();
    std::fs::create_dir(into.join("worker.service.d")).unwrap();
    std::fs::copy(root().join("systemd/examples/worker.conf"), into.join("worker.service.d/steadfs.conf")).unwrap();
}

fn analyze(words: &[&str], place: &Path) -> (bool, String) {
    let mut command = Command::new("systemd-analyze");
    command.args(words).current_dir(place).env("SYSTEMD_UNIT_PATH", format!("{}:", place.display()));
    let output = command.output().expect("these tests need systemd-analyze: run apt install systemd");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn systemd_has_no_complaint() {
    let place = tempfile::tempdir().unwrap();
    units(place.path());
    for unit in [
        "steadfs@box.service",
        "steadfs-mount@box.service",
        "srv-jobs-alpha.mount",
        "srv-jobs-alpha.automount",
        "worker.service",
    ] {
        let (well, said) =
            analyze(&["verify", "--man=no", "--recursive-errors=no", &format!("./{unit}")], place.path());
        assert!(well && !said.contains(unit), "{unit}: {said}");
    }
    // It can fail.
    std::fs::write(place.path().join("bad.service"), "[Service]\nExecStart=/no/such/program\nTypo=yes\n").unwrap();
    let (well, said) = analyze(&["verify", "--man=no", "./bad.service"], place.path());
    assert!(!well && said.contains("Typo"), "{said}");
}

#[test]
fn exposure_is_bounded() {
    let place = tempfile::tempdir().unwrap();
    units(place.path());
    let bound = format!("--threshold={}", (EXPOSURE * 10.0) as u32);
    let (well, said) =
        analyze(&["security", "--offline=yes", "--no-pager", &bound, "./steadfs@.service"], place.path());
    println!("{}", said.lines().last().unwrap_or_default());
    assert!(well && said.contains("Overall exposure"), "{said}");
}

#[test]
fn nothing_in_the_unit_makes_a_mount_namespace() {
    let text = std::fs::read_to_string(root().join("systemd/steadfs@.service")).unwrap();
    let keys: Vec<&str> =
        text.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once('=')).map(|(k, _)| k).collect();
    for key in [
        "PrivateMounts",
        "PrivateTmp",
        "PrivateDevices",
        "ProtectSystem",
        "ProtectHome",
        "ProtectProc",
        "ProcSubset",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ReadOnlyPaths",
        "ReadWritePaths",
        "InaccessiblePaths",
        "BindPaths",
        "TemporaryFileSystem",
        "RootDirectory",
        "DynamicUser",
        "PrivateIPC",
    ] {
        assert!(!keys.contains(&key), "{key} would hide the overlays from everybody else");
    }
}

#[test]
fn no_example_requires_the_daemon() {
    // Measured: with all of steadfs killed, systemd stops such a unit before it starts steadfs again, and that waits.
    for name in ["worker.conf", "srv-jobs-alpha.mount", "srv-jobs-alpha.automount"] {
        let text = std::fs::read_to_string(root().join("systemd/examples").join(name)).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        for key in ["Requires=steadfs", "BindsTo=", "Requisite=", "PartOf="] {
            assert!(!lines.iter().any(|line| line.starts_with(key)), "{name}: {key}");
        }
    }
}

#[test]
fn directories_are_made_as_they_must_be() {
    let place = tempfile::tempdir().unwrap();
    let config = root().join("systemd/steadfs.conf");
    let run = || {
        let root = format!("--root={}", place.path().display());
        Command::new("systemd-tmpfiles").args([&root, "--create"]).arg(&config).output().unwrap()
    };
    let output = run();
    assert!(output.status.success(), "{output:?}");
    for name in ["run/steadfs", "var/lib/steadfs"] {
        let found = std::fs::metadata(place.path().join(name)).unwrap();
        assert_eq!(std::os::unix::fs::PermissionsExt::mode(&found.permissions()) & 0o7777, 0o700, "{name}");
    }
}

#[test]
fn the_example_environment_has_what_the_example_configuration_needs() {
    let config = std::fs::read_to_string(root().join("examples/healtharchive.toml")).unwrap();
    let environment = std::fs::read_to_string(root().join("systemd/examples/box.env")).unwrap();
    let mut count = 0;
    for part in config.split("${").skip(1) {
        let name = part.split(['}', ':']).next().unwrap();
        assert!(environment.lines().any(|line| line.starts_with(&format!("{name}="))), "{name}");
        count += 1;
    }
    assert!(count > 4);
}
