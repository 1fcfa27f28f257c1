//! TLS of the server: its certificate, and hosts by theirs. Files are read at the start and on SIGHUP, all of them or
//! none.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ServerConfig,
    server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier},
    version::TLS13,
};
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    tls,
};

/// `[tls]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The server's certificate and those between it and its authority (PEM).
    pub certificate_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub key_file: Option<PathBuf>,
    /// Authorities of hosts (PEM): who has no certificate of one of them is not let in.
    pub client_ca_file: Option<PathBuf>,
}

impl TlsConfig {
    /// Whether it is spoken.
    pub(super) fn is_on(&self) -> bool {
        self.certificate_file.is_some()
    }

    /// Refuses one part without the others.
    pub(super) fn check(&self) -> Result<()> {
        let what = match (&self.certificate_file, &self.key_file, &self.client_ca_file) {
            (Some(_), None, _) => {
                "a certificate is of no use without its private key: --tls-key (tls.key_file)"
            }
            (None, Some(_), _) => {
                "a private key is of no use without its certificate: --tls-certificate (tls.certificate_file)"
            }
            (None, None, Some(_)) => {
                "hosts show certificates to who shows one: --client-ca (tls.client_ca_file) needs --tls-certificate and --tls-key"
            }
            _ => return Ok(()),
        };
        Err(Error::Setting(what.to_owned()))
    }

    /// What makes connections of sockets, if TLS is spoken.
    ///
    /// # Errors
    /// Files that cannot be read, have something else, or do not belong together.
    pub(super) fn acceptor(&self) -> Result<Option<Arc<ServerConfig>>> {
        let (Some(certificate_file), Some(key_file)) = (&self.certificate_file, &self.key_file)
        else {
            return Ok(None);
        };
        let refused = |error: &dyn std::error::Error| {
            let path = certificate_file.display();
            let why = snapshot_core::one_line(error);
            Error::Setting(format!("{path} and {}: {why}", key_file.display()))
        };
        let builder = ServerConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| refused(&error))?;
        let certificates = tls::certificates(certificate_file)?;
        let mut config = builder
            .with_client_cert_verifier(self.verifier()?)
            .with_single_cert(certificates, tls::key(key_file)?)
            .map_err(|error| refused(&error))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Some(Arc::new(config)))
    }

    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>> {
        let Some(path) = &self.client_ca_file else {
            return Ok(Arc::new(NoClientAuth));
        };
        let authorities = Arc::new(tls::authorities(path)?);
        let verifier = WebPkiClientVerifier::builder_with_provider(authorities, tls::provider());
        verifier.build().map_err(|error| {
            let why = snapshot_core::one_line(&error);
            Error::Setting(format!("{}: {why}", path.display()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_belong_together() {
        let file = || Some(PathBuf::from("x"));
        let check = |certificate_file, key_file, client_ca_file, expected: &str| {
            let config = TlsConfig {
                certificate_file,
                key_file,
                client_ca_file,
            };
            let checked = config
                .check()
                .err()
                .map_or(String::new(), |error| error.to_string());
            assert_eq!(checked.is_empty(), expected.is_empty(), "{checked}");
            assert!(checked.contains(expected), "{checked}");
        };
        check(None, None, None, "");
        check(file(), file(), None, "");
        check(file(), file(), file(), "");
        check(file(), None, None, "tls.key_file");
        check(None, file(), None, "tls.certificate_file");
        check(None, None, file(), "tls.client_ca_file");
    }
}
