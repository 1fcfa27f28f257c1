//! The one signal that the daemon is ending, and everybody's way to hear of it.

use tokio::sync::watch;

/// Hears that the daemon is ending. What would run on by itself, such as a stream of events, ends
/// then; what was asked for is finished.
#[derive(Clone, Debug)]
pub struct Shutdown(watch::Receiver<bool>);

/// Says it, at the latest when it is dropped.
#[derive(Debug)]
pub struct Trigger(watch::Sender<bool>);

impl Shutdown {
    /// Whoever says it, and the first who hears it. [`super::Daemon::run`] makes its own.
    #[must_use]
    pub fn channel() -> (Trigger, Self) {
        let (sender, receiver) = watch::channel(false);
        (Trigger(sender), Self(receiver))
    }

    /// Returns when the daemon is ending.
    pub async fn wait(mut self) {
        // An error is a trigger that is gone, and the daemon with it.
        let _ending = self.0.wait_for(|is_ending| *is_ending).await;
    }

    /// Whether it is ending.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        *self.0.borrow()
    }
}

impl Trigger {
    /// Says it.
    pub fn pull(&self) {
        self.0.send_replace(true);
    }
}
