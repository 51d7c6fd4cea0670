//! The one thread that writes: it numbers and stamps what was appended meanwhile, writes it at once, syncs once.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sendtrail_schemas::time::Millis;
use tokio::sync::oneshot;

use super::frame::Frame;
use super::segment::{Marks, Placed, Segment};
use super::{Pending, Shared};
use crate::Error;
use crate::clock::Onward;

/// How often to look for an old segment when nothing comes.
const LOOK_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Committer {
    shared: Arc<Shared>,
    folder: PathBuf,
    segment: Option<Segment>,
    next: Marks,
    /// What time it is: times of receipt never run back.
    onward: Onward,
    /// The stamp of the oldest batch in the segment.
    since: Option<i64>,
    buffer: Vec<u8>,
    /// Why nothing is written any more.
    failed: Option<String>,
}

/// A batch that is being written.
struct Writing {
    placed: Placed,
    payload: Bytes,
}

type Answer = (oneshot::Sender<Result<u64, Error>>, Result<u64, Error>);

impl Committer {
    pub(super) fn new(shared: Arc<Shared>, folder: PathBuf, segment: Option<Segment>) -> Self {
        let (next, last, since) = {
            let index = shared.index.read();
            let since = segment.as_ref().and_then(|segment| index.first_stamp(segment.number));
            (index.marks(), index.last_stamp(), since)
        };
        let onward = Onward::from(last);
        Self { shared, folder, segment, next, onward, since, buffer: Vec::new(), failed: None }
    }

    pub(super) fn run(mut self) {
        let look_every = LOOK_EVERY.min(self.shared.options.segment_age);
        loop {
            let pending = {
                let mut queue = self.shared.queue.lock();
                let mut idle = false;
                while queue.pending.is_empty() && !queue.closed && !idle {
                    idle = self.shared.work.wait_for(&mut queue, look_every).timed_out();
                }
                if queue.pending.is_empty() && queue.closed {
                    return;
                }
                std::mem::take(&mut queue.pending)
            };
            if pending.is_empty() {
                self.retire();
                continue;
            }
            let bytes: u64 = pending.iter().map(|pending| pending.batch.bytes() as u64).sum();
            let answers = self.commit(pending);
            self.shared.queue.lock().bytes -= bytes;
            for (done, answer) in answers {
                // Whoever no longer waits has no use for the answer.
                let _ = done.send(answer);
            }
        }
    }

    fn commit(&mut self, pending: Vec<Pending>) -> Vec<Answer> {
        if let Some(why) = &self.failed {
            // Where the file stands is in doubt, and a second fsync would not tell.
            return refuse(pending, &Error::Failed(why.clone()));
        }
        if let Err(error) = self.make_room() {
            return refuse(pending, &error);
        }
        let before = self.next.clone();
        let (answers, writing) = self.lay_out(pending);
        match self.write(writing) {
            Ok(()) => answers,
            Err(error) => {
                self.next = before;
                if let Error::Failed(why) = &error {
                    tracing::error!(%why, "the log is out of service");
                    self.shared.queue.lock().failed = Some(why.clone());
                    self.failed = Some(why.clone());
                }
                answers.into_iter().map(|(done, answer)| (done, answer.and(Err(error.clone())))).collect()
            }
        }
    }

    /// Begins a new segment when nothing comes and the last one is old: what everybody has read of it can go.
    fn retire(&mut self) {
        if self.failed.is_some() || !self.is_old() {
            return;
        }
        match self.make_room() {
            Ok(()) => super::delete(&self.shared.index.write().drop_passed()),
            Err(error) => tracing::warn!(%error, "an old segment of the log stays in use"),
        }
    }

    fn is_old(&self) -> bool {
        let age = self.shared.options.segment_age.as_millis() as i64;
        self.since.is_some_and(|since| self.onward.at(Millis::wall().0).saturating_sub(since) >= age)
    }

    /// Begins a new segment when the last one is full, or old.
    fn make_room(&mut self) -> Result<(), Error> {
        let full = self.shared.options.segment_bytes;
        if self.segment.as_ref().is_some_and(|segment| segment.length() < full) && !self.is_old() {
            return Ok(());
        }
        let number = self.segment.as_ref().map_or(0, |segment| segment.number + 1);
        let segment = Segment::create(&self.folder, number, &self.next)?;
        crate::failpoint::reach("log.segment");
        let mut index = self.shared.index.write();
        index.add_segment(number, segment.reader()?, segment.path.clone(), segment.length(), Marks::new());
        drop(index);
        (self.segment, self.since) = (Some(segment), None);
        Ok(())
    }

    /// Numbers and stamps batches and lays their frames into the buffer.
    fn lay_out(&mut self, pending: Vec<Pending>) -> (Vec<Answer>, Vec<Writing>) {
        self.buffer.clear();
        let stamp = self.onward.at(Millis::wall().0);
        self.onward.reached(stamp);
        let group = self.segment.as_ref().map_or(0, Segment::length);
        let mut answers = Vec::with_capacity(pending.len());
        let mut writing = Vec::with_capacity(pending.len());
        for Pending { to, batch, done } in pending {
            let next = self.next.entry(to).or_default();
            let first = batch.first_number().unwrap_or(*next);
            if first > *next {
                answers.push((done, Err(Error::Gap { of: to, first, next: *next })));
                continue;
            }
            // What the log has already is dropped.
            let (payload, count) = batch.freeze(u32::try_from(*next - first).unwrap_or(u32::MAX));
            answers.push((done, Ok(first)));
            if count == 0 {
                continue;
            }
            let frame =
                Frame { of: to, count, base_offset: *next, stamp, group: group as u32, length: payload.len() as u32 };
            let placed = Placed { frame, at: group + self.buffer.len() as u64 };
            frame.write(&payload, &mut self.buffer);
            *next += u64::from(count);
            writing.push(Writing { placed, payload });
        }
        (answers, writing)
    }

    fn write(&mut self, writing: Vec<Writing>) -> Result<(), Error> {
        let (Some(segment), Some(first)) = (self.segment.as_mut(), writing.first()) else { return Ok(()) };
        segment.append(&self.buffer)?;
        self.since.get_or_insert(first.placed.frame.stamp);
        let cache = self.shared.options.cache_bytes;
        let mut index = self.shared.index.write();
        for Writing { placed, payload } in &writing {
            index.add(segment.number, *placed, Some(payload.clone()), cache);
        }
        drop(index);
        for Writing { placed, .. } in &writing {
            if let Some(end) = self.shared.ends.get(&placed.frame.of) {
                end.send_replace(placed.frame.base_offset + u64::from(placed.frame.count));
            }
        }
        Ok(())
    }
}

fn refuse(pending: Vec<Pending>, error: &Error) -> Vec<Answer> {
    pending.into_iter().map(|pending| (pending.done, Err(error.clone()))).collect()
}
