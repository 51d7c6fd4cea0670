//! Keeps what is made known of this process's partitions true: whatever others said before, or say although they own
//! nothing any more, and whatever was never said.

use std::sync::Arc;
use std::time::Duration;

use metrics::counter;
use sendtrail_eventlog::kafka::{Exchange, Voice, Word};
use sendtrail_processor::{Inquiries, Inquiry, Said, ViewOf, Views};
use sendtrail_schemas::exchange::Seen;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::elsewhere::Elsewhere;

/// How long one who says that a partition is theirs may go on: whoever lost it learns that by then, and ends.
const DISPUTED: Duration = Duration::from_secs(10);
/// Views that a partition is asked to make known at once.
const TOGETHER: usize = 1_000;

/// See the module. Partitions must have applied what was in the log when they began to be owned here.
pub struct Steward {
    /// The way to other servers.
    pub exchange: Arc<Exchange>,
    /// What is true, or was a moment ago.
    pub views: Views,
    /// The partitions, which say it.
    pub inquiries: Vec<Inquiries>,
    /// What is known of others.
    pub elsewhere: Arc<Elsewhere>,
    /// Where work is done that takes longer.
    pub handle: Handle,
}

impl Steward {
    /// Begins; blocks until everything was looked at that there is.
    ///
    /// # Errors
    /// When the brokers do not answer.
    pub fn begin(self) -> Result<(), sendtrail_eventlog::Error> {
        let steward = Arc::new(self);
        let exchange = steward.exchange.clone();
        // What was said before we began to own a partition; nothing afterwards.
        let mut said: Vec<Option<Said>> = steward.inquiries.iter().map(|_| Some(Said::default())).collect();
        exchange.follow_views(move |partition, word| {
            let Some(said) = said.get_mut(partition as usize) else { return };
            match word {
                Word::Reign { is_ours: true } => steward.clone().set_right(partition, said.take().unwrap_or_default()),
                // One who was replaced before saying so: what comes after is believed to be theirs, until we say so again.
                Word::Reign { is_ours: false } if said.is_none() => steward.clone().reign_again(partition),
                Word::Reign { .. } => {}
                Word::Said(voice, seen) => {
                    match &seen {
                        Seen::ClickHouse(view) => steward.elsewhere.note(partition, view.clone()),
                        Seen::Progress(progress) if voice == Voice::Owner => {
                            steward.elsewhere.note_events(partition, progress);
                        }
                        _ => {}
                    }
                    match said {
                        Some(said) => said.note(&seen, voice == Voice::Owner),
                        None if voice == Voice::Former => steward.clone().contradict(partition, &seen),
                        None => {}
                    }
                }
            }
        })
    }

    /// Says what is other than what was said, or all if nothing was.
    fn set_right(self: Arc<Self>, partition: u32, said: Said) {
        self.handle.clone().spawn(async move {
            let (views, partitions) = (self.views.clone(), self.inquiries.len() as u32);
            let looked = move || said.to_say(views.of_partition(partition, partitions));
            let looked = tokio::task::spawn_blocking(looked).await;
            match looked {
                Ok(Ok(to_say)) => self.say(partition, to_say).await,
                Ok(Err(error)) => tracing::error!(partition, %error, "views could not be compared"),
                Err(error) => tracing::error!(partition, %error, "views could not be compared"),
            }
        });
    }

    /// Says how it really is. Also when it is the same: whoever comes later does not believe who said it.
    fn contradict(self: Arc<Self>, partition: u32, seen: &Seen) {
        counter!("sendtrail_stale_views_total").increment(1);
        let Some(of) = ViewOf::of(seen) else { return };
        tracing::warn!(partition, "a server that no longer owns the partition made something known");
        self.handle.clone().spawn(async move { self.say(partition, vec![of]).await });
    }

    fn reign_again(self: Arc<Self>, partition: u32) {
        tracing::warn!(partition, "another server says that it owns the partition");
        self.handle.clone().spawn(async move {
            tokio::time::sleep(DISPUTED).await;
            // It is read again, and then everything is said.
            if let Err(error) = self.exchange.reign(partition).await {
                tracing::error!(partition, %error, "others may not believe who owns the partition");
            }
        });
    }

    async fn say(&self, partition: u32, views: Vec<ViewOf>) {
        let Some(asked) = self.inquiries.get(partition as usize) else { return };
        if !views.is_empty() {
            tracing::info!(partition, views = views.len(), "making known what others do not know");
        }
        for views in views.chunks(TOGETHER) {
            let (done, wait) = oneshot::channel();
            // A partition that ends leaves it to its next owner.
            if asked.send(Inquiry::Announce { views: views.to_vec(), done }).await.is_err() || wait.await.is_err() {
                return;
            }
        }
    }
}
