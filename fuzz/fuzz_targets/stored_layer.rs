//! A stored layer: what comes of it can be stored again, merged and written, within the limits.

#![no_main]

use disk::{Digest, Form, Image, Layer, Limits, Tree};
use libfuzzer_sys::fuzz_target;

const LIMITS: Limits = Limits {
    entries_max: 1000,
    metadata_bytes_max: 1 << 20,
    header_bytes_max: 1 << 16,
    blob_bytes_max: 1 << 20,
};

fuzz_target!(|rest: &[u8]| {
    // Else most inputs would end at the first bytes.
    let bytes = [b"pouchlyr\x01\0\x01\0", rest].concat();
    let Ok(layer) = Layer::decode(&bytes, &LIMITS) else {
        return;
    };
    let stored = layer.encode();
    let again = Layer::decode(&stored, &LIMITS).expect("a layer is stored and read");
    assert_eq!(again.encode(), stored);
    let mut tree = Tree::new();
    let _refused_or_not = tree.apply(&layer, Digest([1; 32]));
    let image = Image::of(&tree, Digest([9; 32]), Form::Devices).expect("it is small");
    let mut metadata = Vec::new();
    image.write(&mut metadata).expect("memory takes it");
    assert_eq!(metadata.len() as u64, image.metadata_bytes());
});
