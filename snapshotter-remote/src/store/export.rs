//! A disk out of the store, in one file that any kernel with EROFS mounts.

use std::{
    fs::{self, File},
    io::{BufWriter, Write},
    path::Path,
};

use disk::Digest;

use super::{Store, name::Name};
use crate::{
    chunk::{self, ChunkId},
    error::{Error, Result},
    manifest::Manifest,
    table,
};

impl Store {
    /// Writes the flat form of a disk to a new file, every chunk verified. A file that could not be
    /// finished does not stay.
    ///
    /// # Errors
    /// What is missing, damaged or not to be written.
    pub fn export(&self, chain_id: Digest, path: &Path) -> Result<()> {
        let manifest = self.manifest(chain_id)?;
        let failed = |source| Error::File {
            doing: "writing",
            path: path.to_owned(),
            source,
        };
        let file = File::create_new(path).map_err(failed)?;
        let written = self.write_flat(&manifest, &file);
        let written = written.and_then(|()| file.sync_all().map_err(failed));
        if written.is_err() {
            // The first error is the one to tell.
            drop(fs::remove_file(path));
        }
        written
    }

    /// The flat form, from its first byte to its last.
    fn write_flat(&self, manifest: &Manifest, out: impl Write) -> Result<()> {
        let mut out = BufWriter::new(out);
        let stored = |id: ChunkId| self.objects.get(Name::Chunk(id), chunk::STORED_BYTES_MAX);
        manifest.flat_metadata.restore(stored, &mut out)?;
        for device in &manifest.devices {
            let name = Name::Table(device.table);
            let bytes = self.objects.get(name, table::BYTES_MAX)?;
            let table = device.open_table(&name.to_string(), &bytes)?;
            table.restore(stored, &mut out)?;
        }
        out.flush().map_err(Error::Write)
    }
}
