//! How many files a process that serves may have open. It decides not how many are enough.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Lets this process open as many files as it may: that many (RLIMIT_NOFILE of setrlimit(2)).
///
/// # Errors
/// What setrlimit(2) says.
pub(crate) fn raise() -> nix::Result<u64> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_open_is_what_can_be() {
        let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, most - 1, most).unwrap();
        assert_eq!(raise(), Ok(most));
        assert_eq!(getrlimit(Resource::RLIMIT_NOFILE), Ok((most, most)));
    }
}
