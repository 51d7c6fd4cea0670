//! Where objects are kept: folders that keep their promises, asked again when they fail.

mod durable;
mod retrying;

use std::path::Path;
use std::sync::Arc;

use object_store::{ObjectStore, Result};

use durable::DurableFileSystem;
pub use durable::sync_with_parents;
use retrying::Retrying;

/// A folder, which may be a mounted one, as a store whose paths are relative to it.
///
/// # Errors
/// Those of the file system.
pub fn in_folder(folder: &Path) -> Result<Arc<dyn ObjectStore>> {
    Ok(Arc::new(Retrying::over(Arc::new(DurableFileSystem::relative(folder)?))))
}

/// A store whose paths are absolute, for writing below a folder.
pub fn below(folder: &Path) -> Arc<dyn ObjectStore> {
    Arc::new(Retrying::over(Arc::new(DurableFileSystem::absolute(folder))))
}
