//! Splits a filter into tokens; must not know what they mean.
//!
//! It takes the same tokens at the same bytes as containerd's scanner (pkg/filters/scanner.go):
//! after an operator a value runs up to the next comma or space, elsewhere words are fields.

use std::sync::LazyLock;

use regex::Regex;

/// The shortest piece with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// Nothing is left.
    End,
    /// What can never be in a filter, and why.
    Illegal(&'static str),
    /// With its quotes.
    Quoted(&'a str),
    Value(&'a str),
    Field(&'a str),
    /// A comma or a dot.
    Separator,
    /// Any run of `=`, `!` and `~`.
    Operator(&'a str),
    /// A character with no meaning where it stands.
    Other,
}

#[derive(Debug)]
pub(super) struct Scanner<'a> {
    text: &'a str,
    position: usize,
    /// An operator was taken, so a value comes.
    value_comes: bool,
}

/// What goes on a value: Go's graphic characters without spaces and the comma.
static VALUE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\A[\p{L}\p{M}\p{N}\p{P}\p{S}--[,\u{fffd}]]*").expect("a constant expression")
});

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self {
            text,
            position: 0,
            value_comes: false,
        }
    }

    /// The byte at which the next token or the space before it begins.
    pub(super) fn position(&self) -> usize {
        self.position
    }

    /// The next character, spaces too.
    pub(super) fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    /// The next token and the byte at which it begins.
    pub(super) fn take(&mut self) -> (usize, Token<'a>) {
        let rest = self.rest();
        self.position += rest.len() - rest.trim_start().len();
        let begin = self.position;
        let Some(first) = self.peek() else {
            return (begin, Token::End);
        };
        let rest = self.rest();
        let word_or_value = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let (length, token) = match first {
            '\0' => (1, Token::Illegal("a NUL byte")),
            char::REPLACEMENT_CHARACTER => (3, Token::Illegal("a replacement character (U+FFFD)")),
            '"' | '/' | '|' => self.quoted(first),
            ',' | '.' => {
                self.value_comes = false;
                (1, Token::Separator)
            }
            '=' | '!' | '~' => {
                self.value_comes = true;
                let length = run(rest, |c| matches!(c, '=' | '!' | '~'));
                (length, Token::Operator(&rest[..length]))
            }
            _ if self.value_comes => {
                self.value_comes = false;
                let behind = &rest[first.len_utf8()..];
                let length = first.len_utf8() + VALUE.find(behind).map_or(0, |found| found.len());
                (length, Token::Value(&rest[..length]))
            }
            _ if word_or_value(first) => {
                let length = run(rest, word_or_value);
                (length, Token::Field(&rest[..length]))
            }
            _ => (first.len_utf8(), Token::Other),
        };
        self.position += length;
        (begin, token)
    }

    fn rest(&self) -> &'a str {
        &self.text[self.position..]
    }

    /// A literal up to its closing quote; escapes are looked at so far as not to end too early.
    fn quoted(&self, quote: char) -> (usize, Token<'a>) {
        let rest = self.rest();
        let mut characters = rest.char_indices().skip(1);
        let mut wrong = None;
        while let Some((at, c)) = characters.next() {
            if c == quote {
                let length = at + 1;
                let quoted = Token::Quoted(&rest[..length]);
                return (length, wrong.map_or(quoted, Token::Illegal));
            }
            let legal = match c {
                '\n' => return (rest.len(), Token::Illegal("a line break inside quotes")),
                '\0' | char::REPLACEMENT_CHARACTER => {
                    return (rest.len(), Token::Illegal("no text inside quotes"));
                }
                '\\' => characters
                    .next()
                    .is_some_and(|(_, escaped)| is_escape(escaped, quote)),
                _ => true,
            };
            if !legal {
                wrong.get_or_insert("an escape that Go's strings do not have");
            }
        }
        (rest.len(), Token::Illegal("the quote is not closed"))
    }
}

fn is_escape(c: char, quote: char) -> bool {
    c == quote
        || matches!(c, 'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '\\')
        || matches!(c, '0'..='7' | 'x' | 'u' | 'U')
}

/// Bytes of the longest beginning made of such characters.
fn run(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c| !belongs(c)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(text: &str) -> Vec<(usize, Token<'_>)> {
        let mut scanner = Scanner::new(text);
        let mut found = Vec::new();
        loop {
            found.push(scanner.take());
            let last = found.last().unwrap().1;
            if matches!(last, Token::End | Token::Illegal(_)) {
                return found;
            }
        }
    }

    #[test]
    fn a_filter_falls_into_containerds_tokens() {
        use Token::{End, Field, Operator, Other, Quoted, Separator, Value};
        assert_eq!(
            tokens(r#"labels."a b".x== v.1/2,n?"#),
            [
                (0, Field("labels")),
                (6, Separator),
                (7, Quoted(r#""a b""#)),
                (12, Separator),
                (13, Field("x")),
                (14, Operator("==")),
                (17, Value("v.1/2")),
                (22, Separator),
                (23, Field("n")),
                (24, Other),
                (25, End),
            ]
        );
        assert_eq!(
            tokens("a!=\u{e9}\u{300}\u{2028}b"),
            [
                (0, Field("a")),
                (1, Operator("!=")),
                (3, Value("\u{e9}\u{300}")),
                (10, Field("b")),
                (11, End),
            ]
        );
    }

    #[test]
    fn quotes_that_do_not_close_are_illegal() {
        let last = |text| tokens(text).pop().unwrap();
        assert_eq!(last("a==/b").0, 3);
        for text in [
            "\"",
            "\"a\\\"",
            "|a\n|",
            "/a\\q/",
            "\"\u{fffd}\"",
            "/\0/",
            "\0",
        ] {
            assert!(matches!(last(text).1, Token::Illegal(_)), "{text:?}");
        }
        assert_eq!(tokens(r#""a\"b""#)[0].1, Token::Quoted(r#""a\"b""#));
        assert_eq!(tokens(r"/a\/b/")[0].1, Token::Quoted(r"/a\/b/"));
    }
}
