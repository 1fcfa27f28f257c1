//! Where in a tar of an OCI layout its files are. Only what a layout has is looked for; a name that is
//! longer than those is none of them, so extensions for long names are passed over.

use std::{collections::BTreeMap, fs::File, io, os::unix::fs::FileExt};

use tar::{EntryType, Header, PaxExtensions};

const BLOCK: u64 = 512;

/// Entries of an archive; an image has a few hundred.
const ENTRIES_MAX: usize = 100_000;

/// Length of an extended header, which may hold the length of a blob beyond 8 GiB.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;

/// Where a file begins, and its length, in bytes.
pub(super) type Places = BTreeMap<String, (u64, u64)>;

/// All files with names that are text.
pub(super) fn places(file: &File) -> io::Result<Places> {
    let mut places = Places::new();
    let mut offset = 0;
    // What an extended header says of the next entry.
    let mut next_bytes = None;
    for _ in 0..ENTRIES_MAX {
        let Some(header) = header(file, offset)? else {
            return Ok(places);
        };
        let bytes = match next_bytes.take() {
            Some(bytes) => bytes,
            None => header.entry_size()?,
        };
        let data = offset + BLOCK;
        match header.entry_type() {
            EntryType::XHeader => next_bytes = extended_size(file, data, bytes)?,
            EntryType::Regular | EntryType::Continuous => {
                let name = header.path_bytes();
                let name = name.strip_prefix(b"./").unwrap_or(&name);
                if let Ok(name) = str::from_utf8(name) {
                    places.insert(name.to_owned(), (data, bytes));
                }
            }
            _ => {}
        }
        let end = bytes
            .checked_next_multiple_of(BLOCK)
            .and_then(|bytes| data.checked_add(bytes));
        offset = end.ok_or_else(|| damaged("an entry of a length that no file has"))?;
    }
    Err(damaged("more than 100000 entries"))
}

/// The header there; none at the end of the archive.
fn header(file: &File, offset: u64) -> io::Result<Option<Header>> {
    let mut header = Header::new_old();
    match file.read_exact_at(header.as_mut_bytes(), offset) {
        // Not every tool writes an end.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            return match offset {
                0 => Err(damaged("it is shorter than a tar")),
                _ => Ok(None),
            };
        }
        read => read?,
    }
    let bytes = header.as_bytes();
    if bytes.iter().all(|&byte| byte == 0) {
        return Ok(None);
    }
    // The sum is made with spaces in place of itself.
    let others = bytes[..148].iter().chain(&bytes[156..]);
    let sum = others.map(|&byte| u32::from(byte)).sum::<u32>() + 8 * u32::from(b' ');
    if header.cksum().ok() != Some(sum) {
        return Err(damaged("a header whose checksum is wrong"));
    }
    Ok(Some(header))
}

/// The length that an extended header gives the next entry.
fn extended_size(file: &File, offset: u64, bytes: u64) -> io::Result<Option<u64>> {
    let length = usize::try_from(bytes).unwrap_or(usize::MAX);
    if bytes > EXTENSION_BYTES_MAX {
        return Err(damaged("an extended header of more than 1 MiB"));
    }
    let mut records = vec![0; length];
    file.read_exact_at(&mut records, offset)?;
    for record in PaxExtensions::new(&records) {
        let record = record?;
        if record.key_bytes() == b"size" {
            let value = record.value().ok().and_then(|value| value.parse().ok());
            let value = value.ok_or_else(|| damaged("a length that is no number"));
            return value.map(Some);
        }
    }
    Ok(None)
}

fn damaged(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
