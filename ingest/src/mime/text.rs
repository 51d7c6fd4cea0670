//! The text of a message that has only HTML.
//!
//! By tokens, without a tree: a tree of what somebody wrote to harm may be as large as the square of it.

use html5gum::{HtmlString, Token, Tokenizer, emitters::default::DefaultEmitter};

/// Elements whose content is no text.
const SKIPPED: [&[u8]; 8] =
    [b"script", b"style", b"title", b"textarea", b"noframes", b"iframe", b"noscript", b"noembed"];
/// Elements with a line of their own.
const BLOCKS: [&[u8]; 18] = [
    b"address",
    b"article",
    b"aside",
    b"div",
    b"dd",
    b"dt",
    b"fieldset",
    b"figcaption",
    b"footer",
    b"form",
    b"header",
    b"legend",
    b"main",
    b"nav",
    b"option",
    b"section",
    b"tr",
    b"center",
];
/// Elements with an empty line before and after them.
const PARAGRAPHS: [&[u8]; 15] = [
    b"blockquote",
    b"dl",
    b"figure",
    b"h1",
    b"h2",
    b"h3",
    b"h4",
    b"h5",
    b"h6",
    b"hr",
    b"ol",
    b"p",
    b"pre",
    b"table",
    b"ul",
];

/// The text of an HTML body: a line for a block, an address after a link's text, `* ` before an item, an image's
/// alternative text. Takes time and memory in proportion to what is given.
pub fn of_html(html: &str) -> String {
    let mut emitter = DefaultEmitter::default();
    emitter.naively_switch_states(true);
    let mut text = Text::default();
    for token in Tokenizer::new_with_emitter(html, emitter) {
        let Ok(token) = token;
        match token {
            Token::StartTag(tag) => {
                let attribute = |name: &[u8]| tag.attributes.get(name).map(|value| words(&value.value));
                text.start(&tag.name, attribute);
            }
            Token::EndTag(tag) => text.end(&tag.name),
            Token::String(words) => text.push(&String::from_utf8_lossy(&words.value)),
            Token::Comment(_) | Token::Doctype(_) | Token::Error(_) => {}
        }
    }
    text.finish()
}

fn words(value: &HtmlString) -> String {
    String::from_utf8_lossy(value).into_owned()
}

#[derive(Default)]
struct Text {
    made: String,
    /// Line breaks before whatever comes next.
    breaks: usize,
    /// A space before whatever comes next, unless there is a break.
    space: bool,
    /// The element whose content is passed over.
    skipping: Option<Vec<u8>>,
    /// Where the link under way points to, and where its text began.
    link: Option<(String, usize)>,
    /// Preformatted elements under way.
    preformatted: usize,
}

impl Text {
    fn start(&mut self, name: &[u8], attribute: impl Fn(&[u8]) -> Option<String>) {
        if self.skipping.is_some() {
            return;
        }
        if SKIPPED.contains(&name) {
            self.skipping = Some(name.to_vec());
            return;
        }
        match name {
            b"br" => self.line(),
            b"li" => {
                self.block(1);
                self.push_word("* ");
            }
            b"td" | b"th" => self.space = true,
            b"img" => {
                if let Some(alt) = attribute(b"alt") {
                    self.push(&alt);
                }
            }
            b"a" => {
                self.end_link();
                self.link = attribute(b"href").map(|href| (href, self.made.len()));
            }
            _ => self.around(name),
        }
        self.preformatted += usize::from(name == b"pre");
    }

    fn end(&mut self, name: &[u8]) {
        if let Some(skipping) = &self.skipping {
            if skipping == name {
                self.skipping = None;
            }
            return;
        }
        match name {
            b"a" => self.end_link(),
            b"li" => self.block(1),
            _ => self.around(name),
        }
        if name == b"pre" {
            self.preformatted = self.preformatted.saturating_sub(1);
        }
    }

    fn around(&mut self, name: &[u8]) {
        if PARAGRAPHS.contains(&name) {
            self.block(2);
        } else if BLOCKS.contains(&name) {
            self.block(1);
        }
    }

    /// A link is followed by where it points to, unless its text says so.
    fn end_link(&mut self) {
        let Some((href, begun)) = self.link.take() else { return };
        let points_out = ["http:", "https:", "mailto:", "tel:"].iter().any(|scheme| href.starts_with(scheme));
        let said = self.made[begun..].trim();
        if points_out && !said.is_empty() && said != href && !href.ends_with(&format!(":{said}")) {
            self.space = true;
            self.push_word(&format!("({href})"));
        }
    }

    fn block(&mut self, breaks: usize) {
        self.breaks = self.breaks.max(breaks);
        self.space = false;
    }

    fn line(&mut self) {
        self.breaks += 1;
        self.space = false;
    }

    fn push(&mut self, text: &str) {
        if self.skipping.is_some() {
            return;
        }
        if self.preformatted > 0 {
            self.begin();
            self.made.push_str(text);
            return;
        }
        let is_space = |c: char| c.is_ascii_whitespace();
        self.space |= text.starts_with(is_space);
        for word in text.split_ascii_whitespace() {
            self.push_word(word);
            self.space = true;
        }
        self.space = text.ends_with(is_space) || (self.space && text.trim_ascii().is_empty());
    }

    fn push_word(&mut self, word: &str) {
        self.begin();
        self.made.push_str(word);
    }

    /// Makes the breaks, or the space, that are due.
    fn begin(&mut self) {
        if self.made.is_empty() {
            self.breaks = 0;
        } else if self.breaks > 0 {
            // More than one empty line says no more than one.
            (0..self.breaks.min(2)).for_each(|_| self.made.push('\n'));
        } else if self.space && !self.made.ends_with([' ', '\n']) {
            self.made.push(' ');
        }
        (self.breaks, self.space) = (0, false);
    }

    fn finish(mut self) -> String {
        self.end_link();
        if !self.made.is_empty() {
            self.made.push('\n');
        }
        self.made
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_readable() {
        let html = "<!doctype html><html><head><title>no</title><style>p { color: red }</style></head><body>
            <h1>Your  order</h1><p>Hello <b>Jane</b>,<br>it is <i>on its</i> way &amp; soon&nbsp;there.</p>
            <ul><li>one <a href='https://x.example/1'>shoe</a></li><li>two</li></ul>
            <div>See <a href=\"https://x.example\">https://x.example</a> or <a href=mailto:a@x.example>a@x.example</a></div>
            <table><tr><td>a</td><td>b</td></tr><tr><td>c</td></tr></table><img alt='A shoe' src=x><script>if (a < b) {}</script><noscript><img src=px></noscript>
            <pre>as\n  it is</pre>after</body></html>";
        let expected = "Your order\n\nHello Jane,\nit is on its way & soon\u{a0}there.\n\n* one shoe (https://x.example/1)\n* two\n\n\
            See https://x.example or a@x.example\n\na b\nc\n\nA shoe\n\nas\n  it is\n\nafter\n";
        assert_eq!(of_html(html), expected);
        assert_eq!(of_html("just text"), "just text\n");
        assert_eq!(of_html(""), "");
        assert_eq!(of_html("<p>a</p><a href='https://y.example'>open <b>b"), "a\n\nopen b (https://y.example)\n");
    }

    #[test]
    fn what_is_written_to_harm_makes_little() {
        let bold: String = (0..3_000).map(|n| format!("<b id={n}>")).collect();
        let formatted = format!("<p>{bold}x{}", "<p>x".repeat(3_000));
        let attributes: String = (0..100_000).map(|n| format!(" a{n}=1")).collect();
        let nested = "<div>".repeat(200_000);
        for html in [formatted, format!("<a{attributes}>x"), nested, "<a href=https://".repeat(50_000)] {
            assert!(of_html(&html).len() <= html.len(), "no more than was given");
        }
    }
}
