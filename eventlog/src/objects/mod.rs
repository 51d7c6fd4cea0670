//! Where objects are kept: folders that keep their promises, and buckets, asked again when they fail.

mod durable;
mod place;
mod retrying;

use std::path::Path;
use std::sync::Arc;

use object_store::ObjectStore;

use durable::DurableFileSystem;
pub use durable::sync_with_parents;
pub use place::{Place, S3};
use retrying::Retrying;

/// A store whose paths are absolute, for writing below a folder.
pub fn below(folder: &Path) -> Arc<dyn ObjectStore> {
    Arc::new(Retrying::over(Arc::new(DurableFileSystem::absolute(folder))))
}
