//! `[defaults]`, `[[overlay]]` and the lines of the manifest.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use super::manifest;
use super::mistake::Place;
use super::outside::{Outside, words};
use super::overlap;
use super::reader::{Reader, Scalar, Table};
use crate::cli::options::{Options, known, table};
use crate::config::{HotPath, Source, StatfsFrom};

/// Longest manifest that is read.
const MANIFEST_SIZE: u64 = 4 << 20;

/// Most overlays that are taken: many times what one connection can serve well.
const MOST: usize = 1000;

/// All overlays.
#[derive(Default)]
pub(super) struct Overlays {
    pub hot: Vec<HotPath>,
    pub nonempty: BTreeSet<PathBuf>,
    pub places: BTreeMap<PathBuf, Place>,
    /// Of each, in their order.
    whence: Vec<Place>,
}

/// How an overlay looks, by its section and by what holds without it.
pub(super) fn look(table: &Table<'_>, defaults: &Options, reader: &mut Reader<'_>) -> Options {
    let mut options = defaults.clone();
    table.apply(&mut options, reader);
    for (name, sentence) in table::contradictions(&mut options) {
        // One of the defaults was complained of there.
        if table.has(name) {
            reader.complain(table.at(name), sentence);
        }
    }
    let overlay = &mut options.overlay;
    if let Some(on) = table.switch("read_only", reader) {
        overlay.read_only = on;
    }
    if let Some(on) = table.switch("allow_other", reader) {
        overlay.allow_other = on;
    }
    if let Some(on) = table.switch("nonempty", reader) {
        options.nonempty = on;
    }
    let outside = reader.outside;
    if let Some(owner) = table.get("owner", Scalar::Text, reader, |text| owner(text, outside)) {
        overlay.owner = Some(owner);
    }
    if let Some(umask) = table.get("umask", Scalar::Text, reader, umask) {
        overlay.umask = Some(umask);
    }
    if let Some(statfs) = table.get("statfs", Scalar::Text, reader, statfs) {
        overlay.statfs = statfs;
    }
    if let Some(flags) = table.strings("flags", reader) {
        for flag in &flags {
            if let Some(complaint) = flag_complaint(flag, &flags) {
                reader.complain(table.at("flags"), complaint);
            }
        }
        overlay.mount_flags = flags;
    }
    options
}

fn flag_complaint(flag: &str, all: &[String]) -> Option<String> {
    if !known::FLAGS.contains(&flag) {
        let near = crate::cli::options::nearest(flag, known::FLAGS).map(|near| format!("did you mean '{near}'? "));
        let allowed = known::FLAGS.join(", ");
        return Some(format!("flags has '{flag}', no mount flag: {}allowed are {allowed}", near.unwrap_or_default()));
    }
    let opposite = format!("no{flag}");
    all.contains(&opposite).then(|| format!("flags has '{flag}' and '{opposite}': remove one"))
}

/// `UID:GID`, or names of this machine.
/// `UID:GID`, or names that this machine knows.
pub(in crate::cli) fn owner(text: &str, outside: &dyn Outside) -> Result<(u32, u32), String> {
    let (user, group) = text.split_once(':').ok_or("is not an owner: write USER:GROUP, names or numbers")?;
    let id = |text: &str, find: &dyn Fn(&str) -> Option<u32>| text.parse().ok().or_else(|| find(text));
    let user = id(user, &|name| outside.user(name)).ok_or_else(|| format!("names no user '{user}' of this machine"))?;
    let group =
        id(group, &|name| outside.group(name)).ok_or_else(|| format!("names no group '{group}' of this machine"))?;
    // chown(2) takes it for "as it is".
    if user == u32::MAX || group == u32::MAX {
        return Err("is not an owner: ids end at 4294967294".into());
    }
    Ok((user, group))
}

/// An octal umask.
pub(in crate::cli) fn umask(text: &str) -> Result<u32, String> {
    let octal =
        text.bytes().all(|byte| (b'0'..=b'7').contains(&byte)).then(|| u32::from_str_radix(text, 8).ok()).flatten();
    octal
        .filter(|mask| *mask <= 0o777)
        .ok_or_else(|| "is not a umask: write \"0000\" to \"0777\", such as \"0027\"".into())
}

/// `backing` or `local`.
pub(in crate::cli) fn statfs(text: &str) -> Result<StatfsFrom, String> {
    match text {
        "backing" => Ok(StatfsFrom::Backing),
        "local" => Ok(StatfsFrom::Local),
        _ => Err("is neither backing nor local: write one of them".into()),
    }
}

/// Directory on the store, relative to the source.
fn below(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if path.is_absolute() {
        let relative = text.trim_start_matches('/');
        return Err(format!("is absolute: it is looked for below the source's directory: write '{relative}'"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err("must not contain ..: it lies below the source's directory".into());
    }
    Ok(path.components().filter(|part| *part != Component::CurDir).collect())
}

fn mountpoint(text: &str) -> Result<PathBuf, String> {
    let path = super::reader::absolute(text)?;
    if path == Path::new("/") { Err("is the root directory: give another".into()) } else { Ok(path) }
}

impl Overlays {
    /// One `[[overlay]]`.
    pub fn add(&mut self, table: &Table<'_>, defaults: &Options, reader: &mut Reader<'_>) {
        table.require("mountpoint", reader);
        let look = look(table, defaults, reader);
        let path =
            if table.has("path") { table.get("path", Scalar::Text, reader, below) } else { Some(PathBuf::new()) };
        let mountpoint = table.get("mountpoint", Scalar::Text, reader, mountpoint);
        if let (Some(path), Some(mountpoint)) = (path, mountpoint) {
            let place = reader.source.place(table.at("mountpoint"));
            self.push(HotPath { mountpoint, path, slot: 0, overlay: look.overlay }, look.nonempty, place);
        }
    }

    /// All lines of a manifest, which is named at `at`.
    pub fn add_manifest(&mut self, at: usize, file: &Path, root: &Path, defaults: &Options, reader: &mut Reader<'_>) {
        let bytes = match reader.outside.read(file, MANIFEST_SIZE) {
            Ok(bytes) => bytes,
            Err(error) => {
                let text = format!("manifest={} cannot be read: {}", file.display(), words(&error));
                return reader.complain(at, format!("{text}: make it, or remove the key"));
            }
        };
        let place = |line, column| Place { file: file.to_owned(), line, column };
        let (lines, wrong) = manifest::parse(&bytes, root);
        for (line, column, text) in wrong {
            reader.complain_of(place(line, column), text);
        }
        for line in lines {
            let overlay = defaults.overlay.clone();
            if line.mountpoint == Path::new("/") {
                reader.complain_of(place(line.number, line.column), "the hot path is the root directory: give another");
                continue;
            }
            let hot = HotPath { mountpoint: line.mountpoint, path: line.path, slot: 0, overlay };
            self.push(hot, defaults.nonempty, place(line.number, line.column));
        }
    }

    fn push(&mut self, hot: HotPath, nonempty: bool, place: Place) {
        if nonempty {
            self.nonempty.insert(hot.mountpoint.clone());
        }
        self.places.entry(hot.mountpoint.clone()).or_insert_with(|| place.clone());
        self.whence.push(place);
        self.hot.push(hot);
    }

    /// Complains of what cannot be together.
    pub fn check(&self, source: Option<&Source>, reader: &mut Reader<'_>) {
        if let Some(place) = self.whence.get(MOST) {
            return reader
                .complain_of(place.clone(), format!("more than {MOST} overlays: spread them over several daemons"));
        }
        for (later, earlier, sentence) in overlap::between(&self.hot) {
            let text = format!("{sentence} (the other is at {})", self.whence[earlier]);
            reader.complain_of(self.whence[later].clone(), text);
        }
        for (hot, place) in self.hot.iter().zip(&self.whence) {
            if let Some(sentence) = source.and_then(|source| overlap::with_source(hot, source)) {
                reader.complain_of(place.clone(), sentence);
            }
        }
    }
}
