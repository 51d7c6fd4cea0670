//! JSON that is handed on as it came: valid, but is it what everybody can read?

/// How deep objects and arrays may be nested; readers of JSON stop somewhere beyond a hundred.
const MAX_DEPTH: usize = 64;

/// Checks valid JSON that goes on byte for byte, so that each of its readers takes it: an object, not too long, not too deep,
/// and without halves of surrogate pairs, which the grammar allows and many readers do not (RFC 8259 §8.2, §9).
///
/// # Errors
/// What is wrong with it, for people.
pub fn check_object(name: &str, json: &str, most: usize) -> Result<(), String> {
    if !json.starts_with('{') || json.len() > most {
        return Err(format!("{name} is an object of at most {most} bytes"));
    }
    let (mut depth, mut in_text) = (0usize, false);
    let mut rest = json.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'"' => in_text = !in_text,
            b'\\' => {
                let (code, after) = escape(rest);
                rest = after;
                if code.is_some_and(|code| (0xD800..0xE000).contains(&code)) {
                    return Err(format!("{name} holds half of a surrogate pair"));
                }
            }
            b'{' | b'[' if !in_text => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(format!("{name} is nested deeper than {MAX_DEPTH}"));
                }
            }
            b'}' | b']' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

/// The code that an escape begins with stands for, if it is one of hexadecimal digits, and what comes after: after both halves,
/// where they are a pair.
fn escape(rest: &[u8]) -> (Option<u32>, &[u8]) {
    let hexadecimal = |at: usize| {
        let digits = rest.get(at..at + 4).and_then(|digits| std::str::from_utf8(digits).ok())?;
        u32::from_str_radix(digits, 16).ok()
    };
    if rest.first() != Some(&b'u') {
        return (None, rest.get(1..).unwrap_or_default());
    }
    let Some(code) = hexadecimal(1) else { return (None, rest) };
    let is_pair = (0xD800..0xDC00).contains(&code)
        && rest.get(5..7) == Some(b"\\u")
        && hexadecimal(7).is_some_and(|low| (0xDC00..0xE000).contains(&low));
    if is_pair { (None, rest.get(11..).unwrap_or_default()) } else { (Some(code), rest.get(5..).unwrap_or_default()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(json: &str) -> Result<(), String> {
        serde_json::from_str::<&serde_json::value::RawValue>(json).unwrap();
        check_object("metadata", json, 1_000)
    }

    #[test]
    fn what_every_reader_takes_is_taken() {
        for json in [
            r"{}",
            r#"{"a":"\ud83d\ude80","b":[{"c":"\\ud83d"}],"\u00e9":"\"{[\\"}"#,
            r#"{"n":1e400,"m":12345678901234567890123,"s":"[[[[[[[[[{{{{{"}"#,
        ] {
            assert_eq!(verdict(json), Ok(()), "{json}");
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(63), "]".repeat(63));
        assert_eq!(verdict(&deep), Ok(()));
    }

    #[test]
    fn what_some_cannot_read_is_refused() {
        for json in [
            r#"{"a":"\ud83d"}"#,
            r#"{"\uDE80":1}"#,
            r#"{"a":"\ud83d\ud83d\ude80"}"#,
            r#"{"a":"\ud83dx\ude80"}"#,
            r#"{"a":"\ud83d\\ude80"}"#,
        ] {
            assert!(verdict(json).unwrap_err().contains("surrogate"), "{json}");
        }
        let deep = format!("{{\"a\":{}{}}}", "[".repeat(64), "]".repeat(64));
        assert!(verdict(&deep).unwrap_err().contains("deeper"));
        assert!(verdict("[]").unwrap_err().contains("an object"));
        assert!(verdict(&format!("{{\"a\":\"{}\"}}", "x".repeat(1_000))).unwrap_err().contains("at most 1000"));
    }
}
