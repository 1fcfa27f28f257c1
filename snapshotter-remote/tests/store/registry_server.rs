//! A registry on a port of this machine, as much of the distribution-spec as an image needs, that breaks and
//! refuses as a test wants it.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::images::Layout;

/// Whom it lets in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lets {
    Everybody,
    /// Who says `user:secret`.
    User,
    /// Who has a token, which such a user is given.
    Bearer,
}

/// A registry that runs until it is dropped.
pub(crate) struct Registry {
    pub(crate) address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    address: SocketAddr,
    /// By digest, and the one with a tag.
    documents: BTreeMap<String, Vec<u8>>,
    lets: Lets,
    knows_ranges: bool,
    /// So many answers end after so many bytes.
    cuts: AtomicUsize,
    cut_bytes: usize,
    /// Paths and ranges.
    asked: Mutex<Vec<String>>,
    is_ending: AtomicBool,
}

/// How it is other than a good one.
pub(crate) struct Rules {
    pub(crate) lets: Lets,
    pub(crate) knows_ranges: bool,
    pub(crate) cuts: usize,
    pub(crate) cut_bytes: usize,
}

pub(crate) const GOOD: Rules = Rules {
    lets: Lets::Everybody,
    knows_ranges: true,
    cuts: 0,
    cut_bytes: 0,
};

impl Registry {
    /// With the blobs of a layout, and `tagged` as `image:1`.
    pub(crate) fn start(layout: &Layout, tagged: Vec<u8>, rules: &Rules) -> Self {
        let blobs = layout.blobs.iter();
        let mut documents: BTreeMap<_, _> = blobs
            .map(|(digest, bytes)| (format!("sha256:{digest}"), bytes.clone()))
            .collect();
        documents.insert("1".to_owned(), tagged);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            address,
            documents,
            lets: rules.lets,
            knows_ranges: rules.knows_ranges,
            cuts: AtomicUsize::new(rules.cuts),
            cut_bytes: rules.cut_bytes,
            asked: Mutex::default(),
            is_ending: AtomicBool::new(false),
        });
        let serving = Arc::clone(&state);
        let thread = thread::spawn(move || {
            for client in listener.incoming() {
                if serving.is_ending.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), serving) = (client, Arc::clone(&serving)) else {
                    continue;
                };
                // A client that goes away has what it wanted.
                thread::spawn(move || drop(serving.serve(client)));
            }
        });
        Self {
            address,
            state,
            thread: Some(thread),
        }
    }

    /// What was asked for since this was asked last: paths below /v2/image/, and ranges.
    pub(crate) fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.state.asked.lock().unwrap())
    }

    /// The image.
    pub(crate) fn image(&self) -> String {
        format!("docker://{}/image:1", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.state.is_ending.store(true, Ordering::Relaxed);
        // It looks when somebody connects.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl State {
    /// Answers one request.
    fn serve(&self, mut client: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(client.try_clone()?).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let path = first.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut fields = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else {
                break;
            };
            fields.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let said = fields.get("authorization").map_or("", String::as_str);
        if path.starts_with("/token") {
            return match said == basic() {
                true => answer(&mut client, "200 OK", "", br#"{"token":"t"}"#),
                false => answer(&mut client, "401 Unauthorized", "", b"{}"),
            };
        }
        if let Some(challenge) = self.challenge(said) {
            let field = format!("WWW-Authenticate: {challenge}\r\n");
            return answer(&mut client, "401 Unauthorized", &field, b"{}");
        }
        let Some(name) = path.strip_prefix("/v2/image/") else {
            return answer(&mut client, "200 OK", "", b"{}");
        };
        let range = fields.get("range");
        let shown = range.map_or_else(|| name.to_owned(), |range| format!("{name} {range}"));
        self.asked.lock().unwrap().push(shown);
        let digest = name.split('/').nth(1).unwrap_or_default();
        let Some(bytes) = self.documents.get(digest) else {
            let text = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            return answer(&mut client, "404 Not Found", "", text);
        };
        self.send(&mut client, bytes, range.filter(|_| self.knows_ranges))
    }

    fn challenge(&self, said: &str) -> Option<String> {
        let (is_in, challenge) = match self.lets {
            Lets::Everybody => (true, String::new()),
            Lets::User => (said == basic(), "Basic realm=\"r\"".to_owned()),
            Lets::Bearer => {
                let realm = format!("http://{}/token", self.address);
                let challenge = format!("Bearer realm=\"{realm}\",service=\"s\"");
                (said == "Bearer t", challenge)
            }
        };
        (!is_in).then_some(challenge)
    }

    /// A document, or what a range begins with, cut off if there is a cut left.
    fn send(
        &self,
        client: &mut TcpStream,
        bytes: &[u8],
        range: Option<&String>,
    ) -> std::io::Result<()> {
        let from = range.map(|range| {
            let first = range.trim_start_matches("bytes=").trim_end_matches('-');
            first.parse::<usize>().unwrap()
        });
        let (status, field) = match from {
            None => ("200 OK", String::new()),
            Some(from) => {
                let (last, all) = (bytes.len() - 1, bytes.len());
                (
                    "206 Partial Content",
                    format!("Content-Range: bytes {from}-{last}/{all}\r\n"),
                )
            }
        };
        let rest = &bytes[from.unwrap_or(0)..];
        let is_long = rest.len() > self.cut_bytes;
        let cut = |left: usize| left.checked_sub(1);
        let order = Ordering::Relaxed;
        if is_long && self.cuts.fetch_update(order, order, cut).is_ok() {
            let all = rest.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\n{field}Content-Length: {all}\r\n\r\n"
            );
            client.write_all(head.as_bytes())?;
            return client.write_all(&rest[..self.cut_bytes]);
        }
        answer(client, status, &field, rest)
    }
}

fn basic() -> String {
    format!("Basic {}", STANDARD.encode("user:secret"))
}

fn answer(client: &mut TcpStream, status: &str, field: &str, bytes: &[u8]) -> std::io::Result<()> {
    let all = bytes.len();
    let head =
        format!("HTTP/1.1 {status}\r\nConnection: close\r\n{field}Content-Length: {all}\r\n\r\n");
    client.write_all(head.as_bytes())?;
    client.write_all(bytes)
}
