//! Images as they come: OCI image layouts, in a directory or in a tar, with layers that are plain, gzip or
//! zstd. Everything in them is a stranger's: nothing is believed that its digest does not prove, and
//! nothing is read into memory without a limit.

mod archive;
mod documents;
mod layer_tar;
mod layout;
mod platform;
mod section;
mod source;

pub use layer_tar::LayerTar;
pub use layout::Layout;
pub use platform::Platform;
pub use source::Source;
