//! How a host tells a store of which image a layer is that it asks for, so that the store can convert it.

use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};

/// In a request for a manifest: `REGISTRY/NAME[:TAG][@DIGEST]`. A store that converts nothing pays no heed to it; one that does
/// answers 202 while it does.
pub(crate) const IMAGE: HeaderName = HeaderName::from_static("pouch-image");

/// How long who asks would wait for an answer: `wait=SECONDS` (RFC 7240, 4.3).
pub(crate) const PREFER: HeaderName = HeaderName::from_static("prefer");

/// The field of somebody who would wait so long, in whole seconds.
pub(crate) fn prefer(wait: Duration) -> HeaderValue {
    let text = format!("wait={}", wait.as_secs());
    HeaderValue::try_from(text).expect("letters and digits make a field")
}

/// How long somebody would wait whose field that is; nothing where it does not say so. Of several the first counts, and what cannot be
/// read is not there (RFC 7240, 2).
pub(crate) fn preferred(field: &str) -> Option<Duration> {
    let preferences = field.split(',');
    let words = preferences.map(|preference| preference.split(';').next().unwrap_or_default());
    let waits = words.filter_map(|words| {
        let (name, value) = words.split_once('=')?;
        let is_wait = name.trim().eq_ignore_ascii_case("wait");
        is_wait.then(|| value.trim().trim_matches('"'))
    });
    let seconds = waits.map(|value| value.parse().ok()).next()??;
    Some(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_how_long_it_would_wait_is_understood() {
        let check = |field: &str, expected: Option<u64>| {
            let found = preferred(field).map(|wait| wait.as_secs());
            assert_eq!(found, expected, "{field}");
        };
        check("wait=0", Some(0));
        check("respond-async, Wait = \"7\"; x=1", Some(7));
        check("wait=3, wait=9", Some(3));
        check("wait=-1", None);
        check("wait=x, wait=9", None);
        check("wait", None);
        check("waiting=1", None);
        check("", None);
        for millis in [0, 999, 1000, 86_400_000] {
            let field = prefer(Duration::from_millis(millis));
            check(field.to_str().unwrap(), Some(millis / 1000));
        }
    }
}
