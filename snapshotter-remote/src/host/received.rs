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
            let from = format!("bytes {}-", self.bytes.len());
            let rest = range(fields).and_then(|range| range.strip_prefix(&from)?.split_once('/'));
            let is_to_the_end = rest.is_some_and(|(last, total)| {
                let (last, total) = (last.parse::<u64>().ok(), total.parse::<u64>().ok());
                last.is_some() && last == total.and_then(|total| total.checked_sub(1))
            });
            return !self.bytes.is_empty() && is_to_the_end && self.is_of_the_same(fields);
        }
        self.bytes.clear();
        let tag = fields.get(header::ETAG);
        // A weak one is of what may have other bytes (RFC 9110, 13.1.5).
        self.tag = tag.filter(|tag| tag.as_bytes().starts_with(b"\"")).cloned();
        true
    }

    /// Whether the answer to a request for the rest says that there is none: it broke behind its last byte.
    pub(super) fn is_all(&self, fields: &HeaderMap) -> bool {
        let end = format!("bytes */{}", self.bytes.len());
        !self.bytes.is_empty() && range(fields) == Some(&end) && self.is_of_the_same(fields)
    }

    /// An answer need not say again what it is of, for it was asked for by that (RFC 9110, 15.3.7).
    fn is_of_the_same(&self, fields: &HeaderMap) -> bool {
        let tag = fields.get(header::ETAG);
        tag.is_none_or(|tag| self.tag.as_ref() == Some(tag))
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

fn range(fields: &HeaderMap) -> Option<&str> {
    fields.get(header::CONTENT_RANGE)?.to_str().ok()
}
