//! Records of topics that we read from: each is applied once and in order, however often it is told.

use sendtrail_schemas::record::SourcePosition;

/// What a record of a source is to the partition it came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It is to be applied.
    Next,
    /// It was applied.
    Copy,
    /// Others before it are missing: whoever reads the source tells all of them again.
    Gap,
}

/// How far each partition of each source has come in one intake partition: few, sorted.
pub trait Marks {
    /// Moves on to a record, if it comes next.
    fn follow(&mut self, at: &SourcePosition) -> Place;
}

impl Marks for Vec<SourcePosition> {
    fn follow(&mut self, at: &SourcePosition) -> Place {
        let place = (at.partition, at.source.as_str());
        let found = self.binary_search_by(|mark| (mark.partition, mark.source.as_str()).cmp(&place));
        let last = found.ok().and_then(|found| self.get(found)).map_or(0, |mark| mark.number);
        // Without a number it only tells how far the source is.
        if at.number != 0 && at.number <= last {
            return Place::Copy;
        }
        if at.number > last + 1 {
            return Place::Gap;
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
        Place::Next
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
        assert_eq!(marks.follow(&at("b", 1, 2)), Place::Gap, "the first is 1");
        for (source, partition) in [("b", 1), ("a", 1), ("b", 0), ("a", 7)] {
            for (number, place) in
                [(1, Place::Next), (1, Place::Copy), (3, Place::Gap), (2, Place::Next), (1, Place::Copy)]
            {
                assert_eq!(marks.follow(&at(source, partition, number)), place, "{number}");
            }
        }
        assert_eq!(marks.len(), 4);
        assert!(marks.is_sorted_by_key(|mark| (mark.partition, mark.source.clone())));
        assert!(marks.iter().all(|mark| (mark.number, mark.offset, mark.settled) == (2, 20, 2)));
        let earlier = SourcePosition { settled: 1, ..at("a", 1, 3) };
        assert_eq!(marks.follow(&earlier), Place::Next);
        assert_eq!(marks[1].settled, 2, "what is settled stays so");
        let told = SourcePosition { number: 0, settled: 9, ..at("a", 1, 8) };
        assert_eq!([marks.follow(&told), marks.follow(&told)], [Place::Next; 2]);
        assert_eq!((marks[1].number, marks[1].offset, marks[1].settled), (3, 30, 9), "what has no number takes none");
        assert_eq!(marks.follow(&at("a", 1, 4)), Place::Next);
        assert_eq!(marks.follow(&SourcePosition { source: "new".into(), ..told }), Place::Next);
        assert_eq!(marks.follow(&at("new", 1, 1)), Place::Next);
    }
}
