//! Who changed what of an account, when, and from where.

use http::Method;

use super::support::*;

fn actions(rows: &[Value]) -> Vec<&str> {
    rows.iter().map(|row| row["activity"]["action"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn every_call_that_changes_something_is_told_and_can_be_exported() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.server.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let (partner, other) = (server.partner("told").await, server.partner("other").await);
    let made = partner.rows("/activity", "activity").await;
    let expected = ["identity.status_set", "identity.created", "key.created", "account.created"];
    assert_eq!(actions(&made), expected, "the newest first");
    assert_eq!(made[3]["activity"]["actor"], "administrator");
    assert_eq!((&made[1]["activity"]["actor"], &made[1]["activity"]["actor_name"]), (&json!("key"), &json!("test")));

    let from = [("content-type", "application/json"), ("x-forwarded-for", "203.0.113.9")];
    let call = async |method: Method, path: &str, body: Value| {
        partner.call(method, path, &from, body.to_string()).await.success().unwrap()
    };
    call(Method::POST, "/configuration-sets", json!({"name": "news"})).await;
    let hook = json!({"webhook_url": "https://hook.example/a-token-in-the-path"});
    call(Method::PUT, "/webhook", hook).await;
    call(Method::PUT, "/suppression/jane@inbox.example", json!({})).await;
    call(Method::DELETE, "/recipients/jane@inbox.example", json!({})).await;
    // Refused, or nothing new: nothing is told.
    let refused = partner.call(Method::DELETE, "/suppression/nobody@inbox.example", &from, "").await;
    assert_eq!(refused.status, 404);
    server.admin.at(noon()).post(&format!("{}/pause", partner.account), &json!({"reason": "a look"})).await.unwrap();
    server.admin.at(noon()).post(&format!("{}/pause", partner.account), &json!({"reason": "again"})).await.unwrap();
    let replay = json!({"from": "2026-04-01"});
    let _ = partner.call(Method::POST, "/events/replay", &from, replay.to_string()).await;
    let told = partner.rows("/activity", "activity").await;
    let new = &told[..told.len() - made.len()];
    let mut shown = actions(new);
    shown.retain(|action| *action != "replay.started");
    let expected =
        ["account.paused", "recipient.erased", "suppression.put", "destination.created", "configuration_set.created"];
    assert_eq!(shown, expected);
    let of = |action: &str| new.iter().find(|row| row["activity"]["action"] == action).unwrap();
    assert_eq!(of("configuration_set.created")["activity"]["address"], "203.0.113.9");
    assert_eq!(of("destination.created")["activity"]["address"], "203.0.113.9");
    assert!(!format!("{new:?}").contains("a-token-in-the-path"));
    let details: Value = serde_json::from_str(of("account.paused")["activity"]["details"].as_str().unwrap()).unwrap();
    assert_eq!(details, json!({"reason": "a look"}));
    eventually("whoever was erased is not in it", async || {
        !format!("{:?}", partner.rows("/activity", "activity").await).contains("jane@")
    })
    .await;

    // One's own only, and the administrator any; lists of events leave it out unless asked for it.
    assert_eq!(other.rows("/activity", "activity").await.len(), 4);
    let by_admin = server.admin.rows(&format!("{}/activity", partner.account), "activity").await.unwrap();
    assert_eq!(by_admin.len(), told.len());
    let missing = format!("{ADMIN}/accounts/00000000-0000-4000-8000-000000000000/activity");
    assert_eq!(server.admin.call(Method::GET, &missing, &[], "").await.unwrap().status, 404);
    assert!(!kinds(&partner.log().await).contains(&"ConfigurationChanged"));
    let asked = partner.rows("/events?event_type=ConfigurationChanged&from=2026-01-01", "events").await;
    assert_eq!(asked.len(), told.len());
    let totals = partner.get("/stats?from=2026-04-01&to=2026-06-01").await["totals"].clone();
    assert!(totals.as_object().unwrap().values().all(|sum| sum.is_null() || sum == &json!(0) || sum == &json!(0.0)));

    let export = json!({"dataset": "activity", "from": "2026-05-01", "to": "2026-05-02", "format": "ndjson"});
    let export = partner.post("/exports", &export).await["export"]["export_id"].as_str().unwrap().to_owned();
    let path = format!("/exports/{export}");
    eventually("the export is done", async || partner.get(&path).await["export"]["status"] == "done").await;
    let job = partner.get(&path).await;
    let rows: u64 = job["export"]["files"].as_array().unwrap().iter().filter_map(|file| file["rows"].as_u64()).sum();
    assert_eq!(rows, told.len() as u64, "{job}");
    // It is there after a restart, and in the archive like any event.
    let server = server.restart().await;
    assert_eq!(partner.on(&server).rows("/activity", "activity").await.len(), told.len());
}
