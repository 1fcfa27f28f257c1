//! Rich containers: what annotations below `org.pouch.rich.` ask for, or PouchContainer's own
//! spelling in the environment and in labels. What is not known is refused by its name.

pub mod components;
mod filter;
pub mod hooks;
pub mod ready;
pub(crate) mod restart;
mod rewrites;
pub mod services;

use std::collections::BTreeMap;

use launch::image_init::style::Style;
use launch::plan::{InitPlan, PidOne, Process, Restart, Rewrite, Service, Services};
use oci_spec::runtime::LinuxSeccomp;

use crate::annotations::nearest;
use crate::namespaces::Namespaces;
use crate::plan::{NamespaceKind, PlanContext};
use crate::{Error, Result, image_init, systemd};

use filter::{forbidden_to_pid_one, forbidden_to_restarts};

/// Who is pid 1.
pub const MODE: &str = "org.pouch.rich.mode";
/// Signals that the program gets as other ones: `TERM:QUIT,HUP:0`.
pub const SIGNALS: &str = "org.pouch.rich.signals";

/// Who the program runs as, by the image's name of the user.
pub const USER: &str = "org.pouch.rich.user";
/// Whether the program is started again when it has ended: `no`, `on-failure`, `always`.
pub const RESTART: &str = "org.pouch.rich.restart";
/// Services to run beside the program: `cron,ssh`.
pub const SERVICES: &str = "org.pouch.rich.services";

const ALL_MODES: [Mode; 3] = [Mode::Systemd, Mode::SbinInit, Mode::DumbInit];

/// What only rich containers have, and some only in some modes.
const OF_MODES: [(&str, &[Mode]); 7] = [
    (SIGNALS, &[Mode::DumbInit]),
    (USER, &[Mode::Systemd, Mode::SbinInit]),
    (RESTART, &ALL_MODES),
    (SERVICES, &ALL_MODES),
    (components::COMPONENTS, &ALL_MODES),
    (ready::READY, &ALL_MODES),
    (ready::TIMEOUT, &ALL_MODES),
];

/// What containerd's CRI marks the sandbox of a pod with. It hands the annotations of a pod to the
/// sandbox as well, whose image has neither an init nor the programs of hooks.
pub(crate) const SANDBOX: (&str, &str) = ("io.kubernetes.cri.container-type", "sandbox");

/// PouchContainer's daemon told its runtime by these two variables.
const POUCH_RICH: &str = "rich_mode";
const POUCH_MODE: &str = "rich_mode_launch_manner";

/// Values that made PouchContainer's own plug-in ask for a container like a machine. In a variable
/// a label has this prefix, and no dots.
const LIKE_A_MACHINE: [(Source, &str, &str); 5] = [
    (Source::Variable, "ali_run_mode", "vm"),
    (Source::Variable, "ali_run_mode", "common_vm"),
    (Source::Variable, "CopyHosts", "true"),
    (
        Source::Label,
        "com.alipay.acs.container.server_type",
        "DOCKER_VM",
    ),
    (Source::Label, "ali.host.dns", "true"),
];
const LABEL_VARIABLE: &str = "label__";

/// What a rich container asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rich {
    /// Who is pid 1.
    pub mode: Mode,
    /// Of which kind the image's init is, as far as it matters.
    pub init: Style,
    /// The field that says so, for messages.
    pub asked_by: String,
    /// Signals that the program gets as other ones.
    pub rewrites: Vec<Rewrite>,
    /// The program's user by the image's name of it; none: `process.user`.
    pub user: Option<String>,
    /// Whether the program is started again when it has ended.
    pub restart: Restart,
    /// Names of units, or of scripts.
    pub services: Vec<String>,
    /// In mode dumb-init, what those names are.
    pub own_services: Vec<Service>,
    /// What runs in it before its program and after its end.
    pub hooks: hooks::Hooks,
    /// What its start waits for.
    pub ready: Option<ready::Readiness>,
}

/// Who is pid 1 of a rich container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// runlxc-init, whose child the program is; the image needs nothing.
    DumbInit,
    /// The image's own, of which the program is a unit.
    Systemd,
    /// The image's own `/sbin/init`, of which the program is a job.
    SbinInit,
}

impl Mode {
    /// Its word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DumbInit => "dumb-init",
            Self::Systemd => "systemd",
            Self::SbinInit => "sbin-init",
        }
    }
}

/// The words for modes; none: the image decides.
const MODES: [(&str, Option<Mode>); 4] = [
    ("dumb-init", Some(Mode::DumbInit)),
    ("systemd", Some(Mode::Systemd)),
    ("sbin-init", Some(Mode::SbinInit)),
    (AUTO, None),
];
const AUTO: &str = "auto";

/// The mode for an image with such an init.
fn mode_for(init: Style) -> Mode {
    match init {
        Style::Systemd => Mode::Systemd,
        Style::Sysv | Style::Upstart => Mode::SbinInit,
        Style::Busybox | Style::Other => Mode::DumbInit,
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Variable,
    /// An annotation of that name, or the variable that was made of a label.
    Label,
}

/// A mode, and the field that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Asked {
    field: String,
    mode: &'static str,
}

impl Rich {
    /// What these annotations and this environment ask for; none: an ordinary container, as the
    /// sandbox of a pod is whatever they say. The image is looked at only if it decides.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a value that means nothing, or several that contradict each other.
    pub fn of(
        annotations: &BTreeMap<String, String>,
        env: &[String],
        init_of_image: impl FnOnce() -> Style,
    ) -> Result<Option<Self>> {
        if annotations
            .get(SANDBOX.0)
            .is_some_and(|kind| kind == SANDBOX.1)
        {
            return Ok(None);
        }
        let Some(asked) = asked(annotations, env)? else {
            let mut of_modes = OF_MODES.iter().map(|(key, _)| *key).chain(hooks::KEYS);
            let of_services = services::keys(annotations).next();
            let key = of_modes.find(|key| annotations.contains_key(*key));
            return match key.or(of_services) {
                Some(key) => {
                    let why = format!("only rich containers have it: {MODE} is missing");
                    Err(Error::invalid(annotation(key), why))
                }
                None => Ok(None),
            };
        };
        let known = MODES.iter().find(|(word, _)| *word == asked.mode);
        let (mode, init, why) = match known.and_then(|(_, mode)| *mode) {
            Some(Mode::SbinInit) => (Mode::SbinInit, init_of_image(), ""),
            Some(Mode::Systemd) => (Mode::Systemd, Style::Systemd, ""),
            Some(Mode::DumbInit) => (Mode::DumbInit, Style::Other, ""),
            None => {
                let init = init_of_image();
                (mode_for(init), init, ", which auto chose for this image,")
            }
        };
        let mut others = OF_MODES.iter().filter(|(_, only)| !only.contains(&mode));
        if let Some((key, _)) = others.find(|(key, _)| annotations.contains_key(*key)) {
            let why = format!("mode {}{why} has no such thing", mode.as_str());
            return Err(Error::invalid(annotation(key), why));
        }
        components::names(annotations)?;
        let services = annotations.get(SERVICES);
        let services = services.map(|text| image_init::services(&annotation(SERVICES), text, mode));
        let names = services.transpose()?.unwrap_or_default();
        let own = services::of(annotations, &names, mode)?;
        let rewrites = annotations.get(SIGNALS).map(|text| rewrites::parse(text));
        Ok(Some(Self {
            mode,
            init,
            asked_by: asked.field,
            rewrites: rewrites.transpose()?.unwrap_or_default(),
            user: annotations.get(USER).cloned(),
            restart: restart::of(annotations)?,
            services: names,
            own_services: own,
            hooks: hooks::Hooks::of(annotations)?,
            ready: ready::Readiness::of(annotations, mode, &ready::socket())?,
        }))
    }

    /// Changes a plan to what it means for a container in these namespaces and under this filter.
    pub(crate) fn apply(
        self,
        context: &PlanContext,
        (init, namespaces): (&mut InitPlan, &mut Namespaces),
        filter: Option<&LinuxSeccomp>,
    ) -> Result<()> {
        let word = self.ready.as_ref().and_then(ready::Readiness::of_program);
        if word.is_some() {
            ready::replace_socket(&mut init.process.env, word);
        }
        match self.mode {
            Mode::DumbInit => {
                init.pid_one = self.pid_one(namespaces, filter, &init.process)?;
            }
            Mode::Systemd => {
                self.check_poststop(filter)?;
                systemd::furnish(&self, context, (init, namespaces))?;
            }
            Mode::SbinInit => {
                self.check_poststop(filter)?;
                image_init::furnish_sbin(&self, context, (init, namespaces))?;
            }
        }
        Ok(())
    }

    /// A poststop hook has a pid 1 like that of mode dumb-init.
    fn check_poststop(&self, filter: Option<&LinuxSeccomp>) -> Result<()> {
        let forbidden = filter.and_then(forbidden_to_pid_one);
        match forbidden.filter(|_| self.hooks.poststop.is_some()) {
            Some(call) => {
                let why = format!("it needs {call}, which linux.seccomp forbids");
                Err(Error::invalid(annotation(hooks::POSTSTOP), why))
            }
            None => Ok(()),
        }
    }

    /// What mode dumb-init means for pid 1.
    fn pid_one(
        self,
        namespaces: &Namespaces,
        filter: Option<&LinuxSeccomp>,
        program: &Process,
    ) -> Result<PidOne> {
        if !namespaces.makes(NamespaceKind::Pid) {
            let why = "mode dumb-init needs a new pid namespace, and linux.namespaces has none";
            return Err(Error::invalid(self.asked_by, why));
        }
        if let Some(call) = filter.and_then(forbidden_to_pid_one) {
            let why = format!("mode dumb-init needs {call}, which linux.seccomp forbids");
            return Err(Error::invalid(self.asked_by, why));
        }
        restart::check_terminal(self.restart, program)?;
        let is_again = self.restart != Restart::Never;
        if let Some(call) = filter.filter(|_| is_again).and_then(forbidden_to_restarts) {
            let why = format!("it needs {call}, which linux.seccomp forbids");
            return Err(Error::invalid(annotation(RESTART), why));
        }
        let services = Services {
            list: self.own_services,
            ..services::beside(program)
        };
        Ok(PidOne::Stub {
            rewrites: self.rewrites,
            services: (!services.list.is_empty()).then(|| Box::new(services)),
            restart: self.restart,
        })
    }
}

fn annotation(key: &str) -> String {
    format!("annotations.{key}")
}

fn variable(name: &str) -> String {
    format!("process.env {name}")
}

/// The value of a variable; of equal names the last counts, as for the program.
fn value<'a>(env: &'a [String], name: &str) -> Option<&'a str> {
    env.iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

fn asked(annotations: &BTreeMap<String, String>, env: &[String]) -> Result<Option<Asked>> {
    let ours = annotations.get(MODE);
    let ours = ours.map(|word| mode_of(annotation(MODE), word));
    let (ours, rich) = (ours.transpose()?, pouch_rich(env)?);
    let theirs = value(env, POUCH_MODE).map(|word| mode_of(variable(POUCH_MODE), word));
    let theirs = theirs.transpose()?;
    let machine = like_a_machine(annotations, env);
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if ours.mode != theirs.mode => {
            let why = format!("{}, but {} is {}", ours.mode, theirs.field, theirs.mode);
            Err(Error::invalid(ours.field, why))
        }
        (Some(asked), _) | (None, Some(asked)) if rich == Some(false) => {
            let why = format!("{}, but {} is false", asked.mode, variable(POUCH_RICH));
            Err(Error::invalid(asked.field, why))
        }
        (Some(ours), _) => Ok(Some(ours)),
        (None, Some(theirs)) if rich.is_none() && machine.is_none() => {
            let why = format!("{} without {POUCH_RICH}=true", theirs.mode);
            Err(Error::invalid(theirs.field, why))
        }
        (None, Some(theirs)) => Ok(Some(theirs)),
        (None, None) if machine.is_some() => Ok(machine),
        (None, None) => Ok((rich == Some(true)).then(|| Asked {
            field: variable(POUCH_RICH),
            mode: "dumb-init",
        })),
    }
}

fn mode_of(field: String, word: &str) -> Result<Asked> {
    let words = MODES.map(|(word, _)| word);
    match words.into_iter().find(|known| *known == word) {
        Some(mode) => Ok(Asked { field, mode }),
        None => {
            let hint = nearest(&words, word).unwrap_or_default();
            let why = format!("{word:?} is no mode: the nearest is {hint}");
            Err(Error::invalid(field, why))
        }
    }
}

fn pouch_rich(env: &[String]) -> Result<Option<bool>> {
    match value(env, POUCH_RICH) {
        None => Ok(None),
        Some("true") => Ok(Some(true)),
        Some("false") => Ok(Some(false)),
        Some(other) => {
            let why = format!("{other:?} is neither true nor false");
            Err(Error::invalid(variable(POUCH_RICH), why))
        }
    }
}

/// PouchContainer ran such containers with the image's systemd.
fn like_a_machine(annotations: &BTreeMap<String, String>, env: &[String]) -> Option<Asked> {
    let field = LIKE_A_MACHINE.iter().find_map(|(source, name, wanted)| {
        let is_wanted = |value: Option<&str>| value == Some(*wanted);
        if *source == Source::Variable {
            return is_wanted(value(env, name)).then(|| variable(name));
        }
        if is_wanted(annotations.get(*name).map(String::as_str)) {
            return Some(annotation(name));
        }
        let of_label = format!("{LABEL_VARIABLE}{}", name.replace('.', "_"));
        is_wanted(value(env, &of_label)).then(|| variable(&of_label))
    });
    let mode = "systemd";
    field.map(|field| Asked { field, mode })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(annotations: &[(&str, &str)], env: &[&str]) -> Result<Option<Rich>> {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        let annotations = annotations.iter().map(own).collect();
        let env: Vec<_> = env.iter().map(|&entry| entry.to_owned()).collect();
        Rich::of(&annotations, &env, || Style::Other)
    }

    #[track_caller]
    fn accepted(annotations: &[(&str, &str)], env: &[&str], asked_by: Option<&str>) {
        let rich = parse(annotations, env).unwrap();
        assert_eq!(rich.map(|rich| rich.asked_by).as_deref(), asked_by);
    }

    #[track_caller]
    fn refused(annotations: &[(&str, &str)], env: &[&str], why: &str) {
        let error = parse(annotations, env).unwrap_err();
        assert_eq!(error.to_string(), why);
    }

    #[test]
    fn a_mode_is_asked_for_by_annotation_or_in_pouchs_words() {
        let ours = "annotations.org.pouch.rich.mode";
        let dumb_init = &[(MODE, "dumb-init")];
        accepted(dumb_init, &[], Some(ours));
        accepted(dumb_init, &["rich_mode=true"], Some(ours));
        accepted(
            dumb_init,
            &["rich_mode=true", "rich_mode_launch_manner=dumb-init"],
            Some(ours),
        );
        // An explicit word is stronger than what is only implied.
        accepted(dumb_init, &["ali_run_mode=vm"], Some(ours));
        let manner = "rich_mode_launch_manner=dumb-init";
        let theirs = Some("process.env rich_mode_launch_manner");
        accepted(&[], &["rich_mode=true", manner], theirs);
        accepted(&[], &["ali_run_mode=vm", manner], theirs);
        accepted(&[], &["rich_mode=true"], Some("process.env rich_mode"));
        accepted(
            &[],
            &["rich_mode=false", "rich_mode=true"],
            Some("process.env rich_mode"),
        );
    }

    #[test]
    fn what_asks_for_nothing_is_an_ordinary_container() {
        accepted(&[], &[], None);
        accepted(&[], &["rich_mode=false"], None);
        accepted(&[], &["ali_run_mode=alipay_container"], None);
        accepted(
            &[],
            &["CopyHosts=false", "rich_modes=true", "rich_mode"],
            None,
        );
        accepted(
            &[("ali.host.dns", "false")],
            &["label__ali_host_dns="],
            None,
        );
    }

    #[test]
    fn an_images_init_decides_where_nobody_else_does() {
        let auto = [(MODE.to_owned(), AUTO.to_owned())].into();
        for (init, mode) in [
            (Style::Systemd, Mode::Systemd),
            (Style::Sysv, Mode::SbinInit),
            (Style::Upstart, Mode::SbinInit),
            (Style::Busybox, Mode::DumbInit),
            (Style::Other, Mode::DumbInit),
        ] {
            let rich = Rich::of(&auto, &[], || init).unwrap().unwrap();
            assert_eq!(rich.mode, mode, "{init:?}");
        }
        let env = ["rich_mode=true", "rich_mode_launch_manner=auto"];
        let rich = parse(&[], &env).unwrap().unwrap();
        assert_eq!(rich.mode, Mode::DumbInit);
        let why = "annotations.org.pouch.rich.user: mode dumb-init, which auto chose for this \
                   image, has no such thing";
        refused(&[(MODE, AUTO), (USER, "admin")], &[], why);
    }

    #[test]
    fn what_was_like_a_machine_has_systemd() {
        for (entry, name) in [
            ("ali_run_mode=vm", "ali_run_mode"),
            ("ali_run_mode=common_vm", "ali_run_mode"),
            ("CopyHosts=true", "CopyHosts"),
            ("label__ali_host_dns=true", "label__ali_host_dns"),
            (
                "label__com_alipay_acs_container_server_type=DOCKER_VM",
                "label__com_alipay_acs_container_server_type",
            ),
        ] {
            for env in [&[entry][..], &[entry, "rich_mode=true"]] {
                let rich = parse(&[], env).unwrap().unwrap();
                let asked_by = format!("process.env {name}");
                assert_eq!((rich.mode, rich.asked_by), (Mode::Systemd, asked_by));
            }
        }
        for label in [
            ("com.alipay.acs.container.server_type", "DOCKER_VM"),
            ("ali.host.dns", "true"),
        ] {
            let rich = parse(&[label], &[]).unwrap().unwrap();
            assert_eq!(rich.mode, Mode::Systemd);
        }
    }

    #[test]
    fn an_image_has_users_and_dumb_init_has_none() {
        let systemd = (MODE, "systemd");
        let rich = parse(&[systemd, (USER, "admin"), (SERVICES, "cron,ssh")], &[]);
        let rich = rich.unwrap().unwrap();
        assert_eq!(rich.user.as_deref(), Some("admin"));
        assert_eq!(rich.services, ["cron.service", "ssh.service"]);
        let why = "annotations.org.pouch.rich.signals: mode systemd has no such thing";
        refused(&[systemd, (SIGNALS, "TERM:QUIT")], &[], why);
        let dumb_init = (MODE, "dumb-init");
        let why = "annotations.org.pouch.rich.user: mode dumb-init has no such thing";
        refused(&[dumb_init, (USER, "admin")], &[], why);
        let why = "annotations.org.pouch.rich.services: only rich containers have it: \
                   org.pouch.rich.mode is missing";
        refused(&[(SERVICES, "cron")], &[], why);
    }

    #[test]
    fn what_is_misspelt_or_contradicts_itself_is_refused() {
        refused(
            &[(MODE, "dumbinit")],
            &[],
            "annotations.org.pouch.rich.mode: \"dumbinit\" is no mode: the nearest is dumb-init",
        );
        refused(
            &[],
            &["rich_mode=true", "rich_mode_launch_manner=system"],
            "process.env rich_mode_launch_manner: \"system\" is no mode: the nearest is systemd",
        );
        refused(
            &[],
            &["rich_mode=yes"],
            "process.env rich_mode: \"yes\" is neither true nor false",
        );
        refused(
            &[],
            &["rich_mode_launch_manner=dumb-init"],
            "process.env rich_mode_launch_manner: dumb-init without rich_mode=true",
        );
        refused(
            &[],
            &["rich_mode=false", "rich_mode_launch_manner=dumb-init"],
            "process.env rich_mode_launch_manner: dumb-init, but process.env rich_mode is false",
        );
        refused(
            &[(MODE, "dumb-init")],
            &["rich_mode=false"],
            "annotations.org.pouch.rich.mode: dumb-init, but process.env rich_mode is false",
        );
        refused(
            &[(MODE, "dumb-init")],
            &["rich_mode=true", "rich_mode_launch_manner=systemd"],
            "annotations.org.pouch.rich.mode: dumb-init, but process.env rich_mode_launch_manner \
             is systemd",
        );
        refused(
            &[(SIGNALS, "TERM:QUIT")],
            &[],
            "annotations.org.pouch.rich.signals: only rich containers have it: \
             org.pouch.rich.mode is missing",
        );
    }

    #[test]
    fn the_sandbox_of_a_pod_is_an_ordinary_container() {
        let of_pod = [(MODE, "systemd"), (USER, "admin"), (hooks::PRESTART, "/x")];
        for (kind, asked_by) in [
            ("sandbox", None),
            ("container", Some("annotations.org.pouch.rich.mode")),
        ] {
            let annotations = [&of_pod[..], &[(SANDBOX.0, kind)]].concat();
            accepted(&annotations, &[], asked_by);
        }
        accepted(&[SANDBOX], &["ali_run_mode=vm"], None);
    }
}
