//! What is to be done at some time, and waiting for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// What is due when: a list without a clock. What nobody else keeps any more is not due.
#[derive(Debug)]
struct List<T> {
    entries: BTreeMap<(Instant, u64), Weak<T>>,
    added: u64,
    over: bool,
}

impl<T> List<T> {
    /// True if nothing that was there before is due sooner.
    fn add(&mut self, at: Instant, what: Weak<T>) -> bool {
        self.added += 1;
        let first = self.next_at().is_none_or(|next| at < next);
        self.entries.insert((at, self.added), what);
        first
    }

    fn next_at(&self) -> Option<Instant> {
        self.entries.first_key_value().map(|((at, _), _)| *at)
    }

    fn take(&mut self, now: Instant) -> Option<Arc<T>> {
        while self.next_at().is_some_and(|at| at <= now) {
            let what = self.entries.pop_first().and_then(|(_, what)| what.upgrade());
            if what.is_some() {
                return what;
            }
        }
        None
    }
}

/// A list that one thread waits for.
#[derive(Debug)]
pub struct Dues<T> {
    list: Mutex<List<T>>,
    changed: Condvar,
}

impl<T> Default for Dues<T> {
    fn default() -> Dues<T> {
        let list = List { entries: BTreeMap::new(), added: 0, over: false };
        Dues { list: Mutex::new(list), changed: Condvar::new() }
    }
}

impl<T> Dues<T> {
    /// That is due then.
    pub fn add(&self, at: Instant, what: &Arc<T>) {
        if self.list.lock().add(at, Arc::downgrade(what)) {
            self.changed.notify_one();
        }
    }

    /// Waits for what is due next; `None` when it is over. Sleeps while nothing is to come.
    pub fn next(&self) -> Option<Arc<T>> {
        let mut list = self.list.lock();
        while !list.over {
            if let Some(what) = list.take(Instant::now()) {
                return Some(what);
            }
            match list.next_at() {
                Some(at) => drop(self.changed.wait_until(&mut list, at)),
                None => self.changed.wait(&mut list),
            }
        }
        None
    }

    /// Nobody is to wait any more.
    pub fn end(&self) {
        self.list.lock().over = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_is_due_comes_in_the_order_of_its_time() {
        let (now, step) = (Instant::now(), Duration::from_secs(1));
        let mut list = List { entries: BTreeMap::new(), added: 0, over: false };
        let things: Vec<_> = (0..4).map(Arc::new).collect();
        assert!(list.add(now + step, Arc::downgrade(&things[0])));
        assert!(!list.add(now + step * 2, Arc::downgrade(&things[1])));
        assert!(!list.add(now + step, Arc::downgrade(&things[2])), "the one before it wakes in time");
        assert!(list.add(now, Arc::downgrade(&things[3])));
        list.add(now, Arc::downgrade(&Arc::new(4)));
        assert_eq!((list.take(now).as_deref(), list.take(now).as_deref()), (Some(&3), None), "4 has gone");
        let later = now + step * 3;
        assert_eq!((0..4).filter_map(|_| list.take(later).as_deref().copied()).collect::<Vec<_>>(), [0, 2, 1]);
        assert_eq!(list.next_at(), None);
    }

    #[test]
    fn whoever_waits_is_told_what_is_due_and_when_it_is_over() {
        let (dues, thing) = (Dues::default(), Arc::new("thing"));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| (dues.next(), dues.next()));
            dues.add(Instant::now() + Duration::from_millis(5), &thing);
            while Arc::strong_count(&thing) == 1 {
                std::thread::yield_now();
            }
            dues.end();
            let (one, none) = waiting.join().expect("no panic");
            assert_eq!((one.as_deref(), none), (Some(&"thing"), None));
        });
    }
}
