//! Decisions and questions between servers: who waits, who is asked, who answers.

use std::sync::Arc;

use sendtrail_eventlog::kafka::{Exchange, Heard};
use sendtrail_eventlog::{Desk, LocalReplies, Replies, Waiting};
use sendtrail_processor::Inquiry;
use sendtrail_schemas::codec;
use sendtrail_schemas::exchange::{Answer, Question, Reply, SourceView};
use sendtrail_schemas::ids::AccountId;
use sendtrail_schemas::record::{Decision, ReplyTo, SourcePosition};
use sendtrail_schemas::reputation::Reputation;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::ownership::Ownership;

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

/// Questions to other servers.
pub struct Questions {
    /// The way there.
    pub exchange: Arc<Exchange>,
    /// Those who wait for an answer.
    pub desk: Desk<Answer>,
}

/// Whoever owns a partition, here or elsewhere.
#[derive(Clone)]
pub struct Owners {
    /// What is owned here.
    pub ownership: Arc<Ownership>,
    /// Where the others are asked, if there may be any.
    pub questions: Option<Arc<Questions>>,
}

impl Owners {
    /// An account's windows, once everything before an offset is applied. Whoever is asked may be gone by then: not to be
    /// waited for without end.
    ///
    /// # Errors
    /// Why nobody can be asked.
    pub async fn reputation(
        &self,
        partition: u32,
        account: AccountId,
        after: u64,
    ) -> Result<Option<Reputation>, String> {
        let here = self.here(partition, |answer| Inquiry::Reputation { account, after, answer });
        if let Some(found) = here.await {
            return Ok(found);
        }
        match self.elsewhere(partition, account.bytes(), None, after).await? {
            Answer::Reputation(view) => Ok(Some(Reputation::try_from(*view).map_err(|error| error.to_string())?)),
            Answer::NoAccount(_) => Ok(None),
            Answer::Decision(_) | Answer::Source(_) => Err("the answer is to another question".into()),
        }
    }

    /// How far a source has come in a partition; otherwise the same.
    ///
    /// # Errors
    /// Why nobody can be asked.
    pub async fn source(&self, partition: u32, name: &str, after: u64) -> Result<Vec<SourcePosition>, String> {
        let here = self.here(partition, |answer| Inquiry::Source { name: name.to_owned(), after, answer });
        if let Some(found) = here.await {
            return Ok(found);
        }
        match self.elsewhere(partition, &[], Some(name.to_owned()), after).await? {
            Answer::Source(view) => Ok(view.marks),
            Answer::Decision(_) | Answer::Reputation(_) | Answer::NoAccount(_) => {
                Err("the answer is to another question".into())
            }
        }
    }

    /// What a partition of this process answers; none when it is not, or no longer, one.
    async fn here<T>(&self, partition: u32, inquiry: impl FnOnce(oneshot::Sender<T>) -> Inquiry) -> Option<T> {
        let asked = self.ownership.of(partition)?;
        let (answer, wait) = oneshot::channel();
        asked.send(inquiry(answer)).await.ok()?;
        wait.await.ok()
    }

    async fn elsewhere(
        &self,
        partition: u32,
        account: &[u8],
        source: Option<String>,
        after: u64,
    ) -> Result<Answer, String> {
        let questions = self.questions.as_ref().ok_or("the partition has ended")?;
        let mut waiting = questions.desk.expect();
        let (reply_to, account_id) = (waiting.reply_to, account.to_vec());
        questions.exchange.ask(partition, &Question { version: codec::VERSION, reply_to, account_id, after, source });
        waiting.answer().await.ok_or_else(|| "the owner of the partition did not answer".into())
    }
}

/// Answers what is asked of the partitions of this process, and hands replies to those who wait.
pub struct Reception {
    /// What is owned here.
    pub ownership: Arc<Ownership>,
    /// Those who wait for decisions.
    pub replies: Arc<LocalReplies>,
    /// Those who wait for answers, and the way back.
    pub questions: Arc<Questions>,
    /// Where answers are waited for.
    pub handle: Handle,
}

impl Reception {
    /// Listens from now on, also to questions if partitions may be owned here. Blocks for a moment.
    ///
    /// # Errors
    /// When the brokers do not answer.
    pub fn open(self, is_owner: bool) -> Result<(), sendtrail_eventlog::Error> {
        let (exchange, instance) = (self.questions.exchange.clone(), self.replies.instance());
        exchange.listen(is_owner, instance, move |heard| match heard {
            Heard::Question(partition, question) => self.answer(partition, question),
            Heard::Reply(Reply { to, answer: Some(Answer::Decision(decision)), .. }) => self.replies.tell(to, decision),
            Heard::Reply(Reply { to, answer: Some(answer), .. }) => self.questions.desk.tell(to, answer),
            Heard::Reply(_) => {}
        })
    }

    fn answer(&self, partition: u32, question: Question) {
        let Some(asked) = self.ownership.of(partition) else { return };
        let (exchange, to, after) = (self.questions.exchange.clone(), question.reply_to, question.after);
        let reply = move |answer| exchange.reply(&Reply { version: codec::VERSION, to, answer: Some(answer) });
        // Whoever asks when more is asked than can be answered asks in vain.
        if let Some(name) = question.source {
            let (answer, wait) = oneshot::channel();
            if asked.try_send(Inquiry::Source { name, after, answer }).is_ok() {
                self.handle.spawn(async move {
                    if let Ok(marks) = wait.await {
                        reply(Answer::Source(SourceView { marks }));
                    }
                });
            }
        } else if let Ok(account) = question.account() {
            let (answer, wait) = oneshot::channel();
            if asked.try_send(Inquiry::Reputation { account, after, answer }).is_ok() {
                self.handle.spawn(async move {
                    match wait.await {
                        Ok(Some(found)) => reply(Answer::Reputation(Box::new(found.into()))),
                        Ok(None) => reply(Answer::NoAccount(true)),
                        Err(_) => {}
                    }
                });
            }
        }
    }
}
