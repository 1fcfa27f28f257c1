//! Giving memory back to the kernel. It must not touch anything that the program could write.

use std::{fs, io};

/// Unmaps the resident pages of the running program's own code. The next use of a page brings it
/// back from the page cache, so this is for a process that is about to be idle.
///
/// # Errors
/// When /proc is not there, or the kernel refuses madvise(2).
pub fn forget_program_pages() -> io::Result<()> {
    let program = fs::read_link("/proc/self/exe")?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    for (start, end) in code_ranges(&maps, &program.to_string_lossy()) {
        // SAFETY: the range is code, which no relocation of ours writes: what it holds is what the
        // file holds, and MADV_DONTNEED makes the next access read it from there again. (Constants
        // would not do: the start-up code writes into those of RELRO before it locks them.)
        let answer = unsafe { libc::madvise(start as *mut _, end - start, libc::MADV_DONTNEED) };
        if answer != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The address ranges in a maps file that map `program` privately as code that cannot be written.
fn code_ranges(maps: &str, program: &str) -> Vec<(usize, usize)> {
    let range = |line: &str| {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next()?, words.next()?);
        // The name is all that follows offset, device and inode; it may have blanks.
        let is_program = line.ends_with(&format!(" {program}"));
        let (start, end) = range.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        (is_program && rights == "r-xp").then_some((address(start)?, address(end)?))
    };
    maps.lines().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_is_given_back() {
        let maps = "200000-201000 r--p 00000000 fd:00 7 /a b/shim\n\
                    201000-203000 r-xp 00001000 fd:00 7 /a b/shim\n\
                    203000-204000 rw-p 00003000 fd:00 7 /a b/shim\n\
                    300000-301000 r-xp 00000000 fd:00 8 /lib/other\n\
                    7ff000-800000 rw-p 00000000 00:00 0 [stack]\n";
        assert_eq!(code_ranges(maps, "/a b/shim"), [(0x20_1000, 0x20_3000)]);
        assert_eq!(code_ranges(maps, "/nobody"), []);
    }

    #[test]
    fn a_program_runs_on_without_its_pages() {
        forget_program_pages().unwrap();
        assert_eq!("still here".len(), 10);
    }
}
