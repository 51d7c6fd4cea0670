//! An export against its seal.

use std::path::Path;

use sendtrail_schemas::secret::hex;

use super::{Fault, Options, Report, chain, each_batch};
use crate::Error;
use crate::envelope::Envelope;
use crate::leaves::ExportRows;
use crate::seal::{Subject, hash_file};

/// Checks the files of an export against its seal.
///
/// # Errors
/// [`Error::Io`]: there is no seal to be read.
pub fn verify_export(folder: &Path, options: &Options) -> Result<Report, Error> {
    let mut report = Report::default();
    let path = folder.join("seal.json");
    let bytes = std::fs::read(&path).map_err(Error::io(format!("read {}", path.display())))?;
    let envelope: Envelope = match serde_json::from_slice(&bytes) {
        Ok(envelope) => envelope,
        Err(cause) => {
            report.add(Fault::Seal(format!("{}: {cause}", path.display())));
            return Ok(report);
        }
    };
    let Some(seal) = chain(&mut report, &[(1, envelope)], options).pop() else { return Ok(report) };
    if !matches!(seal.subject, Subject::Export { .. }) {
        report.add(Fault::Seal("seal.json is not the seal of an export".into()));
        return Ok(report);
    }
    report.subject = Some(seal.subject.clone());
    for entry in std::fs::read_dir(folder).map_err(Error::io(format!("list {}", folder.display())))? {
        let name = entry.map_err(Error::io(format!("list {}", folder.display())))?.file_name();
        let known = name == "seal.json" || name == "job.json" || seal.files.iter().any(|file| name == *file.path);
        if !known {
            report.add(Fault::FileChanged(format!("{} was not sealed", name.to_string_lossy())));
        }
    }
    let mut rows = ExportRows::default();
    for file in seal.files.iter().filter(|file| !is_plain(&file.path)) {
        report.add(Fault::Seal(format!("{:?} is no name of a file beside the seal", file.path)));
    }
    for file in seal.files.iter().filter(|file| is_plain(&file.path)) {
        report.files += 1;
        let path = folder.join(&file.path);
        match hash_file(&path) {
            Ok((hash, size)) if (&hash, size) == (&file.sha256, file.bytes) => {}
            Ok(_) => report.add(Fault::FileChanged(format!("{} is not the file that was sealed", file.path))),
            Err(error) => report.add(Fault::File(error.to_string())),
        }
        if seal.root.is_some()
            && let Err(error) = each_batch(&path, |batch| rows.take(batch))
        {
            report.add(Fault::File(format!("{} cannot be read: {error}", file.path)));
        }
    }
    report.rows = seal.rows;
    if let Some(wanted) = &seal.root {
        let count = rows.tree().len();
        if *wanted != hex(&rows.tree().root()) {
            report.add(Fault::Root(1, format!("it has {} rows, the files {count}", seal.rows)));
        }
    }
    if report.holds() {
        report.seals = 1;
    }
    Ok(report)
}

/// Whether a path is the name of a file beside the seal.
fn is_plain(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(name)), None) if name == path)
}
