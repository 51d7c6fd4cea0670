//! Destinations on every surface: made, changed, tried, their secrets, and what goes to the account's own.

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
async fn the_account_level_webhook_gets_every_event_whatever_its_set_and_lifecycle_posts() {
    let server = Server::start().await;
    let receiver = Receiver::start(|path, _| Answer::status(if path == "/down" { 500 } else { 200 })).await;
    let partner = server.partner("acct").await;
    let set = partner.set(json!({"name": "set"})).await;
    partner.destination(&set, json!({"webhook_url": format!("{}/set", receiver.base)})).await;
    let put = async |body: Value| {
        let reply = partner.call(Method::PUT, "/webhook", &[], body.to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.json());
        reply.json()["webhook"].clone()
    };
    let made = put(json!({"webhook_url": format!("{}/all", receiver.base), "webhook_secret": "ours"})).await;
    assert_eq!(
        (&made["surface"], &made["dialect"], &made["has_secret"]),
        (&json!("account"), &json!("splashify"), &json!(true))
    );
    // Again is a change, not another one.
    assert_eq!(put(json!({"description": "everything"})).await["destination_id"], made["destination_id"]);
    assert_eq!(partner.get("/webhook").await["webhook"]["description"], "everything");
    let mut in_set = partner.event("Send");
    in_set["configuration_set_name"] = json!("set");
    partner.stream(&[in_set, partner.event("Delivery"), partner.event("Subscription")]).await;
    let posts = receiver.wait("/all", 2).await;
    assert_eq!(receiver.wait("/set", 1).await.len(), 1);
    for post in &posts {
        assert_eq!(post.header("x-splashify-signature"), format!("sha256={}", hmac_hex("ours", &post.body)));
    }

    // Lifecycle posts: once, unsigned, in their own envelope.
    let path = format!("{}/lifecycle-events", partner.account);
    let data = r#"{"customer_id":"8f3b","rejection_reason":"","n":1.50}"#;
    let body = format!(r#"{{"event_type":"rcs_kyc.approved","data":{data}}}"#);
    server.admin.call(Method::POST, &path, &[], body).await.unwrap().success().unwrap();
    let post = receiver.wait("/all", 3).await.remove(2);
    let text = String::from_utf8(post.body.to_vec()).unwrap();
    assert!(text.contains(data), "data is passed on as it came: {text}");
    let body = post.json();
    assert_eq!((&body["event_type"], &body["partner_id"]), (&json!("rcs_kyc.approved"), &json!(partner.account_id)));
    assert!(body["occurred_at"].is_string());
    assert_eq!((post.header("x-splashify-event"), post.header("x-splashify-signature")), ("rcs_kyc.approved", ""));
    assert!(!post.header("x-splashify-delivery-id").is_empty() && !post.header("x-splashify-timestamp").is_empty());
    let unknown = server.admin.call(Method::POST, &path, &[], r#"{"event_type":"made.up","data":{}}"#).await.unwrap();
    assert_eq!((unknown.status.as_u16(), &unknown.json()["error"]), (400, &json!("INVALID_REQUEST")));

    // A failure is recorded, and not tried again.
    put(json!({"webhook_url": format!("{}/down", receiver.base), "retry_schedule_seconds": [1, 1]})).await;
    server.admin.post(&path, &json!({"event_type": "production_access.approved", "data": {}})).await.unwrap();
    let last = async || partner.log().await.pop().unwrap();
    eventually("given up", async || last().await["deliveries"][0]["status"] == "gave_up").await;
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(receiver.posts("/down").len(), 1);
    let event = last().await;
    assert_eq!(
        (&event["event_type"], &event["lifecycle"]["event_type"]),
        (&json!("Lifecycle"), &json!("production_access.approved"))
    );
    let reply = partner.call(Method::DELETE, "/webhook", &[], "").await;
    assert_eq!(reply.status, 200);
    assert_eq!(partner.call(Method::GET, "/webhook", &[], "").await.status, 404);
}

#[tokio::test]
async fn callbacks_of_others_come_with_a_token_and_go_out_wrapped_or_as_they_came() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("inbound").await;
    partner
        .call(
            Method::PUT,
            "/webhook",
            &[],
            json!({"webhook_url": format!("{}/in", receiver.base), "webhook_secret": "s"}).to_string(),
        )
        .await;
    let rcs = key(&server, &partner, "in_rcs", json!({"customer_id": "8f3b2a1e"})).await;
    let whatsapp = key(&server, &partner, "in_wa", json!({})).await;
    let nobody = Api::new(server.admin.base(), "");
    let post = async |path: &str, body: &str| nobody.call(Method::POST, path, &[], body.to_owned()).await.unwrap();
    let (rcs_path, wa_path) = (rcs["callback_path"].as_str().unwrap(), whatsapp["callback_path"].as_str().unwrap());
    let callback = r#"{ "bot_name":"Bot_promo", "event_type":"status","message_status":"DELIVERED","extra":"trial","n":12345678901234567890.10 }"#;
    assert_eq!(post(rcs_path, callback).await.status, 200);
    let told = receiver.wait("/in", 1).await.remove(0);
    assert!(String::from_utf8_lossy(&told.body).contains(callback), "untouched");
    let body = told.json();
    assert_eq!(
        (&body["event_type"], &body["data"]["customer_id"], &body["data"]["bot_name"]),
        (&json!("rcs.status.delivered"), &json!("8f3b2a1e"), &json!("Bot_promo"))
    );
    let meta = "{\n  \"object\": \"whatsapp_business_account\", \"entry\":[{\"changes\":[{\"value\":{\"messages\":[{\"type\":\"text\",\"text\":{\"body\":\"Hi 🚀 \\u00e9\"}}]}}]}]}\n";
    assert_eq!(post(wa_path, meta).await.status, 200);
    let told = receiver.wait("/in", 2).await.remove(1);
    assert_eq!(
        (told.body.as_ref(), told.header("x-splashify-event"), told.header("x-splashify-signature")),
        (meta.as_bytes(), "whatsapp.text", "")
    );
    // Meta asks first whether the path is ours.
    let asked = nobody
        .call(
            Method::GET,
            &format!("{wa_path}?hub.mode=subscribe&hub.challenge=1158201444&hub.verify_token=x"),
            &[],
            "",
        )
        .await
        .unwrap();
    assert_eq!((asked.status.as_u16(), asked.body.as_ref()), (200, b"1158201444".as_slice()));
    // A token opens its own path only, and an account's key opens none.
    for (path, status) in [
        (rcs_path.replace("/rcs/", "/whatsapp/"), 401),
        (format!("/api/v1/inbound/rcs/{}", partner.api.key()), 401),
        ("/api/v1/inbound/rcs/nobody".to_owned(), 401),
    ] {
        assert_eq!(post(&path, "{}").await.status, status, "{path}");
    }
    // Nothing is read for who has no token.
    let packed = [("content-encoding", "unknown"), ("content-type", "application/xml")];
    let api = Api::new(server.admin.base(), "");
    for (path, status) in [("/api/v1/inbound/rcs/nobody", 401), (rcs_path, 415)] {
        assert_eq!(api.call(Method::POST, path, &packed, "x").await.unwrap().status, status, "{path}");
    }
    let token = rcs["api_key"].as_str().unwrap();
    assert_eq!(call(&server, ("x-api-key", token), Method::GET, "/webhooks", Value::Null).await.status, 401);
    assert_eq!(
        call(
            &server,
            ("authorization", &format!("Bearer {token}")),
            Method::GET,
            &format!("{PARTNER}/quotas"),
            Value::Null
        )
        .await
        .status,
        401
    );
    assert_eq!(
        (
            post(rcs_path, "not json").await.status.as_u16(),
            post(rcs_path, &format!("\"{}\"", "x".repeat(300_000))).await.status.as_u16()
        ),
        (400, 413)
    );
    // Revoked is revoked.
    let path = format!("{}/keys/{}", partner.account, rcs["key_id"].as_str().unwrap());
    server.admin.call(Method::DELETE, &path, &[], "").await.unwrap().success().unwrap();
    assert_eq!(post(rcs_path, callback).await.status, 401);
}

#[tokio::test]
async fn every_destination_is_seen_tried_and_changed_in_one_place() {
    let server = Server::start().await;
    let receiver = Receiver::start(|path, _| match path {
        "/broken" => Answer::status(503),
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
    assert!(told["latency_ms"].is_u64() && told["response"].is_string());
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

#[tokio::test]
async fn a_secret_rotates_without_a_delivery_that_cannot_be_verified() {
    // Signatures go by the clock on the wall.
    let server = Server::start_with(|_| {}).await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("rotate").await;
    const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    let set = partner.set(json!({"name": "set"})).await;
    let mut hooks = std::collections::HashMap::new();
    for dialect in ["standard", "securesmtp", "splashify", "zmailer"] {
        let fields =
            json!({"webhook_url": format!("{}/{dialect}", receiver.base), "webhook_secret": OLD, "dialect": dialect});
        hooks.insert(dialect, partner.destination(&set, fields).await);
    }
    let mut count = 0;
    let mut round = async |partner: &Partner| {
        count += 1;
        let mut event = partner.event("Delivery");
        event["configuration_set_name"] = json!("set");
        partner.stream(&[event]).await;
        let mut posts = std::collections::HashMap::new();
        for dialect in ["standard", "securesmtp", "splashify", "zmailer"] {
            posts.insert(dialect, receiver.wait(&format!("/{dialect}"), count).await.remove(count - 1));
        }
        posts
    };
    round(&partner).await;
    let mut new = std::collections::HashMap::new();
    for (dialect, id) in &hooks {
        let told = partner.post(&format!("/destinations/{id}/rotate-secret"), &json!({"overlap_seconds": 2})).await["destination"].clone();
        new.insert(*dialect, told["webhook_secret"].as_str().unwrap().to_owned());
        let signing = if ["standard", "securesmtp"].contains(dialect) { "both" } else { "previous" };
        assert_eq!(told["rotation"]["signing"], signing);
    }
    let posts = round(&partner).await;
    for secret in [OLD, &new["standard"]] {
        standardwebhooks::Webhook::new(secret)
            .unwrap()
            .verify(&posts["standard"].body, &posts["standard"].headers)
            .unwrap();
    }
    assert_eq!(posts["securesmtp"].header("svix-signature").split(' ').count(), 2);
    assert_eq!(
        posts["splashify"].header("x-splashify-signature"),
        format!("sha256={}", hmac_hex(OLD, &posts["splashify"].body))
    );
    verify_zmailer(&posts["zmailer"], OLD);
    // Once the overlap is over, only the new one; the others wait until they are asked.
    tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
    let posts = round(&partner).await;
    assert!(
        standardwebhooks::Webhook::new(OLD)
            .unwrap()
            .verify(&posts["standard"].body, &posts["standard"].headers)
            .is_err()
    );
    standardwebhooks::Webhook::new(&new["standard"])
        .unwrap()
        .verify(&posts["standard"].body, &posts["standard"].headers)
        .unwrap();
    verify_zmailer(&posts["zmailer"], OLD);
    for id in hooks.values() {
        let told = partner.post(&format!("/destinations/{id}/switch-secret"), &json!({})).await;
        assert_eq!(told["destination"]["rotation"], Value::Null);
    }
    let posts = round(&partner).await;
    assert_eq!(
        posts["splashify"].header("x-splashify-signature"),
        format!("sha256={}", hmac_hex(&new["splashify"], &posts["splashify"].body))
    );
    verify_zmailer(&posts["zmailer"], &new["zmailer"]);
    let reply = partner
        .call(
            Method::POST,
            &format!("/destinations/{}/rotate-secret", hooks["standard"]),
            &[],
            r#"{"webhook_secret":"x"}"#,
        )
        .await;
    assert_eq!(reply.status, 400);
}

#[tokio::test]
async fn what_cannot_be_signed_is_tried_again() {
    use base64::Engine;
    let encoded = |byte| base64::prelude::BASE64_STANDARD.encode([byte; 32]);
    let server = Server::start_with(|config| config.secrets.key = encoded(1)).await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("unsigned").await;
    let set = partner.set(json!({"name": "set"})).await;
    let fields = json!({"webhook_url": format!("{}/u", receiver.base), "webhook_secret": "first", "retry_schedule_seconds": [3, 3, 3]});
    let id = partner.destination(&set, fields).await;
    let mut stopped = server.stop().await;
    stopped.config.secrets.key = encoded(2);
    let server = stopped.start().await;
    let partner = partner.on(&server);
    let mut event = partner.event("Delivery");
    event["configuration_set_name"] = json!("set");
    partner.stream(&[event]).await;
    let deliveries = format!("/destinations/{id}/deliveries");
    let first =
        async |partner: &Partner| partner.rows(&deliveries, "deliveries").await.first().cloned().unwrap_or_default();
    eventually("it was tried", async || first(&partner).await["attempts"] == 1).await;
    let delivery = first(&partner).await;
    assert_eq!(delivery["status"], "failed", "it is not given up: {delivery}");
    let of = format!("/deliveries/{}", delivery["delivery_id"].as_str().unwrap());
    assert_eq!(partner.get(&of).await["delivery"]["attempt_log"][0]["failure"], "secret");
    assert!(receiver.posts("/u").is_empty(), "nothing goes out unsigned");
    // Its operator puts it right.
    let mut stopped = server.stop().await;
    stopped.config.secrets.key = encoded(1);
    let server = stopped.start().await;
    let post = receiver.wait("/u", 1).await.remove(0);
    assert_eq!(post.header("x-splashify-signature"), format!("sha256={}", hmac_hex("first", &post.body)));
    let partner = partner.on(&server);
    eventually("it is delivered", async || first(&partner).await["status"] == "delivered").await;
}

#[tokio::test]
async fn a_secret_fits_its_dialect_and_is_given_or_made() {
    let server = Server::start().await;
    let partner = server.partner("fits").await;
    let set = partner.set(json!({"name": "set"})).await;
    let made =
        partner.destination(&set, json!({"webhook_url": "https://x.example/", "webhook_secret": "plain words"})).await;
    let change = async |fields: Value| {
        let path = format!("{PARTNER}/destinations/{made}");
        partner.api.call(Method::PATCH, &path, &[], fields.to_string()).await.unwrap()
    };
    let both = change(json!({"webhook_secret": "mine", "generate_secret": true})).await;
    assert_eq!((both.status.as_u16(), both.json()["webhook_secret"].clone()), (400, Value::Null));
    assert_eq!(change(json!({"dialect": "standard"})).await.status, 400, "receivers could not verify it");
    assert_eq!(change(json!({"dialect": "zmailer"})).await.status, 200);
    let other = change(json!({"dialect": "standard", "generate_secret": true})).await;
    assert!(other.status == 200 && other.json().to_string().contains("whsec_"), "{}", other.json());
    assert_eq!(change(json!({"dialect": "securesmtp"})).await.status, 200);
}

#[tokio::test]
async fn secrets_are_sealed_anew_when_the_key_changes() {
    use base64::Engine;
    let encoded = |byte| base64::prelude::BASE64_STANDARD.encode([byte; 32]);
    let server = Server::start_with(|config| config.secrets.key = encoded(1)).await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("reseal").await;
    let set = partner.set(json!({"name": "set"})).await;
    let id = partner
        .destination(&set, json!({"webhook_url": format!("{}/r", receiver.base), "webhook_secret": "first"}))
        .await;
    partner.post(&format!("/destinations/{id}/rotate-secret"), &json!({"webhook_secret": "second"})).await;
    let mut stopped = server.stop().await;
    stopped.config.secrets.key = encoded(2);
    stopped.config.secrets.previous_keys = vec![encoded(1)];
    let server = stopped.start().await;
    let told = server.admin.post(&format!("{ADMIN}/secrets/reseal"), &json!({})).await.unwrap();
    assert_eq!((&told["resealed"], &told["unreadable"]), (&json!(1), &json!([])));
    let again = server.admin.post(&format!("{ADMIN}/secrets/reseal"), &json!({})).await.unwrap();
    assert_eq!(again["resealed"], 0);
    // From now on the key of before is not needed: not for the secret that signs, nor for the one that waits.
    let mut stopped = server.stop().await;
    stopped.config.secrets.previous_keys.clear();
    let server = stopped.start().await;
    let partner = partner.on(&server);
    let mut event = partner.event("Delivery");
    event["configuration_set_name"] = json!("set");
    partner.stream(&[event.clone()]).await;
    let post = receiver.wait("/r", 1).await.remove(0);
    assert_eq!(post.header("x-splashify-signature"), format!("sha256={}", hmac_hex("first", &post.body)));
    partner.post(&format!("/destinations/{id}/switch-secret"), &json!({})).await;
    event["message_id"] = json!("another");
    partner.stream(&[event]).await;
    let post = receiver.wait("/r", 2).await.remove(1);
    assert_eq!(post.header("x-splashify-signature"), format!("sha256={}", hmac_hex("second", &post.body)));
}
