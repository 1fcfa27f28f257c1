//! What pid 1 asks of the host side while it sets a container up; must not serve anybody else.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::control::{self, FromStub, Received, ToStub};
use crate::error::{Error, Result};
use crate::plan::Toggle;

/// The host side, at the other end of the control socket.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HostSide<'a> {
    pub(crate) control: BorrowedFd<'a>,
    /// Whether it has hooks that wait for [`HostSide::hooks`].
    pub(crate) hooks: Toggle,
}

impl HostSide<'_> {
    /// The tree of the plan's mount with this number, as it is now.
    pub(crate) fn tree(self, number: u32) -> Result<OwnedFd> {
        let answer = self.ask(&FromStub::Tree(number))?;
        match (answer.message, answer.fds.into_iter().next()) {
            (ToStub::Tree, Some(tree)) => Ok(tree),
            _ => Err(Error::Unexpected("instead of a tree")),
        }
    }

    /// Lets the host's hooks run, if there are any, and waits for them.
    pub(crate) fn hooks(self) -> Result<()> {
        if self.hooks == Toggle::Off {
            return Ok(());
        }
        match self.ask(&FromStub::Furnished)?.message {
            ToStub::GoOn => Ok(()),
            _ => Err(Error::Unexpected("instead of the end of the host's hooks")),
        }
    }

    fn ask(self, question: &FromStub) -> Result<Received<ToStub>> {
        control::send(self.control.as_fd(), question, &[])?;
        let answer = control::recv(self.control.as_fd())?;
        answer.ok_or(Error::HostGone)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn asked(answer: &ToStub, fds: &[BorrowedFd<'_>]) -> (Result<OwnedFd>, Result<()>, UnixStream) {
        let (host, stub) = UnixStream::pair().unwrap();
        control::send(&host, answer, fds).unwrap();
        control::send(&host, answer, &[]).unwrap();
        let side = HostSide {
            control: stub.as_fd(),
            hooks: Toggle::On,
        };
        (side.tree(7), side.hooks(), host)
    }

    #[test]
    fn answers_are_those_that_were_asked_for() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let (tree, hooks, host) = asked(&ToStub::Tree, &[file.as_fd()]);
        assert!(
            tree.is_ok() && matches!(hooks, Err(Error::Unexpected(_))),
            "{hooks:?}"
        );
        for expected in [FromStub::Tree(7), FromStub::Furnished] {
            let question: Received<FromStub> = control::recv(&host).unwrap().unwrap();
            assert_eq!(question.message, expected);
        }
        let (tree, hooks, _host) = asked(&ToStub::GoOn, &[]);
        assert!(
            matches!(tree, Err(Error::Unexpected(_))) && hooks.is_ok(),
            "{tree:?}"
        );
        let (tree, ..) = asked(&ToStub::Tree, &[]);
        assert!(matches!(tree, Err(Error::Unexpected(_))), "{tree:?}");
    }

    #[test]
    fn nobody_is_asked_without_hooks_and_a_host_that_is_gone_is_an_error() {
        let (host, stub) = UnixStream::pair().unwrap();
        drop(host);
        let side = |hooks| HostSide {
            control: stub.as_fd(),
            hooks,
        };
        side(Toggle::Off).hooks().unwrap();
        assert!(matches!(
            side(Toggle::On).hooks(),
            Err(Error::HostGone | Error::Socket { .. })
        ));
        drop(stub);
        let (host, stub) = UnixStream::pair().unwrap();
        host.shutdown(std::net::Shutdown::Write).unwrap();
        let side = HostSide {
            control: stub.as_fd(),
            hooks: Toggle::On,
        };
        assert!(matches!(side.hooks(), Err(Error::HostGone)));
    }
}
