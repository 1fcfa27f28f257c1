//! Credentials for S3 out of a file, as Amazon's own command writes it: `[PROFILE]`, then lines of `key = value`. What another key says
//! is not ours, and no credential is shown.

use std::{
    env, fmt,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use super::key::only_ours;
use crate::error::{Error, Result};

/// Nobody has more profiles than fit.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The profile that counts unless `AWS_PROFILE` names another.
const PROFILE: &str = "default";

/// Who asks.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) key_id: String,
    pub(super) secret: String,
    /// Of those that are good for a while.
    pub(super) token: Option<String>,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    /// Of that file; without one of `AWS_SHARED_CREDENTIALS_FILE` or `~/.aws/credentials`, if it is there.
    ///
    /// # Errors
    /// A file that was named and cannot be read, one that others can, and one without the profile where file or profile were named.
    pub(super) fn read(file: Option<&Path>) -> Result<Option<Self>> {
        let named = env::var_os("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
        let home = || Some(Path::new(&env::var_os("HOME")?).join(".aws/credentials"));
        let (path, is_named) = match file.map(Path::to_owned).or(named) {
            Some(path) => (path, true),
            None => match home() {
                Some(path) => (path, false),
                None => return Ok(None),
            },
        };
        let failed = |source| Error::File {
            doing: "reading the credentials for S3 in",
            path: path.clone(),
            source,
        };
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_named => return Ok(None),
            opened => opened.map_err(failed)?,
        };
        let refused = |what: &str| Error::Setting(format!("{}: {what}", path.display()));
        only_ours(&file, &path)?;
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(failed)?;
        let named_profile = env::var("AWS_PROFILE").ok();
        let profile = named_profile.as_deref().unwrap_or(PROFILE);
        let found = parse(&text, profile);
        if found.is_none() && !is_named && named_profile.is_none() {
            // Nobody has said that they are in it.
            return Ok(None);
        }
        found.map(Some).ok_or_else(|| {
            refused(&format!(
                "it has no [{profile}] with aws_access_key_id and aws_secret_access_key (AWS_PROFILE names another)"
            ))
        })
    }
}

fn parse(text: &str, profile: &str) -> Option<Credentials> {
    let mut is_ours = false;
    let (mut key_id, mut secret, mut token) = (None, None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
            is_ours = name.trim() == profile;
        } else if let Some((key, value)) = line.split_once('=').filter(|_| is_ours) {
            let place = match key.trim().to_ascii_lowercase().as_str() {
                "aws_access_key_id" => &mut key_id,
                "aws_secret_access_key" => &mut secret,
                "aws_session_token" => &mut token,
                _ => continue,
            };
            *place = Some(value.trim().to_owned());
        }
    }
    Some(Credentials {
        key_id: key_id?,
        secret: secret?,
        token,
    })
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

    use super::*;

    const FILE: &str = "# ours\n[default]\naws_access_key_id = A\nregion=x\naws_secret_access_key=b=c\n\n\
        [other]\naws_secret_access_key = s\nAWS_ACCESS_KEY_ID = K\naws_session_token = t\n[half]\n\
        aws_access_key_id = H\n";

    #[test]
    fn a_profile_is_found_among_others() {
        let credentials = |key_id: &str, secret: &str, token: Option<&str>| Credentials {
            key_id: key_id.to_owned(),
            secret: secret.to_owned(),
            token: token.map(str::to_owned),
        };
        assert_eq!(parse(FILE, "default"), Some(credentials("A", "b=c", None)));
        let other = credentials("K", "s", Some("t"));
        assert_eq!(parse(FILE, "other"), Some(other));
        assert_eq!(parse(FILE, "half"), None);
        assert_eq!(parse(FILE, "none"), None);
    }

    #[test]
    fn a_file_that_everybody_can_read_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("credentials");
        fs::write(&path, FILE).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let error = Credentials::read(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("chmod 0600"), "{error}");
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert!(Credentials::read(Some(&path)).unwrap().is_some());
        Credentials::read(Some(&directory.path().join("none"))).unwrap_err();
    }
}
