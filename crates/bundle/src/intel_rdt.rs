//! `linux.intelRdt` (config-linux.md, IntelRdt).

use cgroups::resctrl::Wanted;
use oci_spec::runtime::Linux;

use crate::colocation::{self, Colocation};
use crate::{Error, Result};

const FIELD: &str = "linux.intelRdt";

/// What a container asks for; none: it is left in the class of its caller.
///
/// # Errors
/// [`Error::Invalid`] for a `closID` that is no name of a class, a line that is none, and an annotation
/// that names a class, too.
pub(crate) fn wanted(linux: &Linux, colocation: &Colocation) -> Result<Option<Wanted>> {
    let Some(spec) = linux.intel_rdt() else {
        return Ok(None);
    };
    if let Some(class) = &colocation.class {
        let why = format!(
            "annotations.{} names a class, too ({class})",
            colocation::CLASS
        );
        return Err(Error::invalid(FIELD, why));
    }
    let class = spec.clos_id().clone().filter(|class| !class.is_empty());
    if let Some(class) = &class
        && class != "/"
        && !colocation::is_class(class)
    {
        let why = format!("{class:?} is no name of a class of resctrl");
        return Err(Error::invalid(format!("{FIELD}.closID"), why));
    }
    let lines = spec.schemata().iter().flatten();
    let schemata = lines.map(|line| schema("schemata", line, ""));
    Ok(Some(Wanted {
        class,
        shared: shared(
            spec.l3_cache_schema().as_ref(),
            spec.mem_bw_schema().as_ref(),
        )?,
        schemata: schemata.collect::<Result<_>>()?,
        is_monitored: spec.enable_monitoring().unwrap_or(false),
    }))
}

/// `l3CacheSchema` and `memBwSchema`, as far as they say something.
///
/// # Errors
/// [`Error::Invalid`] for what is not one line, or is about another resource.
pub fn shared(l3: Option<&String>, memory: Option<&String>) -> Result<Vec<String>> {
    let lines = [("l3CacheSchema", l3, ""), ("memBwSchema", memory, "MB:")];
    let given = lines.into_iter().filter_map(|(field, line, prefix)| {
        let line = line.filter(|line| !line.is_empty())?;
        Some(schema(field, line, prefix))
    });
    given.collect()
}

/// One line, as the kernel takes it.
///
/// # Errors
/// [`Error::Invalid`] for another number of lines, and another resource than that.
fn schema(field: &str, line: &str, prefix: &str) -> Result<String> {
    let invalid = |why: &str| {
        let why = format!("{line:?} {why}");
        Err(Error::invalid(format!("{FIELD}.{field}"), why))
    };
    match line {
        _ if line.trim().is_empty() || line.contains('\n') => invalid("is not one line"),
        _ if !line.starts_with(prefix) => invalid(&format!("does not begin with {prefix}")),
        line => Ok(line.to_owned()),
    }
}
