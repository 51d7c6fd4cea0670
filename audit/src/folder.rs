//! The folder in which the seals of a table are.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Error;
use crate::envelope::Envelope;
use crate::salts::Salts;

/// Its name within a table's folder; Delta tools pass over names with an underscore.
pub const SEALS: &str = "_seals";

/// What stands beside a tombstone until its salts are gone.
const GOING: &str = "going.json";

/// The greatest number of a seal.
const LAST: u64 = 999_999_999;

/// What the name of a tombstone ends in.
const ERASURE: &str = "erasure.json";

/// See the module.
#[derive(Clone, Debug)]
pub struct SealFolder {
    root: PathBuf,
}

impl SealFolder {
    /// Of a table's folder. It need not be there.
    pub fn of(table: &Path) -> Self {
        Self { root: table.join(SEALS) }
    }

    fn path(&self, number: u64, what: &str) -> PathBuf {
        self.root.join(format!("{number:06}.{what}"))
    }

    /// Every seal, by its number.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`]: one is not even an envelope.
    pub fn seals(&self) -> Result<Vec<(u64, Envelope)>, Error> {
        self.numbers("seal.json")?.into_iter().map(|number| self.envelope(number, "seal.json")).collect()
    }

    /// Every tombstone up to a number, by its number.
    ///
    /// # Errors
    /// As [`Self::seals`].
    pub fn erasures(&self, through: u64) -> Result<impl Iterator<Item = Result<(u64, Envelope), Error>> + '_, Error> {
        let numbers = self.numbers(ERASURE)?.into_iter().filter(move |number| *number <= through);
        Ok(numbers.map(|number| self.envelope(number, ERASURE)))
    }

    /// One of them.
    ///
    /// # Errors
    /// As [`Self::seals`].
    pub(crate) fn erasure(&self, number: u64) -> Result<Envelope, Error> {
        Ok(self.envelope(number, ERASURE)?.1)
    }

    fn envelope(&self, number: u64, what: &str) -> Result<(u64, Envelope), Error> {
        let malformed = |cause| Error::Malformed(format!("{}: {cause}", self.path(number, what).display()));
        Ok((number, serde_json::from_slice(&self.file(number, what)?).map_err(malformed)?))
    }

    fn file(&self, number: u64, what: &str) -> Result<Vec<u8>, Error> {
        let path = self.path(number, what);
        fs::read(&path).map_err(Error::io(format!("read {}", path.display())))
    }

    fn numbers(&self, what: &str) -> Result<Vec<u64>, Error> {
        if !self.root.is_dir() {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(Error::io(format!("list {}", self.root.display())))? {
            let entry = entry.map_err(Error::io(format!("list {}", self.root.display())))?;
            let name = entry.file_name();
            let Some((number, rest)) = name.to_str().and_then(|name| name.split_once('.')) else { continue };
            let Ok(number) = number.parse::<u64>() else { continue };
            if rest == what {
                if number > LAST || format!("{number:06}.{what}") != name.to_string_lossy() {
                    return Err(Error::Malformed(format!("{} is no name of ours", entry.path().display())));
                }
                all.push(number);
            }
        }
        all.sort_unstable();
        Ok(all)
    }

    /// Writes a seal, its side files first: whoever finds it finds them. Durable when this returns.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn write(&self, number: u64, seal: &Envelope, leaves: &[u8], salts: &Salts) -> Result<(), Error> {
        self.put(&self.path(number, "leaves"), leaves)?;
        self.put(&self.path(number, "salts"), &salts.to_bytes())?;
        self.put(&self.path(number, "seal.json"), &as_json(seal)?)
    }

    /// Writes a tombstone, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn write_erasure(&self, number: u64, erasure: &Envelope) -> Result<(), Error> {
        self.put(&self.path(number, ERASURE), &as_json(erasure)?)
    }

    /// Writes which salts are to go once the rows of a tombstone are bare, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn write_going(&self, number: u64, going: &[u8]) -> Result<(), Error> {
        self.put(&self.path(number, GOING), going)
    }

    /// Salts that are to go and may be there yet, by the number of their tombstone.
    ///
    /// # Errors
    /// As [`Self::seals`].
    pub(crate) fn going(&self) -> Result<Vec<(u64, Vec<u8>)>, Error> {
        self.numbers(GOING)?.into_iter().map(|number| Ok((number, self.file(number, GOING)?))).collect()
    }

    /// The numbers of all tombstones.
    ///
    /// # Errors
    /// As [`Self::seals`].
    pub fn erasure_numbers(&self) -> Result<Vec<u64>, Error> {
        self.numbers(ERASURE)
    }

    /// Takes back a tombstone whose rows were never made bare.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn remove_erasure(&self, number: u64) -> Result<(), Error> {
        let path = self.path(number, ERASURE);
        fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))
    }

    /// They are gone.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn remove_going(&self, number: u64) -> Result<(), Error> {
        let path = self.path(number, GOING);
        fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))
    }

    /// The salts of a seal.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn salts(&self, number: u64) -> Result<Salts, Error> {
        Salts::read(&self.path(number, "salts"))
    }

    /// Replaces the salts of a seal, durable when this returns.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn replace_salts(&self, number: u64, salts: &Salts) -> Result<(), Error> {
        self.put(&self.path(number, "salts"), &salts.to_bytes())
    }

    /// The first bytes of a seal's leaves.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn leaves(&self, number: u64) -> Result<Vec<u8>, Error> {
        let path = self.path(number, "leaves");
        fs::read(&path).map_err(Error::io(format!("read {}", path.display())))
    }

    /// A file to write to and to read from, of which nothing is left once it is closed.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn nameless(&self) -> Result<File, Error> {
        let path = self.root.join("nameless.writing");
        let open = || -> std::io::Result<File> {
            let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
            fs::remove_file(&path)?;
            Ok(file)
        };
        open().map_err(Error::io(format!("open {}", path.display())))
    }

    fn put(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        put_durably(path, bytes)
    }
}

/// Writes a file whole or not at all, also when the power goes; makes its folder if that is missing.
///
/// # Errors
/// [`Error::Io`].
pub fn put_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let folder = path.parent().unwrap_or(path);
    let write = || {
        fs::create_dir_all(folder)?;
        let aside = path.with_extension("writing");
        let mut file = File::create(&aside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&aside, path)?;
        File::open(folder)?.sync_all()?;
        File::open(folder.parent().unwrap_or(folder))?.sync_all()
    };
    write().map_err(Error::io(format!("write {}", path.display())))
}

fn as_json(envelope: &Envelope) -> Result<Vec<u8>, Error> {
    serde_json::to_vec_pretty(envelope).map_err(|cause| Error::Malformed(cause.to_string()))
}
