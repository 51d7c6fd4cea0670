//! Accounts that may be used from some networks only, and not more often than they may.

use http::Method;

use super::support::*;

async fn code(partner: &Partner, headers: &[(&str, &str)]) -> (u16, Value) {
    let reply = partner.call(Method::GET, "/quotas", headers, "").await;
    (reply.status.as_u16(), reply.json()["error"].clone())
}

#[tokio::test]
async fn a_caller_who_is_not_on_the_list_is_refused_on_every_surface() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.server.trusted_proxies = vec!["127.0.0.1/32".parse().unwrap()];
    })
    .await;
    let (partner, other) = (server.partner("listed").await, server.partner("open").await);
    let put = async |networks: Value, from: &str| {
        let headers = [("content-type", "application/json"), ("x-forwarded-for", from)];
        partner.call(Method::PUT, "/ip-allowlist", &headers, json!({"networks": networks}).to_string()).await
    };
    let from = |address: &'static str| [("x-forwarded-for", address)];
    assert_eq!(partner.get("/ip-allowlist").await["networks"], json!([]));
    for (networks, from, part) in [
        (json!(["192.0.2.0/24"]), "203.0.113.9", "your own address, 203.0.113.9"),
        (json!(["nonsense"]), "203.0.113.9", "nonsense"),
        (json!(vec!["192.0.2.1"; 101]), "192.0.2.1", "at most 100"),
    ] {
        let reply = put(networks, from).await;
        assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (400, &json!("INVALID_REQUEST")));
        assert!(reply.json()["message"].as_str().unwrap().contains(part), "{}", reply.json());
    }
    let reply = put(json!(["192.0.2.9/24", "2001:db8::/32", "192.0.2.0/24"]), "192.0.2.1").await.success().unwrap();
    assert_eq!(reply["networks"], json!(["192.0.2.0/24", "2001:db8::/32"]));
    assert_eq!(reply["your_address"], "192.0.2.1");

    assert_eq!(code(&partner, &from("192.0.2.200")).await.0, 200);
    assert_eq!(code(&partner, &from("2001:db8::1")).await.0, 200);
    for outside in ["203.0.113.9", "192.0.2.1, 203.0.113.9", "2001:db9::1"] {
        assert_eq!(code(&partner, &from(outside)).await, (403, json!("IP_BLOCKED")), "{outside}");
    }
    assert_eq!(code(&partner, &[]).await, (403, json!("IP_BLOCKED")), "the proxy itself is not on it");
    assert_eq!(code(&other, &[]).await.0, 200);
    // The key comes first, then the address, then what it may do, then the body.
    let nobody = sendtrail::client::Api::new(server.admin.base(), "pk_live_nobody");
    assert_eq!(nobody.call(Method::GET, &format!("{PARTNER}/quotas"), &[], "").await.unwrap().status, 401);
    let reply = partner.call(Method::POST, "/send", &[("content-type", "application/json")], "no json").await;
    assert_eq!(reply.json()["error"], "IP_BLOCKED");
    // The other surfaces, in their own words.
    for (path, pointer) in [("/api/v1/webhooks", "/error/code"), ("/webhooks", "/code")] {
        let reply = partner.api.call(Method::GET, path, &[], "").await.unwrap();
        assert_eq!((reply.status.as_u16(), reply.json().pointer(pointer)), (403, Some(&json!("IP_BLOCKED"))), "{path}");
    }
    // Who is locked out nevertheless is let in by the administrator, and it holds after a restart.
    let account = format!("{}/ip-allowlist", partner.account);
    let shown = server.admin.get(&account).await.unwrap();
    assert_eq!(shown["networks"], json!(["192.0.2.0/24", "2001:db8::/32"]));
    let server = server.restart().await;
    let partner = partner.on(&server);
    assert_eq!(code(&partner, &[]).await, (403, json!("IP_BLOCKED")));
    server.admin.send(Method::PUT, &account, &json!({"networks": []})).await.unwrap();
    assert_eq!(code(&partner, &[]).await.0, 200);
    let unknown = format!("{ADMIN}/accounts/{}/ip-allowlist", uuid::Uuid::nil());
    for method in [Method::GET, Method::PUT] {
        let headers = [("content-type", "application/json")];
        let reply = server.admin.call(method, &unknown, &headers, json!({"networks": []}).to_string()).await.unwrap();
        assert_eq!(reply.json()["error"], "PARTNER_NOT_FOUND");
    }
}

#[tokio::test]
async fn nobody_is_believed_who_is_no_trusted_proxy() {
    let server = Server::start().await;
    let partner = server.partner("direct").await;
    let path = format!("{}/ip-allowlist", partner.account);
    server.admin.send(Method::PUT, &path, &json!({"networks": ["192.0.2.0/24"]})).await.unwrap();
    assert_eq!(code(&partner, &[("x-forwarded-for", "192.0.2.1")]).await, (403, json!("IP_BLOCKED")));
    server.admin.send(Method::PUT, &path, &json!({"networks": ["127.0.0.0/8"]})).await.unwrap();
    assert_eq!(code(&partner, &[("x-forwarded-for", "192.0.2.1")]).await.0, 200);
}

#[tokio::test]
async fn an_account_that_asks_too_often_is_told_to_wait_and_others_are_not() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.server.requests_per_second_per_account = 2;
    })
    .await;
    let (partner, other) = (server.partner("eager").await, server.partner("calm").await);
    let mut refused = None;
    for _ in 0..200 {
        let reply = partner.call(Method::GET, "/quotas", &[], "").await;
        if reply.status == 429 {
            refused = Some(reply);
            break;
        }
    }
    let refused = refused.expect("it is told to wait");
    assert_eq!(refused.json()["error"], "RATE_LIMITED");
    assert!(refused.headers["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(code(&other, &[]).await.0, 200);
    eventually("it may ask again", async || code(&partner, &[]).await.0 == 200).await;
}
