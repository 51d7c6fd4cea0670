//! A commit of which it was never learnt that it was made.

use super::*;

/// The answer was lost, and so was that to the question what there is: the table that is open here knows nothing of it.
#[tokio::test]
async fn a_commit_that_was_made_though_its_answer_was_lost_keeps_its_tombstone_and_takes_its_salts() {
    let mut archive = Archive::new().await;
    archive.add(FIRST, 40).await;
    archive.seal(FIRST + 1).await;
    let before = archive.salts();
    let target = recipient(2, 1, 39);
    let erasing = archive.eraser.begin(vec![target.clone()]).await.unwrap();
    let Erasing { found, old, new, sealed, _alone: alone } = erasing;
    assert!(found.rows[0] > 0);
    let tombstone = sealed.bury(&archive.eraser.key, "2026-05-01T00:00:00Z".into(), "x".into(), 100).unwrap();
    assert_eq!(tombstone, Some(1));
    let mut elsewhere = Table::open(&EVENTS, archive.folder.path()).await.unwrap();
    elsewhere.rewrite(&old, new, tombstone).await.unwrap();
    drop(alone);
    assert_eq!(archive.eraser.table.lock().await.last_tombstone().await.unwrap(), 0, "nobody here knows");
    assert_eq!(archive.salts(), before);
    let hers = |event: &&mut Event| {
        event.account().to_string() == target.account && event.recipient.eq_ignore_ascii_case("person1@example.com")
    };
    archive.model.values_mut().filter(hers).for_each(strip);
    // The same once more, as it is tried: it finds what was done, and ends it.
    assert_eq!(archive.erase(vec![target.clone()]).await, [0]);
    archive.check().await;
    assert_eq!(archive.salts(), before - 1);
}
