//! An Ubuntu image with upstart, of the last release that had it, by mmdebstrap from Ubuntu's archive.

use std::{fs, path::Path};

use anyhow::{Result, ensure};
use sha2::{Digest, Sha256};

use super::{debian, layer::Layer};
use crate::apt::Suite;

const ARCHIVE: &str = "http://archive.ubuntu.com/ubuntu";

/// 16.04.
const SUITE: &str = "xenial";

const WITH_UPSTART: &str = "upstart-sysv,cron,procps";

/// The archive's keys, in the package `ubuntu-keyring` of that release.
const KEYRING: &str = "usr/share/keyrings/ubuntu-archive-keyring.gpg";
const KEYRING_SHA256: &str = "46988ea36b75c9653a41ce3ef717c8511478142ab80ec0cba012f5251a1cd4ff";

/// What scripts of packages look for before those that make it have run.
const PREPARED: &str = r#"mkdir -p "$1/etc/pam.d"; : >"$1/var/lib/dpkg/available"
for kind in auth account session password; do
    echo "$kind required pam_permit.so" >"$1/etc/pam.d/common-$kind"
done"#;

/// The layer, of essential packages and upstart.
pub(super) fn layer() -> Result<Layer> {
    let directory = tempfile::tempdir()?;
    let keyring = directory.path().join("keys").join(KEYRING);
    // What comes without a signature is compared.
    let source = format!("deb [trusted=yes] {ARCHIVE} {SUITE} main");
    let suite = Suite::of_source(&source, &directory.path().join("apt"))?;
    suite.unpack("ubuntu-keyring", &directory.path().join("keys"))?;
    check(&keyring)?;
    let source = format!(
        "deb [signed-by={}] {ARCHIVE} {SUITE} main universe",
        keyring.display()
    );
    let options = [
        // The package that brings systemd is among the required ones, and cannot be beside upstart's.
        "--variant=essential".to_owned(),
        format!("--include={WITH_UPSTART}"),
        format!("--extract-hook={PREPARED}"),
    ];
    debian::layer_of((SUITE, &source), options)
}

fn check(keyring: &Path) -> Result<()> {
    let found = format!("{:x}", Sha256::digest(fs::read(keyring)?));
    ensure!(
        found == KEYRING_SHA256,
        "{} is not Ubuntu's: sha256 {found}",
        keyring.display()
    );
    Ok(())
}
