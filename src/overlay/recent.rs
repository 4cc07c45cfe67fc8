//! What is kept of so many nodes, the latest: their ids say nothing about age.

use std::collections::{BTreeMap, HashMap};

/// By node. See the module.
#[derive(Debug)]
pub(super) struct Recent<T> {
    most: usize,
    last: u64,
    by_node: HashMap<u64, (u64, T)>,
    by_age: BTreeMap<u64, u64>,
}

impl<T> Recent<T> {
    /// Of at most that many.
    pub fn new(most: usize) -> Recent<T> {
        Recent { most, last: 0, by_node: HashMap::new(), by_age: BTreeMap::new() }
    }

    /// What is kept of a node.
    pub fn get(&self, node: u64) -> Option<&T> {
        self.by_node.get(&node).map(|(_, kept)| kept)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, node: u64) -> Option<&mut T> {
        self.by_node.get_mut(&node).map(|(_, kept)| kept)
    }

    /// Keeps one more. Gives back what is not kept any longer: of the same node, or the oldest.
    pub fn keep(&mut self, node: u64, kept: T) -> Option<T> {
        let former = self.take(node);
        self.last += 1;
        self.by_node.insert(node, (self.last, kept));
        self.by_age.insert(self.last, node);
        if self.by_node.len() > self.most {
            let (_, oldest) = self.by_age.pop_first()?;
            return self.by_node.remove(&oldest).map(|(_, kept)| kept);
        }
        former
    }

    /// Keeps nothing of a node any longer.
    pub fn take(&mut self, node: u64) -> Option<T> {
        let (age, kept) = self.by_node.remove(&node)?;
        self.by_age.remove(&age);
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_whatever_its_number() {
        let mut recent = Recent::new(2);
        assert_eq!((recent.keep(9, 'a'), recent.keep(5, 'b'), recent.keep(9, 'c')), (None, None, Some('a')));
        assert_eq!(recent.keep(7, 'd'), Some('b'));
        assert_eq!((recent.get(9), recent.get(5), recent.get(7)), (Some(&'c'), None, Some(&'d')));
        assert_eq!((recent.take(9), recent.take(9), recent.keep(1, 'e')), (Some('c'), None, None));
        assert_eq!((recent.by_node.len(), recent.by_age.len()), (2, 2));
    }
}
