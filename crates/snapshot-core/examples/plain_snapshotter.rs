//! The smallest snapshotter: plain overlays by a daemon of this crate. `plain_snapshotter ROOT
//! SOCKET`; containerd is told of it as of any proxy snapshotter.

use std::{env, path::PathBuf, process::ExitCode, sync::Arc};

use prometheus_client::registry::Registry;
use snapshot_core::{
    Error, PlainDriver, Service, Snapshots,
    daemon::{Daemon, LogConfig, Logging, Served, ServerConfig, Services, Settings},
    metrics, probe_overlay,
};

fn main() -> ExitCode {
    let arguments: Vec<PathBuf> = env::args_os().skip(1).map(PathBuf::from).collect();
    let [root, address] = &arguments[..] else {
        return ExitCode::from(2);
    };
    let settings = Settings {
        address: address.clone(),
        metrics: None,
        server: ServerConfig::default(),
    };
    let ended = Logging::start(LogConfig::default(), "plain-snapshotter")
        .and_then(|_logging| Daemon::claim(&settings))
        .and_then(|daemon| daemon.run(|_shutdown| serve(root, settings.server)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = error.in_one_line(), "ended");
            ExitCode::FAILURE
        }
    }
}

fn serve(root: &PathBuf, server: ServerConfig) -> Result<Served, Error> {
    std::fs::create_dir_all(root).map_err(Error::io("make", root))?;
    let driver = PlainDriver::new(probe_overlay(root)?.options());
    let snapshots = Arc::new(Snapshots::open(root, Arc::new(driver))?);
    let mut registry = Registry::with_prefix("plain_snapshotter");
    metrics::register(&mut registry, &snapshots);
    let service = Service::new(snapshots, server.threads()).into_server();
    Ok(Served {
        services: Services::new().with(service, server.requests_max),
        registry,
        reload: Box::new(|| Ok(())),
        finish: Box::new(|| {}),
    })
}
