//! Machines whose clocks are wrong, each in its own way.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use sendtrail::client::Api;

use super::driving::{check, check_webhooks, drive};
use super::fleet::{Fleet, partner, partners};
use crate::binary::{ADMIN_KEY, Process};
use crate::support::*;

const HOURS: [&str; 3] = ["clock.shifted=return(24)", "clock.shifted=return(-24)", "clock.shifted=return(9)"];

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn clocks_that_are_days_apart_change_nothing() {
    let Some(fleet) = Fleet::new("clocks", &[]).await else { return };
    let [ahead, behind, elsewhere] = HOURS.map(|shift| [("FAILPOINTS", shift)]);
    let receiver = Receiver::start_ok().await;
    let front = fleet.start_with("front", &["ingest"], &ahead);
    let mut processor = fleet.start_with("processor", &["processor"], &behind);
    let _workers = fleet.start_with("workers", &["delivery", "dispatcher"], &elsewhere);
    let _sinks = fleet.start_with("sinks", &["sinks"], &ahead);
    let query = fleet.start_with("query", &["query"], &behind);
    let partners = partners(&front, &receiver).await;
    let doors = Arc::new(Mutex::new([front.base.clone(), front.base.clone()]));
    let mut all = Vec::new();
    let driven = partners.iter().zip(0..).map(|((key, _), n)| drive(doors.clone(), key.clone(), n, |batch| batch < 4));
    for acknowledged in futures::future::join_all(driven).await {
        all.push(acknowledged);
    }
    // Another one takes over, with a clock that is two days from that of the one before.
    processor.kill();
    let _processor = tokio::task::block_in_place(|| fleet.start_with("another", &["processor"], &ahead));
    let driven = partners.iter().zip(10..).map(|((key, _), n)| drive(doors.clone(), key.clone(), n, |batch| batch < 4));
    for (all, more) in all.iter_mut().zip(futures::future::join_all(driven).await) {
        all.sends.extend(more.sends);
        all.bounces.extend(more.bounces);
        all.mail.extend(more.mail);
    }
    for ((key, _), all) in partners.iter().zip(&all) {
        check(&query, &front, key, all).await;
    }
    check_webhooks(&receiver, all.iter().map(|all| all.mail.len()).sum()).await;
    // Whatever each machine thinks, an event was received when the broker says so.
    let now = sendtrail_schemas::time::Millis::wall();
    for event in Api::new(&query.base, &partners[0].0).rows(&format!("{PARTNER}/events"), "events").await.unwrap() {
        let at = sendtrail_schemas::time::Millis::parse(event["received_at"].as_str().unwrap()).unwrap();
        assert!((now.0 - at.0).abs() < HOUR, "{event}");
    }
}

/// One server, whose clock is set back by a day, and once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_clock_that_is_set_back_stops_nobody() {
    let folder = tempfile::TempDir::new().unwrap();
    let receiver = Receiver::start_ok().await;
    let settings = [
        ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
        ("SENDTRAIL__WEBHOOKS__ALLOW_HTTP", "true"),
        ("SENDTRAIL__WEBHOOKS__ALLOW_PRIVATE_NETWORKS", r#"["127.0.0.0/8"]"#),
        ("SENDTRAIL__ARCHIVE__COMMIT_SECONDS", "1"),
    ];
    let start = |shift| {
        let settings: Vec<_> = settings.into_iter().chain([("FAILPOINTS", shift)]).collect();
        Process::start(folder.path(), &settings)
    };
    let mut server = start(HOURS[0]);
    let (key, id) = partner(&server, &receiver, 1_000_000).await;
    let slow = json!({"peak_send_rate_per_second": 5});
    let path = format!("{ADMIN}/accounts/{id}");
    Api::new(&server.base, ADMIN_KEY).send(http::Method::PATCH, &path, &slow).await.unwrap();
    let (mut sent, mut told) = (0, 0);
    for shift in [HOURS[2], HOURS[1], HOURS[0]] {
        let api = Api::new(&server.base, &key);
        let lines: String = (told..told + 50).map(|n| format!("{}\n", event("Send", &format!("m{n}")))).collect();
        told += 50;
        let told_now = stream(&api, lines).await;
        assert_eq!(told_now["accepted"], 50, "{told_now}");
        // Until what may be sent at once is sent, and then as fast as time goes by.
        let mut refused = 0;
        let wanted = sent + 15;
        while sent < wanted {
            match super::fleet::send(&api, "success@inbox.example").await {
                (200, _) => sent += 1,
                (429, told) => {
                    refused += 1;
                    assert!(refused < 200, "time stands still: {told}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                (status, told) => panic!("{status}: {told}"),
            }
        }
        let totals = async || {
            let stats = api.get(&format!("{PARTNER}/stats")).await.unwrap();
            ["sends", "deliveries"].map(|name| stats["totals"][name].as_u64().unwrap())
        };
        eventually("all that is there is shown", async || totals().await == [sent + told, sent]).await;
        let events = api.rows(&format!("{PARTNER}/events"), "events").await.unwrap();
        let mut times: Vec<(u64, String)> = events
            .iter()
            .map(|event| (event["seq"].as_u64().unwrap(), event["received_at"].as_str().unwrap().to_owned()))
            .collect();
        assert_eq!(times.len() as u64, told + 2 * sent);
        times.sort_unstable();
        assert!(times.is_sorted_by_key(|(_, at)| at.clone()), "time never runs back");
        // Once in order, and once not.
        if told == 100 {
            server.kill();
        } else {
            server.signal("-TERM");
            assert!(server.wait().success());
        }
        server = tokio::task::block_in_place(|| start(shift));
    }
}
