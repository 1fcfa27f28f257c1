//! Who vouches for a manifest. The private key is the store's alone; hosts have public keys.
//!
//! A signed manifest is the manifest, the public key and the signature, one behind the other.

use std::{fmt, str::FromStr};

use disk::Digest;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};

use crate::{
    error::{Error, Result},
    manifest::{self, Manifest},
};

/// What is signed begins with it, so that a signature is of nothing else than a manifest.
const CONTEXT: &[u8] = b"pouch disk manifest\0";

const KEY_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;

/// Length that a signed manifest may have.
pub const BYTES_MAX: usize = manifest::BYTES_MAX + KEY_BYTES + SIGNATURE_BYTES;

/// What a line with a private key begins with.
const PRIVATE: &str = "pouch-ed25519-private ";
/// What a line with a public key begins with.
const PUBLIC: &str = "pouch-ed25519-public ";

/// Signs manifests.
pub struct PrivateKey(SigningKey);

/// Knows the manifests that its private key has signed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PrivateKey {
    /// Of 32 random bytes.
    #[must_use]
    pub fn of(random: &[u8; KEY_BYTES]) -> Self {
        Self(SigningKey::from_bytes(random))
    }

    /// The key that hosts need.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The manifest, signed.
    ///
    /// # Errors
    /// [`Error::Limit`].
    pub fn sign(&self, manifest: &Manifest) -> Result<Vec<u8>> {
        let mut bytes = manifest.encode()?;
        let signature = self.0.sign(&signed(&bytes));
        bytes.extend_from_slice(self.public().0.as_bytes());
        bytes.extend_from_slice(&signature.to_bytes());
        Ok(bytes)
    }

    /// The line of its file.
    #[must_use]
    pub fn to_line(&self) -> String {
        format!("{PRIVATE}{}\n", Digest(self.0.to_bytes()))
    }
}

/// The manifest of that chain, if one of these keys has signed it.
///
/// # Errors
/// [`Error::Damaged`] (so also for another chain's), [`Error::Untrusted`], [`Error::OtherVersion`].
pub fn open(signed_manifest: &[u8], chain_id: Digest, trusted: &[PublicKey]) -> Result<Manifest> {
    let object = format!("manifest {chain_id}");
    let damaged = |what| Error::damaged(&object, what);
    let (bytes, key, signature) = parts(signed_manifest).map_err(damaged)?;
    let mut keys = trusted.iter();
    let Some(trusted) = keys.find(|trusted| trusted.0.as_bytes() == key) else {
        return Err(Error::Untrusted {
            key: Digest(*key).to_string(),
            object,
        });
    };
    let verified = trusted
        .0
        .verify_strict(&signed(bytes), &Signature::from_bytes(signature));
    verified.map_err(|_its_words| damaged("its signature is not that of its key"))?;
    manifest_of(bytes, chain_id)
}

/// The same, whoever has signed it: nothing may be read by it.
///
/// # Errors
/// [`Error::Damaged`] and [`Error::OtherVersion`].
pub fn open_unverified(signed_manifest: &[u8], chain_id: Digest) -> Result<Manifest> {
    let damaged = |what| Error::damaged(format!("manifest {chain_id}"), what);
    let (bytes, _key, _signature) = parts(signed_manifest).map_err(damaged)?;
    manifest_of(bytes, chain_id)
}

fn manifest_of(bytes: &[u8], chain_id: Digest) -> Result<Manifest> {
    let object = format!("manifest {chain_id}");
    let manifest = Manifest::decode(&object, bytes)?;
    if manifest.chain_id() != chain_id {
        return Err(Error::damaged(&object, "it is that of other layers"));
    }
    Ok(manifest)
}

/// Manifest, key and signature.
type Parts<'a> = (&'a [u8], &'a [u8; KEY_BYTES], &'a [u8; SIGNATURE_BYTES]);

/// What a signed manifest is made of, or what is wrong.
fn parts(signed_manifest: &[u8]) -> std::result::Result<Parts<'_>, &'static str> {
    if signed_manifest.len() > BYTES_MAX {
        return Err("it is longer than a manifest may be");
    }
    let ends = signed_manifest.split_last_chunk::<SIGNATURE_BYTES>();
    let ends = ends.and_then(|(rest, signature)| {
        let (bytes, key) = rest.split_last_chunk::<KEY_BYTES>()?;
        Some((bytes, key, signature))
    });
    ends.ok_or("it ends too early")
}

fn signed(bytes: &[u8]) -> Vec<u8> {
    [CONTEXT, bytes].concat()
}

impl FromStr for PrivateKey {
    type Err = &'static str;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let bytes = key_bytes(line, PRIVATE);
        let bytes = bytes.ok_or("no line of a private key: pouch-ed25519-private, 64 digits")?;
        Ok(Self::of(&bytes))
    }
}

impl FromStr for PublicKey {
    type Err = &'static str;

    fn from_str(line: &str) -> Result<Self, Self::Err> {
        let bytes = key_bytes(line, PUBLIC);
        let bytes = bytes.ok_or("no line of a public key: pouch-ed25519-public, 64 digits")?;
        let key = VerifyingKey::from_bytes(&bytes);
        let key = key.map_err(|_its_words| "no public key of ed25519")?;
        if key.is_weak() {
            return Err("a public key of ed25519 for which anybody can sign");
        }
        Ok(Self(key))
    }
}

impl fmt::Display for PublicKey {
    /// The line of its file, without an end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", Digest(self.0.to_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for PrivateKey {
    /// Without what must stay secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "private key of {}", self.public())
    }
}

fn key_bytes(line: &str, kind: &str) -> Option<[u8; KEY_BYTES]> {
    let digits = line.strip_suffix('\n').unwrap_or(line).strip_prefix(kind)?;
    digest(digits).map(|digest| digest.0)
}

/// Of 64 lowercase hexadecimal digits.
pub(crate) fn digest(digits: &str) -> Option<Digest> {
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let is_plain = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    if pairs.len() != 32 || !rest.is_empty() || !digits.as_bytes().iter().all(is_plain) {
        return None;
    }
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(pairs) {
        let pair = str::from_utf8(pair).ok()?;
        *byte = u8::from_str_radix(pair, 16).ok()?;
    }
    Some(Digest(bytes))
}
