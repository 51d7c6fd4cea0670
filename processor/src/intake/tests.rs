//! Random histories through a real log and a real store, folded once more.

mod site;

use std::path::PathBuf;
use std::sync::Arc;

use proptest::prelude::*;
use sendtrail_eventlog::{Error as LogError, EventLog, Reader};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::record::{Body, Tick};
use sendtrail_schemas::time::HOUR;
use uuid::Uuid;

use self::site::{INTAKE, Op, Site, op};
use super::archiver::Progress;
use super::*;
use crate::Views;
use crate::core::overlay::Overlay;
use crate::core::rows::{FactSeen, Row, RowKey, RowKind};
use crate::store::Writes;

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn what_is_folded_again_is_the_state(
        ops in prop::collection::vec(op(), 0..120),
        is_archived in any::<bool>(),
        has_log in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut site = Site::open().await;
            for op in ops {
                site.do_one(op).await;
            }
            site.apply().await;
            if is_archived || !has_log {
                site.do_one(Op::Archive).await;
            }
            let (rebuilt, scratch, _folder) = site.rebuild(has_log).await;
            let rebuilt = rebuilt.unwrap();
            prop_assert_eq!(&rebuilt.verdict, &Verdict::Equal);
            prop_assert_eq!(rebuilt.to, site.end());
            prop_assert!(rebuilt.damage.is_empty());
            // What is lost comes back from it.
            site.store.empty(0).unwrap();
            let views = Views::open(&site.store, Arc::default()).unwrap();
            replace_state(&site.store, &views, &scratch, 0).await.unwrap();
            prop_assert_eq!(site.rebuild(has_log).await.0.unwrap().verdict, Verdict::Equal);
            Ok(())
        })?;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_is_other_than_it_was_is_named() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    let key = RowKey { account: AccountId(Uuid::from_u128(2)), kind: RowKind::Fact, hash: 7 };
    let mut overlay = Overlay::new(0, site.store.progress(0).unwrap().unwrap());
    overlay.put_row(key, Some(Row::Fact(FactSeen { at: site.now, horizon_hours: 72, kinds: 0 })));
    site.store.commit(0, Writes::take(&mut overlay)).unwrap();
    let found = site.rebuild(false).await.0.unwrap();
    let Verdict::Differs { rows, first } = found.verdict else { panic!("{found:?}") };
    assert_eq!(rows, 1);
    assert!(first.contains(&sendtrail_schemas::secret::hex(&key.bytes())), "{first}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_gone_is_folded_as_far_as_intake_is_archived() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    let end = site.end();
    site.put(1, Site::fact("later", EventType::Send)).await;
    site.store.empty(0).unwrap();
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!((rebuilt.verdict, rebuilt.to), (Verdict::Absent, end));
    assert_eq!(site.rebuild(true).await.0.unwrap().to, end + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_further_than_intake_is_said_to_be() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    site.put(1, Site::fact("later", EventType::Send)).await;
    site.apply().await;
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Behind { state: site.end() });
    assert_eq!(site.rebuild(true).await.0.unwrap().verdict, Verdict::Equal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_or_missing_file_is_named_and_a_later_base_taken() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    site.do_one(Op::Base).await;
    site.days(3, HOUR).await;
    let first = site.files("intake-").remove(0);
    flip(&first);
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!(rebuilt.verdict, Verdict::Equal);
    assert!(rebuilt.from > 0);
    assert!(rebuilt.damage[0].contains("intake-00000000000000000000-"), "{:?}", rebuilt.damage);
    std::fs::remove_file(&first).unwrap();
    // What begins later needs no explanation: it may have been let go.
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Equal);
    let in_between = site.files("intake-").into_iter().nth_back(1).unwrap();
    std::fs::remove_file(&in_between).unwrap();
    let error = site.rebuild(false).await.0.unwrap_err().to_string();
    assert!(error.contains("are missing"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_base_is_passed_over() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    site.do_one(Op::Base).await;
    site.days(3, HOUR).await;
    site.do_one(Op::Base).await;
    std::fs::remove_file(site.files("intake-").remove(0)).unwrap();
    let rows = site.files("rows-").remove(0);
    let mut bytes = std::fs::read(&rows).unwrap();
    bytes[20] ^= 1;
    std::fs::write(&rows, &bytes).unwrap();
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!((rebuilt.verdict, rebuilt.damage.len()), (Verdict::Equal, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_log_keeps_what_is_not_archived() {
    let mut site = Site::open().await;
    let filler = "x".repeat(3_000);
    for n in 0..5 {
        site.put(1, Site::fact(&format!("{filler}{n}"), EventType::Send)).await;
    }
    site.apply().await;
    // What was applied may go, as far as the processor is concerned.
    site.retention.passed(Reader::Processor, INTAKE, site.end());
    assert!(site.log.read(INTAKE, 0, 1).is_ok());
    site.do_one(Op::Archive).await;
    assert!(site.log.read(INTAKE, 0, 1).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_let_go_is_passed_over_by_a_base() {
    let mut site = Site::open().await;
    let filler = "x".repeat(3_000);
    for n in 0..5 {
        site.put(1, Site::fact(&format!("{filler}{n}"), EventType::Send)).await;
    }
    site.apply().await;
    // As in a server that kept no intake so far.
    site.log.trim(INTAKE, site.end());
    site.days(2, HOUR).await;
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!(rebuilt.verdict, Verdict::Equal);
    assert!(rebuilt.from > 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_log_lets_go_behind_an_archiver_is_told_and_then_passed_over_by_a_base() {
    let site = Site::open().await;
    let (archiver, mut progress) = (site.archiver(), Progress::default());
    archiver.once(&mut progress, true).await.unwrap();
    let (archived, before) = (site.end(), site.files(""));
    let filler = "x".repeat(3_000);
    for n in 0..5 {
        site.put(1, Site::fact(&format!("{filler}{n}"), EventType::Send)).await;
    }
    site.apply().await;
    // As a broker does, by its own rules.
    site.log.trim(INTAKE, site.end());
    let error = archiver.once(&mut progress, true).await.unwrap_err();
    let is_trimmed = |error: &Error| matches!(error, Error::Log(LogError::Trimmed { from, .. }) if *from == archived);
    assert!(is_trimmed(&error), "{error}");
    assert_eq!(site.files(""), before, "nothing is passed over before it is told");
    let base = site.state();
    archiver.once(&mut progress, true).await.unwrap();
    site.put(1, Site::fact("later", EventType::Send)).await;
    site.apply().await;
    archiver.once(&mut progress, true).await.unwrap();
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!((rebuilt.verdict, rebuilt.from, rebuilt.to), (Verdict::Equal, base, site.end()));
    let missing = format!("records from {archived} on are missing");
    assert!(rebuilt.damage.len() == 1 && rebuilt.damage[0].contains(&missing), "{:?}", rebuilt.damage);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_of_another_log_is_left_alone() {
    let mut site = Site::open().await;
    site.days(2, HOUR).await;
    let before = site.files("");
    let other = Site { archive: site.archive.clone(), ..Site::open().await };
    let error = other.archiver().once(&mut Progress::default(), true).await.unwrap_err().to_string();
    assert!(error.contains("another log"), "{error}");
    assert_eq!(site.files(""), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_kept_for_longer_than_it_may_be() {
    let mut site = Site::open().await;
    site.days(40, 2 * DAY).await;
    // The beginning was written just now, so everything is there.
    assert_eq!(site.rebuild(false).await.0.unwrap().from, 0);
    site.age();
    site.days(40, 2 * DAY).await;
    // Rows that nobody names stay an hour, for somebody may be about to.
    site.age();
    site.archive.prune(0).await.unwrap();
    let oldest = site.archive.kept(0).await.unwrap();
    let (_, name) = oldest.bases.last().unwrap();
    let base = site.archive.objects.manifest(0, name).await.unwrap();
    assert!(site.now - base.progress.last_t <= 30 * DAY);
    assert!(site.now - base.progress.last_t >= 20 * DAY, "there is far less than there may be");
    assert!(oldest.bases.len() <= 5, "{:?}", oldest.bases);
    assert!(oldest.segments.iter().all(|segment| segment.next > base.progress.next_offset));
    assert_eq!(site.files("rows-").len(), oldest.bases.len());
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!((rebuilt.verdict, rebuilt.from), (Verdict::Equal, base.progress.next_offset));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_stands_still_keeps_one_base() {
    let mut site = Site::open().await;
    site.days(2, DAY).await;
    site.age();
    site.now += 90 * DAY;
    site.archive.clock.reached(Millis(site.now));
    for _ in 0..3 {
        site.archiver().base_if_due().await.unwrap();
        site.archive.prune(0).await.unwrap();
    }
    let kept = site.archive.kept(0).await.unwrap();
    assert_eq!((kept.bases.len(), kept.segments.len()), (1, 0));
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Equal);
    // And goes on from there.
    site.put(1, Body::Tick(Tick {})).await;
    site.days(1, HOUR).await;
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Equal);
}

/// Has the last byte of a file be another.
fn flip(file: &PathBuf) {
    let mut bytes = std::fs::read(file).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_of_a_base_that_cannot_be_read_are_left() {
    let mut site = Site::open().await;
    site.days(2, DAY).await;
    site.do_one(Op::Base).await;
    site.days(12, 2 * DAY).await;
    let (bases, rows) = (site.files("manifest-"), site.files("rows-"));
    assert!(bases.len() >= 3 && rows.len() == bases.len());
    flip(&bases[1]);
    site.age();
    site.archive.prune(0).await.unwrap();
    assert_eq!(site.files("rows-"), rows);
    // One without its rows is passed over like one that is damaged.
    std::fs::remove_file(site.files("intake-").remove(0)).unwrap();
    std::fs::remove_file(&rows[0]).unwrap();
    let rebuilt = site.rebuild(false).await.0.unwrap();
    assert_eq!((rebuilt.verdict, rebuilt.damage.len()), (Verdict::Equal, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_last_file_that_is_torn_is_written_once_more() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    let last = site.files("intake-").pop().unwrap();
    let whole = std::fs::read(&last).unwrap();
    std::fs::write(&last, &whole[..whole.len() / 2]).unwrap();
    site.do_one(Op::Archive).await;
    assert_eq!(std::fs::read(&last).unwrap(), whole);
    assert_eq!(site.rebuild(false).await.0.unwrap().verdict, Verdict::Equal);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_with_another_history_is_not_added_to_what_is_archived() {
    let mut site = Site::open().await;
    site.days(3, HOUR).await;
    let before = site.files("");
    let mut other = Site { archive: site.archive.clone(), ..Site::open().await };
    while other.end() < site.end() + 3 {
        other.do_one(Op::Fact { account: 2, kind: EventType::Open, message: 3, wait: 0 }).await;
    }
    let error = other.archiver().once(&mut Progress::default(), true).await.unwrap_err().to_string();
    assert!(error.contains("another log"), "{error}");
    assert_eq!(site.files(""), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_older_than_the_log_is_no_base() {
    let site = Site::open().await;
    let filler = "x".repeat(3_000);
    for n in 0..5 {
        site.put(1, Site::fact(&format!("{filler}{n}"), EventType::Send)).await;
    }
    site.log.trim(INTAKE, site.end());
    let error = site.archiver().once(&mut Progress::default(), false).await.unwrap_err().to_string();
    assert!(error.contains("the log begins at"), "{error}");
    assert!(!site.folder.path().join("intake/partition-00000").exists(), "nothing is written");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_kept_of_a_state_that_was_replaced_is_forgotten() {
    let mut site = Site::open().await;
    site.days(2, DAY).await;
    site.do_one(Op::Base).await;
    site.days(12, 2 * DAY).await;
    let bases = site.files("manifest-").len();
    let second = site.archive.kept(0).await.unwrap().bases[bases - 2].0;
    site.archive.forget_bases(0, second).await.unwrap();
    assert_eq!(site.files("manifest-").len(), 2);
    // And without any, one is due as soon as intake does not begin with the log.
    std::fs::remove_file(site.files("intake-").remove(0)).unwrap();
    site.archive.forget_bases(0, 0).await.unwrap();
    site.archiver().base_if_due().await.unwrap();
    assert_eq!(site.files("manifest-").len(), 1);
}
