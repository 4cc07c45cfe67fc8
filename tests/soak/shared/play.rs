//! One run: a program on a mounted overlay and on the model, step by step, and what must be so in the end.

use nix::errno::Errno;

use super::model::Model;
use super::outcome::{Look, Outcome, Seen, Tree, Value};
use super::program::{Op, Program, SLOTS};

/// Looking around may take longer than a short deadline on a loaded machine.
const TRIES: usize = 40;

/// Whoever does the operations on the directory under test.
pub trait User {
    /// Does one.
    fn apply(&mut self, op: &Op) -> Outcome;
    /// Where a write(2) would go.
    fn offset(&mut self, slot: usize) -> Option<usize>;
    /// Looks at everything, and at the content of what is open through new descriptors.
    fn look(&mut self) -> Result<Look, Errno>;
}

/// Where a run takes place: an overlay, its backing, and the hand that lets it come to harm.
pub trait Scene {
    type Mishap;

    /// Lets something go wrong.
    fn mishap(&self, mishap: &Self::Mishap);
    /// Makes everything well and waits until nothing is under way; false if that does not come about.
    fn settle(&self) -> bool;
    /// With nothing open any more, waits until everything is committed; the error says what is left.
    fn finish(&self) -> Result<(), String>;
    /// Files that the overlay has given up.
    fn given_up(&self) -> Option<String>;
    /// What a server that crashes now would have of a file.
    fn on_disk(&self, name: &str) -> std::io::Result<Vec<u8>>;
    /// What the server has.
    fn stored(&self) -> Result<Tree, Errno>;
    /// Errors lose their number on the way.
    fn blurs_errors(&self) -> bool;
}

struct Run<'a, S: Scene, U> {
    scene: &'a S,
    program: &'a Program<S::Mishap>,
    user: U,
    model: Model,
    /// A local directory has had files without a name.
    orphans: bool,
}

/// Runs a program; what the store holds in the end. The error says what went wrong, and how far the program had come.
pub fn play<S: Scene, U: User>(program: &Program<S::Mishap>, scene: &S, user: U) -> Result<Tree, String> {
    Run { scene, program, user, model: Model::new(), orphans: false }.all()
}

/// Errors of an outage.
fn is_outage(outcome: &Outcome) -> bool {
    matches!(outcome, Err(Errno::ENOTCONN | Errno::ETIMEDOUT | Errno::EIO))
}

impl<S: Scene, U: User> Run<'_, S, U> {
    fn all(&mut self) -> Result<Tree, String> {
        for (number, step) in self.program.steps.iter().enumerate() {
            if let Some(mishap) = &step.mishap {
                self.scene.mishap(mishap);
            }
            let at = |words: String| format!("step {number}, {:?}: {words}", step.op);
            match &step.op {
                Op::Open { slot, .. } if self.model.how(*slot).is_some() => {
                    self.step(&Op::Close { slot: *slot }).map_err(|words| at(format!("closing: {words}")))?;
                    self.step(&step.op).map_err(at)?;
                }
                op => self.step(op).map_err(at)?,
            }
        }
        self.end().map_err(|words| format!("at the end: {words}"))
    }

    fn step(&mut self, op: &Op) -> Result<(), String> {
        let before = self.model.clone();
        let name = if let Op::Close { slot } = op { self.model.name_of(*slot) } else { None };
        let (expected, found) = (self.model.apply(op), self.user.apply(op));
        self.orphans |= !self.program.like_sshfs && (0..SLOTS).any(|slot| self.model.is_orphan(slot));
        if self.agree(&expected, &found) {
            return match op {
                Op::Sync { slot, .. } if before.how(*slot).is_some() => {
                    self.on_disk(&before, *slot, before.name_of(*slot))
                }
                Op::Close { slot } if before.how(*slot).is_some_and(|how| how.write) => {
                    self.on_disk(&before, *slot, name)
                }
                _ => Ok(()),
            };
        }
        if self.lost_orphan(&before, op, &found) {
            return Ok(());
        }
        if self.program.long && is_outage(&found) {
            return self.either(before, op).map_err(|words| format!("{found:?}: {words}"));
        }
        Err(format!("gave {found:?}, not {expected:?}"))
    }

    fn agree(&self, expected: &Outcome, found: &Outcome) -> bool {
        let plain = |outcome: &Outcome| match outcome {
            // A hidden name is a link.
            Ok(Value::Seen(seen)) if self.program.like_sshfs => Ok(Value::Seen(Seen { links: 0, ..*seen })),
            other => other.clone(),
        };
        let blurred = self.scene.blurs_errors() && expected.is_err();
        plain(expected) == plain(found) || (blurred && found.is_err() && !is_outage(found))
    }

    /// A local directory keeps what has no name for a descriptor; a generation that dies takes that along.
    fn lost_orphan(&mut self, before: &Model, op: &Op, found: &Outcome) -> bool {
        let slot = match op {
            Op::Close { slot } | Op::Write { slot, .. } | Op::WriteAt { slot, .. } | Op::Read { slot, .. } => *slot,
            Op::ReadAt { slot, .. } | Op::Sync { slot, .. } | Op::SetLength { slot, .. } | Op::StatOpen { slot } => {
                *slot
            }
            _ => return false,
        };
        let lost =
            !self.program.like_sshfs && before.is_orphan(slot) && matches!(found, Err(Errno::EIO | Errno::ESTALE));
        if lost {
            let _ = self.user.apply(&Op::Close { slot });
            self.model = before.clone();
            self.model.drop_slot(slot);
        }
        lost
    }

    /// Success of a sync or a close says that the disk has it.
    fn on_disk(&self, before: &Model, slot: usize, name: Option<String>) -> Result<(), String> {
        let (Some(name), Some(wanted)) = (name, before.content(slot)) else { return Ok(()) };
        let found = self.scene.on_disk(&name).map_err(|error| format!("{name} is not on the disk: {error}"))?;
        differ(wanted, &found).map_or(Ok(()), |words| Err(format!("{name} on the disk: {words}")))
    }

    /// A call failed in an outage: it was done or not, but everything before it was.
    fn either(&mut self, before: Model, op: &Op) -> Result<(), String> {
        if !self.scene.settle() {
            return Err("something goes on for ever".into());
        }
        let mut done = before.clone();
        let _ = done.apply(op);
        let found = self.look()?;
        let mut candidates = vec![before.clone()];
        match op {
            Op::Open { name, how, .. } => {
                // Made, and perhaps not cut yet.
                let mut made = before.clone();
                let how = super::program::How { truncate: false, ..*how };
                let _ = made.apply(&Op::Open { slot: 0, name, how });
                candidates.push(made);
            }
            Op::Write { slot, length, .. } | Op::WriteAt { slot, length, .. } => {
                // Any part of it, and where the file had no bytes before, zeros: what is there now, if nothing else is.
                let at = if let Op::WriteAt { offset, .. } = op { Some(*offset) } else { None };
                let place = before.name_of(*slot).and_then(|name| found.tree.iter().find(|(at, ..)| *at == name));
                let now = place.map(|(.., content)| content.clone()).or_else(|| found.open[*slot].clone());
                let some = now.and_then(|now| before.with_part_of(*slot, at, *length, now));
                candidates.extend(some);
            }
            _ => {}
        }
        candidates.push(done);
        let Some(mut truth) = candidates.into_iter().rev().find(|candidate| self.shows(candidate, &found).is_none())
        else {
            let words = self.shows(&before, &found).unwrap_or_default();
            return Err(format!("neither done nor not done: {words}"));
        };
        truth.descriptors_of(&before);
        match op {
            Op::Close { slot } => truth.drop_slot(*slot),
            Op::Write { slot, .. } => {
                if let Some(offset) = self.user.offset(*slot) {
                    truth.place_at(*slot, offset);
                }
            }
            _ => {}
        }
        self.model = truth;
        // Nobody was promised that it stays.
        if let Op::Write { slot, .. } | Op::WriteAt { slot, .. } | Op::SetLength { slot, .. } = op {
            let _ = self.user.apply(&Op::Sync { slot: *slot, data_only: false });
        }
        Ok(())
    }

    fn look(&mut self) -> Result<Look, String> {
        let mut words = String::new();
        for _ in 0..TRIES {
            match self.user.look() {
                Ok(look) => return Ok(look),
                Err(error) => words = error.to_string(),
            }
            if !self.scene.settle() {
                break;
            }
        }
        Err(format!("nothing can be seen: {words}"))
    }

    fn shows(&self, model: &Model, look: &Look) -> Option<String> {
        let different = trees_differ(&model.tree(), &look.tree, !self.program.like_sshfs);
        different.or_else(|| {
            (0..SLOTS).zip(&look.open).find_map(|(slot, found)| {
                let words = differ(model.content(slot)?, found.as_ref()?)?;
                Some(format!("descriptor {slot}: {words}"))
            })
        })
    }

    fn end(&mut self) -> Result<Tree, String> {
        if !self.scene.settle() {
            return Err("something goes on for ever".into());
        }
        let found = self.look()?;
        if let Some(words) = self.shows(&self.model, &found) {
            return Err(format!("while it is open: {words}"));
        }
        for slot in 0..SLOTS {
            self.step(&Op::Close { slot }).map_err(|words| format!("closing {slot}: {words}"))?;
        }
        if !self.scene.settle() {
            return Err("something goes on for ever after the last close".into());
        }
        self.scene.finish().map_err(|words| format!("not everything is closed and committed: {words}"))?;
        if let Some(words) = self.scene.given_up().filter(|_| !self.orphans) {
            return Err(format!("something was given up: {words}"));
        }
        let stored = self.scene.stored().map_err(|error| format!("the store: {error}"))?;
        match trees_differ(&self.model.tree(), &stored, true) {
            Some(words) => Err(format!("the store: {words}")),
            None => Ok(stored),
        }
    }
}

/// The first difference; numbers of links count or not.
pub fn trees_differ(wanted: &Tree, found: &Tree, links: bool) -> Option<String> {
    let names = |tree: &Tree| tree.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>();
    if names(wanted) != names(found) {
        return Some(format!("there is {:?}, not {:?}", names(found), names(wanted)));
    }
    wanted.iter().zip(found).find_map(|((name, wanted, content), (_, found, data))| {
        let plain = |seen: &Seen| if links { *seen } else { Seen { links: 0, ..*seen } };
        if let Some(words) = differ(content, data) {
            return Some(format!("{name}: {words}"));
        }
        (plain(wanted) != plain(found)).then(|| format!("{name} is {found:?}, not {wanted:?}"))
    })
}

fn differ(wanted: &[u8], found: &[u8]) -> Option<String> {
    if wanted == found {
        return None;
    }
    let same = wanted.iter().zip(found).take_while(|(wanted, found)| wanted == found).count();
    let (wrong, right) = (found.get(same), wanted.get(same));
    Some(format!("{} bytes, not {}; at {same} it is {wrong:?}, not {right:?}", found.len(), wanted.len()))
}
