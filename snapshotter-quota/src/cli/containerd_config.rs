//! The drop-in for containerd. A pure function; the copies in packaging/containerd are its output.

use std::path::Path;

use super::arguments::ConfigVersion;

/// What the text is made from.
#[derive(Debug, Clone, Copy)]
pub(super) struct DropIn<'a> {
    pub(super) version: ConfigVersion,
    /// The name that containerd is to know the snapshotter by.
    pub(super) name: &'a str,
    pub(super) address: &'a Path,
    pub(super) root: &'a Path,
    pub(super) cri: Cri,
    /// Whether overlay takes mapped lower directories (kernel 5.19).
    pub(super) maps_layers: bool,
}

/// Whether Kubernetes' pods are to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cri {
    With,
    Without,
}

/// The text of the drop-in.
pub(super) fn text(drop_in: &DropIn<'_>) -> String {
    let DropIn {
        version,
        name,
        address,
        root,
        cri,
        maps_layers,
    } = *drop_in;
    let (number, which) = match version {
        ConfigVersion::Two => (2, "1.6 and 1.7"),
        ConfigVersion::Three => (3, "2.x"),
    };
    let capabilities = match version {
        ConfigVersion::Three if maps_layers => {
            "  # Containers in user namespaces share the layers instead of copying them: kernel 5.19 or later.\n  \
               capabilities = [\"remap-ids\"]\n"
        }
        ConfigVersion::Two | ConfigVersion::Three => "",
    };
    let mut text = format!(
        "# Drop-in for containerd {which}: imports = [\"/etc/containerd/conf.d/*.toml\"] in config.toml.\n\
         version = {number}\n\
         \n\
         [proxy_plugins.{name}]\n  \
           type = \"snapshot\"\n  \
           address = {}\n\
         {capabilities}\
         \n\
         # Where the kubelet looks for free space; containerd before 1.6.32 and 1.7.16 ignores it.\n\
         [proxy_plugins.{name}.exports]\n  \
           root = {}\n",
        quoted(address),
        quoted(root),
    );
    if cri == Cri::With {
        text.push_str(&match version {
            ConfigVersion::Two => format!(
                "\n\
                 # containerd 1.x replaces the whole CRI table by that of the last import, so put these \
                 lines into\n\
                 # config.toml's own CRI table:\n\
                 # [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
                 #   snapshotter = \"{name}\"\n"
            ),
            ConfigVersion::Three => format!(
                "\n\
                 [plugins.'io.containerd.cri.v1.images']\n  \
                   snapshotter = \"{name}\"\n"
            ),
        });
    }
    if version == ConfigVersion::Three {
        text.push_str(&format!(
            "\n\
             # Images are unpacked into it, by pods and by `ctr images pull --snapshotter {name}`. This\n\
             # list replaces the built-in one.\n\
             [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  \
               platform = \"linux\"\n  \
               snapshotter = \"{name}\"\n\
             \n\
             [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\n  \
               platform = \"linux\"\n  \
               snapshotter = \"overlayfs\"\n"
        ));
    }
    text
}

/// A TOML string.
fn quoted(path: &Path) -> String {
    toml::Value::String(path.display().to_string()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "quota";

    fn drop_in(version: ConfigVersion, cri: Cri) -> String {
        text(&DropIn {
            version,
            name: NAME,
            address: Path::new(crate::config::ADDRESS),
            root: Path::new(crate::config::ROOT),
            cri,
            maps_layers: true,
        })
    }

    #[test]
    fn packaged_drop_ins_are_what_the_command_prints() {
        let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/containerd");
        for (version, file) in [
            (ConfigVersion::Two, "quota-v2.toml"),
            (ConfigVersion::Three, "quota-v3.toml"),
        ] {
            let kept = std::fs::read_to_string(packaging.join(file)).unwrap();
            assert_eq!(kept, drop_in(version, Cri::With), "{file}");
        }
    }

    #[test]
    fn drop_in_is_toml_with_the_tables_of_its_version() {
        let check = |version, cri, expected: &[&str]| {
            let table: toml::Table = drop_in(version, cri).parse().unwrap();
            let proxy = &table["proxy_plugins"][NAME];
            assert_eq!(proxy["type"].as_str(), Some("snapshot"));
            assert_eq!(proxy["exports"]["root"].as_str(), Some(crate::config::ROOT));
            let plugins = table.get("plugins").and_then(toml::Value::as_table);
            let names: Vec<_> = plugins.into_iter().flat_map(toml::Table::keys).collect();
            assert_eq!(names, expected);
        };
        check(ConfigVersion::Two, Cri::Without, &[]);
        check(
            ConfigVersion::Three,
            Cri::Without,
            &["io.containerd.transfer.v1.local"],
        );
        // As an import it would take away all that config.toml says of CRI.
        check(ConfigVersion::Two, Cri::With, &[]);
        let text = drop_in(ConfigVersion::Two, Cri::With);
        assert!(text.contains("\n#   snapshotter = \"quota\"\n"), "{text}");
        check(
            ConfigVersion::Three,
            Cri::With,
            &[
                "io.containerd.cri.v1.images",
                "io.containerd.transfer.v1.local",
            ],
        );
    }

    #[test]
    fn odd_paths_are_quoted() {
        let text = text(&DropIn {
            version: ConfigVersion::Two,
            name: NAME,
            address: Path::new("/run/a\"b\\c.sock"),
            root: Path::new("/r"),
            cri: Cri::Without,
            maps_layers: true,
        });
        let table: toml::Table = text.parse().unwrap();
        assert_eq!(
            table["proxy_plugins"][NAME]["address"].as_str(),
            Some("/run/a\"b\\c.sock")
        );
    }
}
