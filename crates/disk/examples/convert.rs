//! Layers, uncompressed, as a disk of files: `convert DIRECTORY TAR...`, lowest first. Says how long it
//! took and how much memory.
//!
//! The blob of each layer is DIRECTORY/0, 1, ...; then `mount -t erofs -o device=0,device=1,... metadata`
//! with those that it names, or the disk in one piece: `flat.erofs`.

#![expect(clippy::print_stdout, reason = "an example prints")]

use std::{
    error::Error,
    fs::{self, File},
    path::Path,
    time::Instant,
};

use disk::{Digest, Form, Image, Layer, Limits, Tree};

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let directory = words.next().ok_or("usage: convert DIRECTORY TAR...")?;
    let directory = Path::new(&directory);
    let mut tree = Tree::new();
    for (index, path) in words.enumerate() {
        let began = Instant::now();
        let blob = File::create(directory.join(index.to_string()))?;
        let layer = Layer::read(File::open(&path)?, blob, &Limits::GENEROUS)?;
        // Where layers are really named, this is the SHA-256 of the tar.
        let mut name = [0; 32];
        name[..8].copy_from_slice(&u64::try_from(index)?.to_be_bytes());
        tree.apply(&layer, Digest(name))?;
        report(&path, fs::metadata(&path)?.len(), began);
    }
    let name = |blob: Digest| {
        let index = blob.0[..8]
            .iter()
            .fold(0, |value, &byte| value << 8 | u64::from(byte));
        directory.join(index.to_string())
    };
    let began = Instant::now();
    let image = Image::of(&tree, Digest([0; 32]), Form::Devices)?;
    image.write(File::create(directory.join("metadata"))?)?;
    report("metadata", image.metadata_bytes(), began);
    for blob in image.blobs() {
        println!("device {}", name(blob.diff_id).display());
    }
    let flat = Image::of(&tree, Digest([0; 32]), Form::Flat)?;
    let began = Instant::now();
    flat.write_with_blobs(File::create(directory.join("flat.erofs"))?, |blob| {
        File::open(name(blob))
    })?;
    report("flat.erofs", flat.bytes(), began);
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find(|line| line.starts_with("VmHWM"));
    println!("{}", peak.unwrap_or_default());
    Ok(())
}

fn report(what: &str, bytes: u64, began: Instant) {
    let took = began.elapsed();
    let rate = u128::from(bytes) / took.as_micros().max(1);
    println!("{what}: {bytes} bytes in {took:?}, {rate} MB/s");
}
