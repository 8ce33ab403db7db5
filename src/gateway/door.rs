//! The two traits by which the engine reaches a gateway. The real one is [`super::websocket`]; the engine's tests
//! have one over a model of the gateway.

use std::future::Future;

use tokio::sync::watch;

use super::endpoint::{Credential, Endpoint};
use super::error::{CallError, ConnectError};
use super::identity::Identity;
use super::protocol::{ConfigPatch, DeviceList, GatewayConfig};

/// What an open door tells without being asked. The counters go up when something has changed, or when events may
/// have been lost; the values mean nothing else.
#[derive(Clone, Debug)]
pub struct Signals {
    /// The pairing store may have changed.
    pub devices: watch::Receiver<u64>,
    /// Somebody came or went.
    pub presence: watch::Receiver<u64>,
    /// The config may have changed.
    pub config: watch::Receiver<u64>,
    /// Set once when the connection has ended.
    pub closed: watch::Receiver<Option<Closed>>,
}

impl Signals {
    /// From now on: what has changed before is seen by whoever looks now.
    pub fn from_now(mut self) -> Self {
        self.devices.mark_unchanged();
        self.presence.mark_unchanged();
        self.config.mark_unchanged();
        self
    }
}

/// Waits until the counter goes up; for ever where there is no door, or it has closed.
pub async fn changed(counter: Option<&mut watch::Receiver<u64>>) {
    match counter {
        Some(counter) => {
            if counter.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
        None => std::future::pending().await,
    }
}

/// How a connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The WebSocket close code; 1006 where the connection just broke.
    pub code: u16,
    /// The gateway's reason, where it is a plain text of the protocol (`gateway policy changed`).
    pub reason: String,
}

/// One open, paired connection to a gateway.
pub trait Door: Clone + Send + Sync + 'static {
    /// What the gateway tells.
    fn signals(&self) -> Signals;
    /// The gateway's version.
    fn version(&self) -> &str;
    /// The pairing store.
    fn devices(&self) -> impl Future<Output = Result<DeviceList, CallError>> + Send;
    /// Approves a request.
    fn approve(&self, request_id: &str) -> impl Future<Output = Result<(), CallError>> + Send;
    /// Rejects a request.
    fn reject(&self, request_id: &str) -> impl Future<Output = Result<(), CallError>> + Send;
    /// Removes a paired device.
    fn remove(&self, device_id: &str) -> impl Future<Output = Result<(), CallError>> + Send;
    /// The config.
    fn config(&self) -> impl Future<Output = Result<GatewayConfig, CallError>> + Send;
    /// Writes to the config, if it still has that revision.
    fn patch(&self, patch: &ConfigPatch, base_hash: &str) -> impl Future<Output = Result<(), CallError>> + Send;
}

/// Opens doors.
pub trait Connector: Send + Sync + 'static {
    /// The door that it opens.
    type Door: Door;
    /// Connects and signs in.
    ///
    /// `name` is shown in the gateway's paired list: whose device this is.
    fn connect(
        &self,
        endpoint: &Endpoint,
        credential: &Credential,
        identity: &Identity,
        name: &str,
    ) -> impl Future<Output = Result<Self::Door, ConnectError>> + Send;
    /// Approves the operator's own pending request by the admin HTTP RPC plugin. `Ok(false)`: the plugin is off.
    fn enrol_by_admin_rpc(
        &self,
        endpoint: &Endpoint,
        credential: &Credential,
        request_id: &str,
    ) -> impl Future<Output = Result<bool, ConnectError>> + Send;
}
