//! TLS for all that speak it here: which cryptography (one that a C compiler alone builds, also statically), and files of
//! certificates.

use std::{fs::File, io::Read, path::Path};

use rustls::{
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};

use crate::error::{Error, Result};

/// All authorities of a system fit.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What clients of registries need of this process and of this machine.
///
/// # Errors
/// [`Error::Setting`] when no authority is trusted here, which their library would end the process for.
pub(crate) fn for_registries() -> Result<()> {
    // Once is enough, whoever did it.
    drop(ring::default_provider().install_default());
    if rustls_native_certs::load_native_certs().certs.is_empty() {
        return Err(Error::Setting(
            "this machine has no certificates of authorities, so no registry can be asked: install \
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
