//! ingress-nginx: the pods that really serve a class, by their arguments and owners, never by labels alone. Pure.
//!
//! Flags and their defaults are those of the controller's own command line (`--controller-class`,
//! `--ingress-class`, `--ingress-class-by-name`, `--watch-namespace`, `--watch-ingress-without-class`).

use std::collections::{BTreeMap, BTreeSet};

use super::class::Class;
use super::{Discovery, Evidence, GatewayView, NamespacePolicy, foreign_hint, trust_pod};
use crate::api::ObjectKey;
use crate::cluster::{PodView, Snapshot};

/// The controller's own name for itself.
const CONTROLLER: &str = "k8s.io/ingress-nginx";
/// The namespace of the published manifests.
const USUAL_NAMESPACE: &str = "ingress-nginx";
/// The labels of the published manifests' data plane: what is watched.
pub const LABELS: [(&str, &str); 2] = [
    ("app.kubernetes.io/name", "ingress-nginx"),
    ("app.kubernetes.io/component", "controller"),
];

/// Whether an IngressClass with this controller is served by ingress-nginx under its default name.
pub fn may_serve(controller: &str) -> bool {
    controller == CONTROLLER
}

/// The value of `--name=value` or `--name value`; the last one wins, as in the controller's own flag parser.
fn flag<'a>(arguments: &'a [String], name: &str) -> Option<&'a str> {
    let mut value = None;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(body) = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-')) else {
            continue;
        };
        if let Some(after) = body.strip_prefix(name) {
            if let Some(given) = after.strip_prefix('=') {
                value = Some(given);
            } else if after.is_empty() {
                value = rest
                    .as_slice()
                    .first()
                    .map(String::as_str)
                    .filter(|next| !next.starts_with('-'))
                    .or(Some("true"));
            }
        }
    }
    value
}

fn is_data_plane(pod: &PodView) -> bool {
    LABELS
        .iter()
        .all(|(key, value)| pod.labels.get(*key).is_some_and(|found| found == value))
}

/// Whether this pod's arguments make it serve Ingresses of this class in this namespace.
fn serves(pod: &PodView, class: &Class, namespace: &str) -> bool {
    let watched = flag(&pod.arguments, "watch-namespace").filter(|value| !value.is_empty());
    if watched.is_some_and(|watched| watched != namespace) {
        return false;
    }
    let own_class = flag(&pod.arguments, "controller-class").unwrap_or(CONTROLLER);
    let own_name = flag(&pod.arguments, "ingress-class").unwrap_or("nginx");
    let by_name = flag(&pod.arguments, "ingress-class-by-name") == Some("true");
    if class.by_annotation {
        return class.name == own_name;
    }
    class.controller.as_deref() == Some(own_class) || (by_name && class.name == own_name)
}

/// Whether some ingress-nginx pod takes this class under a controller name of its own (`--controller-class`), as
/// people set it who run an internal and an external one.
pub fn some_pod_claims(snapshot: &Snapshot, class: &Class, namespace: &str) -> bool {
    class.controller.is_some()
        && snapshot
            .pods
            .values()
            .any(|pod| is_data_plane(pod) && serves(pod, class, namespace))
}

/// The workload that a pod belongs to. All ReplicaSets of one Deployment are one workload: their names are the
/// Deployment's with the pod template's hash behind.
fn workload(key: &ObjectKey, pod: &PodView) -> Option<String> {
    let owner = pod.owner.as_ref()?;
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = pod.labels.get("pod-template-hash")?;
            let deployment = owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?;
            Some(format!("Deployment {}/{deployment}", key.namespace))
        }
        "DaemonSet" | "StatefulSet" => Some(format!("{} {}/{}", owner.kind, key.namespace, owner.name)),
        _ => None,
    }
}

/// Trusts the pods that serve this class for Ingresses of the gateway's namespace.
pub fn trust(
    snapshot: &Snapshot,
    gateway: GatewayView<'_>,
    policy: &NamespacePolicy,
    (ingress, class): (&ObjectKey, &Class),
    chain: &[Evidence],
    found: &mut Discovery,
) {
    let own_namespace = &gateway.key.namespace;
    let mut serving: BTreeMap<String, Vec<(&ObjectKey, &PodView)>> = BTreeMap::new();
    let mut foreign = BTreeSet::new();
    for (key, pod) in snapshot.pods.iter().filter(|(_, pod)| is_data_plane(pod)) {
        if key.namespace != USUAL_NAMESPACE && !policy.allows(snapshot, &key.namespace, own_namespace) {
            if serves(pod, class, own_namespace) {
                foreign.insert(key.namespace.clone());
            }
            continue;
        }
        if !serves(pod, class, own_namespace) {
            continue;
        }
        match workload(key, pod) {
            Some(workload) => serving.entry(workload).or_default().push((key, pod)),
            None => found.withhold(
                format!("Pod {key}"),
                "NotTheController",
                "it has the labels and arguments of ingress-nginx, but no Deployment, DaemonSet or StatefulSet owns it; name it in spec.proxies.named if it is a proxy all the same",
            ),
        }
    }
    if serving.is_empty() {
        let (reason, hint) = match foreign.first() {
            Some(namespace) => ("ForeignNamespace", foreign_hint(namespace, own_namespace)),
            None => (
                "NotTheController",
                format!(
                    "no running ingress-nginx pod serves ingress class {}: is the controller running, and does its --controller-class agree with the class? kubectl get pods -A -l app.kubernetes.io/name=ingress-nginx",
                    class.name
                ),
            ),
        };
        found.withhold(format!("Ingress {ingress}"), reason, hint);
        return;
    }
    if serving.len() > 1 {
        found.doubt = true;
        let names = serving.keys().cloned().collect::<Vec<_>>().join(", ");
        found.withhold(
            format!("Ingress {ingress}"),
            "AmbiguousController",
            format!("each of these could serve ingress class {}: {names}. Give each an IngressClass and --controller-class of its own, or set discover: None and name the right one in spec.proxies.named", class.name),
        );
        return;
    }
    for pods in serving.into_values() {
        for pod in pods {
            trust_pod(snapshot, gateway, pod, chain.to_vec(), found);
        }
    }
}
