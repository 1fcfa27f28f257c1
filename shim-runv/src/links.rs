//! The links of a machine: which network namespace they are in, how they are tied to it, and what `delete`
//! takes away again. The values are the crate network's.

use std::path::{Path, PathBuf};

use bundle::{NamespaceKind, Plan};
use network::{Found, HeldNamespace, Identity, Namespace, Tied};
use serde::{Deserialize, Serialize};

use crate::qemu::LINKS_MAX;
use crate::{Error, Result};

/// The network namespace that config.json asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// One of its own, in which hooks may make links.
    New,
    /// The one whose file that is.
    At(PathBuf),
}

impl Wanted {
    /// What this container asks for.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for the host's.
    pub(crate) fn of(plan: &Plan) -> Result<Self> {
        let mut namespaces = plan.namespaces.iter();
        match namespaces.find(|it| it.kind == NamespaceKind::Network) {
            Some(namespace) => Ok(namespace.path.clone().map_or(Self::New, Self::At)),
            None => Err(of_host("linux.namespaces: none of the kind network")),
        }
    }

    /// Makes or joins it.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for the host's by its path.
    pub(crate) fn hold(&self) -> Result<HeldNamespace> {
        match self {
            Self::New => Ok(HeldNamespace::create()?),
            Self::At(path) => {
                let namespace = Namespace::open(path)?;
                if namespace.is_hosts() {
                    let what = format!("linux.namespaces: network at {}", path.display());
                    return Err(of_host(&what));
                }
                Ok(HeldNamespace::join(&namespace)?)
            }
        }
    }

    /// Tells it apart from others; none for one that is yet to be made, or is gone.
    ///
    /// # Errors
    /// What keeps it from being looked at.
    pub(crate) fn identity(&self) -> Result<Option<Identity>> {
        match self {
            Self::New => Ok(None),
            Self::At(path) => Ok(Identity::at(path)?),
        }
    }

    /// What `delete` is to know of what is found in it; none where it ends with the machine.
    pub(crate) fn journalled(&self, namespace: &Namespace, found: &Found) -> Option<Journalled> {
        let Self::At(path) = self else {
            return None;
        };
        Some(Journalled {
            path: path.clone(),
            identity: namespace.identity(),
            indexes: found.indexes.clone(),
        })
    }
}

fn of_host(what: &str) -> Error {
    let why = "that is the host's network, and a virtual machine has one of its own: \
               name a network namespace, or none by its path";
    Error::unsupported(what, why)
}

/// Reads what is in a namespace.
///
/// # Errors
/// [`Error::Unsupported`] for more links than a machine has.
pub(crate) fn read(namespace: &Namespace) -> Result<Found> {
    let found = namespace.run(network::read)?;
    let links = found.indexes.len();
    if links > LINKS_MAX {
        let what = format!("a network namespace with {links} links");
        let why = format!("a virtual machine has at most {LINKS_MAX}");
        return Err(Error::unsupported(what, &why));
    }
    Ok(found)
}

/// Ties what was found to a machine.
///
/// # Errors
/// What the kernel says; nothing is tied then.
pub(crate) fn tie(namespace: &Namespace, found: &Found) -> Result<Tied> {
    Ok(namespace.run(|| network::tie(found))?)
}

/// Links that are, or are about to be, tied to a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Journalled {
    path: PathBuf,
    identity: Identity,
    indexes: Vec<u32>,
}

impl Journalled {
    /// Takes from them what was tied; the machine is gone. Idempotent; a namespace that is gone, or has
    /// become another, is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn undo(&self) -> Result<()> {
        if Identity::at(&self.path)? != Some(self.identity) {
            return Ok(());
        }
        let namespace = Namespace::open(Path::new(&self.path))?;
        if namespace.identity() != self.identity {
            return Ok(());
        }
        Ok(namespace.run(|| network::untie(&self.indexes))?)
    }
}
