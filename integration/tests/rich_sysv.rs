//! Rich containers with an image's own sysvinit, upstart, or BusyBox's init, as pid 1.

use std::{fs, io::ErrorKind, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Result, ensure};
use integration::{
    check::{Bench, check},
    ctr::{Container, Task},
    image_init,
    images::Image,
    runtime::Runtime,
};
use nix::sys::signal::Signal;

const RUNTIME: Runtime = Runtime::Runlxc;

/// A service in the image's own way, which says in order what becomes of it.
const SERVICE: &str = "#!/bin/sh
### BEGIN INIT INFO
# Provides: slow
# Required-Start:
# Required-Stop:
# Default-Start: 2 3 4 5
# Default-Stop: 0 1 6
### END INIT INFO
echo slow $1 >>/seen/order
";

const PROGRAM: &str = "trap 'echo program stop >>/seen/order; exit 7' TERM; \
                       echo program start >>/seen/order; : >/seen/started; while :; do sleep 1 & wait; done";

fn rich<'a>(bench: &Bench<'a>, name: &str) -> Container<'a> {
    bench.container(name).rich("mode=sbin-init")
}

/// With each init that has runlevels.
fn on_each(behaviour: impl Fn(&Bench<'_>) -> Result<()>) {
    let images = [Image::DebianSysvinit, Image::UbuntuUpstart];
    check(RUNTIME, &images, behaviour);
}

/// What the program's parent is started with.
fn job_of(image: Image) -> &'static str {
    match image {
        Image::UbuntuUpstart => "application",
        Image::BusyboxInit => "busybox-job",
        _ => "job",
    }
}

/// A running program that appends to `order` below a directory of the host, with a service.
fn with_service<'a>(bench: &Bench<'a>, name: &str, directory: &Path) -> Result<Task<'a>> {
    let script = directory.join("slow");
    fs::write(&script, SERVICE)?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    fs::write(directory.join("order"), "")?;
    match fs::remove_file(directory.join("started")) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let services = match bench.image {
        Image::BusyboxInit => "services=slow",
        _ => "services=cron,slow",
    };
    let container = rich(bench, name)
        .rich(services)
        .rich("ready=file:/seen/started")
        .bound(&script, "/etc/init.d/slow")
        .bound(directory, "/seen");
    let task = container.detach(&["sh", "-c", PROGRAM])?;
    let order = fs::read_to_string(directory.join("order"))?;
    ensure!(
        order.contains("program start"),
        "the start did not wait: {order:?}"
    );
    Ok(task)
}

fn is_in_order(directory: &Path, then: &str) -> Result<()> {
    let order = fs::read_to_string(directory.join("order"))?;
    let expected = format!("slow start\nprogram start\nprogram stop\nslow stop\n{then}");
    ensure!(order == expected, "{order:?}");
    Ok(())
}

#[test]
fn the_program_is_a_job_and_its_output_and_exit_code_are_the_containers() {
    on_each(|bench| {
        image_init::ends_as_the_program(|name| rich(bench, name))?;
        let container = rich(bench, "intact").rich("user=daemon").flags(&[
            "--env",
            "ODD=a b $HOME %n \"q\" \\ 'x' ${Y} %%",
            "--cwd",
            "/var/tmp",
            "--seccomp",
        ]);
        let script = "id -u; pwd; cat /proc/1/comm; runlevel; printf '[%s]\\n' \"$ODD\" \"$@\"";
        let odd = "two\nlines $HOME %i \"q\" \\ 'x'; & #";
        let ended = container.run(&["sh", "-c", script, "name", odd, "", "-x"])?;
        let expected = format!(
            "1\n/var/tmp\ninit\nN 2\n[a b $HOME %n \"q\" \\ 'x' ${{Y}} %%]\n[{odd}]\n[]\n[-x]\n"
        );
        ensure!(ended.code() == 0 && ended.stdout() == expected, "{ended}");

        image_init::a_terminal_is_the_programs(&rich(bench, "tty"), "INIT")?;
        Ok(())
    });
}

#[test]
fn whatever_ends_it_the_program_stops_before_the_services_and_the_image_stays() {
    on_each(|bench| {
        let directory = tempfile::tempdir()?;
        let task = with_service(bench, "stopped", directory.path())?;
        let cron = task.exec(&["pgrep", "-x", "cron"])?;
        ensure!(cron.code() == 0, "cron does not run: {cron}");
        let written: Vec<_> = image_init::changes(&task)?
            .into_iter()
            .filter(|path| path.starts_with("etc/") || path.starts_with("sbin"))
            // Debian's init scripts write the former, the mount is the latter's point.
            .filter(|path| !["etc/motd", "etc/init.d", "etc/init.d/slow"].contains(&path.as_str()))
            .collect();
        ensure!(written.is_empty(), "{written:?}");
        // Executed anew for a new C library, say, it goes on.
        task.exec(&["telinit", "u"])?.success()?;
        let level = task.output("runlevel; cat /proc/1/comm")?;
        ensure!(level == "N 2\ninit\n", "{level:?}");
        task.kill(Signal::SIGTERM)?;
        let code = task.remove()?;
        ensure!(code == 7, "stopped: expected 7, got {code}");
        is_in_order(directory.path(), "").context("stopped")?;

        for (name, command) in [
            ("halted", &["shutdown", "-h", "now"][..]),
            ("rebooted", &["telinit", "6"][..]),
        ] {
            let task = with_service(bench, name, directory.path())?;
            task.exec(command)?.success().context(name)?;
            let code = task.remove()?;
            ensure!(code == 7, "{name}: expected 7, got {code}");
            is_in_order(directory.path(), "").context(name)?;
        }

        let task = with_service(bench, "parent", directory.path())?;
        image_init::ends_with_the_programs_parent(&task, job_of(bench.image))?;

        // A stop of the first moment is not lost.
        let task = rich(bench, "at-once").detach(&["sleep", "600"])?;
        task.kill(Signal::SIGTERM)?;
        let code = task.remove()?;
        ensure!([143, 255].contains(&code), "at once: got {code}");
        Ok(())
    });
}

#[test]
fn busyboxs_init_starts_stops_and_ends_as_sysvinit_does() {
    check(RUNTIME, &[Image::BusyboxInit], |bench| {
        let container = rich(bench, "intact")
            .rich("user=app")
            .flags(&["--env", "ODD=a $B"]);
        let script = "id -u; cat /proc/1/comm /run/boot; printf '[%s]\\n' \"$ODD\" \"$@\"; exit 3";
        let odd = "two\nlines $HOME \"q\" \\ 'x'; & #";
        let ended = container.run(&["sh", "-c", script, "name", odd, ""])?;
        let expected = format!("1000\ninit\nbooted\n[a $B]\n[{odd}]\n[]\n");
        ensure!(ended.code() == 3 && ended.stdout() == expected, "{ended}");

        let directory = tempfile::tempdir()?;
        let task = with_service(bench, "stopped", directory.path())?;
        let written: Vec<_> = image_init::changes(&task)?
            .into_iter()
            .filter(|path| path.starts_with("etc/") || path.starts_with("sbin"))
            .filter(|path| !["etc/init.d", "etc/init.d/slow"].contains(&path.as_str()))
            .collect();
        ensure!(written.is_empty(), "{written:?}");
        task.kill(Signal::SIGTERM)?;
        let code = task.remove()?;
        ensure!(code == 7, "stopped: expected 7, got {code}");
        is_in_order(directory.path(), "rcK\n").context("stopped")?;
        let task = with_service(bench, "parent", directory.path())?;
        image_init::ends_with_the_programs_parent(&task, job_of(bench.image))?;
        image_init::is_started_again(|name| rich(bench, name))
    });
}

#[test]
fn what_does_not_fit_is_refused_and_names_what_was_looked_for() {
    let images = [Image::DebianSysvinit, Image::Debian, Image::Busybox];
    check(RUNTIME, &images, |bench| {
        let cases: &[(&str, &str, &str)] = match bench.image {
            Image::Debian => &[(
                "user",
                "root",
                "mode sbin-init: the image has no /sbin/init",
            )],
            Image::Busybox => &[(
                "user",
                "root",
                "mode sbin-init: the image has no file /etc/inittab",
            )],
            _ => &[
                (
                    "user",
                    "nobody-at-all",
                    "no user \"nobody-at-all\" in /etc/passwd",
                ),
                ("services", "corn", "/etc/init.d/corn is not in the image"),
                ("services", "a b", "is no name of a service"),
                ("signals", "TERM:QUIT", "mode sbin-init has no such thing"),
            ],
        };
        image_init::refuses(|name| rich(bench, name), cases)?;
        if bench.image == Image::DebianSysvinit {
            let refused = rich(bench, "absent").run(&["/no/such/program"])?;
            ensure!(refused.stderr().contains("/no/such/program"), "{refused}");
        }
        Ok(())
    });
}

/// As CentOS 6 has it: a job of its own boots and reads the level in inittab.
const JOB_THAT_BOOTS: &str = "start on startup\ntask\nexec /no/such/rc.sysinit\n";
const JOB_OF_LEVELS: &str = "start on runlevel [0123456]
stop on runlevel [!$RUNLEVEL]
task
export RUNLEVEL
exec /etc/init.d/rc $RUNLEVEL
";

#[test]
fn upstart_boots_without_the_jobs_of_ubuntu_and_runs_jobs_that_were_off() {
    check(RUNTIME, &[Image::UbuntuUpstart], |bench| {
        let directory = tempfile::tempdir()?;
        let jobs = directory.path().join("init");
        fs::create_dir(&jobs)?;
        for (name, text) in [
            ("rcS.conf", JOB_THAT_BOOTS),
            ("rc.conf", JOB_OF_LEVELS),
            ("web.conf", "start on never\nexec sleep 600\n"),
            ("web.override", "manual\n"),
            ("many.conf", "instance $NAME\nexec sleep 600\n"),
        ] {
            fs::write(jobs.join(name), text)?;
        }
        let inittab = directory.path().join("inittab");
        fs::write(&inittab, "# no more\nid:4:initdefault:\n")?;
        let container = |name: &str, services: &str| {
            let container = rich(bench, name).rich(&format!("services={services}"));
            container
                .bound(&jobs, "/etc/init")
                .bound(&inittab, "/etc/inittab")
        };
        let script = "runlevel; status web; ls /etc/init; exit 4";
        let ended = container("plain", "web").shell(script)?.with_code(4)?;
        let jobs_there = "many.conf\npouch-application.conf\npouch-boot.conf\npouch-end.conf\n\
                          pouch-listening.conf\npouch-power.conf\nrc.conf\nweb.conf\n";
        let is_so = ended
            .stdout()
            .starts_with("N 4\nweb start/running, process ")
            && ended.stdout().ends_with(jobs_there);
        ensure!(is_so, "{ended}");
        let refused = container("instances", "many").shell("true")?;
        let why = "/etc/init/many.conf of the image has instances";
        ensure!(refused.stderr().contains(why), "{refused}");
        Ok(())
    });
}

#[test]
fn upstart_is_asked_where_its_initctl_was_put_away_and_the_first_status_counts() {
    check(RUNTIME, &[Image::UbuntuUpstart], |bench| {
        let directory = tempfile::tempdir()?;
        let copied = bench.container("copy").bound(directory.path(), "/out");
        copied
            .shell("cp /sbin/initctl /etc/init/rc.conf /out/")?
            .with_code(0)?;
        let jobs = directory.path().join("init");
        fs::create_dir(&jobs)?;
        fs::rename(directory.path().join("rc.conf"), jobs.join("rc.conf"))?;
        fs::write(
            jobs.join("web.conf"),
            "start on filesystem\nexec sleep 600\n",
        )?;
        let nothing = directory.path().join("nothing");
        fs::write(&nothing, "#!/bin/sh\nexit 0\n")?;
        fs::set_permissions(&nothing, fs::Permissions::from_mode(0o755))?;
        let container = rich(bench, "diverted")
            .rich("ready=file:/tmp/ready")
            .bound(&jobs, "/etc/init")
            .bound(&nothing, "/sbin/initctl")
            .bound(&directory.path().join("initctl"), "/sbin/initctl.distrib");
        let program = "trap 'exit 7' TERM; : >/tmp/ready; while :; do sleep 1 & wait; done";
        let task = container.detach(&["sh", "-c", program])?;
        let status = task.output("initctl status web")?;
        ensure!(status.starts_with("web start/running"), "{status:?}");
        // The program's end is the end, whoever asks for more.
        let _whatever = task.exec(&["initctl", "restart", "--no-wait", "pouch-application"])?;
        let code = task.remove()?;
        ensure!(code == 7, "expected 7, got {code}");
        Ok(())
    });
}

#[test]
fn a_second_upstart_in_a_network_namespace_is_refused() {
    check(RUNTIME, &[Image::UbuntuUpstart], |bench| {
        let first = rich(bench, "first").detach(&["sleep", "600"])?;
        let namespace = format!("network:/proc/{}/ns/net", first.pid()?);
        let second = rich(bench, "second").flags(&["--with-ns", &namespace]);
        let refused = second.shell("true")?;
        let why = "an upstart of another container or of the host listens at @/com/ubuntu/upstart";
        ensure!(refused.stderr().contains(why), "{refused}");
        first.kill(Signal::SIGTERM)?;
        let code = first.remove()?;
        ensure!([143, 255].contains(&code), "got {code}");
        Ok(())
    });
}

#[test]
fn the_program_is_started_again_where_that_is_asked_for() {
    on_each(|bench| image_init::is_started_again(|name| rich(bench, name)));
}
