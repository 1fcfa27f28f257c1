//! Images as they come: OCI image layouts, in a directory or in a tar, and images of registries, with layers that are
//! plain, gzip or zstd. Everything in them is a stranger's: nothing is believed that its digest does not prove, and
//! nothing is read into memory without a limit.

mod archive;
mod blob;
mod credentials;
mod documents;
mod download;
mod layer_tar;
mod origin;
mod platform;
mod registry;
mod section;
mod source;

pub(crate) use documents::{
    BYTES_MAX as DOCUMENT_BYTES_MAX, Config, Descriptor, ImageManifest, Index, Kind,
};
pub(crate) use download::Download;
pub use layer_tar::LayerTar;
pub use origin::Origin;
pub use platform::Platform;
pub use registry::{Access, ImageName, Registry, SCHEME};
pub use source::Source;
