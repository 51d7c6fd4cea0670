//! Pages of events stay true while events arrive.

use super::support::*;

#[tokio::test]
async fn new_arrivals_neither_repeat_nor_hide_events() {
    let server = Server::start().await;
    let partner = server.partner("pages").await;
    let dated = |n: i64| {
        let mut event = partner.event("Send");
        event["occurred_at"] = noon().plus(-n * 1_000).to_string().into();
        event
    };
    // Several share a moment.
    let first: Vec<Value> = (0..100).map(|n| dated(n / 3 + 1)).collect();
    partner.stream(&first).await;
    let mut seen = Vec::new();
    let mut cursor = String::new();
    for page in 0.. {
        let answer = partner.get(&format!("/events?limit=7{cursor}")).await;
        seen.extend(
            answer["events"].as_array().unwrap().iter().map(|event| event["message_id"].as_str().unwrap().to_owned()),
        );
        let Some(next) = answer["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
        // Newer than everything, and older than everything.
        partner.stream(&[dated(0), dated(1_000 + page)]).await;
    }
    let distinct: std::collections::HashSet<&String> = seen.iter().collect();
    assert_eq!(distinct.len(), seen.len(), "nothing twice");
    for event in &first {
        assert!(seen.iter().any(|id| event["message_id"] == **id), "{event} is missing");
    }
    let all = partner.rows("/events", "events").await;
    let order: Vec<_> = all
        .iter()
        .map(|event| {
            (event["occurred_at"].as_str().unwrap(), event["event_id"].as_str().unwrap(), event["seq"].as_u64())
        })
        .collect();
    assert!(order.windows(2).all(|pair| pair[0] > pair[1]), "newest first, and never equal");
    for bad in [
        "cursor=nonsense",
        "limit=0",
        "limit=1001",
        "event_type=nothing",
        "from=x",
        "day_bucket=2026-13-01",
        "from=2026-05-02&to=2026-05-01",
    ] {
        let reply = partner.call(http::Method::GET, &format!("/events?{bad}"), &[], "").await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (400, &json!("INVALID_PARAM")), "{bad}");
    }
}

#[tokio::test]
async fn filters_find_what_a_plain_look_finds() {
    let server = Server::start().await;
    let partner = server.partner("filters").await;
    let mut events = Vec::new();
    for n in 0..120usize {
        let mut event = partner.event(["Send", "Delivery", "Open", "Click", "HardBounce"][n % 5]);
        event["recipient"] = format!("User{}@inbox.example", n % 7).into();
        event["configuration_set_name"] = ["a", "b"][n % 2].into();
        event["tags"] = [json!({"k": "v"}), json!({"k": "w", "bare": "", "a:b": "c"}), json!({})][n % 3].clone();
        event["occurred_at"] = noon().plus(-(n as i64) * 3 * HOUR).to_string().into();
        events.push(event);
    }
    // Half before, half after a commit of the archive, so that files and tail are both asked.
    partner.stream(&events[..60]).await;
    eventually("a Parquet file", async || server.app.archive().rows > 0).await;
    partner.stream(&events[60..]).await;
    let all = partner.rows("/events", "events").await;
    assert_eq!(all.len(), 120);
    type Keep = fn(&Value) -> bool;
    let filters: [(&str, Keep); 11] = [
        ("event_type=open", |event| event["event_type"] == "Open"),
        ("event_type=email.clicked,Bounce", |event| event["event_type"] == "Click" || event["event_type"] == "Bounce"),
        ("recipient=uSER3@inbox.example", |event| event["recipient"] == "User3@inbox.example"),
        ("message_id=filters.example-17", |event| event["message_id"] == "filters.example-17"),
        ("configuration_set_name=b", |event| event["configuration_set_name"] == "b"),
        ("tag=k", |event| event["tags"]["k"].is_string()),
        ("tag=k:w", |event| event["tags"]["k"] == "w"),
        ("tag=a:b", |event| event["tags"]["a:b"] == "c"),
        ("tag=a:b:c", |event| event["tags"]["a:b"] == "c"),
        ("tag=bare", |event| event["tags"]["bare"] == ""),
        ("day_bucket=2026-04-28", |event| event["occurred_at"].as_str().unwrap().starts_with("2026-04-28")),
    ];
    for (filter, keep) in filters {
        let found = partner.rows(&format!("/events?{filter}"), "events").await;
        let should: Vec<&Value> = all.iter().filter(|event| keep(event)).collect();
        assert!(!should.is_empty(), "{filter}");
        assert_eq!(found.iter().collect::<Vec<_>>(), should, "{filter}");
    }
}
