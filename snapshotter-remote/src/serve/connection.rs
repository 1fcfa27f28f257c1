//! One connection, from its first request to its last.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc};

use hyper::{server::conn::http1::Builder, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use snapshot_core::daemon::Shutdown;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::{
    answer::Served,
    config::Limits,
    traffic::{Traffic, Watched},
};

/// Bytes of an answer that wait for the client, beside the frame that is next.
const BUFFER_BYTES: usize = 64 << 10;

/// Bytes that the head of a request may have.
const HEAD_BYTES: usize = 32 << 10;

/// Fields that a head may have.
const FIELDS_MAX: usize = 64;

/// Serves it until the client, a limit or the end of the server ends it.
pub(super) async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    served: Arc<Served>,
    limits: Limits,
    shutdown: Shutdown,
) {
    // Without it the end of an answer may wait for the client's acknowledgement of what was before.
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "the connection is gone");
        return;
    }
    let _open = served.measured.opened();
    let traffic = Traffic::new(served.measured.clone());
    let socket = Watched::new(socket, traffic.clone());
    let Some(acceptor) = served.acceptor() else {
        return answer(socket, (peer, traffic), served, limits, shutdown).await;
    };
    let shaken = tokio::select! {
        shaken = shake(&acceptor, socket, limits) => shaken,
        () = shutdown.clone().wait() => return,
    };
    match shaken {
        Ok(stream) => answer(stream, (peer, traffic), served, limits, shutdown).await,
        Err(why) => {
            served.measured.handshake_failed();
            tracing::debug!(%peer, why, "a connection came to no TLS");
        }
    }
}

/// Begins TLS, or says why not.
pub(super) async fn shake<S: AsyncRead + AsyncWrite + Unpin>(
    acceptor: &TlsAcceptor,
    socket: S,
    limits: Limits,
) -> Result<TlsStream<S>, String> {
    let shaken = timeout(limits.silence(), acceptor.accept(socket)).await;
    let shaken = shaken.map_err(|_elapsed| "it was silent".to_owned())?;
    shaken.map_err(|error| error.to_string())
}

/// Answers what is asked on it.
async fn answer<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    (peer, traffic): (SocketAddr, Traffic),
    served: Arc<Served>,
    limits: Limits,
    shutdown: Shutdown,
) {
    let service = service_fn(|request| {
        let answer = Arc::clone(&served).answer(request, peer, traffic.clone());
        async { Ok::<_, Infallible>(answer.await) }
    });
    let connection = Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.silence())
        .max_buf_size(BUFFER_BYTES)
        .max_header_size(HEAD_BYTES)
        .max_headers(FIELDS_MAX)
        .serve_connection(TokioIo::new(socket), service);
    let mut connection = pin!(connection);
    let mut silence = pin!(traffic.silence(limits.silence()));
    let mut ending = pin!(shutdown.wait());
    let mut is_told = false;
    let ended = loop {
        tokio::select! {
            ended = &mut connection => break ended,
            () = &mut silence => {
                tracing::info!(%peer, "closed: its answer was not taken, or not ready, in time");
                return;
            }
            () = &mut ending, if !is_told => {
                is_told = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "a connection broke");
    }
}
