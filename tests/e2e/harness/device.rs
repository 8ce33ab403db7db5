//! A device of our own: protocol v4 written from the wire contract, independent of the operator's client, so that one
//! mistake cannot hide in both. It can connect from this process's network or from inside a network namespace.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer as _, SigningKey};
use futures::SinkExt as _;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

pub use super::connection::DeviceConn;
use super::connection::{drain, next_frame, request, say_goodbye};
use super::netns::in_netns;
use super::paths;
use super::process::{Process, scratch};

pub const PATIENCE: Duration = Duration::from_secs(20);

/// A device's key pair.
#[derive(Clone)]
pub struct DeviceIdentity {
    key: SigningKey,
}

impl DeviceIdentity {
    pub fn generate() -> Self {
        Self {
            key: SigningKey::from_bytes(&random()),
        }
    }

    /// The device id: the SHA-256 of the raw public key, in hex.
    pub fn id(&self) -> String {
        Sha256::digest(self.key.verifying_key().as_bytes())
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect()
    }

    /// The raw public key in base64url.
    pub fn public_key(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.key.verifying_key().as_bytes())
    }

    fn sign(&self, text: &str) -> String {
        URL_SAFE_NO_PAD.encode(self.key.sign(text.as_bytes()).to_bytes())
    }
}

#[derive(Debug, Clone)]
pub struct ConnectOptions {
    /// `ws://address:port`
    pub url: String,
    pub token: Option<String>,
    /// The device's own token from an earlier `hello`, instead of the shared one.
    pub device_token: Option<String>,
    pub role: String,
    pub scopes: Vec<String>,
    pub caps: Vec<String>,
    pub commands: Vec<String>,
    pub client_id: String,
    pub client_mode: String,
    pub platform: String,
    pub display_name: Option<String>,
    pub headers: Vec<(String, String)>,
    /// The namespace to connect from (`Host::netns`).
    pub from_netns: Option<String>,
}

impl ConnectOptions {
    /// An operator's command line that asks for `operator.read`.
    pub fn new(url: &str, token: &str) -> Self {
        Self {
            url: url.to_owned(),
            token: Some(token.to_owned()),
            device_token: None,
            role: "operator".into(),
            scopes: vec!["operator.read".into()],
            caps: vec![],
            commands: vec![],
            client_id: "cli".into(),
            client_mode: "cli".into(),
            platform: "linux".into(),
            display_name: None,
            headers: vec![],
            from_netns: None,
        }
    }

    /// A worker: `role: node` without scopes, which offers `commands`.
    pub fn node(url: &str, token: &str, caps: &[&str], commands: &[&str]) -> Self {
        Self {
            role: "node".into(),
            client_id: "node-host".into(),
            client_mode: "node".into(),
            caps: caps.iter().map(ToString::to_string).collect(),
            commands: commands.iter().map(ToString::to_string).collect(),
            ..Self::new(url, token).scopes(&[])
        }
    }

    pub fn scopes(mut self, scopes: &[&str]) -> Self {
        self.scopes = scopes.iter().map(ToString::to_string).collect();
        self
    }

    pub fn from(mut self, host: &super::netns::Host) -> Self {
        self.from_netns = Some(host.netns.clone());
        self
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// How an attempt to connect ended.
#[derive(Debug)]
pub enum ConnectOutcome {
    Connected(DeviceConn),
    /// The gateway answered `connect` with an error, or closed the socket instead of answering.
    Refused {
        /// The WebSocket close code.
        code: u16,
        /// The close reason.
        reason: String,
        /// The error's own code (`NOT_PAIRED`, ...); empty where the socket was only closed.
        error_code: String,
        message: String,
        /// The error's `details` (`code`, `requestId`, ...).
        details: Value,
    },
    /// No upgrade to a WebSocket.
    Http {
        status: u16,
        body: String,
    },
    /// Nobody there.
    Unreachable(String),
}

impl ConnectOutcome {
    #[track_caller]
    pub fn connected(self) -> DeviceConn {
        match self {
            Self::Connected(conn) => conn,
            other => panic!("expected a connection, got {other:?}"),
        }
    }

    /// The error's details, of a refused device.
    #[track_caller]
    pub fn refused(self) -> Value {
        match self {
            Self::Refused { details, .. } => details,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    /// `details.code` of a refusal: `PAIRING_REQUIRED`, ...
    pub fn refusal_code(&self) -> Option<&str> {
        match self {
            Self::Refused { details, .. } => details["code"].as_str(),
            _ => None,
        }
    }
}

pub struct Device;

impl Device {
    pub async fn connect(identity: &DeviceIdentity, options: &ConnectOptions) -> ConnectOutcome {
        match tokio::time::timeout(PATIENCE, connect(identity, options)).await {
            Ok(Ok(outcome) | Err(outcome)) => outcome,
            Err(_) => ConnectOutcome::Unreachable(format!("no outcome within {PATIENCE:?}")),
        }
    }
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}
pub type Socket = WebSocketStream<Box<dyn Stream>>;

async fn connect(identity: &DeviceIdentity, options: &ConnectOptions) -> Result<ConnectOutcome, ConnectOutcome> {
    let (mut socket, bridge) = open(options).await?;
    let challenge = loop {
        match next_frame(&mut socket).await {
            Ok(frame) if frame["event"] == "connect.challenge" => break frame["payload"].clone(),
            Ok(_) => {}
            Err((code, reason)) => return Err(refusal(code, reason, &Value::Null)),
        }
    };
    send(
        &mut socket,
        request("connect", "connect", connect_params(identity, options, &challenge)),
    )
    .await?;
    let answer = loop {
        match next_frame(&mut socket).await {
            Ok(frame) if frame["id"] == "connect" => break frame,
            Ok(_) => {}
            Err((code, reason)) => return Err(refusal(code, reason, &Value::Null)),
        }
    };
    if answer["ok"] != true {
        let (code, reason) = drain(&mut socket).await;
        say_goodbye(&mut socket).await;
        return Err(refusal(code, reason, &answer["error"]));
    }
    Ok(ConnectOutcome::Connected(DeviceConn::start(
        socket,
        answer["payload"].clone(),
        bridge,
    )))
}

fn refusal(code: u16, reason: String, error: &Value) -> ConnectOutcome {
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    ConnectOutcome::Refused {
        code,
        reason,
        error_code: text("code"),
        message: text("message"),
        details: error["details"].clone(),
    }
}

fn connect_params(identity: &DeviceIdentity, options: &ConnectOptions, challenge: &Value) -> Value {
    let nonce = challenge["nonce"].as_str().unwrap_or_default();
    let signed_at = challenge["ts"].as_i64().unwrap_or_default();
    let secret = options
        .token
        .as_deref()
        .or(options.device_token.as_deref())
        .unwrap_or_default();
    let ConnectOptions {
        client_id,
        client_mode,
        role,
        platform,
        ..
    } = options;
    let scopes = options.scopes.join(",");
    let signed = format!(
        "v3|{}|{client_id}|{client_mode}|{role}|{scopes}|{signed_at}|{secret}|{nonce}|{platform}|",
        identity.id()
    );
    let mut client = json!({"id": client_id, "mode": client_mode, "version": "0.1.0", "platform": platform});
    if let Some(name) = &options.display_name {
        client["displayName"] = json!(name);
    }
    let mut auth = json!({});
    if let Some(token) = &options.token {
        auth["token"] = json!(token);
    }
    if let Some(token) = &options.device_token {
        auth["deviceToken"] = json!(token);
    }
    json!({
        "minProtocol": 4,
        "maxProtocol": 4,
        "client": client,
        "role": role,
        "scopes": options.scopes,
        "caps": options.caps,
        "commands": options.commands,
        "permissions": {},
        "auth": auth,
        "locale": "en-US",
        "userAgent": "test-device/0.1",
        "device": {
            "id": identity.id(),
            "publicKey": identity.public_key(),
            "signature": identity.sign(&signed),
            "signedAt": signed_at,
            "nonce": nonce,
        },
    })
}

/// The TCP connection and the upgrade. By hand rather than by the WebSocket crate: that gives only as much of a
/// refusal's body as came in the same packet as its headers.
async fn open(options: &ConnectOptions) -> Result<(Socket, Option<Bridge>), ConnectOutcome> {
    let rest = options.url.strip_prefix("ws://").expect("a ws:// URL");
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (stream, bridge): (Box<dyn Stream>, _) = match &options.from_netns {
        None => match tokio::net::TcpStream::connect(authority).await {
            Ok(tcp) => (Box::new(tcp), None),
            Err(e) => return Err(ConnectOutcome::Unreachable(format!("{}: {e}", options.url))),
        },
        Some(netns) => {
            let (stream, bridge) = bridge(netns, authority);
            (stream, Some(bridge))
        }
    };
    match upgrade(stream, authority, path, options).await {
        Ok(Ok(socket)) => Ok((socket, bridge)),
        Ok(Err(refused)) => Err(refused),
        Err(e) => {
            let why = bridge.map(|b| b.process.log_text()).unwrap_or_default();
            Err(ConnectOutcome::Unreachable(format!("{}: {e} {why}", options.url)))
        }
    }
}

async fn upgrade(
    mut stream: Box<dyn Stream>,
    authority: &str,
    path: &str,
    options: &ConnectOptions,
) -> std::io::Result<Result<Socket, ConnectOutcome>> {
    let key = STANDARD.encode(random::<16>());
    let mut head = format!(
        "GET /{path} HTTP/1.1\r\nHost: {authority}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    );
    for (name, value) in &options.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;

    let mut got = Vec::new();
    let end_of_head = loop {
        if let Some(at) = got.windows(4).position(|w| w == b"\r\n\r\n") {
            break at + 4;
        }
        if stream.read_buf(&mut got).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    };
    let mut body = got.split_off(end_of_head);
    let head = String::from_utf8_lossy(&got).to_ascii_lowercase();
    let status = head.split_whitespace().nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    if status == 101 {
        let socket = WebSocketStream::from_partially_read(stream, body, Role::Client, None).await;
        return Ok(Ok(socket));
    }
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    while length.is_none_or(|n| body.len() < n) {
        match stream.read_buf(&mut body).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Err(ConnectOutcome::Http { status, body }))
}

/// A child that holds a TCP connection inside a namespace: entering one takes unsafe code, a child that pipes does not.
pub struct Bridge {
    process: Process,
    _dir: TempDir,
}

fn bridge(netns: &str, authority: &str) -> (Box<dyn Stream>, Bridge) {
    const SCRIPT: &str = "const s=require('net').connect(+process.argv[2],process.argv[1]);s.setNoDelay(true);\
        process.stdin.pipe(s);s.pipe(process.stdout);\
        s.on('error',e=>{console.error(e.message);process.exit(1)});s.on('close',()=>process.exit())";
    let (host, port) = authority.split_once(':').expect("address:port");
    let dir = scratch("bridge");
    let mut command = in_netns(netns, paths::node());
    command.args(["-e", SCRIPT, host, port]);
    let (process, stdin, stdout) =
        Process::start_piped("bridge into a namespace", &mut command, &dir.path().join("log"));
    let stdin = tokio::process::ChildStdin::from_std(stdin).expect("the bridge's stdin");
    let stdout = tokio::process::ChildStdout::from_std(stdout).expect("the bridge's stdout");
    (Box::new(tokio::io::join(stdout, stdin)), Bridge { process, _dir: dir })
}

async fn send(socket: &mut Socket, frame: Value) -> Result<(), ConnectOutcome> {
    socket
        .send(Message::text(frame.to_string()))
        .await
        .map_err(|e| ConnectOutcome::Unreachable(e.to_string()))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("random bytes");
    bytes
}
