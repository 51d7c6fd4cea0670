//! Records of topics that we read from: each is applied once and in order, however often it is told.

use sendtrail_schemas::record::SourcePosition;

/// How far each partition of each source has come in one intake partition: few, sorted.
pub trait Marks {
    /// Moves on to a record; `false` when it must not be applied: it is a copy, or others before it are missing, and then
    /// whoever reads the source tells all of them again.
    fn follow(&mut self, at: &SourcePosition) -> bool;
}

impl Marks for Vec<SourcePosition> {
    fn follow(&mut self, at: &SourcePosition) -> bool {
        let place = (at.partition, at.source.as_str());
        let found = self.binary_search_by(|mark| (mark.partition, mark.source.as_str()).cmp(&place));
        let last = found.ok().and_then(|found| self.get(found)).map_or(0, |mark| mark.number);
        // Without a number it only tells how far the source is.
        if at.number != 0 && at.number != last + 1 {
            return false;
        }
        match found.map(|found| self.get_mut(found)) {
            Ok(Some(mark)) => {
                if at.number != 0 {
                    (mark.number, mark.offset, mark.index) = (at.number, at.offset, at.index);
                }
                mark.settled = mark.settled.max(at.settled);
            }
            Ok(None) => {}
            Err(free) => self.insert(free, at.clone()),
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(source: &str, partition: u32, number: u64) -> SourcePosition {
        SourcePosition { source: source.into(), partition, number, offset: 10 * number, index: 0, settled: number }
    }

    #[test]
    fn only_the_next_number_is_taken_and_sources_are_apart() {
        let mut marks = Vec::new();
        assert!(!marks.follow(&at("b", 1, 2)), "the first is 1");
        for (source, partition) in [("b", 1), ("a", 1), ("b", 0), ("a", 7)] {
            assert!(marks.follow(&at(source, partition, 1)));
            assert!(!marks.follow(&at(source, partition, 1)), "a copy");
            assert!(!marks.follow(&at(source, partition, 3)), "one is missing");
            assert!(marks.follow(&at(source, partition, 2)));
        }
        assert_eq!(marks.len(), 4);
        assert!(marks.is_sorted_by_key(|mark| (mark.partition, mark.source.clone())));
        assert!(marks.iter().all(|mark| (mark.number, mark.offset, mark.settled) == (2, 20, 2)));
        let earlier = SourcePosition { settled: 1, ..at("a", 1, 3) };
        assert!(marks.follow(&earlier));
        assert_eq!(marks[1].settled, 2, "what is settled stays so");
        let told = SourcePosition { number: 0, settled: 9, ..at("a", 1, 8) };
        assert!(marks.follow(&told) && marks.follow(&told));
        assert_eq!((marks[1].number, marks[1].offset, marks[1].settled), (3, 30, 9), "what has no number takes none");
        assert!(marks.follow(&at("a", 1, 4)));
        assert!(marks.follow(&SourcePosition { source: "new".into(), ..told }) && marks.follow(&at("new", 1, 1)));
    }
}
