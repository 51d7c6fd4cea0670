//! The Parquet archive: a Delta Lake table of our own sorted files, that any tool opens as it is.

mod durable;
mod merge;
mod parquet_file;
mod table;
mod upkeep;

pub use merge::read_file;
pub use parquet_file::write_files;
pub use table::Table;
pub use upkeep::{Upkeep, UpkeepOptions};

pub(crate) use upkeep::fresh_name;

#[cfg(test)]
mod tests;
