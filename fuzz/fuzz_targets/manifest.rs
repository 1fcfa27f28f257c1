//! The manifest of a disk: what is read is exactly what would be written.

#![no_main]

use libfuzzer_sys::fuzz_target;
use snapshotter_remote::manifest::Manifest;

fuzz_target!(|rest: &[u8]| {
    // Else most inputs would end at the first bytes.
    let bytes = [b"pouchdsk\x02\0\0\0\x01\0\0\0", rest].concat();
    let Ok(manifest) = Manifest::decode("manifest", &bytes) else {
        return;
    };
    assert_eq!(manifest.encode().expect("it was not too long"), bytes);
    assert!(manifest.flat_blocks() < u32::MAX.into());
    let _name = manifest.chain_id();
});
