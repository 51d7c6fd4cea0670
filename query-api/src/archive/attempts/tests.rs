use proptest::prelude::*;
use sendtrail_schemas::archive::TailBatch;
use sendtrail_schemas::attempts::AttemptColumns;
use sendtrail_schemas::ids::DestinationId;
use sendtrail_schemas::kind::EventType;

use super::*;

const ACCOUNT: AccountId = AccountId(Uuid::from_u128(1));
const NOW: Millis = Millis(20_000 * DAY);

fn destination(other: bool) -> DestinationId {
    DestinationId(Uuid::from_u128(if other { 3 } else { 2 }))
}

fn attempt((offset, (seq, other, status, age)): (usize, (u64, bool, i32, i64))) -> LoggedAttempt {
    let started_at = NOW.plus(-age * DAY).0;
    let attempt = Attempt {
        account_id: ACCOUNT.bytes().to_vec(),
        event_seq: seq,
        destination_id: destination(other).bytes().to_vec(),
        number: offset as u32 + 1,
        started_at,
        finished_at: started_at + 5,
        status,
        status_code: Some(500),
        first_started_at: started_at,
        event_received_at: started_at - 1,
        event_type: EventType::Bounce as i32,
        ..Attempt::default()
    };
    LoggedAttempt { partition: 3, offset: offset as u64, attempt }
}

fn archive(attempts: &[LoggedAttempt]) -> ArchivedAttempts {
    let batch = |some: &[LoggedAttempt]| {
        let mut columns = AttemptColumns::default();
        some.iter().for_each(|logged| columns.push(logged));
        TailBatch { rows: columns.finish().unwrap(), numbers: Arc::default() }
    };
    let tail: Vec<TailBatch> = attempts.chunks(7).map(batch).collect();
    let cell = Arc::new(ArchiveCell::default());
    cell.update(|view| ArchiveView { tail, ..view.clone() });
    ArchivedAttempts::new(cell, 2)
}

/// The last attempt of every delivery, and of these what is wanted.
fn plainly(attempts: &[LoggedAttempt], query: &DeliveriesQuery) -> DeliveryPage {
    let mut last: HashMap<u64, &LoggedAttempt> = HashMap::new();
    for logged in attempts {
        let attempt = &logged.attempt;
        let is_wanted = attempt.destination_id.as_slice() == query.destination.bytes().as_slice()
            && attempt.started_at >= query.now.plus(-LISTED).0
            && query.before.is_none_or(|before| attempt.event_seq < before);
        if is_wanted && last.get(&attempt.event_seq).is_none_or(|kept| kept.offset < logged.offset) {
            last.insert(attempt.event_seq, logged);
        }
    }
    let mut rows: Vec<DeliveryRow> = last.into_values().map(newest::row).collect();
    rows.retain(|row| query.status.is_none_or(|status| row.status == status));
    rows.sort_by_key(|row| std::cmp::Reverse(row.seq));
    let next = (rows.len() > query.limit).then(|| rows[query.limit - 1].seq);
    rows.truncate(query.limit);
    DeliveryPage { rows, next }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However few deliveries are held at once, pages are what they are when all are.
    #[test]
    fn pages_are_those_of_all_deliveries(
        attempts in prop::collection::vec((0u64..16, any::<bool>(), 0i32..4, 0i64..36), 0..90)
            .prop_map(|all| all.into_iter().enumerate().map(attempt).collect::<Vec<_>>())
            .prop_shuffle(),
        status in prop::option::of(prop::sample::select(vec![
            DeliveryStatus::Pending,
            DeliveryStatus::Failed,
            DeliveryStatus::Delivered,
            DeliveryStatus::GaveUp,
        ])),
        limit in 1usize..8,
        held in 1usize..20,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let archive = archive(&attempts);
        let mut query = DeliveriesQuery { destination: destination(false), status, before: None, limit, now: NOW };
        loop {
            let page = runtime.block_on(archive.list(ACCOUNT, &query, held)).unwrap();
            prop_assert_eq!(&page, &plainly(&attempts, &query));
            let Some(next) = page.next else { break };
            query.before = Some(next);
        }
    }
}
