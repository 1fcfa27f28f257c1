//! The messages of fuse(4) that a file system of blobs needs, as bytes: a directory whose files are blobs, each by the digest of its
//! table, that nobody can list or change. It reads and writes nothing.
//!
//! Of a file the kernel knows a number; it is the beginning of the digest, so the next daemon knows of which blob a request is.

use sys::REQUEST_BYTES;

/// The directory.
const ROOT: u64 = 1;

const HEAD_BYTES: usize = 40;

const ANSWER_HEAD_BYTES: u32 = 16;

/// `enum fuse_opcode` of linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const READ: u32 = 15;
const INIT: u32 = 26;
const BATCH_FORGET: u32 = 42;

/// The protocol that is spoken: 7.31, of Linux 5.4. Newer kernels speak it as well.
const VERSION: [u32; 2] = [7, 31];

/// What of the kernel's flags is wanted: FUSE_ASYNC_READ, FUSE_ASYNC_DIO (a read of several requests fails when one of them does),
/// FUSE_PARALLEL_DIROPS, FUSE_MAX_PAGES.
const FLAGS: u32 = 1 | 1 << 15 | 1 << 18 | 1 << 22;

/// Pages that one request reads at most: 1 MiB.
const PAGES_MAX: u16 = 256;

/// The least that the kernel allows; nothing is written.
const WRITE_BYTES_MAX: u32 = 4096;

/// How long the kernel may keep what it was told of a name or of a file, in seconds: always.
const VALID_SECONDS: u64 = 1 << 30;

pub(super) const EIO: i32 = 5;
const ENOENT: i32 = 2;
const ENOSYS: i32 = 38;

/// A file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::host) struct Node {
    /// Its number.
    pub(in crate::host) number: u64,
    /// Its length.
    pub(in crate::host) bytes: u64,
}

/// What somebody wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) enum Asked {
    /// The first request of a connection.
    Init {
        /// Of the kernel's protocol.
        major: u32,
        /// What the kernel can do.
        flags: u32,
    },
    /// A file by its name.
    Lookup(Vec<u8>),
    /// What a file, or the directory, is.
    Attributes(u64),
    /// Bytes of a file.
    Read {
        /// Its number.
        node: u64,
        /// The first byte.
        at: u64,
        /// How many.
        bytes: u32,
    },
    /// Nothing: the kernel tells of something.
    Nothing,
    /// What there is not. The kernel does without: it then opens files without asking, and tells of no signals.
    Other,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::host) struct Message {
    /// What its answer goes to.
    pub(in crate::host) unique: u64,
    /// What is wanted.
    pub(in crate::host) asked: Asked,
}

impl Node {
    /// The number of the blob of that name; none for one whose number has another meaning.
    pub(in crate::host) fn number_of(name: [u8; 32]) -> Option<u64> {
        let number = u64_at(&name, 0);
        (number > ROOT).then_some(number)
    }
}

impl Message {
    /// What the kernel wrote.
    pub(in crate::host) fn parse(bytes: &[u8; REQUEST_BYTES]) -> Self {
        let length = usize::try_from(u32_at(bytes, 0)).unwrap_or(usize::MAX);
        let body = &bytes[HEAD_BYTES..length.clamp(HEAD_BYTES, REQUEST_BYTES)];
        let node = u64_at(bytes, 16);
        let asked = match u32_at(bytes, 4) {
            INIT if body.len() >= 16 => Asked::Init {
                major: u32_at(body, 0),
                flags: u32_at(body, 12),
            },
            LOOKUP if node == ROOT => {
                let name = body.iter().copied().take_while(|byte| *byte != 0);
                Asked::Lookup(name.collect())
            }
            LOOKUP => Asked::Lookup(Vec::new()),
            GETATTR => Asked::Attributes(node),
            READ if body.len() >= 20 => Asked::Read {
                node,
                at: u64_at(body, 8),
                bytes: u32_at(body, 16),
            },
            FORGET | BATCH_FORGET => Asked::Nothing,
            _ => Asked::Other,
        };
        Self {
            unique: u64_at(bytes, 8),
            asked,
        }
    }

    /// The answer to what is no read; none to what wants none. `node` knows files by name, `waiting_max` is how many may be asked at
    /// once.
    pub(in crate::host) fn answer(
        &self,
        waiting_max: u16,
        by_name: impl FnOnce(&[u8]) -> Option<Node>,
        by_number: impl FnOnce(u64) -> Option<Node>,
    ) -> Option<Vec<u8>> {
        let contents = match &self.asked {
            Asked::Nothing | Asked::Read { .. } => return None,
            Asked::Init { major, .. } if *major < VERSION[0] => Err(EIO),
            Asked::Init { flags, .. } => Ok(init(*flags, waiting_max)),
            Asked::Lookup(name) => by_name(name).map(entry).ok_or(ENOENT),
            Asked::Attributes(ROOT) => Ok(attributes(None)),
            Asked::Attributes(number) => by_number(*number)
                .map(|node| attributes(Some(node)))
                .ok_or(ENOENT),
            Asked::Other => Err(ENOSYS),
        };
        Some(match contents {
            Ok(contents) => {
                let mut answer = head(self.unique, contents.len(), 0).to_vec();
                answer.extend(contents);
                answer
            }
            Err(errno) => head(self.unique, 0, errno).to_vec(),
        })
    }
}

/// What an answer of so many bytes, or of an error, begins with.
pub(in crate::host) fn head(unique: u64, bytes: usize, errno: i32) -> [u8; 16] {
    let length = ANSWER_HEAD_BYTES + u32::try_from(bytes).expect("an answer is 1 MiB at most");
    let mut head = [0; 16];
    head[..4].copy_from_slice(&length.to_ne_bytes());
    head[4..8].copy_from_slice(&(-errno).to_ne_bytes());
    head[8..].copy_from_slice(&unique.to_ne_bytes());
    head
}

fn init(kernel: u32, waiting_max: u16) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(64);
    let [major, minor] = VERSION;
    // What is read ahead is what EROFS reads ahead.
    for word in [major, minor, 0, FLAGS & kernel] {
        bytes.extend(word.to_ne_bytes());
    }
    for half in [waiting_max, waiting_max] {
        bytes.extend(half.to_ne_bytes());
    }
    bytes.extend(WRITE_BYTES_MAX.to_ne_bytes());
    let nanoseconds: u32 = 1;
    bytes.extend(nanoseconds.to_ne_bytes());
    bytes.extend(PAGES_MAX.to_ne_bytes());
    bytes.resize(64, 0);
    bytes
}

fn entry(node: Node) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    // A number has the same contents for ever: all are of one generation.
    for word in [node.number, 0, VALID_SECONDS, VALID_SECONDS, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(about(Some(node)));
    bytes
}

fn attributes(node: Option<Node>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(104);
    for word in [VALID_SECONDS, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend(about(node));
    bytes
}

/// `struct fuse_attr`; none is the directory.
fn about(node: Option<Node>) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(88);
    let (number, length) = node.map_or((ROOT, 0), |node| (node.number, node.bytes));
    // Number, length, blocks; three times of 1970.
    for word in [number, length, length / 512, 0, 0, 0] {
        bytes.extend(word.to_ne_bytes());
    }
    let (mode, links): (u32, u32) = match node {
        Some(_) => (0o100_400, 1),
        None => (0o040_500, 2),
    };
    // Nanoseconds of these; mode, links; owner, group, no device, blocks of 4 KiB.
    for half in [0, 0, 0, mode, links, 0, 0, 0, 4096, 0] {
        bytes.extend(half.to_ne_bytes());
    }
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the kernel writes it.
    fn request(opcode: u32, node: u64, body: &[u8]) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0xee; REQUEST_BYTES];
        let length = u32::try_from(HEAD_BYTES + body.len()).unwrap();
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes[4..8].copy_from_slice(&opcode.to_ne_bytes());
        bytes[8..16].copy_from_slice(&70_u64.to_ne_bytes());
        bytes[16..24].copy_from_slice(&node.to_ne_bytes());
        let kept = body.len().min(REQUEST_BYTES - HEAD_BYTES);
        bytes[HEAD_BYTES..HEAD_BYTES + kept].copy_from_slice(&body[..kept]);
        bytes
    }

    fn answered(request: &[u8; REQUEST_BYTES], node: Option<Node>) -> Option<Vec<u8>> {
        Message::parse(request).answer(960, |_| node, |_| node)
    }

    fn error_of(answer: &[u8]) -> i32 {
        assert_eq!((answer.len(), u32_at(answer, 0)), (16, 16));
        i32::from_ne_bytes(answer[4..8].try_into().unwrap())
    }

    #[test]
    fn a_read_says_of_which_file_from_where_and_how_much() {
        let mut body = Vec::new();
        for word in [9_u64, 8192, 4096, 0, 0] {
            body.extend(word.to_ne_bytes());
        }
        let message = Message::parse(&request(READ, 77, &body));
        let asked = Asked::Read {
            node: 77,
            at: 8192,
            bytes: 4096,
        };
        assert_eq!(message, Message { unique: 70, asked });
        assert_eq!(message.answer(1, |_| None, |_| None), None);
        let short = Message::parse(&request(READ, 77, &body[..16]));
        assert_eq!(short.asked, Asked::Other);
    }

    #[test]
    fn a_name_is_what_lies_before_the_zero_also_where_it_does_not_fit() {
        let name = "ab".repeat(32);
        let with_end = [name.as_bytes(), b"\0"].concat();
        let lookup = |node, body: &[u8]| Message::parse(&request(LOOKUP, node, body)).asked;
        assert_eq!(lookup(1, &with_end), Asked::Lookup(name.into_bytes()));
        let long = lookup(1, &[b'x'; 300]);
        assert_eq!(long, Asked::Lookup(vec![b'x'; REQUEST_BYTES - HEAD_BYTES]));
        assert_eq!(lookup(77, &with_end), Asked::Lookup(Vec::new()));
    }

    #[test]
    fn a_file_has_the_number_of_its_digest_and_its_length() {
        let number = Node::number_of([7; 32]).unwrap();
        let node = Node {
            number,
            bytes: 1 << 20,
        };
        let entry = answered(&request(LOOKUP, 1, b"x\0"), Some(node)).unwrap();
        assert_eq!((entry.len(), u32_at(&entry, 0)), (144, 144));
        assert_eq!((u64_at(&entry, 8), u64_at(&entry, 16)), (70, number));
        assert_eq!(u64_at(&entry, 16 + 40 + 8), 1 << 20);
        assert_eq!(u32_at(&entry, 16 + 40 + 60), 0o100_400);
        let about = answered(&request(GETATTR, number, &[]), Some(node)).unwrap();
        assert_eq!((about.len(), u64_at(&about, 16 + 16 + 8)), (120, 1 << 20));
        let root = answered(&request(GETATTR, 1, &[]), None).unwrap();
        assert_eq!(u32_at(&root, 16 + 16 + 60), 0o040_500);
        for opcode in [LOOKUP, GETATTR] {
            let answer = answered(&request(opcode, 9, b"y\0"), None).unwrap();
            assert_eq!(error_of(&answer), -ENOENT);
        }
        let mut low = [0; 32];
        low[0] = 1;
        assert_eq!(Node::number_of(low), None, "that of the directory");
    }

    #[test]
    fn a_connection_begins_with_what_both_can_do() {
        let body: Vec<u8> = [7_u32, 40, 0, u32::MAX]
            .into_iter()
            .flat_map(u32::to_ne_bytes)
            .collect();
        let answer = answered(&request(INIT, 0, &body), None).unwrap();
        assert_eq!(answer.len(), 80);
        let words = [16, 20, 28].map(|at| u32_at(&answer, at));
        assert_eq!(words, [7, 31, FLAGS]);
        assert_eq!(answer[32..36], [960_u16.to_ne_bytes(); 2].concat());
        assert_eq!(answer[44..46], PAGES_MAX.to_ne_bytes());
        let old = [&6_u32.to_ne_bytes(), &body[4..]].concat();
        let refused = answered(&request(INIT, 0, &old), None).unwrap();
        assert_eq!(error_of(&refused), -EIO);
    }

    #[test]
    fn what_there_is_not_is_said_and_what_wants_no_answer_has_none() {
        // FUSE_OPEN, FUSE_WRITE, FUSE_INTERRUPT, one that is not known yet.
        for opcode in [14, 16, 36, 4711] {
            let answer = answered(&request(opcode, 9, &[]), None).unwrap();
            assert_eq!(error_of(&answer), -ENOSYS);
        }
        for opcode in [FORGET, BATCH_FORGET] {
            assert_eq!(answered(&request(opcode, 9, &[]), None), None);
        }
    }
}
