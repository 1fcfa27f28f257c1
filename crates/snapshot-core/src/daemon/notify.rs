//! What the service manager is told (sd_notify(3)). Without one, nothing happens.

use std::{pin::pin, time::Duration};

use sd_notify::NotifyState;

use super::Shutdown;

/// The daemon serves.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The configuration is about to be read again; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => send(&[NotifyState::Reloading, now]),
        Err(error) => tracing::warn!(%error, "the service manager was not told of the reload"),
    }
}

/// The daemon finishes what it has begun.
pub fn stopping(status: &str) {
    send(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// The daemon's loop turns.
fn alive() {
    send(&[NotifyState::Watchdog]);
}

/// How often [`alive`] must be told: half of what the manager waits for, as sd_watchdog_enabled(3)
/// recommends.
fn alive_interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Runs on the thread that serves: a loop that hangs is not reported as alive.
pub async fn keep_alive(shutdown: Shutdown) {
    let Some(interval) = alive_interval().filter(|interval| !interval.is_zero()) else {
        return;
    };
    let mut ticks = tokio::time::interval(interval);
    let mut ending = pin!(shutdown.wait());
    loop {
        tokio::select! {
            _ = ticks.tick() => alive(),
            () = &mut ending => return,
        }
    }
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager was not told");
    }
}
