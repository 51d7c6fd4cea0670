//! A body as a list of JSON texts: an object, an array, or lines.

use std::borrow::Cow;

use bytes::Bytes;
use sendtrail_schemas::problem::{Code, Problem};
use serde_json::value::RawValue;

/// The texts of a body. A line need not be JSON: that is found when it is read. What is not UTF-8 in it is not either.
pub type Items<'a> = Vec<Cow<'a, str>>;

/// Splits a body.
///
/// # Errors
/// `MISSING_PARAM` when there is nothing; `INVALID_REQUEST` when it is not JSON, or neither object nor array;
/// `PAYLOAD_TOO_LARGE` beyond `most` items.
pub fn split(body: &Bytes, lines: bool, most: usize) -> Result<Items<'_>, Problem> {
    let malformed = |cause: String| Problem::new(Code::InvalidRequest, format!("the body is not JSON: {cause}"));
    if lines {
        let lines = body.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        return bounded(lines.map(String::from_utf8_lossy).collect(), most);
    }
    let text = std::str::from_utf8(body).map_err(|cause| malformed(cause.to_string()))?;
    let trimmed = text.trim_start();
    let items: Items<'_> = if trimmed.is_empty() {
        Vec::new()
    } else if trimmed.starts_with('[') {
        let items: Vec<&RawValue> = serde_json::from_str(text).map_err(|cause| malformed(cause.to_string()))?;
        items.into_iter().map(|item| item.get().into()).collect()
    } else {
        let item: &RawValue = serde_json::from_str(text).map_err(|cause| malformed(cause.to_string()))?;
        if !trimmed.starts_with('{') {
            return Err(malformed("neither an object nor an array".into()));
        }
        vec![item.get().into()]
    };
    bounded(items, most)
}

fn bounded(items: Items<'_>, most: usize) -> Result<Items<'_>, Problem> {
    if items.is_empty() {
        return Err(Problem::new(Code::MissingParam, "there is no event in the body"));
    }
    if items.len() > most {
        return Err(Problem::new(Code::PayloadTooLarge, format!("more than {most} events in one request")));
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(body: &'static str, lines: bool) -> Result<Vec<String>, Code> {
        let body = Bytes::from_static(body.as_bytes());
        split(&body, lines, 3).map(|items| items.into_iter().map(Into::into).collect()).map_err(|problem| problem.code)
    }

    #[test]
    fn objects_arrays_and_lines() {
        assert_eq!(items(" {\"a\": 1}\n", false).unwrap(), ["{\"a\": 1}"]);
        assert_eq!(items("[{}, 5 ,\"x\"]", false).unwrap(), ["{}", "5", "\"x\""]);
        assert_eq!(items("{}\n\n  nonsense \r\n{}", true).unwrap(), ["{}", "nonsense", "{}"]);
        assert_eq!(items("", false), Err(Code::MissingParam));
        assert_eq!(items("[]", false), Err(Code::MissingParam));
        assert_eq!(items("\n \n", true), Err(Code::MissingParam));
        assert_eq!(items("5", false), Err(Code::InvalidRequest));
        assert_eq!(items("{", false), Err(Code::InvalidRequest));
        assert_eq!(items("[{}", false), Err(Code::InvalidRequest));
        assert_eq!(items("{} {}", false), Err(Code::InvalidRequest));
        assert_eq!(items("[1,2,3,4]", false), Err(Code::PayloadTooLarge));
    }
}
