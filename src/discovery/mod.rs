//! Snapshot and spec -> the addresses from which proxies reach the gateway, each with its evidence. Pure.
//!
//! What is trusted is the exact set of addresses of identified layer-7 proxies: a /32 or /128 a pod. Everything that
//! looked like one and is not trusted is named, with the reason and what to write.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Serialize;

use crate::api::gateway_trust::{Discover, Withheld};
use crate::api::validated::{Target, ValidatedTrust};
use crate::api::{ObjectKey, PROXIES_FOR};
use crate::cidr::{Prefix, PrefixSet};
use crate::cluster::{PodView, Snapshot, SourceKey};

pub mod class;
pub mod ingress_nginx;
pub mod routes;

#[cfg(test)]
mod tests;

/// What speaks for an address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Evidence {
    /// Kind of the object.
    pub kind: String,
    /// Its namespace.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// What was read from it.
    pub path: String,
}

impl Evidence {
    fn new(kind: &str, key: &ObjectKey, uid: &str, path: impl Into<String>) -> Self {
        Self {
            kind: kind.to_owned(),
            namespace: key.namespace.clone(),
            name: key.name.clone(),
            uid: uid.to_owned(),
            path: path.into(),
        }
    }
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (self.namespace.is_empty(), self.name.is_empty()) {
            (_, true) => write!(f, "{}: {}", self.kind, self.path),
            (true, _) => write!(f, "{} {} {}", self.kind, self.name, self.path),
            (false, _) => write!(f, "{} {}/{} {}", self.kind, self.namespace, self.name, self.path),
        }
    }
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Discovery {
    /// Prefixes to trust, each with the chains of evidence that lead to it.
    pub trusted: PrefixSet<Vec<Evidence>>,
    /// Candidates that are not trusted.
    pub withheld: BTreeSet<Withheld>,
    /// Why the result may be incomplete: sources that could not be read. Not empty = keep the last good set.
    pub faults: Vec<String>,
    /// Whether something could not be told apart: nothing that was trusted before is taken away on that.
    pub doubt: bool,
    /// Whether some source was not read yet, not even once.
    pub starting: bool,
}

impl Discovery {
    fn withhold(&mut self, candidate: impl Into<String>, reason: &str, hint: impl Into<String>) {
        self.withheld.insert(Withheld {
            candidate: candidate.into(),
            reason: reason.to_owned(),
            hint: hint.into(),
        });
    }
}

/// Which namespaces proxies may live in besides their controllers' usual ones (`--proxy-namespaces`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespacePolicy {
    /// All namespaces (`*`).
    pub all: bool,
    /// These.
    pub allowed: BTreeSet<String>,
}

impl NamespacePolicy {
    /// From the values of `--proxy-namespaces`.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a str>) -> Self {
        let allowed: BTreeSet<String> = values
            .into_iter()
            .map(str::trim)
            .filter(|value| !value.is_empty())
            .map(str::to_owned)
            .collect();
        Self {
            all: allowed.contains("*"),
            allowed,
        }
    }

    /// Whether pods of this namespace may be proxies of a gateway in the other one: by the operator's settings, or
    /// by the namespace owner's consent.
    fn allows(&self, snapshot: &Snapshot, namespace: &str, gateway_namespace: &str) -> bool {
        let consent = snapshot
            .namespaces
            .get(namespace)
            .and_then(|view| view.labels.get(PROXIES_FOR));
        self.all
            || self.allowed.contains(namespace)
            || consent.is_some_and(|value| value == gateway_namespace || value == "any")
    }
}

/// The address families in which the gateway itself can be reached; both where that is not known.
fn families(snapshot: &Snapshot, gateway: &GatewayView<'_>) -> (bool, bool) {
    let addresses: Vec<IpAddr> = gateway.addresses(snapshot);
    if addresses.is_empty() {
        return (true, true);
    }
    (
        addresses.iter().any(IpAddr::is_ipv4),
        addresses.iter().any(IpAddr::is_ipv6),
    )
}

/// The gateway, as discovery looks at it.
#[derive(Clone, Copy, Debug)]
pub struct GatewayView<'a> {
    /// The `GatewayTrust`.
    pub key: &'a ObjectKey,
    /// Its spec.
    pub trust: &'a ValidatedTrust,
}

impl GatewayView<'_> {
    fn service(&self) -> Option<ObjectKey> {
        match &self.trust.target {
            Target::Service { name, .. } => Some(ObjectKey::new(&self.key.namespace, name)),
            Target::Url(_) => None,
        }
    }

    fn addresses(&self, snapshot: &Snapshot) -> Vec<IpAddr> {
        let Some(service) = self.service() else {
            return Vec::new();
        };
        snapshot
            .slices_of(&service)
            .flat_map(|slice| &slice.endpoints)
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
            .collect()
    }
}

/// What has to be read of the cluster for one gateway.
pub fn sources(gateway: GatewayView<'_>) -> BTreeSet<SourceKey> {
    let GatewayView { key, trust } = gateway;
    let mut wanted = BTreeSet::from([SourceKey::Namespaces]);
    if let Target::Service { name, .. } = &trust.target {
        let service = ObjectKey::new(&key.namespace, name);
        wanted.insert(SourceKey::Service(service.clone()));
        wanted.insert(SourceKey::Slices(service));
        if trust.discover == Discover::Auto {
            wanted.extend([SourceKey::Ingresses, SourceKey::IngressClasses]);
            let labels = ingress_nginx::LABELS
                .map(|(key, value)| format!("{key}={value}"))
                .join(",");
            wanted.insert(SourceKey::Pods(None, labels));
        }
    }
    for named in &trust.named {
        let namespace = named.namespace.clone().unwrap_or_else(|| key.namespace.clone());
        wanted.insert(SourceKey::Pods(Some(namespace), named.selector.to_query()));
    }
    wanted
}

/// Everything that may be trusted for this gateway, and what was left out.
pub fn discover(snapshot: &Snapshot, gateway: GatewayView<'_>, policy: &NamespacePolicy) -> Discovery {
    let mut found = Discovery::default();
    declared_ranges(snapshot, gateway, &mut found);
    named_proxies(snapshot, gateway, policy, &mut found);
    if gateway.trust.discover == Discover::Auto && gateway.service().is_some() {
        routes::follow(snapshot, gateway, policy, &mut found);
    }
    if snapshot.exists {
        for source in sources(gateway) {
            match snapshot.faults.get(&source) {
                Some(fault) if fault.starting => found.starting = true,
                Some(fault) => {
                    let scope = source.scope();
                    let scope = if scope.is_empty() { scope } else { format!(" ({scope})") };
                    found
                        .faults
                        .push(format!("{}{scope}: {}", source.kind().resource(), fault.problem));
                }
                None => {}
            }
        }
    }
    found
}

fn declared_ranges(snapshot: &Snapshot, gateway: GatewayView<'_>, found: &mut Discovery) {
    let own = gateway.addresses(snapshot);
    for range in &gateway.trust.ranges {
        match &range.prefix {
            Err(refusal) => found.withhold(&range.written, refusal.reason(), refusal.to_string()),
            Ok(prefix) => match own.iter().find(|address| prefix.contains(**address)) {
                Some(address) => found.withhold(
                    &range.written,
                    "HoldsClients",
                    format!("the gateway itself is at {address}: clients beside it would be refused (403). List the proxies' own addresses in spec.proxies.ranges instead"),
                ),
                None => {
                    let evidence = Evidence { kind: "Range".into(), namespace: String::new(), name: String::new(), uid: String::new(), path: range.reason.clone() };
                    found.trusted.insert(*prefix, vec![evidence]);
                }
            },
        }
    }
}

fn named_proxies(snapshot: &Snapshot, gateway: GatewayView<'_>, policy: &NamespacePolicy, found: &mut Discovery) {
    for named in &gateway.trust.named {
        if !snapshot.exists {
            found.withhold(
                format!("named {}", named.name),
                "NeedsHint",
                "pods can be found only in a cluster: list the proxy's addresses in spec.proxies.ranges",
            );
            continue;
        }
        let own_namespace = &gateway.key.namespace;
        let namespace = named.namespace.as_ref().unwrap_or(own_namespace);
        if namespace != own_namespace && !policy.allows(snapshot, namespace, own_namespace) {
            found.withhold(
                format!("named {}", named.name),
                "ForeignNamespace",
                foreign_hint(namespace, own_namespace),
            );
            continue;
        }
        let selected = snapshot
            .pods
            .iter()
            .filter(|(key, pod)| &key.namespace == namespace && named.selector.matches(&pod.labels));
        if selected.clone().next().is_none() {
            found.withhold(
                format!("named {}", named.name),
                "NoPodMatches",
                format!(
                    "no pod of namespace {namespace} has these labels: kubectl get pods -n {namespace} -l '{}'",
                    named.selector.to_query()
                ),
            );
        }
        for (key, pod) in selected {
            let chain = vec![Evidence::new(
                "Named",
                &ObjectKey::new("", &named.name),
                "",
                "spec.proxies.named",
            )];
            trust_pod(snapshot, gateway, (key, pod), chain, found);
        }
    }
}

fn foreign_hint(namespace: &str, gateway_namespace: &str) -> String {
    format!(
        "the owner of namespace {namespace} has to consent: kubectl label namespace {namespace} {PROXIES_FOR}={gateway_namespace}"
    )
}

/// Adds a pod's addresses, with the chain of evidence that led to it, in the gateway's own address families.
fn trust_pod(
    snapshot: &Snapshot,
    gateway: GatewayView<'_>,
    (key, pod): (&ObjectKey, &PodView),
    chain: Vec<Evidence>,
    found: &mut Discovery,
) {
    let (ipv4, ipv6) = families(snapshot, &gateway);
    for address in &pod.addresses {
        if pod.host_network {
            found.withhold(
                format!("Pod {key} {address}"),
                "AmbiguousPeer",
                "the pod uses its node's network, so every other process of that node has the same address. Run the proxy with an address of its own, or list the address in spec.proxies.ranges with a reason",
            );
            continue;
        }
        let wanted = if address.is_ipv4() { ipv4 } else { ipv6 };
        if !wanted {
            found.withhold(
                format!("Pod {key} {address}"),
                "WrongFamily",
                "the gateway has no address of this family, so it never sees this one; nothing to do",
            );
            continue;
        }
        match Prefix::host(*address) {
            Err(refusal) => found.withhold(format!("Pod {key} {address}"), refusal.reason(), refusal.to_string()),
            Ok(prefix) => {
                let mut chain = chain.clone();
                chain.push(Evidence::new("Pod", key, &pod.uid, "status.podIPs"));
                found.trusted.insert(prefix, chain);
            }
        }
    }
}
