//! The types of events that a destination asks for: as they are named in requests, and as they are shown.

use sendtrail_schemas::destination::{Bounces, Destination};
use sendtrail_schemas::kind::EventType;
use sendtrail_schemas::problem::Problem;
use sendtrail_schemas::web::invalid;

/// What was read of a request.
#[derive(Default)]
pub(super) struct Asked {
    /// Sorted, each once; none: all.
    pub(super) types: Vec<i32>,
    /// Which bounces, where they are asked for.
    pub(super) bounces: Bounces,
}

impl Asked {
    pub(super) fn read(names: &[String]) -> Result<Self, Problem> {
        let mut types = Vec::new();
        let mut bounces: Option<Bounces> = None;
        for name in names {
            let lower = name.trim().to_ascii_lowercase();
            // S4's word for two types.
            if matches!(lower.as_str(), "email.failed" | "failed") {
                types.extend([EventType::Reject as i32, EventType::RenderingFailure as i32]);
                continue;
            }
            let unknown = || invalid(format!("matching_event_types: {name:?} is no event type"));
            let (kind, part) = one(name).ok_or_else(unknown)?;
            if kind == EventType::Bounce {
                let part = part.unwrap_or(Bounces::Both);
                bounces = Some(bounces.map_or(part, |before| before.and(part)));
            }
            types.push(kind as i32);
        }
        types.sort_unstable();
        types.dedup();
        Ok(Self { types, bounces: bounces.unwrap_or(Bounces::Both) })
    }
}

/// Reads the name of one type; of bounces also S1's names of one kind.
pub(super) fn one(name: &str) -> Option<(EventType, Option<Bounces>)> {
    match Bounces::parse(&name.trim().to_ascii_lowercase()) {
        Some(part) => Some((EventType::Bounce, Some(part))),
        None => Some((EventType::parse(name)?, None)),
    }
}

/// What a destination asks for, by names that ask for the same once more.
pub(super) fn shown(destination: &Destination) -> Vec<&'static str> {
    let name = |kind: EventType| match kind {
        EventType::Bounce => destination.bounces().name(),
        kind => kind.name(),
    };
    destination.matching_event_types().map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(names: &[&str]) -> Result<Destination, Problem> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let Asked { types, bounces } = Asked::read(&names)?;
        Ok(Destination { matching_event_types: types, bounces: bounces as i32, ..Destination::default() })
    }

    #[test]
    fn what_is_shown_asks_for_the_same() {
        for (names, expected) in [
            (&["bounced.hard"][..], &["bounced.hard"][..]),
            (&[" Bounced.Soft", "delivered"], &["Delivery", "bounced.soft"]),
            (&["bounced.hard", "bounced.hard"], &["bounced.hard"]),
            (&["bounced.hard", "bounced.soft"], &["Bounce"]),
            (&["bounced.hard", "bounced.soft", "bounced.hard"], &["Bounce"]),
            (&["bounced", "bounced.soft"], &["Bounce"]),
            (&["bounced.soft", "email.bounced"], &["Bounce"]),
            (&["Bounce"], &["Bounce"]),
            (&["email.failed", "reject"], &["Reject", "RenderingFailure"]),
            (&[], &[]),
        ] {
            let asked = read(names).unwrap();
            assert_eq!(shown(&asked), expected, "{names:?}");
            assert_eq!(read(&shown(&asked)).unwrap(), asked, "{names:?}");
        }
    }

    #[test]
    fn what_is_no_type_is_refused() {
        for name in ["bounced.medium", "hard", "email.bounced.hard", "nothing", ""] {
            let told = read(&["delivered", name]).unwrap_err();
            assert!(told.message.contains(&format!("{name:?}")), "{}", told.message);
        }
    }
}
