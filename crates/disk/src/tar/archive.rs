//! A tar as a stream of members; their data is read between two of them.

use std::io::{self, Read};

use super::{
    header::{
        BLOCK, Flavour, GID, GNU_IS_EXTENDED, GNU_REAL_SIZE, GNU_SPARSE, Header, LINK, MAJOR,
        MINOR, MODE, MTIME, SIZE, UID, until_nul,
    },
    pax::{self, Records},
    sparse::{SparseMap, decimal_pairs, gnu_pairs},
};
use crate::{
    attributes::{Timestamp, Xattrs},
    error::{Error, Result},
    limits::Limits,
};

/// Global records are copied for each member, so there may not be many. git's have some 50 bytes.
const GLOBAL_BYTES_MAX: usize = 4096;

/// One entry of the tar, extensions merged in; its path is not judged yet.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: MemberKind,
    /// Permissions, set-id and sticky bits.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Xattrs,
}

/// What a member is.
#[derive(Debug)]
pub(crate) enum MemberKind {
    /// So many bytes follow; [`Archive::read_data`] gives them.
    File {
        bytes: u64,
    },
    /// As a file, but only its pieces follow.
    SparseFile(SparseMap),
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharacterDevice {
        major: i64,
        minor: i64,
    },
    BlockDevice {
        major: i64,
        minor: i64,
    },
    Fifo,
}

/// A tar that is being read.
#[derive(Debug)]
pub(crate) struct Archive<R> {
    source: R,
    limits: Limits,
    /// Bytes read so far.
    offset: u64,
    /// Bytes of the current member's data that are still to come.
    data_left: u64,
    /// Zeros after them, up to the next block.
    padding: u64,
    /// Records of global headers, which count for all members that follow.
    global: Records,
}

/// What precedes a member's own header.
#[derive(Debug, Default)]
struct Extensions {
    /// Nothing unless a header came; starts from the global ones.
    pax: Option<Records>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<R: Read> Archive<R> {
    pub(crate) fn new(source: R, limits: Limits) -> Self {
        Self {
            source,
            limits,
            offset: 0,
            data_left: 0,
            padding: 0,
            global: Records::default(),
        }
    }

    /// The next member; what was not read of the last one's data is passed over. At the end the
    /// source has been read to its own end, so that a digest of it is that of the whole layer.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        self.skip(self.data_left + self.padding)?;
        (self.data_left, self.padding) = (0, 0);
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.header(&extensions)? else {
                return Ok(None);
            };
            match header.type_flag() {
                b'x' => {
                    let bytes = self.extension(&header)?;
                    let mut records = self.global.clone();
                    let added = records.add(&bytes);
                    added.map_err(|what| header.malformed(what))?;
                    extensions.pax = Some(records);
                }
                b'g' => {
                    let bytes = self.extension(&header)?;
                    self.add_global(&header, &bytes)?;
                }
                b'L' => extensions.long_name = Some(until_nul(&self.extension(&header)?).into()),
                b'K' => extensions.long_link = Some(until_nul(&self.extension(&header)?).into()),
                // A volume's label says nothing of the files.
                b'V' => drop(self.extension(&header)?),
                _ => return self.member(&header, extensions).map(Some),
            }
        }
    }

    /// Reads data of the current file; 0 at its end.
    pub(crate) fn read_data(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let most = usize::try_from(self.data_left).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = self.read_some(&mut buffer[..most])?;
        if count == 0 {
            return Err(self.malformed_here("the tar ends within a file"));
        }
        self.data_left -= u64::try_from(count).expect("a length fits 64 bits");
        Ok(count)
    }

    /// The next header; nothing at the end of the tar.
    fn header(&mut self, before: &Extensions) -> Result<Option<Header>> {
        let offset = self.offset;
        let block = self.block()?;
        let is_end = block.as_deref().is_none_or(|block| *block == [0; BLOCK]);
        if !is_end {
            let block = block.expect("an absent block is an end");
            return Header::parse(block, offset).map(Some);
        }
        let has_extensions = before.pax.is_some() || before.long_name.is_some();
        if has_extensions || before.long_link.is_some() {
            return Err(self.malformed_here("the tar ends after an extended header"));
        }
        // Two blocks of zeros end a tar. Some tools write one, and some none.
        if block.is_some() && self.block()?.is_some_and(|next| *next != [0; BLOCK]) {
            return Err(Error::Malformed {
                offset,
                what: "a block of zeros between two entries",
            });
        }
        self.drain()?;
        Ok(None)
    }

    fn add_global(&mut self, header: &Header, bytes: &[u8]) -> Result<()> {
        let added = self.global.add(bytes);
        added.map_err(|what| header.malformed(what))?;
        for key in ["path", "linkpath", "size"] {
            if self.global.get(key).is_some() {
                return Err(
                    header.malformed("a global header that gives all files one name or size")
                );
            }
        }
        if self.global.below(b"GNU.sparse.").next().is_some()
            || !self.global.sparse_pairs.is_empty()
        {
            return Err(header.malformed("a global header that makes all files sparse"));
        }
        if self.global.bytes() > GLOBAL_BYTES_MAX {
            return Err(header.malformed("global headers of more than 4 KiB"));
        }
        Ok(())
    }

    /// All of an extension header's data.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>> {
        let bytes = size(header)?;
        self.check_header_bytes(bytes)?;
        let length = usize::try_from(bytes).expect("limited to what fits memory");
        let mut data = vec![0; length];
        self.read_exact(&mut data)?;
        self.skip(padding(bytes))?;
        Ok(data)
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> Result<Member> {
        let records = extensions.pax.unwrap_or_else(|| self.global.clone());
        let sparse_name = records.get("GNU.sparse.name");
        let path = sparse_name.or_else(|| records.get("path"));
        let path = path.map(<[u8]>::to_vec).or(extensions.long_name);
        let path = path.unwrap_or_else(|| header.name());
        let link = records.get("linkpath").map(<[u8]>::to_vec);
        let link = link.or(extensions.long_link);
        let link = link.unwrap_or_else(|| header.text(LINK).to_owned());
        let mode = header.number(MODE, "its mode is no number")? & 0o7777;
        Ok(Member {
            uid: owner(header, &records, "uid", UID)?,
            gid: owner(header, &records, "gid", GID)?,
            mtime: mtime(header, &records)?,
            xattrs: xattrs(&records),
            mode: u16::try_from(mode).expect("masked to 12 bits"),
            kind: self.kind(header, &records, &path, link)?,
            path,
        })
    }

    fn kind(
        &mut self,
        header: &Header,
        records: &Records,
        path: &[u8],
        link: Vec<u8>,
    ) -> Result<MemberKind> {
        let is_directory_of_old = header.type_flag() == 0 && path.ends_with(b"/");
        Ok(match header.type_flag() {
            0 if is_directory_of_old => MemberKind::Directory,
            // `7` is a file that should be stored contiguously.
            0 | b'0' | b'7' => self.file(header, records)?,
            b'S' => self.gnu_sparse_file(header, records)?,
            b'1' => MemberKind::HardLink(link),
            b'2' => MemberKind::Symlink(link),
            b'3' | b'4' => {
                let (mut major, mut minor) = (0, 0);
                if header.flavour != Flavour::V7 {
                    major = header.number(MAJOR, "its device number is no number")?;
                    minor = header.number(MINOR, "its device number is no number")?;
                }
                match header.type_flag() {
                    b'3' => MemberKind::CharacterDevice { major, minor },
                    _ => MemberKind::BlockDevice { major, minor },
                }
            }
            b'5' => MemberKind::Directory,
            b'6' => MemberKind::Fifo,
            _ => return Err(header.malformed("an entry of a type that no image has")),
        })
    }

    fn file(&mut self, header: &Header, records: &Records) -> Result<MemberKind> {
        let stored = self.begin_data(header, records)?;
        let number = |key| {
            let value = records.get(key).map(pax::decimal);
            value.map(|value| value.ok_or_else(|| header.malformed("its sparse size is no number")))
        };
        // 1.0: the map precedes the data. 0.1: one record holds it. 0.0: a record for each number.
        let (bytes, pairs) = if let Some(major) = records.get("GNU.sparse.major") {
            if major != b"1" || records.get("GNU.sparse.minor") != Some(b"0") {
                return Err(header.malformed("a sparse file of an unknown version"));
            }
            (number("GNU.sparse.realsize"), self.stored_map(header)?)
        } else if let Some(map) = records.get("GNU.sparse.map") {
            let numbers = map.split(|&byte| byte == b',');
            let pairs = decimal_pairs(numbers).map_err(|what| header.malformed(what))?;
            (number("GNU.sparse.size"), pairs)
        } else if records.get("GNU.sparse.size").is_some() || !records.sparse_pairs.is_empty() {
            let numbers = records.sparse_pairs.iter().map(Vec::as_slice);
            let pairs = decimal_pairs(numbers).map_err(|what| header.malformed(what))?;
            (number("GNU.sparse.size"), pairs)
        } else {
            return Ok(MemberKind::File { bytes: stored });
        };
        let bytes =
            bytes.unwrap_or_else(|| Err(header.malformed("a sparse file without a size")))?;
        let map = SparseMap::check(bytes, self.data_left, pairs.into_iter());
        Ok(MemberKind::SparseFile(
            map.map_err(|what| header.malformed(what))?,
        ))
    }

    /// Type `S`: four pairs in the header, 21 in each block that follows.
    fn gnu_sparse_file(&mut self, header: &Header, records: &Records) -> Result<MemberKind> {
        if header.flavour != Flavour::Gnu {
            return Err(header.malformed("a GNU sparse file in a tar that is not GNU's"));
        }
        let mut maps = header.field(GNU_SPARSE).to_vec();
        let mut is_extended = header.block[GNU_IS_EXTENDED] != 0;
        while is_extended {
            let block = self.block()?;
            let block =
                block.ok_or_else(|| self.malformed_here("the tar ends within a sparse map"))?;
            maps.extend_from_slice(&block[..21 * 24]);
            is_extended = block[504] != 0;
            self.check_header_bytes(u64::try_from(maps.len()).unwrap_or(u64::MAX))?;
        }
        let stored = self.begin_data(header, records)?;
        let bytes = header.number(GNU_REAL_SIZE, "its sparse size is no number")?;
        let bytes = u64::try_from(bytes).ok();
        let bytes = bytes.ok_or_else(|| header.malformed("its sparse size is negative"))?;
        let map =
            gnu_pairs(&maps).and_then(|pairs| SparseMap::check(bytes, stored, pairs.into_iter()));
        Ok(MemberKind::SparseFile(
            map.map_err(|what| header.malformed(what))?,
        ))
    }

    /// The map before the data of PAX' GNU format 1.0: a count, then pairs, a number a line, filled up
    /// to a block.
    fn stored_map(&mut self, header: &Header) -> Result<Vec<(u64, u64)>> {
        let (mut text, mut numbers, mut count) = (Vec::new(), Vec::new(), None);
        let mut wanted = 1;
        while numbers.len() < wanted {
            let mut block = [0; BLOCK];
            if self.data_left < u64::try_from(BLOCK).expect("512") {
                return Err(header.malformed("its sparse map is longer than the file"));
            }
            self.read_exact(&mut block)?;
            self.data_left -= u64::try_from(BLOCK).expect("512");
            text.extend_from_slice(&block);
            while let Some(end) = text.iter().position(|&byte| byte == b'\n') {
                if numbers.len() == wanted {
                    break;
                }
                let number = pax::decimal(&text[..end]);
                let number = number
                    .ok_or_else(|| header.malformed("its sparse map has what is no number"))?;
                text.drain(..=end);
                if count.is_none() {
                    // 16 bytes in memory for each, as in the other formats.
                    self.check_header_bytes(number.saturating_mul(16))?;
                    count = Some(number);
                    wanted = usize::try_from(number * 2).expect("limited above");
                } else {
                    numbers.push(number);
                }
            }
            if text.len() > BLOCK * 2 {
                return Err(header.malformed("its sparse map has what is no number"));
            }
        }
        Ok(numbers
            .chunks_exact(2)
            .map(|pair| (pair[0], pair[1]))
            .collect())
    }

    /// Notes how much data follows the header.
    fn begin_data(&mut self, header: &Header, records: &Records) -> Result<u64> {
        let bytes = match records.get("size") {
            Some(text) => {
                pax::decimal(text).ok_or_else(|| header.malformed("its size is no number"))?
            }
            None => size(header)?,
        };
        if bytes > self.limits.blob_bytes_max {
            return Err(self.too_long());
        }
        if i64::try_from(bytes).is_err() {
            return Err(header.malformed("its size is no length of a file"));
        }
        self.data_left = bytes;
        self.padding = padding(bytes);
        Ok(bytes)
    }

    pub(crate) fn too_long(&self) -> Error {
        Error::Limit {
            what: "bytes of files in a layer",
            limit: self.limits.blob_bytes_max,
        }
    }

    fn check_header_bytes(&self, bytes: u64) -> Result<()> {
        let limit = self.limits.header_bytes_max;
        if bytes > limit {
            let what = "bytes of an extended header in a layer";
            return Err(Error::Limit { what, limit });
        }
        Ok(())
    }

    /// A block; nothing at the end of the source.
    fn block(&mut self) -> Result<Option<Box<[u8; BLOCK]>>> {
        let mut block = Box::new([0; BLOCK]);
        let first = self.read_some(&mut block[..])?;
        if first == 0 {
            return Ok(None);
        }
        self.read_exact(&mut block[first..])?;
        Ok(Some(block))
    }

    fn read_exact(&mut self, mut buffer: &mut [u8]) -> Result<()> {
        while !buffer.is_empty() {
            let count = self.read_some(buffer)?;
            if count == 0 {
                return Err(self.malformed_here("the tar ends within a block"));
            }
            buffer = &mut buffer[count..];
        }
        Ok(())
    }

    fn skip(&mut self, mut bytes: u64) -> Result<()> {
        let mut buffer = [0; 4096];
        while bytes > 0 {
            let most = usize::try_from(bytes)
                .unwrap_or(usize::MAX)
                .min(buffer.len());
            self.read_exact(&mut buffer[..most])?;
            bytes -= u64::try_from(most).expect("a length fits 64 bits");
        }
        Ok(())
    }

    fn drain(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        while self.read_some(&mut buffer)? > 0 {}
        Ok(())
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> Result<usize> {
        loop {
            match self.source.read(buffer) {
                Ok(count) => {
                    self.offset += u64::try_from(count).expect("a length fits 64 bits");
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let offset = self.offset;
                    return Err(Error::Read { offset, source });
                }
            }
        }
    }

    fn malformed_here(&self, what: &'static str) -> Error {
        Error::Malformed {
            offset: self.offset,
            what,
        }
    }
}

fn size(header: &Header) -> Result<u64> {
    let bytes = header.number(SIZE, "its size is no number")?;
    let bytes = u64::try_from(bytes).ok();
    bytes.ok_or_else(|| header.malformed("its size is negative"))
}

fn padding(bytes: u64) -> u64 {
    bytes.next_multiple_of(512) - bytes
}

fn owner(
    header: &Header,
    records: &Records,
    key: &str,
    field: super::header::Field,
) -> Result<u32> {
    let id = match records.get(key) {
        Some(text) => pax::decimal(text).and_then(|id| u32::try_from(id).ok()),
        None => u32::try_from(header.number(field, "its owner is no number")?).ok(),
    };
    // chown(2) takes 2³²-1 for "leave it": no file can have it.
    id.filter(|&id| id != u32::MAX)
        .ok_or_else(|| header.malformed("its owner is no user or group of Linux"))
}

fn mtime(header: &Header, records: &Records) -> Result<Timestamp> {
    let (seconds, nanoseconds) = match records.get("mtime") {
        Some(text) => pax::time(text).ok_or_else(|| header.malformed("its time is no number"))?,
        None => (header.number(MTIME, "its time is no number")?, 0),
    };
    Ok(Timestamp {
        seconds,
        nanoseconds,
    })
}

fn xattrs(records: &Records) -> Xattrs {
    let found = records.below(pax::XATTR);
    found
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}
