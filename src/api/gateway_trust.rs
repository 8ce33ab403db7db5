//! `GatewayTrust`: who the proxies of one gateway are. Types of the CRD; no IO.

// Each printcolumn has a type of its own; the lint takes them for one attribute.
#![allow(clippy::duplicated_attributes)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Who may stand between a gateway and its clients, and where that gateway is.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "gatewaytrust.io",
    version = "v1alpha1",
    kind = "GatewayTrust",
    plural = "gatewaytrusts",
    singular = "gatewaytrust",
    shortname = "gt",
    category = "gatewaytrusts",
    namespaced,
    status = "GatewayTrustStatus",
    doc = "Who the proxies of one OpenClaw gateway are. The operator keeps the gateway's trusted-proxy config exact, and its pairing store as the DeviceApprovals that refer to this object say.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#
    ),
    printcolumn(name = "Proxies", type_ = "integer", json_path = ".status.trustedProxiesTotal"),
    printcolumn(name = "Paired", type_ = "integer", json_path = ".status.devices.paired"),
    printcolumn(name = "Pending", type_ = "integer", json_path = ".status.devices.pending"),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.gateway.version",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].message"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.gateway == oldSelf.gateway || (has(self.gateway.service) == has(oldSelf.gateway.service) && has(self.gateway.url) == has(oldSelf.gateway.url) && (!has(self.gateway.service) || self.gateway.service == oldSelf.gateway.service) && (!has(self.gateway.url) || self.gateway.url == oldSelf.gateway.url))").message("spec.gateway.service and spec.gateway.url are immutable: create another GatewayTrust for another gateway"))]
pub struct GatewayTrustSpec {
    /// Where the gateway is, and what the operator signs in with.
    pub gateway: GatewaySpec,
    /// `Enforce` keeps the gateway as declared. `Observe` plans and reports, and writes nothing.
    #[serde(default)]
    pub mode: Mode,
    /// Who the gateway's proxies are.
    #[serde(default)]
    pub proxies: ProxiesSpec,
}

/// Whether the operator writes to the gateway.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Plan and report; write nothing.
    Observe,
    /// Keep the gateway as declared.
    #[default]
    Enforce,
}

/// Where the gateway is.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.service) != has(self.url)").message("exactly one of service and url must be set"))]
pub struct GatewaySpec {
    /// A Service in this object's namespace. It must have a selector, and exactly one ready pod behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceReference>,
    /// A gateway outside the cluster, such as `https://gateway.example/`. The Secret with its token must consent by
    /// the annotation `gatewaytrust.io/allow-endpoint: <scheme://host[:port]>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 8, max = 512),
        regex(pattern = r"^(https?|wss?)://[^/?#@\s]+(/[^?#@\s]*)?$")
    )]
    pub url: Option<String>,
    /// The shared secret to sign in with. Left out: found on the gateway's own pod (the container with port 18789
    /// and an `OPENCLAW_GATEWAY_TOKEN` from a Secret); for `sync`, the environment variable of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthSpec>,
    /// Settings for a TLS connection. With `service`, TLS is spoken only where this is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsSpec>,
    /// How the operator's own device becomes paired with the gateway.
    #[serde(default)]
    pub enrolment: Enrolment,
}

/// A Service of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ServiceReference {
    /// Its name.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Its port, by name or number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::port")]
    pub port: Option<IntOrString>,
}

/// What the operator signs in with; exactly one of the two.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.tokenSecretRef) != has(self.passwordSecretRef)").message("exactly one of tokenSecretRef and passwordSecretRef must be set"))]
pub struct AuthSpec {
    /// The gateway token (`gateway.auth.mode: token`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKeyReference>,
    /// The gateway password (`gateway.auth.mode: password`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub password_secret_ref: Option<SecretKeyReference>,
}

/// One key of a Secret in this object's namespace. For `sync`: with `--secrets-dir` the file `NAME/KEY` below it;
/// without, the environment variable KEY, or the file that KEY_FILE names.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SecretKeyReference {
    /// The Secret's name.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// The key in it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// TLS towards the gateway. There is no way to skip verification.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TlsSpec {
    /// PEM certificates of the authority that signed the gateway's certificate. Left out: the system's authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyReference>,
    /// The name that the gateway's certificate must be issued for, where it differs from the address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?$")
    )]
    pub server_name: Option<String>,
}

/// How the operator's own device becomes paired. On loopback the gateway pairs it silently in any case.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enrolment {
    /// By the admin HTTP RPC plugin where that is on already, else as `Manual`.
    #[default]
    Auto,
    /// Only by the admin HTTP RPC plugin.
    AdminRpc,
    /// A person approves the operator's device once; the condition gives the command.
    Manual,
}

/// Who the gateway's proxies are.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ProxiesSpec {
    /// `Auto` follows the Ingresses that lead to the gateway's Service. `None` trusts only what is listed here.
    #[serde(default)]
    pub discover: Discover,
    /// Proxies that no route object leads to, such as cloudflared or oauth2-proxy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub named: Vec<NamedProxy>,
    /// Addresses by a person's word.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub ranges: Vec<DeclaredRange>,
    /// What happens to entries that were in the gateway's config before and that nothing explains.
    #[serde(default)]
    pub adopt: Adopt,
    /// Ceilings.
    #[serde(default)]
    pub limits: LimitsSpec,
}

/// Whether proxies are looked for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Discover {
    /// Follow the routes to the gateway's Service.
    #[default]
    Auto,
    /// Do not look.
    None,
}

/// What happens to entries that were there before us.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Adopt {
    /// They stay, and are named in the status.
    #[default]
    Merge,
    /// They are removed; the list becomes exactly what is declared and discovered.
    Replace,
}

/// Pods that are proxies by a person's word.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct NamedProxy {
    /// A name for the evidence.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// The pods' namespace. Left out: this object's. Another one must consent by the label
    /// `gatewaytrust.io/proxies-for`, or be allowed by the operator's `--proxy-namespaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Which pods; must not be empty.
    pub pod_selector: PodSelector,
}

/// A label selector over pods.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.matchLabels) && size(self.matchLabels) > 0) || (has(self.matchExpressions) && size(self.matchExpressions) > 0)").message("podSelector must not be empty: it would trust every pod of the namespace"))]
pub struct PodSelector {
    /// Labels that must have exactly these values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub match_labels: BTreeMap<String, String>,
    /// Further requirements, all of which must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub match_expressions: Vec<SelectorRequirement>,
}

/// One requirement of a selector.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct SelectorRequirement {
    /// The label's key.
    #[schemars(length(min = 1, max = 316))]
    pub key: String,
    /// How its value is compared.
    pub operator: SelectorOperator,
    /// The values for `In` and `NotIn`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 63)))]
    pub values: Vec<String>,
}

/// How a label's value is compared.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SelectorOperator {
    /// The value is one of those given.
    In,
    /// The label is absent, or its value is none of those given.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is absent.
    DoesNotExist,
}

/// Addresses by a person's word.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("isIP(self.cidr) || isCIDR(self.cidr)").message("cidr must be an IP address or a CIDR prefix such as 10.0.0.0/24"))]
#[x_kube(validation = Rule::new("!isCIDR(self.cidr) || cidr(self.cidr) == cidr(self.cidr).masked()").message("cidr has host bits set: write the network's own address (10.0.1.0/24, not 10.0.1.7/24)"))]
#[x_kube(validation = Rule::new("!isCIDR(self.cidr) || !self.cidr.endsWith('/0')").message("cidr would trust the whole world"))]
pub struct DeclaredRange {
    /// An address or a prefix, without host bits.
    #[schemars(length(min = 2, max = 64))]
    pub cidr: String,
    /// Why these addresses are proxies, and nothing else is; kept as evidence.
    #[schemars(length(min = 1, max = 256))]
    pub reason: String,
}

/// Ceilings on what may be trusted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LimitsSpec {
    /// The most prefixes that are written; above it the last good set stays.
    #[serde(default = "LimitsSpec::max_prefixes")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_prefixes: u16,
    /// The shortest IPv4 prefix length that is trusted.
    #[serde(default = "LimitsSpec::widest_ipv4", rename = "widestIPv4")]
    #[schemars(range(min = 1, max = 32))]
    pub widest_ipv4: u8,
    /// The shortest IPv6 prefix length that is trusted.
    #[serde(default = "LimitsSpec::widest_ipv6", rename = "widestIPv6")]
    #[schemars(range(min = 1, max = 128))]
    pub widest_ipv6: u8,
}

impl LimitsSpec {
    const fn max_prefixes() -> u16 {
        256
    }
    const fn widest_ipv4() -> u8 {
        16
    }
    const fn widest_ipv6() -> u8 {
        48
    }
}

impl Default for LimitsSpec {
    fn default() -> Self {
        Self {
            max_prefixes: Self::max_prefixes(),
            widest_ipv4: Self::widest_ipv4(),
            widest_ipv6: Self::widest_ipv6(),
        }
    }
}

/// What the operator found and did. Every list is bounded, with the whole number beside it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayTrustStatus {
    /// The generation of the spec that this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// What holds at present.
    #[serde(default)]
    #[schemars(schema_with = "super::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The gateway as it answered last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<GatewayInfo>,
    /// The prefixes that the gateway should trust, with their evidence.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub trusted_proxies: Vec<TrustedProxy>,
    /// How many there are.
    #[serde(default)]
    pub trusted_proxies_total: u32,
    /// Candidates that are not trusted, why, and what to write if they should be.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub withheld: Vec<Withheld>,
    /// How many there are.
    #[serde(default)]
    pub withheld_total: u32,
    /// Devices, counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<DeviceCounts>,
    /// Devices that wait for approval.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub pending: Vec<PendingDevice>,
    /// How many there are.
    #[serde(default)]
    pub pending_total: u32,
    /// Writes to the gateway's config that closed its clients.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_changes: Option<PolicyChanges>,
}

/// The gateway as it answered last.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GatewayInfo {
    /// Its version.
    #[schemars(length(max = 64))]
    pub version: String,
    /// The address that the operator is connected to.
    #[schemars(length(max = 512))]
    pub url: String,
    /// By which door.
    #[schemars(length(max = 64))]
    pub door: String,
    /// The operator's own device id in this gateway's paired list.
    #[schemars(length(max = 64))]
    pub operator_device: String,
}

/// One prefix that is trusted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct TrustedProxy {
    /// The prefix.
    #[schemars(length(max = 64))]
    pub cidr: String,
    /// What speaks for it.
    #[serde(default)]
    #[schemars(length(max = 8), inner(length(max = 512)))]
    pub via: Vec<String>,
    /// Since when.
    #[schemars(schema_with = "super::schema::time")]
    pub since: Timestamp,
}

/// One candidate that is not trusted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[serde(rename_all = "camelCase")]
pub struct Withheld {
    /// The address, prefix or object.
    #[schemars(length(max = 512))]
    pub candidate: String,
    /// Why: a constant.
    #[schemars(length(max = 64))]
    pub reason: String,
    /// What to write if it should be trusted.
    #[schemars(length(max = 1024))]
    pub hint: String,
}

/// Devices of the gateway, counted. The operator's own is not among them.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DeviceCounts {
    /// Paired.
    pub paired: u32,
    /// Waiting for approval.
    pub pending: u32,
    /// Paired, though Git says nothing of them.
    pub unmanaged: u32,
}

/// A device that waits for approval.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PendingDevice {
    /// Its id.
    #[schemars(length(max = 128))]
    pub device_id: String,
    /// What it asks to be.
    #[schemars(length(max = 128))]
    pub role: String,
    /// What it asks to do.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(max = 128)))]
    pub scopes: Vec<String>,
    /// When it asked.
    #[schemars(schema_with = "super::schema::time")]
    pub since: Timestamp,
    /// What is done about it, and why.
    #[schemars(length(max = 512))]
    pub verdict: String,
}

/// Writes to the gateway's config that closed its clients, counted since this object exists.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyChanges {
    /// How many.
    pub total: u64,
    /// The last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "super::schema::time")]
    pub last: Option<Timestamp>,
    /// How many clients were connected, besides the operator, when it was made: each was closed and came again.
    pub clients_closed: u64,
}

/// Most entries of a bounded status list.
pub const STATUS_LIST_LIMIT: usize = 64;
