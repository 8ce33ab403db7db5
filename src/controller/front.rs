//! Kubernetes as a front: statuses by server-side apply, events by the API, finalizers.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, Resource as _, ResourceExt as _};

use super::{Options, object, record, target};
use crate::api::condition::shorten;
use crate::api::gateway_trust::GatewayTrustStatus;
use crate::api::validated::ValidatedTrust;
use crate::api::{DeviceApproval, DeviceApprovalStatus, FINALIZER, GatewayTrust, ObjectKey, Reason};
use crate::engine::approvals_lane::DEVICE_NAME_PREFIX;
use crate::engine::front::{FrontError, Record, ResolvedTarget, TargetError};
use crate::engine::{Desired, Front, Note, NoteKind, Subject};

/// Longest note of an event (the API server's own limit is 1,024 bytes).
const NOTE_LIMIT: usize = 1024;

/// The usual name of a cluster: the uid of its kube-system namespace, its first part.
pub async fn cluster_name(client: &Client) -> String {
    let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
    let uid = namespaces
        .get("kube-system")
        .await
        .ok()
        .and_then(|namespace| namespace.uid())
        .unwrap_or_default();
    uid.split('-')
        .next()
        .filter(|part| !part.is_empty())
        .unwrap_or("unnamed")
        .to_owned()
}

/// The name of the operator's device in a gateway's list.
pub fn device_name(cluster: &str, gateway: &ObjectKey) -> String {
    format!("{DEVICE_NAME_PREFIX}cluster {cluster} {gateway}")
}

/// Kubernetes.
#[derive(Clone)]
pub struct KubeFront {
    client: Client,
    options: Arc<Options>,
    trusts: Store<GatewayTrust>,
    approvals: Store<DeviceApproval>,
    recorder: Recorder,
    cluster: Arc<str>,
}

impl KubeFront {
    /// A front over this API server.
    pub async fn new(
        client: Client,
        options: Options,
        trusts: Store<GatewayTrust>,
        approvals: Store<DeviceApproval>,
    ) -> Self {
        let cluster = cluster_name(&client).await.into();
        let reporter = Reporter {
            controller: "gatewaytrust.io/operator".to_owned(),
            instance: std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()),
        };
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            options: Arc::new(options),
            trusts,
            approvals,
            cluster,
        }
    }

    fn trust(&self, key: &ObjectKey) -> Option<Arc<GatewayTrust>> {
        self.trusts.get(&ObjectRef::new(&key.name).within(&key.namespace))
    }

    fn approval(&self, key: &ObjectKey) -> Option<Arc<DeviceApproval>> {
        self.approvals.get(&ObjectRef::new(&key.name).within(&key.namespace))
    }

    fn reference(&self, gateway: &ObjectKey, subject: &Subject) -> Option<ObjectReference> {
        match subject {
            Subject::Gateway => self.trust(gateway).map(|trust| trust.object_ref(&())),
            Subject::Approval(key) => self.approval(key).map(|approval| approval.object_ref(&())),
        }
    }
}

fn front_error(error: impl std::fmt::Display) -> FrontError {
    FrontError(error.to_string())
}

impl Front for KubeFront {
    async fn target(&self, desired: &Desired, trust: &ValidatedTrust) -> Result<ResolvedTarget, TargetError> {
        target::resolve(&self.client, &self.options, &desired.key, trust).await
    }

    async fn record(&self, gateway: &ObjectKey) -> Result<Record, FrontError> {
        let owner = self.trust(gateway);
        record::load(&self.client, gateway, owner.as_deref()).await
    }

    async fn remember(&self, gateway: &ObjectKey, record: &Record) -> Result<(), FrontError> {
        let owner = self.trust(gateway);
        record::remember(&self.client, gateway, record, owner.as_deref()).await
    }

    fn device_name(&self, gateway: &ObjectKey) -> String {
        device_name(&self.cluster, gateway)
    }

    fn previous_status(&self, gateway: &ObjectKey) -> Option<GatewayTrustStatus> {
        self.trust(gateway).and_then(|trust| trust.status.clone())
    }

    fn previous_approval_status(&self, approval: &ObjectKey) -> Option<DeviceApprovalStatus> {
        self.approval(approval).and_then(|approval| approval.status.clone())
    }

    async fn publish(&self, gateway: &ObjectKey, status: &GatewayTrustStatus) -> Result<(), FrontError> {
        object::apply_status::<GatewayTrust>(&self.client, &gateway.namespace, &gateway.name, status)
            .await
            .map_err(front_error)
    }

    async fn publish_approval(
        &self,
        _: &ObjectKey,
        approval: &ObjectKey,
        status: &DeviceApprovalStatus,
    ) -> Result<(), FrontError> {
        object::apply_status::<DeviceApproval>(&self.client, &approval.namespace, &approval.name, status)
            .await
            .map_err(front_error)
    }

    async fn tell(&self, gateway: &ObjectKey, note: Note) {
        let Some(reference) = self.reference(gateway, &note.subject) else {
            return;
        };
        let event = Event {
            type_: match note.kind {
                NoteKind::Normal => EventType::Normal,
                NoteKind::Warning => EventType::Warning,
            },
            reason: note.reason.to_owned(),
            note: Some(shorten(&note.message, NOTE_LIMIT)),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(%gateway, error = %object::describe(&error), "an event could not be written");
        }
    }

    async fn release(&self, gateway: &ObjectKey, approval: &ObjectKey, reason: Reason) -> Result<(), FrontError> {
        let Some(object) = self.approval(approval) else {
            return Ok(());
        };
        if object.metadata.deletion_timestamp.is_none() {
            // Made anew under the same name meanwhile: it is in force.
            return Ok(());
        }
        if matches!(
            reason,
            Reason::Abandoned | Reason::Observing | Reason::GatewayClaimed | Reason::Retained
        ) {
            let message = format!(
                "Deleted without revoking the device ({reason}): if it is paired, it stays so. openclaw devices list"
            );
            let note = Note {
                subject: Subject::Approval(approval.clone()),
                kind: NoteKind::Warning,
                reason: reason.as_str(),
                message,
            };
            self.tell(gateway, note).await;
        }
        object::remove_finalizer(&self.client, object.as_ref(), FINALIZER)
            .await
            .map_err(front_error)
    }
}
