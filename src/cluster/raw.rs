//! Minimal structs that API objects are decoded into, and their way into the snapshot's views. No IO.
//!
//! Every field is optional and unknown ones are skipped: an object of a newer or stranger API never fails as a whole.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Serialize};

use super::{
    BackendView, EndpointView, GatewayCredentialView, IngressClassView, IngressView, NamespaceView, OwnerView, PodView,
    ServiceView, SliceView,
};
use crate::api::ObjectKey;
use crate::cidr::canonical;

/// The environment variables from which a gateway takes its shared secret.
pub const CREDENTIAL_VARIABLES: [&str; 2] = ["OPENCLAW_GATEWAY_TOKEN", "OPENCLAW_GATEWAY_PASSWORD"];

macro_rules! raw {
    ($($(#[doc = $doc:literal])+ $name:ident { $($(#[$attribute:meta])* $field:ident: $type:ty,)* })+) => {
        $($(#[doc = $doc])+
        #[derive(Clone, Debug, Default, Deserialize, Serialize)]
        #[serde(rename_all = "camelCase", default)]
        #[allow(missing_docs)]
        pub struct $name { $($(#[$attribute])* pub $field: $type,)* })+
    };
}

raw! {
    /// A Service's spec.
    ServiceSpec { r#type: Option<String>, selector: BTreeMap<String, String>, ports: Vec<NamedPort>, }
    /// A port of a Service or a slice.
    NamedPort { name: Option<String>, port: Option<i32>, }
    /// An EndpointSlice (it has no spec).
    Slice { metadata: ObjectMeta, ports: Option<Vec<NamedPort>>, endpoints: Option<Vec<Endpoint>>, }
    /// An endpoint of a slice.
    Endpoint { addresses: Vec<String>, conditions: EndpointConditions, target_ref: Option<TargetReference>, }
    /// Whether an endpoint takes traffic.
    EndpointConditions { ready: Option<bool>, }
    /// The object behind an endpoint.
    TargetReference { kind: Option<String>, namespace: Option<String>, name: Option<String>, }
    /// An Ingress' spec.
    IngressSpec { ingress_class_name: Option<String>, default_backend: Option<Backend>, rules: Vec<Rule>, }
    /// A rule of an Ingress.
    Rule { http: Option<RulePaths>, }
    /// Its paths.
    RulePaths { paths: Vec<RulePath>, }
    /// One of them.
    RulePath { backend: Backend, }
    /// Where a path leads.
    Backend { service: Option<BackendService>, }
    /// A Service as a backend.
    BackendService { name: String, port: Option<BackendPort>, }
    /// Its port.
    BackendPort { name: Option<String>, number: Option<i32>, }
    /// An IngressClass' spec.
    IngressClassSpec { controller: Option<String>, }
    /// A pod's spec.
    PodSpec { host_network: Option<bool>, containers: Vec<Container>, }
    /// A container.
    Container { command: Vec<String>, args: Vec<String>, env: Vec<Variable>, ports: Vec<ContainerPort>, }
    /// A port of a container.
    ContainerPort { container_port: Option<i32>, }
    /// An environment variable.
    Variable { name: String, value_from: Option<VariableSource>, }
    /// Where its value comes from.
    VariableSource { secret_key_ref: Option<SecretKeyRef>, }
    /// A key of a Secret.
    SecretKeyRef { name: String, key: String, }
    /// A pod's status.
    PodStatus { phase: Option<String>, #[serde(rename = "podIP")] pod_ip: Option<String>, #[serde(rename = "podIPs")] pod_ips: Vec<PodAddress>, }
    /// One of its addresses.
    PodAddress { ip: Option<String>, }
}

/// The port that the gateway listens on by default.
const GATEWAY_PORT: i32 = 18789;

fn port_number(port: Option<i32>) -> Option<u16> {
    port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0)
}

fn ports(ports: Vec<NamedPort>) -> Vec<(Option<String>, u16)> {
    ports
        .into_iter()
        .filter_map(|port| Some((port.name.filter(|name| !name.is_empty()), port_number(port.port)?)))
        .collect()
}

fn address(text: &str) -> Option<IpAddr> {
    text.parse().ok().map(canonical)
}

impl From<ServiceSpec> for ServiceView {
    fn from(raw: ServiceSpec) -> Self {
        Self {
            external_name: raw.r#type.as_deref() == Some("ExternalName"),
            selector: raw.selector,
            ports: ports(raw.ports),
        }
    }
}

impl From<Slice> for SliceView {
    fn from(raw: Slice) -> Self {
        let service = raw
            .metadata
            .labels
            .unwrap_or_default()
            .remove("kubernetes.io/service-name")
            .unwrap_or_default();
        let endpoints = raw
            .endpoints
            .unwrap_or_default()
            .into_iter()
            .map(|endpoint| EndpointView {
                addresses: endpoint.addresses.iter().filter_map(|text| address(text)).collect(),
                // An absent condition means ready, says the API.
                ready: endpoint.conditions.ready.unwrap_or(true),
                pod: endpoint
                    .target_ref
                    .filter(|target| target.kind.as_deref() == Some("Pod"))
                    .and_then(|target| Some(ObjectKey::new(target.namespace?, target.name?))),
            });
        Self {
            service,
            ports: ports(raw.ports.unwrap_or_default()),
            endpoints: endpoints.collect(),
        }
    }
}

impl IngressView {
    /// From an Ingress' metadata and spec.
    pub fn new(metadata: &ObjectMeta, spec: IngressSpec) -> Self {
        let mut backends = Vec::new();
        let mut push = |backend: Backend, path: String| {
            if let Some(service) = backend.service {
                let port = service.port.unwrap_or_default();
                backends.push(BackendView {
                    service: service.name,
                    port_name: port.name,
                    port_number: port_number(port.number),
                    path,
                });
            }
        };
        if let Some(backend) = spec.default_backend {
            push(backend, "spec.defaultBackend".to_owned());
        }
        for (rule_index, rule) in spec.rules.into_iter().enumerate() {
            for (path_index, path) in rule.http.unwrap_or_default().paths.into_iter().enumerate() {
                push(
                    path.backend,
                    format!("spec.rules[{rule_index}].http.paths[{path_index}].backend"),
                );
            }
        }
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            class: spec.ingress_class_name,
            class_annotation: metadata
                .annotations
                .as_ref()
                .and_then(|all| all.get("kubernetes.io/ingress.class").cloned()),
            backends,
        }
    }
}

impl NamespaceView {
    /// From a Namespace's metadata.
    pub fn new(metadata: &ObjectMeta) -> Self {
        Self {
            labels: metadata.labels.clone().unwrap_or_default(),
            terminating: metadata.deletion_timestamp.is_some(),
        }
    }
}

impl IngressClassView {
    /// From an IngressClass' metadata and spec.
    pub fn new(metadata: &ObjectMeta, spec: IngressClassSpec) -> Self {
        let default = metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get("ingressclass.kubernetes.io/is-default-class"));
        Self {
            controller: spec.controller.unwrap_or_default(),
            default: default.is_some_and(|value| value == "true"),
        }
    }
}

impl PodView {
    /// From a pod's metadata, spec and status.
    pub fn new(metadata: &ObjectMeta, spec: PodSpec, status: PodStatus) -> Self {
        let finished = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let texts = status
            .pod_ips
            .into_iter()
            .filter_map(|entry| entry.ip)
            .chain(status.pod_ip);
        let mut addresses: Vec<IpAddr> = if finished {
            Vec::new()
        } else {
            texts.filter_map(|text| address(&text)).collect()
        };
        addresses.sort();
        addresses.dedup();
        let owner = metadata
            .owner_references
            .iter()
            .flatten()
            .find(|owner| owner.controller == Some(true));
        let credentials = spec.containers.iter().filter(|container| {
            container
                .ports
                .iter()
                .any(|port| port.container_port == Some(GATEWAY_PORT))
        });
        let gateway_credentials = credentials
            .flat_map(|container| &container.env)
            .filter(|variable| CREDENTIAL_VARIABLES.contains(&variable.name.as_str()))
            .filter_map(|variable| {
                let source = variable.value_from.as_ref()?.secret_key_ref.as_ref()?;
                Some(GatewayCredentialView {
                    variable: variable.name.clone(),
                    secret: source.name.clone(),
                    key: source.key.clone(),
                })
            })
            .collect();
        Self {
            uid: metadata.uid.clone().unwrap_or_default(),
            labels: metadata.labels.clone().unwrap_or_default(),
            owner: owner.map(|owner| OwnerView {
                kind: owner.kind.clone(),
                name: owner.name.clone(),
            }),
            addresses,
            host_network: spec.host_network.unwrap_or(false),
            arguments: spec
                .containers
                .into_iter()
                .flat_map(|container| container.command.into_iter().chain(container.args))
                .collect(),
            gateway_credentials,
        }
    }
}
