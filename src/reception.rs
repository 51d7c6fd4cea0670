//! Decisions and questions between servers: who waits, who is asked, who answers.

use std::sync::Arc;

use sendtrail_eventlog::kafka::{Exchange, Heard};
use sendtrail_eventlog::{Desk, LocalReplies, Replies, Waiting};
use sendtrail_processor::{Inquiries, Inquiry};
use sendtrail_schemas::codec;
use sendtrail_schemas::exchange::{Answer, Question, Reply};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::record::{Decision, ReplyTo};
use sendtrail_schemas::reputation::Reputation;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// Replies to whoever waits, here or elsewhere.
pub struct AllReplies {
    /// Those who wait here.
    pub here: Arc<LocalReplies>,
    /// The way to the others.
    pub exchange: Arc<Exchange>,
}

impl Replies for AllReplies {
    fn expect(&self) -> Waiting<Decision> {
        self.here.expect()
    }

    fn tell(&self, to: ReplyTo, decision: Decision) {
        if to.instance == self.here.instance() {
            return self.here.tell(to, decision);
        }
        self.exchange.reply(&Reply { version: codec::VERSION, to, answer: Some(Answer::Decision(decision)) });
    }
}

/// Who knows accounts' windows.
#[derive(Clone)]
pub enum Owners {
    /// The partitions of this process.
    Here(Vec<Inquiries>),
    /// Another server.
    Elsewhere(Arc<Questions>),
}

/// Questions to another server.
pub struct Questions {
    /// The way there.
    pub exchange: Arc<Exchange>,
    /// Those who wait for an answer.
    pub desk: Desk<Option<Reputation>>,
}

impl Owners {
    /// An account's windows, once everything before an offset is applied.
    ///
    /// # Errors
    /// When whoever is asked has ended.
    pub async fn ask(
        &self,
        partition: u32,
        account: AccountId,
        after: u64,
    ) -> Result<Option<Reputation>, sendtrail_query_api::Error> {
        let port = |why: &str| sendtrail_query_api::Error::Port(why.to_owned());
        match self {
            Self::Here(inquiries) => {
                let asked = inquiries.get(partition as usize).ok_or_else(|| port("no such partition"))?;
                let (answer, wait) = oneshot::channel();
                asked
                    .send(Inquiry::Reputation { account, after, answer })
                    .await
                    .map_err(|_| port("the partition has ended"))?;
                wait.await.map_err(|_| port("the partition has ended"))
            }
            Self::Elsewhere(questions) => {
                let mut waiting = questions.desk.expect();
                let question = Question {
                    version: codec::VERSION,
                    reply_to: waiting.reply_to,
                    account_id: account.bytes().to_vec(),
                    after,
                };
                questions.exchange.ask(partition, &question);
                waiting.answer().await.ok_or_else(|| port("the owner of the partition did not answer"))
            }
        }
    }
}

/// Answers what is asked of the partitions of this process, and hands replies to those who wait.
pub struct Reception {
    /// The way back.
    pub exchange: Arc<Exchange>,
    /// Where to ask, by partition; empty when nothing is owned here.
    pub inquiries: Vec<Inquiries>,
    /// Those who wait for decisions.
    pub replies: Arc<LocalReplies>,
    /// Those who wait for windows.
    pub questions: Option<Arc<Questions>>,
    /// Where answers are waited for.
    pub handle: Handle,
}

impl Reception {
    /// Listens from now on. Blocks for a moment.
    ///
    /// # Errors
    /// When the brokers do not answer.
    pub fn open(self) -> Result<(), sendtrail_eventlog::Error> {
        let (is_owner, instance) = (!self.inquiries.is_empty(), self.replies.instance());
        let exchange = self.exchange.clone();
        exchange.listen(is_owner, instance, move |heard| match heard {
            Heard::Question(partition, question) => self.answer(partition, &question),
            Heard::Reply(Reply { to, answer: Some(answer), .. }) => match answer {
                Answer::Decision(decision) => self.replies.tell(to, decision),
                Answer::Reputation(view) => match Reputation::try_from(*view) {
                    Ok(reputation) => self.hand_over(to, Some(reputation)),
                    Err(error) => tracing::warn!(%error, "a reply cannot be read"),
                },
                Answer::NoAccount(_) => self.hand_over(to, None),
            },
            Heard::Reply(_) => {}
        })
    }

    fn hand_over(&self, to: ReplyTo, reputation: Option<Reputation>) {
        if let Some(questions) = &self.questions {
            questions.desk.tell(to, reputation);
        }
    }

    fn answer(&self, partition: u32, question: &Question) {
        let (Ok(account), Some(asked)) = (question.account(), self.inquiries.get(partition as usize)) else { return };
        let (answer, wait) = oneshot::channel();
        // Whoever asks when more is asked than can be answered asks in vain.
        if asked.try_send(Inquiry::Reputation { account, after: question.after, answer }).is_err() {
            return;
        }
        let (exchange, to) = (self.exchange.clone(), question.reply_to);
        self.handle.spawn(async move {
            let Ok(found) = wait.await else { return };
            let answer = found.map_or(Answer::NoAccount(true), |found| Answer::Reputation(Box::new(found.into())));
            exchange.reply(&Reply { version: codec::VERSION, to, answer: Some(answer) });
        });
    }
}
