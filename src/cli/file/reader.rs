//! Takes values out of a parsed file: their types, variables put in, and a mistake for everything that is not as it should be.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::expand::expand;
use super::keys::{self, Key, Section};
use super::mistake::{Mistake, Place, Source};
use super::outside::Outside;
use crate::cli::options::{Options, duration, size, table::Kind, value};
use crate::config::HookCommand;

/// Values of these `-o` options lie on this machine, which is looked at later.
const HERE: [&str; 3] = ["metrics", "spool_dir", "textfile"];
/// Longest duration of a key that is no `-o` option.
const DAY: Duration = Duration::from_secs(86400);
/// As long may a time be that is counted in days.
const MONTH: Duration = Duration::from_secs(31 * 86400);

/// Where mistakes go, and what values refer to.
pub(super) struct Reader<'o> {
    pub source: Source<'o>,
    pub outside: &'o dyn Outside,
    pub mistakes: Vec<Mistake>,
    /// The text is no TOML, so what is missing may be there.
    pub broken: bool,
    /// See [`super::Loaded`].
    pub here: Vec<(Place, &'static str, String)>,
}

impl Reader<'_> {
    /// A mistake at a byte of the file.
    pub fn complain(&mut self, at: usize, text: impl Into<String>) {
        let place = self.source.place(at);
        self.complain_of(place, text);
    }

    /// A mistake wherever it is.
    pub fn complain_of(&mut self, place: Place, text: impl Into<String>) {
        self.mistakes.push(Mistake { place, text: text.into() });
    }

    /// The string with its variables put in.
    pub fn expand(&mut self, name: &str, at: usize, raw: &str) -> Option<String> {
        let expanded = expand(raw, |name| self.outside.variable(name))
            .and_then(|text| if text.contains('\0') { Err("contains a NUL byte: remove it".into()) } else { Ok(text) });
        expanded.map_err(|words| self.complain(at, format!("{name} {words}"))).ok()
    }
}

/// A scalar as text.
#[derive(Debug, Clone)]
pub(super) struct Text {
    /// As it is written in the file.
    pub raw: String,
    /// With variables put in.
    pub text: String,
}

impl Text {
    /// What came from the environment may be secret, so a complaint shows what the file says.
    pub fn conceal(&self, complaint: String) -> String {
        if self.raw == self.text || self.text.is_empty() {
            return complaint;
        }
        let complaint = complaint.replacen(&format!("={}", self.text), &format!("={}", self.raw), 1);
        // What is short is no secret, and may be any part of the sentence.
        if self.text.len() < 4 { complaint } else { complaint.replace(&self.text, &self.raw) }
    }
}

/// What a scalar may be written as, beside a string.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    Text,
    Integer,
    Number,
    Switch,
}

/// One key that is there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entry<'d> {
    /// Of the key.
    pub at: usize,
    pub value: &'d Spanned<DeValue<'d>>,
}

/// One section that is there, or an empty one.
pub(super) struct Table<'d> {
    pub section: &'static Section,
    pub at: usize,
    entries: BTreeMap<&'static str, Entry<'d>>,
}

impl<'d> Table<'d> {
    /// A section that is not there.
    pub fn absent(section: &'static Section) -> Table<'d> {
        Table { section, at: 0, entries: BTreeMap::new() }
    }

    /// Complains of each key that is not known. `skip` are those that are somebody else's.
    pub fn open(
        section: &'static Section,
        at: usize,
        table: &'d DeTable<'d>,
        skip: impl Fn(&str) -> bool,
        reader: &mut Reader<'_>,
    ) -> Table<'d> {
        let mut entries = BTreeMap::new();
        for (key, value) in table {
            let (name, at) = (key.get_ref().as_ref(), key.span().start);
            match section.key(name) {
                Some(key) => _ = entries.insert(key.name, Entry { at, value }),
                None if skip(name) => {}
                None => reader.complain(at, keys::unknown(section, name)),
            }
        }
        Table { section, at, entries }
    }

    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Where that key is, or the section.
    pub fn at(&self, name: &str) -> usize {
        self.entries.get(name).map_or(self.at, |entry| entry.at)
    }

    /// Complains if it is not there.
    pub fn require(&self, name: &str, reader: &mut Reader<'_>) {
        if !self.has(name) && !reader.broken {
            let syntax = self.section.key(name).map(Key::syntax).unwrap_or_default();
            let place = if self.section.name.is_empty() { String::new() } else { format!("{} ", self.section.title()) };
            reader.complain(self.at, format!("{place}lacks '{name}': add {name} = {syntax}"));
        }
    }

    /// Complains if `name` is there without `other`, without which it means nothing.
    pub fn needs(&self, name: &str, other: &str, reader: &mut Reader<'_>) {
        if self.has(name) && !self.has(other) && !reader.broken {
            reader.complain(self.at(name), format!("{name} has no effect without {other}: add {other}, or remove it"));
        }
    }

    /// The value as text.
    pub fn scalar(&self, name: &'static str, form: Scalar, reader: &mut Reader<'_>) -> Option<Text> {
        let entry = self.entries.get(name)?;
        let found = entry.value.get_ref();
        let plain = |text: String| Some(Text { raw: text.clone(), text });
        match (found, form) {
            (DeValue::String(raw), _) => {
                let text = reader.expand(name, entry.at, raw)?;
                Some(Text { raw: raw.to_string(), text })
            }
            (DeValue::Integer(_), Scalar::Integer | Scalar::Number) => plain(integer(found)?.to_string()),
            (DeValue::Float(float), Scalar::Number) => plain(float.as_str().to_owned()),
            (DeValue::Boolean(on), Scalar::Switch) => plain(if *on { "yes" } else { "no" }.to_owned()),
            _ => {
                let syntax = self.section.key(name).map(Key::syntax).unwrap_or_default();
                reader.complain(entry.at, format!("{name} is {}: write {name} = {syntax}", a(found)));
                None
            }
        }
    }

    /// The value, read from its text; what `read` says follows `NAME=VALUE`.
    pub fn get<T>(
        &self,
        name: &'static str,
        form: Scalar,
        reader: &mut Reader<'_>,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = self.scalar(name, form, reader)?;
        let complain = |words| reader.complain(self.at(name), text.conceal(format!("{name}={} {words}", text.text)));
        read(&text.text).map_err(complain).ok()
    }

    /// An absolute path without `..`.
    pub fn path(&self, name: &'static str, reader: &mut Reader<'_>) -> Option<PathBuf> {
        self.get(name, Scalar::Text, reader, absolute)
    }

    pub fn switch(&self, name: &'static str, reader: &mut Reader<'_>) -> Option<bool> {
        self.get(name, Scalar::Switch, reader, value::yes_no)
    }

    /// Up to a day.
    pub fn duration(&self, name: &'static str, reader: &mut Reader<'_>) -> Option<Duration> {
        self.get(name, Scalar::Number, reader, |text| within(text, DAY))
    }

    /// Up to a month.
    pub fn long_duration(&self, name: &'static str, reader: &mut Reader<'_>) -> Option<Duration> {
        self.get(name, Scalar::Number, reader, |text| within(text, MONTH))
    }

    pub fn size(&self, name: &'static str, min: u64, max: u64, reader: &mut Reader<'_>) -> Option<u64> {
        self.get(name, Scalar::Integer, reader, |text| {
            let bytes = size::parse(text)?;
            let limits = || format!("is out of range: give {} to {}", size::format(min), size::format(max));
            if (min..=max).contains(&bytes) { Ok(bytes) } else { Err(limits()) }
        })
    }

    pub fn number(&self, name: &'static str, max: u32, reader: &mut Reader<'_>) -> Option<u32> {
        self.get(name, Scalar::Integer, reader, |text| {
            let number = text.parse::<u32>().ok().filter(|number| *number <= max);
            number.ok_or_else(|| format!("is not a number from 0 to {max}: give one"))
        })
    }

    /// An array of strings, each not empty and only once, or one string.
    pub fn strings(&self, name: &'static str, reader: &mut Reader<'_>) -> Option<Vec<String>> {
        let entry = self.entries.get(name)?;
        let (mut seen, mut good) = (BTreeSet::new(), Vec::new());
        for string in strings(name, *entry, reader)? {
            if string.is_empty() {
                reader.complain(entry.at, format!("{name} has an empty string: remove it"));
            } else if seen.insert(string.clone()) {
                good.push(string);
            } else {
                reader.complain(entry.at, format!("{name} has '{string}' twice: remove one"));
            }
        }
        Some(good)
    }

    /// A command: a string as `-o on_outage=` takes it, or an array of its words.
    pub fn command(&self, name: &'static str, reader: &mut Reader<'_>) -> Option<HookCommand> {
        let entry = *self.entries.get(name)?;
        if !entry.value.get_ref().is_array() {
            return self.get(name, Scalar::Text, reader, value::command);
        }
        let words = strings(name, entry, reader)?;
        value::argv(words).map_err(|words| reader.complain(entry.at, format!("{name} {words}"))).ok()
    }

    /// Applies every key that is an `-o` option too.
    pub fn apply(&self, options: &mut Options, reader: &mut Reader<'_>) {
        for key in self.section.keys().filter(|key| self.has(key.name)) {
            let Some(definition) = key.option() else { continue };
            let form = match definition.kind {
                Kind::Duration(..) => Scalar::Number,
                Kind::Value(syntax, _) if syntax.starts_with("DURATION") => Scalar::Number,
                Kind::Size(..) => Scalar::Integer,
                Kind::Switch(_) | Kind::Flag(_) => Scalar::Switch,
                Kind::Value(..) => Scalar::Text,
            };
            let at = self.at(key.name);
            let Some(text) = self.scalar(key.name, form, reader) else { continue };
            let complaint = if HERE.contains(&key.name) {
                self.apply_here(key.name, &text.text, options, reader).err()
            } else if let Kind::Flag(_) = definition.kind {
                // A flag that is not wanted is one that is not given.
                match value::yes_no(&text.text) {
                    Ok(true) => definition.apply(options, None).err(),
                    Ok(false) => None,
                    Err(words) => Some(format!("{}={} {words}", key.name, text.text)),
                }
            } else {
                definition.apply(options, Some(&text.text)).err()
            };
            if let Some(complaint) = complaint {
                reader.complain(at, text.conceal(complaint));
            }
        }
    }

    /// One of [`HERE`]: read without a look at this machine, which is noted for later.
    fn apply_here(
        &self,
        name: &'static str,
        text: &str,
        options: &mut Options,
        reader: &mut Reader<'_>,
    ) -> Result<(), String> {
        let path = |path: &str| absolute(path).map_err(|words| format!("{name}={text} {words}"));
        match (name, text.strip_prefix("unix:")) {
            ("spool_dir", _) => options.log.spool_dir = Some(path(text)?),
            ("textfile", _) => options.telemetry.textfile = Some(path(text)?),
            (_, Some(socket)) => options.telemetry.listen = Some(crate::config::MetricsListen::Unix(path(socket)?)),
            _ => {
                let listen = value::listen(text).map_err(|words| format!("{name}={text} {words}"))?;
                options.telemetry.listen = Some(listen);
                return Ok(());
            }
        }
        reader.here.push((reader.source.place(self.at(name)), name, text.to_owned()));
        Ok(())
    }
}

/// The strings of an array, or the one string.
pub(super) fn strings(name: &str, entry: Entry<'_>, reader: &mut Reader<'_>) -> Option<Vec<String>> {
    let values = match entry.value.get_ref() {
        DeValue::String(raw) => return Some(vec![reader.expand(name, entry.at, raw)?]),
        DeValue::Array(values) => values,
        other => {
            reader.complain(entry.at, format!("{name} is {}: write {name} = [\"...\"]", a(other)));
            return None;
        }
    };
    let mut good = true;
    let mut strings = Vec::new();
    for value in values {
        match value.get_ref() {
            DeValue::String(raw) => match reader.expand(name, value.span().start, raw) {
                Some(text) => strings.push(text),
                None => good = false,
            },
            other => {
                reader.complain(value.span().start, format!("{name} has {} in it: write strings", a(other)));
                good = false;
            }
        }
    }
    good.then_some(strings)
}

/// The number, however it is written.
pub(super) fn integer(value: &DeValue<'_>) -> Option<i128> {
    let integer = value.as_integer()?;
    i128::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// A path that can stand in a file that is read in any working directory.
pub(super) fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_absolute() {
        return Err("is not an absolute path: begin it with /".into());
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("must not contain ..: write the path out".into());
    }
    Ok(path.components().collect())
}

fn within(text: &str, longest: Duration) -> Result<Duration, String> {
    let parsed = duration::parse(text)?;
    let limit = || format!("is out of range: give 0s to {}", duration::format(longest));
    if parsed <= longest { Ok(parsed) } else { Err(limit()) }
}

/// The type of a value, with its article.
pub(super) fn a(value: &DeValue<'_>) -> String {
    let name = match value {
        DeValue::Datetime(_) => "date",
        other => other.type_str(),
    };
    let article = if name.starts_with(['a', 'i']) { "an" } else { "a" };
    format!("{article} {name}")
}
