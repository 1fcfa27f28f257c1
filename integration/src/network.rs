//! A network namespace for one test, so that bridges, addresses and packet filter rules end with it.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::Result;

use crate::{
    process::{command, output_of},
    tag::Tag,
};

const LIMIT: Duration = Duration::from_secs(20);

/// Where Debian's containernetworking-plugins lie.
pub const CNI_PLUGINS: &str = "/usr/lib/cni";

/// A named network namespace with its loopback up; deleted when dropped.
#[derive(Debug)]
pub struct NetworkNamespace {
    name: String,
}

impl NetworkNamespace {
    /// A new one with a name nobody else has.
    pub fn new() -> Result<Self> {
        let name = Tag::fresh()?.to_string();
        output_of(command("ip").args(["netns", "add", &name]), LIMIT)?;
        let this = Self { name };
        output_of(this.command("ip").args(["link", "set", "lo", "up"]), LIMIT)?;
        Ok(this)
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// A command that runs in it. Not by `ip netns exec`, which would hide mounts from each other.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut inside = command("nsenter");
        inside
            .arg(format!("--net={}", self.path().display()))
            .arg(program);
        inside
    }
}

impl Drop for NetworkNamespace {
    fn drop(&mut self) {
        let deleted = output_of(command("ip").args(["netns", "del", &self.name]), LIMIT);
        // A test that already fails keeps its own message; the census finds what is left.
        drop(deleted);
    }
}

/// A CNI list with a bridge, addresses by host-local and published ports.
#[must_use]
pub fn bridge_list(name: &str, bridge: &str, subnet: &str, data: &Path) -> String {
    format!(
        r#"{{
  "cniVersion": "0.4.0",
  "name": "{name}",
  "plugins": [
    {{
      "type": "bridge", "bridge": "{bridge}", "isGateway": true, "ipMasq": false,
      "ipam": {{
        "type": "host-local", "dataDir": "{}",
        "ranges": [[{{"subnet": "{subnet}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]
      }}
    }},
    {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
  ]
}}
"#,
        data.display()
    )
}
