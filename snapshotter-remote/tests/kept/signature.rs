//! Signed manifests: what is not exactly what a trusted key signed for that chain is refused.

use snapshotter_remote::{
    Error,
    signature::{PrivateKey, PublicKey, open, open_unverified},
};

use super::manifest::{digest, example};

fn key(value: u8) -> PrivateKey {
    PrivateKey::of(&[value; 32])
}

#[test]
fn a_signed_manifest_is_read_with_one_of_the_trusted_keys() {
    let manifest = example();
    let signed = key(1).sign(&manifest).unwrap();
    let trusted = [key(2).public(), key(1).public()];
    assert_eq!(
        open(&signed, manifest.chain_id(), &trusted).unwrap(),
        manifest
    );
    // Ed25519 is deterministic, and so is the manifest.
    assert_eq!(key(1).sign(&manifest).unwrap(), signed);
}

#[test]
fn every_flipped_bit_and_every_cut_is_refused() {
    let manifest = example();
    let signed = key(1).sign(&manifest).unwrap();
    let trusted = [key(1).public()];
    let opened = |bytes: &[u8]| open(bytes, manifest.chain_id(), &trusted);
    for at in 0..signed.len() {
        let mut changed = signed.clone();
        changed[at] ^= 1 << (at % 8);
        opened(&changed).unwrap_err();
        opened(&signed[..at]).unwrap_err();
    }
    opened(&[&signed[..], &[0]].concat()).unwrap_err();
}

#[test]
fn a_manifest_under_the_name_of_another_chain_is_refused() {
    let signed = key(1).sign(&example()).unwrap();
    let error = open(&signed, digest(7), &[key(1).public()]).unwrap_err();
    let name = digest(7);
    assert_eq!(
        error.to_string(),
        format!("manifest {name} is damaged: it is that of other layers")
    );
}

#[test]
fn a_stranger_s_signature_names_the_key() {
    let manifest = example();
    let signed = key(3).sign(&manifest).unwrap();
    let error = open(&signed, manifest.chain_id(), &[key(1).public()]).unwrap_err();
    // What it says is known all the same.
    assert_eq!(
        open_unverified(&signed, manifest.chain_id()).unwrap(),
        manifest
    );
    assert!(open_unverified(&signed, digest(7)).is_err());
    assert!(open_unverified(&signed[1..], manifest.chain_id()).is_err());
    assert!(open_unverified(&[], manifest.chain_id()).is_err());
    let Error::Untrusted { key: named, .. } = &error else {
        unreachable!("{error}")
    };
    assert!(key(3).public().to_string().ends_with(named));
}

#[test]
fn keys_come_back_from_their_lines() {
    let private = key(5);
    let line = private.to_line();
    let again: PrivateKey = line.parse().unwrap();
    assert_eq!(again.to_line(), line);
    let public: PublicKey = private.public().to_string().parse().unwrap();
    assert_eq!(public, private.public());
    // A log tells nothing.
    let digits = line.trim_end().rsplit(' ').next().unwrap();
    assert!(!format!("{private:?}").contains(digits));
    for line in [
        "",
        "pouch-ed25519-public 00",
        &line.to_uppercase(),
        &format!("{line}\n"),
        // The point at infinity of small order: any signature fits.
        &format!("pouch-ed25519-public 01{}", "0".repeat(62)),
    ] {
        line.parse::<PublicKey>().unwrap_err();
        line.parse::<PrivateKey>().unwrap_err();
    }
}
