//! One connection of an NBD client. What it asks for is answered one after the other, so at most one chunk is held for it, however
//! slowly it takes.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use hyper::body::Buf;
use snapshot_core::daemon::Shutdown;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, sleep_until, timeout},
};

use super::Exports;
use crate::{
    nbd::{Event, Failure, Found, GREETING, Read, Security, Session, WANTED_BYTES_MAX},
    serve::{
        config::Limits,
        connection::shake,
        traffic::{Traffic, Watched},
    },
    store::FlatDisk,
    table::Piece,
};

/// Zeros for clients that have to be sent them.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// How long a client may take to see the end of a connection and to close its own.
const CLOSING: Duration = Duration::from_secs(2);

/// Serves it until the client, a limit or the end of the server ends it.
pub(in crate::serve) async fn serve(
    socket: TcpStream,
    peer: SocketAddr,
    exports: Arc<Exports>,
    limits: Limits,
    shutdown: Shutdown,
) {
    if let Err(error) = socket.set_nodelay(true) {
        tracing::debug!(%peer, %error, "the connection is gone");
        return;
    }
    let measured = exports.served.measured.clone();
    let _open = measured.nbd_opened();
    let traffic = Traffic::new(measured);
    let around = Around {
        peer,
        exports,
        limits,
        chosen_by: Instant::now() + limits.silence(),
        shutdown,
        traffic: traffic.clone(),
    };
    let socket = Watched::new(socket, traffic.clone());
    tokio::select! {
        ended = converse(socket, around) => if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection of an NBD client broke");
        },
        () = traffic.silence(limits.silence()) => {
            tracing::info!(%peer, "closed: what its NBD client asked for was not taken, or not ready, in time");
        }
    }
    tracing::debug!(%peer, "a connection of an NBD client has ended");
}

/// What a conversation needs beside its socket.
struct Around {
    peer: SocketAddr,
    exports: Arc<Exports>,
    limits: Limits,
    /// When a disk is to be chosen at the latest, whatever is said before.
    chosen_by: Instant,
    shutdown: Shutdown,
    traffic: Traffic,
}

/// In plain text, and by TLS where that is wanted.
async fn converse<S: AsyncRead + AsyncWrite + Unpin>(socket: S, around: Around) -> io::Result<()> {
    let security = match around.exports.served.acceptor {
        Some(_) => Security::Needed,
        None => Security::Plain,
    };
    let mut plain = Conversation::new(socket, Session::new(security), around);
    plain.send(&GREETING).await?;
    let ended = plain.go_on().await?;
    // That of now: certificates may have been read again since it came.
    let acceptor = plain.around.exports.served.acceptor();
    let (Ended::StartTls, Some(acceptor)) = (ended, acceptor) else {
        return plain.close().await;
    };
    let Conversation {
        socket,
        mut session,
        around,
        ..
    } = plain;
    let shaken = tokio::select! {
        shaken = shake(&acceptor, socket, around.limits) => shaken,
        () = sleep_until(around.chosen_by) => Err("it took too long".to_owned()),
        () = around.shutdown.clone().wait() => return Ok(()),
    };
    match shaken {
        Ok(stream) => {
            session.encrypted();
            let mut encrypted = Conversation::new(stream, session, around);
            encrypted.go_on().await?;
            encrypted.close().await
        }
        Err(why) => {
            around.exports.served.measured.handshake_failed();
            tracing::debug!(peer = %around.peer, why, "an NBD connection came to no TLS");
            Ok(())
        }
    }
}

/// Why a conversation goes on no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// It is over.
    Over,
    /// It goes on by TLS.
    StartTls,
}

struct Conversation<S> {
    socket: S,
    session: Session,
    around: Around,
    disk: Option<Arc<FlatDisk>>,
    buffer: Box<[u8; WANTED_BYTES_MAX]>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conversation<S> {
    fn new(socket: S, session: Session, around: Around) -> Self {
        Self {
            socket,
            session,
            around,
            disk: None,
            buffer: Box::new([0; WANTED_BYTES_MAX]),
        }
    }

    /// Until the client, or the server, has enough.
    async fn go_on(&mut self) -> io::Result<Ended> {
        loop {
            let Some(wanted) = self.wanted().await? else {
                return Ok(Ended::Over);
            };
            let event = match self.session.take(&self.buffer[..wanted]) {
                Event::Find(name) => self.find(&name).await,
                event => event,
            };
            match event {
                Event::More | Event::Find(_) => {}
                Event::Send(answer) => self.send(&answer).await?,
                Event::StartTls(answer) => {
                    self.send(&answer).await?;
                    return Ok(Ended::StartTls);
                }
                Event::List => {
                    let _answering = self.around.traffic.begin();
                    let names = self.around.exports.list().await;
                    let answer = self.session.listed(names.as_deref());
                    self.send(&answer).await?;
                }
                Event::Read(read) => self.read(read).await?,
                Event::Refuse(answer, why) => {
                    self.measure(why.name());
                    self.send(&answer).await?;
                }
                Event::End(answer) => {
                    self.send(&answer).await?;
                    return Ok(Ended::Over);
                }
            }
        }
    }

    /// Reads as many bytes as are wanted; none at the end of the client, or of the server, which waits for nothing that is not whole.
    /// Who has a disk open may be silent between requests as long as he likes.
    async fn wanted(&mut self) -> io::Result<Option<usize>> {
        let Self {
            socket,
            session,
            around,
            buffer,
            ..
        } = self;
        let wanted = session.wants();
        let buffer = &mut buffer[..wanted];
        let silence = around.limits.silence();
        let is_transmitting = session.is_transmitting();
        let read = async {
            let count = socket.read(buffer).await?;
            if count == 0 {
                return Ok(None);
            }
            in_time(timeout(silence, socket.read_exact(&mut buffer[count..])).await)?;
            Ok(Some(wanted))
        };
        tokio::select! {
            // Who always has something to say is not heard for ever.
            biased;
            () = around.shutdown.clone().wait() => Ok(None),
            () = sleep_until(around.chosen_by), if !is_transmitting => {
                Err(io::ErrorKind::TimedOut.into())
            }
            read = read => read,
        }
    }

    async fn find(&mut self, name: &str) -> Event {
        let _answering = self.around.traffic.begin();
        let found = self.around.exports.find(name).await;
        let peer = self.around.peer;
        let found = match found {
            Ok(Some(disk)) => {
                let bytes = disk.bytes();
                self.disk = Some(disk);
                tracing::debug!(%peer, name, "an NBD client looks at a disk");
                Found::Disk(bytes)
            }
            Ok(None) => Found::Nothing,
            Err(_it_is_in_the_log) => Found::Unreadable,
        };
        self.session.found(found)
    }

    /// Sends what was asked for, piece by piece.
    async fn read(&mut self, read: Read) -> io::Result<()> {
        let _answering = self.around.traffic.begin();
        let disk = self.disk.clone();
        let disk = disk.ok_or_else(|| io::Error::other("no disk was chosen"))?;
        let end = read.offset + u64::from(read.bytes);
        let mut at = read.offset;
        while at < end {
            let part = disk.part(at);
            let count = part.left.min(end - at);
            let bytes = u32::try_from(count).expect("a request is short");
            match part.piece {
                Piece::Hole { .. } => self.send_hole(&read, at, bytes).await?,
                Piece::Chunk { id, blocks } => match self.around.exports.chunk(id, blocks).await {
                    Ok(contents) => {
                        let from = usize::try_from(part.before).expect("a chunk is short");
                        let count = usize::try_from(count).expect("a chunk is short");
                        let head = read.before_data(at, bytes);
                        // At once: one segment, or one record of TLS, where they fit into it.
                        let mut both = Buf::chain(&head[..], &contents[from..from + count]);
                        self.socket.write_all_buf(&mut both).await?;
                    }
                    Err(why) => return self.fail(&read, at, why).await,
                },
            }
            at += count;
        }
        self.measure("sent");
        self.around
            .exports
            .served
            .measured
            .nbd_sent(u64::from(read.bytes));
        self.socket.flush().await
    }

    async fn send_hole(&mut self, read: &Read, at: u64, bytes: u32) -> io::Result<()> {
        if let Some(hole) = read.hole(at, bytes) {
            return self.socket.write_all(&hole).await;
        }
        self.socket.write_all(&read.before_data(at, bytes)).await?;
        let mut left = usize::try_from(bytes).expect("a request is short");
        while left > 0 {
            let some = left.min(ZEROS.len());
            self.socket.write_all(&ZEROS[..some]).await?;
            left -= some;
        }
        Ok(())
    }

    /// Never a wrong byte: who cannot be told that they fail is left.
    async fn fail(&mut self, read: &Read, at: u64, why: Failure) -> io::Result<()> {
        self.measure(why.name());
        match read.failed(at, why) {
            Some(answer) => self.send(&answer).await,
            None => Err(io::Error::other("the rest of an answer cannot be read")),
        }
    }

    async fn send(&mut self, answer: &[u8]) -> io::Result<()> {
        let _answering = self.around.traffic.begin();
        self.socket.write_all(answer).await?;
        self.socket.flush().await
    }

    /// Ends TLS, where it is spoken, and then the connection. What the client has asked for meanwhile is read and thrown away: a socket
    /// that is closed with something unread tells its peer at once, which forgets what it has not taken of the last answer.
    async fn close(mut self) -> io::Result<()> {
        let closed = async {
            self.socket.shutdown().await?;
            while self.socket.read(&mut self.buffer[..]).await? > 0 {}
            Ok(())
        };
        in_time(timeout(CLOSING, closed).await)
    }

    fn measure(&self, outcome: &'static str) {
        self.around.exports.served.measured.nbd_answered(outcome);
    }
}

fn in_time<T>(done: Result<io::Result<T>, tokio::time::error::Elapsed>) -> io::Result<T> {
    done.map_err(|_elapsed| io::ErrorKind::TimedOut)?
}
