//! Intake: every form of body, what is kept and what is named.

use std::io::Write;

use http::Method;

use super::support::*;

#[tokio::test]
async fn an_object_an_array_and_lines_and_each_packed() {
    let server = Server::start().await;
    let partner = server.partner("forms").await;
    let lines = (0..3).map(|_| format!("{}\n", partner.event("Open"))).collect::<String>();
    let gzip = |text: &str| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packer.write_all(text.as_bytes()).unwrap();
        packer.finish().unwrap()
    };
    let zstd = |text: &str| zstd::encode_all(text.as_bytes(), 1).unwrap();
    let array = json!([partner.event("Open"), partner.event("Click")]).to_string();
    for (what, headers, body, accepted) in [
        ("object", vec![("content-type", "application/json")], partner.event("Open").to_string().into_bytes(), 1),
        ("array", vec![("content-type", "application/json")], array.clone().into_bytes(), 2),
        ("curl's default type", vec![("content-type", "application/x-www-form-urlencoded")], array.into_bytes(), 2),
        ("lines", vec![("content-type", "application/x-ndjson")], lines.clone().into_bytes(), 3),
        ("gzip", vec![("content-type", "application/x-ndjson"), ("content-encoding", "gzip")], gzip(&lines), 3),
        ("zstd", vec![("content-type", "application/x-ndjson"), ("content-encoding", "zstd")], zstd(&lines), 3),
    ] {
        let reply = partner.call(Method::POST, "/events", &headers, body).await;
        assert_eq!(reply.status, 200, "{what}: {}", reply.json());
        assert_eq!(reply.json(), json!({"success": true, "accepted": accepted, "rejected": []}), "{what}");
    }
}

#[tokio::test]
async fn the_good_ones_are_kept_and_each_bad_one_is_named() {
    let server = Server::start().await;
    let partner = server.partner("bad").await;
    let body = [
        partner.event("Send").to_string(),
        String::new(),
        "{ this is not JSON".into(),
        r#"{"event_type":"Send","message_id":"m","recipient":"nobody"}"#.into(),
        r#"{"event_type":"Paused","message_id":"m","recipient":"a@b.example"}"#.into(),
        partner.event("Delivery").to_string(),
    ]
    .join("\n");
    let reply = partner.stream_text(body).await;
    assert_eq!(reply["accepted"], 2);
    let rejected: Vec<_> = reply["rejected"]
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["index"].as_u64().unwrap(), row["error"].as_str().unwrap()))
        .collect();
    assert_eq!(rejected, [(1, "INVALID_REQUEST"), (2, "BAD_RECIPIENT"), (3, "INVALID_REQUEST")]);
    assert_eq!(partner.log().await.len(), 2);

    let none = partner.stream_text("nonsense\nmore nonsense".into()).await;
    assert_eq!((&none["accepted"], none["rejected"].as_array().unwrap().len()), (&json!(0), 2));
}

#[tokio::test]
async fn a_line_that_is_no_text_or_holds_a_header_too_many_is_one_rejection() {
    let server = Server::start().await;
    let partner = server.partner("lines").await;
    let mut injected = partner.event("Send");
    injected["subject"] = "a\r\nBcc: x@y.example".into();
    let good = [partner.event("Send"), partner.event("Send")].map(|event| event.to_string().into_bytes());
    let body = [good[0].clone(), b"\xff\xfe".to_vec(), injected.to_string().into_bytes(), good[1].clone()].join(&b'\n');
    let reply = partner.call(Method::POST, "/events", &[("content-type", "application/x-ndjson")], body).await.json();
    assert_eq!(reply["accepted"], 2, "{reply}");
    let rejected: Vec<_> = reply["rejected"].as_array().unwrap().iter().map(|row| row["index"].as_u64()).collect();
    assert_eq!(rejected, [Some(1), Some(2)]);
}

#[tokio::test]
async fn a_few_bytes_that_become_many_are_carried_and_read_again() {
    let server = Server::start().await;
    let partner = server.partner("swell").await;
    // Each open inherits what its send said: 1,000 small events of 32 KB each.
    let mut send = partner.event("Send");
    send["metadata"] = json!({"x": "y".repeat(32_000)});
    partner.stream(&[send.clone()]).await;
    let open = |n: usize| json!({"event_type": "Open", "message_id": send["message_id"], "recipient": send["recipient"], "event_id": format!("o{n}")});
    partner.stream(&(0..1_000).map(open).collect::<Vec<_>>()).await;
    let opens =
        async |partner: &Partner| partner.get("/stats?from=2026-05-01&to=2026-05-02").await["totals"]["opens"].clone();
    eventually("all are counted", async || opens(&partner).await == 1_000).await;
    let server = server.restart().await;
    assert_eq!(opens(&partner.on(&server)).await, 1_000);
    let path = format!("/emails/{}", send["message_id"].as_str().unwrap());
    let email = partner.on(&server).get(&path).await;
    assert_eq!(email["email"]["events"].as_array().unwrap().len(), 1_001, "all of them, the send first");
    assert_eq!(email["email"]["events"][0]["event_type"], "Send");
}

#[tokio::test]
async fn duplicates_change_nothing_anywhere() {
    let server = Server::start().await;
    let partner = server.partner("twice").await;
    let events = [partner.event("Send"), partner.event("HardBounce"), partner.event("Complaint")];
    let mut open = partner.event("Open");
    (open["event_id"], open["recipient"]) = ("o-1".into(), "Someone@Inbox.example".into());
    for round in 0..3 {
        partner.stream(&events).await;
        // The address has no case, and once-only facts need no identifier.
        open["recipient"] = if round == 1 { "someone@inbox.EXAMPLE" } else { "SOMEONE@inbox.example" }.into();
        partner.stream(std::slice::from_ref(&open)).await;
    }
    let log = partner.log().await;
    assert_eq!(kinds(&log), ["Send", "Bounce", "Complaint", "Open"]);
    assert_eq!(log[3]["recipient"], "SOMEONE@inbox.example", "the first copy wins, shown as given");
    let totals = &partner.get("/stats?from=2026-05-01&to=2026-05-02").await["totals"];
    assert_eq!((&totals["sends"], &totals["permanent_bounces"], &totals["opens"]), (&json!(1), &json!(1), &json!(1)));
    let reputation = partner.get("/reputation").await;
    assert_eq!(
        (&reputation["sent"], &reputation["bounced"], &reputation["complained"]),
        (&json!(1), &json!(1), &json!(1))
    );
}

#[tokio::test]
async fn bodies_are_bounded() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.intake.max_events = 100;
        config.server.max_body_bytes = 64 << 10;
    })
    .await;
    let partner = server.partner("bounds").await;
    let call = async |headers: &[(&str, &str)], body: Vec<u8>| {
        let reply = partner.call(Method::POST, "/events", headers, body).await;
        (reply.status.as_u16(), reply.json()["error"].as_str().unwrap_or_default().to_owned())
    };
    let lines = |count: usize| (0..count).map(|_| "{}\n").collect::<String>().into_bytes();
    let ndjson = ("content-type", "application/x-ndjson");
    assert_eq!(call(&[ndjson], lines(101)).await, (413, "PAYLOAD_TOO_LARGE".into()));
    assert_eq!(call(&[ndjson], vec![b' '; 65 << 10]).await, (413, "PAYLOAD_TOO_LARGE".into()));
    // A bomb: 64 MB of blanks in a few kilobytes.
    let bomb = zstd::encode_all(&vec![b' '; 64 << 20][..], 1).unwrap();
    assert!(bomb.len() < 64 << 10);
    assert_eq!(call(&[ndjson, ("content-encoding", "zstd")], bomb).await, (413, "PAYLOAD_TOO_LARGE".into()));
    assert_eq!(call(&[ndjson, ("content-encoding", "br")], b"x".to_vec()).await.0, 415);
    assert_eq!(
        call(&[ndjson, ("content-encoding", "gzip")], b"not gzip".to_vec()).await,
        (400, "INVALID_REQUEST".into())
    );
    assert_eq!(call(&[("content-type", "text/csv")], b"a,b".to_vec()).await, (415, "UNSUPPORTED_MEDIA_TYPE".into()));
    assert_eq!(call(&[], Vec::new()).await, (400, "MISSING_PARAM".into()));
    assert_eq!(call(&[], b"{".to_vec()).await, (400, "INVALID_REQUEST".into()));
    assert!(partner.log().await.is_empty(), "nothing was kept");

    // A body that does not end, and headers that do not. On a server of its own: others' bodies may be slow in coming.
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.server.body_timeout_ms = 300;
    })
    .await;
    let partner = server.partner("endless").await;
    let slow = raw(&server, "POST /api/v1/partner/email/events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer KEY\r\ncontent-length: 10\r\n\r\n{", &partner).await;
    assert!(slow.starts_with("HTTP/1.1 408 "), "{slow}");
    let headers = format!("GET /health HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(20_000));
    let long = raw(&server, &headers, &partner).await;
    assert!(long.starts_with("HTTP/1.1 431 "), "{long}");
}

/// Writes bytes to the server and reads what it answers until it closes or falls silent.
async fn raw(server: &Server, request: &str, partner: &Partner) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(server.app.address).await.unwrap();
    stream.write_all(request.replace("KEY", partner.api.key()).as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(std::time::Duration::from_secs(60), stream.read(&mut answer)).await;
    let read = read.expect("an answer within a minute").unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}
