//! Runtime options: runc's message, the one before it, or the TOML of `runtimeoptions.v1.Options`.
//! What cannot be honoured is refused by its name; nothing is ignored silently.

use std::path::{Path, PathBuf};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use containerd_shim_protos::shim::oci;

use crate::{Code, Options, ShimError};

/// runc's options, which reach any runtime.
pub(super) const RUNC: &str = "containerd.runc.v1.Options";
/// What containerd's client before 2.0 sends with a task to a runtime that is not called
/// `io.containerd.runc.*`: for `ctr run --uidmap`, `--gidmap` and, in 1.6, `--no-pivot`.
const CREATE: &str = "containerd.linux.runc.CreateOptions";
/// What CRI sends to runtimes it does not know: a TOML text, or the path of one.
const GENERIC: &str = "runtimeoptions.v1.Options";

/// Nobody's configuration is longer.
const TOML_BYTES_MAX: u64 = 1 << 20;

/// Checked options, and the one that is for `start`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Parsed {
    pub(crate) options: Options,
    pub(crate) shim_cgroup: Option<String>,
}

/// Checks the options of a request.
pub(crate) fn parse(any: Option<&Any>) -> Result<Parsed, ShimError> {
    let Some(any) = any.filter(|a| !a.type_url.is_empty() || !a.value.is_empty()) else {
        return Ok(Parsed::default());
    };
    // The part after the last slash names the message, with or without a host before it.
    match any.type_url.rsplit('/').next().unwrap_or_default() {
        RUNC => from_runc(&any.value),
        GENERIC => from_generic(&any.value),
        CREATE => from_create(&any.value),
        _ => Err(invalid(format!(
            "runtime options of type {:?} are unknown; {RUNC} and {GENERIC} are known",
            any.type_url
        ))),
    }
}

fn from_runc(value: &[u8]) -> Result<Parsed, ShimError> {
    let options = oci::Options::parse_from_bytes(value).map_err(|e| malformed(RUNC, &e))?;
    // containerd before 2.0 had `criu_path` here.
    let criu_path = options.special_fields.unknown_fields().get(8).is_some();
    refuse("BinaryName", !options.binary_name.is_empty())?;
    refuse("CriuPath", criu_path)?;
    refuse("CriuImagePath", !options.criu_image_path.is_empty())?;
    refuse("CriuWorkPath", !options.criu_work_path.is_empty())?;
    // task_api_address and task_api_version are for containerd, which has acted on them by now.
    Ok(Parsed {
        options: Options {
            root: path("Root", &options.root)?,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            systemd_cgroup: options.systemd_cgroup,
            ..Options::default()
        },
        shim_cgroup: (!options.shim_cgroup.is_empty()).then_some(options.shim_cgroup),
    })
}

/// Fields by their tags: number and wire type of runtime/linux/runctypes/runc.proto of containerd
/// 1.x. What is for a restore from a checkpoint is refused, as that is.
fn from_create(value: &[u8]) -> Result<Parsed, ShimError> {
    let mut parsed = Parsed::default();
    let options = &mut parsed.options;
    let mut refused: Option<&str> = None;
    let mut stream = CodedInputStream::from_bytes(value);
    let mut read = || -> containerd_shim_protos::protobuf::Result<()> {
        while let Some(tag) = stream.read_raw_tag_or_eof()? {
            let mut refuse = |name, set: bool| refused = refused.or(set.then_some(name));
            match tag {
                8 => options.no_pivot_root = stream.read_bool()?,
                16 => refuse("OpenTcp", stream.read_bool()?),
                24 => refuse("ExternalUnixSockets", stream.read_bool()?),
                32 => refuse("Terminal", stream.read_bool()?),
                40 => refuse("FileLocks", stream.read_bool()?),
                50 => refuse("EmptyNamespaces", !stream.read_string()?.is_empty()),
                58 => refuse("CgroupsMode", !stream.read_string()?.is_empty()),
                64 => options.no_new_keyring = stream.read_bool()?,
                74 => {
                    parsed.shim_cgroup = Some(stream.read_string()?).filter(|s| !s.is_empty());
                }
                80 => options.io_uid = stream.read_uint32()?,
                88 => options.io_gid = stream.read_uint32()?,
                98 => refuse("CriuWorkPath", !stream.read_string()?.is_empty()),
                106 => refuse("CriuImagePath", !stream.read_string()?.is_empty()),
                _ => {
                    return Err(std::io::Error::other(format!("unknown tag {tag}")).into());
                }
            }
        }
        Ok(())
    };
    read().map_err(|e| malformed(CREATE, &e))?;
    match refused {
        Some(name) => refuse(name, true).map(|()| parsed),
        None => Ok(parsed),
    }
}

/// type_url = 1 (string), config_path = 2 (string), config_body = 3 (bytes).
fn from_generic(value: &[u8]) -> Result<Parsed, ShimError> {
    let (mut config_path, mut body) = (String::new(), Vec::new());
    let mut stream = CodedInputStream::from_bytes(value);
    let mut read = || -> containerd_shim_protos::protobuf::Result<()> {
        while let Some(tag) = stream.read_raw_tag_or_eof()? {
            match tag {
                // Says what the text is about; its keys say so themselves.
                10 => drop(stream.read_string()?),
                18 => config_path = stream.read_string()?,
                26 => body = stream.read_bytes()?,
                _ => {
                    return Err(std::io::Error::other(format!("unknown tag {tag}")).into());
                }
            }
        }
        Ok(())
    };
    read().map_err(|e| malformed(GENERIC, &e))?;
    if !config_path.is_empty() {
        body = read_config(Path::new(&config_path))?;
    }
    let text = std::str::from_utf8(&body).map_err(|e| malformed("the TOML text of options", &e))?;
    from_toml(text)
}

fn read_config(path: &Path) -> Result<Vec<u8>, ShimError> {
    use std::io::Read as _;
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(TOML_BYTES_MAX).read_to_end(&mut text))
        .map_err(|e| invalid(format!("read options from {}: {e}", path.display())))?;
    Ok(text)
}

fn from_toml(text: &str) -> Result<Parsed, ShimError> {
    let table: toml::Table = toml::from_str(text).map_err(|e| malformed("options", &e))?;
    let mut parsed = Parsed::default();
    for (key, value) in table {
        // containerd decodes keys without regard to case; underscores are how Rust and C spell them.
        match key.replace('_', "").to_ascii_lowercase().as_str() {
            // The section of containerd's configuration is passed whole, these two included.
            "typeurl" | "configpath" | "configbody" => {}
            "nopivotroot" => parsed.options.no_pivot_root = truth(&key, &value)?,
            "nonewkeyring" => parsed.options.no_new_keyring = truth(&key, &value)?,
            "shimcgroup" => {
                parsed.shim_cgroup = Some(word(&key, &value)?).filter(|s| !s.is_empty());
            }
            "iouid" => parsed.options.io_uid = number(&key, &value)?,
            "iogid" => parsed.options.io_gid = number(&key, &value)?,
            "root" => parsed.options.root = path(&key, &word(&key, &value)?)?,
            "lxcfsroot" => parsed.options.lxcfs_root = path(&key, &word(&key, &value)?)?,
            "lxcfsoptional" => parsed.options.lxcfs_optional = truth(&key, &value)?,
            "componentsroot" => {
                parsed.options.components_root = path(&key, &word(&key, &value)?)?;
            }
            "components" => parsed.options.components = names(&key, &word(&key, &value)?)?,
            "hooksroot" => parsed.options.hooks_root = path(&key, &word(&key, &value)?)?,
            "hardeningoptional" => parsed.options.hardening_optional = truth(&key, &value)?,
            "systemdcgroup" => parsed.options.systemd_cgroup = truth(&key, &value)?,
            "binaryname" | "criupath" | "criuimagepath" | "criuworkpath" => {
                refuse(&key, !word(&key, &value)?.is_empty())?;
            }
            _ => return Err(unknown_key(&key)),
        }
    }
    Ok(parsed)
}

const KNOWN_KEYS: [&str; 13] = [
    "NoPivotRoot",
    "NoNewKeyring",
    "ShimCgroup",
    "IoUid",
    "IoGid",
    "Root",
    "LxcfsRoot",
    "LxcfsOptional",
    "ComponentsRoot",
    "Components",
    "HooksRoot",
    "HardeningOptional",
    "SystemdCgroup",
];

fn unknown_key(key: &str) -> ShimError {
    invalid(format!(
        "unknown runtime option {key}; known are {}",
        KNOWN_KEYS.join(", ")
    ))
}

/// Of components, with commas; none: an empty text.
fn names(key: &str, text: &str) -> Result<Vec<String>, ShimError> {
    let names: Vec<_> = text.split(',').filter(|_| !text.is_empty()).collect();
    match names
        .iter()
        .find(|name| !bundle::rich::components::is_name(name))
    {
        Some(name) => Err(invalid(format!(
            "runtime option {key}: {name:?} is no name of a component"
        ))),
        None => Ok(names.into_iter().map(str::to_owned).collect()),
    }
}

fn truth(key: &str, value: &toml::Value) -> Result<bool, ShimError> {
    value
        .as_bool()
        .ok_or_else(|| wrong_type(key, "true or false", value))
}

fn number(key: &str, value: &toml::Value) -> Result<u32, ShimError> {
    value
        .as_integer()
        .and_then(|n| u32::try_from(n).ok())
        .ok_or_else(|| wrong_type(key, "a number of 32 bits", value))
}

fn word(key: &str, value: &toml::Value) -> Result<String, ShimError> {
    value
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| wrong_type(key, "a string", value))
}

fn path(key: &str, text: &str) -> Result<Option<PathBuf>, ShimError> {
    match text {
        "" => Ok(None),
        _ if text.starts_with('/') => Ok(Some(text.into())),
        _ => Err(invalid(format!(
            "runtime option {key}: {text:?} is no absolute path"
        ))),
    }
}

fn refuse(key: &str, set: bool) -> Result<(), ShimError> {
    if set {
        return Err(invalid(format!(
            "runtime option {key} is not supported by this runtime"
        )));
    }
    Ok(())
}

fn wrong_type(key: &str, wanted: &str, value: &toml::Value) -> ShimError {
    invalid(format!(
        "runtime option {key} wants {wanted}, not a {}",
        value.type_str()
    ))
}

fn malformed(what: &str, error: &dyn std::fmt::Display) -> ShimError {
    invalid(format!("{what}: {error}"))
}

fn invalid(message: String) -> ShimError {
    ShimError::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::convert::encode;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: type_url.to_owned(),
            value,
            ..Default::default()
        }
    }

    fn runc(options: &oci::Options) -> Result<Parsed, String> {
        parse(Some(&any(RUNC, encode(options)))).map_err(|e| e.message)
    }

    /// A `runtimeoptions.v1.Options` by hand: strings are tag, length, bytes.
    fn generic(fields: &[(u8, &str)]) -> Result<Parsed, String> {
        let mut value = Vec::new();
        for (tag, text) in fields {
            value.push(*tag);
            let length = u16::try_from(text.len()).unwrap();
            let [low, high] = [length & 0x7f, length >> 7].map(|n| u8::try_from(n).unwrap());
            value.extend([low | 0x80, high]);
            value.extend(text.as_bytes());
        }
        parse(Some(&any(GENERIC, value))).map_err(|e| e.message)
    }

    #[test]
    fn no_options_are_default_options() {
        assert_eq!(parse(None).unwrap(), Parsed::default());
        assert_eq!(parse(Some(&Any::new())).unwrap(), Parsed::default());
    }

    #[test]
    fn options_that_make_sense_are_kept() {
        let parsed = runc(&oci::Options {
            no_pivot_root: true,
            no_new_keyring: true,
            shim_cgroup: "/shim".to_owned(),
            io_uid: 5,
            io_gid: 6,
            root: "/run/other".to_owned(),
            systemd_cgroup: true,
            ..Default::default()
        });
        let body = "NoPivotRoot = true\nno_new_keyring = true\nShimCgroup = \"/shim\"\nIoUid = 5\n\
                    IoGid = 6\nRoot = \"/run/other\"\nTypeUrl = \"x\"\nSystemdCgroup = true\n\
                    BinaryName = \"\"";
        assert_eq!(parsed, generic(&[(26, body)]));
        let expected = Parsed {
            options: Options {
                root: Some("/run/other".into()),
                io_uid: 5,
                io_gid: 6,
                no_pivot_root: true,
                no_new_keyring: true,
                systemd_cgroup: true,
                ..Options::default()
            },
            shim_cgroup: Some("/shim".to_owned()),
        };
        assert_eq!(parsed, Ok(expected));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_options_or_refused(value: Vec<u8>) {
            for type_url in [RUNC, GENERIC, CREATE] {
                let _parsed = parse(Some(&any(type_url, value.clone())));
            }
        }
    }

    #[test]
    fn options_of_old_clients_are_kept_or_refused_by_name() {
        let create = |value: &[u8]| {
            let any = any("containerd.linux.runc.CreateOptions", value.to_vec());
            parse(Some(&any)).map_err(|e| e.message)
        };
        assert_eq!(create(&[]), Ok(Parsed::default()));
        // `ctr run --no-pivot --uidmap 0:100000:65536 --gidmap 0:100001:65536`, and what is left.
        let all = create(&[
            0x08, 1, 0x40, 1, 0x4a, 2, b'/', b's', 0x50, 0xa0, 0x8d, 0x06, 0x58, 0xa1, 0x8d, 0x06,
        ]);
        let expected = Parsed {
            options: Options {
                root: None,
                io_uid: 100_000,
                io_gid: 100_001,
                no_pivot_root: true,
                no_new_keyring: true,
                ..Options::default()
            },
            shim_cgroup: Some("/s".to_owned()),
        };
        assert_eq!(all, Ok(expected));
        // Set to nothing is not set.
        assert_eq!(create(&[0x10, 0, 0x3a, 0]), Ok(Parsed::default()));
        let check = |value: &[u8], name: &str| {
            let refusal = format!("runtime option {name} is not supported by this runtime");
            assert_eq!(create(value), Err(refusal));
        };
        check(&[0x10, 1], "OpenTcp");
        check(&[0x18, 1], "ExternalUnixSockets");
        check(&[0x20, 1], "Terminal");
        check(&[0x28, 1, 0x40, 0], "FileLocks");
        check(&[0x32, 1, b'x'], "EmptyNamespaces");
        check(&[0x3a, 1, b'x'], "CgroupsMode");
        check(&[0x62, 1, b'x'], "CriuWorkPath");
        check(&[0x6a, 1, b'x'], "CriuImagePath");
        let unknown = create(&[0x70, 1]).unwrap_err();
        assert!(unknown.contains("unknown tag 112"), "{unknown}");
    }

    #[test]
    fn where_lxcfs_is_and_whether_it_must_be_there_is_the_operators_to_say() {
        let parsed = generic(&[(
            26,
            "LxcfsRoot = \"/srv/lxcfs\"\nlxcfs_optional = true\nHardeningOptional = true",
        )]);
        let options = parsed.unwrap().options;
        assert_eq!(options.lxcfs_root, Some("/srv/lxcfs".into()));
        assert!(options.lxcfs_optional && options.hardening_optional);
        let refused = generic(&[(26, "LxcfsRoot = \"lxcfs\"")]).unwrap_err();
        assert_eq!(
            refused,
            "runtime option LxcfsRoot: \"lxcfs\" is no absolute path"
        );
    }

    #[test]
    fn components_are_the_operators_to_name() {
        let text = "ComponentsRoot = \"/srv/ops\"\nComponents = \"monitor,logs\"\n\
                    HooksRoot = \"/srv/hooks\"";
        let options = generic(&[(26, text)]).unwrap().options;
        assert_eq!(options.components_root, Some("/srv/ops".into()));
        assert_eq!(options.components, ["monitor", "logs"]);
        assert_eq!(options.hooks_root, Some("/srv/hooks".into()));
        let none = generic(&[(26, "Components = \"\"")]).unwrap().options;
        assert!(none.components.is_empty());
        let refused = generic(&[(26, "Components = \"a,../b\"")]).unwrap_err();
        assert_eq!(
            refused,
            "runtime option Components: \"../b\" is no name of a component"
        );
    }

    #[test]
    fn a_path_is_read_when_there_is_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "IoUid = 7").unwrap();
        let parsed = generic(&[(10, "x"), (18, file.path().to_str().unwrap())]).unwrap();
        assert_eq!(parsed.options.io_uid, 7);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let not_supported = |name: &str| {
            Err(format!(
                "runtime option {name} is not supported by this runtime"
            ))
        };
        let text = || "x".to_owned();
        let check = |options: oci::Options, name: &str| {
            assert_eq!(runc(&options), not_supported(name));
        };
        check(
            oci::Options {
                binary_name: text(),
                ..Default::default()
            },
            "BinaryName",
        );
        check(
            oci::Options {
                criu_image_path: text(),
                ..Default::default()
            },
            "CriuImagePath",
        );
        check(
            oci::Options {
                criu_work_path: text(),
                ..Default::default()
            },
            "CriuWorkPath",
        );
        let criu_path = parse(Some(&any(RUNC, vec![0x42, 1, b'x']))).map_err(|e| e.message);
        assert_eq!(criu_path, not_supported("CriuPath"));
        assert_eq!(
            generic(&[(26, "CriuPath = \"/x\"")]),
            not_supported("CriuPath")
        );
    }

    #[test]
    fn mistakes_are_told_with_what_would_be_right() {
        let check = |actual: Result<Parsed, String>, expected: &str| {
            assert_eq!(actual.unwrap_err(), expected);
        };
        check(
            generic(&[(26, "IoUiid = 1")]),
            "unknown runtime option IoUiid; known are NoPivotRoot, NoNewKeyring, ShimCgroup, \
             IoUid, IoGid, Root, LxcfsRoot, LxcfsOptional, ComponentsRoot, Components, \
             HooksRoot, HardeningOptional, SystemdCgroup",
        );
        check(
            generic(&[(26, "IoUid = \"a\"")]),
            "runtime option IoUid wants a number of 32 bits, not a string",
        );
        check(
            generic(&[(26, "Root = \"a\"")]),
            "runtime option Root: \"a\" is no absolute path",
        );
        check(
            parse(Some(&any("x.y/z.Options", vec![]))).map_err(|e| e.message),
            "runtime options of type \"x.y/z.Options\" are unknown; containerd.runc.v1.Options \
             and runtimeoptions.v1.Options are known",
        );
    }
}
