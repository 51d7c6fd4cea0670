//! Which rows an insert is of, written down before it: a claim is made once, and never changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::Marks;
use crate::Error;

/// Claims that are kept: only the last is needed, the others are for whoever looks for a fault.
const KEPT: u64 = 64;

/// How the names of claims end, and those of the marks that their inserts are done.
const CLAIM: &str = ".json";
const MARK: &str = ".done";
/// Where the number of the last that is done was, before each had a mark of its own.
const DONE: &str = "done";

/// Numbers of rows by partition, from one to another (exclusive).
pub type Ranges = BTreeMap<u32, (u64, u64)>;

/// One insert.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Its number in its lane: 0, 1, 2, …
    pub number: u64,
    /// Its rows.
    pub ranges: Ranges,
    /// Where each partition of the lane is before it.
    pub before: Marks,
    /// Where each partition of the lane began.
    pub first: Marks,
}

impl Claim {
    /// Where each partition of the lane is after it.
    pub fn after(&self) -> Marks {
        let mut marks = self.before.clone();
        marks.extend(self.ranges.iter().map(|(partition, (_, to))| (*partition, *to)));
        marks
    }
}

/// The claims of one lane into one database.
pub struct Claims {
    store: Arc<dyn ObjectStore>,
    folder: Path,
    /// What tells this lane's inserts from others'.
    name: String,
}

impl Claims {
    /// Those of a lane.
    pub fn new(store: Arc<dyn ObjectStore>, database: Uuid, table: &str, lane: u32) -> Self {
        let name = format!("{table}-{lane}");
        Self { store, folder: Path::from(format!("{database}/{name}")), name }
    }

    fn path(&self, number: u64, ending: &str) -> Path {
        self.folder.clone().join(format!("{number:020}{ending}"))
    }

    async fn listed(&self) -> Result<Vec<Path>, Error> {
        let listed: Vec<_> = self.store.list(Some(&self.folder)).try_collect().await?;
        Ok(listed.into_iter().map(|object| object.location).collect())
    }

    /// The last claim, and whether its insert is known to be done; `None` before the first.
    ///
    /// # Errors
    /// [`Error::Archive`]; [`Error::Schema`] when it is not one.
    pub async fn last(&self) -> Result<Option<(Claim, bool)>, Error> {
        let listed = self.listed().await?;
        let Some(last) = newest(&listed) else { return Ok(None) };
        let bytes = self.store.get(last).await?.bytes().await?;
        let malformed = |cause| sendtrail_schemas::Error::Malformed(format!("claim {last}: {cause}"));
        let claim: Claim = serde_json::from_slice(&bytes).map_err(malformed)?;
        if listed.contains(&self.path(claim.number, MARK)) {
            return Ok(Some((claim, true)));
        }
        let done = match self.store.get(&self.folder.clone().join(DONE)).await {
            Ok(found) => found.bytes().await? == claim.number.to_string(),
            Err(object_store::Error::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        Ok(Some((claim, done)))
    }

    /// Whether nobody made another claim after this one. Whoever was away for longer than ClickHouse knows a token must not insert:
    /// another server has done it. Nor who made one by a number of long ago, which is free again.
    ///
    /// # Errors
    /// [`Error::Archive`].
    pub async fn is_last(&self, claim: &Claim) -> Result<bool, Error> {
        Ok(newest(&self.listed().await?) == Some(&self.path(claim.number, CLAIM)))
    }

    /// Notes that a claim's insert is done: ClickHouse does not know its token for ever. By a mark of its own, so that whoever
    /// notes it late takes no later one back.
    ///
    /// # Errors
    /// [`Error::Archive`].
    pub async fn done(&self, claim: &Claim) -> Result<(), Error> {
        let number = PutPayload::from(claim.number.to_string());
        self.store.put(&self.path(claim.number, MARK), number).await?;
        Ok(())
    }

    /// Makes a claim, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Missing`] when somebody else made it; [`Error::Archive`].
    pub async fn make(&self, claim: &Claim) -> Result<(), Error> {
        // Numbers and maps of them always serialize.
        let bytes = serde_json::to_vec(claim).unwrap_or_default();
        let path = self.path(claim.number, CLAIM);
        match self.store.put_opts(&path, PutPayload::from(bytes), PutMode::Create.into()).await {
            Ok(_) => {}
            Err(object_store::Error::AlreadyExists { path, .. }) => {
                return Err(Error::Missing(format!("claim {path} was made by another server")));
            }
            Err(error) => return Err(error.into()),
        }
        if let Some(old) = claim.number.checked_sub(KEPT) {
            for ending in [CLAIM, MARK] {
                // One that stays does no harm.
                let _ = self.store.delete(&self.path(old, ending)).await;
            }
        }
        Ok(())
    }

    /// The token by which ClickHouse knows a claim's insert.
    pub fn token(&self, claim: &Claim) -> String {
        format!("{}/{}", self.name, claim.number)
    }
}

/// The last claim of what is there.
fn newest(listed: &[Path]) -> Option<&Path> {
    listed.iter().filter(|path| path.filename().is_some_and(|name| name.ends_with(CLAIM))).max()
}

#[cfg(test)]
mod tests {
    use super::*;
    use object_store::memory::InMemory;

    fn claim(number: u64) -> Claim {
        Claim {
            number,
            ranges: BTreeMap::from([(2, (number, number + 1))]),
            before: BTreeMap::from([(0, 5), (2, number)]),
            first: Marks::new(),
        }
    }

    #[tokio::test]
    async fn a_claim_is_made_once_and_the_last_is_found() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let claims = Claims::new(store.clone(), Uuid::from_u128(1), "events", 0);
        assert_eq!(claims.last().await.unwrap(), None);
        for number in 0..KEPT + 12 {
            claims.make(&claim(number)).await.unwrap();
        }
        assert!(matches!(claims.make(&claim(KEPT + 11)).await, Err(Error::Missing(_))));
        let (last, done) = claims.last().await.unwrap().unwrap();
        assert_eq!((&last, done), (&claim(KEPT + 11), false));
        claims.done(&claim(KEPT + 10)).await.unwrap();
        assert_eq!(claims.last().await.unwrap(), Some((claim(KEPT + 11), false)));
        claims.done(&last).await.unwrap();
        assert_eq!(claims.last().await.unwrap(), Some((last.clone(), true)));
        assert_eq!(last.after(), BTreeMap::from([(0, 5), (2, KEPT + 12)]));
        let kept: Vec<_> = store.list(None).try_collect().await.unwrap();
        assert_eq!(kept.len() as u64, KEPT + 2);
        // Other lanes and databases have claims of their own.
        assert_eq!(Claims::new(store.clone(), Uuid::from_u128(1), "events", 1).last().await.unwrap(), None);
        assert_eq!(Claims::new(store, Uuid::from_u128(2), "events", 0).last().await.unwrap(), None);
    }

    #[tokio::test]
    async fn whoever_was_away_takes_nothing_back() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let claims = Claims::new(store, Uuid::from_u128(1), "events", 0);
        let newest = KEPT + 11;
        for number in 0..=newest {
            claims.make(&claim(number)).await.unwrap();
            claims.done(&claim(number)).await.unwrap();
        }
        // It ends an insert of before, of a claim that is there or not, while another server has gone on.
        for late in [newest - 1, 3] {
            assert!(!claims.is_last(&claim(late)).await.unwrap());
            claims.done(&claim(late)).await.unwrap();
            assert_eq!(claims.last().await.unwrap(), Some((claim(newest), true)));
        }
        // Of a number that is free again it may make a claim, and not insert.
        claims.make(&claim(4)).await.unwrap();
        assert!(!claims.is_last(&claim(4)).await.unwrap());
        assert!(claims.is_last(&claim(newest)).await.unwrap());
        assert_eq!(claims.last().await.unwrap(), Some((claim(newest), true)));
    }

    #[tokio::test]
    async fn what_was_noted_before_claims_had_marks_counts() {
        let store: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
        let claims = Claims::new(store.clone(), Uuid::from_u128(1), "events", 0);
        claims.make(&claim(7)).await.unwrap();
        store.put(&claims.folder.clone().join(DONE), "7".into()).await.unwrap();
        assert_eq!(claims.last().await.unwrap(), Some((claim(7), true)));
        claims.make(&claim(8)).await.unwrap();
        assert_eq!(claims.last().await.unwrap(), Some((claim(8), false)));
    }
}
