//! An answer of a store while it comes: where a connection breaks, what has come is kept, and the rest is asked for. It asks nobody
//! itself, and verifies nothing.

use http_body_util::BodyExt;
use hyper::{
    HeaderMap, Request, StatusCode,
    body::{Body, Bytes},
    header::{self, HeaderValue},
};

/// How often the rest of one answer is asked for: each time something has to have come.
const RESUMED_MAX: usize = 5;

/// What has come of an answer.
#[derive(Debug, Default)]
pub(super) struct Received {
    bytes: Vec<u8>,
    /// What it is of; without it nobody knows whether a rest is of the same.
    tag: Option<HeaderValue>,
    resumed: usize,
}

/// Why the rest did not come.
#[derive(Debug)]
pub(super) enum Broken {
    /// It may come to who asks for it.
    Resumable(String),
    /// It is of no use.
    Over(String),
}

impl Received {
    /// The request for what has not come yet.
    pub(super) fn rest<T: Clone>(&self, request: &Request<T>) -> Request<T> {
        let mut request = request.clone();
        if let Some(tag) = self.tag.as_ref().filter(|_| !self.bytes.is_empty()) {
            let range = format!("bytes={}-", self.bytes.len());
            let range = HeaderValue::try_from(range).expect("digits make a field");
            request.headers_mut().insert(header::RANGE, range);
            request.headers_mut().insert(header::IF_RANGE, tag.clone());
        }
        request
    }

    /// An answer begins: whether it goes on where the last one broke, or is whole; else nothing of it is wanted.
    pub(super) fn begins(&mut self, status: StatusCode, fields: &HeaderMap) -> bool {
        if status == StatusCode::PARTIAL_CONTENT {
            let range = fields.get(header::CONTENT_RANGE);
            let range = range.and_then(|range| range.to_str().ok());
            let from = format!("bytes {}-", self.bytes.len());
            return !self.bytes.is_empty() && range.is_some_and(|range| range.starts_with(&from));
        }
        self.bytes.clear();
        let tag = fields.get(header::ETAG);
        // A weak one is of what may have other bytes (RFC 9110, 13.1.5).
        self.tag = tag.filter(|tag| tag.as_bytes().starts_with(b"\"")).cloned();
        true
    }

    /// All that comes, if it is not too long.
    ///
    /// # Errors
    /// [`Broken`]
    pub(super) async fn read<B>(&mut self, mut body: B, bytes_max: usize) -> Result<(), Broken>
    where
        B: Body<Data = Bytes, Error: std::error::Error> + Unpin,
    {
        let before = self.bytes.len();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                let what = snapshot_core::one_line(&error);
                let has_more = self.bytes.len() > before;
                if !has_more || self.tag.is_none() || self.resumed == RESUMED_MAX {
                    return Broken::Over(what);
                }
                self.resumed += 1;
                Broken::Resumable(what)
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if self.bytes.len() + data.len() > bytes_max {
                let what = format!("more than {bytes_max} bytes were sent");
                return Err(Broken::Over(what));
            }
            self.bytes.extend_from_slice(&data);
        }
        Ok(())
    }

    /// What has come.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}
