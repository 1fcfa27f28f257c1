//! A store by TLS: who is believed, who is let in, and how certificates change while it runs.

use std::{
    fs,
    io::Write,
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::sys::signal::Signal;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use snapshotter_remote::store::Store;
use tempfile::{TempDir, tempdir};

use super::{
    served::metrics_of,
    server::{Answer, Server, refuses},
};

/// An authority.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { issuer, pem }
    }

    /// A certificate for that name, and its key.
    fn signs(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

/// Files of a server, by which it can be told to speak TLS.
struct Files(TempDir);

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    fn certify(&self, (certificate, key): &(String, String)) {
        self.put("certificate.pem", certificate);
        self.put("key.pem", key);
    }

    /// What the server is told; with an authority of hosts if there is a file of one.
    fn config(&self) -> String {
        let path = |name: &str| self.path(name).display().to_string();
        let mut text = format!(
            "[tls]\ncertificate_file = \"{}\"\nkey_file = \"{}\"\n",
            path("certificate.pem"),
            path("key.pem")
        );
        if self.path("hosts.pem").exists() {
            text += &format!("client_ca_file = \"{}\"\n", path("hosts.pem"));
        }
        text
    }
}

/// A store without disks, and files for its server, certified by an authority.
fn store() -> (TempDir, Files, Authority) {
    let directory = tempdir().unwrap();
    Store::create(directory.path()).unwrap();
    let (files, authority) = (Files(tempdir().unwrap()), Authority::new());
    files.certify(&authority.signs("127.0.0.1"));
    (directory, files, authority)
}

/// What a client hears of /v1/health; nothing if the other is not believed, or does not let it in.
fn ask(server: &Server, trusted: &str, host: Option<&(String, String)>) -> Result<Answer, String> {
    let mut roots = RootCertStore::empty();
    let trusted = CertificateDer::from_pem_slice(trusted.as_bytes()).unwrap();
    roots.add(trusted).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    let config = match host {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
            config
                .with_client_auth_cert(vec![certificate], key)
                .unwrap()
        }
    };
    let name = "127.0.0.1".try_into().unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(connection, server.connect());
    let request = b"GET /v1/health HTTP/1.1\r\nHost: store\r\nConnection: close\r\n\r\n";
    stream
        .write_all(request)
        .map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let read = std::io::Read::read_to_end(&mut stream, &mut bytes);
    read.map_err(|error| error.to_string())?;
    Ok(Answer::read(&bytes[..]))
}

fn is_answered(asked: Result<Answer, String>) -> bool {
    match asked {
        Ok(answer) => {
            assert_eq!((answer.status, answer.text().as_str()), (200, "ok\n"));
            true
        }
        Err(_its_words) => false,
    }
}

#[test]
fn a_store_shows_a_certificate_and_takes_no_plain_text() {
    let (directory, files, authority) = store();
    // Any address may be served so.
    let server = Server::start_at(directory.path(), "0.0.0.0:0", &files.config());
    let server = server.reached_at([127, 0, 0, 1]);
    assert!(is_answered(ask(&server, &authority.pem, None)));
    let error = ask(&server, &Authority::new().pem, None).unwrap_err();
    assert!(error.contains("certificate"), "{error}");
    let plain = server.get("health", &[]);
    assert_eq!(plain.status, 0, "{plain:?}");
    // One that says nothing holds up nobody.
    let _silent = TcpStream::connect(server.address).unwrap();
    assert!(is_answered(ask(&server, &authority.pem, None)));
}

#[test]
fn hosts_are_let_in_by_certificates_of_their_authority() {
    let (directory, files, authority) = store();
    let (hosts, others) = (Authority::new(), Authority::new());
    files.put("hosts.pem", &hosts.pem);
    let metrics = files.path("metrics.sock");
    let address = format!("[metrics]\naddress = \"unix:{}\"\n", metrics.display());
    let mut server = Server::start(directory.path(), &(files.config() + &address));
    let (host, other) = (hosts.signs("host"), others.signs("host"));
    assert!(is_answered(ask(&server, &authority.pem, Some(&host))));
    assert!(!is_answered(ask(&server, &authority.pem, Some(&other))));
    assert!(!is_answered(ask(&server, &authority.pem, None)));
    let page = metrics_of(&metrics);
    let failed = "snapshotter_remote_store_handshakes_failed_total 2\n";
    assert!(page.contains(failed), "{page}");

    // Another authority of hosts, and another certificate of the server, without an end of the server.
    let next = Authority::new();
    files.put("hosts.pem", &others.pem);
    files.certify(&next.signs("127.0.0.1"));
    server.signal(Signal::SIGHUP);
    server.logs("were read again");
    assert!(is_answered(ask(&server, &next.pem, Some(&other))));
    assert!(!is_answered(ask(&server, &next.pem, Some(&host))));

    // What is wrong leaves all as it was.
    files.put("hosts.pem", "nothing");
    server.signal(Signal::SIGHUP);
    let said = server.logs("stay as they were");
    assert!(said.contains("hosts.pem"), "{said}");
    assert!(is_answered(ask(&server, &next.pem, Some(&other))));
}

#[test]
fn the_authority_of_hosts_neither_goes_nor_comes_by_sighup_also_where_there_are_tokens() {
    let (directory, files, authority) = store();
    let hosts = Authority::new();
    let host = hosts.signs("host");
    files.put("tokens", &format!("host {}\n", "t".repeat(32)));
    let tokens = format!("token_file = \"{}\"\n", files.path("tokens").display());
    for has_authority in [true, false] {
        let change = |is: bool| match is {
            true => files.put("hosts.pem", &hosts.pem),
            false => fs::remove_file(files.path("hosts.pem")).unwrap(),
        };
        if has_authority {
            change(true);
        }
        let mut server = Server::start(directory.path(), &(tokens.clone() + &files.config()));
        change(!has_authority);
        server.configure(&(tokens.clone() + &files.config()));
        server.signal(Signal::SIGHUP);
        let said = server.logs("stay as they were");
        assert!(said.contains("client_ca_file"), "{said}");
        let is_stranger_answered = is_answered(ask(&server, &authority.pem, None));
        assert_eq!(is_stranger_answered, !has_authority);
        assert!(is_answered(ask(&server, &authority.pem, Some(&host))));
    }
}

#[test]
fn files_that_make_no_tls_are_told_before_it_serves() {
    let (directory, files, authority) = store();
    let place = tempdir().unwrap();
    let fails = |expected: &str| {
        refuses(place.path(), directory.path(), &files.config(), expected);
    };
    let open = |path: &Path| fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    open(&files.path("key.pem"));
    fails("chmod 0600");
    let (certificate, _key) = authority.signs("127.0.0.1");
    files.put("certificate.pem", &certificate);
    files.put("key.pem", &authority.signs("127.0.0.1").1);
    fails("certificate.pem and");
    files.put("certificate.pem", "nothing");
    fails("it has no certificate");
    fs::remove_file(files.path("certificate.pem")).unwrap();
    fails("certificate.pem");
}
