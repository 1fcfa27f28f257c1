//! The process around the service: socket, configuration, log, metrics, service manager, signals,
//! and an end that finishes what has begun. It knows nothing of snapshots.
//!
//! ```text
//!  Config, Logging      from files and flags
//!        |
//!  Daemon::claim        socket taken (or passed): a second daemon ends here
//!        |
//!  Daemon::run          build(..): store opened, recovered
//!        |  READY=1
//!     serving  --SIGHUP-->  reload(..)
//!        |  SIGTERM, SIGINT
//!     draining             socket removed, no new connections, running requests end, streams are told
//!        |  all done, the limit, or a second signal (which goes straight to the end)
//!     finish(..)           what must not stay as it is without a daemon
//!        |
//!       end
//! ```

mod activation;
mod arrival;
pub mod config;
mod incoming;
mod logging;
mod metrics;
mod nearest;
pub mod notify;
mod request_metrics;
mod run;
mod services;
mod shutdown;
mod socket;

pub use activation::passed_socket;
pub use logging::{LogConfig, LogFormat, LogLevel, Logging};
pub use metrics::{MetricsAddress, MetricsConfig, MetricsListener};
pub use nearest::{nearest, suggestion};
pub use run::{Daemon, Finish, Reload, Served, ServerConfig, Settings};
pub use services::Services;
pub use shutdown::{Shutdown, Trigger};
pub use socket::{Listener, PATH_BYTES_MAX};
