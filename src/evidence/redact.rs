//! Takes secrets out of text that leaves the machine: a pure function, applied to everything that goes into a bundle.
//!
//! It goes by what secrets look like where they are found: options and environment of sshfs and ssh, command lines,
//! configuration, URLs, keys. When in doubt a value goes: a bundle has to tell what happened, not who may log in.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

/// What stands where a secret was.
pub const REDACTED: &str = "[redacted]";

/// A name whose value is a secret. `PasswordAuthentication=no` has one as well, but see [`is_plain`].
const NAME: &str = r"[\w.-]*(?:password|passwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|sshpass|credential)[\w.-]*";
/// A value: quoted, or up to what ends one in options, shells, JSON and URLs.
const VALUE: &str = r#"(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*'|(?:\\.|[^\s,;&"'\\)}\]])+)"#;

struct Rule {
    pattern: Regex,
    /// What stays before the secret, and after it: names of groups `a` and `b`.
    replace: fn(&Captures) -> String,
}

fn rule(pattern: &str, replace: fn(&Captures) -> String) -> Option<Rule> {
    // All patterns are constants; a test has compiled each.
    Regex::new(pattern).ok().map(|pattern| Rule { pattern, replace })
}

fn around(found: &Captures) -> String {
    let group = |name| found.name(name).map_or("", |group| group.as_str());
    format!("{}{REDACTED}{}", group("a"), group("b"))
}

fn unless_plain(found: &Captures) -> String {
    let value = found.name("v").map_or("", |value| value.as_str());
    // How often ssh asks is none either.
    let counts = found[0].to_ascii_lowercase().contains("numberofpasswordprompts");
    if counts || is_plain(value) { found[0].to_owned() } else { around(found) }
}

/// Switches and marks that are no secrets.
fn is_plain(value: &str) -> bool {
    let bare = value.trim_matches(['"', '\'']).to_ascii_lowercase();
    let words = ["yes", "no", "true", "false", "on", "off", "none", "null", "publickey", REDACTED, "[redacted"];
    bare.is_empty() || words.contains(&bare.as_str())
}

fn rules() -> Vec<Rule> {
    let value = VALUE;
    [
        // Keys, whole or cut off.
        rule(
            r"(?s)(?P<a>-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----).*?(?P<b>-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|\z)",
            around,
        ),
        rule(r"b3BlbnNzaC1rZXktdjE[A-Za-z0-9+/=\s]*", around),
        // What goes into password_stdin.
        rule(r"(?m)(?P<a>\b(?:echo|printf)\s)[^|\n]*?(?P<b>\s*\|[^\n]*password_stdin)", around),
        rule(r"(?m)(?P<a>password_stdin[^\n]*?<<<\s*)[^\n]+", around),
        // Commands among options: what follows the program's name may be anything. In a list of options they end at a
        // comma, elsewhere with the line.
        rule(
            r#"(?im)(?P<a>(?:\b|-o)(?:ssh_command|sftp_server|ProxyCommand|KnownHostsCommand|LocalCommand|RemoteCommand)(?:\s*=\s*|\s+)["']?(?:\\.|[^\s,"'=\\])+)\s(?:\\.|[^,"'\\\n])*"#,
            around,
        ),
        rule(r"(?P<a>\bsshpass\s+(?:-\S+\s+)*?-p\s*)(?:'[^'\n]*'|\x22[^\x22\n]*\x22|\S+)", around),
        // The environment: names may stay.
        rule(r#"(?im)(?P<a>(?:\b|-o)SetEnv[\s=]+["']?[\w.-]+=)[^,\n]+"#, around),
        rule(r"(?m)(?P<a>^\s*Environment=[\w.-]+=)[^\n]+", around),
        // Who asks for something on the web.
        rule(r"(?im)(?P<a>\b(?:proxy-)?authorization\s*[:=]\s*)[^\n]+", around),
        rule(r"(?i)(?P<a>\bbearer\s+)[A-Za-z0-9._~+/=-]{8,}", around),
        rule(r"(?P<a>\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/@]+(?P<b>@)", around),
        rule(r"(?P<a>\bhttps?://)[^\s/@:]+(?P<b>@)", around),
        rule(
            r#"(?i)(?P<a>[?&](?:[\w.-]*(?:token|key|sig|signature|secret|pass|auth|code|session|credential)[\w.-]*)=)[^\s&#"'<>]+"#,
            around,
        ),
        // Names that say it, in options, files, JSON and command lines.
        rule(&format!(r#"(?i)(?P<a>["']?\b{NAME}["']?\s*(?:=|:\s)\s*)(?P<v>{value})"#), unless_plain),
        rule(&format!(r#"(?i)(?P<a>["']{NAME}["']:)(?P<v>{value})"#), unless_plain),
        rule(&format!(r"(?i)(?P<a>--{NAME}\s+)(?P<v>{value})"), unless_plain),
        // What is known by its shape.
        rule(r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16})", around),
        rule(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]+", around),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The same text without its secrets.
pub fn redact(text: &str) -> String {
    static RULES: LazyLock<Vec<Rule>> = LazyLock::new(rules);
    let mut text = Cow::Borrowed(text);
    for rule in RULES.iter() {
        if let Cow::Owned(changed) = rule.pattern.replace_all(&text, |found: &Captures| (rule.replace)(found)) {
            text = Cow::Owned(changed);
        }
    }
    text.into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_there() {
        assert_eq!(rules().len(), 18);
    }

    #[test]
    fn secrets_go() {
        for text in [
            "sshfs h:d /m -o password=HUNTER2,port=23",
            "password = \"HUNTER2 with blanks\"",
            "{\"password\":\"HUNTER2\",\"x\":1}",
            "{\"api_key\": \"HUNTER2\"}",
            "Nov 27 host app[1]: db_password: HUNTER2",
            "echo HUNTER2 | sshfs h:d /m -o password_stdin",
            "printf '%s' 'HUNTER2 x' | sshfs h:d /m -o password_stdin,port=2",
            "sshfs h:d /m -o password_stdin <<< HUNTER2",
            "'ssh_command=sshpass -p HUNTER2 ssh'",
            "sshfs h:d /m -o ssh_command=sshpass -p HUNTER2 ssh,port=23",
            "ssh_command=/opt/wrap --with HUNTER2\\,more,port=23",
            "ssh_command=/opt/wrap --with a\\,HUNTER2,port=23",
            "ProxyCommand nc -X connect -P HUNTER2 %h %p",
            "sshpass -p HUNTER2 ssh box",
            "sshpass -v -p 'HUNTER2 and more' ssh box",
            "sshpass -pHUNTER2 ssh box",
            "SSHPASS=HUNTER2",
            "SetEnv=FOO=HUNTER2",
            "ssh -x -oSetEnv=FOO=HUNTER2 -a box",
            "-oProxyCommand=nc HUNTER2",
            r"'ssh_command=/run/a\\\\x2d/ssh -oSetEnv=FOO=HUNTER2' h:d /m",
            "  SetEnv FOO=HUNTER2 BAR=HUNTER2",
            "Environment=FOO=HUNTER2 BAR=HUNTER2",
            "AWS_SECRET_ACCESS_KEY=HUNTER2",
            "Authorization: Basic HUNTER2==",
            "curl -H 'authorization: token HUNTER2' x",
            "got Bearer HUNTER2HUNTER2.abc",
            "ftp://me:HUNTER2@box/dir",
            "https://HUNTER2@github.com/x/y.git",
            "https://h/p?x=1&token=HUNTER2&y=2",
            "https://h/p?X-Amz-Signature=HUNTER2",
            "prog --password HUNTER2 next",
            "prog --api-key 'HUNTER2 x'",
            "prog --password=HUNTER2",
            "ghp_HUNTER2HUNTER2HUNTER2HUNTER2",
            "-----BEGIN OPENSSH PRIVATE KEY-----\nHUNTER2\nHUNTER2\n-----END OPENSSH PRIVATE KEY-----",
            "-----BEGIN RSA PRIVATE KEY-----\nHUNTER2 cut off",
            "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAHUNTER2HUNTER2",
        ] {
            let clean = redact(text);
            assert!(!clean.contains("HUNTER2"), "{text:?} became {clean:?}");
            assert!(clean.contains(REDACTED), "{clean:?}");
            assert_eq!(redact(&clean), clean, "twice");
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        for text in [
            "sshfs -f -o IdentityFile=/etc/keys/box,port=23,StrictHostKeyChecking=yes h:d /m",
            "-o PasswordAuthentication=no,PubkeyAuthentication=yes,BatchMode=yes",
            "-o password_stdin,port=23",
            "-oNumberOfPasswordPrompts=0 -oConnectTimeout=10",
            "Permission denied (publickey,password).",
            "root@box's password:",
            "ssh_command=/tmp/x/ssh,guard=no",
            "ssh://me@box:23/dir sftp://me@box/dir",
            "user@host:/dir on /hot type fuse.steadfs (rw,user_id=0,group_id=0)",
            "EXIT_CODE=107",
            "Host key verification failed",
            "{\"state\":\"live\",\"generation\":3,\"why\":null}",
            "https://host/path?page=2",
            "Environment file: /etc/steadfs/x.env",
            "SHA256:uQ0tIGmL3sXv2oY0vT8b1C2d3E4f5G6h7I8j9K0l1M",
        ] {
            assert_eq!(redact(text), text);
        }
    }

    #[test]
    fn what_stands_beside_a_secret_stays() {
        assert_eq!(redact("-o password=x,port=23"), "-o password=[redacted],port=23");
        assert_eq!(redact("ssh_command=w -p x,port=23"), "ssh_command=w[redacted],port=23");
        assert_eq!(redact("ftp://me:pw@box/d"), "ftp://me:[redacted]@box/d");
        assert_eq!(
            redact("echo pw | sshfs -o password_stdin h: /m"),
            "echo [redacted] | sshfs -o password_stdin h: /m"
        );
        assert_eq!(redact("{\"token\":\"a\\\"b\",\"x\":1}"), "{\"token\":[redacted],\"x\":1}");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_taken_and_twice_is_once(text in ".{0,200}") {
            let clean = redact(&text);
            proptest::prop_assert_eq!(redact(&clean), clean);
        }

        #[test]
        fn no_password_survives_among_options(password in "[A-Za-z0-9!%+/=._-]{6,20}", before in "[a-z_]{1,8}=[a-z0-9]{1,8}") {
            proptest::prop_assume!(!before.contains(&password) && !super::is_plain(&password));
            let clean = redact(&format!("sshfs -o {before},password={password},port=23 h:d /m"));
            proptest::prop_assert!(!clean.contains(&password), "{}", clean);
        }
    }
}
