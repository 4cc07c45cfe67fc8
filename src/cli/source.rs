//! The source of a mount: `[user@]host:[dir]` as sshfs takes it, or `dir:/path`.

use std::path::{Component, Path};

use crate::config::Source;

/// What a shell obeys, wherever it is.
const SPECIAL: [char; 10] = ['\'', '"', '`', ';', '&', '<', '>', '|', '(', ')'];

/// Reads a source; the error is a whole sentence.
pub fn parse(text: &str) -> Result<Source, String> {
    if text.chars().any(char::is_control) {
        return Err("the source contains a control character".into());
    }
    // fstab's old way to name the helper.
    let text = text.strip_prefix("sshfs#").unwrap_or(text);
    if let Some(path) = text.strip_prefix("dir:") {
        let path = Path::new(path);
        if !path.is_absolute() {
            return Err(format!("source '{text}': give the directory's absolute path, as in dir:/srv/files"));
        }
        if path.components().any(|part| part == Component::ParentDir) {
            return Err(format!("source '{text}': must not contain ..: write the path out"));
        }
        return Ok(Source::Dir { path: path.components().collect() });
    }
    let host = host(text).ok_or_else(|| {
        format!("source '{text}' is neither [user@]host:[dir] nor dir:/path (an IPv6 address goes into brackets)")
    })?;
    // For ssh they are words of commands: ProxyCommand, Match exec (%h, %r). Newer ones refuse the same (valid_hostname
    // and valid_ruser of ssh.c).
    let user = text.split_once(host).map_or("", |(user, _)| user);
    if host.contains(SPECIAL) || host.contains(['$', '\\']) || user.contains(SPECIAL) {
        return Err(format!("source '{text}': user and host must not contain characters that are special to a shell"));
    }
    // ssh would take it for an option.
    // Without the brackets, as sshfs gives it to ssh.
    if text.starts_with('-') || host.trim_start_matches('[').starts_with('-') {
        return Err(format!("source '{text}' starts with a dash"));
    }
    Ok(Source::Sshfs { target: text.into() })
}

/// The host in `[user@]host:[dir]`, with the brackets of an IPv6 address.
fn host(text: &str) -> Option<&str> {
    let bracket = text.find('[').filter(|&start| text.find(':').is_some_and(|colon| start < colon));
    let end = match bracket {
        Some(start) => {
            let end = start + text[start..].find(']')? + 1;
            // Only brackets around the whole host are an address.
            if !text[end..].starts_with(':') || (start > 0 && !text[..start].ends_with('@')) || end - start < 3 {
                return None;
            }
            // sshfs takes brackets away wherever they are, so that only what is an address may be in them.
            let is_address = |c: char| c.is_ascii_alphanumeric() || ":.%_-".contains(c);
            if text[..start].contains(']') || !text[start + 1..end - 1].chars().all(is_address) {
                return None;
            }
            end
        }
        None => text.find(':').filter(|&end| !text[..end].contains(']'))?,
    };
    let login = &text[..end];
    let host = login.rsplit_once('@').map_or(login, |(_, host)| host);
    let user_is_good = login.rsplit_once('@').is_none_or(|(user, _)| !user.is_empty());
    (!host.is_empty() && user_is_good && !login.contains(['/', ' '])).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn remote_sources_stay_as_they_are() {
        for text in ["host:", "me@host:dir", "me@host:/a b:c", "[fe80::1]:/x", "me@[::1]:", "me@corp@host:d", "h:@x"] {
            assert_eq!(parse(text), Ok(Source::Sshfs { target: text.into() }));
        }
        assert_eq!(parse("sshfs#h:/d"), Ok(Source::Sshfs { target: "h:/d".into() }));
    }

    #[test]
    fn what_a_shell_would_obey_is_no_host_and_no_user() {
        for text in ["`id`:", "$(id):/d", "a;b:", "u;id@h:", "u@a|b:", "u'@h:", "h>f:", "me@$HOME:", "me@a\\b:"] {
            assert!(parse(text).is_err(), "{text}");
        }
        // A directory may be named as it likes; a user of a domain has a backslash.
        for text in ["h:/a;b`c`", "corp\\me@h:", "h:$(x)"] {
            assert_eq!(parse(text), Ok(Source::Sshfs { target: text.into() }));
        }
    }

    #[test]
    fn directories_are_absolute() {
        assert_eq!(parse("dir:/srv//a/"), Ok(Source::Dir { path: "/srv/a".into() }));
        for text in ["dir:", "dir:a", "dir:/a/../b"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_source() {
        for text in [
            "",
            "host",
            ":",
            ":dir",
            "@:x",
            "@h:x",
            "/a/b",
            "./a:b",
            "[fe80::1",
            "[]:x",
            "-oX=y:z",
            "a@-b:",
            "h\n:",
            "[-oX=y::]:",
            "me@[-:b]:",
            "[-oX::@[f]:f]:",
            "a]b:",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,30}", near in "[a@:\\[\\]/é-]{0,8}") {
            let _ = (parse(&text), parse(&near));
        }
    }
}
