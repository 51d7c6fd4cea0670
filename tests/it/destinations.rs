//! Destinations on every surface: made, changed, tried; below, their secrets, what goes to the account's own, and bounces of
//! one kind.

mod account;
mod bounces;
mod signing;

use http::Method;
use sendtrail::client::{Api, Reply};

use super::support::*;

/// Calls with another way of showing a key.
async fn call(server: &Server, key: (&str, &str), method: Method, path: &str, body: Value) -> Reply {
    let api = Api::new(server.admin.base(), "");
    let body = if body.is_null() { String::new() } else { body.to_string() };
    api.call(method, path, &[key], body).await.unwrap()
}

async fn key(server: &Server, partner: &Partner, form: &str, more: Value) -> Value {
    let mut body = json!({"name": form, "form": form});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.admin.post(&format!("{}/keys", partner.account), &body).await.unwrap()["key"].clone()
}

fn verify_zmailer(post: &Post, secret: &str) {
    let header = |name: &str| post.header(name).to_owned();
    let parts: std::collections::HashMap<String, String> = header("x-zmailer-signature")
        .split(',')
        .map(|part| part.split_once('=').unwrap())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let signed = [parts["t"].as_bytes(), b".", &post.body].concat();
    assert_eq!(parts["v1"], hmac_hex(secret, &signed));
}

fn hmac_hex(secret: &str, message: &[u8]) -> String {
    use hmac::{Hmac, KeyInit, Mac};
    let mut mac = Hmac::<sha2::Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(message);
    sendtrail_schemas::secret::hex(&mac.finalize().into_bytes())
}

#[tokio::test]
async fn s4_registers_endpoints_at_the_root() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let (partner, other) = (server.partner("zm").await, server.partner("zmother").await);
    let live = key(&server, &partner, "zm_live", json!({})).await["api_key"].as_str().unwrap().to_owned();
    assert!(live.starts_with("zm_live_"));
    let with = ("x-api-key", live.as_str());
    let url = format!("{}/s4", receiver.base);
    let body =
        json!({"url": url, "events": ["email.sent", "email.bounced", "email.failed"], "description": "production"});
    let made = call(&server, with, Method::POST, "/webhooks", body).await;
    assert_eq!(made.status, 201, "{}", made.json());
    let endpoint = made.json()["endpoint"].clone();
    let (id, secret) = (endpoint["id"].as_str().unwrap(), endpoint["secret"].as_str().unwrap().to_owned());
    assert!(secret.starts_with("whsec_") && endpoint["active"] == true && endpoint["created_at"].is_string());
    assert_eq!(endpoint["events"], json!(["email.sent", "email.bounced", "email.failed"]));
    // Shown again one by one, with a bearer token, too; not in the list.
    let bearer = format!("Bearer {live}");
    let again = call(&server, ("authorization", &bearer), Method::GET, &format!("/webhooks/{id}"), Value::Null).await;
    assert_eq!(again.json()["endpoint"]["secret"], secret);
    let list = call(&server, with, Method::GET, "/webhooks", Value::Null).await.json();
    assert_eq!((list["endpoints"].as_array().unwrap().len(), &list["endpoints"][0]["secret"]), (1, &Value::Null));

    // Once a call, and for each recipient what is each one's; of no set.
    let body = json!({"from": format!("n@{}", partner.domain), "to": ["a@x.example", "b@x.example"], "subject": "s", "text_body": "t",
        "tags": {"welcome": ""}, "metadata": {"userId": "u_1"}});
    partner
        .api
        .call(Method::PUT, &format!("{PARTNER}/suppression/s@x.example"), &[], json!({"reason": "MANUAL"}).to_string())
        .await
        .unwrap();
    let mut with_rejected = body.clone();
    with_rejected["to"] = json!(["s@x.example", "c@x.example"]);
    partner.post("/send", &body).await;
    partner.post("/send", &with_rejected).await;
    partner.stream(&[partner.event("HardBounce"), partner.event("Open")]).await;
    let posts = receiver.wait("/s4", 4).await;
    let mut events: Vec<String> = posts.iter().map(|post| post.json()["event"].as_str().unwrap().to_owned()).collect();
    events.sort();
    assert_eq!(events, ["email.bounced", "email.failed", "email.sent", "email.sent"]);
    for post in &posts {
        verify_zmailer(post, &secret);
        let body = post.json();
        assert_eq!(
            (body["sendId"].clone(), post.header("x-zmailer-event")),
            (body["messageId"].clone(), body["event"].as_str().unwrap())
        );
    }
    let sent = posts.iter().map(Post::json).find(|body| body["event"] == "email.sent").unwrap();
    assert_eq!((&sent["tags"], &sent["metadata"]), (&json!(["welcome"]), &json!({"userId": "u_1"})));
    assert_ne!(sent["providerMessageId"], sent["sendId"]);

    // No events are all events.
    let all = call(&server, with, Method::PUT, &format!("/webhooks/{id}"), json!({"events": []})).await.json();
    assert_eq!((&all["endpoint"]["events"], &all["endpoint"]["url"]), (&json!([]), &json!(url)));
    partner.stream(&[partner.event("Complaint")]).await;
    let complained = |post: &Post| post.json()["event"] == "email.complained";
    eventually("a complaint is told, too", async || receiver.posts("/s4").iter().any(complained)).await;

    // A partial update, and nobody else's.
    let changed = call(&server, with, Method::PUT, &format!("/webhooks/{id}"), json!({"active": false})).await.json();
    assert_eq!((&changed["endpoint"]["active"], &changed["endpoint"]["url"]), (&json!(false), &json!(url)));
    let theirs = key(&server, &other, "zm_live", json!({})).await["api_key"].as_str().unwrap().to_owned();
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let reply = call(&server, ("x-api-key", &theirs), method, &format!("/webhooks/{id}"), json!({})).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["code"]), (404, &json!("NOT_FOUND")));
    }
    // Keys that stand in web sites, or only try things out, neither read secrets nor send events anywhere.
    for form in ["zm_test", "sk_live"] {
        let weak = key(&server, &partner, form, json!({})).await["api_key"].as_str().unwrap().to_owned();
        for path in ["/webhooks".to_owned(), format!("/webhooks/{id}"), "/api/v1/webhooks".into()] {
            let reply = call(&server, ("x-api-key", &weak), Method::GET, &path, Value::Null).await;
            assert_eq!(reply.status.as_u16(), 401, "{form} {path}");
        }
    }
    let reply = call(&server, with, Method::GET, "/api/v1/webhooks", Value::Null).await;
    assert_eq!(reply.status.as_u16(), 401, "a key of the one platform is none of the other");
    // Errors in its own form.
    for (body, what) in [
        (json!({"url": "http://10.0.0.1/", "events": []}), "not a public address"),
        (json!({"url": "https://user:pass@x.example/"}), "credentials"),
        (json!({"url": "https://x.example/", "events": ["email.opened"]}), "none that is sent"),
        (json!({"events": []}), "needed"),
    ] {
        let reply = call(&server, with, Method::POST, "/webhooks", body).await;
        let told = reply.json();
        assert_eq!(
            (reply.status.as_u16(), &told["code"], &told["success"]),
            (400, &json!("INVALID_REQUEST"), &json!(false))
        );
        assert!(told["error"].as_str().unwrap().contains(what), "{told}");
    }
    let reply = call(&server, ("x-api-key", "zm_live_nobody"), Method::GET, "/webhooks", Value::Null).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["code"]), (401, &json!("KEY_NOT_FOUND")));
    let reply = call(&server, with, Method::DELETE, &format!("/webhooks/{id}"), Value::Null).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["success"]), (200, &json!(true)));
    assert_eq!(call(&server, with, Method::GET, &format!("/webhooks/{id}"), Value::Null).await.status, 404);
}

#[tokio::test]
async fn s3_registers_webhooks_and_shows_a_secret_once() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("sc").await;
    let bearer = format!("Bearer {}", partner.api.key());
    let with = ("authorization", bearer.as_str());
    const PATH: &str = "/api/v1/webhooks";
    let body = json!({"url": format!("{}/s3", receiver.base), "events": ["email.sent", "email.delivered"]});
    let made = call(&server, with, Method::POST, PATH, body).await;
    assert_eq!(made.status, 201);
    let data = made.json()["data"].clone();
    let secret = data["secret"].as_str().unwrap().to_owned();
    assert!(secret.starts_with("whsec_") && secret.len() == 6 + 64 && data["active"] == true);
    let list = call(&server, with, Method::GET, PATH, Value::Null).await.json();
    assert_eq!(
        (list["success"].clone(), &list["data"][0]["id"], &list["data"][0]["secret"]),
        (json!(true), &data["id"], &Value::Null)
    );
    assert!(!list.to_string().contains(&secret));
    let given = json!({"url": format!("{}/given", receiver.base), "events": [], "secret": "your_webhook_secret"});
    let given = call(&server, with, Method::POST, PATH, given).await.json()["data"].clone();
    assert_eq!(given["secret"], "your_webhook_secret");
    partner.stream(&[partner.event("Delivery"), partner.event("Open"), partner.event("Reject")]).await;
    let post = receiver.wait("/s3", 1).await.remove(0);
    assert_eq!(post.header("x-sendcomms-signature"), format!("sha256={}", hmac_hex(&secret, &post.body)));
    let both = receiver.wait("/given", 2).await;
    assert_eq!(
        both[0].header("x-sendcomms-signature"),
        format!("sha256={}", hmac_hex("your_webhook_secret", &both[0].body))
    );
    let same = both.iter().map(Post::json).find(|body| body["event"] == "email.delivered").unwrap();
    assert_eq!(same["transaction_id"], post.json()["transaction_id"], "one an event, whoever is told");
    let reply =
        call(&server, with, Method::DELETE, &format!("{PATH}?id={}", data["id"].as_str().unwrap()), Value::Null).await;
    assert_eq!((reply.status.as_u16(), reply.json()), (200, json!({"success": true})));
    let missing = call(&server, with, Method::DELETE, PATH, Value::Null).await;
    assert_eq!((missing.status.as_u16(), &missing.json()["error"]["code"]), (400, &json!("MISSING_PARAM")));
    let gone =
        call(&server, with, Method::DELETE, &format!("{PATH}?id={}", data["id"].as_str().unwrap()), Value::Null).await;
    assert_eq!((gone.status.as_u16(), &gone.json()["error"]["code"]), (404, &json!("NOT_FOUND")));
}

#[tokio::test]
async fn every_destination_is_seen_tried_and_changed_in_one_place() {
    let server = Server::start().await;
    let receiver = Receiver::start(|path, _| match path {
        "/broken" => Answer { body: "out of order – später".into(), ..Answer::status(503) },
        _ => Answer::status(200),
    })
    .await;
    let (partner, other) = (server.partner("place").await, server.partner("placeother").await);
    let set = partner.set(json!({"name": "set"})).await;
    let headers = json!({"X-Tenant": "acme", "x-trace": "a b"});
    let fields = json!({"webhook_url": format!("{}/one", receiver.base), "dialect": "standard", "generate_secret": true, "headers": headers});
    let path = format!("/configuration-sets/{set}/event-destinations");
    let mut body = json!({"name": "one"});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    let made = partner.post(&path, &body).await["event_destination"].clone();
    let secret = made["webhook_secret"].as_str().unwrap().to_owned();
    let one = made["destination_id"].as_str().unwrap().to_owned();
    assert_eq!(
        partner.get(&format!("/destinations/{one}")).await["destination"]["webhook_secret"],
        Value::Null,
        "shown once"
    );
    let all = partner.rows("/destinations", "destinations").await;
    assert_eq!((all.len(), &all[0]["config_set_id"], &all[0]["health"]), (1, &json!(set), &json!("working")));

    // A signed sample of each type, and what the receiver makes of it.
    for kind in ["Bounce", "email.opened", "Delivery"] {
        let told =
            partner.post(&format!("/destinations/{one}/test"), &json!({"event_type": kind})).await["test"].clone();
        assert_eq!(
            (&told["delivered"], &told["status_code"], &told["failure"]),
            (&json!(true), &json!(200), &json!("none")),
            "{told}"
        );
    }
    let posts = receiver.posts("/one");
    let verifier = standardwebhooks::Webhook::new(&secret).unwrap();
    for post in &posts {
        verifier.verify(&post.body, &post.headers).unwrap();
        assert_eq!(
            (post.header("x-tenant"), post.header("x-trace"), post.header("webhook-attempt")),
            ("acme", "a b", "1")
        );
    }
    assert_eq!(
        posts.iter().map(|post| post.json()["type"].clone()).collect::<Vec<_>>(),
        ["email.bounced", "email.opened", "email.delivered"]
    );
    let moved = json!({"webhook_url": format!("{}/broken", receiver.base)});
    partner.api.send(Method::PATCH, &format!("{PARTNER}/destinations/{one}"), &moved).await.unwrap();
    let told = partner.post(&format!("/destinations/{one}/test"), &json!({})).await["test"].clone();
    assert_eq!(
        (&told["delivered"], &told["status_code"], &told["failure"], &told["event"]),
        (&json!(false), &json!(503), &json!("status"), &json!("email.delivered"))
    );
    assert!(told["latency_ms"].is_u64());
    assert_eq!(told["response"], "out of order – später", "what the receiver said is seen");
    // Nothing of it is an event or a delivery.
    assert!(partner.log().await.is_empty());

    // What must not be in a header, a URL, a secret or a schedule.
    let bad = [
        json!({"headers": {"Host": "x"}}),
        json!({"headers": {"X-Splashify-Signature": "sha256=0"}}),
        json!({"headers": {"X-Forwarded-For": "1.1.1.1"}}),
        json!({"headers": {"Authorization": "Bearer x"}}),
        json!({"headers": {"X-A": "a\r\nX-B: b"}}),
        json!({"headers": {"X-A\r\nX-B": "a"}}),
        json!({"headers": {"X-Ä": "a"}}),
        json!({"headers": {"X-A": "é"}}),
        json!({"headers": (0..11).map(|n| (format!("X-{n}"), json!("v"))).collect::<serde_json::Map<_, _>>()}),
        json!({"webhook_url": "https://user:secret@hook.example/"}),
        json!({"webhook_url": "ftp://hook.example/"}),
        json!({"webhook_url": "https://hook.example:25/"}),
        json!({"webhook_url": "https://0xA9FEA9FE/latest/meta-data"}),
        json!({"webhook_url": "nonsense"}),
        json!({"webhook_secret": "not base64 for the standard dialect"}),
        json!({"retry_schedule_seconds": [700_000]}),
        json!({"ordering": "sorted"}),
        json!({"concurrency": 101}),
        json!({"rate_per_second": 10_001}),
        json!({"dialect": "mailgun"}),
        json!({"matching_event_types": ["nothing"]}),
    ];
    for body in bad {
        let reply = partner.call(Method::PATCH, &format!("/destinations/{one}"), &[], body.to_string()).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (400, &json!("INVALID_REQUEST")), "{body}");
        assert!(!reply.json().to_string().contains("secret@"), "{}", reply.json());
    }
    // Nobody else's.
    for (method, path) in [
        (Method::GET, format!("/destinations/{one}")),
        (Method::PATCH, format!("/destinations/{one}")),
        (Method::DELETE, format!("/destinations/{one}")),
        (Method::POST, format!("/destinations/{one}/test")),
        (Method::POST, format!("/destinations/{one}/rotate-secret")),
        (Method::POST, format!("/destinations/{one}/switch-secret")),
        (Method::GET, format!("/destinations/{one}/deliveries")),
        (Method::POST, format!("/destinations/{one}/recover")),
    ] {
        let reply = other.call(method.clone(), &path, &[], r#"{"since":"2026-01-01"}"#).await;
        assert_eq!(reply.status, 404, "{method} {path}: {}", reply.json());
    }
    let reply = partner.call(Method::DELETE, &format!("/destinations/{one}"), &[], "").await;
    assert_eq!(reply.status, 200);
    assert!(partner.rows("/destinations", "destinations").await.is_empty());
}
