//! An image's own `/sbin/init` as pid 1: which one that is.

use std::fs;
use std::path::PathBuf;

use crate::error::Result;
use crate::init::Furnished;
use crate::plan::ImageInit;

use super::accounts::read_regular;
use super::style::{self, Style};
use super::{Program, busybox, refusal, sysv, upstart};

/// Makes what it finds in the container beside the image; gives how it is started.
pub(super) fn furnish(wanted: &ImageInit, furnished: &Furnished) -> Result<Program> {
    let (path, style) = find()?;
    if Some(style.stop_signal()) != wanted.stop_signal {
        let why = format!(
            "mode sbin-init: {} is {}, which a mount of config.json has put over the image's",
            style::PATH,
            style.as_str()
        );
        return Err(refusal(why));
    }
    match style {
        Style::Busybox => busybox::furnish(wanted, furnished),
        Style::Upstart => upstart::furnish(&path, wanted, furnished),
        _ => sysv::furnish(&path, wanted, furnished),
    }
}

/// The file that `/sbin/init` leads to, if it is one that can be told what to run.
fn find() -> Result<(PathBuf, Style)> {
    let path = style::PATH;
    let Ok(real) = fs::canonicalize(path) else {
        return Err(refusal(format!("mode sbin-init: the image has no {path}")));
    };
    let content = read_regular(path).ok().flatten().unwrap_or_default();
    match Style::of(&real, &content) {
        style @ (Style::Sysv | Style::Upstart | Style::Busybox) => Ok((real, style)),
        other => {
            let hint = match other {
                Style::Systemd => ": mode systemd is for that",
                _ => "",
            };
            Err(refusal(format!(
                "mode sbin-init: {path} of the image ({}) is {}, neither sysvinit, upstart nor BusyBox{hint}",
                real.display(),
                other.as_str()
            )))
        }
    }
}

/// A file of the image that its init needs.
pub(super) fn text_of(path: &str) -> Result<String> {
    match read_regular(path).ok().flatten() {
        Some(text) => Ok(String::from_utf8_lossy(&text).into_owned()),
        None => {
            let why = format!("mode sbin-init: the image has no file {path}");
            Err(refusal(why))
        }
    }
}
