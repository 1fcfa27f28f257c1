//! Reads config.json, process.json and resources into the types of `oci-spec`, with messages that
//! name the file, the line or the field.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxResources, Process, Spec};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::plan::Planned;
use crate::{Error, Result, names, resources, tolerance};

/// Upper bound of config.json: far above what execve takes, far below what hurts.
const CONFIG_BYTES_MAX: u64 = 8 << 20;

/// A bundle whose config.json was read and has the right shape.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Absolute path of the bundle.
    pub(crate) dir: PathBuf,
    /// Its config.json.
    pub(crate) spec: Spec,
    /// What was ignored in it.
    pub(crate) warnings: Vec<String>,
}

impl Bundle {
    /// Reads config.json of the bundle in `dir`; a relative `dir` is resolved.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Text`] or [`Error::Invalid`], one line each.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_with_text(dir).map(|(bundle, _)| bundle)
    }

    /// The same, with the text of its config.json.
    ///
    /// # Errors
    /// As [`Bundle::load`].
    pub fn load_with_text(dir: &Path) -> Result<(Self, Vec<u8>)> {
        let failed = |source| Error::Read {
            path: dir.to_path_buf(),
            source,
        };
        let dir = std::fs::canonicalize(dir).map_err(failed)?;
        let text = read_bounded(&dir.join(names::CONFIG))?;
        Ok((Self::parse(dir, &text)?, text))
    }

    /// A bundle in `dir`, an absolute path, whose config.json has this text.
    ///
    /// # Errors
    /// [`Error::Text`] or [`Error::Invalid`].
    pub fn parse(dir: PathBuf, config: &[u8]) -> Result<Self> {
        let mut value = parse_text(&dir.join(names::CONFIG), config)?;
        let warnings = tolerance::config(&mut value)?;
        Ok(Self {
            dir,
            spec: typed(value, names::CONFIG)?,
            warnings,
        })
    }

    /// Absolute path of the bundle.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// config.json as it stands.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// `linux.cgroupsPath` to the letter; none when it is absent or empty.
    #[must_use]
    pub fn cgroups_path(&self) -> Option<String> {
        let path = self.spec.linux().as_ref()?.cgroups_path().as_ref()?;
        Some(path.to_string_lossy().into_owned()).filter(|path| !path.is_empty())
    }

    /// `linux.resources`, but for devices; none of them when it is absent.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the field.
    pub fn resources(&self) -> Result<cgroups::Resources> {
        let linux = self.spec.linux().as_ref();
        let spec = linux.and_then(|linux| linux.resources().as_ref());
        spec.map_or_else(|| Ok(cgroups::Resources::default()), resources)
    }

    /// The annotations, sorted.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.spec
            .annotations()
            .iter()
            .flatten()
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }
}

/// A process in JSON: a process.json file, or the `spec` of containerd's Exec.
///
/// # Errors
/// [`Error::Text`] when it is no JSON, [`Error::Invalid`] with the field of the wrong shape.
pub fn parse_process(json: &[u8]) -> Result<Planned<Process>> {
    let mut value = parse_text(Path::new("process"), json)?;
    let warnings = tolerance::process(&mut value)?;
    Ok(Planned {
        value: typed(value, "process")?,
        warnings,
        notes: Vec::new(),
    })
}

/// Resources in JSON: the argument of `update`, or the resources of containerd's Update.
///
/// # Errors
/// As [`parse_process`].
pub fn parse_resources(json: &[u8]) -> Result<LinuxResources> {
    let mut value = parse_text(Path::new("resources"), json)?;
    tolerance::resources(&mut value)?;
    typed(value, "resources")
}

fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| Error::Read {
        path: path.to_path_buf(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut text = Vec::new();
    file.take(CONFIG_BYTES_MAX + 1)
        .read_to_end(&mut text)
        .map_err(failed)?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        let why = format!("larger than {CONFIG_BYTES_MAX} bytes");
        return Err(Error::Text {
            path: path.to_path_buf(),
            why,
        });
    }
    Ok(text)
}

fn parse_text(path: &Path, text: &[u8]) -> Result<Value> {
    let failed = |why: String| Error::Text {
        path: path.to_path_buf(),
        why,
    };
    let text = match std::str::from_utf8(text) {
        Ok(text) => text,
        Err(e) => return Err(failed(format!("not UTF-8 after byte {}", e.valid_up_to()))),
    };
    let value: Value = serde_json::from_str(text).map_err(|e| failed(format!("not JSON: {e}")))?;
    if value.is_object() {
        Ok(value)
    } else {
        Err(failed("not a JSON object".to_owned()))
    }
}

/// Deserializes with the dotted name of the offending field in the error.
fn typed<T: DeserializeOwned>(value: Value, what: &str) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let field = if path == "." { what.to_owned() } else { path };
        let mut words = MEMORY_POLICY.iter();
        let why = match words.find(|(at, _)| field.starts_with(at)) {
            Some((_, words)) => format!("{words}: {}", e.inner()),
            None => e.inner().to_string(),
        };
        Error::invalid(field, why)
    })
}

/// What runc says first of such fields.
const MEMORY_POLICY: [(&str, &str); 2] = [
    ("linux.memoryPolicy.flags", "invalid memory policy flag"),
    ("linux.memoryPolicy", "invalid memory policy mode"),
];
