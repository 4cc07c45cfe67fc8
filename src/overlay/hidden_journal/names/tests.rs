//! The list against a model: a tree of directories in which hidden names are made, moved and removed.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn path(text: &str) -> PathBuf {
    text.into()
}

#[test]
fn a_name_is_listed_until_it_is_struck() {
    let mut names = Names::default();
    assert_eq!(names.add(&path("a/h1")), [Change::Add(path("a/h1"))]);
    assert_eq!(names.add(&path("a/h1")), [], "once is enough");
    assert!(names.has("h1".as_ref()) && names.doomed().is_empty());
    names.doom("h1".as_ref());
    assert_eq!(names.doomed(), [path("a/h1")]);
    assert_eq!(names.strike(&path("a/h1")), [Change::Strike(path("a/h1"))]);
    assert_eq!((names.count(), names.has("h1".as_ref())), (0, false));
}

#[test]
fn a_rename_of_a_directory_takes_its_names_along() {
    let mut names = Names::default();
    for at in ["a/b/h1", "a/h2", "ab/h3"] {
        names.add(&path(at));
    }
    let (ticket, changes) = names.begin_move(&path("a"), &path("z"), false);
    assert_eq!(changes, [Change::Add(path("z/b/h1")), Change::Add(path("z/h2"))]);
    let struck = names.end_move(ticket, Outcome::Done);
    assert_eq!(struck, [Change::Strike(path("a/b/h1")), Change::Strike(path("a/h2"))]);
    let (ticket, _) = names.begin_move(&path("z/b"), &path("b"), false);
    assert_eq!(names.end_move(ticket, Outcome::Failed), [Change::Strike(path("b/h1"))]);
    let (ticket, _) = names.begin_move(&path("z/b"), &path("b"), false);
    assert_eq!(names.end_move(ticket, Outcome::Doubt), []);
    names.doom("h1".as_ref());
    assert_eq!(names.doomed(), [path("z/b/h1"), path("b/h1")], "both, for nobody knows");
    assert_eq!(names.removed("h1".as_ref()).len(), 2);
    assert_eq!(names.summary(), [Change::Add(path("z/h2")), Change::Add(path("ab/h3"))]);
}

#[test]
fn an_exchange_moves_both_ways() {
    let mut names = Names::default();
    names.add(&path("a/h1"));
    names.add(&path("b/h2"));
    let (ticket, _) = names.begin_move(&path("a"), &path("b"), true);
    names.end_move(ticket, Outcome::Done);
    assert_eq!(names.summary(), [Change::Add(path("b/h1")), Change::Add(path("a/h2"))]);
    // One that is listed at both ends stays so.
    names.add(&path("a/h1"));
    let (ticket, _) = names.begin_move(&path("a"), &path("b"), true);
    assert_eq!(names.end_move(ticket, Outcome::Done), [Change::Strike(path("a/h2"))]);
}

#[test]
fn a_name_that_is_made_while_its_directory_is_renamed_is_listed_at_both_places() {
    let mut names = Names::default();
    let (ticket, _) = names.begin_move(&path("a"), &path("z"), false);
    assert_eq!(names.add(&path("a/h1")), [Change::Add(path("a/h1")), Change::Add(path("z/h1"))]);
    assert_eq!(names.end_move(ticket, Outcome::Done), []);
    assert_eq!(names.count(), 2);
}

const DIRECTORIES: [&str; 6] = ["a", "b", "a/c", "a/d", "b/c", "b/d"];

proptest! {
    /// Whatever happens, a name that exists is listed where it is, and the written changes say the same as the list.
    #[test]
    fn what_exists_is_listed(
        steps in proptest::collection::vec((0..6_u8, 0..6_usize, 0..6_usize, 0..3_u8, any::<bool>()), 1..40),
    ) {
        let (mut names, mut written) = (Names::default(), Names::default());
        let mut exist: BTreeSet<PathBuf> = BTreeSet::new();
        let mut open: Vec<(Ticket, Outcome)> = Vec::new();
        for (number, (step, one, other, outcome, flag)) in steps.into_iter().enumerate() {
            let (from, to) = (path(DIRECTORIES[one]), path(DIRECTORIES[other]));
            let mut changes = Vec::new();
            match step {
                0 | 1 => {
                    let at = from.join(format!("h{number}"));
                    changes.extend(names.add(&at));
                    exist.insert(at);
                }
                2 => {
                    if let Some(at) = exist.pop_first() {
                        changes.extend(names.removed(at.file_name().expect("it has one")));
                    }
                }
                3 | 4 if !from.starts_with(&to) && !to.starts_with(&from) => {
                    let inside = |at: &PathBuf| at.starts_with(&to) || DIRECTORIES.iter().any(|d| Path::new(d).starts_with(&to) && *d != DIRECTORIES[other]);
                    // A directory that holds something is not replaced.
                    let exchange = flag || exist.iter().any(inside);
                    let (ticket, added) = names.begin_move(&from, &to, exchange);
                    changes.extend(added);
                    let outcome = [Outcome::Done, Outcome::Failed, Outcome::Doubt][outcome as usize];
                    if outcome == Outcome::Done || (outcome == Outcome::Doubt && flag) {
                        let swap = |at: &PathBuf| match (at.strip_prefix(&from), at.strip_prefix(&to)) {
                            (Ok(rest), _) => to.join(rest),
                            (_, Ok(rest)) if exchange => from.join(rest),
                            _ => at.clone(),
                        };
                        exist = exist.iter().map(swap).collect();
                    }
                    // Calls that do not concern it go on meanwhile.
                    open.push((ticket, outcome));
                }
                _ => {}
            }
            if step != 4 || open.len() > 1 {
                for (ticket, outcome) in open.drain(..) {
                    changes.extend(names.end_move(ticket, outcome));
                }
            }
            for change in &changes {
                prop_assert!(written.apply(change), "{:?} says nothing new", change);
            }
            for at in &exist {
                prop_assert!(names.summary().contains(&Change::Add(at.clone())), "{:?} of {:?}", at, names);
            }
            prop_assert_eq!(names.summary(), written.summary());
        }
    }
}
