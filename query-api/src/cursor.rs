//! Cursors: a place in the order of events, opaque to clients, stable while events arrive.

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use sendtrail_schemas::problem::{Code, Problem};
use sendtrail_schemas::time::Millis;
use serde::{Deserialize, Serialize};

use crate::analytics::Position;

const VERSION: u8 = 1;

#[derive(Serialize, Deserialize)]
struct Encoded(u8, i64, String, u32, u64);

/// The cursor that goes on after a position.
pub fn encode(position: &Position) -> String {
    let Position { occurred_at, event_id, partition, seq } = position;
    let encoded = Encoded(VERSION, occurred_at.0, event_id.clone(), *partition, *seq);
    // Numbers and strings always serialize.
    BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&encoded).unwrap_or_default())
}

/// Reads a cursor.
///
/// # Errors
/// `INVALID_PARAM` when it is not one of ours.
pub fn decode(text: &str) -> Result<Position, Problem> {
    let malformed = || Problem::new(Code::InvalidParam, "cursor is not one of ours");
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed())?;
    let Encoded(version, occurred_at, event_id, partition, seq) =
        serde_json::from_slice(&bytes).map_err(|_| malformed())?;
    if version != VERSION {
        return Err(malformed());
    }
    Ok(Position { occurred_at: Millis(occurred_at), event_id, partition, seq })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back_and_others_are_refused() {
        let position = Position { occurred_at: Millis(-5), event_id: "a\"ü".into(), partition: 7, seq: u64::MAX };
        assert_eq!(decode(&encode(&position)).unwrap(), position);
        for bad in ["", "x", "e30", &encode(&position)[1..], &BASE64_URL_SAFE_NO_PAD.encode("[2,0,\"\",0,0]")] {
            assert_eq!(decode(bad).unwrap_err().code, Code::InvalidParam, "{bad}");
        }
    }
}
