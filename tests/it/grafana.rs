//! The dashboards that come with it: every panel's query gives rows on the real engine, every expression names metrics
//! that are exposed, with labels that they have.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use promql_parser::label::Matchers;
use promql_parser::parser::{self, Expr, LabelModifier, VectorSelector};
use promql_parser::util::{ExprVisitor, walk_expr};
use sendtrail_schemas::time::Millis;

use super::support::*;

/// Every dashboard: its file's name and what is in it.
fn dashboards() -> Vec<(String, Value)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/grafana/dashboards");
    let mut found: Vec<(String, Value)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), std::fs::read_to_string(path).unwrap()))
        .map(|(name, text)| (name, serde_json::from_str(&text).unwrap()))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// What is asked of a data source.
struct Question {
    place: String,
    /// Of one figure, which is always there, or of rows.
    is_figure: bool,
    text: String,
}

/// What panels and variables ask of a data source.
fn questions(source: &str, field: &str) -> Vec<Question> {
    let mut found = Vec::new();
    for (name, dashboard) in dashboards() {
        for panel in dashboard["panels"].as_array().unwrap() {
            let targets = panel["targets"].as_array().unwrap().iter();
            for target in targets.filter(|target| target["datasource"]["type"] == source) {
                let place = format!("{name}, {}", panel["title"].as_str().unwrap());
                let text = target[field].as_str().unwrap().to_owned();
                found.push(Question { place, is_figure: panel["type"] == "stat", text });
            }
        }
        let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
        for variable in variables.filter(|variable| variable["datasource"]["type"] == source) {
            let place = format!("{name}, variable {}", variable["name"]);
            found.push(Question { place, is_figure: false, text: variable["query"].as_str().unwrap().to_owned() });
        }
    }
    found
}

/// A macro of the plug-in with its argument, as the plug-in puts it.
fn expand_macro(sql: &str, name: &str, expanded: impl Fn(&str) -> String) -> String {
    let macro_name = format!("$__{name}(");
    let mut parts = sql.split(&macro_name);
    let mut whole = parts.next().unwrap().to_owned();
    for part in parts {
        let (argument, rest) = part.split_once(')').unwrap();
        whole += &expanded(argument);
        whole += rest;
    }
    whole
}

fn expand(sql: &str, from: Millis, to: Millis, accounts: &[&str]) -> String {
    let [from, to] = [from, to].map(|at| format!("toDateTime({})", at.0 / 1_000));
    let quoted = accounts.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(",");
    let all = accounts.is_empty().then_some("1=1");
    let chosen = "account_id IN (${account:singlequote})";
    let sql = sql.replace(&format!("$__conditionalAll({chosen}, $account)"), all.unwrap_or(chosen));
    let sql = expand_macro(&sql, "timeFilter", |column| format!("{column} >= {from} AND {column} <= {to}"));
    let sql = expand_macro(&sql, "timeInterval", |column| {
        format!("toStartOfInterval(toDateTime({column}), INTERVAL 3600 second)")
    });
    let sql = sql.replace("$__fromTime", &from).replace("$__toTime", &to).replace("${account:singlequote}", &quoted);
    assert!(!sql.contains('$'), "nothing is left to expand: {sql}");
    sql
}

/// Traffic of which every panel has something to show.
async fn traffic(server: &Server, partner: &Partner, receiver: &Receiver) {
    let set = partner.set(json!({"name": "set"})).await;
    partner.destination(&set, json!({"webhook_url": format!("{}/ok", receiver.base), "dialect": "standard"})).await;
    let failing = json!({"name": "failing", "webhook_url": format!("{}/no", receiver.base), "dialect": "standard"});
    partner.destination(&set, failing).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let away = json!({"name": "away", "webhook_url": format!("http://{closed}/"), "dialect": "standard"});
    partner.destination(&set, away).await;
    let now = Millis::wall();
    let at = |hours: i64| Millis(now.0 - hours * HOUR);
    let mut events = Vec::new();
    for n in 0..200 {
        let mut tell = |kind: &str, hours: i64, block: Value| {
            let mut event = event(kind, &format!("m{n}"));
            event["recipient"] = format!("to{n}@host{}.example", n % 3).into();
            event["occurred_at"] = json!(at(hours));
            if n < 5 {
                event["configuration_set_name"] = "set".into();
            }
            event.as_object_mut().unwrap().extend(block.as_object().unwrap().clone());
            events.push(event);
        };
        tell("Send", 30, json!({}));
        tell("Delivery", 29, json!({"delivery": {"smtpResponse": "250 OK", "processingTimeMillis": 100 + n}}));
        match n % 8 {
            0 => tell("Open", 3, json!({})),
            1 => tell("Click", 2, json!({})),
            2 if n < 40 => tell("SoftBounce", 2, json!({})),
            3 => tell("DeliveryDelay", 2, json!({})),
            4 if n < 20 => tell("Complaint", 1, json!({"complaint": {"complaintFeedbackType": "abuse"}})),
            5 => tell(
                "HardBounce",
                1,
                json!({"bounce": {"bounceType": "Permanent", "bounceSubType": "NoEmail",
                "diagnosticCode": "smtp; 550 5.1.1 unknown"}}),
            ),
            _ => {}
        }
    }
    partner.stream(&events).await;
    assert_eq!(partner.get("/reputation").await["status"], "PAUSED");
    receiver.wait("/ok", 10).await;
    receiver.wait("/no", 10).await;
    // Mail of its own, by an account that may send.
    let sender = server.partner("sender").await;
    assert_eq!(sender.try_send(&["success@inbox.example"]).await.0, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_panel_of_sql_has_rows() {
    if sendtrail_test_servers::clickhouse().is_none() {
        return;
    }
    let server = Server::start_with(|config| assert!(use_clickhouse(config))).await;
    let client = sendtrail::clickhouse::client(&server.config.clickhouse).unwrap();
    let partner = server.partner("panels").await;
    let receiver = Receiver::start(|path, _| Answer::status(if path == "/no" { 500 } else { 200 })).await;
    traffic(&server, &partner, &receiver).await;
    let rows = async |sql: &str| -> Vec<Value> {
        let bytes = client.query(sql).fetch_bytes("JSONEachRow").unwrap().collect().await;
        let bytes = bytes.unwrap_or_else(|error| panic!("{sql}\n{error}"));
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).unwrap())
            .collect()
    };
    eventually("attempts are in ClickHouse", async || rows("SELECT * FROM deliveries").await.len() >= 30).await;
    eventually("events are", async || {
        rows("SELECT 1 FROM stats_hourly GROUP BY ALL HAVING sum(deliveries) = 201").await.len() == 1
    })
    .await;
    // Which is refused until ClickHouse has all of the account.
    partner.get("/stats").await;

    let now = Millis::wall();
    let (from, to) = (Millis(now.0 - 7 * DAY), Millis(now.0 + MINUTE));
    let questions = questions("grafana-clickhouse-datasource", "rawSql");
    assert!(questions.len() > 20, "{}", questions.len());
    for Question { place, is_figure, text: sql } in &questions {
        let found = rows(&expand(sql, from, to, &[&partner.account_id])).await;
        assert!(!found.is_empty(), "{place} has no rows: {sql}");
        for name in found[0].as_object().unwrap().keys() {
            assert!(found.iter().any(|row| !row[name].is_null()), "{place}: {name} is nowhere told: {sql}");
        }
        assert!(!rows(&expand(sql, from, to, &[])).await.is_empty(), "{place}: of all accounts");
        // Another account's rows are not shown.
        let nobody = "018f2f6e-0000-7000-8000-000000000009";
        if sql.contains("${account:singlequote}") && !is_figure {
            assert_eq!(rows(&expand(sql, from, to, &[nobody])).await, [json!(null); 0], "{place}: {sql}");
        }
    }
    let of = async |place: &str| {
        let found = questions.iter().find(|question| question.place == place).unwrap_or_else(|| panic!("{place}"));
        rows(&expand(&found.text, from, to, &[&partner.account_id])).await
    };
    // What they show is what the API says.
    let reputation = partner.get("/reputation").await;
    let shown = &of("accounts, Accounts in the last 14 days").await[0];
    assert_eq!((&shown["account"], &shown["status"]), (&json!(partner.account_id), &json!("PAUSED")));
    assert_eq!(shown["sent"].as_u64().or_else(|| shown["sent"].as_str()?.parse().ok()), reputation["sent"].as_u64());
    let rate = of("accounts, Hard bounces in 14 days").await.last().unwrap()["bounce rate"].as_f64().unwrap();
    let wanted = 100.0 * reputation["bounced"].as_f64().unwrap() / reputation["sent"].as_f64().unwrap();
    assert!((rate - wanted).abs() < 1e-9, "{rate} {wanted}");
    assert_eq!(of("accounts, Paused accounts").await[0]["paused"].to_string().trim_matches('"'), "1");
    for row in of("pipeline, Whether ClickHouse has every event once").await {
        assert_eq!(row["missing"].to_string().trim_matches('"'), "0", "{row}");
    }
    let destinations = of("webhooks, Destinations").await;
    let worst_first: Vec<f64> = destinations.iter().map(|row| row["succeeded %"].as_f64().unwrap()).collect();
    assert_eq!(worst_first, [0.0, 0.0, 100.0]);
    assert!(
        destinations.iter().any(|row| row["last code"] == 500 && row["last success"].is_null()),
        "{destinations:?}"
    );
}

/// Names with the labels that they were seen with.
type Exposed = BTreeMap<String, BTreeSet<String>>;

fn exposed(text: &str) -> Exposed {
    let mut found = Exposed::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let Some(end) = line.find(['{', ' ']) else { continue };
        let labels = found.entry(line[..end].to_owned()).or_default();
        if let Some((inside, _)) = line[end..].strip_prefix('{').and_then(|rest| rest.rsplit_once('}')) {
            labels.extend(inside.split("\",").filter_map(|pair| pair.split_once('=')).map(|(name, _)| name.to_owned()));
        }
    }
    found
}

/// What an expression names: metrics, and labels.
#[derive(Default)]
struct Named {
    metrics: BTreeSet<String>,
    labels: BTreeSet<String>,
}

impl Named {
    fn note(&mut self, selector: &VectorSelector) {
        self.metrics.extend(selector.name.clone());
        let Matchers { matchers, .. } = &selector.matchers;
        self.labels.extend(matchers.iter().map(|matcher| matcher.name.clone()));
    }
}

impl ExprVisitor for Named {
    type Error = String;

    fn pre_visit(&mut self, expr: &Expr) -> Result<bool, String> {
        match expr {
            Expr::VectorSelector(selector) => self.note(selector),
            Expr::MatrixSelector(selector) => self.note(&selector.vs),
            Expr::Aggregate(aggregate) => {
                if let Some(LabelModifier::Include(labels) | LabelModifier::Exclude(labels)) = &aggregate.modifier {
                    self.labels.extend(labels.labels.iter().cloned());
                }
            }
            _ => {}
        }
        Ok(true)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_expression_names_metrics_that_are_exposed() {
    if sendtrail_test_servers::clickhouse().is_none() {
        return;
    }
    let Some(writer) = super::sources::Writer::new("metrics", 1).await else { return };
    let snapshots = tempfile::TempDir::new().unwrap();
    let server = Server::start_with(|config| {
        assert!(use_clickhouse(config));
        config.state.snapshots = snapshots.path().display().to_string();
        config.state.snapshot_seconds = 1;
        (config.webhooks.failing_after_failures, config.webhooks.failing_after_seconds) = (10, 0);
        writer.read(config, "account_header = \"account\"");
    })
    .await;
    let partner = server.partner("metrics").await;
    let receiver = Receiver::start(|path, _| Answer::status(if path == "/no" { 500 } else { 200 })).await;
    traffic(&server, &partner, &receiver).await;
    writer.write(0, &partner.event("Send").to_string(), Some(&partner.account_id)).await;
    writer.write(0, "not JSON", Some(&partner.account_id)).await;
    let metrics = async || {
        let reply = server.admin.call(http::Method::GET, "/metrics", &[], "").await.unwrap();
        String::from_utf8_lossy(&reply.body).into_owned()
    };
    let questions = questions("prometheus", "expr");
    assert!(questions.len() > 20, "{}", questions.len());
    let missing = async || {
        let exposed = exposed(&metrics().await);
        let mut missing = Vec::new();
        for Question { place, text: expr, .. } in &questions {
            let parsed = parser::parse(&expr.replace("$__rate_interval", "1m"))
                .unwrap_or_else(|why| panic!("{place}: {expr}: {why}"));
            let mut named = Named::default();
            walk_expr(&mut named, &parsed).unwrap();
            assert!(!named.metrics.is_empty(), "{place}: {expr}");
            for name in &named.metrics {
                match exposed.get(name) {
                    None => missing.push(format!("{place}: {name}")),
                    // Whoever reads the metrics adds where it read them.
                    Some(labels) => missing.extend(
                        named
                            .labels
                            .iter()
                            .filter(|label| *label != "instance" && !labels.contains(*label))
                            .map(|label| format!("{place}: {label} of {name}")),
                    ),
                }
            }
        }
        missing
    };
    // What is counted now and then is counted soon, or after some minutes where the machine is slow.
    let mut left = missing().await;
    for _ in 0..3_000 {
        if left.is_empty() {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        left = missing().await;
    }
    assert_eq!(left, [""; 0]);

    // Every metric says what it is, and none is left out of the dashboards.
    let text = metrics().await;
    let shown: BTreeSet<&str> = questions
        .iter()
        .flat_map(|question| question.text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'))
        .collect();
    for name in exposed(&text).keys() {
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
        assert!(text.contains(&format!("# HELP {base} ")), "{base} has no description");
        let seen = shown.iter().any(|shown| *shown == base || shown.strip_suffix("_bucket") == Some(base));
        assert!(seen || base == "sendtrail_archive_vacuumed_files_total", "{base} is on no dashboard");
    }
}

#[test]
fn dashboards_are_whole() {
    let provisioned = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("docker/grafana/provisioning/datasources/sendtrail.yml"),
    )
    .unwrap();
    let mut titles = BTreeSet::new();
    for (name, dashboard) in dashboards() {
        assert_eq!(dashboard["uid"], format!("sendtrail-{name}"));
        assert!(titles.insert(dashboard["title"].to_string()), "{name}");
        let mut taken = BTreeSet::new();
        for panel in dashboard["panels"].as_array().unwrap() {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap());
            assert!(x + w <= 24);
            for place in (y..y + h).flat_map(|y| (x..x + w).map(move |x| (x, y))) {
                assert!(taken.insert(place), "{name}: {} lies on another", panel["title"]);
            }
            for target in panel["targets"].as_array().unwrap() {
                let source = &target["datasource"];
                let (uid, kind) = (source["uid"].as_str().unwrap(), source["type"].as_str().unwrap());
                let provided = format!("uid: {uid}\n    type: {kind}\n");
                assert!(provisioned.contains(&provided), "{name}: {source} is not provisioned");
            }
        }
    }
    assert_eq!(titles.len(), 4);
}
