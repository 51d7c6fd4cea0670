//! A local object store that keeps its promises: what it took is on the device.
//!
//! `object_store`'s own never syncs, so a commit of the Delta log could vanish with the power.

use std::fmt;
use std::path::{Path as FsPath, PathBuf};

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, future, stream};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result, UploadPart,
};
use sendtrail_eventlog::failpoint::fails;

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
            Ok(()) => self.inner.list(prefix),
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
