//! The real gateway, with a state folder of its own, and a look into it from outside.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::device::{ConnectOptions, ConnectOutcome, Device, DeviceConn, DeviceIdentity};
use super::process::{Process, free_port, read_log, scratch};
use super::{note_once, paths, wait};

/// A loaded machine needs it: a start takes 2 to 22 s.
const START: Duration = Duration::from_secs(90);

pub struct Builder {
    port: Option<u16>,
    token: String,
    admin_rpc: bool,
    config: Value,
}

impl Builder {
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    pub fn token(mut self, token: &str) -> Self {
        self.token = token.to_owned();
        self
    }

    /// Turns the admin HTTP RPC plugin on.
    pub fn admin_rpc(mut self, on: bool) -> Self {
        self.admin_rpc = on;
        self
    }

    /// Merged into the configuration, key by key; arrays and scalars replace.
    pub fn config(mut self, extra: Value) -> Self {
        merge(&mut self.config, extra);
        self
    }

    /// Starts it and waits until it answers.
    pub async fn start(self) -> Gateway {
        let dir = scratch("gateway");
        let port = self.port.unwrap_or_else(free_port);
        let mut config = json!({
            "gateway": {
                "mode": "local",
                "bind": "lan",
                "port": port,
                "auth": {"mode": "token", "token": self.token},
            },
            // Else all gateways of a machine share one file.
            "logging": {"file": dir.path().join("gateway.jsonl")},
        });
        if self.admin_rpc {
            config["plugins"]["entries"]["admin-http-rpc"]["enabled"] = json!(true);
        }
        merge(&mut config, self.config);
        let mut gateway = Gateway {
            process: None,
            observer: DeviceIdentity::generate(),
            port,
            token: self.token,
            initial: config,
            dir,
        };
        gateway.write_config();
        gateway.start().await;
        gateway
    }
}

pub struct Gateway {
    process: Option<Process>,
    observer: DeviceIdentity,
    port: u16,
    token: String,
    initial: Value,
    dir: TempDir,
}

impl Gateway {
    pub fn builder() -> Builder {
        Builder {
            port: None,
            token: "gateway-token-of-a-test".into(),
            admin_rpc: false,
            config: json!({}),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// Over loopback: `ws://127.0.0.1:port`.
    pub fn url(&self) -> String {
        self.url_at("127.0.0.1".parse().expect("loopback"))
    }

    /// By another of this machine's addresses (`Network::gateway_ip`).
    pub fn url_at(&self, ip: std::net::Ipv4Addr) -> String {
        format!("ws://{ip}:{}", self.port)
    }

    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "the gateway runs already");
        let mut command = Command::new(paths::node());
        command
            .arg(paths::openclaw())
            .args(["gateway", "run"])
            .current_dir(self.dir.path());
        for (name, _) in std::env::vars_os() {
            // What a developer has set for a gateway of their own must not reach this one.
            if name.to_string_lossy().starts_with("OPENCLAW_") {
                command.env_remove(name);
            }
        }
        command
            .env("HOME", self.dir.path())
            .env("OPENCLAW_STATE_DIR", self.state_dir())
            .env("OPENCLAW_NO_RESPAWN", "1")
            .env("NO_COLOR", "1");
        let mut process = Process::start("gateway", &mut command, &self.console());
        wait::until("the gateway to answer", START, async || {
            process.check_running()?;
            self.answers().await
        })
        .await;
        self.process = Some(process);
        note_once(&format!("real OpenClaw gateway {}: started", version()));
    }

    /// SIGTERM, then SIGKILL if it does not end.
    pub async fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal("TERM");
            let polite = wait_for_end(&mut process);
            let _ = tokio::time::timeout(Duration::from_secs(15), polite).await;
        }
    }

    /// Without a chance to say goodbye: no close frames, no `shutdown` event.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// Stops and starts it with the same state.
    pub async fn restart(&mut self) {
        self.stop().await;
        self.start().await;
    }

    /// Stops it and takes its volume away: nobody is paired, and the configuration is the initial one. It stays
    /// stopped.
    pub async fn wipe_state(&mut self) {
        self.stop().await;
        std::fs::remove_dir_all(self.state_dir()).expect("removing the state");
        self.write_config();
    }

    /// Stops the process in its tracks (SIGSTOP): connections stay, nothing answers.
    pub fn freeze(&self) {
        self.process.as_ref().expect("a running gateway").signal("STOP");
    }

    pub fn thaw(&self) {
        self.process.as_ref().expect("a running gateway").signal("CONT");
    }

    /// `openclaw.json` as it is on disk.
    pub fn config_file(&self) -> Value {
        let text = std::fs::read_to_string(self.config_path()).expect("reading openclaw.json");
        serde_json::from_str(&text).expect("openclaw.json in plain JSON")
    }

    pub fn config_path(&self) -> PathBuf {
        self.state_dir().join("openclaw.json")
    }

    /// What it wrote on its console, since its first start.
    pub fn log_text(&self) -> String {
        read_log(&self.console())
    }

    /// An operator with all scopes, over loopback and of a kind that leaves no pairing record (even where
    /// `autoApproveLocal` is off): an outside look which does not change what it looks at. A policy change closes it
    /// like any other client: take a new one afterwards.
    pub async fn admin(&self) -> DeviceConn {
        // The gateway may be restarting itself after a configuration change.
        wait::until("the gateway to let the outside look in", START, async || {
            match Device::connect(&self.observer, &self.observer_options()).await {
                ConnectOutcome::Connected(conn) => Some(conn),
                ConnectOutcome::Refused { error_code, .. } if error_code == "UNAVAILABLE" => None,
                ConnectOutcome::Http { status: 500.., .. } | ConnectOutcome::Unreachable(_) => None,
                // A second try would count towards the lock-out.
                other => panic!("the outside look was refused: {other:?}"),
            }
        })
        .await
    }

    /// Changes the configuration as a person would by the gateway's own tool: `config.get`, then `config.patch`.
    pub async fn patch_config(&self, patch: Value, replace_paths: &[&str]) -> Result<Value, Value> {
        let admin = self.admin().await;
        let current = admin.call("config.get", json!({})).await?;
        let params = json!({
            "raw": patch.to_string(),
            "baseHash": current["hash"],
            "replacePaths": replace_paths,
        });
        admin.call("config.patch", params).await
    }

    /// The pending record of a device, if it has one.
    pub async fn pending(&self, device_id: &str) -> Option<Value> {
        self.listed("pending", device_id).await
    }

    /// The paired record of a device, if it has one.
    pub async fn paired(&self, device_id: &str) -> Option<Value> {
        self.listed("paired", device_id).await
    }

    async fn listed(&self, list: &str, device_id: &str) -> Option<Value> {
        let all = self
            .admin()
            .await
            .call("device.pair.list", json!({}))
            .await
            .expect("device.pair.list");
        let records = all[list].as_array().cloned().unwrap_or_default();
        records.into_iter().find(|record| record["deviceId"] == device_id)
    }

    fn observer_options(&self) -> ConnectOptions {
        ConnectOptions {
            client_id: "gateway-client".into(),
            client_mode: "backend".into(),
            ..ConnectOptions::new(&self.url(), &self.token).scopes(&[
                "operator.admin",
                "operator.read",
                "operator.write",
                "operator.pairing",
            ])
        }
    }

    /// Neither probe will do: `/readyz` is 503 for a broken channel too, `/healthz` answers before requests do. A
    /// refusal of a known kind is an answer as well: the configuration may ask for it.
    async fn answers(&self) -> Result<(), String> {
        match Device::connect(&self.observer, &self.observer_options()).await {
            ConnectOutcome::Connected(_) => Ok(()),
            ConnectOutcome::Refused { error_code, .. } if error_code != "UNAVAILABLE" => Ok(()),
            ConnectOutcome::Http { status, .. } if status < 500 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    }

    fn write_config(&self) {
        std::fs::create_dir_all(self.state_dir()).expect("making the state folder");
        let text = serde_json::to_string_pretty(&self.initial).expect("JSON");
        std::fs::write(self.config_path(), text).expect("writing openclaw.json");
    }

    fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn console(&self) -> PathBuf {
        self.dir.path().join("console.log")
    }
}

async fn wait_for_end(process: &mut Process) {
    wait::until("the gateway to end", Duration::from_secs(60), async || process.ended()).await;
}

fn version() -> String {
    let package = paths::openclaw()
        .parent()
        .map(|dir| dir.join("package.json"))
        .unwrap_or_default();
    let text = read_log(Path::new(&package));
    let parsed: Value = serde_json::from_str(&text).unwrap_or_default();
    parsed["version"].as_str().unwrap_or("of unknown version").to_owned()
}

fn merge(into: &mut Value, extra: Value) {
    match (into, extra) {
        (Value::Object(into), Value::Object(extra)) => {
            for (key, value) in extra {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, extra) => *into = extra,
    }
}
