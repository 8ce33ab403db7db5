//! A front and a door over the model of the gateway, with faults to order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;

use crate::api::gateway_trust::GatewayTrustStatus;
use crate::api::validated::{CredentialKind, Origin, ValidatedTrust};
use crate::api::{DeviceApprovalStatus, ObjectKey, Reason};
use crate::cidr::Prefix;
use crate::cluster::Snapshot;
use crate::engine::front::{DesiredApproval, FrontError, Record, ResolvedTarget, TargetError};
use crate::engine::{Desired, Front, Note};
use crate::gateway::door::{Closed, Signals};
use crate::gateway::protocol::{ConfigPatch, DeviceList, GatewayConfig};
use crate::gateway::{CallError, ConnectError, Connector, Credential, Door, Endpoint, Identity, Secret};
use crate::plan::approvals::{Action, ApprovalInput};
use crate::plan::model::{Model, trust_of};

/// What happens to a write of the config.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Patch {
    /// It is done, and closes everybody.
    #[default]
    Works,
    /// It never answers.
    Hangs,
    /// Refused so many times, because the config changed meanwhile.
    Stale(usize),
    /// Refused once, to be tried again later.
    Limited,
    /// Done, and then somebody else puts this back.
    Reverted(Vec<String>),
}

/// Everything that the tests look at or turn.
#[derive(Debug)]
pub struct State {
    pub model: Model,
    pub token: String,
    pub offered: String,
    pub signins: usize,
    pub patch: Patch,
    pub patches: Vec<Vec<String>>,
    pub grants_more: bool,
    pub remembered: Vec<BTreeSet<Prefix>>,
    pub status: GatewayTrustStatus,
    pub approvals: BTreeMap<ObjectKey, DeviceApprovalStatus>,
    pub notes: Vec<Note>,
    pub released: Vec<(ObjectKey, Reason)>,
    pub identity: Identity,
}

/// The world of one test.
#[derive(Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
    devices: watch::Sender<u64>,
    config: watch::Sender<u64>,
    closed: Arc<Mutex<watch::Sender<Option<Closed>>>>,
}

pub fn gateway() -> ObjectKey {
    ObjectKey::new("ns", "gateway")
}

impl World {
    pub fn new() -> Self {
        let state = State {
            model: Model::default(),
            token: "right".to_owned(),
            offered: "right".to_owned(),
            signins: 0,
            patch: Patch::default(),
            patches: Vec::new(),
            grants_more: false,
            remembered: Vec::new(),
            status: GatewayTrustStatus::default(),
            approvals: BTreeMap::new(),
            notes: Vec::new(),
            released: Vec::new(),
            identity: Identity::generate().expect("random"),
        };
        let closed = Arc::new(Mutex::new(watch::channel(None).0));
        let world = Self {
            state: Arc::new(Mutex::new(state)),
            devices: watch::channel(0).0,
            config: watch::channel(0).0,
            closed,
        };
        world.edit(|state| state.model.config.hash = Some("0".to_owned()));
        world
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panicked with it")
    }

    /// Changes something and lets the gateway's events tell.
    pub fn edit(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.devices.send_modify(|count| *count += 1);
        self.config.send_modify(|count| *count += 1);
    }

    pub fn close(&self, code: u16) {
        let closed = self.closed.lock().expect("no test panicked with it");
        closed.send_replace(Some(Closed {
            code,
            reason: String::new(),
        }));
    }

    /// What is desired: these ranges and approvals.
    pub fn desired(declared: &[&str], approvals: Vec<ApprovalInput>) -> Desired {
        let declared: Vec<String> = declared.iter().map(ToString::to_string).collect();
        Desired {
            key: gateway(),
            generation: Some(1),
            spec: Ok(trust_of(&declared, false)),
            deleting: false,
            approvals: approvals
                .into_iter()
                .map(|input| DesiredApproval {
                    input,
                    generation: Some(1),
                    uid: None,
                })
                .collect(),
            snapshot: Arc::new(Snapshot::none()),
        }
    }

    /// Waits (in the test's own time) until this holds.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&State) -> bool) {
        for _ in 0..100_000 {
            if holds(&self.state()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}; {:#?}", self.state().status.conditions);
    }

    /// A condition of the gateway's status as `status/reason`.
    pub fn condition(state: &State, kind: &str) -> String {
        let found = state.status.conditions.iter().find(|condition| condition.type_ == kind);
        found
            .map(|condition| format!("{}/{}", condition.status, condition.reason))
            .unwrap_or_default()
    }
}

impl Front for World {
    async fn target(&self, _: &Desired, _: &ValidatedTrust) -> Result<ResolvedTarget, TargetError> {
        let origin = Origin::parse("http://127.0.0.1:18789/").expect("url");
        Ok(ResolvedTarget {
            endpoint: Endpoint {
                origin,
                address: None,
                tls: None,
                server_name: None,
            },
            credential: Credential {
                kind: CredentialKind::Token,
                secret: Secret::new(&self.state().offered),
            },
            beside_gateway: String::new(),
        })
    }

    async fn record(&self, _: &ObjectKey) -> Result<Record, FrontError> {
        let state = self.state();
        Ok(Record {
            identity: state.identity.clone(),
            owned: state.remembered.last().cloned().unwrap_or_default(),
        })
    }

    async fn remember(&self, _: &ObjectKey, record: &Record) -> Result<(), FrontError> {
        self.state().remembered.push(record.owned.clone());
        Ok(())
    }

    fn device_name(&self, gateway: &ObjectKey) -> String {
        format!("gatewaytrust test {gateway}")
    }

    fn previous_status(&self, _: &ObjectKey) -> Option<GatewayTrustStatus> {
        None
    }

    fn previous_approval_status(&self, _: &ObjectKey) -> Option<DeviceApprovalStatus> {
        None
    }

    async fn publish(&self, _: &ObjectKey, status: &GatewayTrustStatus) -> Result<(), FrontError> {
        self.state().status = status.clone();
        Ok(())
    }

    async fn publish_approval(
        &self,
        _: &ObjectKey,
        approval: &ObjectKey,
        status: &DeviceApprovalStatus,
    ) -> Result<(), FrontError> {
        self.state().approvals.insert(approval.clone(), status.clone());
        Ok(())
    }

    async fn tell(&self, _: &ObjectKey, note: Note) {
        self.state().notes.push(note);
    }

    async fn release(&self, _: &ObjectKey, approval: &ObjectKey, reason: Reason) -> Result<(), FrontError> {
        self.state().released.push((approval.clone(), reason));
        Ok(())
    }
}

/// A door into the model.
#[derive(Clone)]
pub struct ModelDoor {
    world: World,
    signals: Signals,
}

impl Connector for World {
    type Door = ModelDoor;

    async fn connect(
        &self,
        _: &Endpoint,
        credential: &Credential,
        _: &Identity,
        _: &str,
    ) -> Result<ModelDoor, ConnectError> {
        let mut state = self.state();
        state.signins += 1;
        if credential.secret.expose() != state.token {
            return Err(ConnectError::WrongToken("AUTH_TOKEN_MISMATCH".to_owned()));
        }
        let (closed, closed_seen) = watch::channel(None);
        *self.closed.lock().expect("no test panicked with it") = closed;
        let signals = Signals {
            devices: self.devices.subscribe(),
            presence: self.devices.subscribe(),
            config: self.config.subscribe(),
            closed: closed_seen,
        };
        Ok(ModelDoor {
            world: self.clone(),
            signals,
        })
    }

    async fn enrol_by_admin_rpc(&self, _: &Endpoint, _: &Credential, _: &str) -> Result<bool, ConnectError> {
        Ok(false)
    }
}

impl ModelDoor {
    fn act(&self, action: &Action) {
        self.world.edit(|state| state.model.apply(action));
    }
}

impl Door for ModelDoor {
    fn signals(&self) -> Signals {
        self.signals.clone()
    }

    fn version(&self) -> &str {
        "model"
    }

    async fn devices(&self) -> Result<DeviceList, CallError> {
        Ok(self.world.state().model.devices.clone())
    }

    async fn approve(&self, request_id: &str) -> Result<(), CallError> {
        let (request_id, device_id) = (request_id.to_owned(), String::new());
        self.act(&Action::Approve {
            request_id,
            device_id,
            at_most: Default::default(),
        });
        let mut state = self.world.state();
        if state.grants_more {
            for record in &mut state.model.devices.paired {
                record.holds.scopes.insert("operator.admin".to_owned());
            }
        }
        Ok(())
    }

    async fn reject(&self, request_id: &str) -> Result<(), CallError> {
        self.act(&Action::Reject {
            request_id: request_id.to_owned(),
            device_id: String::new(),
            reason: Reason::Rejected,
        });
        Ok(())
    }

    async fn remove(&self, device_id: &str) -> Result<(), CallError> {
        self.act(&Action::Remove {
            device_id: device_id.to_owned(),
            reason: Reason::Revoked,
        });
        Ok(())
    }

    async fn config(&self) -> Result<GatewayConfig, CallError> {
        Ok(self.world.state().model.config.clone())
    }

    async fn patch(&self, patch: &ConfigPatch, base_hash: &str) -> Result<(), CallError> {
        let mode = self.world.state().patch.clone();
        match mode {
            Patch::Hangs => std::future::pending().await,
            Patch::Stale(0) | Patch::Works | Patch::Reverted(_) => {}
            Patch::Stale(left) => {
                self.world.state().patch = Patch::Stale(left - 1);
                return Err(CallError::StaleHash);
            }
            Patch::Limited => {
                self.world.state().patch = Patch::Works;
                return Err(CallError::Limited {
                    method: "config.patch",
                    retry: Duration::from_secs(40),
                });
            }
        }
        self.world.edit(|state| {
            assert_eq!(
                state.model.config.hash.as_deref(),
                Some(base_hash),
                "a patch names the revision that it was made from"
            );
            state.patches.push(patch.trusted_proxies.clone());
            let entries = if let Patch::Reverted(other) = &state.patch {
                other.clone()
            } else {
                patch.trusted_proxies.clone()
            };
            state.model.config.trusted_proxies = Some(entries);
            state.model.config.hash = Some(state.patches.len().to_string());
        });
        self.world.close(4001);
        Ok(())
    }
}
