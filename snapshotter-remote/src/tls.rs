//! TLS for all that speak it here: which cryptography, and files of certificates and keys.

use std::{fs::File, io::Read, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use crate::error::{Error, Result};

/// All authorities of a system fit.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// The one that is used everywhere: it is built with a C compiler alone, also statically.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Makes it the one of libraries that take what a process has.
pub(crate) fn install() {
    // Once is enough, whoever did it.
    drop(ring::default_provider().install_default());
}

/// What clients of registries and buckets need of this process and of this machine.
///
/// # Errors
/// [`Error::Setting`] when no authority is trusted here, which their library would end the process for.
pub(crate) fn for_clients() -> Result<()> {
    install();
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return Err(Error::Setting(
            "this machine has no certificates of authorities, so no registry and no bucket can be asked: install \
             ca-certificates, or name a file of them in SSL_CERT_FILE"
                .to_owned(),
        ));
    }
    Ok(())
}

/// The certificates of a file (PEM), in its order; at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let text = read(path, "reading the certificates in")?;
    let read = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match read {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        Ok(_) => Err(no(
            path,
            "it has no certificate (PEM: -----BEGIN CERTIFICATE-----)",
        )),
        Err(_its_words) => Err(no(path, "its certificates are no PEM")),
    }
}

/// Those of authorities.
pub(crate) fn authorities(path: &Path) -> Result<RootCertStore> {
    let mut authorities = RootCertStore::empty();
    for certificate in certificates(path)? {
        let added = authorities.add(certificate);
        added
            .map_err(|_its_words| no(path, "it has a certificate that cannot be an authority's"))?;
    }
    Ok(authorities)
}

/// The private key of a file (PEM), which not everybody on this machine may read.
pub(crate) fn key(path: &Path) -> Result<PrivateKeyDer<'static>> {
    let doing = "reading the private key in";
    let metadata = path.metadata().map_err(|source| Error::File {
        doing,
        path: path.to_owned(),
        source,
    })?;
    if metadata.permissions().mode() & 0o007 != 0 {
        return Err(no(
            path,
            "everybody on this machine can use the private key in it: chmod 0600",
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(path, doing)?);
    key.map_err(|_its_words| {
        no(
            path,
            "it has no private key (PEM: -----BEGIN PRIVATE KEY-----)",
        )
    })
}

fn no(path: &Path, what: &'static str) -> Error {
    let path = path.to_owned();
    Error::Key { path, what }
}

fn read(path: &Path, doing: &'static str) -> Result<Vec<u8>> {
    let failed = |source| Error::File {
        doing,
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let read = file.take(FILE_BYTES_MAX).read_to_end(&mut bytes);
    read.map_err(failed)?;
    Ok(bytes)
}
