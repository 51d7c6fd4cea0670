//! The worker that makes exports.

use std::fs;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use metrics::counter;
use sendtrail_audit::{ExportRows, FORMAT, Seal, SealedFile, Subject, hash_file, put_durably};
use sendtrail_schemas::secret::hex;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::format::ExportFile;
use super::{Exports, Format, Job, Part, SEAL, Status, port};
use crate::Error;

/// How often old exports are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How long an archive that another server writes may take to have what was acknowledged.
const SEEN_WITHIN: Duration = Duration::from_secs(900);
/// Held by the server that makes exports, of those that share the folder.
const WORKER: &str = "worker.lock";
/// How long the worker rests after something went wrong.
const REST: Duration = Duration::from_secs(1);
/// How often the worker looks whether its export was cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(500);

impl Exports {
    /// Makes exports, one after the other, until `stop` is cancelled. What is not finished then goes on at the next start.
    pub async fn run(self, stop: CancellationToken) {
        // Told from the start, so that the first failure is seen.
        for name in ["sendtrail_exports_total", "sendtrail_exports_failed_total", "sendtrail_exported_rows_total"] {
            counter!(name).absolute(0);
        }
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
