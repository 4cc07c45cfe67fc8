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

/// Classifies the output of an sshfs that ended before it was mounted; `ending` says how it ended.
pub fn classify(output: &[String], ending: &str) -> StartError {
    let find = |phrases: &[&str]| output.iter().find(|line| phrases.iter().any(|phrase| line.contains(phrase)));
    let words = |line: Option<&String>| {
        let telling = output.iter().rev().find(|line| !EMPTY_WORDS.iter().any(|empty| line.contains(empty)));
        line.or(telling).or(output.last()).map_or_else(|| ending.to_owned(), |line| line.trim().to_owned())
    };
    if let Some(line) = find(&REFUSED) {
        // ssh names the cause before it says that verification failed.
        let cause = output.iter().find(|line| line.contains("host key is known for") || line.contains("HAS CHANGED"));
        return StartError::Refused(match cause {
            Some(cause) if cause != line => format!("{}: {}", line.trim(), cause.trim()),
            _ => line.trim().to_owned(),
        });
    }
    // A name that does not resolve may be a resolver in trouble: worth trying again.
    if find(&["Could not resolve hostname"]).is_none()
        && let Some(line) = find(&LOCAL)
    {
        return StartError::Local(line.trim().to_owned());
    }
    StartError::Unreachable(words(find(&["ssh: ", "Connection closed", "Connection refused", "timed out"])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn a_refused_key_and_an_unknown_host_are_final() {
        let key = lines("me@host: Permission denied (publickey).\nread: Connection reset by peer");
        assert_eq!(classify(&key, ""), StartError::Refused("me@host: Permission denied (publickey).".into()));
        let host = lines(
            "No ED25519 host key is known for [h]:23 and you have requested strict checking.\nHost key verification failed.",
        );
        assert!(matches!(classify(&host, ""), StartError::Refused(words) if words.contains("[h]:23")));
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
                matches!(classify(&lines(text), "ended"), StartError::Unreachable(words) if !words.is_empty()),
                "{text}"
            );
        }
    }

    #[test]
    fn a_missing_remote_directory_is_named() {
        let text = lines("host:/nowhere: No such file or directory");
        assert_eq!(classify(&text, ""), StartError::Local("host:/nowhere: No such file or directory".into()));
    }
}
