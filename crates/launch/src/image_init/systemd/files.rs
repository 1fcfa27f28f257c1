//! What systemd finds in the container beside the image: files and links below `/run`, and two
//! files of the image that are covered. Runs inside the container's root.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::error::Result;
use crate::plan::When;
use crate::process::RLIMITS;
use crate::procfs::Proc;

use super::super::component::Component;
use super::image::Image;
use super::{CONTAINER, OWN, UNIT};
use crate::image_init::files::{copy_stub, cover, link, make_directory, write};

const UNITS: &str = "/run/systemd/system";
const ABOUT_HOST: &str = "/run/host";
const MACHINE_ID: &str = "/etc/machine-id";

/// Units that have no use in a container, or are about devices of the host.
const MASKED: [&str; 22] = [
    "console-getty.service",
    "container-getty@.service",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty-static.service",
    "getty@.service",
    "proc-sys-fs-binfmt_misc.automount",
    "proc-sys-fs-binfmt_misc.mount",
    "serial-getty@.service",
    "sys-fs-fuse-connections.mount",
    "sys-kernel-config.mount",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "systemd-firstboot.service",
    // It would write the id that we cover the image's with into the image.
    "systemd-machine-id-commit.service",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "systemd-udev-settle.service",
    "systemd-udev-trigger.service",
    "systemd-udevd-control.socket",
    "systemd-udevd-kernel.socket",
    "systemd-udevd.service",
];

/// What the files say.
pub(super) struct Files<'a> {
    pub(super) uuid: &'a str,
    pub(super) os_release: &'a [u8],
    pub(super) image: &'a Image,
    pub(super) rlimits: &'a [(u32, u64, u64)],
    pub(super) components: Vec<Component>,
}

impl Files<'_> {
    /// Makes them all.
    pub(super) fn make(&self, proc: &Proc) -> Result<()> {
        copy_stub(proc)?;
        self.cover_image()?;
        self.about_host()?;
        self.units()
    }

    fn cover_image(&self) -> Result<()> {
        let stub = format!("{OWN}/init");
        cover(&stub, &self.image.shutdown)?;
        // A missing one stays missing: its mount point would be a change of the image. With an id
        // systemd takes no start for the first, which would change the image as well.
        let there = fs::symlink_metadata(MACHINE_ID);
        if there.is_ok_and(|about| about.is_file()) {
            let own = format!("{OWN}/machine-id");
            write(&own, format!("{}\n", self.uuid).as_bytes(), 0o444)?;
            cover(&own, Path::new(MACHINE_ID))?;
        }
        Ok(())
    }

    fn about_host(&self) -> Result<()> {
        make_directory(ABOUT_HOST)?;
        for (name, content) in [
            ("container-manager", CONTAINER.as_bytes()),
            ("container-uuid", self.uuid.as_bytes()),
            ("os-release", self.os_release),
        ] {
            write(&format!("{ABOUT_HOST}/{name}"), content, 0o444)?;
        }
        Ok(())
    }

    fn units(&self) -> Result<()> {
        let wants = format!("{UNITS}/multi-user.target.wants");
        make_directory(&wants)?;
        for name in MASKED {
            link("/dev/null", &format!("{UNITS}/{name}"))?;
        }
        let unit = format!("{UNITS}/{UNIT}");
        write(&unit, self.unit().as_bytes(), 0o644)?;
        link(&unit, &format!("{wants}/{UNIT}"))?;
        for (name, path) in &self.image.services {
            link(path, &format!("{wants}/{name}"))?;
        }
        for component in &self.components {
            let name = unit_of(component);
            let unit = format!("{UNITS}/{name}");
            write(&unit, of_component(component).as_bytes(), 0o644)?;
            link(&unit, &format!("{wants}/{name}"))?;
        }
        Ok(())
    }

    /// Nothing in it comes from the program: systemd's rules of quoting have no say.
    ///
    /// Of its processes systemd ends the main one alone: in version 1 nobody tells it when a cgroup
    /// of a container is empty, so waiting for that may last until the limit of 90 seconds. What
    /// else there is ends with the container.
    fn unit(&self) -> String {
        let mut after = "basic.target network.target".to_owned();
        for (name, _) in &self.image.services {
            let _written = write!(after, " {name}");
        }
        for component in &self.components {
            if component.when == When::Before {
                let _written = write!(after, " {}", unit_of(component));
            }
        }
        let mut limits = String::new();
        for &(resource, _, hard) in self.rlimits {
            let index = usize::try_from(resource).unwrap_or(usize::MAX);
            // Words of systemd for limits are the names of resources.
            let Some(word) = RLIMITS.get(index) else {
                continue;
            };
            let _written = match hard {
                u64::MAX => writeln!(limits, "Limit{word}=infinity"),
                hard => writeln!(limits, "Limit{word}={hard}"),
            };
        }
        format!(
            "[Unit]\n\
             Description=The application of this container\n\
             After={after}\n\
             \n\
             [Service]\n\
             ExecStart={OWN}/init application\n\
             ExecStopPost={OWN}/init halt\n\
             KillMode=process\n\
             StandardInput=null\n\
             StandardOutput=null\n\
             StandardError=journal\n\
             {limits}"
        )
    }
}

/// The unit that a component is.
fn unit_of(component: &Component) -> String {
    format!("pouch-component-{}.service", component.name)
}

fn of_component(component: &Component) -> String {
    let Component { name, .. } = component;
    let kind = match component.is_notifying {
        true => "notify",
        false => "simple",
    };
    let after = match component.when {
        When::Before => String::new(),
        When::After => format!(" {UNIT}"),
    };
    format!(
        "[Unit]\n\
         Description=Component {name} of the host's operator\n\
         After=basic.target network.target{after}\n\
         \n\
         [Service]\n\
         Type={kind}\n\
         ExecStart={OWN}/init component {name}\n\
         Restart=always\n"
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn the_unit_says_when_and_with_which_limits() {
        let image = Image {
            systemd: "/lib/systemd/systemd".to_owned(),
            shutdown: PathBuf::from("/lib/systemd/systemd-shutdown"),
            services: vec![(
                "cron.service".to_owned(),
                PathBuf::from("/lib/cron.service"),
            )],
        };
        let files = Files {
            uuid: "",
            os_release: &[],
            image: &image,
            rlimits: &[(7, 1, 1024), (4, 0, u64::MAX), (99, 1, 1)],
            components: [("first", When::Before), ("last", When::After)]
                .map(|(name, when)| Component {
                    name: name.to_owned(),
                    when,
                    is_notifying: when == When::Before,
                })
                .into(),
        };
        let unit = files.unit();
        let after = "After=basic.target network.target cron.service \
                     pouch-component-first.service\n";
        assert!(unit.contains(after), "{unit}");
        let [first, last] = [0, 1].map(|index| of_component(&files.components[index]));
        assert!(
            first.contains("After=basic.target network.target\n"),
            "{first}"
        );
        let command = "Type=notify\nExecStart=/run/runlxc/init component first\n";
        assert!(first.contains(command), "{first}");
        let after = "After=basic.target network.target pouch-application.service\n";
        assert!(
            last.contains(after) && last.contains("Type=simple\n"),
            "{last}"
        );
        assert!(
            unit.ends_with("LimitNOFILE=1024\nLimitCORE=infinity\n"),
            "{unit}"
        );
    }
}
