//! Notices that the kernel may have killed for memory. Counts nothing itself.

use std::os::fd::OwnedFd;

use tokio::io::unix::AsyncFd;

use crate::ShimError;

/// The watch of one container.
#[derive(Debug)]
pub(crate) struct Oom {
    descriptor: Option<AsyncFd<OwnedFd>>,
    /// Somebody is looking already.
    looked_at: bool,
}

impl Oom {
    /// No watch: the host cannot tell, or no longer.
    pub(crate) fn none() -> Self {
        Self {
            descriptor: None,
            looked_at: false,
        }
    }

    /// Watches what the runtime offers. A container runs without OOM events rather than not.
    pub(crate) fn watch(offered: Result<Option<OwnedFd>, ShimError>, id: &str) -> Self {
        let watched = offered.map_err(|e| e.message).and_then(|descriptor| {
            descriptor
                .map(register)
                .transpose()
                .map_err(|e| e.to_string())
        });
        match watched {
            Ok(descriptor) => Self {
                descriptor,
                looked_at: false,
            },
            Err(error) => {
                tracing::warn!(id, error, "OOM kills will not be told");
                Self::none()
            }
        }
    }

    /// Returns when somebody should look; not again before `again`.
    pub(crate) async fn readable(&mut self) {
        let watching = !self.looked_at;
        match &self.descriptor {
            Some(descriptor) if watching => match descriptor.readable().await {
                Ok(mut guard) => {
                    guard.clear_ready();
                    self.looked_at = true;
                }
                Err(_shut_down) => std::future::pending().await,
            },
            _ => std::future::pending().await,
        }
    }

    /// Somebody has looked.
    pub(crate) fn again(&mut self) {
        self.looked_at = false;
    }
}

#[expect(
    deprecated,
    reason = "unsound only for types that may close or change their descriptor; an OwnedFd does not"
)]
fn register(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, tokio::io::Interest::READABLE)
}
