//! From a whole config.json to a [`Plan`]: each part by its own file, and what concerns several.

use std::collections::BTreeMap;
use std::path::Path;

use launch::plan::{
    InitPlan, Labels, PidOne, PlannedMount, Root, RootEntry, Scheduling, SeccompFilter, Toggle,
};
use mounts::flags::{PRIVATE, REC, SHARED, SLAVE, UNBINDABLE};
use oci_spec::runtime::{Hooks as OciHooks, Linux};

use crate::colocation::Colocation;
use crate::load::Bundle;
use crate::mount::Surroundings;
use crate::namespaces::{IdMaps, Namespaces, time_offsets};
use crate::plan::{HostFacts, NamespaceKind, Plan, PlanContext, Planned, SeccompListener};
use crate::process::{NO_NEW_PRIVS, ProcessContext, label, process_plan, toggle};
use crate::rich::hooks::Hooks;
use crate::rich::{MODE, Rich};
use crate::traffic::Traffic;
use crate::view::View;
use crate::{
    Error, Result, annotations, capabilities, device, filter, hook, intel_rdt, mount, net_device,
    priority, resources, scheduling, sysctl,
};

/// sethostname(2), setdomainname(2).
const NAME_BYTES_MAX: usize = 64;

impl Bundle {
    /// Checks the whole config.json and says what will be done. Nothing is changed.
    ///
    /// # Errors
    /// The first field that breaks a rule of the specification ([`Error::Invalid`]) or that asks
    /// for what is not done here ([`Error::Unsupported`]).
    pub fn plan(&self, context: &PlanContext) -> Result<Plan> {
        check_version(self.spec.version())?;
        let mut own_annotations = self.annotations();
        annotations::check(&own_annotations)?;
        let linux = self.linux()?;
        let mut warnings = self.warnings.clone();
        let mut namespaces = Namespaces::of(linux)?;
        check_shared_mounts(&namespaces, linux)?;
        let maps = IdMaps::of(linux, &namespaces, &mut warnings)?;
        let mut notes = Vec::new();
        let mut init = self.init(
            context,
            linux,
            (&namespaces, &maps),
            (&mut warnings, &mut notes),
        )?;
        let init_of_image = || (context.init_of)(Path::new(&init.root.path));
        let rich = Rich::of(&own_annotations, self.env(), init_of_image)?;
        let (mut rich_hooks, mut ready) = (Hooks::default(), None);
        let view = View::of(&own_annotations)?;
        refuse_in_shared_mounts(&namespaces, rich.is_some(), view)?;
        if let Some(rich) = rich {
            rich_hooks = rich.hooks.clone();
            ready = rich.ready.clone();
            // Whoever decided it, the state tells.
            own_annotations.insert(MODE.to_owned(), rich.mode.as_str().to_owned());
            let filter = linux.seccomp().as_ref();
            rich.apply(context, (&mut init, &mut namespaces), filter)?;
        }
        maps.check(&init.process, &namespaces)?;
        let seccomp_listener = self.seccomp_listener(linux, &init.pid_one)?;
        let resources = resources::initial(linux.resources().as_ref(), &init.devices)?;
        let ignored = resources.ignored();
        warnings.extend(ignored.iter().map(|field| format!("{field} is ignored")));
        let hooks = self.hooks();
        check_traffic(Traffic::of(&own_annotations)?, &namespaces)?;
        let colocation = Colocation::of(&own_annotations)?;
        if let Some(left_out) = self.left_out(&init.process) {
            own_annotations.insert(annotations::LEFT_OUT.to_owned(), left_out);
        }
        // One that is joined has its own.
        let maps = match namespaces.makes(NamespaceKind::User) {
            true => maps,
            false => IdMaps::default(),
        };
        Ok(Plan {
            id: context.id.clone(),
            bundle: self.dir.clone(),
            time_offsets: time_offsets(linux, &namespaces)?,
            net_devices: net_device::names(linux, &namespaces)?,
            namespaces: namespaces.0,
            uid_maps: maps.uids,
            gid_maps: maps.gids,
            cgroups_path: self.cgroups_path(),
            resources,
            priority: priority::of(&own_annotations)?,
            intel_rdt: intel_rdt::wanted(linux, &colocation)?,
            colocation,
            hooks_prestart: prestart(&hooks)?,
            hooks_create_runtime: hook::hooks("createRuntime", hooks.create_runtime())?,
            hooks_poststart: hook::hooks("poststart", hooks.poststart())?,
            hooks_poststop: hook::hooks("poststop", hooks.poststop())?,
            rich_hooks,
            ready,
            init,
            view,
            seccomp_listener,
            annotations: own_annotations,
            warnings,
            notes,
        })
    }

    /// The filter of the container, for one of its execs; none when config.json has none.
    ///
    /// # Errors
    /// As [`Bundle::plan`], for `linux.seccomp`.
    pub fn seccomp_filter(&self, host: &HostFacts) -> Result<Planned<Option<SeccompFilter>>> {
        match self
            .spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.seccomp().as_ref())
        {
            Some(spec) => filter::filter(spec, host),
            None => Ok(Planned {
                value: None,
                warnings: Vec::new(),
                notes: Vec::new(),
            }),
        }
    }

    /// What config.json asks for that a program runs without, by the fields' names.
    fn left_out(&self, program: &launch::plan::Process) -> Option<String> {
        let process = self.spec.process().as_ref();
        let asks_nnp = process.is_some_and(|spec| spec.no_new_privileges() == Some(true));
        let linux = self.spec.linux().as_ref();
        let asks_filter = linux.is_some_and(|linux| linux.seccomp().is_some());
        let left_out: Vec<_> = [
            (
                asks_nnp && program.no_new_privs == Toggle::Off,
                NO_NEW_PRIVS,
            ),
            (asks_filter && program.seccomp.is_none(), filter::SECCOMP),
        ]
        .into_iter()
        .filter_map(|(is_left_out, field)| is_left_out.then_some(field))
        .collect();
        (!left_out.is_empty()).then(|| left_out.join(","))
    }

    fn seccomp_listener(&self, linux: &Linux, init: &PidOne) -> Result<Option<SeccompListener>> {
        let listener = linux.seccomp().as_ref().map(filter::listener).transpose()?;
        match (listener.flatten(), init) {
            (None, _) => Ok(None),
            (listener, PidOne::Program) => Ok(listener),
            (Some(_), _) => Err(Error::unsupported(
                filter::SECCOMP,
                "SCMP_ACT_NOTIFY is not for rich containers, whose pid 1 is not the program",
            )),
        }
    }

    fn linux(&self) -> Result<&Linux> {
        match self.spec.linux() {
            Some(linux) => Ok(linux),
            None => Err(Error::invalid("linux", "is missing")),
        }
    }

    fn env(&self) -> &[String] {
        let process = self.spec.process().as_ref();
        process
            .and_then(|process| process.env().as_deref())
            .unwrap_or_default()
    }

    fn hooks(&self) -> OciHooks {
        self.spec.hooks().clone().unwrap_or_default()
    }

    fn init(
        &self,
        context: &PlanContext,
        linux: &Linux,
        (namespaces, maps): (&Namespaces, &IdMaps),
        (warnings, notes): (&mut Vec<String>, &mut Vec<String>),
    ) -> Result<InitPlan> {
        let seccomp = self.seccomp_filter(&context.host)?;
        let hooks = self.hooks();
        let sysctl: BTreeMap<_, _> = linux.sysctl().iter().flatten().collect();
        let scheduling = scheduling::of_container(linux, warnings)?;
        warnings.extend(seccomp.warnings);
        notes.extend(seccomp.notes);
        let process = self.process(context, seccomp.value, scheduling)?;
        warnings.extend(process.warnings);
        notes.extend(process.notes);
        let entry = match namespaces.makes(NamespaceKind::Mount) {
            true => context.root_entry,
            false => RootEntry::Chroot,
        };
        let root = self.root(linux, entry)?;
        let domainname = uts_name("domainname", self.spec.domainname(), namespaces)?;
        Ok(InitPlan {
            mounts: self.mounts(context, (Path::new(&root.path), maps), warnings)?,
            root,
            devices: device::nodes(linux.devices().as_deref().unwrap_or_default())?,
            masked_paths: paths("linux.maskedPaths", linux.masked_paths())?,
            readonly_paths: paths("linux.readonlyPaths", &from_root(linux.readonly_paths()))?,
            sysctl: sysctl::checked(&sysctl, namespaces, domainname.as_deref())?,
            hostname: uts_name("hostname", self.spec.hostname(), namespaces)?,
            domainname,
            cgroup_namespace: toggle(Some(namespaces.has(NamespaceKind::Cgroup))),
            mount_label: mount_label(linux, &context.host, warnings)?,
            create_container_hooks: hook::hooks("createContainer", hooks.create_container())?,
            start_container_hooks: hook::hooks("startContainer", hooks.start_container())?,
            state_creating: String::new(),
            state_created: String::new(),
            pid_one: PidOne::Program,
            process: process.value,
        })
    }

    fn process(
        &self,
        context: &PlanContext,
        seccomp: Option<SeccompFilter>,
        scheduling: Scheduling,
    ) -> Result<Planned<launch::plan::Process>> {
        let Some(process) = self.spec.process() else {
            return Err(Error::invalid("process", "is missing"));
        };
        let context = ProcessContext {
            host: context.host,
            preserve_fds: context.preserve_fds,
            new_keyring: context.new_keyring,
            seccomp,
            capabilities: capabilities::NONE,
            labels: Labels::default(),
            scheduling,
        };
        process_plan(process, &context)
    }

    fn root(&self, linux: &Linux, entry: RootEntry) -> Result<Root> {
        let Some(spec) = self.spec.root() else {
            return Err(Error::invalid("root", "is missing"));
        };
        let refuse = |why: &str| {
            let path = self.dir.join(spec.path());
            Err(Error::invalid(
                "root.path",
                format!("{} {why}", path.display()),
            ))
        };
        if spec.path().as_os_str().is_empty() {
            return Err(Error::invalid("root.path", "must not be empty"));
        }
        let path = match std::fs::canonicalize(self.dir.join(spec.path())) {
            Ok(path) => path,
            Err(e) => return refuse(&format!("cannot be used: {e}")),
        };
        if !path.is_dir() {
            return refuse("is not a directory");
        }
        if path == Path::new("/") {
            return refuse("is the root of the host");
        }
        let Some(path) = path.to_str().map(str::to_owned) else {
            return refuse("is not UTF-8");
        };
        let propagation = propagation(linux.rootfs_propagation().as_deref(), entry)?;
        Ok(Root {
            path,
            readonly: toggle(spec.readonly()),
            propagation,
            entry,
        })
    }

    fn mounts(
        &self,
        context: &PlanContext,
        (root, id_maps): (&Path, &IdMaps),
        warnings: &mut Vec<String>,
    ) -> Result<Vec<PlannedMount>> {
        let around = Surroundings {
            bundle: &self.dir,
            root,
            cgroup_view: &context.cgroup_view,
            id_maps,
        };
        let specs = self.spec.mounts().iter().flatten().enumerate();
        specs
            .map(|(index, spec)| mount::planned(index, spec, &around, warnings))
            .collect()
    }
}

fn prestart(hooks: &OciHooks) -> Result<Vec<launch::plan::Hook>> {
    hook::hooks("prestart", hooks.prestart())
}

/// Any version 1: minor versions only add (config.md, Specification version).
fn check_version(version: &str) -> Result<()> {
    let core = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<&str> = core.split('.').collect();
    let is_number = |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    if parts.len() != 3 || !parts.iter().all(is_number) {
        return Err(Error::invalid(
            "ociVersion",
            format!("{version:?} is no semantic version"),
        ));
    }
    if parts[0] != "1" {
        let why = format!("{version:?}: only 1.x is understood");
        return Err(Error::invalid("ociVersion", why));
    }
    Ok(())
}

/// Nobody's traffic is limited by a container but its own.
fn check_traffic(traffic: Traffic, namespaces: &Namespaces) -> Result<()> {
    if traffic.is_none() || namespaces.has(NamespaceKind::Network) {
        return Ok(());
    }
    let why = "needs a network namespace other than the host's, and linux.namespaces has none";
    Err(Error::invalid(traffic.field(), why))
}

/// What would change mounts of others, in a mount namespace that is not the container's own.
fn check_shared_mounts(namespaces: &Namespaces, linux: &Linux) -> Result<()> {
    if namespaces.makes(NamespaceKind::Mount) {
        return Ok(());
    }
    let asked = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|paths| !paths.is_empty());
    let fields = [
        ("linux.maskedPaths", asked(linux.masked_paths())),
        ("linux.readonlyPaths", asked(linux.readonly_paths())),
        (
            "linux.rootfsPropagation",
            linux
                .rootfs_propagation()
                .as_deref()
                .is_some_and(|it| !it.is_empty()),
        ),
    ];
    match fields.iter().find(|(_, asked)| *asked) {
        Some((field, _)) => Err(Error::invalid(
            *field,
            "needs a mount namespace of the container's own",
        )),
        None => Ok(()),
    }
}

/// As [`check_shared_mounts`], for what annotations ask for.
fn refuse_in_shared_mounts(namespaces: &Namespaces, is_rich: bool, view: View) -> Result<()> {
    if namespaces.makes(NamespaceKind::Mount) {
        return Ok(());
    }
    let what = match (is_rich, view) {
        (true, _) => "a rich container",
        (false, View::Lxcfs) => "a view by lxcfs",
        (false, View::Host) => return Ok(()),
    };
    let why = "it needs a mount namespace of the container's own";
    Err(Error::unsupported(what, why))
}

/// The label of files, as it stands between the quotes of a mount option.
fn mount_label(
    linux: &Linux,
    host: &HostFacts,
    warnings: &mut Vec<String>,
) -> Result<Option<String>> {
    const FIELD: &str = "linux.mountLabel";
    let Some(label) = label(FIELD, linux.mount_label().as_deref())? else {
        return Ok(None);
    };
    if label.contains('"') {
        return Err(Error::invalid(FIELD, format!("{label:?} has a quote")));
    }
    // Without SELinux nobody reads labels.
    if host.selinux == Toggle::Off {
        warnings.push(format!(
            "{FIELD} {label:?} is ignored: SELinux is not enabled on this host"
        ));
        return Ok(None);
    }
    Ok(Some(label))
}

fn propagation(word: Option<&str>, entry: RootEntry) -> Result<u64> {
    let word = word.unwrap_or_default();
    let flags = match word {
        "" => 0,
        "private" => PRIVATE,
        "rprivate" => PRIVATE | REC,
        "slave" => SLAVE,
        "rslave" => SLAVE | REC,
        "shared" => SHARED,
        "rshared" => SHARED | REC,
        "unbindable" => UNBINDABLE,
        "runbindable" => UNBINDABLE | REC,
        _ => {
            let why =
                format!("{word:?} is not one of [r]private, [r]slave, [r]shared, [r]unbindable");
            return Err(Error::invalid("linux.rootfsPropagation", why));
        }
    };
    if entry == RootEntry::MoveChroot && flags & PRIVATE != 0 {
        let why = format!("{word:?} is not safe without pivot_root");
        return Err(Error::invalid("linux.rootfsPropagation", why));
    }
    Ok(flags)
}

/// Relative ones are below the root, as with runc, though the specification has none.
fn from_root(list: &Option<Vec<String>>) -> Option<Vec<String>> {
    let absolute = |path: &String| match path.starts_with('/') || path.is_empty() {
        true => path.clone(),
        false => format!("/{path}"),
    };
    Some(list.as_ref()?.iter().map(absolute).collect())
}

fn paths(field: &str, list: &Option<Vec<String>>) -> Result<Vec<String>> {
    let list = list.clone().unwrap_or_default();
    match list.iter().position(|path| !path.starts_with('/')) {
        Some(i) => {
            let why = format!("{:?} is not an absolute path", list[i]);
            Err(Error::invalid(format!("{field}[{i}]"), why))
        }
        None => Ok(list),
    }
}

fn uts_name(field: &str, name: &Option<String>, namespaces: &Namespaces) -> Result<Option<String>> {
    let Some(name) = name.clone().filter(|name| !name.is_empty()) else {
        return Ok(None);
    };
    if !namespaces.has(NamespaceKind::Uts) {
        let why = "needs a uts namespace other than the host's";
        return Err(Error::invalid(field, why));
    }
    if name.len() > NAME_BYTES_MAX {
        let why = format!("{} bytes, the kernel takes {NAME_BYTES_MAX}", name.len());
        return Err(Error::invalid(field, why));
    }
    Ok(Some(name))
}
