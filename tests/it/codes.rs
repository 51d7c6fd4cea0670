//! Every error has its status, its code and a sentence.

use http::Method;

use sendtrail::config::Backend;

use super::support::*;

async fn told(api: &sendtrail::client::Api, method: Method, path: &str, body: &str) -> (u16, String) {
    let reply = api.call(method.clone(), path, &[("content-type", "application/json")], body.to_owned()).await.unwrap();
    let json = reply.json();
    assert_eq!(json["success"], false, "{method} {path}: {json}");
    assert!(!json["message"].as_str().unwrap().is_empty());
    assert_eq!(
        json.as_object().unwrap().keys().filter(|key| ["success", "error", "message"].contains(&key.as_str())).count(),
        3
    );
    (reply.status.as_u16(), json["error"].as_str().unwrap().to_owned())
}

#[tokio::test]
async fn keys() {
    let server = Server::start().await;
    let partner = server.partner("keys").await;
    let base = server.admin.base();
    let path = format!("{PARTNER}/quotas");
    let with = |key: &str| sendtrail::client::Api::new(base, key);
    for (key, code) in [
        ("", "MISSING_AUTH"),
        ("pk_live_short", "INVALID_KEY_FORMAT"),
        (&format!("pk_live_{}", "x".repeat(56)), "KEY_NOT_FOUND"),
    ] {
        assert_eq!(told(&with(key), Method::GET, &path, "").await, (401, code.into()));
    }
    // The administrator's routes take no partner's key, and the other way round.
    assert_eq!(told(&partner.api, Method::GET, &format!("{ADMIN}/accounts"), "").await.0, 401);
    assert_eq!(told(&server.admin, Method::GET, &path, "").await.0, 401);

    let keys = server.admin.rows(&format!("{}/keys", partner.account), "keys").await.unwrap();
    assert!(!serde_json::to_string(&keys).unwrap().contains(partner.api.key()), "shown once");
    partner.get("/quotas").await;
    server.admin.send(Method::PATCH, &partner.account, &json!({"suspended": true})).await.unwrap();
    assert_eq!(told(&partner.api, Method::GET, &path, "").await, (401, "KEY_INACTIVE".into()));
    server.admin.send(Method::PATCH, &partner.account, &json!({"suspended": false})).await.unwrap();
    partner.get("/quotas").await;
    let revoke = format!("{}/keys/{}", partner.account, keys[0]["key_id"].as_str().unwrap());
    server.admin.call(Method::DELETE, &revoke, &[], "").await.unwrap().success().unwrap();
    assert_eq!(told(&partner.api, Method::GET, &path, "").await, (401, "KEY_NOT_FOUND".into()));
    let server = server.restart().await;
    assert_eq!(
        told(&partner.on(&server).api, Method::GET, &path, "").await,
        (401, "KEY_NOT_FOUND".into()),
        "also after a restart"
    );
}

#[tokio::test]
async fn paths_methods_and_things_that_are_not_there() {
    let server = Server::start().await;
    let partner = server.partner("paths").await;
    let nobody = "00000000-0000-4000-8000-000000000000";
    for (method, path, status, code) in [
        (Method::GET, "/nowhere".to_owned(), 404, "NOT_FOUND"),
        (Method::DELETE, format!("{PARTNER}/send"), 405, "METHOD_NOT_ALLOWED"),
        (Method::GET, format!("{PARTNER}/emails/none"), 404, "MESSAGE_NOT_FOUND"),
        (Method::GET, format!("{PARTNER}/identities/DOMAIN/none.example"), 404, "IDENTITY_NOT_FOUND"),
        (Method::GET, format!("{PARTNER}/configuration-sets/{nobody}"), 404, "CONFIG_SET_NOT_FOUND"),
        (Method::GET, format!("{PARTNER}/suppression/a@none.example"), 404, "NOT_FOUND"),
        (Method::GET, format!("{PARTNER}/stats?days=0"), 400, "INVALID_PARAM"),
        (Method::GET, format!("{PARTNER}/stats?group_by=moon"), 400, "INVALID_PARAM"),
        (Method::GET, format!("{PARTNER}/stats?config_set_id={nobody}"), 404, "CONFIG_SET_NOT_FOUND"),
        (Method::GET, format!("{PARTNER}/suppression?reason=x"), 400, "INVALID_PARAM"),
        (Method::POST, format!("{PARTNER}/events?format=x"), 400, "INVALID_PARAM"),
    ] {
        assert_eq!(told(&partner.api, method, &path, "{}").await, (status, code.into()), "{path}");
    }
    for (method, path, status, code) in [
        (Method::GET, format!("{ADMIN}/accounts/{nobody}"), 404, "PARTNER_NOT_FOUND"),
        (Method::GET, format!("{ADMIN}/accounts/{nobody}/history"), 404, "PARTNER_NOT_FOUND"),
        (Method::POST, format!("{ADMIN}/accounts/{nobody}/keys"), 404, "PARTNER_NOT_FOUND"),
        (Method::GET, format!("{ADMIN}/dead-letters/0/77"), 404, "NOT_FOUND"),
        (Method::GET, format!("{ADMIN}/dead-letters/65536/0"), 404, "NOT_FOUND"),
        (Method::POST, format!("{ADMIN}/dead-letters/65536/0/retry"), 404, "NOT_FOUND"),
        (Method::GET, format!("{ADMIN}/dead-letters?cursor=65536-0"), 400, "INVALID_PARAM"),
        (Method::DELETE, format!("{}/keys/{nobody}", partner.account), 404, "NOT_FOUND"),
    ] {
        assert_eq!(told(&server.admin, method, &path, "{}").await, (status, code.into()), "{path}");
    }
}

#[tokio::test]
async fn bodies() {
    let server = Server::start().await;
    let partner = server.partner("bodies").await;
    let good = partner.message(&["success@inbox.example"]);
    let without = |field: &str| {
        let mut body = good.clone();
        body.as_object_mut().unwrap().remove(field);
        body
    };
    let with = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    let many: Vec<String> = (0..51).map(|n| format!("a{n}@inbox.example")).collect();
    for (body, code) in [
        (without("from"), "INVALID_REQUEST"),
        (without("to"), "INVALID_REQUEST"),
        (without("subject"), "INVALID_REQUEST"),
        (without("text_body"), "INVALID_REQUEST"),
        (with("subject", "a\r\nBcc: x@y.example".into()), "INVALID_REQUEST"),
        (with("from", "a@b.example\0".into()), "INVALID_REQUEST"),
        (with("to", json!(["nobody"])), "BAD_RECIPIENT"),
        (with("to", json!(["a@b.example\r\nBcc: c@d.example"])), "BAD_RECIPIENT"),
        (with("to", json!(many)), "TOO_MANY_RECIPIENTS"),
        (with("from", "x@elsewhere.example".into()), "FROM_NOT_VERIFIED"),
        (with("category", "spam".into()), "INVALID_REQUEST"),
        (with("tags", json!({"a": 1})), "INVALID_REQUEST"),
        (with("metadata", json!([1])), "INVALID_REQUEST"),
        (with("attachments", json!([{"filename": "a", "content_base64": "%"}])), "INVALID_REQUEST"),
        (with("configuration_set_name", "none".into()), "CONFIG_SET_NOT_FOUND"),
    ] {
        let (status, reply) = partner.try_send_body(&body).await;
        assert_eq!(reply["error"], code, "{status} {reply} for {body}");
        assert_eq!(status, if code == "CONFIG_SET_NOT_FOUND" { 404 } else { 400 });
    }
    assert!(partner.log().await.is_empty());
    let path = format!("{PARTNER}/send");
    assert_eq!(told(&partner.api, Method::POST, &path, "{").await, (400, "INVALID_REQUEST".into()));

    let identities = format!("{PARTNER}/identities");
    for (body, status, code) in [
        (json!({"identity_type": "DOMAIN", "identity_value": "bodies.example"}), 409, "IDENTITY_EXISTS"),
        (json!({"identity_type": "DOMAIN", "identity_value": "gmail.com"}), 400, "INVALID_REQUEST"),
        (json!({"identity_type": "PLANET", "identity_value": "x.example"}), 400, "INVALID_REQUEST"),
        (json!({"identity_type": "EMAIL_ADDRESS", "identity_value": "x"}), 400, "INVALID_REQUEST"),
    ] {
        assert_eq!(
            told(&partner.api, Method::POST, &identities, &body.to_string()).await,
            (status, code.into()),
            "{body}"
        );
    }
    let exists = json!({"identity_type": "DOMAIN", "identity_value": "bodies.example"});
    let reply = partner.call(Method::POST, "/identities", &[], exists.to_string()).await.json();
    assert_eq!(
        (&reply["identity_value"], &reply["status"]),
        (&json!("bodies.example"), &json!("VERIFIED")),
        "the row's fields beside the error's"
    );

    for (body, code) in [
        (json!({"mode": "production", "contact_email": "a@b.example"}), "INVALID_REQUEST"),
        (json!({"name": "x", "mode": "moon", "contact_email": "a@b.example"}), "INVALID_REQUEST"),
        (json!({"name": "x", "mode": "sandbox", "contact_email": "nobody"}), "INVALID_REQUEST"),
        (
            json!({"name": "x", "mode": "sandbox", "contact_email": "a@b.example", "policy": {"name": "moon"}}),
            "INVALID_REQUEST",
        ),
    ] {
        assert_eq!(
            told(&server.admin, Method::POST, &format!("{ADMIN}/accounts"), &body.to_string()).await,
            (400, code.into()),
            "{body}"
        );
    }
}

#[tokio::test]
async fn caps_and_names_of_sets_and_destinations() {
    let server = Server::start().await;
    let partner = server.partner("caps").await;
    let sets = format!("{PARTNER}/configuration-sets");
    let set = partner.set(json!({"name": "Set-0_a"})).await;
    assert_eq!(
        told(&partner.api, Method::POST, &sets, r#"{"name":"Set-0_a"}"#).await,
        (409, "CONFIG_SET_NAME_TAKEN".into())
    );
    partner.set(json!({"name": "set-0_a"})).await;
    for bad in [
        json!({}),
        json!({"name": ""}),
        json!({"name": "a b"}),
        json!({"name": "x".repeat(257)}),
        json!({"name": "x", "suppression_options": "SOME"}),
    ] {
        assert_eq!(
            told(&partner.api, Method::POST, &sets, &bad.to_string()).await,
            (400, "INVALID_REQUEST".into()),
            "{bad}"
        );
    }
    for n in 2..100 {
        partner.set(json!({"name": format!("set{n}")})).await;
    }
    assert_eq!(
        told(&partner.api, Method::POST, &sets, r#"{"name":"one-more"}"#).await,
        (400, "CONFIG_SET_LIMIT_REACHED".into())
    );
    assert_eq!(partner.rows("/configuration-sets", "configuration_sets").await.len(), 100);
    partner.call(Method::DELETE, &format!("/configuration-sets/{set}"), &[], "").await.success().unwrap();
    let set = partner.set(json!({"name": "Set-0_a"})).await;

    let hooks = format!("{sets}/{set}/event-destinations");
    let hook = |n: usize| json!({"name": format!("h{n}"), "destination_type": "WEBHOOK", "webhook_url": "https://hook.example/"});
    for n in 0..5 {
        partner.destination(&set, hook(n)).await;
    }
    assert_eq!(
        told(&partner.api, Method::POST, &hooks, &hook(5).to_string()).await,
        (400, "DESTINATION_LIMIT_REACHED".into())
    );
    for (field, value) in [
        ("destination_type", json!("SNS")),
        ("webhook_url", json!("ftp://x.example")),
        ("webhook_url", json!("https://u:p@x.example")),
        ("matching_event_types", json!(["moon"])),
        ("dialect", json!("klingon")),
    ] {
        let mut bad = hook(6);
        bad[field] = value;
        assert_eq!(
            told(&partner.api, Method::POST, &hooks, &bad.to_string()).await,
            (400, "INVALID_REQUEST".into()),
            "{bad}"
        );
    }
    let list = partner.rows(&format!("/configuration-sets/{set}/event-destinations"), "event_destinations").await;
    let mut types = hook(0);
    types["matching_event_types"] = json!(["DELIVERED", "email.opened", "rendering_failure", "Send"]);
    let path = format!("{hooks}/{}", list[0]["destination_id"].as_str().unwrap());
    let patched = partner.api.send(Method::PATCH, &path, &types).await.unwrap();
    let shown = &patched["event_destination"]["matching_event_types"];
    assert_eq!(shown, &json!(["Send", "Delivery", "Open", "RenderingFailure"]));

    let stranger = server.partner("stranger").await;
    assert_eq!(
        told(&stranger.api, Method::GET, &path, "").await,
        (404, "CONFIG_SET_NOT_FOUND".into()),
        "another's data is not there"
    );
    assert_eq!(
        told(&stranger.api, Method::DELETE, &format!("{sets}/{set}"), "").await,
        (404, "CONFIG_SET_NOT_FOUND".into())
    );
}

#[tokio::test]
async fn overload_is_503_with_a_time_to_come_back() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        // Only a log of our own has a budget.
        config.log.backend = Backend::Embedded;
        config.log.disk_budget_bytes = 4 << 20;
        config.archive.commit_seconds = 3_600;
    })
    .await;
    let partner = server.partner("full").await;
    let mut held = None;
    for _ in 0..4_000 {
        let mut events: Vec<Value> = (0..20).map(|_| partner.event("Send")).collect();
        events.iter_mut().for_each(|event| event["subject"] = "x".repeat(200).into());
        let body: String = events.iter().map(|event| format!("{event}\n")).collect();
        let reply = partner.call(Method::POST, "/events", &[("content-type", "application/x-ndjson")], body).await;
        if reply.status == 503 && reply.json()["message"].as_str().unwrap().contains("disk budget") {
            held = Some(reply);
            break;
        }
    }
    let held = held.expect("the disk budget is not endless");
    assert_eq!(held.json()["error"], "UNAVAILABLE");
    assert!(held.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(partner.try_send(&["success@inbox.example"]).await.0, 200, "sends have headroom of their own");
}
