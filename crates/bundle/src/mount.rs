//! `mounts` of config.json (config.md, Mounts).

use std::path::Path;

use launch::plan::{CgroupView, PlannedMount};
use mounts::{Extension, IdMap, IdRange, Mount, MountOptions, Scope};
use oci_spec::runtime::{LinuxIdMapping, Mount as Spec};

use crate::namespaces::IdMaps;
use crate::{Error, Result};

/// What a mount may refer to.
pub(crate) struct Surroundings<'a> {
    /// What relative sources of bind mounts are relative to.
    pub(crate) bundle: &'a Path,
    /// The root file system on the host.
    pub(crate) root: &'a Path,
    /// What a mount of type `cgroup` shows.
    pub(crate) cgroup_view: &'a CgroupView,
    /// The ids of the container's user namespace.
    pub(crate) id_maps: &'a IdMaps,
}

/// Converts the mount at `index` of the list.
///
/// # Errors
/// [`Error::Invalid`] or [`Error::Unsupported`] with the mount's place in the list and its target.
pub(crate) fn planned(
    index: usize,
    spec: &Spec,
    around: &Surroundings<'_>,
    warnings: &mut Vec<String>,
) -> Result<PlannedMount> {
    let target = spec.destination().to_string_lossy().into_owned();
    let field = format!("mounts[{index}] ({target})");
    let mut mount = Mount {
        source: spec
            .source()
            .as_deref()
            .map(Path::to_string_lossy)
            .unwrap_or_default()
            .into(),
        target: absolute(&field, target, around.root, warnings)?,
        fstype: spec.typ().clone().unwrap_or_default(),
        options: options(&field, spec)?,
    };
    map_ids(&field, spec, &mut mount, around)?;
    if mount.is_bind() {
        bind(&field, &mut mount, around.bundle, warnings)?;
    } else if mount.fstype == "cgroup" {
        return Ok(PlannedMount::Cgroup {
            mount,
            view: around.cgroup_view.clone(),
        });
    }
    Ok(PlannedMount::Plain(mount))
}

fn options(field: &str, spec: &Spec) -> Result<MountOptions> {
    let mut words = spec.options().clone().unwrap_or_default();
    // The specification calls the type of a bind mount a dummy; people write the option there.
    let is_bind_word = |word: &String| word == "bind" || word == "rbind";
    if spec.typ().as_deref() == Some("bind") && !words.iter().any(is_bind_word) {
        words.push("bind".to_owned());
    }
    MountOptions::parse(&words)
        .map_err(|e| Error::invalid(format!("{field}.options"), e.to_string()))
}

fn bind(field: &str, mount: &mut Mount, bundle: &Path, warnings: &mut Vec<String>) -> Result<()> {
    if mount.source.is_empty() {
        return Err(Error::invalid(
            format!("{field}.source"),
            "a bind mount needs one",
        ));
    }
    if !mount.options.data.is_empty() {
        // The kernel ignores them, too.
        warnings.push(format!(
            "{field}.options: {:?} is ignored: a bind mount takes no options of a file system",
            mount.options.data
        ));
        mount.options.data.clear();
    }
    "bind".clone_into(&mut mount.fstype);
    mount.source = bundle.join(&mount.source).to_string_lossy().into_owned();
    Ok(())
}

/// A target on the host that is below the root file system is taken as one in it (as runc does).
fn absolute(
    field: &str,
    target: String,
    root: &Path,
    warnings: &mut Vec<String>,
) -> Result<String> {
    if target.is_empty() {
        return Err(Error::invalid(
            format!("{field}.destination"),
            "must not be empty",
        ));
    }
    if let Ok(inside) = Path::new(&target).strip_prefix(root) {
        return Ok(format!("/{}", inside.display()));
    }
    if target.starts_with('/') {
        return Ok(target);
    }
    warnings.push(format!(
        "{field}.destination is not absolute, taken as relative to the container's root"
    ));
    Ok(format!("/{target}"))
}

/// Puts `uidMappings` and `gidMappings` where the words `idmap` and `ridmap` are.
fn map_ids(field: &str, spec: &Spec, mount: &mut Mount, around: &Surroundings<'_>) -> Result<()> {
    let (mut uids, mut gids) = (ranges(spec.uid_mappings()), ranges(spec.gid_mappings()));
    let extensions = &mut mount.options.extensions;
    let word = extensions.iter().find_map(|extension| match extension {
        Extension::IdMap(map) => Some(map.scope),
        Extension::TmpCopyUp => None,
    });
    if word.is_none() && uids.is_empty() && gids.is_empty() {
        return Ok(());
    }
    extensions.retain(|extension| !matches!(extension, Extension::IdMap(_)));
    if uids.is_empty() && gids.is_empty() {
        // The word alone: as the container's user namespace has it.
        (uids, gids) = (own(&around.id_maps.uids), own(&around.id_maps.gids));
    }
    if !mount.is_bind() {
        return Err(Error::invalid(field, "only bind mounts can be id-mapped"));
    }
    if uids.is_empty() || gids.is_empty() {
        return Err(Error::invalid(
            field,
            "an id-mapped mount needs uidMappings and gidMappings, unless a new user namespace has \
             its own",
        ));
    }
    mount.options.extensions.push(Extension::IdMap(IdMap {
        scope: word.unwrap_or(Scope::Mount),
        uids,
        gids,
    }));
    Ok(())
}

/// The ranges of a new user namespace, as a mount takes them.
fn own(maps: &[crate::IdMap]) -> Vec<IdRange> {
    let range = |map: &crate::IdMap| IdRange {
        inside: map.container_id,
        outside: map.host_id,
        count: map.size,
    };
    maps.iter().map(range).collect()
}

fn ranges(mappings: &Option<Vec<LinuxIdMapping>>) -> Vec<IdRange> {
    let range = |mapping: &LinuxIdMapping| IdRange {
        inside: mapping.container_id(),
        outside: mapping.host_id(),
        count: mapping.size(),
    };
    mappings.iter().flatten().map(range).collect()
}
