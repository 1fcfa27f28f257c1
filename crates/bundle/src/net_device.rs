//! `linux.netDevices`: links of the host that become the container's (config-linux.md, Network devices).

use std::collections::BTreeMap;

use oci_spec::runtime::Linux;

use crate::namespaces::Namespaces;
use crate::plan::NamespaceKind;
use crate::{Error, Result};

const FIELD: &str = "linux.netDevices";

/// The kernel's IFNAMSIZ without the zero at the end.
const NAME_BYTES_MAX: usize = 15;

/// In a name: a number that no link of the container's has yet.
const NUMBER: &str = "%d";

/// Names on the host, and those in the container, which may have one `%d` for a number.
///
/// # Errors
/// [`Error::Invalid`] in the host's network, for a name that no link can have, and for two links with
/// one name.
pub(crate) fn names(linux: &Linux, namespaces: &Namespaces) -> Result<BTreeMap<String, String>> {
    let mut names: BTreeMap<String, String> = BTreeMap::new();
    let devices = linux.net_devices().iter().flatten();
    for (name, device) in devices {
        let new_name = device.name().clone().filter(|name| !name.is_empty());
        names.insert(name.clone(), new_name.unwrap_or_else(|| name.clone()));
    }
    if !names.is_empty() && !namespaces.has(NamespaceKind::Network) {
        let why = "needs a network namespace other than the host's, and linux.namespaces has none";
        return Err(Error::invalid(FIELD, why));
    }
    for (index, (name, new_name)) in names.iter().enumerate() {
        let field = || format!("{FIELD}.{name}");
        let is_template = new_name.contains(NUMBER);
        let whole = new_name.replacen(NUMBER, "0", 1);
        if let Some(wrong) = [name, &whole].into_iter().find(|name| !is_sound(name)) {
            let why = format!(
                "{wrong:?} is no name of a link: the kernel takes 1 to {NAME_BYTES_MAX} bytes without blanks, \"/\", \":\" and more than one \"%d\""
            );
            return Err(Error::invalid(field(), why));
        }
        let mut before = names.values().take(index);
        if !is_template && before.any(|other| other == new_name) {
            let why = format!("a second link that is to be {new_name:?} in the container");
            return Err(Error::invalid(field(), why));
        }
    }
    Ok(names)
}

/// As the kernel's dev_valid_name() has it.
fn is_sound(name: &str) -> bool {
    let is_blank = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0b;
    (1..=NAME_BYTES_MAX).contains(&name.len())
        && ![".", ".."].contains(&name)
        && name
            .bytes()
            .all(|byte| !b"\0/:%".contains(&byte) && !is_blank(byte))
}
