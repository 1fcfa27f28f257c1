//! `[nbd]`

use std::net::SocketAddr;

use serde::Deserialize;
use snapshot_core::daemon::config;

use crate::{
    error::{Error, Result},
    serve::config::Config,
};

/// `[nbd]`
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NbdConfig {
    /// Where NBD clients connect; nowhere without it.
    pub listen: Option<SocketAddr>,
    /// Connections at once; others are closed.
    pub connections_max: usize,
    /// Chunks that stay in memory for the next read, for all connections together, in MiB.
    pub cache_mebibytes: usize,
}

impl Default for NbdConfig {
    fn default() -> Self {
        Self {
            listen: None,
            connections_max: 64,
            cache_mebibytes: 64,
        }
    }
}

impl NbdConfig {
    /// Refuses what nobody could serve with, or would not want to, beside the rest of the configuration.
    pub(in crate::serve) fn check(&self, config: &Config) -> Result<()> {
        let bounded =
            |key: &str, value, bounds| config::bounded(&format!("nbd.{key}"), value, bounds);
        bounded("connections_max", self.connections_max as u64, 1..=4096)?;
        bounded("cache_mebibytes", self.cache_mebibytes as u64, 1..=65_536)?;
        let Some(listen) = self.listen else {
            return Ok(());
        };
        if config.token_file.is_some() && config.tls.client_ca_file.is_none() {
            return Err(Error::Setting(format!(
                "NBD has no place for a token, so whoever reaches {listen} could read every image: let hosts in by \
                 certificates (--client-ca, tls.client_ca_file), or leave out --listen-nbd (nbd.listen)"
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::TlsConfig;

    #[test]
    fn who_may_ask_by_http_alone_is_not_asked_for_less_by_nbd() {
        let check = |listen: &str,
                     (token, tls, client_ca, plaintext): (bool, bool, bool, bool),
                     expected: &str| {
            let file = |is: bool| is.then(|| "x".into());
            let config = Config {
                plaintext,
                token_file: file(token),
                tls: TlsConfig {
                    certificate_file: file(tls),
                    key_file: file(tls),
                    client_ca_file: file(client_ca),
                },
                nbd: NbdConfig {
                    listen: Some(listen.parse().unwrap()),
                    ..NbdConfig::default()
                },
                ..Config::default()
            };
            let said = config
                .check()
                .err()
                .map_or(String::new(), |error| error.to_string());
            assert_eq!(said.is_empty(), expected.is_empty(), "{listen}: {said}");
            assert!(said.contains(expected), "{said}");
        };
        let local = "127.0.0.1:10809";
        check(local, (false, false, false, false), "");
        check(local, (true, false, false, false), "no place for a token");
        check(local, (true, true, false, false), "--client-ca");
        check(local, (true, true, true, false), "");
        let open = "192.0.2.1:10809";
        check(open, (false, false, false, false), "plain text");
        check(open, (false, false, false, true), "");
        check(open, (false, true, false, false), "");
    }
}
