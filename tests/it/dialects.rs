//! Every dialect, as receivers verify it: those of the platforms' documents under Node and Python, the published libraries,
//! and what docs/WEBHOOKS.md tells receivers to do in four languages.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use sendtrail_schemas::destination::Dialect;
use sendtrail_schemas::kind::EventType;

use super::support::*;

#[path = "receivers/verify.rs"]
#[expect(clippy::expect_used, reason = "it is what others are told to write")]
mod documented;

const DIALECTS: [&str; 6] = ["standard", "securesmtp", "splashify", "nexuspromail", "sendcomms", "zmailer"];

/// A secret in the form of each dialect.
fn secret(dialect: &str) -> &'static str {
    match dialect {
        "standard" | "securesmtp" => "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "sendcomms" | "zmailer" => "whsec_21be983f359112f9e07658ed2bddcee3",
        _ => "raw – sécret 🔑",
    }
}

fn receivers(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/receivers").join(file)
}

/// Whether a program is there; in CI it must be.
fn is_there(program: &str, argument: &str) -> bool {
    let there = Command::new(program).arg(argument).output().is_ok_and(|output| output.status.success());
    assert!(there || std::env::var_os("CI").is_none(), "there is no {program}");
    if !there {
        println!("SKIPPED: receivers that need {program}");
    }
    there
}

/// What is hard on envelopes: another script, signs that JSON escapes, numbers beyond doubles, nothing at all.
fn hard(partner: &Partner) -> Vec<Value> {
    let kinds = ["Send", "Delivery", "HardBounce", "SoftBounce", "Complaint", "Open", "Click", "Reject"];
    let others = ["RenderingFailure", "DeliveryDelay", "Reply", "Subscription"];
    let mut events: Vec<Value> = kinds.into_iter().chain(others).map(|kind| partner.event(kind)).collect();
    for (n, event) in events.iter_mut().enumerate() {
        event["from"] = json!("Grüße 🚀 <news@x.example>");
        event["subject"] = json!("\"quoted\" \\ back / slash \u{2028}\u{2029} \u{7f} \t tab é 漢字 🏳️‍🌈");
        event["tags"] = json!({"ключ": "值", "empty": ""});
        event["send_id"] = json!(format!("call-{n}"));
    }
    events[1]["delivery"] = json!({"smtpResponse": "250 \u{1f44d} <ok>", "processingTimeMillis": 9007199254740993i64});
    events[2]["bounce"]["diagnosticCode"] = json!("smtp; 550 5.1.1 \u{0} 不明 \u{1b}[0m");
    events[6]["click"] = json!({"link": "https://x.example/?a=1&b=%20#é", "userAgent": "UA \u{1f600}"});
    events
}

/// The same as lines, with metadata that a program would rather not parse.
fn lines(events: &[Value]) -> String {
    const METADATA: &str =
        r#"{"big":12345678901234567890123,"small":1e-400,"exact":1.10,"e":{},"a":[],"s":"é\u00e9🚀","":0}"#;
    let line = |event: &Value| {
        let text = event.to_string();
        format!("{},\"metadata\":{METADATA}}}\n", &text[..text.len() - 1])
    };
    events.iter().map(line).collect()
}

/// A webhook of each dialect to where `url` says, each with its secret.
async fn hook_all(partner: &Partner, url: impl Fn(&str) -> String) {
    // A set has five at most.
    for (n, dialects) in DIALECTS.chunks(3).enumerate() {
        let set = partner.set(json!({"name": format!("set-{n}-{}", url("x").len())})).await;
        for dialect in dialects {
            let fields = json!({"webhook_url": url(dialect), "webhook_secret": secret(dialect), "dialect": dialect});
            partner.destination(&set, fields).await;
        }
    }
}

/// Streams events once for each set of a partner: all dialects get all events.
async fn stream_to_all(partner: &Partner, events: &[Value]) {
    for set in partner.rows("/configuration-sets", "configuration_sets").await {
        let mut events = events.to_vec();
        for event in &mut events {
            event["configuration_set_name"] = set["name"].clone();
            event["message_id"] = json!(format!("{}-{}", event["message_id"].as_str().unwrap(), set["name"]));
            event["send_id"] = json!(format!("{}-{}", event["send_id"].as_str().unwrap(), set["name"]));
        }
        let told = partner.stream_text(lines(&events)).await;
        assert_eq!(told["accepted"], events.len(), "{told}");
    }
}

/// How many of the hard events a dialect has a name for.
fn spoken(dialect: &str) -> u64 {
    match dialect {
        "standard" => 12,
        "splashify" => 11,
        "securesmtp" => 8,
        "nexuspromail" | "sendcomms" => 7,
        _ => 7,
    }
}

/// A receiver in a process of its own.
struct Receiving {
    process: Child,
    base: String,
}

impl Receiving {
    fn start(mut command: Command) -> Self {
        let secrets: Value = DIALECTS.iter().map(|dialect| ((*dialect).to_owned(), json!(secret(dialect)))).collect();
        let mut process =
            command.arg(secrets.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut port = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut port).unwrap();
        Self { base: format!("http://127.0.0.1:{}", port.trim()), process }
    }

    async fn results(&self) -> Value {
        sendtrail::client::Api::new(&self.base, "").get("/results").await.unwrap()
    }
}

impl Drop for Receiving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn verified_by(receiving: Receiving) {
    let server = Server::start().await;
    let partner = server.partner("seeds").await;
    let seeds = &DIALECTS[1..];
    hook_all(&partner, |dialect| format!("{}/{dialect}", receiving.base)).await;
    // The standard dialect is no seed's: it goes nowhere here.
    for destination in partner.rows("/destinations", "destinations").await {
        if destination["dialect"] == "standard" {
            let path = format!("{PARTNER}/destinations/{}", destination["destination_id"].as_str().unwrap());
            partner.api.call(http::Method::DELETE, &path, &[], "").await.unwrap().success().unwrap();
        }
    }
    stream_to_all(&partner, &hard(&partner)).await;
    let all = async || {
        let results = receiving.results().await;
        seeds.iter().all(|dialect| {
            results[dialect]["good"].as_u64().unwrap_or(0) + results[dialect]["bad"].as_u64().unwrap_or(0)
                >= spoken(dialect)
        })
    };
    eventually("everything came", all).await;
    let results = receiving.results().await;
    for dialect in seeds {
        assert_eq!(
            (&results[dialect]["good"], &results[dialect]["bad"]),
            (&json!(spoken(dialect)), &json!(0)),
            "{dialect}: {results}"
        );
    }
    assert_eq!(results["nexuspromail"]["events"]["bounced.hard"], 1);
    assert_eq!(results["nexuspromail"]["events"]["bounced.soft"], 1);
    assert_eq!(results["zmailer"]["events"]["email.failed"], 2);
    assert_eq!(results["securesmtp"]["events"]["email.delivery_delayed"], 1);
    assert_eq!(results["splashify"]["events"].as_object().unwrap().len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_of_every_document_verify_under_node() {
    if !is_there("node", "--version") {
        return;
    }
    let mut node = Command::new("node");
    node.arg(receivers("seeds.mjs"));
    verified_by(Receiving::start(node)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receivers_of_every_document_verify_under_python() {
    if !is_there("python3", "--version") {
        return;
    }
    let mut python = Command::new("python3");
    python.arg(receivers("seeds.py"));
    verified_by(Receiving::start(python)).await;
}

/// A post as verifiers are given it.
fn told(post: &Post, dialect: &str) -> Value {
    let headers: Value = post
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
        .collect();
    json!({"dialect": dialect, "library": if dialect == "securesmtp" { "svix" } else { "standard" },
        "secret": secret(dialect), "headers": headers, "body": BASE64_STANDARD.encode(&post.body)})
}

/// Gives posts to a verifier, a line each, and wants it to say "ok" to each.
fn judged(mut command: Command, posts: &[Value]) {
    let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = process.stdin.take().unwrap();
    let lines: String = posts.iter().map(|post| format!("{post}\n")).collect();
    let writing = std::thread::spawn(move || stdin.write_all(lines.as_bytes()));
    let output = process.wait_with_output().unwrap();
    writing.join().unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let verdicts: Vec<&str> = said.lines().collect();
    assert_eq!(verdicts, vec!["ok"; posts.len()], "{}", String::from_utf8_lossy(&output.stderr));
}

/// The code of a language in the document for receivers.
fn block(language: &str) -> String {
    let document = include_str!("../../docs/WEBHOOKS.md");
    let fence = format!("```{language}\n");
    let (_, rest) = document.split_once(&fence).unwrap();
    rest.split_once("```").unwrap().0.to_owned()
}

#[test]
fn the_document_tells_what_every_dialect_calls_every_event() {
    let (_, rest) = include_str!("../../docs/WEBHOOKS.md").split_once("## What is told").unwrap();
    let cells = |line: &'static str| line.trim_matches('|').split('|').map(str::trim).collect::<Vec<&'static str>>();
    let table = rest.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let mut rows = table.map(cells);
    let head = rows.next().unwrap();
    let dialects: Vec<Dialect> = head[1..].iter().map(|cell| Dialect::parse(cell.trim_matches('`')).unwrap()).collect();
    assert_eq!(dialects.len(), Dialect::ALL.len());
    let mut told = Vec::new();
    // Below the head is a line.
    for row in rows.skip(1) {
        let is_of = |kind: &EventType| match kind.is_webhook_change() {
            true => row[0] == "a webhook's health",
            false => row[0].split([',', ' ']).any(|word| word == kind.name()),
        };
        // Lifecycle posts are in no dialect.
        let kinds: Vec<EventType> = EventType::ALL.into_iter().filter(is_of).collect();
        for (dialect, cell) in dialects.iter().zip(&row[1..]).filter(|_| !kinds.is_empty()) {
            let words = cell.split(',').filter_map(|part| part.split([':', ' ']).find(|word| !word.is_empty()));
            let named: BTreeSet<&str> = words.filter(|word| *word != "once").collect();
            let names = |kind: &EventType| [true, false].map(|permanent| dialect.event_name(*kind, permanent));
            let expected: BTreeSet<&str> = kinds.iter().flat_map(names).flatten().collect();
            assert_eq!(named, expected, "{} of {}", row[0], dialect.name());
            let once = kinds.iter().any(|kind| dialect.is_once_a_call(*kind));
            assert_eq!(cell.contains("once a call"), once, "{} of {}", row[0], dialect.name());
        }
        told.extend(kinds);
    }
    for kind in EventType::ALL.into_iter().filter(|kind| !told.contains(kind)) {
        assert!(!Dialect::ALL.iter().any(|dialect| dialect.speaks_of(kind)), "{} is left out", kind.name());
    }
}

/// Everything that a running server sends in each dialect.
async fn sent() -> Vec<(String, Post)> {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("told").await;
    hook_all(&partner, |dialect| format!("{}/{dialect}", receiver.base)).await;
    stream_to_all(&partner, &hard(&partner)).await;
    let mut all = Vec::new();
    for dialect in DIALECTS {
        let posts = receiver.wait(&format!("/{dialect}"), spoken(dialect) as usize).await;
        all.extend(posts.into_iter().map(|post| (dialect.to_owned(), post)));
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_receivers_are_told_to_do_verifies_in_four_languages() {
    let folder = tempfile::TempDir::new().unwrap();
    let write = |name: &str, parts: &[&str]| {
        let path = folder.path().join(name);
        std::fs::write(&path, parts.join("\n")).unwrap();
        path
    };
    // What takes long is done first: signatures hold for five minutes.
    let go = is_there("go", "version").then(|| {
        let paths = [write("verify.go", &[&block("go")]), write("main.go", &[include_str!("receivers/documented.go")])];
        let program = folder.path().join("verify");
        let mut go = Command::new("go");
        go.args(["build", "-o"]).arg(&program).args(paths).env("GOFLAGS", "-mod=mod").current_dir(folder.path());
        assert!(go.status().unwrap().success());
        program
    });
    let sent = sent().await;
    let posts: Vec<Value> = sent.iter().map(|(dialect, post)| told(post, dialect)).collect();
    if is_there("node", "--version") {
        let path = write("verify.mjs", &[&block("js"), include_str!("receivers/documented.mjs")]);
        let mut node = Command::new("node");
        node.arg(path);
        judged(node, &posts);
    }
    if is_there("python3", "--version") {
        let path = write("verify.py", &[&block("python"), include_str!("receivers/documented.py")]);
        let mut python = Command::new("python3");
        python.arg(path);
        judged(python, &posts);
    }
    if let Some(program) = go {
        judged(Command::new(program), &posts);
    }
    assert_eq!(block("rust"), include_str!("receivers/verify.rs"), "the document has what is compiled here");
    let now = sendtrail_schemas::time::Millis::wall().0 / 1_000;
    for (dialect, post) in &sent {
        let header = |name: &str| post.headers.get(name).map_or("", |value| value.to_str().unwrap());
        assert!(documented::verify(dialect, secret(dialect), header, &post.body, now), "{dialect}");
        assert!(!documented::verify(dialect, "whsec_AAAA", header, &post.body, now), "{dialect}");
    }
    // Metadata came as it was, where it is told.
    for (dialect, post) in
        sent.iter().filter(|(dialect, _)| ["standard", "nexuspromail", "zmailer"].contains(&&**dialect))
    {
        let body = String::from_utf8(post.body.to_vec()).unwrap();
        assert!(
            body.contains(r#""big":12345678901234567890123,"small":1e-400,"exact":1.10,"e":{}"#),
            "{dialect}: {body}"
        );
    }
}

/// A folder in which npm has put packages; none where it cannot.
fn npm() -> Option<PathBuf> {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("npm");
    std::fs::create_dir_all(&home).unwrap();
    if home.join("node_modules/svix/package.json").exists()
        && home.join("node_modules/standardwebhooks/package.json").exists()
    {
        return Some(home);
    }
    std::fs::write(home.join("package.json"), r#"{"private":true}"#).unwrap();
    let made = Command::new("npm")
        .args(["install", "--silent", "--no-audit", "--no-fund", "standardwebhooks@1", "svix@1"])
        .current_dir(&home)
        .status();
    if made.is_ok_and(|status| status.success()) {
        return Some(home);
    }
    assert!(std::env::var_os("CI").is_none(), "npm packages could not be installed");
    println!("SKIPPED: npm's standardwebhooks and svix are not to be had here");
    None
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_published_libraries_verify() {
    // To get them may take longer than signatures hold.
    let (npm, python) = (npm(), super::support::python::python_with("standardwebhooks"));
    let sent = sent().await;
    let of = |wanted: &[&str]| -> Vec<Value> {
        let chosen = sent.iter().filter(|(dialect, _)| wanted.contains(&&**dialect));
        chosen.map(|(dialect, post)| told(post, dialect)).collect()
    };
    let verifier = standardwebhooks::Webhook::new(secret("standard")).unwrap();
    for (_, post) in sent.iter().filter(|(dialect, _)| dialect == "standard") {
        verifier.verify(&post.body, &post.headers).unwrap();
    }
    if let Some(home) = npm {
        let mut node = Command::new("node");
        node.arg(receivers("published.mjs")).current_dir(home);
        judged(node, &of(&["standard", "securesmtp"]));
    }
    if let Some(python) = python {
        let mut python = Command::new(python);
        python.arg(receivers("published.py"));
        judged(python, &of(&["standard"]));
    }
}

#[tokio::test]
async fn cloud_events_are_whole_and_verified() {
    let server = Server::start().await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("cloud").await;
    let set = partner.set(json!({"name": "set"})).await;
    let fields = json!({"webhook_url": format!("{}/cloud", receiver.base), "webhook_secret": secret("standard"),
        "dialect": "standard", "envelope": "cloudevents"});
    partner.destination(&set, fields).await;
    stream_to_all(&partner, &hard(&partner)[..2]).await;
    for post in receiver.wait("/cloud", 2).await {
        standardwebhooks::Webhook::new(secret("standard")).unwrap().verify(&post.body, &post.headers).unwrap();
        assert!(post.header("content-type").starts_with("application/cloudevents+json"));
        let body = post.json();
        assert_eq!(body["specversion"], "1.0");
        for required in ["id", "source", "type", "time", "data"] {
            assert!(!body[required].is_null(), "{required}: {body}");
        }
    }
    // It goes with no other dialect.
    let fields = json!({"name": "x", "webhook_url": format!("{}/x", receiver.base), "envelope": "cloudevents"});
    let path = format!("/configuration-sets/{set}/event-destinations");
    let reply = partner.call(http::Method::POST, &path, &[], fields.to_string()).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["error"]), (400, &json!("INVALID_REQUEST")));
}
