//! What of the dimensions an answer tells apart.

use std::collections::HashMap;

use super::{Dims, Rollup, Sums};
use crate::event::Tags;

/// What an answer tells apart: rows that are the same in it are added up where they are read, for there may be more of them than
/// memory holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Apart {
    /// The configuration set, by name and identifier.
    pub config_set: bool,
    /// The From's domain.
    pub from_domain: bool,
    /// The recipient's domain.
    pub recipient_domain: bool,
    /// Tags.
    pub tags: TagsApart,
}

/// Which tags are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TagsApart {
    /// None.
    None,
    /// Those of some names, with a value or with any.
    Of(Vec<(String, Option<String>)>),
    /// All.
    All,
}

impl Apart {
    /// Nothing but the hour.
    pub const NONE: Self =
        Self { config_set: false, from_domain: false, recipient_domain: false, tags: TagsApart::None };
    /// Everything.
    pub const ALL: Self = Self { config_set: true, from_domain: true, recipient_domain: true, tags: TagsApart::All };

    /// What is left of dimensions.
    pub fn of(&self, dims: Dims) -> Dims {
        let kept = |text: Option<String>, keep: bool| text.filter(|_| keep);
        Dims {
            configuration_set_name: kept(dims.configuration_set_name, self.config_set),
            from_domain: kept(dims.from_domain, self.from_domain),
            recipient_domain: kept(dims.recipient_domain, self.recipient_domain),
            tags: self.tags.of(dims.tags),
            config_set_id: dims.config_set_id.filter(|_| self.config_set),
        }
    }
}

impl TagsApart {
    /// What is left of tags.
    pub fn of(&self, mut tags: Tags) -> Tags {
        match self {
            Self::None => Tags::new(),
            Self::Of(wanted) => {
                let is_wanted = |name: &String, value: &String| {
                    wanted.iter().any(|(key, of)| key == name && of.as_ref().is_none_or(|of| of == value))
                };
                tags.retain(|name, value| is_wanted(name, value));
                tags
            }
            Self::All => tags,
        }
    }
}

/// Rows that are added up.
#[derive(Debug, Default)]
pub struct Added(HashMap<Dims, Sums>);

impl Added {
    /// Adds to the row of these dimensions.
    pub fn add(&mut self, dims: Dims, sums: &Sums) {
        self.0.entry(dims).or_default().add(sums);
    }

    /// How many rows there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes them, in no order.
    pub fn take(&mut self) -> Vec<Rollup> {
        self.0.drain().map(|(dims, sums)| Rollup { dims, sums }).collect()
    }
}
