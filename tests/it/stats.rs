//! `/stats` says what a look at every event says, for every grouping and filter.

use std::collections::BTreeMap;

use http::Method;

use super::support::*;

const FIGURES: [&str; 13] = [
    "sends",
    "deliveries",
    "permanent_bounces",
    "transient_bounces",
    "complaints",
    "rejects",
    "opens",
    "unique_opens",
    "clicks",
    "unique_clicks",
    "delays",
    "rendering_failures",
    "replies",
];

/// What an event adds.
fn figures(event: &Value) -> [u64; 13] {
    let mut row = [0; 13];
    let unique = event["unique"] == true;
    let mut add = |name: &str| row[FIGURES.iter().position(|figure| *figure == name).unwrap()] += 1;
    match event["event_type"].as_str().unwrap() {
        "Send" => add("sends"),
        "Delivery" => add("deliveries"),
        "Bounce" if event["bounce"]["bounceType"] == "Permanent" => add("permanent_bounces"),
        "Bounce" => add("transient_bounces"),
        "Complaint" => add("complaints"),
        "Reject" => add("rejects"),
        "Open" => {
            (
                add("opens"),
                if unique {
                    add("unique_opens")
                },
            )
                .0
        }
        "Click" => {
            (
                add("clicks"),
                if unique {
                    add("unique_clicks")
                },
            )
                .0
        }
        "DeliveryDelay" => add("delays"),
        "RenderingFailure" => add("rendering_failures"),
        "Reply" => add("replies"),
        _ => {}
    }
    row
}

fn groups(event: &Value, by: &str) -> Vec<Value> {
    let domain = |field: &str| {
        let address = event[field].as_str().unwrap_or_default().to_lowercase();
        address.trim_end_matches('>').split('@').nth(1).map_or(Value::Null, Into::into)
    };
    match by {
        "config_set" => vec![event["configuration_set_name"].clone()],
        "recipient_domain" => vec![domain("recipient")],
        "from_domain" => vec![domain("from")],
        "tag" => {
            let tags = event["tags"].as_object().unwrap();
            let name = |(key, value): (&String, &Value)| match value.as_str().unwrap() {
                "" => json!(key),
                value => json!(format!("{key}:{value}")),
            };
            if tags.is_empty() { vec![Value::Null] } else { tags.iter().map(name).collect() }
        }
        _ => vec![Value::Null],
    }
}

async fn compare(partner: &Partner, all: &[Value], from: &str, to: &str) {
    type Keep = fn(&Value) -> bool;
    let filters: [(&str, Keep); 5] = [
        ("", |_| true),
        ("&configuration_set_name=a", |event| event["configuration_set_name"] == "a"),
        ("&tag=k", |event| event["tags"]["k"].is_string()),
        ("&tag=k:v1", |event| event["tags"]["k"] == "v1"),
        ("&tag=bare", |event| event["tags"]["bare"] == ""),
    ];
    let (first, last) =
        [from, to].map(|text| if text.len() == 10 { format!("{text}T00:00:00.000Z") } else { text.into() }).into();
    for by in ["", "config_set", "recipient_domain", "from_domain", "tag"] {
        for granularity in ["hour", "day"] {
            for (filter, keep) in filters {
                let path = format!("/stats?from={from}&to={to}&granularity={granularity}&group_by={by}{filter}");
                let told = partner.get(&path).await;
                let mut should: BTreeMap<(String, String), [u64; 13]> = BTreeMap::new();
                let mut totals = [0; 13];
                let inside = |event: &&Value| {
                    let at = event["occurred_at"].as_str().unwrap();
                    first.as_str() <= at && at < last.as_str() && keep(event)
                };
                for event in all.iter().filter(inside) {
                    let row = figures(event);
                    totals.iter_mut().zip(row).for_each(|(sum, part)| *sum += part);
                    let at = event["occurred_at"].as_str().unwrap();
                    let bucket =
                        if granularity == "day" { at[..10].to_owned() } else { format!("{}:00:00Z", &at[..13]) };
                    for group in groups(event, by) {
                        let sums = should.entry((bucket.clone(), group.to_string())).or_default();
                        sums.iter_mut().zip(row).for_each(|(sum, part)| *sum += part);
                    }
                }
                should.retain(|_, sums| sums.iter().any(|sum| *sum > 0));
                let read = |row: &Value| FIGURES.map(|figure| row[figure].as_u64().unwrap());
                let mut is: BTreeMap<(String, String), [u64; 13]> = BTreeMap::new();
                for bucket in told["buckets"].as_array().unwrap() {
                    let key = (bucket["bucket"].as_str().unwrap().to_owned(), bucket["group"].to_string());
                    assert!(is.insert(key, read(bucket)).is_none(), "{path}: a bucket twice");
                }
                is.retain(|_, sums| sums.iter().any(|sum| *sum > 0));
                assert_eq!(is, should, "{path}");
                assert_eq!(read(&told["totals"]), totals, "{path}");
                let rate = if totals[0] == 0 { 0.0 } else { totals[2] as f64 / totals[0] as f64 };
                assert_eq!(told["totals"]["bounce_rate"], rate, "{path}");
            }
        }
    }
}

fn varied(partner: &Partner, count: usize) -> Vec<Value> {
    let types = [
        "Send",
        "Delivery",
        "Open",
        "Click",
        "HardBounce",
        "SoftBounce",
        "Complaint",
        "DeliveryDelay",
        "Reply",
        "Reject",
        "RenderingFailure",
        "Open",
    ];
    (0..count)
        .map(|n| {
            let mut event = partner.event(types[n % types.len()]);
            if n % types.len() == 11 {
                // A second open of an earlier message.
                (event["message_id"], event["event_id"]) =
                    (format!("{}-{}", partner.domain, n - 9).into(), format!("again-{n}").into());
                event["recipient"] = format!("to-{}-{}@inbox.example", partner.domain, n - 9).into();
            } else {
                event["recipient"] =
                    format!("to-{}-{n}@{}.example", partner.domain, ["inbox", "post", "mail"][n % 3]).into();
            }
            event["from"] = ["News <a@one.example>", "b@two.example"][n % 2].into();
            if n % 4 > 0 {
                event["configuration_set_name"] = ["a", "b", "c"][n % 4 - 1].into();
            }
            event["tags"] =
                [json!({"k": format!("v{}", n % 2)}), json!({"k": "v1", "bare": ""}), json!({})][n % 3].clone();
            event["occurred_at"] = noon().plus(-((n * 37 % 5_000) as i64) * MINUTE - (n as i64)).to_string().into();
            event
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_grouping_and_filter_equals_a_scan() {
    let server = Server::start().await;
    let partner = server
        .partner_with(json!({"name": "sums", "mode": "production", "policy": {"minimum_sends": 1_000_000}}))
        .await;
    let events = varied(&partner, 600);
    partner.stream(&events[..300]).await;
    eventually("a Parquet file", async || server.app.archive().rows > 0).await;
    partner.stream(&events[300..]).await;
    partner.stream(&events[100..200]).await;
    let all = partner.log().await;
    compare(&partner, &all, "2026-04-20", "2026-05-02").await;
    // Neither at the beginning of an hour nor of a day.
    compare(&partner, &all, "2026-04-29T10:17:31.001Z", "2026-04-30T21:44:02.500Z").await;
    compare(&partner, &all, "2026-04-30T10:10:00.000Z", "2026-04-30T10:50:00.000Z").await;

    let set = partner.set(json!({"name": "a"})).await;
    let by_id = partner.get(&format!("/stats?from=2026-04-20&to=2026-05-02&config_set_id={set}")).await;
    let by_name = partner.get("/stats?from=2026-04-20&to=2026-05-02&configuration_set_name=a").await;
    assert_eq!(by_id["totals"], by_name["totals"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renamed_set_keeps_its_figures() {
    let server = Server::start().await;
    let partner = server.partner("renames").await;
    let set = partner.set(json!({"name": "old"})).await;
    let sent = |name: &str| {
        let mut event = partner.event("Send");
        event["configuration_set_name"] = name.into();
        event
    };
    let first = sent("old");
    partner.stream(std::slice::from_ref(&first)).await;
    let path = format!("/configuration-sets/{set}");
    assert_eq!(partner.call(Method::PATCH, &path, &[], r#"{"name": "new"}"#).await.status, 200);
    let delivered =
        json!({"event_type": "Delivery", "message_id": first["message_id"], "recipient": first["recipient"]});
    // A name that no set has any more is a name only.
    partner.stream(&[delivered, sent("new"), sent("old")]).await;
    for (filter, sends, deliveries) in [
        (format!("config_set_id={set}"), 2, 1),
        ("configuration_set_name=new".into(), 1, 1),
        ("configuration_set_name=old".into(), 2, 0),
    ] {
        let totals = &partner.get(&format!("/stats?{filter}")).await["totals"];
        assert_eq!(
            (totals["sends"].as_u64(), totals["deliveries"].as_u64()),
            (Some(sends), Some(deliveries)),
            "{filter}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_hour_of_too_many_names_is_scanned_and_still_exact() {
    let server = Server::start().await;
    let partner = server
        .partner_with(json!({"name": "many", "mode": "production", "policy": {"minimum_sends": 1_000_000}}))
        .await;
    let mut events = varied(&partner, 60);
    for n in 0..10_500 {
        let mut event = partner.event("Send");
        event["tags"] = json!({"order": n.to_string()});
        event["occurred_at"] = noon().plus(-HOUR - n).to_string().into();
        events.push(event);
    }
    partner.stream(&events).await;
    let told = partner.get("/stats?from=2026-05-01&to=2026-05-02&group_by=tag&granularity=hour").await;
    let orders = told["buckets"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["group"].as_str().is_some_and(|group| group.starts_with("order:")));
    assert_eq!(orders.count(), 10_500);
    let all = partner.log().await;
    assert_eq!(all.len(), events.len());
    let sends = all
        .iter()
        .filter(|event| event["event_type"] == "Send" && event["occurred_at"].as_str().unwrap() > "2026-05-01")
        .count();
    assert_eq!(told["totals"]["sends"], sends);
}
