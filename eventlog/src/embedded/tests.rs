//! The suite, and what only files can suffer.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::contract::Subject;

struct Folder(TempDir);

impl Subject for Folder {
    async fn fresh() -> Self {
        Self(TempDir::new().unwrap())
    }

    async fn open(&self) -> Option<Arc<dyn EventLog>> {
        Some(Arc::new(open(self.0.path()).unwrap()))
    }
}

crate::contract_suite!(Folder);

const OF: TopicPartition = TopicPartition { topic: Topic::Intake, partition: 0 };

fn options() -> Options {
    // Small, so that tests cross segments and read from files.
    Options { partitions: 2, segment_bytes: 1 << 20, cache_bytes: 200_000, ..Options::default() }
}

fn open(folder: &Path) -> Result<EmbeddedLog, Error> {
    EmbeddedLog::open(folder, options())
}

fn append(log: &EmbeddedLog, value: &[u8]) -> Result<u64, Error> {
    let mut batch = Batch::new();
    batch.push_bytes(value);
    futures::executor::block_on(log.append(OF, batch))
}

fn read(log: &EmbeddedLog) -> Result<Vec<Vec<u8>>, Error> {
    let batches = log.read(OF, log.shared.index.read().first(OF), usize::MAX)?;
    Ok(batches.iter().flat_map(|batch| batch.records(0)).map(|record| record.value.to_vec()).collect())
}

fn segments(folder: &Path) -> Vec<PathBuf> {
    list(folder).unwrap().into_iter().map(|(_, path)| path).collect()
}

fn written(folder: &Path, count: u8) {
    let log = open(folder).unwrap();
    (0..count).for_each(|n| assert_eq!(append(&log, &[n; 100]).unwrap(), u64::from(n)));
}

#[test]
fn a_segment_of_an_idle_log_does_not_stay_for_ever() {
    let folder = TempDir::new().unwrap();
    let age = Duration::from_millis(200);
    let open = |segment_age| EmbeddedLog::open(folder.path(), Options { segment_age, ..options() }).unwrap();
    written(folder.path(), 10);
    let there = || list(folder.path()).unwrap().into_iter().map(|(number, _)| number).collect::<Vec<_>>();
    let log = open(Duration::from_secs(3_600));
    log.trim(OF, 10);
    std::thread::sleep(2 * age);
    assert_eq!(there(), [0], "it is young, and the last one");
    drop(log);
    // Its age does not begin anew with the program.
    let log = open(age);
    log.trim(OF, 10);
    let until = Instant::now() + Duration::from_secs(60);
    while there() != [1] {
        assert!(Instant::now() < until, "{:?}", there());
        std::thread::sleep(age / 10);
    }
    std::thread::sleep(3 * age);
    assert_eq!(there(), [1], "an empty one is not old");
    assert_eq!(append(&log, b"a").unwrap(), 10, "numbers go on");
    std::thread::sleep(3 * age);
    append(&log, b"b").unwrap();
    assert_eq!(read(&log).unwrap(), [b"a", b"b"], "what nobody has passed stays");
}

#[test]
fn settings_that_are_fixed_are_checked() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), 1);
    for options in [Options { partitions: 3, ..options() }, Options { simulated: true, ..options() }] {
        let error = EmbeddedLog::open(folder.path(), options).err().unwrap();
        assert!(matches!(&error, Error::Settings(why) if why.contains("can change")), "{error}");
    }
}

#[test]
fn one_process_at_a_time() {
    let folder = TempDir::new().unwrap();
    let _first = open(folder.path()).unwrap();
    assert!(matches!(open(folder.path()), Err(Error::Settings(why)) if why.contains("in use")));
}

#[test]
fn a_folder_that_is_let_go_soon_is_waited_for() {
    let folder = TempDir::new().unwrap();
    for _ in 0..20 {
        let held = open(folder.path()).unwrap();
        let letting_go = std::thread::spawn(move || {
            let begun = Instant::now();
            std::thread::sleep(LET_GO_WITHIN / 5);
            drop(held);
            begun.elapsed()
        });
        let opened = open(folder.path()).map(drop);
        // Where the disk stalled it was not let go soon: once more.
        if letting_go.join().unwrap() < LET_GO_WITHIN / 2 {
            opened.unwrap();
            return;
        }
    }
    panic!("it was never let go soon");
}

#[test]
fn space_is_freed_once_every_partition_has_passed() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path()).unwrap();
    let other = TopicPartition::new(Topic::Events, 1);
    let mut batch = Batch::new();
    batch.push_bytes(b"someone else's");
    futures::executor::block_on(log.append(other, batch)).unwrap();
    (0..40).for_each(|n| assert_eq!(append(&log, &[1; 100_000]).unwrap(), n));
    assert_eq!(segments(folder.path()).len(), 4);
    let before = log.status().disk_bytes;
    log.trim(OF, 35);
    assert_eq!(segments(folder.path()).len(), 4, "the other partition is still in the first segment");
    log.trim(other, 1);
    assert_eq!(segments(folder.path()).len(), 1);
    assert!(log.status().disk_bytes < before / 2);
    assert!(matches!(log.read(OF, 0, 1), Err(Error::Trimmed { .. })));
    assert_eq!(log.read(OF, 35, 1).unwrap()[0].base_offset, 35);
    drop(log);
    // Numbers go on although nothing of the partition is left.
    let log = open(folder.path()).unwrap();
    assert_eq!(*log.end(other).borrow(), 1);
}

#[test]
fn a_torn_tail_is_cut_off_at_any_byte() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), 4);
    let path = segments(folder.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let frame = frame::HEADER + 104;
    for cut in 1..frame {
        fs::write(&path, &whole[..whole.len() - cut]).unwrap();
        let log = open(folder.path()).unwrap();
        assert_eq!(read(&log).unwrap(), (0..3u8).map(|n| vec![n; 100]).collect::<Vec<_>>(), "cut {cut}");
        assert_eq!(append(&log, &[9; 100]).unwrap(), 3);
        assert_eq!(read(&log).unwrap().len(), 4);
    }
}

#[test]
fn rubbish_behind_the_last_frame_is_cut_off() {
    let folder = TempDir::new().unwrap();
    for rubbish in [vec![0u8; 5000], b"STf1".repeat(20), vec![0xff; 39]] {
        let folder = folder.path().join(format!("{}", rubbish.len()));
        written(&folder, 3);
        let path = segments(&folder).pop().unwrap();
        OpenOptions::new().append(true).open(path).unwrap().write_all(&rubbish).unwrap();
        let log = open(&folder).unwrap();
        assert_eq!(read(&log).unwrap().len(), 3);
        append(&log, b"next").unwrap();
        drop(log);
        assert_eq!(read(&open(&folder).unwrap()).unwrap().len(), 4);
    }
}

#[test]
fn a_flipped_bit_in_what_was_durable_is_corruption_and_not_a_tail() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), 5);
    let path = segments(folder.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let first = whole.windows(4).position(|w| w == frame::MAGIC).unwrap();
    let frame = frame::HEADER + 104;
    // In the header, too, of a segment that has frames: it is not taken for one that a crash left.
    for at in [3, 9, first - 1, first, first + 20, first + frame + 60, first + 2 * frame + 5] {
        let mut bent = whole.clone();
        bent[at] ^= 4;
        fs::write(&path, &bent).unwrap();
        let error = open(folder.path()).err().unwrap();
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
    }
}

#[test]
fn no_flipped_bit_of_what_tells_where_a_frame_ends_hides_that_it_was_durable() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), 4);
    let path = segments(folder.path()).pop().unwrap();
    let whole = fs::read(&path).unwrap();
    let first = whole.windows(4).position(|w| w == frame::MAGIC).unwrap();
    let second = first + frame::HEADER + 104;
    // The length of the record is behind the header.
    for bit in 0..(frame::HEADER + 4) * 8 {
        let mut bent = whole.clone();
        bent[second + bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &bent).unwrap();
        let error = open(folder.path()).err().unwrap();
        assert!(matches!(error, Error::Corrupt { at, .. } if at == second as u64), "bit {bit}: {error}");
    }
}

/// A value that begins with a whole frame, which says that its group begins at a place.
fn forged(group: usize) -> Vec<u8> {
    let frame = frame::Frame { of: OF, count: 1, base_offset: 9, stamp: 0, group: group as u32, length: 5 };
    let mut bytes = Vec::new();
    frame.write(b"\x01\0\0\0x", &mut bytes);
    bytes.resize(100, 5);
    bytes
}

#[test]
fn what_looks_like_a_frame_in_a_payload_does_not_make_a_torn_tail_corruption() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), 3);
    let path = segments(folder.path()).pop().unwrap();
    let durable = fs::read(&path).unwrap();
    // A group commit of two frames, in which somebody guessed, and somebody knew where his bytes would be.
    let mut group = Vec::new();
    for base_offset in [3, 5] {
        let at = durable.len() + group.len();
        let mut batch = Batch::new();
        batch.push_bytes(&forged(u32::MAX as usize));
        batch.push_bytes(&forged(at + frame::HEADER + 104 + 4));
        let (payload, count) = batch.freeze(0);
        let (length, begin) = (payload.len() as u32, durable.len() as u32);
        let frame = frame::Frame { of: OF, count, base_offset, stamp: 0, group: begin, length };
        frame.write(&payload, &mut group);
    }
    let size = frame::HEADER + 2 * 104;
    assert_eq!(group.len(), 2 * size);
    let left = |tail: &[u8]| {
        fs::write(&path, [&durable[..], tail].concat()).unwrap();
        read(&open(folder.path()).unwrap()).unwrap().len()
    };
    assert_eq!(left(&group), 7);
    for cut in (1..=group.len()).step_by(3) {
        let whole = group.len() - cut;
        assert_eq!(left(&group[..whole]), 3 + 2 * (whole / size), "{whole}");
    }
    // What was written of the first frame has a hole, and the second is there.
    let mut torn = group.clone();
    torn[frame::HEADER + 90] = 0;
    assert_eq!(left(&torn), 3);
    // Where it ends is not known any more: a place that nothing can have is not believed all the same.
    assert_eq!(left(&[&[0u8; 50][..], &forged(u32::MAX as usize)[..]].concat()), 3);
}

#[test]
fn a_flipped_bit_in_a_sealed_segment_is_found_when_it_is_read() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path()).unwrap();
    (0..30).for_each(|n| assert_eq!(append(&log, &[1; 100_000]).unwrap(), n));
    drop(log);
    let path = segments(folder.path()).remove(0);
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&[2], 500_000).unwrap();
    let log = open(folder.path()).unwrap();
    assert!(matches!(read(&log), Err(Error::Corrupt { at, .. }) if at < 500_000));
    assert!(log.read(OF, 25, 1).is_ok());
}

#[test]
fn a_segment_whose_header_was_torn_is_made_anew() {
    let folder = TempDir::new().unwrap();
    written(folder.path(), 3);
    let next = folder.path().join("00000000000000000001.seg");
    for header in [&b""[..], b"STseg", b"STseg001\x03\0\0\0"] {
        fs::write(&next, header).unwrap();
        let log = open(folder.path()).unwrap();
        assert_eq!(read(&log).unwrap().len(), 3);
        assert!(!next.exists());
    }
}

#[test]
fn a_full_queue_refuses_intake_only() {
    let folder = TempDir::new().unwrap();
    let log = EmbeddedLog::open(folder.path(), Options { queue_bytes: 1000, ..options() }).unwrap();
    let big = |topic| {
        let mut batch = Batch::new();
        batch.push_bytes(&[0; 900]);
        log.append(TopicPartition::new(topic, 0), batch)
    };
    let appends: Vec<_> = (0..200).map(|_| big(Topic::Intake)).collect();
    let outputs: Vec<_> = (0..200).map(|_| big(Topic::Mail)).collect();
    let results: Vec<_> = appends.into_iter().map(futures::executor::block_on).collect();
    assert!(results.iter().any(|result| matches!(result, Err(Error::Full))));
    assert!(results.iter().any(Result::is_ok));
    assert!(outputs.into_iter().all(|append| futures::executor::block_on(append).is_ok()));
}

#[test]
fn a_closed_log_refuses_but_has_written_what_was_queued() {
    let folder = TempDir::new().unwrap();
    let log = open(folder.path()).unwrap();
    let mut batch = Batch::new();
    batch.push_bytes(b"queued");
    let queued = log.append(OF, batch);
    log.close();
    assert_eq!(futures::executor::block_on(queued).unwrap(), 0);
    assert!(matches!(append(&log, b"late"), Err(Error::Failed(_))));
    drop(log);
    assert_eq!(read(&open(folder.path()).unwrap()).unwrap().len(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Appends, reopenings, torn tails and trims, against a plain list.
    #[test]
    fn equals_a_plain_list(ops in prop::collection::vec((0u8..10, 1usize..60_000), 1..60)) {
        let folder = TempDir::new().unwrap();
        let mut log = open(folder.path()).unwrap();
        let mut list: Vec<Vec<u8>> = Vec::new();
        let mut low = 0usize;
        for (n, (op, size)) in ops.into_iter().enumerate() {
            match op {
                0..=6 => {
                    let value = vec![n as u8; size];
                    prop_assert_eq!(append(&log, &value).unwrap(), list.len() as u64);
                    list.push(value);
                }
                7 => {
                    drop(log);
                    log = open(folder.path()).unwrap();
                }
                8 => {
                    drop(log);
                    let path = segments(folder.path()).pop();
                    if let Some(path) = path {
                        OpenOptions::new().append(true).open(path).unwrap().write_all(&vec![7; size % 500]).unwrap();
                    }
                    log = open(folder.path()).unwrap();
                }
                _ => {
                    low = low.max(size % (list.len() + 1));
                    log.trim(OF, low as u64);
                }
            }
            let first = log.shared.index.read().first(OF) as usize;
            prop_assert!(first <= low);
            prop_assert_eq!(read(&log).unwrap(), &list[first..]);
        }
    }
}
