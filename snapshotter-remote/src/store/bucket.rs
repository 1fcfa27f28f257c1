//! A bucket of S3 as the ground of a store: how it is reached, and what its answers mean. Everything in it is put by one request, so
//! it is there whole or not at all, and is on the server's disks when that is answered.

use std::{
    env,
    fs::{self, File},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use hyper::Uri;
use object_store::{
    BackoffConfig, Certificate, ClientOptions, ObjectStore, RetryConfig, StaticCredentialProvider,
    aws::{AmazonS3Builder, AmazonS3ConfigKey as Key, AwsCredential},
    prefix::PrefixStore,
};
use serde::Deserialize;
use snapshot_core::one_line;

use super::{
    lease::{PACE, Pace, WordName},
    place::BucketName,
    s3_credentials::Credentials,
};
use crate::{
    error::{Error, Result},
    tls,
};

/// Until the server is connected to.
const CONNECT: Duration = Duration::from_secs(5);

/// Without a byte of an answer; a request that is sent counts, too, so a stored layer has to be sent within it.
const SILENCE: Duration = Duration::from_secs(120);

/// How often and how long what may pass is tried again: connections that are refused, answers of 5xx.
const RETRIES_MAX: usize = 5;
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// Connections that wait for the next request.
const IDLE_MAX: usize = 64;

/// What a server says of itself in a message, in characters.
const SAID_MAX: usize = 200;

/// `[s3]`: how a bucket is reached. What is not said, Amazon's usual variables say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct S3Config {
    /// Another server than Amazon's: `https://HOST[:PORT]`.
    pub endpoint: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// Whether buckets of that endpoint are hosts below it, in place of the first part of a path.
    pub virtual_hosts: bool,
    /// Whether `http://` endpoints of other machines are asked, too.
    pub plain_http: bool,
    /// Authorities of the endpoint in place of the system's (PEM).
    pub ca_file: Option<PathBuf>,
    /// Credentials as Amazon's own command keeps them.
    pub credentials_file: Option<PathBuf>,
    /// The private key of a store in a bucket, for who adds.
    pub key_file: Option<PathBuf>,
    /// Who has said that he changes the store, and is dead for certain.
    #[serde(skip)]
    pub forget: Vec<WordName>,
}

/// What is known of a bucket.
#[derive(Debug, Clone)]
pub(super) struct Bucket {
    pub(super) name: BucketName,
    /// Who answers for it.
    endpoint: String,
    pub(super) key_file: Option<PathBuf>,
    /// When who changes the store says so.
    pub(super) pace: Pace,
    /// Who does not change it any more.
    pub(super) forget: Vec<WordName>,
}

impl Bucket {
    /// The bucket and what is below its prefix; nothing is asked yet.
    ///
    /// # Errors
    /// [`Error::Setting`] for an endpoint that is none or needs a word, files that cannot be read, and where nobody says who asks.
    pub(super) fn reach(
        name: &BucketName,
        config: &S3Config,
    ) -> Result<(Self, Arc<dyn ObjectStore>)> {
        // Its client wants to know without TLS, too.
        tls::install();
        let mut builder = AmazonS3Builder::from_env().with_bucket_name(&name.bucket);
        if let Some(region) = &config.region {
            builder = builder.with_region(region);
        }
        let endpoint = config.endpoint.clone();
        let endpoint = endpoint
            .or_else(|| builder.get_config_value(&Key::S3Endpoint))
            .or_else(|| builder.get_config_value(&Key::Endpoint));
        let mut client = options();
        let shown = match &endpoint {
            Some(endpoint) => {
                let (url, is_plain) = address(endpoint, &name.bucket, config)?;
                client = client.with_allow_http(is_plain);
                if !is_plain {
                    client = with_authorities(client, config)?;
                }
                // What is set for Amazon alone goes before it.
                builder = builder
                    .with_config(Key::S3Endpoint, &url)
                    .with_virtual_hosted_style_request(config.virtual_hosts);
                url
            }
            None => {
                client = with_authorities(client, config)?;
                // A certificate of Amazon's has one name below it.
                let is_host = !name.bucket.contains('.');
                builder = builder.with_virtual_hosted_style_request(is_host);
                "Amazon".to_owned()
            }
        };
        let builder = with_credentials(builder, config, endpoint.is_some(), name)?
            .with_client_options(client)
            .with_disable_bulk_delete(true)
            .with_retry(RetryConfig {
                backoff: BackoffConfig {
                    init_backoff: PAUSE_FIRST,
                    max_backoff: PAUSE_MAX,
                    base: 2.0,
                },
                max_retries: RETRIES_MAX,
                retry_timeout: RETRY_TIMEOUT,
            });
        let built = builder
            .build()
            .map_err(|error| Error::Setting(format!("{name}: {}", one_line(&error))))?;
        let this = Self {
            name: name.clone(),
            endpoint: shown,
            key_file: config.key_file.clone(),
            pace: PACE,
            forget: config.forget.clone(),
        };
        Ok((
            this,
            Arc::new(PrefixStore::new(built, name.prefix.as_str())),
        ))
    }

    /// One that nobody asks.
    #[cfg(test)]
    pub(super) fn nowhere(pace: Pace) -> Self {
        Self {
            name: "s3://nowhere".parse().expect("it is one"),
            endpoint: "nobody".to_owned(),
            key_file: None,
            pace,
            forget: Vec::new(),
        }
    }

    /// A file without a name where this machine keeps what it needs for a while.
    pub(super) fn scratch() -> Result<File> {
        tempfile::tempfile().map_err(|source| Error::File {
            doing: "making a file for a blob (TMPDIR names another directory) in",
            path: env::temp_dir(),
            source,
        })
    }

    /// What an answer means, and what to do.
    pub(super) fn failed(
        &self,
        doing: &'static str,
        object: String,
        error: &object_store::Error,
    ) -> Error {
        let said = one_line(error);
        let what = match advice(&said) {
            Some(advice) => format!("{advice} ({} said: {})", self.endpoint, brief(&said)),
            None => format!("{} said: {}", self.endpoint, brief(&said)),
        };
        Error::Bucket {
            doing,
            object,
            bucket: self.name.to_string(),
            what,
        }
    }
}

/// Whether an object is missing, and nothing else: servers say 404 of buckets and of who asks, too.
pub(super) fn is_absent(error: &object_store::Error) -> bool {
    let object_store::Error::NotFound { source, .. } = error else {
        return false;
    };
    let said = source.to_string();
    match (code(&said), said.split_once("404 Not Found")) {
        (Some(code), _) => code == "NoSuchKey",
        // The answer of HEAD has nothing behind it; that of something that is no S3 may have.
        (None, Some((_, body))) => body.trim_matches([':', ' ', '\n']).is_empty(),
        (None, None) => true,
    }
}

/// The code of an answer, if it has one.
fn code(said: &str) -> Option<&str> {
    let (_, behind) = said.split_once("<Code>")?;
    Some(behind.split_once("</Code>")?.0)
}

fn options() -> ClientOptions {
    ClientOptions::new()
        // Of a whole answer, which may be long.
        .with_timeout_disabled()
        .with_connect_timeout(CONNECT)
        .with_read_timeout(SILENCE)
        .with_pool_max_idle_per_host(IDLE_MAX)
        .with_no_system_certificates(true)
}

fn with_authorities(client: ClientOptions, config: &S3Config) -> Result<ClientOptions> {
    let Some(file) = &config.ca_file else {
        tls::for_clients()?;
        return Ok(client.with_no_system_certificates(false));
    };
    let text = fs::read(file).map_err(|source| Error::File {
        doing: "reading the certificates in",
        path: file.clone(),
        source,
    })?;
    let found = Certificate::from_pem_bundle(&text).unwrap_or_default();
    if found.is_empty() {
        return Err(Error::Key {
            path: file.clone(),
            what: "it has no certificate (PEM: -----BEGIN CERTIFICATE-----)",
        });
    }
    let client = found
        .into_iter()
        .fold(client, ClientOptions::with_root_certificate);
    Ok(client)
}

/// The address as it is asked, and whether that is without TLS.
fn address(endpoint: &str, bucket: &str, config: &S3Config) -> Result<(String, bool)> {
    let wrong = |what: &str| Error::Setting(format!("the endpoint of S3 is {endpoint:?}: {what}"));
    let uri: Uri = endpoint
        .parse()
        .map_err(|_its_words| wrong("https://HOST[:PORT] is wanted"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong("https://HOST[:PORT] is wanted"));
    };
    if !matches!(scheme, "http" | "https") || !matches!(uri.path(), "" | "/") {
        return Err(wrong("https://HOST[:PORT] is wanted"));
    }
    let host = authority.host().trim_matches(['[', ']']);
    let is_here = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|host| host.is_loopback());
    let is_plain = scheme == "http";
    if is_plain && !is_here && !config.plain_http {
        return Err(wrong(
            "images would be sent there as plain text: use https://, or say so with --s3-plain-http (s3.plain_http = \
             true) where the network is trusted",
        ));
    }
    if is_plain && config.ca_file.is_some() {
        return Err(wrong(
            "authorities are named for it (--s3-ca), and http:// shows no certificate: use https://",
        ));
    }
    let host = if config.virtual_hosts {
        format!("{bucket}.{authority}")
    } else {
        authority.to_string()
    };
    Ok((format!("{scheme}://{host}"), is_plain))
}

/// A file that is named, then Amazon's variables, then the file of Amazon's own command; then what a machine of Amazon's has.
fn with_credentials(
    builder: AmazonS3Builder,
    config: &S3Config,
    is_other: bool,
    name: &BucketName,
) -> Result<AmazonS3Builder> {
    let is_said = |key| builder.get_config_value(&key).is_some();
    if config.credentials_file.is_none() && is_said(Key::AccessKeyId) {
        return Ok(builder);
    }
    if let Some(found) = Credentials::read(config.credentials_file.as_deref())? {
        // All of it, and no token of the variables.
        let found = StaticCredentialProvider::new(AwsCredential {
            key_id: found.key_id,
            secret_key: found.secret,
            token: found.token,
        });
        return Ok(builder.with_credentials(Arc::new(found)));
    }
    let has_other_ways = is_said(Key::WebIdentityTokenFile)
        || is_said(Key::ContainerCredentialsRelativeUri)
        || is_said(Key::ContainerCredentialsFullUri);
    if is_other && !has_other_ways {
        return Err(Error::Setting(format!(
            "there are no credentials for {name}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file of them \
             with --s3-credentials (s3.credentials_file)"
        )));
    }
    Ok(builder)
}

/// What to do about what was said.
fn advice(said: &str) -> Option<&'static str> {
    const WORDS: [(&[&str], &str); 11] = [
        (
            // Where machines of Amazon's ask for theirs.
            &["//169.254.169.254", "//[fd00:ec2::254]"],
            "there are no credentials, and this machine has none of Amazon's: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or \
             name a file of them with --s3-credentials (s3.credentials_file)",
        ),
        (
            &["NoSuchBucket"],
            "there is no such bucket: make it, or correct its name",
        ),
        (
            &[
                "InvalidAccessKeyId",
                "SignatureDoesNotMatch",
                "InvalidToken",
                "ExpiredToken",
                "401 Unauthorized",
                // Of versitygw, which knows nobody else.
                "XAdminUserNotFound",
            ],
            "the credentials are refused: correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the file of credentials",
        ),
        (
            &["RequestTimeTooSkewed"],
            "this machine's clock and the bucket's differ too much: set them right",
        ),
        (
            &["AccessDenied", "403 Forbidden"],
            "these credentials may not do that: correct them, or what the bucket's policy allows",
        ),
        (
            &[
                "AuthorizationHeaderMalformed",
                "PermanentRedirect",
                "without LOCATION",
            ],
            "the bucket is in another region: name it with --s3-region (s3.region)",
        ),
        (
            &["NotImplemented", "501 Not Implemented"],
            "the server lacks what a store needs (writes with If-None-Match and If-Match): use one that has it",
        ),
        (
            &["invalid peer certificate", "certificate verify"],
            "its certificate is not trusted: name its authority with --s3-ca (s3.ca_file)",
        ),
        (
            &[
                "error sending request",
                "timed out",
                "connection closed",
                "deadline has elapsed",
            ],
            "nobody answers there: see whether it is up, and correct --s3-endpoint (s3.endpoint, AWS_ENDPOINT_URL) if not",
        ),
        (
            &["SlowDown", "503 Service Unavailable"],
            "it is too busy: try again later",
        ),
        (
            &["404 Not Found"],
            "what answers there is no S3: correct --s3-endpoint (s3.endpoint, AWS_ENDPOINT_URL)",
        ),
    ];
    let mut words = WORDS.iter();
    let found = words.find(|(signs, _)| signs.iter().any(|sign| said.contains(sign)));
    found.map(|(_, advice)| *advice)
}

/// The code of an answer, or the end of a chain of causes.
fn brief(said: &str) -> String {
    let causes = || said.rsplit(": ").find(|cause| !cause.trim().is_empty());
    let cause = code(said).or_else(causes).unwrap_or(said);
    let words: Vec<_> = cause.split_whitespace().collect();
    let signs = words.join(" ");
    let signs = signs.chars().filter(|sign| !sign.is_control());
    signs.take(SAID_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_an_address_and_plain_text_needs_a_word() {
        let check = |endpoint: &str, config: &S3Config| address(endpoint, "disks", config);
        let usual = S3Config::default();
        let found = check("https://s3.example:9000/", &usual).unwrap();
        assert_eq!(found, ("https://s3.example:9000".to_owned(), false));
        for here in ["http://127.0.0.1:7", "http://localhost:7", "http://[::1]:7"] {
            assert_eq!(check(here, &usual).unwrap(), (here.to_owned(), true));
        }
        let error = check("http://s3.example", &usual).unwrap_err().to_string();
        assert!(error.contains("--s3-plain-http"), "{error}");
        let told = S3Config {
            plain_http: true,
            virtual_hosts: true,
            ..S3Config::default()
        };
        let found = check("http://s3.example:80", &told).unwrap();
        assert_eq!(found, ("http://disks.s3.example:80".to_owned(), true));
        for wrong in [
            "",
            "s3.example",
            "ftp://s3.example",
            "https://s3.example/disks",
        ] {
            let error = check(wrong, &usual).unwrap_err().to_string();
            assert!(error.contains("https://HOST[:PORT]"), "{error}");
        }
        let with_authority = S3Config {
            ca_file: Some("x".into()),
            ..S3Config::default()
        };
        check("http://127.0.0.1:7", &with_authority).unwrap_err();
    }

    #[test]
    fn what_was_said_is_brief_and_comes_with_advice() {
        let said = "Error performing PUT http://x/y in 3ms - Server returned non-2xx status code: 404 Not Found: <?xml \
                    version=\"1.0\"?>\n<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>";
        assert_eq!(brief(said), "NoSuchBucket");
        assert!(advice(said).unwrap().contains("no such bucket"));
        let said = "HTTP error: error sending request: tcp connect error: Connection refused (os error 111)";
        assert_eq!(brief(said), "Connection refused (os error 111)");
        assert!(advice(said).unwrap().contains("nobody answers"));
        assert_eq!(advice("something else"), None);
        assert_eq!(brief("a\nb"), "a b");
        let long = format!("<Code>\u{1b}[2J{}</Code>", "x".repeat(SAID_MAX));
        assert_eq!(brief(&long), format!("[2J{}", "x".repeat(SAID_MAX - 3)));
        let said = "Error performing PUT http://169.254.169.254/latest/api/token in 2s: error sending request";
        assert!(advice(said).unwrap().contains("no credentials"));
    }

    #[test]
    fn only_an_object_that_is_missing_is_absent() {
        let check = |said: &str, expected| {
            let error = object_store::Error::NotFound {
                path: "key.pub".to_owned(),
                source: said.into(),
            };
            assert_eq!(is_absent(&error), expected, "{said}");
        };
        let http = "Server returned non-2xx status code: 404 Not Found: ";
        check(http, true);
        check("No such file or directory", true);
        let of = |code| format!("{http}<Error><Code>{code}</Code></Error>");
        check(&of("NoSuchKey"), true);
        check(&of("NoSuchBucket"), false);
        check(&format!("{http}<!DOCTYPE HTML>"), false);
    }
}
