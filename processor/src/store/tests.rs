use super::*;
use crate::core::rows::FactSeen;
use crate::core::rows::RowKind;
use sendtrail_schemas::time::HOUR;
use tempfile::TempDir;
use uuid::Uuid;

fn key(hash: u128) -> RowKey {
    RowKey { account: AccountId(Uuid::from_u128(1)), kind: RowKind::Fact, hash }
}

fn write(store: &Store, partition: u32, hash: u128, at: i64, t: i64) {
    let mut overlay = Overlay::new(partition, Progress { next_offset: 5, last_t: t, ..Progress::default() });
    overlay.put_row(key(hash), Some(Row::Fact(FactSeen { at, horizon_hours: 72, kinds: 0 })));
    store.commit(partition, Writes::take(&mut overlay)).unwrap();
}

#[test]
fn a_checkpoint_reads_back_after_a_restart_and_partitions_are_apart() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), 2, 1 << 20).unwrap();
    assert_eq!(store.progress(1).unwrap(), None);
    write(&store, 1, 9, HOUR, HOUR);
    drop(store);
    let store = Store::open(folder.path(), 2, 1 << 20).unwrap();
    assert_eq!(store.progress(1).unwrap().unwrap().next_offset, 5);
    assert!(store.row(1, &key(9)).unwrap().is_some());
    assert!(store.row(0, &key(9)).unwrap().is_none());
    assert!(store.account(1, AccountId(Uuid::from_u128(1))).unwrap().is_none());
}

#[test]
fn a_checkpoint_that_was_written_in_part_never_was() {
    use std::os::unix::fs::FileExt;
    let folder = TempDir::new().unwrap();
    let journal = folder.path().join("0.jnl");
    // It is as long as it may become from the beginning, and zeros where nothing was written.
    let end = || std::fs::read(&journal).unwrap().iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let store = Store::open(folder.path(), 1, 1 << 20).unwrap();
    write(&store, 0, 1, HOUR, HOUR);
    let first = end();
    write(&store, 0, 2, HOUR, 2 * HOUR);
    drop(store);
    let whole = std::fs::read(&journal).unwrap();
    let second = end();
    assert!(second > first + 50);
    let stands = || {
        let store = Store::open(folder.path(), 1, 1 << 20).unwrap();
        let time = store.progress(0).unwrap().unwrap().last_t;
        let rows = [1, 2].map(|hash| store.row(0, &key(hash)).unwrap().is_some());
        (time, rows)
    };
    for written in first..second {
        let file = std::fs::File::options().write(true).open(&journal).unwrap();
        file.set_len(whole.len() as u64).unwrap();
        file.write_all_at(&whole[first..written], first as u64).unwrap();
        file.write_all_at(&vec![0; second - written], written as u64).unwrap();
        assert_eq!(stands(), (HOUR, [true, false]), "{written} of {first}..{second}");
    }
    std::fs::write(&journal, &whole).unwrap();
    assert_eq!(stands(), (2 * HOUR, [true, true]));
}

#[test]
fn what_is_removed_and_made_again_in_one_checkpoint_is_there() {
    use crate::core::account::Account;
    use crate::core::window::Counted;
    use sendtrail_schemas::account::{AccountConfig, Identity, IdentityType};
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), 1, 1 << 20).unwrap();
    let id = AccountId(Uuid::from_u128(1));
    let identity = |n: usize| Identity {
        kind: IdentityType::Domain as i32,
        value: format!("d{n:03}.example"),
        ..Identity::default()
    };
    // Many, so that sorting has something to do.
    let config = AccountConfig {
        account_id: id.bytes().to_vec(),
        identities: (0..100).map(identity).collect(),
        ..AccountConfig::default()
    };
    let mut overlay = Overlay::new(0, Progress::default());
    let mut account = Box::new(Account::new(config));
    let t = Millis(1_000 * HOUR);
    let checkpoint = |overlay: &mut Overlay, account: Box<Account>| {
        overlay.put_account(id, account);
        store.commit(0, Writes::take(overlay)).unwrap();
        overlay.take_account(id).unwrap()
    };
    account.config_mut();
    account = checkpoint(&mut overlay, account);
    for n in 0..100 {
        account.remove_identity(n);
        account.insert_identity(n, identity(n));
        account.count(None, &format!("a@{}", identity(n).value), t, t.hour(), Counted::Send, true);
    }
    checkpoint(&mut overlay, account);
    let kept = store.account(0, id).unwrap().unwrap();
    assert!(kept.identities.iter().all(|tracked| tracked.window.sum().sent == 1));
}

#[test]
fn an_account_is_the_same_whether_its_rows_are_looked_up_or_gone_through() {
    use crate::core::rows::Profile;
    use crate::core::window::Counted;
    use sendtrail_schemas::account::{AccountConfig, ConfigSet, Identity, IdentityType};
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), 1, 1 << 20).unwrap();
    let t = Millis(1_000 * HOUR);
    for parts in 0..2 * ONE_BY_ONE {
        let id = AccountId(Uuid::from_u128(parts as u128 + 1));
        let identity = |n: usize| Identity {
            kind: IdentityType::Domain as i32,
            value: format!("d{n:03}.example"),
            ..Identity::default()
        };
        let set = |n: usize| ConfigSet {
            config_set_id: Uuid::from_u128(n as u128).as_bytes().to_vec(),
            name: format!("set{n:03}"),
            ..ConfigSet::default()
        };
        // Profiles alone, or sets and identities, too.
        let count = parts / 2 * (parts % 2);
        let config = AccountConfig {
            account_id: id.bytes().to_vec(),
            identities: (0..count).map(identity).collect(),
            config_sets: (0..count).map(set).collect(),
            epoch: (parts % 3) as u32,
            ..AccountConfig::default()
        };
        let mut account = Box::new(Account::new(config));
        account.config_mut();
        account.usage_mut().sent = 7;
        if parts % 3 > 0 {
            account.restart_judging();
        }
        for n in 0..=count {
            let from = format!("a@d{n:03}.example");
            account.count(Some(n), &from, t, t.hour(), Counted::Send, true);
        }
        for n in 0..parts {
            let profile = Profile { from: format!("a{n}@b.example").into(), ..Profile::default() };
            account.profiles.number(profile, t).unwrap();
        }
        let mut overlay = Overlay::new(0, Progress::default());
        overlay.put_account(id, account);
        store.commit(0, Writes::take(&mut overlay)).unwrap();
        let one = store.account(0, id).unwrap().unwrap();
        let other = read_account(None, store.accounts.prefix([&prefix(0)[..], id.bytes()].concat())).unwrap().unwrap();
        let shown = |account: &Account| format!("{:?} {:?}", account.reputation(), account.judged);
        assert_eq!(shown(&one), shown(&other));
        for number in 1..=parts as u32 + 1 {
            assert_eq!(one.profiles.get(number), other.profiles.get(number));
            assert_eq!(one.profiles.get(number).is_some(), number as usize <= parts);
        }
    }
    assert!(store.account(0, AccountId(Uuid::from_u128(99))).unwrap().is_none());
}

#[test]
fn a_configuration_that_was_read_is_not_read_again() {
    let id = AccountId(Uuid::from_u128(1));
    let config = AccountConfig { account_id: id.bytes().to_vec(), epoch: 3, ..AccountConfig::default() };
    // What cannot be read shows whether it is.
    let key = config_key(id);
    let rows = [(&key[..], &b"\xff"[..])];
    assert!(Account::restore(rows).is_err());
    let account = Account::restore_with(Some(config.clone()), rows).unwrap().unwrap();
    assert_eq!(*account.config, config);
}

#[test]
fn merging_drops_what_the_logs_time_has_forgotten() {
    let folder = TempDir::new().unwrap();
    let store = Store::open(folder.path(), 2, 1 << 20).unwrap();
    write(&store, 0, 1, 0, 0);
    write(&store, 1, 1, 0, 0);
    write(&store, 0, 2, 100 * HOUR, 100 * HOUR);
    store.rows.rotate_memtable_and_wait().unwrap();
    store.rows.major_compact().unwrap();
    assert!(store.row(0, &key(1)).unwrap().is_none());
    assert!(store.row(0, &key(2)).unwrap().is_some());
    assert!(store.row(1, &key(1)).unwrap().is_some(), "the other partition's time stands still");
}
