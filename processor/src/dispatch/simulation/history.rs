//! Receivers of every kind, and what may befall them.

use proptest::prelude::*;

#[derive(Clone, Debug)]
pub struct Receiver {
    pub account: u128,
    pub concurrency: usize,
    pub rate: Option<u32>,
    pub ordered: bool,
    /// How long it takes, milliseconds.
    pub takes: i64,
    /// When it fails, seconds after the beginning.
    pub bad: (i64, i64),
    /// From when on it says that it is gone, seconds after the beginning.
    pub gone: Option<i64>,
    pub schedule: Vec<u32>,
}

#[derive(Clone, Debug)]
pub enum Op {
    /// An event of an account: its message, and for which of the account's receivers it is.
    Event {
        account: u128,
        message: u64,
        receivers: u8,
    },
    Wait(i64),
    Replay(usize),
    Cancel,
    Revive(usize),
    /// Its owner wants nothing for now.
    Disable(usize),
    Checkpoint,
    /// What is committed after so many commits is what the device has after the next power loss.
    Flush(usize),
    /// The process ends, with so many attempts recorded and not acted upon.
    Kill(usize),
    PowerLoss(usize),
}

pub fn receiver() -> impl Strategy<Value = Receiver> {
    let bad = prop_oneof![2 => Just((0, 0)), 2 => (0i64..60, 1i64..120).prop_map(|(from, long)| (from, from + long)), 1 => Just((0, 2_000))];
    (
        0..3u128,
        1..4usize,
        prop_oneof![3 => Just(None), 1 => (1..20u32).prop_map(Some)],
        any::<bool>(),
        prop_oneof![0..30i64, 0..3_000i64],
        bad,
        prop_oneof![8 => Just(None), 1 => (0..60i64).prop_map(Some)],
        prop::collection::vec(1..20u32, 0..4),
    )
        .prop_map(|(account, concurrency, rate, ordered, takes, bad, gone, schedule)| Receiver {
            account,
            concurrency,
            rate,
            ordered,
            takes,
            bad,
            gone,
            // No schedule of its own would be the dialect's: hours.
            schedule: if schedule.is_empty() { vec![1] } else { schedule },
        })
}

pub fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0..3u128, 0..3u64, any::<u8>()).prop_map(|(account, message, receivers)| Op::Event { account, message, receivers }),
        4 => (0..4_000i64).prop_map(Op::Wait),
        4 => (0..100i64).prop_map(Op::Wait),
        1 => (10_000..200_000i64).prop_map(Op::Wait),
        2 => any::<usize>().prop_map(Op::Replay),
        1 => Just(Op::Cancel),
        1 => any::<usize>().prop_map(Op::Revive),
        1 => any::<usize>().prop_map(Op::Disable),
        1 => Just(Op::Checkpoint),
        2 => (0..12usize).prop_map(Op::Flush),
        1 => (0..4usize).prop_map(Op::Kill),
        2 => (0..4usize).prop_map(Op::PowerLoss),
    ]
}
