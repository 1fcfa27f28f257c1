//! hugetlb of both versions, which differ in the ends of the files' names.

use std::fs;
use std::path::Path;

use crate::resources::HugepageLimit;
use crate::stats::Hugetlb;
use crate::{Error, Result, file};

/// What is asked of the controller, by its name in config.json.
pub(crate) fn asked(limits: &[HugepageLimit]) -> Option<&'static str> {
    (!limits.is_empty()).then_some("linux.resources.hugepageLimits")
}

/// Writes the limits, and the same to reservations where the kernel counts them (Linux 5.7).
pub(crate) fn apply(dir: &Path, limits: &[HugepageLimit], suffix: &str) -> Result<()> {
    for HugepageLimit { page_size, limit } in limits {
        if page_size.contains('/') {
            return Err(Error::Invalid {
                field: "linux.resources.hugepageLimits",
                why: format!("page size {page_size:?} has a slash"),
            });
        }
        file::write_number(dir, &format!("hugetlb.{page_size}.{suffix}"), limit)?;
        match file::write_number(dir, &format!("hugetlb.{page_size}.rsvd.{suffix}"), limit) {
            Err(error) if error.is_not_found() => {}
            written => written?,
        }
    }
    Ok(())
}

/// What version 1 counts, by page size.
pub(crate) fn read(dir: &Path) -> Result<Vec<Hugetlb>> {
    let mut numbers = Vec::new();
    for page_size in page_sizes(dir, ".usage_in_bytes")? {
        let prefix = counted(dir, &page_size, "usage_in_bytes");
        numbers.push(Hugetlb {
            usage: file::read_number(dir, &format!("{prefix}.usage_in_bytes"))?,
            max: file::read_number(dir, &format!("{prefix}.max_usage_in_bytes"))?,
            failcnt: file::read_number(dir, &format!("{prefix}.failcnt"))?,
            page_size,
        });
    }
    Ok(numbers)
}

/// The page sizes of the files `hugetlb.SIZE{suffix}`, sorted.
pub(crate) fn page_sizes(dir: &Path, suffix: &str) -> Result<Vec<String>> {
    let listed = fs::read_dir(dir).map_err(|source| Error::Read {
        path: dir.to_owned(),
        source,
    })?;
    let mut sizes: Vec<String> = listed
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| {
            Some(
                name.strip_prefix("hugetlb.")?
                    .strip_suffix(suffix)?
                    .to_owned(),
            )
        })
        .filter(|size| !size.contains('.'))
        .collect();
    sizes.sort();
    Ok(sizes)
}

/// The start of the counters' names: reservations where the kernel counts them, as runc does.
pub(crate) fn counted(dir: &Path, page_size: &str, usage: &str) -> String {
    let reserved = format!("hugetlb.{page_size}.rsvd");
    if file::exists(dir, &format!("{reserved}.{usage}")) {
        reserved
    } else {
        format!("hugetlb.{page_size}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::tests::{directory, written};

    #[test]
    fn limits_reach_reservations_where_there_are_any() {
        let dir = directory(&[
            ("hugetlb.2MB.limit_in_bytes", ""),
            ("hugetlb.2MB.rsvd.limit_in_bytes", ""),
            ("hugetlb.1GB.limit_in_bytes", ""),
        ]);
        let limit = |size: &str, limit| HugepageLimit {
            page_size: size.to_owned(),
            limit,
        };
        apply(
            dir.path(),
            &[limit("2MB", 4), limit("1GB", 5)],
            "limit_in_bytes",
        )
        .unwrap();
        assert_eq!(
            written(dir.path(), "hugetlb.2MB.rsvd.limit_in_bytes"),
            ["4"]
        );
        assert_eq!(written(dir.path(), "hugetlb.1GB.limit_in_bytes"), ["5"]);
        assert!(apply(dir.path(), &[limit("64KB", 4)], "limit_in_bytes").is_err());
        assert!(apply(dir.path(), &[limit("../2MB", 4)], "limit_in_bytes").is_err());
    }

    #[test]
    fn numbers_are_read_by_page_size() {
        let dir = directory(&[
            ("hugetlb.2MB.usage_in_bytes", "1\n"),
            ("hugetlb.2MB.rsvd.usage_in_bytes", "2\n"),
            ("hugetlb.2MB.rsvd.max_usage_in_bytes", "3\n"),
            ("hugetlb.2MB.rsvd.failcnt", "4\n"),
            ("hugetlb.1GB.usage_in_bytes", "5\n"),
            ("hugetlb.1GB.max_usage_in_bytes", "6\n"),
            ("hugetlb.1GB.failcnt", "7\n"),
        ]);
        let size = |size: &str, usage, max, failcnt| Hugetlb {
            page_size: size.to_owned(),
            usage,
            max,
            failcnt,
        };
        assert_eq!(
            read(dir.path()).unwrap(),
            [size("1GB", 5, 6, 7), size("2MB", 2, 3, 4)]
        );
    }
}
