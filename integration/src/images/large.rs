//! Half a gigabyte in forty thousand files, for what depends on size.

use super::layer::{Content, Layer};
use crate::random::Random;

const DIRECTORIES: u64 = 200;
const FILES_EACH: u64 = 200;

/// Between 1 and 26 KiB each, 13.5 KiB on average: 550 MB.
pub(super) fn layer() -> Layer {
    let mut layer = Layer::default();
    let mut random = Random::new(0x706f_7563_6821);
    layer.directory("large");
    for directory in 0..DIRECTORIES {
        layer.directory(&format!("large/{directory:03}"));
        for file in 0..FILES_EACH {
            let length_bytes = 1024 + random.below(25 * 1024);
            let content = Content::Random {
                seed: random.next_bits(),
                length_bytes,
            };
            layer.add(&format!("large/{directory:03}/{file:03}"), 0o644, content);
        }
    }
    layer
}
