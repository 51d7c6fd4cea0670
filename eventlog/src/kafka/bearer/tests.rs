use std::time::{Duration, Instant};

use sendtrail_schemas::topic::{Topic, TopicPartition};
use sendtrail_test_servers::Server;
use serde_json::json;

use super::super::tests::{WITHIN, numbered, open, options, values};
use super::super::{Options, SourceMessage, SourceOptions, SourceTopic};
use super::*;
use crate::{Error, EventLog};

const EVENTS: TopicPartition = TopicPartition { topic: Topic::Events, partition: 0 };

/// A client that makes itself tokens.
fn bearing(address: &str, token: &str) -> Options {
    let properties = [
        ("security.protocol", "sasl_plaintext"),
        ("sasl.mechanism", "OAUTHBEARER"),
        ("enable.sasl.oauthbearer.unsecure.jwt", "true"),
        ("sasl.oauthbearer.config", token),
    ];
    with(options(address), &properties)
}

fn with(mut options: Options, properties: &[(&str, &str)]) -> Options {
    options.properties.extend(properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    options
}

/// Somebody else's topic to read, by properties of its own.
fn source(topic: &str, options: &Options) -> SourceTopic {
    let properties = options.properties.clone();
    SourceTopic::new(SourceOptions { topic: topic.into(), group: "partner".into(), header: None, properties }).unwrap()
}

/// Reads until there is enough, or for some time, and counts.
fn read_for(source: &SourceTopic, time: Duration, enough: usize) -> usize {
    let (mut found, begun) = (0, Instant::now());
    while begun.elapsed() < time && found < enough {
        let one_more = |_: SourceMessage<'_>| {
            found += 1;
            true
        };
        source.read(Duration::from_millis(200), one_more).unwrap();
    }
    found
}

#[test]
fn a_token_says_what_the_setting_says() {
    let claims = |config: &str| {
        let OAuthToken { token, principal_name, lifetime_ms } = unsigned(config, Millis(1_700_000_000_999)).unwrap();
        assert_eq!(principal_name, "mail");
        let parts: Vec<&str> = token.split('.').collect();
        assert!(parts.len() == 3 && parts[2].is_empty(), "nobody signed it: {token}");
        let [header, claims]: [Value; 2] = [parts[0], parts[1]]
            .map(|part| serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap());
        assert_eq!(header, json!({"alg": "none"}));
        assert_eq!(claims["exp"], lifetime_ms / 1_000);
        claims
    };
    let plain = json!({"sub": "mail", "iat": 1_700_000_000, "exp": 1_700_003_600});
    assert_eq!(claims("principal=mail"), plain);
    let told = "principalClaimName=azp  principal=mail scopeClaimName=roles scope=a,,b lifeSeconds=60";
    let full = json!({"azp": "mail", "iat": 1_700_000_000, "exp": 1_700_000_060, "roles": ["a", "b"]});
    assert_eq!(claims(told), full);
    for (wrong, why) in [("", "no principal"), ("principal=mail lifeSeconds=soon", "lifeSeconds")] {
        let told = unsigned(wrong, Millis(0)).map(|made| made.token).unwrap_err();
        assert!(told.contains(why), "{told}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_token_it_is_told_why_and_no_secret_is() {
    let bare = [("security.protocol", "SASL_SSL"), ("sasl.mechanisms", "OAUTHBEARER")];
    let none = open(&with(options("127.0.0.1:1"), &bare)).unwrap_err();
    assert!(matches!(&none, Error::Settings(why) if why.contains("needs a token")), "{none}");
    let extended = open(&bearing("127.0.0.1:1", "principal=mail extension_a=b")).unwrap_err();
    assert!(matches!(&extended, Error::Settings(why) if why.contains("extensions")), "{extended}");
    let nobody = open(&bearing("127.0.0.1:1", "scope=sendtrail")).unwrap_err().to_string();
    assert!(nobody.contains("OAUTHBEARER token") && nobody.contains("no principal"), "{nobody}");
    // What is built here has no HTTP client for those of a server.
    let secret = [("sasl.oauthbearer.client.secret", "hush")];
    let unknown = open(&with(options("127.0.0.1:1"), &secret)).unwrap_err();
    assert!(matches!(&unknown, Error::Settings(why) if why.contains("not supported in this build")), "{unknown}");
    assert!(!unknown.to_string().contains("hush"), "no secret is told: {unknown}");
    let oidc = with(options("127.0.0.1:1"), &[bare[0], bare[1], ("sasl.oauthbearer.method", "oidc")]);
    let oidc = open(&oidc).unwrap_err().to_string();
    assert!(oidc.contains("sasl.oauthbearer.method") && oidc.contains("libcurl"), "{oidc}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tokens_let_in_and_are_renewed_and_the_wrong_ones_are_refused() {
    let Some(broker) = Server::bearer_kafka("sendtrail") else { return };
    let options = bearing(broker.address(), "principal=mail scope=sendtrail lifeSeconds=10");
    let topic = options.topic(Topic::Events);
    let log = open(&options).unwrap();
    log.append(EVENTS, numbered(0, 3)).await.unwrap();
    assert_eq!(values(&log, EVENTS, 0).len(), 3);

    let other = bearing(broker.address(), "principal=mail scope=other");
    let refused = open(&other).unwrap_err().to_string();
    assert!(refused.contains("Kafka refuses the credentials") && refused.contains("insufficient_scope"), "{refused}");
    let name = topic.clone();
    let refused = tokio::task::spawn_blocking(move || source(&name, &other).partitions().unwrap_err().to_string());

    // A broker ends connections with the token that let them in, and takes it no more.
    let reader = source(&topic, &options);
    let found = tokio::task::block_in_place(|| {
        assert_eq!(reader.partitions().unwrap(), 2);
        reader.begin([(0, 0)]).unwrap();
        read_for(&reader, Duration::from_secs(13), usize::MAX)
    });
    assert_eq!(found, 3);
    let appended = tokio::time::timeout(WITHIN, log.append(EVENTS, numbered(3, 3))).await;
    appended.expect("it is still let in").unwrap();
    assert_eq!(values(&log, EVENTS, 0).len(), 6);
    assert_eq!(tokio::task::block_in_place(|| read_for(&reader, WITHIN, 3)), 3);
    let refused = refused.await.unwrap();
    assert!(refused.contains("Kafka refuses the credentials") && refused.contains("insufficient_scope"), "{refused}");
}
