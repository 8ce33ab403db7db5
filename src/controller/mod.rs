//! The Kubernetes front: watches, statuses, events, finalizers.
//!
//! A `Controller<GatewayTrust>` feeds one engine worker a gateway; approvals, the cluster's routes and pods, and the
//! gateway's own endpoints are watched and mapped to it. Approvals that refer to no gateway have a small controller
//! of their own ([`approvals`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::runtime::controller::{Action, Controller, Error as ControllerError};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Client, ResourceExt as _};
use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::api::validated::{ValidatedApproval, ValidatedTrust};
use crate::api::{ABANDON, DeviceApproval, FINALIZER, GatewayTrust, ObjectKey};
use crate::cluster::SourceKey;
use crate::discovery::{GatewayView, NamespacePolicy, sources};
use crate::engine::front::DesiredApproval;
use crate::engine::{Desired, Settings, Worker};
use crate::gateway::websocket::WebSocketConnector;
use crate::plan::approvals::ApprovalInput;

pub mod approvals;
pub mod front;
pub mod object;
pub mod record;
pub mod target;
pub mod watches;

use front::KubeFront;
use object::ObjectError;
use watches::ClusterWatches;

/// How long a deleted `GatewayTrust` waits for approvals that are deleted together with it.
const DELETED_TOGETHER: Duration = Duration::from_secs(10);

/// Settings of `run`.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Whether plain http may be spoken to a `url`.
    pub allow_insecure_urls: bool,
    /// Namespaces that proxies may live in besides their usual ones.
    pub namespaces: NamespacePolicy,
}

/// Why the operator cannot start.
#[derive(Debug, Error)]
pub enum RunError {
    /// No way to the API server.
    #[error("no connection to a Kubernetes API server: {0}. Set KUBECONFIG, or run inside a cluster.")]
    Client(String),
    /// The CRDs are not there.
    #[error("the custom resource definitions are not installed: gatewaytrust crds | kubectl apply --server-side -f -")]
    NoCrds,
    /// The API server refuses.
    #[error(
        "the API server refuses to list {what}: {problem}. Does the operator's service account have its ClusterRole?"
    )]
    Refused {
        /// What was listed.
        what: &'static str,
        /// What it says.
        problem: String,
    },
}

/// Why one object could not be reconciled; tried again.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// A call to the API server failed.
    #[error(transparent)]
    Object(#[from] ObjectError),
}

/// What the two controllers share.
pub(crate) struct Context {
    client: Client,
    options: Options,
    watches: ClusterWatches,
    approvals: Store<DeviceApproval>,
    approvals_read: Ready,
    trusts: Store<GatewayTrust>,
    trusts_read: Ready,
    workers: Mutex<BTreeMap<ObjectKey, Worker>>,
    front: KubeFront,
    wake_approvals: mpsc::UnboundedSender<ObjectRef<DeviceApproval>>,
    backoffs: Mutex<BTreeMap<(&'static str, ObjectKey), ExponentialBackoff>>,
}

/// Whether all objects of a kind have been read once. `Store::wait_until_ready` is for one waiter only, which is the
/// controller itself: it remembers the last waker, and every other waiter sleeps for good.
#[derive(Clone)]
pub(crate) struct Ready(watch::Receiver<bool>);

impl Ready {
    /// Waits for it. `false`: nobody reads any more, the operator is ending.
    async fn wait(&self) -> bool {
        self.0.clone().wait_for(|ready| *ready).await.is_ok()
    }
}

/// A look at a watch's events, and what becomes true once they have brought every object.
fn first_read<K>() -> (Ready, impl FnMut(&watcher::Result<watcher::Event<K>>) + Send + 'static) {
    let (ready, seen) = watch::channel(false);
    let look = move |event: &watcher::Result<watcher::Event<K>>| {
        if matches!(event, Ok(watcher::Event::InitDone)) {
            ready.send_replace(true);
        }
    };
    (Ready(seen), look)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of an object.
pub(crate) fn key_of<K: kube::Resource>(object: &K) -> ObjectKey {
    ObjectKey::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// Runs the operator until the future ends.
///
/// # Errors
/// [`RunError`] where it cannot even start.
pub async fn run(client: Client, options: Options, stop: impl Future<Output = ()>) -> Result<(), RunError> {
    check_access::<GatewayTrust>(&client, "gatewaytrusts").await?;
    check_access::<DeviceApproval>(&client, "deviceapprovals").await?;

    let (approvals, approvals_writer) = reflector::store();
    let (wake_gateway, gateways_woken) = mpsc::unbounded_channel();
    let (wake_approvals, approvals_woken) = mpsc::unbounded_channel();
    let (approval_seen, approvals_seen) = mpsc::unbounded_channel();
    // Deletions wake the controller too: the approvals of a gateway that is gone have to be told.
    let (trusts, trusts_writer) = reflector::store();
    let (trusts_read, look) = first_read();
    let trusts_watch = watcher(Api::<GatewayTrust>::all(client.clone()), watcher::Config::default())
        .reflect(trusts_writer)
        .inspect(look)
        .touched_objects();
    let controller = Controller::for_stream(trusts_watch, trusts.clone());
    let (approvals_read, look) = first_read();
    let watches = ClusterWatches::new(client.clone());
    let front = KubeFront::new(client.clone(), options.clone(), trusts.clone(), approvals.clone()).await;
    let context = Arc::new(Context {
        client: client.clone(),
        options,
        watches,
        approvals: approvals.clone(),
        approvals_read,
        trusts,
        trusts_read,
        workers: Mutex::default(),
        front,
        wake_approvals,
        backoffs: Mutex::default(),
    });

    // One watch of approvals feeds the store first, then both controllers.
    let approvals_watch = watcher(Api::<DeviceApproval>::all(client), watcher::Config::default())
        .default_backoff()
        .reflect(approvals_writer)
        .inspect(look)
        .touched_objects()
        .for_each(move |event| {
            match event {
                Ok(approval) => {
                    let _ = wake_gateway.send(gateway_of(&approval));
                    let _ = approval_seen.send(Ok(approval));
                }
                Err(error) => tracing::warn!(error = %watches::problem(&error), "the watch of deviceapprovals was interrupted; it is resumed"),
            }
            std::future::ready(())
        });
    let gateways = controller
        .reconcile_on(stream(gateways_woken))
        .reconcile_all_on(context.watches.changes())
        .run(
            reconcile,
            |trust, _, context| context.retry("GatewayTrust", key_of(trust.as_ref())),
            context.clone(),
        )
        .for_each(|outcome| {
            if let Err(ControllerError::ObjectNotFound(reference)) = &outcome {
                let key = ObjectKey::new(reference.namespace.clone().unwrap_or_default(), reference.name.clone());
                context.forget(&key);
                context.wake_approvals_of(&key);
            }
            log_outcome(outcome);
            std::future::ready(())
        });
    let orphans = Controller::for_stream(stream(approvals_seen), approvals)
        .reconcile_on(stream(approvals_woken))
        .run(
            approvals::reconcile,
            |approval, _, context| context.retry("DeviceApproval", key_of(approval.as_ref())),
            context.clone(),
        )
        .for_each(|outcome| {
            log_outcome(outcome);
            std::future::ready(())
        });
    tracing::info!(version = env!("CARGO_PKG_VERSION"), "gatewaytrust is running");
    tokio::select! {
        () = approvals_watch => {}
        () = gateways => {}
        () = orphans => {}
        () = stop => tracing::info!("asked to stop"),
    }
    let workers = std::mem::take(&mut *lock(&context.workers));
    for worker in workers.into_values() {
        worker.stop().await;
    }
    Ok(())
}

fn stream<T: Send + 'static>(
    mut receiver: mpsc::UnboundedReceiver<T>,
) -> impl futures::Stream<Item = T> + Send + 'static {
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}

fn gateway_of(approval: &DeviceApproval) -> ObjectRef<GatewayTrust> {
    ObjectRef::new(&approval.spec.gateway_trust_ref.name).within(&approval.namespace().unwrap_or_default())
}

async fn check_access<K>(client: &Client, what: &'static str) -> Result<(), RunError>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    let list = Api::<K>::all(client.clone())
        .list(&ListParams::default().limit(1))
        .await;
    match list {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Err(RunError::NoCrds),
        Err(kube::Error::Api(status)) => Err(RunError::Refused {
            what,
            problem: status.reason.clone(),
        }),
        Err(error) => Err(RunError::Client(object::describe(&error))),
    }
}

fn log_outcome<K: kube::Resource, E: std::error::Error + 'static, Q: std::error::Error + 'static>(
    outcome: Result<(ObjectRef<K>, Action), ControllerError<E, Q>>,
) where
    ObjectRef<K>: std::fmt::Display,
{
    match outcome {
        Ok(_) | Err(ControllerError::ObjectNotFound(_)) => {}
        Err(error) => tracing::warn!(%error, "will be tried again"),
    }
}

async fn reconcile(trust: Arc<GatewayTrust>, context: Arc<Context>) -> Result<Action, ReconcileError> {
    let key = key_of(trust.as_ref());
    let mut requeue = Action::await_change();
    // Without all approvals it is not known which ones wait for this gateway.
    if !context.approvals_read.wait().await {
        return Ok(Action::requeue(Duration::from_secs(5)));
    }
    context.watches.want(context.wanted_watches());
    let deleting = trust.metadata.deletion_timestamp.is_some();
    if deleting && let Some(wait) = context.release_wait(&key, &trust) {
        if wait.is_zero() {
            context.forget(&key);
            object::remove_finalizer(&context.client, trust.as_ref(), FINALIZER).await?;
            context.succeeded("GatewayTrust", key);
            return Ok(Action::await_change());
        }
        requeue = Action::requeue(wait);
    }
    if !deleting {
        object::add_finalizer(&context.client, trust.as_ref(), FINALIZER).await?;
    }
    let desired = context.desired(&key, &trust);
    let is_new = {
        let mut workers = lock(&context.workers);
        match workers.get(&key) {
            Some(worker) => {
                worker.update(desired);
                false
            }
            None => {
                let settings = Settings {
                    namespaces: context.options.namespaces.clone(),
                };
                workers.insert(
                    key.clone(),
                    Worker::start(context.front.clone(), WebSocketConnector, settings, desired),
                );
                true
            }
        }
    };
    if is_new {
        context.wake_approvals_of(&key);
    }
    context.succeeded("GatewayTrust", key);
    Ok(requeue)
}

impl Context {
    /// When to try an object again: a back-off of its own, with jitter, which starts over with its next success.
    fn retry(&self, kind: &'static str, key: ObjectKey) -> Action {
        let mut backoffs = lock(&self.backoffs);
        let fresh = || {
            let builder = ExponentialBuilder::default().with_min_delay(Duration::from_millis(500));
            builder
                .with_max_delay(Duration::from_secs(60))
                .with_jitter()
                .without_max_times()
                .build()
        };
        let wait = backoffs.entry((kind, key)).or_insert_with(fresh).next();
        Action::requeue(wait.unwrap_or(Duration::from_secs(60)))
    }

    fn succeeded(&self, kind: &'static str, key: ObjectKey) {
        lock(&self.backoffs).remove(&(kind, key));
    }
    /// The approvals that refer to a gateway.
    fn approvals_of(&self, gateway: &ObjectKey) -> Vec<Arc<DeviceApproval>> {
        let mut approvals: Vec<_> = self
            .approvals
            .state()
            .into_iter()
            .filter(|approval| {
                approval.spec.gateway_trust_ref.name == gateway.name
                    && approval.metadata.namespace.as_deref() == Some(gateway.namespace.as_str())
            })
            .collect();
        approvals.sort_by_key(|approval| approval.name_any());
        approvals
    }

    fn wake_approvals_of(&self, gateway: &ObjectKey) {
        for approval in self.approvals_of(gateway) {
            let _ = self.wake_approvals.send(ObjectRef::from_obj(approval.as_ref()));
        }
    }

    /// Ends a gateway's worker.
    fn forget(&self, gateway: &ObjectKey) {
        if lock(&self.workers).remove(gateway).is_some() {
            tracing::info!(%gateway, "its GatewayTrust is gone: this gateway is left as it is");
        }
    }

    /// Whether the `GatewayTrust` exists.
    fn has_gateway(&self, gateway: &ObjectKey) -> bool {
        self.trusts
            .get(&ObjectRef::new(&gateway.name).within(&gateway.namespace))
            .is_some()
    }

    /// How long a `GatewayTrust` that is being deleted must stay; none while an approval that is being deleted
    /// still has to be revoked through it.
    fn release_wait(&self, gateway: &ObjectKey, trust: &GatewayTrust) -> Option<Duration> {
        let approvals = self.approvals_of(gateway);
        if approvals
            .iter()
            .any(|approval| approval.metadata.deletion_timestamp.is_some())
        {
            return None;
        }
        if !approvals
            .iter()
            .any(|approval| approval.finalizers().iter().any(|finalizer| finalizer == FINALIZER))
        {
            return Some(Duration::ZERO);
        }
        // `kubectl delete -f` and pruning delete one object after the other: the approvals may come in a moment.
        let since = trust
            .metadata
            .deletion_timestamp
            .as_ref()
            .map_or_else(Timestamp::now, |time| time.0);
        let passed = Duration::try_from(Timestamp::now().duration_since(since)).unwrap_or_default();
        Some(DELETED_TOGETHER.saturating_sub(passed))
    }

    fn desired(&self, key: &ObjectKey, trust: &GatewayTrust) -> Desired {
        let approvals = self.approvals_of(key).into_iter().map(|approval| {
            let deleting = approval.metadata.deletion_timestamp.is_some();
            let guarded = approval.finalizers().iter().any(|finalizer| finalizer == FINALIZER);
            let spec = if deleting {
                ValidatedApproval::parse_for_removal(&approval.spec)
            } else {
                ValidatedApproval::parse(&approval.spec)
            };
            let abandoned = approval.annotations().get(ABANDON).is_some_and(|value| value == "true");
            DesiredApproval {
                input: ApprovalInput {
                    key: key_of(approval.as_ref()),
                    spec,
                    deleting,
                    guarded,
                    abandoned,
                },
                generation: approval.metadata.generation,
                uid: approval.uid(),
            }
        });
        Desired {
            key: key.clone(),
            generation: trust.metadata.generation,
            spec: ValidatedTrust::parse(&trust.spec),
            deleting: trust.metadata.deletion_timestamp.is_some(),
            approvals: approvals.collect(),
            snapshot: self.watches.snapshot(),
        }
    }

    /// What has to be watched for the gateways that there are.
    fn wanted_watches(&self) -> BTreeSet<SourceKey> {
        let parsed = self
            .trusts
            .state()
            .into_iter()
            .filter_map(|trust| Some((key_of(trust.as_ref()), ValidatedTrust::parse(&trust.spec).ok()?)));
        parsed
            .flat_map(|(key, trust)| {
                sources(GatewayView {
                    key: &key,
                    trust: &trust,
                })
            })
            .collect()
    }
}
