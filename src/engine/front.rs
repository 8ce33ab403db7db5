//! The front: where desired objects come from, and where statuses, events and finalizers go.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use thiserror::Error;

use crate::api::gateway_trust::GatewayTrustStatus;
use crate::api::validated::{SpecError, ValidatedTrust};
use crate::api::{DeviceApprovalStatus, ObjectKey, Reason};
use crate::cidr::Prefix;
use crate::cluster::Snapshot;
use crate::gateway::{Credential, Endpoint, Identity};
use crate::plan::approvals::ApprovalInput;

/// Everything that one gateway is kept to.
#[derive(Clone, Debug, PartialEq)]
pub struct Desired {
    /// The `GatewayTrust`.
    pub key: ObjectKey,
    /// Its generation.
    pub generation: Option<i64>,
    /// Its spec, or why that has no meaning.
    pub spec: Result<ValidatedTrust, SpecError>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The approvals that refer to it, with the generation of each.
    pub approvals: Vec<DesiredApproval>,
    /// The cluster.
    pub snapshot: Arc<Snapshot>,
}

/// One approval.
#[derive(Clone, Debug, PartialEq)]
pub struct DesiredApproval {
    /// What the planner needs.
    pub input: ApprovalInput,
    /// Its generation.
    pub generation: Option<i64>,
    /// Its uid: an object that is made again under the same name is another one.
    pub uid: Option<String>,
}

impl Desired {
    /// The approval of this name, if it still is the same object.
    pub fn same(&self, other: &DesiredApproval) -> Option<&DesiredApproval> {
        self.approvals
            .iter()
            .find(|approval| approval.input.key == other.input.key && approval.uid == other.uid)
    }
    /// What the approvals planner needs.
    pub fn inputs(&self) -> Vec<ApprovalInput> {
        self.approvals.iter().map(|approval| approval.input.clone()).collect()
    }
}

/// Why it is not known where to connect, or with what. Each has a condition reason and a next step.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum TargetError {
    /// The Service does not exist.
    #[error(
        "Service {namespace}/{name} does not exist. Correct spec.gateway.service, or create it: kubectl get services -n {namespace}"
    )]
    ServiceNotFound {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// Whether no gateway pod is left in the namespace either.
        pods_gone: bool,
    },
    /// The Service cannot be trusted with the token.
    #[error(
        "Service {0} {1}: the gateway's token would go to an address that nobody in this namespace answers for. Point spec.gateway.service at a Service with a selector over the gateway's own pod."
    )]
    UnsafeService(String, &'static str),
    /// No ready pod.
    #[error("Service {0} has no ready pod. Is the gateway running? kubectl get pods -n {1}")]
    NoReadyEndpoint(String, String),
    /// Several.
    #[error(
        "Service {0} has {1} ready pods. Each gateway pod has a pairing store of its own, so nothing is written. Run one replica: kubectl scale --replicas=1 ..."
    )]
    MultipleReplicas(String, usize),
    /// The Service has no such port.
    #[error("Service {0} has no port {1}. Correct spec.gateway.service.port.")]
    NoSuchPort(String, String),
    /// Nothing to sign in with.
    #[error("spec.gateway.auth is left out, and {0}. Name the Secret in spec.gateway.auth.tokenSecretRef.")]
    CredentialNotFound(String),
    /// The Secret is not there.
    #[error("{0} does not exist. Create it, or correct the reference. Look: {1}")]
    SecretNotFound(String, String),
    /// The key is not there.
    #[error("{0} has no key {1:?}, or it is empty. Look: {2}")]
    SecretKeyMissing(String, String, String),
    /// The operator may not read it.
    #[error("{0} may not be read by the operator (forbidden). Allow it to get that Secret by name. Look: {1}")]
    SecretForbidden(String, String),
    /// The Secret does not consent.
    #[error("{secret} does not consent to being sent to {origin}. If it should be: {command}")]
    EndpointNotAllowed {
        /// The Secret.
        secret: String,
        /// Where it would go.
        origin: String,
        /// What to type.
        command: String,
    },
    /// Plain text over the network.
    #[error(
        "{0} is not https: the token would cross the network readable. Use https, or start the operator with --allow-insecure-gateway-urls."
    )]
    InsecureUrl(String),
    /// A target that this front cannot have.
    #[error("spec.gateway.service: without a cluster there are no Services. Write spec.gateway.url instead.")]
    NoCluster,
    /// TLS settings that cannot be used.
    #[error(transparent)]
    Tls(#[from] crate::gateway::tls::TlsError),
    /// It could not be found out.
    #[error("{0} could not be read: {1}")]
    Unavailable(String, String),
}

impl TargetError {
    /// The reason of the condition `GatewayReachable`.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::ServiceNotFound { .. } => Reason::ServiceNotFound,
            Self::UnsafeService(..) => Reason::UnsafeService,
            Self::NoReadyEndpoint(..) => Reason::NoReadyEndpoint,
            Self::MultipleReplicas(..) => Reason::MultipleReplicas,
            Self::NoSuchPort(..) | Self::NoCluster => Reason::InvalidSpec,
            Self::CredentialNotFound(_) => Reason::CredentialNotFound,
            Self::SecretNotFound(..) => Reason::SecretNotFound,
            Self::SecretKeyMissing(..) => Reason::SecretKeyMissing,
            Self::SecretForbidden(..) => Reason::SecretForbidden,
            Self::EndpointNotAllowed { .. } => Reason::EndpointNotAllowed,
            Self::InsecureUrl(_) => Reason::InsecureUrl,
            Self::Tls(_) => Reason::TLSFailed,
            Self::Unavailable(..) => Reason::SourceUnavailable,
        }
    }
}

/// Where to connect and with what, decided anew before every connection.
#[derive(Clone, Debug)]
pub struct ResolvedTarget {
    /// Where.
    pub endpoint: Endpoint,
    /// With what.
    pub credential: Credential,
    /// The command prefix by which a person runs `openclaw` beside the gateway.
    pub beside_gateway: String,
}

/// What the operator itself remembers of a gateway, outside of any status: its device, and what it has written.
#[derive(Clone, Debug)]
pub struct Record {
    /// The operator's device.
    pub identity: Identity,
    /// The prefixes that it has put (or was about to put) into the gateway's config.
    pub owned: BTreeSet<Prefix>,
}

/// A front that could not do as asked; tried again.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct FrontError(pub String);

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The gateway.
    Gateway,
    /// One approval.
    Approval(ObjectKey),
}

/// How loud an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoteKind {
    /// As it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

/// One event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What it is about.
    pub subject: Subject,
    /// How loud.
    pub kind: NoteKind,
    /// A constant, such as `DeviceApproved`.
    pub reason: &'static str,
    /// What happened, and what to do.
    pub message: String,
}

/// A front.
pub trait Front: Clone + Send + Sync + 'static {
    /// Where the gateway is and what to sign in with.
    fn target(
        &self,
        desired: &Desired,
        trust: &ValidatedTrust,
    ) -> impl Future<Output = Result<ResolvedTarget, TargetError>> + Send;
    /// What the operator remembers of this gateway; a new device is made and stored where there is none.
    fn record(&self, gateway: &ObjectKey) -> impl Future<Output = Result<Record, FrontError>> + Send;
    /// Remembers which prefixes are the operator's own (`record.owned`). Done before they are written to the gateway.
    fn remember(&self, gateway: &ObjectKey, record: &Record) -> impl Future<Output = Result<(), FrontError>> + Send;
    /// The name of the operator's device in the gateway's list: whose it is.
    fn device_name(&self, gateway: &ObjectKey) -> String;
    /// The status that the gateway's object had before this worker started.
    fn previous_status(&self, gateway: &ObjectKey) -> Option<GatewayTrustStatus>;
    /// The status that an approval had before.
    fn previous_approval_status(&self, approval: &ObjectKey) -> Option<DeviceApprovalStatus>;
    /// Publishes the gateway's status.
    fn publish(
        &self,
        gateway: &ObjectKey,
        status: &GatewayTrustStatus,
    ) -> impl Future<Output = Result<(), FrontError>> + Send;
    /// Publishes an approval's status.
    fn publish_approval(
        &self,
        gateway: &ObjectKey,
        approval: &ObjectKey,
        status: &DeviceApprovalStatus,
    ) -> impl Future<Output = Result<(), FrontError>> + Send;
    /// Tells of an event.
    fn tell(&self, gateway: &ObjectKey, note: Note) -> impl Future<Output = ()> + Send;
    /// Lets a deleted approval go: nothing is left to be revoked, for this reason.
    fn release(
        &self,
        gateway: &ObjectKey,
        approval: &ObjectKey,
        reason: Reason,
    ) -> impl Future<Output = Result<(), FrontError>> + Send;
}
