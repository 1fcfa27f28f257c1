//! The network of containers in virtual machines: CNI's by nerdctl, a namespace made by hand, none, and the
//! host's, which is refused; on the newest containerd, for what differs between them is in no network.

#![expect(clippy::panic, reason = "a test's own functions")]

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use integration::{
    config::Config,
    containerd::{Containerd, SETTLE_LIMIT},
    ctr::Ctr,
    images::Image,
    nerdctl::Nerdctl,
    network::NetworkNamespace,
    process::{Running, output_of},
    runtime::Runtime,
    skip::skip,
    versions::{Availability, Version, nerdctl},
    wait::{SOON, Sources, until},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

const RUNTIME: Runtime = Runtime::Runv;

/// Answers on all addresses of its guest.
const SERVER: &str = "mkdir -p /www; echo here > /www/index.html; exec httpd -f -p 80 -h /www";

const QUICK: Duration = Duration::from_secs(20);

/// With the newest containerd, in a network namespace that is the host's for it.
fn check(behaviour: impl Fn(&Containerd, &NetworkNamespace) -> Result<()>) {
    let run = || -> Result<()> {
        let installed = Version::available()?
            .pop()
            .context("there is a containerd")?;
        let home = RUNTIME.home(1)?.context("runv has a place")?;
        let network = NetworkNamespace::new()?;
        let mut config = Config::with_images(&[Image::Busybox]);
        config.environment.push(home.variable());
        config.network = Some(network.path());
        let containerd = Containerd::start(&installed, &config)?;
        behaviour(&containerd, &network).with_context(|| containerd.log_tail())?;
        containerd.finish()
    };
    if let Err(error) = run() {
        panic!("{error:?}");
    }
}

/// What a command in a namespace prints.
fn inside(network: &NetworkNamespace, words: &[&str]) -> Result<String> {
    let mut command = network.command(words[0]);
    output_of(command.args(&words[1..]), QUICK)
}

/// Neither curl nor wget is on every machine; bash speaks TCP.
fn answers(network: &NetworkNamespace, address: &str, port: u16, page: &str) -> Result<()> {
    let place = format!("/dev/tcp/{address}/{port}");
    let script = format!("exec 3<>{place} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3");
    until(&format!("{place} answers"), SOON, Sources::none(), || {
        let mut fetch = network.command("bash");
        let fetched = Running::start(fetch.args(["-c", &script]))?.finish(QUICK)?;
        Ok(fetched
            .stdout()
            .ends_with(&format!("{page}\n"))
            .then_some(()))
    })
}

#[test]
fn guests_on_a_bridge_reach_the_host_each_other_and_their_ports_answer() {
    check(|containerd, network| {
        let binary = match nerdctl()? {
            Availability::Ready(binary) => binary,
            Availability::Absent(reason) => {
                skip("nerdctl", &reason);
                return Ok(());
            }
        };
        let nerdctl = Nerdctl::new(binary, containerd, network)?;
        let image = Image::Busybox.reference();
        let script = "mkdir -p /www; hostname > /www/index.html; httpd -f -p 80 -h /www";
        let words = [
            "-d", "-h", "shop", "-p", "8080:80", &image, "sh", "-c", script,
        ];
        nerdctl.run(RUNTIME, "web", &words)?.success()?;
        let asked = [
            "inspect",
            "--format",
            "{{.NetworkSettings.IPAddress}}",
            "web",
        ];
        let address = nerdctl.call(&asked)?.success()?.stdout().trim().to_owned();
        let (subnet, _) = address.rsplit_once('.').context("an address")?;
        let host = format!("{subnet}.1");
        answers(network, &address, 80, "shop")?;
        answers(network, &host, 8080, "shop")?;
        let data = containerd.work().join("data");
        std::fs::create_dir(&data)?;
        let volume = format!("{}:/data", data.display());
        let script = format!(
            "grep -c nameserver /etc/resolv.conf >&2; ping -c 1 -W 5 {host} >&2 && wget -q -O - http://{address}/ | tee /data/page"
        );
        let words = ["--rm", "-v", &volume, &image, "sh", "-c", &script];
        nerdctl
            .run(RUNTIME, "client", &words)?
            .success()?
            .printing("shop")?;
        ensure!(std::fs::read_to_string(data.join("page"))? == "shop\n");
        nerdctl.call(&["rm", "-f", "web"])?.success()?;
        let links = inside(network, &["ip", "-o", "link"])?;
        ensure!(!links.contains("veth"), "{links}");
        Ok(())
    });
}

/// A namespace with two links to the test's own network, IPv4 and IPv6.
fn by_hand(network: &NetworkNamespace) -> Result<NetworkNamespace> {
    let theirs = NetworkNamespace::new()?;
    for (name, mtu) in [("eth0", "1400"), ("data", "1500")] {
        let name_here = format!("to-{name}");
        let path = theirs.path().display().to_string();
        let words = [
            "ip", "link", "add", &name_here, "type", "veth", "peer", "name", name,
        ];
        inside(network, &words)?;
        inside(
            network,
            &["ip", "link", "set", name, "mtu", mtu, "netns", &path],
        )?;
        inside(
            network,
            &["ip", "link", "set", &name_here, "mtu", mtu, "up"],
        )?;
        inside(&theirs, &["ip", "link", "set", name, "up"])?;
    }
    let add = |of: &NetworkNamespace, address: &str, link: &str| {
        inside(of, &["ip", "address", "add", address, "dev", link, "nodad"])
    };
    add(network, "10.211.0.1/24", "to-eth0")?;
    add(network, "fd00:211::1/64", "to-eth0")?;
    add(network, "10.212.0.1/24", "to-data")?;
    add(&theirs, "10.211.0.2/24", "eth0")?;
    add(&theirs, "fd00:211::2/64", "eth0")?;
    add(&theirs, "10.212.0.2/24", "data")?;
    inside(
        &theirs,
        &["ip", "route", "add", "default", "via", "10.211.0.1"],
    )?;
    inside(
        &theirs,
        &["ip", "-6", "route", "add", "default", "via", "fd00:211::1"],
    )?;
    inside(
        &theirs,
        &["ip", "route", "add", "198.51.100.0/24", "via", "10.212.0.1"],
    )?;
    Ok(theirs)
}

#[test]
fn a_namespace_is_copied_into_its_guest_and_is_free_again_afterwards() {
    check(|containerd, network| {
        let ctr = Ctr::of(containerd);
        let theirs = by_hand(network)?;
        let joined = format!("network:{}", theirs.path().display());
        let container =
            |id: &str, flags: &[&str]| ctr.container(id, Image::Busybox, RUNTIME).flags(flags);
        let before = inside(&theirs, &["ip", "-o", "link"])?;
        let task = container("copy", &["--with-ns", &joined]).detach(&["sh", "-c", SERVER])?;
        is_copied(&task.output("ip address; ip route; ip -6 route")?, &before)?;
        for address in ["10.211.0.1", "fd00:211::1", "10.212.0.1"] {
            task.exec(&["ping", "-c", "1", "-W", "5", address])?
                .success()?;
        }
        for address in ["10.211.0.2", "fd00:211::2", "10.212.0.2"] {
            answers(network, address, 80, "here")?;
        }

        // A second machine cannot have it, and the first one keeps it.
        let second = container("second", &["--with-ns", &joined]).run(&["true"])?;
        ensure!(second.code() != 0, "{second}");
        ensure!(
            second
                .stderr()
                .contains("has an ingress queueing discipline already"),
            "{second}"
        );
        answers(network, "10.211.0.2", 80, "here")?;

        // From disk alone.
        let qemu = task.pid()?;
        let shim = containerd.shim_of("copy")?.context("it has a shim")?;
        kill(Pid::from_raw(shim), Signal::SIGKILL)?;
        until("QEMU is gone", SETTLE_LIMIT, Sources::none(), || {
            Ok((!Path::new(&format!("/proc/{qemu}")).exists()).then_some(()))
        })?;
        // It cleans up by itself after a shim that is gone.
        until("containerd has no task", SOON, Sources::none(), || {
            Ok(task.status()?.is_none().then_some(()))
        })?;
        task.remove_container()?;
        is_free(&theirs, &before)?;

        // Another one takes it, and leaves it at its own end.
        let script = "ping -c 1 -W 5 10.211.0.1 >&2 && echo reached";
        let reached = container("next", &["--with-ns", &joined]).output(script)?;
        ensure!(reached == "reached\n", "{reached:?}");
        is_free(&theirs, &before)?;

        let none = container("none", &[]).output("ls /sys/class/net")?;
        ensure!(none == "lo\n", "{none:?}");
        for flags in [
            &["--net-host"][..],
            &[
                "--with-ns",
                &format!("network:{}", network.path().display()),
            ],
        ] {
            let host = container("host", flags).run(&["true"])?;
            ensure!(host.code() != 0, "{host}");
            ensure!(
                host.stderr().contains("that is the host's network"),
                "{host}"
            );
        }
        Ok(())
    });
}

fn is_copied(seen: &str, before: &str) -> Result<()> {
    let macs = before.lines().filter(|line| line.contains("link/ether"));
    let macs = macs.filter_map(|line| line.split("link/ether ").nth(1)?.split(' ').next());
    let macs: Vec<_> = macs.collect();
    ensure!(macs.len() == 2, "{before}");
    let expected = [
        "mtu 1400",
        "inet 10.211.0.2/24",
        "inet6 fd00:211::2/64",
        "inet 10.212.0.2/24",
        "default via 10.211.0.1 dev eth0",
        "198.51.100.0/24 via 10.212.0.1 dev data",
        "default via fd00:211::1 dev eth0",
    ];
    for expected in expected.iter().chain(&macs) {
        ensure!(seen.contains(expected), "no {expected:?} in {seen}");
    }
    Ok(())
}

/// No tap and no queueing discipline is left.
fn is_free(theirs: &NetworkNamespace, before: &str) -> Result<()> {
    let links = inside(theirs, &["ip", "-o", "link"])?;
    ensure!(links == before, "{links}");
    let disciplines = inside(theirs, &["tc", "qdisc", "show"])?;
    ensure!(!disciplines.contains("ingress"), "{disciplines}");
    Ok(())
}
