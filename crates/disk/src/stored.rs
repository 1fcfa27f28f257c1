//! A layer as bytes, so that what was read once from its tar is merged into many chains, also by
//! others and later. The same layer gives the same bytes.
//!
//! ```text
//!  0   "pouchlyr"
//!  8   version, u32                  all fixed numbers are little endian
//!  12  blocks of the blob, u32
//!  16  number of records, u64
//!  24  records, in the order of paths, a directory before what is in it:
//!        bytes kept of the path before, number of bytes that follow, these bytes
//!        what it is, one byte, and what belongs to it; numbers are LEB128
//! ```
//!
//! A record is an entry of the tar as far as the layer has kept it, and goes back through the doors
//! that entries of tars come through: whatever the bytes, a layer that comes of them is one that a
//! tar could have made. Whoever stores them has to notice a changed byte that means something else.

use crate::{
    BLOCK_BYTES, FORMAT_VERSION,
    attributes::{Attributes, Timestamp, Xattrs},
    error::{Error, Result},
    layer::{Layer, Node, NodeId},
    limits::{Count, Limits},
    path::{Path, WHITEOUT},
    read::{character_device, check_symlink, device},
    tree::{DataBlocks, Device, File, Leaf},
    xattr::{self, Owner},
};

const MAGIC: &[u8; 8] = b"pouchlyr";

/// Raised with what is stored and with what tars become.
pub(crate) const VERSION: u32 = FORMAT_VERSION << 16 | 1;

const DIRECTORY: u8 = 0;
const FILE: u8 = 1;
const SPARSE_FILE: u8 = 2;
const SYMLINK: u8 = 3;
const CHARACTER_DEVICE: u8 = 4;
const BLOCK_DEVICE: u8 = 5;
const FIFO: u8 = 6;
/// Another name of an earlier record that is no directory: its number among these.
const SAME: u8 = 7;
const LINK_BELOW: u8 = 8;
const WHITEOUT_OF: u8 = 9;
const OPAQUE: u8 = 10;

impl Layer {
    /// The layer as bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder {
            out: Vec::new(),
            previous: Vec::new(),
            records: 0,
            files: 0,
            file_numbers: vec![None; self.all().len()],
        };
        encoder.out.extend_from_slice(MAGIC);
        encoder.out.extend_from_slice(&VERSION.to_le_bytes());
        encoder
            .out
            .extend_from_slice(&self.blob_blocks.to_le_bytes());
        encoder.out.extend_from_slice(&[0; 8]);
        encoder.layer(self);
        let records = encoder.records.to_le_bytes();
        encoder.out[16..24].copy_from_slice(&records);
        encoder.out
    }

    /// The layer that [`Layer::encode`] made these bytes of.
    ///
    /// # Errors
    /// [`Error::OtherVersion`], [`Error::Damaged`] for what no tar becomes, and [`Error::Limit`].
    pub fn decode(bytes: &[u8], limits: &Limits) -> Result<Self> {
        let mut decoder = Decoder {
            bytes,
            offset: 0,
            previous: Vec::new(),
            files: Vec::new(),
            count: Count::new(*limits),
            layer: Self::new(),
        };
        if decoder.array::<8>()? != *MAGIC {
            return Err(decoder.damaged("no stored layer begins like this"));
        }
        let found = u32::from_le_bytes(decoder.array()?);
        if found != VERSION {
            return Err(Error::OtherVersion { found });
        }
        decoder.layer.blob_blocks = u32::from_le_bytes(decoder.array()?);
        if u64::from(decoder.layer.blob_blocks) * BLOCK_BYTES > limits.blob_bytes_max {
            return Err(Error::Limit {
                what: "bytes of contents in a layer",
                limit: limits.blob_bytes_max,
            });
        }
        let records = u64::from_le_bytes(decoder.array()?);
        for _ in 0..records {
            decoder.record()?;
        }
        if decoder.offset < bytes.len() {
            return Err(decoder.damaged("more bytes than records"));
        }
        let finished = decoder.layer.finish();
        decoder.judged(finished)?;
        Ok(decoder.layer)
    }
}

struct Encoder {
    out: Vec<u8>,
    /// Path of the last record.
    previous: Vec<u8>,
    records: u64,
    files: u64,
    /// For each node that is no directory and was met its number.
    file_numbers: Vec<Option<u64>>,
}

impl Encoder {
    fn layer(&mut self, layer: &Layer) {
        let mut path = Vec::new();
        // Each with the length of the path of the directory it is in.
        let mut pending: Vec<(NodeId, usize, &[u8])> = vec![(Layer::ROOT, 0, b"")];
        while let Some((id, parent_bytes, name)) = pending.pop() {
            path.truncate(parent_bytes);
            append(&mut path, name);
            let directory = match layer.node(id) {
                Node::Directory(directory) => directory,
                file => {
                    self.file(id, file, &path);
                    continue;
                }
            };
            if let Some(attributes) = &directory.attributes {
                self.begin(&path, DIRECTORY);
                self.attributes(attributes);
            }
            if directory.is_opaque {
                self.begin(&path, OPAQUE);
            }
            let bytes = path.len();
            for removed in &directory.whiteouts {
                append(&mut path, removed);
                self.begin(&path, WHITEOUT_OF);
                path.truncate(bytes);
            }
            let entries = directory.entries.iter().rev();
            pending.extend(entries.map(|(name, &id)| (id, bytes, &name[..])));
        }
    }

    fn file(&mut self, id: NodeId, node: &Node, path: &[u8]) {
        if let Some(number) = self.file_numbers[id.0] {
            self.begin(path, SAME);
            self.number(number);
            return;
        }
        self.file_numbers[id.0] = Some(self.files);
        self.files += 1;
        match node {
            Node::Leaf(attributes, leaf) => {
                self.begin(path, tag(leaf));
                self.attributes(attributes);
                self.leaf(leaf);
            }
            Node::LinkBelow(target) => {
                self.begin(path, LINK_BELOW);
                self.text(target.as_bytes());
            }
            Node::Directory(_) => {}
        }
    }

    fn begin(&mut self, path: &[u8], tag: u8) {
        let both = self.previous.iter().zip(path);
        let kept = both.take_while(|(a, b)| a == b).count();
        self.length(kept);
        self.text(&path[kept..]);
        self.out.push(tag);
        self.previous.truncate(kept);
        self.previous.extend_from_slice(&path[kept..]);
        self.records += 1;
    }

    fn attributes(&mut self, attributes: &Attributes) {
        self.number(attributes.mode.into());
        self.number(attributes.uid.into());
        self.number(attributes.gid.into());
        let seconds = attributes.mtime.seconds;
        self.out.extend_from_slice(&seconds.to_le_bytes());
        self.number(attributes.mtime.nanoseconds.into());
        self.length(attributes.xattrs.len());
        for (name, value) in &attributes.xattrs {
            self.text(name);
            self.text(value);
        }
    }

    fn leaf(&mut self, leaf: &Leaf) {
        match leaf {
            Leaf::File(file) => {
                self.number(file.bytes);
                self.number(file.first_block.into());
                if let DataBlocks::Ranges(ranges) = &file.data {
                    self.length(ranges.len());
                    let mut end = 0;
                    for range in ranges {
                        self.number((range.start - end).into());
                        self.number((range.end - range.start).into());
                        end = range.end;
                    }
                }
            }
            Leaf::Symlink(target) => self.text(target),
            Leaf::CharacterDevice(device) | Leaf::BlockDevice(device) => {
                self.number(device.major.into());
                self.number(device.minor.into());
            }
            Leaf::Fifo => {}
        }
    }

    fn text(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.out.extend_from_slice(bytes);
    }

    fn length(&mut self, length: usize) {
        self.number(u64::try_from(length).expect("a length fits 64 bits"));
    }

    /// Seven bits a byte, lowest first; the highest bit says that more follow.
    fn number(&mut self, mut value: u64) {
        loop {
            let [low, ..] = value.to_le_bytes();
            value >>= 7;
            if value == 0 {
                self.out.push(low & 0x7f);
                return;
            }
            self.out.push(low | 0x80);
        }
    }
}

fn append(path: &mut Vec<u8>, name: &[u8]) {
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
}

fn tag(leaf: &Leaf) -> u8 {
    match leaf {
        Leaf::File(file) if file.data == DataBlocks::All => FILE,
        Leaf::File(_) => SPARSE_FILE,
        Leaf::Symlink(_) => SYMLINK,
        Leaf::CharacterDevice(_) => CHARACTER_DEVICE,
        Leaf::BlockDevice(_) => BLOCK_DEVICE,
        Leaf::Fifo => FIFO,
    }
}

struct Decoder<'b> {
    bytes: &'b [u8],
    offset: usize,
    /// Path of the last record.
    previous: Vec<u8>,
    /// Records that are no directories.
    files: Vec<NodeId>,
    count: Count,
    layer: Layer,
}

impl<'b> Decoder<'b> {
    fn record(&mut self) -> Result<()> {
        let path = self.path()?;
        let [tag] = self.array()?;
        match tag {
            DIRECTORY => {
                let mut attributes = self.attributes()?;
                self.count.add(path.as_bytes(), &attributes.xattrs, 0)?;
                self.check_xattrs(&path, Owner::Directory, &mut attributes.xattrs)?;
                let put = self.layer.put_directory(&path, attributes);
                self.judged(put)
            }
            SAME => {
                self.count.add(path.as_bytes(), &Xattrs::new(), 0)?;
                let number = usize::try_from(self.number()?).ok();
                let file = number.and_then(|number| self.files.get(number));
                let file = file.copied();
                let file = file.ok_or_else(|| self.damaged("another name of no earlier file"))?;
                let put = self.layer.put_name(&path, file);
                self.judged(put)
            }
            LINK_BELOW => {
                let raw = self.text()?;
                self.count.add(path.as_bytes(), &Xattrs::new(), raw.len())?;
                let target = self.strict(raw)?;
                self.put_file(&path, Node::LinkBelow(target))
            }
            WHITEOUT_OF => {
                self.count.add(path.as_bytes(), &Xattrs::new(), 0)?;
                let Some((directory, name)) = path.split_last() else {
                    return Err(self.damaged("a whiteout of the root"));
                };
                let put = self.layer.put_whiteout(&directory, name);
                self.judged(put)
            }
            OPAQUE => {
                self.count.add(path.as_bytes(), &Xattrs::new(), 0)?;
                let put = self.layer.put_opaque(&path);
                self.judged(put)
            }
            _ => self.leaf(&path, tag),
        }
    }

    fn leaf(&mut self, path: &Path, tag: u8) -> Result<()> {
        let mut attributes = self.attributes()?;
        let leaf = match tag {
            FILE | SPARSE_FILE => Leaf::File(self.file(tag)?),
            SYMLINK if attributes.mode == 0o777 => {
                let target = self.text()?;
                self.judged(check_symlink(path, target))?;
                Leaf::Symlink(target.into())
            }
            CHARACTER_DEVICE => Leaf::CharacterDevice(self.device(path, character_device)?),
            BLOCK_DEVICE => Leaf::BlockDevice(self.device(path, device)?),
            FIFO => Leaf::Fifo,
            _ => return Err(self.damaged("a record of no kind that there is")),
        };
        // Not more than the tar's entry has counted for.
        let other_bytes = match &leaf {
            Leaf::File(File {
                data: DataBlocks::Ranges(ranges),
                ..
            }) => ranges.len() * 8,
            Leaf::Symlink(target) => target.len(),
            _ => 0,
        };
        self.count
            .add(path.as_bytes(), &attributes.xattrs, other_bytes)?;
        self.check_xattrs(path, Owner::Leaf(&leaf), &mut attributes.xattrs)?;
        self.put_file(path, Node::Leaf(attributes, leaf))
    }

    fn put_file(&mut self, path: &Path, node: Node) -> Result<()> {
        let id = self.layer.add(node);
        self.files.push(id);
        let put = self.layer.put_name(path, id);
        self.judged(put)
    }

    fn file(&mut self, tag: u8) -> Result<File> {
        let bytes = self.number()?;
        let first_block = self.narrow()?;
        let blocks = bytes.div_ceil(BLOCK_BYTES);
        if u64::from(first_block).saturating_add(blocks) > self.layer.blob_blocks.into() {
            return Err(self.damaged("a file beyond the end of the blob"));
        }
        let data = if tag == FILE {
            DataBlocks::All
        } else {
            self.ranges(blocks)?
        };
        Ok(File {
            bytes,
            first_block,
            data,
        })
    }

    fn ranges(&mut self, blocks: u64) -> Result<DataBlocks> {
        let count = self.number()?;
        let mut ranges = Vec::new();
        let mut end: u32 = 0;
        for index in 0..count {
            let (gap, length) = (self.narrow()?, self.narrow()?);
            let start = end.checked_add(gap);
            let next = start.and_then(|start| start.checked_add(length));
            let (Some(start), Some(next)) = (start, next) else {
                return Err(self.damaged("data beyond the end of its file"));
            };
            if length == 0 || index > 0 && gap == 0 || u64::from(next) > blocks {
                return Err(self.damaged("ranges of data that no sparse file has"));
            }
            ranges.push(start..next);
            end = next;
        }
        let [first] = &ranges[..] else {
            return Ok(DataBlocks::Ranges(ranges.into()));
        };
        if u64::from(first.end - first.start) == blocks {
            return Err(self.damaged("a sparse file without a hole"));
        }
        Ok(DataBlocks::Ranges(ranges.into()))
    }

    fn device(
        &mut self,
        path: &Path,
        checked: impl Fn(&Path, i64, i64) -> Result<Device>,
    ) -> Result<Device> {
        let (major, minor) = (self.narrow()?, self.narrow()?);
        let device = checked(path, major.into(), minor.into());
        self.judged(device)
    }

    fn attributes(&mut self) -> Result<Attributes> {
        let mode = self.narrow()?;
        let mode = u16::try_from(mode).ok().filter(|&mode| mode <= 0o7777);
        let mode = mode.ok_or_else(|| self.damaged("a mode of more than permissions"))?;
        let (uid, gid) = (self.narrow()?, self.narrow()?);
        let seconds = i64::from_le_bytes(self.array()?);
        let nanoseconds = self.narrow()?;
        if nanoseconds >= 1_000_000_000 {
            return Err(self.damaged("a second and more of nanoseconds"));
        }
        let mut xattrs = Xattrs::new();
        for _ in 0..self.number()? {
            let (name, value) = (self.text()?, self.text()?);
            let last = xattrs.last_key_value();
            if last.is_some_and(|(last, _)| **last >= *name) {
                return Err(self.damaged("extended attributes out of order"));
            }
            xattrs.insert(name.into(), value.into());
        }
        Ok(Attributes {
            mode,
            uid,
            gid,
            mtime: Timestamp {
                seconds,
                nanoseconds,
            },
            xattrs,
        })
    }

    fn check_xattrs(&self, path: &Path, owner: Owner<'_>, xattrs: &mut Xattrs) -> Result<()> {
        let before = xattrs.len();
        self.judged(xattr::check(path, owner, xattrs))?;
        if xattrs.len() < before {
            return Err(self.damaged("an extended attribute that Linux keeps nowhere"));
        }
        Ok(())
    }

    fn path(&mut self) -> Result<Path> {
        let kept = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        if kept > self.previous.len() {
            return Err(self.damaged("a path that keeps more than there was"));
        }
        let added = self.text()?;
        self.previous.truncate(kept);
        self.previous.extend_from_slice(added);
        let path = self.strict(&self.previous)?;
        if path.parts().any(|part| part.starts_with(WHITEOUT)) {
            return Err(self.damaged("an entry or a removal of a whiteout"));
        }
        Ok(path)
    }

    /// The path of exactly these bytes.
    fn strict(&self, raw: &[u8]) -> Result<Path> {
        let path = Path::parse(raw).map_err(|what| self.damaged(what))?;
        if path.as_bytes() != raw {
            return Err(self.damaged("a path with parts that mean nothing"));
        }
        Ok(path)
    }

    /// What is wrong with an entry of a tar is wrong with the record.
    fn judged<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| match error {
            Error::Refused { why, .. } | Error::Unsupported { why, .. } => self.damaged(why),
            other => other,
        })
    }

    fn text(&mut self) -> Result<&'b [u8]> {
        let length = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        self.take(length)
    }

    fn narrow(&mut self) -> Result<u32> {
        let number = self.number()?;
        u32::try_from(number).map_err(|_too_large| self.damaged("a number beyond 32 bits"))
    }

    fn number(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            let bits = u64::from(byte & 0x7f);
            let is_last = byte & 0x80 == 0;
            // The tenth byte has room for one bit, and only the first may be nothing.
            if shift == 63 && byte > 1 || is_last && shift > 0 && bits == 0 {
                break;
            }
            value |= bits << shift;
            if is_last {
                return Ok(value);
            }
        }
        Err(self.damaged("a number that nobody writes so"))
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("it is as long as was asked for"))
    }

    fn take(&mut self, count: usize) -> Result<&'b [u8]> {
        let rest = &self.bytes[self.offset..];
        let taken = rest.get(..count);
        let taken = taken.ok_or_else(|| self.damaged("it ends too early"))?;
        self.offset += count;
        Ok(taken)
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged {
            offset: u64::try_from(self.offset).unwrap_or(u64::MAX),
            what,
        }
    }
}
