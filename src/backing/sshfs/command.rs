//! The command line of an sshfs that steadfs owns.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::caches::Caches;
use super::failure::Peer;

/// Options that steadfs gives unless the user gave the same option another value. Sources: ssh_config(5), sshfs(1).
const DEFAULTS: [(&str, &str); 6] = [
    // Nobody is there to answer a question.
    ("BatchMode", "yes"),
    ("NumberOfPasswordPrompts", "0"),
    ("ConnectTimeout", "10"),
    // A shared master connection would not be ours to kill.
    ("ControlMaster", "no"),
    ("ControlPath", "none"),
    // Bulk data wants throughput, and a probe should not overtake it.
    ("TCPKeepAlive", "yes"),
];

/// Nothing is cached below the overlay. sshfs 3.7 takes a READ that failed for the end of the file (wait_chunk in sshfs.c),
/// and the kernel fills what it caches of a file with zeros when a read ends before the file does (fuse_short_read in
/// fs/fuse/file.c): a dying sshfs would read as zeros. Uncached, such a read is seen to be short.
const UNCACHED: &str = "direct_io";

/// What is handed to sshfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arguments {
    /// `[user@]host:[dir]`.
    pub target: String,
    /// One `-o` value each.
    pub options: Vec<String>,
    /// How old what it says of names and attributes may be.
    pub remembers: Duration,
}

impl Arguments {
    /// Adds what steadfs decides to what the user said. Nothing that it remembers is to be older than `fresh`.
    pub fn new(target: &str, user_options: &[String], fresh: Duration) -> Arguments {
        let mut options = user_options.to_vec();
        let caches = Caches::within(fresh, user_options);
        options.extend(caches.options);
        for (name, value) in DEFAULTS {
            if value_of(user_options, name).is_none() {
                options.push(format!("{name}={value}"));
            }
        }
        if !options.iter().any(|option| option == UNCACHED) {
            options.push(UNCACHED.into());
        }
        Arguments { target: target.to_owned(), options, remembers: caches.oldest }
    }

    /// The sshfs command for one generation, with another way to start ssh if there is one.
    pub fn sshfs(&self, mountpoint: &Path, ssh_command: Option<&str>) -> Command {
        let mut command = Command::new("sshfs");
        command.arg("-f");
        let replaced = |option: &String| ssh_command.is_some() && option.starts_with("ssh_command=");
        let own = ssh_command.map(|command| format!("ssh_command={command}"));
        for option in self.options.iter().filter(|option| !replaced(option)).chain(&own) {
            command.arg("-o").arg(escape(option));
        }
        // Nothing that looks like an option can come from the target or the mountpoint.
        command.arg(&self.target).arg(mountpoint).env("LC_ALL", "C").env_remove("SSH_ASKPASS").env_remove("DISPLAY");
        command
    }

    /// True unless the user wants sshfs to wait for the server's answer to each write.
    pub fn writes_asynchronously(&self) -> bool {
        !self.options.iter().any(|option| option == "sshfs_sync" || option == "sync")
    }

    /// True if what is sent is carried out in that order: not with several connections (max_conns of sshfs 3.7).
    pub fn keeps_order(&self) -> bool {
        value_of(&self.options, "max_conns").is_none_or(|count| count == "1")
    }

    /// What sshfs starts to reach the server.
    pub fn ssh_command(&self) -> &str {
        value_of(&self.options, "ssh_command").unwrap_or("ssh")
    }

    /// The program that sshfs runs as ssh.
    pub fn ssh_program(&self) -> String {
        tokens(self.ssh_command()).next().unwrap_or("ssh").to_string()
    }

    /// True when calls go to a server by something else than an ssh, wherever that lies.
    pub fn has_own_transport(&self) -> bool {
        let other_program = Path::new(&self.ssh_program()).file_name().is_none_or(|name| name != "ssh");
        let has =
            |name: &&str| value_of(&self.options, name).is_some() || self.options.iter().any(|option| option == name);
        other_program || ["directport", "passive", "slave", "vsock"].iter().any(has)
    }

    /// Arguments for `ssh -G`: the options that are ssh's, and the host.
    pub fn ssh(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        for option in &self.options {
            if let Some(file) = option.strip_prefix("-F") {
                arguments.extend(["-F".into(), file.into()]);
            }
            match option.split_once('=') {
                Some(("port", port)) => arguments.extend(["-p".into(), port.into()]),
                // Options that sshfs does not know are given to ssh in its own command line.
                Some(("ssh_command", command)) => arguments.extend(tokens(command).skip(1).map(String::from)),
                Some((name, _)) if name.starts_with(|first: char| first.is_ascii_uppercase()) => {
                    arguments.extend(["-o".into(), option.clone()]);
                }
                _ => {}
            }
        }
        arguments.extend(["--".into(), self.host()]);
        arguments
    }

    /// Who is logged in to, for messages.
    pub fn peer(&self) -> Peer {
        let login = self.host();
        let value = |name: &str| value_of(&self.options, name).map(str::to_owned);
        let host = login.rsplit_once('@').map_or(login.as_str(), |(_, host)| host).to_owned();
        Peer { host, login, port: value("port"), known_hosts: value("UserKnownHostsFile") }
    }

    /// `[user@]host`, without the brackets around an IPv6 address.
    fn host(&self) -> String {
        let (user, rest) = match self.target.split_once('@') {
            Some((user, rest)) if !user.contains(':') => (format!("{user}@"), rest),
            _ => (String::new(), self.target.as_str()),
        };
        let host = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => address,
            None => rest.split_once(':').map_or(rest, |(host, _)| host),
        };
        format!("{user}{host}")
    }
}

/// The words of an ssh command as sshfs finds them (tokenize_on_space in sshfs.c): a blank behind a backslash does not end
/// a word, and the backslash stays for ssh to take away.
fn tokens(command: &str) -> impl Iterator<Item = &str> {
    let mut previous = None;
    command.split(move |c| previous.replace(c) != Some('\\') && c == ' ').filter(|t| !t.is_empty())
}

/// The value of `name=`, the last one; names of ssh options do not care for case.
fn value_of<'a>(options: &'a [String], name: &str) -> Option<&'a str> {
    options
        .iter()
        .rev()
        .filter_map(|option| option.split_once('='))
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, v)| v)
}

/// libfuse splits `-o` values at commas and takes a backslash as an escape.
fn escape(option: &str) -> String {
    option.replace('\\', "\\\\").replace(',', "\\,")
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Duration = Duration::from_secs(20);

    #[test]
    fn the_user_wins_over_defaults_whatever_the_case() {
        let arguments = Arguments::new("h:", &["connecttimeout=3".into()], FRESH);
        assert!(!arguments.options.iter().any(|option| option == "ConnectTimeout=10"));
        assert!(arguments.options.contains(&"BatchMode=yes".into()));
    }

    #[test]
    fn commas_do_not_make_options() {
        let arguments = Arguments::new("h:", &["IdentityFile=/a,allow_other".into()], FRESH);
        let command = arguments.sshfs(Path::new("/m"), None);
        assert!(command.get_args().any(|argument| argument == "IdentityFile=/a\\,allow_other"));
    }

    #[test]
    fn an_ssh_is_one_wherever_it_lies() {
        let own = |command: &str| Arguments::new("h:", &[format!("ssh_command={command}")], FRESH).has_own_transport();
        assert!(!own("/opt/openssh/bin/ssh -v"));
        assert!(!own("ssh"));
        assert!(own("/usr/lib/sftp-server") && own("./ssh-like"));
        assert_eq!(Arguments::new("h:", &["ssh_command=/x/ssh -v".into()], FRESH).ssh_program(), "/x/ssh");
    }

    #[test]
    fn another_ssh_command_takes_the_place_of_the_users() {
        let arguments = Arguments::new("h:", &["ssh_command=/x/ssh -v".into()], FRESH);
        assert_eq!(arguments.ssh_command(), "/x/ssh -v");
        let command = arguments.sshfs(Path::new("/m"), Some("/run/ssh -v"));
        let given: Vec<_> = command.get_args().filter(|a| a.to_string_lossy().contains("ssh_command")).collect();
        assert_eq!(given, ["ssh_command=/run/ssh -v"]);
    }

    #[test]
    fn ssh_is_asked_about_the_host_with_its_own_options_only() {
        let options = ["port=23", "IdentityFile=/k", "uid=5", "-F/c"].map(String::from);
        let arguments = Arguments { target: "me@[fe80::1]:/dir".into(), options: options.into(), remembers: FRESH };
        assert_eq!(arguments.ssh(), ["-p", "23", "-o", "IdentityFile=/k", "-F", "/c", "--", "me@fe80::1"]);
        assert_eq!(Arguments::new("box:dir", &[], FRESH).host(), "box");
    }

    #[test]
    fn a_blank_in_an_option_of_ssh_brings_no_host_in() {
        let options = ["ssh_command=ssh  -oSetEnv=A=b\\ c -oTag=x ".to_owned()];
        let arguments = Arguments { target: "h:".into(), options: options.into(), remembers: FRESH };
        assert_eq!(arguments.ssh(), ["-oSetEnv=A=b\\ c", "-oTag=x", "--", "h"]);
        assert!(!arguments.has_own_transport());
    }
}
