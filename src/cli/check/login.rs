//! Keys: ours, and the server's.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::outputs::HANGS;
use super::report::Report;
use super::tool::{self, within};
use crate::backing::sshfs::command::Arguments;

/// The key files that were asked for. ssh's own defaults are left to the login.
pub fn keys(arguments: &Arguments, report: &mut Report) {
    let files = arguments.options.iter().filter_map(|option| option.strip_prefix("IdentityFile="));
    for file in files.filter(|file| *file != "none") {
        let what = format!("key {file}");
        match expand(file) {
            None => report.warn(what, "is not looked at, as ssh makes up its name: see that it is there"),
            Some(path) => match within(tool::LOOK, move || look(&path)) {
                None => report.error(what, HANGS),
                Some(Ok(())) => report.ok(what, "is there, ours alone, and needs no passphrase"),
                Some(Err(Flaw::Odd(words))) => report.warn(what, words),
                Some(Err(Flaw::Bad(words))) => report.error(what, words),
            },
        }
    }
}

enum Flaw {
    Bad(String),
    Odd(String),
}

/// `~/` is put in; what ssh makes of `%` and `${}` is not known here.
fn expand(file: &str) -> Option<PathBuf> {
    match file.strip_prefix("~/") {
        _ if file.contains(['%', '$']) => None,
        Some(rest) => Some(Path::new(&std::env::var_os("HOME")?).join(rest)),
        None => Some(file.into()),
    }
}

fn look(path: &Path) -> Result<(), Flaw> {
    let shown = path.display();
    let bad = |words: String| Err(Flaw::Bad(words));
    let found = match std::fs::metadata(path) {
        Ok(found) if found.is_file() => found,
        Ok(_) => return bad("is not a file: give the private key".into()),
        Err(error) => {
            return bad(format!("{error}: make it with ssh-keygen -t ed25519 -N '' -f {shown}, or mend IdentityFile"));
        }
    };
    // As ssh itself has it (sshkey_perm_ok in authfile.c), but also for a key of somebody else's.
    if found.mode() & 0o077 != 0 {
        return bad(format!(
            "can be read by others (mode {:04o}), and ssh will not use it: run chmod 600 {shown}",
            found.mode() & 0o7777
        ));
    }
    let own = nix::unistd::geteuid();
    if found.uid() != own.as_raw() && !own.is_root() {
        return bad(format!("belongs to uid {}: run as its owner, or give another", found.uid()));
    }
    let mut command = Command::new("ssh-keygen");
    // Prints the public half, which is thrown away.
    command.args(["-y", "-P", "", "-f"]).arg(path);
    match tool::run(&mut command, tool::PROGRAM) {
        Ok(said) if said.well => Ok(()),
        Ok(said) if said.words().contains("passphrase") => {
            if std::env::var_os("SSH_AUTH_SOCK").is_some() {
                let words = "needs a passphrase: it works only while your agent has it; give one without";
                return Err(Flaw::Odd(words.into()));
            }
            bad(format!(
                "needs a passphrase, and nobody is there to type it after an outage: give a key without, or run ssh-keygen -p -N '' -f {shown}"
            ))
        }
        Ok(said) => bad(format!("{}: give a private key", said.words())),
        Err(words) => Err(Flaw::Odd(format!("cannot be tried, as ssh-keygen {words}"))),
    }
}

/// Whether ssh knows the server's key, as `ssh -G` says where it looks.
pub fn host_key(arguments: &Arguments, report: &mut Report) {
    let mut command = Command::new(arguments.ssh_program());
    command.arg("-G").args(arguments.ssh());
    let config = match tool::run(&mut command, tool::PROGRAM) {
        Ok(said) if said.well => said.stdout,
        // The login fails for the same reason, and says so.
        _ => return,
    };
    let values = |name: &str| -> Vec<&str> {
        let found = config.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        found.map(|line| line.split(' ').filter(|word| !word.is_empty()).collect()).unwrap_or_default()
    };
    let one = |name: &str| values(name).first().copied().filter(|value| *value != "none");
    if one("proxyjump").is_some() || one("proxycommand").is_some() || one("knownhostscommand").is_some() {
        return;
    }
    let (Some(host), port) = (one("hostkeyalias").or(one("hostname")), one("port").unwrap_or("22")) else { return };
    let entry =
        if port == "22" || one("hostkeyalias").is_some() { host.to_owned() } else { format!("[{host}]:{port}") };
    let files: Vec<PathBuf> = ["userknownhostsfile", "globalknownhostsfile"]
        .iter()
        .flat_map(|name| values(name))
        .filter_map(expand)
        .collect();
    let what = format!("host key of {entry}");
    let known = files.iter().filter(|file| file.is_file()).find(|file| {
        let mut find = Command::new("ssh-keygen");
        find.args(["-F", &entry, "-f"]).arg(file);
        tool::run(&mut find, tool::PROGRAM).is_ok_and(|said| said.well)
    });
    match (known, one("stricthostkeychecking")) {
        (Some(file), _) => report.ok(what, format!("is known ({})", file.display())),
        // `ssh -G` says false for no.
        (None, Some("no" | "off" | "false")) => {
            report.warn(what, "is not checked: anybody can stand in for the server; remove StrictHostKeyChecking");
        }
        (None, Some("accept-new")) => {
            report.warn(what, "is not known, and will be taken as it comes: compare it first")
        }
        (None, _) => {
            let peer = arguments.peer();
            let file = peer.known_hosts.as_deref().unwrap_or("~/.ssh/known_hosts");
            report.error(
                what,
                format!("is not known: run ssh-keyscan -p {port} {host} >> {file} and compare it with what the provider says"),
            );
        }
    }
}
