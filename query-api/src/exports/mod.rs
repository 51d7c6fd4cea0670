//! Exports: files of what an account has, made in the background, sealed, and kept for some days.
//!
//! A job is a folder with `job.json`, which says how far it is after each part; what a crash interrupts is taken up there.

pub mod job;

mod format;
mod rows;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use hmac::{Hmac, KeyInit, Mac};
use metrics::counter;
use parking_lot::Mutex;
use sendtrail_audit::{ExportRows, FORMAT, Seal, SealKey, SealedFile, Subject, Tree, hash_file, put_durably};
use sendtrail_eventlog::Clock;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::secret::hex;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

pub use job::{Dataset, Filters, Format, Job, Part, Request, Status};
pub use rows::{Rows, SuppressionPages};

use crate::Error;
use format::ExportFile;

/// How often old exports are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How long an archive that another server writes may take to have what was acknowledged.
const SEEN_WITHIN: Duration = Duration::from_secs(900);
/// The seal among the files.
const SEAL: &str = "seal.json";
const JOB: &str = "job.json";
/// Held by the server that makes exports, of those that share the folder; and by whoever changes a job.
const WORKER: &str = "worker.lock";
const CHANGING: &str = "changing.lock";
/// How long the worker rests after something went wrong.
const REST: Duration = Duration::from_secs(1);
/// How often the worker looks whether its export was cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How exports are kept.
pub struct ExportOptions {
    /// Where.
    pub folder: PathBuf,
    /// How long after they are over, milliseconds.
    pub keep: i64,
    /// How many of one account may wait or run.
    pub waiting: usize,
    /// How many of one account are kept, with those that are over.
    pub kept: usize,
    /// How long links to files hold, milliseconds.
    pub links_hold: i64,
    /// Signs links.
    pub link_key: [u8; 32],
    /// Signs seals.
    pub seal_key: Arc<SealKey>,
}

/// Who asks: an account, or the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// An account.
    Account(AccountId),
    /// The operator.
    Operator,
}

/// The exports of a server.
#[derive(Clone)]
pub struct Exports {
    inner: Arc<Inner>,
}

struct Inner {
    options: ExportOptions,
    rows: Rows,
    clock: Clock,
    /// Rows of the part that is being made, by export.
    running: Mutex<HashMap<Uuid, u64>>,
    /// One change of a job at a time.
    changing: Mutex<()>,
    more: Notify,
}

impl Exports {
    /// Over a folder.
    pub fn new(options: ExportOptions, rows: Rows, clock: Clock) -> Self {
        let inner =
            Inner { options, rows, clock, running: Mutex::default(), changing: Mutex::default(), more: Notify::new() };
        Self { inner: Arc::new(inner) }
    }

    fn folder(&self, id: Uuid) -> PathBuf {
        self.inner.options.folder.join(id.to_string())
    }

    fn read(&self, id: Uuid) -> Option<Job> {
        let bytes = fs::read(self.folder(id).join(JOB)).ok()?;
        match serde_json::from_slice(&bytes) {
            Ok(job) => Some(job),
            Err(error) => {
                tracing::error!(%error, export = %id, "an export's job cannot be read");
                None
            }
        }
    }

    fn keep(&self, job: &Job) -> Result<(), Error> {
        let bytes = serde_json::to_vec_pretty(job).map_err(|cause| Error::Port(cause.to_string()))?;
        put_durably(&self.folder(job.export_id).join(JOB), &bytes).map_err(port)
    }

    /// Every job that somebody may see, the newest first.
    ///
    /// # Errors
    /// [`Error::Port`]: the folder cannot be read.
    pub fn list(&self, asker: Option<Asker>) -> Result<Vec<Job>, Error> {
        let folder = &self.inner.options.folder;
        if !folder.is_dir() {
            return Ok(Vec::new());
        }
        let mut jobs = Vec::new();
        for entry in fs::read_dir(folder).map_err(port)? {
            let name = entry.map_err(port)?.file_name();
            let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            jobs.extend(self.read(id).filter(|job| asker.is_none_or(|asker| may_see(job, asker))));
        }
        jobs.sort_by_key(|job| std::cmp::Reverse((job.created_at, job.export_id)));
        Ok(jobs)
    }

    /// A job, and the rows of its part that is being made.
    pub fn get(&self, asker: Asker, id: Uuid) -> Option<(Job, u64)> {
        let job = self.read(id).filter(|job| may_see(job, asker))?;
        let running = self.inner.running.lock().get(&id).copied().unwrap_or_default();
        Some((job, running))
    }

    /// Has nobody else change a job, in this process or another.
    fn changing(&self) -> Result<Changing<'_>, Error> {
        let here = self.inner.changing.lock();
        let file = self.lock_file(CHANGING)?;
        file.lock().map_err(port)?;
        Ok(Changing { _here: here, _everywhere: file })
    }

    fn lock_file(&self, name: &str) -> Result<fs::File, Error> {
        let folder = &self.inner.options.folder;
        fs::create_dir_all(folder).map_err(port)?;
        fs::OpenOptions::new().create(true).append(true).open(folder.join(name)).map_err(port)
    }

    /// Takes a job in.
    ///
    /// # Errors
    /// `RATE_LIMITED`: enough of this account wait, or are kept.
    pub fn start(&self, asker: Asker, account: Option<AccountId>, request: Request) -> Result<Job, Problem> {
        let _turn = self.changing()?;
        let known = self.list(Some(asker))?;
        if known.len() >= self.inner.options.kept {
            let why = format!("{} exports are kept; delete some", known.len());
            return Err(Problem::new(Code::RateLimited, why).retry_after(3_600));
        }
        let waiting = known.iter().filter(|job| !job.status.is_over()).count();
        if waiting >= self.inner.options.waiting {
            let why = format!("{waiting} exports are under way; wait for one, or cancel it");
            return Err(Problem::new(Code::RateLimited, why).retry_after(30));
        }
        let job = Job {
            export_id: uuid::Builder::from_random_bytes(rand::random()).into_uuid(),
            account_id: account.map(|account| account.0),
            operators: asker == Asker::Operator,
            request,
            status: Status::Queued,
            created_at: self.inner.clock.now(),
            finished_at: None,
            parts_done: 0,
            rows: 0,
            files: Vec::new(),
            tree: Tree::default(),
            error: None,
        };
        self.keep(&job)?;
        self.inner.more.notify_one();
        Ok(job)
    }

    /// Ends a job that is under way, or deletes one that is over; false: there is none.
    ///
    /// # Errors
    /// [`Error::Port`].
    pub fn remove(&self, asker: Asker, id: Uuid) -> Result<bool, Error> {
        let _turn = self.changing()?;
        let Some(mut job) = self.read(id).filter(|job| may_see(job, asker)) else { return Ok(false) };
        if job.status.is_over() {
            fs::remove_dir_all(self.folder(id)).map_err(port)?;
            return Ok(true);
        }
        // Whoever makes it sees this soon, and leaves the job alone.
        let files = std::mem::take(&mut job.files);
        (job.status, job.finished_at) = (Status::Cancelled, Some(self.inner.clock.now()));
        self.keep(&job)?;
        self.forget(id, files.iter().map(|file| file.path.as_str()));
        Ok(true)
    }

    /// Deletes files of an export that nobody wants any more.
    fn forget<'a>(&self, id: Uuid, names: impl Iterator<Item = &'a str>) {
        for name in names {
            // What stays goes with its folder.
            drop(fs::remove_file(self.folder(id).join(name)));
        }
    }

    /// Where a file of a finished export is.
    pub fn file(&self, job: &Job, name: &str) -> Option<PathBuf> {
        let known = job.status == Status::Done && (name == SEAL || job.files.iter().any(|file| file.path == name));
        known.then(|| self.folder(job.export_id).join(name))
    }

    /// The finished export of a link that holds.
    pub fn linked(&self, id: Uuid, name: &str, expires: i64, signature: &str) -> Option<PathBuf> {
        let holds = bool::from(self.signature(id, name, expires).as_bytes().ct_eq(signature.as_bytes()));
        if !holds || expires.saturating_mul(1_000) <= self.inner.clock.now().0 {
            return None;
        }
        self.file(&self.read(id)?, name)
    }

    /// A link to a file of an export, for whoever has it, as long as it holds.
    pub fn link(&self, id: Uuid, name: &str) -> String {
        let expires = self.inner.clock.now().plus(self.inner.options.links_hold).0 / 1_000;
        let signature = self.signature(id, name, expires);
        format!("/api/v1/exports/{id}/files/{name}?expires={expires}&signature={signature}")
    }

    fn signature(&self, id: Uuid, name: &str, expires: i64) -> String {
        let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(&self.inner.options.link_key) else {
            unreachable!("HMAC takes keys of every length")
        };
        mac.update(format!("{id}\n{name}\n{expires}").as_bytes());
        hex(&mac.finalize().into_bytes())
    }

    /// Makes exports, one after the other, until `stop` is cancelled. What is not finished then goes on at the next start.
    pub async fn run(self, stop: CancellationToken) {
        let mut swept = None::<tokio::time::Instant>;
        // Of the servers that share a folder one makes exports, as long as it lives.
        let mut worker: Option<fs::File> = None;
        while !stop.is_cancelled() {
            if worker.is_none() {
                worker = self.lock_file(WORKER).ok().filter(|file| file.try_lock().is_ok());
            }
            let rest = match worker.is_some() {
                false => SWEEP_EVERY / 60,
                true => {
                    let sweeps = swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY);
                    swept = if sweeps { Some(tokio::time::Instant::now()) } else { swept };
                    let (exports, handle, stopping) = (self.clone(), Handle::current(), stop.clone());
                    let turn = tokio::task::spawn_blocking(move || exports.turn(sweeps, &handle, &stopping)).await;
                    match turn {
                        Ok(Some(true)) => continue,
                        Ok(Some(false)) | Err(_) => REST,
                        Ok(None) => SWEEP_EVERY,
                    }
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.inner.more.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Makes the export that waits longest; whether that went well, and none if there is none.
    fn turn(&self, sweeps: bool, handle: &Handle, stop: &CancellationToken) -> Option<bool> {
        if sweeps {
            self.sweep();
        }
        let job = self.next()?;
        let id = job.export_id;
        // A panic in one is its failure, and not that of the next.
        let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.make(job, handle, stop)));
        self.inner.running.lock().remove(&id);
        let error = match made {
            Ok(Ok(())) => return Some(true),
            Ok(Err(error)) => error,
            Err(_) => Error::Port("making an export panicked".into()),
        };
        counter!("sendtrail_exports_failed_total").increment(1);
        tracing::error!(%error, export = %id, "an export failed");
        if let Err(error) = self.fail(id, &error) {
            tracing::error!(%error, export = %id, "an export's failure cannot be kept");
        }
        Some(false)
    }

    /// The job that waits longest.
    fn next(&self) -> Option<Job> {
        let jobs = self.list(None).inspect_err(|error| tracing::error!(%error, "exports cannot be read")).ok()?;
        jobs.into_iter().rfind(|job| !job.status.is_over())
    }

    fn fail(&self, id: Uuid, error: &Error) -> Result<(), Error> {
        let _turn = self.changing()?;
        let Some(mut job) = self.read(id).filter(|job| !job.status.is_over()) else { return Ok(()) };
        let files = std::mem::take(&mut job.files);
        (job.status, job.finished_at) = (Status::Failed, Some(self.inner.clock.now()));
        job.error = Some(error.to_string());
        self.keep(&job)?;
        self.forget(id, files.iter().map(|file| file.path.as_str()));
        Ok(())
    }

    /// Makes what is left of a job.
    fn make(&self, mut job: Job, handle: &Handle, stop: &CancellationToken) -> Result<(), Error> {
        let folder = self.folder(job.export_id);
        let parts = job.request.parts();
        if !self.go_on(&mut job, |job| job.status = Status::Running)? || !self.is_seen(&job, handle, stop)? {
            return Ok(());
        }
        while let Some(part) = parts.get(job.parts_done) {
            if stop.is_cancelled() {
                return Ok(());
            }
            let name = format!("{}.{}", part.name, job.request.format.ending());
            let path = folder.join(&name);
            let mut hashed = ExportRows::after(job.tree.clone());
            let Some(rows) = self.write(&job, part, &path, &mut hashed, handle, stop)? else {
                return Ok(());
            };
            let mut files = job.files.clone();
            if rows > 0 {
                let (sha256, bytes) = hash_file(&path).map_err(port)?;
                files.push(SealedFile { path: name, rows, bytes, sha256 });
            }
            let tree = hashed.tree().clone();
            let goes_on = self.go_on(&mut job, |job| {
                (job.files, job.tree) = (files, tree);
                job.rows += rows;
                job.parts_done += 1;
            })?;
            if !goes_on {
                // Files that were known are gone; this one is not yet.
                drop(fs::remove_file(path));
                return Ok(());
            }
        }
        let now = self.inner.clock.now();
        let mut sealed = Ok(());
        let done = self.go_on(&mut job, |job| {
            sealed = self.seal(job);
            if sealed.is_ok() {
                (job.status, job.finished_at) = (Status::Done, Some(now));
            }
        })?;
        sealed?;
        if done {
            counter!("sendtrail_exports_total").increment(1);
            counter!("sendtrail_exported_rows_total").increment(job.rows);
        }
        Ok(())
    }

    /// Waits until the archive here has what was there when the job was asked for; false: the server stops.
    fn is_seen(&self, job: &Job, handle: &Handle, stop: &CancellationToken) -> Result<bool, Error> {
        let analytics = &self.inner.rows.sums.1;
        let begun = std::time::Instant::now();
        while analytics.as_of().is_some_and(|as_of| as_of < job.created_at) {
            if begun.elapsed() > SEEN_WITHIN {
                return Err(Error::Port("the archive that this server sees is behind".into()));
            }
            let stops =
                handle.block_on(async { tokio::time::timeout(Duration::from_secs(1), stop.cancelled()).await.is_ok() });
            if stops {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Changes a job and keeps it, unless it was cancelled; whether it goes on.
    fn go_on(&self, job: &mut Job, change: impl FnOnce(&mut Job)) -> Result<bool, Error> {
        let _turn = self.changing()?;
        if !self.goes_on(job.export_id) {
            return Ok(false);
        }
        change(job);
        self.keep(job)?;
        Ok(true)
    }

    /// Whether a job is there and not over: its owner may have ended it, or deleted it.
    fn goes_on(&self, id: Uuid) -> bool {
        self.read(id).is_some_and(|job| !job.status.is_over())
    }

    /// Writes a part; how many rows it has. None: the job was cancelled, or the server stops.
    fn write(
        &self,
        job: &Job,
        part: &Part,
        path: &Path,
        hashed: &mut ExportRows,
        handle: &Handle,
        stop: &CancellationToken,
    ) -> Result<Option<u64>, Error> {
        let mut batches = handle.block_on(self.inner.rows.of(job, part))?;
        let mut file: Option<ExportFile> = None;
        let mut rows = 0;
        let mut looked = std::time::Instant::now();
        while let Some(batch) = handle.block_on(batches.next()) {
            let batch = batch?;
            let looks = looked.elapsed() >= LOOK_EVERY;
            if looks {
                looked = std::time::Instant::now();
            }
            if stop.is_cancelled() || looks && !self.goes_on(job.export_id) {
                drop(fs::remove_file(path.with_extension("writing")));
                return Ok(None);
            }
            if job.request.format == Format::Parquet {
                hashed.take(&batch).map_err(port)?;
            }
            let writing = match &mut file {
                Some(file) => file,
                None => file.insert(ExportFile::begin(path.to_owned(), job.request.format, &batch.schema())?),
            };
            writing.write(&batch)?;
            rows += batch.num_rows() as u64;
            self.inner.running.lock().insert(job.export_id, rows);
        }
        if let Some(file) = file {
            file.finish()?;
        }
        self.inner.running.lock().remove(&job.export_id);
        Ok(Some(rows))
    }

    fn seal(&self, job: &Job) -> Result<(), Error> {
        let request = serde_json::to_value(&job.request).map_err(|cause| Error::Port(cause.to_string()))?;
        let seal = Seal {
            number: 1,
            previous: None,
            sealed_at: self.inner.clock.now().to_string(),
            subject: Subject::Export {
                dataset: job.request.dataset.name().to_owned(),
                export_id: job.export_id.to_string(),
                account_id: job.account_id.map(|account| account.to_string()),
                request,
            },
            schema_version: 1,
            personal: Vec::new(),
            rows: job.rows,
            root: (job.request.format == Format::Parquet).then(|| hex(&job.tree.root())),
            leaves_sha256: None,
            files: job.files.clone(),
        };
        let envelope = self.inner.options.seal_key.sign(FORMAT, &seal).map_err(port)?;
        let bytes = serde_json::to_vec_pretty(&envelope).map_err(|cause| Error::Port(cause.to_string()))?;
        put_durably(&self.folder(job.export_id).join(SEAL), &bytes).map_err(port)
    }

    /// Deletes what is over for long enough.
    fn sweep(&self) {
        let Ok(_turn) = self.changing() else { return };
        let old = self.inner.clock.now().plus(-self.inner.options.keep);
        for job in self.list(None).unwrap_or_default() {
            if job.finished_at.is_some_and(|at| at <= old)
                && let Err(error) = fs::remove_dir_all(self.folder(job.export_id))
            {
                tracing::warn!(%error, export = %job.export_id, "an old export could not be deleted");
            }
        }
    }
}

/// Nobody else changes a job meanwhile.
struct Changing<'a> {
    _here: parking_lot::MutexGuard<'a, ()>,
    /// Locked until it is closed.
    _everywhere: fs::File,
}

fn port(cause: impl std::fmt::Display) -> Error {
    Error::Port(format!("exports: {cause}"))
}

fn may_see(job: &Job, asker: Asker) -> bool {
    match asker {
        Asker::Operator => job.operators,
        Asker::Account(account) => !job.operators && job.account_id == Some(account.0),
    }
}
