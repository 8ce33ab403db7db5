//! Where a credential may go: addresses are resolved once, checked, and then used as they were checked.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::error::ConnectError;
use crate::api::validated::{CredentialKind, Origin};
use crate::cidr::never_a_gateway;

/// A secret text. It has no `Display`, and its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text. White space around it (the line end of a file) does not belong to it.
    pub fn new(text: &str) -> Self {
        Self(text.trim().to_owned())
    }

    /// The text, for the wire.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What the operator signs in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Token or password.
    pub kind: CredentialKind,
    /// Its value.
    pub secret: Secret,
}

/// Where to connect.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Scheme, host, port and path.
    pub origin: Origin,
    /// The address to use where it is known already (a pod's, read from the API); else the host is resolved.
    pub address: Option<IpAddr>,
    /// TLS settings; none for plain connections.
    pub tls: Option<Arc<rustls::ClientConfig>>,
    /// The name that the certificate must be issued for, where it is not the host.
    pub server_name: Option<String>,
}

impl Endpoint {
    /// The addresses to connect to, every one checked.
    ///
    /// # Errors
    /// [`ConnectError::NameNotResolved`]; [`ConnectError::AddressRefused`] if any one address is never a gateway.
    pub async fn addresses(&self) -> Result<Vec<SocketAddr>, ConnectError> {
        let host = self.origin.host.clone();
        let found: Vec<SocketAddr> = if let Some(address) = self.address {
            vec![SocketAddr::new(address, self.origin.port)]
        } else {
            let lookup =
                tokio::time::timeout(LOOKUP_LIMIT, tokio::net::lookup_host((host.as_str(), self.origin.port))).await;
            lookup
                .ok()
                .and_then(Result::ok)
                .map(Iterator::collect)
                .unwrap_or_default()
        };
        if found.is_empty() {
            return Err(ConnectError::NameNotResolved(host));
        }
        match found.iter().find(|address| never_a_gateway(address.ip())) {
            Some(address) => Err(ConnectError::AddressRefused {
                host,
                address: address.ip().to_string(),
            }),
            None => Ok(found),
        }
    }

    /// The address as a person knows it.
    pub fn shown(&self) -> String {
        self.origin.websocket()
    }
}

const LOOKUP_LIMIT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let credential = Credential {
            kind: CredentialKind::Token,
            secret: Secret::new("s3cret\n"),
        };
        assert!(!format!("{credential:?}").contains("s3cret"));
        assert_eq!(credential.secret.expose(), "s3cret");
    }

    #[tokio::test]
    async fn metadata_addresses_are_refused_after_resolution() {
        let origin = Origin::parse("http://[::ffff:169.254.169.254]:80/").expect("url");
        let endpoint = Endpoint {
            origin,
            address: None,
            tls: None,
            server_name: None,
        };
        assert!(matches!(
            endpoint.addresses().await,
            Err(ConnectError::AddressRefused { .. })
        ));
    }
}
