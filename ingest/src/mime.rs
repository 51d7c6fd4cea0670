//! How large a message is on the wire, and the text of one that has only HTML.

mod text;

use lettre::message::{Attachment as MimeAttachment, Body, MultiPart, SinglePart, header::ContentType};
use sendtrail_schemas::mail::MailContent;

pub use text::of_html as text_of_html;

/// The largest message that is sent, bytes of MIME (S2: "10 MB total").
pub const MAX_MIME: usize = 10 << 20;

/// Whether a text is a media type that may stand in a header.
pub fn is_media_type(text: &str) -> bool {
    !sendtrail_schemas::address::has_line_break(text) && ContentType::parse(text).is_ok()
}

/// Whether a message with headers of so many bytes is larger than may be sent.
pub fn is_too_large(content: &MailContent, headers: usize) -> bool {
    let texts = content.html.as_ref().map_or(0, String::len) + content.text.as_ref().map_or(0, String::len);
    let files: usize = content.attachments.iter().map(|file| file.content.len() + file.filename.len()).sum();
    // Quoted-printable makes three bytes of one at worst; base64 makes 78 of 57.
    let at_worst = texts * 3 + files / 57 * 78 + files / 19 + content.attachments.len() * 512 + headers + 4_096;
    at_worst > MAX_MIME && body(content).formatted().len() + headers > MAX_MIME
}

/// A message's body as MIME.
pub fn body(content: &MailContent) -> MultiPart {
    let text = content.text.clone().unwrap_or_default();
    let alternative = match &content.html {
        Some(html) => MultiPart::alternative_plain_html(text, html.clone()),
        None => MultiPart::alternative().singlepart(SinglePart::plain(text)),
    };
    if content.attachments.is_empty() {
        return alternative;
    }
    let (inline, apart): (Vec<_>, Vec<_>) = content.attachments.iter().partition(|file| file.inline);
    let mut related = MultiPart::related().multipart(alternative);
    for file in inline {
        let id = file.content_id.clone().unwrap_or_else(|| file.filename.clone());
        related = related.singlepart(part(MimeAttachment::new_inline(id), file));
    }
    let mut mixed = MultiPart::mixed().multipart(related);
    for file in apart {
        mixed = mixed.singlepart(part(MimeAttachment::new(file.filename.clone()), file));
    }
    mixed
}

fn part(kind: MimeAttachment, file: &sendtrail_schemas::mail::Attachment) -> SinglePart {
    let octets = || ContentType::parse("application/octet-stream").unwrap_or(ContentType::TEXT_PLAIN);
    let content_type = ContentType::parse(&file.content_type).unwrap_or_else(|_| octets());
    kind.body(Body::new(file.content.clone()), content_type)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sendtrail_schemas::mail::Attachment;

    fn with_file(bytes: usize) -> MailContent {
        let file = Attachment {
            filename: "a.bin".into(),
            content_type: "application/octet-stream".into(),
            content: vec![255; bytes],
            ..Attachment::default()
        };
        MailContent { text: Some("x".into()), attachments: vec![file], ..MailContent::default() }
    }

    #[test]
    fn ten_mebibytes_of_mime_are_the_limit() {
        assert!(!is_too_large(&with_file(7 << 20), 100));
        assert!(is_too_large(&with_file(8 << 20), 100));
        let ascii =
            |bytes: usize| MailContent { text: Some("line of text\r\n".repeat(bytes / 14)), ..MailContent::default() };
        assert!(!is_too_large(&ascii(9 << 20), 100), "what is at worst too large is measured");
        assert!(is_too_large(&ascii(11 << 20), 100));
    }

    #[test]
    fn text_is_derived_from_html() {
        let text = text_of_html("<p>Hello <b>you</b></p><p><a href=\"https://x.example\">Click</a></p>");
        assert!(text.contains("Hello") && text.contains("https://x.example"), "{text}");
        assert!(
            is_media_type("text/calendar; method=REQUEST")
                && !is_media_type("nonsense")
                && !is_media_type("text/plain\r\nX: y")
        );
    }
}
