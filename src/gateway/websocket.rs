//! The real door: one WebSocket (protocol v4) that carries requests and events, driven by one task.
//!
//! Measured on openclaw 2026.9.6: the gateway sends `connect.challenge` first; the device signs
//! `v3|deviceId|clientId|clientMode|role|scopes|ts|token|nonce|platform|deviceFamily`. A client that calls itself
//! `gateway-client`/`backend` gets no pairing record on loopback, so this one is a `cli`.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WireError, Message};

use super::door::{Closed, Connector, Door, Signals};
use super::endpoint::{Credential, Endpoint};
use super::enrol;
use super::error::{CallError, ConnectError};
use super::identity::Identity;
use super::protocol::{ConfigPatch, DeviceList, Frame, GatewayConfig, is_constant};
use crate::api::validated::CredentialKind;

/// The WebSocket protocol version that this program speaks.
const PROTOCOL: u32 = 4;
const CLIENT_ID: &str = "cli";
const CLIENT_MODE: &str = "cli";
const ROLE: &str = "operator";
/// `operator.pairing` for devices, `operator.admin` for the config, `operator.read` for both lists.
const SCOPES: [&str; 3] = ["operator.admin", "operator.pairing", "operator.read"];
const PLATFORM: &str = "linux";
/// Time for each step of connecting: TCP, TLS, upgrade, challenge, answer.
const STEP_LIMIT: Duration = Duration::from_secs(10);
/// Time for a call.
const CALL_LIMIT: Duration = Duration::from_secs(15);
/// How often the connection is probed when nothing is said; without an answer by the next probe it counts as lost.
const PING_EVERY: Duration = Duration::from_secs(20);
/// Largest frame that is read: the gateway's own ceiling (`policy.maxPayload`).
const FRAME_LIMIT: usize = 26_214_400;

type Stream = WebSocketStream<Box<dyn Wire>>;

trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Who waits for an answer.
type Answer = oneshot::Sender<Result<Value, CallError>>;

struct Request {
    method: &'static str,
    parameters: Value,
    answer: Answer,
}

/// An open connection to a gateway. Closes when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct WebSocketDoor {
    requests: mpsc::Sender<Request>,
    signals: Signals,
    version: Arc<str>,
}

/// Opens [`WebSocketDoor`]s.
#[derive(Clone, Copy, Debug, Default)]
pub struct WebSocketConnector;

impl Connector for WebSocketConnector {
    type Door = WebSocketDoor;

    async fn connect(
        &self,
        endpoint: &Endpoint,
        credential: &Credential,
        identity: &Identity,
        name: &str,
    ) -> Result<WebSocketDoor, ConnectError> {
        let mut stream = upgrade(endpoint).await?;
        let shown = endpoint.shown();
        let (nonce, ts) = challenge(&mut stream, &shown).await?;
        let parameters = connect_parameters(credential, identity, name, &nonce, ts);
        let hello = match sign_in(&mut stream, &shown, parameters).await {
            Ok(hello) => hello,
            Err(error) => {
                // Wait for the gateway's own close frame: it logs 1006 instead of its reason for a client that just goes.
                tokio::spawn(timeout(Duration::from_secs(2), async move {
                    while let Some(Ok(_)) = stream.next().await {}
                }));
                return Err(error);
            }
        };
        let version = hello
            .pointer("/server/version")
            .and_then(Value::as_str)
            .filter(|text| is_constant(text))
            .unwrap_or("unknown");
        Ok(start(stream, version))
    }

    async fn enrol_by_admin_rpc(
        &self,
        endpoint: &Endpoint,
        credential: &Credential,
        request_id: &str,
    ) -> Result<bool, ConnectError> {
        enrol::approve_by_admin_rpc(endpoint, credential, request_id).await
    }
}

async fn dial(endpoint: &Endpoint) -> Result<Box<dyn Wire>, ConnectError> {
    let mut last = ConnectError::NameNotResolved(endpoint.origin.host.clone());
    for address in endpoint.addresses().await? {
        match timeout(STEP_LIMIT, TcpStream::connect(address)).await {
            Err(_) => {
                last = ConnectError::Failed {
                    address: address.to_string(),
                    problem: "no answer in time".to_owned(),
                }
            }
            Ok(Err(error)) => {
                last = ConnectError::Failed {
                    address: address.to_string(),
                    problem: error.kind().to_string(),
                }
            }
            Ok(Ok(stream)) => {
                // Approvals are small messages that should not wait for more to be sent along with them.
                let _ = stream.set_nodelay(true);
                return secure(endpoint, stream).await;
            }
        }
    }
    Err(last)
}

async fn secure(endpoint: &Endpoint, stream: TcpStream) -> Result<Box<dyn Wire>, ConnectError> {
    let Some(config) = &endpoint.tls else {
        return Ok(Box::new(stream));
    };
    let host = endpoint.server_name.as_ref().unwrap_or(&endpoint.origin.host);
    let failed = |problem: String| ConnectError::Tls {
        host: host.clone(),
        problem,
    };
    let name = rustls::pki_types::ServerName::try_from(host.clone())
        .map_err(|_| failed("not a name that a certificate can carry".to_owned()))?;
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    match timeout(STEP_LIMIT, connector.connect(name, stream)).await {
        Err(_) => Err(failed("no answer in time".to_owned())),
        Ok(Err(error)) => Err(failed(error.to_string())),
        Ok(Ok(stream)) => Ok(Box::new(stream)),
    }
}

async fn upgrade(endpoint: &Endpoint) -> Result<Stream, ConnectError> {
    let shown = endpoint.shown();
    let unexpected = |what: String| ConnectError::Unexpected {
        origin: shown.clone(),
        what,
    };
    let mut request = shown
        .as_str()
        .into_client_request()
        .map_err(|_| unexpected("the address is no WebSocket URL".to_owned()))?;
    request.headers_mut().insert(
        "user-agent",
        http::HeaderValue::from_static(concat!("gatewaytrust/", env!("CARGO_PKG_VERSION"))),
    );
    let stream = dial(endpoint).await?;
    let config = WebSocketConfig::default()
        .max_message_size(Some(FRAME_LIMIT))
        .max_frame_size(Some(FRAME_LIMIT));
    let handshake = tokio_tungstenite::client_async_with_config(request, stream, Some(config));
    match timeout(STEP_LIMIT, handshake).await {
        Err(_) => Err(ConnectError::TimedOut(STEP_LIMIT)),
        Ok(Ok((stream, _))) => Ok(stream),
        Ok(Err(WireError::Http(response))) => Err(refused_upgrade(&shown, &response)),
        Ok(Err(WireError::Io(error))) => Err(ConnectError::Failed {
            address: shown,
            problem: error.kind().to_string(),
        }),
        Ok(Err(_)) => Err(unexpected("not an answer to a WebSocket upgrade".to_owned())),
    }
}

fn refused_upgrade(shown: &str, response: &http::Response<Option<Vec<u8>>>) -> ConnectError {
    let status = response.status();
    if status.is_redirection() {
        return ConnectError::Redirected {
            origin: shown.to_owned(),
            status: status.as_u16(),
        };
    }
    let body = response.body().as_deref().unwrap_or_default();
    if status == http::StatusCode::FORBIDDEN && String::from_utf8_lossy(body).contains("proxy_attribution_required") {
        return ConnectError::Attribution;
    }
    if status == http::StatusCode::SERVICE_UNAVAILABLE {
        return ConnectError::Starting("HTTP 503".to_owned());
    }
    ConnectError::Unexpected {
        origin: shown.to_owned(),
        what: format!("HTTP {} where a WebSocket upgrade was expected", status.as_u16()),
    }
}

async fn next_frame(stream: &mut Stream, shown: &str) -> Result<Frame, ConnectError> {
    let unexpected = |what: &str| ConnectError::Unexpected {
        origin: shown.to_owned(),
        what: what.to_owned(),
    };
    loop {
        let message = timeout(STEP_LIMIT, stream.next())
            .await
            .map_err(|_| ConnectError::TimedOut(STEP_LIMIT))?;
        match message {
            Some(Ok(Message::Text(text))) => {
                return Frame::parse(text.as_str()).map_err(|_| unexpected("a frame that is not of its protocol"));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
            Some(Ok(Message::Binary(_))) => return Err(unexpected("a binary frame")),
            Some(Ok(Message::Close(frame))) => {
                let code = frame.map_or(1005, |frame| u16::from(frame.code));
                return Err(match code {
                    1002 => ConnectError::Protocol("close 1002".to_owned()),
                    1012 | 1013 => ConnectError::Starting(format!("close {code}")),
                    _ => ConnectError::Refused(format!("close {code}")),
                });
            }
            Some(Err(_)) | None => return Err(unexpected("the connection was cut during the handshake")),
        }
    }
}

async fn challenge(stream: &mut Stream, shown: &str) -> Result<(String, u64), ConnectError> {
    let deadline = Instant::now() + STEP_LIMIT;
    while Instant::now() < deadline {
        if let Frame::Event { name, payload, .. } = next_frame(stream, shown).await?
            && name == "connect.challenge"
        {
            let nonce = payload.get("nonce").and_then(Value::as_str);
            let ts = payload.get("ts").and_then(Value::as_u64);
            let (Some(nonce), Some(ts)) = (nonce, ts) else {
                return Err(ConnectError::Unexpected {
                    origin: shown.to_owned(),
                    what: "a challenge without nonce and time".to_owned(),
                });
            };
            return Ok((nonce.to_owned(), ts));
        }
    }
    Err(ConnectError::TimedOut(STEP_LIMIT))
}

fn connect_parameters(credential: &Credential, identity: &Identity, name: &str, nonce: &str, ts: u64) -> Value {
    let secret = credential.secret.expose();
    let (auth, signed_token) = match credential.kind {
        CredentialKind::Token => (json!({"token": secret}), secret),
        CredentialKind::Password => (json!({"password": secret}), ""),
    };
    let id = identity.device_id();
    let scopes = SCOPES.join(",");
    let signed = format!("v3|{id}|{CLIENT_ID}|{CLIENT_MODE}|{ROLE}|{scopes}|{ts}|{signed_token}|{nonce}|{PLATFORM}|");
    json!({
        "minProtocol": PROTOCOL,
        "maxProtocol": PROTOCOL,
        "client": {"id": CLIENT_ID, "version": env!("CARGO_PKG_VERSION"), "platform": PLATFORM, "mode": CLIENT_MODE, "displayName": name},
        "role": ROLE,
        "scopes": SCOPES,
        "caps": [],
        "commands": [],
        "permissions": {},
        "auth": auth,
        "locale": "en-US",
        "userAgent": concat!("gatewaytrust/", env!("CARGO_PKG_VERSION")),
        "device": {"id": id.as_str(), "publicKey": identity.public_key().to_string(), "signature": identity.sign(&signed), "signedAt": ts, "nonce": nonce},
    })
}

async fn sign_in(stream: &mut Stream, shown: &str, parameters: Value) -> Result<Value, ConnectError> {
    let request = json!({"type": "req", "id": "connect", "method": "connect", "params": parameters});
    let cut = || ConnectError::Unexpected {
        origin: shown.to_owned(),
        what: "the connection was cut during the handshake".to_owned(),
    };
    stream
        .send(Message::text(request.to_string()))
        .await
        .map_err(|_| cut())?;
    let deadline = Instant::now() + STEP_LIMIT;
    while Instant::now() < deadline {
        if let Frame::Response { id, outcome } = next_frame(stream, shown).await?
            && id == "connect"
        {
            return outcome.map_err(|error| ConnectError::from_refusal(&error));
        }
    }
    Err(ConnectError::TimedOut(STEP_LIMIT))
}

struct Driver {
    waiting: HashMap<String, (&'static str, Answer)>,
    devices: watch::Sender<u64>,
    presence: watch::Sender<u64>,
    config: watch::Sender<u64>,
    sequence: Option<u64>,
    number: u64,
}

fn start(stream: Stream, version: &str) -> WebSocketDoor {
    let (requests, incoming) = mpsc::channel(64);
    let (devices, devices_seen) = watch::channel(0);
    let (presence, presence_seen) = watch::channel(0);
    let (config, config_seen) = watch::channel(0);
    let (closed, closed_seen) = watch::channel(None);
    let driver = Driver {
        waiting: HashMap::new(),
        devices,
        presence,
        config,
        sequence: None,
        number: 0,
    };
    tokio::spawn(async move {
        let end = driver.run(stream, incoming).await;
        let _ = closed.send(Some(end));
    });
    WebSocketDoor {
        requests,
        signals: Signals {
            devices: devices_seen,
            presence: presence_seen,
            config: config_seen,
            closed: closed_seen,
        },
        version: version.into(),
    }
}

impl Driver {
    async fn run(mut self, mut stream: Stream, mut requests: mpsc::Receiver<Request>) -> Closed {
        let lost = |reason: &str| Closed {
            code: 1006,
            reason: reason.to_owned(),
        };
        let mut ping = tokio::time::interval(PING_EVERY);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        ping.reset();
        let mut answered = true;
        let end = loop {
            tokio::select! {
                request = requests.recv() => match request {
                    None => {
                        let _ = timeout(Duration::from_secs(1), stream.close(None)).await;
                        break Closed { code: 1000, reason: "closed by us".to_owned() };
                    }
                    Some(request) => if !self.send(&mut stream, request).await {
                        break lost("the connection broke");
                    },
                },
                message = stream.next() => match message {
                    Some(Ok(Message::Text(text))) => { answered = true; self.take(text.as_str()); }
                    Some(Ok(Message::Close(frame))) => break frame.map_or_else(
                        || Closed { code: 1005, reason: String::new() },
                        |frame| Closed { code: u16::from(frame.code), reason: plain(frame.reason.as_str()) },
                    ),
                    Some(Ok(_)) => answered = true,
                    Some(Err(_)) | None => break lost("the connection broke"),
                },
                _ = ping.tick() => {
                    if !answered || stream.send(Message::Ping(Vec::new().into())).await.is_err() {
                        break lost("no sign of life");
                    }
                    answered = false;
                }
            }
        };
        for (_, (method, answer)) in self.waiting.drain() {
            let _ = answer.send(Err(CallError::Disconnected(method)));
        }
        end
    }

    async fn send(&mut self, stream: &mut Stream, request: Request) -> bool {
        self.number += 1;
        let id = format!("r{}", self.number);
        let frame = json!({"type": "req", "id": id, "method": request.method, "params": request.parameters});
        // Requests whose caller has given up would pile up here otherwise.
        self.waiting.retain(|_, (_, answer)| !answer.is_closed());
        self.waiting.insert(id, (request.method, request.answer));
        let sent = timeout(CALL_LIMIT, stream.send(Message::text(frame.to_string()))).await;
        matches!(sent, Ok(Ok(())))
    }

    fn take(&mut self, text: &str) {
        match Frame::parse(text) {
            Ok(Frame::Response { id, outcome }) => {
                if let Some((method, answer)) = self.waiting.remove(&id) {
                    let _ = answer.send(outcome.map_err(|error| CallError::from_remote(method, &error)));
                }
            }
            Ok(Frame::Event { name, sequence, .. }) => {
                // Events are dropped for slow sockets; a gap means that anything may have happened.
                let gap = self.sequence.zip(sequence).is_some_and(|(last, now)| now > last + 1);
                self.sequence = sequence.or(self.sequence);
                if gap || name.starts_with("device.pair.") || name.starts_with("node.pair.") {
                    self.devices.send_modify(|count| *count += 1);
                }
                if name == "presence" {
                    self.presence.send_modify(|count| *count += 1);
                }
                if gap || name == "config.changed" {
                    self.config.send_modify(|count| *count += 1);
                }
            }
            Ok(Frame::Other) => {}
            Err(error) => tracing::debug!(%error, "a frame that cannot be read is left out"),
        }
    }
}

/// A close reason as far as it is plain text of the protocol.
fn plain(reason: &str) -> String {
    reason
        .chars()
        .filter(|letter| letter.is_ascii_alphanumeric() || matches!(letter, ' ' | '-' | '_' | ':' | '.' | '(' | ')'))
        .take(80)
        .collect()
}

impl WebSocketDoor {
    async fn call(&self, method: &'static str, parameters: Value) -> Result<Value, CallError> {
        let (answer, answered) = oneshot::channel();
        let request = Request {
            method,
            parameters,
            answer,
        };
        let whole = async {
            self.requests
                .send(request)
                .await
                .map_err(|_| CallError::Disconnected(method))?;
            answered.await.unwrap_or(Err(CallError::Disconnected(method)))
        };
        timeout(CALL_LIMIT, whole).await.unwrap_or(Err(CallError::TimedOut {
            method,
            limit: CALL_LIMIT,
        }))
    }
}

impl Door for WebSocketDoor {
    fn signals(&self) -> Signals {
        self.signals.clone()
    }

    fn version(&self) -> &str {
        &self.version
    }

    async fn devices(&self) -> Result<DeviceList, CallError> {
        Ok(DeviceList::parse(&self.call("device.pair.list", json!({})).await?)?)
    }

    async fn approve(&self, request_id: &str) -> Result<(), CallError> {
        self.call("device.pair.approve", json!({"requestId": request_id}))
            .await
            .map(drop)
    }

    async fn reject(&self, request_id: &str) -> Result<(), CallError> {
        self.call("device.pair.reject", json!({"requestId": request_id}))
            .await
            .map(drop)
    }

    async fn remove(&self, device_id: &str) -> Result<(), CallError> {
        self.call("device.pair.remove", json!({"deviceId": device_id}))
            .await
            .map(drop)
    }

    async fn config(&self) -> Result<GatewayConfig, CallError> {
        Ok(GatewayConfig::parse(&self.call("config.get", json!({})).await?)?)
    }

    async fn patch(&self, patch: &ConfigPatch, base_hash: &str) -> Result<(), CallError> {
        self.call("config.patch", patch.parameters(base_hash)).await.map(drop)
    }
}
