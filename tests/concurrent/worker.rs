//! One process: the same calls on its own directory in the overlay and on a plain one, which is the model, and its part in the
//! shared directory. This test binary, started again.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::stat::Mode;
use serde::{Deserialize, Serialize};

use crate::call::{self, Able, Call, SLOTS};
use crate::dice::Dice;
use crate::hand::{Answer, Hand};
use crate::shared::{Shop, Tally};

/// Calls between two comparisons of everything.
const OFTEN: u64 = 97;
/// Calls that a failure shows.
const SHOWN: usize = 60;

/// What it is to do.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    pub me: u64,
    pub seed: u64,
    pub local: bool,
    /// In the overlay and beside it; each has a directory of this process's number.
    pub hot: PathBuf,
    pub plain: PathBuf,
    pub time: Duration,
    /// Where it writes its report.
    pub report: PathBuf,
}

/// What came of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Report {
    pub calls: u64,
    /// Calls that succeeded.
    pub done: u64,
    /// Descriptors of files without a name that went with a daemon.
    pub lost: u64,
    pub tally: Tally,
    pub failure: Option<String>,
}

/// Starts one.
pub fn start(order: &Order) -> Child {
    Command::new(std::env::current_exe().unwrap())
        // The directory selects no test; it marks the process as this laboratory's.
        .args(["worker_process".as_ref(), order.report.as_os_str()])
        .args(["--exact", "--ignored", "--nocapture", "--test-threads=1"])
        .env("CONCURRENT_ORDER", serde_json::to_string(order).unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The hidden test calls this.
pub fn main() {
    let Ok(order) = std::env::var("CONCURRENT_ORDER") else { return };
    let order: Order = serde_json::from_str(&order).unwrap();
    nix::sys::stat::umask(Mode::from_bits_truncate([0o000, 0o022, 0o007][(order.seed % 3) as usize]));
    let mut worker = Worker::new(&order);
    worker.report.failure = worker.work(&order).err();
    let part = order.report.with_extension("part");
    std::fs::write(&part, serde_json::to_vec(&worker.report).unwrap()).unwrap();
    std::fs::rename(part, &order.report).unwrap();
}

struct Worker {
    able: Able,
    dice: Dice,
    plain: Hand,
    hot: Hand,
    last: VecDeque<String>,
    report: Report,
}

impl Worker {
    fn new(order: &Order) -> Worker {
        let at = |root: &Path| root.join(order.me.to_string());
        Worker {
            able: Able { local: order.local, holes: order.seed.is_multiple_of(2), open: 0 },
            dice: Dice(order.seed),
            plain: Hand::new(&at(&order.plain), order.local),
            hot: Hand::new(&at(&order.hot), order.local),
            last: VecDeque::new(),
            report: Report::default(),
        }
    }

    fn work(&mut self, order: &Order) -> Result<(), String> {
        let mut shop = Shop::open(&order.hot.join("shared"), order.me, order.local, order.seed ^ 0x5eed)
            .map_err(|error| format!("the shared directory: {error}"))?;
        for name in ["d", "e", "d/e"] {
            self.step(&Call::MakeDirectory { name, mode: 0o777 })?;
        }
        let until = Instant::now() + order.time;
        while Instant::now() < until {
            self.able.open = self.plain.open_slots();
            let call = call::any(&mut self.dice, self.able);
            self.step(&call)?;
            self.report.calls += 1;
            if self.report.calls.is_multiple_of(OFTEN) {
                self.compare()?;
            }
            if self.dice.below(3) == 0 {
                let result = shop.duty();
                self.report.tally = shop.tally.clone();
                result.map_err(|words| format!("shared: {words}"))?;
            }
        }
        for slot in 0..SLOTS {
            self.step(&Call::Close { slot })?;
        }
        self.compare()?;
        self.report.tally = shop.close().map_err(|words| format!("shared: {words}"))?;
        Ok(())
    }

    fn step(&mut self, call: &Call) -> Result<(), String> {
        if self.plain.says_nothing(call) {
            return Ok(());
        }
        let nameless = slot_of(call).filter(|&slot| self.plain.is_nameless(slot));
        let (wanted, found) = (self.plain.apply(call), self.hot.apply(call));
        if self.last.len() == SHOWN {
            self.last.pop_front();
        }
        self.last.push_back(format!("{} {} {call:?}: {}", clock(), self.report.calls, short(&wanted)));
        if self.agree(&wanted, &found) {
            self.report.done += u64::from(found.is_ok());
            return Ok(());
        }
        if nameless.is_some_and(|slot| self.is_lost(slot, &found)) {
            return Ok(());
        }
        let words = format!("{call:?} gave {}, not {}", short(&found), short(&wanted));
        // Of one that changes nothing it is told whether it is so for good.
        if matches!(call, Call::Stat { .. } | Call::List { .. } | Call::Read { at: Some(_), .. }) {
            std::thread::sleep(Duration::from_secs(1));
            let again = self.hot.apply(call);
            return Err(self.story(&format!("{words}; {} a second later", short(&again))));
        }
        Err(self.story(&words))
    }

    fn agree(&self, wanted: &Answer, found: &Answer) -> bool {
        // SFTP has one error for everything.
        wanted == found || (!self.able.local && wanted.is_err() && found.is_err())
    }

    fn compare(&mut self) -> Result<(), String> {
        for slot in 0..SLOTS {
            let nameless = self.plain.is_nameless(slot);
            let (wanted, found) = (self.plain.descriptor(slot), self.hot.descriptor(slot));
            if wanted != found && !(nameless && self.is_lost(slot, &found)) {
                return Err(self.story(&format!("descriptor {slot}: {} instead of {}", short(&found), short(&wanted))));
            }
        }
        let (wanted, found) = (self.plain.tree()?, self.hot.tree()?);
        let pair = wanted.iter().zip(&found).find(|(wanted, found)| wanted != found);
        match pair {
            Some((wanted, found)) => Err(self.story(&format!("{found} instead of {wanted}"))),
            None if wanted.len() != found.len() => Err(self.story(&format!("{found:#?} instead of {wanted:#?}"))),
            None => Ok(()),
        }
    }

    /// Whether that answer says that a file without a name went with a daemon (docs/semantics.md). It is closed then.
    fn is_lost(&mut self, slot: usize, found: &Answer) -> bool {
        let lost = matches!(found, Err(Errno::EIO | Errno::ESTALE | Errno::ENOENT));
        if lost {
            self.plain.drop_slot(slot);
            self.hot.drop_slot(slot);
            self.report.lost += 1;
        }
        lost
    }

    fn story(&self, words: &str) -> String {
        let calls: Vec<&str> = self.last.iter().map(String::as_str).collect();
        format!("{words}\n{}\n{words}", calls.join("\n"))
    }
}

/// Time of day, as in the daemon's log.
fn clock() -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let seconds = now.as_secs() % 86_400;
    format!("{:02}:{:02}:{:02}.{:03}", seconds / 3600, seconds / 60 % 60, seconds % 60, now.subsec_millis())
}

fn short(answer: &Answer) -> String {
    format!("{answer:?}").chars().take(300).collect()
}

/// The descriptor that a call is on.
fn slot_of(call: &Call) -> Option<usize> {
    use call::At::Slot;
    match call {
        Call::AsNobody(inner) => slot_of(inner),
        Call::Close { slot }
        | Call::Write { slot, .. }
        | Call::Read { slot, .. }
        | Call::Seek { slot, .. }
        | Call::Sync { slot, .. }
        | Call::Allocate { slot, .. }
        | Call::SetLength { at: Slot(slot), .. }
        | Call::SetMode { at: Slot(slot), .. }
        | Call::SetOwner { at: Slot(slot), .. }
        | Call::SetTimes { at: Slot(slot), .. }
        | Call::SetXattr { at: Slot(slot), .. }
        | Call::GetXattr { at: Slot(slot), .. }
        | Call::ListXattr { at: Slot(slot) }
        | Call::RemoveXattr { at: Slot(slot), .. }
        | Call::Stat { at: Slot(slot), .. } => Some(*slot),
        _ => None,
    }
}
