//! Numbers of hugetlb in version 2; its limits are written as in version 1.

use std::path::Path;

use crate::stats::Hugetlb;
use crate::v1::hugetlb::{counted, page_sizes};
use crate::{Result, file};

/// What is counted, by page size.
pub(crate) fn read(dir: &Path) -> Result<Vec<Hugetlb>> {
    let mut numbers = Vec::new();
    for page_size in page_sizes(dir, ".current")? {
        let prefix = counted(dir, &page_size, "current");
        let events = format!("hugetlb.{page_size}.events");
        let events = file::read_if_there(dir, &events)?.unwrap_or_default();
        numbers.push(Hugetlb {
            usage: file::read_number(dir, &format!("{prefix}.current"))?,
            max: file::read_number(dir, &format!("{prefix}.max"))?,
            failcnt: file::value_of(&events, "max").unwrap_or(0),
            page_size,
        });
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::directory;

    #[test]
    fn numbers_are_read_by_page_size() {
        let dir = directory(&[
            ("hugetlb.2MB.current", "1\n"),
            ("hugetlb.2MB.rsvd.current", "2\n"),
            ("hugetlb.2MB.rsvd.max", "max\n"),
            ("hugetlb.2MB.events", "max 3\n"),
        ]);
        let page_size = "2MB".to_owned();
        let expected = Hugetlb {
            page_size,
            usage: 2,
            max: u64::MAX,
            failcnt: 3,
        };
        assert_eq!(read(dir.path()).unwrap(), [expected]);
    }
}
