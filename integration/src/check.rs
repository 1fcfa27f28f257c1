//! One behaviour, checked with every containerd and every image: the helper the tests are written with.

use std::fmt::Write as _;

use anyhow::{Context, Result};

use crate::{
    config::Config,
    containerd::Containerd,
    ctr::{Container, Ctr},
    images::Image,
    runtime::{Home, Runtime},
    versions::Version,
};

/// What a behaviour is checked with: one containerd, one runtime, one image.
#[derive(Debug, Clone, Copy)]
pub struct Bench<'a> {
    /// The daemon, fresh for this test.
    pub containerd: &'a Containerd,
    /// The runtime under test.
    pub runtime: Runtime,
    /// The image under test.
    pub image: Image,
}

impl<'a> Bench<'a> {
    /// The client.
    #[must_use]
    pub fn ctr(&self) -> Ctr<'a> {
        Ctr::of(self.containerd)
    }

    /// The containerd line.
    #[must_use]
    pub fn version(&self) -> Version {
        self.containerd.installed.version
    }

    /// A container of the image by the runtime. Its id tells images apart.
    #[must_use]
    pub fn container(&self, name: &str) -> Container<'a> {
        let id = format!("{name}-{}", self.image.key().replace('.', "-"));
        self.ctr().container(&id, self.image, self.runtime)
    }
}

/// Checks the behaviour with every containerd and each of the images, and that nothing is left behind.
///
/// # Panics
///
/// When any combination fails, with what failed in each.
pub fn check(runtime: Runtime, images: &[Image], behaviour: impl Fn(&Bench<'_>) -> Result<()>) {
    let failures =
        failures(runtime, images, behaviour).unwrap_or_else(|error| format!("{error:#}"));
    assert!(failures.is_empty(), "{failures}");
}

fn failures(
    runtime: Runtime,
    images: &[Image],
    behaviour: impl Fn(&Bench<'_>) -> Result<()>,
) -> Result<String> {
    runtime
        .binaries()
        .context("the runtime under test is missing")?;
    let home = runtime.home(0)?;
    let images = &Image::to_be_had(&Image::wanted(images)?)?[..];
    if images.is_empty() {
        // It was told which are not to be had.
        return Ok(String::new());
    }
    let mut config = Config::with_images(images);
    config.environment.extend(home.iter().map(Home::variable));
    let mut failures = String::new();
    for installed in Version::available()? {
        let version = installed.version;
        let containerd = Containerd::start(&installed, &config)
            .with_context(|| format!("starting containerd {version}"))?;
        for &image in images {
            let bench = Bench {
                containerd: &containerd,
                runtime,
                image,
            };
            if let Err(error) = behaviour(&bench) {
                let log = containerd.log_tail();
                write!(
                    failures,
                    "\n== {runtime} on containerd {version}, {image:?}: {error:#}\nits log ends:\n{log}\n"
                )?;
            }
        }
        if let Err(error) = containerd.finish() {
            write!(
                failures,
                "\n== {runtime} on containerd {version}, at the end: {error:#}\n"
            )?;
        }
    }
    Ok(failures)
}
