//! The image in its registry. What that gives is compared with its digest and its length before anybody uses it. Its client
//! blocks, so it has threads beside the event loop.

use std::{io::Read, sync::Arc};

use disk::Digest;
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;

use crate::{
    error::{Error, Result},
    image::{self, DOCUMENT_BYTES_MAX, Descriptor, Download, ImageName},
};

/// One image there.
pub(super) struct Registry(Arc<image::Registry>);

impl Registry {
    /// It is not asked yet.
    pub(super) fn new(client: Arc<image::Registry>) -> Self {
        Self(client)
    }

    /// Its name.
    pub(super) fn name(&self) -> &ImageName {
        self.0.name()
    }

    /// The manifest, or several of them, that the image's name stands for, or those of that digest.
    ///
    /// # Errors
    /// [`Error::Registry`]; [`Error::Image`] for what is another than its digest says.
    pub(super) async fn manifest(&self, digest: Option<Digest>) -> Result<(Vec<u8>, Digest)> {
        let client = Arc::clone(&self.0);
        let bytes = apart(move || client.manifest(digest)).await?;
        let found = Digest(Sha256::digest(&bytes).into());
        let wanted = digest.or_else(|| self.name().digest());
        if wanted.is_some_and(|wanted| wanted != found) {
            return Err(self.not(format!("its manifest is another: sha256:{found}")));
        }
        Ok((bytes, found))
    }

    /// A document, which is short.
    ///
    /// # Errors
    /// As [`Registry::manifest`].
    pub(super) async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let named = format!("blob sha256:{}", descriptor.digest);
        if descriptor.size > DOCUMENT_BYTES_MAX {
            return Err(self.not(format!("{named} is longer than 4 MiB")));
        }
        let mut blob = self.blob(descriptor);
        let mut bytes = Vec::new();
        let read = apart(move || blob.read_to_end(&mut bytes).map(|_count| bytes));
        let read = read.await;
        let bytes = read.map_err(|error| self.not(format!("{named}: {error}")))?;
        if Digest(Sha256::digest(&bytes).into()) != descriptor.digest {
            return Err(self.not(format!("{named} is damaged: it is another")));
        }
        Ok(bytes)
    }

    /// Bytes of a blob as they come, not more than it should have, read on a thread that may block; whoever takes them
    /// compares them.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Download {
        self.0.blob(descriptor.digest, descriptor.size)
    }

    /// What is wrong with the image.
    pub(super) fn not(&self, what: impl Into<String>) -> Error {
        Error::Image {
            image: self.name().to_string(),
            what: what.into(),
        }
    }
}

/// Runs what blocks.
pub(super) async fn apart<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: Send + 'static,
{
    match spawn_blocking(work).await {
        Ok(done) => done,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}
