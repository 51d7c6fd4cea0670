//! Hard and soft bounces, to whom asked for the ones or the others.

use super::*;

#[tokio::test]
async fn of_hard_and_soft_bounces_only_those_that_were_asked_for_are_posted_and_replayed() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("kinds").await;
    let set = partner.set(json!({"name": "set"})).await;
    let hook = async |path: &str, types: Value| {
        let url = format!("{}/{path}", receiver.base);
        let fields = json!({"webhook_url": url, "dialect": "nexuspromail", "matching_event_types": types});
        partner.destination(&set, fields).await
    };
    let hard = hook("hard", json!(["bounced.hard"])).await;
    let soft = hook("soft", json!(["bounced.soft", "delivered"])).await;
    let both = hook("both", json!(["bounced.soft", "bounced.hard"])).await;
    let shown = async |id: &str| {
        partner.get(&format!("/destinations/{id}")).await["destination"]["matching_event_types"].clone()
    };
    assert_eq!(shown(&hard).await, json!(["bounced.hard"]));
    assert_eq!(shown(&soft).await, json!(["Delivery", "bounced.soft"]));
    assert_eq!(shown(&both).await, json!(["Bounce"]));

    let bounced = async || {
        let mut events = [partner.event("HardBounce"), partner.event("SoftBounce")];
        for event in &mut events {
            event["configuration_set_name"] = "set".into();
        }
        partner.stream(&events).await;
    };
    bounced().await;
    let told = |path: &str| {
        let mut types: Vec<String> =
            receiver.posts(path).iter().map(|post| post.json()["type"].as_str().unwrap().to_owned()).collect();
        types.sort();
        types
    };
    for (path, count) in [("/both", 2), ("/hard", 1), ("/soft", 1)] {
        receiver.wait(path, count).await;
    }
    // To whom they go is decided at once, so nothing more is on its way.
    let goes = |event: &Value| event["deliveries"].as_array().unwrap().len();
    assert_eq!(partner.log().await.iter().map(goes).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(told("/both"), ["bounced.hard", "bounced.soft"]);
    assert_eq!(told("/hard"), ["bounced.hard"]);
    assert_eq!(told("/soft"), ["bounced.soft"]);

    // The same once more; and one that was made later gets what it would have got.
    let late = hook("late", json!(["bounced.soft"])).await;
    let replay = async |fields: Value| {
        let mut body = json!({"from": "2000-01-01", "event_types": ["Bounce"]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        partner.post("/events/replay", &body).await
    };
    let counts = replay(json!({"destination_ids": [late], "dry_run": true})).await["dry_run"].clone();
    assert_eq!(counts, json!({"events": 2, "deliveries": 1, "complete": true}));
    for (fields, deliveries) in [(json!({"destination_ids": [late]}), 1), (json!({}), 4)] {
        let started = replay(fields).await;
        let path = format!("/events/replay/{}", started["replay"]["replay_id"].as_str().unwrap());
        eventually("the replay is done", async || partner.get(&path).await["replay"]["status"] == "done").await;
        assert_eq!(partner.get(&path).await["replay"]["deliveries"], deliveries);
    }
    for (path, count) in [("/late", 1), ("/both", 4), ("/hard", 2), ("/soft", 2)] {
        receiver.wait(path, count).await;
    }
    assert_eq!(told("/late"), ["bounced.soft"]);
    assert_eq!(told("/hard"), ["bounced.hard"; 2]);
    assert_eq!(told("/soft"), ["bounced.soft"; 2]);

    // A change of something else is none of this; the type, by whatever name, is both again.
    let change = async |id: &str, fields: Value| {
        partner.call(Method::PATCH, &format!("/destinations/{id}"), &[], fields.to_string()).await
    };
    let changed = change(&soft, json!({"description": "later"})).await.json();
    assert_eq!(changed["destination"]["matching_event_types"], json!(["Delivery", "bounced.soft"]));
    let changed = change(&hard, json!({"matching_event_types": ["bounced"]})).await.json();
    assert_eq!(changed["destination"]["matching_event_types"], json!(["Bounce"]));
    let changed = change(&both, json!({"matching_event_types": ["bounced.soft"]})).await.json();
    assert_eq!(changed["destination"]["matching_event_types"], json!(["bounced.soft"]));
    let refused = change(&both, json!({"matching_event_types": ["bounced.medium"]})).await;
    assert_eq!((refused.status.as_u16(), &refused.json()["error"]), (400, &json!("INVALID_REQUEST")));
    bounced().await;
    receiver.wait("/hard", 4).await;
    receiver.wait("/soft", 3).await;
    receiver.wait("/late", 2).await;
    receiver.wait("/both", 5).await;
    // The hard one to /hard; the soft one to each.
    assert_eq!(partner.log().await.iter().map(goes).collect::<Vec<_>>(), [2, 2, 1, 4]);
    assert_eq!(told("/hard"), ["bounced.hard", "bounced.hard", "bounced.hard", "bounced.soft"]);
    assert_eq!(told("/both").iter().filter(|name| *name == "bounced.soft").count(), 3);

    // A test post is of what comes, unless it is said which.
    for (id, event_type, expected) in [
        (&soft, "Bounce", "bounced.soft"),
        (&hard, "Bounce", "bounced.hard"),
        (&hard, "bounced.soft", "bounced.soft"),
        (&soft, "Bounced.Hard", "bounced.hard"),
    ] {
        let tested = partner.post(&format!("/destinations/{id}/test"), &json!({"event_type": event_type})).await;
        assert_eq!(
            (&tested["test"]["event"], &tested["test"]["delivered"]),
            (&json!(expected), &json!(true)),
            "{event_type}"
        );
    }
}
