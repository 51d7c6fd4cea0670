//! What each command does.

use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use comfy_table::Table;
use http::Method;
use sendtrail_eventlog::failpoint::hours_of_shift;
use sendtrail_eventlog::kafka::{Plan, Step};
use sendtrail_processor::clickhouse::{migrate as migrate_tables, repair as repair_tables};
use sendtrail_processor::{Projections, Store, archive};
use sendtrail_schemas::time::{HOUR, Millis};
use serde_json::{Value, json};

use crate::app::App;
use crate::cli::{
    Accounts, Admin, Cli, Command, ConfigArgs, DeadLetters, Keys, Reconcile, Seals, Secrets, Serve, Topics,
};
use crate::client::Api;
use crate::config::{Config, DEFAULTS};
use crate::{audit, backbone, clickhouse, demo, export, loadgen, rebuild, shutdown, telemetry};

/// Runs a command.
///
/// # Errors
/// What went wrong, for people.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    telemetry::end_with_reader();
    match cli.command {
        Command::Serve(args) => serve(&args).await?,
        Command::Demo(args) => return demo::run(args).await,
        Command::Loadgen(args) => loadgen::run(args).await?,
        Command::Accounts(command) => accounts(command).await?,
        Command::Keys(command) => keys(command).await?,
        Command::DeadLetters(command) => dead_letters(command).await?,
        Command::Secrets(Secrets::Reseal { admin }) => reseal(&admin).await?,
        Command::Config(args) => return Ok(config(&args)),
        Command::Healthcheck { url } => return healthcheck(&url).await,
        Command::Topics(command) => return topics(command).await,
        Command::Migrate { serve, recreate } => migrate(&serve, recreate).await?,
        Command::RebuildProjections(args) => rebuild_projections(&args).await?,
        Command::RebuildState { serve, replace, partition } => {
            let config = load(&serve)?;
            telemetry::log(&config.telemetry)?;
            return rebuild::run(&config, &rebuild::Options { replace, partitions: partition }).await;
        }
        Command::Reconcile(args) => return reconcile(&args).await,
        Command::Export(args) => export::run(&args).await?,
        Command::Verify(args) => return audit::verify(&args).await,
        Command::Seals(Seals::Key(args)) => audit::print_key(&load(&args)?)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn load(args: &Serve) -> anyhow::Result<Config> {
    // Together, so that what is wrong is seen at once.
    let mut config = Config::load_with(args.config.as_deref(), &args.roles)?;
    if let Some(data) = &args.data {
        config.data.dir.clone_from(data);
    }
    if let Some(listen) = &args.listen {
        config.server.listen.clone_from(listen);
    }
    Ok(config)
}

async fn serve(args: &Serve) -> anyhow::Result<()> {
    // Nothing, but in builds for tests.
    let _failpoints = fail::FailScenario::setup();
    Millis::shift_wall(hours_of_shift() * HOUR);
    let config = load(args)?;
    telemetry::log(&config.telemetry)?;
    // Asked for before anything is opened, so that no signal finds nobody.
    let mut signal = std::pin::pin!(shutdown::signal()?);
    let app = tokio::select! {
        app = App::start(&config) => app?,
        () = &mut signal => {
            tracing::info!("stopped before it was ready");
            std::process::exit(0);
        }
    };
    if let Some(key) = &app.fresh_admin_key {
        println!("admin key, shown this once: {key}");
    }
    println!("listening on http://{}", app.address);
    tracing::info!(address = %app.address, data = %config.data.dir.display(), "serving");
    tokio::select! {
        () = signal => app.stop().await,
        () = app.broken() => {
            tracing::error!("the state store could not be written; there is room again, and this program begins anew");
            return Err(begin_anew());
        }
        () = app.lost() => {
            tracing::error!("another server owns the log; this one ends, and may be started again");
            std::process::exit(1);
        }
    }
    Ok(())
}

/// Becomes this program once more, with the same arguments, as after a crash; returns only when that cannot be done.
fn begin_anew() -> anyhow::Error {
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return error.into(),
    };
    let error = std::process::Command::new(program).args(std::env::args_os().skip(1)).exec();
    anyhow::Error::from(error).context("begin anew")
}

fn config(args: &ConfigArgs) -> ExitCode {
    if args.default {
        print!("{DEFAULTS}");
        return ExitCode::SUCCESS;
    }
    match Config::load(args.config.as_deref()) {
        Ok(_) if args.check => println!("the settings are sound"),
        Ok(config) => print!("{}", config.show()),
        Err(invalid) => {
            for error in invalid.0 {
                println!("{error}");
            }
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

async fn healthcheck(url: &str) -> anyhow::Result<ExitCode> {
    let reply = Api::new(url, "").call(Method::GET, "/health", &[], "").await?;
    println!("{}", String::from_utf8_lossy(&reply.body));
    Ok(if reply.status.is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn topics(command: Topics) -> anyhow::Result<ExitCode> {
    let (args, apply) = match &command {
        Topics::Plan(args) => (args, false),
        Topics::Apply(args) => (args, true),
    };
    let config = load(args)?;
    telemetry::log(&config.telemetry)?;
    let options = config.kafka_options();
    let plan = tokio::task::spawn_blocking(move || {
        let plan = Plan::of(&options)?;
        if apply {
            plan.create(&options)?;
        }
        Ok::<_, sendtrail_eventlog::Error>(plan)
    });
    let mut sound = true;
    for (name, step) in plan.await??.steps {
        match step {
            Step::Keep => println!("{name}: as it must be"),
            Step::Create if apply => println!("{name}: made"),
            Step::Create => println!("{name}: to be made"),
            Step::Wrong(wrong) => {
                sound = false;
                wrong.iter().for_each(|wrong| println!("{name}: {wrong}"));
            }
        }
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn migrate(args: &Serve, recreate: bool) -> anyhow::Result<()> {
    let config = load(args)?;
    telemetry::log(&config.telemetry)?;
    let Some(client) = clickhouse::client(&config.clickhouse) else {
        anyhow::bail!("there is no ClickHouse in the settings: clickhouse.url is empty");
    };
    // What goes on into tables that are dropped would be neither here nor there.
    let _lock = recreate.then(|| backbone::lock(&config.data.dir)).transpose()?;
    let done = migrate_tables(&client, &clickhouse::wanted(&config, recreate)).await?;
    match done.from {
        Some(from) if from == done.meta.version => println!("the tables are of version {from}, as they must be"),
        Some(from) => println!("the tables are of version {} now, they were of {from}", done.meta.version),
        None => println!("the tables are made, of version {}", done.meta.version),
    }
    Ok(())
}

async fn reconcile(args: &Reconcile) -> anyhow::Result<ExitCode> {
    if args.repair {
        let serve = Serve { config: args.config.clone(), data: args.data.clone(), roles: Vec::new(), listen: None };
        return repair(&serve).await;
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut path = format!("/api/v1/admin/reconciliation?from={}&to={}", text(&args.from), text(&args.to));
    if let Some(account) = &args.account {
        path = format!("{path}&account_id={account}");
    }
    let found = Api::new(&args.url, &args.admin_key).get(&path).await?;
    let names = ["hour", "log", "archive", "clickhouse", "rollups", "archive_sums", "clickhouse_rollups", "equal"];
    let mut table = Table::new();
    table.set_header(names);
    for hour in found["hours"].as_array().into_iter().flatten() {
        table.add_row(names.map(|name| match &hour[name] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        }));
    }
    println!("{table}");
    for found in found["differences"].as_array().into_iter().flatten() {
        println!(
            "account {}: {} in {}, partition {}, seq {} to {}",
            found["account_id"],
            found["difference"],
            found["store"],
            found["partition"],
            found["first_seq"],
            found["last_seq"]
        );
    }
    let equal = found["equal"] == true;
    println!("{}", if equal { "every store has the same" } else { "stores differ" });
    Ok(if equal { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn repair(args: &Serve) -> anyhow::Result<ExitCode> {
    let config = load(args)?;
    telemetry::log(&config.telemetry)?;
    let Some(client) = clickhouse::client(&config.clickhouse) else {
        anyhow::bail!("there is no ClickHouse in the settings: clickhouse.url is empty");
    };
    let _lock = backbone::lock(&config.data.dir)?;
    let claims = config.data.dir.join("clickhouse-claims");
    for found in repair_tables(&client, &claims, &config.archive_folder()).await? {
        println!(
            "{}, partition {}: ClickHouse has rows up to {}, the archive up to {}; the server inserts the rest when it starts",
            found.table, found.partition, found.there, found.archived
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn rebuild_projections(args: &Serve) -> anyhow::Result<()> {
    // Nothing, but in builds for tests.
    let _failpoints = fail::FailScenario::setup();
    let config = load(args)?;
    telemetry::log(&config.telemetry)?;
    let data = &config.data.dir;
    let _lock = backbone::lock(data)?;
    let store = Store::open(&data.join("state"), config.log.partitions, config.state.cache_bytes)?;
    let folder = config.archive_folder();
    let events = archive::Table::open(&archive::EVENTS, &folder.join(archive::EVENTS.name())).await?;
    let attempts = archive::Table::open(&archive::ATTEMPTS, &folder.join(archive::ATTEMPTS.name())).await?;
    let mut projections = Projections::open_to_rebuild(store.database())?;
    let partitions = config.log.partitions;
    let rebuilt = sendtrail_processor::rebuild_projections(&events, &attempts, &mut projections, partitions).await?;
    println!(
        "sums made anew from {} archived events, deliveries from {} attempts; the server adds the rest when it starts",
        rebuilt.events, rebuilt.attempts
    );
    Ok(())
}

fn api(admin: &Admin) -> Api {
    Api::new(&admin.url, &admin.admin_key)
}

const ACCOUNTS: &str = "/api/v1/admin/accounts";

async fn accounts(command: Accounts) -> anyhow::Result<()> {
    match command {
        Accounts::Create { admin, name, contact_email, mode, policy } => {
            let mut body = json!({"name": name, "contact_email": contact_email, "mode": mode});
            if let Some(policy) = policy {
                body["policy"] = json!({"name": policy});
            }
            print_json(&api(&admin).post(ACCOUNTS, &body).await?["account"]);
        }
        Accounts::List { admin } => {
            let rows = api(&admin).rows(ACCOUNTS, "accounts").await?;
            print_table(&["account_id", "name", "mode", "reputation_status", "created_at"], &rows);
        }
        Accounts::Pause { admin, account_id, reason } => {
            let path = format!("{ACCOUNTS}/{account_id}/pause");
            print_json(&api(&admin).post(&path, &json!({"reason": reason})).await?["account"]);
        }
        Accounts::Resume { admin, account_id, reason, mode } => {
            let path = format!("{ACCOUNTS}/{account_id}/resume");
            print_json(&api(&admin).post(&path, &json!({"reason": reason, "mode": mode})).await?["account"]);
        }
    }
    Ok(())
}

async fn keys(command: Keys) -> anyhow::Result<()> {
    let path = |account: &str| format!("{ACCOUNTS}/{account}/keys");
    match command {
        Keys::Create { admin, account_id, name, scopes, expires_at } => {
            let scopes = (!scopes.is_empty()).then_some(scopes);
            let body = json!({"name": name, "scopes": scopes, "expires_at": expires_at});
            print_json(&api(&admin).post(&path(&account_id), &body).await?["key"]);
        }
        Keys::List { admin, account_id } => {
            let rows = api(&admin).rows(&path(&account_id), "keys").await?;
            print_table(
                &["key_id", "name", "prefix", "scopes", "created_at", "last_used_at", "expires_at", "revoked_at"],
                &rows,
            );
        }
        Keys::Revoke { admin, account_id, key_id } => {
            let path = format!("{}/{key_id}", path(&account_id));
            api(&admin).call(Method::DELETE, &path, &[], "").await?.success()?;
            println!("revoked");
        }
    }
    Ok(())
}

async fn reseal(admin: &Admin) -> anyhow::Result<()> {
    print_json(&api(admin).post("/api/v1/admin/secrets/reseal", &json!({})).await?);
    Ok(())
}

async fn dead_letters(command: DeadLetters) -> anyhow::Result<()> {
    const LETTERS: &str = "/api/v1/admin/dead-letters";
    match command {
        DeadLetters::List { admin } => {
            let mut rows = api(&admin).rows(LETTERS, "dead_letters").await?;
            for row in &mut rows {
                // Where it was read, for a message of a source.
                let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned);
                let from = row.get("source").map_or_else(
                    || row["topic"].clone(),
                    |source| {
                        let [topic, partition, offset] =
                            ["topic", "partition", "offset"].map(|name| text(&source[name]));
                        json!(format!("{topic}, partition {partition}, offset {offset}"))
                    },
                );
                row["from"] = from;
            }
            print_table(&["partition", "seq", "offset", "at", "payload_bytes", "from", "reason"], &rows);
        }
        DeadLetters::Show { admin, partition, seq } => {
            print_json(&api(&admin).get(&format!("{LETTERS}/{partition}/{seq}")).await?["dead_letter"]);
        }
        DeadLetters::Retry { admin, partition, seq } => {
            let path = format!("{LETTERS}/{partition}/{seq}/retry");
            let put = api(&admin).post(&path, &json!({})).await?;
            println!("back in intake: partition {}, offset {}", put["partition"], put["offset"]);
        }
    }
    Ok(())
}

fn print_json(value: &Value) {
    println!("{value:#}");
}

fn print_table(columns: &[&str], rows: &[Value]) {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY).set_header(columns);
    for row in rows {
        table.add_row(columns.iter().map(|column| match &row[*column] {
            Value::Null => String::new(),
            Value::String(text) => text.clone(),
            Value::Array(texts) => texts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
            other => other.to_string(),
        }));
    }
    println!("{table}");
}
