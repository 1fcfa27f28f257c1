//! A blob of a registry while it is read. A connection that breaks is made again, and what is left is asked for.

use std::{
    fmt,
    future::poll_fn,
    io::{self, Read},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use disk::Digest;
use futures_core::Stream;
use hyper::body::Bytes;
use oci_client::client::{BlobResponse, SizedStream};
use tokio::time::timeout;

use super::registry::{PAUSE, Registry, SILENCE, may_pass};

/// Connections on end that give nothing.
const FAILURES_MAX: u32 = 4;

/// Connections for one blob.
const CONNECTIONS_MAX: u32 = 100;

/// How long a registry is waited for, whatever it is asked for.
const WAIT: Duration = Duration::from_secs(600);

/// And for each so many bytes a second longer.
const BYTES_PER_SECOND: u64 = 64 << 10;

/// What is left of it.
pub(crate) struct Download {
    registry: Arc<Registry>,
    digest: Digest,
    bytes: u64,
    /// How much was read.
    at: u64,
    body: Option<Body>,
    failures: u32,
    connections: u32,
    /// How long the registry was waited for.
    waited: Duration,
    /// Why nothing more comes.
    broken: Option<String>,
}

/// An answer that is read.
struct Body {
    stream: SizedStream,
    ready: Bytes,
    /// What it begins with and was read before, of a registry that knows no ranges.
    surplus: u64,
}

/// Why a connection gives nothing more.
enum Broken {
    /// The next may.
    Passing(String),
    /// The next will not.
    Lasting(String),
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Download")
            .field("registry", &self.registry)
            .field("digest", &self.digest)
            .field("at", &self.at)
            .finish_non_exhaustive()
    }
}

impl Download {
    pub(super) fn new(registry: Arc<Registry>, digest: Digest, bytes: u64) -> Self {
        Self {
            registry,
            digest,
            bytes,
            at: 0,
            body: None,
            failures: 0,
            connections: 0,
            waited: Duration::ZERO,
            broken: None,
        }
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> u64 {
        self.bytes - self.at
    }

    /// Some bytes that were not read before, unless the registry has had time enough for all of them.
    fn next_in_time(&mut self) -> Result<(), Broken> {
        let limit = WAIT + Duration::from_secs(self.bytes / BYTES_PER_SECOND);
        if self.waited > limit {
            let (at, bytes, seconds) = (self.at, self.bytes, limit.as_secs());
            let what =
                format!("{at} of {bytes} bytes came in {seconds} seconds, which is too slow");
            return Err(Broken::Lasting(what));
        }
        let begun = Instant::now();
        let next = self.next();
        self.waited += begun.elapsed();
        next
    }

    fn next(&mut self) -> Result<(), Broken> {
        let mut body = match self.body.take() {
            Some(body) => body,
            None => self.connect()?,
        };
        let next = poll_fn(|context| Pin::new(&mut body.stream).poll_next(context));
        let next = self
            .registry
            .runtime
            .block_on(async { timeout(SILENCE, next).await });
        let mut bytes = match next {
            Ok(Some(Ok(bytes))) => bytes,
            Ok(Some(Err(error))) => {
                return Err(Broken::Passing(snapshot_core::one_line(&error)));
            }
            Ok(None) => {
                let what = format!("it ended after {} of {} bytes", self.at, self.bytes);
                return Err(Broken::Passing(what));
            }
            Err(_elapsed) => {
                let what = format!("nothing came for {} seconds", SILENCE.as_secs());
                return Err(Broken::Passing(what));
            }
        };
        let surplus = usize::try_from(body.surplus).unwrap_or(usize::MAX);
        let surplus = surplus.min(bytes.len());
        drop(bytes.split_to(surplus));
        body.surplus -= surplus as u64;
        if !bytes.is_empty() {
            self.failures = 0;
        }
        body.ready = bytes;
        self.body = Some(body);
        Ok(())
    }

    /// Asks for what was not read.
    fn connect(&mut self) -> Result<Body, Broken> {
        self.connections += 1;
        let registry = &self.registry;
        let digest = format!("sha256:{}", self.digest);
        let reference = registry.name.reference();
        let at = self.at;
        let asked = async {
            let client = &registry.client;
            if at == 0 {
                let whole = client.pull_blob_stream(reference, digest.as_str()).await?;
                return Ok(BlobResponse::Full(whole));
            }
            let rest = client.pull_blob_stream_partial(reference, digest.as_str(), at, None);
            rest.await
        };
        let answered = registry
            .runtime
            .block_on(async { timeout(SILENCE, asked).await });
        let (stream, surplus) = match answered {
            Ok(Ok(BlobResponse::Full(stream))) => (stream, at),
            Ok(Ok(BlobResponse::Partial(stream))) => (stream, 0),
            Ok(Err(error)) => {
                let what = registry.said(&error);
                // One that gave something before may only be starting anew.
                let is_passing = may_pass(&error) || at > 0;
                return Err(match is_passing {
                    true => Broken::Passing(what),
                    false => Broken::Lasting(what),
                });
            }
            Err(_elapsed) => {
                let what = format!("no answer within {} seconds", SILENCE.as_secs());
                return Err(Broken::Passing(what));
            }
        };
        Ok(Body {
            stream,
            ready: Bytes::new(),
            surplus,
        })
    }

    /// Waits before the next connection, if there is to be one.
    fn after(&mut self, broken: Broken) -> Result<(), String> {
        let what = match broken {
            Broken::Passing(what) => what,
            Broken::Lasting(what) => return Err(what),
        };
        self.failures += 1;
        if self.failures >= FAILURES_MAX || self.connections >= CONNECTIONS_MAX {
            return Err(what);
        }
        tracing::debug!(digest = %self.digest, at = self.at, what, "the rest is asked for again");
        self.registry.pause(PAUSE * 2_u32.pow(self.failures - 1));
        Ok(())
    }
}

impl Read for Download {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left()).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        loop {
            if let Some(body) = self.body.as_mut().filter(|body| !body.ready.is_empty()) {
                let count = most.min(body.ready.len());
                buffer[..count].copy_from_slice(&body.ready.split_to(count));
                self.at += count as u64;
                return Ok(count);
            }
            let failed = match &self.broken {
                Some(what) => Err(what.clone()),
                None => match self.next_in_time() {
                    Ok(()) => Ok(()),
                    Err(broken) => self.after(broken),
                },
            };
            if let Err(what) = failed {
                self.broken = Some(what.clone());
                let object = format!("blob sha256:{}", self.digest);
                return Err(io::Error::other(self.registry.failed(&object, what)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Access;

    #[test]
    fn a_registry_that_is_too_slow_is_waited_for_no_longer() {
        let directory = tempfile::tempdir().unwrap();
        let auth_file = directory.path().join("auth.json");
        std::fs::write(&auth_file, "{}").unwrap();
        let access = Access {
            auth_file: Some(auth_file),
            ..Access::default()
        };
        let registry = Registry::of("127.0.0.1:1/image".parse().unwrap(), &access).unwrap();
        let fails = |waited, expected: &str| {
            let mut download = registry.blob(Digest([1; 32]), 10 * BYTES_PER_SECOND);
            download.waited = Duration::from_secs(waited);
            let error = download.read(&mut [0; 9]).unwrap_err();
            let said = snapshot_core::one_line(&error);
            assert_eq!(said.contains("too slow"), expected == "too slow", "{said}");
            assert!(said.contains(expected), "{said}");
        };
        fails(610, "127.0.0.1:1");
        fails(611, "too slow");
    }
}
