//! What the rest of the program works on: specs parsed once, into types that cannot be wrong. Pure.
//!
//! The API server refuses most bad specs already (schema and CEL). What it cannot see (that an id is its key's
//! hash), what a folder of files never showed it, and what an older or newer CRD let through, is refused here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use thiserror::Error;

use super::device_approval::{Decision, DeletionPolicy, DeviceApprovalSpec, Role};
use super::gateway_trust::{
    Adopt, AuthSpec, Discover, Enrolment, GatewayTrustSpec, Mode, PodSelector, SecretKeyReference, SelectorOperator,
};
use super::identity::{DeviceId, IdentityError, PublicKey};
use crate::cidr::{Limits, Prefix, Refusal};

/// Why a spec has no meaning. Names the field.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SpecError {
    /// Both or neither of two fields of which exactly one must be there.
    #[error("{0}: exactly one of {1} and {2} must be set")]
    ExactlyOne(&'static str, &'static str, &'static str),
    /// The URL cannot be used.
    #[error("spec.gateway.url: {0}")]
    Url(String),
    /// The port cannot be used.
    #[error("spec.gateway.service.port: {0} is no port number (1 to 65535)")]
    Port(i32),
    /// An empty selector would take every pod.
    #[error("spec.proxies.named[{0}].podSelector: must not be empty: it would trust every pod of the namespace")]
    EmptySelector(String),
    /// A device without a name.
    #[error("spec.device: needs an id or a publicKey (or both)")]
    NoDevice,
    /// A field of the device is malformed.
    #[error("spec.device.{0}: {1}")]
    Device(&'static str, #[source] IdentityError),
    /// The id and the key do not belong together.
    #[error(
        "spec.device.id: {id} is not the SHA-256 of spec.device.publicKey (that is {of_key}): take both from one `openclaw devices list`, or leave one out"
    )]
    IdIsNotKeysHash {
        /// The id in the spec.
        id: String,
        /// The id that the key has.
        of_key: String,
    },
    /// Nothing is granted.
    #[error("spec.roles: must name at least one role (operator, node) where spec.decision is Approve")]
    NoRoles,
    /// Scopes without the role that has them.
    #[error("spec.scopes: belong to the role operator: add it to spec.roles, or leave the scopes out")]
    ScopesWithoutOperator,
    /// Not a scope.
    #[error("spec.scopes: {0:?} is no scope: write operator.read, operator.write, ... or the preset ControlUi")]
    Scope(String),
}

/// Where the gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Service of the same namespace.
    Service {
        /// Its name.
        name: String,
        /// Its port, by name or number.
        port: Option<PortReference>,
        /// Whether TLS is spoken to it.
        tls: bool,
    },
    /// A gateway outside the cluster.
    Url(Origin),
}

/// A Service's port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortReference {
    /// By name.
    Name(String),
    /// By number.
    Number(u16),
}

/// Scheme, host and port: what a credential is bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Whether TLS is spoken.
    pub tls: bool,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Path that the gateway is served under, with its slash at the end.
    pub path: String,
}

impl Origin {
    /// Parses an http(s) or ws(s) URL without user info, query or fragment.
    ///
    /// # Errors
    /// A sentence that says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let url: http::Uri = text.parse().map_err(|error| format!("is not a URL ({error})"))?;
        let tls = match url.scheme_str() {
            Some("https" | "wss") => true,
            Some("http" | "ws") => false,
            other => {
                return Err(format!(
                    "scheme {:?} is not https, wss, http or ws",
                    other.unwrap_or_default()
                ));
            }
        };
        let authority = url.authority().ok_or_else(|| "names no host".to_owned())?;
        if authority.as_str().contains('@') {
            return Err("must not hold a user name or password: put the token into a Secret".to_owned());
        }
        if url.query().is_some() || text.contains('#') {
            return Err("must not have a query or a fragment".to_owned());
        }
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_ascii_lowercase();
        if host.is_empty() {
            return Err("names no host".to_owned());
        }
        let port = match authority.port() {
            None => {
                if tls {
                    443
                } else {
                    80
                }
            }
            Some(port) => port
                .as_str()
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("{} is no port", port.as_str()))?,
        };
        let path = format!("{}/", url.path().trim_end_matches('/'));
        Ok(Self { tls, host, port, path })
    }

    /// The host as it stands in a URL: IPv6 in brackets.
    pub fn url_host(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        }
    }

    /// `https://host[:port]`: the spelling that `gatewaytrust.io/allow-endpoint` has to carry.
    pub fn consent(&self) -> String {
        let (scheme, default) = if self.tls { ("https", 443) } else { ("http", 80) };
        if self.port == default {
            format!("{scheme}://{}", self.url_host())
        } else {
            format!("{scheme}://{}:{}", self.url_host(), self.port)
        }
    }

    /// The WebSocket URL.
    pub fn websocket(&self) -> String {
        format!(
            "{}://{}:{}{}",
            if self.tls { "wss" } else { "ws" },
            self.url_host(),
            self.port,
            self.path
        )
    }

    /// Whether the host is a loopback address, or `localhost`.
    pub fn is_loopback(&self) -> bool {
        self.host == "localhost"
            || self
                .host
                .parse::<std::net::IpAddr>()
                .is_ok_and(|address| crate::cidr::canonical(address).is_loopback())
    }

    /// Whether an annotation's value consents to this origin, however it spells it.
    pub fn is_consented_by(&self, value: &str) -> bool {
        Self::parse(value.trim()).is_ok_and(|given| given.consent() == self.consent())
    }
}

/// Which of the two shared secrets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CredentialKind {
    /// `gateway.auth.mode: token`.
    Token,
    /// `gateway.auth.mode: password`.
    Password,
}

/// The Secret to sign in with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CredentialReference {
    /// Token or password.
    pub kind: CredentialKind,
    /// Where it is.
    pub secret: SecretKeyReference,
}

/// A `GatewayTrust`'s spec, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatedTrust {
    /// Where the gateway is.
    pub target: Target,
    /// What to sign in with, where the spec says so.
    pub credential: Option<CredentialReference>,
    /// Where the certificate authority is.
    pub ca: Option<SecretKeyReference>,
    /// The name that the certificate must carry.
    pub server_name: Option<String>,
    /// How the operator's device becomes paired.
    pub enrolment: Enrolment,
    /// Whether anything is written.
    pub mode: Mode,
    /// Whether proxies are looked for.
    pub discover: Discover,
    /// Proxies by name.
    pub named: Vec<ValidatedNamed>,
    /// Ranges by a person's word; one that may not be trusted carries why.
    pub ranges: Vec<RangeClaim>,
    /// What happens to entries that were there before.
    pub adopt: Adopt,
    /// Ceilings.
    pub limits: Limits,
}

/// Pods that are proxies by a person's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatedNamed {
    /// A name for the evidence.
    pub name: String,
    /// The pods' namespace, where it is not the gateway's.
    pub namespace: Option<String>,
    /// Which pods.
    pub selector: PodSelector,
}

/// A range by a person's word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeClaim {
    /// As it was written.
    pub written: String,
    /// The person's reason.
    pub reason: String,
    /// The prefix, or why it cannot be trusted.
    pub prefix: Result<Prefix, Refusal>,
}

impl ValidatedTrust {
    /// Parses a spec.
    ///
    /// # Errors
    /// [`SpecError`], naming the field.
    pub fn parse(spec: &GatewayTrustSpec) -> Result<Self, SpecError> {
        let gateway = &spec.gateway;
        let target = match (&gateway.service, &gateway.url) {
            (Some(service), None) => Target::Service {
                name: service.name.clone(),
                port: service.port.as_ref().map(port_reference).transpose()?,
                tls: gateway.tls.is_some(),
            },
            (None, Some(url)) => Target::Url(Origin::parse(url).map_err(SpecError::Url)?),
            _ => return Err(SpecError::ExactlyOne("spec.gateway", "service", "url")),
        };
        let limits = Limits {
            max_prefixes: usize::from(spec.proxies.limits.max_prefixes),
            widest_ipv4: spec.proxies.limits.widest_ipv4,
            widest_ipv6: spec.proxies.limits.widest_ipv6,
        };
        let named = spec.proxies.named.iter().map(|named| {
            if named.pod_selector.is_empty() {
                return Err(SpecError::EmptySelector(named.name.clone()));
            }
            Ok(ValidatedNamed {
                name: named.name.clone(),
                namespace: named.namespace.clone(),
                selector: named.pod_selector.clone(),
            })
        });
        let ranges = spec.proxies.ranges.iter().map(|range| RangeClaim {
            written: range.cidr.clone(),
            reason: range.reason.clone(),
            prefix: Prefix::parse(&range.cidr).and_then(|prefix| limits.check(prefix)),
        });
        Ok(Self {
            target,
            credential: gateway.auth.as_ref().map(credential).transpose()?,
            ca: gateway.tls.as_ref().and_then(|tls| tls.ca_secret_ref.clone()),
            server_name: gateway.tls.as_ref().and_then(|tls| tls.server_name.clone()),
            enrolment: gateway.enrolment,
            mode: spec.mode,
            discover: spec.proxies.discover,
            named: named.collect::<Result<_, _>>()?,
            ranges: ranges.collect(),
            adopt: spec.proxies.adopt,
            limits,
        })
    }
}

fn port_reference(port: &IntOrString) -> Result<PortReference, SpecError> {
    match port {
        IntOrString::Int(number) => match u16::try_from(*number) {
            Ok(number) if number > 0 => Ok(PortReference::Number(number)),
            _ => Err(SpecError::Port(*number)),
        },
        IntOrString::String(name) => Ok(PortReference::Name(name.clone())),
    }
}

fn credential(auth: &AuthSpec) -> Result<CredentialReference, SpecError> {
    match (&auth.token_secret_ref, &auth.password_secret_ref) {
        (Some(secret), None) => Ok(CredentialReference {
            kind: CredentialKind::Token,
            secret: secret.clone(),
        }),
        (None, Some(secret)) => Ok(CredentialReference {
            kind: CredentialKind::Password,
            secret: secret.clone(),
        }),
        _ => Err(SpecError::ExactlyOne(
            "spec.gateway.auth",
            "tokenSecretRef",
            "passwordSecretRef",
        )),
    }
}

impl PodSelector {
    /// Whether it has no requirement at all.
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether it selects a pod with these labels.
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        let equal = self
            .match_labels
            .iter()
            .all(|(key, value)| labels.get(key) == Some(value));
        equal
            && self.match_expressions.iter().all(|requirement| {
                let value = labels.get(&requirement.key);
                match requirement.operator {
                    SelectorOperator::In => value.is_some_and(|value| requirement.values.contains(value)),
                    SelectorOperator::NotIn => value.is_none_or(|value| !requirement.values.contains(value)),
                    SelectorOperator::Exists => value.is_some(),
                    SelectorOperator::DoesNotExist => value.is_none(),
                }
            })
    }

    /// As the API server takes it in `labelSelector=`.
    pub fn to_query(&self) -> String {
        let equal = self.match_labels.iter().map(|(key, value)| format!("{key}={value}"));
        let expressions = self.match_expressions.iter().map(|requirement| {
            let (key, values) = (&requirement.key, requirement.values.join(","));
            match requirement.operator {
                SelectorOperator::In => format!("{key} in ({values})"),
                SelectorOperator::NotIn => format!("{key} notin ({values})"),
                SelectorOperator::Exists => key.clone(),
                SelectorOperator::DoesNotExist => format!("!{key}"),
            }
        });
        equal.chain(expressions).collect::<Vec<_>>().join(",")
    }
}

/// What a device holds, or may hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Roles, as the gateway spells them.
    pub roles: BTreeSet<String>,
    /// Scopes, as the gateway spells them.
    pub scopes: BTreeSet<String>,
}

/// The scopes that the browser dashboard always asks for (measured on openclaw 2026.9.6).
pub const CONTROL_UI_SCOPES: [&str; 6] = [
    "operator.admin",
    "operator.approvals",
    "operator.pairing",
    "operator.questions",
    "operator.read",
    "operator.write",
];

/// The preset that stands for [`CONTROL_UI_SCOPES`].
pub const CONTROL_UI: &str = "ControlUi";

impl Grant {
    /// Whether holding `self` already means holding this scope, by the gateway's own rules (its document
    /// `gateway/operator-scopes.md`): `operator.admin` satisfies every `operator.*`, `operator.write` satisfies
    /// `operator.read` and `operator.talk`.
    pub fn covers_scope(&self, scope: &str) -> bool {
        self.scopes.contains(scope)
            || (self.scopes.contains("operator.admin") && scope.starts_with("operator."))
            || (self.scopes.contains("operator.write") && matches!(scope, "operator.read" | "operator.talk"))
    }

    /// What the other grant holds that this one does not cover: roles, then scopes.
    pub fn excess_of(&self, other: &Self) -> Vec<String> {
        let roles = other
            .roles
            .iter()
            .filter(|role| !self.roles.contains(*role))
            .map(|role| format!("role {role}"));
        let scopes = other.scopes.iter().filter(|scope| !self.covers_scope(scope)).cloned();
        roles.chain(scopes).collect()
    }

    /// What a device holds after an approval: the gateway unites the old grant with what is pending.
    pub fn union(&self, other: &Self) -> Self {
        Self {
            roles: self.roles.union(&other.roles).cloned().collect(),
            scopes: self.scopes.union(&other.scopes).cloned().collect(),
        }
    }

    /// What both grants cover.
    pub fn intersection(&self, other: &Self) -> Self {
        let scopes = self.scopes.iter().filter(|scope| other.covers_scope(scope));
        let others = other.scopes.iter().filter(|scope| self.covers_scope(scope));
        Self {
            roles: self.roles.intersection(&other.roles).cloned().collect(),
            scopes: scopes.chain(others).cloned().collect(),
        }
    }
}

/// A `DeviceApproval`'s spec, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValidatedApproval {
    /// The device.
    pub device: DeviceId,
    /// Its key, where the spec names it.
    pub key: Option<PublicKey>,
    /// Whether it is let in.
    pub decision: Decision,
    /// What it may hold.
    pub grant: Grant,
    /// When the approval ends.
    pub expires_at: Option<Timestamp>,
    /// What becomes of the device when the approval is deleted.
    pub deletion_policy: DeletionPolicy,
    /// What people call it.
    pub label: Option<String>,
}

impl ValidatedApproval {
    /// Parses a spec.
    ///
    /// # Errors
    /// [`SpecError`], naming the field.
    pub fn parse(spec: &DeviceApprovalSpec) -> Result<Self, SpecError> {
        let id = spec
            .device
            .id
            .as_deref()
            .map(DeviceId::parse)
            .transpose()
            .map_err(|error| SpecError::Device("id", error))?;
        let key = spec
            .device
            .public_key
            .as_deref()
            .map(PublicKey::parse)
            .transpose()
            .map_err(|error| SpecError::Device("publicKey", error))?;
        let device = match (id, key.map(|key| key.device_id())) {
            (Some(id), Some(of_key)) if id != of_key => {
                return Err(SpecError::IdIsNotKeysHash {
                    id: id.to_string(),
                    of_key: of_key.to_string(),
                });
            }
            (Some(id), _) | (None, Some(id)) => id,
            (None, None) => return Err(SpecError::NoDevice),
        };
        if spec.decision == Decision::Approve && spec.roles.is_empty() {
            return Err(SpecError::NoRoles);
        }
        if !spec.scopes.is_empty() && !spec.roles.contains(&Role::Operator) {
            return Err(SpecError::ScopesWithoutOperator);
        }
        let mut scopes = BTreeSet::new();
        for scope in &spec.scopes {
            if scope == CONTROL_UI {
                scopes.extend(CONTROL_UI_SCOPES.map(str::to_owned));
            } else if scope.strip_prefix("operator.").is_some_and(|rest| !rest.is_empty()) {
                scopes.insert(scope.clone());
            } else {
                return Err(SpecError::Scope(scope.clone()));
            }
        }
        Ok(Self {
            device,
            key,
            decision: spec.decision,
            grant: Grant {
                roles: spec.roles.iter().map(|role| role.as_str().to_owned()).collect(),
                scopes,
            },
            expires_at: spec.expires_at,
            deletion_policy: spec.deletion_policy,
            label: spec.label.clone(),
        })
    }

    /// Parses what is needed to revoke: the device. An approval that is being deleted may have become invalid
    /// otherwise, and its device must go all the same.
    ///
    /// # Errors
    /// [`SpecError`] where not even the device can be told.
    pub fn parse_for_removal(spec: &DeviceApprovalSpec) -> Result<Self, SpecError> {
        Self::parse(spec).or_else(|_| {
            let mut device_only = spec.clone();
            device_only.roles = vec![Role::Node];
            device_only.scopes = Vec::new();
            Self::parse(&device_only)
        })
    }

    /// Whether it has ended at this time.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}
