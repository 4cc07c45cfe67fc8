//! Scripts that only say what they could not do: what they say, and when they fail.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

/// A copy of scripts/deny beside a cargo-deny that plays: `fetch` and `advisories` exit with the codes in files of these names.
struct Deny(tempfile::TempDir);

impl Deny {
    fn new() -> Deny {
        let place = tempfile::tempdir().unwrap();
        let path = |name: &str| place.path().join(name);
        for name in ["scripts", "bin", "home"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        std::fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/deny"), path("scripts/deny")).unwrap();
        let played = "#!/bin/sh\ncd \"$(dirname \"$0\")\"\ncase \"$*\" in\n*advisories) echo looked; exit $(cat advisories) ;;\n\
                      *fetch*) echo 'x [ERROR] nobody is there'; exit $(cat fetch) ;;\nesac\n";
        std::fs::write(path("bin/cargo-deny"), played).unwrap();
        std::fs::set_permissions(path("bin/cargo-deny"), PermissionsExt::from_mode(0o755)).unwrap();
        Deny(place)
    }

    fn run(&self, fetch: i32, advisories: i32, must: &str) -> Output {
        let bin = self.0.path().join("bin");
        std::fs::write(bin.join("fetch"), fetch.to_string()).unwrap();
        std::fs::write(bin.join("advisories"), advisories.to_string()).unwrap();
        let mut command = Command::new(self.0.path().join("scripts/deny"));
        command.env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap()));
        command.env("CARGO_HOME", self.0.path().join("home")).env("STEADFS_ADVISORIES", must);
        // Its own tools are looked for first.
        command.env("STEADFS_TOOLS", self.0.path().join("none")).output().unwrap()
    }

    fn unchecked(&self) -> String {
        std::fs::read_to_string(self.0.path().join("target/deny.unchecked")).unwrap_or_default()
    }
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat()).into_owned()
}

#[test]
fn advisories_that_cannot_be_checked_are_told_loudly_and_fail_nothing_but_a_release() {
    let deny = Deny::new();
    let output = deny.run(1, 0, "");
    let line = "deny: WARNING: ADVISORIES WERE NOT CHECKED: their database cannot be fetched (nobody is there); \
                run scripts/deny again with a network\n";
    assert!(output.status.success() && said(&output).contains(line) && !said(&output).contains("looked"), "{output:?}");
    assert_eq!(deny.unchecked(), line, "for the end of .ci/run");
    assert_eq!(deny.run(1, 0, "must").status.code(), Some(1));
    // With a network they are checked, and what is found there fails.
    let output = deny.run(0, 0, "");
    assert!(output.status.success() && said(&output).contains("looked"), "{output:?}");
    assert_eq!(deny.unchecked(), "");
    assert!(!deny.run(0, 3, "").status.success());
    // So does what a copy of some days ago knows.
    let database = deny.0.path().join("home/advisory-dbs/github.com-1/.git");
    std::fs::create_dir_all(&database).unwrap();
    std::fs::write(database.join("FETCH_HEAD"), "").unwrap();
    let output = deny.run(1, 0, "must");
    assert!(output.status.success() && said(&output).contains("looked"), "{output:?}");
    assert!(deny.unchecked().contains("AGAINST A COPY OF 20"), "{}", deny.unchecked());
    assert!(!deny.run(1, 3, "").status.success());
}
