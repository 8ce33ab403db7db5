//! The snapshot: a typed, serialisable picture of what matters in the cluster. No IO.
//!
//! Watches fill it (`controller::watches`), and files can too ([`dump`]). Objects are decoded into the minimal structs of
//! [`raw`] and kept as the views below: nothing of a pod is held that no decision needs.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;

use crate::api::ObjectKey;

pub mod dump;
pub mod raw;

/// The kinds that are read from a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// `v1` Service.
    Service,
    /// `discovery.k8s.io/v1` EndpointSlice.
    EndpointSlice,
    /// `networking.k8s.io/v1` Ingress.
    Ingress,
    /// `networking.k8s.io/v1` IngressClass.
    IngressClass,
    /// `v1` Namespace.
    Namespace,
    /// `v1` Pod.
    Pod,
}

impl Kind {
    /// The kind with its plural as RBAC names it, for messages.
    pub const fn resource(self) -> &'static str {
        match self {
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices.discovery.k8s.io",
            Self::Ingress => "ingresses.networking.k8s.io",
            Self::IngressClass => "ingressclasses.networking.k8s.io",
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
        }
    }
}

/// A Service, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ServiceView {
    /// Whether it is an ExternalName.
    pub external_name: bool,
    /// Its pod selector.
    pub selector: BTreeMap<String, String>,
    /// Its ports: name, number.
    pub ports: Vec<(Option<String>, u16)>,
}

/// One endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EndpointView {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it takes traffic.
    pub ready: bool,
    /// The pod behind it, where it names one.
    pub pod: Option<ObjectKey>,
}

/// An EndpointSlice, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SliceView {
    /// The Service that it belongs to.
    pub service: String,
    /// Its ports: name, number.
    pub ports: Vec<(Option<String>, u16)>,
    /// Its endpoints.
    pub endpoints: Vec<EndpointView>,
}

/// One backend of an Ingress: a Service and its port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendView {
    /// The Service's name.
    pub service: String,
    /// The port by name.
    pub port_name: Option<String>,
    /// The port by number.
    pub port_number: Option<u16>,
    /// Where in the Ingress it stands.
    pub path: String,
}

/// An Ingress, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IngressView {
    /// Its uid.
    pub uid: String,
    /// `spec.ingressClassName`.
    pub class: Option<String>,
    /// The annotation `kubernetes.io/ingress.class`.
    pub class_annotation: Option<String>,
    /// Where it leads.
    pub backends: Vec<BackendView>,
}

/// An IngressClass, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct IngressClassView {
    /// `spec.controller`.
    pub controller: String,
    /// Whether it is the default class.
    pub default: bool,
}

/// A Namespace, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NamespaceView {
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it is being deleted.
    pub terminating: bool,
}

/// A workload that controls a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct OwnerView {
    /// Its kind; a Deployment's pods name their ReplicaSet here.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// A pod, as far as it matters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodView {
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its controlling owner.
    pub owner: Option<OwnerView>,
    /// Its addresses; none once it has finished.
    pub addresses: Vec<IpAddr>,
    /// Whether it uses its node's network.
    pub host_network: bool,
    /// The arguments of all its containers (command and args).
    pub arguments: Vec<String>,
    /// Secrets that feed `OPENCLAW_GATEWAY_TOKEN` or `..._PASSWORD` of a container that listens on a port.
    pub gateway_credentials: Vec<GatewayCredentialView>,
}

/// Where a gateway container's own credential comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayCredentialView {
    /// The environment variable's name.
    pub variable: String,
    /// The Secret.
    pub secret: String,
    /// The key in it.
    pub key: String,
}

/// One source: what is read together, and fails together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SourceKey {
    /// All Ingresses.
    Ingresses,
    /// All IngressClasses.
    IngressClasses,
    /// All Namespaces: their labels.
    Namespaces,
    /// One Service.
    Service(ObjectKey),
    /// The EndpointSlices of one Service.
    Slices(ObjectKey),
    /// Pods by selector, in one namespace or all.
    Pods(Option<String>, String),
}

impl SourceKey {
    /// The kind that is read.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Ingresses => Kind::Ingress,
            Self::IngressClasses => Kind::IngressClass,
            Self::Namespaces => Kind::Namespace,
            Self::Service(_) => Kind::Service,
            Self::Slices(_) => Kind::EndpointSlice,
            Self::Pods(..) => Kind::Pod,
        }
    }

    /// Where: a name, or a namespace and selector; empty for the whole cluster.
    pub fn scope(&self) -> String {
        match self {
            Self::Ingresses | Self::IngressClasses | Self::Namespaces => String::new(),
            Self::Service(key) | Self::Slices(key) => key.to_string(),
            Self::Pods(namespace, selector) => format!(
                "{}{selector}",
                namespace.as_ref().map(|name| format!("{name}: ")).unwrap_or_default()
            ),
        }
    }
}

/// Why a source is not as fresh as it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SourceFault {
    /// What went wrong, without any response body.
    pub problem: String,
    /// Whether it merely was not read yet: nothing is written before it was, once.
    pub starting: bool,
}

/// What matters in the cluster at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Services.
    #[serde(serialize_with = "by_name")]
    pub services: BTreeMap<ObjectKey, ServiceView>,
    /// EndpointSlices.
    #[serde(serialize_with = "by_name")]
    pub slices: BTreeMap<ObjectKey, SliceView>,
    /// Ingresses.
    #[serde(serialize_with = "by_name")]
    pub ingresses: BTreeMap<ObjectKey, IngressView>,
    /// Ingress classes, by name.
    pub ingress_classes: BTreeMap<String, IngressClassView>,
    /// Namespaces.
    pub namespaces: BTreeMap<String, NamespaceView>,
    /// Pods that some selector in use takes.
    #[serde(serialize_with = "by_name")]
    pub pods: BTreeMap<ObjectKey, PodView>,
    /// Sources that could not be read, or not yet.
    #[serde(skip)]
    pub faults: BTreeMap<SourceKey, SourceFault>,
    /// Whether there is a cluster at all: `sync` has none.
    pub exists: bool,
}

impl Serialize for ObjectKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn by_name<S: serde::Serializer, V: Serialize>(map: &BTreeMap<ObjectKey, V>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(map.iter().map(|(key, value)| (key.to_string(), value)))
}

impl Snapshot {
    /// The picture where there is no cluster.
    pub fn none() -> Self {
        Self::default()
    }

    /// The slices of a Service.
    pub fn slices_of<'a>(&'a self, service: &'a ObjectKey) -> impl Iterator<Item = &'a SliceView> {
        self.slices
            .iter()
            .filter(move |(key, slice)| key.namespace == service.namespace && slice.service == service.name)
            .map(|(_, slice)| slice)
    }
}
