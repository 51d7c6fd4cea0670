//! A sliding window of hourly buckets with its running sum: O(1) an event, whatever the history; a list of the hours while they are
//! few, which is a fiftieth of the room for all.

use sendtrail_schemas::reputation::{Bucket, Counts, WINDOW_HOURS, WindowView};
use sendtrail_schemas::time::Hour;

/// The window's hours and the one that comes next, where events dated a little ahead wait.
const SLOTS: usize = WINDOW_HOURS as usize + 1;

#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Slot {
    sent: u32,
    bounced: u32,
    complained: u32,
}

impl Slot {
    fn counts(self) -> Counts {
        Counts { sent: self.sent.into(), bounced: self.bounced.into(), complained: self.complained.into() }
    }
}

/// What a window counts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counted {
    /// A send.
    Send,
    /// A permanent bounce.
    Bounce,
    /// A complaint.
    Complaint,
}

/// Hours that a window keeps in a list before it takes room for all.
const FEW: usize = 16;

/// The hours in which something was counted.
#[derive(Clone, Debug)]
enum Hours {
    /// Not more than [`FEW`], in their order: most windows of most accounts.
    Few(Vec<(Hour, Slot)>),
    /// A place for each.
    Ring(Box<[Slot; SLOTS]>),
}

/// The hour of the last record and the 335 before it.
///
/// Invariant: `sum` is the sum of the hours `last - 335 ..= last`; that of `last + 1` is outside it, and no other is kept.
#[derive(Clone, Debug)]
pub struct Window {
    hours: Hours,
    last: Hour,
    sum: Counts,
}

impl Default for Window {
    fn default() -> Self {
        Self::ending(Hour::default())
    }
}

impl Window {
    fn ending(last: Hour) -> Self {
        Self { hours: Hours::Few(Vec::new()), last, sum: Counts::default() }
    }

    /// The sum over the window.
    pub fn sum(&self) -> Counts {
        self.sum
    }

    /// The same, counted anew.
    pub(super) fn counted(&self) -> Counts {
        let mut counted = Counts::default();
        self.kept().filter(|(hour, _)| *hour <= self.last).for_each(|(_, slot)| counted.add(slot.counts()));
        counted
    }

    /// Bytes in memory beside itself.
    pub(super) fn bytes(&self) -> usize {
        match &self.hours {
            Hours::Few(few) => few.capacity() * size_of::<(Hour, Slot)>(),
            Hours::Ring(ring) => size_of_val(&**ring),
        }
    }

    /// The hours in their order, the next one included.
    fn kept(&self) -> impl Iterator<Item = (Hour, Slot)> + '_ {
        let (few, ring) = match &self.hours {
            Hours::Few(few) => (&few[..], None),
            Hours::Ring(ring) => (&[][..], Some(ring)),
        };
        let all = self.last - WINDOW_HOURS + 1..=self.last + 1;
        let of_ring = ring.into_iter().flat_map(move |ring| all.clone().map(|hour| (hour, ring[place(hour)])));
        few.iter().copied().chain(of_ring)
    }

    /// What is counted of an hour of the window, or the next.
    fn slot(&mut self, hour: Hour) -> &mut Slot {
        if let Hours::Few(few) = &mut self.hours
            && few.len() == FEW
            && few.binary_search_by_key(&hour, |(hour, _)| *hour).is_err()
        {
            let mut ring = Box::new([Slot::default(); SLOTS]);
            few.iter().for_each(|(hour, slot)| ring[place(*hour)] = *slot);
            self.hours = Hours::Ring(ring);
        }
        match &mut self.hours {
            Hours::Few(few) => {
                let at = few.binary_search_by_key(&hour, |(hour, _)| *hour).unwrap_or_else(|at| {
                    few.insert(at, (hour, Slot::default()));
                    at
                });
                &mut few[at].1
            }
            Hours::Ring(ring) => &mut ring[place(hour)],
        }
    }

    /// Moves the window's end to an hour; never back.
    pub fn slide(&mut self, hour: Hour) {
        let before = self.last;
        if hour <= before {
            return;
        }
        match &mut self.hours {
            Hours::Few(few) => {
                self.last = hour;
                let gone = few.partition_point(|(kept, _)| *kept <= hour - WINDOW_HOURS);
                // What was outside the sum, and is not gone, comes into it.
                few[gone..].iter().filter(|(kept, _)| *kept > before).for_each(|(_, slot)| self.sum.add(slot.counts()));
                let leaving = few.drain(..gone).filter(|(kept, _)| *kept <= before);
                leaving.for_each(|(_, slot)| self.sum.subtract(slot.counts()));
            }
            Hours::Ring(_) if i64::from(hour) - i64::from(before) > i64::from(WINDOW_HOURS) => {
                *self = Self::ending(hour)
            }
            Hours::Ring(ring) => {
                while self.last < hour {
                    self.last += 1;
                    let leaving = &mut ring[place(self.last - WINDOW_HOURS)];
                    self.sum.subtract(leaving.counts());
                    *leaving = Slot::default();
                    self.sum.add(ring[place(self.last)].counts());
                }
            }
        }
    }

    /// Counts one event of an hour; call [`Self::slide`] first. Whether the hour lies in the window or is the next:
    /// if neither, nothing is counted.
    pub fn count(&mut self, hour: Hour, what: Counted) -> bool {
        let next = self.last + 1;
        if hour > next || hour <= self.last - WINDOW_HOURS {
            return false;
        }
        let slot = self.slot(hour);
        let cell = match what {
            Counted::Send => &mut slot.sent,
            Counted::Bounce => &mut slot.bounced,
            Counted::Complaint => &mut slot.complained,
        };
        *cell += 1;
        if hour != next {
            *match what {
                Counted::Send => &mut self.sum.sent,
                Counted::Bounce => &mut self.sum.bounced,
                Counted::Complaint => &mut self.sum.complained,
            } += 1;
        }
        true
    }

    /// The hours that are not empty, the next one included.
    pub fn view(&self) -> WindowView {
        let buckets = self.kept().map(|(hour, slot)| Bucket { hour, counts: slot.counts() });
        WindowView { buckets: buckets.filter(|bucket| !bucket.counts.is_zero()).collect() }
    }

    /// A window with these buckets, its end at the hour `last`.
    pub fn restore(view: &WindowView, last: Hour) -> Self {
        let mut window = Self::ending(last);
        for bucket in &view.buckets {
            if bucket.hour > last + 1 || bucket.hour <= last - WINDOW_HOURS {
                continue;
            }
            let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
            let Counts { sent, bounced, complained } = bucket.counts;
            *window.slot(bucket.hour) =
                Slot { sent: narrow(sent), bounced: narrow(bounced), complained: narrow(complained) };
            if bucket.hour <= last {
                window.sum.add(bucket.counts);
            }
        }
        window
    }

    /// The window's end.
    pub fn last(&self) -> Hour {
        self.last
    }
}

fn place(hour: Hour) -> usize {
    hour.rem_euclid(SLOTS as i32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sendtrail_schemas::time::Millis;

    #[test]
    fn the_last_hour_of_the_window_counts_and_the_one_before_does_not() {
        let mut window = Window::default();
        window.slide(1000);
        assert!(window.count(1000 - 335, Counted::Send));
        assert!(!window.count(1000 - 336, Counted::Send));
        assert_eq!(window.sum().sent, 1);
        window.slide(1001);
        assert_eq!(window.sum().sent, 0);
    }

    #[test]
    fn the_next_hour_waits_outside_the_sum() {
        let mut window = Window::default();
        window.slide(10);
        assert!(window.count(11, Counted::Complaint));
        assert!(!window.count(12, Counted::Complaint));
        assert_eq!(window.sum().complained, 0);
        window.slide(11);
        assert_eq!(window.sum().complained, 1);
        window.slide(11 + 335);
        assert_eq!(window.sum().complained, 1);
        window.slide(11 + 336);
        assert_eq!(window.sum().complained, 0);
    }

    proptest! {
        /// Against a list of all that was ever counted, summed anew each time.
        #[test]
        fn equals_a_plain_recount(
            steps in prop::collection::vec((0i32..400, -400i32..3, 0u8..3, any::<bool>()), 1..200),
            // Hours apart: few different ones, so that a list never becomes a ring, or many.
            apart in prop_oneof![Just(1), Just(40)],
        ) {
            let mut window = Window::default();
            let mut all: Vec<(Hour, Counted)> = Vec::new();
            let mut now = 5000;
            window.slide(now);
            for (forward, offset, what, restore) in steps {
                // Mostly small moves, sometimes further than a window.
                now += if forward < 380 { forward / 60 } else { forward };
                window.slide(now);
                let what = [Counted::Send, Counted::Bounce, Counted::Complaint][usize::from(what)];
                let hour = (now + offset) / apart * apart;
                let expected = hour > now - WINDOW_HOURS && hour <= now + 1;
                prop_assert_eq!(window.count(hour, what), expected);
                if expected {
                    all.push((hour, what));
                }
                let mut sum = Counts::default();
                for (hour, what) in &all {
                    if *hour <= now && *hour > now - WINDOW_HOURS {
                        match what {
                            Counted::Send => sum.sent += 1,
                            Counted::Bounce => sum.bounced += 1,
                            Counted::Complaint => sum.complained += 1,
                        }
                    }
                }
                prop_assert_eq!(window.sum(), sum);
                prop_assert_eq!(window.view().at(Millis::of_hour(now)), sum);
                if restore {
                    window = Window::restore(&window.view(), window.last());
                    prop_assert_eq!(window.sum(), sum);
                }
            }
        }
    }
}
