//! The Delta table: which files are in it, and up to which number each partition's events are.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use deltalake_core::kernel::engine::arrow_conversion::TryIntoKernel;
use deltalake_core::kernel::transaction::{CommitBuilder, CommitProperties};
use deltalake_core::kernel::{Action, Add, DataType, Protocol, Remove, StructField, StructType, Transaction};
use deltalake_core::logstore::{LogStoreRef, StorageConfig, default_logstore};
use deltalake_core::operations::create::CreateBuilder;
use deltalake_core::protocol::{DeltaOperation, SaveMode};
use deltalake_core::table::state::DeltaTableState;
use deltalake_core::{DeltaTable, DeltaTableError};
use sendtrail_eventlog::objects::{self, Place};
use sendtrail_schemas::archive::ArchivedFile;
use sendtrail_schemas::columns::PARTITION_COLUMN;
use sendtrail_schemas::time::Millis;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use url::Url;

use super::layout::Layout;
use crate::Error;

/// Commits between two checkpoints of the Delta log, so that opening stays fast.
const CHECKPOINT_INTERVAL: u32 = 100;
/// What maintenance names itself by, so that two of them cannot both take the same files away.
const MAINTENANCE: &str = "sendtrail-maintenance";
/// What erasures name their tombstones by.
const ERASURE: &str = "sendtrail-erasure";

/// The column of accounts.
const ACCOUNT_ID: &str = "account_id";

/// The open table. One writer at a time.
pub struct Table {
    layout: &'static Layout,
    root: PathBuf,
    log_store: LogStoreRef,
    state: DeltaTableState,
    files: BTreeMap<String, Arc<ArchivedFile>>,
    maintenance: i64,
    upkeep: Arc<Mutex<()>>,
}

/// Features of a table that change nothing of which rows it has.
const HARMLESS: [&str; 3] = ["timestampNtz", "v2Checkpoint", "vacuumProtocolCheck"];

/// What a table asks of its readers that would have rows seen here that it does not have, or under other names: deletion vectors,
/// mapped columns, and whatever is to come. Ours ask for nothing.
fn unknown_to_us(protocol: &Protocol) -> String {
    if protocol.min_reader_version() == 2 {
        return "columnMapping".into();
    }
    let asked = protocol.reader_features().unwrap_or_default().iter().map(ToString::to_string);
    asked.filter(|feature| !HARMLESS.contains(&feature.as_str())).collect::<Vec<_>>().join(", ")
}

/// What a file's entry in the Delta log says of its rows.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Stats {
    num_records: u64,
    min_values: Bounds,
    max_values: Bounds,
    null_count: HashMap<String, u64>,
}

/// The account and the time of a row, by the names of their columns.
type Bounds = HashMap<String, String>;

impl Table {
    /// Opens the table of a folder, or makes one.
    ///
    /// # Errors
    /// [`Error::Delta`], [`Error::Io`], [`Error::Foreign`].
    pub async fn open(layout: &'static Layout, root: &Path) -> Result<Self, Error> {
        let io = |cause| Error::Io { what: format!("create {}", root.display()), cause };
        std::fs::create_dir_all(root).map_err(io)?;
        let (root, log_store) = locate(root)?;
        let table = match load(&log_store).await? {
            Some(there) => with_new_columns(layout, there).await?,
            None => create(layout, log_store.clone()).await?,
        };
        Self::of(layout, root, log_store, &table).await
    }

    /// Opens the table of a folder if there is one.
    ///
    /// # Errors
    /// [`Error::Delta`], [`Error::Io`], [`Error::Foreign`].
    pub async fn find(layout: &'static Layout, root: &Path) -> Result<Option<Self>, Error> {
        if !root.is_dir() {
            return Ok(None);
        }
        let (root, log_store) = locate(root)?;
        match load(&log_store).await? {
            Some(table) => Ok(Some(Self::of(layout, root, log_store, &table).await?)),
            None => Ok(None),
        }
    }

    /// Opens the table of a folder if there is one, as that one of some which it says it is, or else the first of them.
    ///
    /// # Errors
    /// [`Error::Delta`], [`Error::Io`], [`Error::Foreign`].
    pub async fn find_any(layouts: &[&'static Layout], root: &Path) -> Result<Option<Self>, Error> {
        if !root.is_dir() {
            return Ok(None);
        }
        let (root, log_store) = locate(root)?;
        let Some(table) = load(&log_store).await? else { return Ok(None) };
        let name = table.snapshot()?.metadata().name().map(ToOwned::to_owned);
        let named = layouts.iter().find(|layout| name.as_deref() == Some(layout.name()));
        match named.or(layouts.first()) {
            Some(layout) => Ok(Some(Self::of(layout, root, log_store, &table).await?)),
            None => Ok(None),
        }
    }

    async fn of(
        layout: &'static Layout,
        root: PathBuf,
        log_store: LogStoreRef,
        table: &DeltaTable,
    ) -> Result<Self, Error> {
        let state = table.snapshot()?.clone();
        let maintenance = state.transaction_version(&*log_store, MAINTENANCE).await?.unwrap_or(0);
        let files = listed(layout, &state)?;
        Ok(Self { layout, root, log_store, state, files, maintenance, upkeep: Arc::default() })
    }

    /// What it holds.
    pub fn layout(&self) -> &'static Layout {
        self.layout
    }

    /// Where the files are.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The table's version.
    pub fn version(&self) -> u64 {
        self.state.version()
    }

    /// The files, in the order of their paths.
    pub fn files(&self) -> Vec<Arc<ArchivedFile>> {
        self.files.values().cloned().collect()
    }

    /// The number of the first row of a partition that is in no file.
    ///
    /// # Errors
    /// [`Error::Delta`].
    pub async fn mark(&self, partition: u32) -> Result<u64, Error> {
        let last = self.state.transaction_version(&*self.log_store, transaction(self.layout, partition)).await?;
        Ok(last.map_or(0, |last| last as u64 + 1))
    }

    /// Adds files that hold the rows of each partition from one number to another, both included, exactly once: a
    /// commit whose outcome is in doubt is looked up before it is tried again.
    ///
    /// # Errors
    /// [`Error::Delta`]: the files are not in the table. [`Error::Missing`]: they do not begin where it ends.
    /// [`Error::Foreign`]: somebody else has the table need more than is known here.
    pub async fn append(&mut self, files: &[ArchivedFile], events: &BTreeMap<u32, (u64, u64)>) -> Result<(), Error> {
        if !events.is_empty() && self.has(events).await? {
            // The commit was in doubt, and what came of it was read meanwhile.
            return Ok(());
        }
        for (partition, (first, _)) in events {
            let next = self.mark(*partition).await?;
            if next != *first && !(next == 0 && self.layout.begins_anywhere) {
                let why = format!("partition {partition} of the archive goes on at {next}, not at {first}");
                return Err(Error::Missing(why));
            }
        }
        let adds = files.iter().map(|file| Action::Add(add(self.layout, file, true))).collect();
        let transactions = events
            .iter()
            .map(|(partition, (_, last))| Transaction::new(transaction(self.layout, *partition), *last as i64))
            .collect();
        let operation = DeltaOperation::Write {
            mode: SaveMode::Append,
            partition_by: Some(vec![PARTITION_COLUMN.into()]),
            predicate: None,
        };
        if let Err(error) = self.commit(adds, transactions, operation).await {
            // What is there now was read; it may be another writer's commit of the same events.
            self.reload().await?;
            return if self.has(events).await? { Ok(()) } else { Err(error) };
        }
        self.files.extend(files.iter().map(|file| (file.path.clone(), Arc::new(file.clone()))));
        Ok(())
    }

    async fn has(&self, events: &BTreeMap<u32, (u64, u64)>) -> Result<bool, Error> {
        for (partition, (_, last)) in events {
            if self.mark(*partition).await? <= *last {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Held by whoever reads files to put others in their place, or to say for good what is in them: meanwhile no other
    /// does.
    pub fn upkeep(&self) -> Arc<Mutex<()>> {
        self.upkeep.clone()
    }

    /// Replaces files by one with the same rows.
    ///
    /// # Errors
    /// [`Error::Delta`]: nothing was replaced.
    pub async fn replace(&mut self, old: &[Arc<ArchivedFile>], new: ArchivedFile) -> Result<(), Error> {
        let operation = DeltaOperation::Optimize { predicate: None, target_size: new.bytes as i64 };
        self.swap(old, vec![new], operation, None).await
    }

    /// Replaces files by others that say less of the same rows; of sealed ones, as a tombstone has it.
    ///
    /// # Errors
    /// [`Error::Delta`]: nothing was replaced.
    pub async fn rewrite(
        &mut self,
        old: &[Arc<ArchivedFile>],
        new: Vec<ArchivedFile>,
        tombstone: Option<u64>,
    ) -> Result<(), Error> {
        self.swap(old, new, DeltaOperation::Update { predicate: None }, tombstone).await
    }

    /// The last tombstone whose rows were rewritten.
    ///
    /// # Errors
    /// [`Error::Delta`].
    pub async fn last_tombstone(&self) -> Result<u64, Error> {
        let last = self.state.transaction_version(&*self.log_store, ERASURE).await?;
        Ok(last.map_or(0, |last| last as u64))
    }

    async fn swap(
        &mut self,
        old: &[Arc<ArchivedFile>],
        new: Vec<ArchivedFile>,
        operation: DeltaOperation,
        tombstone: Option<u64>,
    ) -> Result<(), Error> {
        // Readers of changes need not look at files whose rows are the same.
        let changes = !matches!(operation, DeltaOperation::Optimize { .. });
        let removes = old.iter().map(|file| Action::Remove(Remove { data_change: changes, ..remove(file) }));
        let adds = new.iter().map(|file| Action::Add(add(self.layout, file, changes)));
        let mut transactions = vec![Transaction::new(MAINTENANCE, self.maintenance + 1)];
        transactions.extend(tombstone.map(|number| Transaction::new(ERASURE, number as i64)));
        if let Err(error) = self.commit(removes.chain(adds).collect(), transactions, operation).await {
            self.reload().await?;
            if !new.iter().all(|file| self.files.contains_key(&file.path)) {
                return Err(error);
            }
        }
        self.maintenance += 1;
        for file in old {
            self.files.remove(&file.path);
        }
        self.files.extend(new.into_iter().map(|file| (file.path.clone(), Arc::new(file))));
        Ok(())
    }

    async fn commit(
        &mut self,
        actions: Vec<Action>,
        transactions: Vec<Transaction>,
        operation: DeltaOperation,
    ) -> Result<(), Error> {
        // No retries inside: after a conflict we plan anew on what is there.
        let properties = CommitProperties::default().with_max_retries(0).with_application_transactions(transactions);
        let committed = CommitBuilder::from(properties)
            .with_actions(actions)
            .build(Some(&self.state), self.log_store.clone(), operation)
            .await?;
        self.state = committed.snapshot();
        Ok(())
    }

    /// Takes what another writer has committed since.
    ///
    /// # Errors
    /// [`Error::Delta`], [`Error::Foreign`].
    pub async fn refresh(&mut self) -> Result<(), Error> {
        let mut state = self.state.clone();
        state.update(&*self.log_store, None).await?;
        if state.version() != self.state.version() {
            let maintenance = state.transaction_version(&*self.log_store, MAINTENANCE).await?;
            // Together, or nothing: a state with the files of another one has files deleted that are in the table.
            self.files = listed(self.layout, &state)?;
            (self.state, self.maintenance) = (state, maintenance.unwrap_or(0));
        }
        Ok(())
    }

    async fn reload(&mut self) -> Result<(), Error> {
        let state = DeltaTableState::try_new(&*self.log_store, None).await?;
        let maintenance = state.transaction_version(&*self.log_store, MAINTENANCE).await?;
        self.files = listed(self.layout, &state)?;
        (self.state, self.maintenance) = (state, maintenance.unwrap_or(0));
        Ok(())
    }
}

/// A folder, and where the Delta log in it is.
fn locate(root: &Path) -> Result<(PathBuf, LogStoreRef), Error> {
    let io = |cause| Error::Io { what: format!("find {}", root.display()), cause };
    let root = root.canonicalize().map_err(io)?;
    let below = Place::from(&*root).open()?;
    let anywhere = objects::below(&root);
    let location = Url::from_directory_path(&root)
        .map_err(|()| sendtrail_schemas::Error::Malformed(format!("{} is not absolute", root.display())))?;
    let log_store = default_logstore(below, anywhere, &location, &StorageConfig::default());
    Ok((root, log_store))
}

async fn load(log_store: &LogStoreRef) -> Result<Option<DeltaTable>, Error> {
    let mut table = DeltaTable::new(log_store.clone());
    if !table.verify_deltatable_existence().await? {
        return Ok(None);
    }
    table.load().await?;
    check(table.snapshot()?)?;
    Ok(Some(table))
}

/// # Errors
/// [`Error::Foreign`] for a table that needs more than is known here.
fn check(state: &DeltaTableState) -> Result<(), Error> {
    let asked = unknown_to_us(state.protocol());
    match asked.is_empty() {
        true => Ok(()),
        false => Err(Error::Foreign(format!("the archive: somebody has it need what is not known here: {asked}"))),
    }
}

/// The files of a table.
fn listed(layout: &'static Layout, state: &DeltaTableState) -> Result<BTreeMap<String, Arc<ArchivedFile>>, Error> {
    check(state)?;
    let mut files = BTreeMap::new();
    for file in state.log_data().iter() {
        let read = read_file(layout, &file.path(), file.size(), file.stats())?;
        // Other readers go by this, and not by the path.
        let said = file.partition_values_map().remove(PARTITION_COLUMN).flatten();
        if said.is_some_and(|said| said != Millis::of_day(read.day).day_text()) {
            let why = format!("{} in the Delta log: it is said to be of another day", read.path);
            return Err(sendtrail_schemas::Error::Malformed(why).into());
        }
        files.insert(read.path.clone(), Arc::new(read));
    }
    Ok(files)
}

/// The table with the columns that an earlier program did not know; in its rows they are null.
async fn with_new_columns(layout: &Layout, table: DeltaTable) -> Result<DeltaTable, Error> {
    let columns: StructType = (layout.schema)().as_ref().try_into_kernel().map_err(DeltaTableError::from)?;
    let known = table.snapshot()?.schema();
    let missing: Vec<StructField> =
        columns.fields().filter(|column| known.field(column.name()).is_none()).cloned().collect();
    if missing.is_empty() {
        return Ok(table);
    }
    tracing::info!(of = layout.name(), columns = missing.len(), "the archive gets columns that it did not have");
    Ok(table.add_columns().with_fields(missing).await?)
}

async fn create(layout: &Layout, log_store: LogStoreRef) -> Result<DeltaTable, Error> {
    let columns: StructType = (layout.schema)().as_ref().try_into_kernel().map_err(DeltaTableError::from)?;
    let day = StructField::nullable(PARTITION_COLUMN, DataType::DATE);
    let setting = |name: &str, value: String| (name.to_owned(), Some(value));
    let created = CreateBuilder::new()
        .with_log_store(log_store)
        .with_table_name(layout.name())
        .with_columns(columns.fields().cloned().chain([day]))
        .with_partition_columns([PARTITION_COLUMN])
        .with_raise_if_key_not_exists(false)
        .with_configuration([
            setting("delta.checkpointInterval", CHECKPOINT_INTERVAL.to_string()),
            setting("delta.logRetentionDuration", "interval 7 days".into()),
            setting("delta.enableExpiredLogCleanup", "true".into()),
            // Statistics are written for what queries of any tool go by first.
            setting("delta.dataSkippingStatsColumns", format!("account_id,{}", layout.time)),
        ])
        .await?;
    Ok(created)
}

fn transaction(layout: &Layout, partition: u32) -> String {
    format!("sendtrail-{}-{partition}", layout.name())
}

fn add(layout: &Layout, file: &ArchivedFile, data_change: bool) -> Add {
    let bounds = |account: &str, time: Millis| {
        HashMap::from([(ACCOUNT_ID.to_owned(), account.to_owned()), (layout.time.to_owned(), time.to_string())])
    };
    let stats = Stats {
        num_records: file.rows,
        min_values: bounds(&file.accounts.0, file.occurred.0),
        // Readers take a greatest time for exact, and ours is cut to milliseconds: the next one is safe.
        max_values: bounds(&file.accounts.1, file.occurred.1.plus(1)),
        null_count: HashMap::from([(ACCOUNT_ID.into(), 0), (layout.time.into(), 0)]),
    };
    Add {
        path: file.path.clone(),
        partition_values: HashMap::from([(PARTITION_COLUMN.into(), Some(Millis::of_day(file.day).day_text()))]),
        size: file.bytes as i64,
        modification_time: Millis::wall().0,
        data_change,
        stats: serde_json::to_string(&stats).ok(),
        ..Add::default()
    }
}

fn remove(file: &ArchivedFile) -> Remove {
    Remove {
        path: file.path.clone(),
        data_change: false,
        deletion_timestamp: Some(Millis::wall().0),
        extended_file_metadata: Some(true),
        partition_values: Some(HashMap::from([(PARTITION_COLUMN.into(), Some(Millis::of_day(file.day).day_text()))])),
        size: Some(file.bytes as i64),
        ..Remove::default()
    }
}

fn read_file(layout: &Layout, path: &str, bytes: i64, stats: Option<String>) -> Result<ArchivedFile, Error> {
    let malformed = |what: &str| sendtrail_schemas::Error::Malformed(format!("{path} in the Delta log: {what}"));
    let day =
        path.strip_prefix("dt=").and_then(|rest| rest.get(..10)).ok_or_else(|| malformed("no day in its path"))?;
    let stats: Stats =
        serde_json::from_str(&stats.unwrap_or_default()).map_err(|cause| malformed(&cause.to_string()))?;
    let account = |bounds: &Bounds| bounds.get(ACCOUNT_ID).cloned().ok_or_else(|| malformed("no bounds of accounts"));
    let time = |bounds: &Bounds| {
        let text = bounds.get(layout.time).ok_or_else(|| malformed("no bounds of times"))?;
        Millis::parse(text)
    };
    Ok(ArchivedFile {
        path: path.to_owned(),
        bytes: bytes as u64,
        rows: stats.num_records,
        day: Millis::parse_day(day)?.day(),
        accounts: (account(&stats.min_values)?, account(&stats.max_values)?),
        occurred: (time(&stats.min_values)?, time(&stats.max_values)?.plus(-1)),
    })
}
