//! Message bodies too large for the log: stored first, then named in a record by their hash (a claim check).

use std::sync::Arc;

use object_store::path::Path;
use object_store::{Error as StoreError, ObjectStore, ObjectStoreExt};
use quick_cache::sync::Cache;
use sendtrail_schemas::mail::BlobRef;
use sendtrail_schemas::secret::hex;
use sendtrail_schemas::time::Day;
use sha2::{Digest, Sha256};

use crate::objects::Place;
use crate::{Error, aside};

/// Bodies that are known to be there: the same one may be sent many times in a row.
const KNOWN: usize = 1_024;

/// Blobs at a place, in one folder a day, named by their SHA-256.
#[derive(Clone)]
pub struct Blobs {
    place: Place,
    objects: Arc<dyn ObjectStore>,
    known: Arc<Cache<(Day, Vec<u8>), ()>>,
}

impl Blobs {
    /// Opens the place; a folder is made.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(place: Place) -> Result<Self, Error> {
        let objects = place.open().map_err(|cause| failed(format!("open {place}"), &cause))?;
        Ok(Self { place, objects, known: Arc::new(Cache::new(KNOWN)) })
    }

    /// Stores bytes, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Io`]: it may be there or not.
    pub async fn put(&self, day: Day, bytes: Vec<u8>) -> Result<BlobRef, Error> {
        let (sha256, bytes) = digest(bytes).await?;
        let blob = BlobRef { day, length: bytes.len() as u64, sha256 };
        let (key, path) = ((day, blob.sha256.clone()), path(&blob));
        // What this process did not store itself may be torn: it is stored once more.
        let is_there = async || self.objects.head(&path).await.is_ok_and(|there| there.size == blob.length);
        if self.known.get(&key).is_none() || !is_there().await {
            let stored = self.objects.put(&path, bytes.into()).await;
            stored.map_err(|cause| failed(format!("store the body {path}"), &cause))?;
            self.known.insert(key, ());
        }
        Ok(blob)
    }

    /// The bytes of a blob.
    ///
    /// # Errors
    /// [`Error::NoBlob`] when it is gone; [`Error::Corrupt`] when it is not what was stored; [`Error::Io`] when that cannot be told.
    pub async fn get(&self, blob: &BlobRef) -> Result<Vec<u8>, Error> {
        let path = path(blob);
        let read = async { self.objects.get(&path).await?.bytes().await };
        let bytes = match read.await {
            Ok(bytes) => bytes,
            // A bucket that is not there, a proxy before it, and a folder that is not mounted say the same of everything; then it is
            // not known. While bodies are sent, those of some day are there.
            Err(StoreError::NotFound { .. }) => {
                let what = || format!("look for the body {path}");
                let listed = self.objects.list_with_delimiter(None).await.map_err(|cause| failed(what(), &cause))?;
                if listed.common_prefixes.is_empty() {
                    let cause = format!("{} has no bodies at all", self.place);
                    return Err(Error::Io { what: what(), cause });
                }
                return Err(Error::NoBlob(path.to_string()));
            }
            Err(cause) => return Err(failed(format!("read the body {path}"), &cause)),
        };
        let (sha256, bytes) = digest(bytes).await?;
        if sha256 != blob.sha256 {
            let why = "its content has another hash than its name".into();
            return Err(Error::Corrupt { file: path.to_string(), at: 0, why });
        }
        Ok(bytes.into())
    }

    /// Forgets the blobs of all days before one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub async fn drop_before(&self, day: Day) -> Result<(), Error> {
        let listed = self.objects.list_with_delimiter(None).await;
        let listed = listed.map_err(|cause| failed(format!("list {}", self.place), &cause))?;
        for folder in listed.common_prefixes {
            let Some(name) = folder.filename() else { continue };
            if name.parse().is_ok_and(|of: Day| of < day) {
                self.known.retain(|(of, _), ()| *of >= day);
                let old = self.place.join(name);
                old.clear().await.map_err(|cause| failed(format!("remove {old}"), &cause))?;
            }
        }
        Ok(())
    }
}

/// The hash of bytes, beside the runtime's workers: there may be many.
async fn digest<B: AsRef<[u8]> + Send + 'static>(bytes: B) -> Result<(Vec<u8>, B), Error> {
    aside("hash a body", move || Ok((Sha256::digest(bytes.as_ref()).to_vec(), bytes))).await
}

fn path(blob: &BlobRef) -> Path {
    Path::from_iter([blob.day.to_string(), hex(&blob.sha256)])
}

fn failed(what: String, cause: &StoreError) -> Error {
    Error::Io { what, cause: cause.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn keeps_what_it_is_given_until_its_day_is_dropped() {
        let folder = tempfile::TempDir::new().unwrap();
        let open = || Blobs::open(folder.path().into()).unwrap();
        let blobs = open();
        let one = blobs.put(3, b"hello".to_vec()).await.unwrap();
        assert_eq!(blobs.put(3, b"hello".to_vec()).await.unwrap(), one);
        let two = blobs.put(4, b"hello".to_vec()).await.unwrap();
        blobs.drop_before(4).await.unwrap();
        assert!(matches!(blobs.get(&one).await, Err(Error::NoBlob(_))));
        assert!(!folder.path().join("3").exists());
        assert_eq!(blobs.get(&two).await.unwrap(), b"hello");
        let file = folder.path().join(path(&two).as_ref());
        std::fs::write(&file, b"hellO").unwrap();
        assert!(matches!(blobs.get(&two).await, Err(Error::Corrupt { .. })));
        // Torn by a fall of the machine, say: it is whole again when it is stored again.
        let blobs = open();
        blobs.put(4, b"hello".to_vec()).await.unwrap();
        assert_eq!(blobs.get(&two).await.unwrap(), b"hello");
        // What cannot be read is not lost, nor what was in a folder that is gone as a whole.
        std::fs::rename(folder.path().join("4"), folder.path().with_extension("away")).unwrap();
        let told = blobs.get(&two).await;
        assert!(matches!(told, Err(Error::Io { .. })), "{told:?}");
        std::fs::rename(folder.path().with_extension("away"), folder.path().join("4")).unwrap();
        std::fs::remove_dir_all(folder.path().join("4")).unwrap();
        std::fs::write(folder.path().join("4"), b"").unwrap();
        let told = blobs.get(&two).await;
        assert!(matches!(told, Err(Error::Io { .. })), "{told:?}");
    }
}
