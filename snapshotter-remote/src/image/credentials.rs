//! Credentials for registries, from a file as `docker login`, `podman login` and `skopeo login` write it. Programs
//! that keep them elsewhere (credential helpers) are not asked, and no credential is shown.

use std::{
    collections::BTreeMap,
    env, fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use oci_client::{Reference, secrets::RegistryAuth};
use serde::Deserialize;

use crate::error::{Error, Result};

/// Nobody has more registries than fit.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// What a file says of registries.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Credentials {
    /// By registry, or registry and beginning of a name.
    auths: BTreeMap<String, Entry>,
    /// The helper of all registries.
    creds_store: Option<String>,
    /// Helpers of some.
    cred_helpers: BTreeMap<String, String>,
}

/// What a file says of one; the names are docker's.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
    registrytoken: String,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entry")
    }
}

impl Credentials {
    /// Of that file, or of docker's own if there is one: `$DOCKER_CONFIG/config.json`, else
    /// `~/.docker/config.json`.
    ///
    /// # Errors
    /// A file that was named and cannot be read, and one that is not like docker's.
    pub(super) fn read(file: Option<&Path>) -> Result<Self> {
        let (path, is_named) = match (file, usual_place()) {
            (Some(file), _) => (file.to_owned(), true),
            (None, Some(usual)) => (usual, false),
            (None, None) => return Ok(Self::default()),
        };
        let failed = |source| Error::File {
            doing: "reading the credentials in",
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => {
                return Ok(Self::default());
            }
            opened => opened.map_err(failed)?,
        };
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(failed)?;
        // Where it is wrong, and not what stands there.
        serde_json::from_str(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let what = "it is no file of credentials as docker login writes it";
            Error::Setting(format!(
                "{}: {what} (line {line}, column {column})",
                path.display()
            ))
        })
    }

    /// What a registry is told for an image; nothing for one of which the file says nothing.
    ///
    /// # Errors
    /// [`Error::Setting`] for an entry that cannot be used.
    pub(super) fn of(&self, reference: &Reference) -> Result<RegistryAuth> {
        let registry = reference.registry();
        let refused = |what: &str| {
            let what = format!("the credentials of {registry} cannot be used: {what}");
            Err(Error::Setting(what))
        };
        let Some(entry) = self.entry(reference) else {
            return Ok(RegistryAuth::Anonymous);
        };
        if !entry.registrytoken.is_empty() {
            return Ok(RegistryAuth::Bearer(entry.registrytoken.clone()));
        }
        if !entry.identitytoken.is_empty() {
            return refused("an identity token is there; a user and a password are needed");
        }
        if !entry.username.is_empty() {
            let (user, password) = (entry.username.clone(), entry.password.clone());
            return Ok(RegistryAuth::Basic(user, password));
        }
        if entry.auth.is_empty() {
            return Ok(RegistryAuth::Anonymous);
        }
        let bytes = STANDARD.decode(entry.auth.trim()).ok();
        let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
        match text.as_deref().and_then(|text| text.split_once(':')) {
            Some((user, password)) => {
                // Docker pads it.
                let password = password.trim_end_matches('\0');
                Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
            }
            None => refused("\"auth\" is not USER:PASSWORD in base64"),
        }
    }

    /// The helper that may have what the file does not have.
    pub(super) fn helper(&self, reference: &Reference) -> Option<&str> {
        let registry = reference.registry();
        let helpers = self.cred_helpers.iter();
        let mut helpers = helpers.filter(|(known, _)| plain(known) == registry);
        let own = helpers.next().map(|(_, helper)| helper);
        own.or(self.creds_store.as_ref()).map(String::as_str)
    }

    /// That of the longest beginning of its name.
    fn entry(&self, reference: &Reference) -> Option<&Entry> {
        let mut name = format!("{}/{}", reference.registry(), reference.repository());
        loop {
            let mut known = self.auths.iter();
            if let Some((_, entry)) = known.find(|(known, _)| plain(known) == name) {
                return Some(entry);
            }
            name.truncate(name.rfind('/')?);
        }
    }
}

/// What a key means: docker writes addresses, podman names.
fn plain(key: &str) -> &str {
    let schemes = ["https://", "http://"];
    let key = schemes
        .iter()
        .find_map(|scheme| key.strip_prefix(scheme))
        .unwrap_or(key)
        .trim_end_matches('/');
    let versions = ["/v1", "/v2"];
    let versions = versions.iter();
    match versions.fold(key, |key, end| key.strip_suffix(end).unwrap_or(key)) {
        "index.docker.io" => "docker.io",
        key => key,
    }
}

fn usual_place() -> Option<PathBuf> {
    let directory = env::var_os("DOCKER_CONFIG").map(PathBuf::from);
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".docker"));
    Some(directory.or_else(home)?.join("config.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, image: &str) -> Result<RegistryAuth> {
        let credentials: Credentials = serde_json::from_str(text).unwrap();
        credentials.of(&image.parse().unwrap())
    }

    fn basic(user: &str, password: &str) -> RegistryAuth {
        RegistryAuth::Basic(user.to_owned(), password.to_owned())
    }

    #[test]
    fn the_longest_name_of_a_registry_counts() {
        let text = r#"{ "auths": {
            "r.example": { "auth": "YTpi" },
            "r.example/team": { "username": "c", "password": "d" },
            "https://index.docker.io/v1/": { "auth": "ZTpmOmc=" },
            "token.example": { "registrytoken": "t" },
            "none.example": {}
        } }"#;
        let check = |image: &str, expected: RegistryAuth| {
            assert_eq!(of(text, image).unwrap(), expected, "{image}");
        };
        check("r.example/x:1", basic("a", "b"));
        check("r.example/team/x", basic("c", "d"));
        check("r.example/teams/x", basic("a", "b"));
        check("busybox", basic("e", "f:g"));
        check("token.example/x", RegistryAuth::Bearer("t".to_owned()));
        check("none.example/x", RegistryAuth::Anonymous);
        check("r.example:5000/x", RegistryAuth::Anonymous);
    }

    #[test]
    fn what_cannot_be_used_is_named_and_not_shown() {
        let check = |entry: &str, expected: &str| {
            let text = format!("{{ \"auths\": {{ \"r.example\": {entry} }} }}");
            let error = of(&text, "r.example/x").unwrap_err().to_string();
            assert!(
                error.contains("r.example") && error.contains(expected),
                "{error}"
            );
            assert!(!error.contains("secret"), "{error}");
        };
        check(r#"{ "identitytoken": "secret" }"#, "identity token");
        check(r#"{ "auth": "secret!" }"#, "base64");
        check(r#"{ "auth": "c2VjcmV0" }"#, "USER:PASSWORD");
    }

    #[test]
    fn helpers_are_known_by_name() {
        let text = r#"{ "credsStore": "pass", "credHelpers": { "r.example": "cloud" } }"#;
        let credentials: Credentials = serde_json::from_str(text).unwrap();
        let helper = |image: &str| credentials.helper(&image.parse().unwrap());
        assert_eq!(helper("r.example/x"), Some("cloud"));
        assert_eq!(helper("other.example/x"), Some("pass"));
        assert_eq!(of(text, "r.example/x").unwrap(), RegistryAuth::Anonymous);
    }

    #[test]
    fn a_file_that_is_named_must_be_there_and_be_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        let error = Credentials::read(Some(&path)).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error}");
        std::fs::write(&path, "{ \"auths\": \"secret\" }").unwrap();
        let error = Credentials::read(Some(&path)).unwrap_err().to_string();
        assert!(
            error.contains("line 1") && !error.contains("secret"),
            "{error}"
        );
        std::fs::write(
            &path,
            "{ \"auths\": { \"r.example\": { \"auth\": \"YTpi\" } } }",
        )
        .unwrap();
        let credentials = Credentials::read(Some(&path)).unwrap();
        let found = credentials.of(&"r.example/x".parse().unwrap()).unwrap();
        assert_eq!(found, basic("a", "b"));
        assert!(!format!("{credentials:?}").contains("YTpi"));
    }
}
