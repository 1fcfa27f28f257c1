//! A registry of the harness's images on a port of this machine: as much of the OCI distribution-spec as
//! pulling needs, and a count of what was pulled.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::images::{Image, Stored};

/// A running registry.
#[derive(Debug)]
pub struct Registry {
    shared: Arc<Shared>,
    address: SocketAddr,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stored: Vec<Stored>,
    /// Digests of manifests, by name.
    manifests: BTreeMap<String, String>,
    layers: Vec<String>,
    /// The field by which a client has to say who it is.
    authorization: Option<String>,
    pulled: Mutex<Vec<String>>,
    is_ending: AtomicBool,
}

impl Registry {
    /// One with these images.
    pub fn with_images(images: &[Image]) -> Result<Self> {
        Self::start(images, None)
    }

    /// The same for clients with a login: `USER:PASSWORD` in base64.
    pub fn with_login(images: &[Image], login: &str) -> Result<Self> {
        Self::start(images, Some(format!("Basic {login}")))
    }

    fn start(images: &[Image], authorization: Option<String>) -> Result<Self> {
        let mut shared = Shared {
            authorization,
            ..Shared::default()
        };
        for image in images {
            shared.add(*image)?;
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(shared);
        let served = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            for client in listener.incoming() {
                if served.is_ending.load(Ordering::Relaxed) {
                    return;
                }
                let (Ok(client), served) = (client, Arc::clone(&served)) else {
                    continue;
                };
                // A client that goes away has what it wanted.
                std::thread::spawn(move || drop(served.serve(client)));
            }
        });
        Ok(Self {
            shared,
            address,
            thread: Some(thread),
        })
    }

    /// What a client calls an image of it.
    #[must_use]
    pub fn reference(&self, image: Image) -> String {
        format!("{}/{}:1", self.address, image.name())
    }

    /// The layers that were pulled since this was asked last, by digest.
    #[must_use]
    pub fn pulled_layers(&self) -> Vec<String> {
        let mut pulled = self
            .shared
            .pulled
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let layers = std::mem::take(&mut *pulled).into_iter();
        layers
            .filter(|digest| self.shared.layers.contains(digest))
            .collect()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        // It looks when somebody connects.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn add(&mut self, image: Image) -> Result<()> {
        let stored = Stored::of(&image.archive()?)?;
        let manifest = stored.manifest.clone();
        let document = stored.blob(&manifest)?.context("no manifest")?;
        let document: Value = serde_json::from_slice(&document)?;
        let layers = document["layers"].as_array().context("layers")?.iter();
        self.layers
            .extend(layers.filter_map(|layer| Some(layer["digest"].as_str()?.to_owned())));
        self.manifests.insert(image.name().to_owned(), manifest);
        self.stored.push(stored);
        Ok(())
    }

    fn blob(&self, digest: &str) -> Result<Option<Vec<u8>>> {
        for stored in &self.stored {
            if let Some(contents) = stored.blob(digest)? {
                return Ok(Some(contents));
            }
        }
        Ok(None)
    }

    /// Answers the requests of a connection.
    fn serve(&self, mut client: TcpStream) -> Result<()> {
        let mut lines = BufReader::new(client.try_clone()?);
        if lines.fill_buf()?.first() == Some(&TLS) {
            // Clients that try it first go on without when they are answered so.
            let refusal = "HTTP/1.0 400 Bad Request\r\n\r\nthis is HTTP\n";
            return Ok(client.write_all(refusal.as_bytes())?);
        }
        loop {
            let mut request = String::new();
            if lines.read_line(&mut request)? == 0 {
                return Ok(());
            }
            let mut field = String::from("more");
            let mut is_known = self.authorization.is_none();
            while !field.trim().is_empty() {
                field.clear();
                if lines.read_line(&mut field)? == 0 {
                    return Ok(());
                }
                let said = field.split_once(':');
                let said = said.filter(|(name, _)| name.eq_ignore_ascii_case("authorization"));
                is_known |= said.map(|(_, value)| value.trim()) == self.authorization.as_deref();
            }
            if !is_known {
                client.write_all(WHO_ARE_YOU.as_bytes())?;
                continue;
            }
            let mut words = request.split(' ');
            let (method, path) = (words.next().unwrap_or_default(), words.next());
            self.answer(&mut client, method, path.unwrap_or_default())?;
        }
    }

    fn answer(&self, client: &mut TcpStream, method: &str, path: &str) -> Result<()> {
        let path = path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.trim_start_matches("/v2/").split('/').collect();
        let (digest, kind) = match parts[..] {
            [image, "manifests", tag] if !tag.starts_with("sha256:") => {
                (self.manifests.get(image).cloned(), MANIFEST)
            }
            [_, "manifests", digest] => (Some(digest.to_owned()), MANIFEST),
            [_, "blobs", digest] => (Some(digest.to_owned()), "application/octet-stream"),
            _ => (None, ""),
        };
        let contents = digest.as_deref().map(|digest| self.blob(digest));
        let contents = contents.transpose()?.flatten();
        let Some((digest, contents)) = digest.zip(contents) else {
            let status = if path == "/v2/" {
                "200 OK"
            } else {
                "404 Not Found"
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n");
            return Ok(client.write_all(head.as_bytes())?);
        };
        write!(
            client,
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nContent-Type: {kind}\r\n\
             Docker-Content-Digest: {digest}\r\n\r\n",
            contents.len()
        )?;
        if method == "GET" {
            let mut pulled = self.pulled.lock().unwrap_or_else(PoisonError::into_inner);
            pulled.push(digest);
            drop(pulled);
            client.write_all(&contents)?;
        }
        Ok(())
    }
}

/// What a connection by TLS begins with.
const TLS: u8 = 22;

const WHO_ARE_YOU: &str = "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\
    WWW-Authenticate: Basic realm=\"pouch\"\r\n\r\n";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
