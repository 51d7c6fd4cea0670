//! Secrets of destinations: given or made, rotated, out of reach for a while, sealed anew.

use super::*;

#[tokio::test]
async fn a_secret_rotates_without_a_delivery_that_cannot_be_verified() {
    // Signatures go by the clock on the wall.
    let server = Server::start_with(|_| {}).await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("rotate").await;
    const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const DIALECTS: [&str; 4] = ["standard", "securesmtp", "splashify", "zmailer"];
    // Of one set the overlap is not over while the test looks, however slow the machine is; of the other it is.
    let mut hooks = std::collections::HashMap::new();
    for name in ["long", "brief"] {
        let set = partner.set(json!({"name": name})).await;
        for dialect in DIALECTS {
            let url = format!("{}/{name}-{dialect}", receiver.base);
            let fields = json!({"webhook_url": url, "webhook_secret": OLD, "dialect": dialect});
            hooks.insert((name, dialect), partner.destination(&set, fields).await);
        }
    }
    let round = async |set: &str| {
        let mut event = partner.event("Delivery");
        event["configuration_set_name"] = json!(set);
        let before = receiver.posts(&format!("/{set}-standard")).len();
        partner.stream(&[event]).await;
        let mut posts = std::collections::HashMap::new();
        for dialect in DIALECTS {
            posts.insert(dialect, receiver.wait(&format!("/{set}-{dialect}"), before + 1).await.remove(before));
        }
        posts
    };
    round("long").await;
    round("brief").await;
    let mut new = std::collections::HashMap::new();
    for ((name, dialect), id) in &hooks {
        let overlap = json!({"overlap_seconds": if *name == "long" { 36_000 } else { 1 }});
        let told = partner.post(&format!("/destinations/{id}/rotate-secret"), &overlap).await["destination"].clone();
        new.insert((*name, *dialect), told["webhook_secret"].as_str().unwrap().to_owned());
        let signing = if ["standard", "securesmtp"].contains(dialect) { "both" } else { "previous" };
        // Where a second was over by then, it says so.
        assert!(*name == "brief" || told["rotation"]["signing"] == signing, "{told}");
    }
    let posts = round("long").await;
    for secret in [OLD, &new[&("long", "standard")]] {
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
    tokio::time::sleep(std::time::Duration::from_millis(1_100)).await;
    let posts = round("brief").await;
    assert!(
        standardwebhooks::Webhook::new(OLD)
            .unwrap()
            .verify(&posts["standard"].body, &posts["standard"].headers)
            .is_err()
    );
    standardwebhooks::Webhook::new(&new[&("brief", "standard")])
        .unwrap()
        .verify(&posts["standard"].body, &posts["standard"].headers)
        .unwrap();
    verify_zmailer(&posts["zmailer"], OLD);
    for id in hooks.values() {
        let told = partner.post(&format!("/destinations/{id}/switch-secret"), &json!({})).await;
        assert_eq!(told["destination"]["rotation"], Value::Null);
    }
    let posts = round("brief").await;
    assert_eq!(
        posts["splashify"].header("x-splashify-signature"),
        format!("sha256={}", hmac_hex(&new[&("brief", "splashify")], &posts["splashify"].body))
    );
    verify_zmailer(&posts["zmailer"], &new[&("brief", "zmailer")]);
    // Both sign for a day, unless its owner says otherwise.
    let before = sendtrail_schemas::time::Millis::wall();
    let path = format!("/destinations/{}/rotate-secret", hooks[&("long", "standard")]);
    let told = partner.post(&path, &json!({})).await["destination"]["rotation"].clone();
    let until = sendtrail_schemas::time::Millis::parse(told["until"].as_str().unwrap()).unwrap();
    assert!((DAY - MINUTE..DAY + HOUR).contains(&(until.0 - before.0)), "{told}");
    assert_eq!(told["signing"], "both");
    let reply = partner
        .call(
            Method::POST,
            &format!("/destinations/{}/rotate-secret", hooks[&("long", "standard")]),
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
    let fields = json!({"webhook_url": format!("{}/u", receiver.base), "webhook_secret": "first", "retry_schedule_seconds": [3, 6, 12, 24, 48, 96]});
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
    eventually("it was tried", async || first(&partner).await["attempts"].as_u64() >= Some(1)).await;
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
