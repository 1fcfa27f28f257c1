//! Go's regular expressions in the words of the crate `regex`; must not match anything itself.
//!
//! Both descend from RE2 and differ in the small: Go's `\d \s \w \b` are ASCII, `[` `&&` `--` `~~`
//! mean nothing inside its classes, `{` is literal unless a count follows, it has `\Q..\E`, octal
//! escapes and `\p{^Name}`, and knows no flags but `imsU` (regexp/syntax of Go 1.26).

use std::fmt::Write as _;

use regex::bytes::{Regex, RegexBuilder};

/// Memory a compiled expression may take, in bytes.
const COMPILED_BYTES_MAX: usize = 1 << 20;

/// Go's largest count in `{n,m}`.
const REPEATS_MAX: u32 = 1000;

const POSIX_CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// Compiles an expression written for Go.
///
/// # Errors
/// Why Go or we would not.
pub(super) fn compile(pattern: &[u8]) -> Result<Regex, String> {
    let pattern = str::from_utf8(pattern).or(Err("a regular expression that is not UTF-8"))?;
    let mut translation = Translation {
        rest: pattern,
        out: String::with_capacity(pattern.len()),
    };
    translation
        .run()
        .map_err(|why| format!("regular expression {pattern:?}: {why}"))?;
    RegexBuilder::new(&translation.out)
        .size_limit(COMPILED_BYTES_MAX)
        .build()
        .map_err(|error| format!("regular expression {pattern:?}: {}", reason(&error)))
}

/// The last line of the crate's message, which draws the pattern over several.
fn reason(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().last().unwrap_or_default();
    last.trim_start_matches("error: ").to_owned()
}

struct Translation<'a> {
    rest: &'a str,
    out: String,
}

type Step<T = ()> = Result<T, &'static str>;

impl<'a> Translation<'a> {
    fn run(&mut self) -> Step {
        let mut after_repeat = false;
        while let Some(c) = self.peek() {
            let repeats = matches!(c, '*' | '+' | '?') || (c == '{' && self.count().is_some());
            if repeats && after_repeat {
                return Err("one repetition upon another");
            }
            after_repeat = repeats;
            if repeats {
                self.repeat()?;
                continue;
            }
            match c {
                '\\' => self.escape()?,
                '[' => self.class()?,
                '(' => self.group()?,
                '^' | '$' | '.' | '|' | ')' => self.copy(c.len_utf8()),
                _ => self.literal(),
            }
        }
        Ok(())
    }

    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn take(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        Some(c)
    }

    fn copy(&mut self, bytes: usize) {
        let (copied, rest) = self.rest.split_at(bytes);
        self.out.push_str(copied);
        self.rest = rest;
    }

    fn literal(&mut self) {
        if let Some(c) = self.take() {
            self.push(c);
        }
    }

    /// A character that must not mean anything.
    fn push(&mut self, c: char) {
        if c.is_ascii_alphanumeric() || !c.is_ascii() {
            self.out.push(c);
        } else {
            // Writing to a String cannot fail.
            let _written = write!(self.out, r"\x{{{:x}}}", u32::from(c));
        }
    }

    /// Bytes of `{n}`, `{n,}` or `{n,m}` and its largest count, if that is what comes.
    fn count(&self) -> Option<(usize, u32)> {
        let (inside, _) = self.rest.strip_prefix('{')?.split_once('}')?;
        let (least, most) = inside.split_once(',').unwrap_or((inside, inside));
        let number = |text: &str| {
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| text.parse().unwrap_or(u32::MAX))
        };
        let least = number(least)?;
        let most = if most.is_empty() {
            least
        } else {
            number(most)?
        };
        Some((inside.len() + 2, least.max(most)))
    }

    fn repeat(&mut self) -> Step {
        match self.count() {
            Some((_, most)) if most > REPEATS_MAX => return Err("a count above 1000"),
            Some((bytes, _)) => self.copy(bytes),
            None => self.copy(1),
        }
        if self.peek() == Some('?') {
            self.copy(1);
        }
        Ok(())
    }

    fn group(&mut self) -> Step {
        let Some(about) = self.rest.strip_prefix("(?") else {
            self.copy(1);
            return Ok(());
        };
        let name = about.strip_prefix("P<").or(about.strip_prefix('<'));
        let head = match name {
            Some(name) => {
                let (name, rest) = name
                    .split_once('>')
                    .ok_or("a group's name without its end")?;
                let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
                if name.is_empty() || !name.bytes().all(word) {
                    return Err("a group's name is made of letters, digits and _");
                }
                self.rest.len() - rest.len()
            }
            None => {
                let flags = about
                    .find([':', ')'])
                    .ok_or("a group's flags without their end")?;
                if !about[..flags].chars().all(|c| "imsU-".contains(c)) {
                    return Err("a group's flags are i, m, s and U");
                }
                2 + flags + 1
            }
        };
        self.copy(head);
        Ok(())
    }

    /// A backslash outside a class.
    fn escape(&mut self) -> Step {
        if let Some(quoted) = self.rest.strip_prefix(r"\Q") {
            let (text, rest) = quoted.split_once(r"\E").unwrap_or((quoted, ""));
            text.chars().for_each(|c| self.push(c));
            self.rest = rest;
            return Ok(());
        }
        let c = self.rest.chars().nth(1).ok_or("a backslash at the end")?;
        match c {
            'A' | 'z' => self.copy(2),
            // Of ASCII words, as all of Go's are.
            'b' | 'B' => {
                self.out.push_str("(?-u:");
                self.copy(2);
                self.out.push(')');
            }
            _ => {
                if let Some(class) = self.class_escape()? {
                    let _written = write!(self.out, "[{class}]");
                } else {
                    let literal = self.character()?;
                    self.push(literal);
                }
            }
        }
        Ok(())
    }

    /// `\d`, `\pN` and the like, as what stands inside brackets.
    fn class_escape(&mut self) -> Step<Option<String>> {
        let c = self.rest.strip_prefix('\\').and_then(|s| s.chars().next());
        let class = match c {
            Some('d') => "0-9",
            Some('D') => "[^0-9]",
            Some('s') => r"\t\n\f\r\x20",
            Some('S') => r"[^\t\n\f\r\x20]",
            Some('w') => "0-9A-Za-z_",
            Some('W') => "[^0-9A-Za-z_]",
            Some('p' | 'P') => return self.property().map(Some),
            _ => return Ok(None),
        };
        self.rest = &self.rest[2..];
        Ok(Some(class.to_owned()))
    }

    /// `\pN`, `\p{Name}`, `\p{^Name}`.
    fn property(&mut self) -> Step<String> {
        self.take();
        let mut negated = self.take() == Some('P');
        let mut name = match self.take().ok_or("a property without its name")? {
            '{' => {
                let (name, rest) = self
                    .rest
                    .split_once('}')
                    .ok_or("a property without its end")?;
                self.rest = rest;
                name
            }
            c if c.is_ascii_alphabetic() => {
                return Ok(format!(r"\{}{c}", if negated { 'P' } else { 'p' }));
            }
            _ => return Err("a property without its name"),
        };
        if let Some(positive) = name.strip_prefix('^') {
            negated = !negated;
            name = positive;
        }
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err("a property's name is made of letters");
        }
        if name == "Any" {
            let all = if negated {
                r"[^\x{0}-\x{10ffff}]"
            } else {
                r"\x{0}-\x{10ffff}"
            };
            return Ok(all.to_owned());
        }
        Ok(format!(r"\{}{{{name}}}", if negated { 'P' } else { 'p' }))
    }

    /// A backslash that stands for one character.
    fn character(&mut self) -> Step<char> {
        self.take();
        let c = self.take().ok_or("a backslash at the end")?;
        Ok(match c {
            'a' => '\x07',
            'f' => '\x0c',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0b',
            // One digit that no other follows would be a back reference, but for the zero.
            '1'..='7' if !matches!(self.peek(), Some('0'..='7')) => {
                return Err("an escape that Go's regular expressions do not have");
            }
            '0'..='7' => {
                let mut value = c.to_digit(8).unwrap_or_default();
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    self.take();
                    value = value * 8 + digit;
                }
                char::from_u32(value).ok_or("no character")?
            }
            'x' => self.hexadecimal()?,
            _ if c.is_ascii_punctuation() || c.is_ascii_control() || c == ' ' => c,
            _ => return Err("an escape that Go's regular expressions do not have"),
        })
    }

    /// `\x7F`, `\x{10FFFF}`.
    fn hexadecimal(&mut self) -> Step<char> {
        let wrong = "a hexadecimal escape without its digits";
        let (digits, rest) = match self.rest.strip_prefix('{') {
            Some(braced) => braced.split_once('}').ok_or(wrong)?,
            None => self.rest.split_at_checked(2).ok_or(wrong)?,
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(wrong);
        }
        self.rest = rest;
        let value = u32::from_str_radix(digits, 16).or(Err("a character above U+10FFFF"))?;
        char::from_u32(value).ok_or("no character of Unicode")
    }

    fn class(&mut self) -> Step {
        self.copy(1);
        if self.peek() == Some('^') {
            self.copy(1);
        }
        let mut first = true;
        loop {
            match self.peek().ok_or("a class without its end")? {
                ']' if !first => break,
                '[' if self.posix_class()? => {}
                _ => {
                    if let Some(class) = self.class_escape()? {
                        self.out.push_str(&class);
                    } else {
                        self.range()?;
                    }
                }
            }
            first = false;
        }
        self.copy(1);
        Ok(())
    }

    /// Takes `[:name:]` or `[:^name:]`, if that is what comes.
    fn posix_class(&mut self) -> Step<bool> {
        let inside = self.rest.strip_prefix("[:");
        let Some((name, _)) = inside.and_then(|inside| inside.split_once(":]")) else {
            return Ok(false);
        };
        if !POSIX_CLASSES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return Err("a class in [: :] that Go does not know");
        }
        self.copy(name.len() + 4);
        Ok(true)
    }

    /// One character, or two with a dash between, inside a class.
    fn range(&mut self) -> Step {
        let from = self.class_character()?;
        self.push(from);
        let dash = self.rest.strip_prefix('-');
        if dash.is_some_and(|behind| !behind.is_empty() && !behind.starts_with(']')) {
            self.copy(1);
            let to = self.class_character()?;
            self.push(to);
        }
        Ok(())
    }

    fn class_character(&mut self) -> Step<char> {
        match self.peek() {
            Some('\\') => self.character(),
            _ => self.take().ok_or("a class without its end"),
        }
    }
}
