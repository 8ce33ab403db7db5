//! From the gateway's Service to the class of every Ingress that leads there. Pure.

use super::class::Class;
use super::{Discovery, Evidence, GatewayView, NamespacePolicy, ingress_nginx};
use crate::api::ObjectKey;
use crate::api::validated::{PortReference, Target};
use crate::cluster::{BackendView, IngressView, Snapshot};

/// Follows every Ingress of the gateway's namespace that has the gateway's Service as a backend.
pub fn follow(snapshot: &Snapshot, gateway: GatewayView<'_>, policy: &NamespacePolicy, found: &mut Discovery) {
    for (key, ingress) in &snapshot.ingresses {
        if key.namespace != gateway.key.namespace {
            continue;
        }
        let Some(backend) = ingress
            .backends
            .iter()
            .find(|backend| leads_to(snapshot, gateway, backend))
        else {
            continue;
        };
        let chain = vec![
            Evidence::new(
                "Service",
                &ObjectKey::new(&key.namespace, &backend.service),
                "",
                "metadata.name",
            ),
            Evidence::new("Ingress", key, &ingress.uid, &backend.path),
        ];
        follow_class(snapshot, gateway, policy, (key, ingress), chain, found);
    }
}

fn leads_to(snapshot: &Snapshot, gateway: GatewayView<'_>, backend: &BackendView) -> bool {
    let Target::Service { name, port, .. } = &gateway.trust.target else {
        return false;
    };
    if &backend.service != name {
        return false;
    }
    let service = ObjectKey::new(&gateway.key.namespace, name);
    let ports = snapshot
        .services
        .get(&service)
        .map(|service| service.ports.as_slice())
        .unwrap_or_default();
    let wanted = match port {
        None => return true,
        Some(PortReference::Number(number)) => Some(*number),
        Some(PortReference::Name(name)) => ports
            .iter()
            .find(|(known, _)| known.as_ref() == Some(name))
            .map(|(_, number)| *number),
    };
    let asked = backend.port_number.or_else(|| {
        let name = backend.port_name.as_ref()?;
        ports
            .iter()
            .find(|(known, _)| known.as_ref() == Some(name))
            .map(|(_, number)| *number)
    });
    // Where a name cannot be resolved the route may lead here: following it errs towards naming a proxy whose
    // clients would otherwise all be refused.
    wanted.zip(asked).is_none_or(|(wanted, asked)| wanted == asked)
}

fn follow_class(
    snapshot: &Snapshot,
    gateway: GatewayView<'_>,
    policy: &NamespacePolicy,
    (key, ingress): (&ObjectKey, &IngressView),
    mut chain: Vec<Evidence>,
    found: &mut Discovery,
) {
    let Some(class) = Class::of(snapshot, ingress) else {
        found.withhold(
            format!("Ingress {key}"),
            "NeedsHint",
            "it names no ingress class and no class is the default: set spec.ingressClassName, or name the proxy in spec.proxies.named",
        );
        return;
    };
    chain.push(Evidence::new(
        "IngressClass",
        &ObjectKey::new("", &class.name),
        "",
        "spec.controller",
    ));
    let is_nginx = class
        .controller
        .as_deref()
        .map_or(class.by_annotation && class.name == "nginx", ingress_nginx::may_serve);
    if is_nginx || ingress_nginx::some_pod_claims(snapshot, &class, &key.namespace) {
        ingress_nginx::trust(snapshot, gateway, policy, (key, &class), &chain, found);
        return;
    }
    let hint = match &class.controller {
        Some(controller) => format!(
            "controller {controller:?} of ingress class {} is not known to this version: name its pods in spec.proxies.named",
            class.name
        ),
        None => format!(
            "ingress class {} does not exist: create it, or name the proxy's pods in spec.proxies.named",
            class.name
        ),
    };
    found.withhold(format!("Ingress {key}"), "UnknownController", hint);
}
