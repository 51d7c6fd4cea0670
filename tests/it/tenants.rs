//! One account never sees another's data, nor changes it, on any route of the API's document.

use std::collections::BTreeMap;

use http::Method;

use super::support::*;

/// What the owner sees of everything that is asked for below.
async fn seen(owner: &Partner, paths: &[String]) -> BTreeMap<String, Value> {
    let mut seen = BTreeMap::new();
    for path in paths {
        let reply = owner.api.call(Method::GET, path, &[], "").await.unwrap();
        assert!(reply.status.is_success() || reply.status == 404, "{path}: {}", reply.json());
        seen.insert(path.clone(), reply.json());
    }
    seen
}

/// A body that is fine but for whose it is about.
fn body(method: &Method, path: &str) -> Value {
    let url = "https://taken.example/";
    match (method.as_str(), path.rsplit('/').next().unwrap()) {
        ("PATCH", "{config_set_id}") => json!({"description": "taken"}),
        ("PATCH", _) => json!({"enabled": false, "webhook_url": url}),
        ("POST", "recover") => json!({"since": "2026-01-01"}),
        ("POST", "test") => json!({"event_type": "bounce"}),
        ("POST", "event-destinations") => {
            json!({"name": "taken", "destination_type": "WEBHOOK", "webhook_url": url})
        }
        ("PUT", "{id}") => json!({"url": url}),
        _ => json!({}),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_sees_or_changes_what_is_another_accounts() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let (owner, other) = (server.partner("alpha").await, server.partner("other").await);
    let url = |path: &str| format!("{}/alpha-{path}", receiver.base);
    let set = owner.set(json!({"name": "alpha-set"})).await;
    let hook = json!({"name": "alpha-hook", "webhook_url": url("hook"), "generate_secret": true});
    let destination = owner.destination(&set, hook).await;
    owner.call(Method::PUT, "/webhook", &[], json!({"webhook_url": url("all")}).to_string()).await.success().unwrap();
    let operational = json!({"webhook_url": url("operational")}).to_string();
    owner.call(Method::PUT, "/operational-webhook", &[], operational).await.success().unwrap();
    let endpoint = owner.api.post("/webhooks", &json!({"url": "https://alpha.example/s4"})).await.unwrap();
    let s3 = json!({"url": "https://alpha.example/s3", "events": ["email.bounced"]});
    let s3 = owner.api.post("/api/v1/webhooks", &s3).await.unwrap();
    let mut bounce = owner.event("HardBounce");
    bounce["configuration_set_name"] = json!("alpha-set");
    owner.stream(&[bounce.clone()]).await;
    // To the set's, and to the account's.
    receiver.wait("/alpha-hook", 1).await;
    receiver.wait("/alpha-all", 1).await;
    let replay = json!({"from": "2026-04-01", "destination_ids": [destination]});
    let replay = owner.post("/events/replay", &replay).await;
    let replay = replay["replay"]["replay_id"].as_str().unwrap().to_owned();
    receiver.wait("/alpha-hook", 2).await;
    let path = format!("/events/replay/{replay}");
    eventually("the replay is done", async || owner.get(&path).await["replay"]["status"] == "done").await;
    let deliveries = format!("/destinations/{destination}/deliveries");
    let delivered = async || {
        let rows = owner.rows(&deliveries, "deliveries").await;
        rows.len() == 1 && rows[0]["status"] == "delivered" && rows[0]["attempts"] == 2
    };
    eventually("both attempts are known", delivered).await;
    let delivery = owner.rows(&deliveries, "deliveries").await[0]["delivery_id"].as_str().unwrap().to_owned();

    let export = json!({"dataset": "events", "from": "2026-05-01", "to": "2026-05-02"});
    let export = owner.post("/exports", &export).await["export"]["export_id"].as_str().unwrap().to_owned();
    let path = format!("/exports/{export}");
    eventually("the export is done", async || owner.get(&path).await["export"]["status"] == "done").await;

    let gone = owner.call(Method::DELETE, "/recipients/gone@alpha.example", &[], "").await.success().unwrap();
    let erasure = gone["erasure"]["erasure_id"].as_str().unwrap().to_owned();
    let path = format!("/erasures/{erasure}");
    eventually("it is erased", async || owner.get(&path).await["erasure"]["status"] == "ERASED").await;

    let value = |parameter: &str| match parameter {
        "erasure_id" => erasure.clone(),
        "export_id" => export.clone(),
        "name" => "seal.json".into(),
        "config_set_id" => set.clone(),
        "destination_id" => destination.clone(),
        "delivery_id" => delivery.clone(),
        "replay_id" => replay.clone(),
        "message_id" => bounce["message_id"].as_str().unwrap().to_owned(),
        "identity_type" => "DOMAIN".into(),
        "identity_value" => owner.domain.clone(),
        "email" => bounce["recipient"].as_str().unwrap().to_owned(),
        "id" => endpoint["endpoint"]["id"].as_str().unwrap().to_owned(),
        other => panic!("what is {{{other}}}? A new route needs a value here"),
    };
    let filled = |path: &str| -> String {
        let parts = path.split('/').map(|part| match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
            Some(parameter) => value(parameter),
            None => part.to_owned(),
        });
        parts.collect::<Vec<_>>().join("/")
    };
    let routes = partner_routes(&server).await;
    assert!(routes.len() >= 55, "{} routes", routes.len());
    let gets: Vec<String> =
        routes.iter().filter(|(_, method)| *method == Method::GET).map(|(path, _)| filled(path)).collect();
    let before = seen(&owner, &gets).await;
    // It is there to be found.
    let shown = before.values().filter(|body| body.to_string().contains("alpha")).count();
    assert!(shown >= 18, "{shown} of {}", before.len());

    for (path, method) in &routes {
        let headers = [("content-type", "application/json")];
        let sent = if *method == Method::GET { String::new() } else { body(method, path).to_string() };
        let reply = other.api.call(method.clone(), &filled(path), &headers, sent).await.unwrap();
        let told = reply.json().to_string();
        assert!(!reply.status.is_server_error(), "{method} {path}: {told}");
        // An address is on everybody's own list, or not.
        if path.contains('{') && !path.ends_with("/{email}") {
            assert_eq!(reply.status, 404, "{method} {path}: {told}");
        }
        // What was asked for may stand in the refusal.
        let told = [&owner.domain, bounce["recipient"].as_str().unwrap()]
            .iter()
            .fold(told, |told, asked| told.replace(*asked, ""));
        assert!(!told.contains("alpha"), "{method} {path}: {told}");
    }
    let of_s3 = format!("/api/v1/webhooks?id={}", s3["data"]["id"].as_str().unwrap());
    assert_eq!(other.api.call(Method::DELETE, &of_s3, &[], "").await.unwrap().status, 404);
    // Nor by naming it in what is one's own.
    let named = json!({"from": "2026-04-01", "destination_ids": [destination]}).to_string();
    let reply = other.call(Method::POST, "/events/replay", &[("content-type", "application/json")], named).await;
    assert!(reply.status.is_client_error(), "{}", reply.json());

    assert_eq!(seen(&owner, &gets).await, before);
    assert_eq!((receiver.posts("/alpha-hook").len(), receiver.posts("/alpha-all").len()), (2, 1));
}
