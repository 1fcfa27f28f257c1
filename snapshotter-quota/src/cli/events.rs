//! `events`.

use std::io::Write;

use proto::quota::{EventsRequest, Follow};

use super::{
    arguments::{Events, Output},
    client::Client,
    print,
    row::EventRow,
};
use crate::Result;

/// `events`
pub(super) fn events(client: &Client, events: &Events) -> Result<()> {
    let follow = if events.follow {
        Follow::PastAndFuture
    } else {
        Follow::Past
    };
    let request = EventsRequest {
        name: events.name.clone().unwrap_or_default(),
        follow: follow.into(),
    };
    let mut stream = client.call(|mut daemon| async move { daemon.events(request).await })?;
    let mut is_any = false;
    while let Some(event) = client.next(&mut stream)? {
        is_any = true;
        let row = EventRow::from(event);
        match events.printed.output {
            Output::Table => print::out(&row.line())?,
            Output::Json => print::json_line(&row)?,
        }
    }
    if let (Some(name), false) = (&events.name, is_any) {
        // Nobody is left to tell when standard error is closed.
        let _closed = writeln!(std::io::stderr(), "no event of {name:?} is kept");
    }
    Ok(())
}
