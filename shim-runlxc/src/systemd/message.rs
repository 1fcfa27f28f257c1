//! Messages as D-Bus has them on a socket (D-Bus specification, "Type System" and "Message Protocol"): the few
//! types that calls to systemd take and that its answers have. Pure.

use std::io::{Error, ErrorKind, Result};

use cgroups::Property;
use cgroups::properties::Value;

/// Bytes before the header's fields: the longest part whose length is known beforehand.
pub(super) const START_BYTES: usize = 16;

/// Longest message that is read. systemd's own signals have a few hundred bytes.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// No reply is taken from a message of another byte order than this machine's, which is little-endian.
const ORDER: u8 = b'l';
const VERSION: u8 = 1;

/// What a message is, as far as we look at it: what answers a call and is no error is its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Call = 1,
    Error = 3,
    Signal = 4,
}

/// A call to make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    /// The peer's name on the bus; none: whoever is at the other end.
    pub(super) destination: Option<&'a str>,
    pub(super) path: &'a str,
    pub(super) interface: &'a str,
    pub(super) member: &'a str,
}

/// What was received.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Message {
    /// One of [`Kind`], or a number that means nothing to us.
    pub(super) kind: u8,
    /// The serial that it answers.
    pub(super) answers: Option<u32>,
    pub(super) member: String,
    /// The name of an error.
    pub(super) error: String,
    pub(super) signature: String,
    body: Vec<u8>,
}

/// The arguments of a call, and their types.
#[derive(Debug, Default)]
pub(super) struct Body {
    signature: String,
    writer: Writer,
}

impl Body {
    pub(super) fn text(mut self, text: &str) -> Self {
        self.signature.push('s');
        self.writer.text(text);
        self
    }

    pub(super) fn boolean(mut self, value: bool) -> Self {
        self.signature.push('b');
        self.writer.u32(value.into());
        self
    }

    /// `a(sv)`
    pub(super) fn properties(mut self, properties: &[Property]) -> Self {
        self.signature.push_str("a(sv)");
        self.writer.array(8, |writer| {
            for (name, value) in properties {
                writer.align(8);
                writer.text(name);
                writer.variant(value);
            }
        });
        self
    }

    /// An empty `a(sa(sv))`: units that go with this one.
    pub(super) fn no_further_units(mut self) -> Self {
        self.signature.push_str("a(sa(sv))");
        self.writer.array(8, |_writer| {});
        self
    }
}

/// The bytes of a call with this serial.
pub(super) fn encode(call: Call<'_>, serial: u32, body: &Body) -> Vec<u8> {
    let mut writer = Writer::default();
    writer.bytes.extend([ORDER, Kind::Call as u8, 0, VERSION]);
    writer.u32(length(body.writer.bytes.len()));
    writer.u32(serial);
    writer.array(8, |writer| {
        let mut field = |code: u8, kind: &str, text: &str| {
            writer.align(8);
            writer.bytes.push(code);
            writer.signature(kind);
            if kind == "g" {
                writer.signature(text);
            } else {
                writer.text(text);
            }
        };
        field(1, "o", call.path);
        field(2, "s", call.interface);
        field(3, "s", call.member);
        if let Some(destination) = call.destination {
            field(6, "s", destination);
        }
        if !body.signature.is_empty() {
            field(8, "g", &body.signature);
        }
    });
    writer.align(8);
    writer.bytes.extend(&body.writer.bytes);
    writer.bytes
}

#[derive(Debug, Default)]
struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    fn align(&mut self, to: usize) {
        self.bytes.resize(self.bytes.len().next_multiple_of(to), 0);
    }

    fn u32(&mut self, value: u32) {
        self.align(4);
        self.bytes.extend(value.to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.u32(length(text.len()));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// Of at most 255 bytes: ours are short.
    fn signature(&mut self, text: &str) {
        self.bytes.push(u8::try_from(text.len()).unwrap_or(u8::MAX));
        self.bytes.extend(text.as_bytes());
        self.bytes.push(0);
    }

    /// Its length is that of its elements, without what comes before the first to align it.
    fn array(&mut self, element_alignment: usize, fill: impl FnOnce(&mut Self)) {
        self.u32(0);
        let at = self.bytes.len() - 4;
        self.align(element_alignment);
        let start = self.bytes.len();
        fill(self);
        let filled = length(self.bytes.len() - start);
        self.bytes[at..at + 4].copy_from_slice(&filled.to_le_bytes());
    }

    fn variant(&mut self, value: &Value) {
        self.signature(signature_of(value));
        match value {
            Value::Boolean(value) => self.u32((*value).into()),
            Value::Byte(value) => self.bytes.push(*value),
            Value::Int16(value) => self.fixed(&value.to_le_bytes()),
            Value::Uint16(value) => self.fixed(&value.to_le_bytes()),
            Value::Int32(value) => self.fixed(&value.to_le_bytes()),
            Value::Uint32(value) => self.fixed(&value.to_le_bytes()),
            Value::Int64(value) => self.fixed(&value.to_le_bytes()),
            Value::Uint64(value) => self.fixed(&value.to_le_bytes()),
            Value::Double(value) => self.fixed(&value.to_le_bytes()),
            Value::Text(text) => self.text(text),
            Value::Bytes(bytes) => self.array(1, |writer| writer.bytes.extend(bytes)),
            Value::Numbers(numbers) => self.array(4, |writer| {
                numbers.iter().for_each(|number| writer.u32(*number));
            }),
            Value::Texts(texts) => self.array(4, |writer| {
                texts.iter().for_each(|text| writer.text(text));
            }),
            Value::Pairs(pairs) => self.array(8, |writer| {
                for (first, second) in pairs {
                    writer.align(8);
                    writer.text(first);
                    writer.text(second);
                }
            }),
        }
    }

    /// A number, aligned to its size.
    fn fixed(&mut self, bytes: &[u8]) {
        self.align(bytes.len());
        self.bytes.extend(bytes);
    }
}

/// A message of more than 4 GiB is not made here.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn signature_of(value: &Value) -> &'static str {
    match value {
        Value::Boolean(_) => "b",
        Value::Byte(_) => "y",
        Value::Int16(_) => "n",
        Value::Uint16(_) => "q",
        Value::Int32(_) => "i",
        Value::Uint32(_) => "u",
        Value::Int64(_) => "x",
        Value::Uint64(_) => "t",
        Value::Double(_) => "d",
        Value::Text(_) => "s",
        Value::Bytes(_) => "ay",
        Value::Numbers(_) => "au",
        Value::Texts(_) => "as",
        Value::Pairs(_) => "a(ss)",
    }
}

/// How many bytes follow the first [`START_BYTES`] of a message.
///
/// # Errors
/// `InvalidData` for what is no message, or too long.
pub(super) fn rest_of(start: &[u8; START_BYTES]) -> Result<usize> {
    if start[0] != ORDER || start[3] != VERSION {
        return Err(invalid("what came is no message of this version"));
    }
    let mut reader = Reader::at(start, 4);
    let body = reader.u32()? as usize;
    reader.u32()?;
    let fields = reader.u32()? as usize;
    let rest = fields.next_multiple_of(8).saturating_add(body);
    if fields > MESSAGE_BYTES_MAX || rest > MESSAGE_BYTES_MAX {
        return Err(invalid("a message is longer than 1 MiB"));
    }
    Ok(rest)
}

/// A whole message.
///
/// # Errors
/// `InvalidData`.
pub(super) fn decode(bytes: &[u8]) -> Result<Message> {
    let mut reader = Reader::at(bytes, 12);
    let fields = reader.u32()? as usize;
    let end = reader.at.saturating_add(fields);
    let kind = *bytes.get(1).ok_or_else(too_short)?;
    let mut message = Message {
        kind,
        ..Message::default()
    };
    while reader.at < end {
        reader.align(8);
        let code = reader.byte()?;
        let signature = reader.signature()?;
        match (code, signature.as_str()) {
            (3, "s") => message.member = reader.text()?,
            (4, "s") => message.error = reader.text()?,
            (5, "u") => message.answers = Some(reader.u32()?),
            (8, "g") => message.signature = reader.signature()?,
            (_, "s" | "o") => drop(reader.text()?),
            (_, "u") => drop(reader.u32()?),
            (_, "g") => drop(reader.signature()?),
            _ => return Err(invalid("a field of a header has an unknown type")),
        }
    }
    reader.align(8);
    message.body = bytes.get(reader.at..).ok_or_else(too_short)?.to_vec();
    Ok(message)
}

impl Message {
    /// The only argument, a text or a path; of a `v`, the text in it.
    ///
    /// # Errors
    /// `InvalidData` for other arguments.
    pub(super) fn single(&self) -> Result<String> {
        let mut reader = Reader::at(&self.body, 0);
        match self.signature.as_str() {
            "s" | "o" => reader.text(),
            "v" if reader.signature()? == "s" => reader.text(),
            _ => Err(invalid("an answer has other arguments than it should")),
        }
    }

    /// The bytes in the only argument, a `v`, in hexadecimal.
    ///
    /// # Errors
    /// `InvalidData` for other arguments.
    pub(super) fn single_bytes(&self) -> Result<String> {
        let mut reader = Reader::at(&self.body, 0);
        if self.signature != "v" || reader.signature()? != "ay" {
            return Err(invalid("an answer has other arguments than it should"));
        }
        let length = reader.u32()? as usize;
        let bytes = reader.take(length)?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// The path and the result of a job that has ended: arguments `uoss` of `JobRemoved`.
    ///
    /// # Errors
    /// `InvalidData` for other arguments.
    pub(super) fn ended_job(&self) -> Result<(String, String)> {
        if self.signature != "uoss" {
            return Err(invalid("JobRemoved has other arguments than it should"));
        }
        let mut reader = Reader::at(&self.body, 0);
        reader.u32()?;
        let path = reader.text()?;
        reader.text()?;
        Ok((path, reader.text()?))
    }

    /// The text of an error, if it has one.
    pub(super) fn explanation(&self) -> String {
        if !self.signature.starts_with('s') {
            return String::new();
        }
        Reader::at(&self.body, 0).text().unwrap_or_default()
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn at(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    fn align(&mut self, to: usize) {
        self.at = self.at.next_multiple_of(to);
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(count).ok_or_else(too_short)?;
        let taken = self.bytes.get(self.at..end).ok_or_else(too_short)?;
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32> {
        self.align(4);
        let mut number = [0; 4];
        number.copy_from_slice(self.take(4)?);
        Ok(u32::from_le_bytes(number))
    }

    fn text(&mut self) -> Result<String> {
        let length = self.u32()? as usize;
        self.ended_text(length)
    }

    fn signature(&mut self) -> Result<String> {
        let length = self.byte()?;
        self.ended_text(length.into())
    }

    fn ended_text(&mut self, length: usize) -> Result<String> {
        let text = self.take(length)?;
        if self.byte()? != 0 {
            return Err(invalid("a text does not end where it should"));
        }
        std::str::from_utf8(text)
            .map(str::to_owned)
            .map_err(|_bytes| invalid("a text is not UTF-8"))
    }
}

fn too_short() -> Error {
    invalid("a message ends early")
}

fn invalid(why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An answer.
    const RETURN: u8 = 2;

    const CALL: Call<'_> = Call {
        destination: Some("org.x"),
        path: "/p",
        interface: "i.f",
        member: "Do",
    };

    /// A message with these header fields and this body, as a peer sends it.
    fn sent(kind: u8, fields: &[(u8, &str, &str)], serial: Option<u32>, body: &Body) -> Vec<u8> {
        let mut writer = Writer::default();
        writer.bytes.extend([ORDER, kind, 0, VERSION]);
        writer.u32(length(body.writer.bytes.len()));
        writer.u32(9);
        writer.array(8, |writer| {
            for (code, kind, text) in fields {
                writer.align(8);
                writer.bytes.push(*code);
                writer.signature(kind);
                writer.text(text);
            }
            if let Some(serial) = serial {
                writer.align(8);
                writer.bytes.push(5);
                writer.signature("u");
                writer.u32(serial);
            }
            writer.align(8);
            writer.bytes.push(8);
            writer.signature("g");
            writer.signature(&body.signature);
        });
        writer.align(8);
        writer.bytes.extend(&body.writer.bytes);
        writer.bytes
    }

    fn start(bytes: &[u8]) -> [u8; START_BYTES] {
        bytes[..START_BYTES].try_into().unwrap()
    }

    #[test]
    fn a_call_has_the_bytes_of_the_specification() {
        let body = Body::default().text("ab").boolean(true);
        let bytes = encode(CALL, 7, &body);
        #[rustfmt::skip]
        let expected = [
            b'l', 1, 0, 1, 12, 0, 0, 0, 7, 0, 0, 0, 72, 0, 0, 0,
            1, 1, b'o', 0, 2, 0, 0, 0, b'/', b'p', 0, 0, 0, 0, 0, 0,
            2, 1, b's', 0, 3, 0, 0, 0, b'i', b'.', b'f', 0, 0, 0, 0, 0,
            3, 1, b's', 0, 2, 0, 0, 0, b'D', b'o', 0, 0, 0, 0, 0, 0,
            6, 1, b's', 0, 5, 0, 0, 0, b'o', b'r', b'g', b'.', b'x', 0, 0, 0,
            8, 1, b'g', 0, 2, b's', b'b', 0,
            2, 0, 0, 0, b'a', b'b', 0, 0, 1, 0, 0, 0,
        ];
        assert_eq!(bytes, expected);
        assert_eq!(rest_of(&start(&bytes)).unwrap(), bytes.len() - START_BYTES);
    }

    #[test]
    fn properties_are_aligned_by_their_types() {
        let properties = [
            ("A".to_owned(), Value::Byte(5)),
            ("B".to_owned(), Value::Uint64(6)),
            ("C".to_owned(), Value::Bytes(vec![1, 2])),
            ("D".to_owned(), Value::Pairs(vec![("x".into(), "r".into())])),
            ("E".to_owned(), Value::Int16(-1)),
        ];
        let body = Body::default().properties(&properties).no_further_units();
        assert_eq!(body.signature, "a(sv)a(sa(sv))");
        #[rustfmt::skip]
        let expected = [
            122, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, b'A', 0, 1, b'y', 0, 5, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, b'B', 0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0,
            1, 0, 0, 0, b'C', 0, 2, b'a', b'y', 0, 0, 0, 2, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 0,
        ];
        let (bytes, head) = (&body.writer.bytes, expected.len());
        assert_eq!(&bytes[4..head], &expected[4..]);
        #[rustfmt::skip]
        let pairs = [
            1, 0, 0, 0, b'D', 0, 5, b'a', b'(', b's', b's', b')', 0, 0, 0, 0,
            14, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, b'x', 0, 0, 0, 1, 0, 0, 0, b'r', 0, 0, 0, 0, 0, 0, 0,
            0, 0,
        ];
        assert_eq!(&bytes[head..head + 38], &pairs[..38]);
        let array = u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize;
        // After it, aligned, the array of no units.
        let end = (8 + array).next_multiple_of(4) + 4;
        assert_eq!(bytes.len(), end.next_multiple_of(8));
    }

    #[test]
    fn answers_and_signals_are_read() {
        let body = Body::default().text("/job/1");
        let answer = decode(&sent(RETURN, &[(7, "s", ":1.2")], Some(3), &body)).unwrap();
        assert_eq!((answer.kind, answer.answers), (2, Some(3)));
        assert_eq!(answer.single().unwrap(), "/job/1");

        let name = "org.freedesktop.systemd1.UnitExists";
        let body = Body::default().text("Unit x already exists.");
        let error = decode(&sent(Kind::Error as u8, &[(4, "s", name)], Some(4), &body)).unwrap();
        assert_eq!(error.error, name);
        assert_eq!(error.explanation(), "Unit x already exists.");
        let bare = decode(&sent(
            Kind::Error as u8,
            &[(4, "s", name)],
            Some(4),
            &Body::default(),
        ));
        assert_eq!(bare.unwrap().explanation(), "");

        let mut body = Body {
            signature: "uoss".to_owned(),
            ..Body::default()
        };
        body.writer.u32(12);
        for text in ["/job/12", "x.scope", "done"] {
            body.writer.text(text);
        }
        let fields = [(1, "o", "/m"), (2, "s", "i"), (3, "s", "JobRemoved")];
        let signal = decode(&sent(Kind::Signal as u8, &fields, None, &body)).unwrap();
        assert_eq!((signal.kind, signal.member.as_str()), (4, "JobRemoved"));
        let ended = ("/job/12".to_owned(), "done".to_owned());
        assert_eq!(signal.ended_job().unwrap(), ended);
        assert!(signal.single().is_err());
    }

    #[test]
    fn what_is_no_message_or_too_long_is_refused() {
        let bytes = encode(CALL, 1, &Body::default());
        let with = |index: usize, byte: u8| {
            let mut start = start(&bytes);
            start[index] = byte;
            rest_of(&start)
        };
        assert!(with(0, b'B').is_err() && with(3, 2).is_err());
        assert!(with(6, 0x10).is_err() && with(15, 0xff).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0_usize..80) {
            // Most of it a message, so that more of the reader is reached.
            let body = Body::default().text("x");
            let mut message = sent(RETURN, &[(7, "s", ":1.2")], Some(3), &body);
            message.truncate(at);
            message.append(&mut bytes);
            if let Ok(read) = decode(&message) {
                let _any = (read.single(), read.ended_job(), read.explanation());
            }
        }
    }
}
