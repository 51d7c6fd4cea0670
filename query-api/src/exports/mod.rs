//! Exports: files of what an account has, made in the background, sealed, and kept for some days.
//!
//! A job is a folder with `job.json`, which says how far it is after each part; what a crash interrupts is taken up there.

pub mod job;

mod format;
mod making;
mod rows;
mod turns;

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sendtrail_audit::{SealKey, Tree, put_durably};
use sendtrail_eventlog::Clock;
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::secret::hex;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use tokio::sync::Notify;
use uuid::Uuid;

pub use job::{Dataset, Filters, Format, Job, Part, Request, Status};
pub use rows::{Rows, SuppressionPages};

use crate::Error;
use turns::Turns;

/// The seal among the files.
const SEAL: &str = "seal.json";
/// What the name of a folder ends in that is being deleted.
const GONE: &str = "gone";
/// The job itself.
const JOB: &str = "job.json";
/// Held by whoever changes a job.
const CHANGING: &str = "changing.lock";

/// How exports are kept.
pub struct ExportOptions {
    /// Where.
    pub folder: PathBuf,
    /// How long after they are over, milliseconds.
    pub keep: i64,
    /// How many are made at once, each of another account.
    pub at_once: usize,
    /// How many of one account may wait or run.
    pub waiting: usize,
    /// How many of one account are kept, with those that are over.
    pub kept: usize,
    /// Rows of one file at most; what has more gets several.
    pub file_rows: u64,
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
    /// Whose are being made, and whose is next.
    turns: Mutex<Turns>,
    /// One change of a job at a time.
    changing: Mutex<()>,
    more: Notify,
}

impl Exports {
    /// Over a folder.
    pub fn new(options: ExportOptions, rows: Rows, clock: Clock) -> Self {
        let (running, turns, changing) = (Mutex::default(), Mutex::default(), Mutex::default());
        Self { inner: Arc::new(Inner { options, rows, clock, running, turns, changing, more: Notify::new() }) }
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
            self.delete(id).map_err(port)?;
            return Ok(true);
        }
        // Whoever makes it sees this soon, and leaves the job alone.
        let files = std::mem::take(&mut job.files);
        (job.status, job.finished_at) = (Status::Cancelled, Some(self.inner.clock.now()));
        self.keep(&job)?;
        self.forget(id, files.iter().map(|file| file.path.as_str()));
        Ok(true)
    }

    /// Deletes an export. If that is interrupted, the next sweep finds what is left: it does not depend on the job's file.
    fn delete(&self, id: Uuid) -> std::io::Result<()> {
        let folder = self.folder(id);
        let gone = folder.with_extension(GONE);
        fs::rename(folder, &gone)?;
        fs::remove_dir_all(gone)
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
