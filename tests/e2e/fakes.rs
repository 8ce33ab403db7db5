//! Servers that are no gateway, or a broken one: small, in the test's own process, and with a memory of what came.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_tungstenite::tungstenite::Message;

use crate::harness::process::free_port;
use crate::harness::wait;

pub struct Fake {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
    task: AbortHandle,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    /// Accepts connections and says nothing.
    pub async fn silent() -> Self {
        Self::serve(|_, _| async {}).await
    }

    /// Answers every HTTP request with these bytes.
    pub async fn http(answer: String) -> Self {
        let answer: Arc<str> = answer.into();
        Self::serve(move |stream, seen| answer_http(stream, seen, answer.clone())).await
    }

    /// Speaks WebSocket: greets with these frames, and answers each request by this function (nothing: no answer).
    pub async fn websocket(greeting: &str, answer: fn(&Value) -> Option<String>) -> Self {
        let greeting: Arc<str> = greeting.into();
        Self::serve(move |stream, seen| answer_websocket(stream, seen, greeting.clone(), answer)).await
    }

    async fn serve<F>(handle: impl Fn(TcpStream, Arc<Mutex<Vec<String>>>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let port = free_port();
        // On all addresses: an endpoint of a cluster is never on loopback.
        let address = SocketAddr::from(([0, 0, 0, 0], port));
        // A child that is just being started may hold the probe of `free_port` open for a moment.
        let listener = wait::until("to listen", Duration::from_secs(5), async || {
            TcpListener::bind(address).await
        })
        .await;
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let shared = seen.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                note(&shared, "connection");
                tokio::spawn(handle(stream, shared.clone()));
            }
        });
        Self {
            port,
            seen,
            task: task.abort_handle(),
        }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// What came, in order: `connection`, the first line of an HTTP request, the method of a WebSocket request.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }

    pub fn connections(&self) -> usize {
        self.seen().iter().filter(|line| *line == "connection").count()
    }
}

fn note(seen: &Mutex<Vec<String>>, line: &str) {
    seen.lock().unwrap_or_else(|e| e.into_inner()).push(line.to_owned());
}

async fn answer_http(mut stream: TcpStream, seen: Arc<Mutex<Vec<String>>>, answer: Arc<str>) {
    let mut head = Vec::new();
    while !head.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read_buf(&mut head).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    note(&seen, head.lines().next().unwrap_or_default());
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

async fn answer_websocket(
    stream: TcpStream,
    seen: Arc<Mutex<Vec<String>>>,
    greeting: Arc<str>,
    answer: fn(&Value) -> Option<String>,
) {
    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
        return;
    };
    if socket.send(Message::text(&*greeting)).await.is_err() {
        return;
    }
    while let Some(Ok(message)) = socket.next().await {
        let Message::Text(text) = message else { continue };
        let request: Value = serde_json::from_str(&text).expect("the operator sends JSON");
        note(&seen, request["method"].as_str().unwrap_or_default());
        if let Some(answer) = answer(&request)
            && socket.send(Message::text(answer)).await.is_err()
        {
            return;
        }
    }
}

/// An HTTP answer with a body.
pub fn http_answer(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// The first frame of a gateway.
pub fn challenge() -> String {
    let payload = json!({"nonce": "a-nonce", "ts": 1_700_000_000_000_u64, "unknown": [1, {"a": null}]});
    json!({"type": "event", "event": "connect.challenge", "payload": payload, "unknown": true}).to_string()
}

/// An answer to a request.
pub fn reply(request: &Value, payload: Value) -> String {
    json!({"type": "res", "id": request["id"], "ok": true, "payload": payload, "unknown": {"deep": []}}).to_string()
}
