//! Keeps what ARCHITECTURE.md and STYLE.md promise and a compiler does not check: arrows between
//! crates, file lengths, module docs, where unsafe may stand, which crates may come in.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's own functions")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Which of our crates each of our crates may depend on. A new edge is a design change.
const ARROWS: &[(&str, &[&str])] = &[
    ("sys", &[]),
    ("task", &[]),
    ("proto", &[]),
    ("seccomp", &[]),
    ("disk", &[]),
    ("mux", &[]),
    ("network", &["sys"]),
    ("guest", &["cgroups", "network"]),
    ("mounts", &["sys"]),
    ("cgroups", &["sys"]),
    ("stdio", &["sys"]),
    ("launch", &["sys", "mounts"]),
    ("bundle", &["cgroups", "launch", "mounts", "seccomp"]),
    (
        "shim-core",
        &["sys", "bundle", "cgroups", "mounts", "stdio", "task"],
    ),
    ("snapshot-core", &["mounts", "proto", "sys"]),
    (
        "snapshotter-quota",
        &["mounts", "proto", "snapshot-core", "sys"],
    ),
    (
        "snapshotter-remote",
        &["disk", "mounts", "proto", "snapshot-core", "sys"],
    ),
    ("fd-holder", &["sys"]),
    ("runlxc-init", &["launch", "mounts", "sys"]),
    (
        "runlxc",
        &[
            "bundle",
            "cgroups",
            "launch",
            "mounts",
            "network",
            "seccomp",
            "shim-core",
            "stdio",
            "sys",
            "task",
        ],
    ),
    (
        "runv-agent",
        &[
            "bundle", "cgroups", "guest", "launch", "mux", "network", "sys",
        ],
    ),
    (
        "runv",
        &[
            "bundle",
            "cgroups",
            "disk",
            "guest",
            "launch",
            "mounts",
            "mux",
            "network",
            "shim-core",
            "stdio",
            "sys",
        ],
    ),
    ("integration", &["disk", "proto", "sys"]),
];

/// Foreign crates that only some of ours may name.
const RESERVED: &[(&str, &[&str])] = &[
    ("anyhow", &["integration"]),
    ("containerd-shim-protos", &["shim-core"]),
    ("ttrpc", &["shim-core"]),
    ("libc", &["sys"]),
    ("prost", &["proto", "runlxc"]),
    (
        "tonic",
        &[
            "proto",
            "snapshot-core",
            "snapshotter-quota",
            "snapshotter-remote",
            "integration",
        ],
    ),
    (
        "tokio",
        &[
            "stdio",
            "shim-core",
            "snapshot-core",
            "runlxc",
            "snapshotter-quota",
            "snapshotter-remote",
            "integration",
        ],
    ),
];

/// Foreign crates that may not come in by any way.
const UNWANTED: &[&str] = &[
    "async-std",
    "openssl-sys",
    "containerd-shim",
    "cgroups-rs",
    "native-tls",
];

const FILE_LINES_MAX: usize = 600;

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("integration lies in the workspace")
        .to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Every file below the workspace with this extension; build output and generated code left out.
fn files(extension: &str) -> Vec<PathBuf> {
    fn walk(dir: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = entry.file_name();
            if entry.file_type().unwrap().is_dir() {
                if name != "target" && name != ".git" && name != "generated" {
                    walk(&path, extension, found);
                }
            } else if path.extension().is_some_and(|e| e == extension) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&workspace(), extension, &mut found);
    found.sort();
    assert!(!found.is_empty(), "no .{extension} file found");
    found
}

/// Package name and the names in its dependency tables of one Cargo.toml.
fn manifest(text: &str) -> (String, Vec<String>) {
    let (mut name, mut dependencies, mut section) = (String::new(), Vec::new(), "");
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        } else if let Some((key, value)) = line.split_once('=') {
            let key = key.trim();
            if section == "[package]" && key == "name" {
                name = value.trim().trim_matches('"').to_owned();
            } else if section.ends_with("dependencies]") && section != "[workspace.dependencies]" {
                dependencies.push(key.trim_end_matches(".workspace").to_owned());
            }
        }
    }
    (name, dependencies)
}

fn packages() -> BTreeMap<String, (PathBuf, Vec<String>)> {
    let mut packages = BTreeMap::new();
    for path in files("toml")
        .into_iter()
        .filter(|p| p.ends_with("Cargo.toml"))
    {
        let (name, dependencies) = manifest(&read(&path));
        if !name.is_empty() && !path.starts_with(workspace().join("fuzz")) {
            packages.insert(name, (path, dependencies));
        }
    }
    packages
}

fn report(what: &str, offences: &[String]) {
    assert!(offences.is_empty(), "{what}:\n  {}", offences.join("\n  "));
}

#[test]
fn arrows_between_crates_go_down_only() {
    let packages = packages();
    let mut offences = Vec::new();
    for (name, (_, dependencies)) in &packages {
        let Some((_, allowed)) = ARROWS.iter().find(|(from, _)| from == name) else {
            offences.push(format!("{name} has no row in ARROWS"));
            continue;
        };
        for to in dependencies.iter().filter(|d| packages.contains_key(*d)) {
            if !allowed.contains(&to.as_str()) {
                offences.push(format!("{name} -> {to}"));
            }
        }
    }
    report("arrows that ARCHITECTURE.md does not draw", &offences);
}

#[test]
fn foreign_crates_stay_where_they_belong() {
    let mut offences = Vec::new();
    for (name, (_, dependencies)) in &packages() {
        for (foreign, homes) in RESERVED {
            if dependencies.iter().any(|d| d == foreign) && !homes.contains(&name.as_str()) {
                offences.push(format!("{name} -> {foreign}"));
            }
        }
    }
    let lock = read(&workspace().join("Cargo.lock"));
    for unwanted in UNWANTED {
        if lock.contains(&format!("name = \"{unwanted}\"\n")) {
            offences.push(format!("Cargo.lock has {unwanted}"));
        }
    }
    report("unwanted crates", &offences);
}

#[test]
fn every_dependency_has_its_reason() {
    let text = read(&workspace().join("Cargo.toml"));
    let table = text
        .split("[workspace.dependencies]")
        .nth(1)
        .unwrap()
        .split("\n[")
        .next()
        .unwrap();
    let mut offences = Vec::new();
    let mut previous_is_comment = false;
    for line in table.lines().filter(|l| !l.trim().is_empty()) {
        let is_ours = line.contains("path = ");
        let is_comment = line.starts_with('#');
        if !is_comment && !is_ours && !previous_is_comment && line.contains('=') {
            offences.push(line.to_owned());
        }
        previous_is_comment = is_comment;
    }
    report("dependencies without a line saying why", &offences);
}

#[test]
fn every_crate_takes_the_workspace_lints() {
    let mut offences = Vec::new();
    for (name, (path, _)) in &packages() {
        if !read(path).contains("[lints]\nworkspace = true") {
            offences.push(name.clone());
        }
    }
    report("crates without [lints] workspace = true", &offences);
}

#[test]
fn files_are_short_and_say_what_they_are_for() {
    let mut offences = Vec::new();
    for path in files("rs") {
        let text = read(&path);
        let shown = path
            .strip_prefix(workspace())
            .unwrap()
            .display()
            .to_string();
        if !text.starts_with("//!") && !text.starts_with("// @generated") {
            offences.push(format!("{shown}: line 1 is no module doc"));
        }
        let lines = text
            .lines()
            .take_while(|l| l.trim() != "#[cfg(test)]")
            .count();
        let is_test = shown.contains("/tests/") || shown.ends_with("/tests.rs");
        if lines > FILE_LINES_MAX && !is_test && !text.starts_with("// @generated") {
            offences.push(format!("{shown}: {lines} lines, at most {FILE_LINES_MAX}"));
        }
    }
    report("files out of shape", &offences);
}

#[test]
fn unsafe_stands_in_sys_alone() {
    let mut offences = Vec::new();
    for path in files("rs") {
        let shown = path
            .strip_prefix(workspace())
            .unwrap()
            .display()
            .to_string();
        if shown.starts_with("crates/sys/") || shown.ends_with("tidy.rs") {
            continue;
        }
        for (number, line) in read(&path).lines().enumerate() {
            let code = line.split("//").next().unwrap();
            if code.contains("unsafe {")
                || code.contains("unsafe fn")
                || code.contains("unsafe impl")
            {
                offences.push(format!("{shown}:{}", number + 1));
            }
        }
    }
    report("unsafe outside crates/sys", &offences);
}

#[test]
fn nothing_is_left_for_later() {
    let words = [
        "todo!",
        "unimplemented!",
        "#[ignore",
        concat!("FIX", "ME"),
        concat!("TO", "DO"),
    ];
    let mut offences = Vec::new();
    for path in files("rs").into_iter().filter(|p| !p.ends_with("tidy.rs")) {
        for (number, line) in read(&path).lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                let shown = path.strip_prefix(workspace()).unwrap().display();
                offences.push(format!("{shown}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    report("left for later", &offences);
}

#[test]
fn names_say_what_things_are() {
    let vague = [
        "utils", "util", "common", "helpers", "manager", "inner", "handler", "misc",
    ];
    let mut offences = Vec::new();
    for path in files("rs") {
        let path = path.strip_prefix(workspace()).unwrap().with_extension("");
        if path
            .iter()
            .any(|part| vague.iter().any(|word| part == *word))
        {
            offences.push(path.display().to_string());
        }
    }
    report("files and folders named for nothing", &offences);
}
