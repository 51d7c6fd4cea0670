//! Places of rows, of which there may be as many as a day has.

use std::collections::BTreeMap;

use roaring::RoaringTreemap;

/// Rows by partition and number. Those that stand side by side take hardly any memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    of: BTreeMap<u32, RoaringTreemap>,
}

impl Places {
    /// Adds one; whether it is new.
    pub fn insert(&mut self, (partition, number): (u32, u64)) -> bool {
        self.of.entry(partition).or_default().insert(number)
    }

    /// Whether one is there.
    pub fn contains(&self, (partition, number): (u32, u64)) -> bool {
        self.of.get(&partition).is_some_and(|numbers| numbers.contains(number))
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.of.values().map(RoaringTreemap::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }
}

impl Extend<(u32, u64)> for Places {
    fn extend<I: IntoIterator<Item = (u32, u64)>>(&mut self, places: I) {
        for place in places {
            self.insert(place);
        }
    }
}

impl FromIterator<(u32, u64)> for Places {
    fn from_iter<I: IntoIterator<Item = (u32, u64)>>(places: I) -> Self {
        let mut all = Self::default();
        all.extend(places);
        all
    }
}
