//! TLS to stores: who is believed to be one, and as whom this host is let in.

use std::path::PathBuf;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::{ClientConfig, RootCertStore, version::TLS13};
use serde::Deserialize;

use crate::{
    error::{Error, Result},
    tls,
};

/// `[store.tls]`
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// Authorities of stores (PEM); `https://` needs it.
    pub ca_file: Option<PathBuf>,
    /// This host's certificate and those between it and its authority (PEM), where stores want one.
    pub certificate_file: Option<PathBuf>,
    /// Its private key (PEM).
    pub key_file: Option<PathBuf>,
}

/// What makes connections to stores, with TLS and without.
pub(super) type Connector = HttpsConnector<HttpConnector>;

impl TlsConfig {
    /// Whether stores can be asked by `https://`.
    pub(super) fn is_on(&self) -> bool {
        self.ca_file.is_some()
    }

    /// Over these connections. Files are read once: a daemon that is started anew reads them again.
    ///
    /// # Errors
    /// [`Error::Setting`] for one file without the others; files that cannot be read or have something else.
    pub(super) fn connector(&self, mut http: HttpConnector) -> Result<Connector> {
        let refused = |what: String| Error::Setting(format!("store.tls: {what}"));
        let authorities = match &self.ca_file {
            Some(path) => tls::authorities(path)?,
            None => RootCertStore::empty(),
        };
        let builder = ClientConfig::builder_with_provider(tls::provider())
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| refused(snapshot_core::one_line(&error)))?
            .with_root_certificates(authorities);
        let config = match (&self.certificate_file, &self.key_file) {
            (None, None) => builder.with_no_client_auth(),
            (Some(certificate_file), Some(key_file)) if self.is_on() => {
                let certificates = tls::certificates(certificate_file)?;
                let config = builder.with_client_auth_cert(certificates, tls::key(key_file)?);
                config.map_err(|error| refused(snapshot_core::one_line(&error)))?
            }
            _ => {
                let what = "certificate_file, key_file and ca_file belong together";
                return Err(refused(what.to_owned()));
            }
        };
        http.enforce_http(false);
        Ok(HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(http))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        io::{Read, Write},
        net::{SocketAddr, TcpListener},
        os::unix::fs::PermissionsExt,
        path::Path,
        sync::Arc,
        thread,
    };

    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    use rustls::{ServerConfig, ServerConnection, StreamOwned, server::WebPkiClientVerifier};

    use super::*;
    use crate::host::{client::Client, config::StoreConfig, metrics::Measured};

    fn put(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    /// An authority, and certificates of it for a store on this machine and for a host, with their keys.
    fn certify(directory: &Path) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        put(
            &directory.join("ca"),
            &params.self_signed(&key).unwrap().pem(),
        );
        let issuer = Issuer::new(params, key);
        for name in ["127.0.0.1", "host"] {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            let certificate = params.signed_by(&key, &issuer).unwrap();
            put(&directory.join(name), &certificate.pem());
            put(&directory.join(format!("{name}.key")), &key.serialize_pem());
        }
    }

    /// A store that says that it is well, once to each of so many who are let in or not.
    fn store(directory: &Path, clients: usize) -> SocketAddr {
        let authorities = Arc::new(tls::authorities(&directory.join("ca")).unwrap());
        let verifier = WebPkiClientVerifier::builder_with_provider(authorities, tls::provider());
        let config = ServerConfig::builder_with_provider(tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(
                tls::certificates(&directory.join("127.0.0.1")).unwrap(),
                tls::key(&directory.join("127.0.0.1.key")).unwrap(),
            );
        let config = Arc::new(config.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for client in listener.incoming().take(clients) {
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                let mut stream = StreamOwned::new(connection, client.unwrap());
                // Who is not let in hears nothing.
                let mut request = [0; 4096];
                if stream.read(&mut request).is_ok_and(|count| count > 0) {
                    let answer =
                        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 3\r\n\r\nok\n";
                    drop(stream.write_all(answer).and_then(|()| stream.flush()));
                }
            }
        });
        address
    }

    fn asked(address: SocketAddr, tls: TlsConfig) -> Result<(), String> {
        let config = StoreConfig {
            urls: vec![format!("https://{address}")],
            tls,
            ..StoreConfig::default()
        };
        let client = Client::new(&config, Measured::default()).unwrap();
        client.health().remove(0).1
    }

    #[test]
    fn a_store_is_believed_by_its_authority_and_believes_the_host_by_its_certificate() {
        let (ours, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        certify(ours.path());
        certify(others.path());
        let address = store(ours.path(), 4);
        let of = |authority: &Path, host: Option<&Path>| TlsConfig {
            ca_file: Some(authority.join("ca")),
            certificate_file: host.map(|host| host.join("host")),
            key_file: host.map(|host| host.join("host.key")),
        };
        let (ours, others) = (ours.path(), others.path());
        asked(address, of(ours, Some(ours))).unwrap();
        let error = asked(address, of(others, Some(ours))).unwrap_err();
        assert!(error.contains("certificate"), "{error}");
        asked(address, of(ours, Some(others))).unwrap_err();
        asked(address, of(ours, None)).unwrap_err();
    }

    #[test]
    fn one_file_without_the_others_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        certify(directory.path());
        let file = |name: &str| Some(directory.path().join(name));
        let config = TlsConfig {
            certificate_file: file("host"),
            ..TlsConfig::default()
        };
        let refused = |config: &TlsConfig| {
            let error = config.connector(HttpConnector::new()).unwrap_err();
            assert!(error.to_string().contains("belong together"), "{error}");
        };
        refused(&config);
        refused(&TlsConfig {
            key_file: file("host.key"),
            ..config
        });
    }
}
