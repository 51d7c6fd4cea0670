//! Message bodies too large for the log: stored first, then named in a record by their hash (a claim check).

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use sendtrail_schemas::mail::BlobRef;
use sendtrail_schemas::secret::hex;
use sendtrail_schemas::time::Day;
use sha2::{Digest, Sha256};

use crate::Error;
use crate::embedded::{io, sync_folder};

/// A folder of blobs, one folder a day in it, named by their SHA-256.
#[derive(Clone, Debug)]
pub struct Blobs {
    folder: PathBuf,
}

impl Blobs {
    /// Opens the folder, or makes it.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(io(format!("create {}", folder.display())))?;
        Ok(Self { folder: folder.to_owned() })
    }

    fn path(&self, day: Day, sha256: &[u8]) -> PathBuf {
        self.folder.join(day.to_string()).join(hex(sha256))
    }

    /// Stores bytes, durable when this returns. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`]: nothing is stored under that name.
    pub fn put(&self, day: Day, bytes: &[u8]) -> Result<BlobRef, Error> {
        let sha256 = Sha256::digest(bytes).to_vec();
        let path = self.path(day, &sha256);
        let length = bytes.len() as u64;
        // A name appears only by a rename after the content was synced, so what exists is whole.
        if fs::metadata(&path).is_ok_and(|metadata| metadata.len() == length) {
            return Ok(BlobRef { day, sha256, length });
        }
        let folder = self.folder.join(day.to_string());
        let write = || {
            if !folder.exists() {
                fs::create_dir_all(&folder)?;
                File::open(&self.folder)?.sync_all()?;
            }
            let mut temporary = tempfile::NamedTempFile::new_in(&folder)?;
            temporary.write_all(bytes)?;
            temporary.as_file().sync_all()?;
            temporary.persist(&path)?;
            Ok(())
        };
        write().map_err(io(format!("store {}", path.display())))?;
        sync_folder(&folder)?;
        Ok(BlobRef { day, sha256, length })
    }

    /// The bytes of a blob. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`] when it is gone; [`Error::Corrupt`] when it is not what was stored.
    pub fn get(&self, blob: &BlobRef) -> Result<Vec<u8>, Error> {
        let path = self.path(blob.day, &blob.sha256);
        let bytes = fs::read(&path).map_err(io(format!("read {}", path.display())))?;
        if Sha256::digest(&bytes)[..] != blob.sha256[..] {
            let why = "its content has another hash than its name".into();
            return Err(Error::Corrupt { file: path.display().to_string(), at: 0, why });
        }
        Ok(bytes)
    }

    /// Forgets the blobs of all days before one. Blocks.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn drop_before(&self, day: Day) -> Result<(), Error> {
        let what = || format!("list {}", self.folder.display());
        for entry in fs::read_dir(&self.folder).map_err(io(what()))? {
            let path = entry.map_err(io(what()))?.path();
            let of: Option<Day> = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
            if of.is_some_and(|of| of < day) {
                fs::remove_dir_all(&path).map_err(io(format!("remove {}", path.display())))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_what_it_is_given_until_its_day_is_dropped() {
        let folder = tempfile::TempDir::new().unwrap();
        let blobs = Blobs::open(folder.path()).unwrap();
        let one = blobs.put(3, b"hello").unwrap();
        assert_eq!(blobs.put(3, b"hello").unwrap(), one);
        let two = blobs.put(4, b"hello").unwrap();
        blobs.drop_before(4).unwrap();
        assert!(matches!(blobs.get(&one), Err(Error::Io { .. })));
        assert_eq!(blobs.get(&two).unwrap(), b"hello");
        fs::write(blobs.path(4, &two.sha256), b"hellO").unwrap();
        assert!(matches!(blobs.get(&two), Err(Error::Corrupt { .. })));
    }
}
