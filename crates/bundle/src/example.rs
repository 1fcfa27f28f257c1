//! The config.json that `runlxc spec` writes: runc's, so that what people edit looks familiar.

use launch::plan::Toggle;

const TEXT: &str = include_str!("example.json");

/// The text, indented by tabs, with a final line feed. With a cgroup namespace on a host whose
/// control groups are version 2 only, as runc.
#[must_use]
pub fn text(cgroup_namespace: Toggle) -> String {
    if cgroup_namespace == Toggle::Off {
        return TEXT.to_owned();
    }
    // Into the text, not into a parsed value: that would sort the keys.
    let last = "{\n\t\t\t\t\"type\": \"mount\"\n\t\t\t}";
    let more = format!("{last},\n\t\t\t{{\n\t\t\t\t\"type\": \"cgroup\"\n\t\t\t}}");
    TEXT.replace(last, &more)
}

/// The text for a container in a user namespace whose root is this user and group of the host, as
/// runc's `spec --rootless`: without a network namespace and resources, and with the host's /sys.
#[must_use]
pub fn rootless(cgroup_namespace: Toggle, uid: u32, gid: u32) -> String {
    let map = |name: &str, id: u32| {
        format!(
            "\t\t\"{name}\": [\n\t\t\t{{\n\t\t\t\t\"containerID\": 0,\n\t\t\t\t\"hostID\": {id},\n\
             \t\t\t\t\"size\": 1\n\t\t\t}}\n\t\t],\n"
        )
    };
    let sysfs = "\"type\": \"sysfs\",\n\t\t\t\"source\": \"sysfs\",\n\t\t\t\"options\": [\n";
    let sys = "\"type\": \"none\",\n\t\t\t\"source\": \"/sys\",\n\t\t\t\"options\": [\n\t\t\t\t\"rbind\",\n";
    let last = "\n\t\t\t}\n\t\t],\n\t\t\"maskedPaths\"";
    let user = format!("\n\t\t\t}},\n\t\t\t{{\n\t\t\t\t\"type\": \"user\"{last}");
    let text = text(cgroup_namespace)
        .replace(",\n\t\t\t\t\"gid=5\"", "")
        .replace(sysfs, sys)
        .replace("\t\t\t{\n\t\t\t\t\"type\": \"network\"\n\t\t\t},\n", "")
        .replace(last, &user);
    let resources = text.find("\t\t\"resources\"");
    let namespaces = text.find("\t\t\"namespaces\"");
    let (from, to) = resources.zip(namespaces).unwrap_or_default();
    let maps = map("uidMappings", uid) + &map("gidMappings", gid);
    format!("{}{maps}{}", &text[..from], &text[to..])
}
