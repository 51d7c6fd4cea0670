//! Where objects are, as the settings name it.

use std::fmt;
use std::path::{Path as FsPath, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ClientConfigKey, Error, ObjectStore, Result, RetryConfig};

use super::durable::DurableFileSystem;
use super::retrying::Retrying;

/// How a bucket's address begins.
const SCHEME: &str = "s3://";
/// How long one request may take: a file of a snapshot has 64 MB.
const REQUEST: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(5);

/// How buckets are reached. Without a key, what is empty is as the environment has it (`AWS_REGION`, `AWS_ACCESS_KEY_ID` and so on), or
/// the machine's role.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct S3 {
    /// `https://host:port` of one that is not Amazon's.
    pub endpoint: String,
    /// The region.
    pub region: String,
    /// The access key's name.
    pub access_key_id: String,
    /// The access key.
    pub secret_access_key: String,
    /// Whether `http://` will do.
    pub allow_http: bool,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("endpoint", &self.endpoint).field("region", &self.region).finish_non_exhaustive()
    }
}

/// A folder, which may be a mounted one, or a part of a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder.
    Folder(PathBuf),
    /// What is below a prefix of a bucket.
    Bucket {
        /// The bucket.
        name: String,
        /// The prefix; the bucket's root if it is empty.
        prefix: Path,
        /// How it is reached.
        access: Arc<S3>,
    },
}

impl Place {
    /// Reads `s3://bucket/prefix`, or the path of a folder; none if it is the address of something else, or of no bucket.
    pub fn read(text: &str, access: &Arc<S3>) -> Option<Self> {
        let Some(address) = text.strip_prefix(SCHEME) else {
            return (!text.contains("://")).then(|| Self::Folder(text.into()));
        };
        let (name, prefix) = address.split_once('/').unwrap_or((address, ""));
        // What S3 allows in a name: so that it cannot be taken for a part of an address.
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c);
        let is_name = (3..=63).contains(&name.len()) && name.chars().all(is_plain);
        let prefix = Path::parse(prefix.trim_end_matches('/')).ok().filter(|_| is_name)?;
        Some(Self::Bucket { name: name.to_owned(), prefix, access: access.clone() })
    }

    /// A place below this one.
    #[must_use]
    pub fn join(&self, part: &str) -> Self {
        match self {
            Self::Folder(folder) => Self::Folder(folder.join(part)),
            Self::Bucket { name, prefix, access } => {
                Self::Bucket { name: name.clone(), prefix: prefix.clone().join(part), access: access.clone() }
            }
        }
    }

    /// The store whose paths are relative to this place. A folder is made; a bucket must be there, which only the first request
    /// tells.
    ///
    /// # Errors
    /// Those of the file system, or of settings that do not go together.
    pub fn open(&self) -> Result<Arc<dyn ObjectStore>> {
        let store: Arc<dyn ObjectStore> = match self {
            Self::Folder(folder) => {
                let failed = |source| Error::Generic { store: "folder", source: Box::new(source) };
                let made = make(folder).and_then(|()| folder.canonicalize());
                Arc::new(DurableFileSystem::relative(&made.map_err(failed)?)?)
            }
            Self::Bucket { name, prefix, access } => Arc::new(PrefixStore::new(client(name, access)?, prefix.clone())),
        };
        Ok(Arc::new(Retrying::over(store)))
    }

    /// Whether it answers: of a bucket, that it is there and may be listed.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn look(&self) -> Result<()> {
        self.open()?.list_with_delimiter(None).await.map(|_| ())
    }

    /// Deletes everything that is there.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn clear(&self) -> Result<()> {
        if let Self::Folder(folder) = self {
            let folder = folder.clone();
            let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(folder)).await?;
            return removed.or_else(|cause| match cause.kind() {
                std::io::ErrorKind::NotFound => Ok(()),
                _ => Err(Error::Generic { store: "folder", source: Box::new(cause) }),
            });
        }
        let store = self.open()?;
        let all = store.list(None).map_ok(|object| object.location);
        store.delete_stream(Box::pin(all)).try_for_each(|_| std::future::ready(Ok(()))).await
    }
}

impl From<&FsPath> for Place {
    fn from(folder: &FsPath) -> Self {
        Self::Folder(folder.to_owned())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(folder) => write!(f, "{}", folder.display()),
            Self::Bucket { name, prefix, .. } => write!(f, "{SCHEME}{name}/{prefix}"),
        }
    }
}

/// Makes a folder, which nobody else is to read: what is in it may be personal. Those above it are as usual.
fn make(folder: &FsPath) -> std::io::Result<()> {
    if let Some(above) = folder.parent() {
        std::fs::create_dir_all(above)?;
    }
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(folder).or_else(|cause| if folder.is_dir() { Ok(()) } else { Err(cause) })
}

fn client(bucket: &str, access: &S3) -> Result<object_store::aws::AmazonS3> {
    let seconds = |time: Duration| format!("{} seconds", time.as_secs());
    // A key of the settings does not go with a token of the environment.
    let builder = if access.access_key_id.is_empty() { AmazonS3Builder::from_env() } else { AmazonS3Builder::new() };
    let mut builder = builder
        .with_bucket_name(bucket)
        // Its own would take what it made itself, and was not told of, for somebody else's.
        .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() })
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), seconds(REQUEST))
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), seconds(CONNECT));
    let given = [
        (AmazonS3ConfigKey::Endpoint, &access.endpoint),
        (AmazonS3ConfigKey::Region, &access.region),
        (AmazonS3ConfigKey::AccessKeyId, &access.access_key_id),
        (AmazonS3ConfigKey::SecretAccessKey, &access.secret_access_key),
    ];
    for (key, value) in given.into_iter().filter(|(_, value)| !value.is_empty()) {
        builder = builder.with_config(key, value);
    }
    if access.allow_http {
        builder = builder.with_allow_http(true);
    }
    builder.build()
}

#[cfg(test)]
mod tests {
    use object_store::{ObjectStoreExt, PutMode};
    use sendtrail_schemas::mail::BlobRef;

    use super::*;
    use crate::{Blobs, Error as LogError};

    fn read(text: &str) -> Option<Place> {
        Place::read(text, &Arc::default())
    }

    #[test]
    fn reads_folders_and_buckets_and_nothing_else() {
        assert_eq!(read("/var/lib/x"), Some(Place::Folder("/var/lib/x".into())));
        assert_eq!(read("shared"), Some(Place::Folder("shared".into())));
        for (text, shown) in [("s3://mail", "s3://mail/"), ("s3://mail.eu-1/a/b/", "s3://mail.eu-1/a/b")] {
            assert_eq!(read(text).unwrap().to_string(), shown);
        }
        for text in ["s3://", "s3://ab", "s3://Mail/a", "s3://user:pw@mail/a", "s3://mail/../a", "gs://m"] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read("s3://mail/a").unwrap().join("b").to_string(), "s3://mail/a/b");
        assert_eq!(read("a").unwrap().join("b"), Place::Folder("a/b".into()));
    }

    #[test]
    fn says_nothing_of_the_key() {
        let access = S3 { secret_access_key: "very-secret".into(), access_key_id: "name".into(), ..S3::default() };
        let place = Place::read("s3://mail/a", &Arc::new(access)).unwrap();
        let told = format!("{place} {place:?} {:?}", place.open().map(|store| store.to_string()));
        assert!(!told.contains("very-secret"), "{told}");
    }

    #[tokio::test]
    async fn clears_what_is_there() {
        let folder = tempfile::TempDir::new().unwrap();
        let place = Place::from(folder.path()).join("part");
        place.clear().await.unwrap();
        let store = place.open().unwrap();
        store.put(&Path::from("a/b"), vec![1].into()).await.unwrap();
        place.clear().await.unwrap();
        assert!(!folder.path().join("part").exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_is_made_is_its_owners_and_those_above_it_are_not() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::TempDir::new().unwrap();
        let place = Place::from(folder.path()).join("archive").join("intake");
        place.open().unwrap();
        place.open().unwrap();
        let mode = |path: &str| folder.path().join(path).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode("archive/intake"), 0o700);
        assert_ne!(mode("archive") & 0o050, 0, "tables are for whoever analyses them");
    }

    /// A bucket of a server that fails half of the time.
    fn bucket(prefix: &str) -> Option<Place> {
        let endpoint = format!("http://{}", sendtrail_test_servers::unreliable_s3()?);
        let (name, key) = ("name".to_owned(), "key".to_owned());
        let access =
            S3 { endpoint, region: "us-east-1".into(), access_key_id: name, secret_access_key: key, allow_http: true };
        Place::read(&format!("s3://sendtrail/{prefix}"), &Arc::new(access))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_bucket_that_fails_half_of_the_time_is_as_good_as_a_folder() {
        let Some(place) = bucket("place") else { return };
        let (part, other) = (place.join("part").open().unwrap(), place.join("other").open().unwrap());
        let names: Vec<Path> = (0..20).map(|n| Path::from(format!("a/{n:02}"))).collect();
        for (n, name) in (0..).zip(&names) {
            part.put(name, vec![n; 10].into()).await.unwrap();
        }
        let mut listed: Vec<_> = part.list(None).map_ok(|object| object.location).try_collect().await.unwrap();
        listed.sort();
        assert_eq!(listed, names);
        for (n, name) in (0..).zip(&names) {
            assert_eq!(part.get(name).await.unwrap().bytes().await.unwrap(), vec![n; 10]);
        }
        for n in 0..20 {
            let create = |bytes: Vec<u8>| part.put_opts(&names[0], bytes.into(), PutMode::Create.into());
            let (taken, name) = (create(vec![99]).await, Path::from(format!("new/{n}")));
            assert!(matches!(taken, Err(Error::AlreadyExists { .. })), "{taken:?}");
            part.put_opts(&name, vec![n].into(), PutMode::Create.into()).await.unwrap();
        }
        for name in &names[..10] {
            part.delete(name).await.unwrap();
            assert!(matches!(part.get(name).await, Err(Error::NotFound { .. })));
        }
        other.put(&names[0], vec![1].into()).await.unwrap();
        let days = part.list_with_delimiter(None).await.unwrap().common_prefixes;
        assert_eq!(days, [Path::from("a"), Path::from("new")]);
        place.join("part").clear().await.unwrap();
        assert!(part.list(None).try_collect::<Vec<_>>().await.unwrap().is_empty());
        assert!(other.get(&names[0]).await.is_ok(), "what is beside it stays");
        let absent = Place::read("s3://no-such-bucket/a", &bucket("x").map(access).unwrap()).unwrap();
        assert!(absent.open().unwrap().put(&names[0], vec![1].into()).await.is_err());
        assert!(absent.look().await.is_err() && place.look().await.is_ok());
        // That the whole bucket is not there does not say that a body was lost.
        let gone = BlobRef { day: 1, sha256: vec![1; 32], length: 1 };
        let told = Blobs::open(absent).unwrap().get(&gone).await;
        assert!(matches!(told, Err(LogError::Io { .. })), "{told:?}");
        let blobs = Blobs::open(place).unwrap();
        blobs.put(2, vec![1]).await.unwrap();
        let told = blobs.get(&gone).await;
        assert!(matches!(told, Err(LogError::NoBlob(_))), "{told:?}");
    }

    fn access(place: Place) -> Arc<S3> {
        match place {
            Place::Bucket { access, .. } => access,
            Place::Folder(_) => Arc::default(),
        }
    }
}
