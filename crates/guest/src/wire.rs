//! Messages on a stream of bytes: a little-endian u32 length and a postcard body of at most
//! [`MESSAGE_BYTES_MAX`].

use std::io::{self, Read, Write};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longest message: a config.json and some files beside it.
pub const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 4;

/// Why there is no message.
#[derive(Debug, thiserror::Error)]
#[expect(
    clippy::error_impl_error,
    reason = "one per crate, named as everywhere here: `wire::Error`"
)]
pub enum Error {
    /// The stream failed, or ended within a message.
    #[error("the stream between shim and guest failed")]
    Stream(#[source] io::Error),
    /// It says, or is, more than it may be.
    #[error("message of {0} bytes, at most {MESSAGE_BYTES_MAX}")]
    TooLong(usize),
    /// It is no message of this version.
    #[error("no message of this version")]
    Malformed(#[source] postcard::Error),
}

/// Sends one message whole.
///
/// # Errors
/// [`Error::TooLong`], or what the stream says.
pub fn send<M: Serialize>(mut stream: impl Write, message: &M) -> Result<(), Error> {
    let mut frame =
        postcard::to_extend(message, vec![0; LENGTH_BYTES]).map_err(Error::Malformed)?;
    let bytes = frame.len() - LENGTH_BYTES;
    let length = u32::try_from(bytes)
        .ok()
        .filter(|_| bytes <= MESSAGE_BYTES_MAX)
        .ok_or(Error::TooLong(bytes))?;
    frame[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    stream.write_all(&frame).map_err(Error::Stream)
}

/// Receives one message; none when the stream has ended before it.
///
/// # Errors
/// What is no message, or what the stream says.
pub fn receive<M: DeserializeOwned>(mut stream: impl Read) -> Result<Option<M>, Error> {
    let mut length = [0; LENGTH_BYTES];
    let mut got = 0;
    while got < LENGTH_BYTES {
        match stream.read(&mut length[got..]) {
            Ok(0) if got == 0 => return Ok(None),
            Ok(0) => return Err(Error::Stream(io::ErrorKind::UnexpectedEof.into())),
            Ok(bytes) => got += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::Stream(error)),
        }
    }
    let bytes = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
    if bytes > MESSAGE_BYTES_MAX {
        return Err(Error::TooLong(bytes));
    }
    let mut body = vec![0; bytes];
    stream.read_exact(&mut body).map_err(Error::Stream)?;
    postcard::from_bytes(&body)
        .map(Some)
        .map_err(Error::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::{Call, Message, Process, Request, Written};

    #[test]
    fn messages_arrive_as_they_were_sent_and_then_the_end() {
        let asked = Request {
            number: 7,
            call: Call::Start("c".into()),
        };
        let mut bytes = Vec::new();
        send(&mut bytes, &asked).unwrap();
        send(&mut bytes, &asked).unwrap();
        let mut stream = &bytes[..];
        for _ in 0..2 {
            assert_eq!(
                receive::<Request>(&mut stream).unwrap(),
                Some(asked.clone())
            );
        }
        assert!(receive::<Request>(&mut stream).unwrap().is_none());
    }

    #[test]
    fn what_is_no_message_is_refused_by_its_kind() {
        let check = |bytes: &[u8]| receive::<Message>(bytes).unwrap_err();
        assert!(matches!(check(&[1, 0]), Error::Stream(_)));
        assert!(matches!(check(&[5, 0, 0, 0, 1]), Error::Stream(_)));
        assert!(matches!(check(&[1, 0, 0, 0, 99]), Error::Malformed(_)));
        assert!(matches!(check(&[0xff; 4]), Error::TooLong(0xffff_ffff)));
        let process = Process {
            container: "x".repeat(MESSAGE_BYTES_MAX),
            exec: None,
        };
        let exited = Message::Exited {
            process,
            code: 0,
            written: Written::ALL,
        };
        let sent = send(Vec::new(), &exited);
        assert!(matches!(sent, Err(Error::TooLong(_))));
    }
}
