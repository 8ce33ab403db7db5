//! Watches of what matters in the cluster, kept as a snapshot. Only what the gateways at hand need is watched:
//! pods by selector, endpoint slices and Services by name, never all pods.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use futures::{Stream, StreamExt as _};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{Ingress, IngressClass};
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::{Object, PartialObjectMeta};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::key_of;
use super::object::describe;
use crate::api::ObjectKey;
use crate::cluster::{
    IngressClassView, IngressView, NamespaceView, PodView, ServiceView, SliceView, Snapshot, SourceFault, SourceKey,
    raw,
};

/// One object of a source.
#[derive(Clone, Debug, PartialEq)]
enum View {
    Service(ServiceView),
    Slice(SliceView),
    Ingress(IngressView),
    IngressClass(IngressClassView),
    Namespace(NamespaceView),
    Pod(Box<PodView>),
}

#[derive(Debug, Default)]
struct Source {
    objects: BTreeMap<ObjectKey, View>,
    synced: bool,
    fault: Option<String>,
}

#[derive(Debug, Default)]
struct Sources {
    sources: BTreeMap<SourceKey, Source>,
    tasks: BTreeMap<SourceKey, AbortHandle>,
    snapshot: Arc<Snapshot>,
}

/// The watches, and the snapshot that they fill.
#[derive(Clone)]
pub struct ClusterWatches {
    client: Client,
    state: Arc<Mutex<Sources>>,
    changed: watch::Sender<u64>,
}

/// Longest wait before an interrupted watch is started anew.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

fn backoff() -> ExponentialBackoff {
    let builder = ExponentialBuilder::default().with_min_delay(Duration::from_millis(500));
    builder
        .with_max_delay(LONGEST_WAIT)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Changes that come together lead to one snapshot.
const SETTLE: Duration = Duration::from_millis(100);

impl ClusterWatches {
    /// No watch yet.
    pub fn new(client: Client) -> Self {
        Self {
            client,
            state: Arc::default(),
            changed: watch::channel(0).0,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sources> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cluster as it was seen last.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.lock().snapshot.clone()
    }

    /// Something for each (settled) change of the snapshot.
    pub fn changes(&self) -> impl Stream<Item = ()> + Send + 'static + use<> {
        let receiver = self.changed.subscribe();
        futures::stream::unfold(receiver, |mut receiver| async move {
            receiver.changed().await.ok()?;
            tokio::time::sleep(SETTLE).await;
            receiver.borrow_and_update();
            Some(((), receiver))
        })
    }

    /// Watches these, and nothing else.
    pub fn want(&self, wanted: BTreeSet<SourceKey>) {
        let mut state = self.lock();
        let gone: Vec<SourceKey> = state
            .tasks
            .keys()
            .filter(|key| !wanted.contains(key))
            .cloned()
            .collect();
        let mut differs = !gone.is_empty();
        for key in gone {
            if let Some(task) = state.tasks.remove(&key) {
                task.abort();
            }
            state.sources.remove(&key);
        }
        for key in wanted {
            if !state.tasks.contains_key(&key) {
                differs = true;
                state.sources.insert(key.clone(), Source::default());
                let task = tokio::spawn(self.clone().follow(key.clone()));
                state.tasks.insert(key, task.abort_handle());
            }
        }
        if differs {
            state.rebuild();
            drop(state);
            self.changed.send_modify(|count| *count += 1);
        }
    }

    async fn follow(self, key: SourceKey) {
        let client = self.client.clone();
        match key.clone() {
            SourceKey::Ingresses => {
                type Raw = Object<Option<raw::IngressSpec>, serde_json::Value>;
                let api: Api<Raw> = Api::all_with(client, &ApiResource::erase::<Ingress>(&()));
                self.drain(key, api, watcher::Config::default(), |o| {
                    View::Ingress(IngressView::new(&o.metadata, o.spec.unwrap_or_default()))
                })
                .await;
            }
            SourceKey::IngressClasses => {
                type Raw = Object<Option<raw::IngressClassSpec>, serde_json::Value>;
                let api: Api<Raw> = Api::all_with(client, &ApiResource::erase::<IngressClass>(&()));
                self.drain(key, api, watcher::Config::default(), |o| {
                    View::IngressClass(IngressClassView::new(&o.metadata, o.spec.unwrap_or_default()))
                })
                .await;
            }
            SourceKey::Namespaces => {
                let api: Api<PartialObjectMeta<Namespace>> = Api::all(client);
                self.drain(key, api, watcher::Config::default(), |o| {
                    View::Namespace(NamespaceView::new(&o.metadata))
                })
                .await;
            }
            SourceKey::Service(service) => {
                type Raw = Object<Option<raw::ServiceSpec>, serde_json::Value>;
                let api: Api<Raw> =
                    Api::namespaced_with(client, &service.namespace, &ApiResource::erase::<Service>(&()));
                let config = watcher::Config::default().fields(&format!("metadata.name={}", service.name));
                self.drain(key, api, config, |o| View::Service(o.spec.unwrap_or_default().into()))
                    .await;
            }
            SourceKey::Slices(service) => {
                let api: Api<DynamicObject> =
                    Api::namespaced_with(client, &service.namespace, &ApiResource::erase::<EndpointSlice>(&()));
                let config = watcher::Config::default().labels(&format!("kubernetes.io/service-name={}", service.name));
                self.drain(key, api, config, |o| {
                    let metadata = o.metadata.clone();
                    let slice: raw::Slice = serde_json::from_value(o.data).unwrap_or_default();
                    View::Slice(raw::Slice { metadata, ..slice }.into())
                })
                .await;
            }
            SourceKey::Pods(namespace, selector) => {
                type Raw = Object<Option<raw::PodSpec>, raw::PodStatus>;
                let resource = ApiResource::erase::<Pod>(&());
                let api: Api<Raw> = match &namespace {
                    Some(namespace) => Api::namespaced_with(client, namespace, &resource),
                    None => Api::all_with(client, &resource),
                };
                let config = watcher::Config::default().labels(&selector);
                self.drain(key, api, config, |o| {
                    View::Pod(Box::new(PodView::new(
                        &o.metadata,
                        o.spec.unwrap_or_default(),
                        o.status.unwrap_or_default(),
                    )))
                })
                .await;
            }
        }
    }

    async fn drain<K>(self, key: SourceKey, api: Api<K>, config: watcher::Config, view: impl Fn(K) -> View)
    where
        K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
        K::DynamicType: Clone,
    {
        let mut waits = backoff();
        loop {
            let mut fresh = BTreeMap::new();
            let mut events = watcher(api.clone(), config.clone()).boxed();
            while let Some(event) = events.next().await {
                let news = match event {
                    Ok(Event::Init) => {
                        fresh.clear();
                        false
                    }
                    Ok(Event::InitApply(object)) => {
                        fresh.insert(key_of(&object), view(object));
                        false
                    }
                    Ok(Event::InitDone) => {
                        waits = backoff();
                        let objects = std::mem::take(&mut fresh);
                        self.update(&key, |source| {
                            let news = !source.synced || source.fault.is_some() || source.objects != objects;
                            source.objects = objects;
                            source.synced = true;
                            source.fault = None;
                            news
                        })
                    }
                    Ok(Event::Apply(object)) => {
                        let name = key_of(&object);
                        let object = view(object);
                        self.update(&key, |source| {
                            source.objects.insert(name, object.clone()) != Some(object)
                        })
                    }
                    Ok(Event::Delete(object)) => {
                        self.update(&key, |source| source.objects.remove(&key_of(&object)).is_some())
                    }
                    Err(error) => {
                        let problem = problem(&error);
                        tracing::warn!(source = key.kind().resource(), scope = %key.scope(), %problem, "a watch was interrupted; what it knew is kept");
                        let news = self.update(&key, |source| source.fault.replace(problem.clone()) != Some(problem));
                        if news {
                            self.changed.send_modify(|count| *count += 1);
                        }
                        break;
                    }
                };
                if news {
                    self.changed.send_modify(|count| *count += 1);
                }
            }
            // A watch that merely went on would not tell that all is well again: a new one lists everything first.
            tokio::time::sleep(waits.next().unwrap_or(LONGEST_WAIT)).await;
        }
    }

    fn update(&self, key: &SourceKey, change: impl FnOnce(&mut Source) -> bool) -> bool {
        let mut state = self.lock();
        let news = state.sources.get_mut(key).is_some_and(change);
        if news {
            state.rebuild();
        }
        news
    }
}

/// What interrupted a watch, without the body of any answer.
pub(super) fn problem(error: &watcher::Error) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => describe(error),
        watcher::Error::WatchError(status) => format!("{} (HTTP {})", status.reason, status.code),
        watcher::Error::NoResourceVersion => "the API server names no resource version".to_owned(),
    }
}

impl Sources {
    fn rebuild(&mut self) {
        let mut snapshot = Snapshot {
            exists: true,
            ..Snapshot::default()
        };
        for (key, source) in &self.sources {
            match (&source.fault, source.synced) {
                (Some(problem), _) => {
                    snapshot.faults.insert(
                        key.clone(),
                        SourceFault {
                            problem: problem.clone(),
                            starting: false,
                        },
                    );
                }
                (None, false) => {
                    snapshot.faults.insert(
                        key.clone(),
                        SourceFault {
                            problem: "not read yet".to_owned(),
                            starting: true,
                        },
                    );
                }
                (None, true) => {}
            }
            for (name, object) in &source.objects {
                let name = name.clone();
                match object.clone() {
                    View::Service(view) => drop(snapshot.services.insert(name, view)),
                    View::Slice(view) => drop(snapshot.slices.insert(name, view)),
                    View::Ingress(view) => drop(snapshot.ingresses.insert(name, view)),
                    View::IngressClass(view) => drop(snapshot.ingress_classes.insert(name.name, view)),
                    View::Namespace(view) => drop(snapshot.namespaces.insert(name.name, view)),
                    View::Pod(view) => drop(snapshot.pods.insert(name, *view)),
                }
            }
        }
        self.snapshot = Arc::new(snapshot);
    }
}
