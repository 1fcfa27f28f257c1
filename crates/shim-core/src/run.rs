//! The `main` of a shim: which verb, where its answer goes, and how it fails.

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use crate::convert::info;
use crate::flags::{Flags, USAGE, Verb};
use crate::handover::Strand;
use crate::runtime::Runtime;
use crate::start::Surroundings;
use crate::{Code, ShimError, delete, logging, serve, socket, start};

/// No options message is longer.
const STDIN_BYTES_MAX: u64 = 10 << 20;

/// Everything a shim's `main` does. `arguments` begin with the program's name, as
/// `std::env::args_os` gives them.
///
/// On failure the reason is on standard error, for containerd to show, and the code is 1.
pub fn run<R: Runtime>(runtime: R, arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut arguments = arguments.into_iter();
    let name = arguments.next().unwrap_or_default();
    let identity = runtime.identity();
    match Flags::parse(arguments).and_then(|flags| act(runtime, &flags, name)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&format!("{}: {error}", identity.name));
            ExitCode::FAILURE
        }
    }
}

fn act<R: Runtime>(runtime: R, flags: &Flags, name: OsString) -> Result<(), ShimError> {
    match flags.verb {
        Verb::Version => {
            let identity = runtime.identity();
            let (version, revision) = (identity.version, identity.revision);
            let name = file_name(&name);
            answer(format!("{name}:\n  Version:  {version}\n  Revision: {revision}\n").as_bytes())
        }
        Verb::Help => answer(format!("usage: {} {USAGE}", file_name(&name)).as_bytes()),
        Verb::Info => {
            let mut stdin = Vec::new();
            io::stdin()
                .take(STDIN_BYTES_MAX)
                .read_to_end(&mut stdin)
                .map_err(|e| ShimError::failed("read stdin", &e))?;
            let (options, any) = info::parse_options(&stdin)?;
            let features = runtime.features(&options)?;
            answer(&info::runtime_info(runtime.identity(), features, any))
        }
        Verb::Start => {
            required(flags)?;
            let surroundings = Surroundings {
                name,
                directory: directory()?,
                max_shim_version: std::env::var("MAX_SHIM_VERSION").ok(),
            };
            let started = start::start(flags, &mut io::stdin(), &surroundings)?;
            answer(&started.answer)?;
            let Some(Err(error)) = started.strand.map(Strand::done) else {
                return Ok(());
            };
            // Nobody but us knows of it, and the first error is the one to tell.
            let _left = socket::remove_if_dead(&started.socket);
            Err(ShimError::failed("hand over to the new shim", &error))
        }
        Verb::Delete => {
            required(flags)?;
            let bundle = match flags.bundle.as_str() {
                "" => directory()?,
                bundle => bundle.into(),
            };
            // containerd logs what is there.
            logging::to_stderr(logging::level_of(flags.debug));
            let deletion = delete::delete(&runtime, flags, &bundle);
            for warning in deletion.warnings {
                complain(&format!("{}: {warning}", runtime.identity().name));
            }
            answer(&deletion.response)
        }
        Verb::Serve => {
            required(flags)?;
            let address = match flags.ttrpc_address.as_str() {
                "" => std::env::var("TTRPC_ADDRESS").unwrap_or_default(),
                address => address.to_owned(),
            };
            serve::serve(runtime, flags, &address)
        }
    }
}

/// The program's name without its place.
fn file_name(name: &OsStr) -> Cow<'_, str> {
    let name = Path::new(name).file_name().unwrap_or_default();
    name.to_string_lossy()
}

fn required(flags: &Flags) -> Result<(), ShimError> {
    let missing = |what| ShimError::new(Code::InvalidArgument, format!("shim {what} is empty"));
    match (flags.namespace.as_str(), flags.id.as_str()) {
        ("", _) => Err(missing("namespace")),
        (_, "") => Err(missing("id")),
        _ => Ok(()),
    }
}

/// The bundle: containerd runs every verb there.
fn directory() -> Result<std::path::PathBuf, ShimError> {
    std::env::current_dir().map_err(|e| ShimError::failed("find the working directory", &e))
}

fn answer(bytes: &[u8]) -> Result<(), ShimError> {
    let mut stdout = io::stdout();
    stdout
        .write_all(bytes)
        .and_then(|()| stdout.flush())
        .map_err(|e| ShimError::failed("answer", &e))
}

/// When nobody reads standard error, there is nobody to tell.
fn complain(text: &str) {
    let _unread = writeln!(io::stderr(), "{text}");
}
