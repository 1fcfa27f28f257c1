//! `checkpoint` and `restore`: runc's options as words to CRIU.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bundle::Bundle;
use launch::plan::Toggle;

use super::arguments::{Checkpoint, Criu, Restore};
use super::foreground;
use super::lifecycle::{Listeners, OwnStreams, Stay, check_terminal, open, tell};
use crate::checkpoint::{self, Afterwards, Part};
use crate::create::{Parent, Stdio};
use crate::criu::wire::{Options, PageServer};
use crate::host::Host;
use crate::id::ContainerId;
use crate::scope::CgroupManager;
use crate::{Error, Result, restore as library};

/// `runlxc checkpoint ID`
pub(crate) fn checkpoint(root: &Path, arguments: &Checkpoint) -> Result<ExitCode> {
    let container = open(root, &arguments.container_id)?;
    let criu = &arguments.criu;
    let (part, afterwards) = match (arguments.pre_dump, arguments.leave_running) {
        (true, _) => (Part::Memory, Afterwards::Run),
        (false, true) => (Part::Whole, Afterwards::Run),
        (false, false) => (Part::Whole, Afterwards::End),
    };
    let images = absolute(&criu.image_path)?;
    let status = arguments
        .status_fd
        .map(|fd| sys::take_inherited_fd(fd).map_err(Error::io(format!("--status-fd {fd}"))))
        .transpose()?;
    container.checkpoint(checkpoint::Request {
        parent: parent(&images, arguments.parent_path.as_deref())?,
        images: &images,
        work: criu.work_path.as_deref(),
        part,
        afterwards,
        options: Options {
            tcp_skip_in_flight: Some(arguments.tcp_skip_in_flight),
            link_remap: Some(arguments.link_remap),
            page_server: arguments
                .page_server
                .as_deref()
                .map(page_server)
                .transpose()?,
            ..options(criu)
        },
        status,
        limit: checkpoint::LIMIT,
    })?;
    if afterwards == Afterwards::End {
        container.delete()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `runlxc restore ID`
pub(crate) fn restore(
    root: &Path,
    arguments: &Restore,
    cgroup_manager: CgroupManager,
) -> Result<ExitCode> {
    let id = ContainerId::parse(&arguments.container_id)?;
    let bundle = Bundle::load(&arguments.bundle)?;
    let process = bundle.spec().process().as_ref();
    let terminal = process.and_then(|process| process.terminal());
    let terminal = match terminal {
        Some(true) => Toggle::On,
        _ => Toggle::Off,
    };
    let (stay, parent) = if arguments.detach {
        (Stay::Detach, Parent::Above)
    } else {
        (Stay::Foreground, Parent::Us)
    };
    check_terminal(terminal, stay, arguments.console_socket.as_deref())?;
    if stay == Stay::Foreground {
        sys::set_subreaper().map_err(Error::io("become a subreaper"))?;
    }
    let streams = OwnStreams::get();
    let mut made = library::restore(
        &Host::detect()?,
        &library::Request {
            root,
            id: &id,
            bundle: &bundle,
            images: &absolute(&arguments.criu.image_path)?,
            work: arguments.criu.work_path.as_deref(),
            options: Options {
                lsm_profile: arguments.lsm_profile.clone(),
                lsm_mount_context: arguments.lsm_mount_context.clone(),
                ..options(&arguments.criu)
            },
            stdio: match terminal {
                Toggle::On => Stdio::Terminal,
                Toggle::Off => streams.lend(),
            },
            parent,
            cgroup_manager,
        },
    )?;
    let listeners = Listeners {
        console_socket: arguments.console_socket.as_deref(),
        pidfd_socket: None,
        pid_file: arguments.pid_file.as_deref(),
    };
    let Some(init) = made.init.take() else {
        tell(listeners, made)?;
        return Ok(ExitCode::SUCCESS);
    };
    let terminal = made.terminal.take();
    let container = tell(listeners, made)?;
    let ended = foreground::attach(terminal).and_then(|foreground| foreground.wait(init));
    container.delete()?;
    ended
}

fn options(criu: &Criu) -> Options {
    Options {
        tcp_established: Some(criu.tcp_established),
        ext_unix_sk: Some(criu.ext_unix_sk),
        shell_job: Some(criu.shell_job),
        file_locks: Some(criu.file_locks),
        lazy_pages: Some(criu.lazy_pages),
        auto_dedup: Some(criu.auto_dedup),
        manage_cgroups_mode: criu.manage_cgroups_mode.map(|mode| mode as i32),
        ..Options::default()
    }
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::on("resolve", path))
}

/// CRIU makes a link to it in the folder of images.
fn parent<'a>(images: &Path, parent: Option<&'a Path>) -> Result<Option<&'a str>> {
    let Some(parent) = parent else {
        return Ok(None);
    };
    let wrong = |why: String| Error::Usage(format!("invalid --parent-path: {why}"));
    if parent.is_absolute() {
        return Err(Error::Usage("--parent-path must be relative".into()));
    }
    // A path by way of a folder that is not there leads nowhere.
    std::fs::create_dir_all(images).map_err(Error::on("make directory", images))?;
    let place = images.join(parent);
    if !place.is_dir() {
        return Err(wrong(format!("{} is no directory", place.display())));
    }
    let text = parent.to_str();
    text.map(Some).ok_or_else(|| wrong("not UTF-8".to_owned()))
}

fn page_server(text: &str) -> Result<PageServer> {
    let wrong = || Error::Usage("Use --page-server ADDRESS:PORT to specify page server".into());
    let (address, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let address = address.trim_matches(['[', ']']);
    let port = port.parse::<u16>().map_err(|_number| wrong())?;
    if address.is_empty() {
        return Err(wrong());
    }
    Ok(PageServer {
        address: Some(address.to_owned()),
        port: Some(i32::from(port)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_is_an_address_and_a_port() {
        let server = page_server("[::1]:27").unwrap();
        assert_eq!(
            (server.address.as_deref(), server.port),
            (Some("::1"), Some(27))
        );
        for text in ["", "a", ":1", "a:", "a:x", "a:65536"] {
            assert!(page_server(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_parent_is_a_folder_beside() {
        let temp = tempfile::tempdir().unwrap();
        let images = temp.path().join("images");
        std::fs::create_dir_all(temp.path().join("before")).unwrap();
        std::fs::create_dir_all(&images).unwrap();
        let of = |text: &'static str| parent(&images, Some(Path::new(text)));
        assert_eq!(of("../before").unwrap(), Some("../before"));
        assert!(of("/before").is_err() && of("../nowhere").is_err());
    }
}
