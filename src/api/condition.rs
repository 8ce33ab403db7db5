//! Condition types and reasons: constants, each with its meaning. No IO.
//!
//! Every reason has a page under `docs/reasons/`; a test holds that to be so.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// The condition types of both resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// What GitOps tools wait for. On a `GatewayTrust`: all the others are as they should be. On a
    /// `DeviceApproval`: it is in force, whether or not its device has come yet.
    Ready,
    /// The operator holds a paired connection to the gateway.
    GatewayReachable,
    /// Every source of proxy addresses could be read.
    ProxiesDiscovered,
    /// The gateway's config holds exactly the planned trusted proxies.
    TrustApplied,
    /// The gateway's pairing store is as the approvals say.
    ApprovalsEnforced,
    /// Something works less well or less safely than it should; the rest goes on.
    Degraded,
    /// The device holds the grant.
    Approved,
    /// The device has an open connection to the gateway.
    Connected,
}

impl ConditionType {
    /// Its name in `status.conditions[].type`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::GatewayReachable => "GatewayReachable",
            Self::ProxiesDiscovered => "ProxiesDiscovered",
            Self::TrustApplied => "TrustApplied",
            Self::ApprovalsEnforced => "ApprovalsEnforced",
            Self::Degraded => "Degraded",
            Self::Approved => "Approved",
            Self::Connected => "Connected",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// Why a condition is as it is, or why a device was judged so. The message beside it says what to do next.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
        pub enum Reason { $($(#[doc = $doc])+ $name,)+ }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The constant as it stands in conditions, events and plans.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)+ }
            }

            /// Its meaning in a sentence or two.
            pub fn meaning(self) -> String {
                match self { $(Self::$name => [$($doc.trim()),+].join(" "),)+ }
            }
        }
    };
}

reasons! {
    /// The operator has not looked at this object yet.
    Pending,
    /// All is as Git says.
    AsDeclared,
    /// `mode: Observe`: what would be written is shown, nothing is written.
    Observing,
    /// The object is being deleted; the approvals that are deleted with it are revoked first.
    Deleting,
    /// A field of the spec has no meaning; the message names it.
    InvalidSpec,

    /// Connected to the gateway and paired.
    Connected,
    /// The Service that the spec names does not exist.
    ServiceNotFound,
    /// The Service has no selector, is an ExternalName, or its endpoints are not pods of its namespace: the token
    /// would go to an address that nobody in this namespace answers for.
    UnsafeService,
    /// The Service has no ready pod.
    NoReadyEndpoint,
    /// More than one ready gateway pod: each has its own pairing store, so nothing is written.
    MultipleReplicas,
    /// No credential is named, and none could be found on the gateway's pod.
    CredentialNotFound,
    /// The Secret that the spec names does not exist (or, for `sync`, the file or environment variable).
    SecretNotFound,
    /// The Secret exists, but not that key, or its value is empty.
    SecretKeyMissing,
    /// The operator may not read the Secret.
    SecretForbidden,
    /// The Secret does not consent to being sent to this URL.
    EndpointNotAllowed,
    /// The URL is not https; the token would cross the network readable.
    InsecureUrl,
    /// The name resolves to an address to which no credential is ever sent.
    AddressRefused,
    /// The gateway's name does not resolve.
    NameNotResolved,
    /// Nothing answers at the gateway's address.
    ConnectFailed,
    /// The TLS connection failed: untrusted, expired, or issued for another name; or the other side speaks no TLS.
    TLSFailed,
    /// The gateway's address answers with a redirect, which is never followed.
    Redirected,
    /// The answer is not the gateway's protocol.
    UnexpectedAnswer,
    /// The gateway did not answer in time.
    TimedOut,
    /// The gateway speaks another protocol version.
    ProtocolMismatch,
    /// The gateway cannot tell who the operator is: its address lies in a trusted range, or a proxy in between
    /// adds forwarding headers and is not trusted.
    ProxyAttributionRequired,
    /// The gateway refused the token or password. Nothing is tried again until the Secret changes: ten wrong tokens
    /// lock the address out for five minutes.
    WrongToken,
    /// The gateway has locked this address out for a while, after too many wrong tokens.
    RateLimited,
    /// The operator's own device waits for approval; the message gives the one command.
    EnrolmentPending,
    /// The gateway refused the operator's device for a reason other than pairing.
    DeviceRefused,
    /// The gateway refused the connection for a reason that this version does not know.
    ConnectRefused,
    /// The connection was lost and is being made again.
    Disconnected,
    /// Another operator's device manages this gateway already; nothing is written.
    GatewayClaimed,

    /// All sources of proxy addresses were read.
    Discovered,
    /// `proxies.discover: None`: only what the spec names counts.
    DiscoveryOff,
    /// A source could not be read; the last good set stays.
    SourceUnavailable,
    /// Candidates were left out; `status.withheld` tells which, why, and what to write.
    Withheld,

    /// The write is under way.
    Applying,
    /// Entries that were in the gateway's config before stay there, though nothing explains them.
    WouldRemoveExisting,
    /// The result is empty; the working list stays, unless `proxies.adopt: Replace` says otherwise.
    EmptyResultKept,
    /// More prefixes than `proxies.limits.maxPrefixes`; the last good set stays.
    TooManyPrefixes,
    /// The gateway's config cannot be written (read-only mode or an immutable file).
    ConfigReadOnly,
    /// The gateway refused the new config as invalid.
    ConfigRejected,
    /// The gateway limits how often its config may be written; tried again when it said.
    Throttled,
    /// Another owner of the config keeps putting its own list back; it is not fought.
    RevertedByOther,

    /// The gateway's admin HTTP RPC plugin is on: whoever holds the gateway token, that is every client, can
    /// approve itself.
    AdminRpcBypassesPairing,
    /// Nothing to complain of.
    NothingWrong,

    /// In force: what it says is what the gateway is kept to.
    InForce,
    /// `expiresAt` has passed: the device is revoked, and the object may stay in Git.
    Expired,
    /// The `GatewayTrust` that it refers to does not exist in its namespace.
    GatewayTrustNotFound,
    /// Two approvals name the same device and differ. `Reject` wins; else only what both cover is granted.
    Conflict,
    /// It names the operator's own device, which no approval governs.
    OwnDevice,
    /// The gateway cannot be reached at present; `GatewayReachable` on the `GatewayTrust` says why.
    GatewayNotReady,

    /// The device holds the grant.
    Granted,
    /// The pending request is covered by what Git approves.
    Covered,
    /// The device has not asked to be paired yet.
    WaitingForDevice,
    /// The device asks for more than Git approves; the message names the excess.
    AsksForMore,
    /// The device shows another public key than the approval names.
    KeyMismatch,
    /// Git says nothing of this device.
    NoApproval,
    /// Git rejects this device.
    Rejected,
    /// The device held more than Git approves and was removed; it may pair again for less.
    Narrowed,
    /// The approval was deleted, and the device with it.
    Revoked,
    /// The approval was deleted with `deletionPolicy: Retain`: the device stays paired.
    Retained,
    /// Deleted without revoking, as the annotation `gatewaytrust.io/abandon` says or because the gateway is gone.
    Abandoned,
    /// The gateway gave the device more than was approved, so it was removed at once.
    GrantExceeded,
    /// The gateway did not do as asked; tried again.
    CallFailed,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// `True`, `False` or `Unknown`, as Kubernetes writes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truth {
    /// The condition holds.
    True,
    /// It does not.
    False,
    /// Not known yet, or not any more.
    Unknown,
}

impl Truth {
    /// Its spelling in `status.conditions[].status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::True => "True",
            Self::False => "False",
            Self::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Truth {
    fn from(value: bool) -> Self {
        if value { Self::True } else { Self::False }
    }
}

/// One condition without its times: what a plan says. [`Verdict::into_condition`] adds them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Which condition.
    pub kind: ConditionType,
    /// Whether it holds.
    pub truth: Truth,
    /// Why.
    pub reason: Reason,
    /// What is wrong, the evidence, and the next command to type.
    pub message: String,
}

impl Verdict {
    /// A condition from its parts.
    pub fn new(kind: ConditionType, truth: impl Into<Truth>, reason: Reason, message: impl Into<String>) -> Self {
        Self {
            kind,
            truth: truth.into(),
            reason,
            message: message.into(),
        }
    }

    /// The Kubernetes condition. The transition time of the previous one stays unless the truth changed.
    pub fn into_condition(self, previous: &[Condition], generation: Option<i64>, now: Timestamp) -> Condition {
        let status = self.truth.as_str();
        let since = previous
            .iter()
            .find(|old| old.type_ == self.kind.as_str() && old.status == status);
        Condition {
            type_: self.kind.as_str().to_owned(),
            status: status.to_owned(),
            reason: self.reason.as_str().to_owned(),
            message: shorten(&self.message, MESSAGE_LIMIT),
            observed_generation: generation,
            last_transition_time: since.map_or(Time(now), |old| old.last_transition_time.clone()),
        }
    }
}

/// Longest message of a condition, in bytes (the API server's own limit is 32,768).
pub const MESSAGE_LIMIT: usize = 4096;

/// The text, cut at a character boundary and marked as cut where it is longer than `limit` bytes.
pub fn shorten(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let end = (0..=limit.saturating_sub('…'.len_utf8()))
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    format!("{}…", text.get(..end).unwrap_or_default())
}
