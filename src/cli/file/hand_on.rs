//! `[sshfs]`: what is handed to sshfs and ssh, by the rules of `-o`.

use std::collections::BTreeMap;

use toml::de::{DeTable, DeValue};

use super::keys;
use super::reader::{Entry, Reader, Text, a, absolute, integer, strings};
use crate::cli::options::{Options, known, known::Fate};

/// Files that sshfs and ssh would look for in a working directory that nobody chose.
const FILES: [&str; 7] =
    ["CertificateFile", "F", "GlobalKnownHostsFile", "IdentityFile", "UserKnownHostsFile", "gidfile", "uidfile"];

/// Takes all of the section.
pub(super) fn read(section: &DeTable<'_>, options: &mut Options, reader: &mut Reader<'_>) {
    let mut seen: BTreeMap<String, String> = BTreeMap::new();
    let mut places = BTreeMap::new();
    // In the order of the file: what is given first is not the mistake.
    let mut entries: Vec<_> = section.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    for (key, value) in entries {
        let (name, at) = (key.get_ref().as_ref(), key.span().start);
        let ssh = known::ssh(name);
        let handed_on = name == "F" || known::sshfs(name).is_some() || ssh.is_some();
        if !handed_on {
            reader.complain(at, keys::unknown(&keys::SSHFS, name));
            continue;
        }
        // ssh does not care for case, and has another name for the port.
        let own_name = ssh.map_or(name, |ssh| ssh.name);
        let own_name = if own_name == "Port" { "port" } else { own_name };
        if let Some(earlier) = seen.insert(own_name.into(), name.into()) {
            reader.complain(at, format!("{name} and {earlier} are the same option: remove one"));
            continue;
        }
        places.insert(own_name.to_owned(), at);
        for text in values(own_name, Entry { at, value }, reader).into_iter().flatten() {
            take(own_name, at, text, options, reader);
        }
    }
    if let Err(sentence) = options.finish_handed_on() {
        let about = sentence.split(['=', ' ']).next().and_then(|name| places.get(name)).copied();
        reader.complain(about.or(places.values().min().copied()).unwrap_or_default(), sentence);
    }
}

/// What is to be given, one by one; `None` within stands for a switch.
fn values(name: &str, entry: Entry<'_>, reader: &mut Reader<'_>) -> Option<Vec<Option<Text>>> {
    let fate = known::sshfs(name);
    let plain = |text: String| Some(vec![Some(Text { raw: text.clone(), text })]);
    match entry.value.get_ref() {
        DeValue::Boolean(on) if matches!(fate, Some(Fate::Flag | Fate::Drop(_) | Fate::Reject(_))) => {
            Some(if *on { vec![None] } else { Vec::new() })
        }
        DeValue::Boolean(on) if fate.is_none() => plain(if *on { "yes" } else { "no" }.into()),
        value @ DeValue::Integer(_) if fate == Some(Fate::Number(8)) => match value.as_integer()?.radix() {
            8 => plain(format!("{:04o}", integer(value)?)),
            _ => {
                reader.complain(entry.at, format!("{name} is octal: write it as a string, {name} = \"0027\""));
                None
            }
        },
        value @ DeValue::Integer(_) => plain(integer(value)?.to_string()),
        DeValue::String(raw) => {
            let text = reader.expand(name, entry.at, raw)?;
            Some(vec![Some(Text { raw: raw.to_string(), text })])
        }
        DeValue::Array(_) if known::accumulates(name) => {
            let all = strings(name, entry, reader)?;
            Some(all.into_iter().map(|text| Some(Text { raw: text.clone(), text })).collect())
        }
        other => {
            let remedy = match fate {
                Some(Fate::Flag) => format!("{name} = true"),
                Some(Fate::Number(10)) => format!("{name} = NUMBER"),
                _ => format!("{name} = \"VALUE\""),
            };
            reader.complain(entry.at, format!("{name} is {}: write {remedy}", a(other)));
            None
        }
    }
}

fn take(name: &str, at: usize, text: Option<Text>, options: &mut Options, reader: &mut Reader<'_>) {
    let value = text.as_ref().map(|text| text.text.as_str());
    if let Some(value) = value.filter(|_| FILES.contains(&name))
        && !(name != "F" && (value.starts_with(['~', '%', '$']) || value == "none" || value.contains(' ')))
        && let Err(words) = absolute(value)
    {
        let complaint = format!("{name}={value} {words}");
        return reader.complain(at, text.as_ref().map_or(complaint.clone(), |text| text.conceal(complaint)));
    }
    if name == "F" {
        return options.sshfs.push(format!("-F{}", value.unwrap_or_default()));
    }
    if let Err(sentence) = options.hand_on(name, value) {
        reader.complain(at, text.as_ref().map_or(sentence.clone(), |text| text.conceal(sentence)));
    }
}
