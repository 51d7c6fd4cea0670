//! Seals, as an auditor sees them: with the binary and with a verifier that has none of our code.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sendtrail_schemas::time::{DAY, HOUR, Millis};

use super::support::python::python_with;
use super::support::*;

fn sendtrail(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sendtrail")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What both verifiers say: whether it holds.
pub struct Verifiers {
    python: Option<PathBuf>,
    key: String,
}

/// How both say that a table is not to be read.
const UNKNOWN: &str = "what is not known here";

impl Verifiers {
    /// For what a server with this folder has sealed.
    pub fn of(data: &Path) -> Self {
        let key = sendtrail(&["seals", "key", "--data", data.to_str().unwrap()]);
        Self { python: python_with("cryptography"), key: said(&key).trim().to_owned() }
    }

    pub fn check(&self, folder: &Path) -> (bool, String) {
        let path = folder.to_str().unwrap();
        let ours = sendtrail(&["verify", path, "--key", &self.key]);
        if let Some(python) = &self.python {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/audit/verify.py");
            let theirs = Command::new(python).arg(script).args([path, &self.key]).output().unwrap();
            assert_eq!(theirs.status.code(), ours.status.code(), "{}{}", said(&theirs), said(&ours));
            assert_eq!(said(&theirs).contains(UNKNOWN), said(&ours).contains(UNKNOWN), "{}", said(&theirs));
            for fault in said(&ours).lines().filter(|line| line.contains("was changed")) {
                assert!(said(&theirs).contains(fault), "{fault}: {}", said(&theirs));
            }
        }
        (ours.status.success(), said(&ours))
    }
}

/// Has a byte of a file be another.
fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn a_day_that_is_over_is_sealed_and_whoever_changes_it_is_found_out() {
    let server = Server::start_with(|config| {
        config.log.simulated = true;
        config.archive.merge_seconds = 1;
        config.archive.commit_seconds = 1;
    })
    .await;
    let partner = server.partner("audit").await;
    let mut told: Vec<Value> = (0..40).map(|_| partner.event("Send")).collect();
    told[0]["tags"] = json!({"campaign": "june", "a": "ä"});
    told[1]["metadata"] = json!({"order": 7});
    told[2]["subject"] = "Hello".into();
    partner.stream(&told).await;
    let mut kinds: Vec<Value> =
        ["HardBounce", "Complaint", "Delivery", "Open", "Click"].map(|kind| partner.event(kind)).to_vec();
    kinds[3]["ip_address"] = "192.0.2.7".into();
    partner.stream(&kinds).await;
    // The next day, but not an hour of it, and then an hour more.
    partner.at(noon().plus(DAY / 2)).stream(&[partner.event("Send")]).await;
    let seals = server.config.data.dir.join("archive/events/_seals");
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert!(!seals.exists(), "the day is not over for an hour");
    let late = partner.on(&server);
    late.at(noon().plus(DAY / 2 + HOUR)).stream(&[partner.event("Send")]).await;
    eventually("the day is sealed", async || seals.join("000001.seal.json").exists()).await;
    let stopped = server.stop().await;

    let data = stopped.config.data.dir.clone();
    let verifiers = Verifiers::of(&data);
    let archive = data.join("archive");
    let table = archive.join("events");
    let (holds, told) = verifiers.check(&table);
    assert!(holds && told.contains("1 seals hold, over 49 rows") && told.contains("2 are not sealed yet"), "{told}");
    assert!(said(&sendtrail(&["verify", archive.to_str().unwrap()])).contains("as the seals say themselves"));
    let line = told.lines().find_map(|line| line.strip_prefix("last seal ")).unwrap();
    let seen = |seen: &str| sendtrail(&["verify", table.to_str().unwrap(), "--seen", seen]).status.success();
    assert!(seen(line) && !seen(&line.replace("1:", "2:")) && !seen(&format!("1:{}", "0".repeat(64))));
    // Another's key, a row that was changed, a signature, a salt.
    let other =
        sendtrail(&["verify", table.to_str().unwrap(), "--key", "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="]);
    assert!(!other.status.success() && said(&other).contains("not signed by"), "{}", said(&other));
    for (file, at) in [("000001.salts", 20), ("000001.seal.json", 200)] {
        flip(&seals.join(file), at);
        assert!(!verifiers.check(&table).0, "{file}");
        flip(&seals.join(file), at);
    }
    let python = "
import sys, pyarrow.parquet as pq, pyarrow as pa, glob
for path in glob.glob(sys.argv[1] + '/dt=2026-05-01/*.parquet'):
    table = pq.ParquetFile(path).read()
    types = table['event_type'].to_pylist()
    if 'Open' in types:
        at = types.index('Open')
        print(table['seq'][at].as_py())
        types[at] = 'Click'
        table = table.set_column(table.schema.get_field_index('event_type'), table.schema.field('event_type'), pa.array(types))
        pq.write_table(table, path)
";
    let Some(interpreter) = &verifiers.python else { return };
    let changed = Command::new(interpreter).args(["-c", python]).arg(&table).output().unwrap();
    let seq = said(&changed).trim().to_owned();
    let (holds, told) = verifiers.check(&table);
    assert!(!holds && told.contains(&format!("seq {seq}: the row was changed")), "{seq}: {told}");
    assert_eq!(told.matches("FAULT").count(), 1, "{told}");
    // Somebody else's program has the table need what is not known here: what its files hold is not what it has.
    let python = "
import sys
from deltalake import DeltaTable, TableFeatures
DeltaTable(sys.argv[1]).alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
";
    let altered = Command::new(interpreter).args(["-c", python]).arg(&table).output().unwrap();
    assert!(altered.status.success(), "{}", said(&altered));
    let (holds, told) = verifiers.check(&table);
    assert!(!holds && told.contains(UNKNOWN), "{told}");
}

#[tokio::test]
async fn attempts_at_webhooks_are_sealed_like_events() {
    let server = Server::start_with(|config| config.log.simulated = true).await;
    let receiver = Receiver::start_ok().await;
    let partner = server.partner("told").await;
    let set = partner.set(json!({"name": "main"})).await;
    let destination =
        json!({"webhook_url": format!("{}/told", receiver.base), "dialect": "standard", "generate_secret": true});
    partner.destination(&set, destination).await;
    let in_set = || {
        let mut event = partner.event("Send");
        event["configuration_set_name"] = "main".into();
        event
    };
    partner.stream(&[in_set(), in_set(), in_set()]).await;
    receiver.wait("/told", 3).await;
    let delivered = async || {
        let log = partner.log().await;
        log.iter().filter(|event| event["deliveries"][0]["status"] == "delivered").count()
    };
    eventually("all are delivered", async || delivered().await == 3).await;
    // Attempts are filed by the clock of the machine that made them: its day must be over, for events, too.
    partner.at(Millis::wall()).stream(&[partner.event("Send")]).await;
    partner.at(Millis::wall().plus(2 * DAY)).stream(&[partner.event("Send")]).await;
    let archive = server.config.data.dir.join("archive");
    let table = archive.join("attempts");
    eventually("attempts are sealed", async || table.join("_seals/000001.seal.json").exists()).await;
    // Another sealer's.
    eventually("and both days of events", async || archive.join("events/_seals/000002.seal.json").exists()).await;
    let stopped = server.stop().await;

    let verifiers = Verifiers::of(&stopped.config.data.dir);
    let (holds, told) = verifiers.check(&table);
    assert!(holds && told.contains("1 seals hold, over 3 rows"), "{told}");
    let whole = || sendtrail(&["verify", archive.to_str().unwrap(), "--key", &verifiers.key]);
    let told = whole();
    assert!(
        told.status.success() && said(&told).matches("everything is as it was sealed").count() == 2,
        "{}",
        said(&told)
    );
    if let Some(interpreter) = &verifiers.python {
        let python = "
import sys, pyarrow.parquet as pq, pyarrow as pa, glob
path, = glob.glob(sys.argv[1] + '/dt=*/*.parquet')
table = pq.ParquetFile(path).read()
codes = table['status_code'].to_pylist()
print(table['offset'][1].as_py())
codes[1] = 500
at = table.schema.get_field_index('status_code')
pq.write_table(table.set_column(at, table.schema.field(at), pa.array(codes, pa.int64())), path)
";
        let changed = Command::new(interpreter).args(["-c", python]).arg(&table).output().unwrap();
        let offset = said(&changed).trim().to_owned();
        let (holds, told) = verifiers.check(&table);
        assert!(!holds && told.contains(&format!("offset {offset}: the row was changed")), "{offset}: {told}");
        assert!(!whole().status.success());
    }
    // Whoever takes all seals of a table away, or the table, is found out by those of the other.
    let aside = archive.join("aside");
    for name in ["events", "attempts"] {
        std::fs::rename(archive.join(name), &aside).unwrap();
        let told = whole();
        assert!(!told.status.success() && said(&told).contains("which every archive has"), "{}", said(&told));
        std::fs::rename(&aside, archive.join(name)).unwrap();
    }
    let seals = archive.join("events/_seals");
    std::fs::rename(&seals, &aside).unwrap();
    assert!(said(&whole()).contains("there are no seals, and there are rows of"));
    std::fs::rename(&aside, &seals).unwrap();
    std::fs::remove_dir_all(table.join("_seals")).unwrap();
    let told = whole();
    assert!(
        !told.status.success() && said(&told).contains("there are no seals, and there are rows of"),
        "{}",
        said(&told)
    );
}
