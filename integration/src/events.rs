//! containerd's events as they come, by `ctr events`.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{containerd::Containerd, ctr::Ctr, process::Running, wait::SOON};

/// How long a subscription may take to show the event that is made to prove it.
const PROOF_LIMIT: Duration = Duration::from_millis(500);

/// A subscription to all events of one instance.
#[derive(Debug)]
pub struct Events {
    follower: Running,
}

/// One event.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `/tasks/create` and so on.
    pub topic: String,
    /// Its fields.
    pub body: Value,
}

impl Events {
    /// Subscribes. Returns when the subscription is proved to work, so that nothing after that is missed.
    pub fn follow(containerd: &Containerd) -> Result<Self> {
        let ctr = Ctr::of(containerd);
        // Fails when it exists, which is what is wanted.
        ctr.call(&["namespaces", "create", &containerd.namespace])?;
        let mut follower = ctr.start(&["events"])?;
        for attempt in 0_u32.. {
            let label = format!("followed={attempt}");
            ctr.call(&["namespaces", "label", &containerd.namespace, &label])?
                .success()?;
            let seen = follower.wait_for_output(PROOF_LIMIT, |text| {
                text.contains("/namespaces/update").then_some(())
            });
            match seen {
                Ok(()) => break,
                Err(error) if attempt == 20 => return Err(error),
                Err(_) => {}
            }
        }
        Ok(Self { follower })
    }

    /// The events of a container until one satisfies `last`, that one included.
    pub fn of_container(
        &mut self,
        id: &str,
        mut last: impl FnMut(&Event) -> bool,
    ) -> Result<Vec<Event>> {
        self.follower
            .wait_for_output(SOON, |text| {
                let complete = &text[..text.rfind('\n').map_or(0, |end| end + 1)];
                let mut events: Vec<Event> = complete
                    .lines()
                    .filter_map(parse)
                    .filter(|event| event.is_of(id))
                    .collect();
                let end = events.iter().position(&mut last)?;
                events.truncate(end + 1);
                Some(events)
            })
            .with_context(|| format!("following container {id}"))
    }
}

impl Event {
    fn is_of(&self, id: &str) -> bool {
        let field = if self.topic.starts_with("/containers/") {
            "id"
        } else {
            "container_id"
        };
        self.body[field] == id
    }

    /// A number among its fields, 0 when it is left out.
    #[must_use]
    pub fn number(&self, field: &str) -> i64 {
        self.body[field].as_i64().unwrap_or_default()
    }

    /// A text among its fields, empty when it is left out.
    #[must_use]
    pub fn text(&self, field: &str) -> &str {
        self.body[field].as_str().unwrap_or_default()
    }
}

/// `DATE TIME ZONE NAMESPACE TOPIC JSON`.
fn parse(line: &str) -> Option<Event> {
    let (_, rest) = line.split_once(" /")?;
    let (topic, body) = rest.split_once(' ')?;
    Some(Event {
        topic: format!("/{topic}"),
        body: serde_json::from_str(body).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_parsed_into_topic_and_fields() {
        let line = "2026-11-24 15:21:09.15 +0000 UTC pp-1 /tasks/exit \
                    {\"container_id\":\"c1\",\"id\":\"c1\",\"pid\":7,\"exit_status\":137}";
        let event = parse(line).unwrap();
        assert_eq!(event.topic, "/tasks/exit");
        assert!(event.is_of("c1"));
        assert_eq!(event.number("exit_status"), 137);
        assert_eq!(event.text("id"), "c1");
        assert_eq!(event.number("absent"), 0);
    }
}
