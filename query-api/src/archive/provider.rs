//! Some files and some of the tail, as a table of DataFusion.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use chrono::DateTime;
use datafusion::arrow::array::RecordBatch;
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::DFSchema;
use datafusion::datasource::TableType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::parquet::{CachedParquetFileReaderFactory, ParquetAccessPlan};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder, ParquetSource};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::utils::conjunction;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;
use object_store::ObjectMeta;
use object_store::path::Path;
use sendtrail_schemas::archive::ArchivedFile;

/// A file, and the row groups of it that may hold what is wanted.
#[derive(Clone, Debug)]
pub struct Chosen {
    /// The file.
    pub file: Arc<ArchivedFile>,
    /// By row group, whether to read it; `None`: all of them.
    pub groups: Option<Vec<bool>>,
}

impl Chosen {
    /// All of a file.
    pub fn whole(file: Arc<ArchivedFile>) -> Self {
        Self { file, groups: None }
    }
}

/// See the module.
pub struct ArchiveTable {
    /// Its columns; a file of before may lack some.
    pub schema: SchemaRef,
    /// Where the files are.
    pub root: PathBuf,
    /// The files.
    pub files: Vec<Chosen>,
    /// What is in none yet.
    pub tail: Vec<RecordBatch>,
}

impl ArchiveTable {
    /// Files dealt out to as many readers as there are threads.
    fn groups(&self, threads: usize) -> Result<Vec<FileGroup>> {
        let mut groups = vec![Vec::new(); threads.clamp(1, self.files.len().max(1))];
        let count = groups.len();
        for (at, chosen) in self.files.iter().enumerate() {
            let mut file = PartitionedFile::new_from_meta(ObjectMeta {
                location: Path::from_absolute_path(self.root.join(&chosen.file.path))?,
                // Files never change; what is remembered of them is told apart by path and size.
                last_modified: DateTime::UNIX_EPOCH,
                size: chosen.file.bytes,
                e_tag: None,
                version: None,
            });
            if let Some(read) = &chosen.groups {
                let mut plan = ParquetAccessPlan::new_none(read.len());
                read.iter().enumerate().filter(|(_, read)| **read).for_each(|(group, _)| plan.scan(group));
                file = file.with_extension(plan);
            }
            groups[at % count].push(file);
        }
        Ok(groups.into_iter().map(FileGroup::new).collect())
    }
}

impl fmt::Debug for ArchiveTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ArchiveTable({} files, {} batches)", self.files.len(), self.tail.len())
    }
}

#[async_trait]
impl TableProvider for ArchiveTable {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let mut inputs: Vec<Arc<dyn ExecutionPlan>> = Vec::new();
        if !self.tail.is_empty() || self.files.is_empty() {
            inputs.push(MemorySourceConfig::try_new_exec(
                std::slice::from_ref(&self.tail),
                self.schema.clone(),
                projection.cloned(),
            )?);
        }
        if !self.files.is_empty() {
            let options = state.config_options();
            let store_url = ObjectStoreUrl::local_filesystem();
            let environment = state.runtime_env();
            let reader = CachedParquetFileReaderFactory::new(
                environment.object_store(&store_url)?,
                environment.cache_manager.get_file_metadata_cache(),
            );
            let mut source = ParquetSource::new(self.schema.clone())
                .with_table_parquet_options(datafusion::config::TableParquetOptions {
                    global: options.execution.parquet.clone(),
                    ..Default::default()
                })
                .with_parquet_file_reader_factory(Arc::new(reader))
                .with_pushdown_filters(true);
            if let Some(filter) = conjunction(filters.to_vec()) {
                let schema = DFSchema::try_from(self.schema.clone())?;
                source = source.with_predicate(state.create_physical_expr(filter, &schema)?);
            }
            let scan = FileScanConfigBuilder::new(store_url, Arc::new(source))
                .with_file_groups(self.groups(state.config().target_partitions())?)
                .with_projection_indices(projection.cloned())?
                .build();
            inputs.push(DataSourceExec::from_data_source(scan));
        }
        match <[_; 1]>::try_from(inputs) {
            Ok([only]) => Ok(only),
            Err(several) => UnionExec::try_new(several),
        }
    }
}
