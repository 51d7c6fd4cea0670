//! A sliding window of hourly buckets with its running sum: O(1) an event, whatever the history.

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

/// The hour of the last record and the 335 before it.
///
/// Invariant: `sum` is the sum of the slots of the hours `last - 335 ..= last`; the slot of `last + 1` is outside it.
#[derive(Clone, Debug, Default)]
pub struct Window {
    /// Absent while nothing was ever counted: most windows of most accounts.
    slots: Option<Box<[Slot; SLOTS]>>,
    last: Hour,
    sum: Counts,
}

impl Window {
    /// The sum over the window.
    pub fn sum(&self) -> Counts {
        self.sum
    }

    /// The same, counted anew.
    pub(super) fn counted(&self) -> Counts {
        let mut counted = Counts::default();
        let hours = self.last - WINDOW_HOURS + 1..=self.last;
        self.slots
            .iter()
            .flat_map(|slots| hours.clone().map(|hour| slots[slot(hour)]))
            .for_each(|slot| counted.add(slot.counts()));
        counted
    }

    /// Moves the window's end to an hour; never back.
    pub fn slide(&mut self, hour: Hour) {
        let Some(slots) = self.slots.as_deref_mut() else {
            self.last = self.last.max(hour);
            return;
        };
        if i64::from(hour) - i64::from(self.last) > i64::from(WINDOW_HOURS) {
            *self = Self { last: hour, ..Self::default() };
            return;
        }
        while self.last < hour {
            self.last += 1;
            let leaving = &mut slots[slot(self.last - WINDOW_HOURS)];
            self.sum.subtract(leaving.counts());
            *leaving = Slot::default();
            self.sum.add(slots[slot(self.last)].counts());
        }
    }

    /// Counts one event of an hour; call [`Self::slide`] first. Whether the hour lies in the window or is the next:
    /// if neither, nothing is counted.
    pub fn count(&mut self, hour: Hour, what: Counted) -> bool {
        let next = self.last + 1;
        if hour > next || hour <= self.last - WINDOW_HOURS {
            return false;
        }
        let slots = self.slots.get_or_insert_with(|| Box::new([Slot::default(); SLOTS]));
        let slot = &mut slots[slot(hour)];
        let (cell, sum) = match what {
            Counted::Send => (&mut slot.sent, &mut self.sum.sent),
            Counted::Bounce => (&mut slot.bounced, &mut self.sum.bounced),
            Counted::Complaint => (&mut slot.complained, &mut self.sum.complained),
        };
        *cell += 1;
        if hour != next {
            *sum += 1;
        }
        true
    }

    /// The hours that are not empty, the next one included.
    pub fn view(&self) -> WindowView {
        let Some(slots) = self.slots.as_deref() else { return WindowView::default() };
        let hours = self.last - WINDOW_HOURS + 1..=self.last + 1;
        let buckets = hours
            .map(|hour| Bucket { hour, counts: slots[slot(hour)].counts() })
            .filter(|bucket| !bucket.counts.is_zero())
            .collect();
        WindowView { buckets }
    }

    /// A window with these buckets, its end at the hour `last`.
    pub fn restore(view: &WindowView, last: Hour) -> Self {
        let mut window = Self { last, ..Self::default() };
        for bucket in &view.buckets {
            if bucket.hour > last + 1 || bucket.hour <= last - WINDOW_HOURS {
                continue;
            }
            let slots = window.slots.get_or_insert_with(|| Box::new([Slot::default(); SLOTS]));
            let narrow = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
            let Counts { sent, bounced, complained } = bucket.counts;
            slots[slot(bucket.hour)] =
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

fn slot(hour: Hour) -> usize {
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
        fn equals_a_plain_recount(steps in prop::collection::vec((0i32..400, -400i32..3, 0u8..3, any::<bool>()), 1..200)) {
            let mut window = Window::default();
            let mut all: Vec<(Hour, Counted)> = Vec::new();
            let mut now = 5000;
            window.slide(now);
            for (forward, offset, what, restore) in steps {
                // Mostly small moves, sometimes further than a window.
                now += if forward < 380 { forward / 60 } else { forward };
                window.slide(now);
                let what = [Counted::Send, Counted::Bounce, Counted::Complaint][usize::from(what)];
                let hour = now + offset;
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
