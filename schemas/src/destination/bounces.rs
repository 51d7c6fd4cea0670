//! Which bounces a destination is told of.

use crate::kind::EventType;

/// What a destination that gets bounces gets of them. Only S1 has a name for each kind; whoever asks by one of its names
/// gets that kind, whatever the dialect calls it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, prost::Enumeration)]
#[repr(i32)]
pub enum Bounces {
    /// Every bounce.
    Both = 0,
    /// Those for good.
    Hard = 1,
    /// All others.
    Soft = 2,
}

impl Bounces {
    /// What asks for them; `Bounce`, as the type, for both.
    pub fn name(self) -> &'static str {
        match self {
            Self::Both => EventType::Bounce.name(),
            Self::Hard => "bounced.hard",
            Self::Soft => "bounced.soft",
        }
    }

    /// Reads S1's name of one kind.
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Hard, Self::Soft].into_iter().find(|bounces| bounces.name() == text)
    }

    /// What is asked for by two names.
    pub fn and(self, other: Self) -> Self {
        if self == other { self } else { Self::Both }
    }

    /// Whether bounces that are for good, or those that are not, are among them.
    pub fn include(self, permanent: bool) -> bool {
        match self {
            Self::Both => true,
            Self::Hard => permanent,
            Self::Soft => !permanent,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination::Dialect;

    #[test]
    fn one_kind_is_asked_for_by_the_name_that_it_is_told_by() {
        for (bounces, permanent) in [(Bounces::Hard, true), (Bounces::Soft, false)] {
            let told = Dialect::Nexuspromail.event_name(EventType::Bounce, permanent);
            assert_eq!(told, Some(bounces.name()));
            assert_eq!(Bounces::parse(bounces.name()), Some(bounces));
            assert!(bounces.include(permanent) && !bounces.include(!permanent));
            assert!(Bounces::Both.include(permanent));
            assert_eq!((bounces.and(bounces), bounces.and(Bounces::Both)), (bounces, Bounces::Both));
        }
        assert_eq!(Bounces::Hard.and(Bounces::Soft), Bounces::Both);
        assert_eq!(Bounces::parse(Bounces::Both.name()), None, "a type is read as one");
        // What was written down before there was a choice is every bounce.
        assert_eq!(Bounces::default(), Bounces::Both);
    }
}
