//! E-mail addresses: checked once at the door, compared without case everywhere.

use std::borrow::Cow;

use email_address::{EmailAddress, Options};

use crate::Error;

/// An address with the name that may stand before it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mailbox<'a> {
    /// The display name, quotes removed; never checked beyond being free of line breaks.
    pub name: Option<Cow<'a, str>>,
    /// The address.
    pub address: &'a str,
}

/// Longest address (RFC 5321 §4.5.3.1.3, a path of 256 with its angle brackets).
pub const MAX_ADDRESS: usize = 254;

/// Whether a text is an address `local@domain` that may be mailed (RFC 5321; no domain literal, no display name).
pub fn is_valid(address: &str) -> bool {
    if address.len() > MAX_ADDRESS {
        return false;
    }
    if let Some(verdict) = plain_ascii(address.as_bytes()) {
        return verdict;
    }
    // Its reader passes over brackets and spaces around an address, with which it would be another to everybody else.
    if address.ends_with('>') || address.trim() != address {
        return false;
    }
    let options = Options::default().with_required_tld().without_display_text().without_domain_literal();
    EmailAddress::parse_with_options(address, options).is_ok()
}

/// Judges the common form, letters and digits around one `@`, without the full grammar; `None` for all others.
fn plain_ascii(address: &[u8]) -> Option<bool> {
    let at = address.iter().position(|&b| b == b'@')?;
    let (local, domain) = (address.get(..at)?, address.get(at + 1..)?);
    let plain_local = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+');
    let plain_domain = |b: &u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.');
    if local.is_empty() || local.len() > 64 || !local.iter().all(|b| plain_local(b) || *b == b'.') {
        return None;
    }
    if local.first() == Some(&b'.') || local.last() == Some(&b'.') || local.windows(2).any(|pair| pair == b"..") {
        return Some(false);
    }
    if !domain.iter().all(plain_domain) {
        return None;
    }
    let mut labels = 0;
    for label in domain.split(|&b| b == b'.') {
        labels += 1;
        if label.is_empty() || label.len() > 63 || label.first() == Some(&b'-') || label.last() == Some(&b'-') {
            return Some(false);
        }
    }
    Some(labels >= 2)
}

/// Reads "Name <a@b>", "\"Name\" <a@b>" or "a@b".
///
/// # Errors
/// [`Error::Malformed`] when the address is not one, or when the name holds CR, LF or NUL.
pub fn parse_mailbox(text: &str) -> Result<Mailbox<'_>, Error> {
    let malformed = || Error::Malformed(format!("{text:?} is not an e-mail address"));
    let trimmed = text.trim();
    let (name, address) = match trimmed.strip_suffix('>') {
        Some(rest) => {
            let (name, address) = rest.rsplit_once('<').ok_or_else(malformed)?;
            (Some(name.trim()), address.trim())
        }
        None => (None, trimmed),
    };
    if !is_valid(address) || has_line_break(text) {
        return Err(malformed());
    }
    let name = name.filter(|name| !name.is_empty()).map(unquote);
    Ok(Mailbox { name, address })
}

/// Whether a text could end a header field early: CR, LF or NUL.
pub fn has_line_break(text: &str) -> bool {
    text.bytes().any(|b| matches!(b, b'\r' | b'\n' | 0))
}

fn unquote(name: &str) -> Cow<'_, str> {
    match name.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        Some(inner) if inner.contains('\\') => {
            let mut plain = String::with_capacity(inner.len());
            let mut chars = inner.chars();
            while let Some(c) = chars.next() {
                plain.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
            }
            Cow::Owned(plain)
        }
        Some(inner) => Cow::Borrowed(inner),
        None => Cow::Borrowed(name),
    }
}

/// The form in which addresses are compared: without case.
pub fn fold(address: &str) -> Cow<'_, str> {
    if address.bytes().any(|b| b.is_ascii_uppercase() || !b.is_ascii()) {
        Cow::Owned(address.to_lowercase())
    } else {
        Cow::Borrowed(address)
    }
}

/// The domain of an address, lower-cased; of "Name <a@b>" too. Empty when there is none.
pub fn domain(address: &str) -> Cow<'_, str> {
    fold(bare(address).rsplit_once('@').map_or("", |(_, domain)| domain))
}

/// The address in "Name <a@b>", or the text itself.
pub fn bare(mailbox: &str) -> &str {
    let trimmed = mailbox.trim();
    trimmed.strip_suffix('>').and_then(|rest| rest.rsplit_once('<')).map_or(trimmed, |(_, address)| address.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_mailboxes() {
        let mailbox = parse_mailbox("Sarah from Acme <sarah@acme.com>").unwrap();
        assert_eq!((mailbox.name.as_deref(), mailbox.address), (Some("Sarah from Acme"), "sarah@acme.com"));
        let mailbox = parse_mailbox("\"A \\\"B\\\", C\" <a@b.co>").unwrap();
        assert_eq!(mailbox.name.as_deref(), Some("A \"B\", C"));
        assert_eq!(parse_mailbox("a@b.co").unwrap().name, None);
        for bad in ["", "a", "a@", "@b.co", "a b@c.de", "x <>", "a@b", "a@b.co>", "a@b..co", ".a@b.co", "a@-b.co"] {
            assert!(parse_mailbox(bad).is_err(), "{bad:?}");
        }
        assert!(parse_mailbox("Evil\r\nBcc: x <a@b.co>").is_err());
    }

    #[test]
    fn unusual_addresses_are_judged_by_the_full_grammar() {
        for good in ["o'hara@example.com", "\"a b\"@example.com", "用户@例子.广告", "a/b=c@example.co.uk"] {
            assert!(is_valid(good), "{good}");
        }
        for bad in
            ["a@[127.0.0.1]", "a(b)@example.com", "Name <a@b.co>", "<a@b.co>", " a'@b.co", "a'@b.co ", "a@b@c.de"]
        {
            assert!(!is_valid(bad), "{bad}");
        }
        assert!(!is_valid(&format!("{}@example.com", "a".repeat(250))));
    }

    #[test]
    fn compares_without_case_and_finds_domains() {
        assert_eq!(fold("A@B.Co"), "a@b.co");
        assert!(matches!(fold("a@b.co"), Cow::Borrowed(_)));
        assert_eq!(domain("Name <A@Example.COM>"), "example.com");
        assert_eq!(domain("nobody"), "");
    }

    proptest::proptest! {
        /// The short cut never accepts what the full grammar refuses, nor the other way round.
        #[test]
        fn the_short_cut_agrees_with_the_grammar(local in "[a-zA-Z0-9._+-]{1,12}", domain in "[a-z0-9.-]{1,16}") {
            let address = format!("{local}@{domain}");
            if let Some(verdict) = plain_ascii(address.as_bytes()) {
                let options = Options::default().with_required_tld().without_display_text().without_domain_literal();
                proptest::prop_assert_eq!(verdict, EmailAddress::parse_with_options(&address, options).is_ok(), "{}", address);
            }
        }
    }
}
