//! Where every kept batch lies, and the newest ones in memory.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use sendtrail_schemas::topic::TopicPartition;

use super::segment::{Marks, Placed, read_payload};
use crate::Error;
use crate::batch::StoredBatch;

/// Knows where batches lie. Kept in memory; rebuilt from the segments at start.
#[derive(Default)]
pub struct Index {
    partitions: HashMap<TopicPartition, VecDeque<Entry>>,
    segments: BTreeMap<u64, Kept>,
    next: Marks,
    low: Marks,
    cached: VecDeque<(TopicPartition, u64, usize)>,
    cached_bytes: usize,
    last_stamp: i64,
}

struct Entry {
    placed: Placed,
    segment: u64,
    payload: Option<Bytes>,
}

struct Kept {
    file: Arc<File>,
    path: PathBuf,
    length: u64,
    /// The offset after the last record of each partition in this segment.
    holds: Marks,
}

/// What to read: from memory, or from a file once the lock is released.
enum Source {
    Memory(StoredBatch),
    Device(Arc<File>, PathBuf, Placed),
}

/// A read that was looked up and is still to be done.
pub struct Planned(Vec<Source>);

impl Planned {
    /// Reads what is not in memory.
    pub fn fetch(self) -> Result<Vec<StoredBatch>, Error> {
        let fetch = |source| match source {
            Source::Memory(batch) => Ok(batch),
            Source::Device(file, path, placed) => Ok(stored(&placed, read_payload(&file, &path, &placed)?)),
        };
        self.0.into_iter().map(fetch).collect()
    }
}

fn stored(placed: &Placed, payload: Bytes) -> StoredBatch {
    let frame = &placed.frame;
    StoredBatch { base_offset: frame.base_offset, count: frame.count, received_at: frame.stamp, payload }
}

impl Index {
    /// Adds a segment; `marks` are those of its header.
    pub fn add_segment(&mut self, number: u64, file: File, path: PathBuf, length: u64, marks: Marks) {
        self.segments.insert(number, Kept { file: Arc::new(file), path, length, holds: Marks::new() });
        for (of, next) in marks {
            let known = self.next.entry(of).or_insert(next);
            *known = next.max(*known);
        }
    }

    /// Adds a batch at the end of its partition.
    pub fn add(&mut self, segment: u64, placed: Placed, payload: Option<Bytes>, cache: usize) {
        let of = placed.frame.of;
        self.last_stamp = self.last_stamp.max(placed.frame.stamp);
        let next = placed.frame.base_offset + u64::from(placed.frame.count);
        self.next.insert(of, next);
        if let Some(kept) = self.segments.get_mut(&segment) {
            kept.length = placed.at + placed.frame.size();
            kept.holds.insert(of, next);
        }
        if let Some(payload) = &payload {
            self.cached.push_back((of, placed.frame.base_offset, payload.len()));
            self.cached_bytes += payload.len();
        }
        self.partitions.entry(of).or_default().push_back(Entry { placed, segment, payload });
        while self.cached_bytes > cache
            && let Some((of, base, bytes)) = self.cached.pop_front()
        {
            self.cached_bytes -= bytes;
            if let Some(entry) = self.entry_mut(of, base) {
                entry.payload = None;
            }
        }
    }

    fn entry_mut(&mut self, of: TopicPartition, base: u64) -> Option<&mut Entry> {
        let entries = self.partitions.get_mut(&of)?;
        let at = entries.binary_search_by_key(&base, |entry| entry.placed.frame.base_offset).ok()?;
        entries.get_mut(at)
    }

    /// The offset after the last record.
    pub fn next(&self, of: TopicPartition) -> u64 {
        self.next.get(&of).copied().unwrap_or_default()
    }

    /// Where every partition stands.
    pub fn marks(&self) -> Marks {
        self.next.clone()
    }

    /// The newest stamp.
    pub fn last_stamp(&self) -> i64 {
        self.last_stamp
    }

    /// Looks up a read.
    pub fn plan(&self, of: TopicPartition, from: u64, max_bytes: usize) -> Result<Planned, Error> {
        if from >= self.next(of) {
            return Ok(Planned(Vec::new()));
        }
        let first = self.first(of);
        if from < first {
            return Err(Error::Trimmed { of, from, first });
        }
        let Some(entries) = self.partitions.get(&of) else { return Ok(Planned(Vec::new())) };
        let start = entries.partition_point(|entry| entry.placed.frame.base_offset <= from).saturating_sub(1);
        let mut sources = Vec::new();
        let mut bytes = 0;
        for entry in entries.range(start..) {
            let size = entry.placed.frame.length as usize;
            if !sources.is_empty() && bytes + size > max_bytes {
                break;
            }
            bytes += size;
            sources.push(match (&entry.payload, self.segments.get(&entry.segment)) {
                (Some(payload), _) => Source::Memory(stored(&entry.placed, payload.clone())),
                (None, Some(kept)) => Source::Device(kept.file.clone(), kept.path.clone(), entry.placed),
                (None, None) => return Err(Error::Trimmed { of, from, first }),
            });
        }
        Ok(Planned(sources))
    }

    /// The first offset that is kept.
    pub fn first(&self, of: TopicPartition) -> u64 {
        let front = self.partitions.get(&of).and_then(VecDeque::front);
        front.map_or_else(|| self.next(of), |entry| entry.placed.frame.base_offset)
    }

    /// Allows everything before an offset to be forgotten; the files of segments that hold nothing else.
    pub fn trim(&mut self, of: TopicPartition, before: u64) -> Vec<PathBuf> {
        let low = self.low.entry(of).or_default();
        *low = before.max(*low);
        self.drop_passed()
    }

    /// Forgets segments that hold nothing but what may be forgotten; their files.
    pub fn drop_passed(&mut self) -> Vec<PathBuf> {
        let mut dropped = Vec::new();
        // The last segment is being written.
        while self.segments.len() > 1
            && let Some(oldest) = self.segments.first_entry()
        {
            let passed = |(of, next): (&TopicPartition, &u64)| self.low.get(of).is_some_and(|low| low >= next);
            if !oldest.get().holds.iter().all(passed) {
                break;
            }
            let (number, kept) = oldest.remove_entry();
            for of in kept.holds.keys() {
                let Some(entries) = self.partitions.get_mut(of) else { continue };
                while entries.front().is_some_and(|entry| entry.segment == number) {
                    entries.pop_front();
                }
            }
            dropped.push(kept.path);
        }
        dropped
    }

    /// The stamp of the oldest batch in a segment.
    pub fn first_stamp(&self, segment: u64) -> Option<i64> {
        let of_segment = |entries: &VecDeque<Entry>| {
            let from = entries.partition_point(|entry| entry.segment < segment);
            entries.get(from).filter(|entry| entry.segment == segment).map(|entry| entry.placed.frame.stamp)
        };
        self.partitions.values().filter_map(of_segment).min()
    }

    /// Bytes of all segments.
    pub fn bytes(&self) -> u64 {
        self.segments.values().map(|kept| kept.length).sum()
    }
}
