//! What an ordered sequence of writes and truncations of one file comes to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Adjacent ranges are merged until they have this size: small appends cost no entry each, large writes no copy.
const MERGED: usize = 128 << 10;
/// What an entry costs besides its bytes, roughly.
const ENTRY: u64 = 96;

/// One change of a file.
#[derive(Debug)]
pub enum Change<'a> {
    /// That data at that offset. It is taken out, not copied.
    Write(u64, &'a mut Vec<u8>),
    /// ftruncate(2) to that size.
    SetSize(u64),
}

/// See the module. Applying it to a file that has seen any part of the sequence, in order, gives the file that has seen
/// all of it, as often as one likes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Changes {
    /// The smallest size the file was cut to.
    cut: Option<u64>,
    /// The size in the end, if a truncation has made it known.
    size: Option<u64>,
    /// The largest size the file had on the way.
    highest: u64,
    /// Data by offset; ranges do not overlap.
    #[serde(with = "super::bytes::by_offset")]
    extents: BTreeMap<u64, Vec<u8>>,
    bytes: u64,
}

impl Changes {
    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.cut.is_none() && self.extents.is_empty()
    }

    /// What keeping them costs, in bytes of memory.
    pub fn cost(&self) -> u64 {
        self.bytes + self.extents.len() as u64 * ENTRY
    }

    /// Bytes of data.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The size that the file is to be cut to before anything is written.
    pub fn cut(&self) -> Option<u64> {
        self.cut
    }

    /// The size in the end, if it does not depend on what the file was before.
    pub fn size(&self) -> Option<u64> {
        self.size
    }

    /// Data by offset, ascending and disjoint.
    pub fn extents(&self) -> impl DoubleEndedIterator<Item = (u64, &[u8])> {
        self.extents.iter().map(|(&offset, data)| (offset, data.as_slice()))
    }

    /// The same, given away.
    pub fn into_extents(self) -> impl Iterator<Item = (u64, Vec<u8>)> {
        self.extents.into_iter()
    }

    /// A copy of the data from one offset to another; what is not in here is left out.
    pub fn copy(&self, from: u64, to: u64) -> Vec<u8> {
        let first = self.extents.range(..=from).next_back().map_or(from, |(&offset, _)| offset);
        let mut data = Vec::new();
        for (&offset, part) in self.extents.range(first..to.max(first)) {
            // Lengths of vectors fit.
            let start = (from.saturating_sub(offset) as usize).min(part.len());
            let end = part.len().min((to - offset) as usize);
            data.extend_from_slice(&part[start..end.max(start)]);
        }
        data
    }

    /// The size in the end of a file that had that size before.
    pub fn size_after(&self, before: u64) -> u64 {
        let furthest = self.extents.last_key_value().map_or(0, |(offset, data)| offset + data.len() as u64);
        self.size.unwrap_or(before.max(furthest))
    }

    /// Smallest and largest size of a file that had that size before and has seen some of the sequence.
    pub fn sizes_on_the_way(&self, before: u64) -> (u64, u64) {
        (self.cut.map_or(before, |cut| cut.min(before)), self.highest.max(before))
    }

    /// True if a range may hold other data than before.
    pub fn touch(&self, offset: u64, length: u64) -> bool {
        let end = offset + length;
        self.cut.is_some_and(|cut| cut < end)
            || self.extents.range(..end).next_back().is_some_and(|(&start, data)| start + data.len() as u64 > offset)
    }

    /// Adds a change.
    pub fn push(&mut self, change: Change<'_>) {
        match change {
            Change::Write(offset, data) => self.write(offset, std::mem::take(data)),
            Change::SetSize(size) => {
                self.clear(size, u64::MAX);
                self.cut = Some(self.cut.map_or(size, |cut| cut.min(size)));
                self.size = Some(size);
                self.highest = self.highest.max(size);
            }
        }
    }

    /// Adds what happened later.
    pub fn extend(&mut self, later: Changes) {
        if let Some(cut) = later.cut {
            self.push(Change::SetSize(cut));
        }
        for (offset, data) in later.extents {
            self.write(offset, data);
        }
        self.size = later.size.or(self.size);
        self.highest = self.highest.max(later.highest);
    }

    fn write(&mut self, offset: u64, data: Vec<u8>) {
        if data.is_empty() {
            return;
        }
        let end = offset + data.len() as u64;
        self.clear(offset, end);
        self.bytes += data.len() as u64;
        self.size = self.size.map(|size| size.max(end));
        self.highest = self.highest.max(end);
        if let Some((&start, before)) = self.extents.range_mut(..offset).next_back()
            && start + before.len() as u64 == offset
            && before.len() + data.len() <= MERGED
        {
            before.extend_from_slice(&data);
            return;
        }
        self.extents.insert(offset, data);
    }

    /// Forgets the data from an offset on.
    pub fn forget_from(&mut self, offset: u64) {
        self.clear(offset, u64::MAX);
    }

    /// Forgets the data of a range.
    fn clear(&mut self, start: u64, end: u64) {
        if let Some((&offset, data)) = self.extents.range_mut(..start).next_back() {
            let until = offset + data.len() as u64;
            if until > start {
                // Lengths of vectors fit.
                let tail = (until > end).then(|| data.split_off((end - offset) as usize));
                self.bytes -= data.len() as u64 - (start - offset);
                data.truncate((start - offset) as usize);
                if let Some(tail) = tail {
                    self.extents.insert(end, tail);
                }
            }
        }
        while let Some((&offset, _)) = self.extents.range(start..end).next() {
            let Some(mut data) = self.extents.remove(&offset) else { break };
            if offset + data.len() as u64 > end {
                let tail = data.split_off((end - offset) as usize);
                self.extents.insert(end, tail);
            }
            self.bytes -= data.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The same as a plain file.
    fn apply(file: &mut Vec<u8>, changes: &Changes) {
        if let Some(cut) = changes.cut() {
            file.resize(cut as usize, 0);
        }
        for (offset, data) in changes.extents() {
            let end = offset as usize + data.len();
            file.resize(file.len().max(end), 0);
            file[offset as usize..end].copy_from_slice(data);
        }
        if let Some(size) = changes.size() {
            file.resize(size as usize, 0);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Write(u64, Vec<u8>),
        SetSize(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u64..64, proptest::collection::vec(any::<u8>(), 1..24)).prop_map(|(at, data)| Step::Write(at, data)),
            1 => (0_u64..64).prop_map(Step::SetSize),
        ]
    }

    fn push(changes: &mut Changes, step: &Step) {
        match step {
            Step::Write(offset, data) => changes.push(Change::Write(*offset, &mut data.clone())),
            Step::SetSize(size) => changes.push(Change::SetSize(*size)),
        }
    }

    fn do_step(file: &mut Vec<u8>, step: &Step) {
        let mut one = Changes::default();
        push(&mut one, step);
        apply(file, &one);
    }

    fn sum(steps: &[Step]) -> Changes {
        steps.iter().fold(Changes::default(), |mut changes, step| {
            push(&mut changes, step);
            changes
        })
    }

    proptest! {
        /// Whatever part of the sequence a file has seen, with whatever part of the next write: the replay mends it.
        #[test]
        fn a_replay_gives_the_file_that_saw_everything(
            before in proptest::collection::vec(any::<u8>(), 0..64),
            steps in proptest::collection::vec(step(), 0..20),
            seen in 0_usize..20,
            torn in 0_usize..24,
        ) {
            let mut wanted = before.clone();
            steps.iter().for_each(|step| do_step(&mut wanted, step));
            let changes = sum(&steps);
            let mut file = before.clone();
            let (mut low, mut high) = (file.len(), file.len());
            for (number, step) in steps.iter().enumerate() {
                match step {
                    Step::Write(at, data) if number == seen => {
                        do_step(&mut file, &Step::Write(*at, data[..torn.min(data.len())].to_vec()));
                    }
                    step if number < seen => do_step(&mut file, step),
                    _ => {}
                }
                (low, high) = (low.min(file.len()), high.max(file.len()));
            }
            let (least, most) = changes.sizes_on_the_way(before.len() as u64);
            prop_assert!(least <= low as u64 && high as u64 <= most);
            prop_assert_eq!(changes.size_after(before.len() as u64), wanted.len() as u64);
            for _ in 0..2 {
                apply(&mut file, &changes);
                prop_assert_eq!(&file, &wanted);
            }
        }

        #[test]
        fn later_changes_lie_over_earlier_ones(
            before in proptest::collection::vec(any::<u8>(), 0..64),
            steps in proptest::collection::vec(step(), 0..20),
            split in 0_usize..20,
        ) {
            let split = split.min(steps.len());
            let mut joined = sum(&steps[..split]);
            joined.extend(sum(&steps[split..]));
            let (mut one, mut two) = (before.clone(), before);
            apply(&mut one, &joined);
            apply(&mut two, &sum(&steps));
            prop_assert_eq!(one, two);
        }

        #[test]
        fn bytes_are_counted_and_ranges_do_not_overlap(steps in proptest::collection::vec(step(), 0..30)) {
            let changes = sum(&steps);
            let mut end = 0;
            for (offset, data) in changes.extents() {
                prop_assert!(offset >= end && !data.is_empty());
                end = offset + data.len() as u64;
                prop_assert!(changes.touch(offset, 1));
            }
            prop_assert_eq!(changes.extents().map(|(_, data)| data.len() as u64).sum::<u64>(), changes.bytes());
        }
    }

    #[test]
    fn appends_merge_into_few_entries() {
        let mut changes = Changes::default();
        for number in 0..10_000_u64 {
            changes.push(Change::Write(number * 200, &mut vec![7; 200]));
        }
        assert_eq!(changes.bytes(), 2_000_000);
        assert!(changes.extents().count() <= 2_000_000 / MERGED + 1);
    }
}
