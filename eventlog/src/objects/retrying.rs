//! A store that is asked again when it fails for no reason that would last.
//!
//! An operation may have been done although it failed. All that are tried again may be done twice; where an object must be new, one
//! that is there with the same bytes is ours.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use backon::{ExponentialBuilder, Retryable};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, future, stream};
use object_store::path::Path;
use object_store::{
    CopyMode, CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions,
    Result,
};

/// Waits between tries, each twice the one before; then what the store said is the answer.
const FIRST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_millis(500);
const ALL_WAITS: Duration = Duration::from_secs(5);
/// Objects deleted at once.
const TOGETHER: usize = 10;

/// See the module.
#[derive(Clone, Debug)]
pub struct Retrying {
    inner: Arc<dyn ObjectStore>,
    backoff: ExponentialBuilder,
}

impl Retrying {
    /// Over a store.
    pub fn over(inner: Arc<dyn ObjectStore>) -> Self {
        let backoff = ExponentialBuilder::default()
            .with_min_delay(FIRST_WAIT)
            .with_max_delay(LONGEST_WAIT)
            .without_max_times()
            .with_total_delay(Some(ALL_WAITS))
            .with_jitter();
        Self { inner, backoff }
    }

    /// Does what may be done twice until it is done, or fails for a reason that lasts.
    async fn again<T, F: Future<Output = Result<T>>>(&self, act: impl FnMut() -> F) -> Result<T> {
        // Tries may take long, too: after this time there is no other.
        let until = Instant::now() + ALL_WAITS;
        act.retry(self.backoff)
            .when(|error| may_pass(error) && Instant::now() < until)
            .notify(|error, _| tracing::debug!(%error, "an object store failed; it is asked again"))
            .await
    }

    /// Whether an object holds just these bytes.
    async fn holds(&self, location: &Path, payload: &PutPayload) -> Result<bool> {
        match self.get(location).await {
            Ok(there) => {
                let there = there.bytes().await?;
                let mut rest = &there[..];
                let same = payload.iter().all(|part| rest.strip_prefix(&part[..]).map(|after| rest = after).is_some());
                Ok(same && rest.is_empty())
            }
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Everything that is listed, or an error.
    fn listed<F: Future<Output = Result<Vec<ObjectMeta>>> + Send + 'static>(
        &self,
        list: impl Fn(Arc<dyn ObjectStore>) -> F + Send + Sync + 'static,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let store = self.clone();
        let all = async move { store.again(|| list(store.inner.clone())).await };
        stream::once(all).map_ok(|objects| stream::iter(objects).map(Ok)).try_flatten().boxed()
    }
}

/// Whether the same may go well a moment later.
fn may_pass(error: &Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, PermissionDenied, ReadOnlyFilesystem, StorageFull};
    if !matches!(error, Error::Generic { .. } | Error::JoinError { .. }) {
        return false;
    }
    // What a folder says that somebody must see to.
    let causes = std::iter::successors(std::error::Error::source(error), |cause| cause.source());
    let kinds = causes.filter_map(|cause| cause.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
    !kinds.into_iter().any(|kind| matches!(kind, NotADirectory | PermissionDenied | ReadOnlyFilesystem | StorageFull))
}

impl fmt::Display for Retrying {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Retrying({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Retrying {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let put = || self.inner.put_opts(location, payload.clone(), options.clone());
        match options.mode {
            PutMode::Overwrite => {
                // What others do there at the moment is a conflict to some stores, and passes.
                let conflict = |error| match error {
                    Error::AlreadyExists { source, .. } => Error::Generic { store: "a conflict", source },
                    error => error,
                };
                self.again(|| async { put().await.map_err(conflict) }).await
            }
            // Whether it was done can be told from nothing that is there.
            PutMode::Update(_) => put().await,
            PutMode::Create => {
                let first = put().await;
                if !first.as_ref().is_err_and(may_pass) {
                    return first;
                }
                match self.again(put).await {
                    // It may not be on the device: the same bytes once more are, when that is said.
                    Err(Error::AlreadyExists { .. }) if self.holds(location, &payload).await? => {
                        let options = PutOptions { mode: PutMode::Overwrite, ..options.clone() };
                        self.again(|| self.inner.put_opts(location, payload.clone(), options.clone())).await
                    }
                    put => put,
                }
            }
        }
    }

    /// Of an upload, only its beginning is tried again: parts are the caller's.
    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.again(|| self.inner.put_multipart_opts(location, options.clone())).await
    }

    /// Whole, as everything here is read: a file may open and fail only when it is read.
    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let get = || async {
            let found = self.inner.get_opts(location, options.clone()).await?;
            if options.head {
                return Ok(found);
            }
            let (meta, range, attributes) = (found.meta.clone(), found.range.clone(), found.attributes.clone());
            let bytes = found.bytes().await?;
            let payload = GetResultPayload::Stream(stream::once(future::ready(Ok(bytes))).boxed());
            Ok(GetResult { payload, meta, range, attributes })
        };
        self.again(get).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let store = self.clone();
        let delete = move |location: Result<Path>| {
            let store = store.clone();
            async move {
                let location = location?;
                match store.inner.delete(&location).await {
                    // The one that failed may have deleted it.
                    Err(error) if may_pass(&error) => match store.again(|| store.inner.delete(&location)).await {
                        Ok(()) | Err(Error::NotFound { .. }) => Ok(location),
                        Err(error) => Err(error),
                    },
                    deleted => deleted.map(|()| location),
                }
            }
        };
        locations.map(delete).buffered(TOGETHER).boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned();
        self.listed(move |store| {
            let prefix = prefix.clone();
            async move { store.list(prefix.as_ref()).try_collect().await }
        })
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let (prefix, offset) = (prefix.cloned(), offset.clone());
        self.listed(move |store| {
            let (prefix, offset) = (prefix.clone(), offset.clone());
            async move { store.list_with_offset(prefix.as_ref(), &offset).try_collect().await }
        })
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.again(|| self.inner.list_with_delimiter(prefix)).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let copy = || self.inner.copy_opts(from, to, options.clone());
        match options.mode {
            CopyMode::Overwrite => self.again(copy).await,
            CopyMode::Create => copy().await,
        }
    }

    /// Not tried again: what it renamed is gone then, also when it said that it failed.
    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        self.inner.rename_opts(from, to, options).await
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use object_store::memory::InMemory;
    use parking_lot::Mutex;
    use proptest::prelude::*;

    use super::*;

    /// What becomes of one operation.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Fate {
        Well,
        NotDone,
        DoneButNotSaid,
    }

    /// A store that does what it is told to.
    #[derive(Debug)]
    struct Fickle {
        inner: InMemory,
        fates: Mutex<VecDeque<Fate>>,
    }

    impl Fickle {
        async fn act<T>(&self, act: impl Future<Output = Result<T>>) -> Result<T> {
            let fate = self.fates.lock().pop_front().unwrap_or(Fate::Well);
            let failed = || Error::Generic { store: "fickle", source: "503".into() };
            match fate {
                Fate::Well => act.await,
                Fate::NotDone => Err(failed()),
                Fate::DoneButNotSaid => act.await.and_then(|_| Err(failed())),
            }
        }
    }

    impl fmt::Display for Fickle {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "Fickle")
        }
    }

    #[async_trait]
    impl ObjectStore for Fickle {
        async fn put_opts(&self, at: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
            self.act(self.inner.put_opts(at, payload, options)).await
        }
        async fn put_multipart_opts(
            &self,
            at: &Path,
            options: PutMultipartOptions,
        ) -> Result<Box<dyn MultipartUpload>> {
            self.act(self.inner.put_multipart_opts(at, options)).await
        }
        async fn get_opts(&self, at: &Path, options: GetOptions) -> Result<GetResult> {
            let fate = self.fates.lock().pop_front().unwrap_or(Fate::Well);
            let failed = || Error::Generic { store: "fickle", source: "503".into() };
            match fate {
                Fate::Well => self.inner.get_opts(at, options).await,
                Fate::NotDone => Err(failed()),
                // It opens, and fails when it is read.
                Fate::DoneButNotSaid => {
                    let payload = GetResultPayload::Stream(stream::once(future::ready(Err(failed()))).boxed());
                    Ok(GetResult { payload, ..self.inner.get_opts(at, options).await? })
                }
            }
        }
        fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
            let fate = self.fates.lock().pop_front().unwrap_or(Fate::Well);
            let failed = |_| Err(Error::Generic { store: "fickle", source: "503".into() });
            match fate {
                Fate::Well => self.inner.delete_stream(locations),
                Fate::NotDone => locations.map(failed).boxed(),
                Fate::DoneButNotSaid => self.inner.delete_stream(locations).map(failed).boxed(),
            }
        }
        fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
            let fate = self.fates.lock().pop_front().unwrap_or(Fate::Well);
            let failed = || Err(Error::Generic { store: "fickle", source: "503".into() });
            // Some of it, and then no more.
            match fate {
                Fate::Well => self.inner.list(prefix),
                _ => self.inner.list(prefix).take(1).chain(stream::once(async move { failed() })).boxed(),
            }
        }
        async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
            self.act(self.inner.list_with_delimiter(prefix)).await
        }
        async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
            self.act(self.inner.copy_opts(from, to, options)).await
        }
        async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
            self.act(self.inner.rename_opts(from, to, options)).await
        }
    }

    fn over(fates: Vec<Fate>) -> (Retrying, Arc<Fickle>) {
        let fickle = Arc::new(Fickle { inner: InMemory::new(), fates: Mutex::new(fates.into()) });
        // As ours, but that nobody waits for long.
        let backoff = Retrying::over(fickle.clone()).backoff.with_min_delay(Duration::from_micros(1));
        let backoff =
            backoff.with_max_delay(Duration::from_micros(100)).with_total_delay(Some(Duration::from_millis(20)));
        (Retrying { inner: fickle.clone(), backoff }, fickle)
    }

    #[derive(Clone, Debug)]
    enum Act {
        Put(u8),
        Create(u8),
        Get(u8),
        Delete(u8),
        Copy(u8, u8),
        List,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0u8..4).prop_map(Act::Put),
            (0u8..4).prop_map(Act::Create),
            (0u8..4).prop_map(Act::Get),
            (0u8..4).prop_map(Act::Delete),
            (0u8..4, 0u8..4).prop_map(|(from, to)| Act::Copy(from, to)),
            Just(Act::List),
        ]
    }

    /// What was done, in words that do not tell one store from another.
    async fn perform(store: &dyn ObjectStore, act: &Act, value: u8) -> String {
        let path = |at: &u8| Path::from(format!("object-{at}"));
        let told = |result: Result<String>| match result {
            Ok(text) => text,
            Err(Error::NotFound { .. }) => "not found".into(),
            Err(Error::AlreadyExists { .. }) => "already there".into(),
            Err(error) => format!("failed: {error}"),
        };
        told(match act {
            Act::Put(at) => store.put(&path(at), vec![value].into()).await.map(|_| "put".into()),
            Act::Create(at) => {
                store.put_opts(&path(at), vec![value].into(), PutMode::Create.into()).await.map(|_| "new".into())
            }
            Act::Get(at) => match store.get(&path(at)).await {
                Ok(found) => found.bytes().await.map(|bytes| format!("{bytes:?}")),
                Err(error) => Err(error),
            },
            Act::Delete(at) => store.delete(&path(at)).await.map(|()| "gone".into()),
            Act::Copy(from, to) => store.copy(&path(from), &path(to)).await.map(|()| "copied".into()),
            Act::List => store.list(None).try_collect::<Vec<_>>().await.map(|all| {
                let mut names: Vec<String> = all.into_iter().map(|object| object.location.to_string()).collect();
                names.sort();
                names.join(" ")
            }),
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Whatever fails, and whatever was done nevertheless, it looks like a store that never fails.
        #[test]
        fn a_store_that_fails_half_of_the_time_is_one_that_does_not(
            acts in prop::collection::vec(act(), 1..30),
            fates in prop::collection::vec(
                prop_oneof![2 => Just(Fate::Well), 1 => Just(Fate::NotDone), 1 => Just(Fate::DoneButNotSaid)], 0..90,
            ),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let (store, _) = over(fates);
                let sound = InMemory::new();
                // No two objects are alike: what somebody else made before cannot be told from ours if it is.
                for (act, value) in acts.iter().zip(0..) {
                    prop_assert_eq!(perform(&store, act, value).await, perform(&sound, act, value).await, "{:?}", act);
                }
                Ok(())
            })?;
        }
    }

    #[tokio::test]
    async fn what_lasts_is_told_in_the_end_and_what_no_try_would_mend_at_once() {
        let (store, fickle) = over(vec![Fate::NotDone; 1_000]);
        let told = store.get(&Path::from("a")).await.unwrap_err();
        assert!(matches!(told, Error::Generic { .. }), "{told}");
        let tries = 1_000 - fickle.fates.lock().len();
        assert!((10..1_000).contains(&tries), "{tries}");
        let (store, fickle) = over(vec![Fate::Well, Fate::NotDone, Fate::NotDone]);
        assert!(matches!(store.get(&Path::from("a")).await, Err(Error::NotFound { .. })));
        assert_eq!(fickle.fates.lock().len(), 2);
        fickle.fates.lock().clear();
        fickle.inner.put(&Path::from("a"), vec![1].into()).await.unwrap();
        // Somebody else's, also if the bytes are the same: nothing of ours had failed.
        let put = store.put_opts(&Path::from("a"), vec![1].into(), PutMode::Create.into()).await;
        assert!(matches!(put, Err(Error::AlreadyExists { .. })), "{put:?}");
    }
}
