//! The Parquet archive: Delta Lake tables of our own sorted files, that any tool opens as they are.

mod eraser;
mod follower;
mod gather;
mod layout;
mod merge;
mod parquet_file;
mod sealer;
mod table;
mod upkeep;

pub use eraser::{Eraser, Erasing, Found, Target, Who};
pub use follower::{Follower, Look};
pub use layout::{ATTEMPTS, EVENTS, Layout};
pub use merge::read_file;
pub use parquet_file::write_files;
pub use sealer::{Random, Sealer};
pub use table::Table;
pub use upkeep::{Upkeep, UpkeepOptions};

pub(crate) use merge::{conform, open};
pub(crate) use upkeep::fresh_name;

#[cfg(test)]
mod tests;
