//! `exec`: a process from a file, or from config.json and options.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bundle::{Bundle, HostFacts, Planned, ProcessContext};
use cgroups::{Cgroup, CgroupDir, CgroupPaths};
use launch::plan::{Process, Toggle};
use serde_json::{Value, json};

use super::arguments::Exec;
use super::lifecycle::{OwnStreams, Stay, check_terminal, open};
use super::{console, foreground};
use crate::container::Container;
use crate::create::{self, Stdio};
use crate::exec::{Paused, Request};
use crate::process::ProcessId;
use crate::{Error, Result, host, inherited};

/// `runlxc exec ID COMMAND..`
pub(crate) fn exec(root: &Path, arguments: &Exec) -> Result<ExitCode> {
    let container = open(root, &arguments.container_id)?;
    let process = process(&container, arguments)?;
    let terminal = if process.terminal.is_some() {
        Toggle::On
    } else {
        Toggle::Off
    };
    let stay = if arguments.detach {
        Stay::Detach
    } else {
        Stay::Foreground
    };
    check_terminal(terminal, stay, arguments.console_socket.as_deref())?;
    let below = below(container.cgroup(), &arguments.cgroup)?;
    let streams = OwnStreams::get();
    let prepared = container.exec(&Request {
        process,
        stdio: match terminal {
            Toggle::On => Stdio::Terminal,
            Toggle::Off => streams.lend(),
        },
        paused: if arguments.ignore_paused {
            Paused::Ignore
        } else {
            Paused::Refuse
        },
    })?;
    if let (Some(terminal), Some(socket)) = (&prepared.terminal, &arguments.console_socket) {
        console::send(socket, terminal)?;
    }
    for (cgroup, below) in below {
        cgroup.attach_below(&below, prepared.child.pid())?;
    }
    if let Some(socket) = &arguments.pidfd_socket {
        console::send_pidfd(socket, ProcessId::of(prepared.child.pid().as_raw())?)?;
    }
    if let Some(file) = &arguments.pid_file {
        console::write_pid(file, prepared.child.pid().as_raw())?;
    }
    if stay == Stay::Detach {
        let (child, _terminal) = prepared.start()?;
        child.release();
        return Ok(ExitCode::SUCCESS);
    }
    let mut prepared = prepared;
    let foreground = foreground::attach(prepared.terminal.take())?;
    let (child, _terminal) = prepared.start()?;
    foreground.wait(child)
}

/// The parts of a container's cgroup, and where below them the process belongs: `PATH` for all
/// hierarchies, or `CONTROLLER,..:PATH` for the one of each (runc's `--cgroup`).
fn below(cgroup: &Cgroup, words: &[String]) -> Result<Vec<(Cgroup, PathBuf)>> {
    let paths = cgroup.paths();
    let mut parts = Vec::new();
    for word in words {
        let wrong = |why: &str| Error::Usage(format!("invalid --cgroup argument: {word} ({why})"));
        let (dirs, below) = match word.split_once(':') {
            None if words.len() > 1 => return Err(wrong("missing <controller>: prefix")),
            None => (paths.dirs.clone(), word.as_str()),
            Some((controllers, below)) => {
                let mut dirs = Vec::new();
                for controller in controllers.split(',') {
                    let has = |dir: &&CgroupDir| dir.names.split(',').any(|n| n == controller);
                    let dir = paths
                        .dirs
                        .iter()
                        .find(has)
                        .filter(|_| !controller.is_empty());
                    let dir =
                        dir.ok_or_else(|| wrong(&format!("unknown controller {controller}")))?;
                    if !dirs.contains(dir) {
                        dirs.push(dir.clone());
                    }
                }
                (dirs, below)
            }
        };
        let below = below.trim_matches('/');
        if !below.is_empty() {
            let layout = paths.layout;
            let part = Cgroup::from_paths(CgroupPaths { layout, dirs });
            parts.push((part, PathBuf::from(below)));
        }
    }
    Ok(parts)
}

fn process(container: &Container, arguments: &Exec) -> Result<Process> {
    let Planned {
        value: spec,
        warnings,
        notes: _,
    } = match &arguments.process {
        Some(path) => {
            let text = std::fs::read(path).map_err(Error::on("read", path))?;
            bundle::parse_process(&text)?
        }
        None => bundle::parse_process(from_options(container, arguments)?.to_string().as_bytes())?,
    };
    let context = ProcessContext {
        host: HostFacts {
            hardening_optional: container.journal().hardening_optional(),
            ..host::facts()?
        },
        preserve_fds: inherited::present(arguments.preserve_fds)?,
        new_keyring: Toggle::Off,
        seccomp: container.dir.read_filter()?,
        capabilities: container.journal().capabilities,
        labels: container.journal().labels.clone(),
        scheduling: container.journal().scheduling.clone(),
    };
    let planned = bundle::process_plan(&spec, &context)?;
    create::log(&arguments.container_id, &warnings, &[]);
    create::log(&arguments.container_id, &planned.warnings, &planned.notes);
    bundle::capabilities::check_inheritable(&planned.value)?;
    Ok(planned.value)
}

/// The process of config.json with the options over it, as JSON: one parser for both ways.
fn from_options(container: &Container, arguments: &Exec) -> Result<Value> {
    if arguments.command.is_empty() {
        return Err(Error::Usage("exec args cannot be empty".into()));
    }
    let bundle = Bundle::load(&container.journal().bundle)?;
    let spec = serde_json::to_value(bundle.spec().process())
        .map_err(|e| Error::io("convert config.json")(e.into()))?;
    let Value::Object(mut process) = spec else {
        return Err(Error::Usage("process property must not be empty".into()));
    };
    process.insert("args".into(), json!(arguments.command));
    process.insert("terminal".into(), json!(arguments.tty));
    for (key, value) in [
        ("cwd", &arguments.cwd),
        ("apparmorProfile", &arguments.apparmor),
        ("selinuxLabel", &arguments.process_label),
    ] {
        if let Some(value) = value {
            process.insert(key.into(), json!(value));
        }
    }
    if arguments.no_new_privs {
        process.insert("noNewPrivileges".into(), json!(true));
    }
    append(&mut process, "env", &arguments.env);
    user(&mut process, arguments)?;
    capabilities(&mut process, &arguments.cap);
    Ok(Value::Object(process))
}

type Object = serde_json::Map<String, Value>;

fn append(object: &mut Object, key: &str, more: &[String]) {
    let list = object.entry(key).or_insert_with(|| json!([]));
    if let Value::Array(list) = list {
        list.extend(more.iter().map(|text| json!(text)));
    }
}

fn user(process: &mut Object, arguments: &Exec) -> Result<()> {
    let user = process
        .entry("user")
        .or_insert_with(|| json!({"uid": 0, "gid": 0}));
    if let Some(text) = &arguments.user {
        let number = |text: &str| {
            text.parse::<u32>()
                .map_err(|e| Error::Usage(format!("parsing {text:?} of --user: {e}")))
        };
        let (uid, gid) = text
            .split_once(':')
            .map_or((text.as_str(), None), |(uid, gid)| (uid, Some(gid)));
        user["uid"] = json!(number(uid)?);
        if let Some(gid) = gid {
            user["gid"] = json!(number(gid)?);
        }
    }
    if let Value::Object(user) = user {
        let gids = user.entry("additionalGids").or_insert_with(|| json!([]));
        if let Value::Array(gids) = gids {
            gids.extend(arguments.additional_gids.iter().map(|gid| json!(gid)));
        }
    }
    Ok(())
}

/// As runc: ambient only when the container has inheritable ones, which alone make it possible.
fn capabilities(process: &mut Object, more: &[String]) {
    if more.is_empty() {
        return;
    }
    let sets = process.entry("capabilities").or_insert_with(|| json!({}));
    let Value::Object(sets) = sets else { return };
    for set in ["bounding", "effective", "permitted"] {
        append(sets, set, more);
    }
    if sets.get("inheritable").is_some_and(|set| !set.is_null()) {
        append(sets, "ambient", more);
    }
}

#[cfg(test)]
mod tests {
    use cgroups::Hierarchies;

    use super::*;

    #[test]
    fn a_part_of_the_cgroup_is_named_by_path_or_controllers() {
        let mountinfo = "32 31 0:29 / /c/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                         40 31 0:37 / /c/pids rw - cgroup cgroup rw,pids\n";
        let own = "2:cpu,cpuacct:/\n1:pids:/\n";
        let hierarchies = Hierarchies::detect(mountinfo, own).unwrap();
        let cgroup = Cgroup::from_paths(CgroupPaths::new(&hierarchies, "/x").unwrap());
        let named = |words: &[&str]| -> Result<Vec<String>> {
            let words: Vec<_> = words.iter().map(|&word| word.to_owned()).collect();
            let parts = below(&cgroup, &words)?;
            let of = |(part, below): &(Cgroup, PathBuf)| {
                let dirs = part.paths().dirs.iter();
                dirs.map(|dir| dir.path.join(below).display().to_string())
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            Ok(parts.iter().map(of).collect())
        };
        assert_eq!(
            named(&["a/b"]).unwrap(),
            ["/c/cpu,cpuacct/x/a/b /c/pids/x/a/b"]
        );
        assert_eq!(
            named(&["cpu,cpuacct:a", "pids:/b"]).unwrap(),
            ["/c/cpu,cpuacct/x/a", "/c/pids/x/b"]
        );
        assert!(named(&["/"]).unwrap().is_empty());
        for words in [&["a", "b"][..], &[":a"], &["nope:a"], &["cpu,:a"]] {
            assert!(named(words).is_err(), "{words:?}");
        }
    }
}
