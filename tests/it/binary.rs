//! The program itself, as an operator runs it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use sendtrail::client::Api;
use sendtrail_schemas::time::Millis;

use super::support::*;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_sendtrail");
/// How long a program may take to start or to refuse to.
const PATIENCE: Duration = Duration::from_secs(600);
pub const ADMIN_KEY: &str = "an administrator's key for tests";

/// A server in a process of its own; killed when dropped.
pub struct Process {
    child: Child,
    pub base: String,
    /// What it printed before it listened.
    pub greeting: Vec<String>,
}

impl Process {
    pub fn start(data: &std::path::Path, settings: &[(&str, &str)]) -> Self {
        Self::try_start(data, settings).expect("the server listens")
    }

    /// The same, unless it ends before it listens.
    pub fn try_start(data: &std::path::Path, settings: &[(&str, &str)]) -> Option<Self> {
        Self::start_logging(data, settings, Stdio::null())
    }

    /// The same, with its log somewhere.
    pub fn start_logging(data: &std::path::Path, settings: &[(&str, &str)], log: Stdio) -> Option<Self> {
        let mut command = Command::new(PROGRAM);
        command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data);
        // Longer than a machine stalls.
        command.env("SENDTRAIL__SENDING__DECISION_TIMEOUT_MS", "30000");
        command.envs(settings.iter().copied()).stdout(Stdio::piped()).stderr(log);
        // What servers log, kept in a folder for whoever looks for a failure.
        if let Ok(folder) = std::env::var("SENDTRAIL_TEST_LOGS") {
            let name = format!("{}-{}", data.file_name().unwrap().display(), Millis::wall().0);
            command.stderr(std::fs::File::create(std::path::Path::new(&folder).join(name)).unwrap());
        }
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (told, lines) = std::sync::mpsc::channel();
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).all(|line| told.send(line).is_ok()));
        let mut process = Self { child, base: String::new(), greeting: Vec::new() };
        while process.base.is_empty() {
            let line = match lines.recv_timeout(PATIENCE) {
                Ok(line) => line,
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return None,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("the server neither listens nor ends"),
            };
            match line.strip_prefix("listening on ") {
                Some(base) => process.base = base.to_owned(),
                None => process.greeting.push(line),
            }
        }
        Some(process)
    }

    pub fn signal(&mut self, name: &str) {
        assert!(Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap().success());
    }

    /// Ends it, if it has not ended.
    pub fn kill(&mut self) {
        // Killing what has ended is no fault.
        let _ = self.child.kill();
        self.wait();
    }

    /// Whether it has ended, of itself or not.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    pub fn wait(&mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An account in production that an administrator makes: who calls with its key, and its path below their routes.
pub async fn account_with_key(admin: &Api) -> (Api, String) {
    let body = json!({"name": "a", "contact_email": "a@b.example", "mode": "production"});
    let account = admin.post(&format!("{ADMIN}/accounts"), &body).await.unwrap();
    let account = format!("{ADMIN}/accounts/{}", account["account"]["account_id"].as_str().unwrap());
    let key = admin.post(&format!("{account}/keys"), &json!({})).await.unwrap();
    (admin.with_key(key["key"]["api_key"].as_str().unwrap()), account)
}

/// What a server says that must not start.
pub async fn refused(data: &std::path::Path, settings: &[(&str, &str)]) -> String {
    let mut command = tokio::process::Command::new(PROGRAM);
    command.args(["serve", "--listen", "127.0.0.1:0", "--data"]).arg(data).envs(settings.iter().copied());
    let ended = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await;
    let output = ended.expect("it must not serve").unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

fn run(args: &[impl AsRef<std::ffi::OsStr>]) -> Output {
    Command::new(PROGRAM).args(args).env("SENDTRAIL_ADMIN_KEY", ADMIN_KEY).output().unwrap()
}

fn text(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{told}{}", String::from_utf8_lossy(&output.stderr));
    told
}

#[test]
fn an_operator_runs_a_server() {
    let folder = tempfile::TempDir::new().unwrap();
    let mut server = Process::start(folder.path(), &[]);
    let key =
        server.greeting.iter().find_map(|line| line.strip_prefix("admin key, shown this once: ")).unwrap().to_owned();
    let at = ["--url", &server.base, "--admin-key", &key];
    let with = |args: &[&str]| -> Vec<String> { args.iter().chain(&at).map(|arg| (*arg).to_owned()).collect() };
    let account = text(&run(&with(&["accounts", "create", "--name", "Acme", "--contact-email", "a@acme.example"])));
    let account: Value = serde_json::from_str(&account).unwrap();
    let id = account["account_id"].as_str().unwrap();
    assert_eq!(account["mode"], "sandbox");
    let made: Value = serde_json::from_str(&text(&run(&with(&["keys", "create", id, "--name", "main"])))).unwrap();
    let api_key = made["api_key"].as_str().unwrap();
    assert_eq!((api_key.len(), &api_key[..8]), (64, "pk_live_"));
    assert!(text(&run(&with(&["keys", "list", id]))).contains("main"));
    assert!(text(&run(&with(&["accounts", "list"]))).contains(id));
    assert!(text(&run(&with(&["accounts", "pause", id, "--reason", "test"]))).contains("PAUSED"));
    assert!(text(&run(&with(&["accounts", "resume", id, "--reason", "test"]))).contains("HEALTHY"));
    text(&run(&with(&["keys", "revoke", id, made["key_id"].as_str().unwrap()])));
    text(&run(&with(&["dead-letters", "list"])));
    assert!(text(&run(&["healthcheck", "--url", &server.base])).contains(r#""status":"ok""#));
    let wrong = run(&["accounts", "list", "--url", &server.base, "--admin-key", "not the key, but long"]);
    assert!(!wrong.status.success());
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("401"), "{}", String::from_utf8_lossy(&wrong.stderr));

    server.signal("-TERM");
    assert!(server.wait().success());
    assert!(!run(&["healthcheck", "--url", &server.base]).status.success());
    let stopped = run(&["rebuild-projections", "--data", folder.path().to_str().unwrap()]);
    assert!(text(&stopped).contains("sums made anew"));
    let mut again = Process::start(folder.path(), &[]);
    assert!(again.greeting.is_empty(), "the key is shown once");
    let busy = run(&["rebuild-projections", "--data", folder.path().to_str().unwrap()]);
    assert!(!busy.status.success(), "not while the server runs");
    let second = run(&["serve", "--listen", "127.0.0.1:0", "--data", folder.path().to_str().unwrap()]);
    assert!(!second.status.success(), "a folder has one server");
    again.signal("-INT");
    assert!(again.wait().success());
}

#[test]
fn whoever_stops_reading_ends_a_command_in_silence() {
    // Not before the reader has ended, as the shell's own lines tell.
    let ended = "trap '' PIPE; while echo; do sleep 0.1; done 2> /dev/null; trap - PIPE";
    let script = format!("({ended}; {PROGRAM} config --default; echo $? >&2) | true");
    let output = Command::new("sh").args(["-c", &script]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stderr).trim(), "141");
}

#[test]
fn settings_are_checked_and_told() {
    let folder = tempfile::TempDir::new().unwrap();
    let defaults = text(&run(&["config", "--default"]));
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, &defaults).unwrap();
    let file = file.to_str().unwrap();
    assert!(text(&run(&["config", "--check", "--config", file])).contains("sound"));
    assert_eq!(text(&run(&["config", "--config", file])), text(&run(&["config"])), "the defaults are the defaults");
    let shown = Command::new(PROGRAM).arg("config").env("SENDTRAIL__SERVER__LISTEN", "0.0.0.0:99").output().unwrap();
    assert!(text(&shown).contains("0.0.0.0:99"));
    std::fs::write(file, "[server]\nlisten = \"nowhere\"\n[log]\npartitions = 0\n[moon]\nx = 1\n").unwrap();
    let bad = run(&["config", "--check", "--config", file]);
    assert!(!bad.status.success());
    let told = String::from_utf8_lossy(&bad.stdout);
    assert!(["server.listen", "log.partitions", "moon.x"].iter().all(|part| told.contains(part)), "{told}");
}

#[test]
fn the_demonstration_checks_itself() {
    let demo = run(&["demo", "--count", "5000", "--seed", "7"]);
    let told = text(&demo);
    assert!(told.contains("all equal"), "{told}");
    assert!(told.contains("Dune Outlet"), "{told}");
    let examples = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ses-events.ndjson")).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("{examples}nonsense\n")).unwrap();
    let told = text(&run(&["demo", "--events", file.path().to_str().unwrap()]));
    assert!(told.contains("all equal") && told.contains("PAUSED") && told.contains("1 lines rejected"), "{told}");
}
