//! What keys are good for, and for how long, on every route of the API's document.

use http::Method;
use sendtrail_schemas::time::{HOUR, Millis};

use super::support::*;

async fn make(server: &Server, partner: &Partner, fields: Value) -> Value {
    server.admin.post(&format!("{}/keys", partner.account), &fields).await.unwrap()["key"].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_opens_what_it_is_for_and_nothing_else() {
    let server = Server::start().await;
    let partner = server.partner("scopes").await;
    let routes = partner_routes(&server).await;
    assert!(routes.len() >= 45, "{} routes", routes.len());
    let all = ["read", "send", "manage"];
    for scopes in [vec!["read"], vec!["send"], vec!["manage"], vec!["read", "send"], all.to_vec(), vec![]] {
        let fields = if scopes.is_empty() { json!({}) } else { json!({"scopes": scopes}) };
        let key = make(&server, &partner, fields).await;
        let good_for = if scopes.is_empty() { all.to_vec() } else { scopes.clone() };
        assert_eq!(key["scopes"], json!(good_for));
        let api = partner.api.with_key(key["api_key"].as_str().unwrap());
        for (path, method) in &routes {
            let path = &path.replace(['{', '}'], "x");
            let needed = match method.as_str() {
                "GET" => "read",
                _ if path.starts_with("/api/v1/partner/email/exports") => "read",
                "POST" if path.ends_with("/send") || path.ends_with("/events") => "send",
                _ => "manage",
            };
            let reply = api.call(method.clone(), path, &[("content-type", "application/json")], "").await.unwrap();
            let refused = reply.status == 403 && told_code(&reply.json()) == "INSUFFICIENT_SCOPE";
            assert_eq!(refused, !good_for.contains(&needed), "{scopes:?}: {method} {path}: {}", reply.json());
            assert!(!reply.status.is_server_error(), "{method} {path}: {}", reply.json());
        }
    }
    // A secret is not for those who only look.
    let made = partner.api.post("/webhooks", &json!({"url": "https://hook.example/"})).await.unwrap();
    let path = format!("/webhooks/{}", made["endpoint"]["id"].as_str().unwrap());
    for (scopes, shown) in [(vec!["read"], false), (vec!["read", "manage"], true)] {
        let key = make(&server, &partner, json!({"scopes": scopes})).await;
        let endpoint = partner.api.with_key(key["api_key"].as_str().unwrap()).get(&path).await.unwrap();
        assert_eq!(endpoint["endpoint"]["secret"].is_string(), shown, "{endpoint}");
    }
    // It is written down.
    let server = server.restart().await;
    let listed = server.admin.get(&format!("{}/keys", partner.account)).await.unwrap();
    assert_eq!(listed["keys"][1]["scopes"], json!(["read"]));
    assert_eq!(listed["keys"][0]["scopes"], json!(all));
}

#[tokio::test]
async fn a_key_ends_when_it_is_said_to() {
    let server = Server::start().await;
    let partner = server.partner("expiry").await;
    let until = Millis(noon().0 + HOUR);
    let key = make(&server, &partner, json!({"expires_at": until})).await;
    assert_eq!(key["expires_at"], json!(until));
    let api = partner.api.with_key(key["api_key"].as_str().unwrap());
    let path = format!("{PARTNER}/quotas");
    assert_eq!(api.call(Method::GET, &path, &[], "").await.unwrap().status, 200);
    server.tick(Millis(until.0 - 1)).await;
    assert_eq!(api.call(Method::GET, &path, &[], "").await.unwrap().status, 200);
    server.tick(until).await;
    let reply = api.call(Method::GET, &path, &[], "").await.unwrap();
    assert_eq!((reply.status.as_u16(), told_code(&reply.json())), (401, json!("KEY_INACTIVE")));
    assert_eq!(partner.api.call(Method::GET, &path, &[], "").await.unwrap().status, 200);
    // So does the token of a callback's path.
    let later = Millis(until.0 + HOUR);
    let token = make(&server, &partner, json!({"form": "in_wa", "expires_at": later})).await;
    assert_eq!((&token["scopes"], &token["expires_at"]), (&json!([]), &json!(later)));
    let callback = token["callback_path"].as_str().unwrap();
    let called =
        async || partner.api.call(Method::POST, callback, &[], r#"{"entry":[]}"#).await.unwrap().status.as_u16();
    assert_eq!(called().await, 200);
    server.tick(later).await;
    assert_eq!(called().await, 401);
}

#[tokio::test]
async fn what_no_key_can_be_is_refused() {
    let server = Server::start().await;
    let partner = server.partner("nokey").await;
    for fields in [
        json!({"scopes": ["write"]}),
        json!({"scopes": []}),
        json!({"scopes": ["read"], "form": "in_rcs"}),
        json!({"expires_at": "tomorrow"}),
        json!({"expires_at": noon()}),
    ] {
        let path = format!("{}/keys", partner.account);
        let headers = [("content-type", "application/json")];
        let reply = server.admin.call(Method::POST, &path, &headers, fields.to_string()).await.unwrap();
        assert_eq!((reply.status.as_u16(), told_code(&reply.json())), (400, json!("INVALID_REQUEST")), "{fields}");
    }
}
