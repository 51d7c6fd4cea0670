//! The state folded once more: the oldest base and the records after it, compared with the state that is there.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use fjall::UserValue;
use parking_lot::Mutex;
use sendtrail_eventlog::{EventLog, Record};
use sendtrail_schemas::codec;
use sendtrail_schemas::record::{self, Body};
use sendtrail_schemas::secret::hex;
use sendtrail_schemas::time::Millis;
use sendtrail_schemas::topic::{Topic, TopicPartition};

use super::{IntakeArchive, Kept, segment};
use crate::core::effects::Effects;
use crate::core::overlay::{Overlay, StoreKey};
use crate::core::rows::is_expired;
use crate::core::step::skip;
use crate::partition::{Prepared, load_for, prepare, step_safely};
use crate::snapshots::Until;
use crate::store::{StoreView, Writes};
use crate::{Error, Store, Views, blocking};

/// Records between two checkpoints of the fold.
const CHECKPOINT: u64 = 100_000;
/// Bytes of the log that are read together.
const READ_BYTES: usize = 1 << 20;

/// What came of a partition.
#[derive(Debug)]
pub struct RebuiltState {
    /// The offset that it began from.
    pub from: u64,
    /// The offset that it came to.
    pub to: u64,
    /// Rows of the state there.
    pub rows: u64,
    /// What could not be used on the way, each with its reason.
    pub damage: Vec<String>,
    /// How the state that is there compares.
    pub verdict: Verdict,
}

/// How the state that is there compares with the one that was folded.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Byte for byte the same.
    Equal,
    /// There is no state.
    Absent,
    /// Not the same.
    Differs {
        /// Rows that are not the same, or that one of both lacks.
        rows: u64,
        /// Which one is the first.
        first: String,
    },
    /// Everything that is kept is later than the state.
    Before {
        /// The offset that the state is at.
        state: u64,
    },
    /// Neither the archive nor the log has the records up to the state's offset.
    Behind {
        /// The offset that the state is at.
        state: u64,
    },
}

/// Folds a partition into `scratch`, which must have nothing of it, up to the offset at which `live` is, or as far as there is
/// anything. `log` has what is not archived yet.
///
/// # Errors
/// [`Error::Intake`] when there is nothing that the state could be folded from; others when something could not be read or
/// written.
pub async fn rebuild(
    archive: &IntakeArchive,
    log: Option<Arc<dyn EventLog>>,
    live: &Store,
    scratch: &Store,
    partition: u32,
) -> Result<RebuiltState, Error> {
    let kept = archive.kept(partition).await?;
    let target = live.progress(partition)?.map(|progress| progress.next_offset);
    let source = Source { archive, log, kept: &kept, partition, passed_over: Mutex::default() };
    let (mut damage, mut behind) = (Vec::new(), None);
    // From the oldest, because that proves the most.
    let mut bases: Vec<Option<&(u64, String)>> = kept.bases.iter().rev().map(Some).collect();
    // Where nothing was let go, and where nothing is archived yet.
    if kept.segments.first().map_or(bases.is_empty(), |segment| segment.first == 0) {
        bases.insert(0, None);
    }
    for base in bases {
        let from = base.map_or(0, |(offset, _)| *offset);
        if target.is_some_and(|target| from > target) {
            continue;
        }
        match source.fold(scratch, base.map(|(_, name)| &**name), target).await {
            Ok(()) => {
                let to = scratch.progress(partition)?.map_or(0, |progress| progress.next_offset);
                if let Some(state) = target.filter(|state| *state > to) {
                    // Perhaps a later base is further than the records are.
                    behind = Some((from, to, Verdict::Behind { state }));
                } else {
                    let (here, there) = (live.view(), scratch.view());
                    let (verdict, rows) = blocking("compare states", move || compare(&here, &there, partition)).await?;
                    source.tell(&mut damage);
                    return Ok(RebuiltState { from, to, rows, damage, verdict });
                }
            }
            Err(
                error @ (Error::Intake(_) | Error::Snapshot(_) | Error::Archive(object_store::Error::NotFound { .. })),
            ) => damage.push(format!("from {from}: {error}")),
            Err(error) => return Err(error),
        }
        let there = scratch.clone();
        blocking("empty a partition", move || there.empty(partition)).await?;
    }
    if let Some((from, to, verdict)) = behind {
        source.tell(&mut damage);
        return Ok(RebuiltState { from, to, rows: 0, damage, verdict });
    }
    if let Some(state) = target.filter(|_| damage.is_empty()) {
        return Ok(RebuiltState { from: state, to: state, rows: 0, damage, verdict: Verdict::Before { state } });
    }
    let why = if damage.is_empty() { "no base and no intake from the beginning".into() } else { damage.join("; ") };
    Err(Error::Intake(format!("partition {partition} cannot be rebuilt: {why}")))
}

/// Puts a partition as it was folded in the place of what is there.
///
/// # Errors
/// [`Error::Store`]: do it again then.
pub async fn replace(live: &Store, views: &Views, scratch: &Store, partition: u32) -> Result<(), Error> {
    let (live, views, scratch) = (live.clone(), views.clone(), scratch.clone());
    blocking("replace a partition", move || {
        let folded = scratch.view();
        let Some(progress) = folded.progress(partition)? else { return Ok(()) };
        live.empty(partition)?;
        let mut rows = folded.rows(partition);
        loop {
            let some = rows.by_ref().take(CHECKPOINT as usize);
            let some = some.map(|row| row.map(|(key, value)| (key, Some(value.to_vec()))));
            let some = some.collect::<Result<Vec<_>, Error>>()?;
            if some.is_empty() {
                break;
            }
            live.put(partition, some)?;
        }
        // Last comes what makes it a state.
        views.rebuild(&live.view(), partition)?;
        live.set_progress(partition, &progress)
    })
    .await
}

/// Where records come from.
struct Source<'a> {
    archive: &'a IntakeArchive,
    log: Option<Arc<dyn EventLog>>,
    kept: &'a Kept,
    partition: u32,
    /// Segments that are damaged, of which the log still had the records.
    passed_over: Mutex<BTreeSet<String>>,
}

impl Source<'_> {
    /// Adds what was passed over to what is damaged.
    fn tell(&self, damage: &mut Vec<String>) {
        damage.extend(std::mem::take(&mut *self.passed_over.lock()));
    }

    /// Folds what comes after a base, or after nothing.
    async fn fold(&self, scratch: &Store, base: Option<&str>, target: Option<u64>) -> Result<(), Error> {
        let mut from = 0;
        if let Some(name) = base {
            let manifest = self.archive.objects.manifest(self.partition, name).await?;
            self.archive.objects.fill(scratch, self.partition, &manifest, &Until::never()).await?;
            from = manifest.progress.next_offset;
            let there = scratch.clone();
            let partition = self.partition;
            blocking("restore a base", move || there.set_progress(partition, &manifest.progress)).await?;
        }
        let skips = self.skips(from).await?;
        let mut fold = Fold::begin(scratch.clone(), self.partition, skips)?;
        let mut next = from;
        while target.is_none_or(|target| next < target) && !fold.is_over {
            let records = self.records(next).await?;
            let Some(last) = records.last() else { break };
            let after = last.offset + 1;
            fold = blocking("fold", move || {
                for record in &records {
                    if record.offset >= next && target.is_none_or(|target| record.offset < target) {
                        fold.apply(record)?;
                    }
                }
                Ok::<_, Error>(fold)
            })
            .await?;
            next = after;
        }
        blocking("fold", move || fold.checkpoint()).await
    }

    /// Which records later ones tell to leave out: those of the archive, and of the log after it.
    async fn skips(&self, from: u64) -> Result<HashMap<u64, String>, Error> {
        let (mut skips, mut next) = (HashMap::new(), from);
        loop {
            let records = self.records(next).await?;
            let Some(last) = records.last() else { return Ok(skips) };
            next = last.offset + 1;
            let found = blocking("look for skips", move || {
                let skip = |record: &Record| match codec::decode::<record::Record>(&record.value) {
                    Ok(record::Record { body: Some(Body::Skip(skip)), .. }) => Some((skip.offset, skip.reason)),
                    _ => None,
                };
                Ok::<_, Error>(records.iter().filter_map(skip).collect::<Vec<_>>())
            });
            skips.extend(found.await?);
        }
    }

    /// The next records, some before an offset perhaps; none: there are no more.
    async fn records(&self, next: u64) -> Result<Vec<Record>, Error> {
        let mut fault = None;
        let has = |segment: &&segment::Name| segment.first <= next && next < segment.next;
        for name in self.kept.segments.iter().filter(has) {
            let bytes = self.archive.objects.get(self.partition, &name.to_string()).await?;
            let to_read = name.clone();
            match blocking("read a segment", move || segment::read(&to_read, &bytes)).await {
                Ok(records) => return Ok(records),
                Err(error) => fault = Some(error),
            }
        }
        let missing = || Error::Intake(format!("records from {next} on are missing"));
        if let Some(log) = &self.log {
            let of = TopicPartition::new(Topic::Intake, self.partition);
            match sendtrail_eventlog::read(log, of, next, READ_BYTES).await {
                Ok(batches) => {
                    self.passed_over.lock().extend(fault.map(|fault| fault.to_string()));
                    return Ok(batches.iter().flat_map(|batch| batch.records(next)).collect());
                }
                Err(sendtrail_eventlog::Error::Trimmed { .. }) => return Err(fault.unwrap_or_else(missing)),
                Err(error) => return Err(error.into()),
            }
        }
        match fault {
            Some(fault) => Err(fault),
            None if self.kept.end().is_some_and(|end| next < end) => Err(missing()),
            None => Ok(Vec::new()),
        }
    }
}

/// The fold of one partition: what its owner does, without what comes of it.
struct Fold {
    store: Store,
    overlay: Overlay,
    effects: Effects,
    skips: HashMap<u64, String>,
    since: u64,
    /// Something comes that nobody told to leave out yet: the server finds out.
    is_over: bool,
}

impl Fold {
    fn begin(store: Store, partition: u32, skips: HashMap<u64, String>) -> Result<Self, Error> {
        let progress = store.progress(partition)?.unwrap_or_default();
        let overlay = Overlay::new(partition, progress);
        Ok(Self { store, overlay, effects: Effects::default(), skips, since: 0, is_over: false })
    }

    fn apply(&mut self, record: &Record) -> Result<(), Error> {
        if self.is_over {
            return Ok(());
        }
        let (offset, received_at) = (record.offset, Millis(record.received_at));
        match prepare(record, &self.skips) {
            Prepared::Step(record, mut keys) => {
                load_for(&self.store, &mut self.overlay, &record, &mut keys)?;
                let (overlay, effects) = (&mut self.overlay, &mut self.effects);
                if step_safely(overlay, *record, &keys, offset, received_at, effects).is_err() {
                    // The overlay is in doubt: what was before it is in the store.
                    self.is_over = true;
                    let kept = self.store.progress(self.overlay.partition)?.unwrap_or_default();
                    self.overlay = Overlay::new(self.overlay.partition, kept);
                    return Ok(());
                }
            }
            Prepared::Skip(payload, reason) => {
                let reason = reason.to_owned();
                skip(&mut self.overlay, payload.to_vec(), &reason, offset, received_at, &mut self.effects);
            }
            Prepared::Poison(_) => self.is_over = true,
            Prepared::Newer(why) => return Err(Error::Missing(format!("intake record {offset}: {why}"))),
        }
        self.effects.clear();
        self.since += 1;
        if self.since >= CHECKPOINT { self.checkpoint() } else { Ok(()) }
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        self.since = 0;
        self.store.commit(self.overlay.partition, Writes::take(&mut self.overlay))
    }
}

/// Compares the states of a partition, row by row; and how many rows the second has. Rows that mean nothing any more may be
/// there or not.
fn compare(live: &StoreView, folded: &StoreView, partition: u32) -> Result<(Verdict, u64), Error> {
    let (here, there) = (live.progress(partition)?, folded.progress(partition)?);
    let hour = there.as_ref().map_or(0, |progress| Millis(progress.last_t).hour().max(0) as u32);
    let (mut differing, mut first, mut rows) = (0, None, 0);
    let mut differs = |what: String| {
        differing += 1;
        first.get_or_insert(what);
    };
    if here != there {
        differs("where the partition stands".into());
    }
    let (mut ours, mut others) = (meaning(live, partition, hour), meaning(folded, partition, hour));
    let (mut one, mut other) = (ours.next().transpose()?, others.next().transpose()?);
    loop {
        let order = match (&one, &other) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((one, _)), Some((other, _))) => one.cmp(other),
        };
        let (left, right) = (one.as_ref().filter(|_| order.is_le()), other.as_ref().filter(|_| order.is_ge()));
        match (left, right) {
            (Some((key, _)), None) => differs(format!("{} is not in what was folded", name(key))),
            (None, Some((key, _))) => differs(format!("{} is not in the state", name(key))),
            (Some((key, one)), Some((_, other))) if one != other => differs(format!("{} is another", name(key))),
            _ => {}
        }
        if order.is_ge() {
            rows += 1;
            other = others.next().transpose()?;
        }
        if order.is_le() {
            one = ours.next().transpose()?;
        }
    }
    let verdict = match first {
        _ if here.is_none() => Verdict::Absent,
        Some(first) => Verdict::Differs { rows: differing, first },
        None => Verdict::Equal,
    };
    Ok((verdict, rows))
}

/// Rows that mean something after an hour.
fn meaning(
    of: &StoreView,
    partition: u32,
    hour: u32,
) -> impl Iterator<Item = Result<(StoreKey, UserValue), Error>> + '_ {
    of.rows(partition).filter(move |row| match row {
        Ok((StoreKey::Row(_), value)) => !is_expired(value, hour),
        _ => true,
    })
}

fn name(key: &StoreKey) -> String {
    let (what, key) = match key {
        StoreKey::Account(key) => ("the account row", key),
        StoreKey::Row(key) => ("the row", key),
    };
    format!("{what} {}", hex(key))
}
