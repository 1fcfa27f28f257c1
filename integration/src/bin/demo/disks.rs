//! An image as a disk of a store: a container works before its data has come, and the next needs nothing more.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use integration::{
    containerd::Containerd,
    ctr::Ctr,
    images::Image,
    process::{command, output_of},
    registry::Registry,
    runtime::{Runtime, built},
    snapshotter::{Setup, Snapshotter},
    store::{Served, Store},
    wait::{SOON, Sources, until},
};

use crate::{heads, step};

const IMAGE: Image = Image::DebianSystemd;

/// The rest comes soon, and slowly enough to be seen.
const SETTINGS: &str = "[attach]\ncomplete_after_seconds = 2\ncomplete_mebibytes = 16\n";

/// What a container does first.
const WORK: &str = "grep -c . /etc/passwd";

/// Until all of the disk is here.
const WHOLE: Duration = Duration::from_secs(120);

/// Characters of a bar.
const WIDTH: usize = 50;

/// A store with the image, the registry it came from, and this host's daemon.
pub(crate) struct Disks {
    store: Store,
    served: Served,
    registry: Registry,
    pub(crate) snapshotter: Snapshotter,
}

/// How much of the disk was here when.
struct Seen {
    at: Duration,
    percent: usize,
    after: &'static str,
}

impl Disks {
    pub(crate) fn start() -> Result<Self> {
        let store = Store::with_images(&[IMAGE])?;
        let served = store.serve()?;
        let settings = store.config(&served.address) + SETTINGS;
        Ok(Self {
            registry: Registry::with_images(&[IMAGE])?,
            snapshotter: Snapshotter::start(Setup::remote(&settings)?)?,
            served,
            store,
        })
    }

    /// Runs all, each line printed when it is done; then the picture.
    pub(crate) fn show(&self, containerd: &Containerd) -> Result<()> {
        println!(
            "\nsnapshotter-remote: the image is a disk in a store, and only what is read comes from there\n"
        );
        heads();
        let reference = self.registry.reference(IMAGE);
        let ctr = Ctr::of(containerd);
        step("snapshotter-remote pull IMAGE", || {
            self.pull(containerd, &reference)?;
            let layers = self.registry.pulled_layers();
            ensure!(layers.is_empty(), "{layers:?} were pulled");
            Ok("no layer was pulled".to_owned())
        })?;
        let begun = Instant::now();
        let mut picture = Vec::new();
        for (id, ran, after) in [
            (
                "reads",
                "ctr run --rm --snapshotter remote IMAGE one ...",
                "the first container",
            ),
            ("reads-again", "the same again", "the second container"),
        ] {
            step(ran, || {
                let container = ctr.container(id, IMAGE, Runtime::Runlxc);
                let container = container.image(&reference).snapshotter("remote");
                let said = container.output(WORK)?;
                ensure!(
                    said.trim().parse::<u32>().is_ok_and(|users| users > 10),
                    "{said}"
                );
                let percent = self.percent()?;
                picture.push(Seen {
                    at: begun.elapsed(),
                    percent,
                    after,
                });
                Ok(format!("{percent} % of the disk is here"))
            })?;
        }
        self.rest(begun, &mut picture)?;
        println!("\nhow much of it is here:\n{}", drawn(&picture));
        println!("{}", self.status()?);
        // Also the one that was imported: they are the same, so what one needs stays with the other.
        let names = [&reference[..], &IMAGE.reference()];
        ctr.call(&[&["images", "rm", "--sync"], &names[..]].concat())?
            .success()?;
        ctr.collect_garbage()
    }

    /// Ends all of it, and looks for what is left.
    pub(crate) fn finish(self) -> Result<()> {
        self.snapshotter.finish()?;
        self.served.stop()?;
        drop(self.store);
        Ok(())
    }

    /// The daemon alone.
    pub(crate) fn without_store(self) -> Result<Snapshotter> {
        self.served.stop()?;
        Ok(self.snapshotter)
    }

    fn pull(&self, containerd: &Containerd, reference: &str) -> Result<()> {
        let mut pull = command(built("snapshotter-remote")?);
        pull.args(["pull", reference, "--containerd"])
            .arg(containerd.address());
        pull.arg("--namespace").arg(&containerd.namespace);
        output_of(&mut pull, SOON).map(drop)
    }

    /// Watches what comes behind the reads.
    fn rest(&self, begun: Instant, picture: &mut Vec<Seen>) -> Result<()> {
        until("all of the disk is here", WHOLE, Sources::none(), || {
            let percent = self.percent()?;
            if picture
                .last()
                .is_none_or(|last| percent >= last.percent + 10)
                || percent == 100
            {
                let after = if percent == 100 { "all of it" } else { "" };
                picture.push(Seen {
                    at: begun.elapsed(),
                    percent,
                    after,
                });
            }
            Ok((percent == 100).then_some(()))
        })
    }

    /// How much of the disk is here, of its chunks.
    fn percent(&self) -> Result<usize> {
        let status = self.status()?;
        let before = status
            .split(" %)")
            .next()
            .and_then(|text| text.rsplit('(').next());
        let percent = before.and_then(|text| text.parse().ok());
        percent.with_context(|| format!("no percent in {status}"))
    }

    fn status(&self) -> Result<String> {
        let mut ours = command(built("snapshotter-remote")?);
        ours.arg("status")
            .arg("--root")
            .arg(self.snapshotter.root());
        ours.arg("--address").arg(self.snapshotter.address());
        ours.arg("--config").arg(self.snapshotter.config_file());
        output_of(&mut ours, SOON)
    }
}

fn drawn(picture: &[Seen]) -> String {
    let mut text = String::new();
    for Seen { at, percent, after } in picture {
        let bar = "#".repeat((percent * WIDTH).div_ceil(100));
        let seconds = at.as_secs_f32();
        writeln!(
            text,
            "  {seconds:>5.1} s  {bar:<WIDTH$}  {percent:>3} %  {after}"
        )
        .expect("a string takes everything");
    }
    text
}
