//! `DeviceApproval`: which device may connect, as what, to do what, until when. Types of the CRD; no IO.

// Each printcolumn has a type of its own; the lint takes them for one attribute.
#![allow(clippy::duplicated_attributes)]

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One device that may (or must not) connect to a gateway.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "gatewaytrust.io",
    version = "v1alpha1",
    kind = "DeviceApproval",
    plural = "deviceapprovals",
    singular = "deviceapproval",
    shortname = "da",
    category = "gatewaytrusts",
    namespaced,
    status = "DeviceApprovalStatus",
    doc = "One device that may (or must not) connect to an OpenClaw gateway. Kept in Git: applying it lets the device in, deleting it revokes the device.",
    printcolumn(name = "Gateway", type_ = "string", json_path = ".spec.gatewayTrustRef.name"),
    printcolumn(name = "Decision", type_ = "string", json_path = ".spec.decision"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Approved",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Approved")].status"#
    ),
    printcolumn(
        name = "Connected",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Connected")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Approved")].reason"#
    ),
    printcolumn(name = "Label", type_ = "string", json_path = ".spec.label"),
    printcolumn(name = "Expires", type_ = "date", json_path = ".spec.expiresAt", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Approved")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.decision == 'Reject' || (has(self.roles) && size(self.roles) > 0)").message("roles must name at least one role where decision is Approve"))]
#[x_kube(validation = Rule::new("!has(self.scopes) || size(self.scopes) == 0 || (has(self.roles) && 'operator' in self.roles)").message("scopes belong to the role operator: add it to roles, or leave scopes out"))]
pub struct DeviceApprovalSpec {
    /// The gateway, by its `GatewayTrust` in this namespace.
    #[x_kube(validation = Rule::new("self == oldSelf").message("gatewayTrustRef is immutable: delete this approval and create another one"))]
    pub gateway_trust_ref: GatewayTrustReference,
    /// `Approve` lets the device in; `Reject` refuses it and revokes what it has.
    #[serde(default)]
    pub decision: Decision,
    /// Which device.
    #[x_kube(validation = Rule::new("self == oldSelf").message("device is immutable: delete this approval and create another one"))]
    pub device: DeviceReference,
    /// What the device may be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub roles: Vec<Role>,
    /// What it may do as an operator. `ControlUi` stands for the six scopes that the browser dashboard always asks
    /// for, among them `operator.admin`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 64), regex(pattern = r"^(ControlUi|operator(\.[a-z][a-z0-9_-]*)+)$")), extend("x-kubernetes-list-type" = "set"))]
    pub scopes: Vec<String>,
    /// What people call the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub label: Option<String>,
    /// When the approval ends (RFC 3339): the device is revoked then, and this object may stay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::time")]
    pub expires_at: Option<Timestamp>,
    /// `Revoke` removes the device from the gateway when this object is deleted; `Retain` leaves it paired.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// A `GatewayTrust` of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayTrustReference {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Whether a device is let in.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Decision {
    /// Let it in, with what this object grants.
    #[default]
    Approve,
    /// Refuse it, and revoke what it has.
    Reject,
}

/// A device; at least one of the two.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.id) || has(self.publicKey)").message("device needs an id or a publicKey (or both)"))]
pub struct DeviceReference {
    /// The device's id: the hexadecimal SHA-256 of its public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 64, max = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub id: Option<String>,
    /// Its raw Ed25519 public key in base64url.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 43, max = 44), regex(pattern = r"^[A-Za-z0-9_-]{43}=?$"))]
    pub public_key: Option<String>,
}

/// What a device may be to a gateway.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A control-plane client: CLI, dashboard, automation.
    Operator,
    /// A host that runs commands for the gateway. Its commands pass a second gate in the gateway, which this
    /// version does not open.
    Node,
}

impl Role {
    /// As the gateway spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Operator => "operator",
            Self::Node => "node",
        }
    }
}

/// What becomes of the device when its approval is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeletionPolicy {
    /// Removed from the gateway; its sockets close.
    #[default]
    Revoke,
    /// Left paired.
    Retain,
}

/// What the operator did about a device.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DeviceApprovalStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What holds at present.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The device's id, also where the spec names only its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub device_id: Option<String>,
    /// The request that waits, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub request_id: Option<String>,
    /// When the gateway paired the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::time")]
    pub approved_at: Option<Timestamp>,
    /// How the gateway says the device was approved: `owner` (by us or a person), `silent`, `trusted-cidr`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub approved_via: Option<String>,
    /// The roles that the device holds.
    #[serde(default)]
    #[schemars(length(max = 8), inner(length(max = 64)))]
    pub granted_roles: Vec<String>,
    /// The scopes that it holds.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = 128)))]
    pub granted_scopes: Vec<String>,
}
