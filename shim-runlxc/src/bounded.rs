//! A question that a file system may never answer (a dead server of NFS or FUSE), asked by a
//! thread that is left behind with it then.

use std::sync::mpsc;
use std::thread::Builder;
use std::time::Duration;

use crate::{Error, Result};

/// The answer.
///
/// # Errors
/// [`Error::Timeout`] after `limit`; the thread ends when the answer comes after all.
pub(crate) fn within<T: Send + 'static>(
    limit: Duration,
    what: &'static str,
    ask: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let (tell, told) = mpsc::channel();
    Builder::new()
        .name("ask".to_owned())
        .spawn(move || {
            // Too late, nobody listens.
            let _unheard = tell.send(ask());
        })
        .map_err(Error::io("start a thread"))?;
    told.recv_timeout(limit)
        .map_err(|_silence| Error::Timeout { what, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_comes_and_what_gives_none_is_left_behind() {
        let soon = Duration::from_secs(20);
        assert_eq!(within(soon, "an answer", || 7).unwrap(), 7);
        let (answer, never) = mpsc::channel::<()>();
        let (ended, end) = mpsc::channel();
        let hung = within(Duration::from_millis(20), "an answer", move || {
            let answered = never.recv();
            ended.send(answered.is_ok()).unwrap();
        });
        assert!(matches!(
            hung,
            Err(Error::Timeout {
                what: "an answer",
                ..
            })
        ));
        answer.send(()).unwrap();
        assert!(end.recv_timeout(soon).unwrap());
    }
}
