//! Pressure stall information: one parser for the files of every resource.

use std::path::Path;

use crate::stats::{Psi, PsiLine};
use crate::{Result, file};

/// The two lines of a pressure file; none where the kernel does not measure.
pub(crate) fn read(dir: &Path, name: &str) -> Result<Option<Psi>> {
    let Some(text) = file::read_if_there(dir, name)? else {
        return Ok(None);
    };
    let mut psi = Psi::default();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("some", rest)) => psi.some = values(rest),
            Some(("full", rest)) => psi.full = values(rest),
            _ => {}
        }
    }
    Ok(Some(psi))
}

/// `avg10=0.00 avg60=0.12 avg300=1.50 total=12345`.
fn values(words: &str) -> PsiLine {
    let mut line = PsiLine::default();
    for (key, value) in words
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
    {
        let percent = || value.parse().unwrap_or(0.0);
        match key {
            "avg10" => line.avg10 = percent(),
            "avg60" => line.avg60 = percent(),
            "avg300" => line.avg300 = percent(),
            "total" => line.total_us = value.parse().unwrap_or(0),
            _ => {}
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::directory;

    #[test]
    fn pressure_is_read_or_absent() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=99\nfull avg10=0.00 total=7\n";
        let dir = directory(&[("cpu.pressure", text)]);
        let psi = read(dir.path(), "cpu.pressure").unwrap().unwrap();
        assert_eq!(
            psi.some,
            PsiLine {
                avg10: 1.5,
                avg60: 0.25,
                avg300: 0.0,
                total_us: 99
            }
        );
        assert_eq!(psi.full.total_us, 7);
        assert_eq!(read(dir.path(), "io.pressure").unwrap(), None);
    }
}
