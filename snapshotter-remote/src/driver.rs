//! A thread that drives what is asynchronous for callers that block. It may be dropped anywhere, also where a runtime of tokio's may
//! not.

use std::{io, thread::JoinHandle};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

/// The thread, until this is dropped.
#[derive(Debug)]
pub(crate) struct Driver {
    runtime: Handle,
    /// Ends the thread when it is dropped.
    ending: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Driver {
    /// Starts a thread of that name.
    ///
    /// # Errors
    /// What keeps it from being started.
    pub(crate) fn start(name: &str) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (ending, ended) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            // Either way it is over.
            .spawn(move || drop(runtime.block_on(ended)))?;
        Ok(Self {
            runtime: handle,
            ending: Some(ending),
            thread: Some(thread),
        })
    }

    /// Waits for it on the caller's thread.
    pub(crate) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.ending.take());
        if let Some(thread) = self.thread.take() {
            // Its panic was told when it happened.
            drop(thread.join());
        }
    }
}
