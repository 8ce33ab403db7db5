//! Through `gatewaytrust run` on the real API server, with the rights of `deploy/rbac.yaml` and no others.

use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

use super::{Of, Runner, TRUST};
use crate::harness::control_plane::{ADMIN, ControlPlane, OPERATOR};
use crate::harness::process::Finished;
use crate::harness::{Operator, wait};

const API: &str = "gatewaytrust.io/v1alpha1";

static RUNNER: OnceCell<Arc<Mutex<Runner>>> = OnceCell::const_new();

pub enum Plane {
    Shared(&'static ControlPlane),
    Own(Arc<ControlPlane>),
}

impl Deref for Plane {
    type Target = ControlPlane;

    fn deref(&self) -> &ControlPlane {
        match self {
            Self::Shared(plane) => plane,
            Self::Own(plane) => plane,
        }
    }
}

pub struct Cluster {
    pub plane: Plane,
    pub namespace: String,
    client: kube::Client,
}

/// A file of the repository.
pub fn repository_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Installs the CRDs and the operator's rights, as an administrator does.
async fn install(plane: &ControlPlane) {
    plane.apply(&repository_file("crds/gatewaytrust.io.yaml")).await;
    plane.apply(&repository_file("deploy/rbac.yaml")).await;
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding",
        "metadata": {"name": "the-operator-under-test"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "gatewaytrust"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": OPERATOR}],
    });
    plane.apply(&binding.to_string()).await;
    let established = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"];
    plane.kubectl(ADMIN, &established, None).await.ok();
    // Rights become effective a moment after the binding is stored.
    wait::until("the operator's rights", Duration::from_secs(20), async || {
        let may = ["auth", "can-i", "list", "gatewaytrusts.gatewaytrust.io", "-A"];
        plane.kubectl(OPERATOR, &may, None).await.status.success()
    })
    .await;
}

fn run(plane: &ControlPlane) -> Runner {
    let kubeconfig = plane.kubeconfig(OPERATOR);
    Runner::new(move || Operator::run(&kubeconfig, &["--allow-insecure-gateway-urls"]))
}

impl Cluster {
    /// The shared control plane, and the operator that serves all its namespaces.
    pub async fn shared(namespace: Option<&str>) -> (Self, Arc<Mutex<Runner>>) {
        let plane = Self::installed().await;
        let start = async || Arc::new(Mutex::new(run(plane)));
        let runner = RUNNER.get_or_init(start).await.clone();
        (Self::on(Plane::Shared(plane), namespace).await, runner)
    }

    /// The shared control plane with the CRDs.
    pub async fn installed() -> &'static ControlPlane {
        static INSTALLED: OnceCell<()> = OnceCell::const_new();
        let plane = ControlPlane::shared().await;
        INSTALLED.get_or_init(async || install(plane).await).await;
        plane
    }

    pub async fn own() -> (Self, Runner) {
        let plane = Arc::new(ControlPlane::start().await);
        install(&plane).await;
        let runner = run(&plane);
        (Self::on(Plane::Own(plane), None).await, runner)
    }

    async fn on(plane: Plane, namespace: Option<&str>) -> Self {
        let namespace = match namespace {
            Some(namespace) => namespace.to_owned(),
            None => plane.namespace("e2e").await,
        };
        let client = plane.client(ADMIN).await;
        Self {
            plane,
            namespace,
            client,
        }
    }

    /// A manifest of one of our objects.
    pub fn manifest(&self, kind: &str, name: &str, spec: Value) -> String {
        let metadata = json!({"name": name, "namespace": self.namespace});
        json!({"apiVersion": API, "kind": kind, "metadata": metadata, "spec": spec}).to_string()
    }

    pub async fn apply(&self, kind: &str, name: &str, spec: Value) {
        self.plane.apply(&self.manifest(kind, name, spec)).await;
    }

    /// `kubectl apply` that may be refused.
    pub async fn try_apply(&self, kind: &str, name: &str, spec: Value) -> Finished {
        let manifest = self.manifest(kind, name, spec);
        self.plane.kubectl(ADMIN, &["apply", "-f", "-"], Some(&manifest)).await
    }

    /// kubectl as admin, in the test's namespace.
    pub async fn kubectl(&self, args: &[&str]) -> Finished {
        let mut all = vec!["-n", self.namespace.as_str()];
        all.extend_from_slice(args);
        self.plane.kubectl(ADMIN, &all, None).await
    }

    /// The kubeconfig of an administrator.
    pub fn kubeconfig(&self) -> String {
        self.plane.kubeconfig(ADMIN).display().to_string()
    }

    pub async fn delete(&self, name: &str, wait: bool) -> Finished {
        let wait = format!("--wait={wait}");
        self.kubectl(&["delete", "deviceapproval", name, &wait]).await
    }

    /// A Secret with one key, and the origin that it consents to.
    pub async fn secret(&self, name: &str, key: &str, value: &str, consent: Option<&str>) {
        let mut manifest = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": self.namespace},
            "stringData": {key: value},
        });
        if let Some(origin) = consent {
            manifest["metadata"]["annotations"] = json!({"gatewaytrust.io/allow-endpoint": origin});
        }
        self.plane.apply(&manifest.to_string()).await;
    }

    async fn get(&self, path: &str) -> Value {
        let request = http::Request::get(path).body(vec![]).expect("a request");
        match self.client.request::<Value>(request).await {
            Ok(value) => value,
            Err(kube::Error::Api(status)) if status.code == 404 => Value::Null,
            Err(error) => panic!("GET {path}: {error}"),
        }
    }

    /// The whole object; null where it does not exist.
    pub async fn object(&self, of: Of<'_>) -> Value {
        let (plural, name) = match of {
            Of::Gateway => ("gatewaytrusts", TRUST),
            Of::Approval(name) => ("deviceapprovals", name),
        };
        self.get(&format!("/apis/{API}/namespaces/{}/{plural}/{name}", self.namespace))
            .await
    }

    pub async fn events(&self) -> Value {
        let path = format!("/apis/events.k8s.io/v1/namespaces/{}/events", self.namespace);
        self.get(&path).await["items"].take()
    }

    pub async fn everything_shown(&self) -> String {
        let kinds = "gatewaytrusts,deviceapprovals,events";
        let objects = self
            .kubectl(&["get", kinds, "-o", "yaml", "--show-managed-fields"])
            .await;
        let described = self.kubectl(&["describe", "gatewaytrusts,deviceapprovals"]).await;
        objects.ok() + &described.ok()
    }

    /// The operator's private key; none where it has not made one.
    pub async fn device_key(&self) -> Option<String> {
        let path = format!("/api/v1/namespaces/{}/secrets/{TRUST}-gatewaytrust", self.namespace);
        let secret = self.get(&path).await;
        let key = secret["data"]["device.key"].as_str()?;
        let bytes = base64::engine::general_purpose::STANDARD.decode(key).expect("base64");
        Some(String::from_utf8(bytes).expect("text"))
    }
}
