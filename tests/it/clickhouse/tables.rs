//! Its tables: filled after months, migrated, another server's, changed by others, of a newer program.

use sendtrail_processor::clickhouse::{Wanted, migrate};

use super::*;

#[tokio::test]
async fn months_of_a_quiet_account_are_one_insert() {
    let Some(server) = with_clickhouse(|config| {
        config.clickhouse.url = String::new();
    })
    .await
    else {
        return;
    };
    let partner = server.partner("quiet").await;
    for day in 0..130 {
        partner.at(noon().plus(day * DAY)).stream(&[event("Send", &format!("m{day}"))]).await;
    }
    let mut stopped = server.stop().await;
    use_clickhouse(&mut stopped.config);
    let client = client(&stopped.config);
    migrate(&client, &sendtrail::clickhouse::wanted(&stopped.config, false)).await.unwrap();
    let server = stopped.start().await;
    let partner = partner.on(&server).at(noon().plus(130 * DAY));
    assert_eq!(partner.get("/stats?days=200").await["totals"]["sends"], 130);
    assert_eq!(audit(&client, "events").await, 130 + CALLS);
}

#[tokio::test]
async fn migrations_repeat_and_a_database_of_another_is_left_alone() {
    let Some(server) = with_clickhouse(|_| {}).await else {
        return;
    };
    let partner = server.partner("tables").await;
    let config = server.config.clone();
    let client = client(&config);
    // Two inserts, one after the other.
    for _ in 0..2 {
        partner.stream(&(0..50).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
        assert!(partner.get("/stats").await["totals"]["sends"].as_u64() >= Some(50));
    }
    let wanted = |recreate| Wanted { retention_days: 3_000, ..sendtrail::clickhouse::wanted(&config, recreate) };
    let (first, again) =
        (migrate(&client, &wanted(false)).await.unwrap(), migrate(&client, &wanted(false)).await.unwrap());
    let newest = sendtrail_schemas::clickhouse::tables::VERSION;
    assert_eq!((first.from, &first.meta), (Some(newest), &again.meta), "nothing but what is to be changed");
    // Tables of the first version get what they lack.
    for statement in [
        "ALTER TABLE deliveries DROP COLUMN response, DROP COLUMN failure, DROP COLUMN trigger",
        "INSERT INTO sendtrail_meta (name, value) VALUES ('version', '1')",
    ] {
        client.query(statement).execute().await.unwrap();
    }
    assert_eq!(migrate(&client, &wanted(false)).await.unwrap().from, Some(1));
    let columns = "SELECT count() FROM system.columns WHERE database = currentDatabase() AND table = 'deliveries' AND name IN ('response', 'failure', 'trigger')";
    assert_eq!(client.query(columns).fetch_one::<u64>().await.unwrap(), 3);
    let ttl = "SELECT count() FROM system.tables WHERE database = currentDatabase() AND create_table_query LIKE '%TTL%toIntervalDay(3002)%'";
    assert_eq!(client.query(ttl).fetch_one::<u64>().await.unwrap(), 2);
    migrate(&client, &sendtrail::clickhouse::wanted(&config, false)).await.unwrap();
    assert_eq!(client.query(ttl).fetch_one::<u64>().await.unwrap(), 0);
    eventually("every row is there", async || {
        client.query("SELECT count() FROM events").fetch_one::<u64>().await.unwrap() == 100 + CALLS
    })
    .await;

    // Another server does not write where it has no claims.
    let stranger = Server::start_with(|other| {
        other.log.simulated = true;
        other.clickhouse = config.clickhouse.clone();
    })
    .await;
    let health = async |server: &Server| server.admin.call(Method::GET, "/health", &[], "").await.unwrap().json();
    eventually("it says why", async || {
        let told = health(&stranger).await["checks"]["clickhouse"].to_string();
        told.contains("this server did not insert") && told.contains("migrate --recreate")
    })
    .await;
    drop(stranger.stop().await);
    assert_eq!(audit(&client, "events").await, 100 + CALLS);

    // Rows that somebody took away are not taken for there.
    let stopped = server.stop().await;
    client.query("TRUNCATE TABLE events_progress").execute().await.unwrap();
    let server = stopped.start().await;
    eventually("it says what is wrong", async || {
        health(&server).await["checks"]["clickhouse"].to_string().contains("it was changed by others")
    })
    .await;
    let stopped = server.stop().await;
    migrate(&client, &sendtrail::clickhouse::wanted(&config, true)).await.unwrap();
    let server = stopped.start().await;
    let partner = partner.on(&server);
    eventually("it is filled again from the archive", async || {
        client.query("SELECT count() FROM events").fetch_one::<u64>().await.unwrap() == 100 + CALLS
    })
    .await;
    assert_eq!(audit(&client, "events").await, 100 + CALLS);
    assert_eq!(partner.get("/stats").await["totals"]["sends"], 100);
    let stopped = server.stop().await;

    // Tables of a newer program are not touched, by anyone.
    client.query("INSERT INTO sendtrail_meta (name, value) VALUES ('version', '99')").execute().await.unwrap();
    let refused = migrate(&client, &wanted(false)).await.unwrap_err().to_string();
    assert!(refused.contains("99") && refused.contains("newer"), "{refused}");
    let server = stopped.start().await;
    eventually("it says so", async || health(&server).await["checks"]["clickhouse"].to_string().contains("newer"))
        .await;
}
