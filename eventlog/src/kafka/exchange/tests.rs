use parking_lot::Mutex;
use sendtrail_schemas::account::AccountConfig;
use sendtrail_schemas::exchange::{Answer, ClickHouseView, ProgressView};
use sendtrail_schemas::record::{Decision, ReplyTo};

use super::super::KafkaLog;
use super::super::tests::{open, options, soon};
use super::*;

type Views = Arc<Mutex<Vec<(u32, Word)>>>;

fn account(version: u64) -> Seen {
    Seen::Account(Box::new(AccountConfig { account_id: vec![1; 16], version, ..AccountConfig::default() }))
}

fn follow(exchange: &Exchange) -> Views {
    let views = Views::default();
    let into = views.clone();
    tokio::task::block_in_place(|| exchange.follow_views(move |of, word| into.lock().push((of, word)))).unwrap();
    views
}

/// A server that owns nothing.
fn bystander(options: &Options) -> Arc<KafkaLog> {
    open(&Options { parts: Vec::new(), topics: Vec::new(), instance: "bystander".into(), ..options.clone() }).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn whoever_comes_later_sees_the_last_word_and_knows_a_former_owners() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let options = options(address);
    let log = open(&options).unwrap();
    let owner = log.exchange();
    owner.reign(0).await.unwrap();
    // Another one that had begun to own it, before the owner's last words.
    let zombie = bystander(&options);
    zombie.exchange().reigns[0].store(owner.reigns[0].load(Ordering::Acquire), Ordering::Release);
    owner.reign(0).await.unwrap();
    owner.reign(1).await.unwrap();
    for version in 1..=3 {
        owner.announce(0, account(version)).await.unwrap();
    }
    owner.announce(1, Seen::Progress(ProgressView { applied: 7, ..ProgressView::default() })).await.unwrap();
    zombie.exchange().announce(0, account(2)).await.unwrap();
    // From whoever fills ClickHouse, who owns no partition.
    let clickhouse = Seen::ClickHouse(ClickHouseView { next_event: 5, whole_since: None });
    zombie.exchange().announce(1, clickhouse.clone()).await.unwrap();
    let late = bystander(&options);
    let views = follow(late.exchange());
    let of = |partition| {
        let views = views.lock();
        let of = views.iter().filter(|(of, word)| *of == partition && !matches!(word, Word::Reign { .. }));
        of.map(|(_, word)| word.clone()).collect::<Vec<_>>()
    };
    let said = |voice, version| Word::Said(voice, account(version));
    let owners = |version| said(Voice::Owner, version);
    assert_eq!(of(0), [owners(1), owners(2), owners(3), said(Voice::Former, 2)]);
    assert_eq!(of(1).len(), 2);
    assert_eq!(of(1)[1], Word::Said(Voice::Owner, clickhouse));
    assert_eq!(views.lock().iter().filter(|(_, word)| *word == Word::Reign { is_ours: false }).count(), 3);
    owner.announce(0, account(4)).await.unwrap();
    soon(|| of(0).len() == 5).await;
    assert_eq!(of(0)[4], owners(4));
    assert!(follow(owner).lock().iter().all(|(_, word)| *word != Word::Reign { is_ours: false }), "its own");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_question_reaches_the_owner_and_the_reply_whoever_asked() {
    let Some(address) = sendtrail_test_servers::kafka() else { return };
    let options = options(address);
    let log = open(&options).unwrap();
    let asking = [3, 5].map(|instance| (instance, bystander(&options)));
    let owner = log.exchange().clone();
    let replying = owner.clone();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let into = asked.clone();
    let answer = move |heard| {
        let Heard::Question(partition, question) = heard else { panic!("{heard:?}") };
        into.lock().push((partition, question.clone()));
        let decision = Decision { offset: question.after, ..Decision::default() };
        let answer = Some(Answer::Decision(decision));
        replying.reply(&Reply { version: codec::VERSION, to: question.reply_to, answer });
    };
    tokio::task::block_in_place(|| owner.listen(true, 0, answer)).unwrap();
    let heard = asking.each_ref().map(|(instance, log)| {
        let heard: Arc<Mutex<Vec<Reply>>> = Arc::default();
        let into = heard.clone();
        let take = move |what| {
            if let Heard::Reply(reply) = what {
                into.lock().push(reply);
            }
        };
        // Both read the same partition of replies.
        tokio::task::block_in_place(|| log.exchange().listen(false, *instance, take)).unwrap();
        heard
    });
    for (at, (instance, log)) in (0..).zip(&asking) {
        let question = Question {
            version: codec::VERSION,
            reply_to: ReplyTo { instance: *instance, request: 10 + at },
            account_id: vec![1; 16],
            after: 100 + at,
            source: None,
        };
        log.exchange().ask(1, &question);
    }
    soon(|| heard.iter().all(|heard| !heard.lock().is_empty())).await;
    for (at, heard) in (0..).zip(&heard) {
        let heard = heard.lock();
        assert_eq!(heard.len(), 1, "each its own");
        assert_eq!(heard[0].to.request, 10 + at);
        let Some(Answer::Decision(decision)) = &heard[0].answer else { panic!("{heard:?}") };
        assert_eq!(decision.offset, 100 + at);
    }
    assert!(asked.lock().iter().all(|(partition, _)| *partition == 1));
}
