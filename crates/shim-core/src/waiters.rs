//! Clients that wait for the end of a process, by the numbers the life cycle knows them by.

use std::collections::HashMap;

use task::{Exit, WaiterId};

use crate::command::Reply;

/// Those of one container.
#[derive(Debug, Default)]
pub(crate) struct Waiters {
    replies: HashMap<WaiterId, Reply<Exit>>,
    last: u64,
}

impl Waiters {
    /// A number nobody has.
    pub(crate) fn next_id(&mut self) -> WaiterId {
        self.last += 1;
        WaiterId(self.last)
    }

    /// One more.
    pub(crate) fn add(&mut self, waiter: WaiterId, reply: Reply<Exit>) {
        self.replies.insert(waiter, reply);
    }

    /// The process has ended.
    pub(crate) fn answer(&mut self, waiter: WaiterId, exit: Exit) {
        if let Some(reply) = self.replies.remove(&waiter) {
            reply.send(Ok(exit));
        }
    }

    /// Takes out those who have gone, with their connections.
    pub(crate) fn take_gone(&mut self) -> Vec<WaiterId> {
        self.replies
            .extract_if(|_, reply| reply.is_abandoned())
            .map(|(waiter, _)| waiter)
            .collect()
    }
}
