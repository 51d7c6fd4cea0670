//! What goes to the account's own webhook: every event, lifecycle posts, and callbacks of others.

use super::*;

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
