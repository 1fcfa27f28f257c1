//! The jobs (init(5)) that upstart reads instead of the image's: those without devices, file systems and
//! terminals, and with those of the container's program. Pure.

use std::fmt::Write as _;

use super::super::application::status_path;
use super::super::component::Component;
use super::super::rc::Script;
use super::super::sysv;
use super::OWN;
use crate::plan::When;

/// The image's job that runs the scripts of a level. That it exports RUNLEVEL is how Ubuntu's and
/// CentOS' terminals know when to come.
pub(super) const OF_LEVELS: &str = "rc.conf";

const OF_LEVELS_OVERRIDDEN: &str = "rc.override";

/// What our names begin with.
const OWN_PREFIX: &str = "pouch-";

/// The image's job that boots as Ubuntu does.
const UBUNTU: &str = "rc-sysinit.conf";

/// Level of a machine that says none: Ubuntu's, and that of others.
const LEVEL_OF_UBUNTU: char = '2';
const LEVEL: char = '3';

/// What is left out, by its name but for a number and `.sh` at its end: it boots or ends a machine, or is
/// about devices, file systems, links, names and terminals, which are the host's affair or made already.
const LEFT_OUT: [&str; 34] = [
    "bootmisc",
    "checkfs",
    "checkroot",
    "checkroot-bootclean",
    "console",
    "console-setup",
    "container-detect",
    "control-alt-delete",
    "dmesg",
    "flush-early-job-log",
    "friendly-recovery",
    "hostname",
    "hwclock",
    "hwclock-save",
    "init-system-dbus",
    "kmod",
    "module-init-tools",
    "mountdevsubfs",
    "mountkernfs",
    "mtab",
    "networking",
    "passwd",
    "prefdm",
    "quit-plymouth",
    "rc-sysinit",
    "serial",
    "setvtrgb",
    "shutdown",
    "splash-manager",
    "start-ttys",
    "tty",
    "udev",
    "udev-fallback-graphics",
    "upstart-udev-bridge",
];

/// The same, by how its name begins.
const FAMILIES: [&str; 12] = [
    "cryptdisks",
    "failsafe",
    "mountall",
    "mounted-",
    "mountnfs",
    "network-interface",
    "plymouth",
    "rcS",
    "readahead",
    "udevmonitor",
    "udevtrigger",
    "ureadahead",
];

/// A file with a job, or with what overrides one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Job {
    pub(super) file: String,
    pub(super) text: Vec<u8>,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Service {
    /// A job of the image's with this name.
    Job(String),
    Script(Script),
}

/// The name of the job that a file is about; none: upstart does not read it.
pub(super) fn name_of(file: &str) -> Option<&str> {
    let mut endings = [".conf", ".override"].into_iter();
    endings.find_map(|ending| file.strip_suffix(ending))
}

impl Job {
    fn new(name: &str, text: String) -> Self {
        Self {
            file: format!("{name}.conf"),
            text: text.into_bytes(),
        }
    }

    /// Its name, if it is no override.
    pub(super) fn name(&self) -> Option<&str> {
        self.file.strip_suffix(".conf")
    }

    /// Whether there may be several at a time, told apart by what starts them.
    pub(super) fn is_template(&self) -> bool {
        let text = String::from_utf8_lossy(&self.text);
        let mut words = text.lines().filter_map(|it| it.split_whitespace().next());
        words.any(|word| word == "instance")
    }

    /// Whether it tells its level to the jobs that wait for its end.
    pub(super) fn exports_level(&self) -> bool {
        let text = String::from_utf8_lossy(&self.text);
        text.lines().any(|line| {
            let mut words = line.split_whitespace();
            words.next() == Some("export") && words.any(|word| word == "RUNLEVEL")
        })
    }

    fn is_for_a_machine(&self) -> bool {
        let Some(name) = name_of(&self.file) else {
            return true;
        };
        // What has the level's scripts or the program wait for somebody else.
        if name.starts_with(OWN_PREFIX) || self.file == OF_LEVELS_OVERRIDDEN {
            return true;
        }
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let stem = stem.strip_suffix(".sh").unwrap_or(stem);
        LEFT_OUT.contains(&stem) || FAMILIES.iter().any(|first| name.starts_with(first))
    }
}

/// The level that the image's own boot leads to.
pub(super) fn level(inittab: Option<&str>, found: &[Job]) -> char {
    let of_file = inittab.and_then(sysv::default_level);
    let ubuntu = found.iter().find(|job| job.file == UBUNTU);
    of_file.unwrap_or_else(|| match ubuntu {
        Some(job) => String::from_utf8_lossy(&job.text)
            .lines()
            .find_map(|line| line.trim().strip_prefix("env DEFAULT_RUNLEVEL="))
            .and_then(sysv::working_level)
            .unwrap_or(LEVEL_OF_UBUNTU),
        None => LEVEL,
    })
}

/// All jobs of a container, of those of its image.
pub(super) fn of(
    found: Vec<Job>,
    (level, initctl): (char, &str),
    services: &[Service],
    components: &[Component],
) -> Vec<Job> {
    let is_asked_for = |job: &Job| {
        let mut asked = services.iter();
        asked.any(|it| matches!(it, Service::Job(name) if job.name() == Some(name)))
    };
    let mut jobs: Vec<_> = found
        .into_iter()
        .filter(|job| !job.is_for_a_machine() || is_asked_for(job))
        .collect();
    let mut native = Vec::new();
    for service in services {
        if let Service::Job(name) = service {
            start_with_the_level(name, &mut jobs);
            native.push(name.as_str());
        }
    }
    jobs.extend([
        Job::new("pouch-listening", listening()),
        Job::new("pouch-boot", boot(level, initctl)),
        Job::new(
            "pouch-application",
            application(&native, components, initctl),
        ),
        Job::new("pouch-power", power(initctl)),
        Job::new("pouch-end", end()),
    ]);
    jobs.extend(components.iter().map(component));
    jobs
}

/// Has a job of the image's start with the level, whatever it waited for, and if nothing at all: of two
/// stanzas the last one counts.
fn start_with_the_level(name: &str, jobs: &mut Vec<Job>) {
    let overriding = format!("{name}.override");
    let at = jobs.iter().position(|job| job.file == overriding);
    let more = at.map(|at| jobs.swap_remove(at).text).unwrap_or_default();
    let stanzas = b"\nstart on runlevel [2345]\nstop on runlevel [!2345]\n";
    for job in jobs.iter_mut().filter(|job| job.name() == Some(name)) {
        job.text = [&job.text[..], b"\n", &more[..], stanzas].concat();
    }
}

fn listening() -> String {
    format!("start on startup\ntask\nexec {OWN}/init listening\n")
}

/// What a machine's boot would tell, all of which is so; then the level.
fn boot(level: char, initctl: &str) -> String {
    let mut text = "start on startup
stop on runlevel
task
script
    echo lxc >/run/container_type
"
    .to_owned();
    for event in [
        "container CONTAINER=lxc",
        "virtual-filesystems",
        "local-filesystems",
        "all-swaps",
        "remote-filesystems",
        "filesystem",
    ] {
        let _written = writeln!(text, "    {initctl} emit --no-wait {event}");
    }
    let _written = write!(
        text,
        "    for link in /sys/class/net/*; do
        {initctl} emit --no-wait net-device-up IFACE=\"${{link##*/}}\"
    done
    {initctl} emit --no-wait static-network-up
    [ ! -x /etc/init.d/rcS ] || /etc/init.d/rcS || :
    exec telinit {level}
end script
"
    );
    text
}

/// After the level's scripts, what is asked for and what belongs before it; one that fails is not
/// waited for. A program that ends by itself is the end of all, and runs once.
fn application(native: &[&str], components: &[Component], initctl: &str) -> String {
    let mut on = "stopped rc RUNLEVEL=[2345]".to_owned();
    let before = components.iter().filter(|it| it.when == When::Before);
    let before = before.map(|it| job_of(&it.name));
    for name in native.iter().map(|&name| name.to_owned()).chain(before) {
        let _written = write!(on, " and (started {name} or stopped {name})");
    }
    let (stopping, status) = (sysv::stopping(), status_path());
    format!(
        "start on ({on})
stop on starting rc RUNLEVEL=[06]
kill timeout {LIMIT}
pre-start script
    if [ -e {stopping} ] || [ -e {status} ]; then
        {initctl} stop
    fi
end script
exec {OWN}/init application
post-stop script
    [ -n \"$UPSTART_STOP_EVENTS\" ] || exec telinit 0
end script
",
        LIMIT = sysv::STOP_LIMIT.as_secs()
    )
}

/// A program that has not started yet never will.
fn power(initctl: &str) -> String {
    let stopping = sysv::stopping();
    format!(
        "start on power-status-changed
task
script
    : >{stopping}
    {initctl} stop pouch-application || :
    exec telinit 0
end script
"
    )
}

fn end() -> String {
    format!("start on stopped rc RUNLEVEL=[06]\ntask\nexec {OWN}/init upstart-end\n")
}

fn job_of(component: &str) -> String {
    format!("{OWN_PREFIX}component-{component}")
}

fn component(component: &Component) -> Job {
    let name = &component.name;
    let (start, stop) = match component.when {
        When::Before => ("starting rc RUNLEVEL=[2345]", "stopped pouch-application"),
        When::After => ("started pouch-application", "stopping pouch-application"),
    };
    let text =
        format!("start on {start}\nstop on {stop}\nrespawn\nexec {OWN}/init component {name}\n");
    Job::new(&job_of(name), text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(file: &str, text: &str) -> Job {
        Job {
            file: file.to_owned(),
            text: text.as_bytes().to_vec(),
        }
    }

    fn text<'a>(jobs: &'a [Job], file: &str) -> &'a str {
        let job = jobs.iter().find(|job| job.file == file);
        std::str::from_utf8(&job.unwrap().text).unwrap()
    }

    #[test]
    fn what_is_for_a_machine_is_left_out() {
        for (file, is_left_out) in [
            ("mountall-net.conf", true),
            ("tty1.conf", true),
            ("tty1.override", true),
            ("ttyd.conf", false),
            ("udev.conf", true),
            ("rcS.conf", true),
            ("rc.conf", false),
            ("cron.conf", false),
            ("cron.override", false),
            ("cron.conf.dpkg-old", true),
            ("rc.override", true),
            ("pouch-application.override", true),
            ("checkout.conf", false),
            ("shutdown-notify.conf", false),
            ("mountnfs-bootclean.sh.conf", true),
            ("hwclock.sh.conf", true),
        ] {
            assert_eq!(job(file, "").is_for_a_machine(), is_left_out, "{file}");
        }
    }

    #[test]
    fn the_level_is_the_images() {
        let ubuntu = [job(UBUNTU, "task\n env DEFAULT_RUNLEVEL=4\n")];
        let plain = [job(UBUNTU, "task\n")];
        for (inittab, found, expected) in [
            (Some("# x\nid:5:initdefault:\n"), &ubuntu[..], '5'),
            (Some("id:0:initdefault:\n"), &ubuntu, '4'),
            (None, &ubuntu, '4'),
            (None, &plain, '2'),
            (None, &[], '3'),
        ] {
            assert_eq!(level(inittab, found), expected, "{inittab:?} {found:?}");
        }
    }

    #[test]
    fn a_service_starts_with_the_level_and_the_program_after_it() {
        let found = vec![
            job("cron.conf", "start on never\nexec cron"),
            job("cron.override", "manual"),
            job("web.override", "manual"),
            job("tty1.conf", ""),
            // It is asked for.
            job("networking.conf", "task"),
        ];
        let component = |name: &str, when| Component {
            name: name.to_owned(),
            when,
            is_notifying: false,
        };
        let components = [component("a", When::Before), component("b", When::After)];
        let services = ["cron", "networking"].map(|name| Service::Job(name.to_owned()));
        let jobs = of(found, ('2', "initctl"), &services, &components);
        let mut names: Vec<_> = jobs.iter().map(|job| job.file.as_str()).collect();
        names[..3].sort_unstable();
        let expected = [
            "cron.conf",
            "networking.conf",
            "web.override",
            "pouch-listening.conf",
            "pouch-boot.conf",
            "pouch-application.conf",
            "pouch-power.conf",
            "pouch-end.conf",
            "pouch-component-a.conf",
            "pouch-component-b.conf",
        ];
        assert_eq!(names, expected);
        let cron = "start on never\nexec cron\nmanual\nstart on runlevel [2345]\nstop on runlevel [!2345]\n";
        assert_eq!(text(&jobs, "cron.conf"), cron);
        let on = "start on (stopped rc RUNLEVEL=[2345] and (started cron or stopped cron) and (started \
                  networking or stopped networking) and (started pouch-component-a or stopped pouch-component-a))\n";
        assert!(text(&jobs, "pouch-application.conf").starts_with(on));
        assert!(text(&jobs, "pouch-boot.conf").ends_with("    exec telinit 2\nend script\n"));
        let before = "start on starting rc RUNLEVEL=[2345]\nstop on stopped pouch-application\nrespawn\n\
                      exec /run/runlxc/init component a\n";
        assert_eq!(text(&jobs, "pouch-component-a.conf"), before);
    }

    #[test]
    fn a_job_of_levels_that_tells_them_is_known() {
        assert!(job(OF_LEVELS, "task\n  export X RUNLEVEL\n").exports_level());
        assert!(!job(OF_LEVELS, "task\nenv RUNLEVEL\nexport PREVLEVEL").exports_level());
    }

    #[test]
    fn a_job_with_instances_is_known() {
        assert!(job("x.conf", "start on y\n  instance $TTY\n").is_template());
        assert!(!job("x.conf", "# instance $TTY\nenv instance=1\n").is_template());
    }
}
