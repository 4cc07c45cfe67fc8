//! Turns what ssh and sshfs print when they fail into a [`StartError`]: their own words, and whether to try again.

use crate::backing::StartError;

/// Phrases of ssh that mean: nothing changes until somebody acts (ssh.c, sshconnect.c, sshconnect2.c of OpenSSH).
const REFUSED: [&str; 6] = [
    "Host key verification failed",
    "REMOTE HOST IDENTIFICATION HAS CHANGED",
    "host key is known for",
    "Permission denied (",
    "Too many authentication failures",
    "no mutual signature algorithm",
];

/// Phrases that mean a mistake or a lack on this side, or a directory that the server has not got.
const LOCAL: [&str; 11] = [
    "No such file or directory",
    "Not a directory",
    "unknown option",
    "Bad configuration option",
    "missing argument",
    "extra arguments",
    "invalid argument",
    "fuse: ",
    "not accessible",
    "UNPROTECTED PRIVATE KEY",
    "Bad owner or permissions",
];

/// What sshfs adds to every loss; said only when there is nothing better.
const EMPTY_WORDS: [&str; 3] =
    ["read: Connection reset by peer", "remote host has disconnected", "Warning: Permanently added"];

/// Whom ssh was to log in to, for messages that say so.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// Name or address.
    pub host: String,
    /// `[user@]host`.
    pub login: String,
    /// `port=`, if it was given.
    pub port: Option<String>,
    /// `UserKnownHostsFile=`, if it was given.
    pub known_hosts: Option<String>,
}

impl Peer {
    fn port(&self) -> String {
        self.port.as_ref().map_or_else(String::new, |port| format!("-p {port} "))
    }

    fn name(&self) -> String {
        match &self.port {
            Some(port) if self.host.contains(':') => format!("[{}]:{port}", self.host),
            Some(port) => format!("{}:{port}", self.host),
            None => self.host.clone(),
        }
    }

    /// The name as known_hosts has it (sshd(8)).
    fn entry(&self) -> String {
        match &self.port {
            Some(port) if port != "22" => format!("'[{}]:{port}'", self.host),
            _ => self.host.clone(),
        }
    }

    fn command(&self) -> String {
        let known = self.known_hosts.as_ref().map_or_else(String::new, |file| format!("-o UserKnownHostsFile={file} "));
        format!("ssh {}{known}{}", self.port(), self.login)
    }

    fn known_hosts(&self) -> &str {
        self.known_hosts.as_deref().unwrap_or("~/.ssh/known_hosts")
    }

    /// What is to be done about a refusal that will not go away.
    fn remedy(&self, said: &[&str]) -> String {
        let any = |phrases: &[&str]| said.iter().any(|line| phrases.iter().any(|phrase| line.contains(phrase)));
        let (name, ssh, known) = (self.name(), self.command(), self.known_hosts());
        if any(&["HAS CHANGED", "has changed and you have requested"]) {
            let entry = self.entry();
            return format!(
                "the host key of {name} is another one than before: if that is meant, remove the old one with \
                 ssh-keygen -f {known} -R {entry}, connect once with {ssh} and accept the new one"
            );
        }
        if any(&["Host key verification failed", "host key is known for"]) {
            return format!(
                "the host key of {name} is not known: connect once with {ssh} and accept the key, or add it to {known} \
                 with ssh-keyscan {}{}",
                self.port(),
                self.host
            );
        }
        if any(&["Too many authentication failures"]) {
            return format!("{name} was offered too many keys: give IdentityFile= and IdentitiesOnly=yes");
        }
        format!(
            "{name} lets nobody in with this key: give IdentityFile=, see that the server has its public half, and try {ssh}"
        )
    }
}

/// What ssh says of itself with `LogLevel=DEBUG`, which tells of things that it tried and went on from.
fn is_chatter(line: &str) -> bool {
    let level = line.trim_start().strip_prefix("debug").and_then(|rest| rest.split_once(':'));
    level.is_some_and(|(level, _)| level.len() == 1 && level.bytes().all(|byte| byte.is_ascii_digit()))
}

/// The last line that says something.
pub fn last_words(output: &[String]) -> Option<&str> {
    output.iter().rev().map(|line| line.trim()).find(|line| !is_chatter(line))
}

/// Classifies the output of an sshfs that ended before it was mounted; `ending` says how it ended.
pub fn classify(output: &[String], ending: &str, peer: &Peer) -> StartError {
    let said: Vec<&str> = output.iter().map(|line| line.trim()).filter(|line| !is_chatter(line)).collect();
    let find = |phrases: &[&str]| said.iter().copied().find(|line| phrases.iter().any(|phrase| line.contains(phrase)));
    // The banner of a changed key is framed.
    if let Some(line) = find(&REFUSED).map(|line| line.trim_matches(['@', ' '])) {
        // ssh names the cause before it says that verification failed.
        let causes = ["host key is known for", "Offending"];
        let words = match find(&causes).or(find(&["HAS CHANGED"])) {
            Some(cause) if !cause.contains(line) => format!("{line} {cause}"),
            _ => line.to_owned(),
        };
        return StartError::Refused(format!("{words}: {}", peer.remedy(&said)));
    }
    // A name that does not resolve may be a resolver in trouble: worth trying again.
    if find(&["Could not resolve hostname"]).is_none()
        && let Some(line) = find(&LOCAL)
    {
        return StartError::Local(line.to_owned());
    }
    let telling = said.iter().rev().copied().find(|line| !EMPTY_WORDS.iter().any(|empty| line.contains(empty)));
    let words =
        find(&["ssh: ", "Connection closed", "Connection refused", "timed out"]).or(telling).or(said.last().copied());
    StartError::Unreachable(words.unwrap_or(ending).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    fn peer() -> Peer {
        Peer { host: "box".into(), login: "me@box".into(), port: Some("23".into()), known_hosts: None }
    }

    fn refused(text: &str, peer: &Peer) -> String {
        match classify(&lines(text), "", peer) {
            StartError::Refused(words) if words.lines().count() == 1 => words,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_refusal_is_final_and_names_the_host_and_the_remedy() {
        let key = refused("me@box: Permission denied (publickey).\nread: Connection reset by peer", &peer());
        assert_eq!(
            key,
            "me@box: Permission denied (publickey).: box:23 lets nobody in with this key: give IdentityFile=, see that \
             the server has its public half, and try ssh -p 23 me@box"
        );
        let unknown = "the host key of box:23 is not known: connect once with ssh -p 23 me@box and accept the key, or add \
                       it to ~/.ssh/known_hosts with ssh-keyscan -p 23 box";
        let cause = "No ED25519 host key is known for [box]:23 and you have requested strict checking.";
        assert_eq!(refused(&format!("{cause}\nHost key verification failed."), &peer()), format!("{cause}: {unknown}"));
        assert_eq!(
            refused("Host key verification failed.", &peer()),
            format!("Host key verification failed.: {unknown}")
        );
        let other = Peer { port: None, known_hosts: Some("/k".into()), ..peer() };
        let changed = refused(
            "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nOffending ED25519 key in /k:1\n\
             Host key for box has changed and you have requested strict checking.\nHost key verification failed.",
            &other,
        );
        let remedy = "ssh-keygen -f /k -R box, connect once with ssh -o UserKnownHostsFile=/k me@box";
        assert!(changed.contains("Offending ED25519 key in /k:1: the host key of box is another"), "{changed}");
        assert!(changed.contains(remedy), "{changed}");
        assert!(refused("Received disconnect: Too many authentication failures", &peer()).contains("IdentitiesOnly"));
    }

    #[test]
    fn what_ssh_tells_while_it_tries_is_no_verdict() {
        let text = "debug1: identity file /k type -1: No such file or directory\r\n\
                    debug3: Permission denied (publickey).\nssh: connect to host h port 22: Connection timed out\n\
                    debug1: bye";
        assert_eq!(
            classify(&lines(text), "", &peer()),
            StartError::Unreachable("ssh: connect to host h port 22: Connection timed out".into())
        );
        assert_eq!(last_words(&lines(text)), Some("ssh: connect to host h port 22: Connection timed out"));
        assert!(!is_chatter("debugging: x") && !is_chatter("debug12: x") && is_chatter("debug2: x"));
    }

    #[test]
    fn a_server_that_is_away_is_tried_again() {
        for text in [
            "ssh: connect to host 127.0.0.1 port 23: Connection refused\nread: Connection reset by peer",
            "ssh: connect to host h port 22: Connection timed out",
            "ssh: Could not resolve hostname h: Name or service not known",
            "kex_exchange_identification: Connection closed by remote host",
            "",
        ] {
            assert!(
                matches!(classify(&lines(text), "ended", &peer()), StartError::Unreachable(words) if !words.is_empty()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_missing_remote_directory_is_named() {
        let text = lines("host:/nowhere: No such file or directory");
        assert_eq!(classify(&text, "", &peer()), StartError::Local("host:/nowhere: No such file or directory".into()));
    }
}
