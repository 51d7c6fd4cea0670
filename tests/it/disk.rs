//! A device that is full, fails, or has lost something: it is said so, nothing that was acknowledged is lost, and all is well
//! once the cause is gone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use parking_lot::Mutex;
use sendtrail::client::Api;

use super::binary::{ADMIN_KEY, Process, account_with_key};
use super::send::walk;
use super::support::*;

const SETTINGS: [(&str, &str); 3] = [
    ("SENDTRAIL_ADMIN_KEY", ADMIN_KEY),
    ("SENDTRAIL__STATE__CHECKPOINT_MS", "100"),
    ("SENDTRAIL__ARCHIVE__COMMIT_SECONDS", "1"),
];

/// An account on a server, and what the server acknowledged of its events.
struct Teller {
    /// Another one once the server listens elsewhere.
    api: Arc<Mutex<Api>>,
    acknowledged: BTreeSet<String>,
    batches: usize,
}

impl Teller {
    async fn new(base: &str) -> Self {
        let (api, _) = account_with_key(&Api::new(base, ADMIN_KEY)).await;
        Self { api: Arc::new(Mutex::new(api)), acknowledged: BTreeSet::new(), batches: 0 }
    }

    fn on(self, process: &Process) -> Self {
        self.goes_to(&process.base);
        self
    }

    fn goes_to(&self, base: &str) {
        let mut api = self.api.lock();
        *api = Api::new(base, api.key());
    }

    /// Tells some events; the code of the refusal, which is 503, if they are refused.
    async fn tell(&mut self, padding: usize) -> Option<String> {
        let ids: Vec<String> = (0..10).map(|n| format!("{}-{n}", self.batches)).collect();
        self.batches += 1;
        let mut lines = String::new();
        for id in &ids {
            let mut told = event("Send", id);
            told["subject"] = "x".repeat(padding).into();
            lines += &format!("{told}\n");
        }
        let headers = [("content-type", "application/x-ndjson")];
        let api = self.api.lock().clone();
        let reply = api.call(Method::POST, &format!("{PARTNER}/events"), &headers, lines).await.unwrap();
        let told = reply.json();
        if reply.status == 200 {
            assert_eq!(told["accepted"], ids.len(), "{told}");
            self.acknowledged.extend(ids);
            return None;
        }
        assert_eq!(reply.status, 503, "{told}");
        assert!(matches!(told["error"].as_str(), Some("DB_UNAVAILABLE" | "UNAVAILABLE")), "{told}");
        assert!(!told["message"].as_str().unwrap().is_empty());
        Some(told["error"].as_str().unwrap().to_owned())
    }

    /// Tells some events, and comes back for as long as the server is behind.
    async fn tell_all(&mut self, padding: usize) {
        eventually("it takes events", async || self.tell(padding).await.is_none()).await;
    }

    /// Everything that was acknowledged is there, once; what was refused is there at most once.
    async fn check(&self) {
        let (mut log, mut reputation) = (Vec::new(), Value::Null);
        eventually("events can be read", async || {
            let api = self.api.lock().clone();
            let rows = api.rows(&format!("{PARTNER}/events"), "events").await;
            let standing = api.get(&format!("{PARTNER}/reputation")).await;
            match (rows, standing) {
                (Ok(rows), Ok(standing)) => (log, reputation) = (rows, standing),
                _ => return false,
            }
            true
        })
        .await;
        let found: Vec<&str> = log.iter().map(|event| event["message_id"].as_str().unwrap()).collect();
        let distinct: BTreeSet<&str> = found.iter().copied().collect();
        assert_eq!(found.len(), distinct.len(), "nothing twice");
        let lost: Vec<_> = self.acknowledged.iter().filter(|id| !distinct.contains(id.as_str())).collect();
        assert!(lost.is_empty(), "lost: {lost:?}");
        assert_eq!(reputation["sent"], found.len());
    }
}

async fn health(base: &str) -> (u16, String) {
    let reply = Api::new(base, "").call(Method::GET, "/health", &[], "").await.unwrap();
    (reply.status.as_u16(), reply.json().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_fail_are_refused_and_the_next_are_taken() {
    // A full disk (28) and a failing one (5), for some writes each.
    let failing = [("FAILPOINTS", "log.write=60*off->7*return(28)->30*off->7*return(5)->off")];
    let folder = tempfile::TempDir::new().unwrap();
    let process = Process::start(folder.path(), &[&SETTINGS[..], &failing].concat());
    let mut teller = Teller::new(&process.base).await;
    let mut refused = 0;
    for _ in 0..120 {
        refused += usize::from(teller.tell(10).await.is_some());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(refused > 0, "it was never told that the disk is full");
    // The last failures may be still to come, and what waited meanwhile is applied first.
    teller.tell_all(10).await;
    teller.check().await;
    eventually("it is well", async || health(&process.base).await.0 == 200).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_failed_sync_nothing_is_acknowledged_before_a_restart() {
    let failing = [("FAILPOINTS", "log.sync=80*off->1*return(5)->off")];
    let folder = tempfile::TempDir::new().unwrap();
    let mut process = Process::start(folder.path(), &[&SETTINGS[..], &failing].concat());
    let mut teller = Teller::new(&process.base).await;
    let mut refused = 0;
    for _ in 0..2_000 {
        match teller.tell(10).await.as_deref() {
            None => assert_eq!(refused, 0, "what is on the device is in doubt; a second sync would not tell"),
            Some("DB_UNAVAILABLE") => refused += 1,
            // Behind, on a slow machine.
            Some(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
        if refused == 10 {
            break;
        }
    }
    assert_eq!(refused, 10, "the sync failed and nobody was told");
    assert!(!teller.acknowledged.is_empty());
    let (status, told) = health(&process.base).await;
    assert!(status == 503 && told.contains("fsync"), "{told}");
    process.kill();
    let process = Process::start(folder.path(), &SETTINGS);
    let mut teller = teller.on(&process);
    teller.tell_all(10).await;
    teller.check().await;
}

/// What a program said, which a test that fails shows the end of.
struct Said(PathBuf);

impl Drop for Said {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let said = std::fs::read(&self.0).unwrap_or_default();
            println!("{}", String::from_utf8_lossy(&said[said.len().saturating_sub(8 << 10)..]));
        }
        drop(std::fs::remove_file(&self.0));
    }
}

/// The program on a file system of so many megabytes, and its folder there; none where that cannot be had.
fn on_small_disk(
    megabytes: u32,
    checkpoint_ms: &str,
) -> Option<(std::process::Child, PathBuf, Arc<Mutex<String>>, Said)> {
    use std::io::BufRead;
    let folder = tempfile::TempDir::new().unwrap().keep();
    let script = format!(
        "mount -t tmpfs -o size={megabytes}m tmpfs {0} && exec {1} serve --listen 127.0.0.1:0 --data {0}",
        folder.display(),
        env!("CARGO_BIN_EXE_sendtrail")
    );
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", &script]).envs(SETTINGS);
    command.env("SENDTRAIL__LOG__SEGMENT_BYTES", "1048576").env("SENDTRAIL__STATE__CHECKPOINT_MS", checkpoint_ms);
    let said = Said(folder.with_extension("log"));
    let file = std::fs::File::create(&said.0).unwrap();
    let mut child = command.stdout(std::process::Stdio::piped()).stderr(file).spawn().ok()?;
    let mut lines = std::io::BufReader::new(child.stdout.take()?).lines();
    let mut listening = move || lines.find_map(|line| Some(line.ok()?.strip_prefix("listening on ")?.to_owned()));
    let Some(base) = listening() else {
        println!("SKIPPED: file systems cannot be mounted here");
        child.wait().unwrap();
        return None;
    };
    let base = Arc::new(Mutex::new(base));
    let latest = base.clone();
    // It may begin anew.
    std::thread::spawn(move || {
        while let Some(base) = listening() {
            *latest.lock() = base
        }
    });
    let inside = PathBuf::from(format!("/proc/{}/root{}", child.id(), folder.display()));
    Some((child, inside, base, said))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_503_and_all_goes_on_when_there_is_room() {
    // The log is what fails; then, of so much state to be written at once, mostly the store, too.
    for checkpoint_ms in ["100", "1500"] {
        fill_a_disk(checkpoint_ms).await;
    }
}

async fn fill_a_disk(checkpoint_ms: &str) {
    let Some((mut child, folder, base, _said)) = on_small_disk(64, checkpoint_ms) else { return };
    let first = base.lock().clone();
    let mut teller = Teller::new(&first).await;
    for _ in 0..20 {
        teller.tell_all(900).await;
    }
    // Somebody else takes what is left.
    let ballast = folder.join("ballast");
    let mut file = std::fs::File::create(&ballast).unwrap();
    let chunk = vec![1u8; 64 << 10];
    let mut refused = 0;
    for _ in 0..80 {
        // Also what is given back meanwhile.
        while std::io::Write::write_all(&mut file, &chunk).is_ok() {}
        refused += usize::from(teller.tell(900).await.is_some());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(refused > 10, "{refused}: a full disk takes nothing");
    tokio::time::sleep(Duration::from_secs(3)).await;
    drop(file);
    std::fs::remove_file(&ballast).unwrap();
    // It may begin anew, elsewhere, at any moment now.
    let well = async || {
        let base = base.lock().clone();
        teller.goes_to(&base);
        let reply = Api::new(&base, "").call(Method::GET, "/health", &[], "").await;
        reply.is_ok_and(|reply| reply.status == 200)
    };
    eventually("it is well", well).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    eventually("it is still, or again", well).await;
    teller.tell_all(100).await;
    teller.check().await;
    child.kill().unwrap();
    child.wait().unwrap();
}

/// Files of the archive of events.
fn files(data: &Path) -> Vec<PathBuf> {
    let found = walk(&data.join("archive/events"));
    found.into_iter().filter(|path| path.extension().is_some_and(|ending| ending == "parquet")).collect()
}

#[tokio::test]
async fn an_archive_file_that_is_lost_or_damaged_is_an_error_and_never_an_answer() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.archive.commit_seconds = 1;
        // Nothing of it is remembered.
        config.query.cache_bytes = 0;
    })
    .await;
    let partner = server.partner("damaged").await;
    partner.stream(&(0..200).map(|_| partner.event("Send")).collect::<Vec<_>>()).await;
    let data = server.config.data.dir.clone();
    eventually("it is filed", async || server.app.archive().rows >= 200).await;
    let ask = async || partner.call(Method::GET, "/events?limit=1000", &[], "").await;
    let whole = ask().await;
    assert_eq!(whole.json()["events"].as_array().unwrap().len(), 200);
    let file = files(&data).into_iter().max_by_key(|path| std::fs::metadata(path).unwrap().len()).unwrap();
    let kept = std::fs::read(&file).unwrap();
    for what in [Some(kept[..1_000].to_vec()), None] {
        match &what {
            Some(bytes) => std::fs::write(&file, bytes).unwrap(),
            None => std::fs::remove_file(&file).unwrap(),
        }
        let reply = ask().await;
        let told = reply.json();
        assert_eq!(
            (reply.status.as_u16(), &told["error"]),
            (503, &json!("DB_UNAVAILABLE")),
            "{:.500}",
            told.to_string()
        );
        // What needs no file goes on.
        assert_eq!(partner.get("/stats?from=2026-05-01&to=2026-05-02").await["totals"]["sends"], 200);
        partner.stream(&[partner.event("Open")]).await;
    }
    std::fs::write(&file, &kept).unwrap();
    let events = partner.log().await;
    assert_eq!(events.len(), 202);
}
