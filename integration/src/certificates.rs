//! Certificates for what speaks TLS in a test, made where they are needed.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// An authority, and what it vouches for: files (PEM) in a directory of their own.
#[derive(Debug)]
pub struct Certificates(tempfile::TempDir);

impl Certificates {
    /// A new authority `ca`, and for each name, a host or an address, a certificate `NAME` with its key `NAME.key`.
    pub fn of(names: &[&str]) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        put(
            &directory.path().join("ca"),
            &params.self_signed(&key)?.pem(),
        )?;
        let issuer = Issuer::new(params, key);
        for name in names {
            let key = KeyPair::generate()?;
            let params = CertificateParams::new([(*name).to_owned()])?;
            let certificate = params.signed_by(&key, &issuer)?;
            put(&directory.path().join(name), &certificate.pem())?;
            put(
                &directory.path().join(format!("{name}.key")),
                &key.serialize_pem(),
            )?;
        }
        Ok(Self(directory))
    }

    /// One of the files.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }
}

fn put(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o600),
    )?)
}
