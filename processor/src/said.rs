//! What was made known of a partition, compared with what is true.

use std::collections::HashMap;

use prost::Message;
use sendtrail_schemas::exchange::{Seen, SuppressionView};
use sendtrail_schemas::ids::{AccountId, hash128};

/// What a view is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ViewOf {
    /// An account.
    Account(AccountId),
    /// An address of its suppression list, in any case.
    Suppression(AccountId, String),
}

impl ViewOf {
    /// Of what somebody made known; none when that is no view of an account.
    pub fn of(seen: &Seen) -> Option<Self> {
        match seen {
            Seen::Account(config) => Some(Self::Account(config.id())),
            Seen::Suppression(view) => {
                Some(Self::Suppression(AccountId::from_slice(&view.account_id).ok()?, view.email.clone()))
            }
            Seen::Reign(_) | Seen::Progress(_) | Seen::ClickHouse(_) => None,
        }
    }
}

/// The last words on the accounts and addresses of a partition; about 150 bytes for each.
#[derive(Default)]
pub struct Said(HashMap<Vec<u8>, (ViewOf, Last)>);

/// The last word on one of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    /// An account of this version.
    Version(u64),
    /// A suppressed address, by the hash of its row.
    Suppressed(u128),
    /// An address that is not suppressed.
    Free,
    /// Somebody's whose word does not count, whatever it is: for those who do not see it, it stands in place of another.
    Nobodys,
}

impl Last {
    fn of(seen: &Seen) -> Self {
        match seen {
            Seen::Account(config) => Self::Version(config.version),
            Seen::Suppression(SuppressionView { row: Some(row), .. }) => {
                Self::Suppressed(hash128(&[&row.encode_to_vec()]))
            }
            _ => Self::Free,
        }
    }
}

impl Said {
    /// Notes what was said; whether by an owner of the partition.
    pub fn note(&mut self, seen: &Seen, by_owner: bool) {
        if let Some(of) = ViewOf::of(seen) {
            let last = if by_owner { Last::of(seen) } else { Last::Nobodys };
            self.0.insert(seen.key(), (of, last));
        }
    }

    /// What has to be said, or said again, so that the last words are the truth: `truth` is all that is known of the
    /// partition, each key once.
    pub fn to_say<E>(mut self, truth: impl Iterator<Item = Result<Seen, E>>) -> Result<Vec<ViewOf>, E> {
        let mut to_say = Vec::new();
        for seen in truth {
            let seen = seen?;
            if self.0.remove(&seen.key()).is_none_or(|(_, last)| last != Last::of(&seen)) {
                to_say.extend(ViewOf::of(&seen));
            }
        }
        // Of the rest nothing is true: it must not be said of any address that it is suppressed.
        let rest = self.0.into_values().filter(|(_, last)| *last != Last::Free);
        to_say.extend(rest.map(|(of, _)| of));
        Ok(to_say)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sendtrail_schemas::account::{AccountConfig, Suppression};
    use std::collections::BTreeMap;
    use std::convert::Infallible;
    use uuid::Uuid;

    use super::*;

    fn account(n: u8, version: u64) -> Seen {
        let account_id = Uuid::from_u128(u128::from(n)).as_bytes().to_vec();
        Seen::Account(Box::new(AccountConfig { account_id, version, ..AccountConfig::default() }))
    }

    fn address(n: u8, reason: Option<u8>) -> Seen {
        let email = format!("a{n}@b.example");
        let row =
            reason.map(|reason| Suppression { email: email.clone(), reason: reason.to_string(), ..Default::default() });
        Seen::Suppression(SuppressionView { account_id: Uuid::from_u128(1).as_bytes().to_vec(), email, row })
    }

    fn seen() -> impl Strategy<Value = Seen> {
        prop_oneof![
            (0..4u8, 1..4u64).prop_map(|(n, version)| account(n, version)),
            (0..6u8, proptest::option::of(0..2u8)).prop_map(|(n, reason)| address(n, reason)),
        ]
    }

    proptest! {
        /// After what has to be said was said, whoever reads everything knows the truth, and nothing was said in vain.
        #[test]
        fn who_reads_all_knows_the_truth(
            topic in proptest::collection::vec((seen(), proptest::bool::weighted(0.8)), 0..40),
            truth in proptest::collection::vec(seen(), 0..20),
        ) {
            // Of an account that was made known there is a truth; what is not suppressed is in no list.
            let known = topic.iter().map(|(seen, _)| seen).filter(|seen| matches!(seen, Seen::Account(_)));
            let all = known.cloned().chain(truth);
            let truth: BTreeMap<Vec<u8>, Seen> = all.map(|seen| (seen.key(), seen)).collect();
            let is_free = |seen: &Seen| matches!(seen, Seen::Suppression(view) if view.row.is_none());
            let listed: Vec<Seen> = truth.values().filter(|seen| !is_free(seen)).cloned().collect();
            let mut said = Said::default();
            topic.iter().for_each(|(seen, by_owner)| said.note(seen, *by_owner));
            // Only the last word on each key is kept; those who come later pass over what is nobody's.
            let mut last: BTreeMap<Vec<u8>, Option<Seen>> = BTreeMap::new();
            for (seen, by_owner) in &topic {
                last.insert(seen.key(), by_owner.then(|| seen.clone()));
            }
            let to_say = said.to_say(listed.iter().cloned().map(Ok::<_, Infallible>)).unwrap();
            for of in &to_say {
                let true_of = listed.iter().find(|seen| ViewOf::of(seen).as_ref() == Some(of)).cloned();
                let now = true_of.unwrap_or_else(|| match of {
                    ViewOf::Suppression(account, email) => Seen::Suppression(SuppressionView {
                        account_id: account.bytes().to_vec(), email: email.clone(), row: None,
                    }),
                    ViewOf::Account(_) => panic!("an account is never forgotten"),
                });
                prop_assert!(last.get(&now.key()) != Some(&Some(now.clone())), "it was known");
                last.insert(now.key(), Some(now));
            }
            let known: Vec<Seen> = last.into_values().flatten().filter(|seen| !is_free(seen)).collect();
            prop_assert_eq!(known, listed);
        }
    }
}
