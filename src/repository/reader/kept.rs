//! What was used last, as much of it as a budget allows.
//!
//! After many nights of change a stream goes back and forth between the packs of all of them, but through each
//! pack in order: with a place kept for every pack, each frame is read and decoded once.

use std::collections::BTreeMap;

use crate::repository::PackName;

/// Parts of packs, found by any offset in them.
pub(super) struct Kept<T> {
    parts: BTreeMap<(PackName, u64), Part<T>>,
    /// By when they were used last.
    order: BTreeMap<u64, (PackName, u64)>,
    uses: u64,
    cost: u64,
    budget: u64,
}

struct Part<T> {
    length: u64,
    cost: u64,
    used: u64,
    value: T,
}

impl<T> Kept<T> {
    pub fn new(budget: u64) -> Self {
        Self {
            parts: BTreeMap::new(),
            order: BTreeMap::new(),
            uses: 0,
            cost: 0,
            budget,
        }
    }

    /// The part that holds `offset`: its start, its length and its value.
    pub fn get(&mut self, pack: PackName, offset: u64) -> Option<(u64, u64, &mut T)> {
        let (key, part) = self
            .parts
            .range_mut((pack, 0)..=(pack, offset))
            .next_back()?;
        let (key, length) = (*key, part.length);
        if offset - key.1 >= length {
            return None;
        }
        self.uses += 1;
        self.order.remove(&part.used);
        self.order.insert(self.uses, key);
        part.used = self.uses;
        Some((key.1, length, &mut part.value))
    }

    /// Keeps a part of a pack, and gives up what was not used for longest. One of the values that had to go is
    /// returned: its memory can be used again.
    pub fn insert(
        &mut self,
        place: (PackName, u64),
        length: u64,
        cost: u64,
        value: T,
    ) -> Option<T> {
        let mut spare = self.remove(place);
        self.uses += 1;
        self.cost += cost;
        self.order.insert(self.uses, place);
        let used = self.uses;
        let part = Part {
            length,
            cost,
            used,
            value,
        };
        self.parts.insert(place, part);
        while self.cost > self.budget && self.parts.len() > 1 {
            let Some((_, oldest)) = self.order.first_key_value() else {
                break;
            };
            spare = self.remove(*oldest).or(spare);
        }
        spare
    }

    fn remove(&mut self, place: (PackName, u64)) -> Option<T> {
        let part = self.parts.remove(&place)?;
        self.order.remove(&part.used);
        self.cost -= part.cost;
        Some(part.value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn pack(number: u8) -> PackName {
        PackName([number; 32])
    }

    #[test]
    fn a_part_is_found_by_any_offset_in_it() {
        let mut kept = Kept::new(100);
        kept.insert((pack(2), 10), 5, 1, "a");
        kept.insert((pack(2), 15), 5, 1, "b");
        let mut find = |p, offset| {
            kept.get(pack(p), offset)
                .map(|(start, length, v)| (start, length, *v))
        };
        assert_eq!(find(2, 10), Some((10, 5, "a")));
        assert_eq!(find(2, 14), Some((10, 5, "a")));
        assert_eq!(find(2, 15), Some((15, 5, "b")));
        for (p, offset) in [(2, 9), (2, 20), (1, 12), (3, 12)] {
            assert_eq!(find(p, offset), None);
        }
    }

    #[test]
    fn what_was_not_used_for_longest_goes_and_the_newest_stays_whatever_it_costs() {
        let mut kept = Kept::new(10);
        assert_eq!(kept.insert((pack(1), 0), 1, 4, "first"), None);
        assert_eq!(kept.insert((pack(2), 0), 1, 4, "second"), None);
        assert!(kept.get(pack(1), 0).is_some());
        assert_eq!(kept.insert((pack(3), 0), 1, 4, "third"), Some("second"));
        assert!(kept.get(pack(2), 0).is_none());
        assert!(kept.insert((pack(4), 0), 1, 400, "large").is_some());
        assert_eq!(kept.get(pack(4), 0).map(|(_, _, v)| *v), Some("large"));
        assert!(kept.get(pack(1), 0).is_none() && kept.get(pack(3), 0).is_none());
        assert_eq!(kept.insert((pack(4), 0), 1, 1, "small"), Some("large"));
        assert_eq!((kept.parts.len(), kept.order.len(), kept.cost), (1, 1, 1));
    }
}
