use super::*;
use crate::api::validated::ValidatedTrust;
use crate::cluster::dump::Dump;

/// A gateway behind a Service, its Ingress of class `nginx`, and ingress-nginx with two pods, as its published
/// manifests make them.
const CLUSTER: &str = "
{apiVersion: v1, kind: Service, metadata: {namespace: claw, name: gateway}, spec: {selector: {app: openclaw}, ports: [{name: gateway, port: 18789}, {name: other, port: 9}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {namespace: claw, name: gateway-1, labels: {kubernetes.io/service-name: gateway}}
ports: [{name: gateway, port: 18789}]
endpoints: [{addresses: [10.244.3.3], targetRef: {kind: Pod, namespace: claw, name: openclaw-0}}]
---
{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: nginx}, spec: {controller: k8s.io/ingress-nginx}}
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {namespace: claw, name: web, uid: u-1}
spec:
  ingressClassName: nginx
  rules: [{host: claw.example, http: {paths: [{path: /, backend: {service: {name: gateway, port: {name: gateway}}}}]}}]
---
{apiVersion: v1, kind: Namespace, metadata: {name: edge, labels: {gatewaytrust.io/proxies-for: claw}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: evil}}
";

fn nginx(namespace: &str, name: &str, address: &str, owner: &str, arguments: &str) -> String {
    let owner = match owner {
        "" => String::new(),
        owner => format!(
            "ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: {owner}-7d4f, uid: r, controller: true}}],"
        ),
    };
    format!(
        "
---
apiVersion: v1
kind: Pod
metadata: {{namespace: {namespace}, name: {name}, uid: u-{name}, {owner} labels: {{app.kubernetes.io/name: ingress-nginx, app.kubernetes.io/component: controller, pod-template-hash: 7d4f}}}}
spec: {{containers: [{{args: [/nginx-ingress-controller, {arguments}]}}]}}
status: {{phase: Running, podIPs: [{{ip: {address}}}]}}
"
    )
}

fn run_with(spec: &str, extra: &str, policy: &NamespacePolicy) -> Discovery {
    let mut dump = Dump::default();
    dump.add("cluster", &format!("{CLUSTER}{extra}")).expect("cluster");
    let spec =
        serde_json::from_value(crate::cluster::dump::documents("spec", spec).expect("yaml").remove(0)).expect("spec");
    let trust = ValidatedTrust::parse(&spec).expect("valid");
    let key = ObjectKey::new("claw", "openclaw");
    discover(
        &dump.snapshot,
        GatewayView {
            key: &key,
            trust: &trust,
        },
        policy,
    )
}

const BY_SERVICE: &str = "gateway: {service: {name: gateway, port: gateway}}";

fn run(extra: &str) -> Discovery {
    run_with(BY_SERVICE, extra, &NamespacePolicy::default())
}

fn trusted(found: &Discovery) -> Vec<String> {
    found.trusted.prefixes().iter().map(ToString::to_string).collect()
}

fn reasons(found: &Discovery) -> Vec<&str> {
    found.withheld.iter().map(|entry| entry.reason.as_str()).collect()
}

const DEFAULT: &str = "--election-id=x";

#[test]
fn every_pod_of_the_controller_that_serves_the_class_is_trusted_with_its_evidence() {
    let pods = nginx("ingress-nginx", "a", "10.244.1.5", "controller", DEFAULT)
        + &nginx("ingress-nginx", "b", "10.244.2.7", "controller", DEFAULT);
    let found = run(&pods);
    assert_eq!(trusted(&found), ["10.244.1.5/32", "10.244.2.7/32"]);
    assert!(found.withheld.is_empty(), "{:?}", found.withheld);
    let (_, chains) = found.trusted.iter().next().expect("one");
    let chain = crate::engine::report::chain(chains.first().expect("evidence"));
    insta::assert_snapshot!(chain, @"Service claw/gateway metadata.name <- Ingress claw/web spec.rules[0].http.paths[0].backend <- IngressClass nginx spec.controller <- Pod ingress-nginx/a status.podIPs");
}

#[test]
fn labels_alone_prove_nothing() {
    let real = nginx("ingress-nginx", "a", "10.244.1.5", "controller", DEFAULT);
    // A bare pod with the labels, one in a namespace that nobody allowed, one that serves another class, and one
    // that watches another namespace.
    let decoys = [
        (
            nginx("ingress-nginx", "bare", "10.244.9.1", "", DEFAULT),
            vec!["NotTheController"],
        ),
        (nginx("evil", "foreign", "10.244.9.2", "controller", DEFAULT), vec![]),
        (
            nginx(
                "ingress-nginx",
                "other",
                "10.244.9.3",
                "internal",
                "--controller-class=k8s.io/internal-nginx",
            ),
            vec![],
        ),
        (
            nginx(
                "ingress-nginx",
                "elsewhere",
                "10.244.9.4",
                "elsewhere",
                "--watch-namespace=apps",
            ),
            vec![],
        ),
    ];
    for (decoy, withheld) in decoys {
        let found = run(&format!("{real}{decoy}"));
        assert_eq!(trusted(&found), ["10.244.1.5/32"], "{decoy}");
        assert_eq!(reasons(&found), withheld, "{decoy}");
    }
}

#[test]
fn two_controllers_for_one_class_are_ambiguous() {
    let pods = nginx("ingress-nginx", "a", "10.244.1.5", "internal", DEFAULT)
        + &nginx("ingress-nginx", "b", "10.244.1.6", "external", DEFAULT);
    let found = run(&pods);
    assert_eq!(
        (trusted(&found), reasons(&found)),
        (vec![], vec!["AmbiguousController"])
    );
    let hint = &found.withheld.first().expect("one").hint;
    assert!(
        hint.contains("Deployment ingress-nginx/external, Deployment ingress-nginx/internal"),
        "{hint}"
    );
}

#[test]
fn a_class_with_a_controller_name_of_its_own_is_followed() {
    let class = "
---
{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: nginx}, spec: {controller: k8s.io/external}}
";
    let pods = nginx("ingress-nginx", "a", "10.244.1.5", "internal", DEFAULT)
        + &nginx(
            "ingress-nginx",
            "b",
            "10.244.1.6",
            "external",
            "--controller-class=k8s.io/external",
        );
    assert_eq!(trusted(&run(&format!("{class}{pods}"))), ["10.244.1.6/32"]);
}

#[test]
fn namespaces_count_by_consent_or_by_the_operators_settings() {
    let consenting = nginx("edge", "a", "10.244.1.5", "controller", DEFAULT);
    assert_eq!(trusted(&run(&consenting)), ["10.244.1.5/32"]);
    let foreign = nginx("evil", "a", "10.244.1.5", "controller", DEFAULT);
    let found = run(&foreign);
    assert_eq!((trusted(&found), reasons(&found)), (vec![], vec!["ForeignNamespace"]));
    assert_eq!(
        found.withheld.first().expect("one").hint,
        "the owner of namespace evil has to consent: kubectl label namespace evil gatewaytrust.io/proxies-for=claw"
    );
    for allowed in ["evil", "*"] {
        assert_eq!(
            trusted(&run_with(BY_SERVICE, &foreign, &NamespacePolicy::new([allowed]))),
            ["10.244.1.5/32"]
        );
    }
}

#[test]
fn an_unknown_controller_or_class_is_said() {
    let class = |controller: &str| {
        format!(
            "\n---\n{{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {{name: nginx}}, spec: {{controller: {controller}}}}}\n"
        )
    };
    let found = run(&class("example.com/own"));
    assert_eq!((trusted(&found), reasons(&found)), (vec![], vec!["UnknownController"]));
    let found = run("");
    assert_eq!(
        reasons(&found),
        ["NotTheController"],
        "the class is known, but no pod serves it"
    );
}

#[test]
fn only_routes_to_this_port_count() {
    let pods = nginx("ingress-nginx", "a", "10.244.1.5", "controller", DEFAULT);
    assert!(
        trusted(&run_with(
            "gateway: {service: {name: gateway, port: other}}",
            &pods,
            &NamespacePolicy::default()
        ))
        .is_empty()
    );
    assert!(
        trusted(&run_with(
            "gateway: {service: {name: gateway, port: 9}}",
            &pods,
            &NamespacePolicy::default()
        ))
        .is_empty()
    );
    assert_eq!(
        trusted(&run_with(
            "gateway: {service: {name: gateway, port: 18789}}",
            &pods,
            &NamespacePolicy::default()
        )),
        ["10.244.1.5/32"]
    );
    assert!(
        trusted(&run_with(
            "{gateway: {service: {name: gateway}}, proxies: {discover: None}}",
            &pods,
            &NamespacePolicy::default()
        ))
        .is_empty()
    );
}

#[test]
fn the_old_annotation_and_the_default_class_count() {
    let ingress = |metadata: &str| {
        format!(
            "
---
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{namespace: claw, name: web, {metadata}}}
spec: {{defaultBackend: {{service: {{name: gateway, port: {{number: 18789}}}}}}}}
"
        )
    };
    let pods = nginx("ingress-nginx", "a", "10.244.1.5", "controller", DEFAULT);
    let annotated = ingress("annotations: {kubernetes.io/ingress.class: nginx}");
    assert_eq!(trusted(&run(&format!("{annotated}{pods}"))), ["10.244.1.5/32"]);
    let classless = ingress("");
    let found = run(&format!("{classless}{pods}"));
    assert_eq!((trusted(&found), reasons(&found)), (vec![], vec!["NeedsHint"]));
    let default = "
---
{apiVersion: networking.k8s.io/v1, kind: IngressClass, metadata: {name: nginx, annotations: {ingressclass.kubernetes.io/is-default-class: 'true'}}, spec: {controller: k8s.io/ingress-nginx}}
";
    assert_eq!(trusted(&run(&format!("{classless}{default}{pods}"))), ["10.244.1.5/32"]);
}

#[test]
fn addresses_that_others_share_or_the_gateway_never_sees_are_withheld() {
    let host = nginx("ingress-nginx", "a", "10.1.0.4", "controller", DEFAULT)
        .replace("spec: {containers", "spec: {hostNetwork: true, containers");
    let found = run(&host);
    assert_eq!((trusted(&found), reasons(&found)), (vec![], vec!["AmbiguousPeer"]));
    let dual = nginx("ingress-nginx", "a", "10.1.2.3}, {ip: 'fd00::3'", "controller", DEFAULT);
    let found = run(&dual);
    assert_eq!(
        (trusted(&found), reasons(&found)),
        (vec!["10.1.2.3/32".to_owned()], vec!["WrongFamily"])
    );
    let finished = nginx("ingress-nginx", "a", "10.1.2.3", "controller", DEFAULT).replace("Running", "Failed");
    assert!(
        trusted(&run(&finished)).is_empty(),
        "a pod that has ended has no address"
    );
}

#[test]
fn named_pods_and_ranges_are_a_persons_word_within_limits() {
    let tunnel = "
---
{apiVersion: v1, kind: Pod, metadata: {namespace: edge, name: tunnel, labels: {app: cloudflared}}, status: {podIP: 10.244.5.5}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: evil, name: tunnel, labels: {app: cloudflared}}, status: {podIP: 10.244.6.6}}
";
    let spec = "
gateway: {service: {name: gateway}}
proxies:
  named:
  - {name: tunnel, namespace: edge, podSelector: {matchLabels: {app: cloudflared}}}
  - {name: decoy, namespace: evil, podSelector: {matchLabels: {app: cloudflared}}}
  ranges:
  - {cidr: 130.211.0.0/22, reason: Google front ends}
  - {cidr: 10.244.3.0/24, reason: oops}
  - {cidr: 10.0.0.0/8, reason: everything}
  discover: None
";
    let found = run_with(spec, tunnel, &NamespacePolicy::default());
    assert_eq!(trusted(&found), ["10.244.5.5/32", "130.211.0.0/22"]);
    assert_eq!(reasons(&found), ["TooWide", "HoldsClients", "ForeignNamespace"]);
}

#[test]
fn without_a_cluster_named_pods_need_a_hint() {
    let spec = serde_json::json!({"gateway": {"url": "https://gateway.example/"}, "proxies": {"named": [{"name": "t", "podSelector": {"matchLabels": {"a": "b"}}}]}});
    let trust = ValidatedTrust::parse(&serde_json::from_value(spec).expect("spec")).expect("valid");
    let key = ObjectKey::new("default", "g");
    let found = discover(
        &Snapshot::none(),
        GatewayView {
            key: &key,
            trust: &trust,
        },
        &NamespacePolicy::default(),
    );
    assert_eq!(reasons(&found), ["NeedsHint"]);
}
