//! A directory that all processes use at once: what each did is counted, and in the end everything has to add up.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};

use crate::dice::Dice;
use crate::hand::raw;
use crate::sys::{self, Shared, Watch};

const TOKENS: usize = 24;
const TOKEN_DIRECTORIES: u64 = 4;
const CURRENT: u64 = 3;
const COUNTERS: [&str; 3] = ["counter-flock", "counter-posix", "counter-ofd"];
const LOGS: [&str; 2] = ["log-kept", "log-opened"];
/// Directories that are made and removed by all.
const CONTESTED: u64 = 4;
/// Each has a number there that it alone counts up.
const MAP: &str = "map";

/// What a process has done.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
pub struct Tally {
    /// By counter.
    counted: [u64; 3],
    /// By log.
    lines: [u64; 2],
    /// Names that this process alone was to make.
    won: Vec<u64>,
    /// By directory: made less removed.
    made: BTreeMap<u64, i64>,
    mapped: u64,
    /// Files that were renamed over while they were read, and lost with a daemon.
    pub lost: u64,
    pub duties: u64,
}

/// One process's part in it.
pub struct Shop {
    root: PathBuf,
    me: u64,
    local: bool,
    dice: Dice,
    began: Instant,
    counters: Vec<File>,
    log: File,
    map: Shared,
    watch: Watch,
    links: BTreeSet<u64>,
    pub tally: Tally,
}

type Done = Result<(), String>;

fn failed(what: &str) -> impl Fn(io::Error) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// One of these errors is another process's doing.
fn is(error: &io::Error, all: &[Errno]) -> bool {
    error.raw_os_error().is_some_and(|raw| all.contains(&Errno::from_raw(raw)))
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> io::Result<()> {
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, flags)?)
}

/// Makes everything, before anybody comes.
pub fn prepare(root: &Path) {
    fs::create_dir(root).unwrap();
    for name in COUNTERS.iter().chain(&LOGS) {
        File::create_new(root.join(name)).unwrap();
    }
    File::create_new(root.join(MAP)).unwrap().set_len(4096).unwrap();
    fs::write(root.join("linked"), "linked").unwrap();
    for name in ["won", "links", "contested", "watched"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    for number in 0..TOKEN_DIRECTORIES {
        fs::create_dir(root.join(format!("t{number}"))).unwrap();
    }
    for token in 0..TOKENS {
        fs::write(root.join(format!("t0/token-{token}")), token.to_string()).unwrap();
    }
    for number in 0..CURRENT {
        fs::write(root.join(format!("current-{number}")), whole(0, 0, 10)).unwrap();
    }
}

/// A file that says whether it is whole.
fn whole(me: u64, number: u64, length: usize) -> Vec<u8> {
    let data: Vec<u8> = (0..length).map(|at| (at as u64 * 31 + me + number) as u8).collect();
    let mut text = format!("{me} {number} {length} {}\n", crc32fast::hash(&data)).into_bytes();
    text.extend(data);
    text
}

fn is_whole(text: &[u8]) -> bool {
    let Some(end) = text.iter().position(|&byte| byte == b'\n') else { return false };
    let words: Vec<u64> =
        String::from_utf8_lossy(&text[..end]).split(' ').filter_map(|word| word.parse().ok()).collect();
    let [_, _, length, sum] = words[..] else { return false };
    let data = &text[end + 1..];
    data.len() as u64 == length && u64::from(crc32fast::hash(data)) == sum
}

impl Shop {
    pub fn open(root: &Path, me: u64, local: bool, seed: u64) -> io::Result<Shop> {
        let both = |name: &str| OpenOptions::new().read(true).write(true).open(root.join(name));
        let map = both(MAP)?;
        let mask = libc::IN_CREATE | libc::IN_CLOSE_WRITE | libc::IN_MOVE | libc::IN_DELETE;
        Ok(Shop {
            root: root.to_owned(),
            me,
            local,
            dice: Dice(seed),
            began: Instant::now(),
            counters: COUNTERS.iter().map(|name| both(name)).collect::<io::Result<_>>()?,
            log: OpenOptions::new().append(true).open(root.join(LOGS[0]))?,
            map: Shared::new(raw(&map), 0, 4096, true)?,
            watch: Watch::new(&root.join("watched"), mask)?,
            links: BTreeSet::new(),
            tally: Tally::default(),
        })
    }

    fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.root.join(name)
    }

    /// One of the things that are to be done.
    pub fn duty(&mut self) -> Done {
        self.tally.duties += 1;
        match self.dice.below(10) {
            0 => self.count(),
            1 => self.append(),
            2 => self.win(),
            3 => self.replace(),
            4 => self.read_current(),
            5 => self.pass_on(),
            6 => self.link(),
            7 => self.contest(),
            8 => self.watch(),
            _ => self.count_mapped(),
        }
    }

    fn count(&mut self) -> Done {
        let which = self.dice.below(3) as usize;
        let file = &self.counters[which];
        let fd = file.as_fd();
        let locked = match which {
            0 => sys::flock(fd, libc::LOCK_EX),
            1 => sys::lock(fd, libc::F_SETLKW, libc::F_WRLCK),
            _ => sys::lock(fd, libc::F_OFD_SETLKW, libc::F_WRLCK),
        };
        locked.map_err(|error| format!("{}: lock: {error}", COUNTERS[which]))?;
        let count = || {
            let mut text = [b'0'; 20];
            let got = file.read_at(&mut text, 0)?;
            let value: u64 = String::from_utf8_lossy(&text[..got]).parse().unwrap_or(0);
            file.write_all_at(format!("{:020}", value + 1).as_bytes(), 0)
        };
        count().map_err(failed(COUNTERS[which]))?;
        let freed = match which {
            0 => sys::flock(fd, libc::LOCK_UN),
            1 => sys::lock(fd, libc::F_SETLK, libc::F_UNLCK),
            _ => sys::lock(fd, libc::F_OFD_SETLK, libc::F_UNLCK),
        };
        freed.map_err(|error| format!("{}: unlock: {error}", COUNTERS[which]))?;
        self.tally.counted[which] += 1;
        Ok(())
    }

    fn append(&mut self) -> Done {
        let which = self.dice.below(2) as usize;
        let length = if self.dice.below(30) == 0 { self.dice.below(90_000) } else { self.dice.below(2000) };
        let mut line = format!("{} {} {length} ", self.me, self.tally.lines[which]).into_bytes();
        line.extend((0..length).map(|at| b'a' + (at % 26) as u8));
        line.push(b'\n');
        let opened = if which == 1 {
            Some(OpenOptions::new().append(true).open(self.at(LOGS[1])).map_err(failed("the log is opened"))?)
        } else {
            None
        };
        let got = opened.as_ref().unwrap_or(&self.log).write(&line).map_err(failed("append"))?;
        if got != line.len() {
            return Err(format!("{got} of {} bytes appended", line.len()));
        }
        if self.dice.below(8) == 0 {
            self.log.sync_data().map_err(failed("the log is synced"))?;
        }
        if let Some(file) = opened {
            nix::unistd::close(file).map_err(|error| format!("the log is closed: {error}"))?;
        }
        self.tally.lines[which] += 1;
        Ok(())
    }

    /// Of all who try to make a name, one succeeds.
    fn win(&mut self) -> Done {
        let number = (self.began.elapsed().as_millis() / 40) as u64;
        let (place, me) = (self.at(format!("won/{number}")), self.me.to_string());
        let own = self.at(format!("own-{me}"));
        let ways = if self.local { 5 } else { 4 };
        let result = match number % ways {
            0 => OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&place)
                .and_then(|mut file| file.write_all(me.as_bytes())),
            1 => std::os::unix::fs::symlink(&me, &place),
            2 => fs::create_dir(&place),
            3 => {
                fs::write(&own, &me).map_err(failed("a name of one's own"))?;
                let linked = fs::hard_link(&own, &place);
                fs::remove_file(&own).map_err(failed("a name of one's own goes"))?;
                linked
            }
            _ => {
                fs::write(&own, &me).map_err(failed("a name of one's own"))?;
                let renamed = rename(&own, &place, RenameFlags::RENAME_NOREPLACE);
                if renamed.is_err() {
                    fs::remove_file(&own).map_err(failed("a name of one's own goes"))?;
                }
                renamed
            }
        };
        match result {
            Ok(()) => self.tally.won.push(number),
            Err(error) if is(&error, &[Errno::EEXIST]) => {}
            // Over SFTP there is one error for everything.
            Err(_) if !self.local && place.symlink_metadata().is_ok() => {}
            Err(error) => return Err(format!("{} is made: {error}", place.display())),
        }
        Ok(())
    }

    fn replace(&mut self) -> Done {
        let number = self.dice.below(CURRENT);
        let (part, target) = (self.at(format!("part-{}", self.me)), self.at(format!("current-{number}")));
        let length = self.dice.below(60_000) as usize;
        let write = || {
            let mut file = File::create(&part)?;
            file.write_all(&whole(self.me, self.tally.duties, length))?;
            if length.is_multiple_of(3) {
                file.sync_all()?;
            }
            nix::unistd::close(file)?;
            fs::rename(&part, &target)
        };
        write().map_err(failed("a file is replaced"))
    }

    fn read_current(&mut self) -> Done {
        let number = self.dice.below(CURRENT);
        let path = self.at(format!("current-{number}"));
        let mut text = Vec::new();
        let read = |text: &mut Vec<u8>| -> io::Result<u64> {
            let mut file = File::open(&path)?;
            file.read_to_end(text)?;
            Ok(file.metadata()?.size())
        };
        match read(&mut text) {
            Ok(size) if size == text.len() as u64 && is_whole(&text) => {}
            Ok(size) => return Err(format!("{}: {} bytes of {size} are not whole", path.display(), text.len())),
            // What has no name any more goes with the daemon, or with another rename over an SFTP.
            Err(error) if is(&error, &[Errno::EIO, Errno::ESTALE]) => self.tally.lost += 1,
            Err(error) => return Err(format!("{} is read: {error}", path.display())),
        }
        Ok(())
    }

    /// Tokens go from one directory to another, or change places: none is lost, none is there twice.
    fn pass_on(&mut self) -> Done {
        let directory = |dice: &mut Dice| format!("t{}", dice.below(TOKEN_DIRECTORIES));
        let (from, to) = (directory(&mut self.dice), directory(&mut self.dice));
        let mut names = Vec::new();
        for entry in fs::read_dir(self.at(&from)).map_err(failed("tokens are listed"))? {
            names.push(entry.map_err(failed("tokens are listed"))?.file_name());
        }
        if names.iter().collect::<BTreeSet<_>>().len() != names.len() {
            return Err(format!("a token is listed twice: {names:?}"));
        }
        if names.is_empty() {
            return Ok(());
        }
        let name = &names[self.dice.below(names.len() as u64) as usize];
        let (old, new) = (self.at(&from).join(name), self.at(&to).join(name));
        let other = self.at(&to).join(format!("token-{}", self.dice.below(TOKENS as u64)));
        let moved = match self.dice.below(3) {
            _ if from == to => return Ok(()),
            0 if self.local => rename(&old, &other, RenameFlags::RENAME_EXCHANGE),
            1 if self.local => rename(&old, &new, RenameFlags::RENAME_NOREPLACE),
            // Nobody else has a token of that name.
            _ if !self.local => fs::rename(&old, &new),
            _ => rename(&old, &new, RenameFlags::RENAME_NOREPLACE),
        };
        match moved {
            Err(error) if !is(&error, &[Errno::ENOENT]) => Err(format!("{} to {}: {error}", old.display(), to)),
            _ => Ok(()),
        }
    }

    fn link(&mut self) -> Done {
        let linked = self.at("linked");
        if self.links.len() > 4 || (self.dice.below(2) == 0 && !self.links.is_empty()) {
            let number = self.links.pop_first().unwrap();
            return fs::remove_file(self.at(format!("links/{}-{number}", self.me))).map_err(failed("a link goes"));
        }
        let number = self.tally.duties;
        let name = self.at(format!("links/{}-{number}", self.me));
        fs::hard_link(&linked, &name).map_err(failed("a link is made"))?;
        self.links.insert(number);
        let stat = |path: &Path| fs::metadata(path).map_err(failed("a link is looked at"));
        let (one, other) = (stat(&linked)?, stat(&name)?);
        // sshfs counts no links, and steadfs only those whose names the kernel remembers.
        if one.ino() != other.ino() || (self.local && other.nlink() < 1 + self.links.len() as u64) {
            return Err(format!("{} {} of {} links", one.ino(), other.ino(), other.nlink()));
        }
        Ok(())
    }

    fn contest(&mut self) -> Done {
        let number = self.dice.below(CONTESTED);
        let directory = self.at(format!("contested/{number}"));
        let file = directory.join(format!("f{}", self.dice.below(2)));
        let (result, others, change): (_, &[Errno], _) = match self.dice.below(5) {
            0..2 => (fs::create_dir(&directory), &[Errno::EEXIST], 1),
            2 => (fs::remove_dir(&directory), &[Errno::ENOENT, Errno::ENOTEMPTY], -1),
            3 => (File::create(&file).map(drop), &[Errno::ENOENT], 0),
            _ => (fs::remove_file(&file), &[Errno::ENOENT], 0),
        };
        match result {
            Ok(()) => *self.tally.made.entry(number).or_default() += change,
            Err(error) if is(&error, others) => {}
            // What sshfs says of each of these, and of a directory that went between its two looks.
            Err(error) if !self.local && is(&error, &[Errno::EPERM, Errno::ESTALE, Errno::EIO]) => {}
            Err(error) => return Err(format!("{}: {error}", directory.display())),
        }
        Ok(())
    }

    fn watch(&mut self) -> Done {
        let (old, new) = (format!("{}-old", self.me), format!("{}-new", self.me));
        let (from, to) = (self.at("watched").join(&old), self.at("watched").join(&new));
        let act = || {
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&from)?;
            nix::unistd::close(file)?;
            fs::rename(&from, &to)?;
            fs::remove_file(&to)
        };
        self.watch.events();
        act().map_err(failed("what is watched"))?;
        let all = self.watch.events();
        if all.iter().any(|(mask, _)| mask & libc::IN_Q_OVERFLOW != 0) {
            return Ok(());
        }
        let own: Vec<_> = all.into_iter().filter(|(_, name)| *name == old || *name == new).collect();
        let wanted = [
            (libc::IN_CREATE, &old),
            (libc::IN_CLOSE_WRITE, &old),
            (libc::IN_MOVED_FROM, &old),
            (libc::IN_MOVED_TO, &new),
            (libc::IN_DELETE, &new),
        ];
        let same = own.iter().map(|(mask, name)| (*mask, name)).eq(wanted.iter().map(|(mask, name)| (*mask, *name)));
        if same { Ok(()) } else { Err(format!("inotify told {own:x?}")) }
    }

    fn count_mapped(&mut self) -> Done {
        let me = self.me as usize;
        if self.map.number(me) != self.tally.mapped {
            return Err(format!("{} is mapped instead of {}", self.map.number(me), self.tally.mapped));
        }
        self.tally.mapped += 1;
        self.map.set_number(me, self.tally.mapped);
        if self.dice.below(4) == 0 {
            self.map.sync().map_err(|error| format!("msync: {error}"))?;
        }
        Ok(())
    }

    /// The end of it: removes what is this process's own.
    pub fn close(self) -> Result<Tally, String> {
        self.map.sync().map_err(|error| format!("msync: {error}"))?;
        for number in &self.links {
            fs::remove_file(self.at(format!("links/{}-{number}", self.me))).map_err(failed("a link goes"))?;
        }
        for file in self.counters.into_iter().chain([self.log]) {
            nix::unistd::close(file).map_err(|error| format!("close: {error}"))?;
        }
        Ok(self.tally)
    }
}

/// Whether everything adds up, there. `links` are counted where they are shown.
pub fn check(root: &Path, tallies: &[Tally], links: bool) -> Result<(), String> {
    let sum = |of: &dyn Fn(&Tally) -> u64| tallies.iter().map(of).sum::<u64>();
    let mut wrong = Vec::new();
    let mut expect = |what: String, found: String, wanted: String| {
        if found != wanted {
            wrong.push(format!("{what}: {found} instead of {wanted}"));
        }
    };
    let read = |name: &str| fs::read(root.join(name)).map_err(|error| format!("{name}: {error}"));
    for (which, name) in COUNTERS.iter().enumerate() {
        let found: u64 = String::from_utf8_lossy(&read(name)?).parse().unwrap_or(0);
        expect((*name).into(), found.to_string(), sum(&|tally| tally.counted[which]).to_string());
    }
    for (which, name) in LOGS.iter().enumerate() {
        let mut next = vec![0; tallies.len()];
        for line in String::from_utf8_lossy(&read(name)?).lines() {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<usize>().ok()).unwrap_or(usize::MAX);
            let (who, length) = (number(0), words.get(3).map_or(0, |text| text.len()));
            if who >= next.len() || number(1) != next[who] || number(2) != length {
                let shown: String = line.chars().take(60).collect();
                return Err(format!("{name}: a line is {shown:?}, {length} long; lines so far: {next:?}"));
            }
            next[who] += 1;
        }
        let wanted: Vec<_> = tallies.iter().map(|tally| tally.lines[which] as usize).collect();
        expect((*name).into(), format!("{next:?}"), format!("{wanted:?}"));
    }
    let map = read(MAP)?;
    for (me, tally) in tallies.iter().enumerate() {
        let found = u64::from_ne_bytes(map[me * 8..me * 8 + 8].try_into().unwrap());
        expect(format!("the number that {me} has mapped"), found.to_string(), tally.mapped.to_string());
    }
    let names = |place: &str| -> Result<BTreeSet<String>, String> {
        let all = fs::read_dir(root.join(place)).map_err(failed(place))?;
        all.map(|entry| Ok(entry.map_err(failed(place))?.file_name().to_string_lossy().into_owned())).collect()
    };
    let winners: Vec<_> =
        (0_u64..).zip(tallies).flat_map(|(me, tally)| tally.won.iter().map(move |&number| (number, me))).collect();
    let once: BTreeMap<_, _> = winners.iter().copied().collect();
    expect("names that two have made".into(), (winners.len() - once.len()).to_string(), "0".into());
    let made = once.keys().map(ToString::to_string).collect::<BTreeSet<_>>();
    expect("names that somebody has made".into(), format!("{:?}", names("won")?), format!("{made:?}"));
    for (number, me) in once {
        let place = root.join(format!("won/{number}"));
        let kind = place.symlink_metadata().map_err(failed("won"))?;
        let says = match kind {
            kind if kind.is_dir() => continue,
            kind if kind.is_symlink() => fs::read_link(&place).map_err(failed("won"))?.to_string_lossy().into_owned(),
            _ => fs::read_to_string(&place).map_err(failed("won"))?,
        };
        expect(format!("the maker of {number}"), says, me.to_string());
    }
    for number in 0..CURRENT {
        expect(
            format!("current-{number} is whole"),
            is_whole(&read(&format!("current-{number}"))?).to_string(),
            "true".into(),
        );
    }
    let mut tokens = Vec::new();
    for number in 0..TOKEN_DIRECTORIES {
        for name in names(&format!("t{number}"))? {
            tokens.push(
                String::from_utf8_lossy(&read(&format!("t{number}/{name}"))?).parse::<usize>().unwrap_or(usize::MAX),
            );
        }
    }
    tokens.sort_unstable();
    expect("tokens".into(), format!("{tokens:?}"), format!("{:?}", (0..TOKENS).collect::<Vec<_>>()));
    expect("links".into(), format!("{:?}", names("links")?), "{}".into());
    let found = fs::metadata(root.join("linked")).map_err(failed("linked"))?;
    if links {
        expect("the number of links".into(), found.nlink().to_string(), "1".into());
    }
    for number in 0..CONTESTED {
        let made: i64 = tallies.iter().filter_map(|tally| tally.made.get(&number)).sum();
        let there = root.join(format!("contested/{number}")).is_dir();
        expect(format!("contested/{number}"), i64::from(there).to_string(), made.to_string());
    }
    expect("watched".into(), format!("{:?}", names("watched")?), "{}".into());
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
