//! Books on their way from server to server, and those of another log.

use fjall::Database;
use sendtrail_schemas::ids::{DestinationId, ReplayId};
use tempfile::TempDir;
use uuid::Uuid;

use super::super::book::{DeliveryKey, Reached, Standing, Waiting, Waits};
use super::*;

struct Server {
    _folder: TempDir,
    book: Book,
}

fn server() -> Server {
    let folder = TempDir::new().unwrap();
    let database = Database::builder(folder.path()).open().unwrap();
    Server { book: Book::open(&database, 3).unwrap(), _folder: folder }
}

fn fill(book: &Book, events: std::ops::Range<u64>) {
    for seq in events {
        let key = DeliveryKey { seq, destination: DestinationId(Uuid::from_u128(u128::from(seq % 3))) };
        let waits = [Waits::Timer, Waits::Backlog, Waits::Held, Waits::Replay][seq as usize % 4];
        let body = vec![seq as u8; 700].into();
        let waiting =
            Waiting { body, due_at: seq as i64, waits: waits as i32, in_order_of: 1 + seq % 2, ..Waiting::default() };
        book.put(key, &waiting).unwrap();
    }
}

#[tokio::test]
async fn another_server_has_what_the_first_had() {
    let folder = TempDir::new().unwrap();
    let snapshots = BookSnapshots::open(&folder.path().into(), Duration::ZERO).unwrap();
    assert!(!BookSnapshots::are_at(&folder.path().into(), None).await.unwrap());
    let (one, other) = (server(), server());
    assert!(!snapshots.restore(&other.book, 3).await.unwrap(), "there is none");
    fill(&one.book, 0..2_500);
    let mut standing = Standing { account_id: vec![1], ..Standing::default() };
    standing.breaker.failures = 4;
    one.book.put_standing(DestinationId(Uuid::from_u128(1)), &standing).unwrap();
    let reached = Reached { cursor: "there".into(), counts: None, is_done: false };
    one.book.put_reached(ReplayId(Uuid::from_u128(5)), &reached).unwrap();
    one.book.checkpoint(Marks { event: 2_500, attempt: 9 }).unwrap();
    snapshots.take(one.book.clone(), 3).await.unwrap();
    assert!(BookSnapshots::are_at(&folder.path().into(), None).await.unwrap());

    // What is here of some time ago is given up.
    fill(&other.book, 7_000..7_100);
    other.book.checkpoint(Marks { event: 2_500, attempt: 8 }).unwrap();
    assert!(snapshots.restore(&other.book, 3).await.unwrap());
    assert_eq!(other.book.dump(), one.book.dump());
    assert!(!snapshots.restore(&other.book, 3).await.unwrap(), "it is as far");
    assert!(!snapshots.restore(&server().book, 2).await.unwrap(), "of another partition");
    // Nor is one that is further.
    other.book.checkpoint(Marks { event: 2_600, attempt: 9 }).unwrap();
    assert!(!snapshots.restore(&other.book, 3).await.unwrap());
}

#[tokio::test]
async fn a_damaged_one_is_passed_over_and_two_are_kept() {
    let folder = TempDir::new().unwrap();
    let snapshots = BookSnapshots::open(&folder.path().into(), Duration::ZERO).unwrap();
    let one = server();
    for round in 1..=4u64 {
        fill(&one.book, round * 10..round * 10 + 5);
        one.book.checkpoint(Marks { event: round * 10 + 5, attempt: round }).unwrap();
        snapshots.take(one.book.clone(), 3).await.unwrap();
    }
    let mut files: Vec<_> =
        std::fs::read_dir(folder.path().join("partition-00003")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), KEPT);
    let damage = |file: &std::path::Path| {
        let mut bytes = std::fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file, bytes).unwrap();
    };
    damage(&files[1]);
    let other = server();
    assert!(snapshots.restore(&other.book, 3).await.unwrap());
    assert_eq!(other.book.marks().unwrap(), Marks { event: 35, attempt: 3 });
    damage(&files[0]);
    let nothing = server();
    let refused = snapshots.restore(&nothing.book, 3).await.unwrap_err();
    assert!(refused.to_string().contains("not what was written"), "{refused}");
    assert!(!nothing.book.has_deliveries());
    // Who has a book goes on with it.
    assert!(!snapshots.restore(&other.book, 3).await.unwrap());
}

#[tokio::test]
async fn a_book_of_another_log_is_neither_taken_nor_deleted() {
    let folder = TempDir::new().unwrap();
    let place: Place = folder.path().into();
    let of = |log: Option<&str>| BookSnapshots::open(&place, Duration::ZERO).unwrap().of(log.map(str::to_owned));
    let [unnamed, one, two] = [None, Some("Kafka cluster one"), Some("Kafka cluster two")].map(of);
    let names = || -> Vec<String> {
        let files = std::fs::read_dir(folder.path().join("partition-00003")).unwrap();
        let mut names: Vec<_> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    let events = || -> Vec<u64> { names().iter().map(|name| marks(name).unwrap().event).collect() };
    let book = server();
    let at = |event| {
        book.book.checkpoint(Marks { event, attempt: 0 }).unwrap();
        book.book.clone()
    };

    // One that does not say whose it is is anybody's, as it was.
    unnamed.take(at(5), 3).await.unwrap();
    for snapshots in [&unnamed, &one, &two] {
        assert!(BookSnapshots::are_at(&place, Some(snapshots.log.clone())).await.unwrap());
        assert!(snapshots.restore(&server().book, 3).await.unwrap());
    }
    one.take(at(20), 3).await.unwrap();
    one.take(at(30), 3).await.unwrap();
    assert_eq!(events(), [20, 30]);
    for (snapshots, is_theirs) in [(&unnamed, true), (&one, true), (&two, false)] {
        assert_eq!(BookSnapshots::are_at(&place, Some(snapshots.log.clone())).await.unwrap(), is_theirs);
        let new = server();
        assert_eq!(snapshots.restore(&new.book, 3).await.unwrap(), is_theirs);
        assert_eq!(new.book.marks().unwrap().event, if is_theirs { 30 } else { 0 });
    }

    // Each keeps two of its own, however far the other is.
    for event in 7..=9 {
        two.take(at(event), 3).await.unwrap();
    }
    assert_eq!(events(), [8, 9, 20, 30]);
    one.take(at(40), 3).await.unwrap();
    assert_eq!(events(), [8, 9, 30, 40]);
    for (snapshots, event) in [(&one, 40), (&two, 9)] {
        let new = server();
        assert!(snapshots.restore(&new.book, 3).await.unwrap());
        assert_eq!(new.book.marks().unwrap().event, event);
    }
    // An earlier program takes a name whose fourth part is as long as a checksum, and compares the last one.
    assert!(names().iter().all(|name| name.split('-').nth(3).is_some_and(|part| part.len() == 32)));
}

#[tokio::test]
async fn one_is_taken_when_there_is_something_new() {
    let folder = TempDir::new().unwrap();
    let snapshots = Arc::new(BookSnapshots::open(&folder.path().into(), Duration::ZERO).unwrap());
    let one = server();
    let mut keeper = Keeper::begin(snapshots.clone(), &one.book, 3).await.unwrap();
    for (reached, more, is_taken) in [
        ((0, 0), false, true),
        ((0, 0), false, false),
        ((0, 1), false, true),
        ((0, 1), true, true),
        ((0, 1), false, false),
    ] {
        keeper.next_at = Instant::now();
        keeper.look(&one.book, reached, more).await;
        assert_eq!(keeper.writing.is_some(), is_taken, "{reached:?} {more}");
        keeper.collect(true).await;
    }
    one.book.checkpoint(Marks { event: 7, attempt: 7 }).unwrap();
    keeper.finish(&one.book, (7, 7)).await;
    let other = server();
    assert!(snapshots.restore(&other.book, 3).await.unwrap());
    assert_eq!(other.book.marks().unwrap(), Marks { event: 7, attempt: 7 });
}
