//! `ps`: the processes of a container, as the host's ps(1) shows them or as numbers.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use sys::{ExitStatus, Pid, Spawn};

use super::arguments::{ListFormat, Ps};
use super::lifecycle::open;
use crate::{Error, Result, answer, on_path};

/// How long the host's ps may take: it waits for processes whose memory map is locked.
const LIMIT: Duration = Duration::from_secs(30);

/// `runlxc ps ID [OPTIONS OF PS]`
pub(crate) fn ps(root: &Path, arguments: &Ps) -> Result<ExitCode> {
    let container = open(root, &arguments.container_id)?;
    let mut pids = container.cgroup().procs()?;
    pids.sort_unstable();
    let text = match arguments.format {
        ListFormat::Json => {
            let pids: Vec<_> = pids.into_iter().map(Pid::as_raw).collect();
            let json =
                serde_json::to_string(&pids).map_err(|e| Error::io("print the list")(e.into()))?;
            json + "\n"
        }
        ListFormat::Table => of_these(&shown(&arguments.options)?, &pids)?,
    };
    super::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// What the host's ps says of all processes it is asked for.
fn shown(options: &[String]) -> Result<String> {
    let Some((program, _)) = on_path::find("ps") else {
        return Err(Error::unsupported(
            "the table of processes",
            "there is no ps on the PATH: install procps, or use --format json",
        ));
    };
    let default = ["-ef".to_owned()];
    let options = if options.is_empty() {
        default.as_slice()
    } else {
        options
    };
    let answer = answer::ask(Spawn::new(&program).args(options), "ps", LIMIT)?;
    if answer.status != ExitStatus::Exited(0) {
        return Err(Error::Usage(format!(
            "ps ended with {}: {}",
            answer.status.code(),
            answer.text.trim_end()
        )));
    }
    Ok(answer.text)
}

/// The title and the lines whose PID column is one of these.
fn of_these(table: &str, pids: &[Pid]) -> Result<String> {
    let mut lines = table.lines();
    let title = lines.next().unwrap_or_default();
    let column = title
        .split_whitespace()
        .position(|name| name == "PID")
        .ok_or_else(|| Error::Usage("couldn't find PID field in ps output".into()))?;
    let is_one = |line: &&str| {
        let pid = line.split_whitespace().nth(column);
        let pid = pid.and_then(|pid| pid.parse().ok()).map(Pid::from_raw);
        pid.is_some_and(|pid| pids.contains(&pid))
    };
    let own = lines.filter(is_one).map(|line| format!("{line}\n"));
    Ok(format!("{title}\n{}", own.collect::<String>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_column_decides() {
        let table = "UID          PID    PPID CMD\n\
                     root           1       0 init\n\
                     root          12       1 sleep 42\n\
                     root          42       1 sh\n";
        let own = of_these(table, &[Pid::from_raw(42), Pid::from_raw(7)]).unwrap();
        assert_eq!(
            own,
            "UID          PID    PPID CMD\nroot          42       1 sh\n"
        );
        assert!(of_these("COMMAND\nsh\n", &[]).is_err());
        assert!(of_these("", &[]).is_err());
    }
}
