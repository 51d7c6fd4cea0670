//! Segment files: a header that says where each partition stood, then frames.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes};
use sendtrail_schemas::topic::{Topic, TopicPartition};

use super::frame::{Frame, HEADER, MAGIC};
use crate::Error;
use crate::failpoint;

const SEGMENT_MAGIC: [u8; 8] = *b"STseg001";
/// Bytes that the header of a segment has at most.
const MAX_HEADER: u64 = 16 + (1 << 20) * 11;
const SUFFIX: &str = "seg";

/// The next offset of each partition.
pub type Marks = HashMap<TopicPartition, u64>;

/// One file of the log.
#[derive(Debug)]
pub struct Segment {
    /// Its place among the others.
    pub number: u64,
    /// Where it is.
    pub path: PathBuf,
    file: File,
    length: u64,
}

/// A frame and where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// What it says of itself.
    pub frame: Frame,
    /// Where it begins.
    pub at: u64,
}

pub fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |cause| Error::Io { what, cause: cause.to_string() }
}

/// Makes the entries of a folder durable.
pub fn sync_folder(folder: &Path) -> Result<(), Error> {
    let sync = || File::open(folder)?.sync_all();
    sync().map_err(io(format!("sync {}", folder.display())))
}

/// The segments of a folder, in order.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>, Error> {
    let what = || format!("list {}", folder.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(io(what()))? {
        let path = entry.map_err(io(what()))?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()).and_then(|stem| stem.parse().ok());
        if let (Some(number), true) = (number, path.extension().is_some_and(|suffix| suffix == SUFFIX)) {
            found.push((number, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Whether a file whose header does not read back has frames all the same: then it is damaged, and no crash left it so.
pub fn holds_frames(path: &Path) -> Result<bool, Error> {
    let length = std::fs::metadata(path).map_err(io(format!("look at {}", path.display())))?.len();
    if length > MAX_HEADER {
        return Ok(true);
    }
    let bytes = std::fs::read(path).map_err(io(format!("read {}", path.display())))?;
    Ok(bytes.windows(MAGIC.len()).any(|window| window == MAGIC))
}

impl Segment {
    /// Makes an empty segment, durable before it returns.
    pub fn create(folder: &Path, number: u64, marks: &Marks) -> Result<Self, Error> {
        let path = folder.join(format!("{number:020}.{SUFFIX}"));
        let header = write_header(marks);
        let create = || {
            let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
            file.write_all(&header)?;
            file.sync_all()?;
            Ok(file)
        };
        let file = create().map_err(io(format!("create {}", path.display())))?;
        sync_folder(folder)?;
        Ok(Self { number, path, file, length: header.len() as u64 })
    }

    /// Opens a segment and reads its header; `None` when the header was never written whole.
    pub fn open(number: u64, path: PathBuf) -> Result<Option<(Self, Marks)>, Error> {
        let open = || {
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(io(format!("open {}", path.display())))?;
        let mut segment = Self { number, path, file, length };
        let Some((marks, _)) = segment.header()? else { return Ok(None) };
        // The cursor is at the end, where appends go.
        segment.file.seek(SeekFrom::End(0)).map_err(io("seek"))?;
        Ok(Some((segment, marks)))
    }

    fn header(&self) -> Result<Option<(Marks, u64)>, Error> {
        // What is not there was never written; what cannot be read may be.
        let read = |into: &mut [u8], at| match self.file.read_exact_at(into, at) {
            Ok(()) => Ok(true),
            Err(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
            Err(cause) => Err(io(format!("read {}", self.path.display()))(cause)),
        };
        let mut start = [0u8; 16];
        if !read(&mut start, 0)? || !start.starts_with(&SEGMENT_MAGIC) {
            return Ok(None);
        }
        let mut fixed = &start[8..];
        let (entries, crc) = (fixed.get_u32_le() as usize, fixed.get_u32_le());
        let mut table = vec![0u8; entries.min(1 << 20) * 11];
        if !read(&mut table, 16)? || crc32fast::hash(&table) != crc {
            return Ok(None);
        }
        let mut marks = Marks::new();
        for mut entry in table.chunks_exact(11) {
            let topic = Topic::from_code(entry.get_u8());
            let partition = u32::from(entry.get_u16_le());
            if let Some(topic) = topic {
                marks.insert(TopicPartition { topic, partition }, entry.get_u64_le());
            }
        }
        Ok(Some((marks, 16 + table.len() as u64)))
    }

    /// Bytes of the file.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// Appends bytes and makes them durable.
    ///
    /// # Errors
    /// [`Error::Write`] when nothing was appended; [`Error::Failed`] when that is in doubt.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = failpoint::fails("log.write").and_then(|()| self.file.write_all(bytes));
        if let Err(cause) = written {
            let undone = self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::End(0)));
            return Err(match undone {
                Ok(_) => Error::Write(cause.to_string()),
                Err(second) => Error::Failed(format!("{cause}; and it could not be undone: {second}")),
            });
        }
        // After a failed fsync the kernel may have dropped the pages: what is on the device is in doubt.
        failpoint::reach("log.written");
        let synced = failpoint::fails("log.sync").and_then(|()| self.file.sync_data());
        synced.map_err(|cause| Error::Failed(format!("fsync of {}: {cause}", self.path.display())))?;
        failpoint::reach("log.synced");
        self.length += bytes.len() as u64;
        Ok(())
    }

    /// A handle to read from while the segment is appended to.
    pub fn reader(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(io(format!("open {}", self.path.display())))
    }

    /// The frames of a sealed segment, payloads not read: they are checked when they are.
    pub fn frames(&self) -> Result<Vec<Placed>, Error> {
        let start = self.start()?;
        let what = || format!("read {}", self.path.display());
        let mut reader = BufReader::new(self.reader()?);
        reader.seek(SeekFrom::Start(start)).map_err(io(what()))?;
        let mut frames = Vec::new();
        let mut at = start;
        let mut header = [0u8; HEADER];
        while at < self.length {
            let frame = reader.read_exact(&mut header).ok().and_then(|()| Frame::read(&header));
            let frame = frame.map(|(frame, _)| frame).filter(|frame| at + frame.size() <= self.length);
            let frame = frame.ok_or_else(|| self.corrupt(at, "no frame begins here"))?;
            reader.seek_relative(i64::from(frame.length)).map_err(io(what()))?;
            frames.push(Placed { frame, at });
            at += frame.size();
        }
        Ok(frames)
    }

    /// The frames of the last segment, all checked; a torn tail is cut off.
    ///
    /// # Errors
    /// [`Error::Corrupt`] when what was durable does not read back.
    pub fn recover(&mut self) -> Result<Vec<Placed>, Error> {
        let start = self.start()?;
        let mut bytes = vec![0u8; self.length as usize];
        self.file.read_exact_at(&mut bytes, 0).map_err(io(format!("read {}", self.path.display())))?;
        let mut frames = Vec::new();
        let mut at = start as usize;
        while let Some(frame) = intact(&bytes, at) {
            frames.push(Placed { frame, at: at as u64 });
            at += frame.size() as usize;
        }
        if at < bytes.len() {
            self.cut_tail(&bytes, at)?;
        }
        // What a killed process left may be in memory only, and counts as durable from now on.
        self.file.sync_all().map_err(io(format!("sync {}", self.path.display())))?;
        Ok(frames)
    }

    /// Cuts off what a crash left half written, unless a later group commit shows that it had been durable.
    fn cut_tail(&mut self, bytes: &[u8], at: usize) -> Result<(), Error> {
        if is_followed(bytes, at) {
            return Err(self.corrupt(at as u64, "a durable frame does not read back, and later ones do"));
        }
        tracing::warn!(segment = %self.path.display(), at, bytes = bytes.len() - at, "cutting off a torn tail");
        let mut cut = || {
            self.file.set_len(at as u64)?;
            self.file.sync_all()?;
            self.file.seek(SeekFrom::End(0))
        };
        cut().map_err(io(format!("truncate {}", self.path.display())))?;
        self.length = at as u64;
        Ok(())
    }

    fn start(&self) -> Result<u64, Error> {
        let header = self.header()?;
        header.map(|(_, start)| start).ok_or_else(|| self.corrupt(0, "the header does not read back"))
    }

    fn corrupt(&self, at: u64, why: &str) -> Error {
        Error::Corrupt { file: self.path.display().to_string(), at, why: why.into() }
    }
}

fn intact(bytes: &[u8], at: usize) -> Option<Frame> {
    let rest = bytes.get(at..)?;
    let (frame, crc) = Frame::read(rest)?;
    Frame::is_intact(crc, rest.get(..frame.size() as usize)?).then_some(frame)
}

/// Whether a later group commit is behind a frame that does not read back. Payloads hold what others chose, also what looks like
/// frames: as far as it can be told where frames end, nobody looks into them. Beyond, what looks like a later one is taken for
/// one, for nothing that was durable may be cut off.
fn is_followed(bytes: &[u8], at: usize) -> bool {
    // No frame's group begins after itself.
    let is_in = |place: usize, frame: Frame| (at + 1..=place).contains(&(frame.group as usize));
    let is_later = |place: usize| intact(bytes, place).is_some_and(|frame| is_in(place, frame));
    let mut place = at;
    while let Some(next) = end_of(bytes, place) {
        if is_later(place) {
            return true;
        }
        place = next;
    }
    (place..bytes.len()).any(is_later)
}

/// Where a frame ends whose payload need not be intact, maybe beyond what there is. Its length and its records must agree: one of
/// them alone, with a bit flipped, would hide what comes after.
fn end_of(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = bytes.get(at..)?;
    let (frame, _) = Frame::read(rest)?;
    let size = frame.size() as usize;
    let mut next = HEADER;
    for _ in 0..frame.count {
        let Some(length) = rest.get(next..).and_then(|rest| rest.first_chunk::<4>()) else {
            return (size > rest.len().max(next)).then_some(at + size);
        };
        next += 4 + u32::from_le_bytes(*length) as usize;
    }
    (next == size).then_some(at + size)
}

/// Reads the payload of a frame.
///
/// # Errors
/// [`Error::Corrupt`] when the checksum does not cover what the device returns.
pub fn read_payload(file: &File, path: &Path, placed: &Placed) -> Result<Bytes, Error> {
    let mut bytes = vec![0u8; placed.frame.size() as usize];
    file.read_exact_at(&mut bytes, placed.at).map_err(io(format!("read {}", path.display())))?;
    match Frame::read(&bytes) {
        Some((frame, crc)) if frame == placed.frame && Frame::is_intact(crc, &bytes) => {
            Ok(Bytes::from(bytes).slice(HEADER..))
        }
        _ => Err(Error::Corrupt {
            file: path.display().to_string(),
            at: placed.at,
            why: "the checksum does not match".into(),
        }),
    }
}

fn write_header(marks: &Marks) -> Vec<u8> {
    let mut entries: Vec<_> = marks.iter().collect();
    entries.sort_unstable();
    let mut table = Vec::with_capacity(entries.len() * 11);
    for (of, next) in &entries {
        table.put_u8(of.topic.code());
        table.put_u16_le(of.partition as u16);
        table.put_u64_le(**next);
    }
    let mut header = SEGMENT_MAGIC.to_vec();
    header.put_u32_le(entries.len() as u32);
    header.put_u32_le(crc32fast::hash(&table));
    header.put_slice(&table);
    header
}
