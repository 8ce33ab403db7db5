//! A world for one test: the operator in front of a gateway, through either of its fronts. The scenarios say what
//! people do (write a file or apply an object, delete it) and see (statuses, events, logs), whichever front it is.

mod cluster;
mod folder;
pub mod gateways;
pub mod objects;

use std::panic::Location;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::harness::device::{ConnectOptions, ConnectOutcome, Device, DeviceConn, DeviceIdentity};
use crate::harness::gateway::Gateway;
use crate::harness::process::Finished;
use crate::harness::{Operator, wait};

pub use cluster::{Cluster, repository_file};
pub use folder::Folder;

/// The name of every test's `GatewayTrust`.
pub const TRUST: &str = "gateway";
/// Long, because two cores may be busy with several gateways that start.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How long something is watched that must not happen.
pub const A_WHILE: Duration = Duration::from_millis(1500);

/// The operator under test, with how it is started, so that it can be stopped and started again.
pub struct Runner {
    operator: Operator,
    start: Box<dyn Fn() -> Operator + Send>,
    earlier: String,
}

impl Runner {
    fn new(start: impl Fn() -> Operator + Send + 'static) -> Self {
        Self {
            operator: start(),
            start: Box::new(start),
            earlier: String::new(),
        }
    }

    /// The operator at present.
    pub fn operator(&mut self) -> &mut Operator {
        &mut self.operator
    }

    /// Starts it again after it has ended.
    pub fn start(&mut self) {
        assert!(self.operator.ended().is_some(), "the operator still runs");
        self.earlier += &self.operator.log_text();
        self.operator = (self.start)();
    }

    fn log_text(&self) -> String {
        self.earlier.clone() + &self.operator.log_text()
    }

    fn check_running(&mut self) -> Result<(), String> {
        match self.operator.ended() {
            None => Ok(()),
            Some(status) => Err(format!("the operator ended: {status}\n{}", self.operator.log_text())),
        }
    }
}

enum Front {
    Cluster(Cluster),
    Folder(Folder),
}

/// What a condition is about.
#[derive(Debug, Clone, Copy)]
pub enum Of<'a> {
    Gateway,
    Approval(&'a str),
}

pub struct World {
    front: Front,
    runner: Arc<Mutex<Runner>>,
}

impl World {
    /// Through `gatewaytrust run`: a namespace of its own on the control plane and the operator that tests share.
    pub async fn cluster() -> Self {
        let (cluster, runner) = Cluster::shared(None).await;
        Self {
            front: Front::Cluster(cluster),
            runner,
        }
    }

    /// The same in a namespace that exists.
    pub async fn cluster_in(namespace: &str) -> Self {
        let (cluster, runner) = Cluster::shared(Some(namespace)).await;
        Self {
            front: Front::Cluster(cluster),
            runner,
        }
    }

    /// With a control plane and an operator of its own, for tests that stop the operator or change its rights.
    pub async fn own_cluster() -> Self {
        let (cluster, runner) = Cluster::own().await;
        Self {
            front: Front::Cluster(cluster),
            runner: Arc::new(Mutex::new(runner)),
        }
    }

    /// Through `gatewaytrust sync`: a folder, a state folder and an operator of its own.
    pub fn folder() -> Self {
        let folder = Folder::new();
        let runner = folder.start();
        Self {
            front: Front::Folder(folder),
            runner: Arc::new(Mutex::new(runner)),
        }
    }

    /// The cluster, in tests that are about Kubernetes.
    #[track_caller]
    pub fn in_cluster(&self) -> &Cluster {
        match &self.front {
            Front::Cluster(cluster) => cluster,
            Front::Folder(_) => panic!("this test is about Kubernetes"),
        }
    }

    /// The folder, in tests that are about `sync`.
    #[track_caller]
    pub fn in_folder(&self) -> &Folder {
        match &self.front {
            Front::Folder(folder) => folder,
            Front::Cluster(_) => panic!("this test is about sync"),
        }
    }

    pub async fn runner(&self) -> MutexGuard<'_, Runner> {
        self.runner.lock().await
    }

    /// Applies the `GatewayTrust`.
    pub async fn trust(&self, spec: Value) {
        self.apply("GatewayTrust", TRUST, spec).await;
    }

    /// Applies a `DeviceApproval`.
    pub async fn approve(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["gatewayTrustRef"] = json!({"name": TRUST});
        self.apply("DeviceApproval", name, spec).await;
    }

    async fn apply(&self, kind: &str, name: &str, spec: Value) {
        match &self.front {
            Front::Cluster(cluster) => cluster.apply(kind, name, spec).await,
            Front::Folder(folder) => folder.write(kind, name, spec),
        }
    }

    /// Deletes a `DeviceApproval`: `kubectl delete`, which returns when it is gone; or its file.
    pub async fn withdraw(&self, name: &str) {
        match &self.front {
            Front::Cluster(cluster) => drop(cluster.delete(name, true).await.ok()),
            Front::Folder(folder) => folder.remove(name),
        }
    }

    /// The same without waiting: nobody is there to do it.
    pub async fn withdraw_without_waiting(&self, name: &str) {
        match &self.front {
            Front::Cluster(cluster) => drop(cluster.delete(name, false).await.ok()),
            Front::Folder(folder) => folder.remove(name),
        }
    }

    /// The gateway's token, where the `GatewayTrust` of [`url_spec`] looks for it. `consent` is the origin that a
    /// Secret has to name; a folder's loopback URL needs none.
    pub async fn credentials(&self, token: &str, consent: Option<&str>) {
        match &self.front {
            Front::Cluster(cluster) => cluster.secret("credentials", "token", token, consent).await,
            Front::Folder(folder) => folder.secret("token", Some(token)),
        }
    }

    /// `url_spec` with the right token beside it.
    pub async fn manage(&self, gateway: &Gateway) {
        self.credentials(gateway.token(), Some(&origin(gateway.port()))).await;
        self.trust(url_spec(gateway.port())).await;
        self.condition(Of::Gateway, "Ready", "True", "AsDeclared").await;
    }

    /// The status of the `GatewayTrust` or of an approval; null where there is none.
    pub async fn status(&self, of: Of<'_>) -> Value {
        match &self.front {
            Front::Cluster(cluster) => cluster.object(of).await["status"].take(),
            Front::Folder(folder) => folder.status(of),
        }
    }

    /// Waits for a condition; its message.
    #[track_caller]
    pub fn condition(&self, of: Of<'_>, kind: &str, status: &str, reason: &str) -> impl Future<Output = String> {
        let what = format!("{of:?} to become {kind}={status}/{reason} (for {})", Location::caller());
        async move {
            wait::until(&what, PATIENCE, async || {
                self.runner.lock().await.check_running()?;
                let seen = self.status(of).await;
                let found = condition_of(&seen, kind);
                if found["status"] == status && found["reason"] == reason {
                    Ok(found["message"].as_str().unwrap_or_default().to_owned())
                } else {
                    Err(format!("{}", seen["conditions"]))
                }
            })
            .await
        }
    }

    /// Waits for an event (or, in a folder, for its line in the log) that says this.
    pub async fn event(&self, approval: &str, reason: &str, says: &str) {
        wait::until(&format!("the event {reason}"), PATIENCE, async || match &self.front {
            Front::Cluster(cluster) => {
                let events = cluster.events().await;
                let found = events.as_array().into_iter().flatten().any(|event| {
                    event["regarding"]["name"] == approval
                        && event["reason"] == reason
                        && event["note"].as_str().is_some_and(|note| note.contains(says))
                });
                found.then_some(()).ok_or(format!("{events}"))
            }
            Front::Folder(_) => {
                let log = self.runner.lock().await.log_text();
                let found = log.lines().any(|line| line.contains(reason) && line.contains(says));
                found.then_some(()).ok_or(log)
            }
        })
        .await;
    }

    /// Everything that people can see of it: logs, statuses, events.
    async fn everything_shown(&self) -> String {
        let log = self.runner.lock().await.log_text();
        let rest = match &self.front {
            Front::Cluster(cluster) => cluster.everything_shown().await,
            Front::Folder(folder) => folder.everything_shown(),
        };
        log + &rest
    }

    /// No token and no private key may ever be shown: looked for in all logs, statuses and events.
    pub async fn shows_no_secret(&self, tokens: &[&str]) {
        let shown = self.everything_shown().await;
        assert!(shown.contains(TRUST), "nothing to look through: {shown}");
        let key = match &self.front {
            Front::Cluster(cluster) => cluster.device_key().await,
            Front::Folder(folder) => folder.device_key(),
        };
        let secrets = tokens.iter().copied().chain(key.as_deref());
        for secret in secrets {
            let line = shown.lines().find(|line| line.contains(secret));
            assert!(line.is_none(), "a secret is shown: {line:?}");
        }
    }
}

/// `http://127.0.0.1:PORT`, as a Secret consents to it.
pub fn origin(port: u16) -> String {
    format!("http://127.0.0.1:{port}")
}

/// The smallest spec for a gateway on loopback, with its token from [`World::credentials`].
pub fn url_spec(port: u16) -> Value {
    json!({"gateway": {
        "url": format!("{}/", origin(port)),
        "auth": {"tokenSecretRef": {"name": "credentials", "key": "token"}},
    }})
}

/// The condition of this type; null where there is none.
pub fn condition_of(status: &Value, kind: &str) -> Value {
    let mut all = status["conditions"].as_array().into_iter().flatten();
    all.find(|condition| condition["type"] == kind)
        .cloned()
        .unwrap_or_default()
}

/// An approval of this device as an operator.
pub fn approval(device: &DeviceIdentity, scopes: &[&str]) -> Value {
    json!({"device": {"id": device.id()}, "roles": ["operator"], "scopes": scopes})
}

/// A device that tries again and again until it is let in, as the dashboard does.
#[track_caller]
pub fn enter(device: &DeviceIdentity, options: &ConnectOptions) -> impl Future<Output = DeviceConn> {
    wait::until("the device to be let in", PATIENCE, async || {
        match Device::connect(device, options).await {
            ConnectOutcome::Connected(conn) => Ok(conn),
            other => Err(format!("{other:?}")),
        }
    })
}

/// A device that has to be refused for want of pairing, and nothing else.
#[track_caller]
pub fn refused_for_pairing(device: &DeviceIdentity, options: &ConnectOptions) -> impl Future<Output = Value> {
    let caller = std::panic::Location::caller();
    async move {
        let outcome = Device::connect(device, options).await;
        assert_eq!(
            outcome.refusal_code(),
            Some("PAIRING_REQUIRED"),
            "{outcome:?} ({caller})"
        );
        outcome.refused()
    }
}

/// Says of a command that had to fail why it did.
pub fn refusal(finished: Finished) -> String {
    assert!(
        !finished.status.success(),
        "it should have been refused: {}",
        finished.stdout
    );
    finished.stderr
}
