use super::*;
use crate::core::webhook::breaker::Patience;
use sendtrail_schemas::destination::Health;
use tempfile::TempDir;
use uuid::Uuid;

fn id(n: u128) -> DestinationId {
    DestinationId(Uuid::from_u128(n))
}

fn key(seq: u64) -> DeliveryKey {
    DeliveryKey { seq, destination: id(9) }
}

fn waiting(due_at: i64) -> Waiting {
    Waiting { account_id: vec![1], due_at, event_name: "Open".into(), ..Waiting::default() }
}

fn seqs(book: &Book, waits: Waits) -> Vec<u64> {
    book.waiting_for(id(9), waits, (0, 0), &BTreeSet::new(), 10).unwrap().into_iter().map(|(key, _)| key.seq).collect()
}

#[test]
fn a_delivery_has_one_timer_at_a_time() {
    let folder = TempDir::new().unwrap();
    let database = Database::builder(folder.path()).open().unwrap();
    let (book, other) = (Book::open(&database, 0).unwrap(), Book::open(&database, 1).unwrap());
    book.put(key(1), &waiting(100)).unwrap();
    book.put(key(2), &waiting(50)).unwrap();
    book.put(key(1), &waiting(20)).unwrap();
    other.put(key(7), &waiting(1)).unwrap();
    let of = |waits| (vec![1], id(9), waits);
    let from = |place| BTreeMap::from([(of(Waits::Backlog), place)]);
    assert_eq!(book.ripen(0, 10, 10).unwrap(), (BTreeMap::new(), Some(20)));
    assert_eq!(book.ripen(20, 60, 1).unwrap(), (from((20, 1)), Some(50)));
    assert_eq!(seqs(&book, Waits::Backlog), [1]);
    assert_eq!(book.ripen(50, 60, 10).unwrap(), (from((50, 2)), None));
    assert_eq!(seqs(&book, Waits::Backlog), [1, 2]);
    let rest = book.waiting_for(id(9), Waits::Backlog, (20, 2), &BTreeSet::new(), 10).unwrap();
    assert_eq!(rest.iter().map(|(key, _)| key.seq).collect::<Vec<_>>(), [2]);
    let rest = book.waiting_for(id(9), Waits::Backlog, (0, 0), &BTreeSet::from([(20, 1)]), 1).unwrap();
    assert_eq!(rest.iter().map(|(key, _)| key.seq).collect::<Vec<_>>(), [2]);
    let replay = Waiting { waits: Waits::Replay as i32, ..waiting(5) };
    book.put(key(3), &replay).unwrap();
    assert_eq!((seqs(&book, Waits::Backlog), seqs(&book, Waits::Replay)), (vec![1, 2], vec![3]));
    assert_eq!(book.destinations().unwrap(), [(of(Waits::Backlog), (20, 1)), (of(Waits::Replay), (5, 3))]);
    assert_eq!(other.destinations().unwrap(), []);
    book.remove(key(1)).unwrap();
    book.remove(key(1)).unwrap();
    // Tried again and failed: back to the timers.
    book.put(key(2), &waiting(90)).unwrap();
    book.put(key(3), &waiting(95)).unwrap();
    assert_eq!((seqs(&book, Waits::Backlog), seqs(&book, Waits::Replay)), (vec![], vec![]));
    assert_eq!(book.ripen(0, 60, 10).unwrap(), (BTreeMap::new(), Some(90)));
    assert_eq!(book.get(key(2)).unwrap(), Some(waiting(90)));
    book.checkpoint(Marks { event: 3, attempt: 4 }).unwrap();
    assert_eq!((book.marks().unwrap().event, other.marks().unwrap().event), (3, 0));
}

#[test]
fn what_is_held_comes_when_the_one_before_is_done() {
    let folder = TempDir::new().unwrap();
    let book = Book::open(&Database::builder(folder.path()).open().unwrap(), 0).unwrap();
    let of = |message: u64, waits: Waits| Waiting { in_order_of: message, waits: waits as i32, ..waiting(10) };
    for seq in [1, 4, 6] {
        let waits = if book.first_in_order(id(9), 77).unwrap().is_some() { Waits::Held } else { Waits::Backlog };
        book.put(key(seq), &of(77, waits)).unwrap();
    }
    book.put(key(2), &of(78, Waits::Backlog)).unwrap();
    assert_eq!(seqs(&book, Waits::Backlog), [1, 2]);
    // It fails, and is tried again later: those behind it still wait.
    book.put(key(1), &of(77, Waits::Timer)).unwrap();
    assert_eq!((seqs(&book, Waits::Backlog), book.first_in_order(id(9), 77).unwrap()), (vec![2], Some(1)));
    assert_eq!(book.remove(key(1)).unwrap(), Some((10, 4)));
    assert_eq!(seqs(&book, Waits::Backlog), [2, 4]);
    assert_eq!(book.remove(key(2)).unwrap(), None);
    // The last one goes before the one before it: nothing is let go.
    assert_eq!(book.remove(key(6)).unwrap(), None);
    assert_eq!(book.remove(key(4)).unwrap(), None);
    assert_eq!((seqs(&book, Waits::Backlog), book.first_in_order(id(9), 77).unwrap()), (vec![], None));
}

#[test]
fn only_destinations_that_fail_have_a_standing() {
    let folder = TempDir::new().unwrap();
    let book = Book::open(&Database::builder(folder.path()).open().unwrap(), 3).unwrap();
    let mut standing = Standing { account_id: vec![1], next_attempt: 8, ..Standing::default() };
    standing.breaker.note(&Patience::default(), false, 1_000);
    book.put_standing(id(9), &standing).unwrap();
    assert_eq!(book.standings().unwrap(), [(id(9), standing.clone())]);
    standing.breaker.note(&Patience::default(), true, 2_000);
    assert_eq!(standing.breaker.health(), Health::Working);
    book.put_standing(id(9), &standing).unwrap();
    assert_eq!(book.standings().unwrap(), []);
}
