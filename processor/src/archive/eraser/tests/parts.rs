//! Erasures of more rows than one tombstone has.

use sendtrail_audit::{Erasure, SEALS};

use super::*;

#[tokio::test]
async fn an_erasure_of_many_rows_has_several_tombstones_and_one_commit_names_the_last() {
    let mut archive = Archive::new().await;
    archive.add(FIRST, 100).await;
    archive.add(FIRST, 100).await;
    archive.seal(FIRST + 1).await;
    let day = || Target { account: account(1), who: Who::Received { from: FIRST as Day, to: FIRST as Day + 1 } };
    let before = archive.salts();
    // It ends in the middle: not all are written, and no commit names any.
    let begun = archive.eraser.begin(vec![day()]).await.unwrap();
    let key = &archive.eraser.key;
    let last = begun.sealed.bury(key, "2026-05-01T00:00:00Z".into(), "x".into(), TOMBSTONE_ROWS).unwrap();
    assert_eq!(last, Some(100u64.div_ceil(TOMBSTONE_ROWS)));
    drop(begun._alone);
    let seals = archive.folder.path().join(SEALS);
    std::fs::remove_file(seals.join("000007.erasure.json")).unwrap();
    assert_eq!(archive.report().await.void, 6);
    archive.check().await;
    // The same again.
    assert_eq!(archive.erase(vec![day()]).await, [100]);
    archive.check().await;
    let report = archive.report().await;
    assert_eq!((report.erased, report.void), (100, 0));
    assert_eq!(archive.eraser.table.lock().await.last_tombstone().await.unwrap(), 7);
    assert!(archive.salts() < before);
    let mut rows = 0;
    for tombstone in SealFolder::of(archive.folder.path()).erasures(u64::MAX).unwrap() {
        let (number, envelope) = tombstone.unwrap();
        let erasure: Erasure = envelope.open(Erasure::FORMAT, &[archive.eraser.key.public()]).unwrap();
        assert_eq!(erasure.number, number);
        assert!(erasure.rows.len() as u64 <= TOMBSTONE_ROWS && erasure.rows.is_sorted_by_key(|row| row.seq));
        rows += erasure.rows.len();
    }
    assert_eq!(rows, 100);
    let left = walk(&seals).into_iter().filter(|path| {
        let path = path.to_string_lossy();
        path.ends_with("going.json") || path.ends_with("writing")
    });
    assert_eq!(left.count(), 0);
}
