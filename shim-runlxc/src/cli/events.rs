//! `events`: what a container uses, again and again, and when it ran out of memory; one JSON
//! object a line.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use bundle::Status;
use cgroups::{OomNews, OomWatch};
use serde::Serialize;

use super::arguments::Events;
use super::lifecycle::open;
use super::stats::{self, Usage};
use crate::container::Container;
use crate::{Error, Result, wait};

/// One line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    r#type: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Usage>,
}

/// `runlxc events ID`
pub(crate) fn events(root: &Path, arguments: &Events) -> Result<ExitCode> {
    let container = open(root, &arguments.container_id)?;
    if container.status()? == Status::Stopped {
        return Err(Error::State(format!(
            "container with id {} is not running",
            arguments.container_id
        )));
    }
    if arguments.stats {
        tell_usage(&container)?;
    } else {
        follow(&container, arguments.interval)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Until the container has stopped or its cgroup is gone.
fn follow(container: &Container, interval: Duration) -> Result<()> {
    let mut watch = match container.cgroup().oom_watch() {
        Ok(watch) => Some(watch),
        Err(error) => {
            let error = Error::from(error).chain();
            tracing::warn!(error, "OOM kills will not be told");
            None
        }
    };
    // Opened before the look below: the number cannot change hands between the two unnoticed.
    let init = sys::process::pidfd_open(sys::Pid::from_raw(container.pid())).ok();
    let mut next = Instant::now() + interval;
    while container.status()? != Status::Stopped {
        let left = next.saturating_duration_since(Instant::now());
        if left.is_zero() {
            if let Err(error) = tell_usage(container) {
                tracing::error!(error = %error.chain(), "no stats");
            }
            next = Instant::now() + interval;
            continue;
        }
        let fds: Vec<BorrowedFd<'_>> = init
            .iter()
            .map(AsFd::as_fd)
            .chain(watch.iter().map(AsFd::as_fd))
            .collect();
        wait::any_readable(&fds, left)?;
        if let Some(watch) = &mut watch
            && tell_kills(container, watch)? == OomNews::Gone
        {
            return Ok(());
        }
    }
    match &mut watch {
        Some(watch) => tell_kills(container, watch).map(drop),
        None => Ok(()),
    }
}

/// Tells every time out of memory; gives the last of the news.
fn tell_kills(container: &Container, watch: &mut OomWatch) -> Result<OomNews> {
    loop {
        match watch.take()? {
            OomNews::OutOfMemory => tell(container, "oom", None)?,
            news => return Ok(news),
        }
    }
}

fn tell_usage(container: &Container) -> Result<()> {
    tell(container, "stats", Some(stats::usage(container.cgroup())?))
}

fn tell(container: &Container, r#type: &'static str, data: Option<Usage>) -> Result<()> {
    let line = Line {
        r#type,
        id: &container.journal().id,
        data,
    };
    let text = serde_json::to_string(&line).map_err(|e| Error::io("print an event")(e.into()))?;
    super::print(&(text + "\n"))
}
