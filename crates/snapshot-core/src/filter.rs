//! containerd's filters (pkg/filters) as snapshots are chosen by them. Touches no disk.
//!
//! A filter is a list of selectors joined by commas, all of which must hold:
//!
//! ```text
//! selector  := fieldpath [operator value]
//! fieldpath := field ("." field)*
//! field     := quoted | [A-Za-z0-9_]+
//! operator  := "==" | "!=" | "~="
//! value     := quoted | any text up to a comma or a space
//! quoted    := a Go string in double quotes; for "~=" also in slashes or bars
//! ```
//!
//! The fields are `kind` (`view`, `active`, `committed`), `name`, `parent` and `labels.NAME`; any
//! other field is never present, as with containerd. One thing differs: a regular expression that
//! cannot be compiled is refused, where containerd matches nothing.

mod pattern;
mod quote;
mod scanner;

use crate::{Error, Info, Kind, Result};

use scanner::{Scanner, Token};

/// Longest filter, in bytes: a key and a label fit.
const FILTER_BYTES_MAX: usize = 16 * 1024;

/// Most filters of a request.
const FILTERS_MAX: usize = 128;

/// Most selectors of a filter.
const SELECTORS_MAX: usize = 128;

/// Which snapshots are meant: those that match one of several lists of selectors.
#[derive(Debug)]
pub struct Filter {
    alternatives: Vec<Vec<Selector>>,
}

#[derive(Debug)]
struct Selector {
    field: Field,
    test: Test,
}

#[derive(Debug)]
enum Field {
    Kind,
    Name,
    Parent,
    Label(String),
    /// One that no snapshot has.
    Other,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(Vec<u8>),
    NotEqual(Vec<u8>),
    Matches(regex::bytes::Regex),
}

impl Filter {
    /// What any of these texts chooses; everything when there is none, or an empty one.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the text, the byte in it and what was expected there.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self> {
        if texts.len() > FILTERS_MAX {
            return Err(Error::Invalid(format!(
                "{} filters, at most {FILTERS_MAX} are taken",
                texts.len()
            )));
        }
        let parsed = texts.iter().map(|text| Parser::new(text.as_ref()).parse());
        let alternatives: Vec<_> = parsed.collect::<Result<_>>()?;
        Ok(Self { alternatives })
    }

    /// Whether a snapshot is chosen.
    #[must_use]
    pub fn matches(&self, info: &Info) -> bool {
        let all = |selectors: &Vec<Selector>| selectors.iter().all(|one| one.holds(info));
        self.alternatives.is_empty() || self.alternatives.iter().any(all)
    }
}

impl Selector {
    fn holds(&self, info: &Info) -> bool {
        let found = self.field.of(info);
        // An absent field compares as an empty one, except for equality.
        let value = found.unwrap_or_default().as_bytes();
        match &self.test {
            Test::Present => found.is_some(),
            Test::Equal(expected) => found.is_some() && value == expected,
            Test::NotEqual(unwanted) => value != unwanted,
            Test::Matches(pattern) => pattern.is_match(value),
        }
    }
}

impl Field {
    fn named(path: &[Vec<u8>]) -> Self {
        let (first, rest) = path.split_first().expect("a path has a field");
        match first.as_slice() {
            b"kind" => Self::Kind,
            b"name" => Self::Name,
            b"parent" => Self::Parent,
            // A label is UTF-8, so what is not names none.
            b"labels" => String::from_utf8(rest.join(&b'.')).map_or(Self::Other, Self::Label),
            _ => Self::Other,
        }
    }

    fn of<'a>(&self, info: &'a Info) -> Option<&'a str> {
        match self {
            Self::Kind => Some(match info.kind {
                Kind::View => "view",
                Kind::Active => "active",
                Kind::Committed => "committed",
            }),
            Self::Name => Some(info.name.as_str()),
            Self::Parent => Some(info.parent.as_ref().map_or("", crate::Key::as_str)),
            Self::Label(name) => info.labels.get(name).map(String::as_str),
            Self::Other => None,
        }
    }
}

#[derive(Clone, Copy)]
enum Operator {
    Equal,
    NotEqual,
    Matches,
}

/// One filter that is being read.
struct Parser<'a> {
    text: &'a str,
    scanner: Scanner<'a>,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Self {
        Self {
            text,
            scanner: Scanner::new(text),
        }
    }

    fn parse(mut self) -> Result<Vec<Selector>> {
        if self.text.len() > FILTER_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "a filter of {} bytes, at most {FILTER_BYTES_MAX} are taken",
                self.text.len()
            )));
        }
        let mut selectors = Vec::new();
        if self.text.is_empty() {
            return Ok(selectors);
        }
        loop {
            if selectors.len() == SELECTORS_MAX {
                let why = format!("more than {SELECTORS_MAX} selectors");
                return Err(self.wrong(self.scanner.position(), &why));
            }
            selectors.push(self.selector()?);
            match self.scanner.peek() {
                None => return Ok(selectors),
                Some(',') => self.scanner.take(),
                Some(other) => {
                    let why = format!("expected a comma or the end, not {other:?}");
                    return Err(self.wrong(self.scanner.position(), &why));
                }
            };
        }
    }

    fn selector(&mut self) -> Result<Selector> {
        let field = self.field_path()?;
        if matches!(self.scanner.peek(), None | Some(',')) {
            let test = Test::Present;
            return Ok(Selector { field, test });
        }
        let operator = self.operator()?;
        let (position, value) = self.value(operator)?;
        let test = match operator {
            Operator::Equal => Test::Equal(value),
            Operator::NotEqual => Test::NotEqual(value),
            Operator::Matches => {
                let compiled = pattern::compile(&value);
                Test::Matches(compiled.map_err(|why| self.wrong(position, &why))?)
            }
        };
        Ok(Selector { field, test })
    }

    fn field_path(&mut self) -> Result<Field> {
        let mut path = vec![self.field()?];
        while self.scanner.peek() == Some('.') {
            self.scanner.take();
            path.push(self.field()?);
        }
        Ok(Field::named(&path))
    }

    fn field(&mut self) -> Result<Vec<u8>> {
        let (position, token) = self.scanner.take();
        match token {
            Token::Field(name) => Ok(name.as_bytes().to_vec()),
            Token::Quoted(quoted) if quoted.starts_with('"') => self.unquote(position, quoted),
            Token::Quoted(_) => Err(self.wrong(position, "a field is quoted by \" only")),
            Token::Illegal(why) => Err(self.wrong(position, why)),
            _ => Err(self.wrong(position, "expected a field, as it is or in double quotes")),
        }
    }

    fn operator(&mut self) -> Result<Operator> {
        let (position, token) = self.scanner.take();
        match token {
            Token::Operator("==") => Ok(Operator::Equal),
            Token::Operator("!=") => Ok(Operator::NotEqual),
            Token::Operator("~=") => Ok(Operator::Matches),
            Token::Illegal(why) => Err(self.wrong(position, why)),
            _ => Err(self.wrong(position, "expected one of the operators == != ~=")),
        }
    }

    fn value(&mut self, operator: Operator) -> Result<(usize, Vec<u8>)> {
        let (position, token) = self.scanner.take();
        let value = match (token, operator) {
            (Token::Value(text) | Token::Field(text), _) => text.as_bytes().to_vec(),
            (Token::Quoted(quoted), Operator::Matches) => self.unquote(position, quoted)?,
            (Token::Quoted(quoted), _) if quoted.starts_with('"') => {
                self.unquote(position, quoted)?
            }
            (Token::Quoted(_), _) => {
                return Err(self.wrong(position, "only a value of ~= is quoted by / or |"));
            }
            (Token::Illegal(why), _) => return Err(self.wrong(position, why)),
            _ => return Err(self.wrong(position, "expected a value, as it is or quoted")),
        };
        Ok((position, value))
    }

    fn unquote(&self, position: usize, quoted: &str) -> Result<Vec<u8>> {
        quote::unquote(quoted).map_err(|why| self.wrong(position, why))
    }

    fn wrong(&self, position: usize, why: &str) -> Error {
        Error::Invalid(format!("filter {:?}, byte {position}: {why}", self.text))
    }
}

#[cfg(test)]
mod tests;
