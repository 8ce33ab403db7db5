//! A real etcd and kube-apiserver with RBAC. There is no controller-manager: what controllers would make (service
//! accounts, EndpointSlices, the end of a deleted namespace) a test writes itself, or does without.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::process::{Finished, Process, free_port, run, scratch};
use super::{note_once, paths, wait};

/// In group `system:masters`.
pub const ADMIN: &str = "admin";
/// Without a group: what it may do is what the operator's own RBAC rules give it.
pub const OPERATOR: &str = "gatewaytrust-operator";
/// Without a group or a rule.
pub const VIEWER: &str = "viewer";

const USERS: [(&str, &str); 3] = [(ADMIN, "system:masters"), (OPERATOR, ""), (VIEWER, "")];

static SHARED: OnceCell<ControlPlane> = OnceCell::const_new();

pub struct ControlPlane {
    apiserver: Option<Process>,
    etcd: Process,
    etcd_port: u16,
    port: u16,
    dir: TempDir,
}

impl ControlPlane {
    /// The one that tests share, each in a namespace of its own (`namespace`).
    pub async fn shared() -> &'static Self {
        SHARED.get_or_init(Self::start).await
    }

    /// One of a test's own, for tests that stop it or that change what is not in a namespace.
    pub async fn start() -> Self {
        let dir = scratch("control-plane");
        let etcd_port = free_port();
        let client = format!("http://127.0.0.1:{etcd_port}");
        let peer = format!("http://127.0.0.1:{}", etcd_port + 1);
        let mut command = Command::new(paths::etcd());
        command
            // Nothing here must survive a power cut, and fsync is what makes a test slow.
            .args(["--unsafe-no-fsync", "--name=default", "--log-level=warn"])
            .arg(format!("--data-dir={}", dir.path().join("etcd").display()))
            .arg(format!("--listen-client-urls={client}"))
            .arg(format!("--advertise-client-urls={client}"))
            .arg(format!("--listen-peer-urls={peer}"))
            .arg(format!("--initial-advertise-peer-urls={peer}"))
            .arg(format!("--initial-cluster=default={peer}"));
        let etcd = Process::start("etcd", &mut command, &dir.path().join("etcd.log"));
        let mut plane = Self {
            apiserver: None,
            etcd,
            etcd_port,
            port: free_port(),
            dir,
        };
        plane.write_credentials().await;
        plane.start_apiserver().await;
        note_once(&format!(
            "real {} + {} (RBAC): started",
            version(paths::kube_apiserver()),
            version(paths::etcd())
        ));
        plane
    }

    /// Starts the API server on the data, address and certificate it had before.
    pub async fn start_apiserver(&mut self) {
        assert!(self.apiserver.is_none(), "the API server runs already");
        let dir = self.dir.path();
        let key = dir.join("service-accounts.key");
        let mut command = Command::new(paths::kube_apiserver());
        command
            .arg(format!(
                "--etcd-servers=http://127.0.0.1:{}",
                self.etcd_port
            ))
            .arg(format!("--secure-port={}", self.port))
            .args(["--bind-address=127.0.0.1", "--advertise-address=127.0.0.1"])
            // Loopback is no address for the `kubernetes` endpoints: it would only fill the log.
            .args([
                "--endpoint-reconciler-type=none",
                "--service-cluster-ip-range=10.0.0.0/24",
            ])
            .args([
                "--authorization-mode=RBAC",
                "--disable-admission-plugins=ServiceAccount",
            ])
            .arg("--service-account-issuer=https://kubernetes.default.svc")
            .arg(format!("--service-account-key-file={}", key.display()))
            .arg(format!(
                "--service-account-signing-key-file={}",
                key.display()
            ))
            .arg(format!(
                "--token-auth-file={}",
                dir.join("tokens.csv").display()
            ))
            .arg(format!("--cert-dir={}", dir.join("certificates").display()));
        let mut apiserver = Process::start("kube-apiserver", &mut command, &dir.join("kube-apiserver.log"));
        let etcd = &mut self.etcd;
        let config = dir.join(format!("{ADMIN}.kubeconfig"));
        let ready = wait::until("/readyz of the API server", Duration::from_secs(120), async || {
            etcd.check_running()?;
            apiserver.check_running()?;
            let client = client(config.clone()).await?;
            let request = http::Request::get("/readyz").body(vec![]).map_err(|e| e.to_string())?;
            client.request_text(request).await.map_err(|e| e.to_string())
        });
        ready.await;
        self.apiserver = Some(apiserver);
    }

    /// Ends the API server at once (SIGKILL): watches break off without a goodbye.
    pub fn stop_apiserver(&mut self) {
        self.apiserver = None;
    }

    /// `https://127.0.0.1:port`
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    pub fn kubeconfig(&self, user: &str) -> PathBuf {
        let file = self.dir.path().join(format!("{user}.kubeconfig"));
        assert!(file.exists(), "no such user: {user}");
        file
    }

    /// A client of its own for each test: a client's worker lives in the runtime of the test that made it.
    pub async fn client(&self, user: &str) -> kube::Client {
        client(self.kubeconfig(user)).await.expect("a client")
    }

    pub async fn kubectl(&self, user: &str, args: &[&str], stdin: Option<&str>) -> Finished {
        let mut command = Command::new(paths::kubectl());
        command
            .args(args)
            .env("KUBECONFIG", self.kubeconfig(user))
            .env("HOME", self.dir.path())
            .env("KUBECACHEDIR", self.dir.path().join("kubectl-cache"));
        run(command, stdin).await
    }

    /// Applies manifests (YAML or JSON) as admin.
    #[track_caller]
    pub fn apply(&self, manifests: &str) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let out = self.kubectl(ADMIN, &["apply", "-f", "-"], Some(manifests)).await;
            assert!(out.status.success(), "kubectl apply ({caller}): {}", out.stderr);
            out.stdout
        }
    }

    /// A new namespace whose name begins so. It stays: without a controller-manager none can be deleted.
    pub async fn namespace(&self, prefix: &str) -> String {
        let manifest =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": format!("{prefix}-")}});
        let args = ["create", "-f", "-", "-o", "jsonpath={.metadata.name}"];
        self.kubectl(ADMIN, &args, Some(&manifest.to_string())).await.ok()
    }

    pub fn apiserver_log(&self) -> String {
        super::process::read_log(&self.dir.path().join("kube-apiserver.log"))
    }

    async fn write_credentials(&self) {
        let dir = self.dir.path();
        let mut openssl = Command::new("openssl");
        openssl
            .args(["genrsa", "-out"])
            .arg(dir.join("service-accounts.key"))
            .arg("2048");
        run(openssl, None).await.ok();
        let mut tokens = String::new();
        for (user, group) in USERS {
            let token = format!("token-of-{user}");
            tokens.push_str(&format!("{token},{user},{user},\"{group}\"\n"));
            let config = json!({
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
                "users": [{"name": user, "user": {"token": token}}],
                "clusters": [{"name": "test", "cluster": {
                    "server": self.url(),
                    // The API server makes it on its first start, and puts its own CA into the same file.
                    "certificate-authority": dir.join("certificates/apiserver.crt"),
                }}],
            });
            std::fs::write(dir.join(format!("{user}.kubeconfig")), config.to_string()).expect("writing a kubeconfig");
        }
        std::fs::write(dir.join("tokens.csv"), tokens).expect("writing the tokens");
    }
}

async fn client(kubeconfig: PathBuf) -> Result<kube::Client, String> {
    let read = kube::config::Kubeconfig::read_from(kubeconfig).map_err(|e| e.to_string())?;
    let config = kube::Config::from_custom_kubeconfig(read, &kube::config::KubeConfigOptions::default())
        .await
        .map_err(|e| e.to_string())?;
    kube::Client::try_from(config).map_err(|e| e.to_string())
}

fn version(program: PathBuf) -> String {
    let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let out = Command::new(program)
        .arg("--version")
        .output()
        .expect("asking for a version");
    let text = String::from_utf8_lossy(&out.stdout);
    let number = text
        .lines()
        .next()
        .and_then(|line| line.split_whitespace().last())
        .unwrap_or("?");
    format!("{name} {number}")
}
