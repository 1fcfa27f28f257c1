//! The verb `delete`: containerd calls it in the bundle when a shim is gone, or was never reached.
//! Works from disk, and with nothing there.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bundle::{ExitRecord, names};
use containerd_shim_protos::api;
use containerd_shim_protos::shim_async::TaskClient;
use task::Exit;
use ttrpc::asynchronous::transport::Socket;

use crate::convert::info;
use crate::flags::Flags;
use crate::runtime::{DeleteRequest, Runtime};
use crate::{Code, Options, ShimError, rootfs, socket, start};

/// containerd gives the whole verb 5 s.
const SHIM_ANSWER_MAX: Duration = Duration::from_secs(2);

/// What SIGKILL leaves: the answer when nobody knows better.
const KILLED: u32 = 128 + 9;

/// What was done, and what could not be.
#[derive(Debug)]
pub(crate) struct Deletion {
    /// `DeleteResponse` for stdout.
    pub(crate) response: Vec<u8>,
    /// For stderr: containerd logs it and goes on, as with Go's shim.
    pub(crate) warnings: Vec<ShimError>,
}

/// Removes what is left of a container.
pub(crate) fn delete<R: Runtime>(runtime: &R, flags: &Flags, bundle: &Path) -> Deletion {
    let mut warnings = Vec::new();
    let mut note = |error: Option<ShimError>| warnings.extend(error);

    // Read first: what follows may remove it.
    let recorded = ExitRecord::read(bundle);
    let init = pid(bundle);
    let sockets = sockets(flags, bundle);
    for path in &sockets {
        note(ask_shim(path, &flags.id).err());
    }
    let options = read_options(bundle);
    let request = DeleteRequest {
        namespace: &flags.namespace,
        id: &flags.id,
        bundle,
        options: &options,
    };
    note(runtime.delete_from_disk(request).err());
    note(rootfs::unmount(bundle).err());
    for path in &sockets {
        let removed = socket::remove_if_dead(path);
        note(
            removed
                .err()
                .map(|e| ShimError::failed(&format!("remove socket {}", path.display()), &e)),
        );
    }
    // A shim that was reached has written the record by now.
    let recorded = match recorded {
        Ok(Some(record)) => Some(record),
        Ok(None) => ExitRecord::read(bundle).ok().flatten(),
        Err(e) => {
            note(Some(ShimError::caused(Code::Internal, &e)));
            None
        }
    };
    let response = match recorded {
        Some(record) => {
            let at = crate::time::from_nanoseconds(record.exited_at_ns);
            info::delete_response(
                record.pid,
                Exit {
                    code: record.code,
                    at,
                },
            )
        }
        None => info::delete_response(
            init,
            Exit {
                code: KILLED,
                at: SystemTime::now(),
            },
        ),
    };
    Deletion { response, warnings }
}

/// Init's pid as create wrote it; 0 when there was none.
fn pid(bundle: &Path) -> i32 {
    let text = std::fs::read_to_string(bundle.join(names::INIT_PID)).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}

/// What create wrote; default options when it came to nothing.
fn read_options(bundle: &Path) -> Options {
    let text = std::fs::read(bundle.join(names::OPTIONS)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// The sockets this container's shim may have: the recorded one, and the one it should have.
fn sockets(flags: &Flags, bundle: &Path) -> Vec<PathBuf> {
    let recorded = std::fs::read_to_string(bundle.join(names::ADDRESS)).unwrap_or_default();
    let mut paths: Vec<PathBuf> = socket::path_of(recorded.trim())
        .map(Path::to_owned)
        .into_iter()
        .collect();
    // A config.json that cannot be read has told no group to `start` either.
    if let Ok(path) = start::expected_socket(flags, bundle)
        && !paths.contains(&path)
    {
        paths.push(path);
    }
    paths
}

/// Asks a shim that still lives to give the container up: it serves others, or containerd was
/// killed before it knew the address. Nobody there, or not its container, is success.
fn ask_shim(path: &Path, id: &str) -> Result<(), ShimError> {
    if !socket::is_alive(path).unwrap_or(false) {
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| ShimError::failed("start a runtime", &e))?;
    let asked =
        runtime.block_on(async { tokio::time::timeout(SHIM_ANSWER_MAX, give_up(path, id)).await });
    match asked {
        // Not its container, or it ends right now.
        Ok(Err(e)) if !matches!(e.kind, Code::NotFound | Code::Unavailable) => Err(e),
        Ok(_) => Ok(()),
        Err(_elapsed) => Err(ShimError::failed("ask the shim", &"it does not answer")),
    }
}

async fn give_up(path: &Path, id: &str) -> Result<(), ShimError> {
    let stream = tokio::net::UnixStream::connect(path)
        .await
        .map_err(|e| ShimError::failed("connect to the shim", &e))?;
    let shim = TaskClient::new(ttrpc::asynchronous::Client::new(Socket::new(stream)));
    let context = ttrpc::context::with_duration(SHIM_ANSWER_MAX);
    let id = || id.to_owned();
    let kill = api::KillRequest {
        id: id(),
        signal: 9,
        all: true,
        ..Default::default()
    };
    let wait = api::WaitRequest {
        id: id(),
        ..Default::default()
    };
    let delete = api::DeleteRequest {
        id: id(),
        ..Default::default()
    };
    let shutdown = api::ShutdownRequest {
        id: id(),
        ..Default::default()
    };
    // Each may find it done already.
    let _killed = shim.kill(context.clone(), &kill).await;
    let _ended = shim.wait(context.clone(), &wait).await;
    let deleted = shim.delete(context.clone(), &delete).await;
    // Ends it when this was its last container; else it answers and stays.
    let _shut = shim.shutdown(context, &shutdown).await;
    deleted.map(drop).map_err(|e| crate::status::from_wire(&e))
}
