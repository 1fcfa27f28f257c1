//! Connections to an HTTP proxy in place of a store: a request names the store in full then (RFC 9112, 3.2.2), as caches and
//! Dragonfly's daemon want it.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::{
    Uri,
    rt::{Read, ReadBufCursor, Write},
};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::net::TcpStream;
use tonic::codegen::Service;

/// Connects to the proxy, whatever store is meant.
#[derive(Debug, Clone)]
pub(super) struct ToProxy {
    /// `http://HOST:PORT`.
    pub(super) proxy: Uri,
    /// By which.
    pub(super) http: HttpConnector,
}

/// A connection to it.
#[derive(Debug)]
pub(super) struct Proxied(TokioIo<TcpStream>);

impl Service<Uri> for ToProxy {
    type Response = Proxied;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Proxied, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        ready!(Service::poll_ready(&mut self.http, context))?;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _store: Uri) -> Self::Future {
        let connecting = Service::call(&mut self.http, self.proxy.clone());
        Box::pin(async { connecting.await.map(Proxied) })
    }
}

impl Connection for Proxied {
    fn connected(&self) -> Connected {
        self.0.connected().proxy(true)
    }
}

impl Read for Proxied {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Proxied {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
