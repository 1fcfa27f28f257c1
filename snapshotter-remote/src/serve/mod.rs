//! The store for hosts: its objects by HTTP/1.1, so that clients, proxies and caches need nothing of
//! ours. It reads, writes nothing but traces, and has no private key, unless it is to convert images that hosts ask for
//! (convert).
//!
//! ```text
//!  Config     from file and flags
//!    |
//!  Server::claim   store there, tokens and certificates read, sockets taken: what is wrong ends here
//!    |  READY=1
//!  Server::run     one task for each connection, so many and no more (connection, traffic)
//!    |               GET -> target -> token -> object -> conditions and range -> body
//!    |               NBD -> name -> disk -> reads of it -> chunks (nbd), where that is wanted
//!    |  SIGHUP       tokens, certificates and the log's level are read again
//!    |  SIGTERM      no new connections; answers that are begun are ended, within a limit
//!   end
//! ```

mod answer;
mod body;
mod conditions;
mod config;
mod connection;
mod convert;
mod measured;
mod nbd;
mod run;
mod target;
mod tls;
mod tokens;
mod traces;
mod traffic;

pub use config::{Config, FILE, Limits};
pub use convert::ConvertConfig;
pub use nbd::NbdConfig;
pub use run::{Reread, Server};
pub use tls::TlsConfig;
