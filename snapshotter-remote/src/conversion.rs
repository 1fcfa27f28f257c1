//! How a host tells a store of which image a layer is that it asks for, so that the store can convert it.

use hyper::header::HeaderName;

/// In a request for a manifest: `REGISTRY/NAME[:TAG][@DIGEST]`. A store that converts nothing pays no heed to it; one that does
/// answers 202 while it does.
pub(crate) const IMAGE: HeaderName = HeaderName::from_static("pouch-image");
