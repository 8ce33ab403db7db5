//! The two resources, their conditions and reasons: types and their validation, nothing else. No IO.
//!
//! [`gateway_trust`] and [`device_approval`] hold what a person writes and what the operator answers (the CRDs are
//! generated from them); [`validated`] holds what the rest of the program works on, parsed once.

pub mod condition;
pub mod device_approval;
pub mod gateway_trust;
pub mod identity;
pub mod schema;
pub mod validated;

#[cfg(test)]
mod tests;

pub use condition::{ConditionType, Reason};
pub use device_approval::{DeviceApproval, DeviceApprovalSpec, DeviceApprovalStatus};
pub use gateway_trust::{GatewayTrust, GatewayTrustSpec, GatewayTrustStatus};
pub use identity::{DeviceId, PublicKey};

/// The API group of both resources.
pub const GROUP: &str = "gatewaytrust.io";
/// Their version.
pub const VERSION: &str = "v1alpha1";
/// Held on both resources until the gateway is as Git says: a deleted approval stays until its device is revoked,
/// a deleted `GatewayTrust` until the approvals that are being deleted have been revoked through it.
pub const FINALIZER: &str = "gatewaytrust.io/revoke";
/// On a Secret: the one origin to which its token may go when `spec.gateway.url` names it.
pub const ALLOW_ENDPOINT: &str = "gatewaytrust.io/allow-endpoint";
/// On an object that is being deleted, with the value `"true"`: give up revoking, the gateway is gone for good.
pub const ABANDON: &str = "gatewaytrust.io/abandon";
/// On a Namespace: its owner lets its pods be trusted as proxies of gateways in the namespace named (or `any`).
pub const PROXIES_FOR: &str = "gatewaytrust.io/proxies-for";

/// The name of an object: namespace and name. Ordered, so that everything that is kept by it has a stable order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl std::fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}
