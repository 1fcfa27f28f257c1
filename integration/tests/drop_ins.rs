//! The packaged configuration for containerd, imported and pasted as the documentation says, into every stock containerd.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{
    config::{Config, Cri as CriConfig},
    containerd::Containerd,
    cri::Cri,
    ctr::Ctr,
    process::{command, output_of},
    runtime::built,
    snapshotter::{Setup, Snapshotter},
    versions::{Installed, Version},
    wait::SOON,
};
use serde_json::Value;

/// What `snapshotter-quota config containerd` prints; the packaged files are the same with usual paths.
fn quota(version: Version, snapshotter: &Snapshotter) -> Result<String> {
    let mut ours = command(built("snapshotter-quota")?);
    ours.args(["config", "containerd", "--version"])
        .arg(version.config_version().to_string())
        .arg("--address")
        .arg(snapshotter.address())
        .arg("--root")
        .arg(snapshotter.root());
    output_of(&mut ours, SOON)
}

fn runlxc(version: Version) -> Result<String> {
    let file = format!("runlxc-v{}.toml", version.config_version());
    let packaged = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/containerd");
    fs::read_to_string(packaged.join(&file)).context(file)
}

/// The tables that a person puts into a config.toml which has its version.
fn pasted(drop_in: &str) -> String {
    let lines = drop_in.lines().filter(|line| !line.starts_with("version"));
    lines.fold("\n".to_owned(), |text, line| text + line + "\n")
}

/// The tables that are printed as comments.
fn commented(drop_in: &str) -> String {
    let lines = drop_in
        .lines()
        .skip_while(|line| !line.starts_with("# [plugins"));
    lines.fold("\n".to_owned(), |text, line| {
        text + line.trim_start_matches("# ") + "\n"
    })
}

/// A table that config.toml had before, and must keep.
const OWN_DIRECTORY: &str = "/etc/cni/of-this-test";

fn own_table(version: Version) -> String {
    let plugin = match version {
        Version::V1_6 | Version::V1_7 => "io.containerd.grpc.v1.cri",
        Version::V2_4 => "io.containerd.cri.v1.runtime",
    };
    format!("\n[plugins.\"{plugin}\".cni]\n  conf_dir = \"{OWN_DIRECTORY}\"\n")
}

/// Which snapshotter pods get: containerd 2.x has that in another plug-in, which tells nobody.
fn snapshotter_of_pods(containerd: &Containerd, told: &Value) -> Result<String> {
    if containerd.installed.version != Version::V2_4 {
        let named = told["containerd"]["snapshotter"].as_str();
        return Ok(named.unwrap_or_default().to_owned());
    }
    let mut dump = command(&containerd.installed.containerd);
    dump.arg("--config")
        .arg(containerd.directories.run.join("config.toml"))
        .args(["config", "dump"]);
    let dump = output_of(&mut dump, SOON)?;
    let lines = dump
        .lines()
        .map(str::trim)
        .skip_while(|line| *line != "[plugins.'io.containerd.cri.v1.images']");
    let value = lines.skip(1).take_while(|line| !line.starts_with('['));
    let mut value = value.filter_map(|line| line.strip_prefix("snapshotter = "));
    let value = value.next().context("no snapshotter in the dump")?;
    Ok(value.trim_matches('\'').to_owned())
}

/// The annotations of a pod that its containers get.
fn annotations_of_pods(runtime: &Value) -> Vec<String> {
    let list = runtime["PodAnnotations"].as_array();
    let words = list.into_iter().flatten().filter_map(Value::as_str);
    words.map(str::to_owned).collect()
}

/// What containerd has made of it.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    runtimes: Vec<String>,
    annotations_of_pods: Vec<String>,
    snapshotter: String,
    directory: String,
}

/// Starts one containerd with those drop-ins imported and those tables in its own file.
fn start(installed: &Installed, imports: &[&str], tables: String) -> Result<Found> {
    let temp = tempfile::tempdir()?;
    let files = imports.iter().enumerate().map(|(number, text)| {
        let file = temp.path().join(format!("{number}.toml"));
        fs::write(&file, text)?;
        Ok(file)
    });
    let config = Config {
        cri: CriConfig::Bare,
        imports: files.collect::<Result<_>>()?,
        extra: tables,
        ..Config::with_images(&[])
    };
    let containerd = Containerd::start(installed, &config)?;
    let plugins = Ctr::of(&containerd)
        .call(&["plugins", "ls"])?
        .success()?
        .stdout();
    for plugin in ["cri", "quota"] {
        let is_ok = |line: &str| {
            let words: Vec<_> = line.split_whitespace().collect();
            words.get(1) == Some(&plugin) && words.last() == Some(&"ok")
        };
        ensure!(plugins.lines().any(is_ok), "{plugin} is not ok:\n{plugins}");
    }
    let told = Cri::connect(&containerd.address())?.configuration()?;
    let runtimes = told["containerd"]["runtimes"].as_object();
    let found = Found {
        runtimes: runtimes
            .into_iter()
            .flat_map(|map| map.keys().cloned())
            .collect(),
        annotations_of_pods: annotations_of_pods(&told["containerd"]["runtimes"]["runlxc"]),
        snapshotter: snapshotter_of_pods(&containerd, &told)?,
        directory: told["cni"]["confDir"]
            .as_str()
            .unwrap_or_default()
            .to_owned(),
    };
    containerd.finish()?;
    Ok(found)
}

#[test]
fn documented_configuration_gives_both_runtimes_and_the_snapshotter_and_keeps_the_rest()
-> Result<()> {
    let expected = Found {
        runtimes: ["runc", "runlxc"].map(str::to_owned).to_vec(),
        annotations_of_pods: vec!["org.pouch.*".to_owned()],
        snapshotter: "quota".to_owned(),
        directory: OWN_DIRECTORY.to_owned(),
    };
    for installed in Version::available()? {
        let version = installed.version;
        let snapshotter = Snapshotter::start(Setup::quota("[backend]\nkind = \"tmpfs\"\n")?)?;
        let (quota, runlxc) = (quota(version, &snapshotter)?, runlxc(version)?);
        let own = own_table(version);
        let found = match version {
            Version::V2_4 => start(&installed, &[&quota, &runlxc], own),
            Version::V1_6 | Version::V1_7 => {
                let tables = own + &commented(&quota) + &pasted(&runlxc);
                start(&installed, &[&quota], tables)
            }
        };
        let found = found.with_context(|| format!("containerd {version}"))?;
        ensure!(found == expected, "containerd {version}: {found:?}");
        // Where config.toml says nothing of CRI, all may be imported.
        let found = start(&installed, &[&quota, &runlxc], String::new())
            .with_context(|| format!("containerd {version}, all imported"))?;
        ensure!(
            found.runtimes == expected.runtimes
                && found.annotations_of_pods == expected.annotations_of_pods,
            "containerd {version}: {found:?}"
        );
        snapshotter.finish()?;
    }
    Ok(())
}
