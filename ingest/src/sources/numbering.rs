//! Which records of a source the log has, and the numbers of those that it lacks.

use std::collections::{BTreeMap, HashMap};

use super::Marks;

/// Where something stands in a source: partition, offset, and which of the records that the message became, from 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub partition: u32,
    pub offset: u64,
    pub index: u32,
}

/// What is known of one source. Pure: what it says follows from what the log had and from what came since.
#[derive(Debug, Default)]
pub struct Numbering {
    /// The last number, and its place, of each of the source's partitions in each intake partition.
    marks: HashMap<(u32, u32), (u64, (u64, u32))>,
    /// Whatever stands before this is in the log.
    settled: BTreeMap<u32, u64>,
}

impl Numbering {
    /// Goes on from what intake partitions have applied.
    pub fn new(marks: &Marks) -> Self {
        let numbers = marks.numbers.iter().map(|(to, at)| ((at.partition, *to), (at.number, (at.offset, at.index))));
        let mut numbering = Self { marks: numbers.collect(), settled: BTreeMap::new() };
        for at in &marks.settled {
            numbering.settle(at.partition, at.settled);
        }
        numbering
    }

    /// Whether nothing of the source was ever read.
    pub fn is_new(&self) -> bool {
        self.settled.is_empty()
    }

    /// Where a partition is to be read from; `None` when it never was.
    pub fn settled(&self, partition: u32) -> Option<u64> {
        self.settled.get(&partition).copied()
    }

    /// All of them.
    pub fn all_settled(&self) -> &BTreeMap<u32, u64> {
        &self.settled
    }

    /// Everything before an offset is in the log.
    pub fn settle(&mut self, partition: u32, offset: u64) {
        let settled = self.settled.entry(partition).or_default();
        *settled = offset.max(*settled);
    }

    /// The number of what comes next in the source, on its way to an intake partition; `None` when that has it.
    pub fn next(&mut self, at: Place, to: u32) -> Option<u64> {
        let (number, last) = self.marks.entry((at.partition, to)).or_default();
        if *number > 0 && (at.offset, at.index) <= *last {
            return None;
        }
        (*number, *last) = (*number + 1, (at.offset, at.index));
        Some(*number)
    }
}

#[cfg(test)]
mod tests;
