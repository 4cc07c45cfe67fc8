//! One function for each parser of something from outside. `fuzz/` gives them to libFuzzer, and the tests below give them
//! seeds of `fuzz/corpus`, mutated, for a bounded number of times. None may panic, whatever the bytes.
//!
//! To add one: the function and its line in [`TARGETS`] here, `fuzz/fuzz_targets/NAME.rs`, and a few seeds.

use std::borrow::Cow;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;

use crate::backing::posix::dirents;
use crate::backing::record::Record;
use crate::backing::sshfs::command::Arguments;
use crate::backing::sshfs::failure::{self, Peer};
use crate::backing::sshfs::orphans::Identity;
use crate::backing::sshfs::reach::route;
use crate::backing::sshfs::{stderr, tcp};
use crate::backing::{mountinfo, unmount};
use crate::cli::file;
use crate::cli::options::{self, duration, size, split, value, words};
use crate::cli::source;
use crate::config::{DaemonConfig, PermitConfig, Source};
use crate::daemon::succession;
use crate::handover::item::{Item, ItemError};
use crate::handover::picture::Picture;
use crate::handover::slots::RESENT;
use crate::handover::tape::{self, Scan, TapeError};
use crate::handover::{Memory, Sizes};
use crate::keeper::message::Message;
use crate::overlay::hidden_journal::line;
use crate::spool::header::{self, Header};
use crate::spool::text;
use crate::supervisor::Event;
use crate::supervisor::permit::{self, Permit, Sight};
use crate::supervisor::report::LastRepair;
use crate::telemetry::compat::state::State;
use crate::telemetry::compat::{fold, targets::Target as HotPath};
use crate::telemetry::control::{Reply, Request};
use crate::worker::pause::{self, Paused};

/// What is given arbitrary bytes.
pub type Target = fn(&[u8]);

/// All of them by name.
pub const TARGETS: [(&str, Target); 17] = [
    ("bequest", bequest),
    ("compat", compat),
    ("config", config),
    ("control", control),
    ("dirents", dirents),
    ("handover", handover),
    ("hidden_journal", hidden_journal),
    ("keeper", keeper),
    ("manifest", manifest),
    ("mountinfo", mountinfo),
    ("options", options),
    ("paused", paused),
    ("repairs", repairs),
    ("source", source),
    ("spool", spool),
    ("ssh_output", ssh_output),
    ("tcp", tcp),
];

fn lossy(data: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(data)
}

/// A machine on which everything that a configuration asks for holds these bytes.
struct Everywhere<'a>(&'a [u8]);

impl file::Outside for Everywhere<'_> {
    fn variable(&self, name: &str) -> Option<String> {
        name.starts_with('S').then(|| lossy(self.0).into_owned())
    }

    fn read(&self, _path: &Path, limit: u64) -> std::io::Result<Vec<u8>> {
        Ok(self.0[..self.0.len().min(limit as usize)].to_owned())
    }

    fn user(&self, name: &str) -> Option<u32> {
        Some(name.len() as u32)
    }

    fn group(&self, name: &str) -> Option<u32> {
        Some(name.len() as u32)
    }
}

/// The configuration of `steadfs run`.
pub fn config(data: &[u8]) {
    match file::parse(Path::new("/etc/steadfs/x.toml"), &lossy(data), &Everywhere(data)) {
        Ok(loaded) => assert!(loaded.config.overlays.iter().all(|hot| hot.path.is_relative())),
        Err(mistakes) => assert!(!mistakes.is_empty(), "it is refused without a word"),
    }
}

/// A manifest of hot paths.
pub fn manifest(data: &[u8]) {
    let (lines, _) = file::manifest::parse(data, Path::new("/cold"));
    assert!(lines.iter().all(|line| line.path.is_relative() && line.mountpoint.is_absolute()));
}

/// Requests and replies of the control socket.
pub fn control(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let text = serde_json::to_vec(&request).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Request>(&text).ok(), Some(request));
    }
    let _ = serde_json::from_slice::<Reply>(data);
}

/// What getdents64(2) fills in.
pub fn dirents(data: &[u8]) {
    let mut entries = Vec::new();
    let _ = dirents::parse(data, &mut entries);
    for entry in entries {
        let name = entry.name.as_encoded_bytes();
        assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0) && name != b"." && name != b"..");
    }
}

/// Records of the tape (kind, length, payload), and the picture that a successor makes of them.
pub fn handover(data: &[u8]) {
    let mut scan = Scan::new(data, data.len() as u64 / 2, 0);
    assert!(scan.by_ref().count() <= data.len());
    let records = records(data);
    let picture = Picture::fold(records.iter().map(|&record| Ok::<_, ItemError>(record)));
    // Each by itself too, as a session has to come first.
    let mut loose = Picture::default();
    for (kind, payload) in &records {
        if let Ok(item) = Item::decode(*kind, payload, "fuzz") {
            loose.apply(item);
        }
    }
    for picture in [picture.unwrap_or_default(), loose] {
        // What is written for the next successor is read by it.
        let mut again = Picture::default();
        let done: Result<(), ItemError> = picture.items(|item| {
            item.encode(|kind, parts| Item::decode(kind, &parts.concat(), "fuzz").map(|item| again.apply(item)))?
        });
        assert_eq!(done, Ok(()), "its own records are refused");
        let _ = picture.granted(1);
    }
    on_tape(&records, data);
}

/// Kind, length and payload of each.
fn records(data: &[u8]) -> Vec<(u16, &[u8])> {
    let (mut records, mut rest) = (Vec::new(), data);
    while let [kind, length, tail @ ..] = rest {
        let (payload, tail) = tail.split_at(usize::from(*length).min(tail.len()));
        records.push((u16::from(*kind), payload));
        rest = tail;
    }
    records
}

/// The same on a tape that somebody has altered in one place: it is read as it was, or not at all.
fn on_tape(records: &[(u16, &[u8])], data: &[u8]) {
    let (mut bytes, last) = tape::laid_out(records);
    let read =
        |bytes: &[u8]| Scan::new(bytes, last, 0).map(|r| r.map(|r| (r.kind, r.payload.len()))).collect::<Vec<_>>();
    let whole = read(&bytes);
    assert_eq!(whole.len(), records.len());
    if let (Some(at), [first, .., delta]) = (bytes.len().checked_sub(1), data) {
        let at = (usize::from(*first) * 31) % (at + 1);
        bytes[at] ^= delta | 1;
        for (before, after) in whole.iter().zip(read(&bytes)) {
            assert!(*before == after || matches!(after, Err(TapeError::Damaged { .. })));
        }
    }
}

/// What a successor is left: the session of an overlay, and its memory, of which some words have been altered.
pub fn bequest(data: &[u8]) {
    succession::fuzz(data);
    let Ok(Ok((memory, inherited))) = memory_of(data).map(Memory::take_over) else { return };
    // Whoever has taken it over goes on with it.
    for request in &inherited.requests {
        let entered = memory.requests().enter(request.unique | RESENT, request.opcode, request.node);
        memory.requests().leave(entered);
    }
    memory.requests().forget_leftovers();
    let _ = memory.note(&Item::Aside { key: "key", value: data.into() });
    let _ = (memory.picture(), memory.compact(), memory.attend(), memory.rest(), memory.requests().is_idle());
}

/// A count, so many words (where, 16 bits; what, 64 bits), and then records as [`handover`] has them.
fn memory_of(data: &[u8]) -> std::io::Result<OwnedFd> {
    let memory = Memory::create(Sizes { slots: 4, tape: 1 << 16 }).map_err(std::io::Error::other)?;
    let (count, rest) = data.split_first().map_or((0, data), |(count, rest)| (usize::from(*count), rest));
    let (words, rest) = rest.split_at((count * 10).min(rest.len()));
    for (kind, payload) in records(rest) {
        if let Ok(item) = Item::decode(kind, payload, "fuzz") {
            let _ = memory.note(&item);
        }
    }
    let file = File::from(memory.fd().try_clone_to_owned()?);
    for word in words.chunks_exact(10) {
        let at = u64::from(word[0]) << 8 | u64::from(word[1]);
        // The control words, the slots, the tape.
        let at = [1024 + at / 4 % 320, 4096 + at / 4 % 256, 8192 + at / 4][(at % 4).min(2) as usize];
        file.write_all_at(&word[2..], at & !7)?;
    }
    Ok(file.into())
}

/// The state file of another watchdog.
pub fn compat(data: &[u8]) {
    let mut state = State::parse(data);
    let seen = |state: &State| {
        (state.observations.clone(), state.applies.clone(), state.last_healthy, state.last_skip.clone())
    };
    // Parts of a second, and what belongs to nothing, are not written.
    let again = State::parse(state.text().as_bytes());
    assert_eq!(seen(&State::parse(again.text().as_bytes())), seen(&again), "what is written is read again");
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(1_770_000_000);
    let known: Vec<String> = state.observations.values().map(|observation| observation.path.clone()).collect();
    let targets: Vec<HotPath> = known.into_iter().map(|path| HotPath { path, errno: Some(Errno::EIO) }).collect();
    state.observe(&targets, at);
    let detail = lossy(data).into_owned();
    let began = Event::OutageBegan { since: at, reason: "silence".into(), detail: detail.clone() };
    let failed = Event::StartFailed { generation: 1, detail, halted: false, retry_in_secs: None };
    for event in [began, failed, Event::Recovered { generation: 2, outage_secs: 1.0 }] {
        state.applies.fold(at, &event);
    }
    assert!(state.applies.within(at, fold::DAY) <= state.applies.times.len());
    let _ = state.text();
}

/// The note of who is paused, and the flag file.
pub fn paused(data: &[u8]) {
    let _ = serde_json::from_slice::<Paused>(data);
    let Some(record) = pause::Record::parse(data) else { return };
    let now = Instant::now();
    let times = record.workers.iter().flat_map(|held| [held.timeout, held.steady]).chain([record.hook_timeout]);
    assert!(times.flatten().all(|time| now.checked_add(time).is_some()), "nobody could wait for it");
    let all = record.workers.iter().map(|held| held.found.clone()).reduce(pause::Found::and);
    assert_eq!(all.is_none(), record.workers.is_empty());
    let _ = record.stage_of_pair();
    let text = serde_json::to_vec(&record).unwrap_or_default();
    assert_eq!(pause::Record::parse(&text), Some(record));
}

/// What is known of earlier repairs.
pub fn repairs(data: &[u8]) {
    let Ok(record) = permit::record::Record::parse(data) else { return };
    let (now, wall) = (Instant::now(), SystemTime::UNIX_EPOCH + Duration::from_secs(1_770_000_000));
    let (starts, unfinished) = (record.instants(now, wall), record.unfinished(now, wall));
    assert!(starts.iter().chain(&unfinished).all(|at| *at <= now));
    let last = record.last.as_ref().map(LastRepair::from);
    for at in last.iter().flat_map(|last| [Some(last.started), last.ended]).flatten() {
        let _ = humantime::format_rfc3339_millis(at).to_string();
    }
    let written = permit::record::Record::of(&starts, record.started_total, last.as_ref(), now, wall);
    assert!(permit::record::Record::parse(&serde_json::to_vec(&written).unwrap_or_default()).is_ok());
    let _ = Permit::new(PermitConfig::default(), starts).holds(now, &Sight { outage_since: now, begun: false });
}

/// The journal of hidden names, its checksums made good.
pub fn hidden_journal(data: &[u8]) {
    let _ = line::fold("h:", data);
    let mut journal = String::new();
    for body in lossy(data).lines() {
        journal.push_str(&format!("{:08x} {body}\n", line::checksum("h:", body)));
    }
    let (names, _) = line::fold("h:", journal.as_bytes());
    let summary = line::summary("h:", &names);
    let (again, bad) = line::fold("h:", summary.as_bytes());
    assert_eq!((bad, line::summary("h:", &again)), (0, summary));
}

/// What keeper, daemon and successor tell each other: messages, the configuration, the record of a generation.
pub fn keeper(data: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<Message>(data) {
        let text = serde_json::to_vec(&message).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<Message>(&text).ok(), Some(message));
    }
    let _ = serde_json::from_slice::<DaemonConfig>(data);
    let _ = serde_json::from_slice::<Record>(data);
    if let Some(identity) = Identity::parse(&lossy(data)) {
        assert_eq!(Identity::parse(&identity.text()), Some(identity));
    }
}

/// Mount tables.
pub fn mountinfo(data: &[u8]) {
    let table = mountinfo::parse(data);
    for entry in table.iter().take(16) {
        let _ = mountinfo::covering_in(&table, &entry.mountpoint);
        let _ = mountinfo::at_in(&table, &entry.mountpoint);
        let _ = (entry.is_fuse(), entry.has_option("ro"));
    }
    let _ = mountinfo::covering_in(&table, Path::new("/a/b"));
}

/// `-o`, and each kind of value by itself.
pub fn options(data: &[u8]) {
    let text = lossy(data);
    let parts = split::split(&text);
    let again = split::split(&split::join(parts.iter().map(String::as_str)));
    assert_eq!(again, parts, "what was joined is split as it was");
    if let Ok(options) = options::parse([&*text]) {
        assert!(options.sshfs.iter().all(|option| !option.chars().any(char::is_control)));
        let arguments = Arguments::new("h:", &options.sshfs, options.overlay.attr_timeout);
        // libfuse takes what sshfs is given apart in the same way.
        for option in &arguments.options {
            assert_eq!(split::split(&split::join([option.as_str()])), [option.as_str()]);
        }
        let _ = (arguments.ssh(), arguments.peer(), arguments.ssh_program(), arguments.has_own_transport());
    }
    if let Ok(duration) = duration::parse(&text) {
        assert!(duration::parse(&duration::format(duration)).is_ok());
    }
    if let Ok(bytes) = size::parse(&text) {
        assert_eq!(size::parse(&size::format(bytes)), Ok(bytes));
    }
    let _ = (words::split(&text), value::command(&text), value::fsname(&text), value::subtype(&text));
}

/// `[user@]host:[dir]`: ssh must take the host for nothing else.
pub fn source(data: &[u8]) {
    let Ok(Source::Sshfs { target }) = source::parse(&lossy(data)) else { return };
    assert!(!target.starts_with('-') && !target.chars().any(char::is_control));
    let arguments = Arguments::new(&target, &[], std::time::Duration::ZERO).ssh();
    let login = arguments.last().map(String::as_str).unwrap_or_default();
    let host = login.rsplit_once('@').map_or(login, |(_, host)| host);
    assert!(!host.is_empty() && !login.starts_with('-') && !host.starts_with('-'), "{target}: {login}");
    assert!(
        !host.contains(['`', '$', ';', '|', '&', '<', '>', '(', ')', '\'', '"', '\\', ' ', '/']),
        "{target}: {host}"
    );
}

/// The header of a spool file, its checksum made good, and paths as text.
pub fn spool(data: &[u8]) {
    let path = Path::new("x.spool");
    let _ = Header::decode(data, path);
    let sealed = [data, header::tail(data).as_bytes()].concat();
    if let Ok(header) = Header::decode(&sealed, path) {
        let line = header.encode().unwrap_or_default();
        let again = Header::decode(line.strip_suffix(b"\n").unwrap_or_default(), path);
        assert_eq!(again.ok(), Some(header));
    }
    if let Some(path) = text::decode(&lossy(data)) {
        assert_eq!(text::decode(&text::encode(&path)), Some(path));
    }
}

/// What ssh and sshfs print, a server's words among it, and what `ssh -G` says.
pub fn ssh_output(data: &[u8]) {
    let mut output = Vec::new();
    stderr::lines(data, |line| output.push(line));
    assert!(output.iter().all(|line| !line.chars().any(char::is_control)));
    let _ = failure::last_words(&output);
    let _ = failure::classify(&output, "ended", &Peer::default());
    let _ = route::parse(&lossy(data));
}

/// Tables and answers of the kernel about TCP connections, and of a descriptor.
pub fn tcp(data: &[u8]) {
    let _ = tcp::parse(data);
    for line in lossy(data).lines() {
        let _ = tcp::find_in(line, &["4711".to_owned()]);
    }
    let _ = unmount::mount_id_in(&lossy(data));
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    /// Of each target. `STEADFS_FUZZ_SECONDS` gives each that many seconds instead.
    const RUNS: usize = 3000;
    /// Longest input.
    const LONGEST: usize = 4096;

    /// xorshift64*: the same inputs on each run.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> usize {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize
        }

        fn below(&mut self, limit: usize) -> usize {
            self.next() % limit.max(1)
        }
    }

    fn root() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
    }

    fn seeds(name: &str) -> Vec<Vec<u8>> {
        let place = root().join("corpus").join(name);
        let mut files: Vec<PathBuf> = std::fs::read_dir(&place)
            .expect("each target has seeds")
            .map(|file| file.expect("a file").path())
            .collect();
        files.sort();
        assert!(!files.is_empty(), "{name} has no seeds");
        files.iter().map(|file| std::fs::read(file).expect("read")).collect()
    }

    /// One seed with a few changes: bytes, pieces left out or doubled, pieces of others, numbers at their limits.
    fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
        let mut data = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(6) {
            let at = random.below(data.len() + 1);
            let end = (at + random.below(24)).min(data.len());
            match random.below(7) {
                0 if at < data.len() => data[at] ^= 1 << random.below(8),
                1 if at < data.len() => data[at] = random.below(256) as u8,
                2 => _ = data.drain(at..end),
                3 => {
                    let piece = data[at..end].to_vec();
                    data.splice(at..at, piece);
                }
                4 => {
                    let other = &seeds[random.below(seeds.len())];
                    let from = random.below(other.len() + 1);
                    let piece = other[from..(from + random.below(64)).min(other.len())].to_vec();
                    data.splice(at..at, piece);
                }
                5 => {
                    let numbers: [&[u8]; 8] = [
                        b"18446744073709551615",
                        b"-1",
                        b"0",
                        b"9223372036854775808",
                        b"1e400",
                        b"\\",
                        b"\0",
                        b"\xff\xff\xff\xff",
                    ];
                    data.splice(at..at, numbers[random.below(8)].iter().copied());
                }
                _ => data.truncate(at),
            }
        }
        data.truncate(LONGEST);
        data
    }

    fn run(name: &str) {
        let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("it is a target");
        let seeds = seeds(name);
        seeds.iter().for_each(|seed| target(seed));
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let seconds = std::env::var("STEADFS_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
        let until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        let mut runs = 0_usize;
        while until.map_or(runs < RUNS, |until| !runs.is_multiple_of(64) || Instant::now() < until) {
            let input = mutated(&seeds, &mut random);
            if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
                eprintln!("{name}: {}", input.escape_ascii());
                std::panic::resume_unwind(panic);
            }
            runs += 1;
        }
        println!("{name}: {runs} executions");
    }

    #[test]
    fn no_bequest_panics() {
        run("bequest");
    }

    #[test]
    fn no_state_of_another_watchdog_panics() {
        run("compat");
    }

    #[test]
    fn no_note_of_who_is_paused_panics() {
        run("paused");
    }

    #[test]
    fn no_record_of_repairs_panics() {
        run("repairs");
    }

    #[test]
    fn no_request_on_the_control_socket_panics() {
        run("control");
    }

    #[test]
    fn no_configuration_panics() {
        run("config");
    }

    #[test]
    fn no_manifest_panics() {
        run("manifest");
    }

    #[test]
    fn no_directory_of_the_kernel_panics() {
        run("dirents");
    }

    #[test]
    fn no_memory_of_a_predecessor_panics() {
        run("handover");
    }

    #[test]
    fn no_journal_of_hidden_names_panics() {
        run("hidden_journal");
    }

    #[test]
    fn no_message_of_a_keeper_panics() {
        run("keeper");
    }

    #[test]
    fn no_mount_table_panics() {
        run("mountinfo");
    }

    #[test]
    fn no_option_panics() {
        run("options");
    }

    #[test]
    fn no_source_panics_or_becomes_an_option() {
        run("source");
    }

    #[test]
    fn no_spool_file_panics() {
        run("spool");
    }

    #[test]
    fn no_word_of_a_server_panics() {
        run("ssh_output");
    }

    #[test]
    fn no_table_of_connections_panics() {
        run("tcp");
    }

    #[test]
    fn every_target_is_run_here_and_by_libfuzzer() {
        let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("fuzz/Cargo.toml");
        for (name, _) in TARGETS {
            assert!(include_str!("fuzz.rs").contains(&format!("run(\"{name}\")")), "{name} is not run here");
            assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
            let text = std::fs::read_to_string(root().join("fuzz_targets").join(format!("{name}.rs")));
            assert!(text.expect(name).contains(&format!("steadfs::fuzz::{name}(data)")), "{name}");
        }
    }
}
