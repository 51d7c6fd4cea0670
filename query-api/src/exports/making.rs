//! The worker that makes exports.

use std::fs;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use metrics::counter;
use sendtrail_audit::{ExportRows, FORMAT, Seal, SealedFile, Subject, hash_file, put_durably};
use sendtrail_schemas::secret::hex;
use sendtrail_schemas::time::Millis;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::format::ExportFile;
use super::turns::Owner;
use super::{Exports, Format, GONE, Job, Part, SEAL, Status, port};
use crate::Error;

/// How often old exports are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);
/// How long the archive may take to have what was acknowledged, also one that another server writes.
const SEEN_WITHIN: Duration = Duration::from_secs(300);
/// Held by the server that makes exports, of those that share the folder.
const WORKER: &str = "worker.lock";
/// How often it is looked for exports that another server took in.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How long the worker rests after something went wrong.
const REST: Duration = Duration::from_secs(1);
/// How often the worker looks whether its export was cancelled.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// An owner's turn.
struct Turn<'a> {
    exports: &'a Exports,
    owner: Owner,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.exports.inner.turns.lock().end(self.owner);
    }
}

impl Exports {
    /// Makes exports, some at once, until `stop` is cancelled. What is not finished then goes on at the next start.
    pub async fn run(self, stop: CancellationToken) {
        // Told from the start, so that the first failure is seen.
        for name in ["sendtrail_exports_total", "sendtrail_exports_failed_total", "sendtrail_exported_rows_total"] {
            counter!(name).absolute(0);
        }
        let Some(_worker) = self.worker(&stop).await else { return };
        let workers = (0..self.inner.options.at_once.max(1)).map(|worker| self.clone().work(worker == 0, stop.clone()));
        futures::future::join_all(workers).await;
    }

    /// Waits for its turn: of the servers that share a folder one makes exports, as long as it lives. `None`: this one stops.
    async fn worker(&self, stop: &CancellationToken) -> Option<fs::File> {
        loop {
            if let Some(worker) = self.lock_file(WORKER).ok().filter(|file| file.try_lock().is_ok()) {
                return Some(worker);
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(SWEEP_EVERY / 60) => {}
            }
        }
    }

    /// Makes one export after the other.
    async fn work(self, sweeps: bool, stop: CancellationToken) {
        let mut swept = None::<tokio::time::Instant>;
        while !stop.is_cancelled() {
            let sweeps = sweeps && swept.is_none_or(|at| at.elapsed() >= SWEEP_EVERY);
            swept = if sweeps { Some(tokio::time::Instant::now()) } else { swept };
            let (exports, handle, stopping) = (self.clone(), Handle::current(), stop.clone());
            let turn = tokio::task::spawn_blocking(move || exports.turn(sweeps, &handle, &stopping)).await;
            let rest = match turn {
                Ok(Some(true)) => continue,
                Ok(Some(false)) | Err(_) => REST,
                Ok(None) => LOOK_AGAIN,
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = self.inner.more.notified() => {}
                () = tokio::time::sleep(rest) => {}
            }
        }
    }

    /// Makes the export whose turn it is; whether that went well, and none if there is none.
    fn turn(&self, sweeps: bool, handle: &Handle, stop: &CancellationToken) -> Option<bool> {
        if sweeps {
            self.sweep();
        }
        let (job, _turn) = self.next()?;
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

    /// The job to make, and its owner's turn.
    fn next(&self) -> Option<(Job, Turn<'_>)> {
        loop {
            let jobs = self.list(None).inspect_err(|error| tracing::error!(%error, "exports cannot be read")).ok()?;
            let waiting = jobs.iter().rev().filter(|job| !job.status.is_over());
            let waiting: Vec<_> = waiting.map(|job| (job.owner(), job.export_id)).collect();
            let (owner, id) = self.inner.turns.lock().begin(&waiting)?;
            let turn = Turn { exports: self, owner };
            // Another worker may have made it since they were listed.
            if let Some(job) = self.read(id).filter(|job| !job.status.is_over()) {
                return Some((job, turn));
            }
            self.inner.turns.lock().waive(owner);
        }
    }

    fn fail(&self, id: Uuid, error: &Error) -> Result<(), Error> {
        let _turn = self.changing()?;
        let Some(mut job) = self.read(id).filter(|job| !job.status.is_over()) else { return Ok(()) };
        let files = std::mem::take(&mut job.files);
        (job.status, job.finished_at) = (Status::Failed, Some(self.inner.clock.now()));
        job.error = Some(error.to_string());
        self.keep(&job)?;
        self.forget(id, files.iter().map(|file| file.path.as_str()));
        // Of days without rows not every one is noted, so the one that failed may come later.
        job.request.parts().get(job.parts_done..).into_iter().flatten().for_each(|part| self.clear(&job, part));
        Ok(())
    }

    /// Makes what is left of a job.
    fn make(&self, mut job: Job, handle: &Handle, stop: &CancellationToken) -> Result<(), Error> {
        let parts = job.request.parts();
        if !self.go_on(&mut job, |job| job.status = Status::Running)? || !self.is_seen(&job, handle, stop)? {
            return Ok(());
        }
        let mut kept = std::time::Instant::now();
        while let Some(part) = parts.get(job.parts_done) {
            if stop.is_cancelled() {
                return Ok(());
            }
            self.clear(&job, part);
            let mut hashed = ExportRows::after(job.tree.clone());
            let Some(files) = self.write(&job, part, &mut hashed, handle, stop)? else {
                self.clear(&job, part);
                return Ok(());
            };
            if files.is_empty() && kept.elapsed() < LOOK_EVERY {
                // Days without rows are many at times, and soon looked through once more.
                job.parts_done += 1;
                continue;
            }
            kept = std::time::Instant::now();
            let tree = hashed.tree().clone();
            let goes_on = self.go_on(&mut job, |job| {
                job.rows += files.iter().map(|file| file.rows).sum::<u64>();
                job.files.extend(files);
                job.tree = tree;
                job.parts_done += 1;
            })?;
            if !goes_on {
                // Files that were known are gone; these are not yet.
                self.clear(&job, part);
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

    /// Waits until the archive here has what was there when the job was asked for; false: the server stops, or nobody asks any more.
    fn is_seen(&self, job: &Job, handle: &Handle, stop: &CancellationToken) -> Result<bool, Error> {
        let cancelled = async {
            while self.goes_on(job.export_id) {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        handle.block_on(async {
            tokio::select! {
                // An export that is not begun is not failed, either.
                biased;
                () = stop.cancelled() => Ok(false),
                seen = self.inner.rows.settle(job.account(), SEEN_WITHIN) => {
                    if seen { Ok(true) } else { Err(Error::Behind) }
                }
                () = cancelled => Ok(false),
            }
        })
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

    /// Deletes what was written of a part that is not done. What stays is written over, or goes with its folder.
    fn clear(&self, job: &Job, part: &Part) {
        for entry in fs::read_dir(self.folder(job.export_id)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&part.name) && !job.files.iter().any(|file| file.path == name) {
                drop(fs::remove_file(entry.path()));
            }
        }
    }

    /// Ends a file of an export.
    fn finish(&self, job: &Job, name: String, file: ExportFile, rows: u64) -> Result<SealedFile, Error> {
        file.finish()?;
        let (sha256, bytes) = hash_file(&self.folder(job.export_id).join(&name)).map_err(port)?;
        Ok(SealedFile { path: name, rows, bytes, sha256 })
    }

    /// Writes a part into files of so many rows; none, if it has no rows. `None`: the job was cancelled, or the server stops.
    fn write(
        &self,
        job: &Job,
        part: &Part,
        hashed: &mut ExportRows,
        handle: &Handle,
        stop: &CancellationToken,
    ) -> Result<Option<Vec<SealedFile>>, Error> {
        let format = job.request.format;
        let name = |before: usize| match before {
            0 => format!("{}.{}", part.name, format.ending()),
            before => format!("{}-{:04}.{}", part.name, before + 1, format.ending()),
        };
        let mut batches = self.inner.rows.of(job, part);
        let mut files = Vec::new();
        let mut file: Option<(ExportFile, u64)> = None;
        let mut rows = 0;
        let mut looked = std::time::Instant::now();
        while let Some(batch) = handle.block_on(batches.next()) {
            let batch = batch?;
            let looks = looked.elapsed() >= LOOK_EVERY;
            if looks {
                looked = std::time::Instant::now();
            }
            if stop.is_cancelled() || looks && !self.goes_on(job.export_id) {
                return Ok(None);
            }
            if format == Format::Parquet {
                hashed.take(&batch).map_err(port)?;
            }
            rows += batch.num_rows() as u64;
            let mut rest = batch;
            while rest.num_rows() > 0 {
                let (writing, in_file) = match &mut file {
                    Some(file) => file,
                    None => {
                        let path = self.folder(job.export_id).join(name(files.len()));
                        file.insert((ExportFile::begin(path, format, &rest.schema())?, 0))
                    }
                };
                let room = self.inner.options.file_rows.saturating_sub(*in_file).max(1);
                let now = rest.num_rows().min(usize::try_from(room).unwrap_or(usize::MAX));
                writing.write(&rest.slice(0, now))?;
                rest = rest.slice(now, rest.num_rows() - now);
                *in_file += now as u64;
                if let Some((file, in_file)) = file.take_if(|(_, rows)| *rows >= self.inner.options.file_rows) {
                    files.push(self.finish(job, name(files.len()), file, in_file)?);
                }
            }
            self.inner.running.lock().insert(job.export_id, rows);
        }
        if let Some((file, in_file)) = file {
            files.push(self.finish(job, name(files.len()), file, in_file)?);
        }
        self.inner.running.lock().remove(&job.export_id);
        Ok(Some(files))
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
                && let Err(error) = self.delete(job.export_id)
            {
                tracing::warn!(%error, export = %job.export_id, "an old export could not be deleted");
            }
        }
        if let Err(error) = self.sweep_remains(old) {
            tracing::warn!(%error, "what is left of old exports could not be deleted");
        }
    }

    /// Deletes what is left of exports whose deletion was interrupted, and old ones whose jobs cannot be read.
    fn sweep_remains(&self, old: Millis) -> std::io::Result<()> {
        if !self.inner.options.folder.is_dir() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.inner.options.folder)? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|name| name.to_str()).and_then(|name| Uuid::try_parse(name).ok());
            let Some(id) = id.filter(|_| path.is_dir()) else { continue };
            let is_gone = path.extension().is_some_and(|ending| ending == GONE);
            // Another server may sweep as well.
            let changed = fs::metadata(&path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            let changed = changed.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let is_old = changed.as_millis() as i64 <= old.0;
            if (is_gone || (path.extension().is_none() && is_old && self.read(id).is_none()))
                && let Err(error) = fs::remove_dir_all(&path)
                && error.kind() != std::io::ErrorKind::NotFound
            {
                tracing::warn!(%error, path = %path.display(), "what is left of an export could not be deleted");
            }
        }
        Ok(())
    }
}
