//! A restart in the middle loses nothing and doubles nothing.

use super::support::*;

#[tokio::test]
async fn everything_is_as_it_was() {
    let server = Server::start().await;
    let partner = server.partner("before").await;
    let set = partner.set(json!({"name": "set", "tags": {"team": "a"}})).await;
    let hook = json!({"webhook_url": "https://hook.example/x", "webhook_secret": "s3cret"});
    partner.destination(&set, hook).await;
    let mut told: Vec<Value> = (0..300).map(|_| partner.event("Send")).collect();
    told.extend((0..20).map(|_| partner.event("HardBounce")));
    told.iter_mut().for_each(|event| event["configuration_set_name"] = "set".into());
    partner.stream(&told).await;
    let paths = [
        "/reputation",
        "/quotas",
        "/events?limit=1000",
        "/suppression?limit=1000",
        "/configuration-sets",
        "/identities",
        "/stats?from=2026-05-01&to=2026-05-02&granularity=hour&group_by=tag",
    ];
    // Webhooks go on; all else stays.
    let look = async |partner: &Partner, path: &str| {
        let mut told = partner.get(path).await;
        for event in told["events"].as_array_mut().into_iter().flatten() {
            event["deliveries"].take();
        }
        told
    };
    let mut before = Vec::new();
    for path in paths {
        before.push(look(&partner, path).await);
    }
    let server = server.restart().await;
    let partner = partner.on(&server);
    for (path, before) in paths.into_iter().zip(before) {
        assert!(look(&partner, path).await == before, "{path} differs");
    }
    // Copies are still known.
    partner.stream(&told).await;
    assert_eq!(partner.log().await.len(), 321, "300 sends, 20 bounces and a warning");
    let text = walk(&server.config.data.dir.join("log"));
    assert!(!text.windows(6).any(|bytes| bytes == b"s3cret"), "secrets are never in the clear");
}

/// Every byte of a folder.
fn walk(folder: &std::path::Path) -> Vec<u8> {
    std::fs::read_dir(folder)
        .unwrap()
        .flatten()
        .filter_map(|entry| std::fs::read(entry.path()).ok())
        .flatten()
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn stopping_in_the_middle_of_a_stream_keeps_what_was_acknowledged() {
    let server = Server::start().await;
    let partner = server.partner("middle").await;
    let acknowledged = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
    let mut streams = tokio::task::JoinSet::new();
    for stream in 0..4 {
        let (api, acknowledged) = (partner.api.clone(), acknowledged.clone());
        streams.spawn(async move {
            for batch in 0.. {
                let ids: Vec<String> = (0..50).map(|n| format!("{stream}-{batch}-{n}")).collect();
                let body: String = ids.iter().map(|id| format!("{}\n", event("Send", id))).collect();
                let headers = [("content-type", "application/x-ndjson")];
                match api.call(http::Method::POST, &format!("{PARTNER}/events"), &headers, body).await {
                    Ok(reply) if reply.status == 200 => acknowledged.lock().extend(ids),
                    Ok(reply) => {
                        assert_eq!(reply.status, 503, "{}", reply.json());
                        assert!(reply.headers.contains_key("retry-after"));
                    }
                    // The server is gone.
                    Err(_) => return,
                }
            }
        });
    }
    eventually("events are acknowledged", async || acknowledged.lock().len() > 100).await;
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    let server = server.restart().await;
    streams.join_all().await;
    let partner = partner.on(&server);
    for (at, event) in partner.everything().await.iter().enumerate() {
        assert_eq!(event["seq"], at, "numbers are dense");
    }
    let log = partner.log().await;
    let mut found: Vec<&str> = log.iter().map(|event| event["message_id"].as_str().unwrap()).collect();
    let all = found.len();
    found.sort_unstable();
    found.dedup();
    assert_eq!(all, found.len(), "nothing twice");
    let acknowledged = acknowledged.lock();
    assert!(acknowledged.len() > 100, "{}", acknowledged.len());
    let found: std::collections::HashSet<&str> = found.into_iter().collect();
    let lost: Vec<_> = acknowledged.iter().filter(|id| !found.contains(id.as_str())).collect();
    assert!(lost.is_empty(), "{} of {} lost", lost.len(), acknowledged.len());
}

#[tokio::test]
async fn projections_that_are_made_anew_are_the_same() {
    let server = Server::start().await;
    let partner = server.partner("anew").await;
    let receiver = Receiver::start(|path, _| Answer::status(if path == "/ok" { 200 } else { 500 })).await;
    let set = partner.set(json!({"name": "hooked"})).await;
    partner.destination(&set, json!({"webhook_url": format!("{}/ok", receiver.base)})).await;
    partner
        .destination(&set, json!({"webhook_url": format!("{}/failing", receiver.base), "retry_schedule_seconds": [1]}))
        .await;
    let mut hooked = partner.event("Click");
    hooked["configuration_set_name"] = "hooked".into();
    partner.stream(&[hooked]).await;
    let deliveries =
        async |partner: &Partner| partner.rows("/events?event_type=click", "events").await[0]["deliveries"].clone();
    eventually("both outcomes", async || {
        let told = deliveries(&partner).await;
        (&told[0]["status"], &told[1]["status"]) == (&json!("delivered"), &json!("gave_up"))
    })
    .await;
    let delivered = deliveries(&partner).await;
    assert_eq!((&delivered[1]["attempts"], &delivered[1]["last_status_code"]), (&json!(2), &json!(500)));
    partner.stream(&(0..300).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
    partner.stream(&(0..9).map(|_| partner.event("HardBounce")).collect::<Vec<_>>()).await;
    let path = "/stats?from=2026-05-01&to=2026-05-02&granularity=hour&group_by=recipient_domain";
    let before = partner.get(path).await;
    assert_eq!(before["totals"]["sends"], 300);
    let stopped = server.stop().await;
    let rebuild = std::process::Command::new(super::binary::PROGRAM)
        .args(["rebuild-projections", "--data"])
        .arg(&stopped.config.data.dir)
        .env("SENDTRAIL__LOG__PARTITIONS", "3")
        .output()
        .unwrap();
    assert!(rebuild.status.success(), "{}", String::from_utf8_lossy(&rebuild.stderr));
    assert!(
        String::from_utf8_lossy(&rebuild.stdout).contains("from 317 archived events, deliveries from 3 attempts"),
        "{rebuild:?}"
    );
    let server = stopped.start().await;
    let partner = partner.on(&server);
    assert_eq!(partner.get(path).await, before);
    assert_eq!(deliveries(&partner).await, delivered);
    partner.stream(&[event("Send", "one-more")]).await;
    assert_eq!(partner.get(path).await["totals"]["sends"], 301);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_trimmed_behind_readers_that_have_nothing_new() {
    let server = Server::start_with(|config| config.log.segment_bytes = 64 << 10).await;
    let receiver = Receiver::start_ok().await;
    let hooked = server.partner("hooked").await;
    let set = hooked.set(json!({"name": "set"})).await;
    hooked.destination(&set, json!({"webhook_url": format!("{}/hook", receiver.base)})).await;
    let clicks = |count: usize| -> Vec<Value> {
        let click = |_| {
            let mut click = hooked.event("Click");
            click["configuration_set_name"] = "set".into();
            click
        };
        (0..count).map(click).collect()
    };
    hooked.stream(&clicks(500)).await;
    receiver.wait("/hook", 500).await;
    let stopped = server.stop().await;
    let segments = stopped.config.data.dir.join("log");
    let segments = || std::fs::read_dir(&segments).unwrap().count();
    // An operator who needs no history of attempts takes it away.
    std::fs::remove_dir_all(stopped.config.data.dir.join("archive/attempts")).unwrap();
    let server = stopped.start().await;
    // From here on nothing happens in the first partner's partition.
    let mut quiet = server.partner("quiet").await;
    let hooked = hooked.on(&server);
    let partition = async |partner: &Partner| {
        partner.stream(&[partner.event("Send")]).await;
        partner.log().await[0]["partition"].clone()
    };
    for n in 0.. {
        if partition(&quiet).await != partition(&hooked).await {
            break;
        }
        quiet = server.partner(&format!("quiet{n}")).await;
    }
    for _ in 0..20 {
        quiet.stream(&(0..500).map(|_| quiet.event("Send")).collect::<Vec<_>>()).await;
    }
    eventually("all of it", async || quiet.get("/stats?days=1").await["totals"]["sends"].as_u64() > Some(10_000)).await;
    // Intake and events are some 60 segments.
    eventually("the log is short", async || {
        quiet.stream(&[quiet.event("Send")]).await;
        segments() < 12
    })
    .await;
    hooked.stream(&clicks(1)).await;
    receiver.wait("/hook", 501).await;
}
