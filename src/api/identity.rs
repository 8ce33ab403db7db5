//! Device ids and public keys, as the gateway writes them. No IO.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use sha2::{Digest, Sha256};
use thiserror::Error;

/// base64url, without padding when written, with or without when read.
pub const BASE64URL: GeneralPurpose = GeneralPurpose::new(
    &alphabet::URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Why a text is no device id or key.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum IdentityError {
    /// The id is the lower-case hexadecimal SHA-256 of the key.
    #[error("must be 64 lower-case hexadecimal digits (the SHA-256 of the device's public key)")]
    Id,
    /// A raw Ed25519 public key.
    #[error("must be the base64url text of a 32-byte Ed25519 public key (43 characters)")]
    Key,
}

/// A device id: the lower-case hexadecimal SHA-256 of the raw 32-byte Ed25519 public key
/// (measured on openclaw 2026.9.6).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct DeviceId(String);

impl DeviceId {
    /// Parses 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`IdentityError::Id`].
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let good = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        good.then(|| Self(text.to_owned())).ok_or(IdentityError::Id)
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its first twelve digits: enough to recognise a device in a message.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl std::fmt::Display for DeviceId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// A device's raw Ed25519 public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Parses base64url.
    ///
    /// # Errors
    /// [`IdentityError::Key`].
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let bytes = BASE64URL.decode(text).map_err(|_| IdentityError::Key)?;
        bytes.try_into().map(Self).map_err(|_| IdentityError::Key)
    }

    /// From its raw bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The id of the device that has this key.
    pub fn device_id(&self) -> DeviceId {
        DeviceId(
            Sha256::digest(self.0)
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
        )
    }
}

impl std::fmt::Display for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&BASE64URL.encode(self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_the_hash_of_its_key() {
        // The pair that a real gateway listed for a device (openclaw 2026.9.6).
        let key = PublicKey::parse("XnWXxaUCrPgmHCk1k_eo4PWwLlqJVjrrkjm9ErQXCq8").expect("key");
        assert_eq!(
            key.device_id().as_str(),
            "168277d3805c6d003fed1c8cf18a9af2196108f89df4e1bb16d80661d3d3bbcb"
        );
        assert_eq!(key.to_string(), "XnWXxaUCrPgmHCk1k_eo4PWwLlqJVjrrkjm9ErQXCq8");
    }

    #[test]
    fn texts_that_are_no_identity_are_refused() {
        assert_eq!(DeviceId::parse("ABCD"), Err(IdentityError::Id));
        assert_eq!(DeviceId::parse(&"G".repeat(64)), Err(IdentityError::Id));
        assert_eq!(PublicKey::parse("short"), Err(IdentityError::Key));
        assert_eq!(PublicKey::parse("!!"), Err(IdentityError::Key));
    }
}
