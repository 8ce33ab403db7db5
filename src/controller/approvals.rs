//! The small controller of approvals: guards each by a finalizer, and speaks for those that refer to no gateway.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt as _;
use kube::api::Api;
use kube::core::PartialObjectMeta;
use kube::runtime::controller::Action;

use super::{Context, ReconcileError, key_of, object};
use crate::api::condition::{ConditionType, Truth, Verdict};
use crate::api::device_approval::DeletionPolicy;
use crate::api::validated::ValidatedApproval;
use crate::api::{ABANDON, DeviceApproval, FINALIZER, ObjectKey, Reason};

/// How often a deleted approval without a gateway looks whether its namespace is being deleted too.
const NAMESPACE_LOOK: Duration = Duration::from_secs(10);

/// Reconciles one approval as far as its gateway's worker does not.
pub(super) async fn reconcile(approval: Arc<DeviceApproval>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let key = key_of(approval.as_ref());
    let gateway = ObjectKey::new(&key.namespace, &approval.spec.gateway_trust_ref.name);
    let deleting = approval.metadata.deletion_timestamp.is_some();
    if !context.trusts_read.wait().await {
        return Ok(Action::requeue(Duration::from_secs(5)));
    }
    if context.has_gateway(&gateway) {
        if !deleting {
            object::add_finalizer(&context.client, approval.as_ref(), FINALIZER).await?;
        }
        context.succeeded("DeviceApproval", key);
        return Ok(Action::await_change());
    }
    if deleting && (needs_nothing(&approval) || context.namespace_ends(&key.namespace).await) {
        object::remove_finalizer(&context.client, approval.as_ref(), FINALIZER).await?;
        context.succeeded("DeviceApproval", key);
        return Ok(Action::await_change());
    }
    let verdicts = orphan(&approval, &gateway, deleting);
    let previous = approval.status.clone().unwrap_or_default();
    let mut status = previous.clone();
    status.observed_generation = approval.metadata.generation;
    let now = Timestamp::now();
    status.conditions = verdicts
        .into_iter()
        .map(|verdict| verdict.into_condition(&previous.conditions, approval.metadata.generation, now))
        .collect();
    context.succeeded("DeviceApproval", key.clone());
    if status != previous {
        object::apply_status::<DeviceApproval>(&context.client, &key.namespace, &key.name, &status).await?;
    }
    // Its namespace may begin to end later, and nothing tells of that.
    Ok(if deleting {
        Action::requeue(NAMESPACE_LOOK)
    } else {
        Action::await_change()
    })
}

/// Whether a deleted approval leaves nothing to be revoked.
fn needs_nothing(approval: &DeviceApproval) -> bool {
    let spec = &approval.spec;
    let abandoned = approval.annotations().get(ABANDON).is_some_and(|value| value == "true");
    abandoned || spec.deletion_policy == DeletionPolicy::Retain || ValidatedApproval::parse_for_removal(spec).is_err()
}

fn orphan(approval: &DeviceApproval, gateway: &ObjectKey, deleting: bool) -> Vec<Verdict> {
    let ready = match ValidatedApproval::parse(&approval.spec) {
        Err(error) => Verdict::new(ConditionType::Ready, false, Reason::InvalidSpec, error.to_string()),
        Ok(_) if deleting => Verdict::new(
            ConditionType::Ready,
            false,
            Reason::GatewayTrustNotFound,
            format!(
                "Deletion waits: revoking the device needs GatewayTrust {gateway}, which does not exist. Create it again, or give up revoking: kubectl annotate deviceapproval -n {} {} {ABANDON}=true",
                gateway.namespace,
                approval.name_any()
            ),
        ),
        Ok(_) => Verdict::new(
            ConditionType::Ready,
            false,
            Reason::GatewayTrustNotFound,
            format!(
                "GatewayTrust {gateway} does not exist. Create it, or correct spec.gatewayTrustRef: kubectl get gatewaytrusts -n {}",
                gateway.namespace
            ),
        ),
    };
    let reason = ready.reason;
    vec![
        ready,
        Verdict::new(
            ConditionType::Approved,
            Truth::Unknown,
            reason,
            "Without a gateway nothing is approved or revoked.",
        ),
    ]
}

impl Context {
    /// Whether the namespace is being deleted, asked live: without a gateway nothing is watched there.
    async fn namespace_ends(&self, namespace: &str) -> bool {
        let namespaces: Api<PartialObjectMeta<Namespace>> = Api::all(self.client.clone());
        namespaces
            .get(namespace)
            .await
            .is_ok_and(|found| found.metadata.deletion_timestamp.is_some())
    }
}
