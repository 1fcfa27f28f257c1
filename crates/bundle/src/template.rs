//! Whether a virtual machine may go on from a template, as a container's annotation says.

use std::collections::BTreeMap;

use crate::annotations::nearest;
use crate::{Error, Result};

/// `auto` or `never`.
pub const TEMPLATE: &str = "org.pouch.runv.template";

/// Where a container's virtual machine comes from. Other containers have none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Template {
    /// From a template if there is one.
    #[default]
    Auto,
    /// It boots: it has nothing in common with another machine.
    Never,
}

impl Template {
    /// What the annotations of a container ask for.
    ///
    /// # Errors
    /// [`Error::Invalid`] for another word than the known ones.
    pub fn of(annotations: &BTreeMap<String, String>) -> Result<Self> {
        match annotations.get(TEMPLATE).map(String::as_str) {
            None | Some("auto") => Ok(Self::Auto),
            Some("never") => Ok(Self::Never),
            Some(word) => {
                let hint = nearest(&["auto", "never"], word).unwrap_or_default();
                let why = format!("{word:?} is neither auto nor never: the nearest is {hint}");
                Err(Error::invalid(format!("annotations.{TEMPLATE}"), why))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_is_of_a_template_unless_it_must_not() {
        let of = |word: &str| Template::of(&[(TEMPLATE.to_owned(), word.to_owned())].into());
        assert_eq!(Template::of(&BTreeMap::new()).unwrap(), Template::Auto);
        assert_eq!(of("auto").unwrap(), Template::Auto);
        assert_eq!(of("never").unwrap(), Template::Never);
        let why = "annotations.org.pouch.runv.template: \"nevr\" is neither auto nor never: the nearest is never";
        assert_eq!(of("nevr").unwrap_err().to_string(), why);
    }
}
