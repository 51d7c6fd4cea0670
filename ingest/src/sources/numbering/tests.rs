//! Random histories of reading: crashes, lost and late appends, two readers at once. What is applied is the source.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;
use sendtrail_schemas::record::SourcePosition;

use super::*;

const SOURCES: u32 = 2;
const PARTITIONS: u32 = 3;

/// What messages become: for each partition of the source, for each message, the intake partitions of its records.
type Topic = Vec<Vec<Vec<u32>>>;

#[derive(Clone, Debug)]
enum Op {
    /// A reader reads some messages of a partition; what becomes of its appends to each intake partition.
    Read { reader: usize, partition: u32, count: usize, fates: [Fate; PARTITIONS as usize] },
    /// A reader hears of its oldest appends.
    Hear { reader: usize },
    /// A reader tells what is settled.
    Tell { reader: usize },
    /// A reader begins anew from what the log has.
    Restart { reader: usize },
    /// A reader that is to begin anew looks what is settled; what was there before goes on meanwhile.
    Look { reader: usize },
    /// The oldest append that was late arrives after all.
    Arrive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Taken,
    Lost,
    Late,
}

/// The intake: what was applied in each partition, and its marks.
#[derive(Default)]
struct Intake {
    applied: BTreeMap<u32, Vec<Place>>,
    marks: BTreeMap<(u32, u32), SourcePosition>,
    late: VecDeque<(u32, Vec<SourcePosition>)>,
}

impl Intake {
    fn numbers(&self) -> Vec<(u32, SourcePosition)> {
        let all = self.marks.iter();
        all.map(|((to, partition), mark)| (*to, SourcePosition { partition: *partition, ..mark.clone() })).collect()
    }

    fn settled(&self) -> Vec<SourcePosition> {
        self.numbers().into_iter().map(|(_, mark)| mark).collect()
    }

    fn take(&mut self, to: u32, batch: &[SourcePosition]) {
        for at in batch {
            let mark = self.marks.entry((to, at.partition)).or_default();
            if at.number == 0 {
                mark.settled = mark.settled.max(at.settled);
            } else if at.number == mark.number + 1 {
                *mark = SourcePosition { settled: mark.settled.max(at.settled), ..at.clone() };
                let place = Place { partition: at.partition, offset: at.offset, index: at.index };
                self.applied.entry(to).or_default().push(place);
            }
        }
    }
}

struct Reader {
    numbering: Numbering,
    next: BTreeMap<u32, u64>,
    on_way: VecDeque<(u32, u64, bool)>,
}

impl Reader {
    fn new(intake: &Intake) -> Self {
        Self::begin(intake.settled(), intake)
    }

    /// Begins with what was settled a while ago.
    fn begin(settled: Vec<SourcePosition>, intake: &Intake) -> Self {
        let mut numbering = Numbering::new(&Marks { settled, numbers: intake.numbers() });
        (0..SOURCES).for_each(|partition| numbering.settle(partition, 0));
        Self { next: numbering.all_settled().clone(), numbering, on_way: VecDeque::new() }
    }

    fn at(&self, number: u64, at: Place) -> SourcePosition {
        let settled = self.numbering.settled(at.partition).unwrap();
        let (offset, index) = (at.offset, at.index);
        SourcePosition { source: "s".into(), partition: at.partition, number, offset, index, settled }
    }

    fn read(&mut self, topic: &Topic, partition: u32, count: usize, fates: &[Fate], intake: &mut Intake) {
        let from = self.next[&partition];
        let messages = topic[partition as usize].iter().enumerate().skip(from as usize).take(count);
        let mut batches: BTreeMap<u32, Vec<SourcePosition>> = BTreeMap::new();
        let mut reached = from;
        for (offset, message) in messages {
            for (index, to) in (1..).zip(message) {
                let at = Place { partition, offset: offset as u64, index };
                if let Some(number) = self.numbering.next(at, *to) {
                    batches.entry(*to).or_default().push(self.at(number, at));
                }
            }
            reached = offset as u64 + 1;
        }
        let mut taken = true;
        for (to, batch) in batches {
            match fates[to as usize] {
                Fate::Taken => intake.take(to, &batch),
                Fate::Lost => taken = false,
                Fate::Late => {
                    intake.late.push_back((to, batch));
                    taken = false;
                }
            }
        }
        self.next.insert(partition, reached);
        self.on_way.push_back((partition, reached, taken));
    }

    /// Whether it goes on.
    fn hear(&mut self) -> bool {
        match self.on_way.pop_front() {
            Some((partition, reached, true)) => {
                self.numbering.settle(partition, reached);
                true
            }
            Some(_) => false,
            None => true,
        }
    }

    fn tell(&self, intake: &mut Intake) {
        for partition in 0..SOURCES {
            let offset = self.numbering.settled(partition).unwrap();
            intake.take(partition % PARTITIONS, &[self.at(0, Place { partition, offset, index: 0 })]);
        }
    }
}

fn op() -> impl Strategy<Value = Op> {
    let fate = prop_oneof![6 => Just(Fate::Taken), 1 => Just(Fate::Lost), 1 => Just(Fate::Late)];
    let reader = 0..2usize;
    prop_oneof![
        8 => (reader.clone(), 0..SOURCES, 1..6usize, [fate.clone(), fate.clone(), fate])
            .prop_map(|(reader, partition, count, fates)| Op::Read { reader, partition, count, fates }),
        6 => reader.clone().prop_map(|reader| Op::Hear { reader }),
        2 => reader.clone().prop_map(|reader| Op::Tell { reader }),
        2 => reader.clone().prop_map(|reader| Op::Restart { reader }),
        1 => reader.prop_map(|reader| Op::Look { reader }),
        2 => Just(Op::Arrive),
    ]
}

proptest! {
    #[test]
    fn every_record_is_applied_once_and_in_order(
        topic in prop::collection::vec(prop::collection::vec(prop::collection::vec(0..PARTITIONS, 0..4), 0..40), SOURCES as usize),
        ops in prop::collection::vec(op(), 0..120),
    ) {
        let mut intake = Intake::default();
        let mut readers = [Reader::new(&intake), Reader::new(&intake)];
        let mut looked: [Option<Vec<SourcePosition>>; 2] = [None, None];
        for op in ops {
            match op {
                Op::Read { reader, partition, count, fates } => {
                    readers[reader].read(&topic, partition, count, &fates, &mut intake);
                }
                Op::Hear { reader } => {
                    if !readers[reader].hear() {
                        readers[reader] = Reader::new(&intake);
                    }
                }
                Op::Tell { reader } => readers[reader].tell(&mut intake),
                Op::Restart { reader } => {
                    let settled = looked[reader].take().unwrap_or_else(|| intake.settled());
                    readers[reader] = Reader::begin(settled, &intake);
                }
                Op::Look { reader } => looked[reader] = Some(intake.settled()),
                Op::Arrive => if let Some((to, batch)) = intake.late.pop_front() {
                    intake.take(to, &batch);
                },
            }
        }
        // One that nothing disturbs reads what is left.
        let mut last = Reader::new(&intake);
        for partition in 0..SOURCES {
            last.read(&topic, partition, usize::MAX, &[Fate::Taken; PARTITIONS as usize], &mut intake);
        }
        for to in 0..PARTITIONS {
            for partition in 0..SOURCES {
                let messages = (0u64..).zip(&topic[partition as usize]);
                let wanted: Vec<Place> = messages
                    .flat_map(|(offset, message)| (1u32..).zip(message).map(move |(index, to)| (offset, index, *to)))
                    .filter(|(_, _, of)| *of == to)
                    .map(|(offset, index, _)| Place { partition, offset, index })
                    .collect();
                let applied = intake.applied.get(&to).into_iter().flatten().filter(|at| at.partition == partition);
                prop_assert_eq!(applied.copied().collect::<Vec<_>>(), wanted);
            }
        }
    }
}
