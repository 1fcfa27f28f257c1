//! One frame: its bytes, and what can be wrong with them. Keeps nothing.

/// Bytes before each payload.
pub(crate) const HEADER_BYTES: usize = 12;

/// Longest payload of a frame, in bytes.
pub const DATA_BYTES_MAX: usize = 32 << 10;

/// How many bytes may be on the way in one direction of a stream, unread.
pub const CREDIT_BYTES: u32 = 256 << 10;

/// What begins the payload of a Hello.
const MAGIC: [u8; 8] = *b"runv-mux";

/// Version of the rules; both ends must have the same.
const VERSION: u16 = 1;

/// Magic and version.
const HELLO_BYTES: usize = MAGIC.len() + 2;

const HELLO: u8 = 1;
const OPEN: u8 = 2;
const DATA: u8 = 3;
const FIN: u8 = 4;
const RESET: u8 = 5;
const CREDIT: u8 = 6;

/// What the other end must not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// No kind of frame.
    #[error("frame of unknown kind {0}")]
    Kind(u8),
    /// A payload that this kind does not have.
    #[error("frame of kind {kind} with {bytes} bytes")]
    Length {
        /// The kind's number.
        kind: u8,
        /// What its header says.
        bytes: u32,
    },
    /// A frame of another conversation.
    #[error("frame of epoch {theirs} in epoch {ours}")]
    Epoch {
        /// The frame's.
        theirs: u16,
        /// The link's.
        ours: u16,
    },
    /// A Hello of other rules.
    #[error("version {0} of the mux, and this end has {VERSION}")]
    Version(u16),
    /// A stream that nobody opened.
    #[error("frame for stream {0}, which was not opened")]
    Stream(u32),
    /// A stream opened where it must not be: by the guest, or with a number that is not above the last.
    #[error("stream {0} must not be opened")]
    Open(u32),
    /// More streams than there may be.
    #[error("more than {0} streams")]
    Streams(usize),
    /// More bytes than there was credit for, or bytes after the end.
    #[error("data beyond what stream {0} may have")]
    Data(u32),
    /// More credit than was ever taken.
    #[error("credit beyond what stream {0} has used")]
    Credit(u32),
}

/// What a frame says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    Hello,
    Open,
    Data(&'a [u8]),
    Fin,
    Reset,
    Credit(u32),
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame<'a> {
    pub(crate) epoch: u16,
    pub(crate) stream: u32,
    pub(crate) body: Body<'a>,
}

impl<'a> Frame<'a> {
    /// The first frame of `bytes` and its length; none when there is more to come.
    ///
    /// # Errors
    /// What is no frame.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Option<(Self, usize)>, Violation> {
        let Some((header, rest)) = bytes.split_at_checked(HEADER_BYTES) else {
            return Ok(None);
        };
        let number = |at: usize| {
            u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
        };
        let (epoch, kind) = (u16::from_le_bytes([header[0], header[1]]), header[2]);
        let (stream, length) = (number(4), number(8));
        let bytes = usize::try_from(length).unwrap_or(usize::MAX);
        let fits = match kind {
            HELLO => bytes == HELLO_BYTES,
            OPEN | FIN | RESET => bytes == 0,
            DATA => (1..=DATA_BYTES_MAX).contains(&bytes),
            CREDIT => bytes == 4,
            _ => return Err(Violation::Kind(kind)),
        };
        if !fits {
            let bytes = length;
            return Err(Violation::Length { kind, bytes });
        }
        let Some(payload) = rest.get(..bytes) else {
            return Ok(None);
        };
        let body = match kind {
            HELLO => Self::hello(payload)?,
            OPEN => Body::Open,
            DATA => Body::Data(payload),
            FIN => Body::Fin,
            RESET => Body::Reset,
            _ => Body::Credit(u32::from_le_bytes([
                payload[0], payload[1], payload[2], payload[3],
            ])),
        };
        let frame = Self {
            epoch,
            stream,
            body,
        };
        Ok(Some((frame, HEADER_BYTES + bytes)))
    }

    fn hello(payload: &[u8]) -> Result<Body<'a>, Violation> {
        let version = u16::from_le_bytes([payload[8], payload[9]]);
        match (payload.starts_with(&MAGIC), version) {
            (true, VERSION) => Ok(Body::Hello),
            (true, version) => Err(Violation::Version(version)),
            (false, _) => Err(Violation::Kind(HELLO)),
        }
    }

    /// Adds its bytes to `out`.
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let credit;
        let mut hello = MAGIC.to_vec();
        hello.extend_from_slice(&VERSION.to_le_bytes());
        let (kind, payload): (u8, &[u8]) = match self.body {
            Body::Hello => (HELLO, &hello),
            Body::Open => (OPEN, &[]),
            Body::Data(data) => (DATA, data),
            Body::Fin => (FIN, &[]),
            Body::Reset => (RESET, &[]),
            Body::Credit(bytes) => {
                credit = bytes.to_le_bytes();
                (CREDIT, &credit)
            }
        };
        let length = u32::try_from(payload.len()).expect("callers cut data to DATA_BYTES_MAX");
        out.extend_from_slice(&self.epoch.to_le_bytes());
        out.extend_from_slice(&[kind, 0]);
        out.extend_from_slice(&self.stream.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(payload);
    }
}

/// Where in `bytes` a Hello may begin; its frame may not be whole yet. None: nowhere, and then so many
/// bytes from the front can be forgotten.
pub(crate) fn find_hello(bytes: &[u8]) -> Result<usize, usize> {
    let looks = |at: usize| {
        let window = &bytes[at..];
        let kind = window.get(2).is_none_or(|&kind| kind == HELLO);
        let magic = window.get(HEADER_BYTES..).unwrap_or_default();
        let magic = &magic[..magic.len().min(MAGIC.len())];
        let length = window
            .get(8..12)
            .is_none_or(|length| length == (u32::try_from(HELLO_BYTES).unwrap_or(0)).to_le_bytes());
        kind && length && MAGIC.starts_with(magic)
    };
    (0..bytes.len()).find(|&at| looks(at)).ok_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_as_they_were_written() {
        for body in [
            Body::Hello,
            Body::Open,
            Body::Data(b"x"),
            Body::Fin,
            Body::Reset,
            Body::Credit(77),
        ] {
            let frame = Frame {
                epoch: 513,
                stream: 7,
                body,
            };
            let mut bytes = Vec::new();
            frame.write(&mut bytes);
            let length = bytes.len();
            bytes.extend_from_slice(b"next");
            assert_eq!(Frame::parse(&bytes), Ok(Some((frame, length))));
            for cut in 0..length {
                assert_eq!(Frame::parse(&bytes[..cut]), Ok(None), "{cut} of {body:?}");
            }
        }
    }

    #[test]
    fn what_is_no_frame_is_refused_by_its_header() {
        let header = |kind: u8, length: u32| {
            let mut bytes = vec![1, 0, kind, 0, 1, 0, 0, 0];
            bytes.extend_from_slice(&length.to_le_bytes());
            bytes
        };
        let too_long = u32::try_from(DATA_BYTES_MAX).unwrap() + 1;
        assert_eq!(Frame::parse(&header(0, 0)), Err(Violation::Kind(0)));
        for (kind, bytes) in [
            (DATA, too_long),
            (DATA, 0),
            (FIN, 1),
            (CREDIT, 5),
            (HELLO, 9),
        ] {
            let refused = Violation::Length { kind, bytes };
            assert_eq!(Frame::parse(&header(kind, bytes)), Err(refused));
        }
        let mut other = header(HELLO, 10);
        other.extend_from_slice(b"runv-mux\x02\x00");
        assert_eq!(Frame::parse(&other), Err(Violation::Version(2)));
    }

    #[test]
    fn a_hello_is_found_in_what_is_left_of_another_conversation() {
        let mut hello = Vec::new();
        let frame = Frame {
            epoch: 9,
            stream: 0,
            body: Body::Hello,
        };
        frame.write(&mut hello);
        let before = b"\x01\x01\x01 rest of a frame \x01";
        let mut bytes = before.to_vec();
        bytes.extend_from_slice(&hello);
        assert_eq!(find_hello(&bytes), Ok(before.len()));
        assert_eq!(
            find_hello(b"nothing like it is here"),
            Ok(21),
            "the rest may follow"
        );
        assert_eq!(find_hello(&[0; 40]), Ok(38), "the rest may follow");
        assert_eq!(find_hello(b""), Err(0));
    }
}
