//! A local object store that keeps its promises: what it took is on the device.
//!
//! `object_store`'s own never syncs, so a commit of the Delta log could vanish with the power.

use std::fmt;
use std::path::{Path as FsPath, PathBuf};

use crate::failpoint::fails;
use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, future, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};

/// See the module.
#[derive(Debug)]
pub struct DurableFileSystem {
    inner: LocalFileSystem,
    root: PathBuf,
}

impl DurableFileSystem {
    /// A store whose paths are relative to a folder.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn relative(root: &FsPath) -> Result<Self> {
        Ok(Self { inner: LocalFileSystem::new_with_prefix(root)?, root: root.to_owned() })
    }

    /// A store whose paths are absolute, for writing below a folder.
    pub fn absolute(root: &FsPath) -> Self {
        Self { inner: LocalFileSystem::new(), root: root.to_owned() }
    }
    async fn sync(&self, location: &Path) -> Result<()> {
        sync(self.inner.path_to_filesystem(location)?, self.root.clone()).await
    }
}

async fn sync(path: PathBuf, root: PathBuf) -> Result<()> {
    let synced = tokio::task::spawn_blocking(move || sync_with_parents(&path, &root)).await;
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Generic { store: "durable", source };
    synced.map_err(|cause| failed(Box::new(cause)))?.map_err(|cause| failed(Box::new(cause)))
}

/// An upload in parts that is on the device once it is complete.
#[derive(Debug)]
struct DurableUpload {
    upload: Box<dyn MultipartUpload>,
    path: PathBuf,
    root: PathBuf,
}

#[async_trait]
impl MultipartUpload for DurableUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.upload.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        asked()?;
        let put = self.upload.complete().await?;
        sync(self.path.clone(), self.root.clone()).await?;
        answered()?;
        Ok(put)
    }

    async fn abort(&mut self) -> Result<()> {
        self.upload.abort().await
    }
}

/// Puts a file in the place of what is there, which may be acknowledged already.
fn replace(path: &FsPath, root: &FsPath, payload: &PutPayload) -> std::io::Result<()> {
    put(path, root, payload, |aside| std::fs::rename(aside, path))
}

/// Puts a file where there is none.
fn create(path: &FsPath, root: &FsPath, payload: &PutPayload) -> std::io::Result<()> {
    put(path, root, payload, |aside| {
        std::fs::hard_link(aside, path)?;
        std::fs::remove_file(aside)
    })
}

/// Puts a file that is on the device before it gets its name. (The library's own gives it the name first.) Names that end in `#` and
/// digits are shown by no list.
fn put(
    path: &FsPath,
    root: &FsPath,
    payload: &PutPayload,
    name_it: impl FnOnce(&FsPath) -> std::io::Result<()>,
) -> std::io::Result<()> {
    use std::io::Write;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (aside, mut file) = (1..)
        .find_map(|number: u32| {
            let aside = path.with_file_name(format!("{name}#{number}"));
            let made = match std::fs::File::create_new(&aside) {
                Err(cause) if cause.kind() == std::io::ErrorKind::AlreadyExists => return None,
                Err(cause) if cause.kind() == std::io::ErrorKind::NotFound => {
                    let folder = path.parent().unwrap_or(root);
                    std::fs::create_dir_all(folder).and_then(|()| std::fs::File::create_new(&aside))
                }
                made => made,
            };
            Some(made.map(|file| (aside, file)))
        })
        .unwrap_or_else(|| Err(std::io::ErrorKind::AlreadyExists.into()))?;
    let written = (|| {
        payload.iter().try_for_each(|part| file.write_all(part))?;
        file.sync_all()?;
        name_it(&aside)
    })();
    if let Err(cause) = written {
        drop(std::fs::remove_file(&aside));
        return Err(cause);
    }
    sync_with_parents(path, root)
}

/// How long what a crash left beside a file is kept: nobody takes that long to write one.
const LEFT: std::time::Duration = std::time::Duration::from_secs(3_600);

/// Deletes what crashes left in a folder of files that were being [put](put). No list shows it, so nobody else would.
fn clear_left(folder: &FsPath) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.rsplit_once('#')).map(|(_, number)| number);
        let is_aside = number.is_some_and(|it| !it.is_empty() && it.bytes().all(|byte| byte.is_ascii_digit()));
        // Another process may have named it meanwhile.
        let written = || entry.metadata().and_then(|meta| meta.modified()).ok();
        if is_aside && written().and_then(|at| at.elapsed().ok()).is_some_and(|age| age > LEFT) {
            drop(std::fs::remove_file(entry.path()));
        }
    }
    Ok(())
}

/// Syncs a file and the folders that name it, up to a root.
pub fn sync_with_parents(path: &FsPath, root: &FsPath) -> std::io::Result<()> {
    std::fs::File::open(path)?.sync_all()?;
    let mut folder = path.parent();
    while let Some(parent) = folder.filter(|parent| parent.starts_with(root)) {
        std::fs::File::open(parent)?.sync_all()?;
        folder = parent.parent();
    }
    Ok(())
}

/// What a test says that the store answers, before anything is done or after it.
fn answers(point: &'static str) -> Result<()> {
    fails(point).map_err(|source| Error::Generic { store: "durable", source: Box::new(source) })
}

/// The store does not do what it is asked.
fn asked() -> Result<()> {
    answers("object.asked")
}

/// It does, and does not say so.
fn answered() -> Result<()> {
    answers("object.answered")
}

impl fmt::Display for DurableFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DurableFileSystem({})", self.root.display())
    }
}

#[async_trait]
impl ObjectStore for DurableFileSystem {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        asked()?;
        let put = match options.mode {
            PutMode::Overwrite => Some(replace as fn(&FsPath, &FsPath, &PutPayload) -> std::io::Result<()>),
            PutMode::Create => Some(create as _),
            PutMode::Update(_) => None,
        };
        if let Some(put) = put.filter(|_| options.attributes.is_empty()) {
            let (path, root) = (self.inner.path_to_filesystem(location)?, self.root.clone());
            let outcome = tokio::task::spawn_blocking(move || put(&path, &root, &payload)).await?;
            outcome.map_err(|source| match source.kind() {
                std::io::ErrorKind::AlreadyExists => {
                    Error::AlreadyExists { path: location.to_string(), source: Box::new(source) }
                }
                _ => Error::Generic { store: "durable", source: Box::new(source) },
            })?;
            answered()?;
            return Ok(PutResult { e_tag: None, version: None });
        }
        let put = self.inner.put_opts(location, payload, options).await?;
        self.sync(location).await?;
        answered()?;
        Ok(put)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let upload = self.inner.put_multipart_opts(location, options).await?;
        let path = self.inner.path_to_filesystem(location)?;
        Ok(Box::new(DurableUpload { upload, path, root: self.root.clone() }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        asked()?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations.map(|location| location.and_then(|it| asked().map(|()| it))).boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        match asked() {
            Ok(()) => {
                let folder = prefix.map_or_else(|| Ok(self.root.clone()), |it| self.inner.path_to_filesystem(it));
                let clear = async move {
                    // Nothing that anybody asks for depends on it; there may be no such folder yet.
                    if let Ok(folder) = folder {
                        drop(tokio::task::spawn_blocking(move || clear_left(&folder)).await);
                    }
                };
                let cleared = stream::once(clear).filter_map(|()| future::ready(None));
                cleared.chain(self.inner.list(prefix)).boxed()
            }
            Err(error) => stream::once(future::ready(Err(error))).boxed(),
        }
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        match asked() {
            Ok(()) => self.inner.list_with_offset(prefix, offset),
            Err(error) => stream::once(future::ready(Err(error))).boxed(),
        }
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        asked()?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        asked()?;
        self.inner.copy_opts(from, to, options).await?;
        self.sync(to).await?;
        answered()
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        asked()?;
        self.inner.rename_opts(from, to, options).await?;
        self.sync(to).await?;
        answered()
    }
}

#[cfg(test)]
mod tests {
    use object_store::ObjectStoreExt;

    use super::*;

    #[tokio::test]
    async fn what_takes_anothers_place_leaves_nothing_beside_it_and_what_fails_leaves_what_was() {
        let folder = tempfile::TempDir::new().unwrap();
        let store = DurableFileSystem::relative(folder.path()).unwrap();
        let path = Path::from("a/b");
        for text in ["one", "two", "two"] {
            store.put(&path, text.into()).await.unwrap();
            assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), text);
        }
        // What a crash left is passed over, and in no list.
        std::fs::write(folder.path().join("a/b#1"), "torn").unwrap();
        store.put(&path, "three".into()).await.unwrap();
        let names = |folder: &FsPath| {
            let entries = std::fs::read_dir(folder).unwrap();
            let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        };
        assert_eq!(names(&folder.path().join("a")), ["b", "b#1"]);
        let list = async || {
            let listed = store.list(Some(&Path::from("a"))).map(|object| object.unwrap().location);
            listed.collect::<Vec<_>>().await
        };
        assert_eq!(list().await, std::slice::from_ref(&path));
        assert_eq!(names(&folder.path().join("a")), ["b", "b#1"]);
        // Whoever lists a folder has it deleted, once nobody can be writing it.
        let left = std::fs::File::options().write(true).open(folder.path().join("a/b#1")).unwrap();
        left.set_modified(std::time::UNIX_EPOCH).unwrap();
        assert_eq!(list().await, std::slice::from_ref(&path));
        assert_eq!(names(&folder.path().join("a")), ["b"]);
        // A file is where its folder should be: that does not pass, so nobody tries again.
        let told = store.put(&Path::from("a/b/c"), "four".into()).await.unwrap_err();
        let cause = std::error::Error::source(&told).unwrap().downcast_ref::<std::io::Error>().unwrap();
        assert_eq!(cause.kind(), std::io::ErrorKind::NotADirectory);
        // A folder has its name.
        std::fs::create_dir(folder.path().join("a/c")).unwrap();
        store.put(&Path::from("a/c"), "four".into()).await.unwrap_err();
        assert_eq!(names(&folder.path().join("a")), ["b", "c"]);
    }
}
