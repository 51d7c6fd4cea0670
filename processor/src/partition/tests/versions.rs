//! Records, logic and settings of another program.

use sendtrail_schemas::record::Tick;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_a_newer_version_halts_the_partition() {
    let (log, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.create_account().await;
    let before = house.fact("m1").await;
    house
        .put_bytes(&codec::encode(&Record { version: <Record as codec::Wire>::NEWEST + 1, ..Record::default() }))
        .await;
    house.fact("m2").await;
    house.applied(before).await;
    let why = house.halted().await;
    assert!(why.contains("upgrade"), "{why}");
    house.tells(&["m1"]).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_logic_halts_the_partition_also_after_a_restart() {
    let (log, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.create_account().await;
    house.fact("m1").await;
    // A partition that begins only now would apply nothing.
    house.tells(&["m1"]).await;
    let settings = Settings { logic_version: LOGIC_VERSION + 1, ..usual_settings() };
    let body = Some(Body::Settings(settings));
    house.put_bytes(&codec::encode(&Record { version: codec::VERSION, body, ..Record::default() })).await;
    house.fact("m2").await;
    let why = house.halted().await;
    assert!(why.contains("logic"), "{why}");
    house.tells(&["m1"]).await;
    house.close().await;
    let house = House::open(log.path(), state.path());
    house.halted().await;
    house.tells(&["m1"]).await;
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn other_settings_become_a_record() {
    let (log, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let house = House::open(log.path(), state.path());
    house.applied(0).await;
    assert_eq!(house.settings(), [usual_settings()]);
    house.close().await;
    let house = House::open(log.path(), state.path());
    assert_eq!(house.settings().len(), 1, "the same settings are not told again");
    house.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_is_never_decided_by_older_logic_again() {
    let (log, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let by = |logic_version| Settings { logic_version, ..usual_settings() };
    for (logic, told) in [(2, &[2][..]), (LOGIC_VERSION, &[2, LOGIC_VERSION]), (2, &[2, LOGIC_VERSION])] {
        let house = House::begin(log.path(), state.path(), by(logic), true, CancellationToken::new());
        let last = house.put(Body::Tick(Tick {})).await;
        house.applied(last).await;
        assert_eq!(house.settings().iter().map(|settings| settings.logic_version).collect::<Vec<_>>(), told);
        house.close().await;
    }
}
