//! Limits of a container's network, in the kernel's own counters; on the newest containerd, for what differs
//! between them is in no network.

#![expect(clippy::panic, reason = "a test's own functions")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::{
    config::Config,
    containerd::Containerd,
    ctr::{Container, Ctr},
    images::Image,
    network::NetworkNamespace,
    process::{command, output_of},
    runtime::{Runtime, built},
    versions::Version,
};

const RUNTIME: Runtime = Runtime::Runlxc;

const QUICK: Duration = Duration::from_secs(20);

/// More than any burst and queue of ours takes at such rates, in one go, and to nobody who would complain.
const FLOOD: &str = "head -c 2000000 /dev/zero";
const GROUP: &str = "224.0.0.99";

fn check(behaviour: impl Fn(&Containerd, &NetworkNamespace) -> Result<()>) {
    let run = || -> Result<()> {
        let installed = Version::available()?
            .pop()
            .context("there is a containerd")?;
        let network = NetworkNamespace::new()?;
        let mut config = Config::with_images(&[Image::Busybox]);
        config.network = Some(network.path());
        let containerd = Containerd::start(&installed, &config)?;
        behaviour(&containerd, &network).with_context(|| containerd.log_tail())?;
        containerd.finish()
    };
    if let Err(error) = run() {
        panic!("{error:?}");
    }
}

fn inside(network: &NetworkNamespace, line: &str) -> Result<String> {
    let mut shell = network.command("bash");
    output_of(shell.args(["-c", line]), QUICK)
}

/// A namespace with a link to the test's own.
fn linked(network: &NetworkNamespace) -> Result<NetworkNamespace> {
    let theirs = NetworkNamespace::new()?;
    let path = theirs.path().display().to_string();
    let line = format!(
        "ip link add there type veth peer name eth0 && ip link set eth0 netns {path} && ip link set there up \
         && ip address add 10.213.0.1/24 dev there && ip route add 224.0.0.0/4 dev there"
    );
    inside(network, &line)?;
    let line = "ip link set eth0 up && ip address add 10.213.0.2/24 dev eth0 && \
                ip route add 224.0.0.0/4 dev eth0";
    inside(&theirs, line)?;
    Ok(theirs)
}

/// What became of packets at the root of a link.
#[derive(Debug)]
struct Counted {
    bytes: u64,
    drops: u64,
}

/// None: no discipline of that kind is at its root.
fn counted(network: &NetworkNamespace, link: &str) -> Result<Option<Counted>> {
    let text = inside(network, &format!("tc -s -j qdisc show dev {link}"))?;
    let all: serde_json::Value = serde_json::from_str(&text).context("tc's JSON")?;
    let mut all = all.as_array().into_iter().flatten();
    let number = |value: &serde_json::Value| value.as_u64().context("a counter");
    let ours = all.find(|it| it["kind"] == "tbf" && it["root"] == true);
    ours.map(|ours| {
        Ok(Counted {
            bytes: number(&ours["bytes"])?,
            drops: number(&ours["drops"])?,
        })
    })
    .transpose()
}

/// The name of the link that what comes in at `eth0` is limited by.
fn helper(network: &NetworkNamespace) -> Result<Option<String>> {
    let links = inside(network, "ip -o link")?;
    let names = links.lines().filter_map(|line| line.split(": ").nth(1));
    Ok(names.map(str::to_owned).find(|it| it.starts_with("pouch")))
}

fn limited<'a>(ctr: &Ctr<'a>, id: &str, rates: &[(&str, &str)]) -> Container<'a> {
    let container = ctr.container(id, Image::Busybox, RUNTIME);
    rates.iter().fold(container, |container, (way, rate)| {
        let annotation = format!("org.pouch.net.{way}={rate}");
        container.flags(&["--annotation", &annotation])
    })
}

#[test]
fn what_comes_in_and_what_goes_out_is_limited_until_the_container_goes() {
    check(|containerd, network| {
        let ctr = Ctr::of(containerd);
        let theirs = linked(network)?;
        let before = inside(&theirs, "ip -o link; tc qdisc")?;
        let joined = format!("network:{}", theirs.path().display());
        let rates = [("ingress", "800kbit"), ("egress", "800kbit")];
        // Its poststop hook runs in a network of which nobody asks anything.
        let said = containerd.work().join("said");
        std::fs::create_dir(&said)?;
        let bind = format!(
            "type=bind,src={},dst=/said,options=rbind:rw",
            said.display()
        );
        let container = limited(&ctr, "slow", &rates)
            .flags(&["--with-ns", &joined, "--mount", &bind])
            .flags(&["--annotation", "org.pouch.rich.mode=dumb-init"])
            .flags(&[
                "--annotation",
                "org.pouch.rich.poststop=sh:echo ended > /said/poststop",
            ]);
        let task = container.detach(&["sleep", "600"])?;
        let helper = helper(&theirs)?.context("what comes in has no link of ours")?;

        let flood = format!("{FLOOD} >/dev/udp/{GROUP}/9");
        inside(&theirs, &flood)?;
        inside(network, &flood)?;
        for link in ["eth0", &helper] {
            let counted = counted(&theirs, link)?.context("no limit is there")?;
            ensure!(
                counted.bytes > 0 && counted.drops > 0,
                "{link}: {counted:?}"
            );
        }
        // They are where they were meant to be, and small traffic goes on.
        task.exec(&["ping", "-c", "1", "-W", "5", "10.213.0.1"])?
            .success()?;

        // Another limit while it runs, none at all, and one again.
        let root = format!("/run/containerd/runlxc/{}", containerd.namespace);
        let update = |annotation: &str| {
            let mut update = command(built("runlxc")?);
            update.args([
                "--root",
                &root,
                "update",
                "slow",
                "--annotation",
                annotation,
            ]);
            output_of(&mut update, QUICK)
        };
        update("org.pouch.net.egress=unlimited")?;
        ensure!(counted(&theirs, "eth0")?.is_none());
        ensure!(counted(&theirs, &helper)?.is_some());
        update("org.pouch.net.egress=1gbit")?;
        let shown = inside(&theirs, "tc qdisc show dev eth0")?;
        ensure!(shown.contains("rate 1Gbit"), "{shown}");
        task.kill_and_remove()?;
        ensure!(std::fs::read_to_string(said.join("poststop"))? == "ended\n");
        let after = inside(&theirs, "ip -o link; tc qdisc")?;
        ensure!(after == before, "{after}");

        refusals(&ctr)
    });
}

/// What cannot be limited is refused by name and leaves nothing.
fn refusals(ctr: &Ctr<'_>) -> Result<()> {
    for (rates, flags, why) in [
        (
            &[("egress", "1mbit")][..],
            &[][..],
            "annotations.org.pouch.net.egress: the network namespace has no link that is up",
        ),
        (
            &[("ingress", "10m")],
            &[],
            "annotations.org.pouch.net.ingress: \"10m\" is no rate",
        ),
        (
            &[("ingress", "1mbit")],
            &["--net-host"],
            "annotations.org.pouch.net.ingress: needs a network namespace other than the host's",
        ),
    ] {
        let refused = limited(ctr, "refused", rates).flags(flags).shell("true")?;
        let said = refused.stderr().replace("\\\"", "\"");
        ensure!(refused.code() != 0 && said.contains(why), "{refused}");
        for (id, _) in ctr.tasks()? {
            ctr.task(&id).remove()?;
        }
    }
    Ok(())
}
