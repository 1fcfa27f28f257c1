//! Commands that say in a bucket that they change a store, and are interrupted: that is taken back before they end. A second signal
//! ends them at once, as SIGKILL does.

use std::{io, process, sync::Arc, time::Duration};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{
    driver::Driver,
    error::{Error, Result},
    store::{Place, take_words_back},
};

/// For requests that are on their way, and the one that takes it back.
const LIMIT: Duration = Duration::from_secs(30);

/// What a shell says of who was ended by a signal, above its number.
const BY_SIGNAL: i32 = 128;

/// From here on, where the store is in a bucket.
///
/// # Errors
/// What keeps this process from listening for signals.
pub(super) fn take_back_at_signals(place: &Place) -> Result<()> {
    let Place::Bucket(..) = place else {
        return Ok(());
    };
    listen().map_err(|source| Error::File {
        doing: "listening for the signals of",
        path: "/proc/self".into(),
        source,
    })
}

fn listen() -> io::Result<()> {
    let driver = Arc::new(Driver::start("signals")?);
    let both = async {
        Ok::<_, io::Error>((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        ))
    };
    let (mut interrupt, mut terminate) = driver.block_on(both)?;
    let thread = std::thread::Builder::new().name("ending".to_owned());
    thread.spawn(move || {
        let code = driver.block_on(next(&mut interrupt, &mut terminate));
        let again = std::thread::Builder::new().name("ending-now".to_owned());
        // Without it, one signal is what there is.
        let _thread = again.spawn(move || {
            let code = driver.block_on(next(&mut interrupt, &mut terminate));
            end(code);
        });
        take_words_back(LIMIT);
        end(code);
    })?;
    Ok(())
}

#[expect(
    clippy::exit,
    reason = "the command may be in the middle of anything, which it must not end"
)]
fn end(code: i32) -> ! {
    process::exit(code)
}

/// The code that the next one ends this process with.
async fn next(interrupt: &mut Signal, terminate: &mut Signal) -> i32 {
    let kind = tokio::select! {
        _some = interrupt.recv() => SignalKind::interrupt(),
        _some = terminate.recv() => SignalKind::terminate(),
    };
    BY_SIGNAL + kind.as_raw_value()
}
