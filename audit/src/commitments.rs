//! Commitments of rows that are being erased, until they stand in tombstones: on disk, since a day may have more of them than there
//! is memory.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};

use sendtrail_schemas::secret::hex;

use crate::Error;
use crate::folder::SealFolder;
use crate::merkle::Hash;
use crate::seal::ErasedRow;

/// Bytes of a record: partition, number, commitment.
const RECORD: usize = 4 + 8 + 32;

/// Those that were noted.
#[derive(Default)]
pub(crate) struct Commitments {
    /// It has no name: nothing is left of it when this is dropped, or the program ends.
    file: Option<BufWriter<File>>,
    rows: u64,
}

impl Commitments {
    /// Notes one.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn add(&mut self, folder: &SealFolder, of: (u32, u64), commitment: &Hash) -> Result<(), Error> {
        if self.file.is_none() {
            self.file = Some(BufWriter::new(folder.nameless()?));
        }
        let mut record = [0; RECORD];
        record[..4].copy_from_slice(&of.0.to_be_bytes());
        record[4..12].copy_from_slice(&of.1.to_be_bytes());
        record[12..].copy_from_slice(commitment);
        if let Some(file) = &mut self.file {
            file.write_all(&record).map_err(Error::io("note a commitment"))?;
        }
        self.rows += 1;
        Ok(())
    }

    /// To be read, from the first on.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn noted(self) -> Result<Noted, Error> {
        let Some(file) = self.file else { return Ok(Noted { file: None, left: 0 }) };
        let written = file.into_inner().map_err(std::io::IntoInnerError::into_error);
        let mut file = written.map_err(Error::io("note commitments"))?;
        file.rewind().map_err(Error::io("read commitments"))?;
        Ok(Noted { file: Some(BufReader::new(file)), left: self.rows })
    }
}

/// Those that are not read yet.
pub(crate) struct Noted {
    file: Option<BufReader<File>>,
    left: u64,
}

impl Noted {
    /// How many there are.
    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// The next ones, in the order of partition and number.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn take(&mut self, most: u64) -> Result<Vec<ErasedRow>, Error> {
        let mut rows = Vec::new();
        let Some(file) = &mut self.file else { return Ok(rows) };
        let mut record = [0; RECORD];
        while self.left > 0 && (rows.len() as u64) < most {
            file.read_exact(&mut record).map_err(Error::io("read commitments"))?;
            let (mut partition, mut seq) = ([0; 4], [0; 8]);
            partition.copy_from_slice(&record[..4]);
            seq.copy_from_slice(&record[4..12]);
            rows.push(ErasedRow {
                partition: u32::from_be_bytes(partition),
                seq: u64::from_be_bytes(seq),
                commitment: hex(&record[12..]),
            });
            self.left -= 1;
        }
        rows.sort_unstable_by_key(|row| (row.partition, row.seq));
        Ok(rows)
    }
}
