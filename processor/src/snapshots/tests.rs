use std::collections::BTreeMap;

use object_store::PutPayload;
use object_store::throttle::{ThrottleConfig, ThrottledStore};
use proptest::prelude::*;
use sendtrail_schemas::ids::AccountId;
use tempfile::TempDir;
use uuid::Uuid;

use super::*;
use crate::core::overlay::{Overlay, Progress};
use crate::core::rows::{FactSeen, Row, RowKey, RowKind};
use crate::store::Writes;

const PARTITION: u32 = 1;
/// Records that are sooner stepped.
const NEAR: u64 = 100;

/// A store with a taker of its own, as a processor has them.
struct Server {
    _folder: TempDir,
    store: Store,
    views: Views,
    taker: Taker,
}

async fn server(snapshots: &Arc<Snapshots>) -> (Server, bool) {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), 2, 1 << 20).unwrap();
    let views = Views::open(&store, Arc::default()).unwrap();
    let restored = snapshots.restore(&store, &views, PARTITION, u64::MAX, false, &patient()).await.unwrap();
    let taker = Taker::begin(snapshots.clone(), store.clone(), PARTITION, &patient()).await;
    (Server { _folder: folder, store, views, taker }, restored)
}

fn patient() -> Until {
    Until::new(&CancellationToken::new(), Duration::from_secs(600))
}

fn key(n: u8) -> RowKey {
    RowKey { account: AccountId(Uuid::from_u128(1)), kind: RowKind::Fact, hash: u128::from(n) }
}

/// Rows by their keys; none stands for one that is removed.
type Changes = BTreeMap<u8, Option<i64>>;

impl Server {
    /// A checkpoint at an offset, as the completer makes it.
    fn checkpoint(&mut self, offset: u64, changes: &Changes) {
        let progress = Progress { next_offset: offset, last_t: offset as i64, ..Progress::default() };
        let mut overlay = Overlay::new(PARTITION, progress);
        for (n, at) in changes {
            overlay.put_row(key(*n), at.map(|at| Row::Fact(FactSeen { at, horizon_hours: 72, kinds: 0 })));
        }
        let writes = Writes::take(&mut overlay);
        let keys: Vec<_> = writes.keys().collect();
        self.store.commit(PARTITION, writes).unwrap();
        tokio::task::block_in_place(|| self.taker.note(keys, offset));
    }

    fn finish(&mut self) {
        tokio::task::block_in_place(|| self.taker.finish());
    }

    fn rows(&self) -> BTreeMap<u8, i64> {
        let at = |n: u8| match self.store.row(PARTITION, &key(n)).unwrap() {
            Some(Row::Fact(seen)) => Some((n, seen.at)),
            _ => None,
        };
        (0..=u8::MAX).filter_map(at).collect()
    }

    fn offset(&self) -> u64 {
        self.store.progress(PARTITION).unwrap().map_or(0, |progress| progress.next_offset)
    }
}

fn names(folder: &TempDir) -> Vec<String> {
    let entries = std::fs::read_dir(folder.path().join(format!("partition-{PARTITION:05}"))).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn in_folder(every: Duration) -> (TempDir, Arc<Snapshots>) {
    with_limits(every, Limits { near: NEAR, ..LIMITS })
}

fn with_limits(every: Duration, limits: Limits) -> (TempDir, Arc<Snapshots>) {
    let folder = TempDir::new().unwrap();
    let snapshots = Snapshots::open(&folder.path().into(), every).unwrap();
    (folder, Arc::new(Snapshots { limits, ..snapshots }))
}

/// Nothing can be written, or everything again.
fn set_away(folder: &TempDir, is_away: bool) {
    let (place, aside) = (folder.path().join(format!("partition-{PARTITION:05}")), folder.path().join("aside"));
    if is_away {
        std::fs::create_dir_all(&place).unwrap();
        std::fs::rename(&place, aside).unwrap();
        std::fs::write(place, "").unwrap();
    } else {
        std::fs::remove_file(&place).unwrap();
        std::fs::rename(aside, place).unwrap();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A step of a history: a checkpoint, or another server that goes on.
#[derive(Clone, Debug)]
enum Step {
    Checkpoint(Changes),
    /// Another in an outage, during which nothing can be written.
    Outage(Changes),
    /// In order, or as by a crash.
    Move {
        in_order: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let changes = proptest::collection::btree_map(0..40u8, proptest::option::weighted(0.8, 1..1_000i64), 1..8);
    let step = prop_oneof![
        6 => changes.clone().prop_map(Step::Checkpoint),
        1 => changes.prop_map(Step::Outage),
        1 => any::<bool>().prop_map(|in_order| Step::Move { in_order }),
    ];
    proptest::collection::vec(step, 1..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whoever takes over has the state that some server had at the very offset that it begins at, and the last one
    /// after a move in order.
    #[test]
    fn whoever_takes_over_has_what_was_at_its_offset(steps in steps()) {
        runtime().block_on(async {
            // At every checkpoint, if the one before is written; small, so that all that is rare happens.
            let limits = Limits { file_bytes: 200, near: NEAR, remembered: 12, slack: 6, files: 8 };
            let (folder, snapshots) = with_limits(Duration::ZERO, limits);
            let mut server = server(&snapshots).await.0;
            let mut history: BTreeMap<u64, BTreeMap<u8, i64>> = BTreeMap::from([(0, BTreeMap::new())]);
            let mut offset = 0;
            for step in steps {
                let is_away = matches!(step, Step::Outage(_));
                match step {
                    Step::Checkpoint(changes) | Step::Outage(changes) => {
                        if is_away {
                            // What is on its way gets there.
                            server.finish();
                            set_away(&folder, true);
                        }
                        // Far enough, so that a snapshot is taken rather than the log.
                        offset += 2 * NEAR;
                        let mut rows = server.rows();
                        for (n, at) in &changes {
                            match at {
                                Some(at) => drop(rows.insert(*n, *at)),
                                None => drop(rows.remove(n)),
                            }
                        }
                        server.checkpoint(offset, &changes);
                        prop_assert_eq!(server.rows(), rows.clone());
                        history.insert(offset, rows);
                        if is_away {
                            server.finish();
                            set_away(&folder, false);
                        }
                    }
                    Step::Move { in_order } => {
                        if in_order {
                            server.finish();
                        }
                        let before = server.offset();
                        let (next, _) = super::tests::server(&snapshots).await;
                        server = next;
                        offset = server.offset();
                        prop_assert!(offset <= before);
                        prop_assert!(!in_order || offset == before);
                        prop_assert_eq!(&server.rows(), &history[&offset]);
                    }
                }
            }
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_of_what_changed_and_a_damaged_one_is_passed_over() {
    let (folder, snapshots) = in_folder(Duration::from_secs(3_600));
    let (mut first, restored) = server(&snapshots).await;
    assert!(!restored);
    let all: Changes = (0..100).map(|n| (n, Some(i64::from(n)))).collect();
    first.checkpoint(NEAR + 1, &all);
    first.finish();
    first.checkpoint(2 * NEAR, &BTreeMap::from([(7, Some(1_000)), (8, None)]));
    first.finish();
    let listed = names(&folder);
    assert_eq!(listed.len(), 4, "{listed:?}");
    let newest = Manifest::read(&listed[1], &snapshots.get(PARTITION, &listed[1]).await.unwrap()).unwrap();
    assert_eq!((newest.rows(), newest.whole), ((100, 2), 1), "the second is of two rows");

    let (second, restored) = server(&snapshots).await;
    assert!(restored);
    assert_eq!((second.offset(), second.rows().len(), second.rows()[&7]), (2 * NEAR, 99, 1_000));

    // Whoever is near goes on with what it has.
    first.checkpoint(2 * NEAR + 5, &BTreeMap::from([(9, Some(5))]));
    let restore = async |end, is_old| {
        snapshots.restore(&first.store, &first.views, PARTITION, end, is_old, &patient()).await.unwrap()
    };
    assert!(!restore(u64::MAX, false).await);
    assert_eq!(first.offset(), 2 * NEAR + 5);

    // One that is further than the log is another log's.
    let (far, _) = server(&snapshots).await;
    assert_eq!(far.offset(), 2 * NEAR);
    let empty = TempDir::new().unwrap();
    let store = Store::open(empty.path(), 2, 1 << 20).unwrap();
    let views = Views::open(&store, Arc::default()).unwrap();
    assert!(snapshots.restore(&store, &views, PARTITION, 2 * NEAR - 1, false, &patient()).await.unwrap());
    assert_eq!(store.progress(PARTITION).unwrap().unwrap().next_offset, NEAR + 1);
    // What is near is taken none the less when the log does not reach back to what is here.
    store.set_progress(PARTITION, &Progress { next_offset: 2 * NEAR - 5, ..Progress::default() }).unwrap();
    assert!(!snapshots.restore(&store, &views, PARTITION, u64::MAX, false, &patient()).await.unwrap());
    assert!(snapshots.restore(&store, &views, PARTITION, u64::MAX, true, &patient()).await.unwrap());
    assert_eq!(store.progress(PARTITION).unwrap().unwrap().next_offset, 2 * NEAR);

    // Whoever is told to stop gives nothing up.
    store.set_progress(PARTITION, &Progress { next_offset: NEAR, ..Progress::default() }).unwrap();
    let over = patient();
    over.stop.cancel();
    assert!(snapshots.restore(&store, &views, PARTITION, u64::MAX, true, &over).await.is_err());
    assert_eq!(store.progress(PARTITION).unwrap().unwrap().next_offset, NEAR);

    let damage = async |name: &str, to: &[u8]| {
        let payload = PutPayload::from(to.to_vec());
        snapshots.objects.put(&path(PARTITION, name), payload).await.unwrap();
    };
    damage(&listed[3], b"STROWS\0\x01 nonsense").await;
    let (third, restored) = server(&snapshots).await;
    assert!(restored, "the one before");
    assert_eq!((third.offset(), third.rows().len(), third.rows()[&7]), (NEAR + 1, 100, 7));
    damage(&listed[1], b"nonsense").await;
    assert_eq!(server(&snapshots).await.0.offset(), NEAR + 1);
    damage(&listed[0], b"").await;
    let (fourth, restored) = server(&snapshots).await;
    assert!(!restored);
    assert_eq!((fourth.offset(), fourth.rows().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_stood_still_leaves_what_its_successor_builds_on() {
    let (folder, snapshots) = in_folder(Duration::ZERO);
    let mut frozen = server(&snapshots).await.0;
    frozen.checkpoint(2 * NEAR, &BTreeMap::from([(1, Some(1))]));
    frozen.finish();
    let (mut successor, _) = server(&snapshots).await;
    for n in 2..=3 {
        successor.checkpoint(n * 2 * NEAR, &BTreeMap::from([(n as u8, Some(1))]));
        successor.finish();
    }
    let long_ago = std::time::UNIX_EPOCH + Duration::from_millis((Millis::wall().0 - 2 * HOUR) as u64);
    for name in names(&folder) {
        let path = folder.path().join(format!("partition-{PARTITION:05}")).join(name);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
    }
    // It builds on what is old by now.
    successor.checkpoint(8 * NEAR, &BTreeMap::from([(4, Some(1))]));
    successor.finish();
    frozen.checkpoint(2 * NEAR + 1, &BTreeMap::from([(9, Some(1))]));
    frozen.finish();
    let (next, restored) = server(&snapshots).await;
    assert!(restored);
    assert_eq!((next.offset(), next.rows().keys().copied().collect::<Vec<_>>()), (8 * NEAR, vec![1, 2, 3, 4]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_names_goes_when_it_is_old() {
    let (folder, snapshots) = in_folder(Duration::ZERO);
    let mut server = server(&snapshots).await.0;
    for n in 1..=4 {
        server.checkpoint(n * 2 * NEAR, &BTreeMap::from([(n as u8, Some(1))]));
        server.finish();
    }
    assert_eq!(names(&folder).iter().filter(|name| name.starts_with("manifest")).count(), 4, "none is old");
    let long_ago = std::time::UNIX_EPOCH + Duration::from_millis((Millis::wall().0 - 2 * HOUR) as u64);
    for name in names(&folder) {
        let file = std::fs::File::options()
            .write(true)
            .open(folder.path().join(format!("partition-{PARTITION:05}")).join(name))
            .unwrap();
        file.set_modified(long_ago).unwrap();
    }
    server.checkpoint(10 * NEAR, &BTreeMap::from([(9, Some(1))]));
    server.finish();
    let left = names(&folder);
    assert_eq!(left.iter().filter(|name| name.starts_with("manifest")).count(), KEPT);
    // All files are named still: each snapshot is of what changed.
    assert_eq!(left.len(), KEPT + 5, "{left:?}");
    let (next, restored) = super::tests::server(&snapshots).await;
    assert!(restored);
    assert_eq!(next.rows().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_state_may_take_long_and_a_store_that_hangs_may_not() {
    let limits = Limits { file_bytes: 100, near: NEAR, ..LIMITS };
    let (folder, snapshots) = with_limits(Duration::from_secs(3_600), limits.clone());
    let mut first = server(&snapshots).await.0;
    first.checkpoint(2 * NEAR, &(0..60u8).map(|n| (n, Some(1 + i64::from(n)))).collect());
    first.finish();
    assert!(names(&folder).len() > 15, "{:?}", names(&folder));
    let slow = |wait_get_per_call| {
        let config = ThrottleConfig { wait_get_per_call, ..ThrottleConfig::default() };
        let objects = Arc::new(ThrottledStore::new(snapshots.objects.clone(), config));
        Snapshots { objects, every: snapshots.every, limits: limits.clone(), log: String::new() }
    };
    let empty = TempDir::new().unwrap();
    let store = Store::open(empty.path(), 2, 1 << 20).unwrap();
    let views = Views::open(&store, Arc::default()).unwrap();
    let offset = || store.progress(PARTITION).unwrap().unwrap().next_offset;

    // All of it takes longer than any of it may, which is longer than a machine stalls.
    let patience = Duration::from_secs(5);
    let (begun, until) = (std::time::Instant::now(), Until::new(&CancellationToken::new(), patience));
    let snail = slow(Duration::from_millis(200));
    assert!(snail.restore(&store, &views, PARTITION, u64::MAX, false, &until).await.unwrap());
    assert!(begun.elapsed() > patience);
    assert_eq!(offset(), 2 * NEAR);

    // What hangs is given up, once for all, and nothing else is: neither what is here nor the partition.
    store.set_progress(PARTITION, &Progress { next_offset: 1, ..Progress::default() }).unwrap();
    let (stop, hanging) = (CancellationToken::new(), slow(Duration::from_secs(3_600)));
    let until = Until::new(&stop, Duration::from_millis(100));
    let told = hanging.restore(&store, &views, PARTITION, u64::MAX, false, &until).await.unwrap_err().to_string();
    assert!(told.contains("not read in time"), "{told}");
    let told = until.read(hanging.list(PARTITION)).await.unwrap_err().to_string();
    assert!(told.contains("not to be read any longer"), "{told}");
    assert_eq!((offset(), stop.is_cancelled()), (1, false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_of_another_log_is_neither_taken_nor_built_on_nor_deleted() {
    let (folder, unnamed) = in_folder(Duration::ZERO);
    let of = |log: &str| {
        let snapshots = Snapshots::open(&folder.path().into(), Duration::ZERO).unwrap().of(Some(log.into()));
        Arc::new(Snapshots { limits: unnamed.limits.clone(), ..snapshots })
    };
    let logs = ["Kafka cluster one", "Kafka cluster two"].map(of);
    for round in 1..=3u8 {
        for (snapshots, own) in logs.iter().zip([10, 20]) {
            // Both are at the same offsets, so that each finds the other's there.
            let (mut server, restored) = server(snapshots).await;
            assert_eq!(restored, round > 1);
            let before = (1..round).map(|round| own + round);
            assert_eq!(server.rows().into_keys().collect::<Vec<_>>(), before.collect::<Vec<_>>());
            server.checkpoint(u64::from(round) * 2 * NEAR, &BTreeMap::from([(own + round, Some(1))]));
            server.finish();
        }
        // What is old and named by nobody would be deleted in the next round.
        let long_ago = std::time::UNIX_EPOCH + Duration::from_millis((Millis::wall().0 - 2 * HOUR) as u64);
        for name in names(&folder) {
            let path = folder.path().join(format!("partition-{PARTITION:05}")).join(name);
            std::fs::File::options().write(true).open(path).unwrap().set_modified(long_ago).unwrap();
        }
    }
    // The first goes further on its own, and its files that are old go; the other's stay.
    let mut first = server(&logs[0]).await.0;
    for round in 4..=6u8 {
        first.checkpoint(u64::from(round) * 2 * NEAR, &BTreeMap::from([(10 + round, Some(1))]));
        first.finish();
    }
    let (second, restored) = server(&logs[1]).await;
    assert!(restored);
    assert_eq!((second.offset(), second.rows().into_keys().collect::<Vec<_>>()), (6 * NEAR, vec![21, 22, 23]));

    let listed = names(&folder);
    let newest = listed.iter().rfind(|name| name.starts_with("manifest")).unwrap();
    let refused = logs[1].read(&second.store, &second.views, PARTITION, newest, &patient()).await.unwrap_err();
    let told = refused.to_string();
    assert!(told.contains("Kafka cluster one; this one is Kafka cluster two"), "{told}");
    assert_eq!(second.offset(), 6 * NEAR, "what is here stays");

    // Nor is it deleted where one's own are, since the state was folded once more.
    let manifests = || names(&folder).into_iter().filter(|name| name.starts_with("manifest")).collect::<Vec<_>>();
    let theirs = manifests().into_iter().filter(|name| logs[1].is_anothers(name)).collect::<Vec<_>>();
    assert!(!theirs.is_empty() && theirs.len() < manifests().len());
    logs[1].forget(PARTITION, 0).await.unwrap();
    assert_eq!(manifests(), theirs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_does_not_say_whose_it_is_is_taken_and_gone_on_from() {
    let (folder, unnamed) = in_folder(Duration::ZERO);
    let mut before = server(&unnamed).await.0;
    before.checkpoint(2 * NEAR, &BTreeMap::from([(1, Some(1))]));
    before.finish();
    let named = Snapshots::open(&folder.path().into(), Duration::ZERO).unwrap().of(Some("folder 1".into()));
    let named = Arc::new(Snapshots { limits: unnamed.limits.clone(), ..named });
    let (mut after, restored) = server(&named).await;
    assert!(restored);
    after.checkpoint(4 * NEAR, &BTreeMap::from([(2, Some(1))]));
    after.finish();
    // Whoever cannot tell takes it, too.
    for snapshots in [&named, &unnamed] {
        let (next, restored) = server(snapshots).await;
        assert!(restored);
        assert_eq!((next.offset(), next.rows().len()), (4 * NEAR, 2));
    }
}
