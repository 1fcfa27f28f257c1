//! Prints all that the kernel tells of a tree: `list-tree DIRECTORY`, also in a guest.

#![expect(clippy::print_stdout, reason = "this program prints")]

use std::path::Path;

use anyhow::{Context, Result};
use integration::listing::Listing;

fn main() -> Result<()> {
    let root = std::env::args_os()
        .nth(1)
        .context("usage: list-tree DIRECTORY")?;
    print!("{}", Listing::of(Path::new(&root))?);
    Ok(())
}
