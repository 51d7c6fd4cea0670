//! What a partition begins with, and what it leaves to whoever is next.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_applied_before_the_end_only_where_nobody_else_does() {
    let (log, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.create_account().await;
    let last = house.fact("m1").await;
    house.applied(last).await;
    // The settings became a record meanwhile, before the others or after them.
    let end = *house.log.end(TopicPartition::new(Topic::Intake, 0)).borrow();
    house.close().await;
    let over = CancellationToken::new();
    over.cancel();
    // With another state everything in the log is left.
    for (drains, applied) in [(false, 0), (true, end)] {
        let state = TempDir::new().unwrap();
        let house = House::begin(log.path(), state.path(), usual_settings(), drains, over.clone());
        let pulse = house.pulse.clone();
        house.close().await;
        assert_eq!(*pulse.applied().borrow(), applied);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_restore_left_that_did_not_end_is_no_state() {
    let (log, other, state) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.create_account().await;
    let last = house.fact("m1").await;
    house.applied(last).await;
    house.close().await;
    let store = Store::open(state.path(), 1, 1 << 20).unwrap();
    let view = store.view();
    let rows = view.rows(0).map(|row| row.map(|(key, value)| (key, Some(value.to_vec()))));
    let rows = rows.collect::<Result<Vec<_>, _>>().unwrap();
    assert!(rows.len() > 1);
    store.empty(0).unwrap();
    store.put(0, rows).unwrap();
    drop((view, store));
    let house = House::open(other.path(), state.path());
    house.create_account().await;
    let last = house.fact("m1").await;
    house.applied(last).await;
    assert_eq!(house.messages(), ["m1"], "it is no copy");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_is_not_the_states_halts_the_partition() {
    let (log, state, other) = (TempDir::new().unwrap(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.create_account().await;
    let last = house.fact("m1").await;
    house.applied(last).await;
    house.close().await;
    let house = House::open(other.path(), state.path());
    let why = house.halted().await;
    assert!(why.contains("not the log that the state was made from"), "{why}");
    assert!(house.messages().is_empty(), "nothing is written to it");
    house.close().await;
}
