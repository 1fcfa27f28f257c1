//! Where images come from: an OCI image layout (image-spec, image-layout.md), which is files by digest and an index
//! that says which are images, or a registry, which has the same by name and digest.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    rc::Rc,
    sync::Arc,
};

use disk::Digest;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::{
    archive::{self, Places},
    blob::Blob,
    documents::{self, Config, Descriptor, ImageManifest, Index, Kind},
    platform::Platform,
    registry::Registry,
    section::Section,
    source::Source,
};
use crate::{
    error::{Error, Result},
    manifest::LAYERS_MAX,
};

/// Indexes in indexes.
const DEPTH_MAX: u32 = 4;

/// Manifests and indexes that are looked at.
const MANIFESTS_MAX: usize = 1000;

/// Length of an image's name.
const NAME_BYTES_MAX: usize = 1024;

/// A layout that was opened, or an image of a registry that was found.
#[derive(Debug)]
pub struct Origin {
    /// For messages.
    name: String,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory(PathBuf),
    Archive {
        file: Arc<File>,
        places: Places,
    },
    Registry {
        registry: Arc<Registry>,
        /// What the name of the image names, a manifest or an index, and its bytes.
        named: Descriptor,
        bytes: Vec<u8>,
    },
}

impl Origin {
    /// The layout in a directory or in a tar: what is there decides.
    ///
    /// # Errors
    /// What cannot be read, or is neither.
    pub fn open(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        let failed = |source| Error::File {
            doing: "reading the image",
            path: path.clone(),
            source,
        };
        let name = path.display().to_string();
        if path.is_dir() {
            let place = Place::Directory(path);
            return Ok(Self { name, place });
        }
        let file = File::open(&path).map_err(failed)?;
        let places = archive::places(&file).map_err(failed)?;
        let file = Arc::new(file);
        let place = Place::Archive { file, places };
        Ok(Self { name, place })
    }

    /// An image of a registry.
    ///
    /// # Errors
    /// [`Error::Registry`], and [`Error::Image`] for what is no image.
    pub fn of_registry(registry: Arc<Registry>) -> Result<Self> {
        let bytes = registry.manifest(None)?;
        let name = registry.name().to_string();
        let not = |what| Error::Image {
            image: name.clone(),
            what,
        };
        let kind: Kind = serde_json::from_slice(&bytes)
            .map_err(|error| not(format!("its manifest: {error}")))?;
        let named = kind.of(&bytes);
        let is_other = |digest| digest != named.digest;
        if registry.name().digest().is_some_and(is_other) {
            return Err(not(format!(
                "its manifest is another: sha256:{}",
                named.digest
            )));
        }
        let place = Place::Registry {
            registry,
            named,
            bytes,
        };
        Ok(Self { name, place })
    }

    /// Its images for a platform; at least one.
    ///
    /// # Errors
    /// [`Error::Image`] for what is no layout, damaged, or has none for it.
    pub fn images(&self, platform: &Platform) -> Result<Vec<Source<'_>>> {
        let index = self.index()?;
        let mut manifests = 0;
        let mut pending = Vec::new();
        let mut expect = |index: Index, name: Option<&Rc<str>>, depth| {
            manifests += index.manifests.len();
            if depth > DEPTH_MAX || manifests > MANIFESTS_MAX {
                return Err(self.not("it has more indexes or manifests than an image has"));
            }
            let inner = index.manifests.into_iter().rev();
            Ok(inner
                .map(|it| (it, name.cloned(), depth))
                .collect::<Vec<_>>())
        };
        pending.extend(expect(index, None, 0)?);
        let (mut images, mut others) = (Vec::new(), BTreeSet::new());
        while let Some((descriptor, name, depth)) = pending.pop() {
            // Its own, or that of the index that it is in.
            let name = self.name_of(&descriptor)?.or(name);
            if descriptor.is_index() {
                let index: Index = self.manifest(&descriptor)?;
                pending.extend(expect(index, name.as_ref(), depth + 1)?);
                continue;
            }
            match self.image(&descriptor, name, platform)? {
                Ok(image) => images.push(image),
                Err(other) => drop(others.insert(other)),
            }
        }
        if images.is_empty() {
            let others = others.into_iter().collect::<Vec<_>>().join(", ");
            return Err(self.not(format!("it has no image for {platform}; it has: {others}")));
        }
        Ok(images)
    }

    /// What says which images it has.
    fn index(&self) -> Result<Index> {
        let section = match &self.place {
            Place::Registry { named, .. } => {
                let manifests = vec![named.clone()];
                return Ok(Index { manifests });
            }
            Place::Directory(path) => in_directory(path, "index.json"),
            Place::Archive { file, places } => in_archive(file, places, "index.json"),
        };
        let section = section.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.not(
                "it has no index.json, so it is no OCI image layout; `ctr images export`, \
                 `skopeo copy` and `docker save` since Docker 25 write one",
            ),
            _ => self.not(format!("index.json: {error}")),
        })?;
        self.parse("index.json", Blob::Section(section), None)
    }

    /// What tools call an image. It is printed where one line is one image.
    fn name_of(&self, descriptor: &Descriptor) -> Result<Option<Rc<str>>> {
        if let Place::Registry { .. } = self.place {
            return Ok(Some(Rc::from(self.name.as_str())));
        }
        let Some(name) = descriptor.name() else {
            return Ok(None);
        };
        if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            let shown: String = name.escape_debug().take(NAME_BYTES_MAX).collect();
            let why = "has control characters, or more than 1024 bytes";
            return Err(self.not(format!("the name {shown} of an image in it {why}")));
        }
        Ok(Some(Rc::from(name)))
    }

    /// The image of a manifest; for another platform its name.
    fn image(
        &self,
        descriptor: &Descriptor,
        name: Option<Rc<str>>,
        platform: &Platform,
    ) -> Result<Result<Source<'_>, String>> {
        if let Some(other) = &descriptor.platform
            && !platform.is(&other.os, &other.architecture)
        {
            return Ok(Err(other_platform(&other.os, &other.architecture)));
        }
        let manifest: ImageManifest = self.manifest(descriptor)?;
        let config: Config = self.document(&manifest.config)?;
        if !platform.is(&config.os, &config.architecture) {
            return Ok(Err(other_platform(&config.os, &config.architecture)));
        }
        let name = name.map_or_else(
            || format!("sha256:{}", descriptor.digest),
            |name| name.to_string(),
        );
        let (layers, diff_ids) = (manifest.layers, config.rootfs.diff_ids);
        if layers.len() != diff_ids.len() || layers.len() > LAYERS_MAX {
            return Err(self.not(format!(
                "image {name} has {} layers and {} diffIDs: it needs as many of both, and not more than \
                 {LAYERS_MAX}",
                layers.len(),
                diff_ids.len()
            )));
        }
        let diff_ids = diff_ids.into_iter().map(|id| id.0).collect();
        Ok(Ok(Source::new(self, name, layers, diff_ids)))
    }

    /// A manifest or an index, if it is the one that its descriptor names. Registries keep them beside blobs.
    fn manifest<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T> {
        let Place::Registry {
            registry,
            named,
            bytes,
        } = &self.place
        else {
            return self.document(descriptor);
        };
        let digest = descriptor.digest;
        let name = format!("manifest sha256:{digest}");
        if digest == named.digest {
            return self.judge(&name, bytes, Some(digest));
        }
        self.judge(&name, &registry.manifest(Some(digest))?, Some(digest))
    }

    /// A document, if it is the one that its descriptor names.
    fn document<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T> {
        let name = format!("blob sha256:{}", descriptor.digest);
        let blob = self.blob(descriptor)?;
        self.parse(&name, blob, Some(descriptor.digest))
    }

    fn parse<T: DeserializeOwned>(
        &self,
        name: &str,
        mut blob: Blob,
        digest: Option<Digest>,
    ) -> Result<T> {
        if blob.left() > documents::BYTES_MAX {
            return Err(self.not(format!("{name} is longer than 4 MiB")));
        }
        let mut bytes = Vec::new();
        let read = blob.read_to_end(&mut bytes);
        read.map_err(|error| self.not(format!("{name}: {error}")))?;
        self.judge(name, &bytes, digest)
    }

    fn judge<T: DeserializeOwned>(
        &self,
        name: &str,
        bytes: &[u8],
        digest: Option<Digest>,
    ) -> Result<T> {
        let found = Digest(Sha256::digest(bytes).into());
        if digest.is_some_and(|digest| digest != found) {
            return Err(self.not(format!("{name} is damaged, its digest is sha256:{found}")));
        }
        serde_json::from_slice(bytes).map_err(|error| self.not(format!("{name}: {error}")))
    }

    /// The bytes of a blob, of the length that its descriptor gives. A registry is asked when they are read.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<Blob> {
        let digest = descriptor.digest;
        let name = format!("blobs/sha256/{digest}");
        let section = match &self.place {
            Place::Registry { registry, .. } => {
                let download = registry.blob(digest, descriptor.size);
                return Ok(Blob::Download(Box::new(download)));
            }
            Place::Directory(path) => in_directory(path, &name),
            Place::Archive { file, places } => in_archive(file, places, &name),
        };
        let section = section.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => self.not(format!("blob sha256:{digest} is not in it")),
            _ => self.not(format!("blob sha256:{digest}: {error}")),
        })?;
        if section.left() != descriptor.size {
            return Err(self.not(format!(
                "blob sha256:{digest} has {} bytes, not {}",
                section.left(),
                descriptor.size
            )));
        }
        Ok(Blob::Section(section))
    }

    pub(super) fn not(&self, what: impl Into<String>) -> Error {
        Error::Image {
            image: self.to_string(),
            what: what.into(),
        }
    }
}

fn in_archive(file: &Arc<File>, places: &Places, name: &str) -> io::Result<Section> {
    let &(offset, bytes) = places.get(name).ok_or(io::ErrorKind::NotFound)?;
    Ok(Section::new(Arc::clone(file), offset, bytes))
}

fn in_directory(directory: &Path, name: &str) -> io::Result<Section> {
    let path = directory.join(name);
    // Opening a fifo would wait for somebody who writes.
    if !path.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let file = File::open(path)?;
    let bytes = file.metadata()?.len();
    Ok(Section::new(Arc::new(file), 0, bytes))
}

/// For a message, whatever an image says there.
fn other_platform(os: &str, architecture: &str) -> String {
    let short = |text: &str| text.escape_debug().take(32).collect::<String>();
    format!("{}/{}", short(os), short(architecture))
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}
