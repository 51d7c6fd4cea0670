//! The command line.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{Args, Parser, Subcommand};
use sendtrail_processor::core::step::LOGIC_VERSION;

use crate::roles::Role;

/// The program's version, and the newest logic that it decides by: see `state.logic_version`.
static VERSION: LazyLock<String> = LazyLock::new(|| format!("{} (logic {LOGIC_VERSION})", env!("CARGO_PKG_VERSION")));

/// Sendtrail: send mail, stream delivery events, and know what happened to every message.
#[derive(Parser, Debug)]
#[command(version = VERSION.as_str(), about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the server
    Serve(Serve),
    /// Show everything in a minute: a server, five partners, 20 days of traffic, every figure checked
    Demo(Demo),
    /// Stream events into a running server and print rate and latency
    Loadgen(Loadgen),
    /// Create, list and change accounts, through the API
    #[command(subcommand)]
    Accounts(Accounts),
    /// Create, list and revoke keys, through the API
    #[command(subcommand)]
    Keys(Keys),
    /// Seal webhook secrets with the key of now
    #[command(subcommand)]
    Secrets(Secrets),
    /// Look at records that could not be applied, and try them again
    #[command(name = "dead-letters", subcommand)]
    DeadLetters(DeadLetters),
    /// Print the effective settings, the defaults, or every error in a file
    Config(ConfigArgs),
    /// Ask a server whether it is well; exits with 1 when it is not
    Healthcheck {
        /// The server
        #[arg(long, default_value = "http://127.0.0.1:8420")]
        url: String,
    },
    /// Show or make the topics on Kafka
    #[command(subcommand)]
    Topics(Topics),
    /// Make the tables in ClickHouse, or bring them up to date
    Migrate {
        #[command(flatten)]
        serve: Serve,
        /// Drop them first, with everything in them, while the server is stopped: it fills them again from the archive
        #[arg(long)]
        recreate: bool,
    },
    /// Make the sums of /stats anew from the archive, while the server is stopped
    RebuildProjections(Serve),
    /// Fold the state once more from the archived intake and compare it with the one that is there, while the server is stopped;
    /// exits with 1 when it is not the same, byte for byte
    RebuildState {
        #[command(flatten)]
        serve: Serve,
        /// Put what was folded in the place of what is not the same, or not there
        #[arg(long)]
        replace: bool,
        /// Only these, also when the state of one is not here because another server owned it; may be given more than once
        #[arg(long, value_name = "NUMBER")]
        partition: Vec<u32>,
    },
    /// Compare what log, archive, ClickHouse and sums have, or have ClickHouse filled from the archive after it was restored
    Reconcile(Reconcile),
    /// Export through the API, wait for it, and download its files
    Export(Export),
    /// Check an archive or an export against its seals, offline; exits with 1 when something is not as it was sealed
    Verify(Verify),
    /// What auditors need to know of seals
    #[command(subcommand)]
    Seals(Seals),
}

/// Where the server keeps things and listens.
#[derive(Args, Debug, Clone)]
pub struct Serve {
    /// A settings file; see `sendtrail config --default`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data folder, instead of the settings'
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// What this server does, instead of the settings': some of ingest,processor,delivery,dispatcher,sinks,query
    #[arg(long, value_name = "ROLE,...", value_delimiter = ',')]
    pub roles: Vec<Role>,
    /// The address and port, instead of the settings'; port 0 picks a free one
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
}

/// What to compare.
#[derive(Args, Debug)]
pub struct Reconcile {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8420")]
    pub url: String,
    /// The administrator's key
    #[arg(long, env = "SENDTRAIL_ADMIN_KEY", hide_env_values = true, default_value = "")]
    pub admin_key: String,
    /// A day or a whole hour, inclusive
    #[arg(long, required_unless_present = "repair")]
    pub from: Option<String>,
    /// A day or a whole hour, exclusive
    #[arg(long, required_unless_present = "repair")]
    pub to: Option<String>,
    /// Whose; without it, everybody's
    #[arg(long, value_name = "ACCOUNT_ID")]
    pub account: Option<String>,
    /// With the server stopped: go on from where ClickHouse is, if that is whole; the server then inserts what it lacks
    #[arg(long)]
    pub repair: bool,
    /// A settings file, to repair
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The data folder, to repair, instead of the settings'
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// What to export.
#[derive(Args, Debug)]
pub struct Export {
    #[command(flatten)]
    pub admin: Admin,
    /// `events`, `suppressions`, `status_changes`, `webhook_attempts`, `stats` or `activity`
    #[arg(long)]
    pub dataset: String,
    /// A day or a time, inclusive
    #[arg(long)]
    pub from: Option<String>,
    /// A day or a time, exclusive
    #[arg(long)]
    pub to: Option<String>,
    /// `parquet`, `csv` or `ndjson`
    #[arg(long, default_value = "parquet")]
    pub format: String,
    /// Whose; without it, everybody's
    #[arg(long, value_name = "ACCOUNT_ID")]
    pub account: Option<String>,
    /// Filters, as the API takes them
    #[arg(long, value_name = "JSON")]
    pub filters: Option<String>,
    /// The folder for the files, which is made
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// What to check.
#[derive(Args, Debug)]
pub struct Verify {
    /// The folder of an archive, of one of its tables, or of an export
    pub path: PathBuf,
    /// A public key that may have signed, base64; without one, the key that the first seal names is taken
    #[arg(long = "key", value_name = "KEY")]
    pub keys: Vec<String>,
    /// The last seal that was seen before, as this command prints it
    #[arg(long, value_name = "NUMBER:HASH")]
    pub seen: Option<String>,
}

/// What auditors need to know of seals.
#[derive(Subcommand, Debug)]
pub enum Seals {
    /// Print the public key that days and exports are sealed with
    Key(Serve),
}

/// The topics on Kafka.
#[derive(Subcommand, Debug)]
pub enum Topics {
    /// Show what is there, what is missing and what is wrong; exits with 1 when something is wrong
    Plan(Serve),
    /// Make the topics that are missing
    Apply(Serve),
}

/// How to demonstrate.
#[derive(Args, Debug)]
pub struct Demo {
    /// Leave the server up at the end, until Ctrl-C
    #[arg(long)]
    pub keep: bool,
    /// Replay a file of Amazon SES events, one a line, instead of made-up traffic
    #[arg(long, value_name = "FILE")]
    pub events: Option<PathBuf>,
    /// Events to make up
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    pub count: u64,
    /// Seed of what is made up
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
}

/// How to load.
#[derive(Args, Debug)]
pub struct Loadgen {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8420")]
    pub url: String,
    /// An account's key
    #[arg(long, env = "SENDTRAIL_KEY", hide_env_values = true)]
    pub key: String,
    /// Seconds to go on
    #[arg(long, default_value_t = 10)]
    pub seconds: u64,
    /// Requests at once
    #[arg(long, default_value_t = 4)]
    pub connections: usize,
    /// Events a request
    #[arg(long, default_value_t = 500)]
    pub batch: usize,
    /// Events a second, all connections together; 0: as many as are taken
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
}

/// How to reach the administrator's routes.
#[derive(Args, Debug, Clone)]
pub struct Admin {
    /// The server
    #[arg(long, default_value = "http://127.0.0.1:8420")]
    pub url: String,
    /// The administrator's key
    #[arg(long, env = "SENDTRAIL_ADMIN_KEY", hide_env_values = true)]
    pub admin_key: String,
}

/// What to do with accounts.
#[derive(Subcommand, Debug)]
pub enum Accounts {
    /// Create an account
    Create {
        #[command(flatten)]
        admin: Admin,
        /// Its name
        #[arg(long)]
        name: String,
        /// Who is mailed when it is at risk or paused
        #[arg(long)]
        contact_email: String,
        /// `sandbox` or `production`
        #[arg(long, default_value = "sandbox")]
        mode: String,
        /// `splashify` or `zmailer`
        #[arg(long)]
        policy: Option<String>,
    },
    /// List accounts
    List {
        #[command(flatten)]
        admin: Admin,
    },
    /// Pause an account
    Pause {
        #[command(flatten)]
        admin: Admin,
        /// Which
        account_id: String,
        /// Why
        #[arg(long)]
        reason: String,
    },
    /// Resume an account
    Resume {
        #[command(flatten)]
        admin: Admin,
        /// Which
        account_id: String,
        /// Why
        #[arg(long)]
        reason: String,
        /// The mode to go on in
        #[arg(long)]
        mode: Option<String>,
    },
}

/// What to do with keys.
#[derive(Subcommand, Debug)]
pub enum Keys {
    /// Create a key; it is shown once
    Create {
        #[command(flatten)]
        admin: Admin,
        /// Whose
        account_id: String,
        /// What to call it
        #[arg(long, default_value = "")]
        name: String,
        /// What it may be used for: read, send, manage; may be repeated; without one: everything
        #[arg(long = "scope", value_name = "SCOPE")]
        scopes: Vec<String>,
        /// From when on it is no longer good, such as 2027-01-01T00:00:00Z
        #[arg(long, value_name = "TIME")]
        expires_at: Option<String>,
    },
    /// List an account's keys
    List {
        #[command(flatten)]
        admin: Admin,
        /// Whose
        account_id: String,
    },
    /// Revoke a key
    Revoke {
        #[command(flatten)]
        admin: Admin,
        /// Whose
        account_id: String,
        /// Which
        key_id: String,
    },
}

/// What to do with webhook secrets.
#[derive(Subcommand, Debug)]
pub enum Secrets {
    /// Seal every one anew; afterwards secrets.previous_keys are needed no more
    Reseal {
        #[command(flatten)]
        admin: Admin,
    },
}

/// What to do with dead letters.
#[derive(Subcommand, Debug)]
pub enum DeadLetters {
    /// List them
    List {
        #[command(flatten)]
        admin: Admin,
    },
    /// Show one with its payload
    Show {
        #[command(flatten)]
        admin: Admin,
        /// Its partition
        partition: u32,
        /// Its number
        seq: u64,
    },
    /// Put one back at the end of intake
    Retry {
        #[command(flatten)]
        admin: Admin,
        /// Its partition
        partition: u32,
        /// Its number
        seq: u64,
    },
}

/// What to print.
#[derive(Args, Debug)]
pub struct ConfigArgs {
    /// A settings file
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print the commented defaults instead
    #[arg(long, conflicts_with = "check")]
    pub default: bool,
    /// Print every error there is, and exit with 1 if there is one
    #[arg(long)]
    pub check: bool,
}
