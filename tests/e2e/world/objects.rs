//! What a cluster's controllers and kubelets would make, made by hand: there are none here.

use std::net::Ipv4Addr;

use serde_json::{Value, json};

use super::Cluster;
use crate::harness::control_plane::ADMIN;

/// A gateway's Service, by `spec.gateway.service`.
pub const SERVICE: &str = "openclaw";

/// The smallest spec for a gateway of the cluster: its token is found on its pod.
pub fn service_spec() -> Value {
    json!({"gateway": {"service": {"name": SERVICE, "port": "gateway"}}})
}

impl Cluster {
    /// A gateway with its Secret, Service, pod and endpoint; the pod's address and the port are where it listens.
    pub async fn gateway_objects(&self, token: &str, address: Ipv4Addr, port: u16) {
        self.secret("openclaw-secrets", "OPENCLAW_GATEWAY_TOKEN", token, None)
            .await;
        self.service(json!({"selector": {"app": "openclaw"}, "ports": [{"name": "gateway", "port": 18789}]}))
            .await;
        self.gateway_pod("openclaw-0", address).await;
        self.endpoints(&[("openclaw-0", address)], port).await;
    }

    pub async fn service(&self, spec: Value) {
        let metadata = json!({"name": SERVICE, "namespace": self.namespace});
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
        self.plane.apply(&service.to_string()).await;
    }

    /// A gateway's pod, as `openclaw`'s own manifests make it.
    pub async fn gateway_pod(&self, name: &str, address: Ipv4Addr) {
        let source = json!({"secretKeyRef": {"name": "openclaw-secrets", "key": "OPENCLAW_GATEWAY_TOKEN"}});
        let pod = json!({
            "metadata": {"name": name, "labels": {"app": "openclaw"}},
            "spec": {"containers": [{
                "name": "gateway", "image": "openclaw",
                "ports": [{"containerPort": 18789}],
                "env": [{"name": "OPENCLAW_GATEWAY_TOKEN", "valueFrom": source}],
            }]},
        });
        self.pod(&self.namespace, pod, address).await;
    }

    /// A pod that runs, with this address.
    pub async fn pod(&self, namespace: &str, mut pod: Value, address: Ipv4Addr) {
        pod["apiVersion"] = json!("v1");
        pod["kind"] = json!("Pod");
        pod["metadata"]["namespace"] = json!(namespace);
        self.plane.apply(&pod.to_string()).await;
        let name = pod["metadata"]["name"].as_str().expect("a name");
        let address = address.to_string();
        let status = json!({"status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}}).to_string();
        let args = [
            "patch",
            "pod",
            name,
            "-n",
            namespace,
            "--subresource=status",
            "--type=merge",
            "-p",
            &status,
        ];
        self.plane.kubectl(ADMIN, &args, None).await.ok();
    }

    /// The Service's ready endpoints.
    pub async fn endpoints(&self, pods: &[(&str, Ipv4Addr)], port: u16) {
        let endpoints = pods.iter().map(|(pod, address)| {
            let target = json!({"kind": "Pod", "name": pod, "namespace": self.namespace});
            json!({"addresses": [address.to_string()], "conditions": {"ready": true}, "targetRef": target})
        });
        self.slice(endpoints.collect(), port).await;
    }

    pub async fn slice(&self, endpoints: Vec<Value>, port: u16) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": "openclaw-1", "namespace": self.namespace,
                "labels": {"kubernetes.io/service-name": SERVICE},
            },
            "addressType": "IPv4",
            "ports": [{"name": "gateway", "port": port}],
            "endpoints": endpoints,
        });
        self.plane.apply(&slice.to_string()).await;
    }

    /// ingress-nginx as its own manifests install it, its controller's pod at this address, and an Ingress of this
    /// namespace that leads to the gateway.
    pub async fn ingress_nginx(&self, address: Ipv4Addr) {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "ingress-nginx"}});
        self.plane.apply(&namespace.to_string()).await;
        let hash = "7d9f8c6b54";
        let pod = json!({
            "metadata": {
                "name": format!("ingress-nginx-controller-{hash}-x2x4z"),
                "labels": {
                    "app.kubernetes.io/name": "ingress-nginx",
                    "app.kubernetes.io/component": "controller",
                    "pod-template-hash": hash,
                },
                "ownerReferences": [{
                    "apiVersion": "apps/v1", "kind": "ReplicaSet", "controller": true,
                    "name": format!("ingress-nginx-controller-{hash}"),
                    "uid": "6f1ab0a0-0000-4000-8000-000000000001",
                }],
            },
            "spec": {"containers": [{
                "name": "controller", "image": "registry.k8s.io/ingress-nginx/controller",
                "args": ["/nginx-ingress-controller", "--controller-class=k8s.io/ingress-nginx", "--ingress-class=nginx"],
            }]},
        });
        self.pod("ingress-nginx", pod, address).await;
        let class = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
            "metadata": {"name": "nginx"}, "spec": {"controller": "k8s.io/ingress-nginx"},
        });
        self.plane.apply(&class.to_string()).await;
        let backend = json!({"service": {"name": SERVICE, "port": {"name": "gateway"}}});
        let path = json!({"path": "/", "pathType": "Prefix", "backend": backend});
        let ingress = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "Ingress",
            "metadata": {"name": "claw", "namespace": self.namespace},
            "spec": {
                "ingressClassName": "nginx",
                "rules": [{"host": "claw.example", "http": {"paths": [path]}}],
            },
        });
        self.plane.apply(&ingress.to_string()).await;
    }
}
