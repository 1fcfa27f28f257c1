//! The command line containerd calls a shim with, parsed as Go's `flag` package does. Nothing is
//! done here.

use std::ffi::OsString;

use crate::{Code, ShimError};

/// What the shim is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    /// Be the shim: the process `start` leaves behind.
    Serve,
    /// Make sure a shim serves this container and print its address.
    Start,
    /// Clean up after a shim that died.
    Delete,
    /// Print the version.
    Version,
    /// Print what the runtime can do.
    Info,
    /// Print how the shim is called.
    Help,
}

/// What `-help` prints after the shim's name.
pub(crate) const USAGE: &str = "\
[FLAG...] [start|delete]

containerd starts this program; it is found on containerd's PATH by its name.
Without a command it serves the container -id.

  start                   make sure that a shim serves the container, print its address
  delete                  clean up after a shim that died

  -namespace NAME         containerd's namespace of the container
  -id ID                  the container
  -bundle DIR             its bundle, where that is not the working directory
  -address SOCKET         containerd's gRPC socket
  -ttrpc-address SOCKET   containerd's ttrpc socket, where TTRPC_ADDRESS does not name it
  -socket PATH            the socket to serve
  -publish-binary PATH    taken and not used
  -debug-socket PATH      taken and not used
  -debug                  log more
  -info                   print what the runtime can do, as containerd's RuntimeInfo
  -v, -version            print the version
  -h, -help               print this
";

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flags {
    pub(crate) verb: Verb,
    pub(crate) namespace: String,
    pub(crate) id: String,
    /// containerd's gRPC address; part of the socket's name.
    pub(crate) address: String,
    /// containerd's ttrpc address. Ours: containerd itself passes it by environment or on stdin.
    pub(crate) ttrpc_address: String,
    /// The bundle, when it is not the working directory (`delete`).
    pub(crate) bundle: String,
    /// The path of the socket to serve.
    pub(crate) socket: String,
    pub(crate) debug: bool,
}

impl Flags {
    /// Parses what follows the program's name.
    pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Self, ShimError> {
        let mut flags = Self {
            verb: Verb::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            ttrpc_address: String::new(),
            bundle: String::new(),
            socket: String::new(),
            debug: false,
        };
        let (mut version, mut info, mut help) = (false, false, false);
        let mut arguments = arguments.into_iter();
        let mut verb = None;
        while let Some(argument) = arguments.next() {
            let argument = text(argument)?;
            let Some((name, value)) = split(&argument) else {
                // Go stops at the first word that is no flag, and skips a lone `--`.
                verb = match argument.as_str() {
                    "--" => arguments.next().map(text).transpose()?,
                    _ => Some(argument),
                };
                break;
            };
            match name {
                "debug" => flags.debug = truth(name, value)?,
                "v" | "version" => version = truth(name, value)?,
                "info" => info = truth(name, value)?,
                "h" | "help" => help = truth(name, value)?,
                _ => {
                    let place = flags.place(name)?;
                    let value = match value {
                        Some(value) => value.to_owned(),
                        None => text(arguments.next().ok_or_else(|| missing(name))?)?,
                    };
                    if let Some(place) = place {
                        *place = value;
                    }
                }
            }
        }
        flags.verb = match verb.as_deref() {
            _ if help => Verb::Help,
            _ if version => Verb::Version,
            _ if info => Verb::Info,
            None | Some("") => Verb::Serve,
            Some("start") => Verb::Start,
            Some("delete") => Verb::Delete,
            Some(other) => return Err(invalid(format!("unknown command {other}"))),
        };
        Ok(flags)
    }

    /// Where the value of a text flag goes; none for those that are accepted and not used.
    fn place(&mut self, name: &str) -> Result<Option<&mut String>, ShimError> {
        Ok(Some(match name {
            "namespace" => &mut self.namespace,
            "id" => &mut self.id,
            "address" => &mut self.address,
            "ttrpc-address" => &mut self.ttrpc_address,
            "bundle" => &mut self.bundle,
            "socket" => &mut self.socket,
            // Events go over ttrpc, and there is no profiler.
            "publish-binary" | "debug-socket" => return Ok(None),
            _ => return Err(invalid(format!("flag provided but not defined: -{name}"))),
        }))
    }
}

/// `-name`, `--name`, `-name=value`; none for what is no flag.
fn split(argument: &str) -> Option<(&str, Option<&str>)> {
    let name = argument.strip_prefix('-')?;
    let name = name.strip_prefix('-').unwrap_or(name);
    if name.is_empty() {
        return None;
    }
    Some(match name.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (name, None),
    })
}

/// strconv.ParseBool, and true when there is no value.
fn truth(name: &str, value: Option<&str>) -> Result<bool, ShimError> {
    match value {
        None | Some("1" | "t" | "T" | "true" | "TRUE" | "True") => Ok(true),
        Some("0" | "f" | "F" | "false" | "FALSE" | "False") => Ok(false),
        Some(value) => Err(invalid(format!(
            "invalid boolean value \"{value}\" for -{name}"
        ))),
    }
}

fn text(argument: OsString) -> Result<String, ShimError> {
    argument
        .into_string()
        .map_err(|bytes| invalid(format!("argument {bytes:?} is not UTF-8")))
}

fn missing(name: &str) -> ShimError {
    invalid(format!("flag needs an argument: -{name}"))
}

fn invalid(message: String) -> ShimError {
    ShimError::new(Code::InvalidArgument, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, String> {
        Flags::parse(line.split_whitespace().map(OsString::from)).map_err(|e| e.message)
    }

    #[test]
    fn the_command_lines_of_three_containerds_are_understood() {
        let lines = [
            // 1.6.20 and 1.7.35
            "-namespace ns -address /run/c.sock -publish-binary /usr/bin/containerd -id x -debug start",
            // 2.4.2
            "-namespace ns -address /run/c.sock -publish-binary /bin/c -id x -debug start",
            "--namespace=ns --address=/run/c.sock -id=x --debug=true -- start",
        ];
        for line in lines {
            let flags = parse(line).unwrap();
            assert_eq!(
                (
                    flags.verb,
                    &*flags.namespace,
                    &*flags.id,
                    &*flags.address,
                    flags.debug
                ),
                (Verb::Start, "ns", "x", "/run/c.sock", true),
                "{line}"
            );
        }
        let delete =
            parse("-namespace ns -address a -publish-binary p -id x -bundle /b delete").unwrap();
        assert_eq!((delete.verb, &*delete.bundle), (Verb::Delete, "/b"));
        assert_eq!(parse("-info").unwrap().verb, Verb::Info);
        assert_eq!(parse("-v").unwrap().verb, Verb::Version);
        for line in ["-h", "-help", "--help", "-id x --help start"] {
            assert_eq!(parse(line).unwrap().verb, Verb::Help, "{line}");
        }
        assert_eq!(parse("-namespace ns -id x").unwrap().verb, Verb::Serve);
    }

    proptest::proptest! {
        #[test]
        fn values_pass_unchanged_whatever_they_are(namespace in ".*", id in "[^-].*") {
            let words = ["-namespace", &namespace, "--id", &id, "start"];
            let flags = Flags::parse(words.map(OsString::from)).unwrap();
            let values = (flags.verb, flags.namespace, flags.id);
            proptest::prop_assert_eq!(values, (Verb::Start, namespace, id));
        }

        #[test]
        fn any_words_are_parsed_or_refused(words in proptest::collection::vec(".*", 0..6)) {
            let _flags = Flags::parse(words.into_iter().map(OsString::from));
        }
    }

    #[test]
    fn usage_names_flags_that_are_known() {
        let lines = USAGE.lines().filter_map(|line| line.strip_prefix("  -"));
        let names = lines.flat_map(|line| line.split("  ").next().unwrap().split(", -"));
        let mut count = 0;
        for name in names {
            let line = format!("-{} value", name.split(' ').next().unwrap());
            // Those without a value take the word for a command.
            let known = parse(&line).map_or_else(|error| error, |_| String::new());
            assert!(!known.contains("not defined"), "{line}: {known}");
            count += 1;
        }
        assert_eq!(count, 14);
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let check = |line: &str, expected: &str| assert_eq!(parse(line).unwrap_err(), expected);
        check("-nope x start", "flag provided but not defined: -nope");
        check("-id", "flag needs an argument: -id");
        check("-debug=maybe", "invalid boolean value \"maybe\" for -debug");
        check("-id x restart", "unknown command restart");
    }
}
