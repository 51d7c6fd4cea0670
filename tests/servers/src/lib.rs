//! The real servers that tests talk to. Each is started at most once per test program, on free ports, in a folder that
//! is deleted, and ends with the program.
//!
//! Where one cannot be started the tests that need it are skipped, loudly; with `CI=true` that is a failure.

use std::io::{Read as _, Seek as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long a server may take to answer; the first start downloads it.
const PATIENCE: Duration = Duration::from_secs(600);

/// A server that lives as long as its standard input is open: until it is dropped or this program ends, however it does.
pub struct Server {
    address: String,
    _process: Child,
    folder: TempDir,
}

impl Server {
    /// A broker that nobody else uses, so that a test may disturb it. None where there is no Java.
    ///
    /// # Panics
    /// When it cannot be had and `CI` is set.
    pub fn kafka() -> Option<Self> {
        Self::start_kafka(&[])
    }

    /// The same, for clients with TLS and these credentials only, `user:password`.
    ///
    /// # Panics
    /// When it cannot be had and `CI` is set.
    pub fn secure_kafka(credentials: &str) -> Option<Self> {
        Self::start_kafka(&["--secure", credentials])
    }

    /// The same, for clients only with a token of OAUTHBEARER that has this scope; nobody need sign it.
    ///
    /// # Panics
    /// When it cannot be had and `CI` is set.
    pub fn bearer_kafka(scope: &str) -> Option<Self> {
        Self::start_kafka(&["--bearer", scope])
    }

    fn start_kafka(arguments: &[&str]) -> Option<Self> {
        started("Apache Kafka", start("kafka", &["java", "mvn"], arguments))
    }

    /// The certificate that vouches for a secure server.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Its host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Sends a signal, such as `-STOP`, to the server itself.
    ///
    /// # Panics
    /// When there is no such process.
    pub fn signal(&self, name: &str) {
        let pid = std::fs::read_to_string(self.folder.path().join("server.pid")).unwrap_or_default();
        let sent = Command::new("kill").args([name, pid.trim()]).status();
        assert!(sent.is_ok_and(|status| status.success()), "kill {name} {pid}");
    }
}

/// The address of an Apache Kafka broker: `SENDTRAIL_TEST_KAFKA`, or one of our own. None where there is no Java.
///
/// # Panics
/// When it cannot be had and `CI` is set.
pub fn kafka() -> Option<&'static str> {
    static BROKER: Shared = Shared::new();
    shared(&BROKER, "SENDTRAIL_TEST_KAFKA", Server::kafka)
}

/// The host and port of a ClickHouse engine's HTTP interface: `SENDTRAIL_TEST_CLICKHOUSE`, or one of our own. None where
/// there is no Python.
///
/// # Panics
/// When it cannot be had and `CI` is set.
pub fn clickhouse() -> Option<&'static str> {
    static ENGINE: Shared = Shared::new();
    let start = || started("ClickHouse", start("clickhouse", &["python3"], &[]));
    shared(&ENGINE, "SENDTRAIL_TEST_CLICKHOUSE", start)
}

/// The host and port of an object store that speaks S3's protocol, in which a bucket `sendtrail` is, and which fails half of the
/// time, by 500 and 503, also after it did what it was asked. None where there is no Python.
///
/// # Panics
/// When it cannot be had and `CI` is set.
pub fn unreliable_s3() -> Option<&'static str> {
    static STORE: Shared = Shared::new();
    let start = || started("S3", start("s3", &["python3"], &["--unreliable"]));
    shared(&STORE, "SENDTRAIL_TEST_UNRELIABLE_S3", start)
}

/// A server for all tests of this program: where it is, and the server itself if it is our own.
type Shared = OnceLock<Option<(String, Option<Server>)>>;

fn shared(once: &'static Shared, variable: &str, start: impl FnOnce() -> Option<Server>) -> Option<&'static str> {
    let there = once.get_or_init(|| match std::env::var(variable) {
        Ok(address) => Some((address, None)),
        Err(_) => start().map(|server| (server.address.clone(), Some(server))),
    });
    there.as_ref().map(|(address, _)| address.as_str())
}

fn started(what: &str, outcome: Result<Server, String>) -> Option<Server> {
    outcome.map_err(|why| skipped(what, &why)).ok()
}

#[expect(clippy::print_stdout, reason = "that tests are skipped must be seen")]
fn skipped(what: &str, why: &str) {
    assert!(std::env::var_os("CI").is_none(), "{what} could not be started: {why}");
    println!("SKIPPED: tests that need {what}: {why}");
}

fn start(script: &str, needs: &[&str], further: &[&str]) -> Result<Server, String> {
    if let Some(missing) = needs.iter().find(|program| !is_there(program)) {
        return Err(format!("there is no {missing}"));
    }
    let script = local().join(script);
    // A port that was free may be taken before the server has it.
    let mut why = String::new();
    for _ in 0..3 {
        match start_at(&script, free_pair()?, further) {
            Ok(server) => return Ok(server),
            Err(cause) => why = cause,
        }
    }
    Err(why)
}

fn start_at(script: &Path, port: u16, further: &[&str]) -> Result<Server, String> {
    let told = |cause: std::io::Error| format!("{}: {cause}", script.display());
    let folder = TempDir::new().map_err(told)?;
    let mut log = tempfile::tempfile().map_err(told)?;
    let mut process = Command::new(script)
        .args(further)
        .args(["--port", &port.to_string(), "--while-stdin-is-open", "--data"])
        .arg(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(log.try_clone().map_err(told)?)
        .spawn()
        .map_err(told)?;
    let address = format!("127.0.0.1:{port}");
    let begun = Instant::now();
    let outcome = loop {
        // Whether it ended is asked first: what answers may be somebody else, who has its port.
        if let Ok(Some(status)) = process.try_wait() {
            break format!("ended with {status}");
        }
        if TcpStream::connect(&address).is_ok() {
            return Ok(Server { address, _process: process, folder });
        }
        if begun.elapsed() > PATIENCE {
            break format!("did not answer in {PATIENCE:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let mut said = String::new();
    log.rewind().and_then(|()| log.read_to_string(&mut said)).map_err(told)?;
    let last = said.lines().count().saturating_sub(20);
    let last: Vec<&str> = said.lines().skip(last).collect();
    Err(format!("{} {outcome}: {}", script.display(), last.join("\n")))
}

fn local() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docker/local")
}

fn is_there(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// A free port whose successor is free too, below those that the system gives to outgoing connections: of those one
/// may be taken at any moment.
fn free_pair() -> Result<u16, String> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const FIRST: u16 = 20_000;
    const PAIRS: u16 = 6_000;
    let begin = u16::try_from(std::process::id() % u32::from(PAIRS)).unwrap_or_default();
    for _ in 0..PAIRS {
        let pair = (begin + NEXT.fetch_add(1, Ordering::Relaxed) % PAIRS) % PAIRS;
        let port = FIRST + 2 * pair;
        if [port, port + 1].into_iter().all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok()) {
            return Ok(port);
        }
    }
    Err("no two free ports".into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn ask(address: &str, path: &str, body: &str) -> (String, String) {
        let mut stream = TcpStream::connect(address).unwrap();
        let length = body.len();
        let request =
            format!("POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
    }

    #[test]
    fn a_broker_that_cannot_have_its_ports_ends_and_says_why() {
        if !is_there("java") || !is_there("mvn") {
            return;
        }
        let port = free_pair().unwrap();
        let _taken = TcpListener::bind(("127.0.0.1", port + 1)).unwrap();
        let why = start_at(&local().join("kafka"), port, &[]).map(|server| server.address).unwrap_err();
        assert!(why.contains("ended with") && why.contains("in use"), "{why}");
    }

    #[test]
    fn the_engine_deduplicates_by_token_and_binds_parameters() {
        let Some(address) = clickhouse() else { return };
        let table = "CREATE TABLE t (n UInt64, s String) ENGINE = MergeTree ORDER BY n \
                     SETTINGS non_replicated_deduplication_window = 100";
        assert!(ask(address, "/", table).0.starts_with("HTTP/1.1 200"));
        for token in ["one", "one", "two"] {
            let path = format!("/?query=INSERT%20INTO%20t%20FORMAT%20TabSeparated&insert_deduplication_token={token}");
            let (head, body) = ask(address, &path, "1\tx\n2\ty\n");
            assert!(head.starts_with("HTTP/1.1 200"), "{body}");
        }
        assert_eq!(ask(address, "/", "SELECT count() FROM t").1, "4\n", "what has the same token is there once");
        let (_, found) =
            ask(address, "/?param_n=2&default_format=JSONEachRow", "SELECT DISTINCT s FROM t WHERE n = {n:UInt64}");
        assert_eq!(found, "{\"s\":\"y\"}\n");
        let (head, told) = ask(address, "/", "SELECT nothing");
        assert!(head.contains("500") && head.contains("X-ClickHouse-Exception-Code: 47"), "{head} {told}");
    }
}
