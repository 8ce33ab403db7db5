//! The folder as a front: statuses go to a file beside the notes, events to the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::state::{State, replace};
use super::{Options, target};
use crate::api::gateway_trust::GatewayTrustStatus;
use crate::api::validated::ValidatedTrust;
use crate::api::{DeviceApprovalStatus, ObjectKey, Reason};
use crate::engine::approvals_lane::DEVICE_NAME_PREFIX;
use crate::engine::front::{FrontError, Record, ResolvedTarget, TargetError};
use crate::engine::{Desired, Front, Note};

/// A folder of files.
#[derive(Clone)]
pub struct FolderFront {
    options: Arc<Options>,
    state: Arc<Mutex<State>>,
    statuses: Arc<Mutex<BTreeMap<ObjectKey, Statuses>>>,
    released: mpsc::UnboundedSender<ObjectKey>,
}

#[derive(Default)]
struct Statuses {
    trust: Option<GatewayTrustStatus>,
    approvals: BTreeMap<ObjectKey, DeviceApprovalStatus>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FolderFront {
    /// A front over this state; `released` hears of approvals that may be forgotten.
    pub fn new(options: Options, state: Arc<Mutex<State>>, released: mpsc::UnboundedSender<ObjectKey>) -> Self {
        Self {
            options: Arc::new(options),
            state,
            statuses: Arc::default(),
            released,
        }
    }

    /// The state folder.
    pub fn state(&self) -> Arc<Mutex<State>> {
        self.state.clone()
    }

    /// Writes what all conditions of a gateway say to `status.yaml` in its state folder, for people and scripts.
    fn write_statuses(&self, gateway: &ObjectKey) -> Result<(), FrontError> {
        let document = {
            let statuses = lock(&self.statuses);
            let Some(known) = statuses.get(gateway) else {
                return Ok(());
            };
            let approvals: BTreeMap<String, &DeviceApprovalStatus> = known
                .approvals
                .iter()
                .map(|(key, status)| (key.to_string(), status))
                .collect();
            json!({"gatewayTrust": {"name": gateway.to_string(), "status": known.trust}, "deviceApprovals": approvals})
        };
        let file = lock(&self.state).folder_of(gateway).join("status.yaml");
        let text = yaml(&document).map_err(FrontError)?;
        if std::fs::read_to_string(&file).is_ok_and(|old| old == text) {
            return Ok(());
        }
        replace(&file, text.as_bytes()).map_err(|error| FrontError(error.to_string()))
    }
}

/// A value as YAML.
///
/// # Errors
/// What the serializer says.
pub fn yaml(value: &Value) -> Result<String, String> {
    serde_saphyr::to_string(value).map_err(|error| error.to_string())
}

impl Front for FolderFront {
    async fn target(&self, _: &Desired, trust: &ValidatedTrust) -> Result<ResolvedTarget, TargetError> {
        target::resolve(&self.options, trust, &|name| std::env::var(name).ok())
    }

    async fn record(&self, gateway: &ObjectKey) -> Result<Record, FrontError> {
        let mut state = lock(&self.state);
        let identity = state.identity(gateway).map_err(|error| FrontError(error.to_string()))?;
        let owned = state.owned(gateway).map_err(|error| FrontError(error.to_string()))?;
        Ok(Record { identity, owned })
    }

    async fn remember(&self, gateway: &ObjectKey, record: &Record) -> Result<(), FrontError> {
        lock(&self.state)
            .remember(gateway, &record.owned)
            .map_err(|error| FrontError(error.to_string()))
    }

    fn device_name(&self, gateway: &ObjectKey) -> String {
        format!("{DEVICE_NAME_PREFIX}sync {gateway}")
    }

    fn previous_status(&self, _: &ObjectKey) -> Option<GatewayTrustStatus> {
        None
    }

    fn previous_approval_status(&self, _: &ObjectKey) -> Option<DeviceApprovalStatus> {
        None
    }

    async fn publish(&self, gateway: &ObjectKey, status: &GatewayTrustStatus) -> Result<(), FrontError> {
        if let Some(ready) = status.conditions.iter().find(|condition| condition.type_ == "Ready") {
            let before = lock(&self.statuses)
                .get(gateway)
                .and_then(|known| known.trust.clone())
                .unwrap_or_default();
            let old = before
                .conditions
                .into_iter()
                .find(|condition| condition.type_ == "Ready");
            if old.is_none_or(|old| old.status != ready.status || old.reason != ready.reason) {
                tracing::info!(gateway = %gateway, ready = %ready.status, reason = %ready.reason, "{}", ready.message);
            }
        }
        lock(&self.statuses).entry(gateway.clone()).or_default().trust = Some(status.clone());
        self.write_statuses(gateway)
    }

    async fn publish_approval(
        &self,
        gateway: &ObjectKey,
        approval: &ObjectKey,
        status: &DeviceApprovalStatus,
    ) -> Result<(), FrontError> {
        let reason = |status: &DeviceApprovalStatus, kind: &str| {
            status
                .conditions
                .iter()
                .find(|condition| condition.type_ == kind)
                .map(|condition| (condition.reason.clone(), condition.message.clone()))
        };
        let before = lock(&self.statuses)
            .entry(gateway.clone())
            .or_default()
            .approvals
            .insert(approval.clone(), status.clone());
        for kind in ["Ready", "Approved"] {
            let (old, new) = (
                before.as_ref().and_then(|status| reason(status, kind)),
                reason(status, kind),
            );
            if let Some((constant, message)) = new.filter(|new| old.as_ref().map(|old| &old.0) != Some(&new.0)) {
                tracing::info!(%approval, condition = kind, reason = %constant, "{message}");
            }
        }
        self.write_statuses(gateway)
    }

    async fn tell(&self, _: &ObjectKey, _: Note) {
        // The engine has put it into the log, which is all that a folder has.
    }

    async fn release(&self, gateway: &ObjectKey, approval: &ObjectKey, _: Reason) -> Result<(), FrontError> {
        lock(&self.state)
            .forget(gateway, approval)
            .map_err(|error| FrontError(error.to_string()))?;
        if let Some(known) = lock(&self.statuses).get_mut(gateway) {
            known.approvals.remove(approval);
        }
        self.write_statuses(gateway)?;
        // Nobody hears it once `sync` is ending; the notes on disk are what counts.
        let _ = self.released.send(approval.clone());
        Ok(())
    }
}
