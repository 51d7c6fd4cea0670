use super::*;

fn read(text: &str) -> Result<Config, Invalid> {
    Config::read(Figment::from(Toml::string(text)))
}

#[test]
fn the_defaults_are_sound_and_complete() {
    let defaults = Config::defaults();
    let mut errors = Vec::new();
    defaults.check(&mut errors);
    assert_eq!(errors, [""; 0]);
    assert_eq!(read("").unwrap(), defaults);
    assert_eq!(read(&defaults.show()).unwrap(), defaults);
}

#[test]
fn every_error_is_told_at_once() {
    let Invalid(errors) = read(
        r#"
        [server]
        listen = "nowhere"
        max_connections = "many"
        [log]
        partitions = 0
        colour = "blue"
        [dedup]
        repeatable_horizon_hours = 24
        [nonsense]
        x = 1
        "#,
    )
    .unwrap_err();
    let all = errors.join("\n");
    for part in [
        "server.listen",
        "server.max_connections",
        "log.partitions",
        "log.colour",
        "dedup.repeatable_horizon_hours",
        "nonsense.x",
    ] {
        assert!(all.contains(part), "{part} is not told in:\n{all}");
    }
    assert_eq!(errors.len(), 6, "{all}");
}

#[test]
fn secrets_are_not_shown() {
    let key = "a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2V5a2U=";
    let config = read(&format!(
        r#"
        [secrets]
        key = "{key}"
        [kafka]
        sasl_password = "hush1"
        properties = ["ssl.key.password=hush2", "sasl.oauthbearer.client.secret=hush3", "ssl.key.pem=hush4", "client.rack=a"]
        [clickhouse]
        password = "hush5"
        [s3]
        access_key_id = "name"
        secret_access_key = "hush7"
        [[sources.kafka]]
        topic = "events"
        account_header = "account"
        properties = ["sasl.password=hush6", "sasl.oauthbearer.assertion.private.key.passphrase=hush8", "sasl.oauthbearer.config=extension_key=hush9"]
        "#
    ))
    .unwrap();
    let shown = config.show();
    assert!(!shown.contains("hush") && !shown.contains(key), "{shown}");
    assert!(shown.contains("client.rack=a"), "{shown}");
    let options = config.kafka_options();
    assert_eq!(options.properties["sasl.password"], "hush1");
    assert_eq!(options.properties["ssl.key.pem"], "hush4");
}

#[test]
fn what_is_shared_is_in_folders_or_buckets() {
    let Invalid(errors) = read(
        r#"
        [state]
        snapshots = "https://bucket/snapshots"
        [blobs]
        dir = "s3://key:secret@bucket"
        [s3]
        endpoint = "http://minio:9000"
        access_key_id = "name"
        "#,
    )
    .unwrap_err();
    for (error, name) in errors.iter().zip(["state.snapshots", "blobs.dir", "s3.endpoint", "s3.access_key_id"]) {
        assert!(error.starts_with(name), "{errors:?}");
    }
    assert!(errors.len() == 4 && !format!("{errors:?}").contains("secret@"), "{errors:?}");
    let config = read(
        r#"
        [state]
        snapshots = "s3://bucket/here"
        [archive]
        intake = "s3://bucket"
        [data]
        dir = "/data"
        "#,
    )
    .unwrap();
    assert_eq!(config.snapshots().unwrap().to_string(), "s3://bucket/here/sendtrail");
    assert_eq!(config.intake_place().to_string(), "s3://bucket/sendtrail");
    assert_eq!(config.blobs_place().to_string(), "/data/blobs");
    assert_eq!(Config::defaults().intake_place().to_string(), "./data/archive/intake");
}

#[test]
fn a_source_needs_a_topic_and_an_account() {
    let source = |text: &str| read(&format!("[[sources.kafka]]\n{text}")).map_err(|Invalid(errors)| errors.join("\n"));
    let account = "account = \"018f2f6e-0000-7000-8000-000000000001\"";
    assert!(source(&format!("topic = \"a\"\n{account}")).is_ok());
    for (text, told) in [
        (account, "topic"),
        ("topic = \"a\"", "account"),
        ("topic = \"a\"\naccount = \"me\"", "identifier"),
        ("topic = \"a\"\naccount_field = \"me\"", "pointer"),
        (&format!("topic = \"a\"\naccount_header = \"h\"\n{account}"), "one of"),
        (&format!("topic = \"a\"\nformat = \"xml\"\n{account}"), "xml"),
        (&format!("topic = \"a\"\ncolour = 1\n{account}"), "colour"),
        (&format!("topic = \"a\"\n{account}\n[[sources.kafka]]\ntopic = \"a\"\n{account}"), "another"),
    ] {
        let errors = source(text).unwrap_err();
        assert!(errors.contains("sources.kafka") && errors.contains(told), "{text}: {errors}");
    }
}

#[test]
fn what_is_given_overrides() {
    let config =
        read("[webhooks]\nallow_private_networks = [\"10.0.0.0/8\"]\n[server]\nlisten = \"0.0.0.0:1\"").unwrap();
    assert_eq!(config.webhooks.allow_private_networks.len(), 1);
    assert_eq!(config.server.listen, "0.0.0.0:1");
    assert_eq!(config.server.max_connections, Config::defaults().server.max_connections);
}
