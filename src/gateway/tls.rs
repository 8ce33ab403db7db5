//! TLS settings towards a gateway: the system's authorities, or one that the spec names. Never an insecure skip.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error;

/// A certificate authority that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TlsError {
    /// No certificate in the Secret.
    #[error("spec.gateway.tls.caSecretRef: the Secret's key holds no PEM certificate")]
    NoCertificate,
    /// The system has none.
    #[error("this system has no certificate authorities (package ca-certificates): set spec.gateway.tls.caSecretRef")]
    NoSystemRoots,
}

/// TLS settings that trust the certificates of this PEM text, or the system's.
///
/// # Errors
/// [`TlsError`].
pub fn client_config(ca: Option<&str>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|_| TlsError::NoCertificate)?;
                roots.add(certificate).map_err(|_| TlsError::NoCertificate)?;
            }
            if roots.is_empty() {
                return Err(TlsError::NoCertificate);
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoSystemRoots);
            }
        }
    }
    Ok(Arc::new(
        ClientConfig::builder()
            .with_root_certificates(roots)
            .with_no_client_auth(),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_without_certificates_is_refused() {
        assert_eq!(
            client_config(Some("nonsense")).map(|_| ()),
            Err(TlsError::NoCertificate)
        );
        assert_eq!(
            client_config(Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")).map(|_| ()),
            Err(TlsError::NoCertificate)
        );
    }
}
