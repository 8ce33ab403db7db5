//! The operator's own device: an Ed25519 key that the gateway pairs like any other. No IO.

use base64::Engine as _;
use ed25519_dalek::{Signer as _, SigningKey};
use thiserror::Error;

use crate::api::identity::BASE64URL;
use crate::api::{DeviceId, PublicKey};

/// A stored key that cannot be read.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// The stored text is no key.
    #[error(
        "the operator's stored device key is damaged: it is not 32 bytes in base64url. Delete it (the Secret, or the file in the state folder) to get a new device, which then has to be paired"
    )]
    Damaged,
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// The operator's own device. Its `Debug` shows only the public id.
#[derive(Clone)]
pub struct Identity {
    key: SigningKey,
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Identity")
            .field("device_id", &self.device_id().as_str())
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// A new device.
    ///
    /// # Errors
    /// [`IdentityError::Random`].
    pub fn generate() -> Result<Self, IdentityError> {
        let mut seed = [0_u8; 32];
        getrandom::fill(&mut seed).map_err(IdentityError::Random)?;
        Ok(Self {
            key: SigningKey::from_bytes(&seed),
        })
    }

    /// The device whose private key was stored by [`Identity::secret`].
    ///
    /// # Errors
    /// [`IdentityError::Damaged`].
    pub fn from_secret(text: &str) -> Result<Self, IdentityError> {
        let bytes = BASE64URL.decode(text.trim()).map_err(|_| IdentityError::Damaged)?;
        let seed: [u8; 32] = bytes.try_into().map_err(|_| IdentityError::Damaged)?;
        Ok(Self {
            key: SigningKey::from_bytes(&seed),
        })
    }

    /// The private key as text, for the Secret or the 0600 file. Nowhere else.
    pub fn secret(&self) -> String {
        BASE64URL.encode(self.key.to_bytes())
    }

    /// Its public key.
    pub fn public_key(&self) -> PublicKey {
        PublicKey::from_bytes(self.key.verifying_key().to_bytes())
    }

    /// Its id.
    pub fn device_id(&self) -> DeviceId {
        self.public_key().device_id()
    }

    /// Signs a text, base64url.
    pub fn sign(&self, text: &str) -> String {
        BASE64URL.encode(self.key.sign(text.as_bytes()).to_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_key_gives_the_same_device_and_is_never_shown() {
        let identity = Identity::generate().expect("random");
        let again = Identity::from_secret(&identity.secret()).expect("stored");
        assert_eq!(identity.device_id(), again.device_id());
        assert!(!format!("{identity:?}").contains(&identity.secret()));
        assert!(Identity::from_secret("nonsense").is_err());
    }
}
