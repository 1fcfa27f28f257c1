//! Has stores convert images that they do not have, by what containerd says of the image that a layer is of.

use std::time::Duration;

use hyper::header::HeaderValue;
use serde::Deserialize;
use snapshot_core::Labels;

use crate::{image::ImageName, signature::digest};

/// What containerd's CRI calls the image; with `disable_snapshot_annotations = false`.
const IMAGE_LABEL: &str = "containerd.io/snapshot/cri.image-ref";

/// The digest of its manifest for this machine's kind.
const MANIFEST_LABEL: &str = "containerd.io/snapshot/cri.manifest-digest";

/// `[store.convert]`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ConvertConfig {
    /// Whether stores are told of the image.
    pub ask: bool,
    /// How long a layer waits for its disk while its image is being converted, in seconds; then it is unpacked.
    pub wait_seconds: u64,
}

/// An image that a store is to convert, if it does not have it.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) image: HeaderValue,
    /// How long the conversion is waited for.
    pub(super) wait: Duration,
}

/// Between what a store is told and when it is given up.
const SPARE: Duration = Duration::from_secs(1);

impl Wanted {
    /// How long a store may hold a request that is given up after `limit`: a store that holds it longer would be taken for one that
    /// does not answer.
    pub(super) fn patience(&self, limit: Duration) -> Duration {
        self.wait.min(limit.saturating_sub(SPARE))
    }
}

impl ConvertConfig {
    /// What a store is told of a layer with these labels; nothing where they say nothing, or nothing that is a name.
    pub(super) fn wanted(self, labels: &Labels) -> Option<Wanted> {
        if !self.ask {
            return None;
        }
        let name: ImageName = labels.get(IMAGE_LABEL)?.parse().ok()?;
        let manifest = labels.get(MANIFEST_LABEL);
        let manifest = manifest.and_then(|manifest| digest(manifest.strip_prefix("sha256:")?));
        let name = manifest.map_or_else(|| name.clone(), |digest| name.with_digest(digest));
        Some(Wanted {
            image: HeaderValue::try_from(name.to_string()).ok()?,
            wait: Duration::from_secs(self.wait_seconds),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_is_told_of_the_manifest_that_the_layer_is_of() {
        let on = ConvertConfig {
            ask: true,
            wait_seconds: 5,
        };
        let check = |config: ConvertConfig,
                     image: Option<&str>,
                     manifest: Option<&str>,
                     expected: Option<&str>| {
            let labels = [(IMAGE_LABEL, image), (MANIFEST_LABEL, manifest)];
            let labels = labels.into_iter();
            let labels: Labels = labels
                .filter_map(|(key, value)| Some((key.to_owned(), value?.to_owned())))
                .collect();
            let wanted = config.wanted(&labels);
            let found = wanted.as_ref().map(|wanted| wanted.image.to_str().unwrap());
            assert_eq!(found, expected);
        };
        let manifest = format!("sha256:{}", "ab".repeat(32));
        let whole = format!("r.example/x@{manifest}");
        check(on, Some("r.example/x:1"), Some(&manifest), Some(&whole));
        check(on, Some("r.example/x:1"), None, Some("r.example/x:1"));
        check(
            on,
            Some("r.example/x:1"),
            Some("sha256:1"),
            Some("r.example/x:1"),
        );
        check(on, Some("no image"), Some(&manifest), None);
        check(on, None, Some(&manifest), None);
        check(
            ConvertConfig::default(),
            Some("r.example/x:1"),
            Some(&manifest),
            None,
        );
    }

    #[test]
    fn a_store_holds_a_request_no_longer_than_it_is_waited_for() {
        let check = |wait, limit, expected| {
            let wanted = Wanted {
                image: HeaderValue::from_static("r.example/x"),
                wait: Duration::from_secs(wait),
            };
            let patience = wanted.patience(Duration::from_secs(limit));
            assert_eq!(patience.as_secs(), expected, "{wait}, {limit}");
        };
        check(0, 30, 0);
        check(5, 30, 5);
        check(120, 10, 9);
        check(120, 1, 0);
    }
}
