//! The API's document, and what is told without a key.

use http::Method;

use super::support::*;

#[tokio::test]
async fn every_documented_route_is_there_and_asks_for_a_key() {
    let server = Server::start().await;
    let nobody = sendtrail::client::Api::new(server.admin.base(), "");
    let document = nobody.get("/openapi.json").await.unwrap();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let mut routes = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let mut filled = path.replace(['{', '}'], "x");
            // A callback's key is in its path, and a link is signed.
            let opens_itself = operation["security"] == json!([]);
            if path.starts_with("/api/v1/exports") {
                filled = format!("/api/v1/exports/{}/files/x?expires=9999999999&signature=x", uuid::Uuid::nil());
            }
            let reply = nobody.call(method.clone(), &filled, &[], "").await.unwrap();
            let code = if opens_itself { "KEY_NOT_FOUND" } else { "MISSING_AUTH" };
            assert_eq!((reply.status.as_u16(), told_code(&reply.json())), (401, json!(code)), "{method} {path}");
            routes += 1;
        }
    }
    assert!(routes >= 41, "{routes} routes");
}

/// A schema with its references followed, and the parts it is made of joined: the names of its fields.
fn fields(document: &Value, schema: &Value) -> Vec<String> {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.strip_prefix("#/components/schemas/").unwrap();
        let found = &document["components"]["schemas"][name];
        assert!(found.is_object(), "{name} is not there");
        return fields(document, found);
    }
    let parts = schema["allOf"].as_array().into_iter().flatten().flat_map(|part| fields(document, part));
    let own = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.clone());
    parts.chain(own).collect()
}

fn every_reference_leads_somewhere(document: &Value, part: &Value) {
    match part {
        Value::Object(fields) => {
            if let Some(to) = fields.get("$ref").and_then(Value::as_str) {
                assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to} is not there");
            }
            fields.values().for_each(|field| every_reference_leads_somewhere(document, field));
        }
        Value::Array(parts) => parts.iter().for_each(|part| every_reference_leads_somewhere(document, part)),
        _ => {}
    }
}

#[tokio::test]
async fn every_answer_is_documented_field_by_field() {
    let server = Server::start().await;
    let nobody = sendtrail::client::Api::new(server.admin.base(), "");
    let document = nobody.get("/openapi.json").await.unwrap();
    every_reference_leads_somewhere(&document, &document);
    let mut names = std::collections::HashSet::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            assert!(names.insert(operation["operationId"].as_str().unwrap()), "{method} {path}: its name is taken");
            for (status, response) in operation["responses"].as_object().unwrap() {
                let content = &response["content"];
                if content["application/json"].is_null() {
                    continue;
                }
                let fields = fields(&document, &response["content"]["application/json"]["schema"]);
                assert!(fields.iter().any(|field| field == "success"), "{method} {path} {status}: {fields:?}");
                let bare = method == "delete"
                    || ["/clock", "/lifecycle-events", "/inbound/rcs/{token}", "/inbound/whatsapp/{token}"]
                        .iter()
                        .any(|end| path.ends_with(end));
                // S3's has its code one level further down.
                let least = if path.starts_with("/api/v1/webhooks") { 1 } else { 2 };
                let told = if status.starts_with('2') { bare || fields.len() > 1 } else { fields.len() > least };
                assert!(told, "{method} {path} {status}: {fields:?}");
            }
            assert!(operation["responses"]["401"].is_object(), "{method} {path}");
        }
    }
    // What is documented is what is told.
    let partner = server.partner("shown").await;
    partner.stream(&[partner.event("Send"), partner.event("HardBounce")]).await;
    partner.set(json!({"name": "news"})).await;
    for path in ["/reputation", "/quotas", "/stats", "/events", "/configuration-sets", "/identities", "/suppression"] {
        let of = &document["paths"][format!("/api/v1/partner/email{path}")]["get"]["responses"]["200"];
        let mut documented = fields(&document, &of["content"]["application/json"]["schema"]);
        documented.sort_unstable();
        let mut told: Vec<String> = partner.get(path).await.as_object().unwrap().keys().cloned().collect();
        told.sort_unstable();
        assert_eq!(told, documented, "{path}");
    }
}

#[tokio::test]
async fn health_metrics_and_the_page_need_no_key() {
    let server = Server::start().await;
    let partner = server.partner("seen").await;
    partner.stream(&[partner.event("Send")]).await;
    let nobody = sendtrail::client::Api::new(server.admin.base(), "");
    let health = nobody.get("/health").await.unwrap();
    assert_eq!((&health["status"], &health["checks"]["log"]), (&json!("ok"), &json!("ok")));
    assert!(health["checks"]["database"].is_string() && health["checks"]["ses_configured"].is_string());
    let metrics = nobody.call(Method::GET, "/metrics", &[], "").await.unwrap();
    let text = String::from_utf8_lossy(&metrics.body).into_owned();
    for name in ["sendtrail_events_total", "sendtrail_log_disk_bytes", "sendtrail_partition_lag_seconds"] {
        assert!(text.contains(name), "{name}");
    }
    assert!(!text.contains(partner.api.key()) && !text.contains(&partner.account_id), "nothing of an account");
    let page = nobody.call(Method::GET, "/docs", &[], "").await.unwrap();
    assert!(String::from_utf8_lossy(&page.body).contains("openapi.json"));
}

#[tokio::test]
async fn a_key_shows_when_it_was_used() {
    let server = Server::start().await;
    let partner = server.partner("used").await;
    partner.get("/quotas").await;
    let path = format!("{}/keys", partner.account);
    eventually("last used", async || server.admin.rows(&path, "keys").await.unwrap()[0]["last_used_at"].is_string())
        .await;
}
