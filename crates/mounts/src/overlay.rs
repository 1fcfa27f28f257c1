//! Options longer than mount(2) takes: overlays of many layers; must not be used by the stub,
//! since it starts a thread.

use std::path::Path;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::kernel::{self, Call};

/// The keys of overlay whose values are paths.
const PATH_KEYS: [&str; 3] = ["lowerdir=", "upperdir=", "workdir="];

/// mount(2); when the options do not fit a page, the folder that all layers share becomes the
/// working directory of a thread of its own and is left out of their paths.
///
/// # Errors
/// E2BIG when that is not enough.
pub(crate) fn mount(call: Call<'_>, target: &Path) -> nix::Result<()> {
    if call.data.len() < kernel::page_bytes() {
        return kernel::mount(call, target);
    }
    let short = Short::new(call.data).ok_or(Errno::E2BIG)?;
    let in_folder = || {
        // The working directory is shared by all threads, unless one leaves them.
        unshare(CloneFlags::CLONE_FS)?;
        nix::unistd::chdir(short.folder)?;
        let call = Call {
            data: &short.data,
            ..call
        };
        kernel::mount(call, target)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name("overlay-mount".to_owned())
            .spawn_scoped(scope, in_folder);
        match thread.map(std::thread::ScopedJoinHandle::join) {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => std::panic::resume_unwind(panic),
            Err(error) => Err(Errno::from_raw(error.raw_os_error().unwrap_or(0))),
        }
    })
}

/// Options with paths relative to a folder.
#[derive(Debug, PartialEq, Eq)]
struct Short<'a> {
    folder: &'a str,
    data: String,
}

impl<'a> Short<'a> {
    /// None when there is nothing to shorten.
    fn new(data: &'a str) -> Option<Self> {
        let lower = split(data, ',').find_map(|word| word.strip_prefix("lowerdir="))?;
        let folder = common_folder(split(lower, ':'))?;
        let words = split(data, ',').map(|word| shorten(word, folder));
        Some(Self {
            folder,
            data: words.collect::<Vec<_>>().join(","),
        })
    }
}

/// The longest folder, with its last slash, that all of the absolute paths are below.
fn common_folder<'a>(mut paths: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let first = paths.next()?;
    let mut length = first.rfind('/')? + 1;
    for path in paths {
        let same = first.bytes().zip(path.bytes()).take(length);
        let same = same.take_while(|(a, b)| a == b).count();
        length = first[..same].rfind('/')? + 1;
    }
    let folder = &first[..length];
    // An escaped character in it would have to be undone for chdir(2).
    (folder.starts_with('/') && folder.len() > 1 && !folder.contains('\\')).then_some(folder)
}

fn shorten(word: &str, folder: &str) -> String {
    let Some(key) = PATH_KEYS.iter().find(|key| word.starts_with(**key)) else {
        return word.to_owned();
    };
    let paths = split(&word[key.len()..], ':');
    // A path that is the folder itself would become empty; it keeps its full form.
    let short = paths.map(|path| match path.strip_prefix(folder) {
        Some("") | None => path,
        Some(rest) => rest,
    });
    format!("{key}{}", short.collect::<Vec<_>>().join(":"))
}

/// Splits where overlay does: at a separator that no backslash stands before.
pub(crate) fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    text.split(move |c| {
        let splits = c == separator && !escaped;
        escaped = c == '\\' && !escaped;
        splits
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::{self, Scratch};

    #[test]
    fn paths_become_relative_to_the_folder_all_layers_share() {
        let check = |data: &str, expected: Option<(&str, &str)>| {
            let short = Short::new(data);
            let found = short.as_ref().map(|short| (short.folder, &*short.data));
            assert_eq!(found, expected, "{data}");
        };
        check(
            "workdir=/s/3/work,upperdir=/s/3/fs,lowerdir=/s/2/fs:/s/1/fs,index=off",
            Some((
                "/s/",
                "workdir=3/work,upperdir=3/fs,lowerdir=2/fs:1/fs,index=off",
            )),
        );
        check(
            "lowerdir=/s/12/fs:/s/1/fs,upperdir=/other/fs",
            Some(("/s/", "lowerdir=12/fs:1/fs,upperdir=/other/fs")),
        );
        check("lowerdir=/s/a", Some(("/s/", "lowerdir=a")));
        check(
            r"lowerdir=/s/a\:b:/s/c\,d,volatile",
            Some(("/s/", r"lowerdir=a\:b:c\,d,volatile")),
        );
        check("lowerdir=/a:/b", None);
        check("lowerdir=a:b", None);
        check(r"lowerdir=/s\:/a:/s\:/b", None);
        check("lowerdir=", None);
        check("upperdir=/s/a", None);
        check("", None);
    }

    #[test]
    fn overlay_of_more_layers_than_fit_a_page_is_mounted() {
        namespace::run(|| {
            let scratch = Scratch::new();
            let folder = "a-folder-with-a-name-as-long-as-those-of-snapshotters";
            let layers: Vec<_> = (0..120)
                .map(|number| {
                    let layer = format!("{folder}/{number}");
                    scratch.file(&format!("{layer}/file{number}"), "");
                    scratch.path(&layer).display().to_string()
                })
                .collect();
            let data = format!("lowerdir={}", layers.join(":"));
            assert!(data.len() > 2 * kernel::page_bytes());
            let target = scratch.directory("target");
            let call = |data| Call {
                source: Some("overlay"),
                fstype: Some("overlay"),
                flags: 0,
                data,
            };
            let here = std::env::current_dir().unwrap();
            mount(call(&data), &target).unwrap();
            assert_eq!(std::fs::read_dir(&target).unwrap().count(), 120);
            assert_eq!(std::env::current_dir().unwrap(), here);

            let hopeless = format!("lowerdir=/a:{}", layers.join(":"));
            assert_eq!(mount(call(&hopeless), &target), Err(Errno::E2BIG));
            let missing = data.replace("/119", "/none");
            assert_eq!(mount(call(&missing), &target), Err(Errno::ENOENT));
        });
    }
}
