//! One request and its answer. Failures are one line of text, and no cache keeps them.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::{Body, Incoming},
    header::{self, HeaderName, HeaderValue},
};
use nix::errno::Errno;
use rustls::ServerConfig;
use tokio::{
    sync::Semaphore,
    time::{Duration, Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use super::{
    body::{Sent, Stretch},
    conditions::{Conditions, Selected},
    convert::{Asked as Conversion, Conversions, Refused},
    measured::Measured,
    target::{NoTarget, Target},
    tokens::{Tokens, bearer},
    traffic::Traffic,
};
use crate::{
    conversion::{IMAGE, PREFER, preferred},
    error::{Error, Result},
    image::ImageName,
    store::{Name, Reader, Traces},
};

/// What every request needs.
#[derive(Debug)]
pub(super) struct Served {
    pub(super) reader: Reader,
    pub(super) traces: Traces,
    /// Who may ask; without them, everybody.
    pub(super) tokens: Option<RwLock<Arc<Tokens>>>,
    /// Makes TLS of connections, if that is spoken.
    pub(super) acceptor: Option<RwLock<Arc<ServerConfig>>>,
    /// Converts images that are asked for.
    pub(super) conversions: Option<Arc<Conversions>>,
    /// Hosts have to show certificates.
    pub(super) has_client_ca: bool,
    pub(super) measured: Measured,
    /// Places of those who read files: what is asked for beyond them waits here, where it is forgotten
    /// when its client goes.
    pub(super) reads: Arc<Semaphore>,
    /// Who puts a trace: others wait here, and take none of these places.
    pub(super) trace_turn: Arc<Semaphore>,
}

/// What is told in place of an object.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) text: &'static str,
    pub(super) field: Option<(HeaderName, HeaderValue)>,
}

/// Contents never change under these names, whatever zstd makes of them. Chunks and tables are verified by
/// their names, which only manifests tell; a stored layer's name is in public configs of images: where not
/// everybody may ask, no cache may give it to others.
const IMMUTABLE: &str = "public, max-age=31536000, immutable";
const IMMUTABLE_PRIVATE: &str = "private, max-age=31536000, immutable";

/// Asked again each time: another key signs another manifest. Where not everybody may ask, a cache must not
/// answer for the store.
const CHANGING: &str = "no-cache";
const CHANGING_PRIVATE: &str = "private, no-cache";

impl Served {
    /// The answer to a request that came on a connection of that peer.
    pub(super) async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
        peer: SocketAddr,
        traffic: Traffic,
    ) -> Response<Sent> {
        let answering = traffic.begin();
        let target = Target::of(request.uri().path(), request.uri().query());
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let answered = match target {
            Ok(Target::Trace(chain_id)) => self.decide_trace(request, chain_id, peer).await,
            _ => self.decide(&request, target).await,
        };
        let response = answered.unwrap_or_else(Refusal::into_response);
        let code = response.status().as_u16();
        let kind = target.map_or("none", |target| target.kind());
        self.measured.answered(kind, code);
        tracing::debug!(
            %peer, %method, path, code, "request"
        );
        response.map(|body| body.counted(answering))
    }

    /// Whether not everybody may ask.
    pub(super) fn is_limited(&self) -> bool {
        self.tokens.is_some() || self.has_client_ca
    }

    /// That of now.
    pub(super) fn acceptor(&self) -> Option<TlsAcceptor> {
        let acceptor = self.acceptor.as_ref()?.read();
        let acceptor = acceptor.unwrap_or_else(PoisonError::into_inner);
        Some(Arc::clone(&acceptor).into())
    }

    async fn decide(
        self: &Arc<Self>,
        request: &Request<Incoming>,
        target: Result<Target, NoTarget>,
    ) -> Result<Response<Sent>, Refusal> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let allowed = (header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return Err(Refusal {
                field: Some(allowed),
                ..refusal(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "objects are read here, with GET and HEAD\n",
                )
            });
        }
        if !request.body().is_end_stream() {
            let text = "a request for an object has no contents\n";
            return Err(Refusal {
                field: Some((header::CONNECTION, HeaderValue::from_static("close"))),
                ..refusal(StatusCode::BAD_REQUEST, text)
            });
        }
        let name = match target {
            Ok(Target::Health) => return Ok(health()),
            Ok(Target::Object(name)) => Some(name),
            Ok(Target::Trace(_)) | Err(NoTarget::Unknown) => None,
            Err(NoTarget::Malformed(text)) => return Err(refusal(StatusCode::BAD_REQUEST, text)),
        };
        self.authorise(request.headers())?;
        let Some(name) = name else {
            return Err(refusal(
                StatusCode::NOT_FOUND,
                "nothing here: /v1/disks/1/CHAINID, /v1/layers/1/DIFFID, /v1/tables/DIGEST, \
                 /v1/chunks/DI/DIGEST, /v1/traces/1/CHAINID, /v1/health\n",
            ));
        };
        let asked = Arc::new(Asked::of(request, name));
        if let Some(response) = self.look(&asked).await? {
            return Ok(response);
        }
        let nothing = || absent("the store has no such object\n");
        // Who converts nothing pays no heed to what an image is called.
        let (Some(conversions), Name::Disk(_)) = (&self.conversions, name) else {
            return Err(nothing());
        };
        let image = image(request.headers())?.ok_or_else(nothing)?;
        let patience = text(request.headers(), &PREFER)
            .as_deref()
            .and_then(preferred);
        let hold = conversions.hold(patience);
        self.converted(conversions.ask(image), &asked, hold).await
    }

    /// The disk of an image that is being converted, when it is there; for so long it is waited for.
    async fn converted(
        self: &Arc<Self>,
        conversion: Conversion,
        asked: &Arc<Asked>,
        hold: Duration,
    ) -> Result<Response<Sent>, Refusal> {
        let mut progress = match conversion {
            Conversion::Listen(progress) => progress,
            Conversion::Made => return Err(absent("the image that is named has no such disk\n")),
            Conversion::Refused(why) => return Err(not_converted(why)),
        };
        let end = Instant::now() + hold;
        let mut is_running = true;
        loop {
            // After each disk that was made, and before the first.
            if let Some(response) = self.look(asked).await? {
                return Ok(response);
            }
            if !is_running {
                return Err(absent(
                    "the image that is named did not become such a disk\n",
                ));
            }
            match timeout_at(end, progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_ended)) => is_running = false,
                Err(_elapsed) => {
                    return Err(later(
                        StatusCode::ACCEPTED,
                        "the image is being converted: ask again\n",
                    ));
                }
            }
        }
    }

    /// What the store has of it now.
    async fn look(self: &Arc<Self>, asked: &Arc<Asked>) -> Result<Option<Response<Sent>>, Refusal> {
        let (this, asked) = (Arc::clone(self), Arc::clone(asked));
        match self.blocking(move || this.object(&asked)).await? {
            Ok(found) => Ok(found),
            Err(error) if is_out_of_descriptors(&error) => {
                tracing::warn!(%error, "no more files can be opened");
                let text = "too many files are open: ask again\n";
                Err(later(StatusCode::SERVICE_UNAVAILABLE, text))
            }
            Err(error @ Error::Bucket { .. }) => {
                tracing::error!(%error, "the bucket does not give an object");
                let text =
                    "the bucket that the store is in does not give it: the store's log says why\n";
                Err(refusal(StatusCode::BAD_GATEWAY, text))
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::error!(%error, cause, "an object cannot be read");
                let text = "the store has it and cannot read it\n";
                Err(refusal(StatusCode::INTERNAL_SERVER_ERROR, text))
            }
        }
    }

    /// Runs what reads or writes files, on one of the places for that.
    pub(super) async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let place = Arc::clone(&self.reads).acquire_owned().await;
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        // The runtime is ending.
        done.await
            .map_err(|_ended| refusal(StatusCode::SERVICE_UNAVAILABLE, "the server is ending\n"))
    }

    /// Who asks, where that is known.
    pub(super) fn authorise(&self, fields: &HeaderMap) -> Result<Option<String>, Refusal> {
        let Some(tokens) = &self.tokens else {
            return Ok(None);
        };
        let tokens = Arc::clone(&tokens.read().unwrap_or_else(PoisonError::into_inner));
        let field = text(fields, &header::AUTHORIZATION);
        let host = field
            .as_deref()
            .and_then(bearer)
            .and_then(|token| tokens.host(token));
        let Some(host) = host else {
            let challenge = HeaderValue::from_static("Bearer");
            return Err(Refusal {
                field: Some((header::WWW_AUTHENTICATE, challenge)),
                ..refusal(
                    StatusCode::UNAUTHORIZED,
                    "a host's token is needed: Authorization: Bearer\n",
                )
            });
        };
        tracing::debug!(host, "authorised");
        Ok(Some(host.to_owned()))
    }

    /// Opens and reads; blocks.
    fn object(&self, asked: &Asked) -> Result<Option<Response<Sent>>> {
        let Some(object) = self.reader.object(asked.name)? else {
            return Ok(None);
        };
        let tag = format!("\"{}-{}\"", asked.digest(), object.version(asked.name)?);
        let bytes = object.bytes;
        let selected = asked.conditions.select(&tag, bytes);
        let mut response = Response::new(Sent::text(""));
        let fields = response.headers_mut();
        fields.insert(header::ETAG, value(&tag));
        let cached = match asked.name {
            Name::Disk(_) if self.is_limited() => CHANGING_PRIVATE,
            Name::Disk(_) => CHANGING,
            Name::Layer(_) if self.is_limited() => IMMUTABLE_PRIVATE,
            Name::Chunk(_) | Name::Table(_) | Name::Layer(_) => IMMUTABLE,
        };
        fields.insert(header::CACHE_CONTROL, HeaderValue::from_static(cached));
        fields.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        let (status, first, count) = match selected {
            Selected::NotModified => {
                *response.status_mut() = StatusCode::NOT_MODIFIED;
                return Ok(Some(response));
            }
            Selected::NotSatisfiable => return Ok(Some(not_satisfiable(bytes))),
            Selected::Failed => return Ok(Some(failed_condition(&tag))),
            Selected::Whole => (StatusCode::OK, 0, bytes),
            Selected::Part { first, last } => {
                let range = format!("bytes {first}-{last}/{bytes}");
                fields.insert(header::CONTENT_RANGE, value(&range));
                (StatusCode::PARTIAL_CONTENT, first, last - first + 1)
            }
        };
        let kind = match asked.name {
            Name::Chunk(_) => "application/zstd",
            Name::Table(_) | Name::Layer(_) | Name::Disk(_) => "application/octet-stream",
        };
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        fields.insert(header::CONTENT_LENGTH, count.into());
        *response.status_mut() = status;
        if !asked.is_head {
            let failed = |source: io::Error| Error::File {
                doing: "reading",
                path: asked.name.to_string().into(),
                source,
            };
            let stretch = Stretch::begin(object, first, count, &self.reads).map_err(failed)?;
            *response.body_mut() = Sent::stretch(stretch);
        }
        Ok(Some(response))
    }
}

/// An object and how it is wanted.
#[derive(Debug)]
struct Asked {
    name: Name,
    is_head: bool,
    conditions: Conditions,
}

impl Asked {
    fn of(request: &Request<Incoming>, name: Name) -> Self {
        let fields = request.headers();
        let is_head = *request.method() == Method::HEAD;
        let range = if is_head {
            None
        } else {
            text(fields, &header::RANGE)
        };
        Self {
            name,
            is_head,
            conditions: Conditions {
                matches: text(fields, &header::IF_MATCH),
                none_match: text(fields, &header::IF_NONE_MATCH),
                range,
                if_range: text(fields, &header::IF_RANGE),
            },
        }
    }

    /// The last part of its name.
    fn digest(&self) -> String {
        let name = self.name.to_string();
        name.rsplit('/').next().unwrap_or_default().to_owned()
    }
}

impl Refusal {
    fn into_response(self) -> Response<Sent> {
        let mut response = line(self.status, self.text);
        if let Some((name, value)) = self.field {
            response.headers_mut().insert(name, value);
        }
        response
    }
}

pub(super) fn refusal(status: StatusCode, text: &'static str) -> Refusal {
    Refusal {
        status,
        text,
        field: None,
    }
}

fn absent(text: &'static str) -> Refusal {
    refusal(StatusCode::NOT_FOUND, text)
}

/// To be asked for again in a second.
fn later(status: StatusCode, text: &'static str) -> Refusal {
    Refusal {
        field: Some((header::RETRY_AFTER, HeaderValue::from_static("1"))),
        ..refusal(status, text)
    }
}

fn not_converted(why: Refused) -> Refusal {
    match why {
        Refused::NotAllowed => {
            absent("the store has no such object, and does not convert that image\n")
        }
        Refused::Failed => absent("the image could not be converted: the store's log says why\n"),
        // No failure of the store, which hosts would leave alone for all else, too.
        Refused::Busy => later(
            StatusCode::ACCEPTED,
            "too many images wait to be converted: ask again\n",
        ),
    }
}

/// The image that a layer is of, as who asks says.
fn image(fields: &HeaderMap) -> Result<Option<ImageName>, Refusal> {
    let Some(text) = text(fields, &IMAGE) else {
        return Ok(None);
    };
    let name = text.parse().map(Some);
    name.map_err(|_what| {
        refusal(
            StatusCode::BAD_REQUEST,
            "pouch-image is no name of an image: REGISTRY/NAME[:TAG][@DIGEST]\n",
        )
    })
}

/// Whether it is only that this process, or the host, has too much open.
pub(super) fn is_out_of_descriptors(error: &Error) -> bool {
    let Error::File { source, .. } = error else {
        return false;
    };
    let code = source.raw_os_error().map(Errno::from_raw);
    matches!(code, Some(Errno::EMFILE | Errno::ENFILE))
}

fn health() -> Response<Sent> {
    line(StatusCode::OK, "ok\n")
}

fn not_satisfiable(bytes: u64) -> Response<Sent> {
    let text = "the object has no such bytes\n";
    let mut response = line(StatusCode::RANGE_NOT_SATISFIABLE, text);
    let range = format!("bytes */{bytes}");
    response
        .headers_mut()
        .insert(header::CONTENT_RANGE, value(&range));
    response
}

fn failed_condition(tag: &str) -> Response<Sent> {
    let text = "the object is another now than If-Match says\n";
    let mut response = line(StatusCode::PRECONDITION_FAILED, text);
    response.headers_mut().insert(header::ETAG, value(tag));
    response
}

/// A line of text that no cache keeps.
fn line(status: StatusCode, text: &'static str) -> Response<Sent> {
    let text = if text.ends_with('\n') {
        text.to_owned()
    } else {
        format!("{text}\n")
    };
    let mut response = Response::new(Sent::text(text));
    *response.status_mut() = status;
    let fields = response.headers_mut();
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    fields.insert(header::CONTENT_TYPE, plain);
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// A field, all its lines as one list (RFC 9110, 5.3); nothing if it is no text.
pub(super) fn text(fields: &HeaderMap, name: &HeaderName) -> Option<String> {
    let lines: Vec<&str> = fields
        .get_all(name)
        .iter()
        .map(|value| value.to_str().ok())
        .collect::<Option<_>>()?;
    (!lines.is_empty()).then(|| lines.join(", "))
}

pub(super) fn value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("digits, letters and signs make a field")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_converts_enough_already_is_asked_again_and_is_not_away() {
        let status = |why| not_converted(why).status;
        assert_eq!(status(Refused::Busy), StatusCode::ACCEPTED);
        assert_eq!(status(Refused::Failed), StatusCode::NOT_FOUND);
        assert_eq!(status(Refused::NotAllowed), StatusCode::NOT_FOUND);
        assert!(not_converted(Refused::Busy).field.is_some());
    }
}
